package rootless

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kiln.build/runner/sandbox"
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

func testSandbox(t *testing.T, ids bool) []string {
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
	cmd := exec.Command("go", "build", "-o", box, "../sandbox/testdata/box")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the box: %v\n%s", err, out)
	}
	out, err := asUser(t, "sandbox:"+box, ids)
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
			lines := testSandbox(t, c.ids)
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
