package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox/sandboxtest"
)

// box is the path of the static program from testdata/box.
var box string

func TestMain(m *testing.M) {
	MaybeInit()
	if os.Getenv(helperEnv) != "" {
		runHelper()
		return
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sandbox-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	box = filepath.Join(dir, "box")
	if err := sandboxtest.Build(box, "./testdata/box"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Without the race detector the test program is static, and so covers
	// being executed again.
	if race {
		if err := sandboxtest.Init(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// root makes a root directory with the box in /bin.
func root(t testing.TB) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	for _, d := range []string{"bin", "tmp", "etc"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(box, filepath.Join(dir, "bin/box")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// spec is a sandbox over a new root that runs the box with args.
func spec(t testing.TB, args ...string) Spec {
	t.Helper()
	return Spec{
		Runtime:  testRuntime,
		RootPath: root(t),
		Command:  Command{Args: append([]string{"/bin/box"}, args...), Env: []string{"PATH=/bin"}},
	}
}

// run runs s and returns what it wrote and how it ended.
func run(t testing.TB, s Spec) (stdout, stderr string, status Status) {
	t.Helper()
	var out, errOut bytes.Buffer
	wait := capture(t, &s, &out, &errOut)
	p, err := Start(t.Context(), s)
	if err != nil {
		s.Stdout.Close()
		s.Stderr.Close()
		t.Fatalf("start %q: %v", s.Args, err)
	}
	s.Stdout.Close()
	s.Stderr.Close()
	status, err = p.Wait()
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	wait()
	return out.String(), errOut.String(), status
}

// capture sets stdout and stderr of s to pipes that are read into buffers;
// wait returns when both are at their end.
func capture(t testing.TB, s *Spec, out, errOut *bytes.Buffer) (wait func()) {
	t.Helper()
	done := make(chan struct{}, 2)
	pipe := func(b *bytes.Buffer) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer r.Close()
			io.Copy(b, r)
			done <- struct{}{}
		}()
		return w
	}
	s.Stdout, s.Stderr = pipe(out), pipe(errOut)
	return func() { <-done; <-done }
}

// output is run for what has to succeed.
func output(t testing.TB, s Spec) string {
	t.Helper()
	out, errOut, status := run(t, s)
	if status.Code != 0 {
		t.Fatalf("%q: status %d, stderr %q", s.Args, status.Code, errOut)
	}
	return strings.TrimSpace(out)
}

// refused is run for what has to fail; it returns standard error.
func refused(t testing.TB, s Spec) string {
	t.Helper()
	out, errOut, status := run(t, s)
	if status.Code == 0 {
		t.Fatalf("%q succeeded, stdout %q", s.Args, out)
	}
	return strings.TrimSpace(errOut)
}

func TestExitStatus(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"true"}, 0}, {[]string{"exit", "3"}, 3}, {[]string{"cat", "/missing"}, 1},
	} {
		if _, _, status := run(t, spec(t, c.args...)); status.Code != c.code {
			t.Errorf("%q: code %d, want %d", c.args, status.Code, c.code)
		}
	}
}

func TestCommandIsProcessOne(t *testing.T) {
	if got := output(t, spec(t, "pid")); got != "1" {
		t.Errorf("pid %s, want 1", got)
	}
}

func TestCommandNotFound(t *testing.T) {
	r := root(t)
	if err := os.WriteFile(filepath.Join(r, "etc/plain"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r, "bin/garbage"), []byte("\x00\x01garbage"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		arg  string
		code int
		text string
	}{
		{"nothing", 127, `exec: "nothing": executable file not found in $PATH`},
		{"/bin/nothing", 127, `exec: "/bin/nothing": stat /bin/nothing: no such file or directory`},
		{"/etc/plain", 126, `exec: "/etc/plain": permission denied`},
		{"/etc", 126, `exec: "/etc": is a directory`},
		{"garbage", 126, `exec /bin/garbage: exec format error`},
	} {
		for _, init := range []bool{false, true} {
			s := Spec{RootPath: r, Init: init, Command: Command{Args: []string{c.arg}, Env: []string{"PATH=/sbin:/bin"}}}
			_, err := Start(t.Context(), s)
			var ce *CommandError
			if !errors.As(err, &ce) {
				t.Errorf("%s: error %v, want a CommandError", c.arg, err)
				continue
			}
			if ce.Code != c.code || ce.Message != c.text {
				t.Errorf("%s: %d %q, want %d %q", c.arg, ce.Code, ce.Message, c.code, c.text)
			}
		}
	}
}

func TestContextKills(t *testing.T) {
	s := spec(t, "sleep", "1000")
	ctx, cancel := context.WithCancel(t.Context())
	p, err := Start(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	status, err := p.Wait()
	if err != nil || status.Signal != int(unix.SIGKILL) || status.Code != 137 {
		t.Errorf("status %+v, error %v; want killed", status, err)
	}
}
