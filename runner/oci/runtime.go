package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"kiln.build/runner/sandbox"
	"kiln.build/runner/sandbox/cgroup"
)

// CreateOptions are those of a container to be created.
type CreateOptions struct {
	Bundle        string // folder with config.json
	PIDFile       string // gets the number of the container's process
	ConsoleSocket string // unix socket that gets the terminal's master
	// Stdin, Stdout and Stderr become the container's.
	Stdin, Stdout, Stderr *os.File
}

// fifo is the file that a created container waits at.
const fifo = "start"

// LoadConfig reads the config of a bundle.
func LoadConfig(bundle string) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var c specs.Spec
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(bundle, "config.json"), err)
	}
	if c.Version == "" {
		return nil, fmt.Errorf("%s: ociVersion is missing", filepath.Join(bundle, "config.json"))
	}
	var major, minor int
	if n, _ := fmt.Sscanf(c.Version, "%d.%d.", &major, &minor); n < 2 || major != 1 {
		return nil, fmt.Errorf("%s: ociVersion %q is not supported", filepath.Join(bundle, "config.json"), c.Version)
	}
	return &c, nil
}

// Create makes a container up to the point where its command can be started.
func (r Runtime) Create(ctx context.Context, id string, o CreateOptions) (err error) {
	if err := checkID(id); err != nil {
		return err
	}
	bundle, err := filepath.Abs(o.Bundle)
	if err != nil {
		return err
	}
	config, err := LoadConfig(bundle)
	if err != nil {
		return err
	}
	x, err := convert(bundle, config)
	if err != nil {
		return err
	}
	defer x.close()
	if terminal := x.s.Terminal != nil; terminal != (o.ConsoleSocket != "") {
		return errors.New("a console socket is needed with process.terminal, and only then")
	}
	c := &container{
		record: record{ID: id, Bundle: bundle, Created: time.Now().UTC(), Config: config},
		dir:    filepath.Join(r.Root, id),
	}
	if err := c.make(r.Root); err != nil {
		return err
	}
	defer c.close()
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(c.dir))
		}
	}()
	hold, err := os.OpenFile(filepath.Join(c.dir, fifo), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer hold.Close()
	x.s.Hold = hold
	x.s.Stdin, x.s.Stdout, x.s.Stderr = o.Stdin, o.Stdout, o.Stderr
	c.prepare(&x.s)
	if x.s.CgroupName == "" {
		x.s.CgroupName = cgroup.NewName() + "-detached"
	}
	p, err := sandbox.Start(ctx, x.s)
	if err != nil {
		return errors.Join(err, c.ended(ctx))
	}
	err = c.created(p, o)
	if err != nil {
		_ = p.Kill()
		_, werr := p.Wait()
		return errors.Join(err, werr, c.ended(ctx))
	}
	p.Release()
	return nil
}

// make makes the container's folder, with the FIFO.
func (c *container) make(root string) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(c.dir, 0o711); err != nil {
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("container with ID %s exists", c.ID)
		}
		return err
	}
	err := c.acquire()
	if err == nil {
		err = unix.Mkfifo(filepath.Join(c.dir, fifo), 0o600)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(c.dir))
	}
	return nil
}

// prepare has the hooks run that belong before the root is made.
func (c *container) prepare(s *sandbox.Spec) {
	h := c.Config.Hooks
	if h == nil {
		return
	}
	s.HookInput = func(pid int) []byte {
		c.PID = pid
		b, _ := json.Marshal(c.state(specs.StateCreating)) // strings and numbers
		return b
	}
	if len(prestart(h))+len(h.CreateRuntime) == 0 {
		return
	}
	s.Prepare = func(ctx context.Context, pid int) error {
		c.PID = pid
		if err := runHooks(ctx, prestart(h), c.state(specs.StateCreated)); err != nil {
			return err
		}
		return runHooks(ctx, h.CreateRuntime, c.state(specs.StateCreating))
	}
}

// created notes what Start, Kill and Delete will need.
func (c *container) created(p *sandbox.Process, o CreateOptions) error {
	c.PID = p.PID()
	birth, alive := processBirth(c.PID)
	if !alive {
		return errors.New("the container's process has ended")
	}
	c.Birth, c.V1, c.V2 = birth, p.Group().V1, p.Group().V2
	if t := p.Terminal(); t != nil {
		err := sendTerminal(o.ConsoleSocket, t)
		t.Close()
		if err != nil {
			return fmt.Errorf("console socket: %w", err)
		}
	}
	if err := c.save(); err != nil {
		return err
	}
	if o.PIDFile == "" {
		return nil
	}
	return os.WriteFile(o.PIDFile, []byte(strconv.Itoa(c.PID)), 0o644)
}

