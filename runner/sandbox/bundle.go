package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox/launch"
	"kiln.build/runner/sandbox/seccomp"
)

// bundle is an OCI bundle in the making: the config, and mounts that are
// attached below dir in a mount namespace that only the runtime sees.
type bundle struct {
	dir     string
	s       *Spec
	c       specs.Spec
	created []string // mount points that the root lacked
	mounted int
}

// rootName is the root's folder in a bundle.
const rootName = "rootfs"

// config fills the config in but for mounts.
func (b *bundle) config(g groups) error {
	s := b.s
	switch {
	case s.Prepare != nil || s.Hold != nil || len(s.CreateHooks)+len(s.StartHooks) > 0:
		return errors.New("another runtime has no hooks")
	case len(s.Formats) > 0:
		return errors.New("another runtime runs no programs of other platforms by an emulator of the sandbox's own: register one on the machine")
	case s.Root == nil && s.RootPath == "":
		return errors.New("no root file system")
	}
	b.c = specs.Spec{
		Version: "1.0.2", Root: &specs.Root{Path: rootName, Readonly: s.ReadonlyRoot},
		Hostname: s.Hostname, Linux: &specs.Linux{RootfsPropagation: "private"},
	}
	if s.Domainname != "" {
		b.c.Version, b.c.Domainname = "1.1.0", s.Domainname
	}
	if err := b.process(); err != nil {
		return err
	}
	b.namespaces()
	l := b.c.Linux
	if !s.Privileged {
		l.MaskedPaths, l.ReadonlyPaths = s.MaskedPaths, s.ReadonlyPaths
		if l.MaskedPaths == nil {
			l.MaskedPaths = append(slices.Clone(DefaultMaskedPaths), thermalPaths()...)
		}
		if l.ReadonlyPaths == nil {
			l.ReadonlyPaths = DefaultReadonlyPaths
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Sysctls)) {
		if _, err := sysctlPath(name, s); err != nil {
			return err
		}
	}
	l.Sysctl = s.Sysctls
	if err := b.devices(); err != nil {
		return err
	}
	// Where this user can make no group, neither can the runtime, which then
	// must not be told of one.
	for _, dir := range append(slices.Collect(maps.Values(g.V1)), g.V2) {
		if dir != "" {
			l.CgroupsPath = path.Join(cmp.Or(s.Limits.Parent, "kiln"), path.Base(dir))
		}
	}
	if at := g.Path2(); at != "" {
		// The same one, of which the namespace then is. Elsewhere a user's
		// runtime may make none.
		l.CgroupsPath = at
	}
	return nil
}

// process is the command and its rights.
func (b *bundle) process() error {
	s := b.s
	if len(s.Args) == 0 || s.Args[0] == "" {
		return errors.New("no command")
	}
	have, err := permitted()
	if err != nil {
		return err
	}
	unfiltered := s.Command
	unfiltered.Seccomp = Seccomp{Unconfined: true}
	var p plan
	if err := p.rights(&unfiltered, have); err != nil {
		return err
	}
	proc := &specs.Process{
		Args: s.Args, Env: s.Env, Cwd: s.Cwd, NoNewPrivileges: s.NoNewPrivs, OOMScoreAdj: s.OOMScoreAdj,
		User: specs.User{UID: uint32(s.UID), GID: uint32(s.GID), Umask: s.Umask},
		Capabilities: &specs.LinuxCapabilities{
			Bounding: capNames(p.Bounding), Permitted: capNames(p.Caps), Effective: capNames(p.Effective),
			Inheritable: capNames(p.Inheritable), Ambient: capNames(p.Ambient),
		},
	}
	if proc.Cwd == "" {
		proc.Cwd = "/"
	}
	if s.Init {
		proc.Args = append([]string{launch.ReaperPath}, s.Args...)
	}
	for _, g := range s.Groups {
		proc.User.AdditionalGids = append(proc.User.AdditionalGids, uint32(g))
	}
	for _, r := range s.Rlimits {
		name := strings.ToUpper(strings.TrimPrefix(strings.ToLower(r.Name), "rlimit_"))
		proc.Rlimits = append(proc.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + name, Soft: r.Soft, Hard: r.Hard})
	}
	if t := s.Terminal; t != nil {
		proc.Terminal = true
		proc.ConsoleSize = &specs.Box{Height: uint(t.Rows), Width: uint(t.Cols)}
	}
	b.c.Process = proc
	if s.Privileged || s.Seccomp.Unconfined {
		return nil
	}
	switch {
	case s.Seccomp.Rules != nil:
		b.c.Linux.Seccomp = s.Seccomp.Rules
	case len(s.Seccomp.Profile) > 0:
		b.c.Linux.Seccomp, err = seccomp.Load(s.Seccomp.Profile, capNames(p.Bounding))
	default:
		b.c.Linux.Seccomp, err = seccomp.Default(capNames(p.Bounding))
	}
	return err
}

