package container

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// ReadOptions say how a tar stream becomes files.
type ReadOptions struct {
	// Owners gives the files the owners that the stream says, else they are
	// UID's and GID's.
	Owners   bool
	UID, GID int

	// KeepDirs leaves directories that are there already as they are.
	KeepDirs bool

	content *int64 // counts the bytes of files, if set
}

// ReadTar writes a tar stream into a directory. Nothing outside of it is
// touched, whatever the stream says and whoever changes the directory.
func ReadTar(r io.Reader, dir *os.File, o ReadOptions) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return err
	}
	defer root.Close()
	in := tar.NewReader(r)
	var dirs []*tar.Header // which get their times last
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if h.Name = inside(h.Name); h.Name == "." {
			continue
		}
		if h.Typeflag == tar.TypeLink {
			h.Linkname = inside(h.Linkname)
		}
		if o.content != nil {
			*o.content += h.Size
		}
		made, err := o.extract(root, h, in)
		if err != nil {
			return fmt.Errorf("extract %s: %w", h.Name, err)
		}
		if made && h.Typeflag == tar.TypeDir {
			dirs = append(dirs, h)
		}
	}
	for _, h := range slices.Backward(dirs) {
		if err := root.Chtimes(h.Name, h.ModTime, h.ModTime); err != nil {
			return fmt.Errorf("extract %s: %w", h.Name, err)
		}
	}
	// What follows the archive is read too, so that who writes is not stuck.
	_, err = io.Copy(io.Discard, r)
	return err
}

// inside is a name relative to the top, with no way out.
func inside(name string) string {
	if name = path.Clean("/" + name)[1:]; name == "" {
		return "."
	}
	return name
}

// extract writes one entry and reports whether it did.
func (o ReadOptions) extract(root *os.Root, h *tar.Header, in io.Reader) (bool, error) {
	if err := root.MkdirAll(path.Dir(h.Name), 0o755); err != nil {
		return false, err
	}
	there, err := root.Lstat(h.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, err
	case h.Typeflag == tar.TypeDir && there.IsDir():
		if o.KeepDirs {
			return false, nil
		}
		return true, o.attributes(root, h)
	case h.Typeflag == tar.TypeDir:
		return false, fmt.Errorf("cannot overwrite non-directory %q with directory", h.Name)
	case there.IsDir():
		return false, fmt.Errorf("cannot overwrite directory %q with non-directory", h.Name)
	default:
		if err := root.Remove(h.Name); err != nil {
			return false, err
		}
	}
	if h.Typeflag == tar.TypeReg {
		return true, o.file(root, h, in)
	}
	if err := makeNode(root, h); err != nil {
		return false, err
	}
	return true, o.attributes(root, h)
}

// file makes a regular file, and gives it all by its descriptor: whoever may
// write in the directory could put another file, or a link to one, in its
// place.
func (o ReadOptions) file(root *os.Root, h *tar.Header, in io.Reader) error {
	f, err := root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = io.Copy(f, in); err == nil {
		err = o.set(f, h)
	}
	return errors.Join(err, f.Close())
}

// makeNode makes what is no regular file.
func makeNode(root *os.Root, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return root.Mkdir(h.Name, 0o700)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, h.Name)
	case tar.TypeLink:
		return root.Link(h.Linkname, h.Name)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		parent, err := openParent(root, h.Name)
		if err != nil {
			return err
		}
		defer parent.Close()
		kind := map[byte]uint32{tar.TypeFifo: unix.S_IFIFO, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
		return unix.Mknodat(int(parent.Fd()), path.Base(h.Name), kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	}
	return fmt.Errorf("entries of type %q are not supported", h.Typeflag)
}

// attributes gives what has been made its attributes, unless something else
// has taken its place.
func (o ReadOptions) attributes(root *os.Root, h *tar.Header) error {
	if h.Typeflag == tar.TypeLink {
		return nil
	}
	parent, err := openParent(root, h.Name)
	if err != nil {
		return err
	}
	defer parent.Close()
	fd, err := unix.Openat(int(parent.Fd()), path.Base(h.Name), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), h.Name)
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Mode().Type() != h.FileInfo().Mode().Type() {
		return errors.New("something else has been put in its place")
	}
	if h.Typeflag == tar.TypeSymlink {
		return errors.Join(o.owner(f, h), linkTime(root, h))
	}
	return o.set(f, h)
}

// openParent opens the directory that a name is in, and nothing else that may
// have taken its place, such as a FIFO or a device.
func openParent(root *os.Root, name string) (*os.File, error) {
	return root.OpenFile(path.Dir(name), os.O_RDONLY|unix.O_DIRECTORY, 0)
}

// owner gives f its owner; f may be open for its path alone.
func (o ReadOptions) owner(f *os.File, h *tar.Header) error {
	uid, gid := o.UID, o.GID
	if o.Owners {
		uid, gid = h.Uid, h.Gid
	}
	err := unix.Fchownat(int(f.Fd()), "", uid, gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && os.Geteuid() == 0 {
		return &os.PathError{Op: "chown", Path: h.Name, Err: err}
	}
	return nil
}

// set gives f its owner, mode, capabilities and time, in this order: a change
// of owner takes set-id bits and capabilities away. Calls for descriptors
// refuse those open for a path alone, so it goes by their names in /proc.
func (o ReadOptions) set(f *os.File, h *tar.Header) error {
	if err := o.owner(f, h); err != nil {
		return err
	}
	self := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	mode := h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	if !o.Owners && (h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock) {
		mode &= 0o700 // a container can make nodes of all devices, and open few
	}
	if !o.Owners && h.Typeflag == tar.TypeReg {
		// What gave the rights of one owner does not give those of another: of
		// root, here, where a user of the container was meant.
		if h.Uid != o.UID {
			mode &^= fs.ModeSetuid
		}
		if h.Gid != o.GID {
			mode &^= fs.ModeSetgid
		}
	}
	if err := os.Chmod(self, mode); err != nil {
		return err
	}
	if value, ok := h.PAXRecords[capabilityRecord]; ok && o.Owners && h.Typeflag == tar.TypeReg {
		if err := unix.Setxattr(self, capabilityXattr, []byte(value), 0); err != nil {
			return &os.PathError{Op: "setxattr", Path: h.Name, Err: err}
		}
	}
	return os.Chtimes(self, h.ModTime, h.ModTime)
}

// linkTime gives a link its own time.
func linkTime(root *os.Root, h *tar.Header) error {
	parent, err := openParent(root, h.Name)
	if err != nil {
		return err
	}
	defer parent.Close()
	at, err := unix.TimeToTimespec(h.ModTime)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(parent.Fd()), path.Base(h.Name), []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
}
