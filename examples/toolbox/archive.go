package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gzipCmd is gzip, gunzip and zcat: -d, -c, -k, -f, -n, -1 to -9.
func gzipCmd(name string) applet {
	return func(args []string) error {
		o, err := parse(args, "dckfnqv123456789 decompress=d stdout=c to-stdout=c keep=k force=f no-name=n fast=1 best=9")
		if err != nil {
			return err
		}
		expand := name != "gzip" || o.has('d')
		level := gzip.DefaultCompression
		if l := o.last("123456789"); l != 0 {
			level = int(l - '0')
		}
		if len(o.args) == 0 {
			o.args = []string{"-"}
		}
		return each(name, o.args, func(file string) error {
			if file == "-" || o.has('c') || name == "zcat" {
				in, err := input(file)
				if err != nil {
					return err
				}
				defer in.Close()
				return pack(os.Stdout, in, expand, level)
			}
			to, had := strings.CutSuffix(file, ".gz")
			if !expand {
				to = file + ".gz"
			}
			if had != expand {
				return fmt.Errorf("%s: unexpected name: it %s .gz", file, map[bool]string{true: "must end in", false: "ends in"}[expand])
			}
			return packFile(file, to, expand, level, o.has('f'), o.has('k'))
		})
	}
}

func packFile(file, to string, expand bool, level int, force, keep bool) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	out, err := os.OpenFile(to, flags, fi.Mode().Perm())
	if err != nil {
		return err
	}
	err = pack(out, in, expand, level)
	if err = errors.Join(err, out.Close()); err != nil {
		os.Remove(to)
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := os.Chtimes(to, fi.ModTime(), fi.ModTime()); err != nil || keep {
		return err
	}
	return os.Remove(file)
}

func pack(out io.Writer, in io.Reader, expand bool, level int) error {
	if expand {
		r, err := gzip.NewReader(in)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		return err
	}
	w, err := gzip.NewWriterLevel(out, level)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, in); err != nil {
		return err
	}
	return w.Close()
}

// tarCmd packs (-c), unpacks (-x) and lists (-t) archives: -f FILE, -C DIR, -z,
// -v, -O, -p, --strip-components N, --exclude PATTERN. gzip is recognised when
// reading. The first argument needs no dash.
func tarCmd(args []string) error {
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		args = slices.Clone(args)
		args[0] = "-" + args[0]
	}
	o, err := parse(args, "cxtzvOpf:C:s:e: create=c extract=x get=x list=t gzip=z verbose=v to-stdout=O file=f directory=C strip-components=s exclude=e preserve-permissions=p")
	if err != nil {
		return err
	}
	t := &tarrer{exclude: o.values['e'], verbose: o.has('v')}
	if _, err := fmt.Sscan(o.value('s', "0"), &t.strip); err != nil {
		return fmt.Errorf("--strip-components: %w", err)
	}
	file := o.value('f', "-")
	if abs, err := filepath.Abs(file); err == nil && file != "-" {
		file = abs
	}
	dir := o.value('C', "")
	enter := func() error {
		if dir == "" {
			return nil
		}
		return os.Chdir(dir)
	}
	if o.has('c') {
		out := os.Stdout
		if file != "-" {
			if out, err = os.Create(file); err != nil {
				return err
			}
		}
		if err = enter(); err == nil {
			err = t.create(out, o.args, o.has('z'))
		}
		return errors.Join(err, out.Close())
	}
	if !o.has('x') && !o.has('t') {
		return errors.New("need one of -c, -x and -t")
	}
	in, err := input(file)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := enter(); err != nil {
		return err
	}
	var r io.Reader = bufio.NewReader(in)
	if magic, _ := r.(*bufio.Reader).Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		if r, err = gzip.NewReader(r); err != nil {
			return err
		}
	}
	return t.read(tar.NewReader(r), o.args, o.has('t'), o.has('O'))
}

type tarrer struct {
	exclude []string
	verbose bool
	strip   int
	links   map[[2]uint64]string
	dirs    []*tar.Header // whose times are set last
}

func (t *tarrer) excluded(name string) bool {
	return slices.ContainsFunc(t.exclude, func(p string) bool {
		whole, _ := filepath.Match(p, name)
		base, _ := filepath.Match(p, filepath.Base(name))
		return whole || base
	})
}

