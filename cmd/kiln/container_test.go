package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// scriptStatus runs a command and wants an exit status.
func scriptStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("exit status %d, want %d", code, want)
	}
}

// scriptEventually waits for another process: until a command succeeds and
// prints something, for ten seconds at most.
func scriptEventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: eventually COMMAND...")
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ts.Exec(args[0], args[1:]...) == nil && strings.TrimSpace(ts.ReadFile("stdout")) != "" {
			return
		}
	}
	ts.Fatalf("%q printed nothing for ten seconds", args)
}

func scriptLogSizes(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: logsizes NAME FILES MAX")
	}
	ts.Check(ts.Exec("kiln", "inspect", "--format", "{{.LogPath}}", args[0]))
	files, err := filepath.Glob(strings.TrimSpace(ts.ReadFile("stdout")) + "*")
	ts.Check(err)
	if strconv.Itoa(len(files)) != args[1] {
		ts.Fatalf("the log is in %q, want %s files", files, args[1])
	}
	most, err := strconv.ParseInt(args[2], 10, 64)
	ts.Check(err)
	for _, f := range files {
		fi, err := os.Stat(f)
		ts.Check(err)
		if fi.Size() > most {
			ts.Fatalf("%s has %d bytes", f, fi.Size())
		}
	}
}

// scriptKillMonitors kills the monitors of containers, and waits until these
// are gone too.
func scriptKillMonitors(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: killmonitors NAME...")
	}
	for _, name := range args {
		ts.Check(ts.Exec("kiln", "inspect", "--format", "{{.State.Pid}}", name))
		pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile("stdout")))
		ts.Check(err)
		monitor, err := parentOf(pid)
		ts.Check(err)
		ts.Check(unix.Kill(monitor, unix.SIGKILL))
		for end := time.Now().Add(10 * time.Second); unix.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				ts.Fatalf("process %d of container %s outlives its monitor", pid, name)
			}
		}
	}
}

// parentOf is the parent of a process.
func parentOf(pid int) (int, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if s, ok := strings.CutPrefix(line, "PPid:"); ok {
			return strconv.Atoi(strings.TrimSpace(s))
		}
	}
	return 0, errors.New("no parent")
}
