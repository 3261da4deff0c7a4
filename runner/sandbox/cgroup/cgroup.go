// Package cgroup puts a sandbox into control groups: version 1, version 2 or
// both at once (hybrid), by plain files.
//
// [Detect] finds the hierarchies of this machine, [System.Create] makes a
// [Group] in those that are needed. Where both versions are there, limits are
// set through whichever has the controller, while freezing, killing and "is
// anything left" go through version 2. It is no manager of groups made by
// others and talks to no systemd.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits bound what a group may use; zero values do not bound.
type Limits struct {
	Memory            int64 // bytes
	MemorySwap        int64 // bytes of memory and swap together; -1 is any swap
	MemoryReservation int64
	CPUShares         int64
	CPUPeriod         int64 // microseconds; zero is 100,000
	CPUQuota          int64 // microseconds in each period
	CPUSetCPUs        string
	CPUSetMems        string
	Pids              int64
	Parent            string // group below which the new one is made
}

// Setting is a value of a controller that Limits has no field for. An empty
// Controller is version 2, and File then one of any controller.
type Setting struct {
	Controller, File, Value string
}

// asks returns the controllers that l needs.
func (l *Limits) asks() []string {
	var c []string
	if l.Memory != 0 || l.MemorySwap != 0 || l.MemoryReservation != 0 {
		c = append(c, "memory")
	}
	if l.CPUShares != 0 || l.CPUQuota != 0 || l.CPUPeriod != 0 {
		c = append(c, "cpu")
	}
	if l.CPUSetCPUs != "" || l.CPUSetMems != "" {
		c = append(c, "cpuset")
	}
	if l.Pids != 0 {
		c = append(c, "pids")
	}
	return c
}

// System are the hierarchies of this machine, as this process sees them.
type System struct {
	V1 map[string]Hierarchy // by controller
	V2 *Hierarchy           // nil if there is none
}

// Hierarchy is one mounted hierarchy.
type Hierarchy struct {
	Mount       string   // where it is mounted
	Own         string   // directory of this process's own group
	Controllers []string // of version 1: all that share the mount
}

// Mode is "v1", "v2", "hybrid" or "none".
func (s *System) Mode() string {
	switch {
	case len(s.V1) > 0 && s.V2 != nil:
		return "hybrid"
	case len(s.V1) > 0:
		return "v1"
	case s.V2 != nil:
		return "v2"
	}
	return "none"
}

// Detect reads which hierarchies are mounted and where in them this process
// is.
func Detect() (*System, error) { return detectAs("/proc/self/cgroup") }

// detectAs is Detect for the process or thread that groups is about.
func detectAs(groups string) (*System, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	defer mounts.Close()
	own, err := os.Open(groups)
	if errors.Is(err, os.ErrNotExist) {
		return &System{}, nil // a kernel without them
	}
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	defer own.Close()
	s, err := parse(mounts, own)
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	return s, nil
}