// sendTerminal sends a terminal's master over a unix socket.
func sendTerminal(socket string, t *os.File) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte(t.Name()), unix.UnixRights(int(t.Fd())), nil)
	return err
}

// ended runs the hooks of a container that is no more.
func (c *container) ended(ctx context.Context) error {
	if c.Config.Hooks == nil {
		return nil
	}
	return runHooks(ctx, c.Config.Hooks.Poststop, c.state(specs.StateStopped))
}

// Start has a created container execute its command.
func (r Runtime) Start(ctx context.Context, id string) error {
	c, err := r.open(id)
	if err != nil {
		return err
	}
	defer c.close()
	if s := c.status(); s != specs.StateCreated {
		return fmt.Errorf("cannot start container %s: it is %s, not created", id, s)
	}
	if err := c.release(); err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	if c.Config.Hooks == nil || len(c.Config.Hooks.Poststart) == 0 {
		return nil
	}
	if err := runHooks(ctx, c.Config.Hooks.Poststart, c.state(specs.StateRunning)); err != nil {
		return fmt.Errorf("the container runs, but a hook failed: %w", err)
	}
	return nil
}

// release lets the container's process go on, and waits until it has executed
// the command or ended.
func (c *container) release() error {
	path := filepath.Join(c.dir, fifo)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err // nobody reads: ENXIO
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte{1}); err != nil {
		return err
	}
	c.Started = true
	if err := c.save(); err != nil {
		return err
	}
	// The reader's end is closed by the exec.
	for {
		poll := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(poll, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		return os.Remove(path)
	}
}

// State describes a container.
func (r Runtime) State(id string) (*specs.State, error) {
	c, err := r.open(id)
	if err != nil {
		return nil, err
	}
	defer c.close()
	return c.state(c.status()), nil
}

// Kill sends a signal to a container's process, or to all of its processes.
func (r Runtime) Kill(id string, signal unix.Signal, all bool) error {
	c, err := r.open(id)
	if err != nil {
		return err
	}
	defer c.close()
	if all {
		return c.killAll(signal)
	}
	return c.kill(signal)
}

func (c *container) kill(signal unix.Signal) error {
	fd, err := unix.PidfdOpen(c.PID, 0)
	if err == nil {
		defer unix.Close(fd)
	}
	// Looked at with the descriptor open, the number is this process's.
	if c.status() == specs.StateStopped {
		return fmt.Errorf("cannot kill container %s: it is stopped", c.ID)
	}
	if err == nil {
		err = unix.PidfdSendSignal(fd, signal, nil, 0)
	}
	if err != nil {
		return fmt.Errorf("kill container %s: %w", c.ID, err)
	}
	return nil
}

func (c *container) killAll(signal unix.Signal) error {
	g := c.group()
	if signal == unix.SIGKILL {
		return g.Kill()
	}
	pids, err := g.Procs()
	for _, pid := range pids {
		if kerr := unix.Kill(pid, signal); kerr != unix.ESRCH {
			err = errors.Join(err, kerr)
		}
	}
	return err
}

// Delete removes a stopped container; one that runs is killed if force is
// set, and one that is not there is no error then. A hook that fails keeps
// nothing from being removed.
func (r Runtime) Delete(ctx context.Context, id string, force bool) error {
	c, err := r.open(id)
	if err != nil {
		if force && errors.Is(err, ErrUnknown) {
			return nil
		}
		return err
	}
	defer c.close()
	if s := c.status(); s != specs.StateStopped {
		if !force {
			return fmt.Errorf("cannot delete container %s: it is %s, not stopped", id, s)
		}
		if err := errors.Join(c.kill(unix.SIGKILL), c.await()); err != nil {
			return err
		}
	}
	err = c.group().Remove()
	return errors.Join(err, os.RemoveAll(c.dir), c.ended(ctx))
}

// await waits for the end of the container's process.
func (c *container) await() error {
	for range 1000 {
		if c.status() == specs.StateStopped {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("container %s has not ended 10 s after it was killed", c.ID)
}
