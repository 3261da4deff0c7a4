package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func ptr[T any](v T) *T { return &v }

// What the config says is what the command sees.
func TestConfig(t *testing.T) {
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("bound"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, args string
		set        func(*specs.Spec)
		want       string
	}{
		{"plain", "env", func(*specs.Spec) {}, "A=1"},
		{"first process", "pid", func(*specs.Spec) {}, "1"},
		{"host name", "hostname", func(*specs.Spec) {}, "cell"},
		{"user", "id", func(s *specs.Spec) { s.Process.User = specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{7}} }, "5 6 [7]"},
		{"umask", "umask", func(s *specs.Spec) { s.Process.User.Umask = ptr(uint32(0o77)) }, "0077"},
		{"cwd", "pwd", func(s *specs.Spec) { s.Process.Cwd = "/tmp" }, "/tmp"},
		{"rlimit", "limit 0", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU", Soft: 100, Hard: 200}}
		}, "100 200"},
		{"oom score", "cat /proc/self/oom_score_adj", func(s *specs.Spec) { s.Process.OOMScoreAdj = ptr(300) }, "300"},
		{"sysctl", "cat /proc/sys/net/ipv4/ip_forward", func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
		}, "1"},
		{"bind mount", "cat /a/b/file", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/a/b", Source: source, Options: []string{"rbind", "ro", "mode=700"}})
		}, "bound"},
		{"masked file", "stat /proc/interrupts", func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"/proc/interrupts", "/missing"} }, "20666 0:0 1:3"},
		{"masked folder", "ls /proc/fs", func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"/proc/fs"} }, ""},
		{"device", "stat /dev/mine", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/mine", Type: "c", Major: 1, Minor: 5, FileMode: ptr(os.FileMode(0o640)), UID: ptr(uint32(3)), GID: ptr(uint32(4))}}
		}, "20640 3:4 1:5"},
		{"fifo", "stat /dev/pipe", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/pipe", Type: "p", FileMode: ptr(os.FileMode(0o600))}}
		}, "10600 0:0 0:0"},
		{"default device", "stat /dev/null", func(*specs.Spec) {}, "20666 0:0 1:3"},
		{"shared network", "true", func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "mount"}, {Type: "uts"}}
		}, ""},
		{"no namespace at all", "env", func(s *specs.Spec) {
			s.Hostname, s.Linux.Namespaces = "", nil
		}, "A=1"},
		{"user namespace", "cat /proc/self/uid_map", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 10}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		}, "0 0 10"},
		{"capabilities", "caps", func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{
				Bounding: []string{"CAP_CHOWN", "CAP_KILL"}, Permitted: []string{"CAP_CHOWN", "CAP_KILL"},
				Effective: []string{"CAP_KILL"}, Inheritable: []string{"CAP_CHOWN"}, Ambient: []string{"CAP_CHOWN"},
			}
			s.Process.User.UID = 1
		}, "CapInh: 0000000000000001 CapPrm: 0000000000000001 CapEff: 0000000000000001 CapBnd: 0000000000000021 CapAmb: 0000000000000001"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBundle(t, strings.Fields(c.args)...)
			c.set(b.c)
			got := strings.Join(strings.Fields(b.run()), " ")
			if c.args == "caps" {
				got, _, _ = strings.Cut(got, " NoNewPrivs")
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// What the command may not do, by the config.
func TestRefused(t *testing.T) {
	errno := ptr(uint(unix.EXDEV))
	for _, c := range []struct {
		name, args string
		set        func(*specs.Spec)
		want       string
	}{
		{"read-only root", "write /x y", func(s *specs.Spec) { s.Root.Readonly = true }, "read-only file system"},
		{"read-only path", "write /proc/sys/net/ipv4/ip_forward 1", func(s *specs.Spec) { s.Linux.ReadonlyPaths = []string{"/proc/sys"} }, "read-only file system"},
		{"read-only mount", "write /m/x y", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/m", Type: "tmpfs", Options: []string{"ro"}})
		}, "read-only file system"},
		{"seccomp", "chmod /bin/box", func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
				{Names: []string{"fchmodat", "chmod"}, Action: specs.ActErrno, ErrnoRet: errno},
			}}
		}, "invalid cross-device link"},
		{"device", "open /dev/mem", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/mem", Type: "c", Major: 1, Minor: 1}}
		}, "operation not permitted"},
		{"capability", "sethostname", func(*specs.Spec) {}, "operation not permitted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBundle(t, strings.Fields(c.args)...)
			c.set(b.c)
			if got := b.run(); !strings.Contains(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// Configs that cannot be kept are errors, and leave nothing.
func TestBadConfigs(t *testing.T) {
	for name, set := range map[string]func(*specs.Spec){
		"version":      func(s *specs.Spec) { s.Version = "2.0.0" },
		"no version":   func(s *specs.Spec) { s.Version = "" },
		"no root":      func(s *specs.Spec) { s.Root = nil },
		"missing root": func(s *specs.Spec) { s.Root.Path = "missing" },
		"no arguments": func(s *specs.Spec) { s.Process.Args = nil },
		"no process":   func(s *specs.Spec) { s.Process = nil },
		"relative cwd": func(s *specs.Spec) { s.Process.Cwd = "tmp" },
		"capability":   func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_X"} },
		"rlimit":       func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
		"rlimit twice": func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU"}, {Type: "RLIMIT_CPU"}}
		},
		"apparmor":        func(s *specs.Spec) { s.Process.ApparmorProfile = "x" },
		"label":           func(s *specs.Spec) { s.Process.SelinuxLabel = "x" },
		"namespace":       func(s *specs.Spec) { s.Linux.Namespaces[0].Type = "time" },
		"namespace twice": func(s *specs.Spec) { s.Linux.Namespaces[0].Type = "uts" },
		"namespace path":  func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/self/ns/uts" },
		"namespace file":  func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/dev/null" },
		"user namespace":  func(s *specs.Spec) { s.Linux.Namespaces[0].Type = "user" },
		"maps":            func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} },
		"propagation":     func(s *specs.Spec) { s.Linux.RootfsPropagation = "x" },
		"mount option":    func(s *specs.Spec) { s.Mounts[1].Options = []string{"size=x"} },
		"unknown option":  func(s *specs.Spec) { s.Mounts[1].Options = []string{"nonsense"} },
		"mount source": func(s *specs.Spec) {
			s.Mounts[1] = specs.Mount{Destination: "/m", Source: "/missing", Options: []string{"bind"}}
		},
		"sysctl":      func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "x"} },
		"device type": func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "x"}} },
		"group path":  func(s *specs.Spec) { s.Linux.CgroupsPath = "../x" },
		"systemd":     func(s *specs.Spec) { s.Linux.CgroupsPath = "a:b:c" },
		"hook":        func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "true"}}} },
		"hook timeout": func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/true", Timeout: ptr(0)}}}
		},
		"terminal":          func(s *specs.Spec) { s.Process.Terminal = true },
		"host name of host": func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:3] },
		"device access": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "x"}}}
		},
	} {
		b := newBundle(t, "true")
		set(b.c)
		if err := b.create(); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if entries, _ := os.ReadDir(b.r.Root); len(entries) > 0 {
			t.Errorf("%s: left %v", name, entries)
		}
	}
}

