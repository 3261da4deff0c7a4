package sandbox

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kiln.build/runner/sandbox/cgroup"
)

// testRuntime is the Runtime of the sandboxes that spec describes.
var testRuntime string

func needRunc(t *testing.T) {
	t.Helper()
	needRoot(t)
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("needs runc")
	}
}

// What is promised of sandboxes holds with runc, too.
func TestRuntime(t *testing.T) {
	needRunc(t)
	testRuntime = "runc"
	t.Cleanup(func() { testRuntime = "" })
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"Stdio", TestStdio}, {"StdoutReopened", TestStdoutReopened}, {"Terminal", TestTerminal}, {"Init", TestInitReapsAndForwards},
		{"Network", TestNetwork}, {"Privileged", TestPrivileged}, {"Freeze", TestFreeze}, {"Accounting", TestAccounting},
		{"Parallel", TestParallel}, {"Rights", TestRights}, {"DaemonsDie", TestDaemonsDie}, {"ForkBomb", TestForkBomb},
		{"MemoryLimit", TestMemoryLimit}, {"Devices", TestDevices}, {"OtherProcesses", TestOtherProcesses},
		{"HostHidden", TestHostHidden}, {"CreatedMountPoints", TestCreatedMountPoints}, {"ExecNotFound", TestExecNotFound},
		{"ExecEndsWithSandbox", TestExecEndsWithSandbox}, {"SessionKeyring", TestSessionKeyring},
	} {
		t.Run(c.name, c.test)
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "kiln-bundle-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Both make the same of one spec, as far as a command can see.
func TestRuntimeSame(t *testing.T) {
	needRunc(t)
	umask := uint32(0o27)
	score := 400
	for _, c := range []struct {
		args string
		set  func(*Spec)
	}{
		{"id", func(s *Spec) { s.UID, s.GID, s.Groups = 5, 6, []int{7, 8} }},
		{"umask", func(s *Spec) { s.Umask = &umask }},
		{"limit 0", func(s *Spec) { s.Rlimits = []Rlimit{{"cpu", 100, 200}, {"RLIMIT_core", 1, 2}} }},
		{"cat /proc/self/oom_score_adj", func(s *Spec) { s.OOMScoreAdj = &score }},
		{"pwd", func(s *Spec) { s.Cwd = "/etc" }},
		{"hostname", func(s *Spec) { s.Hostname = "cell" }},
		{"stat /dev/mine", func(s *Spec) {
			s.Devices = []Device{{Path: "/dev/mine", Major: 1, Minor: 5, Mode: 0o640, UID: 1, GID: 2}}
		}},
		{"cat /a/file", func(s *Spec) {
			s.Mounts = []Mount{{Target: "/a", Source: filepath.Join(s.RootPath, "etc"), ReadOnly: true}}
		}},
		{"write /a/file x", func(s *Spec) {
			s.Mounts = []Mount{{Target: "/a", Source: filepath.Join(s.RootPath, "etc"), ReadOnly: true}}
		}},
		{"write /x y", func(s *Spec) { s.ReadonlyRoot = true }},
		{"write /proc/sys/vm/drop_caches 1", func(*Spec) {}},
		{"cat /proc/sys/net/ipv4/ip_forward", func(s *Spec) { s.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"} }},
		{"stat /t", func(s *Spec) { s.Mounts = []Mount{{Target: "/t", Type: "tmpfs", Mode: 0o750, Size: 1 << 20}} }},
		{"exit 9", func(*Spec) {}},
		{"unshare", func(*Spec) {}},
	} {
		s := spec(t, strings.Fields(c.args)...)
		if err := os.WriteFile(filepath.Join(s.RootPath, "etc/file"), []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
		c.set(&s)
		s.Runtime = "runc"
		out2, errOut2, status2 := run(t, s)
		s.Runtime = ""
		out, errOut, status := run(t, s)
		if out != out2 || errOut != errOut2 || status.Code != status2.Code {
			t.Errorf("%s: %q %q %d, with runc %q %q %d", c.args, out, errOut, status.Code, out2, errOut2, status2.Code)
		}
	}
}

// The folder of a process that was killed is removed by the next one.
func TestRuntimeSweeps(t *testing.T) {
	needRunc(t)
	own := cgroup.NewName()
	f := strings.Split(own, "-")
	f[2] = "1" // another time: that process is gone
	dead, alive := filepath.Join(os.TempDir(), bundlePrefix+strings.Join(f, "-")+".x"), filepath.Join(os.TempDir(), bundlePrefix+own+".x")
	for _, d := range []string{dead, alive} {
		if err := os.MkdirAll(filepath.Join(d, "state"), 0o700); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(d)
	}
	parent, out := startHelper(t, "runtime", root(t), "0")
	text, err := io.ReadAll(out)
	if err := errors.Join(err, parent.Wait()); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if _, err := os.Stat(dead); err == nil {
		t.Error("the folder of a dead process is still there")
	}
	if _, err := os.Stat(alive); err != nil {
		t.Error("the folder of a live process:", err)
	}
}

func TestRuntimeErrors(t *testing.T) {
	needRunc(t)
	for name, set := range map[string]func(*Spec){
		"missing runtime": func(s *Spec) { s.Runtime = "/missing" },
		"no command":      func(s *Spec) { s.Args = nil },
		"no root":         func(s *Spec) { s.RootPath = "" },
		"missing root":    func(s *Spec) { s.RootPath = "/missing" },
		"mount source":    func(s *Spec) { s.Mounts = []Mount{{Target: "/x", Source: "/missing"}} },
		"sysctl":          func(s *Spec) { s.Sysctls = map[string]string{"kernel.core_pattern": "x"} },
		"hold":            func(s *Spec) { s.Hold = os.Stdin },
		"format":          func(s *Spec) { s.Formats = []Format{{}} },
		"capability":      func(s *Spec) { s.Capabilities = []string{"CAP_X"} },
	} {
		s := spec(t, "true")
		s.Runtime = "runc"
		set(&s)
		if p, err := Start(t.Context(), s); err == nil {
			p.Wait()
			t.Errorf("%s: accepted", name)
		}
	}
	for args, code := range map[string]int{"/missing": 127, "missing": 127, "/etc": 126} {
		s := spec(t)
		s.Runtime, s.Args = "runc", []string{args}
		var ce *CommandError
		if _, err := Start(t.Context(), s); !errors.As(err, &ce) || ce.Code != code {
			t.Errorf("%s: %v, want code %d", args, err, code)
		}
	}
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), "kiln-bundle-*"))
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || slices.ContainsFunc(strings.Split(string(mounts), "\n"), func(l string) bool { return strings.Contains(l, "kiln-bundle-") }) {
		t.Errorf("mounts of a bundle on the host: %v", err)
	}
}
