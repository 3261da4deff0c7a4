package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox/cgroup"
)

// Exec starts another command in the running sandbox whose first process is
// pid, in all its namespaces and control groups, and with rights given by c
// alone. It works from outside of the sandbox's user namespace as well, if
// that belongs to this user. Where Exec returns, Start does; an ended ctx
// kills the command, and so does the end of this process.
func Exec(ctx context.Context, pid int, c Command) (*Process, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("find process %d: %w", pid, err)
	}
	target := os.NewFile(uintptr(fd), "pidfd")
	defer target.Close()
	p, err := execIn(ctx, pid, target, &c)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("the sandbox has ended: %w", err)
	}
	return p, err
}

// Exec is the function Exec in p's sandbox. It is in no other one, should p have
// ended and its number have become another process's.
func (p *Process) Exec(ctx context.Context, c Command) (*Process, error) {
	p.mu.Lock()
	fd, err := -1, error(unix.ESRCH)
	if !p.ended {
		fd, err = unix.FcntlInt(p.pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	}
	p.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("the sandbox has ended: %w", err)
	}
	target := os.NewFile(uintptr(fd), "pidfd")
	defer target.Close()
	return execIn(ctx, p.pid, target, &c)
}

func execIn(ctx context.Context, pid int, target *os.File, cmd *Command) (*Process, error) {
	flags, err := otherNamespaces(pid)
	if err != nil {
		return nil, fmt.Errorf("find process %d: %w", pid, err)
	}
	g, err := cgroup.Of(pid)
	if err != nil {
		return nil, err
	}
	// What was read by the number is of the process that target holds if
	// that has not ended meanwhile.
	if err := unix.PidfdSendSignal(int(target.Fd()), 0, nil, 0); err != nil {
		return nil, fmt.Errorf("find process %d: %w", pid, err)
	}
	c, err := newConn()
	if err != nil {
		return nil, err
	}
	defer c.close()
	have, err := permitted()
	if err != nil {
		return nil, err
	}
	if flags&unix.CLONE_NEWUSER != 0 {
		// Whoever joins a user namespace of theirs has all in there.
		have = 1<<len(capabilities) - 1
	}
	if !cmd.Privileged && !bounded(pid, unix.CAP_MKNOD) {
		// Perhaps because no group filters what its nodes could be of.
		have &^= 1 << unix.CAP_MKNOD
	}
	plan, err := newPlan(cmd, c, have)
	if err != nil {
		return nil, err
	}
	plan.Join = true
	plan.SetGroups = setgroupsAllowed(strconv.Itoa(pid))
	child, placed, err := join(int(target.Fd()), flags, plan.files, groups{g})
	if err != nil {
		return nil, err
	}
	// A child that is not waited for keeps its number.
	fd, err := unix.PidfdOpen(child, 0)
	if err != nil {
		unix.Kill(child, unix.SIGKILL)
		reap(child)
		return nil, fmt.Errorf("open process %d: %w", child, err)
	}
	p := &Process{pid: child, pidfd: os.NewFile(uintptr(fd), "pidfd"), group: groups{g}}
	p.stop = context.AfterFunc(ctx, func() { p.Kill() })
	c.theirs.Close()
	if !placed {
		err = g.Add(child)
	}
	if err == nil && cmd.OOMScoreAdj != nil {
		err = oomScoreAdj(child, *cmd.OOMScoreAdj)
	}
	if err == nil {
		err = c.configure(plan)
	}
	if err == nil {
		err = p.finish(c)
	}
	if err != nil {
		return nil, p.abort(ctx, err)
	}
	return p, nil
}

// bounded says whether a capability is in the bounding set of a process.
func bounded(pid, capability int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false // it has ended
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && set&(1<<capability) != 0
		}
	}
	return false
}
