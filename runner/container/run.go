package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/runner"
	"kiln.build/runner/overlay"
	"kiln.build/runner/sandbox"
)

// Endpoint is a container's place in a network.
type Endpoint struct {
	IP     string
	Ports  []Port // as published
	Detach func() error
}

// Monitor runs containers. It is used by the process that stays for as long
// as the container runs.
type Monitor struct {
	Store *cache.Store

	// Attach gives the network namespace of a process an interface, and
	// publishes ports; it is called for containers on a bridge.
	Attach func(ctx context.Context, pid int, ports []Port) (*Endpoint, error)

	// Stdin, Stdout and Stderr are the streams of whoever watches; they may
	// be nil. With a terminal everything is on Stdout.
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// Started is called once the command runs. May be nil.
	Started func(*sandbox.Process)
}

// StartError says that a container's command could not be started; Code is
// what docker run exits with then.
type StartError struct {
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// Run starts a container and waits for its end. The result is its exit
// status; the error is a [*StartError] if it did not come to run.
func (m *Monitor) Run(ctx context.Context, c *Container) (code int, err error) {
	unlock, err := lockFile(filepath.Join(c.dir, "lock"), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return 0, fmt.Errorf("container %s is already running", c.Name)
	}
	if err != nil {
		return 0, err
	}
	defer unlock()
	r := &running{m: m, c: c}
	code, err = r.run(ctx)
	st := State{Status: Exited, ExitCode: code, Started: r.started, Finished: time.Now().UTC(), OOM: r.oom}
	if err != nil {
		st.Status, st.Error = Created, err.Error()
		st.ExitCode = 125
		var start *StartError
		if errors.As(err, &start) {
			st.ExitCode = start.Code
		}
	}
	if c.AutoRemove {
		return code, errors.Join(err, c.remove())
	}
	return code, errors.Join(err, c.setState(st))
}

// running is a container while it runs.
type running struct {
	m       *Monitor
	c       *Container
	started time.Time
	oom     bool
	closers []func() error
}

func (r *running) onClose(f func() error) { r.closers = append(r.closers, f) }

func (r *running) run(ctx context.Context) (int, error) {
	defer func() {
		for _, f := range slices.Backward(r.closers) {
			_ = f() // descriptors and files that end with the process anyway
		}
	}()
	spec, err := r.spec()
	if err != nil {
		return 0, &StartError{125, err}
	}
	st := State{Status: Running}
	if r.c.Network == "bridge" {
		spec.NetworkReady = func(ctx context.Context, pid int) error {
			e, err := r.m.Attach(ctx, pid, r.c.Ports)
			if err != nil {
				return err
			}
			r.onClose(e.Detach)
			st.IP, st.Ports = e.IP, e.Ports
			return r.hosts(e.IP)
		}
	}
	log, err := openLog(filepath.Join(r.c.dir, "log"))
	if err != nil {
		return 0, &StartError{125, err}
	}
	r.onClose(log.close)
	out := &output{stream: &stream{l: log, name: "stdout"}, to: r.m.Stdout}
	errs := &output{stream: &stream{l: log, name: "stderr"}, to: r.m.Stderr}
	var copies sync.WaitGroup
	var ends []*os.File
	if !r.c.Terminal {
		for _, s := range []struct {
			end **os.File
			to  *output
		}{{&spec.Stdout, out}, {&spec.Stderr, errs}} {
			rd, wr, err := os.Pipe()
			if err != nil {
				return 0, &StartError{125, err}
			}
			*s.end = wr
			ends = append(ends, wr)
			copies.Go(func() { s.to.copy(rd) })
		}
		if r.c.Stdin && r.m.Stdin != nil {
			rd, wr, err := os.Pipe()
			if err != nil {
				return 0, &StartError{125, err}
			}
			spec.Stdin = rd
			ends = append(ends, rd)
			// Not waited for: it ends with the input, or with the process.
			go func() {
				_, _ = io.Copy(wr, r.m.Stdin)
				_ = wr.Close()
			}()
		}
	}
	p, err := sandbox.Start(ctx, *spec)
	for _, f := range ends {
		_ = f.Close()
	}
	if err != nil {
		copies.Wait()
		var cmd *sandbox.CommandError
		if errors.As(err, &cmd) {
			return 0, &StartError{cmd.Code, err}
		}
		return 0, &StartError{125, err}
	}
	if t := p.Terminal(); t != nil {
		copies.Go(func() { out.copy(t) })
		if r.c.Stdin && r.m.Stdin != nil {
			go func() { _, _ = io.Copy(t, r.m.Stdin) }()
		}
	}
	r.started = time.Now().UTC()
	st.PID, st.Started = p.PID(), r.started
	if err := r.c.setState(st); err != nil {
		return 0, errors.Join(err, p.Kill())
	}
	if r.m.Started != nil {
		r.m.Started(p)
	}
	status, err := p.Wait()
	copies.Wait()
	if err != nil {
		return 0, err
	}
	r.oom = status.OOMKilled
	return status.Code, nil
}

// output hands on what a container prints to its log and to who watches.
type output struct {
	stream *stream
	to     io.Writer
}

func (o *output) copy(from *os.File) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if o.to != nil {
				if _, err := o.to.Write(buf[:n]); err != nil {
					o.to = nil // nobody watches any more; the log goes on
				}
			}
			_, _ = o.stream.Write(buf[:n]) // a full disk must not stop the container
		}
		if err != nil {
			break
		}
	}
	_ = o.stream.flush()
	_ = from.Close()
}

