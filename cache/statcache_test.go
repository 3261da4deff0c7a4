package cache

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"kiln.build/cache/tree"
)

func openStats(t testing.TB, s *Store, dir string) *StatCache {
	t.Helper()
	c, err := s.StatCache(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// settledStat is that of a file that was written some time ago. The ctime
// cannot be set, so it is made up.
func settledStat(i int) *unix.Stat_t {
	return &unix.Stat_t{
		Dev: 8, Ino: uint64(1000 + i), Size: int64(i), Mode: unix.S_IFREG | 0o644,
		Mtim: unix.Timespec{Sec: 1700000000, Nsec: int64(i)}, Ctim: unix.Timespec{Sec: 1700000001, Nsec: 999999999},
	}
}

func TestStatCache(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	dir := t.TempDir()
	c := openStats(t, s, dir)
	d := digest.FromString("content")
	now := time.Now()
	for i := range 100 {
		c.Put(fmt.Sprint("dir/file", i), settledStat(i), d, now)
	}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	c = openStats(t, s, dir)
	if got, ok := c.Lookup("dir/file7", settledStat(7)); !ok || got != d {
		t.Errorf("got %q, %t", got, ok)
	}
	changes := map[string]func(*unix.Stat_t){
		"device": func(st *unix.Stat_t) { st.Dev++ },
		"inode":  func(st *unix.Stat_t) { st.Ino++ },
		"size":   func(st *unix.Stat_t) { st.Size++ },
		"mode":   func(st *unix.Stat_t) { st.Mode |= 0o111 },
		"mtime":  func(st *unix.Stat_t) { st.Mtim.Nsec++ },
		"ctime":  func(st *unix.Stat_t) { st.Ctim.Nsec-- },
	}
	for name, change := range changes {
		st := settledStat(7)
		if change(st); ask(c, "dir/file7", st) {
			t.Errorf("a change of %s is not seen", name)
		}
	}
	if ask(c, "dir/file", settledStat(7)) {
		t.Error("another path hits")
	}
	if ask(openStats(t, s, t.TempDir()), "dir/file7", settledStat(7)) {
		t.Error("another context hits")
	}
}

func ask(c *StatCache, path string, st *unix.Stat_t) bool {
	_, ok := c.Lookup(path, st)
	return ok
}

func TestStatCacheRacy(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	seen := time.Now()
	at := func(d time.Duration) unix.Timespec { return unix.NsecToTimespec(seen.Add(d).UnixNano()) }
	tests := []struct {
		name         string
		mtime, ctime time.Duration
		want         bool
	}{
		{"old", -time.Hour, -time.Hour, true},
		{"just outside", -time.Hour, -2*time.Second - 1, true},
		{"written just now", 0, 0, false},
		{"a second ago", -time.Second, -time.Second, false},
		{"mtime put back", -time.Hour, -time.Millisecond, false},
		{"from the future", time.Hour, -time.Hour, false},
	}
	for _, tt := range tests {
		c := openStats(t, s, t.TempDir())
		st := settledStat(1)
		st.Mtim, st.Ctim = at(tt.mtime), at(tt.ctime)
		c.Put("f", st, digest.FromString("x"), seen)
		if got := ask(c, "f", st); got != tt.want {
			t.Errorf("%s: trusted %t, want %t", tt.name, got, tt.want)
		}
	}
}

// TestStatCacheSameSizeSameTime is the edit that tools which look at size
// and mtime miss.
func TestStatCacheSameSizeSameTime(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	then := time.Now().Add(-time.Hour)
	scan := func() digest.Digest {
		t.Helper()
		c := openStats(t, s, dir)
		got, err := tree.Scan(t.Context(), dir, tree.ScanOptions{Plain: true, Known: c})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Save(); err != nil {
			t.Fatal(err)
		}
		e, _ := got.Lookup("f")
		return e.Digest
	}
	for _, text := range []string{"XXX", "YYY", "ZZZ"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, then, then); err != nil {
			t.Fatal(err)
		}
		if got := scan(); got != digest.FromString(text) {
			t.Errorf("%s is not seen", text)
		}
	}
}

func TestStatCacheForgets(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	dir := t.TempDir()
	d, now := digest.FromString("x"), time.Now()
	c := openStats(t, s, dir)
	c.Put("used", settledStat(1), d, now)
	c.Put("gone", settledStat(2), d, now)
	for i := range maxAge + 2 {
		c.Put("new", settledStat(10+i), d, now)
		if err := c.Save(); err != nil {
			t.Fatal(err)
		}
		if i == 2 && len(c.old) != 3 {
			t.Errorf("after %d saves there are %d entries", i, len(c.old))
		}
		c = openStats(t, s, dir)
		if !ask(c, "used", settledStat(1)) {
			t.Fatal("a file that is asked for was forgotten")
		}
	}
	if len(c.old) != 2 {
		t.Errorf("entries %v", c.old)
	}
}

func TestStatCacheDamaged(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	dir := t.TempDir()
	c := openStats(t, s, dir)
	for i := range 20 {
		c.Put(fmt.Sprint("f", i), settledStat(i), digest.FromString("x"), time.Now())
	}
	good := encodeStatCache(c.dir, c.merge())
	if name, err := statCacheDirOf(t, good); err != nil || name != c.dir {
		t.Errorf("directory %q, %v", name, err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 4
		if _, err := parseStatCache(bad, c.dir); err == nil {
			t.Fatalf("a bit flipped at %d is not seen", i)
		}
		if _, err := parseStatCache(good[:i], c.dir); err == nil {
			t.Fatalf("a cut at %d is not seen", i)
		}
	}
	if err := os.WriteFile(c.path, good[:50], 0o600); err != nil {
		t.Fatal(err)
	}
	c = openStats(t, s, dir)
	c.Put("f", settledStat(1), digest.FromString("x"), time.Now())
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	if !ask(openStats(t, s, dir), "f", settledStat(1)) {
		t.Error("a damaged cache was not replaced")
	}
}

func statCacheDirOf(t *testing.T, b []byte) (string, error) {
	t.Helper()
	p := filepath.Join(t.TempDir(), "c")
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return statCacheDir(p)
}

func FuzzStatCache(f *testing.F) {
	enc := encodeStatCache("/d", []known{{"a", stamp{}}, {"a/b", stamp{ino: 1 << 40, sum: [32]byte{1}}}})
	f.Add(enc[len(statCacheMagic) : len(enc)-4])
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum is made here, so that the fuzzer comes past it.
		entries, err := parseStatCache(appendSum(append([]byte(statCacheMagic), b...)), "/d")
		if err != nil {
			return
		}
		again, err := parseStatCache(encodeStatCache("/d", entries), "/d")
		if err != nil || len(again) != len(entries) {
			t.Fatalf("%d entries became %d, %v", len(entries), len(again), err)
		}
	})
}
