package usermode

import (
	"io"
	"net"
	"testing"
	"time"
)

// BenchmarkTCP measures one connection, beside one over the machine's own
// loopback interface.
func BenchmarkTCP(b *testing.B) {
	box, _ := start(b, Config{})
	inside := box.dial
	outside := func(network, address string) (net.Conn, error) { return net.Dial(network, address) }
	const chunk = 1 << 20
	source := func(c *net.TCPConn) {
		_ = c.SetDeadline(time.Time{})
		for data := make([]byte, 128<<10); ; {
			if _, err := c.Write(data); err != nil {
				return
			}
		}
	}
	sink := func(c *net.TCPConn) {
		_ = c.SetDeadline(time.Time{})
		_, _ = io.Copy(struct{ io.Writer }{io.Discard}, c)
	}
	for _, way := range []struct {
		name string
		dial func(network, address string) (net.Conn, error)
	}{{"container", inside}, {"loopback", outside}} {
		b.Run(way.name+"/out", func(b *testing.B) {
			c, err := way.dial("tcp4", machineIP+":"+serve(b, machineIP+":0", sink))
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			data := make([]byte, 128<<10)
			b.SetBytes(chunk)
			for b.Loop() {
				for n := 0; n < chunk; n += len(data) {
					if _, err := c.Write(data); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
		b.Run(way.name+"/in", func(b *testing.B) {
			c, err := way.dial("tcp4", machineIP+":"+serve(b, machineIP+":0", source))
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			data := make([]byte, 128<<10)
			b.SetBytes(chunk)
			for b.Loop() {
				for n := 0; n < chunk; n += len(data) {
					if _, err := io.ReadFull(c, data); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkAttach measures what the start of a container waits for.
func BenchmarkAttach(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		box := newBox(b)
		b.StartTimer()
		e, err := Attach(b.Context(), box.pid, Config{})
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		e.Close()
		b.StartTimer()
	}
}

// BenchmarkConnect measures connections that are opened and closed.
func BenchmarkConnect(b *testing.B) {
	box, _ := start(b, Config{})
	address := machineIP + ":" + serve(b, machineIP+":0", func(*net.TCPConn) {})
	dial := func() error {
		c, err := net.Dial("tcp4", address)
		if err == nil {
			_, _ = c.Read(make([]byte, 1))
			c.Close()
		}
		return err
	}
	if err := within(box.ns, func() error {
		for b.Loop() {
			if err := dial(); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
}
