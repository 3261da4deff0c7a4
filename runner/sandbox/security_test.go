package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The tests of this file assert what must be impossible. SECURITY.md names
// them.

// CVE-2019-5736: a program of the host overwritten through /proc/PID/exe.
func TestInitCannotBeOverwritten(t *testing.T) {
	needRoot(t)
	f, err := initFile()
	if err != nil {
		t.Fatal(err)
	}
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	const content = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if err != nil || seals&content != content {
		t.Errorf("seals %#x, error %v", seals, err)
	}
	// An entry point of /proc/self/exe would execute the init once more.
	s := spec(t)
	s.Args = []string{"/proc/self/exe"}
	if p, err := Start(t.Context(), s); err == nil {
		if status, _ := p.Wait(); status.Code == 0 {
			t.Error("/proc/self/exe as the command succeeded")
		}
	}
	// With Init it stays as process 1, and is still no file of the host.
	s = spec(t, "open", "/proc/1/exe")
	s.Init = true
	refused(t, s)
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err != nil {
		return // before Linux 6.3, with which that seal came, too
	}
	unix.Close(fd)
	// Nor can it be kept from being executed again, for exec and restarts.
	s.Args = []string{"/bin/box", "chmod", "/proc/1/exe"}
	refused(t, s)
}

// CVE-2016-9962: an init, or a process that joins, looked into by one of a
// sandbox. A thread with the rights of root in a sandbox stands for that.
func TestInitIsHidden(t *testing.T) {
	needRoot(t)
	s := spec(t, "true")
	var maps string
	s.NetworkReady = func(_ context.Context, pid int) error {
		maps = mapsAsSandbox(t, pid)
		return nil
	}
	output(t, s)
	if maps != "" {
		t.Errorf("the memory map of the init can be read: %q", maps)
	}
	// The same thread may look at its equal.
	p := running(t, nil)
	if mapsAsSandbox(t, p.PID()) == "" {
		t.Error("the memory map of the command cannot be read, so this test shows nothing")
	}
}

