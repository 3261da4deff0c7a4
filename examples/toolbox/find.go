package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// find walks directories and tests what it meets: -name, -iname, -path,
// -type, -size, -perm, -user, -newer, -mtime, -mmin, -empty, -maxdepth,
// -mindepth, -depth, -xdev, -print, -print0, -delete, -prune, -quit, -exec … ;
// and -exec … +; with ! -not -a -o and parentheses.
func find(args []string) error {
	f := &finder{maxDepth: -1}
	for len(args) > 0 && (args[0] == "-H" || args[0] == "-P") {
		args = args[1:]
	}
	var roots []string
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") && args[0] != "!" && args[0] != "(" {
		roots, args = append(roots, args[0]), args[1:]
	}
	if len(roots) == 0 {
		roots = []string{"."}
	}
	f.rest = args
	test, err := f.or()
	if err != nil {
		return err
	}
	if len(f.rest) > 0 {
		return fmt.Errorf("unexpected %q", f.rest[0])
	}
	f.out = bufio.NewWriter(os.Stdout)
	f.test = test
	if !f.acts {
		f.test = func(e *found) bool { return test(e) && f.print(e, '\n') }
	}
	for _, r := range roots {
		f.walk(r, 0, 0)
	}
	for _, flush := range f.pending {
		flush()
	}
	if err := f.out.Flush(); err != nil {
		return err
	}
	if f.failed {
		return exit(1)
	}
	return nil
}

// found is a file that find has come to.
type found struct {
	path  string
	info  fs.FileInfo
	depth int
	prune bool
}

type finder struct {
	rest               []string // arguments not parsed yet
	test               func(*found) bool
	acts, depth, xdev  bool
	minDepth, maxDepth int
	out                *bufio.Writer
	pending            []func() // what -exec … + still has to run
	failed, quit       bool
}

func (f *finder) fail(err error) {
	complain("find", err)
	f.failed = true
}

func (f *finder) print(e *found, end byte) bool {
	f.out.WriteString(e.path)
	f.out.WriteByte(end)
	return true
}

func (f *finder) walk(path string, depth int, dev uint64) {
	fi, err := os.Lstat(path)
	if err != nil {
		f.fail(err)
		return
	}
	e := &found{path: path, info: fi, depth: depth}
	visit := func() {
		if depth >= f.minDepth && !f.quit {
			f.test(e)
		}
	}
	if !f.depth {
		visit()
	}
	this := uint64(fi.Sys().(*syscall.Stat_t).Dev)
	if depth == 0 {
		dev = this
	}
	if fi.IsDir() && !e.prune && !f.quit && (f.maxDepth < 0 || depth < f.maxDepth) && (!f.xdev || this == dev) {
		entries, err := os.ReadDir(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.fail(err)
		}
		for _, c := range entries {
			f.walk(strings.TrimSuffix(path, "/")+"/"+c.Name(), depth+1, dev)
		}
	}
	if f.depth {
		visit()
	}
}

// or, and and not parse the expression, loosest operator first.
func (f *finder) or() (func(*found) bool, error) {
	left, err := f.and()
	for err == nil && f.take("-o", "-or") {
		var right func(*found) bool
		if right, err = f.and(); err == nil {
			l := left
			left = func(e *found) bool { return l(e) || right(e) }
		}
	}
	return left, err
}

func (f *finder) and() (func(*found) bool, error) {
	left := func(*found) bool { return true }
	for len(f.rest) > 0 && f.rest[0] != "-o" && f.rest[0] != "-or" && f.rest[0] != ")" {
		f.take("-a", "-and")
		right, err := f.not()
		if err != nil {
			return nil, err
		}
		l := left
		left = func(e *found) bool { return l(e) && right(e) }
	}
	return left, nil
}

func (f *finder) not() (func(*found) bool, error) {
	switch {
	case f.take("!", "-not"):
		inner, err := f.not()
		return func(e *found) bool { return !inner(e) }, err
	case f.take("("):
		inner, err := f.or()
		if err == nil && !f.take(")") {
			err = errors.New("missing )")
		}
		return inner, err
	}
	return f.primary()
}

func (f *finder) take(words ...string) bool {
	for _, w := range words {
		if len(f.rest) > 0 && f.rest[0] == w {
			f.rest = f.rest[1:]
			return true
		}
	}
	return false
}

