// Package usermode connects containers to the network of the machine without
// root's rights over that: the container's packets end in a TCP/IP stack in
// this process (gVisor's netstack), and go on through ordinary sockets of the
// caller.
//
// [Attach] gives the network namespace of a process an interface, an address
// and a default route, and returns an [Endpoint], by which ports are
// published and which has to be closed. Nothing of it is on the machine: the
// interface is one end of a veth pair whose other end is in the same
// namespace, where this process holds a packet socket on it.
//
// # What a container reaches
//
// TCP and UDP lead wherever the caller's own sockets do, and what becomes of
// a connection outside becomes of it inside: refused, reset, half-closed,
// unreachable. Echo requests (ping) go on if net.ipv4.ping_group_range allows
// that to the caller and are answered as unreachable if not; other protocols
// are answered as unreachable.
//
// Like on a bridge, services of the machine that listen on all interfaces are
// reachable at its addresses and at that of the gateway, and those that
// listen on 127.0.0.1 are not, unless [Config.HostLoopback] is set, which
// makes the gateway's address mean that. Destinations that no router passes
// on are refused: loopback, this-network, link-local (the metadata services
// of clouds, which would take the container for the machine), multicast and
// broadcast addresses. At port 53 of the gateway is a DNS server that asks
// the machine's nameservers; these may be where a container could not reach
// them. There is no IPv6.
//
// Containers of one network ([Config.Dir]) reach each other: their processes
// exchange frames by unix sockets that have the addresses as names.
//
// What a container has under way is bounded (see the constants); beyond that
// it gets refusals.
package usermode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"kiln.build/runner/network"
	"kiln.build/runner/network/dns"
)

// Config says what a container's network is like. The zero value is the first
// subnet that the machine has no route to, for this container alone.
type Config struct {
	// Gateway is the gateway's address within its subnet.
	Gateway netip.Prefix
	// IP is the container's address, within the subnet. If it is not valid
	// the first that is free is taken, of Range if that is valid.
	IP    netip.Addr
	Range netip.Prefix
	// Dir is the folder of a network of several containers, of this process
	// or others; they reach each other, and each takes an address of its own.
	// If it is empty the container is alone.
	Dir string
	// Interface is the interface's name in the container; "" is eth0.
	Interface string
	// MAC is the hardware address; nil is one that is derived from IP.
	MAC net.HardwareAddr
	// MTU is the interface's; zero is that of ethernet. More is not needed
	// for speed: packets of up to 64 KiB pass as they are.
	MTU int
	// NoRoute has no default route lead over the interface.
	NoRoute bool
	// Internal is a network without a way out, but for names.
	Internal bool
	// HostLoopback makes the gateway's address mean the machine's 127.0.0.1.
	HostLoopback bool
	// Resolver answers the queries that come to the gateway's port 53; nil
	// asks the machine's nameservers.
	Resolver *dns.Server
}

// Endpoint is a container's place in its network.
type Endpoint struct {
	IP        netip.Addr // of the container
	Gateway   netip.Addr // its default route and nameserver
	Bits      int        // of the subnet's prefix
	Interface string     // inside
	MAC       net.HardwareAddr

	ns     *os.File // the network namespace
	config Config
	link   *link
	ready  chan struct{} // closed once there is a stack
	stack  *stack.Stack
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // of all that was started
	limits limits
	syns   syns
	ups    atomic.Int64 // connections that may have something from the container yet
	close  sync.Once
	failed error // of close
}

// Attach gives the network namespace of a process an interface that is up,
// with an address and a default route. The process must have been made
// with a new network namespace that belongs to this process's user namespace
// or one below it; in it there must be no such interface yet. Its loopback
// interface is left alone.
//
// The endpoint works until [Endpoint.Close] is called, whatever becomes of
// ctx; until then it keeps the namespace alive.
func Attach(ctx context.Context, pid int, c Config) (*Endpoint, error) {
	return attachLimited(ctx, pid, c, newLimits())
}

