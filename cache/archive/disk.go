package archive

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"kiln.build/cache/tree"

	"golang.org/x/sys/unix"
)

// disk is a directory that all access is confined to. Paths are relative,
// clean and free of symbolic links: where something else has slipped in, the
// kernel refuses instead of leading outside. Names are only ever handed to
// the kernel relative to the descriptor of their parent, and no call follows
// a link in the last component.
type disk struct {
	root int // O_PATH descriptor

	// The parent used last: archives list one directory at a time.
	parentPath string
	parent     int // -1 where there is none

	// loose says that ids and attributes which the kernel refuses are left
	// out: so it must be without the privileges of root.
	loose bool

	noisy bool // files are not ours, who may not keep their times of access
}

// beneath keeps a lookup below the descriptor that it starts from, whatever
// others do meanwhile, and refuses symbolic links (openat2(2)).
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func openDisk(dir string) (*disk, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &disk{root: fd, parent: -1, loose: !privileged()}, nil
}

func (d *disk) Close() {
	d.forget()
	unix.Close(d.root)
}

// forget drops the cached descriptor. It must be called before a directory
// is removed or replaced: the descriptor would still lead to the old one.
func (d *disk) forget() {
	if d.parent >= 0 {
		unix.Close(d.parent)
		d.parent = -1
	}
}

// open opens a path below the root.
func (d *disk) open(p string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: beneath}
	for {
		fd, err := unix.Openat2(d.root, p, &how)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open", Path: p, Err: err}
		}
		return fd, nil
	}
}

// in returns the descriptor of a path's parent and the last component. The
// descriptor is valid until the next call.
func (d *disk) in(p string) (int, string, error) {
	dir, base := path.Split(p)
	dir = strings.TrimSuffix(dir, "/")
	if dir == "" {
		return d.root, base, nil
	}
	if d.parent >= 0 && d.parentPath == dir {
		return d.parent, base, nil
	}
	d.forget()
	fd, err := d.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, "", err
	}
	d.parent, d.parentPath = fd, dir
	return fd, base, nil
}

// at calls f with the parent of p. Where the name is taken, what has it is
// removed first.
func (d *disk) at(op, p string, f func(parent int, name string) error) error {
	parent, name, err := d.in(p)
	if err != nil {
		return err
	}
	err = f(parent, name)
	if err == unix.EEXIST {
		if err := d.remove(p); err != nil {
			return err
		}
		if parent, name, err = d.in(p); err != nil {
			return err
		}
		err = f(parent, name)
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: p, Err: err}
	}
	return nil
}

// create makes a new file and returns its descriptor.
func (d *disk) create(p string) (fd int, err error) {
	err = d.at("create", p, func(parent int, name string) error {
		fd, err = unix.Openat(parent, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	return fd, err
}

// mkdir makes a directory that only we can enter; its mode comes at the end,
// as it could keep us out. A directory that is there is left as it is.
func (d *disk) mkdir(p string) error {
	return d.at("mkdir", p, func(parent int, name string) error {
		err := unix.Mkdirat(parent, name, 0o700)
		if err == unix.EEXIST {
			var st unix.Stat_t
			if unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				return nil
			}
		}
		return err
	})
}

func (d *disk) symlink(target, p string) error {
	return d.at("symlink", p, func(parent int, name string) error {
		return unix.Symlinkat(target, parent, name)
	})
}

func (d *disk) mknod(p string, mode uint32, dev uint64) error {
	return d.at("mknod", p, func(parent int, name string) error {
		return unix.Mknodat(parent, name, mode, int(dev))
	})
}

// link makes p another name of the file old.
func (d *disk) link(old, p string) error {
	dir, base := path.Split(old)
	from := d.root
	if dir != "" {
		var err error
		if from, err = d.open(strings.TrimSuffix(dir, "/"), unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return err
		}
		defer unix.Close(from)
	}
	return d.at("link", p, func(parent int, name string) error {
		return unix.Linkat(from, base, parent, name, 0) // without AT_SYMLINK_FOLLOW
	})
}

// remove deletes a path with all below it.
func (d *disk) remove(p string) error {
	parent, name, err := d.in(p)
	if err != nil {
		return err
	}
	err = unix.Unlinkat(parent, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return &fs.PathError{Op: "remove", Path: p, Err: err}
	}
	d.forget()
	// os.Root goes by descriptors and follows no links, as we do here.
	root, err := os.OpenRoot(procPath(d.root))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(p), root.Close())
}

// attributes of an inode.
type attributes struct {
	mode     uint32
	uid, gid int
	mtime    int64 // ns
	xattrs   map[string]string
	opaque   bool // a directory's: the mark of overlayfs is set
	nochmod  bool // a symbolic link has no mode
}

// setAttributes sets what a path has beside its content. The owner comes
// first since changing it clears setuid bits and capabilities, the time last
// since all else changes it.
func (d *disk) setAttributes(p string, a attributes) error {
	parent, name, err := d.in(p)
	if err != nil {
		return err
	}
	if p == "" {
		name = "."
	}
	wrap := func(op string, err error) error { return &fs.PathError{Op: op, Path: p, Err: err} }
	if err := unix.Fchownat(parent, name, a.uid, a.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil && !d.tolerates(err) {
		return wrap("chown", err)
	}
	if len(a.xattrs) > 0 || a.opaque {
		if err := d.setXattrs(parent, name, a); err != nil {
			return wrap("setxattr", err)
		}
	}
	if !a.nochmod {
		// Fchmodat would follow a link; what p is was just made by us.
		if err := unix.Fchmodat(parent, name, a.mode, 0); err != nil && !(a.mode&^0o777 != 0 && d.tolerates(err)) {
			return wrap("chmod", err)
		}
	}
	times := []unix.Timespec{unix.NsecToTimespec(a.mtime), unix.NsecToTimespec(a.mtime)}
	if err := unix.UtimesNanoAt(parent, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return wrap("utimes", err)
	}
	return nil
}

func (d *disk) setXattrs(parent int, name string, a attributes) error {
	// There is no setxattrat before Linux 6.13; the descriptor's path in
	// /proc stands for the inode itself.
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	self := procPath(fd)
	for k, v := range a.xattrs {
		if err := unix.Setxattr(self, k, []byte(v), 0); err != nil && !d.tolerates(err) && err != unix.ENOTSUP {
			return err
		}
	}
	if !a.opaque {
		return nil
	}
	return unix.Setxattr(self, tree.OverlayXattr(), []byte("y"), 0)
}

// tolerates reports whether err is what a process without root's privileges
// gets for ids that are not mapped and for privileged attributes.
func (d *disk) tolerates(err error) bool {
	return d.loose && (err == unix.EPERM || err == unix.EINVAL)
}

// privileged reports whether we may give files to anyone: root, and not of a
// user namespace that has only some ids.
func privileged() bool {
	if os.Geteuid() != 0 {
		return false
	}
	b, err := os.ReadFile("/proc/self/uid_map")
	return err != nil || strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
