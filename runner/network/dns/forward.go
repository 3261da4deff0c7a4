package dns

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"
)

const (
	// askTimeout is the wait for one nameserver, see [Server.Timeout].
	askTimeout = 2 * time.Second
	// rounds is how often each nameserver is asked: packets get lost.
	rounds = 2
)

var errMismatch = errors.New("the answer is to another question")

// forward asks the nameservers in turn. The answer is theirs byte for byte,
// so options and records that this package knows nothing of pass; if none
// answers it is SERVFAIL. A nameserver that itself fails or refuses is
// answered for by the next one, as in resolvers of the C libraries.
//
// A query goes the way it came. An answer that is cut (TC) makes the client
// ask again over TCP; if no nameserver takes TCP then UDP is tried for it.
func (s *Server) forward(ctx context.Context, query []byte, stream bool) []byte {
	if s.Sealed != nil && s.Sealed() {
		return failure(query)
	}
	servers := s.Upstream
	if len(servers) == 0 {
		path := s.ResolvConf
		if path == "" {
			path = "/etc/resolv.conf"
		}
		servers = s.conf.servers(path)
	}
	ways := []string{"udp"}
	if stream {
		ways = []string{"tcp", "udp"}
	}
	var poor []byte
	for _, way := range ways {
		for range rounds {
			unheard := false
			for _, server := range servers {
				answer, err := s.ask(ctx, way, server, query)
				if ctx.Err() != nil {
					return failure(query)
				}
				if err != nil {
					unheard = true
					continue
				}
				if code := answer[3] & 0xf; code == 2 || code == 4 || code == 5 { // SERVFAIL, NOTIMP, REFUSED
					poor = answer
					continue
				}
				return answer
			}
			if !unheard {
				break
			}
		}
		if poor != nil {
			return poor
		}
	}
	return failure(query)
}

// ask asks one nameserver, from a port and with an id that cannot be guessed:
// whoever can answer in its place could give the client any address.
func (s *Server) ask(ctx context.Context, way string, server netip.AddrPort, query []byte) ([]byte, error) {
	timeout := s.Timeout
	if timeout == 0 {
		timeout = askTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, way, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	asked := bytes.Clone(query)
	_, _ = rand.Read(asked[:2]) // never fails
	exchange := exchangePacket
	if way == "tcp" {
		exchange = exchangeStream
	}
	answer, err := exchange(c, asked)
	if err != nil {
		return nil, err
	}
	copy(answer[:2], query[:2])
	return answer, nil
}

func exchangeStream(c net.Conn, asked []byte) ([]byte, error) {
	if err := writeMessage(c, asked); err != nil {
		return nil, err
	}
	answer, err := readMessage(c, 1<<16-1)
	if err != nil {
		return nil, err
	}
	if !answers(answer, asked) {
		return nil, errMismatch
	}
	return answer, nil
}

func exchangePacket(c net.Conn, asked []byte) ([]byte, error) {
	if _, err := c.Write(asked); err != nil {
		return nil, err
	}
	q, _ := parseQuery(asked)
	buf := make([]byte, max(q.size, maxQuery))
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], asked) { // else forged, or late
			return buf[:n], nil
		}
	}
}

// answers reports whether a message answers a query: it has its id and, where
// it has a question at all, the same one. Servers may leave out the question
// when they fail.
func answers(answer, asked []byte) bool {
	if len(answer) < headerSize || answer[2]&0x80 == 0 || !bytes.Equal(answer[:2], asked[:2]) {
		return false
	}
	switch binary.BigEndian.Uint16(answer[4:]) {
	case 0:
		return answer[3]&0xf != 0
	case 1:
	default:
		return false
	}
	end, ok := questionEnd(asked)
	if !ok || len(answer) < end {
		return false
	}
	// Without regard to case; type and class are as likely letters as not, but
	// differ from others by more than a bit that tells case apart.
	return bytes.EqualFold(answer[headerSize:end-4], asked[headerSize:end-4]) &&
		bytes.Equal(answer[end-4:end], asked[end-4:end])
}
