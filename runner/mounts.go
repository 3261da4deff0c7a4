package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/cache/tree"
	"kiln.build/runner/network/dns"
	"kiln.build/runner/overlay"
	"kiln.build/runner/sandbox"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// etc mounts hosts and resolv.conf read-only: what a step finds there is of
// this machine and must not get into a layer.
func (x *execution) etc() error {
	dir, err := x.r.Store.Scratch("etc")
	if err != nil {
		return err
	}
	x.onClose(func() error { return os.RemoveAll(dir) })
	resolv := []byte{}
	if x.o.Network != "none" {
		if resolv, err = dns.SandboxConf(!x.spec.Network.Host); err != nil {
			return err
		}
	}
	for name, data := range map[string][]byte{"hosts": x.hosts("127.0.0.1"), "resolv.conf": resolv} {
		at := filepath.Join(dir, name)
		if name == "hosts" {
			x.hostsFile = at
		} else {
			x.resolvFile = at
		}
		if err := os.WriteFile(at, data, 0o644); err != nil {
			return err
		}
		if err := os.Chmod(at, 0o644); err != nil {
			return err
		}
		f, err := overlay.Clone(at)
		if err != nil {
			return err
		}
		x.onClose(f.Close)
		x.spec.Mounts = append(x.spec.Mounts, sandbox.Mount{Target: "/etc/" + name, FD: f, ReadOnly: true})
	}
	return nil
}

// HostGateway stands for this machine's address in an op.Host.
const HostGateway = "host-gateway"

// hosts is the step's /etc/hosts, on a network where this machine has the
// address gateway.
func (x *execution) hosts(gateway string) []byte {
	text := "127.0.0.1\tlocalhost " + x.spec.Hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for _, h := range x.o.ExtraHosts {
		ip := h.IP
		if ip == HostGateway {
			ip = gateway
		}
		text += ip + "\t" + h.Name + "\n"
	}
	return []byte(text)
}

// knowHost writes this machine's address into the step's /etc/hosts, where
// it is asked for: it is not known before the network is there.
func (x *execution) knowHost(gateway string) error {
	if !slices.ContainsFunc(x.o.ExtraHosts, func(h op.Host) bool { return h.IP == HostGateway }) {
		return nil
	}
	return os.WriteFile(x.hostsFile, x.hosts(gateway), 0o644)
}

// knowNameserver has the step ask the network's own nameserver, if it has one.
func (x *execution) knowNameserver(addr string) error {
	if addr == "" {
		return nil
	}
	conf, err := dns.SandboxConf(true)
	if err != nil {
		return err
	}
	return os.WriteFile(x.resolvFile, dns.WithNameserver(conf, addr), 0o644)
}

// mounts adds the step's own mounts, outer ones before those inside them.
func (x *execution) mounts(ctx context.Context) error {
	all := slices.Clone(x.o.Mounts)
	slices.SortStableFunc(all, func(a, b op.Mount) int {
		return strings.Count(path.Clean(a.Target), "/") - strings.Count(path.Clean(b.Target), "/")
	})
	for _, m := range all {
		if err := x.mount(ctx, m); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.Type, m.Target, err)
		}
	}
	return nil
}

func (x *execution) mount(ctx context.Context, m op.Mount) error {
	switch m.Type {
	case op.Bind:
		return x.bind(ctx, m)
	case op.Cache:
		return x.cache(ctx, m)
	case op.Tmpfs:
		x.spec.Mounts = append(x.spec.Mounts, sandbox.Mount{Target: m.Target, Type: "tmpfs", Size: m.Size, NoSuid: true, NoDev: true})
		return nil
	case op.Secret:
		return x.secret(m)
	case op.SSH:
		return x.ssh(m)
	}
	return fmt.Errorf("unknown type %q", m.Type)
}

// add clones what is at a path of this machine and mounts it.
func (x *execution) add(m op.Mount, at string) error {
	f, err := overlay.Clone(at)
	if err != nil {
		return err
	}
	x.onClose(f.Close)
	x.spec.Mounts = append(x.spec.Mounts, sandbox.Mount{Target: m.Target, FD: f, ReadOnly: m.ReadOnly})
	return nil
}

// bind mounts a selection: the path itself out of the stack it was chosen
// from, or for a local context a copy, which holds just what .dockerignore
// leaves. Writes go to a place that is thrown away.
func (x *execution) bind(ctx context.Context, m op.Mount) error {
	layers, at, err := x.bindSource(ctx, m)
	if err != nil {
		return err
	}
	upper, work := "", ""
	if !m.ReadOnly {
		dir, err := x.r.Store.Scratch("bind")
		if err != nil {
			return err
		}
		upper, work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
		x.onClose(func() error { return os.RemoveAll(dir) })
		if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o700)); err != nil {
			return err
		}
		idx, err := x.r.Store.Index(layers)
		if err != nil {
			return err
		}
		if err := errors.Join(os.Chmod(upper, 0o755), sameRoot(upper, idx)); err != nil {
			return err
		}
	}
	lower, err := x.r.Store.LayerDirs(ctx, layers)
	if err != nil {
		return err
	}
	root, err := x.mountStack(lower, upper, work)
	if err != nil {
		return err
	}
	x.spec.Mounts = append(x.spec.Mounts, sandbox.Mount{Target: m.Target, FD: root, Part: at, ReadOnly: m.ReadOnly})
	return nil
}

