// Package network joins containers to the network of the host in root mode:
// a bridge with one veth pair for each container, masquerading for what
// leaves, and userspace proxies for published ports.
//
// A [Bridge] is the place, an [Endpoint] one container's seat at it, a
// [Proxy] one published port, [Names] are what containers of one bridge find
// each other by. The kernel holds the state that is shared between processes
// (the bridges, their addresses, the nftables table); files in the state
// directory are locks, or say which bridges there are and who has which name,
// and are not believed of processes that have ended. So nothing needs repair
// after a crash, and the directory is to be one that does not survive the
// machine's interfaces.
//
// # What a container reaches
//
// Containers on the bridge reach each other, everything the host has a route
// to, and the host itself at every address of it, the bridge's included: a
// service of the host that listens on all interfaces is reachable, as it is
// with docker. Services bound to 127.0.0.1 or ::1 are not: those addresses
// mean the container's own loopback, and the kernel drops loopback addresses
// that arrive at a bridge (route_localnet stays 0). IPv6 is off on the
// bridge, so no link-local address leads around IPv4 rules of the host.
//
// Other machines do not reach containers, and containers of one bridge do not
// reach those of another: although forwarding is on, our forward chain drops
// what enters a bridge from another interface and answers nothing. Published
// ports are the exception; they go through a process of the host. From an
// internal bridge nothing is forwarded at all; the host itself can be reached
// at the bridge's address, as with docker.
//
// # What is not ours
//
// Only the table "ip kiln" is written. An accept there does not override a
// drop elsewhere: where another FORWARD chain drops by policy (docker,
// firewalld, ufw), connections out of the bridge need a rule of the
// administrator's, for docker
//
//	iptables -I DOCKER-USER -i kiln0 -j ACCEPT
//	iptables -I DOCKER-USER -o kiln0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
//
// net.ipv4.ip_forward is switched on and stays on, which makes the host
// forward between its other interfaces too, unless their rules say otherwise.
package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Bridge is a bridge of the host that containers are joined to. It is safe
// for concurrent use, by several processes too.
type Bridge struct {
	name  string // of the interface
	table string // of nftables, family ip
	dir   string // locks, and what bridges there are
	plan  Plan
	users bool // a user made it, as one of many: its subnet is a small one
}

// Plan is what a bridge is to be like.
type Plan struct {
	Subnet   netip.Prefix // the zero value takes a free one
	Gateway  netip.Addr   // the host's address in Subnet; zero is the first
	Range    netip.Prefix // where addresses are taken from; zero is all of Subnet
	Internal bool         // nothing is forwarded
	MTU      int          // zero is that of the host's way out
}

// New returns the bridge "kiln0". It touches nothing; the bridge is made by
// the first [Bridge.Attach]. All users of the bridge should name the same
// state directory, since the locks in it are what arbitrates addresses;
// users with different ones still never share an address, but may see
// failures while one of them makes the bridge.
func New(stateDir string) *Bridge { return &Bridge{name: mainBridge, table: "kiln", dir: stateDir} }

// mainBridge is the interface of the bridge that nobody has to make.
const mainBridge = "kiln0"

// Gateway is the bridge's address within its subnet, without making either;
// not valid where there is none yet.
func (b *Bridge) Gateway() netip.Prefix {
	link, err := net.InterfaceByName(b.name)
	if err != nil {
		return netip.Prefix{}
	}
	all, err := link.Addrs()
	if err != nil {
		return netip.Prefix{}
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			return p
		}
	}
	return netip.Prefix{}
}

// Named is New for a bridge with another interface, whose name has 15 bytes
// at most and begins with "kn-".
func Named(stateDir, name string, p Plan) *Bridge {
	return &Bridge{name: name, table: "kiln", dir: stateDir, plan: p, users: true}
}

// UnavailableError reports that there can be no bridge networking here: it is
// not permitted, the kernel lacks a part of it, or no subnet is free.
type UnavailableError struct {
	Err error
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("bridge networking is not available: %v", e.Err)
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// unavailable marks err if its cause is a lack of permission or of a part of
// the kernel.
func unavailable(err error) error {
	var known *UnavailableError
	if err == nil || errors.As(err, &known) {
		return err
	}
	for _, cause := range []error{fs.ErrPermission, unix.EROFS, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOSYS} {
		if errors.Is(err, cause) {
			return &UnavailableError{Err: err}
		}
	}
	return err
}

// lock takes the lock under which the bridge is looked at and made. It is
// held for milliseconds, so waiting is by trying again.
func (b *Bridge) lock(ctx context.Context) (*os.File, error) {
	for _, d := range []string{"addresses", "bridges"} {
		if err := os.MkdirAll(filepath.Join(b.dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("make network state directory: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(b.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open network lock: %w", err)
	}
	for {
		err := flock(f)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for %s: %w", f.Name(), ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// flock tries to lock f and does not wait. Closing f unlocks it; so does the
// end of the process, as descriptors are closed on exec.
func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EINTR {
			return err
		}
	}
}
