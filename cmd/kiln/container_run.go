package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/docker/go-units"
	"github.com/moby/term"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

// defaultPath is the PATH in containers of images that set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// runFlags are the flags of run and create, as typed.
type runFlags struct {
	detach, interactive, tty, rm, readOnly, init, privileged, publishAll bool

	name, workdir, user, entrypoint, network, hostname, memory, memorySwap string
	platform, pull, stopSignal, cidFile, shmSize, cpus, cpusetCPUs         string

	env, envFiles, publish, volumes, tmpfs, hosts, ulimits, capAdd, capDrop, labels, security []string

	pids        int64
	cpuShares   int64
	stopTimeout int
	entrySet    bool
}

func (f *runFlags) register(fs *pflag.FlagSet) {
	fs.SetInterspersed(false)
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "keep standard input open")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	fs.BoolVar(&f.rm, "rm", false, "remove the container when it ends")
	fs.BoolVar(&f.readOnly, "read-only", false, "mount the root file system read-only")
	fs.BoolVar(&f.init, "init", false, "run an init that forwards signals and reaps processes")
	fs.BoolVar(&f.privileged, "privileged", false, "give all rights: this is no sandbox any more")
	fs.BoolVarP(&f.publishAll, "publish-all", "P", false, "publish all exposed ports on free ones")
	fs.StringVar(&f.name, "name", "", "name of the container")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "working folder")
	fs.StringVarP(&f.user, "user", "u", "", "user[:group], by name or number")
	fs.StringVar(&f.entrypoint, "entrypoint", "", "command instead of the image's ENTRYPOINT")
	fs.StringVar(&f.network, "network", "", "bridge, host or none (default bridge for root, else host)")
	fs.StringVarP(&f.hostname, "hostname", "h", "", "host name (default the container's ID)")
	fs.StringVarP(&f.memory, "memory", "m", "", "memory limit")
	fs.StringVar(&f.memorySwap, "memory-swap", "", "memory and swap together; -1 does not limit swap")
	fs.StringVar(&f.cpus, "cpus", "", "number of processors, such as 1.5")
	fs.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "processors that may be used, such as 0-3")
	fs.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "relative weight of processor time")
	fs.Int64Var(&f.pids, "pids-limit", 0, "limit of processes; -1 is none")
	fs.StringVar(&f.platform, "platform", "", "platform of the image")
	fs.StringVar(&f.pull, "pull", "missing", "when to pull the image: always, missing or never")
	fs.StringVar(&f.stopSignal, "stop-signal", "", "signal that asks the container to end")
	fs.IntVar(&f.stopTimeout, "stop-timeout", 10, "seconds after which stop kills it")
	fs.StringVar(&f.cidFile, "cidfile", "", "file to write the container's ID to")
	fs.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "variable, NAME=VALUE; NAME alone takes the environment's (repeatable)")
	fs.StringArrayVar(&f.envFiles, "env-file", nil, "file with variables, one a line (repeatable)")
	fs.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port, [IP:][HOST:]CONTAINER[/PROTO] (repeatable)")
	fs.StringArrayVarP(&f.volumes, "volume", "v", nil, "folder of this machine, SOURCE:TARGET[:ro] (repeatable)")
	fs.StringArrayVar(&f.tmpfs, "tmpfs", nil, "file system in memory at this path (repeatable)")
	fs.StringArrayVar(&f.hosts, "add-host", nil, "line of /etc/hosts, NAME:IP (repeatable)")
	fs.StringArrayVar(&f.ulimits, "ulimit", nil, "resource limit, NAME=SOFT[:HARD] (repeatable)")
	fs.StringSliceVar(&f.capAdd, "cap-add", nil, "add a capability (repeatable)")
	fs.StringSliceVar(&f.capDrop, "cap-drop", nil, "drop a capability, or ALL (repeatable)")
	fs.StringArrayVarP(&f.labels, "label", "l", nil, "label, NAME=VALUE (repeatable)")
	fs.StringArrayVar(&f.security, "security-opt", nil, "seccomp=unconfined (repeatable)")
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND] [ARG...]",
		Short: "Run a command in a new container",
		Long: `Run a command in a new container.

Exit status: that of the command; 125 if kiln itself failed, 126 if the command
could not be run, 127 if it was not found, 128 + n if signal n ended it.`,
		Example: `  kiln run --rm hello
  kiln run --rm -it debian:bookworm bash
  kiln run -d --name web -p 127.0.0.1:8080:80 nginx`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			f.entrySet = c.Flags().Changed("entrypoint")
			return a.run(c.Context(), &f, args)
		},
	}
	c.Flags().BoolVarP(&f.detach, "detach", "d", false, "run in the background and print the container's ID")
	c.Flags().Bool("help", false, "help for run")
	f.register(c.Flags())
	return c
}

