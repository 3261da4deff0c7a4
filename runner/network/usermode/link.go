package usermode

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	vnetSize  = 10 // struct virtio_net_hdr of linux/virtio_net.h
	etherSize = 14
	headSize  = vnetSize + etherSize
	// maxFrame is the largest packet with its headers.
	maxFrame = headSize + 1<<16

	etherIPv4 = 0x0800
	etherARP  = 0x0806
)

// link is the far end of the container's interface, and the stack's only
// interface: it hands IPv4 packets on and answers ARP itself. There are two
// hosts on it, so the stack need not resolve hardware addresses.
type link struct {
	socket    *os.File
	conn      syscall.RawConn
	own       [4]byte    // the container's address
	ip        netip.Addr // the same
	subnet    netip.Prefix
	gatewayIP netip.Addr
	gateway   [6]byte // hardware address
	mtu       uint32
	out       [etherSize]byte // header of IPv4 frames to the container
	lease     *lease          // of the container's address among others; nil if it is alone
	peers     syscall.RawConn // the lease's socket
	stack     stack.NetworkDispatcher
	forged    atomic.Uint64 // counts packets that had another source address
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// newLink returns the link of a packet socket, which is the link's from then
// on, as is the lease, if it succeeds.
func newLink(socket *os.File, c Config, l *lease) (*link, error) {
	conn, err := socket.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use a packet socket: %w", err)
	}
	k := &link{socket: socket, conn: conn, own: c.IP.As4(), ip: c.IP, subnet: c.Gateway.Masked(), gatewayIP: c.Gateway.Addr(), mtu: uint32(c.MTU), lease: l}
	if l != nil {
		if k.peers, err = l.socket.SyscallConn(); err != nil {
			return nil, fmt.Errorf("use a network's socket: %w", err)
		}
	}
	copy(k.gateway[:], hardwareAddr(c.Gateway.Addr()))
	copy(k.out[:], c.MAC)
	copy(k.out[6:], k.gateway[:])
	binary.BigEndian.PutUint16(k.out[12:], etherIPv4)
	return k, nil
}

// run hands packets to the stack until the link is closed.
func (l *link) run() {
	frame := make([]byte, maxFrame)
	n := 0
	var errno error
	receive := func(fd uintptr) bool {
		for {
			n, errno = unix.Read(int(fd), frame)
			switch errno {
			case unix.EAGAIN:
				return false
			case unix.EINTR, unix.ENETDOWN: // the latter once, if the interface is set down
				continue
			}
			return true
		}
	}
	for {
		if l.conn.Read(receive) != nil {
			return // closed
		}
		if errno == nil { // else it is of a packet that cannot be described
			l.received(frame[:n])
		}
	}
}