// Each hook runs when it should, where it should, and knows of the container.
func TestHooks(t *testing.T) {
	b := newBundle(t, "write", "/dev/stdout", "command")
	log := filepath.Join(b.dir, "log")
	hook := func(name string) []specs.Hook {
		// Status and pid from the state; the root as this process sees it.
		script := fmt.Sprintf(`s=$(cat); echo "%s $(echo "$s" | tr , '\n' | grep -o '"status":"[a-z]*"') $(readlink /proc/self/ns/uts)" >> %s`, name, log)
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Timeout: ptr(10)}}
	}
	b.c.Hooks = &specs.Hooks{
		//lint:ignore SA1019 they are in use still
		Prestart:      hook("prestart"),
		CreateRuntime: hook("createRuntime"), CreateContainer: hook("createContainer"),
		StartContainer: []specs.Hook{{Path: "/bin/box", Args: []string{"box", "write", "/tmp/started", "x"}}},
		Poststart:      hook("poststart"), Poststop: hook("poststop"),
	}
	if err := b.create(); err != nil {
		t.Fatal(err)
	}
	own, err := os.Readlink("/proc/self/ns/uts")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/uts", b.await(specs.StateCreated).Pid))
	if err != nil {
		t.Fatal(err)
	}
	started := filepath.Join(b.dir, "root/tmp/started")
	if _, err := os.Stat(started); err == nil {
		t.Error("startContainer has run before the start")
	}
	if err := b.r.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	b.await(specs.StateStopped)
	if _, err := os.Stat(started); err != nil {
		t.Error("startContainer:", err)
	}
	if err := b.r.Delete(t.Context(), "c", false); err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(log)
	want := fmt.Sprintf("prestart \"status\":\"created\" %[1]s\ncreateRuntime \"status\":\"creating\" %[1]s\n"+
		"createContainer \"status\":\"creating\" %[2]s\npoststart \"status\":\"running\" %[1]s\npoststop \"status\":\"stopped\" %[1]s\n", own, theirs)
	if string(got) != want {
		t.Errorf("hooks:\n%swant:\n%s", got, want)
	}
	// One that fails ends the creation, and what was made is removed.
	for _, set := range []func(*specs.Hooks){
		func(h *specs.Hooks) { h.CreateRuntime = []specs.Hook{{Path: "/bin/false"}} },
		func(h *specs.Hooks) { h.CreateContainer = []specs.Hook{{Path: "/bin/false"}} },
		func(h *specs.Hooks) {
			h.CreateRuntime = []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "100"}, Timeout: ptr(1)}}
		},
		func(h *specs.Hooks) {
			h.CreateContainer = []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "100"}, Timeout: ptr(1)}}
		},
	} {
		b.c.Hooks = &specs.Hooks{}
		set(b.c.Hooks)
		if err := b.create(); err == nil {
			t.Error("a hook that fails is no error")
		}
		if entries, _ := os.ReadDir(b.r.Root); len(entries) > 0 {
			t.Errorf("left: %v", entries)
		}
	}
	// A poststop hook that fails keeps nothing.
	b.c.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/false"}}}
	if err := b.create(); err != nil {
		t.Fatal(err)
	}
	if err := b.r.Delete(t.Context(), "c", true); err == nil {
		t.Error("a poststop hook that fails is no error")
	}
	if _, err := b.r.State("c"); err == nil {
		t.Error("the container is still there")
	}
}

