package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox/cgroup"
)

// external is a sandbox that an OCI runtime runs: created and started by two
// commands of it, in between of which the network is attached. The runtime
// ends with each command; the container's process is then a child of this
// one, which adopts orphans.
type external struct {
	bundle
	path string // of the runtime
	id   string
	top  string // folder of the bundle and of the runtime's state
}

// adopt has orphans become children of this process.
var adopt = sync.OnceValue(func() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	return nil
})

// startRuntime is start by the runtime of s.
func startRuntime(ctx context.Context, s *Spec, made func() (groups, error)) (_ *Process, err error) {
	g, err := made()
	if err != nil {
		return nil, err
	}
	if err := adopt(); err != nil {
		return nil, err
	}
	// The runtime may be one that hands on what it was handed (CVE-2024-21626).
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("close descriptors on exec: %w", err)
	}
	x := &external{bundle: bundle{s: s}}
	if x.path, err = exec.LookPath(s.Runtime); err != nil {
		return nil, fmt.Errorf("runtime: %w", err)
	}
	if x.path, err = filepath.Abs(x.path); err != nil {
		return nil, err
	}
	sweepBundles()
	if x.top, err = os.MkdirTemp("", bundlePrefix+cgroup.NewName()+".*"); err != nil {
		return nil, err
	}
	x.id, x.dir = filepath.Base(x.top), filepath.Join(x.top, "bundle")
	if err := os.Chmod(x.top, 0o711); err != nil { // for root in a user namespace
		return nil, errors.Join(err, os.RemoveAll(x.top))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.remove())
		}
	}()
	if err := x.config(g); err != nil {
		return nil, err
	}
	var terminal *os.File
	err = inMountNamespace(func() error {
		if err := x.mounts(g); err != nil {
			return err
		}
		terminal, err = x.create(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	p, err := x.process(ctx, g, terminal)
	if err != nil {
		return nil, err
	}
	if err := x.begin(ctx, p); err != nil {
		p.Kill()
		_, werr := p.Wait()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, errors.Join(err, werr)
	}
	return p, nil
}

// bundlePrefix begins the names of bundles' folders, which go on with the name
// of a control group: it says who made them.
const bundlePrefix = "kiln-bundle-"

// sweepBundles removes what processes that were killed have left, once.
var sweepBundles = sync.OnceFunc(func() {
	found, _ := filepath.Glob(filepath.Join(os.TempDir(), bundlePrefix+"*")) // the pattern is well formed
	for _, dir := range found {
		name, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), bundlePrefix), ".")
		var st unix.Stat_t
		if cgroup.Orphan(name) && unix.Lstat(dir, &st) == nil && int(st.Uid) == os.Geteuid() {
			_ = os.RemoveAll(dir) // what stays is for the next process
		}
	}
})

// inMountNamespace calls f on a thread in a mount namespace of its own, which
// ends with what f has started: mounts made in it are seen by that alone.
func inMountNamespace(f func() error) error {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // and end with the thread
		if unix.Gettid() == unix.Getpid() {
			// Not on the thread that stands for the process in /proc.
			err := inMountNamespace(f)
			runtime.UnlockOSThread()
			errs <- err
			return
		}
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
		}
		if err != nil {
			err = fmt.Errorf("make a mount namespace: %w", err)
		} else {
			err = f()
		}
		errs <- err
	}()
	return <-errs
}

// create runs the runtime's create and returns the terminal's master, if
// there is one.
func (x *external) create(ctx context.Context) (*os.File, error) {
	config, err := json.Marshal(&x.c)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(x.dir, "config.json"), config, 0o600); err != nil {
		return nil, err
	}
	args := []string{"create", "--bundle", x.dir, "--pid-file", filepath.Join(x.top, "pid")}
	console := -1
	if x.s.Terminal != nil {
		socket := filepath.Join(x.top, "console")
		if console, err = listen(socket); err != nil {
			return nil, err
		}
		defer unix.Close(console)
		args = append(args, "--console-socket", socket)
	}
	cmd := x.command(ctx, append(args, x.id)...)
	var errs bytes.Buffer
	if x.s.Terminal == nil {
		for _, f := range []struct {
			from *os.File
			to   func()
		}{
			{x.s.Stdin, func() { cmd.Stdin = x.s.Stdin }},
			{x.s.Stdout, func() { cmd.Stdout = x.s.Stdout }},
			{x.s.Stderr, func() { cmd.Stderr = x.s.Stderr }},
		} {
			if f.from != nil {
				f.to()
			}
		}
	} else {
		cmd.Stderr = &errs
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, x.explain("create", err)
	}
	if console < 0 {
		return nil, nil
	}
	return receiveTerminal(console)
}