// received takes one frame, with the header of PACKET_VNET_HDR before it.
// What is no packet of the container's own address goes no further: the stack
// would answer it, and connections outside have the caller's name.
func (l *link) received(frame []byte) {
	if len(frame) < headSize+header.IPv4MinimumSize {
		return
	}
	packet := frame[headSize:]
	switch binary.BigEndian.Uint16(frame[headSize-2:]) {
	case etherARP:
		l.arp(frame)
		return
	case etherIPv4:
	default:
		return
	}
	if !bytes.Equal(packet[12:16], l.own[:]) {
		l.forged.Add(1)
		return
	}
	if l.toPeer(frame) {
		return
	}
	switch packet[9] {
	case unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP:
	default:
		l.unknown(packet)
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
	l.stack.DeliverNetworkPacket(header.IPv4ProtocolNumber, pkt)
	pkt.DecRef()
}

// arp answers requests for all addresses of the subnet but the container's
// own, which it asks for itself to find out whether it is alone.
func (l *link) arp(frame []byte) {
	h := header.ARP(frame[headSize:])
	if len(h) < header.ARPSize || !h.IsValid() || h.Op() != header.ARPRequest {
		return
	}
	asked := netip.AddrFrom4([4]byte(h.ProtocolAddressTarget()))
	if !l.subnet.Contains(asked) || asked.As4() == l.own {
		return
	}
	answer := make([]byte, headSize+header.ARPSize)
	ether := answer[vnetSize:headSize]
	copy(ether, frame[vnetSize+6:][:6])
	copy(ether[6:], l.gateway[:])
	binary.BigEndian.PutUint16(ether[12:], etherARP)
	a := header.ARP(answer[headSize:])
	a.SetIPv4OverEthernet()
	a.SetOp(header.ARPReply)
	copy(a.HardwareAddressSender(), l.gateway[:])
	copy(a.ProtocolAddressSender(), h.ProtocolAddressTarget())
	copy(a.HardwareAddressTarget(), h.HardwareAddressSender())
	copy(a.ProtocolAddressTarget(), h.ProtocolAddressSender())
	_ = l.write([][]byte{answer}) // who asked asks again
}

// writeIP sends a packet that the stack did not make.
func (l *link) writeIP(packet []byte) {
	var vnet [vnetSize]byte
	_ = l.write([][]byte{vnet[:], l.out[:], packet}) // a packet that is lost
}

// write sends one frame. While the socket is full it waits.
func (l *link) write(parts [][]byte) error {
	var errno error
	err := l.conn.Write(func(fd uintptr) bool {
		for {
			_, errno = unix.Writev(int(fd), parts)
			if errno != unix.EINTR {
				return errno != unix.EAGAIN
			}
		}
	})
	return errors.Join(err, errno)
}

// WritePackets implements [stack.LinkWriter].
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	var vnet [vnetSize]byte
	parts := make([][]byte, 0, 8)
	n := 0
	for _, pkt := range list.AsSlice() {
		l.offload(&vnet, pkt)
		parts = append(append(parts[:0], vnet[:], l.out[:]), pkt.AsSlices()...)
		if err := l.write(parts); err != nil {
			if errors.Is(err, os.ErrClosed) {
				return n, &tcpip.ErrClosedForSend{}
			}
			return n, &tcpip.ErrNoBufferSpace{}
		}
		n++
	}
	return n, nil
}

// offload writes down what the kernel is to do to a packet that the stack
// made longer than the interface takes. Its fields are in the byte order of
// the machine.
func (l *link) offload(vnet *[vnetSize]byte, pkt *stack.PacketBuffer) {
	*vnet = [vnetSize]byte{}
	g := pkt.GSOOptions
	if g.Type == stack.GSONone {
		return
	}
	order := binary.NativeEndian
	order.PutUint16(vnet[2:], uint16(etherSize+pkt.HeaderSize())) // hdr_len
	if g.NeedsCsum {
		vnet[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
		order.PutUint16(vnet[6:], etherSize+g.L3HdrLen) // csum_start
		order.PutUint16(vnet[8:], g.CsumOffset)
	}
	if g.Type == stack.GSOTCPv4 && pkt.Data().Size() > int(g.MSS) {
		vnet[1] = unix.VIRTIO_NET_HDR_GSO_TCPV4
		order.PutUint16(vnet[4:], g.MSS) // gso_size
	}
}

// close ends the link and gives the lease back.
func (l *link) close() error { return errors.Join(l.socket.Close(), l.lease.release()) }

// GSOMaxSize implements [stack.GSOEndpoint].
func (l *link) GSOMaxSize() uint32 { return 1<<16 - 1 }

// SupportedGSO implements [stack.GSOEndpoint].
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// Capabilities implements [stack.LinkEndpoint]. What the container's kernel
// sends has no checksum yet, or a right one. What the stack sends has one
// unless it is to be cut: with CapabilityTXChecksumOffload connections stall.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Attach implements [stack.LinkEndpoint]; it is called before run.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d != nil {
		l.stack = d
	}
}

// The rest of [stack.LinkEndpoint]: the headers are the link's own.

func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) IsAttached() bool                        { return l.stack != nil }
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
