package launch

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// openRoot gets the new root as a detached, private mount.
func (l *launch) openRoot() error {
	root := l.Root
	if root < 0 {
		fd, err := unix.OpenTree(unix.AT_FDCWD, l.RootPath, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return fail("clone the root", l.RootPath, err)
		}
		root = fd
	}
	l.root = root
	// Mounts made in the sandbox do not show on the host, nor later ones of
	// the host in the sandbox.
	return fail("make the root private", "", l.reshape(root, &Mount{Propagation: l.Propagation}))
}

// openMounts opens all mounts, detached. It has to happen while the host's
// mounts are there: sources are paths of the host, and in a user namespace
// the kernel grants a new procfs or sysfs only to those who see a whole one.
func (l *launch) openMounts() ([]int, error) {
	fds := make([]int, len(l.Mounts))
	for i := range l.Mounts {
		fd, err := l.open(&l.Mounts[i])
		if err != nil {
			return nil, fail("mount "+l.Mounts[i].Target, l.Mounts[i].Kind, err)
		}
		fds[i] = fd
		if l.Mounts[i].Kind == "proc" && l.proc < 0 {
			l.proc = fd
		}
	}
	if l.proc < 0 {
		fd, err := newMount("proc", nil, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, "")
		if err != nil {
			fd, err = unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			return nil, fail("open procfs", "", err)
		}
		l.proc = fd
	}
	return fds, nil
}

func (l *launch) open(m *Mount) (int, error) {
	switch m.Kind {
	case KindFD:
		if m.Part != "" {
			return -1, nil // see parts
		}
		return m.FD, l.reshape(m.FD, m)
	case KindBind:
		fd, err := cloneTree(m.Source, m.Recursive)
		if err != nil {
			return -1, fail("", m.Source, err)
		}
		return fd, l.reshape(fd, m)
	}
	flags := m.Flags
	if m.Kind == "tmpfs" {
		flags &^= unix.MOUNT_ATTR_RDONLY // see seal
	}
	fd, err := newMount(m.Kind, m.Options, flags, m.Source)
	switch {
	case err == nil:
		return fd, nil
	case m.Kind == "devpts" && err == unix.EINVAL:
		// Group 5, "tty", is not mapped in this user namespace.
		return newMount(m.Kind, without(m.Options, "gid="), flags, m.Source)
	case m.Kind == "sysfs" && err == unix.EPERM:
		// A network namespace that is not ours: its sysfs cannot be had, so
		// take the one that is there.
		b := *m
		b.Kind, b.Recursive = KindBind, true
		fd, err := cloneTree("/sys", true)
		if err != nil {
			return -1, err
		}
		return fd, l.reshape(fd, &b)
	case m.Optional && (err == unix.ENODEV || err == unix.EPERM || err == unix.EINVAL || err == unix.EBUSY):
		return -1, nil
	}
	return -1, err
}

func cloneTree(path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(unix.AT_FDCWD, path, flags)
}

// reshape sets flags and propagation of a mount that exists. Below a
// recursive bind the flags hold as well, so that "read-only" is no promise
// about the top mount alone.
func (l *launch) reshape(fd int, m *Mount) error {
	attr := &unix.MountAttr{Attr_set: m.Flags}
	if m.Flags&unix.MOUNT_ATTR__ATIME != 0 {
		attr.Attr_clr = unix.MOUNT_ATTR__ATIME // one of several values
	}
	if l.NoDevices {
		attr.Attr_set |= unix.MOUNT_ATTR_NODEV
	}
	switch m.Propagation {
	case "":
		attr.Propagation = unix.MS_PRIVATE
	case "private":
		attr.Propagation = unix.MS_PRIVATE
	case "slave":
		attr.Propagation = unix.MS_SLAVE
	case "unbindable":
		attr.Propagation = unix.MS_UNBINDABLE
	}
	return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr)
}

// newMount makes a file system and returns it as a detached mount.
func newMount(kind string, options []string, flags uint64, source string) (int, error) {
	if source == "" {
		source = kind
	}
	fsfd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigSetString(fsfd, "source", source); err != nil {
		return -1, err
	}
	for _, o := range options {
		key, value, ok := strings.Cut(o, "=")
		if ok {
			err = unix.FsconfigSetString(fsfd, key, value)
		} else {
			err = unix.FsconfigSetFlag(fsfd, key)
		}
		if err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, err
	}
	return unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, int(flags))
}

