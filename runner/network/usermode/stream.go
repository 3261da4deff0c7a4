package usermode

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// buffers are of the size of a packet before it is cut. One is held only
// while there is something in it, so that silent connections have none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 1<<16); return &b }}

// stream is a TCP connection with the container.
type stream struct {
	ep tcpip.Endpoint
	wq *waiter.Queue
}

// join copies both ways between a connection outside and one with the
// container, until both directions have ended, one of them has failed, or ctx
// is done. An end of one direction is passed on as such, a failure as a reset.
func (e *Endpoint) join(ctx context.Context, out *net.TCPConn, in *stream) {
	in.ep.SocketOptions().SetDelayOption(false) // who sends has decided that
	fail := func() {
		reset(out)
		in.ep.Abort()
	}
	var sent atomic.Bool // all, and the end; a reset would take it back
	stop := context.AfterFunc(ctx, func() {
		if sent.Load() {
			out.Close()
		}
		fail()
	})
	defer stop()
	var wg sync.WaitGroup
	e.ups.Add(1)
	up := func(out *net.TCPConn) error {
		defer e.ups.Add(-1)
		err := in.up(out)
		sent.Store(err == nil)
		return err
	}
	for _, pass := range []func(*net.TCPConn) error{up, in.down} {
		wg.Go(func() {
			if pass(out) != nil {
				fail()
			}
		})
	}
	wg.Wait()
	in.ep.Close()
	out.Close()
}

// up copies from the container.
func (s *stream) up(out *net.TCPConn) error {
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	s.wq.EventRegister(&entry)
	defer s.wq.EventUnregister(&entry)
	for {
		err := s.upSome(out)
		switch {
		case errors.Is(err, errWait):
			<-readable
		case errors.Is(err, errEnd):
			return out.CloseWrite()
		case err != nil:
			return err
		}
	}
}

var (
	errWait = errors.New("nothing there yet")
	errEnd  = errors.New("end of the stream")
)

// upSome copies what is there.
func (s *stream) upSome(out *net.TCPConn) error {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	w := tcpip.SliceWriter(*b)
	res, terr := s.ep.Read(&w, tcpip.ReadOptions{})
	if terr != nil {
		return readError(terr)
	}
	s.ep.ModerateRecvBuf(res.Count)
	_, err := out.Write((*b)[:res.Count])
	return err
}

func readError(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrWouldBlock:
		return errWait
	case *tcpip.ErrClosedForReceive:
		return errEnd
	}
	return errors.New(err.String())
}

// down copies to the container.
func (s *stream) down(out *net.TCPConn) error {
	raw, err := out.SyscallConn()
	if err != nil {
		return err
	}
	entry, writable := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	s.wq.EventRegister(&entry)
	defer s.wq.EventUnregister(&entry)
	var b *[]byte
	var n int
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
		if closed := raw.Read(receive); closed != nil {
			return closed
		}
		if err == nil && n > 0 {
			err = s.write((*b)[:n], writable)
		} else if err == nil {
			err = errEnd
		}
		buffers.Put(b)
		if errors.Is(err, errEnd) {
			s.ep.Shutdown(tcpip.ShutdownWrite) // fails if the other direction has ended it all
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *stream) write(b []byte, writable <-chan struct{}) error {
	for r := bytes.NewReader(b); r.Len() > 0; {
		_, terr := s.ep.Write(r, tcpip.WriteOptions{})
		if _, full := terr.(*tcpip.ErrWouldBlock); full {
			<-writable
		} else if terr != nil {
			return errors.New(terr.String())
		}
	}
	return nil
}

// reset closes a connection so that the peer sees a failure, not an end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
