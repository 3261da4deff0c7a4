package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A sample is one measured command.
type sample struct {
	took   time.Duration
	peak   int64 // bytes: the largest process among the command, its children and the daemon
	reason string
}

// take does a step and, where that counts, measures it.
func (m *machine) take(ctx context.Context, l lane, s step) (sample, error) {
	if s.do != nil {
		return sample{}, s.do(ctx)
	}
	if s.label == "" {
		_, err := m.command(ctx, s)
		return sample{}, err
	}
	probed := m.probe()
	if l.daemon != 0 {
		// Resets the peak (proc_pid_clear_refs(5)).
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", l.daemon), []byte("5"), 0); err != nil {
			return sample{}, err
		}
	}
	before, stolen := m.others(l.daemon), steal()
	begin := time.Now()
	state, err := m.command(ctx, s)
	took := time.Since(begin)
	if err != nil {
		return sample{}, err
	}
	r := sample{took: took, peak: state.SysUsage().(*syscall.Rusage).Maxrss << 10}
	if l.daemon != 0 {
		r.peak = max(r.peak, highWater(l.daemon))
	}
	foreign := m.others(l.daemon) - before + steal() - stolen
	whole := took * time.Duration(runtime.NumCPU())
	switch {
	case foreign >= 30*time.Millisecond && foreign*10 > whole:
		r.reason = fmt.Sprintf("others had %d %% of the processors", min(foreign*100/whole, 100))
	case probed > m.quickest*13/10:
		r.reason = "the processors were slow just before"
	}
	return r, nil
}

// command runs a step; an error has the end of what it printed.
func (m *machine) command(ctx context.Context, s step) (*os.ProcessState, error) {
	c := exec.CommandContext(ctx, s.argv[0], s.argv[1:]...)
	c.Env = append(append(os.Environ(), m.env...), s.env...)
	var out tail
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(s.argv[0]), err, out.last())
	}
	return c.ProcessState, nil
}

// tail keeps the end of a command's output.
type tail struct{ buf []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.buf = append(t.buf, b...)
	if n := len(t.buf) - 4096; n > 0 {
		t.buf = t.buf[n:]
	}
	return len(b), nil
}

func (t *tail) last() string {
	text := bytes.TrimSpace(t.buf)
	return string(text[bytes.LastIndexByte(text, '\n')+1:])
}

// probe times a fixed piece of computing on all processors: a machine whose
// processors are shared shows it there.
func (m *machine) probe() time.Duration {
	begin := time.Now()
	var w sync.WaitGroup
	for range runtime.NumCPU() {
		w.Go(func() {
			var b [4096]byte
			for range 512 {
				sha256.Sum256(b[:])
			}
		})
	}
	w.Wait()
	took := time.Since(begin)
	if m.quickest == 0 || took < m.quickest {
		m.quickest = took
	}
	return took
}

// others is the processor time that all processes have had that have no part
// in what is measured. Kernel threads are left out: they work for whoever
// writes.
func (m *machine) others(daemon int) time.Duration {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	own := append([]int{os.Getpid(), daemon}, m.helpers...)
	var ticks int64
next:
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		for _, p := range own {
			if p == pid {
				continue next
			}
		}
		ticks += ticksOf(pid)
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ
}

const kernelThread = 0x00200000 // PF_KTHREAD

// ticksOf is the time of a process and of its children that have ended
// (proc_pid_stat(5)).
func ticksOf(pid int) int64 {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 15 {
		return 0
	}
	if flags, _ := strconv.ParseInt(f[6], 10, 64); flags&kernelThread != 0 {
		return 0
	}
	var sum int64
	for _, s := range f[11:15] { // utime, stime, cutime, cstime
		n, _ := strconv.ParseInt(s, 10, 64)
		sum += n
	}
	return sum
}

// steal is the time that this machine's host kept for others.
func steal() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 9 {
		return 0
	}
	n, _ := strconv.ParseInt(f[8], 10, 64)
	return time.Duration(n) * (time.Second / 100)
}

// highWater is the most memory that a process had since its peak was reset.
func highWater(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(f[0], 10, 64)
	return n << 10
}

// listener is the process that listens on a Unix socket.
func listener(path string) (int, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}
