package launch

import (
	"strings"

	"golang.org/x/sys/unix"
)

// joinNamespaces enters the namespaces that are not new. The control group
// namespace comes here and not with the clone: it shows the groups of the
// moment as roots, and the parent has placed the process since.
func (l *launch) joinNamespaces() error {
	for _, ns := range [...]struct {
		fd, kind int
		name     string
	}{
		{l.JoinNet, unix.CLONE_NEWNET, "network"},
		{l.JoinIPC, unix.CLONE_NEWIPC, "ipc"},
		{l.JoinUTS, unix.CLONE_NEWUTS, "uts"},
		{l.JoinCgroup, unix.CLONE_NEWCGROUP, "control group"},
		{l.JoinMount, unix.CLONE_NEWNS, "mount"},
	} {
		if ns.fd < 0 {
			continue
		}
		if ns.kind == unix.CLONE_NEWNS {
			// It takes a thread that shares its root with no other.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fail("join the "+ns.name+" namespace", "", err)
			}
		}
		if err := unix.Setns(ns.fd, ns.kind); err != nil {
			return fail("join the "+ns.name+" namespace", "", err)
		}
	}
	if l.CgroupNamespace {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fail("make a control group namespace", "", err)
		}
	}
	return nil
}

// names sets the machine's names and brings the loopback up.
func (l *launch) names() error {
	if l.Hostname != "" {
		if err := unix.Sethostname([]byte(l.Hostname)); err != nil {
			return fail("set the host name", l.Hostname, err)
		}
	}
	if l.Domainname != "" {
		if err := unix.Setdomainname([]byte(l.Domainname)); err != nil {
			return fail("set the domain name", l.Domainname, err)
		}
	}
	if l.Loopback {
		return fail("bring the loopback up", "", loopback())
	}
	return nil
}

func loopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

// sysctls are written through a procfs that is attached nowhere, before any
// mount of the sandbox is: no mount over /proc can redirect them
// (CVE-2025-52881).
func (l *launch) sysctls() error {
	for _, s := range l.Sysctls {
		name, value, _ := strings.Cut(s, "=")
		if err := l.sysctl(name, value); err != nil {
			return fail("set sysctl "+strings.ReplaceAll(name, "/", "."), value, err)
		}
	}
	return nil
}

func (l *launch) sysctl(name, value string) error {
	fd, err := openat2(l.proc, "sys/"+name, &unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if fs.Type != unix.PROC_SUPER_MAGIC {
		return unix.ENODEV
	}
	_, err = unix.Write(fd, []byte(value))
	return err
}

// session starts a session and gives it a keyring of its own: that of the
// caller may hold keys.
func (l *launch) session() error {
	if _, err := unix.Setsid(); err != nil {
		return fail("start a session", "", err)
	}
	// No name makes a new one; that of x/sys has no way to say so.
	_, _, e := unix.RawSyscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
	if e == 0 || e == unix.ENOSYS { // no keys in this kernel
		return nil
	}
	return fail("make a session keyring", "", e)
}

// stdio opens the sandbox's own null device where there is no file. What the
// caller gave may be the host's, an inode which root in the sandbox could
// change the mode of, so that is replaced as well.
func (l *launch) stdio() error {
	if l.Terminal {
		// The session has no terminal yet; the slave is all of 0, 1 and 2.
		if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
			return fail("make the terminal the session's", "", err)
		}
		return nil
	}
	if err := l.ownPipes(); err != nil {
		return fail("give away standard input and output", "", err)
	}
	null := -1
	for fd, is := range [...]bool{l.StdinNull, l.StdoutNull, l.StderrNull} {
		if !is {
			continue
		}
		if null < 0 {
			var err error
			if null, err = l.openNull(); err != nil {
				return fail("open /dev/null", "", err)
			}
			if null < 0 {
				return nil
			}
		}
		if err := unix.Dup3(null, fd, 0); err != nil {
			return fail("open /dev/null", "", err)
		}
	}
	return nil
}

// ownPipes gives pipes to the command's user: servers open /dev/stdout again,
// which takes the right to the inode (as runc does). Files stay whose they
// are.
func (l *launch) ownPipes() error {
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		kind := st.Mode & unix.S_IFMT
		if kind != unix.S_IFIFO && kind != unix.S_IFSOCK || int(st.Uid) == l.UID {
			continue
		}
		// Neither is possible for another's pipe in a user namespace.
		if err := unix.Fchown(fd, l.UID, -1); err != nil && err != unix.EPERM && err != unix.EINVAL {
			return err
		}
	}
	return nil
}

// openNull returns -1 where the sandbox has no null device; then the host's
// stays. In a running sandbox the name may stand for something else by now:
// opening it must not hang, and it is used only if it is what it should be.
func (l *launch) openNull() (int, error) {
	fd, err := openat2(l.root, "/dev/null", &unix.OpenHow{
		Flags:   unix.O_RDWR | unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if absent(err) && !l.Join {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	if err := isDevice(fd, unix.S_IFCHR, 1, 3); err != nil {
		return -1, err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
	return fd, err
}