func (a *app) createCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use: "create [flags] IMAGE [COMMAND] [ARG...]", Short: "Create a container without starting it",
		Example: "  kiln create --name web nginx && kiln start web",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			f.entrySet = c.Flags().Changed("entrypoint")
			store, err := a.open()
			if err != nil {
				return err
			}
			defer store.Close()
			k, err := a.newContainer(c.Context(), store, &f, args)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.stdout, k.ID)
			return nil
		},
	}
	c.Flags().Bool("help", false, "help for create")
	f.register(c.Flags())
	return c
}

// cliFailed is docker's exit status for failures of its own.
func cliFailed(err error) error {
	var e *exitError
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &exitError{125, err}
}

func (a *app) run(ctx context.Context, f *runFlags, args []string) error {
	if f.detach && f.rm && f.cidFile == "-" {
		return cliFailed(errors.New("--cidfile: must be a file"))
	}
	store, err := a.open()
	if err != nil {
		return cliFailed(err)
	}
	defer store.Close()
	k, err := a.newContainer(ctx, store, f, args)
	if err != nil {
		return cliFailed(err)
	}
	if f.cidFile != "" {
		if err := writeNew(f.cidFile, k.ID); err != nil {
			return cliFailed(errors.Join(err, k.Remove()))
		}
	}
	if f.detach {
		if err := a.detached(ctx, k); err != nil {
			return err
		}
		fmt.Fprintln(a.stdout, k.ID)
		return nil
	}
	return a.foreground(ctx, store, k, true)
}

func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("container ID file: %w", err)
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// foreground runs a container in this process, with its streams.
func (a *app) foreground(ctx context.Context, store *cache.Store, k *container.Container, stdin bool) error {
	m := &container.Monitor{Store: store, Attach: attachNetwork, Stdout: a.stdout, Stderr: a.stderr}
	if k.Stdin && stdin {
		m.Stdin = a.stdin
	}
	restore := func() {}
	if in, ok := a.stdin.(*os.File); ok && k.Terminal && k.Stdin {
		if !term.IsTerminal(in.Fd()) {
			return cliFailed(errors.Join(errors.New("the input device is not a TTY"), k.Remove()))
		}
		old, err := term.SetRawTerminal(in.Fd())
		if err != nil {
			return cliFailed(err)
		}
		restore = func() { _ = term.RestoreTerminal(in.Fd(), old) }
	}
	defer restore()
	signals := make(chan os.Signal, 16)
	defer signal.Stop(signals)
	m.Started = func(p *sandbox.Process) {
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH)
		resize := func() {
			if out, ok := a.stdout.(*os.File); ok && k.Terminal {
				if ws, err := term.GetWinsize(out.Fd()); err == nil {
					_ = p.Resize(sandbox.Size{Rows: ws.Height, Cols: ws.Width})
				}
			}
		}
		resize()
		go func() { // ends with the process
			for s := range signals {
				if s == unix.SIGWINCH {
					resize()
				} else if n, ok := s.(syscall.Signal); ok {
					_ = p.Signal(n)
				}
			}
		}()
	}
	// Signals go to the command, which decides what they mean.
	code, err := m.Run(context.WithoutCancel(ctx), k)
	restore()
	var start *container.StartError
	switch {
	case errors.As(err, &start):
		return &exitError{start.Code, err}
	case err != nil:
		return cliFailed(err)
	case code != 0:
		return &exitError{code, nil}
	}
	return nil
}

// detached starts a container under a monitor process of its own, and waits
// until the command runs.
func (a *app) detached(ctx context.Context, k *container.Container) error {
	self, err := os.Executable()
	if err != nil {
		return cliFailed(err)
	}
	rd, wr, err := os.Pipe()
	if err != nil {
		return cliFailed(err)
	}
	defer rd.Close()
	c := exec.Command(self, "--root", a.root, "monitor", k.ID)
	c.ExtraFiles = []*os.File{wr}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Dir = "/"
	if err := c.Start(); err != nil {
		return cliFailed(errors.Join(err, wr.Close()))
	}
	_ = wr.Close()
	said, err := io.ReadAll(rd)
	if err != nil {
		return cliFailed(err)
	}
	var answer monitorAnswer
	if err := json.Unmarshal(said, &answer); err != nil {
		return cliFailed(fmt.Errorf("the container's monitor ended: %w", c.Wait()))
	}
	if answer.Error != "" {
		return &exitError{answer.Code, errors.New(answer.Error)}
	}
	return c.Process.Release()
}

