package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// programs builds kiln as make does, with the programs that are embedded, and
// the tool box's root file system, once for all tests that need real processes.
var programs = sync.OnceValues(func() (all struct{ kiln, toolbox string }, err error) {
	dir, err := built()
	if err != nil {
		return all, err
	}
	all.kiln = filepath.Join(dir, "kiln")
	all.toolbox = filepath.Join(dir, "toolbox.tar")
	if err := buildEmbedded(dir, all.kiln); err != nil {
		return all, err
	}
	tool := filepath.Join(dir, "toolbox")
	if err := goTool("../../examples/toolbox", "build", "-o", tool, "."); err != nil {
		return all, err
	}
	tar, err := exec.Command(tool, "--tar").Output()
	if err != nil {
		return all, fmt.Errorf("toolbox --tar: %w", err)
	}
	return all, os.WriteFile(all.toolbox, tar, 0o644)
})

// buildEmbedded builds kiln with what it embeds made in dir, and not in its
// place in the source, where another test may be building too.
func buildEmbedded(dir, kiln string) error {
	top, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	const init, program = "runner/sandbox/initbin/init", "runner/monitor/monitorbin/program"
	made := map[string]string{init: "embed-init", program + ".zst": "embed-program.zst", program + ".sum": "embed-program.sum"}
	replace := map[string]string{}
	for at, name := range made {
		replace[filepath.Join(top, at)] = filepath.Join(dir, name)
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, text, 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"build", "-ldflags=-s -w", "-o", filepath.Join(dir, "embed-init"), "./runner/sandbox/init"},
		{"build", "-ldflags=-s -w", "-overlay", overlay, "-tags=kiln_embed,kiln_monitor", "-o", filepath.Join(dir, "embed-program"), "./runner/monitor/program"},
		{"run", "./runner/monitor/monitorbin/pack", filepath.Join(dir, "embed-program")},
		{"build", "-overlay", overlay, "-tags=kiln_embed", "-o", kiln, "./cmd/kiln"},
	} {
		if err := goTool(top, args...); err != nil {
			return err
		}
	}
	return nil
}

// goTool runs the go command in a folder.
func goTool(dir string, args ...string) error {
	c := exec.Command("go", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, text)
	}
	return nil
}

// world is a store of its own with the tool box imported, and the program.
type world struct {
	t      *testing.T
	kiln   string
	root   string
	prefix []string // what runs the program, if that is something else
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts and namespaces")
	}
	built, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, kiln: built.kiln, root: filepath.Join(t.TempDir(), "store")}
	w.must("import", built.toolbox, "toolbox")
	return w
}

func (w *world) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append(append(slices.Clone(w.prefix), w.kiln), args...)
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Env = append(os.Environ(), "KILN_ROOT="+w.root)
	return c
}

