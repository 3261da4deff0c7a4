package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		in   []time.Duration
		want time.Duration
	}{{[]time.Duration{1}, 1}, {[]time.Duration{1, 3}, 2}, {[]time.Duration{1, 2, 9}, 2}} {
		if got := median(test.in); got != test.want {
			t.Errorf("median(%v) = %v, want %v", test.in, got, test.want)
		}
	}
}

func TestContexts(t *testing.T) {
	m := &machine{root: filepath.Join(t.TempDir(), "root.tar")}
	if err := os.WriteFile(m.root, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		if c.context == nil {
			continue
		}
		dir := t.TempDir()
		if err := c.context(m, dir); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, name := range []string{"Dockerfile", "nonce", "root.tar"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}
