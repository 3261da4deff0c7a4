package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox/launch"
)

// plan is a Spec made concrete: what the init is told, and the files that it
// inherits.
type plan struct {
	launch.Config
	files []*os.File // from descriptor 0 on
}

// file hands f to the init and returns the number it has there.
func (p *plan) file(f *os.File) int {
	p.files = append(p.files, f)
	return len(p.files) - 1
}

// newPlan starts a plan with what concerns the command, which may get the
// capabilities have. Descriptor launch.Conn is that of conn.
func newPlan(c *Command, conn *conn, have uint64) (*plan, error) {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return nil, errors.New("no command")
	}
	for _, s := range slices.Concat(c.Args, c.Env, []string{c.Cwd}) {
		if strings.IndexByte(s, 0) >= 0 {
			return nil, fmt.Errorf("%q holds a NUL byte", s)
		}
	}
	p := &plan{Config: launch.Config{
		Root: -1, JoinNet: -1, JoinIPC: -1, JoinUTS: -1, JoinMount: -1, JoinCgroup: -1, Init: -1, Hold: -1,
		Args: c.Args, Env: c.Env, Cwd: c.Cwd,
		UID: c.UID, GID: c.GID, Groups: c.Groups, Umask: 0o022,
		NoNewPrivs: c.NoNewPrivs, Privileged: c.Privileged,
	}}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if c.Umask != nil {
		p.Umask = int(*c.Umask)
	}
	if c.Terminal != nil {
		p.Terminal, p.Rows, p.Cols = true, int(c.Terminal.Rows), int(c.Terminal.Cols)
	}
	for _, f := range []struct {
		file *os.File
		null *bool
	}{{c.Stdin, &p.StdinNull}, {c.Stdout, &p.StdoutNull}, {c.Stderr, &p.StderrNull}} {
		if f.file == nil || c.Terminal != nil {
			f.file = conn.null
		}
		*f.null = isNull(f.file)
		p.file(f.file)
	}
	p.file(conn.theirs)
	for _, r := range c.Rlimits {
		n, ok := rlimits[strings.ToLower(strings.TrimPrefix(r.Name, "RLIMIT_"))]
		if !ok {
			return nil, fmt.Errorf("unknown resource limit %q", r.Name)
		}
		if r.Soft > r.Hard {
			return nil, fmt.Errorf("resource limit %s: soft limit %d exceeds hard limit %d", r.Name, r.Soft, r.Hard)
		}
		p.Rlimits = append(p.Rlimits, launch.Rlimit{Resource: n, Soft: r.Soft, Hard: r.Hard})
	}
	return p, p.rights(c, have)
}

// isNull says whether f is a null device, which the sandbox gets its own of.
func isNull(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}

// rights sets capabilities and filter.
func (p *plan) rights(c *Command, have uint64) error {
	if c.Sets != nil {
		if err := p.sets(c.Sets, have); err != nil {
			return err
		}
		return p.filter(c)
	}
	names := c.Capabilities
	if names == nil {
		names = DefaultCapabilities
	}
	mask, err := capMask(names)
	if err != nil {
		return err
	}
	if c.Privileged {
		mask = ^uint64(0)
	}
	p.Bounding = mask & have
	ambient, err := capMask(c.Ambient)
	if err != nil {
		return err
	}
	p.Ambient = ambient & p.Bounding
	p.Caps = p.Bounding
	if c.UID != 0 {
		p.Caps = p.Ambient
	}
	p.Effective, p.Inheritable = p.Caps, p.Ambient
	return p.filter(c)
}

// sets takes the capabilities as they are given.
func (p *plan) sets(c *CapabilitySets, have uint64) error {
	for _, x := range []struct {
		names []string
		mask  *uint64
	}{
		{c.Bounding, &p.Bounding}, {c.Permitted, &p.Caps}, {c.Effective, &p.Effective},
		{c.Inheritable, &p.Inheritable}, {c.Ambient, &p.Ambient},
	} {
		mask, err := capMask(x.names)
		if err != nil {
			return err
		}
		*x.mask = mask & have
	}
	return nil
}