func (t *tarrer) create(out io.Writer, names []string, compress bool) error {
	if len(names) == 0 {
		return errors.New("will not make an empty archive")
	}
	t.links = map[[2]uint64]string{}
	var gz *gzip.Writer
	if compress {
		gz = gzip.NewWriter(out)
		out = gz
	}
	tw := tar.NewWriter(out)
	for _, n := range names {
		err := filepath.Walk(n, func(path string, fi fs.FileInfo, err error) error {
			if err != nil {
				return err
			}
			if t.excluded(path) {
				if fi.IsDir() {
					return filepath.SkipDir
				}
				return nil
			}
			return t.add(tw, path, fi)
		})
		if err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	if gz != nil {
		return gz.Close()
	}
	return nil
}

func (t *tarrer) add(tw *tar.Writer, path string, fi fs.FileInfo) error {
	if fi.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	target := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(fi, target)
	if err != nil {
		return err
	}
	if h.Name = strings.TrimLeft(path, "/"); h.Name == "" {
		h.Name = "."
	}
	if fi.IsDir() {
		h.Name = strings.TrimSuffix(h.Name, "/") + "/"
	}
	if st := fi.Sys().(*syscall.Stat_t); st.Nlink > 1 && fi.Mode().IsRegular() {
		id := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := t.links[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			t.links[id] = h.Name
		}
	}
	if t.verbose {
		fmt.Fprintln(os.Stderr, h.Name)
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(tw, f)
	return err
}

// read lists or unpacks an archive.
func (t *tarrer) read(tr *tar.Reader, wanted []string, list, toStdout bool) error {
	root, err := os.OpenRoot(".")
	if err != nil {
		return err
	}
	defer root.Close()
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
		chosen := len(wanted) == 0 || slices.ContainsFunc(wanted, func(w string) bool {
			w = strings.TrimSuffix(strings.TrimPrefix(w, "./"), "/")
			return name == w || strings.HasPrefix(name, w+"/")
		})
		if !chosen || t.excluded(name) {
			continue
		}
		if list || t.verbose {
			if err := t.show(h, list); err != nil {
				return err
			}
		}
		switch {
		case list:
		case toStdout:
			if _, err := io.Copy(os.Stdout, tr); err != nil {
				return err
			}
		default:
			if err := t.extract(root, h, tr); err != nil {
				return fmt.Errorf("unpack %q: %w", h.Name, err)
			}
		}
	}
	for i := len(t.dirs) - 1; i >= 0; i-- {
		h := t.dirs[i]
		if err := root.Chtimes(h.Name, h.ModTime, h.ModTime); err != nil {
			return err
		}
	}
	return nil
}

func (t *tarrer) show(h *tar.Header, long bool) error {
	text := h.Name
	if long && t.verbose {
		letter := map[byte]uint32{tar.TypeDir: syscall.S_IFDIR, tar.TypeSymlink: syscall.S_IFLNK, tar.TypeFifo: syscall.S_IFIFO,
			tar.TypeChar: syscall.S_IFCHR, tar.TypeBlock: syscall.S_IFBLK}[h.Typeflag]
		if letter == 0 {
			letter = syscall.S_IFREG
		}
		text = fmt.Sprintf("%s %d/%d %9d %s %s", modeString(letter|uint32(h.Mode)&0o7777), h.Uid, h.Gid, h.Size,
			h.ModTime.Format("2006-01-02 15:04"), h.Name)
		if h.Linkname != "" {
			text += " -> " + h.Linkname
		}
	}
	_, err := fmt.Println(text)
	return err
}

// stripped is a name without its first elements; "" if nothing is left.
func (t *tarrer) stripped(name string) string {
	parts := strings.Split(strings.Trim(filepath.Clean("/"+name), "/"), "/")
	if len(parts) <= t.strip {
		return ""
	}
	return filepath.Join(parts[t.strip:]...)
}

// extract makes one entry. All names are taken below root, where links may
// not lead out of it: an archive cannot write elsewhere.
func (t *tarrer) extract(root *os.Root, h *tar.Header, r io.Reader) error {
	name := t.stripped(h.Name)
	if name == "" {
		if filepath.Clean(h.Name) == "." && t.strip == 0 {
			return root.Chmod(".", fs.FileMode(h.Mode).Perm())
		}
		return nil
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeDir {
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		if err = root.Mkdir(name, 0o777); errors.Is(err, fs.ErrExist) {
			err = nil
		}
		t.dirs = append(t.dirs, &tar.Header{Name: name, ModTime: h.ModTime})
	case tar.TypeReg:
		var f *os.File
		if f, err = root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			_, err = io.Copy(f, r)
			err = errors.Join(err, f.Close())
		}
	case tar.TypeSymlink:
		err = root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(t.stripped(h.Linkname), name)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		err = mknod(root, name, h)
	default:
		return nil // a header that describes others
	}
	if err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := root.Lchown(name, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeSymlink {
		return nil
	}
	mode := fs.FileMode(h.Mode).Perm()
	for bit, m := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if h.Mode&bit != 0 {
			mode |= m
		}
	}
	if os.Geteuid() != 0 {
		mode &^= fs.FileMode(umask())
	}
	if err := root.Chmod(name, mode); err != nil {
		return err
	}
	if h.ModTime.IsZero() {
		h.ModTime = time.Now()
	}
	return root.Chtimes(name, h.ModTime, h.ModTime)
}

func mknod(root *os.Root, name string, h *tar.Header) error {
	dir, err := root.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	kind := map[byte]uint32{tar.TypeFifo: unix.S_IFIFO, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
	dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	return unix.Mknodat(int(dir.Fd()), filepath.Base(name), kind|0o600, int(dev))
}