// spec is the sandbox of the container.
func (r *running) spec() (*sandbox.Spec, error) {
	c := r.c
	if err := r.m.Store.Pin(context.Background(), digests(c)...); err != nil {
		return nil, err
	}
	run := &runner.Runner{Store: r.m.Store}
	who, err := run.LookupUser(c.Layers, c.User)
	if err != nil {
		return nil, err
	}
	root, err := r.root()
	if err != nil {
		return nil, err
	}
	env := slices.Clone(c.Env)
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		env = append(env, "HOME="+who.Home)
	}
	s := &sandbox.Spec{
		Command: sandbox.Command{
			Args: c.Args, Env: env, Cwd: c.Cwd, UID: who.UID, GID: who.GID, Groups: who.Groups,
			Privileged: c.Privileged, Rlimits: c.Rlimits,
			Capabilities: capabilities(c.CapAdd, c.CapDrop),
			Seccomp:      sandbox.Seccomp{Unconfined: c.Unmasked},
		},
		Root: root, ReadonlyRoot: c.ReadOnly, Hostname: c.Hostname, ShmSize: c.ShmSize,
		Limits: c.Limits, Init: c.Init, Accounting: true,
	}
	if c.Terminal {
		s.Terminal = &sandbox.Size{Rows: 24, Cols: 80}
		s.Env = append(s.Env, "TERM=xterm")
	}
	if c.Network == "host" {
		s.Network.Host = true
	}
	if err := r.etc(s); err != nil {
		return nil, err
	}
	for _, b := range c.Binds {
		s.Mounts = append(s.Mounts, sandbox.Mount{Target: b.Target, Source: b.Source, Recursive: true, ReadOnly: b.ReadOnly})
	}
	for _, t := range c.Tmpfs {
		target, _, _ := strings.Cut(t, ":")
		s.Mounts = append(s.Mounts, sandbox.Mount{Target: target, Type: "tmpfs", NoSuid: true, NoDev: true, NoExec: true})
	}
	return s, nil
}

// capabilities are the default ones with some added and some dropped; nil
// where nothing is said. Names may lack the CAP_.
func capabilities(add, drop []string) []string {
	if len(add)+len(drop) == 0 {
		return nil
	}
	full := func(name string) string {
		return "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	}
	caps := slices.Clone(sandbox.DefaultCapabilities)
	for _, d := range drop {
		if strings.EqualFold(d, "all") {
			caps = []string{}
		}
		caps = slices.DeleteFunc(caps, func(c string) bool { return c == full(d) })
	}
	for _, a := range add {
		if !slices.Contains(caps, full(a)) {
			caps = append(caps, full(a))
		}
	}
	return caps
}

// root mounts the container's file system: its own changes over its image.
func (r *running) root() (*os.File, error) {
	var lower []string
	for _, l := range r.c.Layers {
		lower = append(lower, r.m.Store.LayerDir(l.Digest))
	}
	empty, err := r.m.Store.Scratch("empty")
	if err != nil {
		return nil, err
	}
	idx, err := r.m.Store.Index(r.c.Layers)
	if err != nil {
		return nil, err
	}
	upper := filepath.Join(r.c.dir, "fs")
	if e, _, ok := idx.Lookup(""); ok && r.started.IsZero() {
		if err := errors.Join(os.Chown(upper, e.UID, e.GID), unix.Chmod(upper, e.Mode)); err != nil {
			return nil, err
		}
	}
	// A volatile mount leaves a mark that forbids mounting again.
	_ = os.RemoveAll(filepath.Join(r.c.dir, "work", "work", "incompat"))
	root, err := overlay.Mount(overlay.Options{Lower: lower, Upper: upper, Work: filepath.Join(r.c.dir, "work"), Empty: empty})
	if err != nil {
		return nil, err
	}
	r.onClose(root.Close)
	return root, nil
}

// etc mounts the container's own hosts, resolv.conf and hostname.
func (r *running) etc(s *sandbox.Spec) error {
	if err := r.hosts(""); err != nil {
		return err
	}
	var resolv []byte
	if r.c.Network != "none" {
		var err error
		if resolv, err = runner.ResolvConf(r.c.Network == "bridge"); err != nil {
			return err
		}
	}
	dir := filepath.Join(r.c.dir, "etc")
	err := errors.Join(
		os.WriteFile(filepath.Join(dir, "resolv.conf"), resolv, 0o644),
		os.WriteFile(filepath.Join(dir, "hostname"), []byte(r.c.Hostname+"\n"), 0o644),
	)
	for _, name := range []string{"hosts", "resolv.conf", "hostname"} {
		s.Mounts = append(s.Mounts, sandbox.Mount{Target: "/etc/" + name, Source: filepath.Join(dir, name)})
	}
	return err
}

// hosts writes /etc/hosts, with the container's address once it is known.
func (r *running) hosts(ip string) error {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, h := range r.c.Hosts {
		name, addr, _ := strings.Cut(h, ":")
		fmt.Fprintf(&b, "%s\t%s\n", addr, name)
	}
	if ip == "" {
		ip = "127.0.1.1"
	}
	fmt.Fprintf(&b, "%s\t%s\n", ip, r.c.Hostname)
	return os.WriteFile(filepath.Join(r.c.dir, "etc", "hosts"), []byte(b.String()), 0o644)
}
