package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

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
	// 34 and 64 as libc has them: the kernel's first two are its own.
	for prefix, base := range map[string]int{"SIGRTMIN": 34, "SIGRTMAX": 64} {
		offset, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		n, err := 0, error(nil)
		if offset != "" {
			n, err = strconv.Atoi(offset)
		}
		if n += base; err == nil && n >= 34 && n <= 64 {
			return unix.Signal(n), nil
		}
	}
	return 0, fmt.Errorf("invalid signal: %s", s)
}

// stopSignal is what asks the container to end. An image may name one that is
// none; its containers are stopped by the usual one, as with docker.
func (c *Container) stopSignal() unix.Signal {
	if s, err := ParseSignal(c.StopSignal); err == nil {
		return s
	}
	return unix.SIGTERM
}

// signal sends a signal to the container's command. One that has ended is no
// error.
func (c *Container) signal(s unix.Signal) error {
	st, err := c.State()
	if err != nil || st.PID == 0 || !st.Status.Live() {
		return err
	}
	fd, err := unix.PidfdOpen(st.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find process %d of container %s: %w", st.PID, c.Name, err)
	}
	defer unix.Close(fd)
	if still, err := c.still(st); !still {
		return err
	}
	err = unix.PidfdSendSignal(fd, s, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("send signal %d to container %s: %w", s, c.Name, err)
	}
	c.Note("kill", "signal", strconv.Itoa(int(s)))
	return nil
}

// still reports whether the container's command is that of a state. What was
// opened by its number before is of that command then: it has the number until
// its monitor reaps it, which then says so.
func (c *Container) still(st State) (bool, error) {
	now, err := c.State()
	return err == nil && now.PID == st.PID && now.Started.Equal(st.Started), err
}

// Kill sends a signal to the container's command. After SIGKILL, or the
// container's stop signal, no policy starts it again; after SIGKILL it is
// gone when Kill returns.
func (c *Container) Kill(ctx context.Context, s unix.Signal) error {
	if _, _, err := c.May(Kill); err != nil {
		return err
	}
	if s == unix.SIGKILL {
		return ignoreEnded(c.end(ctx, s))
	}
	if s != c.stopSignal() {
		return c.signal(s)
	}
	return c.terminate(ctx, s)
}

// StopOptions say how a container is stopped; zero values are its own.
type StopOptions struct {
	Signal  unix.Signal // that asks it to end
	Seconds *int        // after which it is killed; negative is never
}

// Stop asks the container to end by a signal, and kills it after a time.
func (c *Container) Stop(ctx context.Context, o StopOptions) error {
	if ok, _, err := c.May(Stop); err != nil || !ok {
		return err
	}
	sig := o.Signal
	if sig == 0 {
		sig = c.stopSignal()
	}
	wait := c.StopWait
	if o.Seconds != nil {
		wait = *o.Seconds
	}
	if err := c.terminate(ctx, sig); err != nil {
		return err
	}
	waiting := ctx
	if wait >= 0 {
		var cancel func()
		waiting, cancel = context.WithTimeout(ctx, time.Duration(wait)*time.Second)
		defer cancel()
	}
	_, err := c.Wait(waiting)
	if err != nil && ctx.Err() == nil && waiting.Err() != nil {
		err = c.end(ctx, unix.SIGKILL)
	}
	if err = ignoreEnded(err); err == nil {
		c.Note("stop")
	}
	return err
}

// terminate has the monitor not start the container again, and sends the
// signal, which a paused container would not see.
func (c *Container) terminate(ctx context.Context, s unix.Signal) error {
	err := c.ask(ctx, request{Do: doHold}, nil)
	for errors.Is(err, errEnded) {
		// Ended, or not answering yet.
		if st, err := c.State(); err != nil || !st.Status.Live() {
			return ignoreEnded(err)
		}
		err = c.ask(ctx, request{Do: doHold}, nil)
	}
	if err != nil {
		return err
	}
	if err := c.signal(s); err != nil {
		return ignoreEnded(err)
	}
	if st, err := c.State(); err != nil || st.Status != Paused {
		return ignoreEnded(err)
	}
	err = c.ask(ctx, request{Do: doUnpause}, nil)
	if st, stErr := c.State(); stErr != nil || st.Status != Paused {
		return nil // somebody else was faster
	}
	return ignoreEnded(err)
}

// end terminates the container by a signal that it cannot withstand, and
// waits until it is gone.
func (c *Container) end(ctx context.Context, s unix.Signal) error {
	if st, err := c.State(); err != nil || !st.Status.Live() {
		return err
	}
	if err := c.terminate(ctx, s); err != nil {
		return err
	}
	_, err := c.Wait(ctx)
	return err
}

// ignoreEnded takes it as done when the container ended by itself.
func ignoreEnded(err error) error {
	if errors.Is(err, errEnded) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Wait returns the container's exit status once it has ended for good, or at
// once if it does not run.
func (c *Container) Wait(ctx context.Context) (int, error) {
	for {
		st, err := c.State()
		if err != nil || !st.Status.Live() {
			return st.ExitCode, err
		}
		var a answer
		err = c.ask(ctx, request{Do: doWait}, &a)
		if err == nil || !errors.Is(err, errEnded) {
			return a.Code, err
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
}

// Pause freezes the container's processes, Unpause thaws them.
func (c *Container) Pause(ctx context.Context) error { return c.freeze(ctx, Pause, doPause) }

// Unpause undoes Pause.
func (c *Container) Unpause(ctx context.Context) error { return c.freeze(ctx, Unpause, doUnpause) }

func (c *Container) freeze(ctx context.Context, v Verb, do string) error {
	if _, _, err := c.May(v); err != nil {
		return err
	}
	err := c.ask(ctx, request{Do: do}, nil)
	if errors.Is(err, errEnded) {
		if _, _, refused := c.May(v); refused != nil {
			return refused
		}
	}
	return err
}
