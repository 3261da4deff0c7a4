package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMonitorProgram runs containers with the small program for monitors, and
// without it where the store's file system would not execute it.
func TestMonitorProgram(t *testing.T) {
	w := newWorld(t)
	programs := filepath.Join(w.root, "programs")
	monitor := func(name string) string {
		t.Helper()
		out, _ := w.must("inspect", "--format", "{{.State.Pid}}", name)
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(out) + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		exe, err := os.Readlink("/proc/" + strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[1] + "/exe")
		if err != nil {
			t.Fatal(err)
		}
		return exe
	}
	// What an earlier version left goes when this one's comes.
	old := filepath.Join(programs, "monitor-0123456789abcdef")
	if err := os.MkdirAll(programs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(old, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	w.must("network", "create", "net")
	w.must("run", "-d", "--name", "one", "--network", "net", "toolbox", "sleep", "1000")
	defer w.run("rm", "-f", "one", "two", "three")
	small := monitor("one")
	if filepath.Dir(small) != programs {
		t.Errorf("the monitor executes %s", small)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("an earlier version's program is still there")
	}
	if err := os.Chmod(small, 0o600); err != nil {
		t.Fatal(err)
	}
	w.must("run", "-d", "--name", "two", "--network", "net", "--init", "toolbox", "sleep", "1000")
	if exe := monitor("two"); exe != w.kiln {
		t.Errorf("the monitor executes %s", exe)
	}
	if err := os.Remove(small); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(small, []byte("no program"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.must("run", "-d", "--name", "three", "toolbox", "sleep", "1000")
	if exe := monitor("three"); exe != w.kiln {
		t.Errorf("the monitor executes %s", exe)
	}
	for _, pair := range [][2]string{{"one", "two"}, {"two", "one"}} {
		// Nobody listens there, but the name is known.
		if out, errs, _ := w.run("exec", pair[0], "wget", "-q", "-O", "-", "http://"+pair[1]+":1/"); !strings.Contains(errs, "refused") {
			t.Errorf("%s asks for %s: %s%s", pair[0], pair[1], out, errs)
		}
	}
	w.must("restart", "-t", "0", "one", "two")
	w.must("network", "disconnect", "net", "one")
	w.must("rm", "-f", "one", "two")
	w.must("network", "rm", "net")
}

// TestMonitorProgramStays leaves folders alone that are no store, or one of
// another version.
func TestMonitorProgramStays(t *testing.T) {
	w := newWorld(t)
	for name, text := range map[string]string{"notes": "mine", "version": "kiln store 99\n"} {
		w.root = t.TempDir()
		if err := os.WriteFile(filepath.Join(w.root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, code := w.run("run", "--rm", "toolbox", "true"); code != 125 {
			t.Errorf("%s: exit status %d, want 125", name, code)
		}
		left, err := os.ReadDir(w.root)
		if err != nil || len(left) != 1 || left[0].Name() != name {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
}
