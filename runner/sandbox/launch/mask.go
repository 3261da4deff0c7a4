package launch

import (
	"golang.org/x/sys/unix"
)

// openMask makes the file system that masked paths are covered with: a
// read-only tmpfs with an empty directory and a null device of the sandbox's
// own, which no process of it can reach by another path (CVE-2025-31133).
func (l *launch) openMask() (int, error) {
	const step = "make the mask"
	if len(l.Masked) == 0 {
		return -1, nil
	}
	fd, err := newMount("tmpfs", []string{"mode=755", "size=64k"}, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "")
	if err != nil {
		return -1, fail(step, "", err)
	}
	if err := unix.Mkdirat(fd, "empty", 0o755); err != nil {
		return -1, fail(step, "", err)
	}
	if l.UserNamespace {
		l.null, err = openHostNode("null", unix.S_IFCHR, 1, 3)
		if err != nil {
			return -1, fail(step, "/dev/null", err)
		}
		if err := createNode(fd, "null", false); err != nil {
			return -1, fail(step, "", err)
		}
	} else if err := unix.Mknodat(fd, "null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return -1, fail(step, "", err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return fd, fail(step, "", unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr))
}

// protect covers the masked paths and makes the read-only ones so.
func (l *launch) protect(mask int) error {
	attached := false
	for _, p := range l.Masked {
		err := l.mask(mask, p)
		if err == unix.EINVAL && !attached {
			if err := l.attachMask(mask); err != nil {
				return fail("attach the mask", "", err)
			}
			attached = true
			err = l.mask(mask, p)
		}
		if err != nil {
			return fail("mask "+p, "", err)
		}
	}
	if attached {
		if err := detach(mask); err != nil {
			return fail("detach the mask", "", err)
		}
	}
	for _, p := range l.Readonly {
		if err := l.readonly(p); err != nil {
			return fail("make "+p+" read-only", "", err)
		}
	}
	return nil
}

// attachMask puts the mask over the root, for kernels before 6.15: they clone
// only what is mounted in their own namespace. Paths that begin at the root
// do not lead there.
func (l *launch) attachMask(mask int) error {
	if err := unix.MoveMount(mask, "", l.root, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return err
	}
	if !l.UserNamespace {
		return nil
	}
	return unix.MoveMount(l.null, "", mask, "null", unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// detach undoes an attachment, with what is mounted in there.
func detach(mount int) error {
	if err := unix.Fchdir(mount); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

func absent(err error) bool { return err == unix.ENOENT || err == unix.ENOTDIR }

func (l *launch) mask(mask int, path string) error {
	at, err := inRoot(l.root, path)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstatat(at, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	var fd int
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		fd, err = unix.OpenTree(mask, "empty", flags)
	case l.UserNamespace:
		fd, err = unix.OpenTree(l.null, "", flags|unix.AT_EMPTY_PATH)
	default:
		fd, err = unix.OpenTree(mask, "null", flags)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.MoveMount(fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

func (l *launch) readonly(path string) error {
	at, err := inRoot(l.root, path)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	fd, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return err
	}
	return unix.MoveMount(fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}
