package sandbox

import (
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox/seccomp"
)

// filters remembers compiled programs by capabilities and profile: a build
// uses one or two. Who asks for one that is being compiled waits for it.
var filters sync.Map // string -> func() ([]unix.SockFilter, error)

// filter returns the program for a profile in docker's JSON form, or for the
// default one where that is empty.
func filter(s *Seccomp, caps []string) ([]unix.SockFilter, error) {
	if s.Rules != nil {
		return seccomp.Compile(s.Rules)
	}
	profile := s.Profile
	load := seccomp.Default
	if len(profile) > 0 {
		load = func(caps []string) (*seccomp.Profile, error) { return seccomp.Load(profile, caps) }
	}
	key := strings.Join(caps, ",") + "\n" + string(profile)
	compile, _ := filters.LoadOrStore(key, sync.OnceValues(func() ([]unix.SockFilter, error) {
		p, err := load(caps)
		if err != nil || p == nil { // a profile that filters nothing
			return nil, err
		}
		return seccomp.Compile(p)
	}))
	return compile.(func() ([]unix.SockFilter, error))()
}

// warmFilter compiles the filter that most sandboxes have.
func warmFilter() {
	have, err := permitted()
	if err != nil {
		return
	}
	mask, err := capMask(DefaultCapabilities)
	if err != nil {
		return
	}
	_, _ = filter(&Seccomp{}, capNames(mask&have)) // whoever needs it hears of errors
}
