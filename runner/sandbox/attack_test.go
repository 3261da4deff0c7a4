package sandbox

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Root of a user namespace that is root outside, too (as a sandbox for
// another platform has), or that is nobody there, may no more than another.
func TestRefusedInUserNamespace(t *testing.T) {
	needRoot(t)
	for _, outside := range []IDMap{{0, 0, 1<<32 - 1}, {0, 100000, 65536}} {
		for _, args := range refusedCommands() {
			s := spec(t, args...)
			s.UIDMap, s.GIDMap = []IDMap{outside}, []IDMap{outside}
			if outside.Outside != 0 {
				chownTree(t, s.RootPath, outside.Outside)
			}
			refused(t, s)
		}
	}
}

// Files of the machine that are seen in a user namespace, whose root may be the
// machine's, cannot be changed: its devices, of which there are no others
// there, and the emulator, which processes show as what they execute.
func TestHostFilesInUserNamespace(t *testing.T) {
	needRoot(t)
	all := []IDMap{{0, 0, 1<<32 - 1}}
	mode := func(path string) uint32 {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Mode
	}
	for inside, device := range map[string]string{"/dev/full": "/dev/full", "/proc/timer_list": "/dev/null"} {
		before := mode(device)
		t.Cleanup(func() { _ = unix.Chmod(device, before&0o7777) })
		s := spec(t, "mark", inside)
		s.UIDMap, s.GIDMap = all, all
		refused(t, s)
		s.Args = []string{"/bin/box", "write", inside, "x"}
		run(t, s) // full, or nothing happens: it is still what it is
		if after := mode(device); after != before {
			t.Errorf("%s had mode %o, and has %o", device, before, after)
		}
	}
	foreign(t, "true") // skips where there is no instance of binfmt_misc, as before Linux 6.7
	emulator := filepath.Join(t.TempDir(), "emulator")
	program, err := os.ReadFile(box)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(emulator, program, 0o755); err != nil {
		t.Fatal(err)
	}
	s := spec(t, "emulator")
	if err := os.WriteFile(filepath.Join(s.RootPath, "sleep"), []byte("abcdef"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.Formats = []Format{{Name: "x", Magic: []byte("abc"), Mask: []byte{255, 255, 255}, Interpreter: emulator}}
	before := mode(emulator)
	if got := output(t, s); got != "" {
		t.Errorf("a sandbox %s", strings.ReplaceAll(got, "\n", ", "))
	}
	if after := mode(emulator); after != before {
		t.Errorf("the emulator had mode %o, and has %o", before, after)
	}
}

// In a user namespace and the machine's network, a sandbox sees no more of the
// machine's sysfs than others do: nothing that is mounted in there.
func TestSysfsOfHostNetwork(t *testing.T) {
	needRoot(t)
	all := []IDMap{{0, 0, 1<<32 - 1}}
	var mounts [2][]string
	for i, m := range [][]IDMap{nil, all} {
		s := spec(t, "cat", "/proc/self/mountinfo")
		s.Network.Host, s.UIDMap, s.GIDMap = true, m, m
		for l := range strings.Lines(output(t, s)) {
			if f := strings.Fields(l); strings.HasPrefix(f[4], "/sys") {
				mounts[i] = append(mounts[i], f[4]+" "+f[5])
			}
		}
	}
	if !slices.Equal(mounts[0], mounts[1]) {
		t.Errorf("mounts %q, want %q", mounts[1], mounts[0])
	}
}

// System calls by which others got out, or reached the machine.
func TestRefusedCalls(t *testing.T) {
	needRoot(t)
	if runtime.GOARCH != "amd64" {
		t.Skip("numbers of amd64")
	}
	for name, nr := range map[string]int{
		"open_by_handle_at": 304, "kexec_load": 246, "init_module": 175, "finit_module": 313, "delete_module": 176,
		"iopl": 172, "ioperm": 173, "swapon": 167, "settimeofday": 164, "clock_settime": 227, "acct": 163, "quotactl": 179,
		"perf_event_open": 298, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425, "pivot_root": 155, "setns": 308,
		"fsopen": 430, "open_tree": 428, "move_mount": 429, "fspick": 433, "mount_setattr": 442, "fsmount": 432,
		"add_key": 248, "request_key": 249, "keyctl": 250, "syslog": 103, "nfsservctl": 180, "_sysctl": 156, "vhangup": 153,
	} {
		got := refused(t, spec(t, "call", strconv.Itoa(nr)))
		if !strings.Contains(got, "operation not permitted") && !strings.Contains(got, "function not implemented") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// The right to change the root, which docker leaves, leads nowhere else.
func TestChrootStaysInside(t *testing.T) {
	s := spec(t, "chroot")
	if err := os.WriteFile(filepath.Join(s.RootPath, "inside"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := output(t, s); !strings.Contains("\n"+got+"\n", "\ninside\n") {
		t.Errorf("the root is then one with %q", strings.Fields(got))
	}
}

// Nothing of a neighbour can be killed, traced or written to, whatever its
// number, and whoever its user is.
func TestNeighbour(t *testing.T) {
	p := running(t, nil)
	for _, args := range []string{"killall", "hunt"} {
		if out, _, _ := run(t, spec(t, args)); out != "" {
			t.Errorf("%s: %s", args, out)
		}
	}
	if err := p.Signal(0); err != nil {
		t.Errorf("the neighbour has ended: %v", err)
	}
}

// Processes that multiply for ever end with their sandbox.
func TestForkBombKilled(t *testing.T) {
	for _, init := range []bool{false, true} {
		s := spec(t, "bombs")
		s.Init, s.Limits.Pids = init, 100
		p, err := Start(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Second); p.Group().Stats().Pids < 50 && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		if n := p.Group().Stats().Pids; n < 50 || n > 100 {
			t.Errorf("init %v: %d processes of 100", init, n)
		}
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		if _, err := p.Wait(); err != nil {
			t.Error(err)
		}
		for _, dir := range append(mapValues(p.Group().V1), p.Group().V2) {
			if _, err := os.Stat(dir); dir != "" && err == nil {
				t.Errorf("init %v: control group %s is still there", init, dir)
			}
		}
	}
}

// Set-id programs give the rights of root in the sandbox, which are those
// that it has left; with no_new_privs none; and of a user namespace nothing
// that counts outside.
func TestSetuid(t *testing.T) {
	effective := func(s Spec) string {
		t.Helper()
		s.UID, s.GID, s.Args = 1000, 1000, []string{"/bin/box", "exec", "/tmp/su", "caps"}
		for l := range strings.Lines(output(t, s)) {
			if v, ok := strings.CutPrefix(l, "CapEff:"); ok {
				return strings.TrimSpace(v)
			}
		}
		return "?"
	}
	const docker, none = "00000000a80425fb", "0000000000000000"
	for _, outside := range []int{0, 100000} {
		s := spec(t, "install", "/tmp/su")
		if outside != 0 {
			s.UIDMap, s.GIDMap = []IDMap{{0, outside, 65536}}, []IDMap{{0, outside, 65536}}
			chownTree(t, s.RootPath, outside)
		}
		output(t, s)
		su := filepath.Join(s.RootPath, "tmp/su")
		var st unix.Stat_t
		if err := unix.Stat(su, &st); err != nil || int(st.Uid) != outside || st.Mode&unix.S_ISUID == 0 {
			t.Errorf("owner %d, mode %o, error %v; want %d", st.Uid, st.Mode, err, outside)
		}
		if got := effective(s); got != docker {
			t.Errorf("outside %d: effective %s, want %s", outside, got, docker)
		}
		s.NoNewPrivs = true
		if got := effective(s); got != none {
			t.Errorf("outside %d, no new privileges: effective %s", outside, got)
		}
		if outside == 0 {
			continue
		}
		// One of the host's root, which nobody in there is.
		s.NoNewPrivs = false
		if err := os.Chown(su, 0, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(su, 0o755|os.ModeSetuid|os.ModeSetgid); err != nil {
			t.Fatal(err)
		}
		if got := effective(s); got != none {
			t.Errorf("a set-id program of the host's root gives %s", got)
		}
	}
}
