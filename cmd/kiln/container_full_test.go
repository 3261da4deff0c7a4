package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk mounts an ext4 file system of so many bytes, and blocks of 1 KiB.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "disk")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*exec.Cmd{exec.Command("mkfs.ext4", "-q", "-b", "1024", "-m", "0", image), exec.Command("mount", "-o", "loop", image, at)} {
		if out, err := c.CombinedOutput(); err != nil {
			t.Skipf("needs mkfs.ext4 and a loop device: %v: %s", err, out)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	return at
}

// TestFullDiskContainers has containers run, print, end and be asked for
// things while the store's disk is full. What cannot be done says why and
// changes nothing, what ends is seen with its status, and once there is room
// all goes on.
func TestFullDiskContainers(t *testing.T) {
	w := newWorld(t)
	disk := smallDisk(t, 64<<20)
	built, _ := programs()
	w.root = filepath.Join(disk, "store")
	w.must("import", built.toolbox, "toolbox")
	run := func(name string, command string, flags ...string) {
		t.Helper()
		w.must(append(append([]string{"run", "-d", "--name", name, "--network", "none"}, flags...), "toolbox", "sh", "-c", command)...)
	}
	t.Cleanup(func() {
		_ = exec.Command(w.kiln, "--root", w.root, "rm", "-f", "printer", "ender", "again", "filler", "idle", "free").Run()
	})
	// They wait for files in a folder of the machine's own disk.
	signs := t.TempDir()
	wait := func(sign string) string { return "while ! test -e /signs/" + sign + "; do sleep 0.01; done; " }
	run("printer", "echo before; "+wait("full")+"i=0; while [ $i -lt 300 ]; do echo lost-$i-"+strings.Repeat("x", 1000)+"; i=$((i+1)); done; touch /signs/printed; "+wait("room")+"echo after; sleep 1000", "-v", signs+":/signs")
	run("ender", wait("full")+"exit 3", "-v", signs+":/signs")
	run("idle", "sleep 1000")
	run("again", "sleep 1000")
	w.must("stop", "-t", "0", "again")
	run("filler", "head -c 100000000 /dev/zero > /big; touch /signs/filled; sleep 1000", "-v", signs+":/signs")
	there := func(sign string) func() bool {
		return func() bool { _, err := os.Stat(filepath.Join(signs, sign)); return err == nil }
	}
	sign := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(signs, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	state := func(name string) string {
		t.Helper()
		out, _ := w.must("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name)
		return strings.TrimSpace(out)
	}
	waitFor(t, "the disk to be full", there("filled"))
	// To the last block: what is left is too little for a file. What kiln
	// gives free meanwhile is taken again.
	rests := 0
	full := func() {
		for size := 64 << 10; size > 0; rests++ {
			if os.WriteFile(filepath.Join(disk, fmt.Sprint("rest", rests)), make([]byte, size), 0o600) != nil {
				size /= 2
			}
		}
	}
	full()
	sign("full")
	waitFor(t, "the printer to print", there("printed"))
	waitFor(t, "the end", func() bool { return state("ender") == "exited 3" })
	if got := state("ender"); got != "exited 3" {
		t.Errorf("the one that ended on the full disk is %q, want exited 3", got)
	}
	before, _ := w.must("ps", "-a", "--format", "{{.Names}} {{.State}}")
	for _, args := range [][]string{
		{"run", "-d", "--name", "free", "--network", "none", "toolbox", "true"}, {"create", "--name", "free", "--network", "none", "toolbox", "true"},
		{"start", "again"}, {"rename", "idle", "free"}, {"update", "--restart", "always", "idle"}, {"commit", "idle", "free"},
	} {
		full()
		_, stderr, code := w.run(args...)
		if code == 0 || !strings.Contains(stderr, "no space left on device") {
			t.Errorf("kiln %q: got exit status %d and %q, want the full disk named", args, code, stderr)
		}
	}
	if after, _ := w.must("ps", "-a", "--format", "{{.Names}} {{.State}}"); after != before {
		t.Errorf("what failed has changed something: got\n%swant\n%s", after, before)
	}
	for _, args := range [][]string{
		{"pause", "idle"}, {"unpause", "idle"}, {"exec", "idle", "true"}, {"top", "idle"}, {"logs", "printer"}, {"stop", "-t", "0", "idle"},
	} {
		full()
		if _, stderr, code := w.run(args...); code != 0 {
			t.Errorf("kiln %q: exit status %d, %s", args, code, stderr)
		}
	}
	if got := state("idle"); !strings.HasPrefix(got, "exited ") || got == "exited 0" {
		t.Errorf("the one that was stopped is %q", got)
	}
	w.must("rm", "-f", "filler")
	sign("room")
	waitFor(t, "the log to go on", func() bool { out, _ := w.must("logs", "printer"); return strings.HasSuffix(out, "after\n") })
	out, _ := w.must("logs", "printer")
	if !strings.HasPrefix(out, "before\n") || !strings.HasSuffix(out, "\nafter\n") {
		t.Errorf("the log begins with %.20q and ends with %q", out, out[max(0, len(out)-20):])
	}
	w.must("start", "again", "idle", "ender")
	w.must("run", "--name", "free", "--network", "none", "toolbox", "true")
	w.must("rm", "-f", "printer", "ender", "again", "idle", "free")
	if out, _ := w.must("ps", "-aq"); out != "" {
		t.Errorf("left: %s", out)
	}
}