// filter sets the system call filter.
func (p *plan) filter(c *Command) error {
	if c.Privileged || c.Seccomp.Unconfined {
		return nil
	}
	prog, err := filter(&c.Seccomp, capNames(p.Bounding))
	if err != nil {
		return err
	}
	if len(prog) == 0 {
		return nil
	}
	p.Filter = unsafe.Slice((*byte)(unsafe.Pointer(&prog[0])), len(prog)*int(unsafe.Sizeof(prog[0])))
	return nil
}

// permitted returns the capabilities that this process can give.
func permitted() (uint64, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

// complete adds what concerns a new sandbox.
func (p *plan) complete(s *Spec, g groups) error {
	if s.Root == nil && s.RootPath == "" {
		return errors.New("no root file system")
	}
	if err := p.formats(s); err != nil {
		return err
	}
	p.RootPath = s.RootPath
	if s.Root != nil {
		p.Root = p.file(s.Root)
	}
	p.ReadonlyRoot = s.ReadonlyRoot
	p.Hostname, p.Domainname = s.Hostname, s.Domainname
	p.Detached = s.Detached
	p.CgroupNamespace = s.Cgroup == (Namespace{})
	p.Chroot = s.Mount != (Namespace{})
	p.UserNamespace = inUserNamespace() || s.UIDMap != nil
	p.SetGroups = setgroupsAllowed("self")
	for _, j := range []struct {
		ns *Namespace
		fd *int
	}{{&s.Network, &p.JoinNet}, {&s.IPC, &p.JoinIPC}, {&s.UTS, &p.JoinUTS}, {&s.Mount, &p.JoinMount}, {&s.Cgroup, &p.JoinCgroup}} {
		if j.ns.Join != nil {
			*j.fd = p.file(j.ns.Join)
		}
	}
	p.Loopback = s.Network == (Namespace{})
	if s.UTS.Host && (s.Hostname != "" || s.Domainname != "") {
		return errors.New("a host name needs a UTS namespace of its own")
	}
	p.Propagation = s.Propagation
	switch s.Propagation {
	case "", "private", "slave", "shared", "unbindable":
	default:
		return fmt.Errorf("unknown propagation %q of the root", s.Propagation)
	}
	if s.Hold != nil {
		if !s.Detached {
			return errors.New("a sandbox that is held has to be detached")
		}
		p.Hold = p.file(s.Hold)
	}
	p.Prepare = s.Prepare != nil
	p.CreateHooks, p.StartHooks = hooks(s.CreateHooks), hooks(s.StartHooks)
	if s.Init {
		f, err := initFile()
		if err != nil {
			return err
		}
		p.Init = p.file(f)
	}
	if !s.Privileged {
		p.Masked, p.Readonly = s.MaskedPaths, s.ReadonlyPaths
		if p.Masked == nil {
			p.Masked = append(slices.Clone(DefaultMaskedPaths), thermalPaths()...)
		}
		if p.Readonly == nil {
			p.Readonly = DefaultReadonlyPaths
		}
	}
	if allowed(s) != nil && !inUserNamespace() && !g.Filters() {
		// Nothing but these would keep the host's disks from being opened.
		p.NoDevices = true
		p.Bounding &^= 1 << unix.CAP_MKNOD
		for _, set := range []*uint64{&p.Caps, &p.Effective, &p.Inheritable, &p.Ambient} {
			*set &^= 1 << unix.CAP_MKNOD
		}
	}
	devices := s.Devices
	if p.Privileged && !p.UserNamespace {
		all, err := hostDevices()
		if err != nil {
			return err
		}
		devices = append(all, devices...)
	}
	for _, d := range devices {
		dev, err := device(d)
		if err != nil {
			return err
		}
		p.Devices = append(p.Devices, dev)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Sysctls)) {
		key, err := sysctlPath(name, s)
		if err != nil {
			return err
		}
		p.Sysctls = append(p.Sysctls, key+"="+s.Sysctls[name])
	}
	return p.mounts(s, g)
}

func hooks(list []Hook) []launch.Hook {
	var out []launch.Hook
	for _, h := range list {
		out = append(out, launch.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: int(h.Timeout.Milliseconds())})
	}
	return out
}

// thermalPaths are the counters of each processor's throttling, which docker
// masks as well: they tell what others are doing.
var thermalPaths = sync.OnceValue(func() []string {
	paths, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle") // the pattern is well formed
	return paths
})

