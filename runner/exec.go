package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/cache/tree"
	"kiln.build/runner/binfmt"
	"kiln.build/runner/overlay"
	"kiln.build/runner/sandbox"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// defaultHostname is what BuildKit calls a step's machine; scripts that look
// at it expect that.
const defaultHostname = "buildkitsandbox"

// ExecError is a command that ended with a status other than zero, or that
// could not be started.
type ExecError struct {
	Args      []string
	Code      int
	Signal    int
	OOMKilled bool
	Reason    string // why it could not be started, or empty
}

func (e *ExecError) Error() string {
	text := fmt.Sprintf("process %q did not complete successfully: exit code: %d", strings.Join(e.Args, " "), e.Code)
	switch {
	case e.Reason != "":
		text += ": " + e.Reason
	case e.OOMKilled:
		text += ": out of memory: raise the step's --memory limit"
	case e.Signal != 0:
		text += ": killed by signal " + unix.SignalName(unix.Signal(e.Signal))
	}
	return text
}

// exec runs a command over a root and makes a layer of what it changed.
func (r *Runner) exec(ctx context.Context, a *solver.Action, o op.Exec) (solver.Result, error) {
	emulator, err := binfmt.Find(o.Platform)
	if err != nil {
		return solver.Result{}, err
	}
	x := &execution{r: r, a: a, o: o, emulator: emulator, root: a.Below.Layers}
	defer x.close()
	if err := x.prepare(ctx); err != nil {
		return solver.Result{}, err
	}
	if err := x.run(ctx); err != nil {
		return solver.Result{}, err
	}
	l, changed, err := x.commit(ctx)
	if err != nil {
		return solver.Result{}, err
	}
	res := stack([]solver.Layer{l})
	if err := x.saveTrace(ctx, res, changed); err != nil {
		a.Warn(fmt.Sprintf("cache: what the step read: %v", err))
	}
	return res, nil
}

// execution is one RUN on its way.
type execution struct {
	r *Runner
	a *solver.Action
	o op.Exec

	emulator *binfmt.Emulator // for the step alone; may be nil

	root  []solver.Layer
	index *tree.Index
	user  User
	draft *cache.Draft
	spec  sandbox.Spec

	reads *reads // of the layers that are traced; nil if none is

	hostsFile, resolvFile string // of this machine, mounted in the step's /etc

	closers []func() error // in reverse order
	created []string       // mount points made in the root, outermost first
}

func (x *execution) onClose(f func() error) { x.closers = append(x.closers, f) }

// close ends all that the step used. Errors are of no use here: scratch
// space is swept by others, and descriptors end with the process.
func (x *execution) close() {
	for _, f := range slices.Backward(x.closers) {
		_ = f()
	}
}

