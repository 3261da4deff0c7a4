package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

func (f *runFlags) registerLimits(fs *pflag.FlagSet) {
	f.registerUpdate(fs)
	fs.StringArrayVar(&f.ulimits, "ulimit", nil, "resource limit, NAME=SOFT[:HARD] (repeatable)")
	fs.StringVar(&f.cgroupParent, "cgroup-parent", "", "control group to make the container's in")
	fs.IntVar(&f.oomScore, "oom-score-adj", 0, "whom the kernel kills first, -1000 to 1000")
}

// registerUpdate registers those that can change later.
func (f *runFlags) registerUpdate(fs *pflag.FlagSet) {
	fs.StringVarP(&f.memory, "memory", "m", "", "memory limit")
	fs.StringVar(&f.memorySwap, "memory-swap", "", "memory and swap together; -1 does not limit swap")
	fs.StringVar(&f.memoryReservation, "memory-reservation", "", "memory that it gets before others")
	fs.StringVar(&f.cpus, "cpus", "", "number of processors, such as 1.5")
	fs.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "processors that may be used, such as 0-3")
	fs.StringVar(&f.cpusetMems, "cpuset-mems", "", "memory nodes that may be used, such as 0,1")
	fs.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "relative weight of processor time")
	fs.Int64Var(&f.cpuPeriod, "cpu-period", 0, "microseconds of a scheduler's period")
	fs.Int64Var(&f.cpuQuota, "cpu-quota", 0, "microseconds of processor time in each period")
	fs.Int64Var(&f.pids, "pids-limit", 0, "limit of processes; -1 is none")
}

func (f *runFlags) applyLimits(c *container.Config) error {
	swap := f.memorySwap
	if swap == "-1" {
		swap = ""
	}
	for _, b := range []struct {
		flag, text string
		to         *int64
	}{
		{"--memory", f.memory, &c.Limits.Memory}, {"--memory-swap", swap, &c.Limits.MemorySwap},
		{"--memory-reservation", f.memoryReservation, &c.Limits.MemoryReservation}, {"--shm-size", f.shmSize, &c.ShmSize},
	} {
		n, err := bytesFlag(b.flag, b.text)
		if err != nil {
			return err
		}
		*b.to = n
	}
	if f.memorySwap == "-1" {
		c.Limits.MemorySwap = -1
	}
	if c.Limits.Memory > 0 && c.Limits.Memory < minMemory {
		return errors.New("minimum memory limit allowed is 6MB")
	}
	if n := c.Limits.MemoryReservation; n > 0 && n < minMemory {
		return errors.New("minimum memory reservation allowed is 6MB")
	} else if m := c.Limits.Memory; m > 0 && m < n {
		return errors.New("minimum memory limit can not be less than memory reservation limit, see usage")
	}
	if m, s := c.Limits.Memory, c.Limits.MemorySwap; s > 0 && s < m {
		return errors.New("minimum memoryswap limit should be larger than memory limit, see usage")
	}
	c.Limits.Pids = f.pids
	c.Limits.Parent = f.cgroupParent
	for _, s := range f.ulimits {
		u, err := units.ParseUlimit(s)
		if err != nil {
			return fmt.Errorf("--ulimit=%s: %w", s, err)
		}
		c.Rlimits = append(c.Rlimits, sandbox.Rlimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	if !f.oomSet {
		return nil
	}
	if f.oomScore < -1000 || f.oomScore > 1000 {
		return fmt.Errorf("invalid value %d, range for oom score adj is [-1000, 1000]", f.oomScore)
	}
	c.OOM = &f.oomScore
	return nil
}

// minMemory is docker's: with less nothing starts.
const minMemory = 6 << 20

func (f *runFlags) applyProcessors(c *container.Config) error {
	c.Limits.CPUSetCPUs, c.Limits.CPUSetMems, c.Limits.CPUShares = f.cpusetCPUs, f.cpusetMems, f.cpuShares
	c.Limits.CPUPeriod, c.Limits.CPUQuota = f.cpuPeriod, f.cpuQuota
	if n := f.cpuPeriod; n != 0 && (n < 1000 || n > 1_000_000) {
		return errors.New("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	}
	if n := f.cpuQuota; n > 0 && n < 1000 {
		return errors.New("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	if f.cpuShares < 0 {
		return fmt.Errorf("invalid CPU shares (%d): value must be a positive integer", f.cpuShares)
	}
	if err := checkSet("CPUs", "cpus", f.cpusetCPUs, "/sys/devices/system/cpu/online"); err != nil {
		return err
	}
	if err := checkSet("memory nodes", "mems", f.cpusetMems, "/sys/devices/system/node/online"); err != nil {
		return err
	}
	if f.cpus == "" {
		return nil
	}
	n, err := strconv.ParseFloat(f.cpus, 64)
	if err != nil {
		return fmt.Errorf("--cpus=%s: must be a number", f.cpus)
	}
	if most := runtime.NumCPU(); n < 0 || n > float64(most) {
		return fmt.Errorf("range of CPUs is from 0.01 to %[1]d.00, as there are only %[1]d CPUs available", most)
	}
	if n == 0 {
		return nil
	}
	if f.cpuPeriod != 0 || f.cpuQuota != 0 {
		return errors.New("conflicting options: --cpus and --cpu-period or --cpu-quota cannot both be set")
	}
	c.Limits.CPUPeriod, c.Limits.CPUQuota = 100_000, int64(n*100_000)
	return nil
}

// checkSet compares a set of numbers, in the kernel's form, with those that
// the machine has.
func checkSet(what, flag, want, file string) error {
	if want == "" {
		return nil
	}
	asked, err := parseSet(want)
	if err != nil {
		return fmt.Errorf("invalid value %s for cpuset %s", want, flag)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil //nolint:nilerr // the kernel will say
	}
	there, err := parseSet(strings.TrimSpace(string(text)))
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	for n := range asked {
		if !there[n] {
			return fmt.Errorf("requested %s are not available - requested %s, available: %s", what, want, strings.TrimSpace(string(text)))
		}
	}
	return nil
}

// parseSet reads numbers and ranges, as in "0-2,7".
func parseSet(s string) (map[int]bool, error) {
	all := map[int]bool{}
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.ParseUint(from, 10, 13)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(to, 10, 13)
		}
		if err != nil || last < first {
			return nil, fmt.Errorf("invalid set %q", s)
		}
		for n := first; n <= last; n++ {
			all[int(n)] = true
		}
	}
	return all, nil
}
