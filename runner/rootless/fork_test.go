package rootless

import (
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A child whose parent is killed before it has mapped the ids ends, too.
func TestParentKilledEarly(t *testing.T) {
	c, err := newChild()
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	syscall.ForkLock.Lock()
	pid, errno := c.fork()
	syscall.ForkLock.Unlock()
	for _, fd := range append(c.report[:], c.proceed[:]...) { // as the kernel does then
		unix.Close(fd)
	}
	if errno != 0 {
		t.Fatal(errno)
	}
	ended := make(chan unix.WaitStatus, 1)
	go func() {
		var status unix.WaitStatus
		if _, err := unix.Wait4(int(pid), &status, 0, nil); err != nil {
			t.Error(err)
		}
		ended <- status
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		unix.Kill(int(pid), unix.SIGKILL)
		<-ended
		t.Error("the child waits for ever")
	}
}
