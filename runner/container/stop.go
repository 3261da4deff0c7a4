package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// digests are those of the container's layers.
func digests(c *Container) []digest.Digest {
	var all []digest.Digest
	for _, l := range c.Layers {
		all = append(all, l.Digest)
	}
	return all
}

// ParseSignal reads a signal as docker does: a number, or a name with or
// without SIG.
func ParseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 64 {
		return unix.Signal(n), nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	if d, ok := strings.CutPrefix(name, "SIGRTMIN+"); ok {
		if n, err := strconv.Atoi(d); err == nil && n >= 0 && n <= 30 {
			return unix.Signal(34 + n), nil
		}
	}
	return 0, fmt.Errorf("invalid signal: %s", s)
}

// Signal sends a signal to the container's command.
func (c *Container) Signal(s unix.Signal) error {
	st, err := c.State()
	if err != nil {
		return err
	}
	if st.Status != Running || st.PID == 0 {
		return fmt.Errorf("container %s is not running", c.ID)
	}
	// The lock is held, so the process is the container's until its monitor
	// has reaped it; a descriptor of it cannot come to mean another one.
	fd, err := unix.PidfdOpen(st.PID, 0)
	if err != nil {
		return fmt.Errorf("container %s is not running", c.ID)
	}
	defer unix.Close(fd)
	if !c.monitored() {
		return fmt.Errorf("container %s is not running", c.ID)
	}
	if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal container %s: %w", c.ID, err)
	}
	return nil
}

// Wait returns the container's exit status once it has ended, or was removed.
func (c *Container) Wait(ctx context.Context) (int, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	last := 0
	for {
		st, err := c.State()
		if errors.Is(err, os.ErrNotExist) {
			return last, nil // it removed itself
		}
		if err != nil {
			return 0, err
		}
		last = st.ExitCode
		if st.Status != Running {
			return st.ExitCode, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// Stop asks the container to end by its stop signal, and kills it when the
// time is up. A negative time is the container's own.
func (c *Container) Stop(ctx context.Context, seconds int) error {
	st, err := c.State()
	if err != nil || st.Status != Running {
		return err
	}
	name := c.StopSignal
	if name == "" {
		name = "SIGTERM"
	}
	sig, err := ParseSignal(name)
	if err != nil {
		return err
	}
	if seconds < 0 {
		seconds = c.StopWait
	}
	if err := c.Signal(sig); err != nil {
		return nil // it has ended by itself
	}
	waiting, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	defer cancel()
	if _, err := c.Wait(waiting); err == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.Kill(ctx)
}

// Kill kills the container and waits until it is gone.
func (c *Container) Kill(ctx context.Context) error {
	if err := c.Signal(unix.SIGKILL); err != nil {
		st, stErr := c.State()
		if stErr == nil && st.Status == Running {
			return err
		}
		return nil
	}
	_, err := c.Wait(ctx)
	return err
}

// SpaceUsed is the size of what the container has changed, in bytes.
func (c *Container) SpaceUsed() (n int64) {
	_ = filepath.WalkDir(filepath.Join(c.dir, "fs"), func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				n += fi.Size()
			}
		}
		return nil
	})
	return n
}

// Dir is the container's folder.
func (c *Container) Dir() string { return c.dir }

// LogPath is the file that the container's log is in.
func (c *Container) LogPath() string { return filepath.Join(c.dir, "log") }
