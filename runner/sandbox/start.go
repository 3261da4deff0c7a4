package sandbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox/launch"
)

// Start makes a sandbox and starts its command. When it returns, the command
// is being executed; a command that cannot be is a [*CommandError]. An ended
// ctx kills the sandbox, also after the start. The caller has to call Wait.
func Start(ctx context.Context, s Spec) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(context.Cause(ctx), s.ControlGroups.Discard())
	}
	begin := start
	if s.Runtime != "" {
		begin = startRuntime
	}
	if s.ControlGroups == nil {
		s.ControlGroups = MakeGroups(s)
	}
	p, err := begin(ctx, &s, s.ControlGroups.made)
	if err != nil {
		return nil, errors.Join(err, s.ControlGroups.Discard())
	}
	return p, nil
}

// Warm prepares what all sandboxes of this process have in common, in the
// background: the first one starts sooner.
func Warm() {
	go initFile()
	go warmFilter()
}

func start(ctx context.Context, s *Spec, made func() (groups, error)) (*Process, error) {
	go initFile()
	c, err := newConn()
	if err != nil {
		return nil, err
	}
	defer c.close()
	have, err := permitted()
	if err != nil {
		return nil, err
	}
	plan, err := newPlan(&s.Command, c, have)
	if err != nil {
		return nil, err
	}
	g, err := made()
	if err != nil {
		return nil, err
	}
	if err := plan.complete(s, g); err != nil {
		return nil, err
	}
	attr := &syscall.SysProcAttr{
		Cloneflags: cloneFlags(s),
		PidFD:      new(int),
	}
	// A child in another PID namespace sees no parent, which package syscall
	// takes for its death; the init ties itself to it later, in any case.
	if !s.Detached && s.PID.Join == nil {
		attr.Pdeathsig = unix.SIGKILL
	}
	if s.UIDMap != nil {
		opened, err := plan.openSources(s.Network.Host)
		defer closeAll(opened)
		if err != nil {
			return nil, err
		}
	}
	if s.UIDMap != nil {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings, attr.GidMappings = idMap(s.UIDMap), idMap(s.GIDMap)
		attr.GidMappingsEnableSetgroups = plan.SetGroups
		// The caller's id may not be mapped, and then the init would lose
		// its capabilities when it is executed.
		attr.Credential = &syscall.Credential{NoSetGroups: true}
	}
	if g.V2 != "" {
		dir, err := os.Open(g.V2)
		if err != nil {
			return nil, fmt.Errorf("open control group: %w", err)
		}
		defer dir.Close()
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	}
	pid, placed, err := fork(plan.files, attr, s.PID.Join, g)
	if err != nil {
		return nil, err
	}
	p := &Process{pid: pid, pidfd: os.NewFile(uintptr(*attr.PidFD), "pidfd"), group: g, own: true}
	p.stop = context.AfterFunc(ctx, func() { p.Kill() })
	if !placed {
		err = g.Add1(pid)
	}
	if err == nil {
		err = p.prepare(ctx, s, plan, c)
	}
	if err == nil {
		err = g.Tighten()
	}
	if err == nil {
		return p, nil
	}
	return nil, p.abort(ctx, err)
}

// abort ends a start that failed with err.
func (p *Process) abort(ctx context.Context, err error) error {
	p.Signal(unix.SIGKILL)
	status, _, werr := reap(p.pid)
	p.end()
	if p.terminal != nil {
		p.terminal.Close()
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case werr != nil:
		return errors.Join(err, fmt.Errorf("wait for the sandbox's init: %w", werr))
	case errors.Is(err, errEnded) && status.Signaled():
		return fmt.Errorf("start the sandbox: its init was ended by signal %d", status.Signal())
	}
	return err
}

// prepare goes through the start with the init, which is in its control
// groups: its control group namespace is to show these as the roots.
func (p *Process) prepare(ctx context.Context, s *Spec, plan *plan, c *conn) error {
	c.theirs.Close() // so that its end is seen
	if s.OOMScoreAdj != nil {
		if err := oomScoreAdj(p.pid, *s.OOMScoreAdj); err != nil {
			return err
		}
	}
	if s.HookInput != nil {
		plan.HookInput = s.HookInput(p.pid)
	}
	if err := c.configure(plan); err != nil {
		return err
	}
	if s.Prepare != nil {
		if err := p.beforeRoot(ctx, s, c); err != nil {
			return err
		}
	}
	if s.NetworkReady != nil {
		if err := s.NetworkReady(ctx, p.pid); err != nil {
			if c.ended() {
				return c.follow(p) // it has said why there is no network of its any more
			}
			return err
		}
	}
	return p.finish(c)
}

