package usermode

import (
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// destination returns the address that a connection of the container to addr
// is to be made to. It is an errno if there is none: EHOSTUNREACH where a
// network would find no host, EACCES where it is not allowed.
func (e *Endpoint) destination(addr netip.Addr) (netip.Addr, error) {
	switch {
	case e.config.Internal:
		return addr, unix.ENETUNREACH
	case addr == e.Gateway && e.config.HostLoopback:
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	case addr == e.Gateway:
		if host := machine(); host.IsValid() {
			return host, nil
		}
		return addr, unix.ECONNREFUSED
	case e.config.Gateway.Masked().Contains(addr):
		return addr, unix.EHOSTUNREACH
	}
	if !routed(addr) {
		return addr, unix.EACCES
	}
	return addr, nil
}

// routed reports whether routers pass packets for an address on. A socket of
// this machine would reach more: its loopback, by 0.0.0.0 too, and hosts of
// its own links.
func routed(a netip.Addr) bool {
	first := a.As4()[0]
	return first != 0 && first < 224 && !a.IsLoopback() && !a.IsLinkLocalUnicast()
}

// machine returns the address by which this machine goes outside, as the
// gateway's: services that listen on all interfaces are there, those on
// 127.0.0.1 are not. It is not valid if there is none.
func machine() netip.Addr {
	// Connecting a UDP socket sends nothing; it makes the kernel choose a route.
	c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 9})
	if err == nil {
		defer c.Close()
		if a := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(); routed(a) {
			return a
		}
	}
	addrs, _ := net.InterfaceAddrs() // none, then
	for _, x := range addrs {
		if n, ok := x.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(n.IP); ok && a.Unmap().Is4() && routed(a.Unmap()) {
				return a.Unmap()
			}
		}
	}
	return netip.Addr{}
}

// unreachable returns the code of the ICMP message (type 3) by which a router
// would say what became of a packet outside, and whether there is one. Errors
// without one are those of this process, or silence outside.
func unreachable(err error) (code byte, ok bool) {
	for _, c := range []struct {
		err  error
		code byte
	}{
		{unix.ENETUNREACH, 0}, {unix.EHOSTUNREACH, 1}, {unix.EHOSTDOWN, 1},
		{unix.EACCES, 13}, {unix.EPERM, 13}, // by a firewall's word
	} {
		if errors.Is(err, c.err) {
			return c.code, true
		}
	}
	return 0, false
}
