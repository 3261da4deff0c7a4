package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"kiln.build/runner/container"
)

// resourceFlags are limits that few containers have, and flags that mean
// something on other systems only.
type resourceFlags struct {
	weight                                        uint16
	weights, readBps, writeBps, readOps, writeOps []string
	swappiness, rtPeriod, rtRuntime               int64
	noOOMKill                                     bool

	windows map[string]*string
}

func (f *resourceFlags) register(fs *pflag.FlagSet) {
	fs.Uint16Var(&f.weight, "blkio-weight", 0, "relative weight of block I/O, 10 to 1000")
	fs.StringArrayVar(&f.weights, "blkio-weight-device", nil, "weight for a device, PATH:WEIGHT (repeatable)")
	fs.StringArrayVar(&f.readBps, "device-read-bps", nil, "bytes a second that are read from a device, PATH:SIZE (repeatable)")
	fs.StringArrayVar(&f.writeBps, "device-write-bps", nil, "bytes a second that are written to a device, PATH:SIZE (repeatable)")
	fs.StringArrayVar(&f.readOps, "device-read-iops", nil, "reads a second from a device, PATH:N (repeatable)")
	fs.StringArrayVar(&f.writeOps, "device-write-iops", nil, "writes a second to a device, PATH:N (repeatable)")
	fs.Int64Var(&f.swappiness, "memory-swappiness", -1, "how readily memory is swapped out, 0 to 100 (cgroup v1)")
	fs.BoolVar(&f.noOOMKill, "oom-kill-disable", false, "let processes wait for memory instead of killing one (cgroup v1)")
	fs.Int64Var(&f.rtPeriod, "cpu-rt-period", 0, "microseconds of a period of real-time scheduling (cgroup v1)")
	fs.Int64Var(&f.rtRuntime, "cpu-rt-runtime", 0, "microseconds of each period for real-time tasks (cgroup v1)")
	f.windows = map[string]*string{}
	for _, name := range []string{"cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops"} {
		f.windows[name] = fs.String(name, "", "of containers on Windows")
		_ = fs.MarkHidden(name) // it is there
	}
	fs.String("kernel-memory", "", "without effect in every kernel that kiln runs on")
	_ = fs.MarkHidden("kernel-memory") // it is there
}

func (f *resourceFlags) apply(c *container.Config) error {
	for name, value := range f.windows {
		if *value != "" {
			return fmt.Errorf("%q is only supported for containers on windows", "--"+name)
		}
	}
	r := &c.More
	if f.weight != 0 && (f.weight < 10 || f.weight > 1000) {
		return errors.New("range of blkio weight is from 10 to 1000")
	}
	r.BlockWeight = f.weight
	for _, x := range []struct {
		flag string
		from []string
		read func(string) (uint64, error)
		to   *[]container.Throttle
	}{
		{"--blkio-weight-device", f.weights, deviceWeight, &r.BlockWeights},
		{"--device-read-bps", f.readBps, deviceBytes, &r.ReadBps}, {"--device-write-bps", f.writeBps, deviceBytes, &r.WriteBps},
		{"--device-read-iops", f.readOps, deviceOperations, &r.ReadIOps}, {"--device-write-iops", f.writeOps, deviceOperations, &r.WriteIOps},
	} {
		for _, s := range x.from {
			t, err := parseThrottle(s, x.read)
			if err != nil {
				return fmt.Errorf("%s: %w", x.flag, err)
			}
			*x.to = append(*x.to, t)
		}
	}
	if n := f.swappiness; n != -1 {
		if n < 0 || n > 100 {
			return fmt.Errorf("invalid value: %d. Valid memory swappiness range is 0-100", n)
		}
		r.Swappiness = &n
	}
	r.NoOOMKill, r.RealtimePeriod, r.RealtimeRuntime = f.noOOMKill, f.rtPeriod, f.rtRuntime
	if r.RealtimePeriod != 0 && r.RealtimeRuntime > r.RealtimePeriod {
		return errors.New("cpu real-time runtime cannot be higher than cpu real-time period")
	}
	return nil
}

// parseThrottle reads PATH:RATE.
func parseThrottle(s string, rate func(string) (uint64, error)) (container.Throttle, error) {
	p, value, ok := strings.Cut(s, ":")
	t := container.Throttle{Path: p}
	if !ok || p == "" {
		return t, fmt.Errorf("bad format: %s", s)
	}
	if !strings.HasPrefix(p, "/dev/") {
		return t, fmt.Errorf("bad format for device path: %s", s)
	}
	var err error
	if t.Rate, err = rate(value); err != nil {
		return t, fmt.Errorf("invalid rate for device: %s: %w", s, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		return t, &os.PathError{Op: "stat", Path: p, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return t, fmt.Errorf("%s is no block device", p)
	}
	t.Major, t.Minor = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
	return t, nil
}

func deviceBytes(s string) (uint64, error) {
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return 0, errors.New("must be a number, with a unit such as kb, mb or gb if need be")
	}
	return uint64(n), nil
}

func deviceOperations(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, errors.New("must be a positive number")
	}
	return n, nil
}

func deviceWeight(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n > 0 && (n < 10 || n > 1000) {
		return 0, errors.New("must be a weight from 10 to 1000")
	}
	return n, nil
}