func attachLimited(ctx context.Context, pid int, c Config, l limits) (*Endpoint, error) {
	if !c.Gateway.IsValid() {
		gateway, err := network.FreeSubnet()
		if err != nil {
			return nil, fmt.Errorf("attach process %d to the user-mode network: %w", pid, err)
		}
		c.Gateway = gateway
	}
	if c.Resolver == nil {
		c.Resolver = &dns.Server{}
	}
	if c.Interface == "" {
		c.Interface = "eth0"
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	e := &Endpoint{Gateway: c.Gateway.Addr(), Bits: c.Gateway.Bits(), Interface: c.Interface, ready: make(chan struct{}), limits: l}
	e.ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := e.attach(pid, c); err != nil {
		return nil, fmt.Errorf("attach process %d to the user-mode network: %w", pid, err)
	}
	// The command need not wait for the stack: until it is there packets wait
	// in the socket.
	e.wg.Go(e.run)
	return e, nil
}

// attach makes what the process needs.
func (e *Endpoint) attach(pid int, c Config) (err error) {
	if e.ns, err = openNamespace(pid); err != nil {
		return err
	}
	var place *lease
	var socket *os.File
	defer func() {
		if err == nil {
			return
		}
		if socket != nil {
			err = errors.Join(err, socket.Close())
		}
		err = errors.Join(err, place.release(), e.ns.Close())
	}()
	if c.Dir != "" {
		if place, err = takeLease(c); err != nil {
			return err
		}
		c.IP = place.ip
	} else if !c.IP.IsValid() {
		c.IP = c.Gateway.Addr().Next()
	}
	if c.MAC == nil {
		c.MAC = hardwareAddr(c.IP)
	}
	e.IP, e.MAC, e.config = c.IP, c.MAC, c
	if socket, err = addInterface(e.ns, c); err != nil {
		return err
	}
	e.link, err = newLink(socket, c, place)
	return err
}

// run makes the stack and works until the endpoint is closed.
func (e *Endpoint) run() {
	e.stack = newStack(e)
	e.serveDNS()
	close(e.ready)
	if e.link.lease != nil {
		e.wg.Go(e.link.fromPeers)
	}
	e.link.run()
}

// Publish listens on a port of the machine and hands what arrives to the
// container, which sees the gateway as the peer. The proxy works until it is
// closed or ctx is done; clients get resets once the endpoint is closed.
func (e *Endpoint) Publish(ctx context.Context, port network.Port) (*network.Proxy, error) {
	return network.PublishTo(ctx, port, target{e})
}

// drainTime bounds the wait for peers that do not read.
const drainTime = time.Second

// Leave gives the container's address back and waits until what it has sent
// is in the machine's hands. It is called once the processes of the container
// have ended, which to their connections is the end; so it takes no longer
// than the packets do.
func (e *Endpoint) Leave() {
	_ = e.link.lease.release() // Close tells
	for end := time.Now().Add(drainTime); e.ups.Load() > 0 && time.Now().Before(end); {
		time.Sleep(200 * time.Microsecond)
	}
}

// Close cuts what is under way and frees the namespace; the interface stays
// for as long as others hold that. It takes the kernel some 10 ms, and may be
// called more than once.
func (e *Endpoint) Close() error {
	e.close.Do(func() {
		<-e.ready
		e.cancel()
		e.failed = errors.Join(e.link.close(), e.ns.Close())
		e.stack.Destroy()
		e.wg.Wait()
	})
	return e.failed
}

// Lead makes this the network that the container's default route leads to,
// unless it is one without a way out.
func (e *Endpoint) Lead() error {
	if e.config.Internal {
		return nil
	}
	if err := within(e.ns, func() error { return lead(e.config) }); err != nil {
		return fmt.Errorf("route through %s: %w", e.Gateway, err)
	}
	return nil
}

// Remove takes the interface out of a container that goes on, and closes.
func (e *Endpoint) Remove() error {
	if err := within(e.ns, func() error { return delInterface(e.Interface) }); err != nil {
		return fmt.Errorf("detach %s from the network: %w", e.IP, err)
	}
	return e.Close()
}

// openNamespace opens the network namespace of a process, which must not be
// the caller's own.
func openNamespace(pid int) (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	theirs, err := f.Stat()
	if err == nil {
		var ours os.FileInfo
		if ours, err = os.Stat("/proc/thread-self/ns/net"); err == nil && os.SameFile(ours, theirs) {
			err = errors.New("it has the network namespace of this process")
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// onClose has f called when the endpoint is closed, unless stop is called
// before.
func (e *Endpoint) onClose(f func()) (stop func() bool) { return context.AfterFunc(e.ctx, f) }
