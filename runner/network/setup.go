package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// fallbackMTU is for hosts without a default route.
const fallbackMTU = 1500

// ready is what the bridge is like once it is there.
type ready struct {
	index   int
	mtu     int
	gateway netip.Prefix // the bridge's address within its subnet
}

// ensure makes what is missing of the bridge. When all is there it costs four
// netlink calls.
func (b *Bridge) ensure(ctx context.Context) (ready, error) {
	lock, err := b.lock(ctx)
	if err != nil {
		return ready{}, unavailable(err)
	}
	defer lock.Close()
	r, err := b.ensureLink()
	if errors.Is(err, ErrOverlap) {
		return ready{}, err
	}
	if err != nil {
		return ready{}, &UnavailableError{Err: err}
	}
	if err := b.record(r); err != nil {
		return ready{}, unavailable(err)
	}
	if err := b.ensureFirewall(); err != nil {
		return ready{}, &UnavailableError{Err: err}
	}
	if err := sysctl("net/ipv4/ip_forward", "1"); err != nil {
		return ready{}, &UnavailableError{Err: fmt.Errorf("switch on forwarding: %w", err)}
	}
	return r, nil
}

// ensureLink makes sure that the bridge exists, has an address and is up. The
// address is given before the bridge comes up, so one that is up is complete;
// but one that an interrupted process left behind is completed too.
func (b *Bridge) ensureLink() (ready, error) {
	link, err := netlink.LinkByName(b.name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		link, err = b.addLink()
	}
	if err != nil {
		return ready{}, fmt.Errorf("find bridge %s: %w", b.name, err)
	}
	if link.Type() != "bridge" {
		return ready{}, fmt.Errorf("interface %s is a %s, want a bridge", b.name, link.Type())
	}
	gateway, err := address(link)
	if err != nil {
		return ready{}, err
	}
	if !gateway.IsValid() {
		if gateway, err = b.chooseGateway(); err != nil {
			return ready{}, err
		}
		// The port of lowest address lends a bridge its own otherwise, and
		// each change of it would cut connections until ARP entries expire.
		if err := netlink.LinkSetHardwareAddr(link, hardwareAddr(gateway.Addr())); err != nil {
			return ready{}, fmt.Errorf("set hardware address of bridge %s: %w", b.name, err)
		}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(gateway)}); err != nil {
			return ready{}, fmt.Errorf("give bridge %s the address %s: %w", b.name, gateway, err)
		}
	}
	attrs := link.Attrs()
	if attrs.Flags&net.FlagUp == 0 {
		// Without IPv6 the host has no link-local address that containers
		// could reach its services by, past rules written for IPv4.
		err := sysctl("net/ipv6/conf/"+b.name+"/disable_ipv6", "1")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return ready{}, fmt.Errorf("switch off IPv6 on bridge %s: %w", b.name, err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return ready{}, fmt.Errorf("set bridge %s up: %w", b.name, err)
		}
	}
	return ready{index: attrs.Index, mtu: attrs.MTU, gateway: gateway}, nil
}

// addLink adds the bridge, with the MTU of the interface that leads outside.
func (b *Bridge) addLink() (netlink.Link, error) {
	mtu, err := b.plan.MTU, error(nil)
	if mtu == 0 {
		mtu, err = hostMTU()
	}
	if err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = b.name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("add bridge: %w", err)
	}
	// One given when a bridge is added is not kept: with its last port gone
	// the kernel goes back to 1500. One that is set afterwards is.
	if err := netlink.LinkSetMTU(bridge, mtu); err != nil {
		return nil, fmt.Errorf("set MTU of bridge: %w", err)
	}
	return netlink.LinkByName(b.name)
}

// address returns the first IPv4 address of an interface, or the zero Prefix.
func address(link netlink.Link) (netip.Prefix, error) {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	if len(addrs) == 0 {
		return netip.Prefix{}, nil
	}
	return prefix(addrs[0].IPNet), nil
}

// hostMTU returns the MTU of the interface of the preferred default route.
func hostMTU() (int, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_DST)
	if err != nil {
		return 0, fmt.Errorf("list default routes: %w", err)
	}
	best, index := 0, 0
	for _, r := range routes {
		i := r.LinkIndex
		if len(r.MultiPath) > 0 {
			i = r.MultiPath[0].LinkIndex
		}
		if i != 0 && (index == 0 || r.Priority < best) {
			best, index = r.Priority, i
		}
	}
	if index == 0 {
		return fallbackMTU, nil
	}
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return 0, fmt.Errorf("find interface of the default route: %w", err)
	}
	return link.Attrs().MTU, nil
}

// FreeSubnet returns the gateway's address within the first candidate subnet
// that no route or address of the host overlaps.
func FreeSubnet() (netip.Prefix, error) {
	used, err := usedSubnets()
	if err != nil {
		return netip.Prefix{}, err
	}
	return chooseSubnet(used)
}

// chooseSubnet is [FreeSubnet] for given prefixes in use.
func chooseSubnet(used []netip.Prefix) (netip.Prefix, error) {
	try := [][2]byte{{172, 30}, {172, 31}}
	for i := byte(89); i < 120; i++ {
		try = append(try, [2]byte{10, i})
	}
next:
	for _, c := range try {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{c[0], c[1], 0, 1}), 16)
		for _, u := range used {
			if u.Overlaps(p) {
				continue next
			}
		}
		return p, nil
	}
	return netip.Prefix{}, errors.New("no subnet is free: the host has routes to all of 172.30.0.0/15 and 10.89.0.0/16 to 10.119.0.0/16")
}

// usedSubnets lists the destinations of all routes, of all tables, and the
// addresses of interfaces, which have no routes while down. Default routes do
// not count, nor do their halves 0.0.0.0/1 and 128.0.0.0/1 that VPNs set.
func usedSubnets() ([]netip.Prefix, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var used []netip.Prefix
	for _, r := range routes {
		if r.Dst != nil {
			used = append(used, prefix(r.Dst))
		}
	}
	for _, a := range addrs {
		used = append(used, prefix(a.IPNet))
	}
	n := 0
	for _, p := range used {
		if p.IsValid() && p.Bits() > 1 {
			used[n] = p
			n++
		}
	}
	return used[:n], nil
}

// sysctl writes a kernel setting unless it has that value. The setting is that
// of the thread's network namespace.
func sysctl(name, value string) error {
	path := "/proc/sys/" + name
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(old)) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0)
}

func prefix(n *net.IPNet) netip.Prefix {
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// hardwareAddr derives the hardware address of an interface from its IPv4
// address, so that ARP entries stay right when an address has a new owner.
func hardwareAddr(ip netip.Addr) net.HardwareAddr {
	a := ip.As4()
	return net.HardwareAddr{0x02, 0x6b, a[0], a[1], a[2], a[3]} // 02: locally administered
}