func (b *bundle) namespaces() {
	s, l := b.s, b.c.Linux
	for _, n := range []struct {
		kind specs.LinuxNamespaceType
		ns   Namespace
	}{
		{specs.MountNamespace, Namespace{}}, {specs.PIDNamespace, s.PID}, {specs.NetworkNamespace, s.Network},
		{specs.IPCNamespace, s.IPC}, {specs.UTSNamespace, s.UTS}, {specs.CgroupNamespace, s.Cgroup},
	} {
		x := specs.LinuxNamespace{Type: n.kind}
		switch {
		case n.ns.Host:
			continue
		case n.ns.Join != nil:
			x.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.ns.Join.Fd())
		}
		l.Namespaces = append(l.Namespaces, x)
	}
	if s.UIDMap != nil {
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		l.UIDMappings, l.GIDMappings = specMap(s.UIDMap), specMap(s.GIDMap)
	}
}

func specMap(list []IDMap) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range list {
		out = append(out, specs.LinuxIDMapping{ContainerID: uint32(m.Inside), HostID: uint32(m.Outside), Size: uint32(m.Size)})
	}
	return out
}

// devices are those beside the default ones, and what may be opened; the
// runtime adds the default ones.
func (b *bundle) devices() error {
	s, l := b.s, b.c.Linux
	devices := s.Devices
	l.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: s.Privileged, Access: "rwm"}}}
	if s.Privileged && !inUserNamespace() {
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
		kind := "c"
		switch dev.Mode & unix.S_IFMT {
		case unix.S_IFBLK:
			kind = "b"
		case unix.S_IFIFO:
			kind = "p"
		}
		mode, uid, gid := os.FileMode(dev.Mode&0o777), uint32(dev.UID), uint32(dev.GID)
		major, minor := int64(dev.Major), int64(dev.Minor)
		l.Devices = append(l.Devices, specs.LinuxDevice{
			Path: dev.Path, Type: kind, Major: major, Minor: minor, FileMode: &mode, UID: &uid, GID: &gid,
		})
		if kind == "p" || s.Privileged {
			continue
		}
		access := d.Access
		if access == "" {
			access = "rwm"
		}
		l.Resources.Devices = append(l.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: kind, Major: &major, Minor: &minor, Access: access,
		})
	}
	return nil
}

// mounts attaches root and binds below the bundle, makes the mount points
// that the root lacks, and lists all mounts in the config. The caller's
// thread is in a mount namespace of its own.
func (b *bundle) mounts(g groups) error {
	s := b.s
	// On no disk, since the environment may hold secrets.
	if err := b.memory(); err != nil {
		return fmt.Errorf("make the bundle: %w", err)
	}
	root := s.Root
	if root == nil {
		f, err := openTree(s.RootPath)
		if err != nil {
			return fmt.Errorf("clone the root: %w", err)
		}
		defer f.Close()
		root = f
	}
	// Else later mounts of the host would show in there.
	private := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(int(root.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, private); err != nil {
		return fmt.Errorf("make the root private: %w", err)
	}
	at := filepath.Join(b.dir, rootName)
	if err := attach(root, at, true); err != nil {
		return fmt.Errorf("attach the root: %w", err)
	}
	list := slices.DeleteFunc(withDefaults(s, g), func(m Mount) bool { return strings.HasPrefix(m.Target, "/sys/fs/cgroup") })
	grouped := len(g.V1) > 0 || g.V2 != ""
	if inUserNamespace() && s.Network != (Namespace{}) {
		// The sysfs of a network that is not ours cannot be had: the one that
		// is there does.
		for i := range list {
			if list[i].Type == "sysfs" {
				list[i].Type, list[i].Source, list[i].Recursive = "", "/sys", true
			}
		}
	}
	if grouped && !slices.ContainsFunc(s.Mounts, func(m Mount) bool { return m.Target == "/sys" || m.Target == "/sys/fs/cgroup" }) {
		list = append(list, Mount{Target: "/sys/fs/cgroup", Type: "cgroup", NoSuid: true, NoDev: true, NoExec: true, ReadOnly: !s.Privileged})
	}
	list = append(list, s.Mounts...)
	if s.Init {
		f, err := b.reaper()
		if err != nil {
			return err
		}
		list = append(list, Mount{Target: launch.ReaperPath, Source: f, ReadOnly: true})
	}
	rootfd, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: at, Err: err}
	}
	defer unix.Close(rootfd)
	var done []string
	for _, m := range list {
		x, dir, err := b.mount(m)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
		if !below(m.Target, done) {
			err := launch.MountPoint(rootfd, x.Destination, dir, func(parent int, name string) error {
				return b.made(at, parent, name, m)
			})
			if err != nil {
				return fmt.Errorf("mount %s: make the mount point: %w", m.Target, err)
			}
		}
		done = append(done, x.Destination)
		b.c.Mounts = append(b.c.Mounts, x)
	}
	return nil
}

