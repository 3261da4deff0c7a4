package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Stats are figures of a group; those of controllers that it is not in are
// zero.
type Stats struct {
	CPU, CPUUser, CPUSystem time.Duration
	Throttled               int64 // periods
	Memory                  int64 // bytes in use
	MemoryPeak              int64
	MemoryCache             int64 // of Memory: inactive file pages
	MemoryLimit             int64 // 0 if none
	Pids                    int64
	PidsLimit               int64 // 0 if none
	ReadBytes, WriteBytes   int64
}

// unlimited is what version 1 has for "no limit", rounded to pages.
const unlimited = 1 << 62

// Stats reads the figures.
func (g *Group) Stats() Stats {
	var s Stats
	v1 := func(c, f string) string { return filepath.Join(g.V1[c], f) }
	if g.V1["cpuacct"] != "" {
		s.CPU = time.Duration(number(v1("cpuacct", "cpuacct.usage")))
		s.CPUUser = time.Duration(number(v1("cpuacct", "cpuacct.usage_user")))
		s.CPUSystem = time.Duration(number(v1("cpuacct", "cpuacct.usage_sys")))
	} else if g.V2 != "" {
		b := text(filepath.Join(g.V2, "cpu.stat"))
		s.CPU = time.Duration(lookup(b, "usage_usec")) * time.Microsecond
		s.CPUUser = time.Duration(lookup(b, "user_usec")) * time.Microsecond
		s.CPUSystem = time.Duration(lookup(b, "system_usec")) * time.Microsecond
		s.Throttled = lookup(b, "nr_throttled")
	}
	if g.V1["cpu"] != "" {
		s.Throttled = field(v1("cpu", "cpu.stat"), "nr_throttled")
	}
	if g.V1["memory"] != "" {
		s.Memory = number(v1("memory", "memory.usage_in_bytes"))
		s.MemoryPeak = number(v1("memory", "memory.max_usage_in_bytes"))
		s.MemoryCache = field(v1("memory", "memory.stat"), "total_inactive_file")
		s.MemoryLimit = number(v1("memory", "memory.limit_in_bytes"))
	} else if g.V2 != "" {
		s.Memory = number(filepath.Join(g.V2, "memory.current"))
		s.MemoryPeak = number(filepath.Join(g.V2, "memory.peak"))
		s.MemoryCache = field(filepath.Join(g.V2, "memory.stat"), "inactive_file")
		s.MemoryLimit = number(filepath.Join(g.V2, "memory.max"))
	}
	if s.MemoryLimit > unlimited {
		s.MemoryLimit = 0
	}
	dir := g.V2
	if g.V1["pids"] != "" {
		dir = g.V1["pids"]
	}
	if dir != "" {
		s.Pids = number(filepath.Join(dir, "pids.current"))
		s.PidsLimit = number(filepath.Join(dir, "pids.max"))
	}
	if g.V1["blkio"] != "" {
		s.ReadBytes, s.WriteBytes = blkio(text(v1("blkio", "blkio.throttle.io_service_bytes")))
	} else if g.V2 != "" {
		s.ReadBytes, s.WriteBytes = iostat(text(filepath.Join(g.V2, "io.stat")))
	}
	return s
}

func text(path string) string {
	b, _ := os.ReadFile(path) // absent is empty: the controller is not there
	return string(b)
}

func number(path string) int64 { return parseInt(strings.TrimSpace(text(path))) }

// parseInt returns 0 for what is no number, such as "max".
func parseInt(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func lookup(text, key string) int64 {
	for line := range strings.Lines(text) {
		if k, v, _ := strings.Cut(strings.TrimSpace(line), " "); k == key {
			return parseInt(v)
		}
	}
	return 0
}

// blkio sums lines of "major:minor Read bytes".
func blkio(text string) (read, written int64) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		switch f[1] {
		case "Read":
			read += parseInt(f[2])
		case "Write":
			written += parseInt(f[2])
		}
	}
	return read, written
}

// iostat sums lines of "major:minor rbytes=n wbytes=n …".
func iostat(text string) (read, written int64) {
	for _, f := range strings.Fields(text) {
		switch k, v, _ := strings.Cut(f, "="); k {
		case "rbytes":
			read += parseInt(v)
		case "wbytes":
			written += parseInt(v)
		}
	}
	return read, written
}
