package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"kiln.build/runner/container"
	"kiln.build/runner/network"
	"kiln.build/runner/network/dns"
	"kiln.build/runner/rootless"
)

// attachment is a container's place in its networks.
type attachment struct {
	end     *container.Endpoint
	nets    network.Set
	seats   []*place
	proxies []*network.Proxy
	stop    context.CancelFunc // ends the nameserver; nil if there is none
	user    *userNetworks      // of a caller without root's rights; nil as root

	mu     sync.Mutex // guards what the nameserver asks for
	named  []network.Names
	called []string // the networks that named are of
	sealed bool     // no network leads out
}

// place is a container's place in one network.
type place struct {
	IP, Gateway netip.Addr
	Bits        int
	Interface   string
	MAC         net.HardwareAddr

	leave   func() error // takes the interface away
	lead    func() error // has the default route lead over it
	publish func(context.Context, network.Port) (*network.Proxy, error)
	user    userEndpoint     // nil on a bridge
	names   network.Names    // Dir is empty where there are none
	def     *network.Network // nil is the one called bridge
}

// userEndpoint is a place in a network of a caller without root's rights.
type userEndpoint interface {
	Leave()
	Close() error
}

// attach joins a container of the store to networks and publishes its ports.
func attach(ctx context.Context, store string, w container.Wiring) (*container.Endpoint, error) {
	x := &attachment{end: &container.Endpoint{}, nets: network.Set{Dir: filepath.Join(store, "networks")}}
	if rootless.Current() != rootless.Root {
		if err := x.asUser(store, w); err != nil {
			return nil, err
		}
	}
	// The interfaces go with the container's namespace, and the addresses with
	// this process: taking them away would make the user wait for it. Names
	// are not believed of a process that has ended.
	x.end.Detach = func() error {
		x.close(false)
		return nil
	}
	x.end.Change = x.change
	if err := x.change(ctx, w); err != nil {
		x.close(true)
		return nil, err
	}
	if err := x.publish(ctx, w.Ports); err != nil {
		x.close(true)
		return nil, err
	}
	return x.end, nil
}

// close gives up what there is; interfaces only if asked to.
func (x *attachment) close(interfaces bool) {
	for _, s := range x.seats {
		if s.user != nil && !interfaces {
			s.user.Leave()
		}
	}
	for _, p := range x.proxies {
		_ = p.Close() // always nil
	}
	if x.stop != nil {
		x.stop()
	}
	for _, s := range x.seats {
		if s.names.Dir != "" {
			_ = s.names.Remove(s.IP) // not believed once this process has ended
		}
		switch {
		case interfaces:
			_ = s.leave() // goes with the namespace
		case s.user != nil:
			// This process keeps the namespace, which it will do no more when
			// it ends, or soon if it starts the container again.
			go func() { _ = s.user.Close() }()
		}
	}
}

// publish publishes ports at the container's first address.
func (x *attachment) publish(ctx context.Context, ports []container.Port) error {
	if len(ports) > 0 && len(x.seats) == 0 {
		return errors.New("ports cannot be published: the container is in no network")
	}
	for _, p := range ports {
		proxy, err := x.seats[0].publish(context.WithoutCancel(ctx), network.Port{HostIP: p.HostIP, HostPort: p.HostPort, HostLast: p.HostLast, ContainerPort: p.Container, Proto: p.Proto})
		if errors.Is(err, fs.ErrPermission) && x.user != nil {
			err = fmt.Errorf("%w (ports from 1024 on are everybody's; to allow this one: sysctl -w net.ipv4.ip_unprivileged_port_start=%d)", err, p.HostPort)
		}
		if err != nil {
			return fmt.Errorf("publish %s: %w", p, err)
		}
		x.proxies = append(x.proxies, proxy)
		p.HostPort, p.HostLast = proxy.HostPort, 0
		x.end.Ports = append(x.end.Ports, p)
	}
	return nil
}

// change joins and leaves networks.
func (x *attachment) change(ctx context.Context, w container.Wiring) error {
	before := len(x.seats)
	for i, m := range w.Networks {
		if slices.ContainsFunc(x.end.Networks, func(j container.Joined) bool { return j.ID == m.ID }) {
			continue
		}
		s, err := x.sit(ctx, w, i)
		if err != nil {
			for _, s := range x.seats[before:] {
				err = errors.Join(err, s.leave())
			}
			x.seats, x.end.Networks = x.seats[:before], x.end.Networks[:before]
			return err
		}
		x.seats = append(x.seats, s)
		x.end.Networks = append(x.end.Networks, joined(m, s))
	}
	if err := x.leaveBut(w); err != nil {
		return err
	}
	if err := x.name(w); err != nil {
		return err
	}
	return x.resolve(ctx, w)
}

func joined(m container.Membership, s *place) container.Joined {
	j := container.Joined{Membership: m, Interface: s.Interface, IP: s.IP.String(), Bits: s.Bits, MAC: s.MAC.String()}
	if s.def == nil || !s.def.Internal {
		j.Gateway = s.Gateway.String()
	}
	return j
}

