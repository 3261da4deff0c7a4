package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// What a thread clones while it is in a group begins there; the thread and
// the process are afterwards where they were.
func TestEnter(t *testing.T) {
	s := detect(t)
	if len(s.V1) == 0 {
		t.Skip("there are no hierarchies of version 1 here")
	}
	sys := &System{V1: s.V1}
	g, err := sys.Create(Options{Name: NewName(), Accounting: true, Limits: Limits{Pids: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	}()
	thread, before := make(chan string), groupsOf(t, "self")
	cmd := exec.Command("sleep", "1000")
	var enter func()
	enter = func() {
		runtime.LockOSThread() // and not unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The first thread does not end: hold it while another one is taken.
			var wait sync.WaitGroup
			wait.Go(enter)
			wait.Wait()
			runtime.UnlockOSThread()
			return
		}
		defer close(thread)
		leave, err := g.Enter()
		if err != nil {
			t.Error(err)
			return
		}
		if err := cmd.Start(); err != nil {
			t.Error(err)
		}
		if err := leave(); err != nil {
			t.Error(err)
		}
		thread <- groupsOf(t, "thread-self")
	}
	go enter()
	after, ok := <-thread
	if !ok {
		t.FailNow()
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}()
	if after != before || groupsOf(t, "self") != before {
		t.Errorf("the thread was in\n%s and is in\n%s", before, after)
	}
	for c, dir := range g.V1 {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			t.Fatal(err)
		}
		if pids := strings.Fields(string(b)); !slices.Equal(pids, []string{strconv.Itoa(cmd.Process.Pid)}) {
			t.Errorf("%s: processes %v, want the one that was cloned, %d", c, pids, cmd.Process.Pid)
		}
	}
	limit := func() string { return text(filepath.Join(g.V1["pids"], "pids.max")) }
	if got := strings.TrimSpace(limit()); got != strconv.Itoa(startPids) {
		t.Errorf("the limit at first is %s, want %d", got, startPids)
	}
	if err := g.Tighten(); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(limit()); got != "1" {
		t.Errorf("the limit is %s, want 1", got)
	}
}

// A thread that cannot enter all groups is in none.
func TestEnterFails(t *testing.T) {
	s := detect(t)
	if len(s.V1) == 0 {
		t.Skip("there are no hierarchies of version 1 here")
	}
	g, err := (&System{V1: s.V1}).Create(Options{Name: NewName(), Accounting: true})
	if err != nil {
		t.Fatal(err)
	}
	last := g.dirs()[len(g.dirs())-1]
	if err := unix.Rmdir(last); err != nil {
		t.Fatal(err)
	}
	done := make(chan string)
	go func() {
		runtime.LockOSThread()
		before := groupsOf(t, "thread-self")
		if _, err := g.Enter(); err == nil {
			t.Error("a group that is gone was entered")
		}
		if after := groupsOf(t, "thread-self"); after != before {
			t.Errorf("the thread was in\n%s and is in\n%s", before, after)
		}
		close(done)
	}()
	<-done
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

func groupsOf(t *testing.T, who string) string {
	b, err := os.ReadFile("/proc/" + who + "/cgroup")
	if err != nil {
		t.Error(err)
	}
	return string(b)
}
