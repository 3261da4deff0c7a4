package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// machine is what all cases share.
type machine struct {
	bin  string // folder of kiln and toolbox
	work string // on the file system that is measured
	dir  string // of the case
	env  []string

	root   string // the small base as a tar
	rootfs string // and as a folder
	debian string // tar of a Debian root; may be missing
	self   string // this program

	found    []builder
	starters []string // runtimes for the case start
	registry string   // HOST:PORT; empty where there is none

	helpers  []int // processes of ours that work for those that are measured
	quickest time.Duration
	closers  []func()
}

func newMachine(ctx context.Context, o options, work string) (*machine, error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return nil, err
	}
	m := &machine{bin: bin, work: work, debian: o.debian}
	m.env = []string{"KILN_ROOT=" + m.store()}
	if m.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if err := m.prepare(ctx, o); err != nil {
		m.close()
		return nil, fmt.Errorf("prepare: %w", err)
	}
	return m, nil
}

func (m *machine) close() {
	for i := len(m.closers) - 1; i >= 0; i-- {
		m.closers[i]()
	}
}

// store is Kiln's.
func (m *machine) store() string { return filepath.Join(m.work, "kiln") }

func (m *machine) kiln(args ...string) []string {
	return append([]string{filepath.Join(m.bin, "kiln")}, args...)
}

// run does commands that are not measured.
func (m *machine) run(ctx context.Context, all ...[]string) error {
	for _, argv := range all {
		if _, err := m.command(ctx, step{argv: argv}); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) prepare(ctx context.Context, o options) error {
	m.root = filepath.Join(m.work, "root.tar")
	f, err := os.Create(m.root)
	if err != nil {
		return err
	}
	c := exec.CommandContext(ctx, filepath.Join(m.bin, "toolbox"), "--tar")
	c.Stdout, c.Stderr = f, os.Stderr
	if err := errors.Join(c.Run(), f.Close()); err != nil {
		return fmt.Errorf("make the base: %w", err)
	}
	m.rootfs = filepath.Join(m.work, "bundle", "rootfs")
	if err := os.MkdirAll(m.rootfs, 0o755); err != nil {
		return err
	}
	err = m.run(ctx,
		m.kiln("import", m.root, "toolbox"),
		[]string{filepath.Join(m.bin, "toolbox"), "tar", "-xf", m.root, "-C", m.rootfs})
	if err != nil {
		return err
	}
	if onPath("docker-registry") {
		if err := m.startRegistry(ctx); err != nil {
			return err
		}
	}
	if err := m.findBuilders(ctx, o.peers); err != nil {
		return err
	}
	for _, name := range []string{"podman", "docker", "runc", "crun", "bwrap"} {
		if wants(o.peers, name) && onPath(name) && (name != "docker" || exec.CommandContext(ctx, name, "info").Run() == nil) {
			m.starters = append(m.starters, name)
		}
	}
	return nil
}

// startRegistry runs the reference registry on the loopback interface.
func (m *machine) startRegistry(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	host := fmt.Sprintf("localhost:%d", port)
	config := filepath.Join(m.work, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}\nhttp: {addr: \"127.0.0.1:%d\"}\n",
		filepath.Join(m.work, "registry"), port)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	if err := m.daemon("docker-registry", "serve", config); err != nil {
		return err
	}
	return await(ctx, "docker-registry", func() bool {
		r, err := http.Get("http://" + host + "/v2/")
		if err == nil {
			r.Body.Close()
			m.registry = host
		}
		return err == nil
	})
}

// daemon starts a process that ends with us.
func (m *machine) daemon(argv ...string) error {
	c := exec.Command(argv[0], argv[1:]...)
	log, err := os.Create(filepath.Join(m.work, filepath.Base(argv[0])+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		return err
	}
	m.helpers = append(m.helpers, c.Process.Pid)
	m.closers = append(m.closers, func() {
		c.Process.Signal(os.Interrupt)
		timer := time.AfterFunc(5*time.Second, func() { c.Process.Kill() })
		c.Wait()
		timer.Stop()
	})
	return nil
}

// await asks some times a second whether a daemon answers.
func await(ctx context.Context, what string, ready func() bool) error {
	for range 100 {
		if ready() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s does not answer", what)
}

// versions names what was measured.
func (m *machine) versions() []string {
	out, _ := exec.Command(m.kiln()[0], "version").Output()
	all := []string{"kiln of unknown version"}
	if _, rest, ok := strings.Cut(string(out), "Version:"); ok {
		all[0] = "kiln " + strings.Fields(rest)[0]
	}
	seen := map[string]bool{"kiln": true}
	add := func(name string, argv ...string) {
		if !seen[name] && onPath(name) {
			seen[name] = true
			all = append(all, name+" "+m.version(append([]string{name}, argv...)...))
		}
	}
	for _, b := range m.found {
		if b.name == "buildkit" {
			add("buildctl", "--version")
		} else {
			add(b.name, "--version")
		}
	}
	for _, name := range append([]string{"pigz", "zstd"}, m.starters...) {
		add(name, "--version")
	}
	return all
}

// version is the first word with a digit and a point that a command prints,
// or with a digit.
func (m *machine) version(argv ...string) string {
	out, _ := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	found := "of unknown version"
	for _, w := range strings.Fields(string(out)) {
		w = strings.Trim(w, "v,()*")
		if !strings.ContainsAny(w, "0123456789") {
			continue
		}
		if strings.Contains(w, ".") {
			return w
		}
		if found == "of unknown version" {
			found = w
		}
	}
	return found
}
