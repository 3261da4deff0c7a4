package container

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"kiln.build/runner/cdi"
	"kiln.build/runner/rootless"
	"kiln.build/runner/sandbox"
	"kiln.build/runner/sandbox/cgroup"
)

// Resources are limits that few containers have.
type Resources struct {
	BlockWeight     uint16     `json:"blkioWeight,omitempty"` // 10 to 1000
	BlockWeights    []Throttle `json:"blkioWeightDevice,omitempty"`
	ReadBps         []Throttle `json:"readBps,omitempty"` // bytes, and
	WriteBps        []Throttle `json:"writeBps,omitempty"`
	ReadIOps        []Throttle `json:"readIOps,omitempty"` // operations in each second
	WriteIOps       []Throttle `json:"writeIOps,omitempty"`
	Swappiness      *int64     `json:"swappiness,omitempty"` // 0 to 100
	NoOOMKill       bool       `json:"oomKillDisable,omitempty"`
	RealtimePeriod  int64      `json:"rtPeriod,omitempty"` // microseconds
	RealtimeRuntime int64      `json:"rtRuntime,omitempty"`
}

// Throttle is a limit on a block device of this machine.
type Throttle struct {
	Path         string `json:"path"`
	Major, Minor uint32
	Rate         uint64 `json:"rate"`
}

// settings are the values of control groups that the resources come to on
// this machine.
func (r *Resources) settings() ([]cgroup.Setting, error) {
	var all []cgroup.Setting
	add := func(controller, file, value string) {
		all = append(all, cgroup.Setting{Controller: controller, File: file, Value: value})
	}
	sys, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	v1 := func(controller string) bool {
		_, ok := sys.V1[controller]
		return ok
	}
	if n := r.Swappiness; n != nil {
		if !v1("memory") {
			return nil, errors.New("memory swappiness needs control groups of version 1")
		}
		add("memory", "memory.swappiness", strconv.FormatInt(*n, 10))
	}
	if r.NoOOMKill {
		if !v1("memory") {
			return nil, errors.New("disabling the OOM killer needs control groups of version 1")
		}
		add("memory", "memory.oom_control", "1")
	}
	if r.RealtimePeriod != 0 || r.RealtimeRuntime != 0 {
		if !v1("cpu") {
			return nil, errors.New("limits of real-time scheduling need control groups of version 1")
		}
		if n := r.RealtimePeriod; n != 0 {
			add("cpu", "cpu.rt_period_us", strconv.FormatInt(n, 10))
		}
		if n := r.RealtimeRuntime; n != 0 {
			add("cpu", "cpu.rt_runtime_us", strconv.FormatInt(n, 10))
		}
	}
	if v1("blkio") {
		return append(all, r.block1()...), nil
	}
	return append(all, r.block2()...), nil
}

// block1 are the limits on block devices in version 1.
func (r *Resources) block1() (all []cgroup.Setting) {
	// Which scheduler is in the kernel decides about the name.
	weight := "blkio.weight"
	if _, err := os.Stat("/sys/fs/cgroup/blkio/blkio.bfq.weight"); err == nil {
		weight = "blkio.bfq.weight"
	}
	if r.BlockWeight != 0 {
		all = append(all, cgroup.Setting{Controller: "blkio", File: weight, Value: strconv.Itoa(int(r.BlockWeight))})
	}
	for _, t := range []struct {
		file string
		list []Throttle
	}{
		{weight + "_device", r.BlockWeights},
		{"blkio.throttle.read_bps_device", r.ReadBps}, {"blkio.throttle.write_bps_device", r.WriteBps},
		{"blkio.throttle.read_iops_device", r.ReadIOps}, {"blkio.throttle.write_iops_device", r.WriteIOps},
	} {
		for _, d := range t.list {
			all = append(all, cgroup.Setting{Controller: "blkio", File: t.file, Value: fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate)})
		}
	}
	return all
}

// block2 are the limits on block devices in version 2.
func (r *Resources) block2() (all []cgroup.Setting) {
	if r.BlockWeight != 0 {
		// By runc's formula, from 10..1000 to 1..10000.
		n := 1 + (int(r.BlockWeight)-10)*9999/990
		all = append(all, cgroup.Setting{File: "io.weight", Value: strconv.Itoa(n)})
	}
	for _, d := range r.BlockWeights {
		all = append(all, cgroup.Setting{File: "io.bfq.weight", Value: fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate)})
	}
	for _, t := range []struct {
		key  string
		list []Throttle
	}{{"rbps", r.ReadBps}, {"wbps", r.WriteBps}, {"riops", r.ReadIOps}, {"wiops", r.WriteIOps}} {
		for _, d := range t.list {
			all = append(all, cgroup.Setting{File: "io.max", Value: fmt.Sprintf("%d:%d %s=%d", d.Major, d.Minor, t.key, d.Rate)})
		}
	}
	return all
}

