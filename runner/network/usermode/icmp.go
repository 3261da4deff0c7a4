package usermode

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// echoWait is for how long the answer to an echo request may take.
const echoWait = 10 * time.Second

const (
	echoReply       = 0
	destUnreachable = 3
	// Codes of it.
	protocolUnreachable = 2
	portUnreachable     = 3
)

// handleICMP takes ICMP messages to other addresses than the gateway's: echo
// requests are passed on, and for the rest there is nobody.
func (e *Endpoint) handleICMP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	message := append([]byte(nil), pkt.TransportHeader().Slice()...)
	message = append(message, pkt.Data().AsRange().ToSlice()...)
	ip := header.IPv4(pkt.NetworkHeader().Slice())
	dst := netip.AddrFrom4(ip.DestinationAddress().As4())
	if dst == e.Gateway {
		return false // the stack answers for itself
	}
	if len(message) < header.ICMPv4MinimumSize || header.ICMPv4(message).Type() != header.ICMPv4Echo {
		return true
	}
	quote := quoted(ip, message)
	to, err := e.destination(dst)
	if err == nil && !take(e.limits.echoes) {
		return true // lost
	}
	if err != nil {
		e.fail(quote, err)
		return true
	}
	e.wg.Go(func() {
		defer func() { <-e.limits.echoes }()
		reply, err := e.echo(to, message)
		if err != nil {
			e.fail(quote, err)
			return
		}
		e.link.writeIP(icmpPacket(dst, e.IP, reply))
	})
	return true
}

// echo sends an echo request from this machine and returns the answer, with
// the identifier of the request. The kernel lets a caller do so whose group
// is in net.ipv4.ping_group_range, with an identifier of its own.
func (e *Endpoint) echo(to netip.Addr, request []byte) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "echo")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := e.onClose(func() { c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(echoWait))
	if _, err := c.Write(request); err != nil {
		return nil, err
	}
	reply := make([]byte, len(request)+64)
	for {
		n, err := c.Read(reply)
		if err != nil {
			return nil, err
		}
		if n < header.ICMPv4MinimumSize || reply[0] != echoReply || string(reply[6:8]) != string(request[6:8]) {
			continue // of another sequence number
		}
		copy(reply[4:6], request[4:6])
		return reply[:n], nil
	}
}

// quoted is what an ICMP error says of the packet that it is about: its
// header and the beginning of its payload.
func quoted(ip header.IPv4, payload []byte) []byte {
	q := append([]byte(nil), ip[:ip.HeaderLength()]...)
	return append(q, payload[:min(8, len(payload))]...)
}

// quotedUDP makes up what an ICMP error says of a packet that is not kept.
func quotedUDP(from, to netip.AddrPort) []byte {
	q := make([]byte, header.IPv4MinimumSize+header.UDPMinimumSize)
	header.IPv4(q).Encode(&header.IPv4Fields{
		TotalLength: uint16(len(q)), TTL: 64, Protocol: unix.IPPROTO_UDP,
		SrcAddr: address(from.Addr()), DstAddr: address(to.Addr()),
	})
	header.IPv4(q).SetChecksum(^header.IPv4(q).CalculateChecksum())
	header.UDP(q[header.IPv4MinimumSize:]).Encode(&header.UDPFields{
		SrcPort: from.Port(), DstPort: to.Port(), Length: header.UDPMinimumSize,
	})
	return q
}

// fail tells the container by ICMP what became of a packet, if there is
// something to tell.
func (e *Endpoint) fail(quote []byte, err error) {
	if code, ok := unreachable(err); ok {
		e.link.unreachable(quote, code)
	}
}

// unreachable sends the container an ICMP "destination unreachable", from the
// gateway as the nearest router.
func (l *link) unreachable(quote []byte, code byte) {
	m := make([]byte, header.ICMPv4MinimumSize, header.ICMPv4MinimumSize+len(quote))
	m[0], m[1] = destUnreachable, code
	l.writeIP(icmpPacket(l.gatewayIP, l.ip, append(m, quote...)))
}

// unknown answers a packet of a protocol that the stack has not.
func (l *link) unknown(packet []byte) {
	ip := header.IPv4(packet)
	if ip.IsValid(len(packet)) && ip.FragmentOffset() == 0 && routed(netip.AddrFrom4(ip.DestinationAddress().As4())) {
		l.unreachable(quoted(ip, ip.Payload()), protocolUnreachable)
	}
}

// icmpPacket makes a packet of an ICMP message, whose checksum it sets.
func icmpPacket(from, to netip.Addr, message []byte) []byte {
	b := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(message))
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + len(message)), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber),
		SrcAddr: address(from), DstAddr: address(to),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	binary.BigEndian.PutUint16(message[2:], 0)
	binary.BigEndian.PutUint16(message[2:], ^checksum.Checksum(message, 0))
	return append(b, message...)
}
