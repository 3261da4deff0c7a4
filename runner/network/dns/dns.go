// Package dns answers the DNS queries of containers: names of containers from
// a function, and everything else by asking the machine's nameservers.
//
// A [Server] is the whole of it. It is handed sockets by [Server.Serve],
// wherever these are from (the kernel, another network namespace, a network
// stack in this process), or single messages by [Server.Answer]. It is no
// recursive resolver and keeps no cache; search domains are the client's.
package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxQuery is above any query of a real client; longer ones are cut, do
	// not parse then, and are refused.
	maxQuery = 4096
	// maxPending bounds the queries that are with nameservers at one time.
	maxPending = 128
	// maxStreams bounds the TCP connections of clients.
	maxStreams = 32
	// streamIdle is for how long a TCP client may be silent (RFC 7766, 6.2.3:
	// "on the order of a few seconds").
	streamIdle = 10 * time.Second
	// acceptPause is the wait after a failure to accept or to read.
	acceptPause = 50 * time.Millisecond
)

// Server answers queries. Its fields are not to be changed once it is used.
// The zero value forwards all queries to the machine's nameservers. It is safe
// for concurrent use.
type Server struct {
	// Lookup returns the addresses of a name, which is in lower case and has
	// no dot at its end, and whether it is known. Of a known name there is
	// nothing but its addresses: a query for another type, or for IPv6 where
	// it has none, gets an empty answer. It is asked for each query and may
	// be called concurrently. Nil knows no names.
	Lookup func(name string) (addrs []netip.Addr, known bool)
	// Reverse returns the name of an address, if known.
	Reverse func(addr netip.Addr) (name string, known bool)
	// Upstream are the nameservers that are asked for other names. If there
	// are none they are read from ResolvConf, anew whenever it changes.
	Upstream []netip.AddrPort
	// ResolvConf is the file that names nameservers; "" is /etc/resolv.conf.
	ResolvConf string
	// Sealed tells, for each query, whether nameservers must not be asked:
	// names can carry anything out. Nil is never.
	Sealed func() bool
	// Timeout is the wait for an answer of one nameserver; zero is two
	// seconds. Each is asked twice.
	Timeout time.Duration

	once    sync.Once
	pending chan struct{} // a token for each forwarded query
	conf    resolvConf
}

func (s *Server) init() {
	s.once.Do(func() { s.pending = make(chan struct{}, maxPending) })
}

// Serve answers the queries that come over packets and streams, of which one
// may be nil, until ctx is done or both are closed. It closes both, and
// returns when all that it started has ended; the error is that of a socket
// which failed.
func (s *Server) Serve(ctx context.Context, packets net.PacketConn, streams net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var errPackets, errStreams error
	if packets != nil {
		stop := context.AfterFunc(ctx, func() { packets.Close() })
		defer stop()
		wg.Go(func() {
			defer packets.Close()
			errPackets = s.servePackets(ctx, packets)
		})
	}
	if streams != nil {
		stop := context.AfterFunc(ctx, func() { streams.Close() })
		defer stop()
		wg.Go(func() {
			defer streams.Close()
			errStreams = s.serveStreams(ctx, streams)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(errPackets, errStreams)
}

func (s *Server) servePackets(ctx context.Context, c net.PacketConn) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	s.init()
	buf := make([]byte, maxQuery)
	for {
		n, from, err := c.ReadFrom(buf)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			var passing net.Error
			if !errors.As(err, &passing) {
				return err
			}
			// An ICMP error that answers what was sent to another client.
			if sleep(ctx, time.Millisecond) != nil {
				return nil
			}
			continue
		}
		answer, forward := s.local(buf[:n], false)
		if !forward {
			if answer != nil {
				_, _ = c.WriteTo(answer, from) // an answer that is lost is asked for again
			}
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		if !s.begin() {
			_, _ = c.WriteTo(failure(query), from)
			continue
		}
		wg.Go(func() {
			defer s.end()
			if a := s.forward(ctx, query, false); ctx.Err() == nil {
				_, _ = c.WriteTo(a, from)
			}
		})
	}
}

func (s *Server) serveStreams(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	places := make(chan struct{}, maxStreams)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
			if c != nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			var passing net.Error
			if !errors.As(err, &passing) {
				return err
			}
			if sleep(ctx, acceptPause) != nil { // too many open files, say
				return nil
			}
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-places }()
			s.serveStream(ctx, c)
		})
	}
}

// serveStream answers the queries of one TCP client, one after the other.
func (s *Server) serveStream(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	for {
		_ = c.SetDeadline(time.Now().Add(streamIdle))
		query, err := readMessage(c, maxQuery)
		if err != nil {
			return
		}
		answer := s.Answer(ctx, query, true)
		_ = c.SetDeadline(time.Now().Add(streamIdle))
		if answer == nil || writeMessage(c, answer) != nil {
			return
		}
	}
}

// Answer returns the answer to one query, nil if it deserves none. Stream
// tells that it came over TCP, where an answer may have any length.
func (s *Server) Answer(ctx context.Context, query []byte, stream bool) []byte {
	s.init()
	answer, forward := s.local(query, stream)
	if !forward {
		return answer
	}
	if !s.begin() {
		return failure(query)
	}
	defer s.end()
	return s.forward(ctx, query, stream)
}

// begin takes a place among the forwarded queries, if there is one.
func (s *Server) begin() bool {
	select {
	case s.pending <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Server) end() { <-s.pending }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// readMessage reads a message in TCP's form: a length in two bytes before it.
func readMessage(r io.Reader, limit int) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > limit {
		return nil, errors.New("message is too long")
	}
	m := make([]byte, n)
	_, err := io.ReadFull(r, m)
	return m, err
}

func writeMessage(w io.Writer, m []byte) error {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(m)), uint16(len(m)))
	_, err := w.Write(append(b, m...))
	return err
}