func TestControlGroups(t *testing.T) {
	b := newBundle(t, "sleep", "1000")
	b.c.Linux.CgroupsPath = fmt.Sprintf("/kiln-oci-test-%d/a/b", os.Getpid())
	b.c.Linux.Resources = &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20)), Swappiness: ptr(uint64(20))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Cpus: "0"},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(20))},
	}
	const v1 = "/sys/fs/cgroup/memory"
	if _, err := os.Stat(v1); err != nil {
		t.Skip("no control groups of version 1")
	}
	if err := b.create(); err != nil {
		t.Fatal(err)
	}
	dirs := map[string]bool{}
	for file, want := range map[string]string{
		"memory/memory.limit_in_bytes": "67108864", "memory/memory.swappiness": "20", "cpu/cpu.shares": "512",
		"cpu/cpu.cfs_quota_us": "50000", "cpuset/cpuset.cpus": "0", "pids/pids.max": "20",
	} {
		controller, name, _ := strings.Cut(file, "/")
		dir := filepath.Join("/sys/fs/cgroup", controller, b.c.Linux.CgroupsPath)
		dirs[dir] = true
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, error %v; want %s", file, got, err, want)
		}
	}
	if err := b.r.Delete(t.Context(), "c", true); err != nil {
		t.Error(err)
	}
	for dir := range dirs {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is still there", dir)
		}
		os.Remove(filepath.Dir(dir))
		os.Remove(filepath.Dir(filepath.Dir(dir)))
	}
}

func TestLoadConfig(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"", "{", "[]", `{"ociVersion": 1}`, `{}`} {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadConfig(dir); err == nil {
			t.Errorf("%q: accepted", text)
		}
	}
	b, _ := json.Marshal(specs.Spec{Version: "1.0.2-dev"})
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(dir); err != nil {
		t.Error(err)
	}
}
