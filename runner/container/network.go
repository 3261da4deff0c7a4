package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
)

// Wiring is what a container wants of networks.
type Wiring struct {
	PID      int // of a process in the container's network namespace
	Networks []Membership
	Ports    []Port
	Names    []string // that lead to the container on each network made by a user, beside its aliases
	Servers  []string // the nameservers of --dns; nil are the machine's
}

// Endpoint is a container's place in its networks. Whoever uses it makes one
// call at a time.
type Endpoint struct {
	Networks []Joined // as wanted; the first that has a gateway leads out
	Ports    []Port   // as published
	Resolver string   // address of the nameserver that knows names; empty if none does

	// Nameserver is the network's own where the machine's cannot be reached;
	// it is used unless the user has others.
	Nameserver string

	// Change joins and leaves networks until they are those of w, and has
	// names be as they are there. After an error it is as it was, if that can
	// be had. Fields change with it.
	Change func(ctx context.Context, w Wiring) error
	Detach func() error
}

// BridgeID is the ID of the machine's one bridge, which nobody has made: the
// SHA-256 of "kiln network bridge".
const BridgeID = "18707ac37bd52f546d8888ab6772da939166568dd2d0b4ae1b0a44a39880e129"

// Networked says whether a container has network interfaces that this package
// sees to: it neither shares another's, nor has none.
func (c *Config) Networked() bool {
	return c.Network != "host" && c.Network != "none" && !strings.HasPrefix(c.Network, sharedPrefix)
}

// sharedPrefix begins the mode of a container that has the network of another.
const sharedPrefix = "container:"

// SharedWith is the container whose network this one has, empty for its own.
func (c *Config) SharedWith() string {
	id, ok := strings.CutPrefix(c.Network, sharedPrefix)
	if !ok {
		return ""
	}
	return id
}

// Memberships are the networks that a container is joined to.
func (c *Config) Memberships() []Membership {
	if c.Networks == nil && c.Network == "bridge" {
		return []Membership{{Network: "bridge", ID: BridgeID}}
	}
	return c.Networks
}

// wired is how a run is connected.
type wired struct {
	*Endpoint
	as Wiring
}

// addresses are the container's own.
func (x *wired) addresses() []string {
	var all []string
	if x != nil {
		for _, j := range x.Networks {
			all = append(all, j.IP)
		}
	}
	return all
}

// gateway is where the container's default route leads.
func (x *wired) gateway() string {
	if x != nil {
		for _, j := range x.Networks {
			if j.Gateway != "" {
				return j.Gateway
			}
		}
	}
	return ""
}

// describe tells of the networks in a state.
func (x *wired) describe(st *State) {
	st.IP, st.Gateway, st.Networks, st.Ports = "", "", nil, nil
	if x == nil {
		return
	}
	st.Networks, st.Ports, st.Gateway = slices.Clone(x.Networks), x.Ports, x.gateway()
	if len(x.Networks) > 0 {
		st.IP = x.Networks[0].IP
	}
}

// wiring is what the container wants now, nil if it has no interfaces of its
// own.
func (w *watch) wiring() *Wiring {
	if !w.c.Networked() {
		return nil
	}
	names := []string{w.c.Name, w.c.ID[:12]}
	if !slices.Contains(names, w.c.Hostname) {
		names = append(names, w.c.Hostname)
	}
	return &Wiring{Networks: w.c.Memberships(), Ports: w.c.Ports, Names: names, Servers: w.c.DNS.Servers}
}

// wire connects a process of a new sandbox.
func (r *run) wire(ctx context.Context, w Wiring, pid int) error {
	w.PID = pid
	e, err := r.m.Attach(ctx, w)
	if err != nil {
		if _, gone := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); errors.Is(gone, fs.ErrNotExist) {
			return nil // the process has ended, and the sandbox knows why: that is the error to show
		}
		return err
	}
	r.onClose(func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, j := range r.wired.Networks {
			r.noteNetwork("disconnect", j.Membership)
		}
		r.wired = nil
		return e.Detach()
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wired = &wired{e, w}
	for _, j := range e.Networks {
		r.noteNetwork("connect", j.Membership)
	}
	return r.nameFiles()
}

// nameFiles writes the files that networks change.
func (w *watch) nameFiles() error { return errors.Join(w.writeHosts(), w.writeResolvConf()) }

