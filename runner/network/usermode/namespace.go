package usermode

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// settleTries is for how many milliseconds an interface may take to
	// activate.
	settleTries = 100
)

// far is the name of the other end of the container's interface, the one
// whose packets are this process's: kiln0 for eth0.
func far(inside string) string { return "kiln" + strings.TrimPrefix(inside, "eth") }

// addInterface makes the interface in a network namespace and returns a
// packet socket on its far end.
func addInterface(ns *os.File, c Config) (*os.File, error) {
	var socket *os.File
	err := within(ns, func() (err error) {
		socket, err = addPair(c)
		return err
	})
	return socket, err
}

// within calls f on a thread that is in a network namespace. A caller that is
// not root of the machine can enter that, but not come back to the machine's
// own. So the thread ends with f: a goroutine that ends while it is locked to
// its thread takes that along.
//
// Two kinds of threads may not end so: the first one, which stands for the
// process in /proc and does not end at all, and those that have children,
// which may have asked to be killed when their parent thread ends
// (PR_SET_PDEATHSIG). Such a one is kept occupied while another is taken.
func within(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread calls f on a thread that ends with it.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() || hasChildren() {
			result <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		result <- f() // and the thread ends, as it is locked
	}()
	return <-result
}

// Probe reports why this machine's containers cannot have such a network, nil
// if they can. It makes one and lets it go.
func Probe() error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		c := Config{Gateway: netip.MustParsePrefix("10.0.0.1/24"), IP: netip.MustParseAddr("10.0.0.2"), Interface: "eth0", MTU: 1500}
		c.MAC = hardwareAddr(c.IP)
		socket, err := addPair(c)
		if err != nil {
			return err
		}
		return socket.Close()
	})
}

// hasChildren reports whether a process was started by this thread. Where the
// kernel does not tell (CONFIG_PROC_CHILDREN) it could be any thread.
func hasChildren() bool {
	list, err := os.ReadFile("/proc/thread-self/children")
	return err == nil && len(list) > 0
}

// addPair makes the veth pair in the thread's network namespace.
func addPair(c Config) (*os.File, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in its namespace: %w", err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = c.Interface, c.MTU, c.MAC
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1 // else one for each processor, which takes time
	veth := netlink.NewVeth(attrs)
	veth.PeerName = far(c.Interface)
	veth.PeerNumTxQueues, veth.PeerNumRxQueues = 1, 1
	if err := h.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("add %s: %w", c.Interface, err)
	}
	other, err := h.LinkByName(veth.PeerName)
	if err != nil {
		return nil, fmt.Errorf("find the far end of %s: %w", c.Interface, err)
	}
	socket, err := packetSocket(other.Attrs().Index)
	if err != nil {
		return nil, fmt.Errorf("open the far end of %s: %w", c.Interface, err)
	}
	if err := configure(h, c, veth, other); err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	return socket, nil
}

// configure gives the container's end its address and route, and returns when
// both ends pass packets. On the far end the namespace has no business: it
// neither answers ARP there nor has a hardware address that is written to.
func configure(h *netlink.Handle, c Config, near, other netlink.Link) error {
	addr := netip.PrefixFrom(c.IP, c.Gateway.Bits())
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"switch off ARP on its far end", func() error { return h.LinkSetARPOff(other) }},
		{"give it the address " + addr.String(), func() error {
			return h.AddrAdd(near, &netlink.Addr{IPNet: ipNet(addr)})
		}},
		{"switch off IPv6", func() error { return errors.Join(noIPv6(near), noIPv6(other)) }},
		{"set it up", func() error { return errors.Join(h.LinkSetUp(other), h.LinkSetUp(near)) }},
		{"give it a default route", func() error {
			if c.NoRoute || c.Internal {
				return nil
			}
			return h.RouteAdd(defaultRoute(c, near))
		}},
		{"wait for it", func() error { return errors.Join(settle(h, other), settle(h, near)) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("set up %s: %s: %w", c.Interface, step.what, err)
		}
	}
	return nil
}

func defaultRoute(c Config, link netlink.Link) *netlink.Route {
	return &netlink.Route{LinkIndex: link.Attrs().Index, Gw: c.Gateway.Addr().AsSlice()}
}

// lead has the default route of the thread's namespace lead over an interface.
func lead(c Config) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(c.Interface)
	if err != nil {
		return err
	}
	return h.RouteReplace(defaultRoute(c, link))
}

// delInterface takes an interface, and with it its far end, out of the
// thread's namespace.
func delInterface(name string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.LinkDel(link)
}

// noIPv6 keeps the kernel from sending what nobody answers. The setting is
// that of the thread's network namespace; it is not there without IPv6.
func noIPv6(link netlink.Link) error {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+link.Attrs().Name+"/disable_ipv6", []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// settle waits until an interface that is up passes packets, see
// network.settle: asking for its state completes the activation.
func settle(h *netlink.Handle, link netlink.Link) error {
	for range settleTries {
		l, err := h.LinkByIndex(link.Attrs().Index)
		if err != nil || l.Attrs().OperState == netlink.OperUp {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// packetSocket opens a socket for all packets of an interface, each with a
// header that says what offloading is still to be done (PACKET_VNET_HDR):
// without it the kernel would cut and sum each packet, and drop large ones.
func packetSocket(index int) (*os.File, error) {
	// No protocol at first: else it would get the packets of all interfaces.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "packet socket")
	err = errors.Join(
		os.NewSyscallError("setsockopt PACKET_VNET_HDR", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)),
		os.NewSyscallError("setsockopt PACKET_IGNORE_OUTGOING", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)),
		os.NewSyscallError("setsockopt SO_RCVBUF", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)), // cut to net.core.rmem_max
	)
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index}))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// hardwareAddr derives a hardware address from an IPv4 address.
func hardwareAddr(ip netip.Addr) net.HardwareAddr {
	a := ip.As4()
	return net.HardwareAddr{0x02, 0x6b, a[0], a[1], a[2], a[3]} // 02: locally administered
}