// primary parses a test or an action with its values.
func (f *finder) primary() (func(*found) bool, error) {
	if len(f.rest) == 0 {
		return nil, errors.New("expression ends too early")
	}
	name := f.rest[0]
	f.rest = f.rest[1:]
	always := func(*found) bool { return true }
	switch name {
	case "-print", "-print0":
		f.acts = true
		end := byte('\n')
		if name == "-print0" {
			end = 0
		}
		return func(e *found) bool { return f.print(e, end) }, nil
	case "-delete":
		f.acts, f.depth = true, true
		return func(e *found) bool {
			if err := os.Remove(e.path); err != nil {
				f.fail(err)
				return false
			}
			return true
		}, nil
	case "-exec":
		f.acts = true
		return f.exec()
	case "-prune":
		return func(e *found) bool { e.prune = true; return true }, nil
	case "-quit":
		f.acts = true
		return func(*found) bool { f.quit = true; return true }, nil
	case "-empty":
		return func(e *found) bool {
			if e.info.IsDir() {
				entries, err := os.ReadDir(e.path)
				return err == nil && len(entries) == 0
			}
			return e.info.Mode().IsRegular() && e.info.Size() == 0
		}, nil
	case "-true":
		return always, nil
	case "-depth":
		f.depth = true
		return always, nil
	case "-xdev", "-mount":
		f.xdev = true
		return always, nil
	}
	if len(f.rest) == 0 {
		return nil, fmt.Errorf("%s: unknown, or its value is missing", name)
	}
	v := f.rest[0]
	f.rest = f.rest[1:]
	switch name {
	case "-maxdepth", "-mindepth":
		n, err := strconv.Atoi(v)
		if name == "-maxdepth" {
			f.maxDepth = n
		} else {
			f.minDepth = n
		}
		return always, err
	case "-name", "-iname":
		return matchName(v, name == "-iname", func(e *found) string { return filepath.Base(e.path) })
	case "-path", "-wholename":
		// In -path a star crosses slashes, which filepath.Match never does.
		v = strings.ReplaceAll(v, "/", "\x01")
		return matchName(v, false, func(e *found) string { return strings.ReplaceAll(e.path, "/", "\x01") })
	case "-type":
		letters := map[string]string{"f": "-", "d": "d", "l": "l", "p": "p", "s": "s", "c": "c", "b": "b"}
		want, ok := letters[v]
		if !ok {
			return nil, fmt.Errorf("-type %s: must be one of f d l p s c b", v)
		}
		return func(e *found) bool { return modeString(e.info.Sys().(*syscall.Stat_t).Mode)[:1] == want }, nil
	case "-user":
		uid, _, err := owner(v)
		return func(e *found) bool { return int(e.info.Sys().(*syscall.Stat_t).Uid) == uid }, err
	case "-perm":
		digits := strings.TrimLeft(v, "-/")
		want, err := changeMode(digits, 0, false)
		return func(e *found) bool {
			have := e.info.Sys().(*syscall.Stat_t).Mode & 0o7777
			switch v[0] {
			case '-':
				return have&want == want
			case '/':
				return have&want != 0
			}
			return have == want
		}, err
	case "-newer":
		fi, err := os.Stat(v)
		return func(e *found) bool { return e.info.ModTime().After(fi.ModTime()) }, err
	case "-mtime", "-mmin":
		unit := 24 * time.Hour
		if name == "-mmin" {
			unit = time.Minute
		}
		now := time.Now()
		return number(v, func(e *found) int64 { return int64(now.Sub(e.info.ModTime()) / unit) })
	case "-size":
		unit := int64(512)
		switch v[len(v)-1] {
		case 'c':
			unit, v = 1, v[:len(v)-1]
		case 'k':
			unit, v = 1<<10, v[:len(v)-1]
		case 'M':
			unit, v = 1<<20, v[:len(v)-1]
		case 'G':
			unit, v = 1<<30, v[:len(v)-1]
		}
		return number(v, func(e *found) int64 { return (e.info.Size() + unit - 1) / unit })
	}
	return nil, fmt.Errorf("%s: unknown", name)
}

func matchName(pattern string, fold bool, name func(*found) string) (func(*found) bool, error) {
	if fold {
		pattern = strings.ToLower(pattern)
	}
	_, err := filepath.Match(pattern, "")
	return func(e *found) bool {
		n := name(e)
		if fold {
			n = strings.ToLower(n)
		}
		ok, _ := filepath.Match(pattern, n)
		return ok
	}, err
}

// number parses N, +N (more) and -N (less).
func number(text string, of func(*found) int64) (func(*found) bool, error) {
	n, err := strconv.ParseInt(strings.TrimLeft(text, "+-"), 10, 64)
	return func(e *found) bool {
		switch x := of(e); text[0] {
		case '+':
			return x > n
		case '-':
			return x < n
		default:
			return x == n
		}
	}, err
}