// memory has the bundle lie in memory.
func (b *bundle) memory() error {
	if err := os.Mkdir(b.dir, 0o711); err != nil {
		return err
	}
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fsfd)
	err = unix.FsconfigSetString(fsfd, "mode", "711")
	if err == nil {
		err = unix.FsconfigCreate(fsfd)
	}
	if err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(fd)
	return unix.MoveMount(fd, "", unix.AT_FDCWD, b.dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// below says whether target lies in one of the mounts.
func below(target string, mounts []string) bool {
	return slices.ContainsFunc(mounts, func(m string) bool { return strings.HasPrefix(path.Clean(target), m+"/") })
}

// made notes a mount point that was made in the root at a path. That of a
// tmpfs gets the mode which the tmpfs is to have: runc takes it from there.
func (b *bundle) made(root string, parent int, name string, m Mount) error {
	if m.Type == "tmpfs" && m.Mode != 0 && name == path.Base(m.Target) {
		if err := unix.Fchmodat(parent, name, m.Mode, 0); err != nil {
			return err
		}
	}
	at, err := os.Readlink("/proc/thread-self/fd/" + strconv.Itoa(parent))
	if err != nil {
		return err
	}
	b.created = append(b.created, path.Join("/", strings.TrimPrefix(at, root), name))
	return nil
}

// mount turns a mount into one of the config.
func (b *bundle) mount(m Mount) (x specs.Mount, dir bool, err error) {
	if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
		return x, false, errors.New("the target is not an absolute path below the root")
	}
	x = specs.Mount{Destination: path.Clean(m.Target)}
	if m.Type == "" {
		return b.bind(m, x)
	}
	x.Type, x.Source, x.Options = m.Type, m.Type, slices.Clone(m.Options)
	for _, o := range []struct {
		on   bool
		name string
	}{{m.ReadOnly, "ro"}, {m.NoSuid, "nosuid"}, {m.NoDev, "nodev"}, {m.NoExec, "noexec"}} {
		if o.on {
			x.Options = append(x.Options, o.name)
		}
	}
	if m.Type != "tmpfs" {
		return x, true, nil
	}
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
	return x, true, nil
}

// bind attaches what is to be bound below the bundle, with its flags on it
// and on all that is mounted in there.
func (b *bundle) bind(m Mount, x specs.Mount) (specs.Mount, bool, error) {
	f := m.FD
	if f == nil {
		flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
		if m.Recursive {
			flags |= unix.AT_RECURSIVE
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
		if err != nil {
			return x, false, &os.PathError{Op: "clone mount", Path: m.Source, Err: err}
		}
		f = os.NewFile(uintptr(fd), m.Source)
		defer f.Close()
	}
	if m.Part != "" {
		var err error
		if f, err = b.part(f, m.Part); err != nil {
			return x, false, err
		}
		defer f.Close()
	}
	attr := &unix.MountAttr{}
	for _, o := range []struct {
		on   bool
		flag uint64
	}{
		{m.ReadOnly, unix.MOUNT_ATTR_RDONLY}, {m.NoSuid, unix.MOUNT_ATTR_NOSUID},
		{m.NoDev, unix.MOUNT_ATTR_NODEV}, {m.NoExec, unix.MOUNT_ATTR_NOEXEC},
	} {
		if o.on {
			attr.Attr_set |= o.flag
		}
	}
	if attr.Attr_set != 0 {
		if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
			return x, false, fmt.Errorf("set its flags: %w", err)
		}
	}
	x.Type, x.Source = "bind", b.place()
	x.Options = []string{"rbind", "rprivate"}
	if m.Propagation != "" {
		x.Options[1] = "r" + m.Propagation
	}
	if m.ReadOnly {
		x.Options = append(x.Options, "ro")
	}
	fi, err := f.Stat()
	if err != nil {
		return x, false, err
	}
	return x, fi.IsDir(), attach(f, x.Source, fi.IsDir())
}

// place returns where the next mount is attached.
func (b *bundle) place() string {
	b.mounted++
	return filepath.Join(b.dir, "mount"+strconv.Itoa(b.mounted))
}

// part attaches a detached mount, without which nothing of it can be cloned
// before Linux 6.15, and returns a clone of a part.
func (b *bundle) part(f *os.File, path string) (*os.File, error) {
	if err := attach(f, b.place(), true); err != nil {
		return nil, err
	}
	at, err := unix.Openat2(int(f.Fd()), path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open in a mount", Path: path, Err: err}
	}
	defer unix.Close(at)
	fd, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, &os.PathError{Op: "clone mount", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// attach moves a detached mount to a new place.
func attach(f *os.File, at string, dir bool) error {
	var err error
	if dir {
		err = os.Mkdir(at, 0o755)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return err
	}
	return unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func openTree(name string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, &os.PathError{Op: "clone mount", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// reaper writes the program of process 1 to a file.
func (b *bundle) reaper() (string, error) {
	program, err := initFile()
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(int(program.Fd())))
	if err != nil {
		return "", err
	}
	name := filepath.Join(b.dir, "reaper")
	return name, os.WriteFile(name, data, 0o755)
}

// startLimit bounds how long a runtime may take for what it does at once.
const startLimit = 30 * time.Second