// CVE-2024-21626: descriptors and working directories that lead to the host.
func TestNoDescriptorLeaks(t *testing.T) {
	s := spec(t, "links", "/proc/self/fd")
	leak, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	// One that lacks close-on-exec, as a bug elsewhere would have it.
	fd, err := unix.Dup(int(leak.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, init := range []bool{false, true} {
		s.Init = init
		var names []string
		for line := range strings.Lines(output(t, s)) {
			name, link, _ := strings.Cut(strings.TrimSpace(line), " ")
			if link != "" { // not the listing's own, closed by now
				names = append(names, name)
			}
			if name == "0" && link != "/dev/null" {
				t.Errorf("standard input is %q", link)
			}
		}
		if strings.Join(names, " ") != "0 1 2" {
			t.Errorf("init %v: descriptors %v, want 0 1 2", init, names)
		}
	}
}

func TestWorkingDirectoryInside(t *testing.T) {
	needRoot(t)
	for _, fd := range []string{"3", "4", "5", "6", "7", "8", "9", "10", "11", "12"} {
		for _, dir := range []string{"/proc/self/fd/" + fd, "/proc/self/fd/" + fd + "/.."} {
			s := spec(t, "pwd")
			s.Cwd = dir
			p, err := Start(t.Context(), s)
			if err == nil {
				p.Wait()
				t.Errorf("working directory %s was entered", dir)
			}
		}
	}
	for _, link := range []string{"../../../..", "/tmp/../..", "/proc/self/../.."} {
		s := spec(t, "pwd")
		s.Cwd = link
		if got := output(t, s); got != "/" {
			t.Errorf("working directory %s is %s", link, got)
		}
	}
}

// CVE-2024-45310, CVE-2026-41579: mount points made through links.
func TestMountPointsStayInside(t *testing.T) {
	outside := t.TempDir()
	for _, link := range []string{outside, "../../../../../../../.." + outside} {
		s := spec(t, "true")
		if err := os.Symlink(link, filepath.Join(s.RootPath, "data")); err != nil {
			t.Fatal(err)
		}
		s.Mounts = []Mount{{Target: "/data/made", Type: "tmpfs"}, {Target: "/data/file", Source: box}}
		output(t, s)
		if entries, _ := os.ReadDir(outside); len(entries) > 0 {
			t.Errorf("link to %s: %v made on the host", link, entries)
		}
		if _, err := os.Stat(filepath.Join(s.RootPath, outside, "made")); err != nil {
			t.Errorf("link to %s: not made inside: %v", link, err)
		}
	}
}

// CVE-2026-41579: an image whose /dev, /proc or /sys are links.
func TestRootWithLinks(t *testing.T) {
	needRoot(t)
	for _, name := range []string{"dev", "proc", "sys"} {
		for _, to := range []string{"/proc", "/dev", "/", "/" + name, name, "/missing", "/etc"} {
			outside := t.TempDir()
			s := spec(t, "true")
			for _, l := range []string{to, outside} {
				os.Remove(filepath.Join(s.RootPath, name))
				if err := os.Symlink(l, filepath.Join(s.RootPath, name)); err != nil {
					t.Fatal(err)
				}
				// Started or refused, nothing else.
				if p, err := Start(t.Context(), s); err == nil {
					p.Wait()
				} else if !strings.HasPrefix(err.Error(), "start the sandbox: mount ") {
					t.Errorf("/%s -> %s: %v", name, l, err)
				}
			}
			if entries, _ := os.ReadDir(outside); len(entries) > 0 {
				t.Errorf("/%s: %v made on the host", name, entries)
			}
		}
	}
}

// CVE-2025-31133: masks made of a /dev/null that is something else.
func TestMasksAreNull(t *testing.T) {
	for _, p := range DefaultMaskedPaths {
		if _, err := os.Stat(p); err != nil {
			continue
		}
		s := spec(t, "ls", p)
		if st, _ := os.Stat(p); !st.IsDir() {
			if got := output(t, spec(t, "stat", p)); got != "20666 0:0 1:3" {
				t.Errorf("%s is %s, want the null device", p, got)
			}
			s = spec(t, "cat", p)
		}
		if got := output(t, s); got != "" {
			t.Errorf("%s shows %q", p, got)
		}
	}
}

// A /dev that the root brings along is not used.
func TestRootDevicesHidden(t *testing.T) {
	s := spec(t, "stat", "/dev/null")
	if err := os.MkdirAll(filepath.Join(s.RootPath, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(s.RootPath, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1))); err != nil {
		t.Fatal(err)
	}
	if got := output(t, s); got != "20666 0:0 1:3" {
		t.Errorf("/dev/null is %s", got)
	}
}

// CVE-2025-52881: procfs writes redirected by mounts over /proc.
func TestSysctlsGoToProcfs(t *testing.T) {
	fake := t.TempDir()
	if err := os.MkdirAll(filepath.Join(fake, "sys/net/ipv4"), 0o755); err != nil {
		t.Fatal(err)
	}
	trap := filepath.Join(fake, "sys/net/ipv4/ip_forward")
	if err := os.WriteFile(trap, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := spec(t, "true")
	s.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	s.Mounts = []Mount{{Target: "/proc", Source: fake}}
	output(t, s)
	if b, _ := os.ReadFile(trap); string(b) != "untouched" {
		t.Errorf("the sysctl was written to a file: %q", b)
	}
	s = spec(t, "cat", "/proc/sys/net/ipv4/ip_forward")
	s.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	if got := output(t, s); got != "1" {
		t.Errorf("net.ipv4.ip_forward is %s", got)
	}
	for _, name := range []string{"kernel.core_pattern", "vm.swappiness", "net/../kernel/core_pattern", "fs.mqueue./../x/../../kernel/core_pattern", "kernel.hostname"} {
		s := spec(t, "true")
		s.Sysctls = map[string]string{name: "x"}
		if p, err := Start(t.Context(), s); err == nil {
			p.Wait()
			t.Errorf("sysctl %s was accepted", name)
		}
	}
}

// refusedCommands is what root in a sandbox may not do.
func refusedCommands() [][]string {
	mem := "/sys/fs/cgroup"
	return [][]string{
		{"write", "/proc/sys/kernel/core_pattern", "|/bin/box"},
		{"write", "/proc/sys/vm/drop_caches", "1"},
		{"write", "/proc/sysrq-trigger", "h"},
		{"write", "/proc/irq/default_smp_affinity", "1"},
		{"write", "/sys/kernel/uevent_helper", "/bin/box"},
		{"write", "/sys/made", "x"},
		{"write", mem + "/cgroup.procs", "1"},
		{"write", mem + "/unified/cgroup.procs", "1"},
		{"write", mem + "/made", "x"},
		{"mount", "/tmp"},
		{"remount", "/proc/sys"},
		{"remount", "/sys"},
		{"umount", "/proc/sys"},
		{"umount", "/proc/kcore"},
		{"ls", "/proc/acpi/x", "/proc/scsi/x"},
		{"sethostname"},
		{"unshare"},
		{"unsharens"},
		{"bpf"},
		{"keys"},
		{"reboot"},
		{"ptrace", "0"},
		{"open", "/proc/kcore/x"},
		// CVE-2022-0492: a program of the sandbox's, run by the kernel outside.
		{"write", mem + "/memory/release_agent", "/bin/box"},
		{"write", mem + "/memory/notify_on_release", "1"},
		{"mountas", "cgroup", "/tmp", "rdma"},
		{"mountas", "cgroup2", "/tmp", ""},
		// Over what the host, or the mask, has put there.
		{"mount", "/"}, {"mount", "/bin"}, {"mount", "/proc"}, {"mount", "/dev"},
		{"mountas", "proc", "/tmp", ""}, {"mountas", "sysfs", "/tmp", ""}, {"mountas", "devtmpfs", "/tmp", ""},
		{"bind", "/proc/1/root", "/tmp"},
		{"umount", "/"}, {"umount", "/dev"},
	}
}

func TestRefused(t *testing.T) {
	needRoot(t)
	for _, args := range refusedCommands() {
		refused(t, spec(t, args...))
	}
}

// Nodes can be made, as in docker, but only the harmless ones be opened.
func TestDevices(t *testing.T) {
	var host unix.Stat_t
	if err := unix.Stat("/", &host); err != nil {
		t.Fatal(err)
	}
	major, minor := strconv.Itoa(int(unix.Major(host.Dev))), strconv.Itoa(int(unix.Minor(host.Dev)))
	s := spec(t, "mknod", "/dev/disk", major, minor)
	output(t, s)
	for _, dir := range []string{"/tmp", "/dev"} {
		s := spec(t, "mknod", dir+"/disk", major, minor)
		s.Mounts = []Mount{{Target: "/dev", Type: "tmpfs"}}
		output(t, s)
		if _, err := os.Lstat(filepath.Join(s.RootPath, dir, "disk")); dir == "/tmp" && err != nil {
			t.Fatal(err)
		}
		s.Args = []string{"/bin/box", "open", "/tmp/disk"}
		if dir == "/tmp" {
			if got := refused(t, s); !strings.Contains(got, "operation not permitted") {
				t.Errorf("the host's disk: %s", got)
			}
		}
	}
	s = spec(t, "mkchr", "/tmp/mem", "1", "1")
	output(t, s)
	s.Args = []string{"/bin/box", "open", "/tmp/mem"}
	refused(t, s)
	for _, dev := range []string{"null", "zero", "full", "random", "urandom"} {
		output(t, spec(t, "open", "/dev/"+dev))
	}
	s = spec(t, "open", "/dev/fuse")
	s.Devices = []Device{{Path: "/dev/fuse", Major: 10, Minor: 229}}
	if _, err := os.Stat("/dev/fuse"); err == nil {
		output(t, s)
	}
	s.Devices[0].Access = "r"
	refused(t, s)
}

// Without a group that filters devices none can be made or opened at all.
func TestDevicesWithoutGroups(t *testing.T) {
	s := spec(t, "mkchr", "/tmp/mem", "1", "1")
	if err := unix.Mknod(filepath.Join(s.RootPath, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
	}{{s.Args[1:], 1}, {[]string{"open", "/null"}, 1}, {[]string{"open", "/dev/null"}, 0}} {
		s.Args = append([]string{"/bin/box"}, c.args...)
		p, err := start(t.Context(), &s, noGroups)
		if err != nil {
			t.Fatal(err)
		}
		if status, err := p.Wait(); err != nil || status.Code != c.code {
			t.Errorf("%q: %+v, %v; want %d", c.args, status, err, c.code)
		}
	}
}

// Nor can a command that joins later make one, in a place where it would open.
func TestExecDevicesWithoutGroups(t *testing.T) {
	s := spec(t, "sleep", "1000")
	p, err := start(t.Context(), &s, noGroups)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		p.Kill()
		p.Wait()
	}()
	if out, errOut, code := boxIn(t, p, Command{}, "mkchr", "/dev/mem", "1", "1"); code == 0 {
		if _, _, code := boxIn(t, p, Command{}, "open", "/dev/mem"); code == 0 {
			t.Error("the machine's memory can be opened")
		}
		t.Errorf("a node was made: %s %s", out, errOut)
	}
	// With a group that filters, docker's rights are left.
	q := running(t, nil)
	if q.Group().V2 == "" && q.Group().V1["devices"] == "" {
		return
	}
	if _, errOut, code := boxIn(t, q, Command{}, "mkchr", "/dev/x", "1", "1"); code != 0 {
		t.Errorf("with a group: %s", errOut)
	}
	if _, _, code := boxIn(t, q, Command{}, "open", "/dev/x"); code == 0 {
		t.Error("with a group: the machine's memory can be opened")
	}
}

// The mode of the host's null device is beyond reach.
func TestHostNullDevice(t *testing.T) {
	before, err := os.Stat("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	for _, given := range []bool{false, true} {
		s := spec(t, "chmod", "/proc/self/fd/0")
		if given {
			f, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			s.Stdin = f
		}
		run(t, s)
		if after, err := os.Stat("/dev/null"); err != nil || after.Mode() != before.Mode() {
			t.Fatalf("the host's /dev/null is %v now, error %v", after.Mode(), err)
		}
	}
}

// Nothing of the host shows.
func TestHostHidden(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{secret, "/../../.." + secret, "/proc/1/root" + secret, "/proc/self/cwd/../../../.." + secret} {
		refused(t, spec(t, "cat", p))
	}
	if got := output(t, spec(t, "ls", "/proc")); strings.Contains(got, "\n"+strconv.Itoa(os.Getpid())+"\n") {
		t.Error("processes of the host show in /proc")
	}
	var cut []string
	for line := range strings.Lines(output(t, spec(t, "cat", "/proc/self/mountinfo"))) {
		if f := strings.Fields(line); strings.Contains(f[3], "sandbox") && f[4] != "/" || strings.Contains(line, "shared:") || strings.Contains(line, "master:") {
			cut = append(cut, line)
		}
	}
	if len(cut) > 0 {
		t.Errorf("mounts of the host, or that propagate: %q", cut)
	}
	if got := output(t, spec(t, "ls", "/sys/class/net")); got != "lo" {
		t.Errorf("network interfaces %q, want lo", got)
	}
}

// Nobody else's process can be signalled or traced.
func TestOtherProcesses(t *testing.T) {
	p := running(t, nil)
	for _, args := range [][]string{{"kill", strconv.Itoa(p.PID())}, {"ptrace", strconv.Itoa(p.PID())}} {
		refused(t, spec(t, args...))
	}
	if err := unix.Kill(p.PID(), 0); err != nil {
		t.Errorf("the neighbour has ended: %v", err)
	}
}

func TestRights(t *testing.T) {
	line := func(out, key string) string {
		for l := range strings.Lines(out) {
			if v, ok := strings.CutPrefix(l, key+":"); ok {
				return strings.TrimSpace(v)
			}
		}
		return ""
	}
	const docker, none = "00000000a80425fb", "0000000000000000"
	for _, c := range []struct {
		name     string
		set      func(*Spec)
		bnd, eff string
		amb, nnp string
		seccomp  string
	}{
		{"default", func(*Spec) {}, docker, docker, none, "0", "2"},
		{"user", func(s *Spec) { s.UID, s.GID = 1000, 1000 }, docker, none, none, "0", "2"},
		{"none", func(s *Spec) { s.Capabilities = []string{} }, none, none, none, "0", "2"},
		{"ambient", func(s *Spec) { s.UID = 1000; s.Ambient = []string{"CAP_CHOWN"} }, docker, "0000000000000001", "0000000000000001", "0", "2"},
		{"no new privileges", func(s *Spec) { s.NoNewPrivs = true }, docker, docker, none, "1", "2"},
		{"unconfined", func(s *Spec) { s.Seccomp.Unconfined = true }, docker, docker, none, "0", "0"},
		{"init", func(s *Spec) { s.Init = true }, docker, docker, none, "0", "2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := spec(t, "caps")
			c.set(&s)
			out := output(t, s)
			for _, w := range [][2]string{
				{"CapBnd", c.bnd}, {"CapEff", c.eff}, {"CapPrm", c.eff}, {"CapAmb", c.amb}, {"CapInh", c.amb},
				{"NoNewPrivs", c.nnp}, {"Seccomp", c.seccomp},
			} {
				if got := line(out, w[0]); got != w[1] {
					t.Errorf("%s is %s, want %s", w[0], got, w[1])
				}
			}
		})
	}
}

// What a command leaves behind ends with it, and so do its control groups.
func TestDaemonsDie(t *testing.T) {
	for _, init := range []bool{false, true} {
		s := spec(t, "daemons", "5")
		s.Init = init
		var out, errOut bytes.Buffer
		wait := capture(t, &s, &out, &errOut)
		p, err := Start(t.Context(), s)
		s.Stdout.Close()
		s.Stderr.Close()
		if err != nil {
			t.Fatal(err)
		}
		g := p.Group()
		if _, err := p.Wait(); err != nil {
			t.Fatal(err)
		}
		wait() // the daemons held the pipe
		for _, dir := range append(mapValues(g.V1), g.V2) {
			if _, err := os.Stat(dir); dir != "" && err == nil {
				t.Errorf("control group %s is still there", dir)
			}
		}
	}
}

func TestForkBomb(t *testing.T) {
	s := spec(t, "bomb")
	s.Limits.Pids = 50
	n, err := strconv.Atoi(output(t, s))
	if err != nil || n == 0 || n > 50 {
		t.Errorf("%d processes of 50, error %v", n, err)
	}
}

func TestMemoryLimit(t *testing.T) {
	s := spec(t, "eat", "256")
	s.Limits.Memory = 64 << 20
	_, _, status := run(t, s)
	if status.Signal != int(unix.SIGKILL) || !status.OOMKilled {
		t.Errorf("status %+v, want killed for want of memory", status)
	}
}

// The caller's keys stay with the caller.
func TestSessionKeyring(t *testing.T) {
	s := spec(t, "keys")
	s.Seccomp.Unconfined = true
	if got := output(t, s); got != "0" {
		t.Errorf("%s keys in the session keyring, want none", got)
	}
}

// A killed parent takes its sandboxes along.
func TestParentKilled(t *testing.T) {
	s := spec(t, "sleep", "1000")
	var parents []int
	for _, uid := range []string{"0", "1000"} {
		parent, pids := startHelper(t, "parent", s.RootPath, uid)
		line, err := bufio.NewReader(pids).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := parent.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		parent.Wait()
		parents = append(parents, parent.Process.Pid)
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 10_000); n != 1 {
			t.Errorf("uid %s: the sandbox lives 10 s after its parent: %v", uid, err)
			unix.Kill(pid, unix.SIGKILL)
		}
		io.Copy(io.Discard, pids)
	}
	// The next process removes what that left.
	next, pids := startHelper(t, "parent", s.RootPath, "0")
	defer next.Wait()
	defer next.Process.Kill()
	if _, err := bufio.NewReader(pids).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	sys, err := groupSystem()
	if err != nil || sys.V2 == nil {
		return
	}
	entries, _ := os.ReadDir(filepath.Join(sys.V2.Own, "kiln"))
	for _, e := range entries {
		if strings.Contains(e.Name(), fmt.Sprintf("-%d-", parents[0])) {
			t.Errorf("control group %s is still there", e.Name())
		}
	}
}

func noGroups() (groups, error) { return groups{&Group{}}, nil }
