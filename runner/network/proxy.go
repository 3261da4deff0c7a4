package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dialTimeout bounds the wait for a container that does not answer.
	dialTimeout = 10 * time.Second
	// acceptPause is the wait after a failure to accept, such as too many
	// open files.
	acceptPause = 50 * time.Millisecond
)

// Proxy hands what arrives at a port of the host to a container.
type Proxy struct {
	HostPort int // the port it listens on

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Publish listens on a port of the host and hands what arrives to the
// container at ip. The container sees the bridge's address as the peer, not
// the client's. The port may start to answer later: until then TCP clients
// get a reset and UDP packets are lost.
//
// The proxy works until [Proxy.Close] is called or ctx is done.
func Publish(ctx context.Context, port Port, ip netip.Addr) (*Proxy, error) {
	return PublishTo(ctx, port, host(ip))
}

// Target is where a published port leads.
type Target interface {
	// Forward passes a client's connection on to a port until it ends, or ctx
	// is done, and closes it.
	Forward(ctx context.Context, client *net.TCPConn, port int)
	// DialUDP returns a connection to a port, which sends nothing yet.
	DialUDP(port int) (net.Conn, error)
}

// PublishTo is [Publish] for containers that are not reached through the
// kernel.
func PublishTo(ctx context.Context, port Port, to Target) (*Proxy, error) {
	return publish(ctx, port, to, udpIdle)
}

// publish is [Publish] with the time after which a silent UDP client is
// forgotten.
func publish(ctx context.Context, port Port, to Target, idle time.Duration) (*Proxy, error) {
	p, err := listen(ctx, port, to, idle)
	for at := port; errors.Is(err, unix.EADDRINUSE) && at.HostPort < at.HostLast; {
		at.HostPort++
		p, err = listen(ctx, at, to, idle)
	}
	if err != nil {
		return nil, fmt.Errorf("publish port %s: %w", port, err)
	}
	return p, nil
}

// listen publishes at HostPort alone.
func listen(ctx context.Context, port Port, to Target, idle time.Duration) (*Proxy, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &Proxy{cancel: cancel}
	var err error
	switch port.Proto {
	case "tcp":
		err = p.listenTCP(ctx, port, to)
	case "udp":
		err = p.listenUDP(ctx, port, to, idle)
	default:
		err = fmt.Errorf("protocol %q is neither tcp nor udp", port.Proto)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return p, nil
}

// Close stops listening, cuts the connections, and waits for the goroutines
// of the proxy to end. It may be called more than once, and always returns
// nil.
func (p *Proxy) Close() error {
	p.cancel()
	p.wg.Wait()
	return nil
}

// closeAfter closes c once ctx is done.
func (p *Proxy) closeAfter(ctx context.Context, c io.Closer) {
	p.wg.Go(func() {
		<-ctx.Done()
		c.Close()
	})
}

func (p *Proxy) listenTCP(ctx context.Context, port Port, to Target) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", port.hostAddress())
	if err != nil {
		return err
	}
	p.HostPort = l.Addr().(*net.TCPAddr).Port
	p.closeAfter(ctx, l)
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err == nil {
				p.wg.Go(func() { to.Forward(ctx, c.(*net.TCPConn), port.ContainerPort) })
				continue
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
			}
		}
	})
	return nil
}

// host is a container that the kernel reaches at an address.
type host netip.Addr

func (h host) address(port int) string {
	return net.JoinHostPort(netip.Addr(h).String(), strconv.Itoa(port))
}

// DialUDP implements [Target].
func (h host) DialUDP(port int) (net.Conn, error) { return net.Dial("udp", h.address(port)) }

// Forward implements [Target]: it copies both ways until both directions have
// ended, one of them has failed, or ctx is done. An end of one direction is
// passed on as such, a failure as a reset.
func (h host) Forward(ctx context.Context, client *net.TCPConn, port int) {
	defer client.Close()
	dialer := net.Dialer{Timeout: dialTimeout}
	c, err := dialer.DialContext(ctx, "tcp", h.address(port))
	if err != nil {
		reset(client)
		return
	}
	container := c.(*net.TCPConn)
	defer container.Close()
	stop := context.AfterFunc(ctx, func() {
		reset(client)
		reset(container)
	})
	defer stop()

	var wg sync.WaitGroup
	wg.Go(func() { pass(container, client) })
	wg.Go(func() { pass(client, container) })
	wg.Wait()
}

// pass copies one direction.
func pass(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		reset(to)
		reset(from)
		return
	}
	// This fails only when the other direction has been reset, or the peer
	// has gone; either way that direction deals with it.
	_ = to.CloseWrite()
}

// reset closes a connection so that the peer sees a failure, not an end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}
