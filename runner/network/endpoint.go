package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Seat says how a container sits at a bridge. The zero value is the usual way.
type Seat struct {
	Interface string           // inside; "" is eth0
	IP        netip.Addr       // the zero value takes a free one
	MAC       net.HardwareAddr // nil is one that is derived from IP
	NoRoute   bool             // no default route leads over the bridge
}

// settleTries is for how many milliseconds an interface may take to activate.
const settleTries = 100

// Endpoint is a container's place at the bridge.
type Endpoint struct {
	IP        netip.Addr // of the container
	Gateway   netip.Addr // of the bridge
	Bits      int        // of the subnet's prefix
	Interface string     // inside
	MAC       net.HardwareAddr

	mu    sync.Mutex
	lease *os.File // locked while the address is ours; nil after Close
	index int      // of the host's end of the veth pair
}

// Attach is [Bridge.AttachAs] in the usual way.
func (b *Bridge) Attach(ctx context.Context, pid int) (*Endpoint, error) {
	return b.AttachAs(ctx, pid, Seat{})
}

// AttachAs joins the network namespace of a process to the bridge: it gets an
// interface that is up, with an address of its own and a default route.
// The process must have been made with a new network namespace, in which
// there is no such interface yet; its loopback interface is left alone.
//
// The address belongs to the calling process until [Endpoint.Close], or until
// that process is dead and the namespace is gone. The interface disappears
// with the namespace.
//
// Where bridge networking cannot be had, the error is an [*UnavailableError].
func (b *Bridge) AttachAs(ctx context.Context, pid int, seat Seat) (*Endpoint, error) {
	if seat.Interface == "" {
		seat.Interface = "eth0"
	}
	ns, err := openNamespace(pid)
	if err != nil {
		return nil, unavailable(fmt.Errorf("attach process %d to the network: %w", pid, err))
	}
	defer ns.Close()
	r, err := b.ensure(ctx)
	if err != nil {
		return nil, err
	}
	ep, err := b.lease(ctx, r, seat, ns)
	if err != nil {
		return nil, unavailable(fmt.Errorf("attach process %d to the network: %w", pid, err))
	}
	if err := ep.configure(ctx, r, ns, !seat.NoRoute && !b.plan.Internal); err != nil {
		return nil, errors.Join(fmt.Errorf("attach process %d to the network: %w", pid, err), ep.Close())
	}
	return ep, nil
}

// openNamespace opens the network namespace of a process, which must not be
// the caller's own: there a new eth0 would be the host's.
func openNamespace(pid int) (netns.NsHandle, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return ns, fmt.Errorf("open network namespace: %w", err)
	}
	own, err := netns.Get()
	if err != nil {
		ns.Close()
		return ns, fmt.Errorf("open own network namespace: %w", err)
	}
	defer own.Close()
	if ns.Equal(own) {
		ns.Close()
		return ns, errors.New("it has the network namespace of the host")
	}
	return ns, nil
}

// lease takes an address, the first free one unless the seat has one, and
// makes the veth pair for it.
//
// Two things make an address taken: the lock on its file, held by the process
// that owns the endpoint, and the host's end of the veth pair, which is named
// after the address. The second covers a container that outlives its owner,
// and owners with another state directory.
func (b *Bridge) lease(ctx context.Context, r ready, seat Seat, ns netns.NsHandle) (*Endpoint, error) {
	subnet := r.gateway.Masked()
	from := subnet
	switch {
	case seat.IP.IsValid() && (!usable(subnet, seat.IP) || seat.IP == r.gateway.Addr()):
		return nil, fmt.Errorf("invalid address %s: it is no host's in %s", seat.IP, subnet)
	case seat.IP.IsValid():
		from = netip.PrefixFrom(seat.IP, 32)
	case b.plan.Range.IsValid():
		from = b.plan.Range.Masked()
	}
	for ip := from.Addr(); from.Contains(ip); ip = ip.Next() {
		if ip == r.gateway.Addr() || !usable(subnet, ip) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f, err := lockAddress(filepath.Join(b.dir, "addresses", ip.String()))
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("lock address %s: %w", ip, err)
		}
		mac := seat.MAC
		if mac == nil {
			mac = hardwareAddr(ip)
		}
		index, taken, err := addNewPair(ip, mac, r, seat.Interface, ns)
		if taken {
			f.Close()
			continue
		}
		if err != nil {
			return nil, errors.Join(err, unlockAddress(f))
		}
		return &Endpoint{
			IP: ip, Gateway: r.gateway.Addr(), Bits: subnet.Bits(), Interface: seat.Interface, MAC: mac,
			lease: f, index: index,
		}, nil
	}
	if seat.IP.IsValid() {
		return nil, fmt.Errorf("%w: %s", ErrAddressTaken, seat.IP)
	}
	return nil, fmt.Errorf("no address is free in %s", from)
}

// LockAddress takes an address of a subnet by locking a file of its name in a
// folder: the one that is wanted, or, if that is not valid, the first that is
// free in a part of the subnet, which is all of it if that is not valid. It
// is given back by [UnlockAddress], or with the end of the process.
func LockAddress(dir string, gateway, part netip.Prefix, want netip.Addr) (*os.File, netip.Addr, error) {
	subnet := gateway.Masked()
	from := subnet
	switch {
	case want.IsValid() && (!usable(subnet, want) || want == gateway.Addr()):
		return nil, want, fmt.Errorf("invalid address %s: it is no host's in %s", want, subnet)
	case want.IsValid():
		from = netip.PrefixFrom(want, 32)
	case part.IsValid():
		from = part.Masked()
	}
	for ip := from.Addr(); from.Contains(ip); ip = ip.Next() {
		if ip == gateway.Addr() || !usable(subnet, ip) {
			continue
		}
		f, err := lockAddress(filepath.Join(dir, ip.String()))
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return nil, ip, fmt.Errorf("lock address %s: %w", ip, err)
		}
		return f, ip, nil
	}
	if want.IsValid() {
		return nil, want, fmt.Errorf("%w: %s", ErrAddressTaken, want)
	}
	return nil, want, fmt.Errorf("no address is free in %s", from)
}

