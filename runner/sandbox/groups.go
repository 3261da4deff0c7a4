package sandbox

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"kiln.build/runner/sandbox/cgroup"
)

// groups is the control group of a sandbox and how it is seen inside.
type groups struct {
	*cgroup.Group
}

var groupSystem = sync.OnceValues(cgroup.Detect)

// Groups are control groups of a sandbox that is about to be started.
type Groups struct{ made func() (groups, error) }

// MakeGroups begins to make the control groups that a spec asks for: making
// directories in a handful of hierarchies takes a millisecond or two, in which
// the rest can be thought out. Of the spec only limits, settings, devices,
// privileges, runtime and the groups' name count. [Start] gets them as
// Spec.ControlGroups; if it is not called, Discard has to be.
func MakeGroups(s Spec) *Groups {
	g := &Groups{sync.OnceValues(func() (groups, error) { return newGroups(&s) })}
	go g.made()
	return g
}

// Discard removes them. Nil has none.
func (g *Groups) Discard() error {
	if g == nil {
		return nil
	}
	have, err := g.made()
	if err != nil {
		return nil //nolint:nilerr // there is nothing to remove
	}
	return have.Remove()
}

// newGroups makes the control groups of a sandbox.
func newGroups(s *Spec) (groups, error) {
	sys, err := groupSystem()
	if err != nil {
		return groups{}, err
	}
	name := s.CgroupName
	if name == "" {
		name = cgroup.NewName()
		if s.Detached {
			name += "-detached"
		}
	}
	if name == "." || name == ".." || strings.Contains(name, "/") {
		return groups{}, fmt.Errorf("control group name %q", name)
	}
	// In version 2, crun joins only groups that have controllers.
	controllers := s.Accounting || s.Runtime != "" && sys.Mode() == "v2"
	g, err := sys.Create(cgroup.Options{
		Name: name, Limits: s.Limits, Accounting: controllers, Devices: allowed(s), Settings: s.Settings,
	})
	if err != nil && inUserNamespace() && sys.Mode() == "v2" {
		err = fmt.Errorf("%w (%s)", err, delegate)
	}
	return groups{g}, err
}

// delegate is what a user can do about limits that are refused.
const delegate = "limits need a delegated group: systemd-run --user --scope -p Delegate=yes kiln …; " +
	"for --cpuset-cpus and block devices also Delegate=cpu cpuset io memory pids in the unit user@.service"

// allowed returns the devices that may be used, nil for all.
func allowed(s *Spec) []cgroup.Device {
	if s.Privileged {
		return nil
	}
	if s.AllowDevices != nil {
		for _, d := range s.AllowDevices {
			if d.Type == 'a' && len(d.Access) == 3 {
				return nil
			}
		}
		return s.AllowDevices
	}
	list := slices.Clone(cgroup.DefaultDevices)
	for _, d := range s.Devices {
		if d.Type == 'p' {
			continue // no device
		}
		access, kind := d.Access, d.Type
		if access == "" {
			access = "rwm"
		}
		if kind == 0 {
			kind = 'c'
		}
		list = append(list, cgroup.Device{Type: kind, Major: int64(d.Major), Minor: int64(d.Minor), Access: access})
	}
	return list
}

// mounts shows the sandbox those hierarchies in which it has a group of its
// own, as roots of its own.
func (g groups) mounts(dir string, readonly bool) []Mount {
	m := Mount{NoSuid: true, NoDev: true, NoExec: true, ReadOnly: readonly}
	if len(g.V1) == 0 {
		if g.V2 == "" {
			return nil
		}
		m.Target, m.Type = dir, "cgroup2"
		return []Mount{m}
	}
	list := []Mount{{
		Target: dir, Type: "tmpfs", Mode: 0o755, Size: 64 << 10,
		NoSuid: true, NoDev: true, NoExec: true, ReadOnly: readonly,
	}}
	var seen []string
	for _, c := range slices.Sorted(maps.Keys(g.V1)) {
		controllers := g.Controllers(c)
		name := strings.Join(controllers, ",")
		if slices.Contains(seen, name) {
			continue
		}
		seen = append(seen, name)
		m.Target, m.Type, m.Options = dir+"/"+name, "cgroup", controllers
		list = append(list, m)
	}
	if g.V2 != "" {
		m.Target, m.Type, m.Options = dir+"/unified", "cgroup2", nil
		list = append(list, m)
	}
	return list
}

// inUserNamespace says whether this process is in a user namespace other than
// the first one.
var inUserNamespace = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err == nil && !(len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == strconv.FormatInt(1<<32-1, 10))
})

// setgroupsAllowed says whether setgroups may be called in the user namespace
// of the process pid ("self" for ours): not where a user mapped a single id.
func setgroupsAllowed(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/setgroups")
	return err != nil || strings.TrimSpace(string(b)) == "allow"
}
