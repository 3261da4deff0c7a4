package network

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

func background() context.Context { return context.Background() }

func testBridge(dir string) *Bridge {
	return &Bridge{name: "kilntest0", table: "kilntest", dir: dir}
}

// newBridge returns a bridge that is removed at the end of the test.
func newBridge(t testing.TB) *Bridge {
	t.Helper()
	if noNetwork != "" {
		t.Skip(noNetwork)
	}
	b := testBridge(t.TempDir())
	t.Cleanup(func() { remove(t, b) })
	return b
}

func remove(t testing.TB, b *Bridge) {
	if link, err := netlink.LinkByName(b.name); err == nil {
		if err := netlink.LinkDel(link); err != nil {
			t.Error(err)
		}
	}
	deleteTable(t, b.table)
}

func deleteTable(t testing.TB, name string) {
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4}
	conn.AddTable(table)
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		t.Error(err)
	}
}

func newContainer(t testing.TB) *container {
	t.Helper()
	c, err := startContainer(os.Stderr, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	return c
}

func attach(t testing.TB, b *Bridge, c *container) *Endpoint {
	t.Helper()
	ep, err := b.Attach(t.Context(), c.pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ep.Close(); err != nil {
			t.Error(err)
		}
	})
	return ep
}

// serve answers each TCP connection in the namespace of a process with the
// address it came from, and returns the port.
func serve(t testing.TB, pid int, address string) string {
	t.Helper()
	var l net.Listener
	err := inside(pid, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			io.WriteString(c, host)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// call connects from the namespace of a process and returns the answer.
func call(pid int, ip, port string, timeout time.Duration) (string, error) {
	var answer []byte
	err := inside(pid, func() error {
		c, err := net.DialTimeout("tcp4", net.JoinHostPort(ip, port), timeout)
		if err != nil {
			return err
		}
		defer c.Close()
		answer, err = io.ReadAll(c)
		return err
	})
	return string(answer), err
}

func TestAttach(t *testing.T) {
	b := newBridge(t)
	one, two := newContainer(t), newContainer(t)
	ep1, ep2 := attach(t, b, one), attach(t, b, two)
	if want := netip.MustParseAddr("172.30.0.1"); ep1.Gateway != want || ep2.Gateway != want {
		t.Errorf("gateways %s and %s, want %s", ep1.Gateway, ep2.Gateway, want)
	}
	if ep1.IP.String() != "172.30.0.2" || ep2.IP.String() != "172.30.0.3" {
		t.Errorf("addresses %s and %s, want 172.30.0.2 and 172.30.0.3", ep1.IP, ep2.IP)
	}

	self := os.Getpid()
	for _, tt := range []struct {
		name     string
		from, to int
		ip, sees string
	}{
		{"host to container", self, one.pid, ep1.IP.String(), ep1.Gateway.String()},
		{"container to container", one.pid, two.pid, ep2.IP.String(), ep1.IP.String()},
		{"container to bridge", one.pid, self, ep1.Gateway.String(), ep1.IP.String()},
		{"container to host", two.pid, self, hostIP, ep2.IP.String()},
		{"container to outside", one.pid, outsidePID, outsideIP, hostIP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port := serve(t, tt.to, "0.0.0.0:0")
			got, err := call(tt.from, tt.ip, port, 10*time.Second)
			if err != nil || got != tt.sees {
				t.Errorf("the server saw %q, %v; want %q", got, err, tt.sees)
			}
		})
	}
	t.Run("loopback of the host is out of reach", func(t *testing.T) {
		port := serve(t, self, "127.0.0.1:0")
		for _, ip := range []string{"127.0.0.1", ep1.Gateway.String(), hostIP} {
			if got, err := call(one.pid, ip, port, time.Second); err == nil {
				t.Errorf("%s: connected and got %q", ip, got)
			}
		}
	})
	t.Run("container is out of reach from outside", func(t *testing.T) {
		port := serve(t, one.pid, "0.0.0.0:0")
		got, err := call(outsidePID, ep1.IP.String(), port, 200*time.Millisecond)
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("got %q, %v; want a timeout", got, err)
		}
	})
	t.Run("mtu", func(t *testing.T) {
		check := func(name string) error {
			link, err := netlink.LinkByName(name)
			if err == nil && link.Attrs().MTU != testMTU {
				t.Errorf("MTU of %s is %d, want %d", name, link.Attrs().MTU, testMTU)
			}
			return err
		}
		err := errors.Join(check(b.name), check(pairName(ep1.IP)), inside(one.pid, func() error { return check("eth0") }))
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("published port", func(t *testing.T) {
		port := serve(t, one.pid, "0.0.0.0:0")
		ports, err := ParsePort(port)
		if err != nil {
			t.Fatal(err)
		}
		p, err := Publish(t.Context(), ports[0], ep1.IP)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if got, err := call(outsidePID, hostIP, strconv.Itoa(p.HostPort), 10*time.Second); err != nil || got != ep1.Gateway.String() {
			t.Errorf("the server saw %q, %v; want %q", got, err, ep1.Gateway)
		}
	})
}

func TestClose(t *testing.T) {
	b := newBridge(t)
	c := newContainer(t)
	ep := attach(t, b, c)
	if err := ep.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ep.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := netlink.LinkByName(pairName(ep.IP)); err == nil {
		t.Error("the veth pair is still there")
	}
	if files, err := os.ReadDir(filepath.Join(b.dir, "addresses")); err != nil || len(files) != 0 {
		t.Errorf("addresses holds %v, %v; want nothing", files, err)
	}
	again := attach(t, b, c)
	if again.IP != ep.IP {
		t.Errorf("address %s, want the freed %s", again.IP, ep.IP)
	}
	// The interface goes with the namespace, or is deleted first.
	c.stop()
	if err := again.Close(); err != nil {
		t.Errorf("Close after the end of the container: %v", err)
	}
}

func TestAttachRefusals(t *testing.T) {
	b := newBridge(t)
	if _, err := b.Attach(t.Context(), os.Getpid()); err == nil || !strings.Contains(err.Error(), "namespace of the host") {
		t.Errorf("own namespace: %v", err)
	}
	c := newContainer(t)
	attach(t, b, c)
	if _, err := b.Attach(t.Context(), c.pid); err == nil || !strings.Contains(err.Error(), "eth0 already") {
		t.Errorf("second attach: %v", err)
	}
	if files, _ := os.ReadDir(filepath.Join(b.dir, "addresses")); len(files) != 1 {
		t.Errorf("addresses holds %v, want one", files)
	}
}

// The bridge keeps its MTU when its last container goes.
func TestBridgeKeepsMTU(t *testing.T) {
	b := newBridge(t)
	if err := attach(t, b, newContainer(t)).Close(); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(b.name)
	if err != nil {
		t.Fatal(err)
	}
	if got := link.Attrs().MTU; got != testMTU {
		t.Errorf("MTU %d with no container left, want %d", got, testMTU)
	}
}

// What others took away is made again.
func TestAttachRepairs(t *testing.T) {
	b := newBridge(t)
	attach(t, b, newContainer(t))
	deleteTable(t, b.table)
	if err := sysctl("net/ipv4/ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	c := newContainer(t)
	attach(t, b, c)
	got, err := call(c.pid, outsideIP, serve(t, outsidePID, "0.0.0.0:0"), 10*time.Second)
	if err != nil || got != hostIP {
		t.Errorf("the outside saw %q, %v; want %q", got, err, hostIP)
	}
}

// A container outlives neither its owner here, nor does its address.
func TestOwnerKilled(t *testing.T) {
	b := newBridge(t)
	owner, ips := startOwner(t, b, "1")
	ip := netip.MustParseAddr(ips[0])

	done := make(chan struct{})
	defer close(done)
	updates := make(chan netlink.LinkUpdate)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		t.Fatal(err)
	}
	if err := owner.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	owner.cmd.Wait()
	timeout := time.After(20 * time.Second)
	for gone := false; !gone; {
		select {
		case u := <-updates:
			gone = u.Header.Type == syscall.RTM_DELLINK && u.Attrs().Name == pairName(ip)
		case <-timeout:
			t.Fatal("the interface of the dead container stays")
		}
	}
	if ep := attach(t, b, newContainer(t)); ep.IP != ip {
		t.Errorf("address %s, want %s of the dead owner", ep.IP, ip)
	}
}

func TestProcessesAtOnce(t *testing.T) {
	b := newBridge(t)
	var all []string
	type result struct{ ips []string }
	results := make(chan result)
	for range 2 {
		go func() {
			_, ips := startOwner(t, b, "4")
			results <- result{ips}
		}()
	}
	for range 2 {
		all = append(all, (<-results).ips...)
	}
	slices.Sort(all)
	if len(slices.Compact(slices.Clone(all))) != 8 {
		t.Fatalf("addresses %q, want 8 different ones", all)
	}
	for _, s := range all {
		if _, err := netip.ParseAddr(s); err != nil {
			t.Error(err)
		}
	}
}

// startOwner starts a process that attaches n containers.
func startOwner(t *testing.T, b *Bridge, n string) (*container, []string) {
	cmd := exec.Command("/proc/self/exe", b.dir, n)
	cmd.Env = append(os.Environ(), role+"=owner")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return nil, nil
	}
	c := &container{cmd: cmd, pid: cmd.Process.Pid, stdin: stdin}
	t.Cleanup(c.stop)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Error(err)
	}
	return c, strings.Split(strings.TrimSpace(line), " ")
}

