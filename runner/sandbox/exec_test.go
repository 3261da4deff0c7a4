package sandbox

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// running starts a sandbox that sleeps until the test ends.
func running(t *testing.T, set func(*Spec)) *Process {
	t.Helper()
	s := spec(t, "sleep", "1000")
	if set != nil {
		set(&s)
	}
	p, err := Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if _, err := p.Wait(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// execIn runs the box with args in p's sandbox.
func boxIn(t *testing.T, p *Process, c Command, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	s := Spec{Command: c}
	wait := capture(t, &s, &out, &errOut)
	s.Args = append([]string{"/bin/box"}, args...)
	x, err := Exec(t.Context(), p.PID(), s.Command)
	s.Stdout.Close()
	s.Stderr.Close()
	if err != nil {
		t.Fatalf("exec %q: %v", args, err)
	}
	status, err := x.Wait()
	if err != nil {
		t.Fatal(err)
	}
	wait()
	return strings.TrimSpace(out.String()), strings.TrimSpace(errOut.String()), status.Code
}

func TestExec(t *testing.T) {
	p := running(t, func(s *Spec) { s.Hostname = "cell" })
	if out, errOut, code := boxIn(t, p, Command{}, "hostname"); out != "cell" || code != 0 {
		t.Errorf("hostname: %q %q %d", out, errOut, code)
	}
	if out, _, _ := boxIn(t, p, Command{UID: 12, GID: 13, Groups: []int{14}}, "id"); out != "12 13 [14]" {
		t.Errorf("id: %q", out)
	}
	if _, _, code := boxIn(t, p, Command{}, "exit", "7"); code != 7 {
		t.Errorf("exit: %d, want 7", code)
	}
	if out, _, _ := boxIn(t, p, Command{Cwd: "/tmp"}, "pwd"); out != "/tmp" {
		t.Errorf("pwd: %q", out)
	}
	if out, _, _ := boxIn(t, p, Command{}, "ls", "/proc/self/fd"); out != "0\n1\n2\n3" { // 3 is the listing's own
		t.Errorf("descriptors: %q", out)
	}
	// It is in the sandbox's PID namespace and control groups.
	out, _, _ := boxIn(t, p, Command{}, "cat", "/proc/1/cmdline", "/proc/self/cgroup")
	if !strings.HasPrefix(out, "/bin/box\x00sleep") {
		t.Errorf("process 1: %q", out)
	}
	if g := p.Group(); g.V2 != "" && !strings.Contains(out, "0::/\n") && !strings.HasSuffix(out, "0::/") {
		t.Errorf("control groups: %q", out)
	}
}

func TestExecNotFound(t *testing.T) {
	p := running(t, nil)
	_, err := Exec(t.Context(), p.PID(), Command{Args: []string{"nothing"}})
	var ce *CommandError
	if !errors.As(err, &ce) || ce.Code != 127 {
		t.Errorf("error %v, want a CommandError with 127", err)
	}
}

func TestExecInUserNamespace(t *testing.T) {
	p := running(t, func(s *Spec) {
		s.UIDMap = []IDMap{{0, 100000, 65536}}
		s.GIDMap = []IDMap{{0, 100000, 65536}}
		chownTree(t, s.RootPath, 100000)
	})
	if out, errOut, code := boxIn(t, p, Command{}, "id"); out != "0 0 []" || code != 0 {
		t.Errorf("id: %q %q %d", out, errOut, code)
	}
	if out, _, _ := boxIn(t, p, Command{}, "cat", "/proc/self/uid_map"); strings.Join(strings.Fields(out), " ") != "0 100000 65536" {
		t.Errorf("uid map: %q", out)
	}
}

func TestExecEndsWithSandbox(t *testing.T) {
	p := running(t, nil)
	x, err := Exec(t.Context(), p.PID(), Command{Args: []string{"/bin/box", "sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if status, err := x.Wait(); err != nil || status.Signal != int(unix.SIGKILL) {
		t.Errorf("status %+v, error %v; want killed", status, err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := Exec(t.Context(), p.PID(), Command{Args: []string{"/bin/box"}}); err == nil {
		t.Error("exec into an ended sandbox succeeded")
	}
}

// A sandbox that has ended is not taken for the process that has its number
// then.
func TestNumberOfAnother(t *testing.T) {
	p := running(t, nil)
	root, err := p.Root()
	if err != nil {
		t.Fatal(err)
	}
	root.Close()
	x, err := p.Exec(t.Context(), Command{Args: []string{"/bin/box", "exit", "3"}})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := x.Wait(); err != nil || status.Code != 3 {
		t.Errorf("exec: %+v, %v", status, err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	p.pid = os.Getpid()
	if f, err := p.Root(); !errors.Is(err, unix.ESRCH) {
		f.Close()
		t.Errorf("root of another: %v", err)
	}
	if _, err := p.Exec(t.Context(), Command{Args: []string{"/bin/true"}}); !errors.Is(err, unix.ESRCH) {
		t.Errorf("exec in another: %v", err)
	}
}

func chownTree(t *testing.T, dir string, id int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err // files are shared with other roots
		}
		return os.Lchown(path, id, id)
	})
	if err != nil {
		t.Fatal(err)
	}
}
