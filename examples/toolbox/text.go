package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// input opens a file for reading, with "-" for standard input.
func input(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(os.Stdin), nil
	}
	return os.Open(name)
}

// eachInput calls f for every named file, or for standard input if there is
// none.
func eachInput(command string, names []string, f func(name string, r io.Reader) error) error {
	if len(names) == 0 {
		names = []string{"-"}
	}
	return each(command, names, func(n string) error {
		r, err := input(n)
		if err != nil {
			return err
		}
		defer r.Close()
		return f(n, r)
	})
}

// lines calls f for each line without its newline, until f says stop. Lines
// have no limit of length.
func lines(r io.Reader, end byte, f func(line []byte) (more bool)) error {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := br.ReadBytes(end)
		if err != nil && err != io.EOF {
			return err
		}
		if len(line) == 0 {
			return nil
		}
		if !f(bytes.TrimSuffix(line, []byte{end})) || err == io.EOF {
			return nil
		}
	}
}

// readLines returns all lines of the named files.
func readLines(command string, names []string, end byte) ([]string, error) {
	var all []string
	err := eachInput(command, names, func(_ string, r io.Reader) error {
		return lines(r, end, func(l []byte) bool { all = append(all, string(l)); return true })
	})
	return all, err
}

// obsolete turns -5 into -n 5, as head and tail take it.
func obsolete(args []string) []string {
	if len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && args[0][1] >= '0' && args[0][1] <= '9' {
		return append([]string{"-n", args[0][1:]}, args[1:]...)
	}
	return args
}

// cat prints files one after the other.
func cat(args []string) error {
	o, err := parse(args, "u")
	if err != nil {
		return err
	}
	return eachInput("cat", o.args, func(_ string, r io.Reader) error {
		_, err := io.Copy(os.Stdout, r)
		return err
	})
}

// head prints the beginning of files: -n LINES, -c BYTES; a negative number
// leaves out so many at the end; -q, -v.
func head(args []string) error {
	o, err := parse(obsolete(args), "n:c:qv lines=n bytes=c quiet=q verbose=v")
	if err != nil {
		return err
	}
	text := o.value('n', "10")
	if o.has('c') {
		text = o.value('c', "")
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("number %q: %w", text, err)
	}
	out := bufio.NewWriter(os.Stdout)
	first := true
	err = eachInput("head", o.args, func(name string, r io.Reader) error {
		title(out, o, name, &first)
		if o.has('c') && n >= 0 {
			_, err := io.CopyN(out, r, int64(n))
			if err == io.EOF {
				err = nil
			}
			return err
		}
		if n < 0 || o.has('c') {
			return headWithout(out, r, o.has('c'), -n)
		}
		left := n
		if left == 0 {
			return nil
		}
		return lines(r, '\n', func(l []byte) bool {
			out.Write(l)
			out.WriteByte('\n')
			left--
			return left > 0
		})
	})
	return errors.Join(err, out.Flush())
}

func headWithout(out io.Writer, r io.Reader, byBytes bool, n int) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if byBytes {
		_, err = out.Write(data[:max(0, len(data)-n)])
		return err
	}
	all := bytes.SplitAfter(data, []byte("\n"))
	if len(all[len(all)-1]) == 0 {
		all = all[:len(all)-1]
	}
	_, err = out.Write(bytes.Join(all[:max(0, len(all)-n)], nil))
	return err
}

// title prints the name of a file above its text where there are several.
func title(out io.Writer, o *options, name string, first *bool) {
	if len(o.args) < 2 && !o.has('v') || o.has('q') {
		return
	}
	if !*first {
		fmt.Fprintln(out)
	}
	*first = false
	if name == "-" {
		name = "standard input"
	}
	fmt.Fprintf(out, "==> %s <==\n", name)
}

// tail prints the end of files: -n LINES, -c BYTES, "+N" counts from the
// start; -q, -v; -f follows the last file for ever.
func tail(args []string) error {
	o, err := parse(obsolete(args), "n:c:qvfF lines=n bytes=c quiet=q verbose=v follow=f")
	if err != nil {
		return err
	}
	text := o.value('n', "10")
	if o.has('c') {
		text = o.value('c', "")
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("number %q: %w", text, err)
	}
	fromStart := strings.HasPrefix(text, "+")
	if n < 0 {
		n = -n
	}
	out := bufio.NewWriter(os.Stdout)
	first := true
	err = eachInput("tail", o.args, func(name string, r io.Reader) error {
		title(out, o, name, &first)
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		parts := bytes.SplitAfter(data, []byte("\n"))
		if o.has('c') {
			parts = parts[:0]
			for i := range data {
				parts = append(parts, data[i:i+1])
			}
		} else if len(parts[len(parts)-1]) == 0 {
			parts = parts[:len(parts)-1]
		}
		start := max(0, len(parts)-n)
		if fromStart {
			start = min(len(parts), max(0, n-1))
		}
		_, err = out.Write(bytes.Join(parts[start:], nil))
		return err
	})
	if err = errors.Join(err, out.Flush()); err != nil || !o.has('f') && !o.has('F') || len(o.args) == 0 {
		return err
	}
	return follow(o.args[len(o.args)-1])
}

