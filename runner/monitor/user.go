//go:build !kiln_monitor

package monitor

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"

	"kiln.build/runner/container"
	"kiln.build/runner/network"
	"kiln.build/runner/network/dns"
	"kiln.build/runner/network/usermode"
)

// userNetworks are the networks of a store as those have them who are not
// root: each sandbox has a network stack in the process that started it, and
// these processes find each other in a folder of the store.
type userNetworks struct {
	dir      string // of addresses and names
	resolver *dns.Server
}

// userSeat says how a process sits in such a network.
type userSeat struct {
	network.Seat
	hostLoopback bool // see [usermode.Config]
}

func newUserNetworks(root string) *userNetworks {
	return &userNetworks{dir: filepath.Join(root, "networks"), resolver: &dns.Server{}}
}

// asUser has x use these networks.
func (x *attachment) asUser(root string, w container.Wiring) error {
	x.user = newUserNetworks(root)
	var err error
	if x.user.resolver, err = nameserver(w.Servers); err != nil {
		return err
	}
	x.user.resolver.Lookup, x.user.resolver.Reverse, x.user.resolver.Sealed = x.lookup, x.reverse, x.noWayOut
	return nil
}

// sit joins a process to a network; def is nil for the one called bridge.
func (u *userNetworks) sit(ctx context.Context, pid int, def *network.Network, want userSeat) (*place, error) {
	s := &place{def: def}
	c := usermode.Config{
		IP: want.IP, MAC: want.MAC, Interface: want.Interface, NoRoute: want.NoRoute, HostLoopback: want.hostLoopback,
		Resolver: u.resolver, Dir: filepath.Join(u.dir, "addresses", container.BridgeID),
	}
	if def != nil {
		s.names = def.Names(u.dir)
		c.Dir = filepath.Join(u.dir, "addresses", def.ID)
		c.Gateway, c.Range = netip.PrefixFrom(def.Gateway, def.Subnet.Bits()), def.Range
		c.Internal, c.MTU = def.Internal, def.MTU
	}
	e, err := usermode.Attach(ctx, pid, c)
	if err != nil {
		return nil, err
	}
	s.user, s.leave, s.lead, s.publish = e, e.Remove, e.Lead, e.Publish
	s.IP, s.Gateway, s.Bits, s.Interface, s.MAC = e.IP, e.Gateway, e.Bits, e.Interface, e.MAC
	return s, nil
}

// resolve says where the nameserver is: at the gateway of each network, so of
// the first, as long as there is one.
func (u *userNetworks) resolve(x *attachment) {
	x.end.Nameserver, x.end.Resolver = "", ""
	if len(x.seats) == 0 {
		return
	}
	x.end.Nameserver = x.seats[0].Gateway.String()
	if slices.ContainsFunc(x.seats, func(s *place) bool { return s.names.Dir != "" }) {
		x.end.Resolver = x.end.Nameserver
	}
}
