package usermode

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// What a container may have under way at one time. Each takes a descriptor
// and memory of this process, which is not in the container's control group.
const (
	maxStreams    = 2048 // TCP connections, both ways
	maxConnecting = 256  // of these that nobody has answered yet
	maxFlows      = 1024 // UDP, by source and destination
	maxEchoes     = 64   // echo requests without an answer
	// Buffers of a TCP connection in the stack: of this size at first, and
	// at most.
	streamBuffer    = 256 << 10
	streamBufferMax = 512 << 10
)

// nic is the number of the stack's only interface.
const nic = 1

// limits counts what is under way: a token for each.
type limits struct {
	streams, flows, echoes chan struct{}

	// A flow that was never answered is forgotten sooner than one that was,
	// as by the kernel's connection tracking. Two minutes are what RFC 4787
	// asks for.
	idleUnanswered, idleAnswered time.Duration
}

func newLimits() limits {
	return limits{
		make(chan struct{}, maxStreams), make(chan struct{}, maxFlows), make(chan struct{}, maxEchoes),
		30 * time.Second, 2 * time.Minute,
	}
}

// take takes a token, if there is one. It is given back by receiving.
func take(tokens chan struct{}) bool {
	select {
	case tokens <- struct{}{}:
		return true
	default:
		return false
	}
}

// silence keeps the stack from writing to standard error what it thinks of
// packets: a container decides what these are.
var silence = sync.OnceFunc(func() {
	log.SetLevel(log.Warning) // of the first target, which some loggers keep
	log.SetTarget(&log.MultiEmitter{})
})

// newStack makes the stack, whose interface has all addresses but the
// container's: what the container sends to any of them is handed to e.
func newStack(e *Endpoint) *stack.Stack {
	silence()
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	// None of these fails for a stack and an interface that have just been
	// made so.
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	// RACK takes late acknowledgements for losses, of which there are none on
	// the link, and sends again.
	recovery := tcpip.TCPRecovery(0)
	// What has ended is forgotten: nothing is late on the link, and the stack
	// would ignore a new connection from the same port.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(time.Millisecond)
	for _, o := range []tcpip.SettableTransportProtocolOption{
		&sack, &moderate, &recovery, &timeWait,
		&tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: streamBuffer, Max: streamBufferMax},
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: streamBuffer, Max: streamBufferMax},
	} {
		must(s.SetTransportProtocolOption(tcp.ProtocolNumber, o))
	}
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, e.handleTCP(s))
	s.SetTransportProtocolHandler(udp.ProtocolNumber, e.handleUDP(s))
	s.SetTransportProtocolHandler(icmp.ProtocolNumber4, e.handleICMP)
	must(s.CreateNIC(nic, e.link))
	must(s.SetPromiscuousMode(nic, true)) // takes packets for any address
	must(s.SetSpoofing(nic, true))        // and sends from any
	must(s.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: address(e.Gateway), PrefixLen: e.config.Gateway.Bits()},
	}, stack.AddressProperties{}))
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	return s
}

func must(err tcpip.Error) {
	if err != nil {
		panic("usermode: " + err.String())
	}
}

// serveDNS answers at port 53 of the gateway until the endpoint is closed. The
// port is taken when it returns: no query goes elsewhere.
func (e *Endpoint) serveDNS() {
	at := tcpip.FullAddress{NIC: nic, Addr: address(e.Gateway), Port: 53}
	packets, err := gonet.DialUDP(e.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		panic("usermode: " + err.Error()) // the port is free in a new stack
	}
	streams, err := listenTCP(e.stack, at)
	if err != nil {
		panic("usermode: " + err.Error())
	}
	e.wg.Go(func() {
		_ = e.config.Resolver.Serve(e.ctx, packets, listener{streams}) // ends with the endpoint
	})
}

// listenTCP is gonet.ListenTCP with a short queue: who fills it with SYNs shall
// not keep the stack busy.
func listenTCP(s *stack.Stack, at tcpip.FullAddress) (*gonet.TCPListener, error) {
	var wq waiter.Queue
	ep, err := s.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if err != nil {
		return nil, errors.New(err.String())
	}
	if err = ep.Bind(at); err == nil {
		err = ep.Listen(32)
	}
	if err != nil {
		ep.Close()
		return nil, errors.New(err.String())
	}
	return gonet.NewTCPListener(s, &wq, ep), nil
}

// listener is a gonet listener whose Close wakes Accept up.
type listener struct{ *gonet.TCPListener }

func (l listener) Close() error {
	l.Shutdown()
	return l.TCPListener.Close()
}

// target is the container as where published ports lead.
type target struct{ e *Endpoint }

// Forward implements [network.Target].
func (t target) Forward(ctx context.Context, client *net.TCPConn, port int) {
	t.e.publishTCP(ctx, client, port)
}

// DialUDP implements [network.Target].
func (t target) DialUDP(port int) (net.Conn, error) {
	<-t.e.ready
	from := tcpip.FullAddress{NIC: nic, Addr: address(t.e.Gateway)}
	to := tcpip.FullAddress{NIC: nic, Addr: address(t.e.IP), Port: uint16(port)}
	return gonet.DialUDP(t.e.stack, &from, &to, ipv4.ProtocolNumber)
}

func address(a netip.Addr) tcpip.Address { return tcpip.AddrFrom4(a.As4()) }

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(a.As4()), port)
}
