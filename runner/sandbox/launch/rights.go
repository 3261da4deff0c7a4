package launch

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// drop gives up every right that the command is not to have. In this order:
// the bounding set needs CAP_SETPCAP and the ids CAP_SETUID, so both come
// before the capabilities are set; a filter without no_new_privs needs
// CAP_SYS_ADMIN, so it is loaded before those go where the command does not
// get no_new_privs.
func (l *launch) drop() error {
	for _, r := range l.Rlimits {
		lim := &unix.Rlimit{Cur: r.Soft, Max: r.Hard}
		if err := unix.Prlimit(0, r.Resource, lim, nil); err != nil {
			return fail("set resource limit "+strconv.Itoa(r.Resource), "", err)
		}
	}
	if err := l.dropBounding(); err != nil {
		return err
	}
	if err := l.setIDs(); err != nil {
		return err
	}
	// Changing ids clears it; without it the sandbox outlives a killed
	// parent.
	if !l.Detached {
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return fail("tie to the parent", "", err)
		}
	}
	if err := l.directory(); err != nil {
		return err
	}
	// Nothing of the host's descriptors goes over the exec (CVE-2024-21626):
	// all are close-on-exec from their birth, and this is the second bar. It
	// comes before the filter, which may not allow it.
	if err := unix.CloseRange(Conn, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fail("close descriptors", "", err)
	}
	if l.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fail("set no_new_privs", "", err)
		}
	} else if err := l.filter(); err != nil {
		return err
	}
	have, err := getCaps()
	if err != nil {
		return fail("read capabilities", "", err)
	}
	l.Caps, l.Inheritable = l.Caps&have, l.Inheritable&have&l.Bounding
	l.Effective, l.Ambient = l.Effective&l.Caps, l.Ambient&l.Caps&l.Inheritable
	if err := setCaps(l.Caps, l.Effective, l.Inheritable); err != nil {
		return fail("set capabilities", "", err)
	}
	if err := l.ambient(); err != nil {
		return err
	}
	if l.NoNewPrivs {
		if err := l.filter(); err != nil {
			return err
		}
	}
	unix.Umask(l.Umask)
	return nil
}

func (l *launch) dropBounding() error {
	if l.Privileged {
		return nil
	}
	for c := range 64 {
		if l.Bounding&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if err == unix.EINVAL {
			break // past the last capability of this kernel
		}
		if err != nil {
			return fail("drop capability "+strconv.Itoa(c), "", err)
		}
	}
	return nil
}

func (l *launch) setIDs() error {
	// Raw calls: those of package syscall change every thread, for which
	// they stop the world, and only this thread lives on.
	if l.SetGroups {
		groups := make([]uint32, len(l.Groups)+1)
		for i, g := range l.Groups {
			groups[i] = uint32(g)
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(l.Groups)), uintptr(unsafe.Pointer(&groups[0])), 0); e != 0 {
			return fail("set supplementary groups", "", e)
		}
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(l.GID), uintptr(l.GID), uintptr(l.GID)); e != 0 {
		return fail("become group "+strconv.Itoa(l.GID), "", e)
	}
	// Keep the capabilities over the change of ids, to cut them below.
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fail("keep capabilities", "", err)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(l.UID), uintptr(l.UID), uintptr(l.UID)); e != 0 {
		return fail("become user "+strconv.Itoa(l.UID), "", e)
	}
	if l.UID == 0 {
		return nil
	}
	// The effective set is empty now; the filter may need it once more.
	caps, err := getCaps()
	if err != nil {
		return fail("read capabilities", "", err)
	}
	return fail("raise capabilities", "", setCaps(caps, caps, 0))
}

// getCaps returns the permitted set.
func getCaps() (uint64, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return 0, err
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

// setCaps sets the permitted and effective sets, and the inheritable one,
// which is empty but for what is to become ambient (CVE-2022-24769).
func setCaps(caps, effective, inheritable uint64) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		shift := 32 * i
		data[i] = unix.CapUserData{
			Effective: uint32(effective >> shift), Permitted: uint32(caps >> shift), Inheritable: uint32(inheritable >> shift),
		}
	}
	return unix.Capset(&head, &data[0])
}

func (l *launch) ambient() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fail("clear ambient capabilities", "", err)
	}
	for c := range 64 {
		if l.Ambient&(1<<c) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return fail("raise ambient capability "+strconv.Itoa(c), "", err)
		}
	}
	return nil
}

// directory enters the working directory, as the user that the command runs
// as. A name such as /proc/self/fd/7 could lead to the host
// (CVE-2024-21626): the kernel is told to follow no link of that kind, and
// asked afterwards whether the directory is inside.
func (l *launch) directory() error {
	const step = "enter the working directory"
	fd, err := openat2(unix.AT_FDCWD, l.Cwd, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	if err == nil {
		err = unix.Fchdir(fd)
		unix.Close(fd)
	}
	if err != nil {
		return fail(step, l.Cwd, err)
	}
	var buf [unix.PathMax]byte
	n, _, e := unix.RawSyscall(unix.SYS_GETCWD, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0)
	if e != 0 {
		return fail(step, l.Cwd, e)
	}
	// The kernel writes "(unreachable)/…" for what is outside.
	if n == 0 || buf[0] != '/' {
		return fail(step, l.Cwd+" is outside of the root", unix.EPERM)
	}
	return nil
}

// filter loads the system call filter. It has to allow what follows:
// capset, prctl, umask, execve and writing to the parent.
func (l *launch) filter() error {
	if len(l.Filter) == 0 {
		return nil
	}
	prog := unix.SockFprog{
		Len:    uint16(len(l.Filter) / 8),
		Filter: (*unix.SockFilter)(unsafe.Pointer(&l.Filter[0])),
	}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return fail("load the seccomp filter", "", e)
	}
	return nil
}
