package launch

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// node is a default device: all of the memory class but for tty.
type node struct {
	name         string
	major, minor uint32
}

var nodes = [...]node{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7},
	{"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

var devLinks = [...][2]string{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"},
	{"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	{"core", "/proc/kcore"}, {"ptmx", "pts/ptmx"},
}

// populate fills the tmpfs for /dev before it is attached: nothing in the
// root can interfere, and there is no path in it to be swapped.
func (l *launch) populate(dev int) error {
	for _, n := range nodes {
		var err error
		if l.UserNamespace {
			err = create(dev, n.name, false)
		} else {
			err = unix.Mknodat(dev, n.name, unix.S_IFCHR|0o666, int(unix.Mkdev(n.major, n.minor)))
		}
		if err != nil {
			return fail("make /dev/"+n.name, "", err)
		}
	}
	for _, x := range devLinks {
		if err := unix.Symlinkat(x[1], dev, x[0]); err != nil {
			return fail("make /dev/"+x[0], "", err)
		}
	}
	for _, d := range [...]string{"pts", "shm", "mqueue"} {
		if err := unix.Mkdirat(dev, d, 0o755); err != nil {
			return fail("make /dev/"+d, "", err)
		}
	}
	return nil
}

// bindNodes puts the host's devices where mknod is refused, in a user
// namespace. Unlike populate it needs dev to be attached: older kernels
// mount nothing on a detached mount.
func (l *launch) bindNodes(dev int) error {
	for _, n := range nodes {
		if err := unix.MoveMount(l.hostNodes[n.name], "", dev, n.name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fail("bind /dev/"+n.name, "", err)
		}
	}
	return nil
}

// openHostNode clones the host's /dev/name after checking that it is the
// device which it is meant to be (CVE-2025-31133). It is the host's own inode,
// whose mode and owner root could change where all ids are mapped: a read-only
// mount forbids that, and lets the device be written to all the same.
func openHostNode(name string, kind, major, minor uint32) (int, error) {
	fd, err := cloneReadonly("/dev/" + name)
	if err != nil {
		return -1, err
	}
	if err := isDevice(fd, kind, major, minor); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// cloneReadonly clones a file of the host so that neither it nor its
// attributes can be changed by way of the clone.
func cloneReadonly(path string) (int, error) {
	fd, err := cloneTree(path, false)
	if err != nil {
		return -1, err
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func isDevice(fd int, kind, major, minor uint32) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != kind || st.Rdev != unix.Mkdev(major, minor) {
		return unix.ENODEV
	}
	return nil
}

// openHostNodes is for user namespaces only.
func (l *launch) openHostNodes() error {
	if !l.UserNamespace {
		return nil
	}
	l.hostNodes = map[string]int{}
	for _, n := range nodes {
		fd, err := openHostNode(n.name, unix.S_IFCHR, n.major, n.minor)
		if err != nil {
			return fail("bind /dev/"+n.name, "", err)
		}
		l.hostNodes[n.name] = fd
	}
	for _, d := range l.Devices {
		fd, err := openHostNode(strings.TrimPrefix(d.Path, "/dev/"), d.Mode&unix.S_IFMT, d.Major, d.Minor)
		if err != nil {
			return fail("bind "+d.Path, "", err)
		}
		l.hostNodes[d.Path] = fd // a path, so no clash with the names above
	}
	return nil
}

// devices makes the extra device nodes.
func (l *launch) devices() error {
	for _, d := range l.Devices {
		step := "make " + d.Path
		if l.UserNamespace {
			at, err := mountPoint(l.root, d.Path, false, l.made)
			if err != nil {
				return fail(step, "", err)
			}
			err = unix.MoveMount(l.hostNodes[d.Path], "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
			unix.Close(at)
			if err != nil {
				return fail(step, "", err)
			}
			continue
		}
		dir, name := d.Path[:strings.LastIndexByte(d.Path, '/')+1], d.Path[strings.LastIndexByte(d.Path, '/')+1:]
		at, err := mountPoint(l.root, dir, true, l.made)
		if err != nil {
			return fail(step, "", err)
		}
		err = unix.Mknodat(at, name, d.Mode, int(unix.Mkdev(d.Major, d.Minor)))
		if err == unix.EEXIST {
			// A default one, or one that the root brought.
			if err = unix.Unlinkat(at, name, 0); err == nil {
				err = unix.Mknodat(at, name, d.Mode, int(unix.Mkdev(d.Major, d.Minor)))
			}
		}
		if err == nil && (d.UID != 0 || d.GID != 0) {
			err = unix.Fchownat(at, name, d.UID, d.GID, unix.AT_SYMLINK_NOFOLLOW)
		}
		unix.Close(at)
		if err != nil {
			return fail(step, "", err)
		}
	}
	return nil
}

// terminal opens a pseudo terminal in the sandbox's own devpts, makes it
// /dev/console and standard input and output, and sends its master to the
// parent. No path is involved: the slave comes from the master
// (CVE-2025-52565).
func (l *launch) terminal() error {
	if !l.Terminal {
		return nil
	}
	const step = "open a terminal"
	if l.pts < 0 {
		fd, err := inRoot(l.root, "/dev/pts")
		if err != nil {
			return fail(step, "/dev/pts", err)
		}
		l.pts = fd
	}
	slave, err := l.openTerminal(l.pts)
	if err != nil {
		return err
	}
	if !l.Join && l.Dev {
		if err := l.console(slave); err != nil {
			return fail(step, "bind /dev/console", err)
		}
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return fail(step, "", err)
		}
	}
	return nil
}

// openTerminal returns the slave side.
func (l *launch) openTerminal(pts int) (int, error) {
	const step = "open a terminal"
	var fs unix.Statfs_t
	master, err := openat2(pts, "ptmx", &unix.OpenHow{
		Flags:   unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV,
	})
	if err == nil {
		err = unix.Fstatfs(master, &fs)
	}
	if err == nil && fs.Type != unix.DEVPTS_SUPER_MAGIC {
		err = unix.ENODEV
	}
	if err != nil {
		return -1, fail(step, "ptmx", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, fail(step, "unlock", err)
	}
	if l.Rows != 0 || l.Cols != 0 {
		size := &unix.Winsize{Row: uint16(l.Rows), Col: uint16(l.Cols)}
		if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, size); err != nil {
			return -1, fail(step, "set its size", err)
		}
	}
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, fail(step, "open its other side", errno)
	}
	if !l.Join || l.UID != 0 {
		if err := unix.Fchown(int(slave), l.UID, -1); err != nil && err != unix.EINVAL && err != unix.EPERM {
			return -1, fail(step, "give it to user "+strconv.Itoa(l.UID), err)
		}
	}
	if err := sendFD(Message{Kind: KindPTY}, master); err != nil {
		return -1, fail(step, "send it", err)
	}
	unix.Close(master)
	return int(slave), nil
}

func (l *launch) console(slave int) error {
	at, err := mountPoint(l.root, "/dev/console", false, l.made)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	fd, err := unix.OpenTree(slave, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.MoveMount(fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}
