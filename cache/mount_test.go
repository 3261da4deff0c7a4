package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kiln.build/cache/tree"
)

func takeMount(t *testing.T, s *Store, o CacheMountOptions) (string, func()) {
	t.Helper()
	dir, release, err := s.CacheMount(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return dir, release
}

// blocked reports whether a mount has to be waited for.
func blocked(t *testing.T, s *Store, o CacheMountOptions) bool {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	done := make(chan error, 1)
	go func() {
		_, release, err := s.CacheMount(ctx, o)
		if err == nil {
			release()
		}
		done <- err
	}()
	// It either returns by itself or only because it is cancelled; asking
	// after the directory for a while tells neither, so cancel at once: a
	// free directory is taken without a look at the context.
	cancel(reason)
	err := <-done
	if err != nil && !errors.Is(err, reason) {
		t.Error(err)
	}
	return err != nil
}

func TestCacheMountSharing(t *testing.T) {
	root := t.TempDir()
	s, other := openTest(t, root, Options{}), openTest(t, root, Options{})
	shared := CacheMountOptions{ID: "go build", Sharing: Shared}
	private := CacheMountOptions{ID: "go build", Sharing: Private}
	locked := CacheMountOptions{ID: "go build", Sharing: Locked}

	dir, release := takeMount(t, s, shared)
	again, releaseAgain := takeMount(t, other, shared)
	if again != dir {
		t.Errorf("shared mounts are %q and %q", dir, again)
	}
	if !blocked(t, other, locked) {
		t.Error("a locked mount joins shared ones")
	}
	copy1, releaseCopy := takeMount(t, s, private)
	copy2, _ := takeMount(t, other, private)
	if copy1 == dir || copy2 == dir || copy1 == copy2 {
		t.Errorf("private mounts are %q and %q beside %q", copy1, copy2, dir)
	}
	releaseCopy()
	if free, _ := takeMount(t, other, private); free != copy1 {
		t.Errorf("a free copy %q is not used, but %q", copy1, free)
	}
	release()
	release() // harmless
	if !blocked(t, s, locked) {
		t.Error("a locked mount joins the other shared one")
	}
	releaseAgain()
	alone, releaseLocked := takeMount(t, s, locked)
	if alone != dir {
		t.Errorf("the locked mount is %q, not %q", alone, dir)
	}
	if !blocked(t, other, shared) || !blocked(t, other, locked) {
		t.Error("a locked mount is not alone")
	}
	if elsewhere, _ := takeMount(t, other, CacheMountOptions{ID: "other"}); elsewhere == dir {
		t.Error("another id has the same directory")
	}
	releaseLocked()
	if first, _ := takeMount(t, s, private); first != dir {
		t.Errorf("a private mount has %q though %q is free", first, dir)
	}
	if _, _, err := s.CacheMount(t.Context(), CacheMountOptions{Sharing: "odd"}); err == nil || !strings.Contains(err.Error(), `"odd"`) {
		t.Errorf("odd sharing: %v", err)
	}
}

func TestCacheMountContent(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	uid, gid := os.Geteuid(), os.Getegid()
	if tree.OverlayXattr() == "trusted.overlay.opaque" { // root over all ids
		uid, gid = 1000, 100
	}
	o := CacheMountOptions{ID: "x", Mode: 0o1770, UID: uid, GID: gid, Init: func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "initial"), []byte("1"), 0o644)
	}}
	fail := o
	fail.Init = func(dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o644), unix.ENOSPC)
	}
	if _, _, err := s.CacheMount(t.Context(), fail); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("failing init: %v", err)
	}
	dir, release := takeMount(t, s, o)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil || st.Mode&0o7777 != 0o1770 || int(st.Uid) != uid || int(st.Gid) != gid {
		t.Errorf("mode %o, owner %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 || entries[0].Name() != "initial" {
		t.Errorf("initial content %v", entries)
	}
	put := func(dir, name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(dir, "kept")
	release()
	// What is there is left as it is.
	dir, release = takeMount(t, s, CacheMountOptions{ID: "x", Mode: 0o700})
	if _, err := os.Stat(filepath.Join(dir, "kept")); err != nil {
		t.Error(err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o770 {
		t.Errorf("mode changed: %v, %v", fi.Mode(), err)
	}

	// Cleared while in use: the user keeps the old one, others see the new.
	old, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	fresh, releaseFresh := takeMount(t, s, CacheMountOptions{ID: "x", Sharing: Locked, Clear: true})
	if entries, _ := os.ReadDir(fresh); len(entries) != 0 {
		t.Errorf("a cleared mount has %v", entries)
	}
	put(fresh, "new")
	releaseFresh()
	seen, releaseSeen := takeMount(t, s, CacheMountOptions{ID: "x"})
	if _, err := os.Stat(filepath.Join(seen, "new")); err != nil {
		t.Error(err)
	}
	releaseSeen()
	if names, err := old.Readdirnames(-1); err != nil || len(names) != 2 {
		t.Errorf("a directory in use was emptied: %q, %v", names, err)
	}
	release()
	takeMount(t, s, CacheMountOptions{ID: "x"})
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(seen), "old-*")); len(left) != 0 {
		t.Errorf("left %q", left)
	}
}

func TestCacheMountPrune(t *testing.T) {
	root := t.TempDir()
	s, user := openTest(t, root, Options{}), openTest(t, root, Options{})
	dir, release := takeMount(t, user, CacheMountOptions{ID: "a"})
	_, other := takeMount(t, user, CacheMountOptions{ID: "b"})
	other()
	if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	left, _ := os.ReadDir(s.path("caches"))
	if _, err := os.Stat(dir); err != nil || len(left) != 1 {
		t.Errorf("in use: %v; left %v", err, left)
	}
	release()
	if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(s.path("caches")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	takeMount(t, user, CacheMountOptions{ID: "a"})
}
