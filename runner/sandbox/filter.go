package sandbox

import (
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox/seccomp"
)

// filters remembers compiled programs by capabilities and profile: a build
// uses one or two.
var filters sync.Map // string -> []unix.SockFilter

// filter returns the program for a profile in docker's JSON form, or for the
// default one where that is empty.
func filter(s *Seccomp, caps []string) ([]unix.SockFilter, error) {
	if s.Rules != nil {
		return seccomp.Compile(s.Rules)
	}
	profile := s.Profile
	key := strings.Join(caps, ",") + "\n" + string(profile)
	if prog, ok := filters.Load(key); ok {
		return prog.([]unix.SockFilter), nil
	}
	load := seccomp.Default
	if len(profile) > 0 {
		load = func(caps []string) (*seccomp.Profile, error) { return seccomp.Load(profile, caps) }
	}
	p, err := load(caps)
	if err != nil || p == nil { // a profile that filters nothing
		return nil, err
	}
	prog, err := seccomp.Compile(p)
	if err != nil {
		return nil, err
	}
	filters.Store(key, prog)
	return prog, nil
}
