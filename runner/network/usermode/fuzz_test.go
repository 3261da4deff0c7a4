package usermode

import (
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"kiln.build/runner/network/dns"
)

// newLoose is an endpoint without a container: what it sends is lost.
func newLoose(t testing.TB) *Endpoint {
	t.Helper()
	if noNetwork != "" {
		t.Skip(noNetwork) // it would connect to machines of the real network
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(pair[1])
	c := Config{
		Gateway: netip.MustParsePrefix("172.30.0.1/16"), IP: mustAddr("172.30.0.2"), Interface: "eth0", MTU: 1500,
		Resolver: &dns.Server{Sealed: func() bool { return true }},
	}
	c.MAC = hardwareAddr(c.IP)
	e := &Endpoint{IP: c.IP, Gateway: c.Gateway.Addr(), config: c, ready: make(chan struct{}), limits: newLimits()}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if e.ns, err = os.Open("/proc/self/ns/net"); err != nil {
		t.Fatal(err)
	}
	if e.link, err = newLink(os.NewFile(uintptr(pair[0]), "loose"), c, nil); err != nil {
		t.Fatal(err)
	}
	e.stack = newStack(e)
	close(e.ready)
	t.Cleanup(func() { e.Close() })
	return e
}

// FuzzReceived feeds packets as a container may send them.
func FuzzReceived(f *testing.F) {
	own, outside := netip.MustParseAddrPort("172.30.0.2:4711"), netip.MustParseAddrPort(machineIP+":9")
	syn := synPacket(own, outside)
	f.Add(syn)
	f.Add(udpPacket(own, outside, "text"))
	f.Add(udpPacket(own, netip.MustParseAddrPort("172.30.0.1:53"), "text"))
	f.Add(ipPacket(own.Addr(), outside.Addr(), unix.IPPROTO_ICMP, []byte{8, 0, 0, 0, 0, 1, 0, 1}))
	f.Add(ipPacket(own.Addr(), outside.Addr(), unix.IPPROTO_ICMP, append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, syn...)))
	f.Add(syn[:len(syn)-1])
	fragment := append([]byte(nil), syn...)
	fragment[6] |= 0x20 // more fragments
	f.Add(fragment)
	e := newLoose(f)
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) > 1<<16-1 {
			return
		}
		for _, protocol := range []uint16{etherIPv4, etherARP} {
			frame := make([]byte, headSize, headSize+len(packet))
			binary.BigEndian.PutUint16(frame[headSize-2:], protocol)
			e.link.received(append(frame, packet...))
			if len(packet) >= 20 { // as one that is not dropped at once
				frame = append(frame[:headSize], packet...)
				copy(frame[headSize+12:], e.link.own[:])
				sum(frame[headSize:])
				e.link.received(frame)
			}
		}
		if len(e.limits.flows) > maxFlows || len(e.limits.streams) > maxStreams {
			t.Error("more is under way than may be")
		}
	})
}

// sum sets the checksum of an IPv4 header, if it is one.
func sum(packet []byte) {
	n := int(packet[0]&15) * 4
	if n < 20 || n > len(packet) {
		return
	}
	packet[10], packet[11] = 0, 0
	var s uint32
	for i := 0; i < n; i += 2 {
		s += uint32(binary.BigEndian.Uint16(packet[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	binary.BigEndian.PutUint16(packet[10:], ^uint16(s))
}