// monitorAnswer is what a monitor says once the command runs, or cannot.
type monitorAnswer struct {
	Code  int    `json:"code,omitempty"`
	Error string `json:"error,omitempty"`
}

// monitorCommand runs a container for as long as it lives. It is started by
// run -d and start, and answers on descriptor 3.
func (a *app) monitorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "monitor ID", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			answer := os.NewFile(3, "answer")
			unix.CloseOnExec(3)
			say := func(m monitorAnswer) {
				_ = json.NewEncoder(answer).Encode(m)
				_ = answer.Close()
			}
			err := a.monitor(args[0], func() { say(monitorAnswer{}) })
			if err != nil {
				code := 125
				var start *container.StartError
				if errors.As(err, &start) {
					code = start.Code
				}
				say(monitorAnswer{code, err.Error()})
			}
			return nil
		},
	}
}

func (a *app) monitor(id string, started func()) error {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM)
	store, err := a.open()
	if err != nil {
		return err
	}
	defer store.Close()
	set, err := a.containers()
	if err != nil {
		return err
	}
	k, err := set.Find(id)
	if err != nil {
		return err
	}
	m := &container.Monitor{Store: store, Attach: attachNetwork, Started: func(*sandbox.Process) { started() }}
	_, err = m.Run(context.Background(), k)
	return err
}

// newContainer makes a container of an image and what the flags say.
func (a *app) newContainer(ctx context.Context, store *cache.Store, f *runFlags, args []string) (*container.Container, error) {
	switch f.pull {
	case "always", "missing", "never":
	default:
		return nil, fmt.Errorf("--pull=%q: must be always, missing or never", f.pull)
	}
	c := container.Config{
		Name: f.name, Image: args[0], User: f.user, Hostname: f.hostname, StopSignal: f.stopSignal, StopWait: f.stopTimeout,
		Terminal: f.tty, Stdin: f.interactive, AutoRemove: f.rm, ReadOnly: f.readOnly, Init: f.init, Privileged: f.privileged,
		CapAdd: f.capAdd, CapDrop: f.capDrop, Hosts: f.hosts, Tmpfs: f.tmpfs,
	}
	if err := f.apply(&c); err != nil {
		return nil, err
	}
	root, err := a.imageRoot(ctx, store, args[0], f.platform, f.pull)
	if err != nil {
		return nil, err
	}
	img := root.config.Config
	c.ImageID, c.Layers = root.id, root.layers
	if c.User == "" {
		c.User = img.User
	}
	if c.StopSignal == "" {
		c.StopSignal = img.StopSignal
	}
	c.Cwd = path.Join("/", img.WorkingDir)
	if f.workdir != "" {
		c.Cwd = f.workdir
	}
	entry, cmd := img.Entrypoint, img.Cmd
	if f.entrySet {
		entry, cmd = nil, nil
		if f.entrypoint != "" {
			entry = []string{f.entrypoint}
		}
	}
	if len(args) > 1 {
		cmd = args[1:]
	}
	if c.Args = append(slices.Clone(entry), cmd...); len(c.Args) == 0 {
		return nil, errors.New("no command specified")
	}
	if c.Env, err = f.environment(img.Env); err != nil {
		return nil, err
	}
	if f.publishAll {
		for _, p := range sortedPorts(img.ExposedPorts) {
			port, proto, _ := strings.Cut(p, "/")
			more, err := parsePublish([]string{port + "/" + proto})
			if err != nil {
				return nil, err
			}
			c.Ports = append(c.Ports, more...)
		}
	}
	labels := map[string]string{}
	for k, v := range img.Labels {
		labels[k] = v
	}
	for k, v := range c.Labels {
		labels[k] = v
	}
	c.Labels = labels
	if err := store.Sync(ctx); err != nil {
		return nil, err
	}
	set, err := a.containers()
	if err != nil {
		return nil, err
	}
	return set.Create(c)
}

