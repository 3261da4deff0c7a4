package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Groups that a killed process leaves behind are removed by the next one. So
// the names of those that end with their maker say who that is: the PID
// namespace, the process, the time it started (a number may be used again),
// and a count.

var (
	owner = sync.OnceValue(func() string {
		start, _ := startTime(os.Getpid()) // readable wherever /proc is
		return fmt.Sprintf("%d-%d-%d", pidNamespace(), os.Getpid(), start)
	})
	count atomic.Int64
	swept sync.Map // directories already looked through
)

// NewName returns a name for a group that is not to outlive this process.
func NewName() string { return fmt.Sprintf("%s-%d", owner(), count.Add(1)) }

func pidNamespace() uint64 {
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &st) != nil {
		return 0
	}
	return st.Ino
}

// startTime returns when a process that lives started, in clock ticks since
// boot.
func startTime(pid int) (uint64, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false
	}
	// The name, in parentheses, may hold anything; field 22 is the time.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" { // one that is dead may stay for long
		return 0, false
	}
	t, err := strconv.ParseUint(f[19], 10, 64)
	return t, err == nil
}

// Orphan says whether a name is one that NewName gave a process which is gone.
func Orphan(name string) bool { return orphan(name) }

// orphan says whether a name is one of NewName by a process that is gone.
func orphan(name string) bool {
	var ns, start uint64
	var pid, n int
	if strings.Count(name, "-") != 3 {
		return false
	}
	if c, err := fmt.Sscanf(name, "%d-%d-%d-%d", &ns, &pid, &start, &n); c != 4 || err != nil {
		return false
	}
	if ns != pidNamespace() {
		return false // the number tells us nothing
	}
	t, ok := startTime(pid)
	return !ok || t != start
}

// Sweep kills and removes what processes that are gone have left below a
// parent, the empty one for the usual. Without a PID namespace of its own a
// sandbox may outlive whoever made it so.
func (s *System) Sweep(parent string) {
	for _, h := range s.V1 {
		if base, err := h.base(parent); err == nil {
			sweep(base)
		}
	}
	if s.V2 == nil {
		return
	}
	if base, err := s.V2.base(parent); err == nil && parent != "" {
		sweep(base)
		return
	}
	// See base2.
	for dir := s.V2.Own; len(dir) > 1; dir = filepath.Dir(dir) {
		sweep(filepath.Join(dir, "kiln"))
		if dir == s.V2.Mount {
			return
		}
	}
}

// sweep kills and removes what dead processes have left below base, once.
// What it cannot remove stays for the next process.
func sweep(base string) {
	if _, done := swept.LoadOrStore(base, true); done {
		return
	}
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !orphan(e.Name()) {
			continue
		}
		dir := filepath.Join(base, e.Name())
		g := &Group{V1: map[string]string{"": dir}}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.kill")); err == nil {
			g = &Group{V2: dir}
		}
		_ = g.Remove()
	}
}