// UnlockAddress gives an address back.
func UnlockAddress(f *os.File) error { return unlockAddress(f) }

// lockAddress locks the file of an address, or fails with EWOULDBLOCK.
func lockAddress(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(f); err != nil {
			f.Close()
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			f.Close()
			return nil, err
		}
		if st.Nlink > 0 {
			return f, nil
		}
		f.Close() // removed by its owner between our open and our lock
	}
}

// unlockAddress removes the file before it unlocks it: later its name may be
// that of the next owner's.
func unlockAddress(f *os.File) error {
	return errors.Join(os.Remove(f.Name()), f.Close())
}

// addNewPair makes the veth pair for an address, unless one has its name.
// There can be one that is just being taken away: it is met and then gone, so
// that is tried again before the namespace is blamed.
func addNewPair(ip netip.Addr, mac net.HardwareAddr, r ready, inside string, ns netns.NsHandle) (index int, taken bool, err error) {
	for range 5 {
		index, err = addPair(ip, mac, r, inside, ns)
		if !errors.Is(err, unix.EEXIST) {
			return index, false, err
		}
		if _, lookup := netlink.LinkByName(pairName(ip)); lookup == nil {
			return 0, true, nil
		}
	}
	return 0, false, fmt.Errorf("it has an interface %s already: %w", inside, err)
}

// pairName is the name of the host's end of a veth pair. It is unique in the
// host, and 12 of the 15 bytes that the kernel allows.
func pairName(ip netip.Addr) string {
	return fmt.Sprintf("kiln%x", ip.As4())
}

// addPair makes a veth pair from the bridge to a namespace, and returns the
// index of the end that is here. Neither end is up.
func addPair(ip netip.Addr, mac net.HardwareAddr, r ready, inside string, ns netns.NsHandle) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = pairName(ip)
	attrs.MTU = r.mtu
	// With a queue for each processor, all but one of them unused, the kernel
	// waits for a grace period of RCU at each end.
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	veth := netlink.NewVeth(attrs)
	veth.PeerNumTxQueues, veth.PeerNumRxQueues = 1, 1
	veth.PeerName = inside
	veth.PeerHardwareAddr = mac
	veth.PeerNamespace = netlink.NsFd(ns)
	if err := netlink.LinkAdd(veth); err != nil {
		return 0, fmt.Errorf("add veth pair %s: %w", attrs.Name, err)
	}
	if err := netlink.LinkSetMasterByIndex(veth, r.index); err != nil {
		return 0, errors.Join(fmt.Errorf("join %s to the bridge: %w", attrs.Name, err), delLink(veth.Index))
	}
	return veth.Index, nil
}

// configure gives the container's end its address and route, and returns when
// both ends pass packets.
func (e *Endpoint) configure(ctx context.Context, r ready, ns netns.NsHandle, leads bool) error {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in its namespace: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(e.Interface)
	if err != nil {
		return fmt.Errorf("find its %s: %w", e.Interface, err)
	}
	addr := netip.PrefixFrom(e.IP, r.gateway.Bits())
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return fmt.Errorf("give it the address %s: %w", addr, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set its %s up: %w", e.Interface, err)
	}
	if leads {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: r.gateway.Addr().AsSlice()}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("give it a default route: %w", err)
		}
	}
	host := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: e.index}}
	if err := netlink.LinkSetUp(host); err != nil {
		return fmt.Errorf("set the host's end up: %w", err)
	}
	// In this order, as the carrier of each brings up the next one's.
	pkg := &netlink.Handle{}
	for _, l := range []struct {
		h     *netlink.Handle
		index int
	}{{h, link.Attrs().Index}, {pkg, e.index}, {pkg, r.index}} {
		if err := settle(ctx, l.h, l.index); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until an interface that is up passes packets. The kernel
// activates one in the background after its carrier comes; packets sent
// before are lost, and a lost ARP request is sent again only after a second.
// Since Linux 6.8 asking for an interface's state completes the activation,
// so that there is no waiting; on older kernels it takes milliseconds. If it
// does not come within settleTries, then it is left to the background.
func settle(ctx context.Context, h *netlink.Handle, index int) error {
	for range settleTries {
		link, err := h.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("wait for interface %d: %w", index, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// Lead gives the network namespace of a process, which the endpoint is in, a
// default route over the endpoint, unless it has one.
func (e *Endpoint) Lead(pid int) error {
	ns, err := openNamespace(pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in its namespace: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(e.Interface)
	if err != nil {
		return fmt.Errorf("find its %s: %w", e.Interface, err)
	}
	err = h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: e.Gateway.AsSlice()})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("give it a default route: %w", err)
	}
	return nil
}

// Close takes the container off the bridge and frees its address. It is no
// error if the namespace is gone already. After an error the address is still
// taken and Close can be called again; after success it does nothing.
func (e *Endpoint) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lease == nil {
		return nil
	}
	if err := delLink(e.index); err != nil {
		return fmt.Errorf("detach %s from the network: %w", e.IP, err)
	}
	f := e.lease
	e.lease = nil
	if err := unlockAddress(f); err != nil {
		return fmt.Errorf("free address %s: %w", e.IP, err)
	}
	return nil
}

// delLink deletes an interface by its index, which the kernel does not use
// again soon, unlike a name. One that is gone is no error.
func delLink(index int) error {
	err := netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %d: %w", index, err)
	}
	return nil
}
