//go:build kiln_monitor

package monitor

import (
	"context"
	"errors"

	"kiln.build/runner/container"
	"kiln.build/runner/network"
)

// userNetworks are not in the small program, which serves root alone: the
// TCP/IP stack is half of what the whole program is.
type userNetworks struct{}

type userSeat struct {
	network.Seat
	hostLoopback bool
}

var errNoUser = errors.New("this monitor is for root's containers")

func newUserNetworks(string) *userNetworks { return &userNetworks{} }

func (x *attachment) asUser(string, container.Wiring) error { return errNoUser }

func (u *userNetworks) sit(context.Context, int, *network.Network, userSeat) (*place, error) {
	return nil, errNoUser
}

func (u *userNetworks) resolve(*attachment) {}
