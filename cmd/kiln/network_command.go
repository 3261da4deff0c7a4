package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"kiln.build/runner/container"
	"kiln.build/runner/network"
)

// networkCommand is for networks of containers.
func (a *app) networkCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "network", Short: "Manage networks: containers of one find each other by name",
		Example: "  kiln network create back\n  kiln run -d --name db --network back postgres\n  kiln run --rm --network back postgres psql -h db",
	}
	group.AddCommand(a.networkCreate(), a.networkList(), a.networkInspect(), a.networkRemove(), a.networkPrune(), a.networkConnect(), a.networkDisconnect())
	return group
}

// networkFlags are those of network create.
type networkFlags struct {
	driver, gateway, addresses, scope, ipamDriver string
	subnets                                       []string
	internal, attachable, ipv6, ipv4, ingress     bool
	labels, options, aux                          []string
}

func (a *app) networkCreate() *cobra.Command {
	var f networkFlags
	c := &cobra.Command{
		Use: "create [flags] NETWORK", Short: "Make a network", Args: cobra.ExactArgs(1),
		Example: "  kiln network create back\n  kiln network create --internal --subnet 10.20.0.0/24 vault",
		RunE: func(c *cobra.Command, args []string) error {
			n, err := f.network(args[0])
			if err != nil {
				return err
			}
			store, err := a.open() // makes it, where this is the first command
			if err != nil {
				return err
			}
			defer store.Close()
			made, err := a.networks().Create(c.Context(), n, func(n *network.Network, others []*network.Network) error {
				return establish(c.Context(), n, others)
			})
			if err != nil {
				return err
			}
			a.noteNetwork("create", made)
			return writeLines(a.stdout, made.ID)
		},
	}
	fs := c.Flags()
	fs.StringVarP(&f.driver, "driver", "d", "bridge", "bridge: there are no others")
	fs.StringSliceVar(&f.subnets, "subnet", nil, "subnet, as in 10.20.0.0/24 (default a free one)")
	fs.StringVar(&f.gateway, "gateway", "", "this machine's address in the subnet (default its first)")
	fs.StringVar(&f.addresses, "ip-range", "", "part of the subnet that addresses are taken from")
	fs.StringVar(&f.ipamDriver, "ipam-driver", "default", "default: there is no other")
	fs.StringArrayVar(&f.aux, "aux-address", nil, "not supported")
	fs.BoolVar(&f.internal, "internal", false, "no way out of the network")
	fs.BoolVar(&f.attachable, "attachable", false, "accepted: every network is")
	fs.BoolVar(&f.ipv6, "ipv6", false, "not supported")
	fs.BoolVar(&f.ipv4, "ipv4", true, "IPv4, without which there is none")
	fs.BoolVar(&f.ingress, "ingress", false, "not supported")
	fs.StringVar(&f.scope, "scope", "", "local: there is no other")
	fs.StringArrayVar(&f.labels, "label", nil, "label, NAME=VALUE (repeatable)")
	fs.StringArrayVarP(&f.options, "opt", "o", nil, "com.docker.network.driver.mtu=N; others are kept, and of no effect (repeatable)")
	for _, hidden := range []string{"aux-address", "ipv6", "ipv4", "ingress", "scope", "ipam-driver"} {
		_ = fs.MarkHidden(hidden) // it is there
	}
	return c
}

