package container

import (
	"errors"
	"strings"
	"testing"
	"time"
)

var statuses = []Status{Created, Running, Paused, Restarting, Exited}

// TestStates goes over all pairs of verb and state. "do" is done, "-" finds
// nothing to do, anything else is the refusal, in docker's words.
func TestStates(t *testing.T) {
	const (
		notRunning = "container ID is not running"
		notPaused  = "container ID is not paused"
		restarting = "container ID is restarting, wait until the container is running"
		stopped    = "cannot attach to a stopped container, start it first"
		noKill     = "cannot kill container: web: container ID is not running"
	)
	table := map[Verb][5]string{ // in the order of statuses
		Start:   {"do", "-", "cannot start a paused container, try unpause instead", "-", "do"},
		Stop:    {"-", "do", "do", "do", "-"},
		Restart: {"do", "do", "do", "do", "do"},
		Kill:    {noKill, "do", "do", "do", noKill},
		Pause:   {notRunning, "do", "container ID is already paused", restarting, notRunning},
		Unpause: {notPaused, notPaused, "do", notPaused, notPaused},
		Exec:    {notRunning, "do", "container web is paused, unpause the container before exec", restarting, notRunning},
		Attach: {
			stopped, "do", "cannot attach to a paused container, unpause it first",
			"cannot attach to a restarting container, wait until it is running", stopped,
		},
		Top: {notRunning, "do", "do", restarting, notRunning},
		Remove: {
			"do", "cannot remove container \"/web\": container is running: stop the container before removing or force remove",
			"cannot remove container \"/web\": container is paused and must be unpaused first",
			"cannot remove container \"/web\": container is restarting: stop the container before removing or force remove", "do",
		},
		ForceRemove: {"do", "do", "do", "do", "do"},
	}
	if len(table) != len(outcomes) {
		t.Errorf("%d verbs are tested, there are %d", len(table), len(outcomes))
	}
	c := &Container{Config: Config{Name: "web", ID: "ID"}}
	for verb, row := range table {
		for i, s := range statuses {
			ok, err := c.may(verb, s)
			got := map[bool]string{true: "do", false: "-"}[ok]
			if err != nil {
				got = err.Error()
				var refused *StateError
				if !errors.As(err, &refused) || refused.Verb != verb || refused.Status != s {
					t.Errorf("%s %s: %#v is no StateError of these", verb, s, err)
				}
			}
			if got != row[i] {
				t.Errorf("%s of a container that is %s: %q, want %q", verb, s, got, row[i])
			}
		}
	}
}

// TestSettled has a monitor vanish in each state.
func TestSettled(t *testing.T) {
	for _, s := range statuses {
		st := State{Status: s, PID: 7, ExitCode: 3, IP: "10.0.0.1", Restarts: 2, Stopped: true, Stubs: []string{"/a"}, Started: time.Unix(1, 0)}
		got := settled(st)
		switch s {
		case Created, Exited:
			if got.Status != s || got.ExitCode != 3 {
				t.Errorf("%s became %+v", s, got)
			}
		default:
			if got.Status != Exited || got.ExitCode != 137 || got.PID != 0 || got.IP != "" || !strings.Contains(got.Error, "killed") {
				t.Errorf("%s became %+v", s, got)
			}
			if got.Restarts != 2 || !got.Stopped || len(got.Stubs) != 1 || !got.Started.Equal(st.Started) {
				t.Errorf("%s lost what is still true: %+v", s, got)
			}
		}
	}
}

