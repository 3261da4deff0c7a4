package container

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// capabilityXattr holds a file's capabilities, capabilityRecord is its name in
// archives.
const (
	capabilityXattr  = "security.capability"
	capabilityRecord = "SCHILY.xattr." + capabilityXattr
)

// TarOptions say how files become a tar stream.
type TarOptions struct {
	// Prefix comes before all names; the directory itself has this name.
	// Empty leaves the directory itself out.
	Prefix string

	// OneDevice leaves out what lies on other file systems: of a directory
	// or file on which something is mounted there is an empty one.
	OneDevice bool
}

// WriteTar writes what is in a directory as a tar stream, in the order of
// names. It opens everything by descriptor and follows no link, so nothing
// outside is read, whoever changes the directory meanwhile.
func WriteTar(w io.Writer, dir *os.File, o TarOptions) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir.Name(), Err: err}
	}
	t := &tarWriter{tar: tar.NewWriter(w), oneDevice: o.OneDevice, device: uint64(st.Dev), links: map[[2]uint64]string{}}
	if o.Prefix != "" {
		if err := t.tar.WriteHeader(header(o.Prefix+"/", &st)); err != nil {
			return err
		}
	}
	if err := t.children(dir, o.Prefix); err != nil {
		return err
	}
	return t.tar.Close()
}

// writeTarFile writes one thing in a directory as a tar stream, named as.
func writeTarFile(w io.Writer, dir *os.File, name, as string) error {
	t := &tarWriter{tar: tar.NewWriter(w), links: map[[2]uint64]string{}}
	if err := t.entry(dir, name, as); err != nil {
		return err
	}
	return t.tar.Close()
}

type tarWriter struct {
	tar       *tar.Writer
	oneDevice bool
	device    uint64
	links     map[[2]uint64]string // first name of files that have several
}

func header(name string, st *unix.Stat_t) *tar.Header {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	}
	return h
}

// children writes what is in a directory that is named at.
func (t *tarWriter) children(dir *os.File, at string) error {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/" + at, Err: err}
	}
	list := os.NewFile(uintptr(fd), at)
	defer list.Close()
	names, err := list.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if err := t.entry(list, n, path.Join(at, n)); err != nil {
			return err
		}
	}
	return nil
}

// entry writes one thing in a directory, and what is below it.
func (t *tarWriter) entry(dir *os.File, name, as string) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil // gone since
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: "/" + as, Err: err}
	}
	h := header(as, &st)
	mounted := t.oneDevice && uint64(st.Dev) != t.device
	switch h.Typeflag {
	case tar.TypeDir:
		return t.directory(dir, name, h, mounted)
	case tar.TypeReg:
		if mounted {
			h.Size = 0
			return t.tar.WriteHeader(h)
		}
		return t.regular(dir, name, h, &st)
	case tar.TypeSymlink:
		if h.Linkname, err = readlinkat(dir, name); err != nil {
			return &os.PathError{Op: "readlink", Path: "/" + as, Err: err}
		}
	case 0:
		return nil // a socket
	}
	return t.tar.WriteHeader(h)
}

func (t *tarWriter) directory(dir *os.File, name string, h *tar.Header, mounted bool) error {
	at := h.Name
	h.Name += "/"
	if err := t.tar.WriteHeader(h); err != nil || mounted {
		return err
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil // another thing since
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: "/" + at, Err: err}
	}
	below := os.NewFile(uintptr(fd), at)
	defer below.Close()
	return t.children(below, at)
}

// regular writes a regular file as long as it is now: what is added meanwhile
// is left out, what is taken away is zeros.
func (t *tarWriter) regular(dir *os.File, name string, h *tar.Header, st *unix.Stat_t) error {
	if st.Nlink > 1 {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := t.links[key]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return t.tar.WriteHeader(h)
		}
		t.links[key] = h.Name
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // another thing since
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: "/" + h.Name, Err: err}
	}
	at := os.NewFile(uintptr(fd), "/"+h.Name)
	defer at.Close()
	f, err := reopen(at)
	if errors.Is(err, errNotRegular) {
		return nil // likewise
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &now); err != nil {
		return &os.PathError{Op: "stat", Path: "/" + h.Name, Err: err}
	}
	h.Size = now.Size
	value := make([]byte, 64)
	if n, err := unix.Fgetxattr(int(f.Fd()), capabilityXattr, value); err == nil {
		h.PAXRecords = map[string]string{capabilityRecord: string(value[:n])}
	}
	if err := t.tar.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(t.tar, io.LimitReader(f, now.Size))
	if err == nil && n < now.Size {
		_, err = io.CopyN(t.tar, zeros{}, now.Size-n)
	}
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func readlinkat(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