// network is what the flags describe.
func (f *networkFlags) network(name string) (n network.Network, err error) {
	switch {
	case f.driver != "bridge":
		return n, fmt.Errorf("plugin %q not found: networks are bridges", f.driver)
	case f.ipv6 || !f.ipv4:
		return n, errors.New("--ipv6: networks have IPv4 only")
	case f.ingress || f.scope != "" && f.scope != "local":
		return n, errors.New("this node is not a swarm manager: networks are local")
	case len(f.aux) > 0:
		return n, errors.New("--aux-address: not supported")
	case f.ipamDriver != "default":
		return n, fmt.Errorf("--ipam-driver=%s: must be default", f.ipamDriver)
	}
	n.Name, n.Internal, n.Attachable = name, f.internal, f.attachable
	var k container.Config
	if err := (&runFlags{labels: f.labels}).applyLabels(&k); err != nil {
		return n, err
	}
	n.Labels = k.Labels
	if len(f.subnets) > 1 {
		return n, fmt.Errorf("invalid subnets %s: a network has one", strings.Join(f.subnets, ", "))
	}
	for _, s := range f.subnets {
		if n.Subnet, err = netip.ParsePrefix(s); err != nil {
			return n, fmt.Errorf("invalid subnet %s: invalid CIDR address: %w", s, err)
		}
	}
	if f.addresses != "" {
		if n.Range, err = netip.ParsePrefix(f.addresses); err != nil {
			return n, fmt.Errorf("invalid ip-range %s: invalid CIDR address: %w", f.addresses, err)
		}
	}
	if f.gateway != "" {
		if n.Gateway, err = netip.ParseAddr(f.gateway); err != nil {
			return n, fmt.Errorf("invalid gateway %s: %w", f.gateway, err)
		}
	}
	if n.Options = map[string]string{}; len(f.options) == 0 {
		n.Options = nil
	}
	for _, o := range f.options {
		key, value, _ := strings.Cut(o, "=")
		n.Options[key] = value
		if key == "com.docker.network.driver.mtu" {
			if n.MTU, err = strconv.Atoi(value); err != nil || n.MTU < 68 || n.MTU > 65535 {
				return n, fmt.Errorf("invalid option %s: must be a number from 68 to 65535", o)
			}
		}
	}
	return n, n.Plan().Check()
}

// establish gives a network what it lacks, and makes its bridge where this
// user can have one: it holds the subnet against others.
func establish(ctx context.Context, n *network.Network, others []*network.Network) error {
	for _, o := range others {
		if n.Subnet.IsValid() && o.Subnet.Overlaps(n.Subnet) {
			return fmt.Errorf("invalid pool request: %w (%s is in use by network %s)", network.ErrOverlap, n.Subnet, o.Name)
		}
	}
	if bridged() {
		gateway, err := n.Bridge(network.State).Ensure(ctx)
		if err != nil {
			return errors.Join(err, n.Bridge(network.State).Remove(ctx))
		}
		n.Subnet, n.Gateway = gateway.Masked(), gateway.Addr()
		return nil
	}
	if !n.Subnet.IsValid() {
		var err error
		if n.Subnet, err = network.FreeOf(others); err != nil {
			return err
		}
	}
	if !n.Gateway.IsValid() {
		n.Gateway = n.Subnet.Addr().Next()
	}
	return nil
}

// noteNetwork writes an event of a network down.
func (a *app) noteNetwork(action string, n *network.Network) {
	if set, err := a.containers(); err == nil {
		set.Note("network", action, n.ID, "name", n.Name, "type", "bridge")
	}
}

func (a *app) networkRemove() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm [flags] NETWORK...", Aliases: []string{"remove"}, Short: "Remove networks that no container is in", Args: cobra.MinimumNArgs(1),
		Example: "  kiln network rm back",
		RunE: func(c *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				err := a.removeNetwork(c.Context(), name)
				if errors.Is(err, fs.ErrNotExist) && force {
					continue
				}
				if err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(a.stdout, name)
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "one that is not there is no error")
	return c
}

func (a *app) removeNetwork(ctx context.Context, name string) error {
	set, err := a.containers()
	if err != nil {
		return err
	}
	if slices.Contains(network.Predefined, name) {
		return fmt.Errorf("%s is a pre-defined network and cannot be removed", name)
	}
	n, err := a.networks().Find(name)
	if err != nil {
		return err
	}
	err = a.networks().Remove(ctx, n, func() error {
		// Containers that do not run keep their place in vain, as with docker.
		users, err := a.liveUsers(set, n.ID)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return inUse(n, users)
		}
		if !bridged() {
			return errors.Join(n.Names(a.networks().Dir).Clear(), os.RemoveAll(filepath.Join(a.networks().Dir, "addresses", n.ID)))
		}
		return removeBridge(ctx, n)
	})
	if err == nil {
		a.noteNetwork("destroy", n)
	}
	return err
}