// apply puts the flags that need no image into a config.
func (f *runFlags) apply(c *container.Config) error {
	var err error
	if c.Labels, err = args("--label", f.labels, nil); err != nil {
		return err
	}
	if c.Limits.Memory, err = bytesFlag("--memory", f.memory); err != nil {
		return err
	}
	if f.memorySwap == "-1" {
		c.Limits.MemorySwap = -1
	} else if c.Limits.MemorySwap, err = bytesFlag("--memory-swap", f.memorySwap); err != nil {
		return err
	}
	if c.ShmSize, err = bytesFlag("--shm-size", f.shmSize); err != nil {
		return err
	}
	c.Limits.CPUSetCPUs, c.Limits.CPUShares = f.cpusetCPUs, f.cpuShares
	if f.pids > 0 {
		c.Limits.Pids = f.pids
	}
	if f.cpus != "" {
		var n float64
		if _, err := fmt.Sscanf(f.cpus, "%g", &n); err != nil || n <= 0 {
			return fmt.Errorf("--cpus=%s: must be a number over zero", f.cpus)
		}
		c.Limits.CPUPeriod, c.Limits.CPUQuota = 100_000, int64(n*100_000)
	}
	for _, s := range f.ulimits {
		u, err := units.ParseUlimit(s)
		if err != nil {
			return fmt.Errorf("--ulimit=%s: %w", s, err)
		}
		c.Rlimits = append(c.Rlimits, sandbox.Rlimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	for _, s := range f.security {
		switch s {
		case "seccomp=unconfined", "seccomp:unconfined":
			c.Unmasked = true
		default:
			return fmt.Errorf("--security-opt=%s: must be seccomp=unconfined", s)
		}
	}
	for _, h := range f.hosts {
		if name, ip, ok := strings.Cut(h, ":"); !ok || name == "" || ip == "" {
			return fmt.Errorf("--add-host=%q: must be NAME:IP", h)
		}
	}
	if c.Ports, err = parsePublish(f.publish); err != nil {
		return err
	}
	for _, v := range f.volumes {
		b, err := parseBind(v)
		if err != nil {
			return err
		}
		c.Binds = append(c.Binds, b)
	}
	c.Network = f.network
	switch c.Network {
	case "":
		c.Network = defaultNetwork()
	case "bridge", "host", "none":
	case "default":
		c.Network = defaultNetwork()
	default:
		return fmt.Errorf("network %s not found: must be bridge, host or none", c.Network)
	}
	if len(c.Ports) > 0 && c.Network != "bridge" {
		return fmt.Errorf("ports cannot be published with --network=%s: the container has no network of its own", c.Network)
	}
	return nil
}

// environment is the image's, with files' and flags' variables over it.
func (f *runFlags) environment(image []string) ([]string, error) {
	env := slices.Clone(image)
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		env = append(env, "PATH="+defaultPath)
	}
	set := func(kv string) {
		name, _, ok := strings.Cut(kv, "=")
		if !ok {
			v, known := os.LookupEnv(name)
			if !known {
				return
			}
			kv = name + "=" + v
		}
		env = append(slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") }), kv)
	}
	for _, file := range f.envFiles {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--env-file: %w", err)
		}
		for line := range bytes.Lines(data) {
			kv := strings.TrimLeft(strings.TrimRight(string(line), "\r\n"), " \t")
			if kv != "" && kv[0] != '#' {
				set(kv)
			}
		}
	}
	for _, kv := range f.env {
		if kv == "" || kv[0] == '=' {
			return nil, fmt.Errorf("--env=%q: no name", kv)
		}
		set(kv)
	}
	return env, nil
}

// parseBind reads SOURCE:TARGET[:OPTIONS] of a folder of this machine.
func parseBind(s string) (container.Bind, error) {
	parts := strings.Split(s, ":")
	var b container.Bind
	if len(parts) < 2 || len(parts) > 3 || !path.IsAbs(parts[1]) {
		return b, fmt.Errorf("invalid volume specification: '%s': must be SOURCE:TARGET[:ro]", s)
	}
	b.Source, b.Target = parts[0], parts[1]
	if !strings.HasPrefix(b.Source, "/") && !strings.HasPrefix(b.Source, ".") {
		return b, fmt.Errorf("--volume=%s: named volumes are not supported: give a folder", s)
	}
	var err error
	if b.Source, err = filepath.Abs(b.Source); err != nil {
		return b, err
	}
	if len(parts) == 3 {
		for o := range strings.SplitSeq(parts[2], ",") {
			switch o {
			case "ro":
				b.ReadOnly = true
			case "rw", "z", "Z", "rprivate", "private":
			default:
				return b, fmt.Errorf("--volume=%s: unknown option %q", s, o)
			}
		}
	}
	if _, err := os.Stat(b.Source); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(b.Source, 0o755); err != nil { // as docker does
			return b, err
		}
	}
	return b, nil
}

func sortedPorts(m map[string]struct{}) []string {
	var all []string
	for p := range m {
		all = append(all, p)
	}
	slices.Sort(all)
	return all
}