// wc counts: -l, -w, -c, -m.
func wc(args []string) error {
	o, err := parse(args, "lwcm lines=l words=w bytes=c chars=m")
	if err != nil {
		return err
	}
	if len(o.order) == 0 {
		o.values = map[byte][]string{'l': {""}, 'w': {""}, 'c': {""}}
	}
	var total counts
	width := 7
	if len(o.args) < 2 && len(o.values) == 1 {
		width = 1
	} else if len(o.args) > 0 { // as wide as the bytes of all files need
		var sum int64
		for _, n := range o.args {
			if fi, err := os.Stat(n); err == nil {
				sum += fi.Size()
			}
		}
		width = len(strconv.FormatInt(sum, 10))
	}
	err = eachInput("wc", o.args, func(name string, r io.Reader) error {
		var c counts
		if err := c.read(r); err != nil {
			return err
		}
		for i := range c {
			total[i] += c[i]
		}
		if len(o.args) == 0 {
			name = ""
		}
		return c.print(o, width, name)
	})
	if len(o.args) > 1 {
		err = errors.Join(err, total.print(o, width, "total"))
	}
	return err
}

// counts are lines, words, characters and bytes.
type counts [4]int

func (c *counts) read(r io.Reader) error {
	br := bufio.NewReader(r)
	inWord := false
	for {
		char, n, err := br.ReadRune()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		c[3] += n
		if char != utf8.RuneError || n > 1 {
			c[2]++
		}
		space := strings.ContainsRune(" \t\n\v\f\r", char)
		if char == '\n' {
			c[0]++
		}
		if !space && !inWord {
			c[1]++
		}
		inWord = !space
	}
}

func (c counts) print(o *options, width int, name string) error {
	var fields []string
	for i, letter := range []byte("lwmc") {
		if o.has(letter) {
			fields = append(fields, fmt.Sprintf("%*d", width, c[i]))
		}
	}
	if name != "" {
		fields = append(fields, name)
	}
	_, err := fmt.Println(strings.Join(fields, " "))
	return err
}

// uniq leaves out repeated lines: -c, -d, -u, -i.
func uniq(args []string) error {
	o, err := parse(args, "cdui count=c repeated=d unique=u ignore-case=i")
	if err != nil {
		return err
	}
	if len(o.args) > 1 {
		return errors.New("takes one file")
	}
	all, err := readLines("uniq", o.args, '\n')
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	same := func(a, b string) bool { return a == b || o.has('i') && strings.EqualFold(a, b) }
	for i := 0; i < len(all); {
		n := 1
		for i+n < len(all) && same(all[i], all[i+n]) {
			n++
		}
		if !(o.has('d') && n == 1 || o.has('u') && n > 1) {
			if o.has('c') {
				fmt.Fprintf(out, "%7d ", n)
			}
			fmt.Fprintln(out, all[i])
		}
		i += n
	}
	return out.Flush()
}

// tee copies standard input to files and standard output: -a.
func tee(args []string) error {
	o, err := parse(args, "ai append=a")
	if err != nil {
		return err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if o.has('a') {
		flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	to := []io.Writer{os.Stdout}
	result := each("tee", o.args, func(n string) error {
		f, err := os.OpenFile(n, flags, 0o666)
		if err == nil {
			to = append(to, f)
		}
		return err
	})
	_, err = io.Copy(io.MultiWriter(to...), os.Stdin)
	return errors.Join(err, result)
}

// cut prints parts of lines: -d DELIMITER, -f FIELDS, -c or -b CHARACTERS,
// -s, --output-delimiter.
func cut(args []string) error {
	o, err := parse(args, "d:f:c:b:so: delimiter=d fields=f characters=c bytes=b only-delimited=s output-delimiter=o")
	if err != nil {
		return err
	}
	which := o.last("fcb")
	if which == 0 {
		return errors.New("need -f, -c or -b")
	}
	in, err := ranges(o.value(which, ""))
	if err != nil {
		return err
	}
	delimiter := o.value('d', "\t")
	joint := o.value('o', "")
	if which == 'f' && !o.has('o') {
		joint = delimiter
	}
	out := bufio.NewWriter(os.Stdout)
	err = eachInput("cut", o.args, func(_ string, r io.Reader) error {
		return lines(r, '\n', func(l []byte) bool {
			sep := ""
			if which == 'f' {
				if sep = delimiter; !bytes.Contains(l, []byte(sep)) {
					if !o.has('s') {
						fmt.Fprintf(out, "%s\n", l)
					}
					return true
				}
			}
			var parts []string
			if which == 'f' {
				parts = strings.Split(string(l), sep)
			} else {
				for _, b := range l { // as in GNU cut, -c counts bytes
					parts = append(parts, string([]byte{b}))
				}
			}
			var kept []string
			for i, p := range parts {
				if in(i + 1) {
					kept = append(kept, p)
				}
			}
			fmt.Fprintln(out, strings.Join(kept, joint))
			return true
		})
	})
	return errors.Join(err, out.Flush())
}

// ranges parses 1,3-5,7- to a test of numbers.
func ranges(text string) (func(int) bool, error) {
	type span struct{ from, to int }
	var spans []span
	for part := range strings.SplitSeq(text, ",") {
		a, b, isRange := strings.Cut(part, "-")
		s := span{1, int(^uint(0) >> 1)}
		var err1, err2 error
		if a != "" {
			s.from, err1 = strconv.Atoi(a)
		}
		if !isRange {
			s.to = s.from
		} else if b != "" {
			s.to, err2 = strconv.Atoi(b)
		}
		if err1 != nil || err2 != nil || part == "" || part == "-" || s.from < 1 || s.to < s.from {
			return nil, fmt.Errorf("list %q: must be like 1,3-5,7-", text)
		}
		spans = append(spans, s)
	}
	return func(n int) bool {
		return slices.ContainsFunc(spans, func(s span) bool { return n >= s.from && n <= s.to })
	}, nil
}