// hostDevices lists the devices of this machine but for those that every
// sandbox has and for terminals, for privileged sandboxes.
func hostDevices() ([]Device, error) {
	own := []string{"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"}
	var list []Device
	err := filepath.WalkDir("/dev", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone since it was listed
		}
		switch {
		case d.IsDir() && slices.Contains([]string{"/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/hugepages"}, name):
			return fs.SkipDir
		case d.Type()&fs.ModeDevice == 0, path.Dir(name) == "/dev" && slices.Contains(own, d.Name()):
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(name, &st) != nil {
			return nil
		}
		kind := byte('c')
		if d.Type()&fs.ModeCharDevice == 0 {
			kind = 'b'
		}
		list = append(list, Device{
			Path: name, Type: kind, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
			Mode: st.Mode & 0o777, UID: int(st.Uid), GID: int(st.Gid),
		})
		return nil
	})
	return list, err
}

func device(d Device) (launch.Device, error) {
	kind := uint32(unix.S_IFCHR)
	switch d.Type {
	case 'c', 0:
	case 'b':
		kind = unix.S_IFBLK
	case 'p':
		kind = unix.S_IFIFO
	default:
		return launch.Device{}, fmt.Errorf("device %s: unknown type %q", d.Path, d.Type)
	}
	if !path.IsAbs(d.Path) || path.Clean(d.Path) == "/" {
		return launch.Device{}, fmt.Errorf("device %q: not an absolute path", d.Path)
	}
	mode := d.Mode & 0o777
	if mode == 0 {
		mode = 0o666
	}
	return launch.Device{
		Path: path.Clean(d.Path), Mode: kind | mode, Major: d.Major, Minor: d.Minor, UID: d.UID, GID: d.GID,
	}, nil
}

// ipcSysctls are those of an IPC namespace, besides fs.mqueue.*.
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
	"kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
}

// OwnSysctl reports whether a setting belongs to a namespace that a sandbox
// can have for its own.
func OwnSysctl(name string) bool {
	_, err := sysctlPath(name, &Spec{})
	return err == nil
}

// sysctlPath returns the path of name below /proc/sys, for names that change
// nothing outside of the sandbox.
func sysctlPath(name string, s *Spec) (string, error) {
	own := false
	switch {
	case strings.HasPrefix(name, "net."):
		own = s.Network == (Namespace{})
	case strings.HasPrefix(name, "fs.mqueue."), slices.Contains(ipcSysctls, name):
		own = s.IPC == (Namespace{})
	}
	p := strings.ReplaceAll(name, ".", "/")
	if strings.Contains(name, "/") { // names such as net/ipv4/conf/eth0.1/…
		p, own = name, own && !strings.Contains(name, "..")
	}
	if !own {
		return "", fmt.Errorf("sysctl %q is not of a namespace of the sandbox's own", name)
	}
	return p, nil
}

// withDefaults returns the default mounts that s leaves in.
func withDefaults(s *Spec, g groups) []Mount {
	var list []Mount
	if !s.NoDefaultMounts {
		list = defaultMounts(s, g)
	}
	targets := map[string]bool{}
	for _, m := range s.Mounts {
		targets[path.Clean(m.Target)] = true
	}
	return slices.DeleteFunc(list, func(m Mount) bool {
		// What hides /dev or /sys hides what is mounted below it by default.
		for t := m.Target; t != "/"; t = path.Dir(t) {
			if targets[t] && (t == m.Target || t == "/dev" || t == "/sys" || t == "/sys/fs/cgroup") {
				return true
			}
		}
		return false
	})
}

// mounts makes the list of mounts.
func (p *plan) mounts(s *Spec, g groups) error {
	list := withDefaults(s, g)
	for _, m := range list {
		p.Dev = p.Dev || m.Target == "/dev"
	}
	own := s.Mounts
	if s.NoDefaultMounts {
		own = nil
		for _, m := range s.Mounts {
			p.Dev = p.Dev || path.Clean(m.Target) == "/dev" && m.Type == "tmpfs"
			if m.Type == "cgroup" && len(m.Options) == 0 {
				own = append(own, g.mounts(path.Clean(m.Target), m.ReadOnly)...)
				continue
			}
			own = append(own, m)
		}
	}
	for _, m := range slices.Concat(list, own) {
		x, err := p.mount(m)
		if err != nil {
			return err
		}
		x.Optional = m.Type == "mqueue" || m.Type == "cgroup" || m.Type == "cgroup2"
		p.Config.Mounts = append(p.Config.Mounts, x)
	}
	return nil
}