// rewire has a container that runs be connected as it is wanted now. The
// caller holds w.mu.
func (w *watch) rewire(ctx context.Context) error {
	if w.wired == nil || w.proc == nil {
		return nil
	}
	want := *w.wiring()
	want.PID, want.Ports = w.wired.as.PID, w.wired.as.Ports
	if reflect.DeepEqual(want, w.wired.as) {
		return nil
	}
	old := w.wired.as.Networks
	if err := w.wired.Change(context.WithoutCancel(ctx), want); err != nil {
		return err
	}
	w.wired.as = want
	has := func(all []Membership, m Membership) bool {
		return slices.ContainsFunc(all, func(o Membership) bool { return o.ID == m.ID && o.Network == m.Network })
	}
	for _, m := range want.Networks {
		if !has(old, m) {
			w.noteNetwork("connect", m)
		}
	}
	for _, m := range old {
		if !has(want.Networks, m) {
			w.noteNetwork("disconnect", m)
		}
	}
	w.wired.describe(&w.st)
	return errors.Join(w.nameFiles(), w.c.setState(w.st))
}

// noteNetwork writes an event of a network down.
func (w *watch) noteNetwork(action string, m Membership) {
	w.c.set().Note("network", action, m.ID, "container", w.c.ID, "name", m.Network, "type", "bridge")
}

// Join joins a container to a network.
func (s Set) Join(ctx context.Context, c *Container, m Membership) error {
	return s.reconnect(ctx, c, func(c *Config) error {
		switch {
		case c.SharedWith() != "":
			return errors.New("container sharing network namespace with another container or host cannot be connected to any other network")
		case c.Network == "host":
			return errors.New("container sharing network namespace with another container or host cannot be connected to any other network")
		case c.Network == "none":
			return errors.New("container cannot be connected to multiple networks with one of the networks in private (none) mode")
		case slices.ContainsFunc(c.Memberships(), func(o Membership) bool { return o.ID == m.ID }):
			return fmt.Errorf("endpoint with name %s already exists in network %s", c.Name, m.Network)
		}
		c.Networks = append(slices.Clone(c.Memberships()), m)
		return nil
	})
}

// Leave takes a container off a network.
func (s Set) Leave(ctx context.Context, c *Container, id, name string) error {
	return s.reconnect(ctx, c, func(c *Config) error {
		left := slices.DeleteFunc(slices.Clone(c.Memberships()), func(m Membership) bool { return m.ID == id })
		if len(left) == len(c.Memberships()) {
			return fmt.Errorf("container %s is not connected to network %s", c.ID, name)
		}
		if c.Networks = left; left == nil {
			c.Networks = []Membership{}
		}
		return nil
	})
}

func (s Set) reconnect(ctx context.Context, c *Container, f func(*Config) error) error {
	names, err := s.lockNames(ctx)
	if err != nil {
		return err
	}
	defer names.unlock()
	var refused error
	err = c.apply(ctx, func(c *Config) {
		changed := *c
		if refused = f(&changed); refused == nil {
			*c = changed
		}
	})
	return errors.Join(refused, err)
}

// NetworkUsers are the containers that are to be joined to a network.
func NetworkUsers(all []*Container, id string) []*Container {
	var users []*Container
	for _, c := range all {
		if c.Networked() && slices.ContainsFunc(c.Memberships(), func(m Membership) bool { return m.ID == id }) {
			users = append(users, c)
		}
	}
	return users
}

// shareNetwork has the sandbox be made in another container's network
// namespace, where that is the container's mode.
func (r *run) shareNetwork() error {
	id := r.c.SharedWith()
	if id == "" {
		return nil
	}
	other, err := r.c.set().Find(id)
	if err != nil {
		return err
	}
	st, err := other.State()
	if err != nil {
		return err
	}
	if st.Status != Running && st.Status != Paused {
		return fmt.Errorf("cannot join network of a non running container: %s", other.ID)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", st.PID))
	if err != nil {
		return fmt.Errorf("cannot join network of container %s: %w", other.Name, err)
	}
	r.onClose(ns.Close)
	if still, err := other.still(st); !still {
		return errors.Join(fmt.Errorf("cannot join network of a non running container: %s", other.ID), err)
	}
	r.spec.Network.Join, r.host = ns, other
	return nil
}
