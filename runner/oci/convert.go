package oci

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"kiln.build/runner/sandbox"
)

// conversion is a config on its way to a sandbox's spec.
type conversion struct {
	bundle string
	c      *specs.Spec
	s      sandbox.Spec
	files  []*os.File // namespaces, to be closed after the start
}

func (x *conversion) close() {
	for _, f := range x.files {
		f.Close()
	}
}

// convert makes a sandbox's spec of a bundle's config.
func convert(bundle string, c *specs.Spec) (*conversion, error) {
	x := &conversion{bundle: bundle, c: c}
	err := x.convert()
	if err != nil {
		x.close()
		return nil, err
	}
	return x, nil
}

func (x *conversion) convert() error {
	if x.c.Linux == nil {
		x.c.Linux = &specs.Linux{}
	}
	for _, step := range []func() error{
		x.refuse, x.process, x.root, x.namespaces, x.mounts, x.devices, x.resources, x.hooks,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// refuse reports what the engine has not.
func (x *conversion) refuse() error {
	p, l := x.c.Process, x.c.Linux
	for what, is := range map[string]bool{
		"process.apparmorProfile": p != nil && p.ApparmorProfile != "",
		"process.selinuxLabel":    p != nil && p.SelinuxLabel != "",
		"process.scheduler":       p != nil && p.Scheduler != nil,
		"process.ioPriority":      p != nil && p.IOPriority != nil,
		"linux.mountLabel":        l.MountLabel != "",
		"linux.intelRdt":          l.IntelRdt != nil,
		"linux.personality":       l.Personality != nil,
		"linux.timeOffsets":       len(l.TimeOffsets) > 0,
		"linux.netDevices":        len(l.NetDevices) > 0,
	} {
		if is {
			return fmt.Errorf("%s is not supported", what)
		}
	}
	return nil
}

func (x *conversion) process() error {
	x.s.Detached = true
	p := x.c.Process
	if p == nil {
		return nil
	}
	if len(p.Args) == 0 {
		return errors.New("process.args is empty")
	}
	if !path.IsAbs(p.Cwd) {
		return fmt.Errorf("process.cwd %q is not an absolute path", p.Cwd)
	}
	x.s.Command = sandbox.Command{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd, UID: int(p.User.UID), GID: int(p.User.GID), Umask: p.User.Umask,
		NoNewPrivs: p.NoNewPrivileges, OOMScoreAdj: p.OOMScoreAdj, Sets: &sandbox.CapabilitySets{},
		Seccomp: sandbox.Seccomp{Unconfined: x.c.Linux.Seccomp == nil, Rules: x.c.Linux.Seccomp},
	}
	for _, g := range p.User.AdditionalGids {
		x.s.Groups = append(x.s.Groups, int(g))
	}
	if c := p.Capabilities; c != nil {
		x.s.Sets = &sandbox.CapabilitySets{
			Bounding: c.Bounding, Permitted: c.Permitted, Effective: c.Effective,
			Inheritable: c.Inheritable, Ambient: c.Ambient,
		}
	}
	seen := map[string]bool{}
	for _, r := range p.Rlimits {
		if seen[r.Type] {
			return fmt.Errorf("process.rlimits has %s twice", r.Type)
		}
		seen[r.Type] = true
		if !strings.HasPrefix(r.Type, "RLIMIT_") {
			return fmt.Errorf("unknown resource limit %q", r.Type)
		}
		x.s.Rlimits = append(x.s.Rlimits, sandbox.Rlimit{Name: r.Type, Soft: r.Soft, Hard: r.Hard})
	}
	if p.Terminal {
		x.s.Terminal = &sandbox.Size{}
		if b := p.ConsoleSize; b != nil {
			*x.s.Terminal = sandbox.Size{Rows: uint16(b.Height), Cols: uint16(b.Width)}
		}
	}
	return nil
}

func (x *conversion) root() error {
	r := x.c.Root
	if r == nil || r.Path == "" {
		return errors.New("root.path is empty")
	}
	x.s.RootPath = r.Path
	if !filepath.IsAbs(r.Path) {
		x.s.RootPath = filepath.Join(x.bundle, r.Path)
	}
	fi, err := os.Stat(x.s.RootPath)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("root %s is not a directory", x.s.RootPath)
	}
	x.s.ReadonlyRoot = r.Readonly
	l := x.c.Linux
	x.s.Hostname, x.s.Domainname = x.c.Hostname, x.c.Domainname
	x.s.Sysctls = l.Sysctl
	x.s.MaskedPaths, x.s.ReadonlyPaths = append([]string{}, l.MaskedPaths...), append([]string{}, l.ReadonlyPaths...)
	switch l.RootfsPropagation {
	case "", "private", "slave", "shared", "unbindable":
		x.s.Propagation = l.RootfsPropagation
	default:
		return fmt.Errorf("unknown linux.rootfsPropagation %q", l.RootfsPropagation)
	}
	return nil
}

// namespaceKinds are the types of namespaces, and their flags for setns(2).
var namespaceKinds = map[specs.LinuxNamespaceType]int{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.MountNamespace: unix.CLONE_NEWNS,
	specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.UserNamespace: unix.CLONE_NEWUSER,
	specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
}

func (x *conversion) namespaces() error {
	l := x.c.Linux
	host := sandbox.Namespace{Host: true}
	of := map[specs.LinuxNamespaceType]*sandbox.Namespace{
		specs.PIDNamespace: &x.s.PID, specs.NetworkNamespace: &x.s.Network, specs.MountNamespace: &x.s.Mount,
		specs.IPCNamespace: &x.s.IPC, specs.UTSNamespace: &x.s.UTS, specs.CgroupNamespace: &x.s.Cgroup,
	}
	for _, ns := range of {
		*ns = host
	}
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, n := range l.Namespaces {
		flag, ok := namespaceKinds[n.Type]
		if !ok {
			return fmt.Errorf("namespace %q is not supported", n.Type)
		}
		if seen[n.Type] {
			return fmt.Errorf("namespace %q is there twice", n.Type)
		}
		seen[n.Type] = true
		if n.Path == "" {
			if ns := of[n.Type]; ns != nil {
				*ns = sandbox.Namespace{}
			}
			continue
		}
		f, err := openNamespace(n.Path, flag)
		if err != nil {
			return fmt.Errorf("namespace %q: %w", n.Type, err)
		}
		x.files = append(x.files, f)
		if n.Type == specs.UserNamespace {
			return errors.New("a user namespace cannot be joined")
		}
		*of[n.Type] = sandbox.Namespace{Join: f}
	}
	maps := len(l.UIDMappings) + len(l.GIDMappings)
	switch {
	case seen[specs.UserNamespace] && (len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0):
		return errors.New("a user namespace needs linux.uidMappings and linux.gidMappings")
	case !seen[specs.UserNamespace] && maps > 0:
		return errors.New("id mappings need a user namespace")
	}
	x.s.UIDMap, x.s.GIDMap = idMap(l.UIDMappings), idMap(l.GIDMappings)
	if len(l.MaskedPaths)+len(l.ReadonlyPaths) > 0 && x.s.Mount.Host {
		return errors.New("masked and read-only paths need a mount namespace")
	}
	return nil
}

// openNamespace opens a namespace of that kind.
func openNamespace(name string, kind int) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	got, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err == nil && got != kind {
		err = errors.New("it is a namespace of another type")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

func idMap(list []specs.LinuxIDMapping) []sandbox.IDMap {
	var out []sandbox.IDMap
	for _, m := range list {
		out = append(out, sandbox.IDMap{Inside: int(m.ContainerID), Outside: int(m.HostID), Size: int(m.Size)})
	}
	return out
}

func (x *conversion) devices() error {
	for _, d := range x.c.Linux.Devices {
		kind := d.Type
		if kind == "u" {
			kind = "c"
		}
		if len(kind) != 1 {
			return fmt.Errorf("device %s: unknown type %q", d.Path, d.Type)
		}
		dev := sandbox.Device{Path: d.Path, Type: kind[0], Major: uint32(d.Major), Minor: uint32(d.Minor)}
		if d.FileMode != nil {
			dev.Mode = uint32(d.FileMode.Perm())
		}
		if d.UID != nil {
			dev.UID = int(*d.UID)
		}
		if d.GID != nil {
			dev.GID = int(*d.GID)
		}
		x.s.Devices = append(x.s.Devices, dev)
	}
	return nil
}

func (x *conversion) hooks() error {
	h := x.c.Hooks
	if h == nil {
		return nil
	}
	for _, list := range [][]specs.Hook{prestart(h), h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop} {
		for _, k := range list {
			if !filepath.IsAbs(k.Path) {
				return fmt.Errorf("hook %q: not an absolute path", k.Path)
			}
			if k.Timeout != nil && *k.Timeout <= 0 {
				return fmt.Errorf("hook %s: timeout %d is not positive", k.Path, *k.Timeout)
			}
		}
	}
	x.s.CreateHooks, x.s.StartHooks = sandboxHooks(h.CreateContainer), sandboxHooks(h.StartContainer)
	return nil
}

// prestart are hooks of an older kind.
func prestart(h *specs.Hooks) []specs.Hook {
	//lint:ignore SA1019 they are in use still
	return h.Prestart
}

func sandboxHooks(list []specs.Hook) []sandbox.Hook {
	var out []sandbox.Hook
	for _, h := range list {
		s := sandbox.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout != nil {
			s.Timeout = time.Duration(*h.Timeout) * time.Second
		}
		out = append(out, s)
	}
	return out
}
