package usermode

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"kiln.build/runner/network"
	"kiln.build/runner/network/dns"
)

// patience is how long something that should happen may take.
const patience = 10 * time.Second

// serve listens on the machine and hands each connection to f.
func serve(t testing.TB, address string, f func(*net.TCPConn)) (port string) {
	t.Helper()
	l, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, f)
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

func serveOn(t testing.TB, l net.Listener, f func(*net.TCPConn)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			f(c.(*net.TCPConn))
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

// who answers with the address that a connection came from.
func who(c *net.TCPConn) {
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	io.WriteString(c, host)
}

// call returns what a server says to the box.
func call(b *box, address string) (string, error) {
	c, err := b.dial("tcp4", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(c)
	return string(got), err
}

func TestTCP(t *testing.T) {
	b, e := start(t, Config{})
	if e.Gateway.String() != "172.30.0.1" || e.IP.String() != "172.30.0.2" {
		t.Errorf("gateway %s and address %s", e.Gateway, e.IP)
	}
	t.Run("half-close", func(t *testing.T) {
		// The answer comes after the end of the question.
		port := serve(t, machineIP+":0", func(c *net.TCPConn) {
			sum := sha256.New()
			n, err := io.Copy(sum, c)
			fmt.Fprintf(c, "%d %x %v", n, sum.Sum(nil), err)
		})
		c, err := b.dial("tcp4", machineIP+":"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		question := make([]byte, 16<<20+7)
		for i := range question {
			question[i] = byte(i * i >> 8)
		}
		if _, err := c.Write(question); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("%d %x %v", len(question), sha256.Sum256(question), nil)
		if got, err := io.ReadAll(c); err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	})
	t.Run("much from outside", func(t *testing.T) {
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = byte(rand.IntN(256))
		}
		const blocks = 16
		port := serve(t, machineIP+":0", func(c *net.TCPConn) {
			for range blocks {
				c.Write(block)
			}
		})
		got, err := call(b, machineIP+":"+port)
		if err != nil || got != string(bytes.Repeat(block, blocks)) {
			t.Errorf("got %d bytes, %v, want %d", len(got), err, blocks<<20)
		}
	})
	t.Run("reset outside", func(t *testing.T) {
		port := serve(t, machineIP+":0", func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		})
		c, err := b.dial("tcp4", machineIP+":"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	})
	t.Run("reset inside", func(t *testing.T) {
		seen := make(chan error, 1)
		port := serve(t, machineIP+":0", func(c *net.TCPConn) {
			c.Write([]byte("x"))
			_, err := c.Read(make([]byte, 1))
			seen <- err
		})
		c, err := b.dial("tcp4", machineIP+":"+port)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(c, make([]byte, 1))
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		if err := <-seen; !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the server saw %v, want a reset", err)
		}
	})
	for _, tt := range []struct {
		name, ip string
		want     error
	}{
		{"refused", machineIP, unix.ECONNREFUSED},
		{"no such host", noHostIP, unix.EHOSTUNREACH},
		{"prohibited", prohibitedIP, unix.EHOSTUNREACH},
		{"no route", noRouteIP, unix.ENETUNREACH},
		{"neighbour that is not there", e.IP.Next().String(), unix.EHOSTUNREACH},
		{"link-local", "169.254.169.254", unix.EHOSTUNREACH},
		{"multicast", "224.0.0.5", unix.ENETUNREACH}, // by the container's kernel
		{"broadcast", "192.0.2.255", unix.ENETUNREACH},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			if _, err := b.dial("tcp4", tt.ip+":9"); !errors.Is(err, tt.want) || time.Since(began) > time.Second {
				t.Errorf("after %v: %v, want %v at once", time.Since(began), err, tt.want)
			}
		})
	}
}

// What a kernel-made bridge hides from containers is hidden here, too.
func TestLoopbackOfTheMachine(t *testing.T) {
	b, e := start(t, Config{})
	private := serve(t, "127.0.0.1:0", func(c *net.TCPConn) { io.WriteString(c, "secret") })
	public := serve(t, "0.0.0.0:0", who)
	for _, ip := range []string{e.Gateway.String(), machineIP, "127.0.0.1", "0.0.0.0"} {
		if got, err := call(b, ip+":"+private); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: got %q, %v", ip, got, err)
		}
	}
	for _, ip := range []string{e.Gateway.String(), machineIP} {
		if got, err := call(b, ip+":"+public); got != machineIP || err != nil {
			t.Errorf("%s: the server saw %q, %v", ip, got, err)
		}
	}
	for _, ip := range []string{"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.9.9.9", "169.254.169.254", "224.0.0.1", "240.0.0.1", "255.255.255.255"} {
		if to, err := e.destination(netip.MustParseAddr(ip)); err != unix.EACCES {
			t.Errorf("%s leads to %s, %v", ip, to, err)
		}
	}
	t.Run("allowed", func(t *testing.T) {
		b, e := start(t, Config{HostLoopback: true})
		if got, err := call(b, e.Gateway.String()+":"+private); got != "secret" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestUDP(t *testing.T) {
	b, e := start(t, Config{})
	server, err := net.ListenPacket("udp4", machineIP+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo(buf[:n], from)
		}
	}()
	c, err := b.dial("udp4", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	for _, size := range []int{0, 1, 1400, 1472, 1473, 9000, 60000} {
		sent := bytes.Repeat([]byte{byte(size)}, size)
		got := make([]byte, 1<<16)
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(got); err != nil || !bytes.Equal(got[:n], sent) {
			t.Fatalf("%d bytes: got %d, %v", size, n, err)
		}
	}
	if n := len(e.limits.flows); n != 1 {
		t.Errorf("%d flows, want one", n)
	}
	for ip, want := range map[string]error{
		machineIP: unix.ECONNREFUSED, noHostIP: unix.EHOSTUNREACH, noRouteIP: unix.ENETUNREACH, "169.254.169.254": unix.EHOSTUNREACH,
	} {
		c, err := b.dial("udp4", ip+":9")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		allErrors(t, c)
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", ip, err, want)
		}
	}
}

// allErrors has the kernel tell a UDP socket of errors that may pass, too.
func allErrors(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	if err := errors.Join(raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1) }), set); err != nil {
		t.Fatal(err)
	}
}