// zero reports whether nothing is limited.
func (r *Resources) zero() bool {
	return r.BlockWeight == 0 && r.Swappiness == nil && !r.NoOOMKill && r.RealtimePeriod == 0 && r.RealtimeRuntime == 0 &&
		len(r.BlockWeights)+len(r.ReadBps)+len(r.WriteBps)+len(r.ReadIOps)+len(r.WriteIOps) == 0
}

// makeGroups begins to make the control groups, unless resources has to say
// first what is in them.
func (w *watch) makeGroups() {
	c := w.c
	if len(c.CDI)+len(c.DeviceRules)+len(c.Devices) > 0 || !c.More.zero() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.limits = c.Limits
	w.groups = sandbox.MakeGroups(sandbox.Spec{
		Command: sandbox.Command{Privileged: c.Privileged}, Runtime: c.Runtime, Limits: c.Limits, Accounting: true,
	})
}

// takeGroups are the control groups for the next run, nil where the sandbox is
// to make them.
func (w *watch) takeGroups() (*sandbox.Groups, error) {
	w.mu.Lock()
	changed := w.groups != nil && w.limits != w.c.Limits
	w.mu.Unlock()
	if changed { // before anyone could tell this process
		if err := w.groups.Discard(); err != nil {
			return nil, err
		}
		w.groups = nil
	}
	if w.groups == nil {
		w.makeGroups()
	}
	g := w.groups
	w.groups = nil
	return g, nil
}

// resources adds to the sandbox what few containers have: devices of CDI,
// rules for devices, limits beyond [sandbox.Limits], and namespaces of another
// container.
func (r *run) resources() error {
	c := r.c
	r.renamed()
	if len(c.CDI) > 0 {
		if err := r.cdi(); err != nil {
			return err
		}
	}
	if len(c.DeviceRules) > 0 {
		rules := append([]cgroup.Device{}, cgroup.DefaultDevices...)
		for _, d := range r.spec.Devices {
			rules = append(rules, cgroup.Device{Type: cmp.Or(d.Type, 'c'), Major: int64(d.Major), Minor: int64(d.Minor), Access: cmp.Or(d.Access, "rwm")})
		}
		for _, text := range c.DeviceRules {
			d, err := ParseDeviceRule(text)
			if err != nil {
				return err
			}
			rules = append(rules, d...)
		}
		r.spec.AllowDevices = rules
	}
	if !c.More.zero() {
		var err error
		if r.spec.Settings, err = c.More.settings(); err != nil {
			return err
		}
	}
	return r.join()
}

// renamed has devices that the container sees under another name mounted where
// no device can be made: a sandbox without root binds this machine's, which it
// looks for under the name inside.
func (r *run) renamed() {
	if len(r.c.Devices) == 0 || rootless.Current() == rootless.Root {
		return
	}
	r.spec.Devices = nil
	for i, d := range r.c.Devices {
		if i >= len(r.c.Sources) || r.c.Sources[i] == d.Path {
			r.spec.Devices = append(r.spec.Devices, d)
			continue
		}
		r.spec.Mounts = append(r.spec.Mounts, sandbox.Mount{Target: d.Path, Source: r.c.Sources[i], NoSuid: true, NoExec: true})
	}
}

// cdi adds the devices that files describe.
func (r *run) cdi() error {
	registry, err := cdi.Read(r.m.CDIDirs)
	if err != nil {
		return err
	}
	var all []*cdi.Device
	for _, name := range r.c.CDI {
		found, err := registry.Find(name)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return fmt.Errorf("CDI device injection failed: unresolvable CDI devices %s: there is none of that name in %s", name, strings.Join(r.m.CDIDirs, " or "))
		}
		all = append(all, found...)
	}
	return cdi.Combine(all).Apply(&r.spec)
}

// ParseDeviceRule reads a value of --device-cgroup-rule.
func ParseDeviceRule(s string) ([]cgroup.Device, error) {
	invalid := fmt.Errorf("invalid device cgroup format '%s'", s)
	f := strings.Split(s, " ")
	if len(f) != 3 || len(f[0]) != 1 || !strings.Contains("acb", f[0]) || f[2] == "" || len(f[2]) > 3 || strings.Trim(f[2], "rwm") != "" {
		return nil, invalid
	}
	major, minor, ok := strings.Cut(f[1], ":")
	d := cgroup.Device{Type: f[0][0], Access: f[2]}
	for _, n := range []struct {
		text string
		to   *int64
	}{{major, &d.Major}, {minor, &d.Minor}} {
		if n.text == "*" {
			*n.to = -1
			continue
		}
		v, err := strconv.ParseUint(n.text, 10, 32)
		if !ok || err != nil {
			return nil, invalid
		}
		*n.to = int64(v)
	}
	if d.Type == 'a' && (d.Major >= 0 || d.Minor >= 0) {
		b, c := d, d
		b.Type, c.Type = 'b', 'c'
		return []cgroup.Device{b, c}, nil
	}
	return []cgroup.Device{d}, nil
}
