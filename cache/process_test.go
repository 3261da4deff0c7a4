package cache

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// helperEnv makes the test program do something else instead of testing:
// what tests need as a process of its own.
const helperEnv = "KILN_CACHE_TEST_HELPER"

func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		if err := helpers[name](os.Args[1], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var helpers = map[string]func(root string, in io.Reader, out io.Writer) error{
	"write": helpWrite,
	"hold":  helpHold,
	"count": helpCount,
}

// helper is a running helper process.
type helper struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startHelper(t *testing.T, name, root string) *helper {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &helper{cmd: exec.Command(exe, root)}
	h.cmd.Env = append(os.Environ(), helperEnv+"="+name)
	h.cmd.Stderr = os.Stderr
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewScanner(out)
	return h
}

func (h *helper) kill() {
	_ = h.cmd.Process.Kill()
	for h.out.Scan() { // what it had written already
	}
	_ = h.cmd.Wait()
}

// helpWrite makes layers, blobs, actions and cache mounts until it is killed,
// and prints each key that it has saved.
func helpWrite(root string, _ io.Reader, out io.Writer) error {
	ctx := context.Background()
	s, err := Open(root, Options{})
	if err != nil {
		return err
	}
	for i := os.Getpid() * 1000; ; i++ {
		text := fmt.Sprint("action ", i)
		d, err := s.NewLayer()
		if err != nil {
			return err
		}
		for k := range 3 {
			if err := os.WriteFile(filepath.Join(d.FS, fmt.Sprint("f", k)), []byte(fmt.Sprint(i/2, k)), 0o644); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(filepath.Join(d.Work, "work"), 0); err != nil {
			return err
		}
		t, err := tree.Scan(ctx, d.FS, tree.ScanOptions{})
		if err != nil {
			return err
		}
		l, err := commitSomehow(s, d, t, i)
		if err != nil {
			return err
		}
		blob, err := s.PutBlob([]byte(text))
		if err != nil {
			return err
		}
		release, err := s.Lock(ctx, digest.FromString(text))
		if err != nil {
			return err
		}
		if err := s.Save(ctx, action(text), solver.Result{Layers: []solver.Layer{l}, Blob: blob}); err != nil {
			return err
		}
		release()
		_, done, err := s.CacheMount(ctx, CacheMountOptions{ID: fmt.Sprint(i % 3), Sharing: Private, Clear: i%5 == 0})
		if err != nil {
			return err
		}
		done()
		if i%7 == 0 {
			if _, err := s.Prune(ctx, PruneOptions{Filters: map[string][]string{"type": {"mount"}}}); err != nil {
				return err
			}
		}
		if i%4 == 0 {
			if err := s.Sync(ctx); err != nil {
				return err
			}
		}
		fmt.Fprintln(out, text)
	}
}

// commitSomehow has each third layer packed, and each sixth unpacked again.
func commitSomehow(s *Store, d *Draft, t *tree.Tree, i int) (solver.Layer, error) {
	if i%3 != 0 {
		return d.Commit(context.Background(), t)
	}
	l, _, err := packLayer(s, d.FS, "")
	if err == nil && i%2 == 0 {
		_, err = s.LayerDir(context.Background(), l.Digest)
	}
	return l, errors.Join(err, d.Discard())
}

// TestKill kills a writing process at random moments: the next one finds a
// store that keeps every promise.
func TestKill(t *testing.T) {
	root := t.TempDir()
	r := rand.New(rand.NewSource(time.Now().UnixNano()))
	saved := map[string]bool{}
	for range 20 {
		h := startHelper(t, "write", root)
		for n := r.Intn(6); n > 0 && h.out.Scan(); n-- {
			saved[h.out.Text()] = true
		}
		// Somewhere within the next round, which takes a millisecond or two.
		timer := time.NewTimer(time.Duration(r.Intn(3000)) * time.Microsecond)
		<-timer.C
		h.kill()

		s := reopen(t, root, Options{})
		if problems, err := s.Verify(t.Context()); err != nil || len(problems) > 0 {
			t.Fatalf("after a kill: %v, %v", problems, err)
		}
		err := s.Records(t.Context(), func(r *Record) error {
			res, err := s.Lookup(t.Context(), r.Key)
			if err != nil {
				return err
			}
			if _, err := s.Blob(res.Blob); err != nil || r.Key[len(r.Key)-1]%2 == 0 {
				return err // other layers stay packed, until the next process has been killed
			}
			_, err = s.LayerDirs(t.Context(), res.Layers)
			return err
		})
		if err != nil {
			t.Fatalf("a promise is not kept: %v", err)
		}
		for text := range saved {
			if _, err := s.Lookup(t.Context(), digest.FromString(text)); err != nil {
				t.Fatalf("%s was saved: %v", text, err)
			}
		}
		for i := range 3 {
			_, release, err := s.CacheMount(t.Context(), CacheMountOptions{ID: fmt.Sprint(i), Sharing: Locked})
			if err != nil {
				t.Fatal(err)
			}
			release()
		}
		s.proc.trash.Wait()
		if left, _ := os.ReadDir(filepath.Join(root, "tmp")); len(left) != 2 { // its own
			t.Fatalf("tmp holds %v", left)
		}
		if _, err := s.Prune(t.Context(), PruneOptions{Filters: map[string][]string{"type": {"mount"}}}); err != nil {
			t.Fatal(err)
		}
		closeTest(t, s)
	}
	if len(saved) == 0 {
		t.Error("nothing was saved in all that time")
	}
	t.Logf("%d actions were saved", len(saved))
}

// helpHold takes a lock and a pin and keeps them until its input ends.
func helpHold(root string, in io.Reader, out io.Writer) error {
	s, err := Open(root, Options{})
	if err != nil {
		return err
	}
	if _, err := s.Lock(context.Background(), digest.FromString("held")); err != nil {
		return err
	}
	if _, err := s.Lookup(context.Background(), digest.FromString("used")); err != nil {
		return err
	}
	if _, _, err := s.CacheMount(context.Background(), CacheMountOptions{ID: "held", Sharing: Locked}); err != nil {
		return err
	}
	fmt.Fprintln(out, "ready")
	_, err = io.Copy(io.Discard, in)
	return err
}

func TestLocksAndPinsDieWithTheirProcess(t *testing.T) {
	root := t.TempDir()
	s := openTest(t, root, Options{})
	maker := reopen(t, root, Options{})
	used := save(t, maker, "used", solver.Result{Layers: []solver.Layer{putLayer(t, maker, map[string]string{"f": ""})}})
	closeTest(t, maker)
	h := startHelper(t, "hold", root)
	if !h.out.Scan() {
		t.Fatal("the helper failed")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	cancel(reason)
	if _, err := s.Lock(ctx, digest.FromString("held")); !errors.Is(err, reason) {
		t.Errorf("a held lock: %v", err)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := hits(t, root, []digest.Digest{used}); got != "0" {
		t.Error("another process's result was pruned")
	}
	if !blocked(t, s, CacheMountOptions{ID: "held"}) {
		t.Error("another process's cache mount is free")
	}
	h.kill()
	release, err := s.Lock(t.Context(), digest.FromString("held"))
	if err != nil {
		t.Fatal(err)
	}
	release()
	takeMount(t, s, CacheMountOptions{ID: "held"})
	if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := hits(t, root, []digest.Digest{used}); got != "" {
		t.Error("a dead process's result stays")
	}
}

// helpCount adds one to a number in a file, fifty times, under a lock.
func helpCount(root string, _ io.Reader, _ io.Writer) error {
	s, err := Open(root, Options{})
	if err != nil {
		return err
	}
	for range 50 {
		if err := count(s); err != nil {
			return err
		}
	}
	return s.Close()
}

func count(s *Store) error {
	release, err := s.FileLock(context.Background(), "a counter / with a slash")
	if err != nil {
		return err
	}
	defer release()
	path := s.path("containers", "counter")
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, append(b, 'x'), 0o600)
}

// A sweep that meets the lock file of a process that is just being made holds
// its lock for a moment.
func TestNewProcesses(t *testing.T) {
	tmp := t.TempDir()
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for i := range 200 {
				p, err := newProcess(tmp)
				if err != nil {
					t.Error(err)
					return
				}
				if i%3 == 0 { // not clean: another one clears it away
					if err := errors.Join(os.Mkdir(filepath.Join(p.dir, "left"), 0o700), unlock(p.lock)); err != nil {
						t.Error(err)
					}
				} else if err := p.close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
}

func TestFileLock(t *testing.T) {
	root := t.TempDir()
	s := openTest(t, root, Options{})
	hs := []*helper{startHelper(t, "count", root), startHelper(t, "count", root)}
	var wait sync.WaitGroup
	for range 3 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for range 50 {
				if err := count(s); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wait.Wait()
	for _, h := range hs {
		if err := h.cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	if b, err := os.ReadFile(s.path("containers", "counter")); err != nil || len(b) != 250 {
		t.Errorf("counted to %d, %v, want 250", len(b), err)
	}
}

func TestFullDisk(t *testing.T) {
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("needs to mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := reopen(t, root, Options{})
	l := putLayer(t, s, map[string]string{"f": "1"})
	good := save(t, s, "good", solver.Result{Layers: []solver.Layer{l}})
	packed, _ := mustPack(t, s, filesIn(t, map[string]string{"long": strings.Repeat("x", 1<<16)}), "")
	drafts := make([]*Draft, 2)
	for i := range drafts {
		d, err := s.NewLayer()
		if err != nil {
			t.Fatal(err)
		}
		drafts[i] = d
	}
	fill, err := os.Create(filepath.Join(root, "lost+found"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for _, err = fill.Write(make([]byte, 4096)); err == nil; {
		_, err = fill.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	before := listNames(t, root)
	_, commitErr := drafts[0].Commit(t.Context(), &tree.Tree{Entries: []tree.Entry{{Type: tree.Dir, Mode: 0o755}}})
	_, blobErr := s.PutBlob(make([]byte, 8192))
	_, unpackErr := s.LayerDir(t.Context(), packed.Digest)
	for what, err := range map[string]error{
		"commit": commitErr, "blob": blobErr, "unpack": unpackErr, "save": s.Save(t.Context(), action("big"), solver.Result{Data: make([]byte, 8192)}),
	} {
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s on a full disk: %v", what, err)
		}
	}
	after := listNames(t, root)
	for name := range after {
		if !before[name] {
			t.Errorf("left %s", name)
		}
	}
	if err := drafts[1].Discard(); err != nil {
		t.Error(err)
	}
	if _, err := s.Lookup(t.Context(), good); err != nil {
		t.Errorf("what was saved before: %v", err)
	}
	if err := fill.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutBlob(make([]byte, 8192)); err != nil {
		t.Errorf("with room again: %v", err)
	}
	closeTest(t, s)
}

func listNames(t *testing.T, root string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, line := range list(t, root) {
		name, _, _ := strings.Cut(line, " ")
		names[name] = true
	}
	return names
}

func TestRemoveAll(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	victim := filepath.Join(dir, "victim")
	for _, d := range []string{outside, victim, victim + "/work/work", victim + "/mount"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	kept := filepath.Join(outside, "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(victim, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(victim+"/work/work", 0); err != nil {
		t.Fatal(err)
	}
	mounted := unix.Mount(outside, victim+"/mount", "", unix.MS_BIND, "") == nil
	if mounted {
		if err := removeAll(victim, nil); err == nil {
			t.Error("a mount was removed")
		}
		if err := unix.Unmount(victim+"/mount", unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	close(stop)
	if err := removeAll(victim, stop); !errors.Is(err, errStopped) {
		t.Errorf("stopped: %v", err)
	}
	for range 2 { // the second time there is nothing
		if err := removeAll(victim, nil); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(victim); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("what a link or mount led to is gone: %v", err)
	}
	if !mounted {
		t.Log("mounts were not tried: needs root")
	}
}
