package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
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

// TestMeasure takes turns of two lanes, of which one fails.
func TestMeasure(t *testing.T) {
	m := &machine{work: t.TempDir()}
	prepared := 0
	c := benchCase{name: "x", turns: 3, warm: 1, per: 2, lanes: func(m *machine) ([]lane, error) {
		return []lane{
			{name: "kiln", turn: func(int) []step {
				return []step{
					do(func(context.Context) error { prepared++; return nil }),
					shell("one", "sleep 0.02"), untimed("true"), timed("two", "true"),
				}
			}},
			{name: "peer", turn: func(i int) []step {
				if i == 2 {
					return []step{shell("one", "echo why; exit 1")}
				}
				return []step{timed("one", "true")}
			}},
		}, nil
	}}
	rows, err := m.measure(t.Context(), c, 0)
	if err != nil {
		t.Fatal(err)
	}
	if prepared != 4 {
		t.Errorf("%d turns, want 3 and one that does not count", prepared)
	}
	var out bytes.Buffer
	if err := table(&out, rows); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if len(rows) != 4 || !strings.HasPrefix(lines[2], "| one ") || !strings.Contains(out.String(), "did not work: sh: exit status 1: why") {
		t.Errorf("the table is\n%s", out.String())
	}
	if got := rows[0].times(); len(got) != 3 || got[0] < 10*time.Millisecond || got[0] > time.Second {
		t.Errorf("two sleeps of 10 ms took %v each", got)
	}
}

func TestTableRatio(t *testing.T) {
	var out bytes.Buffer
	took := func(d ...time.Duration) (s []sample) {
		for _, d := range d {
			s = append(s, sample{took: d, peak: 3 << 20})
		}
		return s
	}
	disturbed := took(4*time.Second, 2*time.Second)
	disturbed[1].reason = "noise"
	if err := table(&out, []*row{
		{label: "a", lane: "kiln", samples: took(time.Second, 2*time.Second, 3*time.Second)},
		{label: "a", lane: "peer", samples: disturbed},
		{label: "b", lane: "peer", err: errors.New("broken")},
	}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1000–3000", "0.67×", "1 of 2 disturbed: noise", "did not work: broken"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// TestGenerate checks that equal seeds give equal bytes and others not.
func TestGenerate(t *testing.T) {
	dir := t.TempDir()
	if err := write(dir, map[string]string{"1": "1\n", "2": "2\n"}); err != nil {
		t.Fatal(err)
	}
	read := func(seed, to string) string {
		t.Helper()
		if err := generateFile(filepath.Join(dir, to), filepath.Join(dir, seed), 100<<10); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, to))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	a, b, c := read("1", "a"), read("1", "b"), read("2", "c")
	if len(a) != 100<<10 || a != b || a == c {
		t.Errorf("lengths %d, %d, %d; equal seeds agree: %v; others differ: %v", len(a), len(b), len(c), a == b, a != c)
	}
}

func TestOwnTimeIsSeen(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("there is no /proc")
	}
	before := ticksOf(os.Getpid())
	for begin := time.Now(); ticksOf(os.Getpid()) < before+5; {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("ten seconds of work are not seen in /proc")
		}
		io.CopyN(io.Discard, newSource(1), 1<<20)
	}
}

// TestProjects makes the files of the cases that need nothing but builders.
func TestProjects(t *testing.T) {
	m := &machine{work: t.TempDir()}
	m.root = filepath.Join(m.work, "root.tar")
	if err := os.WriteFile(m.root, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	m.found = []builder{m.kilnBuilder()}
	for _, c := range cases {
		if c.needs != nil || c.name == "start" {
			continue
		}
		m.dir = filepath.Join(m.work, c.name)
		if err := os.Mkdir(m.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		lanes, err := c.lanes(m)
		if err != nil || len(lanes) == 0 || lanes[0].name != "kiln" || len(lanes[0].turn(0)) == 0 {
			t.Errorf("%s: lanes %v, %v", c.name, lanes, err)
		}
		if _, err := os.Stat(filepath.Join(m.dir, "kiln", "Dockerfile")); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