// run returns what a command printed and its exit status.
func (w *world) run(args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	var out, errs bytes.Buffer
	c := w.command(w.t.Context(), args...)
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("kiln %q: %v", args, err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

func (w *world) must(args ...string) (stdout, stderr string) {
	w.t.Helper()
	stdout, stderr, code := w.run(args...)
	if code != 0 {
		w.t.Fatalf("kiln %q: exit status %d\n%s%s", args, code, stdout, stderr)
	}
	return stdout, stderr
}

// context writes a build context with one Dockerfile and returns its folder.
func (w *world) context(dockerfile string) string {
	w.t.Helper()
	dir := w.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// leftovers lists what a dead build must not leave: mounts of the store,
// processes of the program, and scratch space that is nobody's.
func (w *world) leftovers() []string {
	w.t.Helper()
	var left []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(mounts), "\n") {
		if strings.Contains(line, w.root) {
			left = append(left, "mount: "+line)
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range procs {
		env, err := os.ReadFile(p)
		if err == nil && bytes.Contains(env, []byte("KILN_ROOT="+w.root+"\x00")) {
			cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
			left = append(left, fmt.Sprintf("process %s: %q", filepath.Base(filepath.Dir(p)), cmd))
		}
	}
	// A process leaves its folder to the next one, but clean and free.
	scratch, err := filepath.Glob(filepath.Join(w.root, "tmp", "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, at := range scratch {
		if strings.HasSuffix(at, ".lock") {
			f, err := os.Open(at)
			if err != nil {
				continue
			}
			if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
				left = append(left, "lock: "+at)
			}
			f.Close()
			continue
		}
		files, err := os.ReadDir(at)
		if err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
		for _, f := range files {
			if fi, err := f.Info(); f.Name() != "pins" || err == nil && fi.Size() > 0 {
				left = append(left, "scratch: "+filepath.Join(at, f.Name()))
			}
		}
	}
	return left
}

func TestParallelStages(t *testing.T) {
	w := newWorld(t)
	var b strings.Builder
	for i := range 8 {
		fmt.Fprintf(&b, "FROM toolbox AS s%d\nRUN sleep 1; echo %d > /out\n", i, i)
	}
	b.WriteString("FROM scratch\n")
	for i := range 8 {
		fmt.Fprintf(&b, "COPY --from=s%d /out /out%d\n", i, i)
	}
	begin := time.Now()
	w.must("build", "-t", "wide", w.context(b.String()))
	took := time.Since(begin)
	t.Logf("eight stages of sleep 1 took %v", took)
	// Not a measurement: only that they ran at the same time.
	if took > 6*time.Second {
		t.Errorf("took %v: the stages ran one after the other", took)
	}
}

func TestThousandStages(t *testing.T) {
	w := newWorld(t)
	var b strings.Builder
	b.WriteString("FROM scratch AS s0\nCOPY file /f\n")
	for i := 1; i < 1000; i++ {
		fmt.Fprintf(&b, "FROM scratch AS s%d\nCOPY --from=s%d /f /f\nLABEL stage=%d\n", i, i-1, i)
	}
	dir := w.context(b.String())
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("through a thousand stages"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.must("build", "-t", "deep", dir)
	out, _ := w.must("build", "-o", "-", dir)
	if !strings.Contains(out, "through a thousand stages") {
		t.Error("the file did not come through")
	}
	_, stderr := w.must("build", "--progress=plain", "-t", "deep", dir)
	if strings.Contains(stderr, "DONE") {
		t.Error("the second build ran something")
	}
}

// TestConcurrentBuilds runs several processes on one store: of the same
// Dockerfile each step runs in one of them only.
func TestConcurrentBuilds(t *testing.T) {
	w := newWorld(t)
	counter := t.TempDir()
	same := w.context("FROM toolbox\nRUN echo ran-the-step; sleep 0.3; date +%s%N > /stamp\n")
	var g errgroup.Group
	var mu sync.Mutex
	ran := 0
	for i := range 24 {
		dir := same
		if i >= 20 {
			dir = w.context(fmt.Sprintf("FROM toolbox\nRUN echo other %d > /f\n", i))
		}
		g.Go(func() error {
			c := w.command(t.Context(), "build", "--progress=plain", "-t", fmt.Sprintf("c%d", i), dir)
			c.Dir = counter
			out, err := c.CombinedOutput()
			if err != nil {
				return fmt.Errorf("build %d: %w\n%s", i, err, out)
			}
			mu.Lock()
			defer mu.Unlock()
			ran += strings.Count(string(out), " ran-the-step\n")
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if ran != 1 {
		t.Errorf("the shared step ran %d times, want once", ran)
	}
	ids := map[string]bool{}
	for i := range 20 {
		out, _ := w.must("inspect", "--format", "{{.Id}}", fmt.Sprintf("c%d", i))
		ids[out] = true
	}
	if len(ids) != 1 {
		t.Errorf("equal builds made %d images, want one", len(ids))
	}
}

// TestKilledBuilds kills builds at moments spread over their whole life. The
// next build works, and nothing of the dead ones is left after it.
func TestKilledBuilds(t *testing.T) {
	w := newWorld(t)
	const kills = 50
	dockerfile := func(i int) string {
		return fmt.Sprintf(`FROM toolbox AS a
RUN echo %d > /a; head -c 300000 /dev/zero > /big; sleep 0.02
FROM toolbox
COPY file /file
RUN mkdir -p /d/e; echo %d > /d/e/f; sleep 0.02
COPY --from=a /a /big /
RUN cat /a /file > /sum
`, i, i)
	}
	build := func(i int) (string, []string) {
		dir := w.context(dockerfile(i))
		if err := os.WriteFile(filepath.Join(dir, "file"), fmt.Append(nil, i), 0o644); err != nil {
			t.Fatal(err)
		}
		return dir, []string{"build", "--progress=plain", "-t", "victim", dir}
	}
	_, args := build(-1)
	begin := time.Now()
	w.must(args...)
	life := time.Since(begin)
	for i := range kills {
		_, args := build(i / 2) // every other one finds what the last left half done
		c := w.command(t.Context(), args...)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		// Not synchronisation: the point is to strike anywhere.
		time.Sleep(life * time.Duration(i) / kills)
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	_, args = build(kills)
	w.must(args...)
	for i := range kills / 2 {
		_, args := build(i)
		w.must(args...)
		out, _ := w.must("run", "--rm", "--network=none", "victim", "cat", "/sum", "/d/e/f")
		if want := fmt.Sprintf("%d\n%d%d\n", i, i, i); out != want {
			t.Fatalf("build %d after the kills gave %q, want %q", i, out, want)
		}
	}
	waitFor(t, "leftovers to go", func() bool { return len(w.leftovers()) == 0 })
	for _, l := range w.leftovers() {
		t.Error(l)
	}
	filepath.WalkDir(filepath.Join(w.root, "images"), func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".kiln-") {
			t.Errorf("half-written blob %s", path)
		}
		return err
	})
}

// waitFor waits for the kernel or another process; it gives up after ten
// seconds.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Logf("gave up waiting for %s", what)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestFullDisk builds in a store on a small tmpfs: the error says what is
// wrong, and once there is room the same store builds.
func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	built, _ := programs()
	w.root = filepath.Join(small, "store")
	w.must("import", built.toolbox, "toolbox")
	dir := w.context("FROM toolbox\nRUN head -c 100000000 /dev/zero > /big\n")
	_, stderr, code := w.run("build", "-t", "big", dir)
	if code != 1 || !strings.Contains(strings.ToLower(stderr), "no space left on device") {
		t.Errorf("got exit status %d and %q, want 1 and the full disk named", code, stderr)
	}
	w.must("build", "-t", "ok", w.context("FROM toolbox\nRUN echo fits > /f\n"))
	if out, _ := w.must("run", "--rm", "--network=none", "ok", "cat", "/f"); out != "fits\n" {
		t.Errorf("got %q", out)
	}
}

// TestCorruptLayer damages a stored layer behind the store's back.
func TestCorruptStore(t *testing.T) {
	w := newWorld(t)
	dir := w.context("FROM toolbox\nRUN echo content > /file\n")
	w.must("build", "-t", "x", dir)
	blobs, err := filepath.Glob(filepath.Join(w.root, "images/blobs/sha256/*"))
	if err != nil || len(blobs) < 3 {
		t.Fatalf("blobs: %v, %v", blobs, err)
	}
	for _, b := range blobs {
		data, err := os.ReadFile(b)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(data, []byte("content\n")) || len(data) > 100_000 {
			continue
		}
		data[len(data)-1] ^= 0xff
		if err := os.WriteFile(b, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	_, stderr, code := w.run("save", "-o", filepath.Join(t.TempDir(), "x.tar"), "x")
	if code == 0 || !strings.Contains(stderr, "corrupt") {
		t.Errorf("save of a corrupt blob: exit status %d, %q", code, stderr)
	}
	// The build makes it again from the layer it has.
	w.must("build", "-t", "x", dir)
	w.must("save", "-o", filepath.Join(t.TempDir(), "x.tar"), "x")
}

func TestUnknownStoreVersion(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(filepath.Join(w.root, "version"), []byte("kiln store 99\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := w.run("images")
	if code != 1 || !strings.Contains(stderr, "99") {
		t.Errorf("got exit status %d and %q", code, stderr)
	}
}

func TestUnreachableRegistry(t *testing.T) {
	w := newWorld(t)
	_, stderr, code := w.run("build", w.context("FROM 127.0.0.1:1/none:latest\n"))
	if code != 1 || !strings.Contains(stderr, "127.0.0.1:1") || !strings.Contains(stderr, "connection refused") {
		t.Errorf("got exit status %d and %q", code, stderr)
	}
	if !strings.Contains(stderr, "Dockerfile:1") {
		t.Errorf("the Dockerfile's line is not named: %q", stderr)
	}
}

// TestNoNamespaces runs as a user who may not make user namespaces. The limit
// is that of a user namespace made for the test, not the machine's.
func TestNoNamespaces(t *testing.T) {
	w := newWorld(t)
	home := t.TempDir()
	for dir := home; dir != "/"; dir = filepath.Dir(dir) {
		_ = os.Chmod(dir, 0o755)
	}
	if err := os.Chown(home, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(w.kiln), 0o755); err != nil {
		t.Fatal(err)
	}
	context := w.context("FROM scratch\n")
	script := `echo 0 > /proc/sys/user/max_user_namespaces || exit 99
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$0" build "$1"`
	c := exec.Command("sh", "-c", script, w.kiln, context)
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
	c.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 99 {
		t.Skipf("cannot set a limit of user namespaces: %v %s", err, out)
	}
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "max_user_namespaces") {
		t.Errorf("got %v and %q, want status 1 and the setting that refuses", err, out)
	}
}