// sit joins the container to the network that w names at i.
func (x *attachment) sit(ctx context.Context, w container.Wiring, i int) (*place, error) {
	m := w.Networks[i]
	var def *network.Network
	if m.ID != container.BridgeID {
		var err error
		def, err = x.nets.Find(m.ID)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("network %s not found", m.Network)
		}
		if err != nil {
			return nil, err
		}
	}
	want := network.Seat{Interface: x.freeInterface(), NoRoute: slices.ContainsFunc(x.end.Networks, func(j container.Joined) bool { return j.Gateway != "" })}
	var err error
	if m.IP != "" {
		if want.IP, err = netip.ParseAddr(m.IP); err != nil {
			return nil, err
		}
	}
	if m.MAC != "" {
		if want.MAC, err = net.ParseMAC(m.MAC); err != nil {
			return nil, err
		}
	}
	if x.user != nil {
		s, err := x.user.sit(ctx, w.PID, def, userSeat{want, m.HostLoopback})
		if err != nil {
			return nil, fmt.Errorf("%w (a container can share this machine's network: --network=host)", err)
		}
		return s, nil
	}
	return sitAtBridge(ctx, w.PID, def, want)
}

// sitAtBridge joins a process to a bridge of the machine.
func sitAtBridge(ctx context.Context, pid int, def *network.Network, want network.Seat) (*place, error) {
	s, bridge := &place{def: def}, network.New(network.State)
	if def != nil {
		s.names, bridge = def.Names(network.State), def.Bridge(network.State)
	}
	e, err := bridge.AttachAs(ctx, pid, want)
	if err != nil {
		return nil, err
	}
	s.IP, s.Gateway, s.Bits, s.Interface, s.MAC = e.IP, e.Gateway, e.Bits, e.Interface, e.MAC
	s.leave, s.lead = e.Close, func() error { return e.Lead(pid) }
	s.publish = func(ctx context.Context, p network.Port) (*network.Proxy, error) {
		return network.Publish(ctx, p, e.IP)
	}
	return s, nil
}

func (x *attachment) freeInterface() string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("eth%d", i)
		if !slices.ContainsFunc(x.seats, func(s *place) bool { return s.Interface == name }) {
			return name
		}
	}
}

// leaveBut takes the container off networks that w does not name.
func (x *attachment) leaveBut(w container.Wiring) error {
	for i := len(x.seats) - 1; i >= 0; i-- {
		if slices.ContainsFunc(w.Networks, func(m container.Membership) bool { return m.ID == x.end.Networks[i].ID }) {
			continue
		}
		s := x.seats[i]
		if s.names.Dir != "" {
			if err := s.names.Remove(s.IP); err != nil {
				return err
			}
		}
		if err := s.leave(); err != nil {
			return err
		}
		x.seats, x.end.Networks = slices.Delete(x.seats, i, i+1), slices.Delete(x.end.Networks, i, i+1)
	}
	// The one that led out may be gone.
	for i, j := range x.end.Networks {
		if j.Gateway != "" {
			return x.seats[i].lead()
		}
	}
	return nil
}

// name gives the container its names.
func (x *attachment) name(w container.Wiring) error {
	var named []network.Names
	var called []string
	for i, s := range x.seats {
		if s.names.Dir == "" {
			continue
		}
		m := w.Networks[slices.IndexFunc(w.Networks, func(m container.Membership) bool { return m.ID == x.end.Networks[i].ID })]
		names := slices.Concat(w.Names, m.Aliases)
		if err := s.names.Set(s.IP, names); err != nil {
			return err
		}
		x.end.Networks[i].Names, x.end.Networks[i].Aliases = names, m.Aliases
		named, called = append(named, s.names), append(called, m.Network)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.named, x.called = named, called
	x.sealed = !slices.ContainsFunc(x.end.Networks, func(j container.Joined) bool { return j.Gateway != "" })
	return nil
}

// resolve starts the nameserver of a container that has networks with names.
func (x *attachment) resolve(ctx context.Context, w container.Wiring) error {
	if x.user != nil {
		x.user.resolve(x)
		return nil
	}
	if x.stop != nil || !slices.ContainsFunc(x.seats, func(s *place) bool { return s.names.Dir != "" }) {
		return nil
	}
	server, err := nameserver(w.Servers)
	if err != nil {
		return err
	}
	server.Lookup, server.Reverse, server.Sealed = x.lookup, x.reverse, x.noWayOut
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	if err = network.Resolve(serving, w.PID, server); err != nil {
		stop()
		return err
	}
	x.stop, x.end.Resolver = stop, network.ResolverAddr
	return nil
}

// nameserver asks servers, or else the machine's.
func nameserver(servers []string) (*dns.Server, error) {
	s := &dns.Server{}
	for _, text := range servers {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("--dns=%s: %w", text, err)
		}
		s.Upstream = append(s.Upstream, netip.AddrPortFrom(ip, 53))
	}
	return s, nil
}

// tables are those of the container's names, and what the networks are called.
func (x *attachment) tables() (tables []network.Names, called []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.named, x.called
}

// lookup finds a container by a name, or by that and the network's.
func (x *attachment) lookup(name string) ([]netip.Addr, bool) {
	tables, called := x.tables()
	var all []netip.Addr
	for i, t := range tables {
		all = append(all, t.Lookup(name)...)
		if short, ok := strings.CutSuffix(name, "."+strings.ToLower(called[i])); ok {
			all = append(all, t.Lookup(short)...)
		}
	}
	return all, len(all) > 0
}

// noWayOut reports whether no network leads out: then there is none for names
// either, which could carry anything.
func (x *attachment) noWayOut() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.sealed
}

// reverse is what an address is called, as NAME.NETWORK.
func (x *attachment) reverse(ip netip.Addr) (string, bool) {
	tables, called := x.tables()
	for i, t := range tables {
		if name, ok := t.Reverse(ip); ok {
			return name + "." + called[i], true
		}
	}
	return "", false
}
