package usermode

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newDir is a network's folder whose path is longer than a socket's may be.
func newDir(t testing.TB) string {
	return filepath.Join(t.TempDir(), strings.Repeat("x", 120))
}

func TestPeers(t *testing.T) {
	if noNetwork != "" {
		t.Skip(noNetwork)
	}
	dir := newDir(t)
	one, e1 := start(t, Config{Dir: dir})
	two, e2 := start(t, Config{Dir: dir})
	_, elsewhere := start(t, Config{Dir: newDir(t)})
	if e1.IP.String() != "172.30.0.2" || e2.IP.String() != "172.30.0.3" || elsewhere.IP != e1.IP {
		t.Errorf("addresses %s, %s, and %s in another network", e1.IP, e2.IP, elsewhere.IP)
	}
	for _, tt := range []struct {
		name     string
		from, to *box
		ip, sees string
	}{{"there", one, two, e2.IP.String(), e1.IP.String()}, {"and back", two, one, e1.IP.String(), e2.IP.String()}} {
		t.Run(tt.name, func(t *testing.T) {
			l := tt.to.listen(t, "0.0.0.0:0")
			serveOn(t, l, func(c *net.TCPConn) {
				sum := sha256.New()
				n, err := io.Copy(sum, c)
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "%s %d %x %v", host, n, sum.Sum(nil), err)
			})
			c, err := tt.from.dial("tcp4", net.JoinHostPort(tt.ip, strconv.Itoa(port(l.Addr()))))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			sent := bytes.Repeat([]byte("0123456"), 1<<20)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			c.(*net.TCPConn).CloseWrite()
			want := fmt.Sprintf("%s %d %x %v", tt.sees, len(sent), sha256.Sum256(sent), nil)
			if got, err := io.ReadAll(c); err != nil || string(got) != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
			if err := ping(tt.from, tt.ip); err != nil {
				t.Errorf("ping: %v", err)
			}
		})
	}
	if _, err := one.dial("tcp4", e2.IP.String()+":9"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a port that nobody listens on: %v", err)
	}
	if _, err := one.dial("tcp4", e2.IP.Next().String()+":9"); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("an address that nobody has: %v", err)
	}
	t.Run("given back", func(t *testing.T) {
		if err := e2.Close(); err != nil {
			t.Error(err)
		}
		if _, err := one.dial("tcp4", e2.IP.String()+":9"); !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("its address: %v", err)
		}
		_, e3 := start(t, Config{Dir: dir})
		if e3.IP != e2.IP {
			t.Errorf("the next has %s, want %s", e3.IP, e2.IP)
		}
	})
}

