package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// udpIdle is how long a client and the container may be silent before
	// the way back to the client is forgotten.
	udpIdle = 60 * time.Second
	// maxSessions bounds the sockets that forged source addresses can take.
	// Packets of further clients are dropped.
	maxSessions = 1024
	// maxPacket is above the largest UDP packet.
	maxPacket = 1 << 16
)

// udpProxy keeps a socket for each client, as its port is what tells the
// container's answers to different clients apart.
type udpProxy struct {
	listener *net.UDPConn
	target   Target
	port     int // of the target
	idle     time.Duration

	mu       sync.Mutex
	sessions map[sessionKey]*session
	wg       sync.WaitGroup // one for each session
}

// sessionKey tells sessions apart. A host has several addresses, and a client
// takes an answer only from the one it wrote to.
type sessionKey struct {
	client netip.AddrPort
	local  string // control message that makes local the source of an answer
}

// session is the packets of one client.
type session struct {
	conn net.Conn  // to the container
	last time.Time // guarded by udpProxy.mu
}

func (p *Proxy) listenUDP(ctx context.Context, port Port, to Target, idle time.Duration) error {
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", port.hostAddress())
	if err != nil {
		return err
	}
	listener := c.(*net.UDPConn)
	if err := askLocalAddress(listener); err != nil {
		listener.Close()
		return err
	}
	p.HostPort = listener.LocalAddr().(*net.UDPAddr).Port
	u := &udpProxy{listener: listener, target: to, port: port.ContainerPort, idle: idle, sessions: map[sessionKey]*session{}}
	p.closeAfter(ctx, listener)
	p.wg.Go(func() { u.serve(ctx) })
	return nil
}

// serve hands packets to the container until the listener is closed, then
// ends all sessions.
func (u *udpProxy) serve(ctx context.Context) {
	defer u.wg.Wait()
	defer u.closeSessions()
	packet, control := make([]byte, maxPacket), make([]byte, 128)
	for {
		n, nc, _, client, err := u.listener.ReadMsgUDPAddrPort(packet, control)
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		if err != nil {
			continue // an ICMP answer to an earlier packet of ours
		}
		s, err := u.session(sessionKey{client: client, local: sourceControl(control[:nc])})
		if err != nil || s == nil {
			continue
		}
		// A packet that cannot be sent is a packet lost, which UDP may do.
		_, _ = s.conn.Write(packet[:n])
	}
}

// session returns the session of a client, a new one if need be, or nil if
// there are too many.
func (u *udpProxy) session(k sessionKey) (*session, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s := u.sessions[k]; s != nil {
		s.last = time.Now()
		return s, nil
	}
	if len(u.sessions) >= maxSessions {
		return nil, nil
	}
	// Connecting a UDP socket sends nothing and does not block.
	conn, err := u.target.DialUDP(u.port)
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn, last: time.Now()}
	u.sessions[k] = s
	u.wg.Go(func() { u.answer(k, s) })
	return s, nil
}

// answer hands the container's packets to the client until the session is
// idle or closed.
func (u *udpProxy) answer(k sessionKey, s *session) {
	defer s.conn.Close()
	packet := make([]byte, maxPacket)
	for {
		wait, ok := u.remaining(k, s)
		if !ok {
			return
		}
		_ = s.conn.SetReadDeadline(time.Now().Add(wait))
		n, err := s.conn.Read(packet)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) { // the latter by a [Target]'s own
			return
		}
		if err != nil {
			continue // the deadline, or "refused" from a container not listening yet
		}
		u.touch(s)
		_, _, _ = u.listener.WriteMsgUDPAddrPort(packet[:n], []byte(k.local), k.client)
	}
}

// remaining returns for how long the session may stay silent yet. One that
// may not is taken out, so that the client's next packet makes a new one.
func (u *udpProxy) remaining(k sessionKey, s *session) (time.Duration, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	wait := u.idle - time.Since(s.last)
	if wait <= 0 {
		delete(u.sessions, k)
		return 0, false
	}
	return wait, true
}

func (u *udpProxy) touch(s *session) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s.last = time.Now()
}

func (u *udpProxy) closeSessions() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.sessions {
		s.conn.Close()
	}
}

// askLocalAddress makes the kernel tell with each packet which address of the
// host it came to.
func askLocalAddress(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		switch {
		case err != nil:
			set = err
		case domain == unix.AF_INET6:
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		default:
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	return errors.Join(err, set)
}

// sourceControl returns the control message to send with an answer to a packet
// that came with the given one: the same, as the kernel means it to be, less
// the interface index, which would force the answer out where the packet came
// in. Link-local addresses keep it, being nothing without. It is "" when the
// kernel did not tell.
func sourceControl(b []byte) string {
	msgs, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return ""
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			info := unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[4:8])}
			return string(unix.PktInfo4(&info))
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			info := unix.Inet6Pktinfo{Addr: [16]byte(m.Data[:16])}
			if netip.AddrFrom16(info.Addr).IsLinkLocalUnicast() {
				return string(b)
			}
			return string(unix.PktInfo6(&info))
		}
	}
	return ""
}
