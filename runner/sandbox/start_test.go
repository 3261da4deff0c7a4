package sandbox

import (
	"os"
	"syscall"
	"testing"

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