func TestLease(t *testing.T) {
	b := newBox(t)
	dir := newDir(t)
	e := attach(t, b, Config{Dir: dir})
	if _, err := Attach(t.Context(), newBox(t).pid, Config{Dir: dir, IP: e.IP}); err == nil || !strings.Contains(err.Error(), "already in use") {
		t.Errorf("the same address: %v", err)
	}
	for _, ip := range []string{"172.30.0.1", "172.30.0.0", "172.30.255.255", "10.0.0.1"} {
		if _, err := takeLease(Config{Dir: dir, Gateway: e.config.Gateway, IP: mustAddr(ip)}); err == nil {
			t.Errorf("%s can be had", ip)
		}
	}
	// What a process that was killed leaves behind.
	folder := filepath.Join(dir, "172.30.0.0-16")
	for _, name := range []string{"172.30.0.3", "172.30.0.3.sock"} {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.dial("tcp4", "172.30.0.3:9"); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("the address of a dead process: %v", err)
	}
	_, next := start(t, Config{Dir: dir})
	if next.IP.String() != "172.30.0.3" {
		t.Errorf("the next has %s", next.IP)
	}
	if err := errors.Join(next.Close(), e.Close()); err != nil {
		t.Error(err)
	}
	if files, err := os.ReadDir(folder); err != nil || len(files) != 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

// A container is in several networks, which it joins and leaves.
func TestSeveral(t *testing.T) {
	back, front := newDir(t), newDir(t)
	web, first := start(t, Config{Dir: front})
	vault := Config{Gateway: netip.MustParsePrefix("10.9.8.1/24"), Range: netip.MustParsePrefix("10.9.8.64/26"), Dir: back, Interface: "eth1", Internal: true, MTU: 1280}
	second := attach(t, web, vault)
	vault.Interface, vault.MAC = "", net.HardwareAddr{2, 0, 0, 0, 0, 9}
	db, other := start(t, vault)
	if second.IP.String() != "10.9.8.64" || other.IP.String() != "10.9.8.65" || second.Interface != "eth1" {
		t.Errorf("addresses %s and %s", second.IP, other.IP)
	}
	l := db.listen(t, "0.0.0.0:0")
	serveOn(t, l, who)
	there := net.JoinHostPort(other.IP.String(), strconv.Itoa(port(l.Addr())))
	if got, err := call(web, there); got != second.IP.String() || err != nil {
		t.Errorf("the server saw %q, %v", got, err)
	}
	db.do(t, func() error {
		i, err := net.InterfaceByName("eth0")
		if err == nil && (i.HardwareAddr.String() != "02:00:00:00:00:09" || i.MTU != 1280) {
			t.Errorf("interface %+v", i)
		}
		return err
	})
	// There is a way out of the one network, and none of the other.
	outside := serve(t, "0.0.0.0:0", who)
	if got, err := call(web, machineIP+":"+outside); got != machineIP || err != nil {
		t.Errorf("outside: got %q, %v", got, err)
	}
	for _, ip := range []string{machineIP, other.Gateway.String()} {
		if got, err := call(db, ip+":"+outside); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("out of the internal network: got %q, %v", got, err)
		}
	}
	if err := first.Remove(); err != nil {
		t.Fatal(err)
	}
	if got, err := call(web, machineIP+":"+outside); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("after leaving: got %q, %v", got, err)
	}
	again := attach(t, web, Config{Dir: front, NoRoute: true})
	if got, err := call(web, machineIP+":"+outside); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("without a route: got %q, %v", got, err)
	}
	if err := errors.Join(second.Lead(), again.Lead()); err != nil {
		t.Fatal(err)
	}
	if got, err := call(web, machineIP+":"+outside); got != machineIP || err != nil {
		t.Errorf("with one: got %q, %v", got, err)
	}
	if got, err := call(web, there); got != second.IP.String() || err != nil {
		t.Errorf("the server saw %q, %v", got, err)
	}
}

// Frames that no other container's process would send go nowhere.
func TestForgedFrames(t *testing.T) {
	b, e := start(t, Config{Dir: newDir(t)})
	var server net.PacketConn
	b.do(t, func() (err error) {
		server, err = net.ListenPacket("udp4", "0.0.0.0:0")
		return err
	})
	defer server.Close()
	at := netipPort(e.IP, port(server.LocalAddr()))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	send := func(protocol uint16, packet []byte) {
		frame := make([]byte, headSize, headSize+len(packet))
		frame[headSize-2], frame[headSize-1] = byte(protocol>>8), byte(protocol)
		frame = append(frame, packet...)
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrUnix{Name: e.link.lease.name(e.IP)}); err != nil {
			t.Fatal(err)
		}
	}
	peer, gateway, outside := netipPort(mustAddr("172.30.0.9"), 7), netipPort(e.Gateway, 7), netipPort(mustAddr("8.8.8.8"), 7)
	send(etherIPv4, udpPacket(gateway, at, "from the gateway"))
	send(etherIPv4, udpPacket(outside, at, "from outside"))
	send(etherIPv4, udpPacket(at, at, "from itself"))
	send(etherARP, udpPacket(peer, at, "no IPv4"))
	for n := range 40 {
		send(etherIPv4, make([]byte, n))
	}
	send(etherIPv4, udpPacket(peer, at, "honest"))
	buf := make([]byte, 100)
	_ = server.SetReadDeadline(time.Now().Add(patience))
	if n, from, err := server.ReadFrom(buf); err != nil || string(buf[:n]) != "honest" {
		t.Errorf("got %q from %v, %v", buf[:n], from, err)
	}
}