func defaultMounts(s *Spec, g groups) []Mount {
	shm := s.ShmSize
	if shm == 0 {
		shm = 64 << 20
	}
	list := []Mount{
		{Target: "/proc", Type: "proc", NoSuid: true, NoDev: true, NoExec: true},
		{Target: "/sys", Type: "sysfs", NoSuid: true, NoDev: true, NoExec: true, ReadOnly: !s.Privileged},
		{Target: "/dev", Type: "tmpfs", NoSuid: true, NoExec: true, Mode: 0o755, Size: 64 << 20},
		{Target: "/dev/pts", Type: "devpts", NoSuid: true, NoExec: true, Options: []string{"newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Target: "/dev/shm", Type: "tmpfs", NoSuid: true, NoDev: true, NoExec: true, Mode: 0o1777, Size: shm},
		{Target: "/dev/mqueue", Type: "mqueue", NoSuid: true, NoDev: true, NoExec: true},
	}
	return append(list, g.mounts("/sys/fs/cgroup", !s.Privileged)...)
}

// mount resolves one mount.
func (p *plan) mount(m Mount) (launch.Mount, error) {
	var kinds int
	for _, is := range []bool{m.FD != nil, m.Source != "", m.Type != ""} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return launch.Mount{}, fmt.Errorf("mount %q: one of FD, Source and Type is needed", m.Target)
	}
	if m.Part != "" && m.FD == nil {
		return launch.Mount{}, fmt.Errorf("mount %q: a part of what is no FD", m.Target)
	}
	if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
		return launch.Mount{}, fmt.Errorf("mount %q: the target is not an absolute path below the root", m.Target)
	}
	x := launch.Mount{
		Kind: m.Type, Target: path.Clean(m.Target), FD: -1, Part: m.Part, Source: m.Source,
		Recursive: m.Recursive, Propagation: m.Propagation, Options: slices.Clone(m.Options),
	}
	switch {
	case m.FD != nil:
		x.Kind, x.FD = launch.KindFD, p.file(m.FD)
	case m.Type != "":
		x.Source = m.Name
	}
	switch {
	case m.Source != "":
		x.Kind = launch.KindBind
	case m.Type == "tmpfs":
		mode := m.Mode
		if mode == 0 {
			mode = 0o1777
		}
		x.Options = append(x.Options, "mode="+strconv.FormatUint(uint64(mode), 8))
		if m.Size > 0 {
			x.Options = append(x.Options, "size="+strconv.FormatInt(m.Size, 10))
		}
		if m.UID != 0 || m.GID != 0 {
			x.Options = append(x.Options, "uid="+strconv.Itoa(m.UID), "gid="+strconv.Itoa(m.GID))
		}
	}
	switch m.Propagation {
	case "", "private", "slave", "shared", "unbindable":
	default:
		return launch.Mount{}, fmt.Errorf("mount %q: unknown propagation %q", m.Target, m.Propagation)
	}
	for _, f := range []struct {
		on   bool
		flag uint64
	}{
		{m.ReadOnly, unix.MOUNT_ATTR_RDONLY}, {m.NoSuid, unix.MOUNT_ATTR_NOSUID},
		{m.NoDev, unix.MOUNT_ATTR_NODEV}, {m.NoExec, unix.MOUNT_ATTR_NOEXEC},
		{m.NoAtime, unix.MOUNT_ATTR_NOATIME}, {m.StrictAtime, unix.MOUNT_ATTR_STRICTATIME},
		{m.NoDirAtime, unix.MOUNT_ATTR_NODIRATIME}, {m.NoSymFollow, unix.MOUNT_ATTR_NOSYMFOLLOW},
	} {
		if f.on {
			x.Flags |= f.flag
		}
	}
	return x, nil
}
