package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, mounts, cgroups string
		mode                  string
		want                  map[string]string // controller ("" is version 2) to own directory
	}{
		{
			"v2 session",
			"30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
			"0::/user.slice/user-1000.slice/session-2.scope\n",
			"v2", map[string]string{"": "/sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope"},
		},
		{
			"hybrid",
			"31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n32 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" +
				"33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n",
			"3:cpu,cpuacct:/a\n1:name=systemd:/init.scope\n0::/b\n",
			"hybrid", map[string]string{"": "/sys/fs/cgroup/unified/b", "cpu": "/sys/fs/cgroup/cpu,cpuacct/a", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/a", "name=systemd": "/sys/fs/cgroup/systemd/init.scope"},
		},
		{
			"a container without a namespace",
			"33 31 0:30 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
			"3:memory:/docker/abc/x\n",
			"v1", map[string]string{"memory": "/sys/fs/cgroup/memory/x"},
		},
		{"none", "22 27 0:21 / /proc rw - proc proc rw\n", "", "none", map[string]string{}},
		{"odd lines", "x\n - cgroup2\n1 2 - cgroup2 c rw\n", "x\n::\n", "none", map[string]string{}},
	} {
		s, err := parse(strings.NewReader(c.mounts), strings.NewReader(c.cgroups))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := map[string]string{}
		for k, h := range s.V1 {
			got[k] = h.Own
		}
		if s.V2 != nil {
			got[""] = s.V2.Own
		}
		if s.Mode() != c.mode || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %s %v, want %s %v", c.name, s.Mode(), got, c.mode, c.want)
		}
	}
}

