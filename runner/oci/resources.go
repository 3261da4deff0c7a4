package oci

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"kiln.build/runner/sandbox/cgroup"
)

// resources places the container in its control group and sets its limits.
func (x *conversion) resources() error {
	l := x.c.Linux
	if l.CgroupsPath != "" {
		p := path.Clean(l.CgroupsPath)
		if strings.Contains(l.CgroupsPath, ":") {
			return fmt.Errorf("linux.cgroupsPath %q is one of systemd's, which is not supported", l.CgroupsPath)
		}
		if p == "/" || p == "." || p == ".." || strings.HasPrefix(p, "../") {
			return fmt.Errorf("linux.cgroupsPath %q names no group below", l.CgroupsPath)
		}
		if x.s.Limits.Parent = path.Dir(p); x.s.Limits.Parent == "." {
			x.s.Limits.Parent = "kiln"
		}
		x.s.CgroupName = path.Base(p)
		x.s.Accounting = true // others look for the group in every hierarchy
	}
	x.s.AllowDevices = append([]cgroup.Device{}, cgroup.DefaultDevices...)
	if sys, err := cgroup.Detect(); err == nil && l.CgroupsPath != "" {
		if _, ok := sys.V1["devices"]; ok { // for the same reason; a filter of version 2 would do
			x.set("devices", "devices.allow", "c 1:3 rwm")
		}
	}
	r := l.Resources
	if r == nil {
		return nil
	}
	if err := x.allowDevices(r.Devices); err != nil {
		return err
	}
	x.memory(r.Memory)
	x.cpu(r.CPU)
	if r.Pids != nil && r.Pids.Limit != nil {
		if x.s.Limits.Pids = *r.Pids.Limit; x.s.Limits.Pids == 0 {
			x.s.Limits.Pids = -1
		}
	}
	x.blockIO(r.BlockIO)
	for _, h := range r.HugepageLimits {
		x.set("hugetlb", "hugetlb."+h.Pagesize+".limit_in_bytes", strconv.FormatUint(h.Limit, 10))
	}
	if n := r.Network; n != nil {
		if n.ClassID != nil {
			x.set("net_cls", "net_cls.classid", strconv.FormatUint(uint64(*n.ClassID), 10))
		}
		for _, p := range n.Priorities {
			x.set("net_prio", "net_prio.ifpriomap", fmt.Sprintf("%s %d", p.Name, p.Priority))
		}
	}
	for name, value := range r.Unified {
		x.set("", name, value)
	}
	if len(r.Rdma) > 0 {
		return fmt.Errorf("linux.resources.rdma is not supported")
	}
	return nil
}

func (x *conversion) set(controller, file, value string) {
	x.s.Settings = append(x.s.Settings, cgroup.Setting{Controller: controller, File: file, Value: value})
}

func (x *conversion) memory(m *specs.LinuxMemory) {
	if m == nil {
		return
	}
	l := &x.s.Limits
	for _, v := range []struct {
		from *int64
		to   *int64
	}{{m.Limit, &l.Memory}, {m.Swap, &l.MemorySwap}, {m.Reservation, &l.MemoryReservation}} {
		if v.from != nil {
			*v.to = *v.from
		}
	}
	if m.Swappiness != nil {
		x.set("memory", "memory.swappiness", strconv.FormatUint(*m.Swappiness, 10))
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		x.set("memory", "memory.oom_control", "1")
	}
	// Limits on the kernel's memory have no effect in any kernel that has the
	// mount calls of the engine.
}

func (x *conversion) cpu(c *specs.LinuxCPU) {
	if c == nil {
		return
	}
	l := &x.s.Limits
	if c.Shares != nil {
		l.CPUShares = int64(*c.Shares)
	}
	if c.Quota != nil {
		l.CPUQuota = *c.Quota
	}
	if c.Period != nil {
		l.CPUPeriod = int64(*c.Period)
	}
	l.CPUSetCPUs, l.CPUSetMems = c.Cpus, c.Mems
	if c.RealtimePeriod != nil {
		x.set("cpu", "cpu.rt_period_us", strconv.FormatUint(*c.RealtimePeriod, 10))
	}
	if c.RealtimeRuntime != nil {
		x.set("cpu", "cpu.rt_runtime_us", strconv.FormatInt(*c.RealtimeRuntime, 10))
	}
}

func (x *conversion) blockIO(b *specs.LinuxBlockIO) {
	if b == nil {
		return
	}
	// Which scheduler is in the kernel decides about the names.
	prefix := "blkio."
	if _, err := os.Stat("/sys/fs/cgroup/blkio/blkio.bfq.weight"); err == nil {
		prefix = "blkio.bfq."
	}
	if b.Weight != nil && *b.Weight != 0 {
		x.set("blkio", prefix+"weight", strconv.Itoa(int(*b.Weight)))
	}
	if b.LeafWeight != nil && *b.LeafWeight != 0 {
		x.set("blkio", prefix+"leaf_weight", strconv.Itoa(int(*b.LeafWeight)))
	}
	for _, d := range b.WeightDevice {
		if d.Weight != nil {
			x.set("blkio", prefix+"weight_device", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight))
		}
		if d.LeafWeight != nil {
			x.set("blkio", prefix+"leaf_weight_device", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.LeafWeight))
		}
	}
	for _, t := range []struct {
		file string
		list []specs.LinuxThrottleDevice
	}{
		{"blkio.throttle.read_bps_device", b.ThrottleReadBpsDevice}, {"blkio.throttle.write_bps_device", b.ThrottleWriteBpsDevice},
		{"blkio.throttle.read_iops_device", b.ThrottleReadIOPSDevice}, {"blkio.throttle.write_iops_device", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.list {
			x.set("blkio", t.file, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate))
		}
	}
}

// allowDevices goes through the rules in their order; the default devices are
// allowed in the end.
func (x *conversion) allowDevices(rules []specs.LinuxDeviceCgroup) error {
	var list []cgroup.Device
	for _, r := range rules {
		d := cgroup.Device{Type: 'a', Major: -1, Minor: -1, Access: r.Access}
		switch r.Type {
		case "", "a":
		case "b", "c":
			d.Type = r.Type[0]
		default:
			return fmt.Errorf("device rule of unknown type %q", r.Type)
		}
		if d.Access == "" {
			d.Access = "rwm"
		}
		if strings.Trim(d.Access, "rwm") != "" {
			return fmt.Errorf("device rule with unknown access %q", r.Access)
		}
		if r.Major != nil {
			d.Major = *r.Major
		}
		if r.Minor != nil {
			d.Minor = *r.Minor
		}
		all := d.Type == 'a' && d.Major < 0 && d.Minor < 0
		switch {
		case r.Allow && d.Type == 'a' && !all:
			b, c := d, d
			b.Type, c.Type = 'b', 'c'
			list = append(list, b, c)
		case r.Allow:
			list = append(list, d)
		case all:
			list = nil
		case len(list) > 0:
			return fmt.Errorf("a device rule that denies some after others were allowed is not supported")
		}
	}
	x.s.AllowDevices = append(list, x.s.AllowDevices...)
	return nil
}
