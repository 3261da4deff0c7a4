package usermode

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// connectTimeout is for how long one attempt to connect outside lasts. The
	// container's kernel sends its SYN again for about two minutes; each time
	// a new attempt begins.
	connectTimeout = 20 * time.Second
	// publishTimeout bounds the wait for a container that does not answer.
	publishTimeout = 10 * time.Second
)

// dialer connects outside. The container's own probes of a silent peer end in
// the stack, so that the peer has to be probed from here.
var dialer = net.Dialer{
	Timeout:         connectTimeout,
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 8},
}

// syns are the connections that the container has asked for and has no answer
// to yet, with what an ICMP error has to quote of each.
type syns struct {
	mu     sync.Mutex
	quotes map[stack.TransportEndpointID][]byte
}

// add notes a SYN, unless it is one that was sent again, or one too many.
func (s *syns) add(id stack.TransportEndpointID, quote []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quotes == nil {
		s.quotes = map[stack.TransportEndpointID][]byte{}
	}
	if s.quotes[id] != nil || len(s.quotes) >= maxConnecting {
		return false
	}
	s.quotes[id] = quote
	return true
}

func (s *syns) quote(id stack.TransportEndpointID) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.quotes[id]
}

func (s *syns) remove(id stack.TransportEndpointID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.quotes, id)
}

// handleTCP returns the handler of segments that belong to no connection. All
// but SYNs are left to the stack, which answers with a reset. It is called by
// the link's goroutine.
func (e *Endpoint) handleTCP(s *stack.Stack) func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
	forwarder := tcp.NewForwarder(s, streamBuffer, maxConnecting+1, func(r *tcp.ForwarderRequest) {
		defer e.wg.Done()
		defer e.syns.remove(r.ID())
		e.connect(r)
	})
	return func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		h := header.TCP(pkt.TransportHeader().Slice())
		if len(h) < header.TCPMinimumSize || h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
			return false
		}
		// What is not answered is sent again.
		if !e.syns.add(id, quoted(pkt.NetworkHeader().Slice(), h)) {
			return true
		}
		e.wg.Add(1)
		if !forwarder.HandlePacket(id, pkt) {
			e.wg.Done()
			e.syns.remove(id)
			return false
		}
		return true
	}
}

// connect answers a SYN by what comes of connecting outside, and passes the
// connection on.
func (e *Endpoint) connect(r *tcp.ForwarderRequest) {
	id := r.ID()
	out, err := e.dial(addrPort(id.LocalAddress, id.LocalPort))
	if err != nil {
		var n net.Error
		if code, ok := unreachable(err); ok {
			e.link.unreachable(e.syns.quote(id), code)
			r.Complete(false)
		} else {
			r.Complete(!errors.As(err, &n) || !n.Timeout()) // a reset, or silence
		}
		return
	}
	defer func() { <-e.limits.streams }()
	defer out.Close()
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(false)
	if terr != nil {
		reset(out)
		return
	}
	// From here on it is no longer one without an answer.
	e.syns.remove(id)
	e.join(e.ctx, out, &stream{ep, &wq})
}

// dial connects outside. With the connection comes a token of the limit.
func (e *Endpoint) dial(dst netip.AddrPort) (*net.TCPConn, error) {
	to, err := e.destination(dst.Addr())
	if err != nil {
		return nil, err
	}
	if !take(e.limits.streams) {
		return nil, errors.New("too many connections")
	}
	c, err := dialer.DialContext(e.ctx, "tcp4", netip.AddrPortFrom(to, dst.Port()).String())
	if err != nil {
		<-e.limits.streams
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// publishTCP connects a client of a published port with the container.
func (e *Endpoint) publishTCP(ctx context.Context, client *net.TCPConn, port int) {
	<-e.ready
	if !take(e.limits.streams) {
		reset(client)
		return
	}
	defer func() { <-e.limits.streams }()
	defer client.Close()
	s, err := e.dialContainer(ctx, port)
	if err != nil {
		reset(client)
		return
	}
	e.join(ctx, client, s)
}

// dialContainer connects to a port of the container from the gateway.
func (e *Endpoint) dialContainer(ctx context.Context, port int) (*stream, error) {
	var wq waiter.Queue
	ep, terr := e.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if terr != nil {
		return nil, errors.New(terr.String())
	}
	entry, done := waiter.NewChannelEntry(waiter.WritableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	if terr = ep.Bind(tcpip.FullAddress{NIC: nic, Addr: address(e.Gateway)}); terr == nil {
		terr = ep.Connect(tcpip.FullAddress{NIC: nic, Addr: address(e.IP), Port: uint16(port)})
	}
	if _, ok := terr.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-done:
			terr = ep.LastError()
		case <-ctx.Done():
			terr = &tcpip.ErrTimeout{}
		case <-e.ctx.Done():
			terr = &tcpip.ErrAborted{}
		}
	}
	if terr != nil {
		ep.Close()
		return nil, errors.New(terr.String())
	}
	return &stream{ep, &wq}, nil
}