// beforeRoot calls Prepare once the init is in all its namespaces, and lets it
// go on.
func (p *Process) beforeRoot(ctx context.Context, s *Spec, c *conn) error {
	m, _, err := c.receive()
	switch {
	case err == io.EOF:
		return errEnded
	case err != nil:
		return fmt.Errorf("follow the sandbox's init: %w", err)
	case m.Kind != launch.KindNamespaces:
		return fmt.Errorf("start the sandbox: %s: %s", m.Step, m.Text)
	}
	if err := s.Prepare(ctx, p.pid); err != nil {
		return err
	}
	if _, err := c.ours.Write([]byte{1}); err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("start the sandbox: %w", err)
	}
	return nil
}

// finish tells the init that it may execute the command and waits until it
// does.
func (p *Process) finish(c *conn) error {
	if _, err := c.ours.Write([]byte{1}); err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("start the sandbox: %w", err)
	}
	return c.follow(p)
}

func oomScoreAdj(pid, score int) error {
	err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", strconv.AppendInt(nil, int64(score), 10), 0)
	if err != nil {
		return fmt.Errorf("set the OOM score: %w", err)
	}
	return nil
}

// cloneFlags returns the new namespaces.
func cloneFlags(s *Spec) uintptr {
	var flags uintptr
	for _, n := range []struct {
		ns   Namespace
		flag uintptr
	}{
		{s.PID, unix.CLONE_NEWPID}, {s.Network, unix.CLONE_NEWNET},
		{s.IPC, unix.CLONE_NEWIPC}, {s.UTS, unix.CLONE_NEWUTS}, {s.Mount, unix.CLONE_NEWNS},
	} {
		if n.ns == (Namespace{}) {
			flags |= n.flag
		}
	}
	return flags
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func idMap(m []IDMap) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, x := range m {
		out = append(out, syscall.SysProcIDMap{ContainerID: x.Inside, HostID: x.Outside, Size: x.Size})
	}
	return out
}

// forks is served by one thread, which lives as long as the process: a
// parent-death signal comes when the thread that cloned ends, and the
// runtime ends threads as it likes.
var forks = sync.OnceValue(func() chan<- func() {
	c := make(chan func())
	go serveForks(c)
	return c
})

func serveForks(c <-chan func()) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The first thread is what control groups and /proc know the whole
		// process by: it stays where it is, and another one serves.
		go serveForks(c)
		select {}
	}
	for f := range c {
		f()
	}
}

// onForkThread runs f on the thread that all sandboxes are children of.
func onForkThread(f func()) {
	done := make(chan struct{})
	forks() <- func() { f(); close(done) }
	<-done
}

// initEnv keeps the Go runtime of the init small: one processor, no garbage
// collection in its few milliseconds.
var initEnv = []string{"GOMAXPROCS=1", "GOGC=off"}

// aboveAll is a number for a descriptor that the child still has when it
// executes its program. Before that, package syscall puts the files in their
// places, from zero up, by way of numbers above the highest of them: two for
// each at most, and one for its own pipe. What had these numbers is gone.
func aboveAll(files []uintptr) int {
	top := len(files)
	for _, fd := range files {
		top = max(top, int(fd))
	}
	return top + 2*len(files) + 8
}

// fork clones a process that executes the init, in the PID namespace pidns
// where that is not nil, and in the groups of version 1 if placed says so.
func fork(files []*os.File, attr *syscall.SysProcAttr, pidns *os.File, g groups) (pid int, placed bool, err error) {
	program, err := initFile()
	if err != nil {
		return 0, false, err
	}
	pa := &syscall.ProcAttr{Env: initEnv, Sys: attr}
	for _, f := range files {
		pa.Files = append(pa.Files, f.Fd())
	}
	fd, err := unix.FcntlInt(program.Fd(), unix.F_DUPFD_CLOEXEC, aboveAll(pa.Files))
	if err != nil {
		return 0, false, fmt.Errorf("duplicate the sandbox's init: %w", err)
	}
	defer unix.Close(fd)
	var left error
	onForkThread(func() {
		if pidns != nil {
			var leave func()
			if leave, err = childrenIn(pidns); err != nil {
				return
			}
			defer leave()
		}
		// Where the thread cannot enter, the child is moved.
		if leave, err := g.Enter(); err == nil {
			placed = true
			defer func() { left = leave() }()
		}
		pid, err = syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(fd), []string{launch.Name}, pa)
	})
	runtime.KeepAlive(files)
	runtime.KeepAlive(program)
	if err != nil {
		return 0, false, errors.Join(fmt.Errorf("clone the sandbox's init: %w", err), left)
	}
	if left != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _, _ = reap(pid)
		return 0, false, fmt.Errorf("leave the sandbox's control groups: %w", left)
	}
	return pid, placed, nil
}

