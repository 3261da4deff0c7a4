package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cp copies files: -r, -R, -a (-dpR), -d and -P (links as links), -L, -p
// (mode, owner, times), -f, -n, -T, -v, -t DIR.
func cp(args []string) error {
	o, err := parse(args, "rRadPLHpfnTvt: recursive=r archive=a no-dereference=P dereference=L preserve=p force=f no-clobber=n verbose=v target-directory=t no-target-directory=T")
	if err != nil {
		return err
	}
	c := copier{
		recursive: o.has('r') || o.has('R') || o.has('a'),
		preserve:  o.has('p') || o.has('a'),
		links:     o.has('a') || o.has('d') || o.last("PL") == 'P' || (o.has('r') || o.has('R')) && o.last("LH") == 0,
		force:     o.has('f'),
		keep:      o.has('n'),
		verbose:   o.has('v'),
		inodes:    map[[2]uint64]string{},
	}
	if o.last("PLa") == 'L' {
		c.links = false
	}
	return toTarget("cp", o, func(from, to string) error { return c.copy(from, to) })
}

// toTarget calls f for each source of a command with the forms SOURCE DEST,
// SOURCE... DIR and -t DIR SOURCE...
func toTarget(command string, o *options, f func(from, to string) error) error {
	sources, dest := o.args, o.value('t', "")
	if dest == "" {
		if len(sources) < 2 {
			return errors.New("need a source and a destination")
		}
		sources, dest = sources[:len(sources)-1], sources[len(sources)-1]
	}
	fi, err := os.Stat(dest)
	into := err == nil && fi.IsDir() && !o.has('T')
	if !into && (len(sources) != 1 || o.has('t') || strings.HasSuffix(dest, "/") && command != "cp" && command != "mv") {
		return fmt.Errorf("%s is not a directory", dest)
	}
	return each(command, sources, func(from string) error {
		if into {
			return f(from, filepath.Join(dest, filepath.Base(from)))
		}
		return f(from, dest)
	})
}

// copier is a copy with its options.
type copier struct {
	recursive, preserve, links, force, keep, verbose bool

	inodes map[[2]uint64]string // where files with several names went
}

