package rootless

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kiln.build/runner/sandbox"
	"kiln.build/runner/sandbox/sandboxtest"
)

// runSandbox is the helper program that runs the box from the sandbox's
// tests in a sandbox, after Enter.
func runSandbox() error {
	mode, err := Enter()
	if err != nil {
		return err
	}
	for _, set := range []func(*sandbox.Spec){
		func(s *sandbox.Spec) { s.Args = []string{"/bin/box", "id"} },
		func(s *sandbox.Spec) { s.Args = []string{"/bin/box", "caps"} },
		func(s *sandbox.Spec) { s.Args = []string{"/bin/box", "ls", "/dev", "/proc/self/fd"} },
		func(s *sandbox.Spec) { s.Args, s.Network.Host = []string{"/bin/box", "echo", "host", "network"}, true },
		func(s *sandbox.Spec) { s.Args, s.Limits.Memory = []string{"/bin/box"}, 1<<30 },
		func(s *sandbox.Spec) { s.Args = []string{"/bin/box", "stat", "/dev/null"} },
	} {
		s := sandbox.Spec{RootPath: "root"}
		set(&s)
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		s.Stdout, s.Stderr = w, w
		p, err := sandbox.Start(context.Background(), s)
		w.Close()
		if err != nil {
			fmt.Println("error:", err)
			continue
		}
		var out bytes.Buffer
		out.ReadFrom(r)
		status, err := p.Wait()
		fmt.Println(mode, status.Code, err, strings.Join(strings.Fields(out.String()), " "))
	}
	return nil
}

// runInner enters and starts a sandbox that sleeps; its pid goes to standard
// output.
func runInner(box string) error {
	if _, err := Enter(); err != nil {
		return err
	}
	if err := os.MkdirAll("root/bin", 0o755); err != nil {
		return err
	}
	b, err := os.ReadFile(box)
	if err != nil {
		return err
	}
	if err := os.WriteFile("root/bin/box", b, 0o755); err != nil {
		return err
	}
	p, err := sandbox.Start(context.Background(), sandbox.Spec{
		RootPath: "root", Command: sandbox.Command{Args: []string{"/bin/box", "sleep", "1000"}},
	})
	if err != nil {
		return err
	}
	fmt.Println(p.PID())
	_, err = p.Wait()
	return err
}

// runOuter is an ordinary user's process that executes a command in the
// sandbox of another one's namespace, as "kiln exec" does.
func runOuter(box string) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helper+"=inner:"+box)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		return err
	}
	for _, args := range [][]string{{"id"}, {"caps"}, {"cat", "/proc/1/cmdline"}} {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		p, err := sandbox.Exec(context.Background(), pid, sandbox.Command{
			Args: append([]string{"/bin/box"}, args...), Stdout: w, Stderr: w,
		})
		w.Close()
		if err != nil {
			return err
		}
		var text bytes.Buffer
		text.ReadFrom(r)
		r.Close()
		status, err := p.Wait()
		fmt.Println(status.Code, err, strings.Join(strings.Fields(strings.ReplaceAll(text.String(), "\x00", " ")), " "))
	}
	return nil
}

func TestExecFromOutside(t *testing.T) {
	for _, ids := range []bool{true, false} {
		got := testSandbox(t, "outer", ids)
		want := []string{
			"0 <nil> 0 0 []",
			"0 <nil> CapInh: 0000000000000000 CapPrm: 00000000a80425fb CapEff: 00000000a80425fb CapBnd: 00000000a80425fb CapAmb: 0000000000000000 NoNewPrivs: 0 Seccomp: 2",
			"0 <nil> /bin/box sleep 1000",
		}
		if !slices.Equal(got, want) {
			t.Errorf("range of ids %v:\n got %q\nwant %q", ids, got, want)
		}
	}
}

func testSandbox(t *testing.T, mode string, ids bool) []string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "rootless-box")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	box := filepath.Join(dir, "box")
	if err := sandboxtest.Build(box, "kiln.build/runner/sandbox/testdata/box"); err != nil {
		t.Fatal(err)
	}
	out, err := asUser(t, mode+":"+box, ids)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(out), "\n")
}

func TestSandboxInUserNamespace(t *testing.T) {
	for _, c := range []struct {
		name string
		ids  bool
		mode Mode
	}{{"range", true, Range}, {"single", false, Single}} {
		t.Run(c.name, func(t *testing.T) {
			lines := testSandbox(t, "sandbox", c.ids)
			want := []string{
				string(c.mode) + " 0 <nil> 0 0 []",
				string(c.mode) + " 0 <nil> CapInh: 0000000000000000 CapPrm: 00000000a80425fb CapEff: 00000000a80425fb CapBnd: 00000000a80425fb CapAmb: 0000000000000000 NoNewPrivs: 0",
				string(c.mode) + " 0 <nil> core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 0 1 2 3",
				string(c.mode) + " 0 <nil> host network",
				"error: make control group",
				string(c.mode) + " 0 <nil> 20666 ",
			}
			if len(lines) != len(want) {
				t.Fatalf("%d lines, want %d: %q", len(lines), len(want), lines)
			}
			for i := range want {
				if !strings.HasPrefix(lines[i], want[i]) {
					t.Errorf("line %d\n got %q\nwant %q…", i, lines[i], want[i])
				}
			}
		})
	}
}