// childrenIn has children of this thread be made in a PID namespace, until
// leave is called.
func childrenIn(pidns *os.File) (leave func(), err error) {
	own, err := os.Open("/proc/self/ns/pid")
	if err != nil {
		return nil, fmt.Errorf("join the PID namespace: %w", err)
	}
	if err := unix.Setns(int(pidns.Fd()), unix.CLONE_NEWPID); err != nil {
		own.Close()
		return nil, fmt.Errorf("join the PID namespace: %w", err)
	}
	return func() {
		// One's own is always allowed.
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWPID); err != nil {
			panic("sandbox: leave the PID namespace: " + err.Error())
		}
		own.Close()
	}, nil
}

// conn is the connection to an init.
type conn struct {
	ours, theirs *os.File
	null         *os.File
}

func newConn() (*conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to the sandbox's init: %w", err)
	}
	c := &conn{ours: os.NewFile(uintptr(fds[0]), "init"), theirs: os.NewFile(uintptr(fds[1]), "parent")}
	c.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *conn) close() {
	for _, f := range []*os.File{c.ours, c.theirs, c.null} {
		if f != nil {
			f.Close() // a second time for theirs: harmless
		}
	}
}

// configure sends the configuration.
func (c *conn) configure(p *plan) error {
	_, err := c.ours.Write(p.Encode())
	// An init that has ended says why, or its status does.
	if err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("configure the sandbox's init: %w", err)
	}
	return nil
}

// ended says whether the init has, or is about to: the thread that had its
// namespaces may be gone before the others, with which it shares descriptors.
func (c *conn) ended() bool {
	p := []unix.PollFd{{Fd: int32(c.ours.Fd()), Events: unix.POLLRDHUP}}
	_, err := unix.Poll(p, 100)
	return err == nil && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0
}

// errEnded says that the init ended before the command began.
var errEnded = errors.New("start the sandbox: its init ended")

// follow reads the init's messages until the command is executed.
func (c *conn) follow(p *Process) error {
	ready := false
	for {
		m, fd, err := c.receive()
		if err == io.EOF && ready {
			return nil
		}
		if err == io.EOF {
			return errEnded
		}
		if err != nil {
			return fmt.Errorf("follow the sandbox's init: %w", err)
		}
		switch m.Kind {
		case launch.KindError:
			if m.Code != 0 {
				return &CommandError{Message: m.Text, Code: m.Code}
			}
			return fmt.Errorf("start the sandbox: %s: %s", m.Step, m.Text)
		case launch.KindCreated:
			p.created = append(p.created, m.Text)
		case launch.KindPTY:
			p.terminal = fd
		case launch.KindFormats:
			p.formats = fd
		case launch.KindExec:
			ready = true
		case launch.KindHeld:
			return nil
		}
	}
}

// receive reads one message, with the descriptor that came with it.
func (c *conn) receive() (launch.Message, *os.File, error) {
	var head [8]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, err := c.receiveHead(head[:], oob)
	if err != nil {
		return launch.Message{}, nil, err
	}
	if n == 0 {
		return launch.Message{}, nil, io.EOF
	}
	if _, err := io.ReadFull(c.ours, head[n:]); err != nil {
		return launch.Message{}, nil, err
	}
	size := binary.LittleEndian.Uint64(head[:])
	if size > 1<<20 {
		return launch.Message{}, nil, fmt.Errorf("a message of %d bytes", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.ours, body); err != nil {
		return launch.Message{}, nil, err
	}
	m, err := launch.DecodeMessage(body)
	if err != nil || m.Kind != launch.KindPTY && m.Kind != launch.KindFormats {
		return m, nil, err
	}
	f, err := passed(oob[:oobn])
	return m, f, err
}

func (c *conn) receiveHead(head, oob []byte) (n, oobn int, err error) {
	for {
		n, oobn, _, _, err = unix.Recvmsg(int(c.ours.Fd()), head, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			return n, oobn, err
		}
	}
}

// passed returns the descriptor in a control message.
func passed(oob []byte) (*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, err
		}
		if len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), "passed"), nil
		}
	}
	return nil, errors.New("a message without its descriptor")
}
