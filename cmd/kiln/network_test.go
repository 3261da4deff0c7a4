package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
	"kiln.build/runner/network/dns"
)

// TestNetworkWithoutRoot uses the network that users other than root have: a
// stack in the container's monitor, or in the build.
func TestNetworkWithoutRoot(t *testing.T) {
	machine := machineAddress(t)
	w := newUserWorld(t)
	askOurNameserver(t, w, machine)
	if out, _, _ := w.run("doctor"); !strings.Contains(out, "bridge, by a network stack of kiln's own") {
		t.Errorf("kiln doctor does not tell of the network: %s", out)
	}
	page := httpServer(t, "0.0.0.0:0", "page")
	private := httpServer(t, "127.0.0.1:0", "private")

	fetch := func(address string) (string, string, int) {
		return w.run("run", "--rm", "--add-host", "gateway:host-gateway", "toolbox", "wget", "-q", "-O", "-", "http://"+address+"/")
	}
	// By a name that only a nameserver on the machine's loopback knows.
	for _, host := range []string{"www.kiln.test", machine, "gateway"} {
		out, stderr, code := fetch(host + ":" + page)
		if out != "page" || code != 0 {
			t.Errorf("%s: exit status %d, got %q and %q", host, code, out, stderr)
		}
	}
	for _, host := range []string{"127.0.0.1", machine, "gateway"} {
		if out, _, code := fetch(host + ":" + private); code == 0 {
			t.Errorf("%s: the machine's loopback is reached: %q", host, out)
		}
	}

	allow := []string{"run", "--rm", "--network", "slirp4netns:allow_host_loopback=true", "--add-host", "gateway:host-gateway", "toolbox", "wget", "-q", "-O", "-", "http://gateway:" + private + "/"}
	if out, stderr, code := w.run(allow...); out != "private" || code != 0 {
		t.Errorf("the machine's loopback, allowed: exit status %d, got %q and %q", code, out, stderr)
	}
	for network, want := range map[string]string{
		"slirp4netns:cidr=10.0.0.0/8": "only allow_host_loopback is", "slirp4netns:allow_host_loopback=x": "must be true or false",
		"container:none": "takes root's rights",
	} {
		if _, stderr, code := w.run("run", "--rm", "--network", network, "toolbox", "true"); code != 125 || !strings.Contains(stderr, want) {
			t.Errorf("network %s: exit status %d, %q", network, code, stderr)
		}
	}

	for network, want := range map[string]string{"bridge": "eth0", "default": "eth0", "none": "", "host": ""} {
		out, _ := w.must("run", "--rm", "--network", network, "toolbox", "sh", "-c", "grep -o eth0: /proc/net/dev; readlink /proc/self/ns/net")
		// Of this thread: the first one may be in another, for another test.
		own, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		if network != "host" && strings.Contains(out, "eth0") != (want != "") || strings.Contains(out, own) != (network == "host") {
			t.Errorf("network %s: got %q", network, out)
		}
	}

	t.Run("step", func(t *testing.T) {
		dir := w.context("FROM toolbox\nRUN wget -q -O /page http://www.kiln.test:" + page + "/ && grep -c . /etc/resolv.conf\n" +
			"RUN ! wget -q -O - http://" + machine + ":" + private + "/\n")
		if _, stderr, code := w.run("build", "-t", "built", dir); code != 0 {
			t.Fatalf("exit status %d: %s", code, stderr)
		}
		if out, _ := w.must("run", "--rm", "--network=none", "built", "cat", "/page"); out != "page" {
			t.Errorf("the step got %q", out)
		}
	})
	t.Run("published", func(t *testing.T) {
		t.Cleanup(func() { _ = w.command(context.Background(), "rm", "-f", "web").Run() })
		w.must("run", "-d", "--name", "web", "-p", "127.0.0.1::80", "-p", "53/udp", "toolbox", "sleep", "1000")
		pid, _ := w.must("inspect", "--format", "{{.State.Pid}} {{.NetworkSettings.Gateway}}", "web")
		var number int
		var gateway string
		if _, err := fmt.Sscan(pid, &number, &gateway); err != nil {
			t.Fatal(err)
		}
		l := listenIn(t, number, ":80")
		go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			io.WriteString(w, host)
		}))
		ip, _ := w.must("inspect", "--format", "{{.NetworkSettings.IPAddress}}", "web")
		own, _ := w.must("run", "--rm", "--add-host", "web:"+strings.TrimSpace(ip), "toolbox", "sh", "-c", "wget -q -O - http://web/")
		if !strings.HasPrefix(own, "172.") && !strings.HasPrefix(own, "10.") || strings.HasPrefix(own, gateway) || strings.HasPrefix(own, strings.TrimSpace(ip)) {
			t.Errorf("the server saw %q, want the other container's own address", own)
		}
		at, _ := w.must("port", "web", "80/tcp")
		r, err := http.Get("http://" + strings.TrimSpace(at) + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if got, err := io.ReadAll(r.Body); string(got) != gateway || err != nil {
			t.Errorf("the server saw %q, %v; want the gateway %s", got, err, gateway)
		}
		if _, stderr, code := w.run("run", "--rm", "-p", strings.TrimSpace(at)+":80", "toolbox", "true"); code != 125 || !strings.Contains(stderr, "address already in use") {
			t.Errorf("a port that is taken: exit status %d, %q", code, stderr)
		}
		if low, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil && strings.TrimSpace(string(low)) == "1024" {
			if _, stderr, code := w.run("run", "--rm", "-p", "127.0.0.78:81:81", "toolbox", "true"); code != 125 || !strings.Contains(stderr, "sysctl -w net.ipv4.ip_unprivileged_port_start=81") {
				t.Errorf("a port that is root's: exit status %d, %q", code, stderr)
			}
		}
		w.must("restart", "-t", "0", "web") // which publishes the ports anew
	})
}

