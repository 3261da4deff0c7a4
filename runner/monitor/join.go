package monitor

import (
	"context"

	"kiln.build/runner/network"
	"kiln.build/runner/rootless"
)

// Joined is a process's place in the network called bridge.
type Joined struct {
	Gateway    string
	Nameserver string // of the network's own; empty for the machine's
	Detach     func() error
}

// Join joins a process that is no container's, such as a build step, to the
// network of a store that is called bridge.
func Join(ctx context.Context, store string, pid int) (*Joined, error) {
	if rootless.Current() == rootless.Root {
		s, err := sitAtBridge(ctx, pid, nil, network.Seat{})
		if err != nil {
			return nil, err
		}
		return &Joined{Gateway: s.Gateway.String(), Detach: s.leave}, nil
	}
	s, err := newUserNetworks(store).sit(ctx, pid, nil, userSeat{})
	if err != nil {
		return nil, err
	}
	gateway := s.Gateway.String()
	return &Joined{Gateway: gateway, Nameserver: gateway, Detach: func() error {
		s.user.Leave()
		return s.user.Close()
	}}, nil
}
