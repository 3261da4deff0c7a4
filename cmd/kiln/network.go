package main

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"

	"golang.org/x/sys/unix"
	"kiln.build/runner"
	"kiln.build/runner/container"
	"kiln.build/runner/network"
	"kiln.build/runner/network/usermode"
	"kiln.build/runner/rootless"
)

// networkState is where the locks of the machine's one bridge are, whatever
// store a command works on.
const networkState = "/run/kiln/network"

// bridged reports whether sandboxes can have a network of their own with a
// way out: that takes root's rights over the machine's network.
func bridged() bool {
	if rootless.Current() != rootless.Root {
		return false
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}

// stepNetwork is the network of RUN steps: nil shares this machine's, which
// is what root has in a container that may not change its network.
func (a *app) stepNetwork() runner.Network {
	switch defaultNetwork() {
	case "host":
		return nil
	default:
		return stepNetwork{a.root}
	}
}

// stepNetwork gives RUN steps a network of their own.
type stepNetwork struct{ root string }

func (n stepNetwork) Attach(ctx context.Context, pid int) (*runner.Attachment, error) {
	s, err := newSeat(ctx, n.root, pid)
	if err != nil {
		return nil, fmt.Errorf("%w (the step can share this machine's network: build with --network=host --allow=network.host)", err)
	}
	return &runner.Attachment{Gateway: s.gateway.String(), Nameserver: s.nameserver, Detach: s.close}, nil
}

// defaultNetwork is that of containers.
func defaultNetwork() string {
	if bridged() || rootless.Current() != rootless.Root {
		return "bridge"
	}
	return "host"
}

// seat is a sandbox's place in the network called bridge: that of the
// machine, or, for a caller who may not change that, a network stack in this
// process, which does as if.
type seat struct {
	ip, gateway netip.Addr
	nameserver  string
	publish     func(context.Context, network.Port) (*network.Proxy, error)
	drain       func()       // waits for what the sandbox has sent
	close       func() error // drains, and gives the place up
}

// newSeat finds a place for a process; root is the store, of which those
// without root's rights have a network each.
func newSeat(ctx context.Context, root string, pid int) (*seat, error) {
	if rootless.Current() != rootless.Root {
		e, err := usermode.Attach(ctx, pid, usermode.Config{Dir: userAddresses(root, container.BridgeID)})
		if err != nil {
			return nil, err
		}
		leave := func() error {
			e.Drain()
			return e.Close()
		}
		return &seat{e.IP, e.Gateway, e.Gateway.String(), e.Publish, e.Drain, leave}, nil
	}
	e, err := network.New(networkState).Attach(ctx, pid)
	if err != nil {
		return nil, err
	}
	publish := func(ctx context.Context, p network.Port) (*network.Proxy, error) {
		return network.Publish(ctx, p, e.IP)
	}
	return &seat{e.IP, e.Gateway, "", publish, func() {}, e.Close}, nil
}

// userAddresses is the folder of the addresses of a network, for those without
// root's rights.
func userAddresses(root, id string) string { return filepath.Join(root, "networks", "addresses", id) }

// parsePublish reads --publish.
func parsePublish(words []string) ([]container.Port, error) {
	var all []container.Port
	for _, w := range words {
		ports, err := network.ParsePort(w)
		if err != nil {
			return nil, fmt.Errorf("--publish=%s: %w", w, err)
		}
		for _, p := range ports {
			all = append(all, container.Port{HostIP: p.HostIP, HostPort: p.HostPort, Container: p.ContainerPort, Proto: p.Proto})
		}
	}
	return all, nil
}