func (c *copier) copy(from, to string) error {
	stat := os.Stat
	if c.links {
		stat = os.Lstat
	}
	fi, err := stat(from)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	old, err := os.Lstat(to)
	exists := err == nil
	if exists {
		if os.SameFile(fi, old) {
			return fmt.Errorf("%s and %s are the same file", from, to)
		}
		if c.keep && !fi.IsDir() {
			return nil
		}
	}
	if c.verbose {
		fmt.Printf("'%s' -> '%s'\n", from, to)
	}
	if fi.IsDir() {
		return c.directory(from, to, fi)
	}
	if exists && (!fi.Mode().IsRegular() || c.preserve && old.Mode()&fs.ModeSymlink != 0) {
		if err := os.Remove(to); err != nil {
			return err
		}
	}
	key := [2]uint64{st.Dev, st.Ino}
	if first, ok := c.inodes[key]; ok && c.preserve && st.Nlink > 1 {
		os.Remove(to)
		return os.Link(first, to)
	}
	switch {
	case fi.Mode().IsRegular():
		err = c.regular(from, to, fi)
	case fi.Mode()&fs.ModeSymlink != 0:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	default:
		err = unix.Mknod(to, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return err
	}
	if st.Nlink > 1 {
		c.inodes[key] = to
	}
	return c.attributes(to, fi)
}

func (c *copier) directory(from, to string, fi fs.FileInfo) error {
	if !c.recursive {
		return fmt.Errorf("%s is a directory: needs -r", from)
	}
	if abs, err := filepath.Abs(from); err == nil {
		if dst, err := filepath.Abs(to); err == nil && strings.HasPrefix(dst+"/", abs+"/") {
			return fmt.Errorf("cannot copy %s into itself", from)
		}
	}
	if err := os.Mkdir(to, fi.Mode().Perm()|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	var result error
	for _, e := range entries {
		if err := c.copy(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			var x exit
			if !errors.As(err, &x) {
				complain("cp", err)
			}
			result = exit(1)
		}
	}
	if err := c.attributes(to, fi); err != nil {
		return err
	}
	return result
}

func (c *copier) regular(from, to string, fi fs.FileInfo) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	out, err := os.OpenFile(to, flags, fi.Mode().Perm())
	if err != nil && c.force {
		if err := os.Remove(to); err != nil {
			return err
		}
		out, err = os.OpenFile(to, flags, fi.Mode().Perm())
	}
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// attributes gives to the attributes that are preserved. The owner comes
// first, because changing it clears the set-id bits.
func (c *copier) attributes(to string, fi fs.FileInfo) error {
	link := fi.Mode()&fs.ModeSymlink != 0
	if !c.preserve {
		if fi.IsDir() && fi.Mode().Perm()&0o700 != 0o700 {
			return os.Chmod(to, fi.Mode().Perm())
		}
		return nil
	}
	st := fi.Sys().(*syscall.Stat_t)
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil && os.Geteuid() == 0 {
		return err
	}
	if !link {
		if err := syscall.Chmod(to, st.Mode&0o7777); err != nil {
			return &fs.PathError{Op: "chmod", Path: to, Err: err}
		}
	}
	ts := []unix.Timespec{{Sec: st.Atim.Sec, Nsec: st.Atim.Nsec}, {Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, ts, unix.AT_SYMLINK_NOFOLLOW)
}

// mv moves files: -f, -n, -T, -v, -t DIR. Where rename cannot, between file
// systems and for directories of a lower layer of an overlay, it copies.
func mv(args []string) error {
	o, err := parse(args, "finTvt: force=f no-clobber=n verbose=v target-directory=t no-target-directory=T")
	if err != nil {
		return err
	}
	return toTarget("mv", o, func(from, to string) error {
		if o.has('n') {
			if _, err := os.Lstat(to); err == nil {
				return nil
			}
		}
		err := os.Rename(from, to)
		if errors.Is(err, syscall.EXDEV) {
			c := copier{recursive: true, preserve: true, links: true, inodes: map[[2]uint64]string{}}
			if err = c.copy(from, to); err == nil {
				err = os.RemoveAll(from)
			}
		}
		if err == nil && o.has('v') {
			fmt.Printf("renamed '%s' -> '%s'\n", from, to)
		}
		return err
	})
}

// ln makes links: -s, -f, -n, -T, -v, -r, -t DIR.
func ln(args []string) error {
	o, err := parse(args, "sfnTvrt: symbolic=s force=f no-dereference=n verbose=v relative=r target-directory=t no-target-directory=T")
	if err != nil {
		return err
	}
	if len(o.args) == 1 && !o.has('t') {
		o.args = append(o.args, ".")
	}
	if o.has('n') && len(o.args) == 2 {
		if fi, err := os.Lstat(o.args[1]); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
			o.values['T'] = []string{""}
		}
	}
	return toTarget("ln", o, func(from, to string) error {
		if o.has('f') {
			if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if !o.has('s') {
			return os.Link(from, to)
		}
		if o.has('r') {
			base, err := filepath.Abs(filepath.Dir(to))
			if err != nil {
				return err
			}
			target, err := filepath.Abs(from)
			if err != nil {
				return err
			}
			if from, err = filepath.Rel(base, target); err != nil {
				return err
			}
		}
		return os.Symlink(from, to)
	})
}

// rm removes files: -r, -R, -f, -d, -v.
func rm(args []string) error {
	o, err := parse(args, "rRfdvi recursive=r force=f dir=d verbose=v")
	if err != nil {
		return err
	}
	if len(o.args) == 0 && !o.has('f') {
		return errors.New("need a file")
	}
	recursive := o.has('r') || o.has('R')
	return each("rm", o.args, func(name string) error {
		switch base := filepath.Base(filepath.Clean(name)); {
		case base == "/" && recursive:
			return errors.New("will not remove the root directory")
		case strings.HasSuffix(name, "/.") || strings.HasSuffix(name, "/..") || name == "." || name == "..":
			return fmt.Errorf("will not remove %q", name)
		}
		fi, err := os.Lstat(name)
		if err != nil {
			if o.has('f') && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) {
				return nil
			}
			return err
		}
		switch {
		case recursive:
			err = os.RemoveAll(name)
		case fi.IsDir() && !o.has('d'):
			err = fmt.Errorf("%s is a directory: needs -r", name)
		default:
			err = os.Remove(name)
		}
		if err == nil && o.has('v') {
			fmt.Printf("removed '%s'\n", name)
		}
		return err
	})
}

// rmdir removes empty directories: -p.
func rmdir(args []string) error {
	o, err := parse(args, "p parents=p")
	if err != nil {
		return err
	}
	return each("rmdir", o.args, func(name string) error {
		for {
			if err := syscall.Rmdir(name); err != nil {
				return &fs.PathError{Op: "rmdir", Path: name, Err: err}
			}
			if name = filepath.Dir(filepath.Clean(name)); !o.has('p') || name == "." || name == "/" {
				return nil
			}
		}
	})
}

// mkdir makes directories: -p, -m MODE, -v.
func mkdir(args []string) error {
	o, err := parse(args, "pm:v parents=p mode=m verbose=v")
	if err != nil {
		return err
	}
	if len(o.args) == 0 {
		return errors.New("need a directory")
	}
	return each("mkdir", o.args, func(name string) error {
		if o.has('p') {
			if fi, err := os.Stat(name); err == nil && fi.IsDir() {
				return nil
			}
			if err := os.MkdirAll(filepath.Dir(filepath.Clean(name)), 0o777); err != nil {
				return err
			}
		}
		if err := os.Mkdir(name, 0o777); err != nil {
			return err
		}
		if o.has('v') {
			fmt.Printf("mkdir: created directory '%s'\n", name)
		}
		if !o.has('m') {
			return nil
		}
		mode, err := changeMode(o.value('m', ""), 0o777, true)
		if err != nil {
			return err
		}
		return syscall.Chmod(name, mode)
	})
}

// mkfifo makes named pipes: -m MODE.
func mkfifo(args []string) error {
	o, err := parse(args, "m: mode=m")
	if err != nil {
		return err
	}
	return each("mkfifo", o.args, func(name string) error {
		mode, err := changeMode(o.value('m', "644"), 0o666, false)
		if err != nil {
			return err
		}
		if err := syscall.Mkfifo(name, mode); err != nil {
			return &fs.PathError{Op: "mkfifo", Path: name, Err: err}
		}
		return nil
	})
}

// touch sets times: -c, -a, -m, -h, -r FILE, -d TIME, with TIME as date -d takes it.
func touch(args []string) error {
	o, err := parse(args, "camhr:d:t: no-create=c no-dereference=h reference=r date=d")
	if err != nil {
		return err
	}
	when := time.Now()
	switch {
	case o.has('r'):
		fi, err := os.Stat(o.value('r', ""))
		if err != nil {
			return err
		}
		when = fi.ModTime()
	case o.has('d'):
		if when, err = parseTime(o.value('d', "")); err != nil {
			return err
		}
	case o.has('t'):
		if when, err = time.ParseInLocation("200601021504", strings.Replace(o.value('t', ""), ".", "", 1), time.Local); err != nil {
			if when, err = time.ParseInLocation("200601021504.05", o.value('t', ""), time.Local); err != nil {
				return fmt.Errorf("time %q: must be CCYYMMDDhhmm[.ss]", o.value('t', ""))
			}
		}
	}
	set := unix.NsecToTimespec(when.UnixNano())
	omit := unix.Timespec{Nsec: unix.UTIME_OMIT}
	ts := []unix.Timespec{set, set}
	if o.has('m') && !o.has('a') {
		ts[0] = omit
	}
	if o.has('a') && !o.has('m') {
		ts[1] = omit
	}
	flags := 0
	if o.has('h') {
		flags = unix.AT_SYMLINK_NOFOLLOW
	}
	return each("touch", o.args, func(name string) error {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) && !o.has('h') {
			if o.has('c') {
				return nil
			}
			f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o666)
			if err != nil {
				return err
			}
			f.Close()
		}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, ts, flags); err != nil {
			return &fs.PathError{Op: "touch", Path: name, Err: err}
		}
		return nil
	})
}

