package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a command at a pseudo terminal.
type terminal struct {
	t      *testing.T
	master *os.File
	cmd    *exec.Cmd

	mu   sync.Mutex
	seen bytes.Buffer
}

// atTerminal starts a command of a world at a terminal of 30 by 100.
func (w *world) atTerminal(args ...string) *terminal {
	w.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		w.t.Skipf("needs a pseudo terminal: %v", err)
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 100})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer slave.Close()
	x := &terminal{t: w.t, master: master, cmd: w.command(w.t.Context(), args...)}
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = slave, slave, slave
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := x.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { // ends when the last who has the slave has closed it
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			x.mu.Lock()
			x.seen.Write(buf[:n])
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	w.t.Cleanup(func() { _ = master.Close() })
	return x
}

// sees waits for a text on the terminal.
func (x *terminal) sees(text string) {
	x.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		x.mu.Lock()
		found := strings.Contains(x.seen.String(), text)
		x.mu.Unlock()
		if found {
			return
		}
	}
	_ = x.cmd.Process.Kill()
	x.t.Fatalf("%q does not appear in %q", text, x.seen.String())
}

func (x *terminal) types(text string) {
	x.t.Helper()
	if _, err := x.master.WriteString(text); err != nil {
		x.t.Fatal(err)
	}
}

// ends wants the command to end with a status.
func (x *terminal) ends(status int) {
	x.t.Helper()
	timer := time.AfterFunc(20*time.Second, func() { _ = x.cmd.Process.Kill() })
	defer timer.Stop()
	err := x.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || x.cmd.ProcessState.ExitCode() != status {
		x.t.Errorf("%q ended with %v, want status %d; it showed %q", x.cmd.Args, err, status, x.seen.String())
	}
}

// TestTerminal goes through the commands that have a terminal.
func TestTerminal(t *testing.T) {
	w := newWorld(t)
	t.Cleanup(func() { _ = exec.Command(w.kiln, "--root", w.root, "rm", "-f", "stay").Run() })
	const shell = "test -t 0 && test -t 1 && echo ready-$((1+1)); read x; echo got $x; read y; exit $y"

	x := w.atTerminal("run", "-it", "--rm", "--network", "none", "toolbox", "sh", "-c", shell)
	x.sees("ready-2")
	x.types("hello\n")
	x.sees("got hello")
	x.types("5\n")
	x.ends(5)

	// Left by keys it goes on, and can be come back to.
	x = w.atTerminal("run", "-it", "--name", "stay", "--network", "none", "toolbox", "sh", "-c", shell)
	x.sees("ready-2")
	x.types("\x10\x11")
	x.sees("read escape sequence")
	x.ends(0)
	if out, _ := w.must("ps", "-q"); out == "" {
		t.Fatal("the container has ended")
	}
	x = w.atTerminal("attach", "--detach-keys", "ctrl-a,d", "stay")
	x.types("again\n")
	x.sees("got again")
	x.types("\x01d")
	x.sees("read escape sequence")
	x.ends(0)
	x = w.atTerminal("attach", "stay")
	x.types("7\n")
	x.ends(7)

	x = w.atTerminal("start", "-ai", "stay")
	x.sees("ready-2")
	x.types("once\n")
	x.sees("got once")
	x.types("0\n")
	x.ends(0)

	// exec has a terminal of its own; Ctrl-C is the command's.
	w.must("run", "-d", "--name", "other", "--network", "none", "toolbox", "sleep", "1000")
	defer w.run("rm", "-f", "other")
	x = w.atTerminal("exec", "-it", "other", "sh", "-c", shell)
	x.sees("ready-2")
	x.types("in\n")
	x.sees("got in")
	x.types("3\n")
	x.ends(3)
	if out, _ := w.must("ps", "-q"); strings.Count(out, "\n") != 1 {
		t.Errorf("running: %q", out)
	}

	// Left by keys it goes on, prints more than a terminal holds, and is not
	// hung up.
	x = w.atTerminal("exec", "-it", "--detach-keys", "ctrl-x,q", "other", "sh", "-c", "echo ready-$((1+1)); read x; seq 1 30000; touch /went-on")
	x.sees("ready-2")
	x.types("\n\x18q")
	x.sees("read escape sequence")
	x.ends(1)
	for try := 0; ; try++ {
		if out, _ := w.must("exec", "other", "ls", "/"); strings.Contains(out, "went-on") {
			break
		}
		if try == 200 {
			t.Fatal("the command that was left does not go on")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestThreeInterrupts leaves a container that does not react.
func TestThreeInterrupts(t *testing.T) {
	w := newWorld(t)
	t.Cleanup(func() { _ = exec.Command(w.kiln, "--root", w.root, "rm", "-f", "stuck").Run() })
	x := w.atTerminal("run", "--name", "stuck", "--network", "none", "toolbox", "sh", "-c", "echo ready-$((1+1)); exec sleep 1000")
	x.sees("ready-2")
	w.must("pause", "stuck")
	for range 3 {
		x.types("\x03")
		time.Sleep(50 * time.Millisecond) // equal signals that wait are one
	}
	x.sees("got 3 SIGTERM/SIGINTs, forcefully exiting")
	x.ends(1)
	if out, _ := w.must("ps", "--format", "{{.Names}} {{.State}}"); out != "stuck paused\n" {
		t.Errorf("got %q, want the container to go on", out)
	}
}