// machineAddress is one that is not of a loopback interface.
func machineAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no address but that of its loopback interface")
	return ""
}

// askOurNameserver has the kiln of a world see an /etc/resolv.conf that names
// a nameserver of the test's.
func askOurNameserver(t *testing.T, w *world, machine string) {
	t.Helper()
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("needs unshare")
	}
	packets, err := net.ListenPacket("udp4", "127.0.0.77:53")
	if err != nil {
		t.Skipf("this machine's port 53 is taken: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	server := &dns.Server{Lookup: func(name string) ([]netip.Addr, bool) {
		return []netip.Addr{netip.MustParseAddr(machine)}, name == "www.kiln.test"
	}, Upstream: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}}
	go func() { done <- server.Serve(ctx, packets, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 127.0.0.77\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.prefix = append([]string{unshare, "-m", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, file}, w.prefix...)
}

// httpServer answers every request with a text and returns its port.
func httpServer(t *testing.T, address, text string) (port string) {
	t.Helper()
	l, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Close()
		<-done
	})
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// listenIn listens in the network namespace of a process.
func listenIn(t *testing.T, pid int, address string) net.Listener {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var l net.Listener
	if err = netns.Set(ns); err == nil {
		l, err = net.Listen("tcp4", address)
		err = errors.Join(err, netns.Set(own))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestNetworksWithoutRoot makes networks as another user: what
// container_networks.txtar does as root, where it could differ.
func TestNetworksWithoutRoot(t *testing.T) {
	w := newUserWorld(t)
	t.Cleanup(func() { _ = w.command(context.Background(), "rm", "-f", "db", "web", "base").Run() })
	const fetched = "connect: connection refused" // a name is known and leads to a container
	get := func(verb string, rest ...string) []string {
		return append(append([]string{verb}, rest[:len(rest)-1]...), "wget", "-q", "-O", "-", "http://"+rest[len(rest)-1]+"/")
	}
	for _, step := range []struct {
		args []string
		code int
		want string // in what is printed
	}{
		{[]string{"network", "create", "--subnet", "10.211.7.0/24", "--gateway", "10.211.7.254", "--ip-range", "10.211.7.64/26", "-o", "com.docker.network.driver.mtu=1400", "back"}, 0, ""},
		{[]string{"network", "create", "front"}, 0, ""},
		{[]string{"network", "create", "--internal", "vault"}, 0, ""},
		{[]string{"run", "-d", "--name", "db", "--network", "back", "--network-alias", "postgres", "toolbox", "sleep", "1000"}, 0, ""},
		{[]string{"inspect", "-f", `{{with index .NetworkSettings.Networks "back"}}{{.IPAddress}}/{{.IPPrefixLen}} {{.Gateway}}{{end}}`, "db"}, 0, "10.211.7.64/24 10.211.7.254\n"},
		{[]string{"run", "--rm", "--network", "back", "toolbox", "cat", "/etc/resolv.conf"}, 0, "nameserver 10.211.7.254\noptions ndots:0\n"},
		{get("run", "--rm", "--network", "back", "toolbox", "db:1"), 1, fetched},
		{get("run", "--rm", "--network", "back", "toolbox", "POSTGRES.back:1"), 1, fetched},
		{get("run", "--rm", "--network", "vault", "toolbox", "db:1"), 1, "server misbehaving"}, // none may be asked
		{[]string{"run", "-d", "--name", "web", "--network", "vault", "toolbox", "sleep", "1000"}, 0, ""},
		{[]string{"exec", "web", "cat", "/proc/net/route"}, 0, "eth0"},
		{[]string{"network", "connect", "--alias", "www", "--ip", "10.211.7.9", "back", "web"}, 0, ""},
		{get("exec", "web", "db:1"), 1, fetched},
		{get("exec", "db", "www:1"), 1, "dial tcp 10.211.7.9:1: " + fetched},
		{get("exec", "db", "10.211.7.200:1"), 1, "no route to host"},
		{[]string{"network", "disconnect", "vault", "web"}, 0, ""},
		{get("exec", "web", "db:1"), 1, fetched},
		{[]string{"network", "connect", "front", "web"}, 0, ""},
		{[]string{"network", "disconnect", "back", "web"}, 0, ""},
		{[]string{"restart", "-t", "0", "web"}, 0, ""},
		{[]string{"inspect", "-f", "{{range $n, $e := .NetworkSettings.Networks}}{{$n}} {{if $e.IPAddress}}up{{end}}{{end}}", "web"}, 0, "front up\n"},
		{[]string{"rename", "db", "base"}, 0, ""},
		{get("run", "--rm", "--network", "back", "toolbox", "base:1"), 1, fetched},
		{[]string{"run", "--rm", "--network", "back", "--ip", "10.211.7.64", "toolbox", "true"}, 125, "address already in use: 10.211.7.64"},
		{[]string{"network", "rm", "back"}, 1, "has active endpoints"},
		{[]string{"rm", "-f", "web", "base"}, 0, ""},
		{[]string{"network", "rm", "back", "front", "vault"}, 0, "back\nfront\nvault\n"},
	} {
		stdout, stderr, code := w.run(step.args...)
		if code != step.code || !strings.Contains(stdout+stderr, step.want) {
			t.Fatalf("kiln %s: exit status %d, got %q and %q; want %d and %q", strings.Join(step.args, " "), code, stdout, stderr, step.code, step.want)
		}
	}
	// Nothing is left of them.
	left, err := filepath.Glob(filepath.Join(w.root, "networks", "*", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
