package network

import (
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
)

func published(t *testing.T, proto string, port int) string {
	t.Helper()
	p, err := Publish(t.Context(), Port{HostIP: "127.0.0.1", ContainerPort: port, Proto: proto}, netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.HostPort))
}

// TestPublishHalfClose: a server that answers once its client has said all
// sees the end of the client's words, and the client gets the whole answer.
func TestPublishHalfClose(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		asked, err := io.ReadAll(c)
		if err == nil {
			_, err = c.Write(append([]byte("you said "), asked...))
		}
		served <- err
	}()
	c, err := net.Dial("tcp", published(t, "tcp", l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil || string(answer) != "you said hello" {
		t.Errorf("got %q, %v", answer, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestPublishUDP: answers come back to the client that asked.
func TestPublishUDP(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			if _, err := server.WriteTo(append([]byte("echo "), buf[:n]...), from); err != nil {
				return
			}
		}
	}()
	defer func() {
		server.Close()
		<-done
	}()
	at := published(t, "udp", server.LocalAddr().(*net.UDPAddr).Port)
	for _, word := range []string{"one", "two"} {
		c, err := net.Dial("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, word); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1500)
		n, err := c.Read(buf)
		if err != nil || string(buf[:n]) != "echo "+word {
			t.Errorf("got %q, %v", buf[:n], err)
		}
	}
}

// TestPublishTaken: a port that is in use is an error that names it.
func TestPublishTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	p, err := Publish(t.Context(), Port{HostIP: "127.0.0.1", HostPort: port, ContainerPort: 1, Proto: "tcp"}, netip.MustParseAddr("127.0.0.1"))
	if err == nil {
		p.Close()
		t.Fatal("a port in use was published")
	}
}
