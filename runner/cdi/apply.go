package cdi

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"kiln.build/runner/sandbox"
)

// Apply gives a sandbox what the devices need, but for their hooks. What a
// specification leaves out is taken from this machine's device; its owner is
// then the sandbox's user.
func (e Edits) Apply(s *sandbox.Spec) error {
	for _, n := range e.DeviceNodes {
		d, err := n.device(s.UID, s.GID)
		if err != nil {
			return err
		}
		s.Devices = append(s.Devices, d)
	}
	for _, m := range e.Mounts {
		if m.Type != "" && m.Type != "bind" && m.Type != "none" {
			return fmt.Errorf("device mount at %s: type %q is not supported", m.ContainerPath, m.Type)
		}
		has := func(option string) bool { return slices.Contains(m.Options, option) }
		s.Mounts = append(s.Mounts, sandbox.Mount{
			Target: path.Clean("/" + m.ContainerPath), Source: m.HostPath, Recursive: !has("bind"),
			ReadOnly: has("ro"), NoSuid: has("nosuid"), NoDev: has("nodev"), NoExec: has("noexec"),
		})
	}
	for _, kv := range e.Env {
		name, _, _ := strings.Cut(kv, "=")
		s.Env = slices.DeleteFunc(s.Env, func(have string) bool { return strings.HasPrefix(have, name+"=") })
		s.Env = append(s.Env, kv)
	}
	for _, gid := range e.GIDs {
		s.Groups = append(s.Groups, int(gid))
	}
	return nil
}

// HookCommands are the commands of the hooks, for people.
func (e Edits) HookCommands() []string {
	var all []string
	for _, h := range e.Hooks {
		all = append(all, strings.Join(append([]string{h.Path}, h.Args[min(1, len(h.Args)):]...), " "))
	}
	return all
}

func (n Node) device(uid, gid int) (sandbox.Device, error) {
	d := sandbox.Device{
		Path: n.Path, Major: uint32(n.Major), Minor: uint32(n.Minor), Mode: 0o666,
		UID: uid, GID: gid, Access: n.Permissions,
	}
	kind := n.Type
	if kind == "" || kind != "p" && n.Major == 0 {
		from := n.HostPath
		if from == "" {
			from = n.Path
		}
		var st unix.Stat_t
		if err := unix.Stat(from, &st); err != nil {
			return d, fmt.Errorf("device: %w", &os.PathError{Op: "stat", Path: from, Err: err})
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFCHR:
			kind = "c"
		case unix.S_IFBLK:
			kind = "b"
		case unix.S_IFIFO:
			kind = "p"
		default:
			return d, fmt.Errorf("device: %s is no device", from)
		}
		d.Major, d.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	switch kind {
	case "c", "u":
		d.Type = 'c'
	case "b", "p":
		d.Type = kind[0]
	default:
		return d, fmt.Errorf("device %s: type %q is not known", n.Path, n.Type)
	}
	if n.FileMode != nil {
		d.Mode = *n.FileMode & 0o777
	}
	if n.UID != nil {
		d.UID = int(*n.UID)
	}
	if n.GID != nil {
		d.GID = int(*n.GID)
	}
	return d, nil
}
