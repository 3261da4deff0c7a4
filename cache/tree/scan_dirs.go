package tree

import (
	"io"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// openDir is a directory that workers still open files of.
type openDir struct {
	fd    int
	users atomic.Int32
}

func (d *openDir) done() {
	if d.users.Add(-1) == 0 {
		unix.Close(d.fd)
	}
}

// dirList is what the kernel says of a directory.
type dirList struct {
	dir    *openDir // nil if it could not be opened
	names  []string // sorted bytewise: within one directory that is the walking order
	stats  []unix.Stat_t
	failed map[int]error // of names of which there are none

	op  string // what failed with
	err error
}

// listDir opens a directory and lists it. The listing must be closed.
func listDir(parent *openDir, name string) *dirList {
	fd, err := openat(parent.fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return &dirList{op: "open", err: err}
	}
	d := &openDir{fd: fd}
	d.users.Store(1)
	return d.list()
}

func (d *openDir) list() *dirList {
	l := &dirList{dir: d}
	if l.names, l.err = readNames(d.fd); l.err != nil {
		l.op = "read directory"
		return l
	}
	l.stats = make([]unix.Stat_t, len(l.names))
	for i, name := range l.names {
		err := retry(func() error { return unix.Fstatat(d.fd, name, &l.stats[i], unix.AT_SYMLINK_NOFOLLOW) })
		if err != nil {
			if l.failed == nil {
				l.failed = map[int]error{}
			}
			l.failed[i] = err
		}
	}
	return l
}

func (l *dirList) close() {
	if l.dir != nil {
		l.dir.done()
	}
}

// lookahead lists the next directories in one while those before them are gone
// through: most of a scan that reads no files is waiting for the kernel, and
// all of it where that has to wait for a disk.
type lookahead struct {
	dir  *openDir
	kids []child

	next    int             // of kids: what is before is begun
	started []chan *dirList // in order
}

// aheadDirs is how many directories in one are listed at a time.
const aheadDirs = 4

// start begins as many as may be.
func (a *lookahead) start() {
	for ; a.next < len(a.kids) && len(a.started) < aheadDirs; a.next++ {
		c := &a.kids[a.next]
		if c.t != Dir || !c.descend {
			continue
		}
		done := make(chan *dirList, 1)
		a.started = append(a.started, done)
		go func() { done <- listDir(a.dir, c.name) }()
	}
}

// take is the listing of the next directory of those that are descended into.
func (a *lookahead) take() *dirList {
	l := <-a.started[0]
	a.started = a.started[1:]
	return l
}

// end waits for what nobody took.
func (a *lookahead) end() {
	for len(a.started) > 0 {
		a.take().close()
	}
}

// readNames lists a directory, sorted bytewise.
func readNames(fd int) ([]string, error) {
	var names []string
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	buf := (*bp)[:32<<10]
	for {
		var n int
		err := retry(func() (err error) { n, err = unix.ReadDirent(fd, buf); return err })
		if err != nil {
			return nil, err
		}
		if n == 0 {
			slices.Sort(names)
			return names, nil
		}
		for b := buf[:n]; len(b) > 0; {
			var read int
			read, _, names = unix.ParseDirent(b, -1, names)
			if read == 0 {
				return nil, io.ErrUnexpectedEOF
			}
			b = b[read:]
		}
	}
}