// prepare makes the root and everything else that the sandbox needs.
func (x *execution) prepare(ctx context.Context) error {
	var err error
	if x.index, err = x.r.Store.Index(x.root); err != nil {
		return err
	}
	acc, err := x.r.accounts(ctx, x.root, x.index)
	if err != nil {
		return err
	}
	if x.user, err = acc.lookup(x.o.User); err != nil {
		return err
	}
	if x.draft, err = x.r.Store.NewLayer(); err != nil {
		return err
	}
	x.onClose(x.draft.Discard)
	if err := sameRoot(x.draft.FS, x.index); err != nil {
		return err
	}
	lower, err := x.r.Store.LayerDirs(ctx, x.root)
	if err != nil {
		return err
	}
	x.startTrace(lower)
	root, err := x.mountStack(lower, x.draft.FS, x.draft.Work)
	if err != nil {
		return err
	}
	x.spec = sandbox.Spec{
		Command: sandbox.Command{
			Args: x.o.Args, Env: x.environment(), Cwd: x.o.Cwd,
			UID: x.user.UID, GID: x.user.GID, Groups: x.user.Groups,
			Privileged: x.o.Security == "insecure",
		},
		Root:     root,
		Runtime:  x.r.Runtime,
		Hostname: x.o.Hostname,
		ShmSize:  x.o.ShmSize,
		Limits: sandbox.Limits{
			Memory: x.o.Limits.Memory, MemorySwap: x.o.Limits.MemorySwap,
			CPUShares: x.o.Limits.CPUShares, CPUPeriod: x.o.Limits.CPUPeriod, CPUQuota: x.o.Limits.CPUQuota,
			CPUSetCPUs: x.o.Limits.CPUSetCPUs, CPUSetMems: x.o.Limits.CPUSetMems,
			Pids: x.o.Limits.Pids, Parent: x.o.Limits.Parent,
		},
	}
	if x.spec.Hostname == "" {
		x.spec.Hostname = defaultHostname
	}
	if x.emulator != nil {
		x.spec.Formats = []sandbox.Format{sandbox.Format(*x.emulator)}
	}
	for _, u := range x.o.Ulimits {
		x.spec.Rlimits = append(x.spec.Rlimits, sandbox.Rlimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	if err := x.network(); err != nil {
		return err
	}
	if err := x.devices(); err != nil {
		return err
	}
	if err := x.etc(); err != nil {
		return err
	}
	return x.mounts(ctx)
}

// sameRoot gives an upper directory the attributes that the root of the stack
// below has: in an overlay the uppermost ones count.
func sameRoot(upper string, below *tree.Index) error {
	e, _, ok := below.Lookup("")
	if !ok {
		return nil
	}
	return setAttributes(upper, &e)
}

// mountStack makes a detached mount of directories, bottom first.
func (x *execution) mountStack(lower []string, upper, work string) (*os.File, error) {
	empty, err := x.r.emptyDir()
	if err != nil {
		return nil, err
	}
	f, err := overlay.Mount(overlay.Options{Lower: lower, Upper: upper, Work: work, Empty: empty, Mixed: x.reads != nil})
	if err != nil {
		return nil, err
	}
	x.onClose(f.Close)
	return f, nil
}

// environment is that of the op, with HOME from the passwd file. Nothing of
// this machine's own gets in.
func (x *execution) environment() []string {
	env := append(slices.Clone(x.o.Env), x.o.ProxyEnv...)
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		env = append(env, "HOME="+x.user.Home)
	}
	return env
}

// network gives the step a network of its own, unless it asks for none or
// was allowed this machine's.
func (x *execution) network() error {
	switch {
	case x.o.Network == "none":
	case x.o.Network == "host" || x.r.Network == nil:
		x.spec.Network.Host = true
	default:
		x.spec.NetworkReady = func(ctx context.Context, pid int) error {
			at, err := x.r.Network.Attach(ctx, pid)
			if err != nil {
				return fmt.Errorf("network: %w", err)
			}
			if err := errors.Join(x.knowHost(at.Gateway), x.knowNameserver(at.Nameserver)); err != nil {
				return errors.Join(err, at.Detach())
			}
			// Taking an interface away takes the kernel some 20 ms, for which
			// nothing has to wait.
			x.onClose(func() error {
				x.r.detaching.Go(func() { _ = at.Detach() })
				return nil
			})
			return nil
		}
	}
	return nil
}

// run starts the command and hands on what it prints until it has ended.
func (x *execution) run(ctx context.Context) error {
	if err := x.cwd(); err != nil {
		return err
	}
	var readers sync.WaitGroup
	var pipes []*os.File
	for i, to := range []**os.File{&x.spec.Stdout, &x.spec.Stderr} {
		rd, wr, err := os.Pipe()
		if err != nil {
			return err
		}
		*to = wr
		pipes = append(pipes, wr)
		log := x.a.Log(i + 1)
		readers.Go(func() {
			_, _ = io.Copy(log, struct{ io.Reader }{rd}) // without short cuts around the copying
			_ = rd.Close()
		})
	}
	p, err := sandbox.Start(ctx, x.spec)
	for _, f := range pipes {
		_ = f.Close()
	}
	if err != nil {
		readers.Wait()
		var cmd *sandbox.CommandError
		if errors.As(err, &cmd) {
			return &ExecError{Args: x.o.Args, Code: cmd.Code, Reason: cmd.Message}
		}
		return fmt.Errorf("start a sandbox: %w", err)
	}
	status, err := p.Wait()
	readers.Wait() // all writers are dead: the pipes are at their end
	x.created = append(x.created, p.Created()...)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case status.Code != 0:
		return &ExecError{Args: x.o.Args, Code: status.Code, Signal: status.Signal, OOMKilled: status.OOMKilled}
	}
	return nil
}

// cwd makes the working folder if it is missing, as docker does.
func (x *execution) cwd() error {
	if _, _, _, err := x.index.Resolve(strings.Trim(x.o.Cwd, "/"), true); err == nil || x.o.Cwd == "" {
		return nil
	}
	dirfd := int(x.spec.Root.Fd())
	at := ""
	for comp := range strings.SplitSeq(strings.Trim(x.o.Cwd, "/"), "/") {
		at = path.Join(at, comp)
		parent, err := unix.Openat2(dirfd, path.Join(".", path.Dir(at)), &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != nil {
			return fmt.Errorf("working folder %s: %w", x.o.Cwd, err)
		}
		if err = unix.Mkdirat(parent, comp, 0o755); err == nil {
			err = unix.Fchmodat(parent, comp, 0o755, 0) // whatever the umask is
		}
		_ = unix.Close(parent)
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("working folder %s: %w", x.o.Cwd, err)
		}
	}
	return nil
}

