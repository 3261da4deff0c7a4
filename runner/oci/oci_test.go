package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"kiln.build/runner/sandbox"
	"kiln.build/runner/sandbox/sandboxtest"
)

// box is the static program of the sandbox's tests.
var box string

func TestMain(m *testing.M) {
	sandbox.MaybeInit()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "oci-test")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	box = filepath.Join(dir, "box")
	if err := errors.Join(sandboxtest.Build(box, "kiln.build/runner/sandbox/testdata/box"), sandboxtest.Init()); err != nil {
		log.Print(err)
		return 1
	}
	return m.Run()
}

// bundle is one on disk, with a config that may be changed before use.
type bundle struct {
	t   *testing.T
	r   Runtime
	dir string
	c   *specs.Spec
	out *os.File
}

func newBundle(t *testing.T, args ...string) *bundle {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	b := &bundle{t: t, r: Runtime{Root: filepath.Join(t.TempDir(), "state")}, dir: t.TempDir()}
	for _, d := range []string{"root/bin", "root/tmp"} {
		if err := os.MkdirAll(filepath.Join(b.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(box, filepath.Join(b.dir, "root/bin/box")); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.out, err = os.Create(filepath.Join(b.dir, "out")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.out.Close() })
	caps := sandbox.DefaultCapabilities
	b.c = &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "root"}, Hostname: "cell", Annotations: map[string]string{"a": "b"},
		Process: &specs.Process{
			Args: append([]string{"/bin/box"}, args...), Cwd: "/", Env: []string{"A=1"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=64k"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: "pid"}, {Type: "network"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"},
		}},
	}
	return b
}

// create writes the config and creates container "c".
func (b *bundle) create() error {
	b.t.Helper()
	data, err := json.Marshal(b.c)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "config.json"), data, 0o644); err != nil {
		b.t.Fatal(err)
	}
	err = b.r.Create(b.t.Context(), "c", CreateOptions{Bundle: b.dir, PIDFile: filepath.Join(b.dir, "pid"), Stdout: b.out, Stderr: b.out})
	if err == nil {
		b.t.Cleanup(func() {
			if err := b.r.Delete(b.t.Context(), "c", true); err != nil && b.t.Context().Err() == nil {
				b.t.Error(err)
			}
		})
	}
	return err
}

// run runs the container to its end, deletes it, and returns what it printed.
func (b *bundle) run() string {
	b.t.Helper()
	ctx := b.t.Context()
	err := b.create()
	if err != nil && strings.Contains(err.Error(), "takes Linux 6.15") {
		b.t.Skip(err)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.r.Start(ctx, "c"); err != nil {
		b.t.Error(err)
	}
	b.await(specs.StateStopped)
	if err := b.r.Delete(ctx, "c", false); err != nil {
		b.t.Error(err)
	}
	return b.output()
}

func (b *bundle) output() string {
	b.t.Helper()
	out, err := os.ReadFile(b.out.Name())
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// await waits until the container has a status.
func (b *bundle) await(want specs.ContainerState) *specs.State {
	b.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		s, err := b.r.State("c")
		if err != nil {
			b.t.Fatal(err)
		}
		if s.Status == want {
			return s
		}
	}
	b.t.Fatalf("the container is not %s after 10 s", want)
	return nil
}

func TestLifeCycle(t *testing.T) {
	b := newBundle(t, "sleep", "1000")
	ctx := t.Context()
	wantError := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	_, err := b.r.State("c")
	wantError("state of none", err)
	wantError("start of none", b.r.Start(ctx, "c"))
	wantError("kill of none", b.r.Kill("c", unix.SIGTERM, false))
	wantError("delete of none", b.r.Delete(ctx, "c", false))
	if err := b.r.Delete(ctx, "c", true); err != nil {
		t.Error("forced delete of none:", err)
	}
	if err := b.create(); err != nil {
		t.Fatal(err)
	}
	wantError("create again", b.create())
	s := b.await(specs.StateCreated)
	pid, _ := os.ReadFile(filepath.Join(b.dir, "pid"))
	if s.Pid == 0 || string(pid) != strconv.Itoa(s.Pid) || s.ID != "c" || s.Bundle != b.dir || s.Annotations["a"] != "b" || s.Version != specs.Version {
		t.Errorf("%+v, pid file %q", s, pid)
	}
	// The command does not run yet.
	if cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.Pid)); bytes.Contains(cmd, []byte("sleep")) {
		t.Errorf("created: %q", cmd)
	}
	wantError("delete of a created one", b.r.Delete(ctx, "c", false))
	// Changes of the config come too late.
	if err := os.WriteFile(filepath.Join(b.dir, "config.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := b.r.Start(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	b.await(specs.StateRunning)
	if cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.Pid)); !bytes.Contains(cmd, []byte("sleep")) {
		t.Errorf("started: %q", cmd)
	}
	wantError("start again", b.r.Start(ctx, "c"))
	wantError("delete of a running one", b.r.Delete(ctx, "c", false))
	if err := b.r.Kill("c", unix.SIGKILL, false); err != nil {
		t.Error(err)
	}
	if s := b.await(specs.StateStopped); s.Pid != 0 {
		t.Errorf("stopped: %+v", s)
	}
	wantError("start of a stopped one", b.r.Start(ctx, "c"))
	wantError("kill of a stopped one", b.r.Kill("c", unix.SIGTERM, false))
	if err := b.r.Delete(ctx, "c", false); err != nil {
		t.Error(err)
	}
	_, err = b.r.State("c")
	if !errors.Is(err, ErrUnknown) {
		t.Errorf("state of a deleted one: %v", err)
	}
	for _, id := range []string{"", ".", "..", "a/b", "../x", strings.Repeat("x", 300), "a b"} {
		if _, err := b.r.State(id); err == nil || errors.Is(err, ErrUnknown) {
			t.Errorf("ID %q: %v", id, err)
		}
	}
}

func TestForcedDelete(t *testing.T) {
	for _, start := range []bool{false, true} {
		b := newBundle(t, "sleep", "1000")
		if err := b.create(); err != nil {
			t.Fatal(err)
		}
		s := b.await(specs.StateCreated)
		if start {
			if err := b.r.Start(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.r.Delete(t.Context(), "c", true); err != nil {
			t.Error(err)
		}
		if _, alive := processBirth(s.Pid); alive {
			t.Errorf("started %v: process %d lives", start, s.Pid)
		}
		if entries, _ := os.ReadDir(b.r.Root); len(entries) > 0 {
			t.Errorf("left: %v", entries)
		}
	}
}

// A command that cannot be executed is told when the container is created.
func TestMissingCommand(t *testing.T) {
	b := newBundle(t)
	b.c.Process.Args = []string{"/missing"}
	var ce *sandbox.CommandError
	if err := b.create(); !errors.As(err, &ce) || ce.Code != 127 {
		t.Errorf("error %v", err)
	}
	if entries, _ := os.ReadDir(b.r.Root); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
}