// NewMount makes a file system of a kind, as a detached mount, for a sandbox
// whose init may not.
func NewMount(kind string) (int, error) { return newMount(kind, nil, 0, "") }

func without(options []string, prefix string) []string {
	var kept []string
	for _, o := range options {
		if !strings.HasPrefix(o, prefix) {
			kept = append(kept, o)
		}
	}
	return kept
}

// parts takes out of detached mounts what is to be mounted of them. Before
// Linux 6.15 only mounts of one's own namespace can be cloned, so they are
// attached over the old root, with which they go away.
func (l *launch) parts(mounts []int) error {
	for i := range l.Mounts {
		m := &l.Mounts[i]
		if m.Kind != KindFD || m.Part == "" {
			continue
		}
		fd, err := part(m.FD, m.Part)
		if err == nil {
			err = l.reshape(fd, m)
		}
		if err != nil {
			return fail("mount "+m.Target, "take "+m.Part+" out of its mount", err)
		}
		mounts[i] = fd
	}
	return nil
}

func part(mount int, path string) (int, error) {
	// pivot_root refuses to leave a shared mount.
	attr := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return -1, err
	}
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, err
	}
	at, err := openat2(mount, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	return unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
}

// pivot makes the new root the root and lets go of the old one.
func (l *launch) pivot(mounts []int) error {
	const step = "change the root"
	if l.Chroot {
		if slices.ContainsFunc(l.Mounts, func(m Mount) bool { return m.Part != "" }) {
			return fail(step, "a part of a mount needs a mount namespace", unix.EINVAL)
		}
		if err := unix.Fchdir(l.root); err != nil {
			return fail(step, "enter the new root", err)
		}
		return fail(step, "chroot", unix.Chroot("."))
	}
	// Else the mounts below would propagate to the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fail(step, "make mounts private", err)
	}
	if err := l.parts(mounts); err != nil {
		return err
	}
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(step, "open the old root", err)
	}
	if err := unix.MoveMount(l.root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail(step, "attach the new root", err)
	}
	if err := unix.Fchdir(l.root); err != nil {
		return fail(step, "enter the new root", err)
	}
	// With both names the same directory the old root ends up stacked on the
	// new one and needs no directory of its own in there.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fail(step, "pivot_root", err)
	}
	if err := unix.Fchdir(old); err != nil {
		return fail(step, "enter the old root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fail(step, "detach the old root", err)
	}
	unix.Close(old)
	if l.Propagation == "shared" {
		if err := unix.Mount("", "/", "", unix.MS_SHARED, ""); err != nil {
			return fail(step, "share it", err)
		}
	}
	return fail(step, "enter the new root", unix.Chdir("/"))
}

// attach moves a detached mount to its target.
func (l *launch) attach(m *Mount, fd int) error {
	if fd < 0 {
		return nil
	}
	step := "mount " + m.Target
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return fail(step, "look at the source", err)
	}
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	at, err := mountPoint(l.root, m.Target, dir, l.made)
	if err != nil {
		return fail(step, "make the mount point", err)
	}
	defer unix.Close(at)
	if err := unix.Fstatat(at, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return fail(step, "look at the mount point", err)
	}
	if (st.Mode&unix.S_IFMT == unix.S_IFDIR) != dir {
		if dir {
			return fail(step, "the source is a directory and the mount point is not", unix.ENOTDIR)
		}
		return fail(step, "the mount point is a directory and the source is not", unix.EISDIR)
	}
	dev := l.Dev && m.Target == "/dev"
	if dev {
		if err := l.populate(fd); err != nil {
			return err
		}
	}
	if err := unix.MoveMount(fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		if l.Chroot && err == unix.EINVAL {
			return fail(step, "without a mount namespace, this takes Linux 6.15", err)
		}
		return fail(step, "attach", err)
	}
	if dev && l.UserNamespace {
		if err := l.bindNodes(fd); err != nil {
			return err
		}
	}
	if m.Kind == "devpts" && l.pts < 0 {
		l.pts = fd
	}
	return nil
}

// seal makes read-only tmpfs mounts so, once the mount points in them are
// made.
func (l *launch) seal(mounts []int) error {
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	for i, m := range l.Mounts {
		if m.Kind != "tmpfs" || m.Flags&unix.MOUNT_ATTR_RDONLY == 0 {
			continue
		}
		if err := unix.MountSetattr(mounts[i], "", unix.AT_EMPTY_PATH, attr); err != nil {
			return fail("make "+m.Target+" read-only", "", err)
		}
	}
	return nil
}