func TestUnavailable(t *testing.T) {
	b := newBridge(t)
	for dir := b.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(b.dir, "test") // the original lies where only root may go
	if err := os.WriteFile(path, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, filepath.Join(b.dir, "state"))
	cmd.Env = append(os.Environ(), role+"=nobody")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.HasPrefix(string(out), "skip:") {
		t.Skip(strings.TrimSpace(string(out)))
	}
	if !strings.HasPrefix(string(out), "true bridge networking is not available: ") {
		t.Errorf("got %s", out)
	}
}

// A subnet that the host uses is not taken, even on an interface that is down.
func TestSubnetInUse(t *testing.T) {
	b := newBridge(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "kilntest1"
	used := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(used); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(used)
	addr, _ := netlink.ParseAddr("172.30.7.1/24")
	if err := netlink.AddrAdd(used, addr); err != nil {
		t.Fatal(err)
	}
	ep := attach(t, b, newContainer(t))
	if ep.Gateway.String() != "172.31.0.1" {
		t.Errorf("gateway %s, want 172.31.0.1", ep.Gateway)
	}
	// The choice stands once it is made.
	if err := netlink.LinkDel(used); err != nil {
		t.Fatal(err)
	}
	if ep := attach(t, b, newContainer(t)); ep.IP.String() != "172.31.0.3" {
		t.Errorf("address %s, want 172.31.0.3", ep.IP)
	}
}

func TestChooseSubnet(t *testing.T) {
	for _, tt := range []struct{ name, used, want string }{
		{"nothing used", "", "172.30.0.1/16"},
		{"part of the first", "172.30.9.0/24", "172.31.0.1/16"},
		{"all of docker's", "172.16.0.0/12", "10.89.0.1/16"},
		{"the first of ten", "172.16.0.0/12 10.89.0.1/32", "10.90.0.1/16"},
		{"everything", "172.16.0.0/12 10.0.0.0/8", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var used []netip.Prefix
			for _, s := range strings.Fields(tt.used) {
				used = append(used, netip.MustParsePrefix(s))
			}
			got, err := chooseSubnet(used)
			if tt.want == "" {
				if err == nil {
					t.Errorf("got %s, want an error", got)
				}
				return
			}
			if err != nil || got.String() != tt.want {
				t.Errorf("got %s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

func BenchmarkAttach(b *testing.B) {
	br := newBridge(b)
	c := newContainer(b)
	attach(b, br, newContainer(b)) // makes the bridge and keeps it busy
	var attached, closed time.Duration
	for b.Loop() {
		start := time.Now()
		ep, err := br.Attach(b.Context(), c.pid)
		if err != nil {
			b.Fatal(err)
		}
		attached += time.Since(start)
		start = time.Now()
		if err := ep.Close(); err != nil {
			b.Fatal(err)
		}
		closed += time.Since(start)
	}
	b.ReportMetric(float64(attached.Microseconds())/float64(b.N), "µs/attach")
	b.ReportMetric(float64(closed.Microseconds())/float64(b.N), "µs/close")
}

// BenchmarkFirstConnection measures from a container that is not attached to
// a TCP connection that is established.
func BenchmarkFirstConnection(b *testing.B) {
	br := newBridge(b)
	c := newContainer(b)
	port := serve(b, c.pid, "0.0.0.0:0")
	var spent time.Duration
	for b.Loop() {
		start := time.Now()
		ep, err := br.Attach(b.Context(), c.pid)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := call(os.Getpid(), ep.IP.String(), port, 10*time.Second); err != nil {
			b.Fatal(err)
		}
		spent += time.Since(start)
		if err := ep.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(spent.Microseconds())/float64(b.N), "µs/connected")
}