// exec parses the command of -exec, up to ";" or "{} +".
func (f *finder) exec() (func(*found) bool, error) {
	for i, w := range f.rest {
		command := f.rest[:i]
		switch {
		case w == ";" && i > 0:
			f.rest = f.rest[i+1:]
			return func(e *found) bool {
				words := make([]string, len(command))
				for j, c := range command {
					words[j] = strings.ReplaceAll(c, "{}", e.path)
				}
				return f.command(words) == nil
			}, nil
		case w == "+" && i > 1 && f.rest[i-1] == "{}":
			f.rest = f.rest[i+1:]
			var paths []string
			flush := func() {
				if len(paths) > 0 && f.command(append(command[:i-1:i-1], paths...)) != nil {
					f.failed = true
				}
				paths = nil
			}
			f.pending = append(f.pending, flush)
			return func(e *found) bool {
				if paths = append(paths, e.path); len(paths) == 1000 {
					flush()
				}
				return true
			}, nil
		}
	}
	return nil, errors.New("-exec: needs ; or {} + at its end")
}

func (f *finder) command(words []string) error {
	f.out.Flush()
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		f.fail(err)
	}
	return err
}

// xargs runs a command with arguments from standard input: -0, -d CHAR, -n
// NUMBER, -L NUMBER, -I WORD, -r, -t, -P is not there.
func xargs(args []string) error {
	o, err := parse(args, "+0d:n:L:I:rt null=0 delimiter=d max-args=n replace=I no-run-if-empty=r verbose=t")
	if err != nil {
		return err
	}
	command := o.args
	if len(command) == 0 {
		command = []string{"echo"}
	}
	var items []string
	switch {
	case o.has('0'):
		items, err = readLines("xargs", nil, 0)
	case o.has('d'):
		d, serr := set(o.value('d', ""))
		if serr != nil || len(d) != 1 {
			return errors.New("-d: needs one character")
		}
		items, err = readLines("xargs", nil, d[0])
	case o.has('I') || o.has('L'):
		items, err = readLines("xargs", nil, '\n')
	default:
		items, err = words()
	}
	if err != nil {
		return err
	}
	most := 2000
	for _, letter := range []byte("nL") {
		if o.has(letter) {
			if most, err = strconv.Atoi(o.value(letter, "")); err != nil || most < 1 {
				return fmt.Errorf("-%c: must be a positive number", letter)
			}
		}
	}
	var result error
	one := func(words []string) error {
		if o.has('t') {
			fmt.Fprintln(os.Stderr, strings.Join(words, " "))
		}
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		err := cmd.Run()
		var ee *exec.ExitError
		switch {
		case errors.As(err, &ee) && ee.ExitCode() == 255:
			complain("xargs", fmt.Errorf("%s: exit status 255: stopping", words[0]))
			return exit(124)
		case errors.As(err, &ee):
			result = exit(123)
		case err != nil:
			complain("xargs", err)
			return exit(127)
		}
		return nil
	}
	if mark := o.value('I', ""); mark != "" {
		for _, item := range items {
			item = strings.TrimLeft(item, " \t")
			var w []string
			for _, c := range command {
				w = append(w, strings.ReplaceAll(c, mark, item))
			}
			if err := one(w); err != nil {
				return err
			}
		}
		return result
	}
	if len(items) == 0 && !o.has('r') {
		return errors.Join(one(command), result)
	}
	for len(items) > 0 {
		n := min(most, len(items))
		if err := one(append(command[:len(command):len(command)], items[:n]...)); err != nil {
			return err
		}
		items = items[n:]
	}
	return result
}

// words splits standard input at blanks, minding quotes and backslashes.
func words() ([]string, error) {
	all, err := readLines("xargs", nil, 0)
	if err != nil {
		return nil, err
	}
	var items []string
	var word strings.Builder
	open := false
	var quote byte
	text := strings.Join(all, "\x00")
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '\'' || c == '"':
			quote, open = c, true
		case c == '\\' && i+1 < len(text):
			i++
			word.WriteByte(text[i])
			open = true
		case blank(c) || c == '\n':
			if open {
				items = append(items, word.String())
				word.Reset()
			}
			open = false
		default:
			word.WriteByte(c)
			open = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("unmatched quote %c", quote)
	}
	if open {
		items = append(items, word.String())
	}
	return items, nil
}
