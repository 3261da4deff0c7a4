package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what a group is for.
type Options struct {
	Name    string // of the group below its parent
	Limits  Limits
	Devices []Device // what may be opened; nil is all
	// Settings are made after Limits. Their controllers have to be there.
	Settings []Setting
	// Accounting asks for all controllers, for figures.
	Accounting bool
}

// Group is a control group, one directory in each hierarchy that it needs.
// The zero value is no group: its methods do nothing.
type Group struct {
	V2 string            // directory, empty if there is none
	V1 map[string]string // directories by controller

	controllers map[string][]string // of V1, that share the directory's mount
	mount2      string              // where the hierarchy of V2 is mounted
	limited2    []string            // controllers that V2 has
	filtered    bool                // V2 has a device filter
	pids        int64               // the limit that Tighten sets; zero if that is set already
}

// Create makes a group. Where the machine refuses and neither limits nor a
// parent are asked for, the group lacks what was refused.
func (s *System) Create(o Options) (*Group, error) {
	g := &Group{V1: map[string]string{}, controllers: map[string][]string{}}
	want := o.Limits.asks()
	for _, x := range o.Settings {
		if x.Controller != "" && !slices.Contains(want, x.Controller) {
			want = append(want, x.Controller)
		}
	}
	if p := &o.Limits.Pids; *p > 0 && *p < startPids {
		g.pids, *p = *p, startPids
	}
	required := len(want) > 0 || len(o.Settings) > 0 || o.Limits.Parent != ""
	if err := s.create(g, o, want); err != nil {
		g.Remove()
		if !required && refused(err) {
			return &Group{}, nil
		}
		return nil, fmt.Errorf("make control group %s: %w", o.Name, err)
	}
	if err := g.set(o.Settings); err != nil {
		return nil, errors.Join(fmt.Errorf("make control group %s: %w", o.Name, err), g.Remove())
	}
	return g, nil
}

