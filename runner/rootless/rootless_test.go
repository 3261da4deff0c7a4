package rootless

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox"
	"kiln.build/runner/sandbox/initbin"
	"kiln.build/runner/sandbox/sandboxtest"
)

// helper is the environment variable that makes the test program a user's
// program.
const helper = "KILN_TEST_HELPER"

func TestMain(m *testing.M) {
	sandbox.MaybeInit()
	mode, arg, _ := strings.Cut(os.Getenv(helper), ":")
	if err := sandboxtest.Init(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	switch mode {
	case "":
		os.Exit(m.Run())
	case "facts":
		if _, err := Enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(9)
		}
		if err := json.NewEncoder(os.Stdout).Encode(Probe(os.TempDir())); err != nil {
			os.Exit(1)
		}
	case "exit":
		if _, err := Enter(); err != nil {
			os.Exit(9)
		}
		os.Exit(42)
	case "sandbox":
		err := os.MkdirAll("root/bin", 0o755)
		if b, rerr := os.ReadFile(arg); err == nil && rerr == nil {
			err = os.WriteFile("root/bin/box", b, 0o755)
		}
		if err == nil {
			err = runSandbox()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(9)
		}
	case "inner", "outer":
		run := runInner
		if mode == "outer" {
			run = runOuter
		}
		if err := run(arg); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(9)
		}
	case "signal":
		if _, err := Enter(); err != nil {
			os.Exit(9)
		}
		unix.Kill(os.Getpid(), unix.SIGTERM)
		select {}
	}
}

// asUser runs this test program as an ordinary user, one with subordinate
// ids or one without.
func asUser(t *testing.T, mode string, ids bool) (string, error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become other users")
	}
	uid := 64123
	if ids {
		uid = 64124
		if _, err := exec.LookPath("newuidmap"); err != nil {
			t.Skip("needs newuidmap")
		}
	}
	// The test program and what it may write to, where that user can reach.
	dir, err := os.MkdirTemp("/var/tmp", "rootless-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe := filepath.Join(dir, "program")
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "init"), initbin.Program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = []string{"GORACE=atexit_sleep_ms=0", helper + "=" + mode, "TMPDIR=" + dir, sandboxtest.File + "=" + filepath.Join(dir, "init"), "PATH=" + os.Getenv("PATH")}
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	if ids {
		// Files of our own in place of the machine's, seen by this user only:
		// newuidmap wants a user that exists.
		cmd.Path, cmd.Args = "/usr/bin/unshare", []string{"unshare", "--mount", "sh", "-ec", `
			cat /etc/passwd > passwd; echo kilntest:x:64124:64124::/:/bin/sh >> passwd; mount --bind passwd /etc/passwd
			cat /etc/group > group; echo kilntest:x:64124: >> group; mount --bind group /etc/group
			echo kilntest:300000:65536 > subid; mount --bind subid /etc/subuid; mount --bind subid /etc/subgid
			exec setpriv --reuid 64124 --regid 64124 --clear-groups "$0"`, exe}
		cmd.SysProcAttr = nil
		for _, f := range []string{"/etc/subuid", "/etc/subgid", "/usr/bin/setpriv", "/usr/bin/unshare"} {
			if _, err := os.Stat(f); err != nil {
				t.Skip("needs " + f)
			}
		}
	}
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if errOut.Len() > 0 {
		t.Logf("stderr: %s", errOut.String())
	}
	return string(out), err
}

func facts(t *testing.T, ids bool) Facts {
	t.Helper()
	out, err := asUser(t, "facts", ids)
	if err != nil {
		t.Fatal(err, out)
	}
	var f Facts
	if err := json.Unmarshal([]byte(out), &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestEnterSingle(t *testing.T) {
	f := facts(t, false)
	if f.Mode != Single || f.Overlay != "userxattr" {
		t.Errorf("facts %+v; want one id and an overlay with userxattr", f)
	}
	if !slices.ContainsFunc(f.Problems, func(p Problem) bool { return strings.Contains(p.What, "chown") && p.Fix != "" }) {
		t.Errorf("no problem says that chown fails, and the fix: %+v", f.Problems)
	}
}

func TestEnterRange(t *testing.T) {
	if f := facts(t, true); f.Mode != Range || f.Overlay != "userxattr" {
		t.Errorf("facts %+v; want a range of ids and an overlay with userxattr", f)
	}
}

func TestEnterExitCode(t *testing.T) {
	for mode, want := range map[string]int{"exit": 42, "signal": 143} {
		_, err := asUser(t, mode, false)
		ee, ok := err.(*exec.ExitError)
		if !ok || ee.ExitCode() != want {
			t.Errorf("%s: %v, want exit status %d", mode, err, want)
		}
	}
}

func TestProbeRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	f := Probe(t.TempDir())
	if f.Mode != Root || f.Overlay != "trusted" || f.Kernel == "" {
		t.Errorf("facts %+v", f)
	}
}

func TestSubordinate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subuid")
	if err := os.WriteFile(file, []byte("# ids\nann:100:10\nbob:200:5\n1000:300:7\nann:bad:1\nann:1:0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, want := subordinate(file, "ann", 1000), []idRange{{100, 10}, {300, 7}}; !slices.Equal(got, want) {
		t.Errorf("ranges %v, want %v", got, want)
	}
}

func TestModeOf(t *testing.T) {
	for _, c := range []struct {
		uidMap  string
		entered bool
		want    Mode
	}{
		{"         0          0 4294967295\n", false, Root},
		{"0 1000 1\n", true, Single},
		{"0 1000 1\n1 100000 65536\n", true, Range},
		{"0 100000 65536\n", false, Root},
	} {
		if got := modeOf(c.uidMap, c.entered); got != c.want {
			t.Errorf("%q entered %v: %s, want %s", c.uidMap, c.entered, got, c.want)
		}
	}
}
