package container

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Policy says when a container that ended is started again.
type Policy struct {
	Name string `json:"name,omitempty"` // "", "on-failure", "always", "unless-stopped"
	Max  int    `json:"max,omitempty"`  // of on-failure; 0 is any number
}

// ParsePolicy reads the value of --restart.
func ParsePolicy(s string) (Policy, error) {
	name, most, counted := strings.Cut(s, ":")
	p := Policy{Name: name}
	switch name {
	case "", "no":
		p.Name = ""
	case "always", "unless-stopped", "on-failure":
	default:
		return p, fmt.Errorf("invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", name)
	}
	if !counted {
		return p, nil
	}
	n, err := strconv.Atoi(most)
	switch {
	case name != "on-failure":
		return p, errors.New("invalid restart policy: maximum retry count can only be used with 'on-failure'")
	case err != nil || n < 0:
		return p, errors.New("invalid restart policy: maximum retry count must be a number that is not negative")
	}
	p.Max = n
	return p, nil
}

func (p Policy) String() string {
	switch {
	case p.Name == "":
		return "no"
	case p.Max > 0:
		return fmt.Sprintf("%s:%d", p.Name, p.Max)
	}
	return p.Name
}

// again reports whether a container that ended so is started again.
func (p Policy) again(code, restarts int) bool {
	switch p.Name {
	case "always", "unless-stopped":
		return true
	case "on-failure":
		return code != 0 && (p.Max == 0 || restarts < p.Max)
	}
	return false
}

// WantsStart reports whether the container's policy would have it run though
// it does not: its monitor was killed, or the machine was switched off.
func (c *Container) WantsStart() (bool, error) {
	st, err := c.State()
	if err != nil || st.Status != Exited {
		return false, err
	}
	switch c.Restart.Name {
	case "always":
		return true, nil
	case "unless-stopped":
		return !st.Stopped, nil
	}
	return !st.Stopped && c.Restart.again(st.ExitCode, st.Restarts), nil
}

// The waits between restarts: doubled each time, up to a minute, and short
// again after a run of ten seconds. These are docker's figures.
const (
	firstWait   = 100 * time.Millisecond
	longestWait = time.Minute
	goodRun     = 10 * time.Second
)

// backoff is the wait before the last restart.
type backoff time.Duration

// next is the wait after a run of some time.
func (b *backoff) next(ran time.Duration) time.Duration {
	switch d := time.Duration(*b); {
	case d == 0 || ran >= goodRun:
		*b = backoff(firstWait)
	default:
		*b = backoff(min(2*d, longestWait))
	}
	return time.Duration(*b)
}
