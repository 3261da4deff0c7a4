package usermode

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// role tells a copy of the test binary what it is.
const role = "KILN_USERMODE_TEST_ROLE"

// Addresses as seen from the machine of the tests.
const (
	machineIP    = "192.0.2.2"
	noHostIP     = "198.51.100.1" // of which a router says that there is no such host
	prohibitedIP = "198.51.100.200"
	silentIP     = "203.0.113.9" // nobody answers
	noRouteIP    = "100.64.0.1"
)

// noPermission is what a copy of the test binary says when it cannot be made.
const noPermission = 99

// noNetwork is why the tests are skipped, if they are.
var noNetwork string

// TestMain runs the tests as a caller who is root only of a user namespace,
// in a network namespace that plays the machine and that, like the machine's,
// is not that user namespace's: it can be used, but not entered.
func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		if code := again("machine", syscall.CLONE_NEWUSER|syscall.CLONE_NEWNET); code != noPermission {
			os.Exit(code)
		}
		noNetwork = "cannot make a user and a network namespace with interfaces"
		os.Exit(m.Run())
	case "machine":
		if err := makeMachine(); err != nil {
			fmt.Fprintln(os.Stderr, "make the machine:", err)
			os.Exit(noPermission)
		}
		os.Exit(again("caller", syscall.CLONE_NEWUSER))
	case "caller":
		os.Exit(m.Run())
	case "container":
		fmt.Println("here")
		io.Copy(io.Discard, os.Stdin)
	}
}

// again runs the test binary in another role as root of new namespaces.
func again(as string, flags uintptr) int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), role+"="+as)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  flags,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	err := cmd.Run()
	if cmd.ProcessState != nil {
		return cmd.ProcessState.ExitCode()
	}
	if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.ENOSPC) {
		return noPermission
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// makeMachine gives this network namespace the routes that tests need.
func makeMachine() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink0"
	uplink := netlink.NewVeth(attrs)
	uplink.PeerName = "void0" // takes all packets and answers none
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(uplink)); err != nil {
		return err
	}
	void, err := netlink.LinkByName(uplink.PeerName)
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetUp(void), netlink.LinkSetUp(uplink)); err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(machineIP + "/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(uplink, addr); err != nil {
		return err
	}
	for dst, kind := range map[string]int{
		"198.51.100.0/25": unix.RTN_UNREACHABLE, "198.51.100.128/25": unix.RTN_PROHIBIT, "203.0.113.0/24": unix.RTN_UNICAST,
		"169.254.0.0/16": unix.RTN_UNICAST,
	} {
		_, n, err := net.ParseCIDR(dst)
		if err != nil {
			return err
		}
		r := &netlink.Route{Dst: n, Type: kind}
		if kind == unix.RTN_UNICAST {
			// Without resolving: a host that does not exist is no silent one.
			r.LinkIndex, r.Scope = uplink.Index, netlink.SCOPE_LINK
		}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("route to %s: %w", dst, err)
		}
	}
	if err := netlink.LinkSetARPOff(uplink); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0)
}

// box is a process with a network namespace of its own.
type box struct {
	pid int
	ns  *os.File
}

func newBox(t testing.TB) *box {
	t.Helper()
	if noNetwork != "" {
		t.Skip(noNetwork)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), role+"=container", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	b := &box{pid: cmd.Process.Pid}
	if b.ns, err = openNamespace(b.pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.ns.Close() })
	b.do(t, func() error { // as a sandbox has it
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.LinkSetUp(lo)
	})
	return b
}

// attach gives a box a network.
func attach(t testing.TB, b *box, c Config) *Endpoint {
	t.Helper()
	e, err := Attach(t.Context(), b.pid, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// start returns a box with a network.
func start(t testing.TB, c Config) (*box, *Endpoint) {
	t.Helper()
	b := newBox(t)
	return b, attach(t, b, c)
}

// do calls f on a thread inside of the box; sockets that f makes are the box's.
func (b *box) do(t testing.TB, f func() error) {
	t.Helper()
	if err := within(b.ns, f); err != nil {
		t.Fatal(err)
	}
}

func (b *box) dial(network, address string) (c net.Conn, err error) {
	err = within(b.ns, func() (err error) {
		c, err = net.DialTimeout(network, address, patience)
		return err
	})
	return c, err
}

func (b *box) listen(t testing.TB, address string) (l *net.TCPListener) {
	t.Helper()
	b.do(t, func() error {
		x, err := net.Listen("tcp4", address)
		if err == nil {
			l = x.(*net.TCPListener)
		}
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// port returns the port of an address.
func port(a net.Addr) int {
	return int(netip.MustParseAddrPort(strings.TrimPrefix(a.String(), "[::]")).Port())
}
