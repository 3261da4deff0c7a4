package usermode

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// flow is the UDP packets between a port of the container and one outside.
type flow struct {
	e        *Endpoint
	from, to netip.AddrPort // as the container sees it
	out      *net.UDPConn
	raw      syscall.RawConn // of out
	ep       tcpip.Endpoint
	wq       waiter.Queue
	last     atomic.Int64 // when there was a packet, in nanoseconds of Unix time
	answered atomic.Bool
}

// handleUDP returns the handler of packets that belong to no flow. It is
// called by the link's goroutine.
func (e *Endpoint) handleUDP(s *stack.Stack) func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
	return udp.NewForwarder(s, func(r *udp.ForwarderRequest) bool {
		id := r.ID()
		f := &flow{e: e, from: addrPort(id.RemoteAddress, id.RemotePort), to: addrPort(id.LocalAddress, id.LocalPort)}
		if err := f.open(r); err != nil {
			f.fail(err)
			return true
		}
		e.wg.Go(f.run)
		return true
	}).HandlePacket
}

// packetDialer makes sockets that do not send to broadcast addresses of the
// machine's links; package net allows that to all.
var packetDialer = net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
	var set error
	err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 0) })
	return errors.Join(err, os.NewSyscallError("setsockopt SO_BROADCAST", set))
}}

// open makes the sockets of a flow. The packet that is one too many is lost.
func (f *flow) open(r *udp.ForwarderRequest) error {
	to, err := f.e.destination(f.to.Addr())
	if err != nil {
		return err
	}
	if !take(f.e.limits.flows) {
		return errors.New("too many flows")
	}
	// Connecting a UDP socket sends nothing and does not block.
	var c net.Conn
	if c, err = packetDialer.DialContext(f.e.ctx, "udp4", netip.AddrPortFrom(to, f.to.Port()).String()); err == nil {
		f.out = c.(*net.UDPConn)
		f.raw, err = f.out.SyscallConn()
	}
	if err == nil {
		var terr tcpip.Error
		if f.ep, terr = r.CreateEndpoint(&f.wq); terr != nil {
			err = errors.Join(errors.New(terr.String()), f.out.Close())
		}
	}
	if err != nil {
		<-f.e.limits.flows
		return err
	}
	f.last.Store(time.Now().UnixNano())
	return nil
}

// fail tells the container what became of its packets. Errors of a socket
// come from answers to earlier packets of it.
func (f *flow) fail(err error) {
	quote := quotedUDP(f.from, f.to)
	if errors.Is(err, unix.ECONNREFUSED) {
		f.e.link.unreachable(quote, portUnreachable)
		return
	}
	f.e.fail(quote, err)
}

// run copies both ways until the flow is idle or the endpoint is closed.
func (f *flow) run() {
	defer func() { <-f.e.limits.flows }()
	stop := context.AfterFunc(f.e.ctx, func() { f.out.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.up()
	}()
	f.down()
	f.out.Close()
	f.ep.Close() // which ends up
	<-done
}

// up copies from the container.
func (f *flow) up() {
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	f.wq.EventRegister(&entry)
	defer f.wq.EventUnregister(&entry)
	for {
		switch err := f.upOne(); {
		case errors.Is(err, errWait):
			<-readable
		case errors.Is(err, errEnd), errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			f.fail(err)
		}
	}
}

func (f *flow) upOne() error {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	w := tcpip.SliceWriter(*b)
	res, terr := f.ep.Read(&w, tcpip.ReadOptions{})
	if terr != nil {
		return readError(terr)
	}
	f.last.Store(time.Now().UnixNano())
	_, err := f.out.Write((*b)[:res.Count])
	return err
}

// down copies to the container.
func (f *flow) down() {
	var b *[]byte
	var n int
	var err error
	receive := func(fd uintptr) bool {
		b = buffers.Get().(*[]byte)
		for {
			n, err = unix.Read(int(fd), *b)
			if err == unix.EINTR {
				continue
			}
			if err != unix.EAGAIN {
				return true
			}
			buffers.Put(b)
			return false
		}
	}
	for {
		wait := f.remaining()
		if wait <= 0 {
			return
		}
		_ = f.out.SetReadDeadline(time.Now().Add(wait))
		if failed := f.raw.Read(receive); failed != nil {
			if errors.Is(failed, os.ErrDeadlineExceeded) {
				continue
			}
			return
		}
		if err == nil {
			f.last.Store(time.Now().UnixNano())
			f.answered.Store(true)
			_, _ = f.ep.Write(bytes.NewReader((*b)[:n]), tcpip.WriteOptions{}) // lost if it does not go
		} else {
			f.fail(err)
		}
		buffers.Put(b)
	}
}

// remaining returns for how long the flow may be silent yet.
func (f *flow) remaining() time.Duration {
	idle := f.e.limits.idleUnanswered
	if f.answered.Load() {
		idle = f.e.limits.idleAnswered
	}
	return idle - time.Since(time.Unix(0, f.last.Load()))
}
