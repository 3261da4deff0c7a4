package usermode

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// raw is a socket inside of a box that sends any packet.
func raw(t *testing.T, b *box) (send func(packet []byte)) {
	t.Helper()
	var f *os.File
	to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Halen: 6, Addr: [8]byte{2, 0x6b, 172, 30, 0, 1}}
	b.do(t, func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f, to.Ifindex = os.NewFile(uintptr(fd), "raw"), i.Index
		return nil
	})
	t.Cleanup(func() { f.Close() })
	return func(packet []byte) {
		if err := unix.Sendto(int(f.Fd()), packet, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Fatal(err)
		}
	}
}

func ipPacket(from, to netip.Addr, protocol uint8, payload []byte) []byte {
	b := make([]byte, header.IPv4MinimumSize)
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(b) + len(payload)), TTL: 64, Protocol: protocol, SrcAddr: address(from), DstAddr: address(to)})
	ip.SetChecksum(^ip.CalculateChecksum())
	return append(b, payload...)
}

func udpPacket(from, to netip.AddrPort, text string) []byte {
	b := make([]byte, header.UDPMinimumSize)
	header.UDP(b).Encode(&header.UDPFields{SrcPort: from.Port(), DstPort: to.Port(), Length: uint16(len(b) + len(text))})
	return ipPacket(from.Addr(), to.Addr(), unix.IPPROTO_UDP, append(b, text...))
}

func synPacket(from, to netip.AddrPort) []byte {
	b := make([]byte, header.TCPMinimumSize)
	h := header.TCP(b)
	h.Encode(&header.TCPFields{SrcPort: from.Port(), DstPort: to.Port(), SeqNum: 7, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 65535})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, address(from.Addr()), address(to.Addr()), uint16(len(b)))
	h.SetChecksum(^checksum.Checksum(b, sum))
	return ipPacket(from.Addr(), to.Addr(), unix.IPPROTO_TCP, b)
}

// A container that may send any packet (CAP_NET_RAW is docker's default)
// reaches nothing by it that it does not reach otherwise.
func TestForgedPackets(t *testing.T) {
	b, e := start(t, Config{})
	server, err := net.ListenPacket("udp4", "0.0.0.0:0") // on loopback too
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	send := raw(t, b)
	at := uint16(port(server.LocalAddr()))
	own := netip.AddrPortFrom(e.IP, 4711)
	for _, p := range []struct{ from, to string }{
		{e.Gateway.String(), machineIP}, {"172.30.0.99", machineIP}, {"127.0.0.1", machineIP}, {machineIP, machineIP}, {"0.0.0.0", machineIP},
		{e.IP.String(), "127.0.0.1"}, {e.IP.String(), "127.1.2.3"}, {e.IP.String(), "0.0.0.0"}, {e.IP.String(), "0.0.0.1"},
		{e.IP.String(), "192.0.2.255"}, {e.IP.String(), "255.255.255.255"},
	} {
		from, to := netip.MustParseAddr(p.from), netip.MustParseAddr(p.to)
		send(udpPacket(netip.AddrPortFrom(from, 4711), netip.AddrPortFrom(to, at), "forged from "+p.from+" to "+p.to))
		send(ipPacket(from, to, 4, udpPacket(own, netip.AddrPortFrom(to, at), "in a tunnel"))) // IPIP
	}
	// Nonsense of all lengths.
	for n := range 64 {
		send(make([]byte, n+1))
		send(ipPacket(e.IP, netip.MustParseAddr(machineIP), uint8(n), make([]byte, n)))
	}
	send(udpPacket(own, netip.MustParseAddrPort(netip.AddrPortFrom(netip.MustParseAddr(machineIP), at).String()), "honest"))
	buf := make([]byte, 100)
	_ = server.SetReadDeadline(time.Now().Add(patience))
	n, from, err := server.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "honest" {
		t.Errorf("got %q from %v, %v", buf[:n], from, err)
	}
	if got := e.link.forged.Load(); got < 10 {
		t.Errorf("%d forged packets were noticed, want 10", got)
	}
}

// Floods are bounded, and over when they are.
func TestFlood(t *testing.T) {
	b, e := start(t, Config{})
	send := raw(t, b)
	silent := netip.MustParseAddr(silentIP)
	const many = 4000
	descriptors := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := descriptors()
	for i := range many {
		from := netip.AddrPortFrom(e.IP, uint16(20000+i))
		send(synPacket(from, netip.AddrPortFrom(silent, uint16(1+i%7))))
		send(udpPacket(from, netip.AddrPortFrom(silent, uint16(1+i%7)), "x"))
		send(synPacket(from, netip.AddrPortFrom(e.Gateway, 53)))
	}
	wait(t, "the flood to arrive", func() bool { return len(e.limits.flows) == maxFlows && len(e.limits.streams) == maxConnecting })
	if n := descriptors() - before; n > maxFlows+maxConnecting+16 {
		t.Errorf("%d descriptors", n)
	}
	// Names are still answered, and what is open goes on; the limits are this
	// container's alone.
	c, err := b.dial("udp4", e.Gateway.String()+":53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	query := []byte{0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}  // without a question
	wait(t, "an answer of the nameserver", func() bool { // the first queries may be lost in the flood
		_ = c.SetDeadline(time.Now().Add(50 * time.Millisecond))
		c.Write(query)
		_, err := io.ReadFull(c, make([]byte, len(query)))
		return err == nil
	})
	other, _ := start(t, Config{})
	at := serve(t, machineIP+":0", who)
	if got, err := call(other, machineIP+":"+at); got != machineIP || err != nil {
		t.Errorf("another container: got %q, %v", got, err)
	}
}

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

func netipPort(a netip.Addr, port int) netip.AddrPort { return netip.AddrPortFrom(a, uint16(port)) }
