package network

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// role tells a copy of the test binary what it is.
const role = "KILN_NETWORK_TEST_ROLE"

// The network outside, as seen from the test host.
const (
	hostIP    = "192.0.2.2"
	outsideIP = "192.0.2.1"
	testMTU   = 1400
)

// noNetwork is why tests of the kernel are skipped, if they are.
var noNetwork string

// outsidePID is the process in whose network namespace the outside is.
var outsidePID int

// TestMain runs the tests in a network namespace of their own, which plays the
// host: one that the tests may break, and that no test leaves traces in.
func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), role+"=host")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		err := cmd.Run()
		if errors.Is(err, os.ErrPermission) {
			noNetwork = fmt.Sprintf("cannot make a network namespace: %v", err)
			os.Exit(m.Run())
		}
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(cmd.ProcessState.ExitCode())
	case "host":
		outside, err := startContainer(os.Stderr, nil)
		if err == nil {
			outsidePID = outside.pid
			err = connectOutside(outside.pid)
		}
		if err != nil {
			noNetwork = fmt.Sprintf("cannot make the network outside: %v", err)
		}
		code := m.Run()
		if outside != nil {
			outside.stop()
		}
		os.Exit(code)
	case "container":
		fmt.Println("here")
		io.Copy(io.Discard, os.Stdin)
	case "owner":
		ownerMain()
	case "nobody":
		nobodyMain()
	}
}

// container is a process with a network namespace of its own.
type container struct {
	pid   int
	cmd   *exec.Cmd
	stdin io.Closer
}

// startContainer starts a process that ends when its standard input does, and
// so with the process that started it.
func startContainer(stderr io.Writer, attr *syscall.SysProcAttr) (*container, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), role+"=container")
	cmd.Stderr = stderr
	if attr == nil {
		attr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	}
	cmd.SysProcAttr = attr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &container{pid: cmd.Process.Pid, cmd: cmd, stdin: stdin}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

func (c *container) stop() {
	c.stdin.Close()
	_ = c.cmd.Wait()
}

// connectOutside gives this namespace an uplink to the one of a process.
func connectOutside(pid int) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "uplink0", testMTU
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "uplink0", netlink.NsPid(pid)
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(veth)); err != nil {
		return err
	}
	setUp := func(addr, subnet, gateway string) error {
		link, err := netlink.LinkByName("uplink0")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		_, dst, err := net.ParseCIDR(subnet)
		if err != nil {
			return err
		}
		return errors.Join(
			netlink.AddrAdd(link, a),
			netlink.LinkSetUp(link),
			netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: net.ParseIP(gateway)}),
		)
	}
	// The outside knows the way to the containers, as a hostile neighbour may.
	if err := inside(pid, func() error { return setUp(outsideIP+"/24", "172.16.0.0/12", hostIP) }); err != nil {
		return err
	}
	return setUp(hostIP+"/24", "0.0.0.0/0", outsideIP)
}

// within runs f in the network namespace of a process. Sockets that f makes
// stay there.
func inside(pid int, f func() error) error {
	if pid == os.Getpid() {
		return f()
	}
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer own.Close()
	if err := netns.Set(ns); err != nil {
		return err
	}
	err = f()
	if back := netns.Set(own); back != nil {
		return errors.Join(err, back) // the thread stays locked, so nothing else runs there
	}
	runtime.UnlockOSThread()
	return err
}

// ownerMain attaches as many containers as it is told at once, prints their
// addresses on a line, and waits.
func ownerMain() {
	b := testBridge(os.Args[1])
	var n int
	fmt.Sscan(os.Args[2], &n)
	results := make(chan string)
	for range n {
		go func() {
			c, err := startContainer(os.Stderr, nil)
			if err != nil {
				results <- err.Error()
				return
			}
			ep, err := b.Attach(background(), c.pid)
			if err != nil {
				results <- err.Error()
				return
			}
			results <- ep.IP.String()
		}()
	}
	var ips []string
	for range n {
		ips = append(ips, <-results)
	}
	fmt.Println(strings.Join(ips, " "))
	io.Copy(io.Discard, os.Stdin)
}

// nobodyMain tries to attach a container without any privilege.
func nobodyMain() {
	c, err := startContainer(os.Stderr, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET})
	if err != nil {
		fmt.Println("skip:", err)
		return
	}
	defer c.stop()
	_, err = testBridge(os.Args[1]).Attach(background(), c.pid)
	var u *UnavailableError
	fmt.Println(errors.As(err, &u), err)
}