// A flow ends when it has been silent for long enough.
func TestIdleFlow(t *testing.T) {
	b, l := newBox(t), newLimits()
	l.idleUnanswered = 50 * time.Millisecond
	e, err := attachLimited(t.Context(), b.pid, Config{}, l)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	c, err := b.dial("udp4", silentIP+":9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("x"))
	wait(t, "a flow", func() bool { return len(e.limits.flows) == 1 })
	wait(t, "its end", func() bool { return len(e.limits.flows) == 0 })
}

// wait waits until something is so.
func wait(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestDNS(t *testing.T) {
	// A nameserver where only this machine reaches it.
	upstream, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	outer := &dns.Server{Lookup: func(name string) ([]netip.Addr, bool) {
		return []netip.Addr{netip.MustParseAddr("192.0.2.77")}, name == "example.com"
	}, Upstream: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- outer.Serve(ctx, upstream, nil) }()
	defer func() {
		cancel()
		<-done
	}()
	b, e := start(t, Config{Resolver: &dns.Server{
		Lookup: func(name string) ([]netip.Addr, bool) {
			return []netip.Addr{netip.MustParseAddr("172.30.0.9")}, name == "web"
		},
		Upstream: []netip.AddrPort{netip.MustParseAddrPort(upstream.LocalAddr().String())},
	}})
	for _, way := range []string{"udp4", "tcp4"} {
		r := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			return b.dial(way, e.Gateway.String()+":53")
		}}
		for name, want := range map[string]string{"web.": "172.30.0.9", "example.com.": "192.0.2.77"} {
			if got, err := r.LookupHost(t.Context(), name); err != nil || !slices.Equal(got, []string{want}) {
				t.Errorf("%s over %s: %v, %v, want %s", name, way, got, err, want)
			}
		}
	}
}

func TestPing(t *testing.T) {
	b, e := start(t, Config{})
	for ip, want := range map[string]error{
		e.Gateway.String(): nil, machineIP: nil,
		noHostIP: unix.EHOSTUNREACH, "169.254.169.254": unix.EHOSTUNREACH,
	} {
		if err := ping(b, ip); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", ip, err, want)
		}
	}
}

// ping sends an echo request from the box and waits for what comes of it.
func ping(b *box, ip string) error {
	return within(b.ns, func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		tv := unix.NsecToTimeval(int64(patience))
		if err := errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
			unix.Connect(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(ip).As4()}),
		); err != nil {
			return err
		}
		request := append([]byte{8, 0, 0, 0, 0, 0, 0, 7}, "payload"...)
		if _, err := unix.Write(fd, request); err != nil {
			return err
		}
		reply := make([]byte, 64)
		n, err := unix.Read(fd, reply)
		if err == nil && (reply[0] != 0 || string(reply[6:n]) != string(request[6:])) {
			err = fmt.Errorf("the answer is %x", reply[:n])
		}
		return err
	})
}

// Of other protocols than these the container is told that nobody has them.
func TestOtherProtocol(t *testing.T) {
	b, _ := start(t, Config{})
	b.do(t, func() error {
		const unused = 253 // RFC 3692: for experiments
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unused)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		tv := unix.NsecToTimeval(int64(patience))
		if err := errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
			unix.Connect(fd, &unix.SockaddrInet4{Addr: mustAddr(machineIP).As4()}),
		); err != nil {
			return err
		}
		if _, err := unix.Write(fd, []byte("8 bytes.")); err != nil {
			return err
		}
		if _, err := unix.Read(fd, make([]byte, 1)); !errors.Is(err, unix.ENOPROTOOPT) {
			t.Errorf("got %v, want %v", err, unix.ENOPROTOOPT)
		}
		return nil
	})
}