// parse reads the forms of proc_pid_mountinfo(5) and cgroups(7).
func parse(mountinfo, cgroups io.Reader) (*System, error) {
	paths := map[string]string{} // by controller; "" is version 2
	for in := bufio.NewScanner(cgroups); in.Scan(); {
		f := strings.SplitN(in.Text(), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, c := range strings.Split(f[1], ",") {
			paths[c] = f[2]
		}
	}
	s := &System{V1: map[string]Hierarchy{}}
	in := bufio.NewScanner(mountinfo)
	for in.Scan() {
		left, right, ok := strings.Cut(in.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			continue
		}
		root, mount := l[3], unescape(l[4])
		switch r[0] {
		case "cgroup2":
			if own, ok := below(mount, root, paths[""]); ok && s.V2 == nil {
				s.V2 = &Hierarchy{Mount: mount, Own: own}
			}
		case "cgroup":
			var controllers []string
			for _, c := range strings.Split(r[2], ",") {
				if _, ok := paths[c]; ok {
					controllers = append(controllers, c)
				}
			}
			for _, c := range controllers {
				if own, ok := below(mount, root, paths[c]); ok {
					s.V1[c] = Hierarchy{mount, own, controllers}
				}
			}
		}
	}
	return s, in.Err()
}

// below returns the directory of group in a hierarchy of which the part from
// root on is mounted.
func below(mount, root, group string) (string, bool) {
	if root == "/" {
		return filepath.Join(mount, group), true
	}
	rest, ok := strings.CutPrefix(group+"/", root+"/")
	if !ok {
		// The mount shows a part that this process is not in.
		return mount, !strings.HasPrefix(root, "/..")
	}
	return filepath.Join(mount, rest), true
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// base returns the directory in which the group is made. Below our own group
// the limits that we are under hold for the sandbox too.
func (h Hierarchy) base(parent string) (string, error) {
	if parent == "" {
		return filepath.Join(h.Own, "kiln"), nil
	}
	if slices.Contains(strings.Split(parent, "/"), "..") {
		return "", fmt.Errorf("control group parent %q has a parent directory in it", parent)
	}
	if strings.HasPrefix(parent, "/") {
		return filepath.Join(h.Mount, parent), nil
	}
	return filepath.Join(h.Own, parent), nil
}

// base2 is base for version 2, where a group with processes can have no
// children with controllers: the parent is the nearest group, ours or one
// above it, that hands all of want on or that can be made to.
func (h Hierarchy) base2(parent string, want []string) (string, error) {
	if parent != "" {
		return h.base(parent)
	}
	for dir := h.Own; ; dir = filepath.Dir(dir) {
		err := enable(dir, want)
		if err == nil {
			return filepath.Join(dir, "kiln"), nil
		}
		if dir == h.Mount || len(dir) <= 1 {
			return "", fmt.Errorf("no group from %s up hands on the controllers %s: %w", h.Own, strings.Join(want, ", "), err)
		}
	}
}

// controllers reads a file that lists some.
func controllers(dir, file string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	return strings.Fields(string(b)), err
}

// enable gives the controllers to the children of dir, where they lack them.
func enable(dir string, want []string) error {
	if len(want) == 0 {
		return nil
	}
	on, err := controllers(dir, "cgroup.subtree_control")
	if err != nil {
		return err
	}
	has, err := controllers(dir, "cgroup.controllers")
	if err != nil {
		return err
	}
	var add []string
	for _, c := range want {
		if slices.Contains(on, c) {
			continue
		}
		if !slices.Contains(has, c) {
			return fmt.Errorf("%s has no %s controller itself", dir, c)
		}
		add = append(add, "+"+c)
	}
	if len(add) == 0 {
		return nil
	}
	// The kernel would let pids, cpu and cpuset through for a group with
	// processes, make it one of threads, and take no process in below. The
	// first group of all has no type and may do both.
	if procs, err := controllers(dir, "cgroup.procs"); err != nil || len(procs) > 0 {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.type")); err == nil {
			return fmt.Errorf("%s has processes of its own: %w", dir, unix.EBUSY)
		}
	}
	return write(dir, "cgroup.subtree_control", strings.Join(add, " "))
}

func write(dir, file, text string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// Of returns the groups of a process, as far as they are not those that this
// process is in: another one may be put there.
func Of(pid int) (*Group, error) {
	s, err := Detect()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, fmt.Errorf("find control groups of process %d: %w", pid, err)
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	defer mounts.Close()
	o, err := parse(mounts, strings.NewReader(string(b)))
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	g := &Group{V1: map[string]string{}, controllers: map[string][]string{}}
	for c, h := range o.V1 {
		if h.Own != s.V1[c].Own && !strings.HasPrefix(c, "name=") {
			g.V1[c] = h.Own
			g.controllers[h.Own] = h.Controllers
		}
	}
	if o.V2 != nil && o.V2.Own != s.V2.Own {
		g.V2 = o.V2.Own
	}
	return g, nil
}
