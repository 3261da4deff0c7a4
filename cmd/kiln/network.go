package main

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"kiln.build/runner"
	"kiln.build/runner/container"
	"kiln.build/runner/network"
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
// is all that can be had without root's rights.
func (a *app) stepNetwork() runner.Network {
	if !bridged() {
		return nil
	}
	return stepBridge{network.New(networkState)}
}

// stepBridge puts RUN steps on the bridge.
type stepBridge struct{ bridge *network.Bridge }

func (b stepBridge) Attach(ctx context.Context, pid int) (gateway string, detach func() error, err error) {
	e, err := b.bridge.Attach(ctx, pid)
	var none *network.UnavailableError
	if errors.As(err, &none) {
		return "", nil, fmt.Errorf("%w (the step can share this machine's network: build with --network=host --allow=network.host)", err)
	}
	if err != nil {
		return "", nil, err
	}
	return e.Gateway.String(), e.Close, nil
}

// defaultNetwork is that of containers.
func defaultNetwork() string {
	if bridged() {
		return "bridge"
	}
	return "host"
}

// attachNetwork joins a container to the bridge and publishes its ports.
func attachNetwork(ctx context.Context, pid int, ports []container.Port) (*container.Endpoint, error) {
	e, err := network.New(networkState).Attach(ctx, pid)
	if err != nil {
		return nil, err
	}
	end := &container.Endpoint{IP: e.IP.String(), Gateway: e.Gateway.String()}
	var proxies []*network.Proxy
	// The interface goes with the container's namespace, and the address with
	// this process: taking them away here would make the user wait for it.
	end.Detach = func() error {
		for _, p := range proxies {
			_ = p.Close() // always nil
		}
		return nil
	}
	for _, p := range ports {
		x, err := network.Publish(context.WithoutCancel(ctx), network.Port{HostIP: p.HostIP, HostPort: p.HostPort, ContainerPort: p.Container, Proto: p.Proto}, e.IP)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("publish %s: %w", p, err), end.Detach(), e.Close())
		}
		proxies = append(proxies, x)
		p.HostPort = x.HostPort
		end.Ports = append(end.Ports, p)
	}
	return end, nil
}

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
