package cache

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"kiln.build/cache/tree"
	"kiln.build/solver"
)

func BenchmarkOpen(b *testing.B) {
	root := b.TempDir()
	for b.Loop() {
		closeTest(b, reopen(b, root, Options{}))
	}
}

func BenchmarkLookup(b *testing.B) {
	s := openTest(b, b.TempDir(), Options{})
	l := putLayer(b, s, map[string]string{"f": "1"})
	for i := range 2000 {
		save(b, s, fmt.Sprint(i), solver.Result{Layers: []solver.Layer{l}})
	}
	for _, n := range []int{1, 2000} { // the same again, and always another one
		b.Run(fmt.Sprint("keys=", n), func(b *testing.B) {
			i := 0
			keys := make([]digest.Digest, n)
			for i := range keys {
				keys[i] = digest.FromString(fmt.Sprint(i))
			}
			user := openTest(b, s.Root(), Options{})
			for b.Loop() {
				if _, err := user.Lookup(b.Context(), keys[i%n]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

func BenchmarkLockMissSave(b *testing.B) {
	s := openTest(b, b.TempDir(), Options{})
	i := 0
	for b.Loop() {
		a := action(fmt.Sprint(i))
		i++
		if _, err := s.Lookup(b.Context(), a.Key); !isMiss(err) {
			b.Fatal(err)
		}
		release, err := s.Lock(b.Context(), a.Key)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Save(b.Context(), a, solver.Result{Data: []byte("{}")}); err != nil {
			b.Fatal(err)
		}
		release()
	}
}

// BenchmarkLayer is all that the store does for a step: draft, scan, commit.
func BenchmarkLayer(b *testing.B) {
	s := openTest(b, b.TempDir(), Options{})
	i := 0
	var commits time.Duration
	for b.Loop() {
		d, err := s.NewLayer()
		if err != nil {
			b.Fatal(err)
		}
		i++
		if err := os.WriteFile(filepath.Join(d.FS, "f"), []byte(fmt.Sprint(i)), 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(d.Work, "work"), 0); err != nil {
			b.Fatal(err)
		}
		t, err := tree.Scan(b.Context(), d.FS, tree.ScanOptions{})
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if _, err := d.Commit(b.Context(), t); err != nil {
			b.Fatal(err)
		}
		commits += time.Since(start)
	}
	b.ReportMetric(float64(commits.Nanoseconds())/float64(b.N), "commit-ns/op")
}

func BenchmarkStatCache(b *testing.B) {
	s := openTest(b, b.TempDir(), Options{})
	dir := b.TempDir()
	c := openStats(b, s, dir)
	paths := make([]string, 20000)
	for i := range paths {
		paths[i] = fmt.Sprintf("node_modules/package-%05d/lib/some-file-%05d.js", i/20, i)
		c.Put(paths[i], settledStat(i), digest.FromString(paths[i]), time.Now())
	}
	b.Run("save", func(b *testing.B) {
		for b.Loop() {
			for i := range c.old { // as if all had been asked for
				c.old[i].age = 0
			}
			c.Put(paths[7], settledStat(7), digest.FromString("x"), time.Now())
			if err := c.Save(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			openStats(b, s, dir)
		}
	})
	b.Run("lookup", func(b *testing.B) {
		i := 0
		for b.Loop() {
			if !ask(c, paths[i], settledStat(i)) {
				b.Fatal("miss")
			}
			i = (i + 1) % len(paths)
		}
	})
}

// BenchmarkContext scans an unchanged context of 20,000 files, 200 MB.
func BenchmarkContext(b *testing.B) {
	s := openTest(b, b.TempDir(), Options{})
	dir := b.TempDir()
	data := make([]byte, 10000)
	for i := range 20000 {
		p := filepath.Join(dir, fmt.Sprint("dir", i/100), fmt.Sprint("file", i))
		if i%100 == 0 {
			if err := os.Mkdir(filepath.Dir(p), 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	time.Sleep(racy) // what was written just now is not remembered
	for _, name := range []string{"first", "unchanged"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				c := openStats(b, s, dir)
				if name == "first" {
					c.old = nil
				}
				t, err := tree.Scan(b.Context(), dir, tree.ScanOptions{Plain: true, Known: c})
				if err != nil {
					b.Fatal(err)
				}
				t.Digest()
				if err := c.Save(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPrune(b *testing.B) {
	s := openTest(b, b.TempDir(), Options{})
	for i := range 300 {
		l := putLayer(b, s, map[string]string{"f": fmt.Sprint(i)})
		save(b, s, fmt.Sprint(i), solver.Result{Layers: []solver.Layer{l}})
	}
	b.Run("usage", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Usage(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
