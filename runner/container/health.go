package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"kiln.build/runner/sandbox"
)

// Health says how a container is checked: docker's HEALTHCHECK. Zero values
// are docker's defaults.
type Health struct {
	// Test is {"CMD", ARGS...}, or {"CMD-SHELL", LINE}.
	Test  []string `json:"test"`
	Shell []string `json:"shell,omitempty"` // of CMD-SHELL

	Interval      time.Duration `json:"interval,omitempty"`
	Timeout       time.Duration `json:"timeout,omitempty"`
	StartPeriod   time.Duration `json:"startPeriod,omitempty"`   // failures do not count yet
	StartInterval time.Duration `json:"startInterval,omitempty"` // the interval in that time
	Retries       int           `json:"retries,omitempty"`
}

// What a check is where its image and the user say nothing: docker's figures.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
)

// What is kept of checks: docker's figures, too.
const (
	maxHealthLog    = 5
	maxHealthOutput = 4096
)

// HealthStatus is what the checks say.
type HealthStatus string

// The values of a [HealthStatus].
const (
	Starting  HealthStatus = "starting"
	Healthy   HealthStatus = "healthy"
	Unhealthy HealthStatus = "unhealthy"
)

// HealthState is how a container's checks went, in docker's form.
type HealthState struct {
	Status        HealthStatus
	FailingStreak int
	Log           []HealthResult
}

// HealthResult is the outcome of one check.
type HealthResult struct {
	Start    time.Time
	End      time.Time
	ExitCode int
	Output   string
}

// next is how the health is after a check. A failure while the container is
// starting does not count.
func (h *Health) next(s HealthState, r HealthResult, up time.Duration) HealthState {
	s.Log = append(slices.Clone(s.Log), r)
	if n := len(s.Log) - maxHealthLog; n > 0 {
		s.Log = s.Log[n:]
	}
	if r.ExitCode == 0 {
		s.Status, s.FailingStreak = Healthy, 0
		return s
	}
	if s.Status == Starting && up < h.StartPeriod {
		return s
	}
	s.FailingStreak++
	if s.FailingStreak >= or(h.Retries, healthRetries) {
		s.Status = Unhealthy
	}
	return s
}

// wait is the time before the next check.
func (h *Health) wait(s HealthStatus, up time.Duration) time.Duration {
	if s == Starting && up < h.StartPeriod {
		return or(h.StartInterval, healthStartInterval)
	}
	return or(h.Interval, healthInterval)
}

func or[T int | time.Duration](v, other T) T {
	if v == 0 {
		return other
	}
	return v
}

// args is the command of the check.
func (h *Health) args() []string {
	if h.Test[0] == "CMD" {
		return h.Test[1:]
	}
	shell := h.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), h.Test[1:]...)
}

// check checks the container's health until ctx, the life of its command,
// ends.
func (r *run) check(ctx context.Context, p *sandbox.Process) {
	began := time.Now()
	for {
		r.mu.Lock()
		status := r.st.Health.Status
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(r.c.Health.wait(status, time.Since(began))):
		}
		r.mu.Lock()
		paused := r.st.Status != Running
		r.mu.Unlock()
		if paused {
			continue
		}
		result := r.probe(ctx, p)
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		before := r.st.Health
		// What is in use by who reads the state is not changed.
		after := r.c.Health.next(*before, result, time.Since(began))
		r.st.Health = &after
		_ = r.c.setState(r.st) // a full disk must not stop the container
		r.mu.Unlock()
		if after.Status != before.Status {
			r.c.Note("health_status: " + string(after.Status))
		}
	}
}

// probe runs the check once.
func (r *run) probe(ctx context.Context, p *sandbox.Process) HealthResult {
	x := HealthResult{Start: time.Now().UTC()}
	limit := or(r.c.Health.Timeout, healthTimeout)
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, code, err := r.checkOnce(timed, p)
	x.End, x.ExitCode, x.Output = time.Now().UTC(), code, out
	var cmd *sandbox.CommandError
	switch {
	case timed.Err() != nil:
		x.ExitCode = -1
		x.Output = fmt.Sprintf("Health check exceeded timeout (%v)", limit)
		if out != "" {
			x.Output += ": " + out
		}
	case errors.As(err, &cmd):
		x.ExitCode, x.Output = cmd.Code, err.Error()
	case err != nil:
		x.ExitCode, x.Output = -1, err.Error()
	}
	return x
}

func (r *run) checkOnce(ctx context.Context, first *sandbox.Process) (string, int, error) {
	root, err := first.Root()
	if err != nil {
		return "", 0, err
	}
	defer root.Close()
	c := r.c
	cmd, err := c.Command(root, CommandOptions{Args: c.Health.args(), Env: c.Env, Cwd: c.Cwd, User: c.User})
	if err != nil {
		return "", 0, err
	}
	rd, wr, err := os.Pipe()
	if err != nil {
		return "", 0, err
	}
	defer rd.Close()
	cmd.Stdout, cmd.Stderr = wr, wr
	p, err := first.Exec(ctx, cmd)
	_ = wr.Close()
	if err != nil {
		return "", 0, err
	}
	// What the check leaves behind may keep the pipe open.
	stop := context.AfterFunc(ctx, func() { _ = rd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	got := make(chan []byte, 1)
	go func() {
		text, _ := io.ReadAll(io.LimitReader(rd, maxHealthOutput))
		_, _ = io.Copy(io.Discard, rd)
		got <- text
	}()
	status, err := p.Wait()
	_ = rd.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	return string(<-got), status.Code, err
}