// Version 2 makes groups only where controllers are handed on.
func TestBase2(t *testing.T) {
	mount := t.TempDir()
	own := filepath.Join(mount, "user/session")
	if err := os.MkdirAll(own, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []struct{ dir, has, on string }{
		{mount, "cpu memory pids io", "cpu memory pids"}, {mount + "/user", "cpu memory pids", "memory pids"}, {own, "", ""},
	} {
		for file, list := range map[string]string{"cgroup.controllers": d.has, "cgroup.subtree_control": d.on} {
			if err := os.WriteFile(filepath.Join(d.dir, file), []byte(list+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	// One with processes could, and would be one of threads from then on.
	busy := filepath.Join(own, "busy")
	if err := os.Mkdir(busy, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, list := range map[string]string{"cgroup.controllers": "pids", "cgroup.subtree_control": "", "cgroup.procs": "1", "cgroup.type": "domain"} {
		if err := os.WriteFile(filepath.Join(busy, file), []byte(list+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := (Hierarchy{Mount: mount, Own: busy}).base2("", []string{"pids"}); err != nil || got != mount+"/user/kiln" {
		t.Errorf("from a group with processes: %s, %v", got, err)
	}
	h := Hierarchy{Mount: mount, Own: own}
	for _, c := range []struct {
		parent string
		want   []string
		base   string
	}{
		{"", nil, own + "/kiln"}, {"", []string{"memory"}, mount + "/user/kiln"}, {"", []string{"io", "pids"}, mount + "/kiln"},
		{"", []string{"cpu", "memory"}, mount + "/user/kiln"},
		{"/other", []string{"cpu"}, mount + "/other"}, {"sub", nil, own + "/sub"},
	} {
		if got, err := h.base2(c.parent, c.want); err != nil || got != c.base {
			t.Errorf("%q %v: %s, %v; want %s", c.parent, c.want, got, err, c.base)
		}
	}
	for dir, want := range map[string]string{mount: "+io", mount + "/user": "+cpu"} { // what the kernel would have been told
		if got := text(filepath.Join(dir, "cgroup.subtree_control")); !strings.HasPrefix(got, want) {
			t.Errorf("%s was told %q", dir, got)
		}
	}
	if _, err := h.base2("", []string{"cpuset"}); err == nil || !strings.Contains(err.Error(), mount+" has no cpuset controller itself") {
		t.Errorf("cpuset: %v", err)
	}
	if _, err := h.base("/a/../../b"); err == nil {
		t.Error("a parent with .. was accepted")
	}
}

func detect(t *testing.T) *System {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	s, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sleeper is a process to put into groups.
func sleeper(t *testing.T) (pid int, wait func() error) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	return cmd.Process.Pid, cmd.Wait
}

// Each version alone can freeze, kill and remove.
func TestEachVersion(t *testing.T) {
	s := detect(t)
	for name, sys := range map[string]*System{"v1": {V1: s.V1}, "v2": {V2: s.V2}, "both": s} {
		t.Run(name, func(t *testing.T) {
			if sys.Mode() == "none" {
				t.Skip("not mounted here")
			}
			g, err := sys.Create(Options{Name: NewName(), Devices: DefaultDevices})
			if err != nil {
				t.Fatal(err)
			}
			if len(g.dirs()) == 0 {
				t.Skip("groups cannot be made here")
			}
			pid, wait := sleeper(t)
			if err := g.Add(pid); err != nil {
				t.Fatal(err)
			}
			if pids, err := g.Procs(); err != nil || len(pids) != 1 || pids[0] != pid {
				t.Fatalf("processes %v, %v", pids, err)
			}
			if err := g.Freeze(); err != nil {
				t.Fatal(err)
			}
			if err := g.Thaw(); err != nil {
				t.Fatal(err)
			}
			if err := g.Freeze(); err != nil {
				t.Fatal(err)
			}
			done := make(chan error)
			go func() { done <- wait() }()
			if err := g.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err == nil || !strings.Contains(err.Error(), "killed") {
				t.Errorf("the process ended with %v", err)
			}
			if err := g.Remove(); err != nil {
				t.Fatal(err)
			}
			for _, d := range g.dirs() {
				if _, err := os.Stat(d); err == nil {
					t.Errorf("%s is still there", d)
				}
			}
		})
	}
}

// Each device filter comes to these decisions.
func TestDeviceFilters(t *testing.T) {
	s := detect(t)
	dir := t.TempDir()
	for name, minor := range map[string]int{"mem": 1, "null": 3} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, uint32(minor)))); err != nil {
			t.Fatal(err)
		}
	}
	script := "cd " + dir + `
		try() { "$@" 2>/dev/null && echo yes || echo no; }
		try dd if=null count=0; try dd if=/dev/zero count=0; try dd if=/dev/urandom count=0
		try dd if=mem count=0; try dd of=null if=/dev/zero count=1; try mknod made c 1 1; rm -f made`
	for _, sys := range []*System{{V1: s.V1}, {V2: s.V2}} {
		if sys.Mode() == "none" {
			continue
		}
		g, err := sys.Create(Options{Name: NewName(), Devices: DefaultDevices})
		if err != nil {
			t.Fatal(err)
		}
		if !g.Filters() {
			t.Log(sys.Mode(), "filters no devices here")
			continue
		}
		// The shell waits until it is in the group.
		cmd := exec.Command("sh", "-c", "read x; "+script)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if err := g.Add(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		in.Write([]byte("go\n"))
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		if err := g.Remove(); err != nil {
			t.Fatal(err)
		}
		if out.String() != "yes\nyes\nyes\nno\nyes\nyes\n" {
			t.Errorf("%s: %q", sys.Mode(), out.String())
		}
	}
}

func TestLimits(t *testing.T) {
	s := detect(t)
	g, err := s.Create(Options{Name: NewName(), Limits: Limits{
		Memory: 64 << 20, CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, CPUSetCPUs: "0", Pids: 17,
	}})
	if err != nil {
		t.Skip("limits cannot be set here: ", err)
	}
	defer g.Remove()
	if err := g.Tighten(); err != nil {
		t.Fatal(err)
	}
	if d := g.V1["cpu"]; d != "" {
		for f, want := range map[string]string{"cpu.shares": "512", "cpu.cfs_quota_us": "50000"} {
			if got := strings.TrimSpace(text(filepath.Join(d, f))); got != want {
				t.Errorf("%s is %s, want %s", f, got, want)
			}
		}
	}
	if d := g.V1["cpuset"]; d != "" {
		if got := strings.TrimSpace(text(filepath.Join(d, "cpuset.cpus"))); got != "0" {
			t.Errorf("cpuset.cpus is %s", got)
		}
	}
	if st := g.Stats(); st.MemoryLimit != 64<<20 || st.PidsLimit != 17 {
		t.Errorf("stats %+v", st)
	}
}

// What version 2 would be told, in a directory of plain files.
func TestLimitsV2(t *testing.T) {
	dir := t.TempDir()
	names := []string{"memory.max", "memory.low", "memory.swap.max", "cpu.weight", "cpu.max", "cpuset.cpus", "pids.max"}
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g := &Group{V2: dir, limited2: []string{"memory", "cpu", "cpuset", "pids"}}
	if err := g.limit2(&Limits{Memory: 100, MemorySwap: 150, CPUShares: 1024, CPUQuota: 5000, CPUSetCPUs: "0-1", Pids: -1}); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[string]string{
		"memory.max": "100", "memory.low": "", "memory.swap.max": "50", "cpu.weight": "39",
		"cpu.max": "5000 100000", "cpuset.cpus": "0-1", "pids.max": "max",
	} {
		if got := text(filepath.Join(dir, n)); got != want {
			t.Errorf("%s is %q, want %q", n, got, want)
		}
	}
	if err := g.limit2(&Limits{Memory: 100, MemorySwap: 50}); err == nil {
		t.Error("less swap than memory was accepted")
	}
}

// Limits that cannot be had are refused, with the reason.
func TestRefusedLimits(t *testing.T) {
	s := &System{V1: map[string]Hierarchy{}}
	_, err := s.Create(Options{Name: "x", Limits: Limits{Memory: 1}})
	if err == nil || !strings.Contains(err.Error(), "no memory controller") {
		t.Errorf("error %v", err)
	}
	// Nor are values of version 2 dropped where its groups cannot be made.
	none := &System{V1: map[string]Hierarchy{}, V2: &Hierarchy{Mount: "/missing", Own: "/missing/own"}}
	if _, err := none.Create(Options{Name: "x", Settings: []Setting{{File: "io.weight", Value: "100"}}}); err == nil || !strings.Contains(err.Error(), "controllers io") {
		t.Errorf("io.weight: %v", err)
	}
	if g, err := s.Create(Options{Name: "x"}); err != nil || len(g.dirs()) != 0 {
		t.Errorf("group %+v, error %v", g, err)
	}
}

func TestOrphan(t *testing.T) {
	name := NewName()
	if orphan(name) {
		t.Errorf("%s of this process is an orphan", name)
	}
	f := strings.Split(name, "-")
	f[2] = "1" // an earlier process of the same number
	if !orphan(strings.Join(f, "-")) {
		t.Errorf("%v is no orphan", f)
	}
	for _, n := range []string{"abc", "1-2-3", name + "-detached", "0-" + strings.Join(f[1:], "-")} {
		if orphan(n) {
			t.Errorf("%s is an orphan", n)
		}
	}
}

func TestStatsParsing(t *testing.T) {
	if r, w := blkio("8:0 Read 10\n8:0 Write 5\n8:0 Total 15\n8:1 Read 1\nTotal 16\n"); r != 11 || w != 5 {
		t.Error(r, w)
	}
	if r, w := iostat("8:0 rbytes=10 wbytes=5 rios=1\n8:1 rbytes=1\n"); r != 11 || w != 5 {
		t.Error(r, w)
	}
	if n := lookup("a 1\noom_kill 7\n", "oom_kill"); n != 7 {
		t.Error(n)
	}
}

func TestDeviceProgramSize(t *testing.T) {
	if n := len(deviceProgram(DefaultDevices)); n == 0 || n > unix.BPF_MAXINSNS {
		t.Errorf("%d instructions", n)
	}
}
