// Package seccomp compiles system call profiles, as docker has them, into
// programs for the kernel's seccomp filter.
//
// [Default] is the profile that moby ships, [Load] one in docker's JSON form,
// and [Compile] turns either into a [Filter]: one program for the machine's
// own architecture and the 32-bit one it runs as well. The package is not a
// general assembler; it knows just the shapes that profiles have.
package seccomp

import (
	"encoding/json"
	"fmt"
	"slices"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

//go:generate go run gen.go

// call is a system call of one architecture. The tables are sorted by name
// and, unlike the maps that they are made from, cost nothing at program start.
type call struct {
	name string
	nr   uint32
}

// Profile is a profile whose conditions are decided.
type Profile = specs.LinuxSeccomp

// Default returns moby's default profile for a process with the capabilities
// caps ("CAP_CHOWN") in its bounding set.
func Default(caps []string) (*Profile, error) {
	p, err := moby.GetDefaultProfile(rights(caps))
	if err != nil {
		return nil, fmt.Errorf("make the default seccomp profile: %w", err)
	}
	return p, nil
}

// Load returns the profile in docker's JSON form, its conditions decided for
// the capabilities caps and this machine.
func Load(profile []byte, caps []string) (*Profile, error) {
	if !json.Valid(profile) {
		return nil, fmt.Errorf("load the seccomp profile: it is not JSON")
	}
	p, err := moby.LoadProfile(string(profile), rights(caps))
	if err != nil {
		return nil, fmt.Errorf("load the seccomp profile: %w", err)
	}
	return p, nil
}

func rights(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: slices.Clone(caps)}}}
}

// number finds name in a table.
func number(calls []call, name string) (uint32, bool) {
	i, ok := slices.BinarySearchFunc(calls, name, func(c call, name string) int {
		if c.name < name {
			return -1
		}
		if c.name > name {
			return 1
		}
		return 0
	})
	if !ok {
		return 0, false
	}
	return calls[i].nr, true
}