// removeBridge takes the bridge of a network away that no container of this
// store is in. The kernel takes interfaces of namespaces away in its own time,
// so that one of a container that is gone can still be there.
func removeBridge(ctx context.Context, n *network.Network) error {
	for range 200 {
		err := n.Bridge(network.State).Remove(ctx)
		if err == nil {
			return n.Names(network.State).Clear()
		}
		if !errors.Is(err, network.ErrInUse) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return inUse(n, nil)
}

func inUse(n *network.Network, users []*container.Container) error {
	var names []string
	for _, u := range users {
		names = append(names, fmt.Sprintf("name:%q id:%q", u.Name, u.ID[:12]))
	}
	return fmt.Errorf("error while removing network: network %s has active endpoints (%s)", n.Name, strings.Join(names, ", "))
}

// liveUsers are the containers that are in a network now.
func (a *app) liveUsers(set container.Set, id string) ([]*container.Container, error) {
	all, err := set.List()
	if err != nil {
		return nil, err
	}
	var live []*container.Container
	for _, k := range container.NetworkUsers(all, id) {
		if st, err := k.State(); err == nil && st.Status.Live() {
			live = append(live, k)
		}
	}
	return live, nil
}

func (a *app) networkPrune() *cobra.Command {
	var force bool
	var filters []string
	c := &cobra.Command{
		Use: "prune [flags]", Short: "Remove networks that no container has", Args: cobra.NoArgs,
		Example: "  kiln network prune -f --filter until=24h",
		RunE: func(c *cobra.Command, _ []string) error {
			keep, err := pruneNetworkFilter(filters)
			if err != nil {
				return err
			}
			if ok, err := a.confirm(force, "This will remove all custom networks not used by at least one container."); err != nil || !ok {
				return err
			}
			set, err := a.containers()
			if err != nil {
				return err
			}
			users, err := set.List()
			if err != nil {
				return err
			}
			all, err := a.networks().List()
			if err != nil {
				return err
			}
			var gone []string
			var errs []error
			for _, n := range all {
				if keep(n) || len(container.NetworkUsers(users, n.ID)) > 0 {
					continue
				}
				if err := a.removeNetwork(c.Context(), n.ID); err != nil {
					errs = append(errs, err)
					continue
				}
				gone = append(gone, n.Name)
			}
			set.Note("network", "prune", "", "reclaimed", "0")
			if len(gone) > 0 {
				fmt.Fprintf(a.stdout, "Deleted Networks:\n%s\n\n", strings.Join(gone, "\n"))
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	c.Flags().StringArrayVar(&filters, "filter", nil, "until=, label=, label!= (repeatable)")
	return c
}

// pruneNetworkFilter says which networks are kept whatever uses them.
func pruneNetworkFilter(filters []string) (func(*network.Network) bool, error) {
	var tests []func(*network.Network) bool
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		switch {
		case !ok:
			return nil, fmt.Errorf("invalid filter %q: must be KEY=VALUE", f)
		case key == "until":
			at, err := when("until", value)
			if err != nil {
				return nil, err
			}
			tests = append(tests, func(n *network.Network) bool { return !n.Created.Before(at) })
		case key == "label", key == "label!":
			tests = append(tests, func(n *network.Network) bool { return labelled(n.Labels, value) != (key == "label") })
		default:
			return nil, fmt.Errorf("invalid filter '%s'", key)
		}
	}
	return func(n *network.Network) bool {
		return slices.ContainsFunc(tests, func(t func(*network.Network) bool) bool { return t(n) })
	}, nil
}

// labelled says whether labels have one of this name, and of this value if it
// has any.
func labelled(labels map[string]string, want string) bool {
	name, value, has := strings.Cut(want, "=")
	got, ok := labels[name]
	return ok && (!has || got == value)
}

func (a *app) networkConnect() *cobra.Command {
	var m container.Membership
	var links, local []string
	var ip6 string
	var priority int
	c := &cobra.Command{
		Use: "connect [flags] NETWORK CONTAINER", Short: "Join a container to a network", Args: cobra.ExactArgs(2),
		Example: "  kiln network connect --alias db back pg1",
		RunE: func(c *cobra.Command, args []string) error {
			if len(links) > 0 || len(local) > 0 || ip6 != "" {
				return errors.New("--link, --link-local-ip and --ip6 are not supported: use --alias, and IPv4")
			}
			set, k, n, err := a.connection(args)
			if err != nil {
				return err
			}
			switch n.ID {
			case hostNetworkID:
				return errors.New("cannot connect container to host network - container must be created in host network mode")
			case noneNetworkID:
				return errors.New("container cannot be connected to multiple networks with one of the networks in private (none) mode")
			}
			if err := checkAddress(n, m.IP); err != nil {
				return err
			}
			if n.ID == container.BridgeID && len(m.Aliases) > 0 {
				return errNoAliases
			}
			m.Network, m.ID = n.Name, n.ID
			return set.Join(c.Context(), k, m)
		},
	}
	c.Flags().StringArrayVar(&m.Aliases, "alias", nil, "a further name for the container (repeatable)")
	c.Flags().StringVar(&m.IP, "ip", "", "address that it is to have")
	c.Flags().StringVar(&ip6, "ip6", "", "not supported")
	c.Flags().StringArrayVar(&links, "link", nil, "not supported")
	c.Flags().StringArrayVar(&local, "link-local-ip", nil, "not supported")
	c.Flags().StringArray("driver-opt", nil, "accepted, and of no effect")
	c.Flags().IntVar(&priority, "gw-priority", 0, "accepted, and of no effect: the first network leads out")
	for _, hidden := range []string{"ip6", "link", "link-local-ip", "driver-opt", "gw-priority"} {
		_ = c.Flags().MarkHidden(hidden) // it is there
	}
	return c
}

func (a *app) networkDisconnect() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "disconnect [flags] NETWORK CONTAINER", Short: "Take a container off a network", Args: cobra.ExactArgs(2),
		Example: "  kiln network disconnect back pg1",
		RunE: func(c *cobra.Command, args []string) error {
			set, k, n, err := a.connection(args)
			if err != nil {
				return err
			}
			return set.Leave(c.Context(), k, n.ID, n.Name)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "accepted: it always works")
	return c
}

// connection finds a network and a container.
func (a *app) connection(args []string) (set container.Set, k *container.Container, n *network.Network, err error) {
	if set, err = a.containers(); err != nil {
		return set, nil, nil, err
	}
	if n, err = a.network(args[0]); err != nil {
		return set, nil, nil, err
	}
	k, err = set.Find(args[1])
	return set, k, n, err
}

// network finds a network by name or ID, the predefined ones too.
func (a *app) network(name string) (*network.Network, error) {
	for _, p := range predefined() {
		if p.Name == name || len(name) >= 12 && strings.HasPrefix(p.ID, name) {
			return p, nil
		}
	}
	return a.networks().Find(name)
}

// predefined are the networks that nobody made.
func predefined() []*network.Network {
	return []*network.Network{
		{Name: "bridge", ID: container.BridgeID},
		{Name: "host", ID: hostNetworkID},
		{Name: "none", ID: noneNetworkID},
	}
}

// The IDs of the other predefined networks are made as [container.BridgeID] is.
const (
	hostNetworkID = "8e5ad4a628524cbe4bd011d0274545c27b87b77180b6b55fa5f5f26a23c928fb"
	noneNetworkID = "e803b93c4488153458f278eb540c5683edaccd1ebd40444a7f1077aaf31ae14f"
)

var errNoAliases = errors.New("network-scoped alias is supported only for containers in user defined networks")

// checkAddress checks an address that a container is to have in a network.
func checkAddress(n *network.Network, ip string) error {
	if ip == "" {
		return nil
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return fmt.Errorf("invalid IPv4 address: %s", ip)
	}
	if n.ID == container.BridgeID {
		return errors.New("user specified IP address is supported on user defined networks only")
	}
	if !n.Subnet.Contains(addr) || addr == n.Gateway {
		return fmt.Errorf("invalid IPv4 address %s: no configured subnet contains it, or it is the gateway's", ip)
	}
	return nil
}

// stampShort is a time as network ls has it.
func stampShort(t time.Time) string {
	return t.Local().Format("2006-01-02 15:04:05.999999999 -0700 MST")
}