// mktemp makes a file or, with -d, a directory: -d, -q, -p DIR, -t, TEMPLATE.
func mktemp(args []string) error {
	o, err := parse(args, "dqtp: directory=d quiet=q tmpdir=p")
	if err != nil {
		return err
	}
	dir := o.value('p', os.Getenv("TMPDIR"))
	if dir == "" {
		dir = "/tmp"
	}
	template := "tmp.XXXXXXXXXX"
	if len(o.args) > 0 {
		if template = o.args[0]; !o.has('t') && !o.has('p') {
			dir = ""
		}
	}
	x := strings.TrimRight(template, "X")
	if len(template)-len(x) < 3 {
		return fmt.Errorf("template %q: must end in XXX", template)
	}
	path := filepath.Join(dir, x) + "*"
	parent, pattern := filepath.Split(path)
	if parent == "" {
		parent = "."
	}
	var name string
	if o.has('d') {
		name, err = os.MkdirTemp(parent, pattern)
	} else {
		var f *os.File
		if f, err = os.CreateTemp(parent, pattern); err == nil {
			name, err = f.Name(), f.Close()
		}
	}
	if err != nil {
		return err
	}
	_, err = fmt.Println(name)
	return err
}

// truncate sets the size of files: -s SIZE, -c.
func truncate(args []string) error {
	o, err := parse(args, "s:c size=s no-create=c")
	if err != nil {
		return err
	}
	n, err := size(o.value('s', ""))
	if err != nil {
		return err
	}
	return each("truncate", o.args, func(name string) error {
		flags := os.O_WRONLY
		if !o.has('c') {
			flags |= os.O_CREATE
		}
		f, err := os.OpenFile(name, flags, 0o666)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Truncate(n)
	})
}

// size parses a number of bytes with one of the suffixes k, K, M and G.
func size(s string) (int64, error) {
	unit := int64(1)
	digits := s
	if s != "" {
		switch s[len(s)-1] {
		case 'k', 'K':
			unit, digits = 1<<10, s[:len(s)-1]
		case 'M':
			unit, digits = 1<<20, s[:len(s)-1]
		case 'G':
			unit, digits = 1<<30, s[:len(s)-1]
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("size %q: must be a number, with k, M or G", s)
	}
	return n * unit, nil
}
