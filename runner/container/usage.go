package container

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"kiln.build/runner/sandbox/cgroup"
)

// Usage is what a container uses of the machine.
type Usage struct {
	Running bool // else the rest is zero
	At      time.Time

	CPU                   time.Duration // since it was started
	Memory                int64         // bytes, without what the kernel keeps of files
	MemoryLimit           int64         // the machine's where it has none
	Pids                  int64
	Received, Sent        int64 // bytes on its interfaces, the loopback left out
	ReadBytes, WriteBytes int64 // of block devices
}

// Usage reads what the container uses now: from its control groups or, where
// it has none, as far as its processes tell.
func (c *Container) Usage(ctx context.Context) (Usage, error) {
	st, err := c.State()
	if err != nil {
		return Usage{}, err
	}
	if st.Status != Running && st.Status != Paused {
		return Usage{}, nil
	}
	g, err := cgroup.Of(st.PID)
	if now, stErr := c.State(); stErr != nil || now.PID != st.PID || !now.Started.Equal(st.Started) {
		return Usage{}, stErr // it has ended since
	}
	if err != nil {
		return Usage{}, fmt.Errorf("figures of container %s: %w", c.Name, err)
	}
	s := g.Stats()
	u := Usage{
		Running: true, At: time.Now(), CPU: s.CPU, Memory: max(s.Memory-s.MemoryCache, 0), MemoryLimit: s.MemoryLimit,
		Pids: s.Pids, ReadBytes: s.ReadBytes, WriteBytes: s.WriteBytes,
	}
	if g.V2 == "" && len(g.V1) == 0 {
		all, err := c.Processes(ctx)
		if err != nil {
			return Usage{}, err
		}
		for _, p := range all {
			u.CPU, u.Memory, u.Pids = u.CPU+p.CPU, u.Memory+p.Memory, u.Pids+1
		}
	}
	if u.MemoryLimit == 0 {
		var machine unix.Sysinfo_t
		if err := unix.Sysinfo(&machine); err != nil {
			return u, fmt.Errorf("memory of the machine: %w", err)
		}
		u.MemoryLimit = int64(machine.Totalram) * int64(machine.Unit)
	}
	if c.Network != "host" { // where these are not the container's
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", st.PID)); err == nil {
			u.Received, u.Sent = traffic(text)
		}
	}
	return u, nil
}

// traffic adds the bytes up in the form of /proc/net/dev.
func traffic(text []byte) (in, out int64) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		name, figures, ok := strings.Cut(lines.Text(), ":")
		f := strings.Fields(figures)
		if !ok || strings.TrimSpace(name) == "lo" || len(f) < 9 {
			continue
		}
		r, _ := strconv.ParseInt(f[0], 10, 64) // the kernel writes numbers
		s, _ := strconv.ParseInt(f[8], 10, 64)
		in, out = in+r, out+s
	}
	return in, out
}
