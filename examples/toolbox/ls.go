package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ls lists files, one a line: -1, -a, -A, -d, -l, -n, -h, -i, -R, -F, -p, -r,
// -t, -S.
func ls(args []string) error {
	o, err := parse(args, "1aAdlnhiRFprtS all=a almost-all=A directory=d human-readable=h recursive=R classify=F reverse=r")
	if err != nil {
		return err
	}
	l := &lister{o: o, out: bufio.NewWriter(os.Stdout)}
	if len(o.args) == 0 {
		o.args = []string{"."}
	}
	var files, dirs []listed
	result := each("ls", o.args, func(name string) error {
		look := os.Lstat
		if !o.has('l') && !o.has('d') && !o.has('F') || strings.HasSuffix(name, "/") {
			look = func(name string) (fs.FileInfo, error) { // a link counts as what it leads to
				if fi, err := os.Stat(name); err == nil {
					return fi, nil
				}
				return os.Lstat(name)
			}
		}
		fi, err := look(name)
		switch {
		case err != nil:
			return err
		case fi.IsDir() && !o.has('d'):
			dirs = append(dirs, listed{name, name, fi})
		default:
			files = append(files, listed{name, name, fi})
		}
		return nil
	})
	l.list(files)
	l.sort(dirs)
	for _, d := range dirs {
		if len(o.args) > 1 || o.has('R') {
			l.heading(d.path)
		}
		if err := l.directory(d.path); err != nil {
			complain("ls", err)
			result = exit(1)
		}
	}
	if err := l.out.Flush(); err != nil {
		return err
	}
	return result
}

// listed is a line of ls.
type listed struct {
	name, path string
	info       fs.FileInfo
}

type lister struct {
	o       *options
	out     *bufio.Writer
	printed bool
}

func (l *lister) heading(path string) {
	if l.printed {
		fmt.Fprintln(l.out)
	}
	l.printed = true
	fmt.Fprintf(l.out, "%s:\n", path)
}

func (l *lister) directory(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	var files []listed
	add := func(name string) error {
		fi, err := os.Lstat(filepath.Join(path, name))
		if err == nil {
			files = append(files, listed{name, strings.TrimSuffix(path, "/") + "/" + name, fi})
		}
		return err
	}
	if l.o.has('a') {
		if err := add("."); err != nil {
			return err
		}
		if err := add(".."); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") && !l.o.has('a') && !l.o.has('A') {
			continue
		}
		if err := add(e.Name()); err != nil {
			return err
		}
	}
	if l.o.has('l') || l.o.has('n') {
		var blocks int64
		for _, f := range files {
			blocks += f.info.Sys().(*syscall.Stat_t).Blocks
		}
		fmt.Fprintf(l.out, "total %s\n", amount(blocks*512, l.o.has('h')))
	}
	l.list(files)
	l.printed = true
	if !l.o.has('R') {
		return nil
	}
	for _, f := range files {
		if f.info.IsDir() && f.name != "." && f.name != ".." {
			l.heading(f.path)
			if err := l.directory(f.path); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lister) sort(files []listed) {
	slices.SortFunc(files, func(a, b listed) int {
		c := 0
		switch l.o.last("tS") {
		case 't':
			c = b.info.ModTime().Compare(a.info.ModTime())
		case 'S':
			c = int(min(1, max(-1, b.info.Size()-a.info.Size())))
		}
		if c == 0 {
			c = strings.Compare(a.name, b.name)
		}
		if l.o.has('r') {
			c = -c
		}
		return c
	})
}

// list prints files in columns that are as wide as they need to be.
func (l *lister) list(files []listed) {
	l.sort(files)
	rows := make([][]string, len(files))
	var width [7]int
	for i, f := range files {
		rows[i] = l.row(f)
		for j, cell := range rows[i][:len(rows[i])-1] {
			width[j] = max(width[j], len(cell))
		}
		l.printed = true
	}
	for _, cells := range rows {
		for j, cell := range cells[:len(cells)-1] {
			if len(cells) > 5 && j >= len(cells)-5 && j < len(cells)-3 { // owner and group
				fmt.Fprintf(l.out, "%-*s ", width[j], cell)
			} else {
				fmt.Fprintf(l.out, "%*s ", width[j], cell)
			}
		}
		fmt.Fprintln(l.out, cells[len(cells)-1])
	}
}

// row returns the cells of one file, the name last.
func (l *lister) row(f listed) []string {
	st := f.info.Sys().(*syscall.Stat_t)
	var cells []string
	if l.o.has('i') {
		cells = append(cells, strconv.FormatUint(st.Ino, 10))
	}
	name := f.name
	if l.o.has('F') || l.o.has('p') && f.info.IsDir() {
		name += indicator(f.info, l.o.has('l'))
	}
	if !l.o.has('l') && !l.o.has('n') {
		return append(cells, name)
	}
	size := strconv.FormatInt(st.Size, 10)
	switch {
	case f.info.Mode()&fs.ModeDevice != 0:
		size = fmt.Sprintf("%d, %d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	case l.o.has('h'):
		size = amount(st.Size, true)
	}
	owner, group := userName(st.Uid), groupName(st.Gid)
	if l.o.has('n') {
		owner, group = strconv.Itoa(int(st.Uid)), strconv.Itoa(int(st.Gid))
	}
	when := f.info.ModTime().Format("Jan _2 15:04")
	if age := time.Since(f.info.ModTime()); age < 0 || age > 365*24*time.Hour/2 {
		when = f.info.ModTime().Format("Jan _2  2006")
	}
	if to, err := os.Readlink(f.path); err == nil && f.info.Mode()&fs.ModeSymlink != 0 {
		name += " -> " + to
	}
	return append(cells, modeString(st.Mode), strconv.FormatUint(uint64(st.Nlink), 10), owner, group, size, when, name)
}

func indicator(fi fs.FileInfo, long bool) string {
	switch m := fi.Mode(); {
	case m.IsDir():
		return "/"
	case m&fs.ModeSymlink != 0 && !long:
		return "@"
	case m&fs.ModeNamedPipe != 0:
		return "|"
	case m&fs.ModeSocket != 0:
		return "="
	case m.IsRegular() && m&0o111 != 0:
		return "*"
	}
	return ""
}