// set writes settings.
func (g *Group) set(settings []Setting) error {
	for _, x := range settings {
		dir := g.V2
		if x.Controller != "" {
			dir = g.V1[x.Controller]
		}
		if dir == "" || strings.Contains(x.File, "/") {
			return fmt.Errorf("set %s: this machine has no such controller in control groups of that version", x.File)
		}
		err := writeAll(dir, []file{{name: x.File, value: x.Value}})
		if errors.Is(err, fs.ErrNotExist) && x.Controller == "" {
			name, _, _ := strings.Cut(x.File, ".")
			return fmt.Errorf("set %s: the %s controller is not handed on to kiln's groups, or this kernel's has no such file", x.File, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refused says whether err means that this user or machine may not.
func refused(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrNotExist)
}

func (s *System) create(g *Group, o Options, want []string) error {
	v1 := slices.Clone(want)
	if o.Accounting {
		v1 = append(v1, "memory", "cpu", "cpuacct", "pids", "blkio", "cpuset")
	}
	var v2 []string // controllers
	for _, c := range want {
		if _, ok := s.V1[c]; ok {
			continue
		}
		if s.V2 == nil {
			return fmt.Errorf("this machine has no %s controller", c)
		}
		v2 = append(v2, c)
	}
	for _, x := range o.Settings {
		c, _, _ := strings.Cut(x.File, ".")
		if x.Controller == "" && c != "cgroup" && s.V2 != nil && !slices.Contains(v2, c) {
			v2 = append(v2, c)
		}
	}
	if o.Accounting && len(s.V1) == 0 && s.V2 != nil {
		// In a container nobody may hand on what its group has.
		if all := s.V2.available(v2); s.V2.hasBase(o.Limits.Parent, all) {
			v2 = all
		}
	}
	if s.V2 != nil {
		if err := s.create2(g, o, v2); err != nil {
			return err
		}
	} else {
		v1 = append(v1, "freezer")
	}
	if o.Devices != nil && !g.filtered {
		v1 = append(v1, "devices")
	}
	for _, c := range v1 {
		h, ok := s.V1[c]
		if !ok || g.V1[c] != "" {
			continue
		}
		if err := g.create1(c, h, o); err != nil {
			if !slices.Contains(want, c) && refused(err) {
				continue
			}
			return err
		}
	}
	return nil
}

func (h Hierarchy) hasBase(parent string, want []string) bool {
	_, err := h.base2(parent, want)
	return err == nil
}

// available adds the controllers that the machine has to want.
func (h Hierarchy) available(want []string) []string {
	b, err := os.ReadFile(filepath.Join(h.Own, "cgroup.controllers"))
	if err != nil {
		return want
	}
	for _, c := range strings.Fields(string(b)) {
		if slices.Contains([]string{"memory", "cpu", "pids", "io", "cpuset"}, c) && !slices.Contains(want, c) {
			want = append(want, c)
		}
	}
	return want
}

func (s *System) create2(g *Group, o Options, want []string) error {
	base, err := s.V2.base2(o.Limits.Parent, want)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	if len(want) > 0 {
		if err := enable(base, want); err != nil {
			return err
		}
	}
	sweep(base)
	dir := filepath.Join(base, o.Name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	g.V2, g.limited2, g.mount2 = dir, want, s.V2.Mount
	if o.Devices != nil {
		if err := g.filterDevices(o.Devices); err != nil && !refused(err) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("filter devices: %w", err)
		}
	}
	return g.limit2(&o.Limits)
}

func (g *Group) create1(controller string, h Hierarchy, o Options) error {
	base, err := h.base(o.Limits.Parent)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	sweep(base)
	dir := filepath.Join(base, o.Name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, c := range h.Controllers {
		g.V1[c] = dir
	}
	g.controllers[dir] = h.Controllers
	if slices.Contains(h.Controllers, "cpuset") {
		// A new set is empty and takes no process.
		if err := inheritSets(h.Mount, dir); err != nil {
			return err
		}
	}
	if controller == "devices" {
		return g.devices1(o.Devices)
	}
	return g.limit1(controller, &o.Limits)
}

// inheritSets fills the sets of dir and of what leads there from top on.
func inheritSets(top, dir string) error {
	if dir == top || len(dir) <= len(top) {
		return nil
	}
	if err := inheritSets(top, filepath.Dir(dir)); err != nil {
		return err
	}
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		if err := inherit(dir, f); err != nil {
			return err
		}
	}
	return nil
}

func inherit(dir, file string) error {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil || strings.TrimSpace(string(b)) != "" {
		return err
	}
	if b, err = os.ReadFile(filepath.Join(filepath.Dir(dir), file)); err != nil {
		return err
	}
	return write(dir, file, strings.TrimSpace(string(b)))
}

// Path2 returns the group's name in the hierarchy of version 2, if it is in
// that alone and has controllers.
func (g *Group) Path2() string {
	if len(g.V1) > 0 || len(g.limited2) == 0 {
		return ""
	}
	return strings.TrimPrefix(g.V2, g.mount2)
}

// Filters says whether the group decides which devices may be opened.
func (g *Group) Filters() bool { return g.filtered || g.V1["devices"] != "" }

// Add moves a process into the group.
func (g *Group) Add(pid int) error {
	for _, dir := range g.dirs() {
		if err := write(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("join control group: %w", err)
		}
	}
	return nil
}

// Add1 is Add for version 1 only, for a process cloned into V2.
func (g *Group) Add1(pid int) error {
	x := *g
	x.V2 = ""
	return x.Add(pid)
}

// dirs1 returns the directories of version 1.
func (g *Group) dirs1() []string {
	x := *g
	x.V2 = ""
	return x.dirs()
}

// Controllers returns those that share the directory of controller c of
// version 1.
func (g *Group) Controllers(c string) []string { return g.controllers[g.V1[c]] }

// dirs returns the group's directories.
func (g *Group) dirs() []string {
	var dirs []string
	if g.V2 != "" {
		dirs = append(dirs, g.V2)
	}
	for _, d := range g.V1 {
		if !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	slices.Sort(dirs)
	return dirs
}

// Procs returns the processes of the group.
func (g *Group) Procs() ([]int, error) {
	dirs := g.dirs()
	if len(dirs) == 0 {
		return nil, nil
	}
	dir := dirs[0]
	if g.V2 != "" {
		dir = g.V2
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list control group: %w", err)
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Kill kills every process of the group.
func (g *Group) Kill() error {
	if g.V2 != "" {
		err := write(g.V2, "cgroup.kill", "1") // since Linux 5.14
		if errors.Is(err, unix.ENODEV) {
			return nil // removed meanwhile
		}
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// Processes may fork between the listing and the signal: again, until
	// there is none. Frozen ones die when thawed.
	for {
		pids, err := g.Procs()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		if err := g.Thaw(); err != nil && !errors.Is(err, ErrNoFreezer) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// ErrNoFreezer says that the group can be neither frozen nor thawed.
var ErrNoFreezer = errors.New("no control group to freeze: kiln may not make one here")

// Freeze stops every process of the group and returns once they stand still.
func (g *Group) Freeze() error { return g.freeze("1", "FROZEN", "frozen 1") }

// Thaw undoes Freeze.
func (g *Group) Thaw() error { return g.freeze("0", "THAWED", "frozen 0") }

func (g *Group) freeze(v2, v1, event string) error {
	if g.V2 != "" {
		if err := write(g.V2, "cgroup.freeze", v2); err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		return g.await(event, 10*time.Second)
	}
	dir := g.V1["freezer"]
	if dir == "" {
		return ErrNoFreezer
	}
	for range 1000 {
		if err := write(dir, "freezer.state", v1); err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
		if err != nil || strings.TrimSpace(string(b)) == v1 {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("freeze: the group is not %s after a second", v1)
}

// await waits until cgroup.events of V2 has line.
func (g *Group) await(line string, limit time.Duration) error {
	f, err := os.Open(filepath.Join(g.V2, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed
	}
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 256)
	for end := time.Now().Add(limit); ; {
		n, err := f.ReadAt(buf, 0)
		if n == 0 {
			return err
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), line) {
			return nil
		}
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("control group %s: no %q after %v", g.V2, line, limit)
		}
		// The kernel wakes pollers when the file changes.
		p := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(p, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return err
		}
	}
}

// Remove removes the group, killing what is still in it.
func (g *Group) Remove() error {
	if len(g.dirs()) == 0 {
		return nil
	}
	var errs []error
	if pids, _ := g.Procs(); len(pids) > 0 {
		errs = append(errs, g.Kill())
	}
	if g.V2 != "" {
		errs = append(errs, g.await("populated 0", 10*time.Second))
	}
	for _, dir := range g.dirs() {
		errs = append(errs, rmdir(dir))
	}
	return errors.Join(errs...)
}

// rmdir removes a group and the groups that were made in it. A process that
// has been waited for may still be leaving it, for microseconds.
func rmdir(dir string) error {
	var err error
	for wait := 50 * time.Microsecond; wait < 4*time.Second; wait *= 2 {
		err = unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY && err != unix.ENOTEMPTY {
			break
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() {
				if err := rmdir(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		time.Sleep(wait)
	}
	return fmt.Errorf("remove control group %s: %w", dir, err)
}
