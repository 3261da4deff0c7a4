package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

const cpuPeriod = 100_000 // microseconds, the kernel's default

// file is a value to write.
type file struct {
	name, value string
	optional    bool // a kernel without the file goes without
}

// Update changes the limits of a group that has their controllers.
func (g *Group) Update(l Limits) error {
	for _, c := range l.asks() {
		if g.V1[c] == "" && (g.V2 == "" || len(g.limited2) == 0) {
			return fmt.Errorf("the control group has no %s controller", c)
		}
		if g.V1[c] != "" {
			if err := g.limit1(c, &l); err != nil {
				return err
			}
		}
	}
	return g.limit2(&l)
}

func num(n int64) string { return strconv.FormatInt(n, 10) }

// limit1 sets the limits of one controller of version 1.
func (g *Group) limit1(controller string, l *Limits) error {
	var files []file
	add := func(name, value string) { files = append(files, file{name: name, value: value}) }
	switch controller {
	case "memory":
		const both = "memory.memsw.limit_in_bytes"
		if l.Memory > 0 {
			add("memory.limit_in_bytes", num(l.Memory))
		}
		if swap := l.swap(); swap != 0 {
			// Without swap accounting in the kernel there is no such file,
			// which matters only to those who set it.
			files = append(files, file{both, num(swap), l.MemorySwap == 0})
			if l.Memory > number(filepath.Join(g.V1["memory"], both)) {
				// The limit on both is never below that on memory.
				slices.Reverse(files)
			}
		}
		if l.MemoryReservation > 0 {
			add("memory.soft_limit_in_bytes", num(l.MemoryReservation))
		}
	case "cpu":
		if l.CPUShares > 0 {
			add("cpu.shares", num(l.CPUShares))
		}
		if l.CPUPeriod > 0 {
			add("cpu.cfs_period_us", num(l.CPUPeriod))
		}
		if l.CPUQuota != 0 {
			add("cpu.cfs_quota_us", num(l.CPUQuota))
		}
	case "cpuset":
		if l.CPUSetCPUs != "" {
			add("cpuset.cpus", l.CPUSetCPUs)
		}
		if l.CPUSetMems != "" {
			add("cpuset.mems", l.CPUSetMems)
		}
	case "pids":
		if l.Pids > 0 {
			add("pids.max", num(l.Pids))
		}
		if l.Pids < 0 {
			add("pids.max", "max")
		}
	}
	return writeAll(g.V1[controller], files)
}

// swap returns the limit on memory and swap together: as in docker, twice
// the memory where only that is given.
func (l *Limits) swap() int64 {
	if l.MemorySwap == 0 && l.Memory > 0 {
		return 2 * l.Memory
	}
	return l.MemorySwap
}

// limit2 sets the limits of those controllers that version 2 has.
func (g *Group) limit2(l *Limits) error {
	has := func(c string) bool {
		for _, x := range g.limited2 {
			if x == c {
				return true
			}
		}
		return false
	}
	var files []file
	add := func(name, value string) { files = append(files, file{name: name, value: value}) }
	if has("memory") {
		if l.Memory > 0 {
			add("memory.max", num(l.Memory))
		}
		if l.MemoryReservation > 0 {
			add("memory.low", num(l.MemoryReservation))
		}
		switch swap := l.swap(); {
		case swap < 0:
			add("memory.swap.max", "max")
		case swap > 0:
			if swap < l.Memory {
				return errors.New("the limit on memory and swap is below that on memory")
			}
			files = append(files, file{"memory.swap.max", num(swap - l.Memory), l.MemorySwap == 0})
		}
	}
	if has("cpu") {
		if l.CPUShares > 0 {
			add("cpu.weight", num(weight(l.CPUShares)))
		}
		if l.CPUQuota != 0 || l.CPUPeriod > 0 {
			quota, period := "max", int64(cpuPeriod)
			if l.CPUQuota > 0 {
				quota = num(l.CPUQuota)
			}
			if l.CPUPeriod > 0 {
				period = l.CPUPeriod
			}
			add("cpu.max", quota+" "+num(period))
		}
	}
	if has("cpuset") {
		if l.CPUSetCPUs != "" {
			add("cpuset.cpus", l.CPUSetCPUs)
		}
		if l.CPUSetMems != "" {
			add("cpuset.mems", l.CPUSetMems)
		}
	}
	if has("pids") && l.Pids != 0 {
		value := "max"
		if l.Pids > 0 {
			value = num(l.Pids)
		}
		add("pids.max", value)
	}
	return writeAll(g.V2, files)
}

// weight turns shares (2 to 262144, 1024 is the default) into a weight (1 to
// 10000), by the formula that runc and systemd used.
func weight(shares int64) int64 {
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}

func writeAll(dir string, files []file) error {
	for _, f := range files {
		err := write(dir, f.name, f.value)
		if f.optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("set %s to %s: %w", f.name, f.value, err)
		}
	}
	return nil
}

// OOMKills returns how many processes of the group the kernel killed for
// want of memory.
func (g *Group) OOMKills() int64 {
	if d := g.V1["memory"]; d != "" {
		return field(filepath.Join(d, "memory.oom_control"), "oom_kill")
	}
	if g.V2 != "" {
		return field(filepath.Join(g.V2, "memory.events"), "oom_kill")
	}
	return 0
}

// field returns the number after key in a file of "key number" lines.
func field(path, key string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	return lookup(string(b), key)
}
