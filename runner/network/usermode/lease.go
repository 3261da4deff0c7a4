package usermode

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
	"kiln.build/runner/network"
)

// lease is an address of a network that is this process's, and the socket by
// which containers of other processes reach it. Who wants to send to an
// address finds the socket under its name in the network's folder; so there
// is no process for the network itself.
type lease struct {
	ip     netip.Addr
	dir    *os.File // the network's folder
	lock   *os.File // held for as long as the address is taken
	socket *os.File // unix datagrams: frames as those of the packet socket

	once   sync.Once
	failed error // of release
}

// takeLease takes an address of a network: the one that is wanted, or the
// first that is free. What a process that was killed left behind counts as
// free.
func takeLease(c Config) (*lease, error) {
	path := filepath.Join(c.Dir, fmt.Sprintf("%s-%d", c.Gateway.Masked().Addr(), c.Gateway.Bits()))
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make network state directory: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network state directory: %w", err)
	}
	l := &lease{dir: dir}
	if l.lock, l.ip, err = network.LockAddress(path, c.Gateway, c.Range, c.IP); err == nil {
		if err = l.listen(); err == nil {
			return l, nil
		}
		err = fmt.Errorf("take address %s: %w", l.ip, err)
	}
	return nil, errors.Join(err, l.release())
}

// listen makes the socket. The way by /proc keeps its name short: there is
// room for 107 bytes.
func (l *lease) listen() error {
	name := l.name(l.ip)
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	l.socket = os.NewFile(uintptr(fd), "network")
	return errors.Join(
		os.NewSyscallError("setsockopt SO_SNDBUF", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)), // cut to net.core.wmem_max
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrUnix{Name: name})),
	)
}

// name is that of the socket of an address.
func (l *lease) name(ip netip.Addr) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s.sock", l.dir.Fd(), ip)
}

// release gives the address back. It may be called for one that was not taken
// as a whole, or is nil, and more than once.
func (l *lease) release() error {
	if l == nil {
		return nil
	}
	l.once.Do(func() {
		var errs []error
		if l.socket != nil {
			// Under the lock: later the name may be that of the next owner's.
			errs = append(errs, os.Remove(l.name(l.ip)), l.socket.Close())
		}
		if l.lock != nil {
			errs = append(errs, network.UnlockAddress(l.lock))
		}
		l.failed = errors.Join(append(errs, l.dir.Close())...)
	})
	return l.failed
}