// bindSource is the stack and the path in it that a mount shows.
func (x *execution) bindSource(ctx context.Context, m op.Mount) ([]solver.Layer, string, error) {
	using := x.a.Using[m.Using]
	s, err := x.r.selected(ctx, x.a.Inputs[m.Input], &using)
	if err != nil {
		return nil, "", err
	}
	if len(s.tree.Entries) == 0 {
		return nil, "", errors.New("nothing was selected")
	}
	top := &s.tree.Entries[0]
	if using.Layers != nil {
		return using.Layers, sourceOf(top), nil
	}
	l, err := x.materialise(ctx, s)
	if err != nil {
		return nil, "", err
	}
	at := ""
	if top.Type != tree.Dir {
		at = top.Path
	}
	return []solver.Layer{l}, at, nil
}

// materialise makes a layer of a selection from a local directory. An equal
// one is found again by its digest.
func (x *execution) materialise(ctx context.Context, s *selection) (solver.Layer, error) {
	p := newPlan(&op.Facts{Path: "/", Dir: true}, chmod{})
	p.putAll(s)
	draft, err := x.r.Store.NewLayer()
	if err != nil {
		return solver.Layer{}, err
	}
	defer draft.Discard()
	t, err := p.all(ctx, draft.FS)
	if err != nil {
		return solver.Layer{}, err
	}
	return draft.Commit(ctx, t)
}

// cache mounts a directory that outlives the step.
func (x *execution) cache(ctx context.Context, m op.Mount) error {
	o := cache.CacheMountOptions{
		ID: m.CacheID, Sharing: cache.Sharing(m.Sharing), Mode: m.Mode, UID: m.UID, GID: m.GID, Clear: x.o.ClearCaches,
	}
	if m.Input >= 0 {
		layers, at, err := x.bindSource(ctx, m)
		if err != nil {
			return err
		}
		o.ID += "@" + string(x.a.Inputs[m.Input].Digest) // another origin is another cache
		o.Init = func(dir string) error { return x.fill(ctx, dir, layers, at) }
	}
	dir, release, err := x.r.Store.CacheMount(ctx, o)
	if err != nil {
		return err
	}
	x.onClose(func() error { release(); return nil })
	return x.add(m, dir)
}

// fill copies the initial content of a cache mount.
func (x *execution) fill(ctx context.Context, dir string, layers []solver.Layer, at string) error {
	idx, err := x.r.Store.Index(layers)
	if err != nil {
		return err
	}
	t, err := pick(op.Select{Sources: []string{"/" + at}, Whole: true}, &stackPlace{index: idx})
	if err != nil {
		return err
	}
	dirs, err := x.r.Store.LayerDirs(ctx, layers)
	if err != nil {
		return err
	}
	p := newPlan(&op.Facts{Path: "/", Dir: true}, chmod{})
	p.putAll(&selection{tree: t, from: &layerFiles{index: idx, dirs: dirs}})
	_, err = p.all(ctx, dir)
	return err
}

// secret gives the step a secret, as a file in memory and as a variable. The
// value is handed over by descriptor and by environment: it is on no disk, in
// no key, and in no process's arguments.
func (x *execution) secret(m op.Mount) error {
	value, ok := x.r.Secrets[m.ID]
	if !ok {
		if m.Required {
			return fmt.Errorf("secret %s: not found: give it with --secret id=%s,src=FILE", m.ID, m.ID)
		}
		return nil // neither a file nor a variable: ${NAME-default} works
	}
	if m.Env != "" {
		x.spec.Env = append(slices.DeleteFunc(x.spec.Env, func(kv string) bool { return strings.HasPrefix(kv, m.Env+"=") }), m.Env+"="+string(value))
	}
	if m.Target == "" {
		return nil
	}
	f, err := memoryFile(value, m)
	if err != nil {
		return err
	}
	x.onClose(f.Close)
	x.spec.Mounts = append(x.spec.Mounts, sandbox.Mount{Target: m.Target, FD: f, Part: secretName, ReadOnly: true, NoSuid: true, NoDev: true, NoExec: true})
	return nil
}

// secretName is the file's name in its own file system.
const secretName = "secret"

// memoryFile makes a tmpfs with one file.
func memoryFile(value []byte, m op.Mount) (*os.File, error) {
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	mnt, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	root := os.NewFile(uintptr(mnt), "tmpfs")
	fd, err := unix.Openat(mnt, secretName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("openat", err), root.Close())
	}
	f := os.NewFile(uintptr(fd), secretName)
	_, err = f.Write(value)
	err = errors.Join(err, f.Chown(m.UID, m.GID), unix.Fchmod(fd, m.Mode), f.Close())
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// ssh mounts an agent's socket.
func (x *execution) ssh(m op.Mount) error {
	socket, ok := x.r.SSH[m.ID]
	if !ok {
		if m.Required {
			return fmt.Errorf("ssh agent %s: not found: give it with --ssh %s", m.ID, m.ID)
		}
		return nil
	}
	// Connecting is possible, and changing the mode of the user's own socket is
	// not.
	m.ReadOnly = true
	if err := x.add(m, socket); err != nil {
		return err
	}
	x.spec.Env = append(x.spec.Env, "SSH_AUTH_SOCK="+m.Target)
	return nil
}