func TestPublish(t *testing.T) {
	b, e := start(t, Config{})
	publish := func(s string) *network.Proxy {
		t.Helper()
		ports, err := network.ParsePort(s)
		if err != nil {
			t.Fatal(err)
		}
		p, err := e.Publish(t.Context(), ports[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return p
	}
	l := b.listen(t, "0.0.0.0:0")
	serveOn(t, l, func(c *net.TCPConn) {
		question, err := io.ReadAll(c)
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		fmt.Fprintf(c, "%s %s %v", host, question, err)
	})
	inside := strconv.Itoa(port(l.Addr()))
	want := e.Gateway.String() + " hello <nil>"
	for _, tt := range []struct{ publish, dial string }{
		{inside, machineIP}, {inside, "127.0.0.1"}, {"127.0.0.1::" + inside, "127.0.0.1"},
	} {
		p := publish(tt.publish)
		c, err := net.Dial("tcp4", net.JoinHostPort(tt.dial, strconv.Itoa(p.HostPort)))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "hello")
		c.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != want {
			t.Errorf("%s at %s: got %q, %v, want %q", tt.publish, tt.dial, got, err, want)
		}
		c.Close()
	}
	t.Run("only there", func(t *testing.T) {
		p := publish("127.0.0.1::" + inside)
		if _, err := net.Dial("tcp4", net.JoinHostPort(machineIP, strconv.Itoa(p.HostPort))); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("the other address: %v", err)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		p := publish("9")
		c, err := net.Dial("tcp4", "127.0.0.1:"+strconv.Itoa(p.HostPort))
		if err == nil {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
		}
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	})
	t.Run("taken", func(t *testing.T) {
		p := publish(inside)
		ports, _ := network.ParsePort(strconv.Itoa(p.HostPort) + ":" + inside)
		if _, err := e.Publish(t.Context(), ports[0]); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("udp", func(t *testing.T) {
		var server net.PacketConn
		b.do(t, func() (err error) {
			server, err = net.ListenPacket("udp4", "0.0.0.0:0")
			return err
		})
		defer server.Close()
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(from.String())
				server.WriteTo(append([]byte(host+" "), buf[:n]...), from)
			}
		}()
		p := publish(strconv.Itoa(port(server.LocalAddr())) + "/udp")
		c, err := net.Dial("udp4", "127.0.0.1:"+strconv.Itoa(p.HostPort))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		for _, text := range []string{"one", strings.Repeat("x", 9000)} {
			io.WriteString(c, text)
			got := make([]byte, 1<<16)
			if n, err := c.Read(got); err != nil || string(got[:n]) != e.Gateway.String()+" "+text {
				t.Errorf("got %.40q, %v", got[:n], err)
			}
		}
	})
}

// What a process has sent before it ended arrives, however late it is read.
func TestLeave(t *testing.T) {
	b, e := start(t, Config{})
	got := make(chan int64, 1)
	port := serve(t, machineIP+":0", func(c *net.TCPConn) {
		time.Sleep(100 * time.Millisecond)
		n, _ := io.Copy(io.Discard, c)
		got <- n
	})
	c, err := b.dial("tcp4", machineIP+":"+port)
	if err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, 8<<20)
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
	c.Close()
	e.Leave()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if n := <-got; n != int64(len(sent)) {
		t.Errorf("%d bytes arrived, want %d", n, len(sent))
	}
}

func TestAttachRefusals(t *testing.T) {
	if noNetwork != "" {
		t.Skip(noNetwork)
	}
	if err := Probe(); err != nil {
		t.Errorf("Probe: %v", err)
	}
	if _, err := Attach(t.Context(), os.Getpid(), Config{}); err == nil || !strings.Contains(err.Error(), "of this process") {
		t.Errorf("own namespace: %v", err)
	}
	b, _ := start(t, Config{})
	if _, err := Attach(t.Context(), b.pid, Config{}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second attach: %v", err)
	}
}

// Nothing is left of an endpoint, and no thread stays in another namespace.
func TestClose(t *testing.T) {
	b := newBox(t)
	silence := serve(t, machineIP+":0", func(c *net.TCPConn) { io.ReadAll(c) })
	descriptors := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	run := func() {
		e, err := Attach(t.Context(), b.pid, Config{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := e.Publish(t.Context(), network.Port{ContainerPort: 9, Proto: "tcp"})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []struct{ network, address string }{
			{"tcp4", machineIP + ":" + silence}, {"udp4", machineIP + ":" + silence}, {"tcp4", e.Gateway.String() + ":53"},
		} {
			c, err := b.dial(a.network, a.address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write([]byte("x"))
		}
		began := time.Now()
		if err := errors.Join(p.Close(), e.Close(), e.Close()); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("Close took %v", d)
		}
		// The interface is there for as long as the namespace is.
		b.do(t, func() error { return delInterface("eth0") })
	}
	run()
	runtime.GC() // descriptors of package os are closed late
	files, routines := descriptors(), runtime.NumGoroutine()
	for range 3 {
		run()
	}
	wait(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= routines })
	wait(t, "descriptors to be closed", func() bool { runtime.GC(); return descriptors() <= files })
	wait(t, "threads to end", func() bool {
		own, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); err == nil && ns != own {
				return false
			}
		}
		return true
	})
}
