package sandbox

import (
	"context"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox/cgroup"
)

// TestForkManyFiles hands over so many files that their places in the child
// take in whatever number the init's own descriptor has here.
func TestForkManyFiles(t *testing.T) {
	program, err := initFile()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, n := range []int{1, int(program.Fd()), int(program.Fd()) + 1, int(program.Fd()) + 40} {
		files := make([]*os.File, n)
		for i := range files {
			files[i] = null
		}
		pid, _, err := fork(files, &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}, nil, groups{&cgroup.Group{}})
		if err != nil {
			t.Errorf("with %d files: %v", n, err)
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
		if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
			t.Error(err)
		}
	}
}

// What makes the init fail is told, also where attaching the network fails
// first, because the init is gone.
func TestWhyNoNetwork(t *testing.T) {
	s := spec(t, "true")
	s.Mounts = []Mount{{Target: "/bin/box", Type: "tmpfs"}} // which is a file
	s.NetworkReady = func(_ context.Context, pid int) error {
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if _, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/ns/net"); err != nil {
				return err
			}
		}
		return nil
	}
	p, err := Start(t.Context(), s)
	if err == nil {
		p.Wait()
	}
	if err == nil || !strings.Contains(err.Error(), "mount /bin/box") {
		t.Errorf("error %v, want why the mount failed", err)
	}
}
