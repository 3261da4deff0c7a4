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
	if err := o.create(root, h, in); err != nil {
		return false, err
	}
	return true, o.attributes(root, h)
}

func (o ReadOptions) create(root *os.Root, h *tar.Header, in io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return root.Mkdir(h.Name, 0o700)
	case tar.TypeReg:
		f, err := root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, in)
		return errors.Join(err, f.Close())
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, h.Name)
	case tar.TypeLink:
		return root.Link(h.Linkname, h.Name)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		parent, err := root.Open(path.Dir(h.Name))
		if err != nil {
			return err
		}
		defer parent.Close()
		kind := map[byte]uint32{tar.TypeFifo: unix.S_IFIFO, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
		return unix.Mknodat(int(parent.Fd()), path.Base(h.Name), kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	}
	return fmt.Errorf("entries of type %q are not supported", h.Typeflag)
}

// attributes gives a new file its owner, mode, capabilities and time, in this
// order: a change of owner takes set-id bits and capabilities away.
func (o ReadOptions) attributes(root *os.Root, h *tar.Header) error {
	if h.Typeflag == tar.TypeLink {
		return nil
	}
	uid, gid := o.UID, o.GID
	if o.Owners {
		uid, gid = h.Uid, h.Gid
	}
	if err := root.Lchown(h.Name, uid, gid); err != nil && os.Geteuid() == 0 {
		return err
	}
	if h.Typeflag == tar.TypeSymlink {
		return linkTime(root, h)
	}
	mode := h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	if err := root.Chmod(h.Name, mode); err != nil {
		return err
	}
	if value, ok := h.PAXRecords[capabilityRecord]; ok && o.Owners && h.Typeflag == tar.TypeReg {
		f, err := root.OpenFile(h.Name, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Fsetxattr(int(f.Fd()), capabilityXattr, []byte(value), 0), f.Close()); err != nil {
			return err
		}
	}
	return root.Chtimes(h.Name, h.ModTime, h.ModTime)
}

// linkTime gives a link its own time.
func linkTime(root *os.Root, h *tar.Header) error {
	parent, err := root.Open(path.Dir(h.Name))
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