// command is a command of the runtime, with its state in the bundle.
func (x *external) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, x.path, append([]string{"--root", filepath.Join(x.top, "state"), "--log", filepath.Join(x.top, "log"), "--log-format", "json"}, args...)...)
	cmd.Dir = x.top
	return cmd
}

// explain makes an error of what the runtime has written to its log. What
// docker takes for a command that cannot be started is one here.
func (x *external) explain(what string, err error) error {
	text := ""
	data, _ := os.ReadFile(filepath.Join(x.top, "log")) // or there is none
	for line := range strings.Lines(string(data)) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Level == "error" {
			text = entry.Msg
		}
	}
	if text == "" {
		return fmt.Errorf("%s %s: %w", x.path, what, err)
	}
	if strings.Contains(text, "exec") {
		for _, c := range []struct {
			part string
			code int
		}{
			{"executable file not found", 127}, {"no such file or directory", 127},
			{"permission denied", 126}, {"is a directory", 126}, {"not a directory", 126}, {"exec format error", 126},
		} {
			if strings.Contains(text, c.part) {
				return &CommandError{Message: text, Code: c.code}
			}
		}
	}
	return fmt.Errorf("%s %s: %s", x.path, what, text)
}

// listen makes a unix socket. Package net would do, but it ties a program to
// the C library where cgo is on.
func listen(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("console socket: %w", err)
	}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("console socket: %w", err)
	}
	return fd, nil
}

// receiveTerminal takes the terminal that the runtime has sent.
func receiveTerminal(console int) (*os.File, error) {
	// The runtime has ended well, so it has connected.
	conn, _, err := unix.Accept4(console, unix.SOCK_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	defer unix.Close(conn)
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(conn, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	return passed(oob[:n])
}

// process is what was created.
func (x *external) process(ctx context.Context, g groups, terminal *os.File) (*Process, error) {
	data, err := os.ReadFile(filepath.Join(x.top, "pid"))
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return nil, fmt.Errorf("process number of the runtime: %w", err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &Process{
		pid: pid, pidfd: os.NewFile(uintptr(fd), "pidfd"), group: g, own: true,
		terminal: terminal, created: x.created, remove: x.remove,
	}
	p.stop = context.AfterFunc(ctx, func() { p.Kill() })
	return p, nil
}

// begin attaches the network and has the command executed.
func (x *external) begin(ctx context.Context, p *Process) error {
	// The runtime has its own groups, but limits and figures are of ours.
	if err := p.group.Add(p.pid); err != nil {
		return err
	}
	if err := p.group.Tighten(); err != nil {
		return err
	}
	if t := x.s.Terminal; t != nil && p.terminal != nil {
		if err := p.Resize(*t); err != nil {
			return err
		}
	}
	if x.s.NetworkReady != nil {
		if err := x.s.NetworkReady(ctx, p.pid); err != nil {
			return err
		}
	}
	cmd := x.command(ctx, "start", x.id)
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return x.explain("start", fmt.Errorf("%w: %s", err, bytes.TrimSpace(out)))
	}
	return nil
}

// remove removes what the runtime and the bundle have left.
func (x *external) remove() error {
	if _, err := os.Stat(filepath.Join(x.top, "state", x.id)); err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), startLimit)
		defer cancel()
		if out, err := x.command(ctx, "delete", "--force", x.id).CombinedOutput(); err != nil {
			return fmt.Errorf("%s delete: %w: %s", x.path, err, bytes.TrimSpace(out))
		}
	}
	return os.RemoveAll(x.top)
}