// commit makes a layer of the upper directory. It returns what is in it, too.
func (x *execution) commit(ctx context.Context) (l solver.Layer, changed []string, err error) {
	x.spec.Root.Close() // ends the mount before its upper directory is read
	if err := x.unstub(); err != nil {
		return l, nil, err
	}
	t, err := tree.Scan(ctx, x.draft.FS, tree.ScanOptions{})
	if err != nil {
		return l, nil, err
	}
	if err := x.unmark(t); err != nil {
		return l, nil, err
	}
	for i := range t.Entries {
		changed = append(changed, t.Entries[i].Path)
	}
	if err := x.dropUnchanged(t); err != nil {
		return l, nil, err
	}
	l, err = x.draft.Commit(ctx, t)
	return l, changed, err
}

// unmark takes the mark of opaque directories from those that have no
// directory below, such as one made in a file's place: what a layer is must
// depend on its content alone. Whiteouts of nothing need no such care, for
// overlayfs makes none.
func (x *execution) unmark(t *tree.Tree) error {
	for i := range t.Entries {
		e := &t.Entries[i]
		if !e.Opaque {
			continue
		}
		if below, _, ok := x.index.Lookup(e.Path); ok && below.Type == tree.Dir {
			continue
		}
		at := filepath.Join(x.draft.FS, e.Path)
		if err := unix.Lremovexattr(at, tree.OverlayXattr()); err != nil && err != unix.ENODATA {
			return &os.PathError{Op: "unmark", Path: at, Err: err}
		}
		e.Opaque = false
	}
	return nil
}

// dropUnchanged takes out what is as it was below: files that were copied up
// and not changed, and directories that hold nothing and differ in their time
// alone, for something was made there and removed.
func (x *execution) dropUnchanged(t *tree.Tree) error {
	holds := map[string]bool{}  // directories with something in them
	linked := map[string]bool{} // files that others are hard links to
	hidden := ""                // an opaque directory, followed by a slash
	covered := make([]bool, len(t.Entries))
	for i := range t.Entries {
		e := &t.Entries[i]
		linked[e.Hardlink] = true
		if covered[i] = hidden != "" && strings.HasPrefix(e.Path, hidden); !covered[i] && e.Opaque {
			hidden = e.Path + "/"
		}
	}
	drop := make([]bool, len(t.Entries))
	left := map[string]bool{} // directories that something was removed from
	for i := len(t.Entries) - 1; i >= 0; i-- {
		e := &t.Entries[i]
		below, _, ok := x.index.Lookup(e.Path)
		switch {
		case !ok || covered[i] || e.Path == "" || e.Opaque || e.Type != below.Type ||
			e.Mode != below.Mode || e.UID != below.UID || e.GID != below.GID || !maps.Equal(e.Xattrs, below.Xattrs):
		case e.Type == tree.Dir:
			drop[i] = !holds[e.Path]
		case e.Type == tree.File:
			drop[i] = e.Mtime == below.Mtime && e.Digest == below.Digest && e.Hardlink == "" && below.Hardlink == "" && !linked[e.Path]
		}
		if !drop[i] && e.Path != "" {
			holds[parent(e.Path)] = true
		}
		if drop[i] {
			if err := os.Remove(filepath.Join(x.draft.FS, e.Path)); err != nil {
				return err
			}
			left[parent(e.Path)] = true
		}
	}
	kept := t.Entries[:0]
	for i, e := range t.Entries {
		if drop[i] {
			continue
		}
		kept = append(kept, e)
		if left[e.Path] {
			if err := setTime(filepath.Join(x.draft.FS, e.Path), e.Mtime); err != nil {
				return err
			}
		}
	}
	t.Entries = kept
	return nil
}

// unstub removes the mount points that were made in the root, as long as
// nothing was put into them. The directories that they were in keep the times
// that the step left them with.
func (x *execution) unstub() error {
	for _, p := range slices.Backward(x.created) {
		rel := strings.Trim(p, "/")
		at := filepath.Join(x.draft.FS, rel)
		var st, dir unix.Stat_t
		if err := lstatBelow(x.draft.FS, rel, &st); err != nil {
			continue
		}
		if err := lstatBelow(x.draft.FS, parent(rel), &dir); err != nil {
			continue
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := unix.Rmdir(at); err != nil {
				continue // something is in it
			}
		} else if st.Size == 0 && st.Mode&unix.S_IFMT == unix.S_IFREG {
			if err := os.Remove(at); err != nil {
				return err
			}
		}
		if err := setTime(filepath.Join(x.draft.FS, parent(rel)), dir.Mtim.Nano()); err != nil {
			return err
		}
	}
	return nil
}

// lstatBelow describes a path below a directory without following any link:
// the step has written there.
func lstatBelow(dir, rel string, st *unix.Stat_t) error {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	fd, err := unix.Openat2(d, path.Join(".", rel), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fstat(fd, st)
}
