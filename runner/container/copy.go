package container

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Source is a file or directory to be copied out of a root directory: that of
// a container, or of this machine. Paths resolve inside of the root.
type Source struct {
	Name     string // of the thing, "" for the root itself
	dir      bool
	contents bool     // what is in it is meant, not the thing
	parent   *os.File // of a file
	self     *os.File // of a directory

	// Bytes counts what was copied: of files, and of the stream that they came
	// in.
	Bytes struct{ Content, Stream int64 }
}

// MissingError says that what is copied, or the directory that it is copied
// into, is not there.
type MissingError struct{ Path string }

func (e *MissingError) Error() string { return "could not find the file " + e.Path }

// Is makes the error match [fs.ErrNotExist].
func (e *MissingError) Is(t error) bool { return t == fs.ErrNotExist }

// OpenSource finds what a path means: as docker cp has it, with "/." at its
// end what is in a directory. A link in the last place is copied as a link
// unless follow is set.
func OpenSource(root *os.File, p string, follow bool) (*Source, error) {
	s := &Source{contents: p == "." || strings.HasSuffix(p, "/.")}
	mustBeDir := s.contents || strings.HasSuffix(p, "/")
	clean := path.Clean("/" + p)
	s.Name = path.Base(clean)
	if s.Name == "/" {
		s.Name = ""
	}
	flags := unix.O_PATH
	if !follow && !mustBeDir {
		flags |= unix.O_NOFOLLOW
	}
	f, err := openIn(root, clean, flags)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &MissingError{clean}
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if s.dir = st.Mode&unix.S_IFMT == unix.S_IFDIR; s.dir {
		s.self = f
		return s, nil
	}
	defer f.Close()
	if mustBeDir {
		return nil, &os.PathError{Op: "copy", Path: p, Err: unix.ENOTDIR}
	}
	if follow {
		// The name that the link leads to, as its root sees it.
		if clean, err = resolved(root, f); err != nil {
			return nil, err
		}
	}
	s.parent, err = openIn(root, path.Dir(clean), unix.O_PATH|unix.O_DIRECTORY)
	s.self = nil
	if err != nil {
		return nil, err
	}
	s.Name = path.Base(clean)
	return s, nil
}

// resolved is the path of an open file below a root.
func resolved(root, f *os.File) (string, error) {
	top, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", root.Fd()))
	if err != nil {
		return "", err
	}
	at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return "", err
	}
	return path.Clean("/" + strings.TrimPrefix(at, strings.TrimSuffix(top, "/"))), nil
}

// Close closes what the source holds open.
func (s *Source) Close() error {
	if s.dir {
		return s.self.Close()
	}
	return s.parent.Close()
}

// WriteAlone writes the thing as a tar stream that has its name in it; or "."
// where what is in it was meant, which then goes where the stream is unpacked.
func (s *Source) WriteAlone(w io.Writer) error {
	if s.contents {
		return s.Write(w, ".")
	}
	return s.Write(w, s.Name)
}

// Write writes the thing as a tar stream, named as.
func (s *Source) Write(w io.Writer, as string) error {
	if !s.dir {
		return writeTarFile(w, s.parent, s.Name, as)
	}
	return WriteTar(w, s.self, TarOptions{Prefix: as})
}

// maxTargets bounds how many links are followed at the end of a path.
const maxTargets = 10

// CopyTo copies the thing to a path below another root, by docker cp's rules:
// into a directory that is there, else as the last name of the path, where a
// link means what it leads to.
func (s *Source) CopyTo(root *os.File, to string, o ReadOptions) error {
	return s.copyTo(root, to, o, maxTargets)
}

func (s *Source) copyTo(root *os.File, to string, o ReadOptions, links int) error {
	clean := path.Clean("/" + to)
	mustBeDir := strings.HasSuffix(to, "/") || to == "." || strings.HasSuffix(to, "/.")
	dir, err := OpenDir(root, clean)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, fs.ErrNotExist) {
		if target, ok := linkTarget(root, clean); ok && links > 0 {
			if mustBeDir {
				target += "/"
			}
			return s.copyTo(root, target, o, links-1)
		}
	}
	switch {
	case err == nil && s.dir && (s.contents || s.Name == ""):
		defer dir.Close()
		return s.pipe(dir, "", o)
	case err == nil:
		defer dir.Close()
		return s.pipe(dir, s.Name, o)
	case errors.Is(err, unix.ENOTDIR) && s.dir:
		return fmt.Errorf("cannot copy a directory to a file: %s", clean)
	case errors.Is(err, unix.ENOTDIR) && mustBeDir, errors.Is(err, fs.ErrNotExist) && mustBeDir && !s.dir:
		return fmt.Errorf("no such directory: %s", clean)
	case !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent, err := OpenDir(root, path.Dir(clean))
	if errors.Is(err, fs.ErrNotExist) {
		return &MissingError{path.Dir(clean)}
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	return s.pipe(parent, path.Base(clean), o)
}

// linkTarget is where a link leads, if there is one at the path.
func linkTarget(root *os.File, clean string) (string, bool) {
	dir, err := openIn(root, path.Dir(clean), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return "", false
	}
	defer dir.Close()
	target, err := readlinkat(dir, path.Base(clean))
	if err != nil {
		return "", false
	}
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(clean), target)
	}
	return target, true
}

// pipe copies the thing into a directory, named as; "" copies what is in it.
func (s *Source) pipe(dir *os.File, as string, o ReadOptions) error {
	rd, wr := io.Pipe()
	done := make(chan error, 1)
	o.content = &s.Bytes.Content
	go func() {
		err := s.Write(counter{wr, &s.Bytes.Stream}, as)
		_ = wr.CloseWithError(err)
		done <- err
	}()
	err := ReadTar(rd, dir, o)
	_ = rd.CloseWithError(err)
	if written := <-done; err == nil || !errors.Is(written, err) {
		err = errors.Join(err, written)
	}
	return err
}

// counter counts what is written.
type counter struct {
	io.Writer
	n *int64
}

func (c counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	*c.n += int64(n)
	return n, err
}

// OpenDir opens a directory below a root.
func OpenDir(root *os.File, p string) (*os.File, error) {
	return openIn(root, p, unix.O_RDONLY|unix.O_DIRECTORY)
}
