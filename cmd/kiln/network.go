package main

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
	"kiln.build/runner"
	"kiln.build/runner/container"
	"kiln.build/runner/monitor"
	"kiln.build/runner/network"
	"kiln.build/runner/rootless"
)

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
	e, err := monitor.Join(ctx, n.root, pid)
	if err != nil {
		return nil, fmt.Errorf("%w (the step can share this machine's network: build with --network=host --allow=network.host)", err)
	}
	return &runner.Attachment{Gateway: e.Gateway, Nameserver: e.Nameserver, Detach: e.Detach}, nil
}

// defaultNetwork is that of containers.
func defaultNetwork() string {
	if bridged() || rootless.Current() != rootless.Root {
		return "bridge"
	}
	return "host"
}

// parsePublish reads --publish.
func parsePublish(words []string) ([]container.Port, error) {
	var all []container.Port
	for _, w := range words {
		short, err := shortPublish(w)
		if err != nil {
			return nil, fmt.Errorf("--publish=%s: %w", w, err)
		}
		ports, err := network.ParsePort(short)
		if err != nil {
			return nil, fmt.Errorf("--publish=%s: %w", w, err)
		}
		for _, p := range ports {
			all = append(all, container.Port{HostIP: p.HostIP, HostPort: p.HostPort, HostLast: p.HostLast, Container: p.ContainerPort, Proto: p.Proto})
		}
	}
	return all, nil
}

// shortPublish makes HOST:CONTAINER/PROTO of docker's longer form, which is
// target=CONTAINER,published=HOST,protocol=PROTO.
func shortPublish(s string) (string, error) {
	if !strings.Contains(s, "=") {
		return s, nil
	}
	is := map[string]string{"protocol": "tcp"}
	for field := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(field, "=")
		if !ok || key != "target" && key != "published" && key != "protocol" && key != "mode" {
			return "", fmt.Errorf("%q is not target=, published= or protocol=", field)
		}
		is[key] = value
	}
	return is["published"] + ":" + is["target"] + "/" + is["protocol"], nil
}