func TestPolicy(t *testing.T) {
	for _, tt := range []struct {
		text      string
		want      Policy
		fails     string
		zero, one bool // whether it starts again after these exit statuses, the first time
	}{
		{text: "", want: Policy{}},
		{text: "no", want: Policy{}},
		{text: "always", want: Policy{Name: "always"}, zero: true, one: true},
		{text: "unless-stopped", want: Policy{Name: "unless-stopped"}, zero: true, one: true},
		{text: "on-failure", want: Policy{Name: "on-failure"}, one: true},
		{text: "on-failure:3", want: Policy{Name: "on-failure", Max: 3}, one: true},
		{text: "on-failure:-1", fails: "not negative"},
		{text: "on-failure:x", fails: "not negative"},
		{text: "always:3", fails: "'on-failure'"},
		{text: "sometimes", fails: "unknown policy 'sometimes'"},
	} {
		p, err := ParsePolicy(tt.text)
		if tt.fails != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%q: got %v, want %q", tt.text, err, tt.fails)
			}
			continue
		}
		if err != nil || p != tt.want {
			t.Errorf("%q: got %+v, %v", tt.text, p, err)
		}
		if p.again(0, 0) != tt.zero || p.again(1, 0) != tt.one {
			t.Errorf("%q: starts again after 0: %t, after 1: %t", tt.text, p.again(0, 0), p.again(1, 0))
		}
		if back, err := ParsePolicy(p.String()); err != nil || back != p {
			t.Errorf("%q prints as %q, which is %+v, %v", tt.text, p, back, err)
		}
	}
	if p := (Policy{Name: "on-failure", Max: 3}); p.again(1, 3) || !p.again(1, 2) {
		t.Error("on-failure:3 does not stop after three")
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	want := firstWait
	for i := range 20 {
		if got := b.next(time.Millisecond); got != want {
			t.Fatalf("wait %d is %v, want %v", i, got, want)
		}
		want = min(2*want, longestWait)
	}
	if got := b.next(goodRun); got != firstWait {
		t.Errorf("after a good run it waits %v, want %v", got, firstWait)
	}
}

func TestHealth(t *testing.T) {
	h := &Health{Retries: 2, StartPeriod: time.Minute, StartInterval: time.Second, Interval: time.Hour}
	s := HealthState{Status: Starting}
	step := func(code int, up time.Duration, want HealthStatus, streak int) {
		t.Helper()
		s = h.next(s, HealthResult{ExitCode: code}, up)
		if s.Status != want || s.FailingStreak != streak {
			t.Errorf("got %s, streak %d; want %s, %d", s.Status, s.FailingStreak, want, streak)
		}
	}
	step(1, time.Second, Starting, 0)
	step(1, time.Second, Starting, 0)
	if w := h.wait(s.Status, time.Second); w != time.Second {
		t.Errorf("in the start period it waits %v", w)
	}
	step(1, time.Hour, Starting, 1)
	step(0, time.Hour, Healthy, 0)
	step(-1, time.Hour, Healthy, 1)
	step(1, time.Hour, Unhealthy, 2)
	step(1, time.Second, Unhealthy, 3) // it counts once it was healthy, however early
	step(0, time.Hour, Healthy, 0)
	if w := h.wait(s.Status, time.Second); w != time.Hour {
		t.Errorf("when healthy it waits %v", w)
	}
	if len(s.Log) != maxHealthLog {
		t.Errorf("%d results are kept, want %d", len(s.Log), maxHealthLog)
	}
	d := &Health{}
	if d.wait(Starting, 0) != 30*time.Second {
		t.Error("the default interval is not 30 seconds")
	}
}

func TestSignals(t *testing.T) {
	for text, want := range map[string]int{
		"KILL": 9, "SIGKILL": 9, "sigkill": 9, "9": 9, "TERM": 15, "WINCH": 28, "RTMIN": 34, "RTMIN+3": 37, "RTMAX-1": 63, "SIGRTMAX": 64, "64": 64,
		"": 0, "0": 0, "65": 0, "-1": 0, "NOPE": 0, "RTMIN+31": 0, "RTMAX+1": 0,
	} {
		got, err := ParseSignal(text)
		if int(got) != want || (err == nil) != (want != 0) {
			t.Errorf("%q: got %d, %v; want %d", text, got, err, want)
		}
	}
}
