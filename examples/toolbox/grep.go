package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// grep prints the lines that match: -E, -F, -G, -e PATTERN, -f FILE, -i, -v,
// -c, -l, -L, -n, -o, -q, -s, -w, -x, -r, -h, -H, -m NUMBER. Expressions have
// no back-references.
func grep(args []string) error {
	o, err := parse(args, "EFGe:f:ivclLnoqswxrRhHam: extended-regexp=E fixed-strings=F basic-regexp=G regexp=e file=f ignore-case=i invert-match=v count=c files-with-matches=l files-without-match=L line-number=n only-matching=o quiet=q silent=q no-messages=s word-regexp=w line-regexp=x recursive=r no-filename=h with-filename=H text=a max-count=m")
	if err != nil {
		complain("grep", err)
		return exit(2)
	}
	g := &grepper{o: o, out: bufio.NewWriter(os.Stdout), most: -1}
	patterns := o.values['e']
	if o.has('f') {
		more, err := readLines("grep", o.values['f'], '\n')
		if err != nil {
			return exit(2)
		}
		patterns = append(patterns, more...)
	}
	if !o.has('e') && !o.has('f') {
		if len(o.args) == 0 {
			complain("grep", errors.New("need a pattern"))
			return exit(2)
		}
		patterns, o.args = strings.Split(o.args[0], "\n"), o.args[1:]
	}
	if g.re, err = compile(patterns, o); err == nil && o.has('m') {
		_, err = fmt.Sscan(o.value('m', ""), &g.most)
	}
	if err != nil {
		complain("grep", err)
		return exit(2)
	}
	err = g.files()
	if ferr := g.out.Flush(); ferr != nil {
		return ferr
	}
	switch {
	case g.found && (err == nil || o.has('q')):
		return nil
	case err != nil:
		return exit(2)
	}
	return exit(1)
}

type grepper struct {
	o     *options
	re    *regexp.Regexp
	out   *bufio.Writer
	found bool
	named bool // print names of files
	most  int  // lines of each file; negative for all
}

func (g *grepper) files() error {
	recursive := g.o.has('r') || g.o.has('R')
	names := g.o.args
	if recursive && len(names) == 0 {
		names = []string{"."}
	}
	g.named = (len(names) > 1 || recursive) && !g.o.has('h') || g.o.has('H')
	if len(names) == 0 {
		return g.file("(standard input)", os.Stdin)
	}
	var result error
	one := func(name string) error {
		r, err := input(name)
		if err == nil {
			defer r.Close()
			err = g.file(name, r)
		}
		if err != nil {
			if !g.o.has('s') {
				complain("grep", err)
			}
			result = exit(2)
		}
		return nil
	}
	for _, n := range names {
		if !recursive || n == "-" {
			one(n)
			continue
		}
		err := filepath.WalkDir(n, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Type().IsRegular() || path == n && !d.IsDir() {
				if n == "." && len(g.o.args) > 0 { // WalkDir leaves "./" out
					path = "./" + path
				}
				return one(path)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return result
}

func (g *grepper) file(name string, r io.Reader) error {
	matched, number := 0, 0
	silent := g.o.has('q') || g.o.has('c') || g.o.has('l') || g.o.has('L')
	err := lines(r, '\n', func(l []byte) bool {
		if g.most >= 0 && matched >= g.most {
			return false
		}
		number++
		if g.re.Match(l) == g.o.has('v') {
			return true
		}
		matched++
		if silent {
			return g.o.has('c')
		}
		prefix := ""
		if g.named {
			prefix = name + ":"
		}
		if g.o.has('n') {
			prefix += fmt.Sprint(number, ":")
		}
		if g.o.has('o') {
			for _, m := range g.re.FindAll(l, -1) {
				if len(m) > 0 {
					fmt.Fprintf(g.out, "%s%s\n", prefix, m)
				}
			}
			return true
		}
		fmt.Fprintf(g.out, "%s%s\n", prefix, l)
		return true
	})
	g.found = g.found || (matched > 0) != g.o.has('L')
	switch {
	case g.o.has('q'):
	case g.o.has('l') && matched > 0, g.o.has('L') && matched == 0:
		fmt.Fprintln(g.out, name)
	case g.o.has('c'):
		if g.named {
			fmt.Fprint(g.out, name, ":")
		}
		fmt.Fprintln(g.out, matched)
	}
	return err
}

// compile makes one expression of all patterns.
func compile(patterns []string, o *options) (*regexp.Regexp, error) {
	var parts []string
	for _, p := range patterns {
		switch o.last("EFG") {
		case 'F':
			p = regexp.QuoteMeta(p)
		case 'E':
		default:
			p = basicToExtended(p)
		}
		parts = append(parts, "(?:"+p+")")
	}
	text := strings.Join(parts, "|")
	switch {
	case len(parts) == 0:
		text = `$^x` // matches nothing
	case o.has('x'):
		text = "^(?:" + text + ")$"
	case o.has('w'):
		text = `(?:\b)(?:` + text + `)(?:\b)`
	}
	text = strings.NewReplacer(`\<`, `\b`, `\>`, `\b`).Replace(text)
	if o.has('i') {
		text = "(?i)" + text
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, fmt.Errorf("pattern %q: %w", strings.Join(patterns, "\n"), errors.Unwrap(err))
	}
	re.Longest() // as POSIX has it
	return re, nil
}

// basicToExtended rewrites a basic regular expression, in which the
// operators are \( \) \{ \} \| \+ \?, to an extended one.
func basicToExtended(p string) string {
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		c := p[i]
		start := i == 0 || strings.HasSuffix(p[:i], `\(`) || strings.HasSuffix(p[:i], `\|`)
		switch {
		case c == '\\' && i+1 < len(p):
			i++
			if strings.IndexByte("(){}|+?", p[i]) < 0 {
				b.WriteByte('\\')
			}
			b.WriteByte(p[i])
		case c == '[':
			end := bracketEnd(p, i)
			b.WriteString(strings.ReplaceAll(p[i:end], `\`, `\\`))
			i = end - 1
		case strings.IndexByte("(){}|+?", c) >= 0,
			c == '*' && (start || i == 1 && p[0] == '^'),
			c == '^' && !start:
			b.WriteByte('\\')
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// bracketEnd returns the index after the bracket expression that begins at i.
func bracketEnd(p string, i int) int {
	j := i + 1
	if j < len(p) && p[j] == '^' {
		j++
	}
	if j < len(p) && p[j] == ']' {
		j++
	}
	for j < len(p) && p[j] != ']' {
		if p[j] == '[' && j+1 < len(p) && p[j+1] == ':' {
			if k := strings.Index(p[j:], ":]"); k > 0 {
				j += k + 1
			}
		}
		j++
	}
	return min(j+1, len(p))
}
