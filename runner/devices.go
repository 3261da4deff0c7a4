package runner

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"kiln.build/runner/cdi"
	"kiln.build/runner/sandbox"
)

// devices gives the step the devices that it asks for.
func (x *execution) devices() error {
	if len(x.o.Devices) == 0 {
		return nil
	}
	registry, err := cdi.Read(x.r.CDIDirs)
	if err != nil {
		return err
	}
	var all []*cdi.Device
	for _, d := range x.o.Devices {
		found, err := registry.Find(d.Name)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			text := fmt.Sprintf("device %q is not registered in %s", d.Name, strings.Join(x.r.CDIDirs, " or "))
			if d.Required {
				return fmt.Errorf("required %s", text)
			}
			x.a.Warn(text)
		}
		all = append(all, found...)
	}
	edits := cdi.Combine(all)
	for _, n := range edits.DeviceNodes {
		dev, err := x.deviceNode(n)
		if err != nil {
			return err
		}
		x.spec.Devices = append(x.spec.Devices, dev)
	}
	for _, m := range edits.Mounts {
		if m.Type != "" && m.Type != "bind" && m.Type != "none" {
			return fmt.Errorf("device mount at %s: type %q is not supported", m.ContainerPath, m.Type)
		}
		has := func(option string) bool { return slices.Contains(m.Options, option) }
		x.spec.Mounts = append(x.spec.Mounts, sandbox.Mount{
			Target: path.Clean("/" + m.ContainerPath), Source: m.HostPath, Recursive: !has("bind"),
			ReadOnly: has("ro"), NoSuid: has("nosuid"), NoDev: has("nodev"), NoExec: has("noexec"),
		})
	}
	if len(edits.Hooks) > 0 {
		var names []string
		for _, h := range edits.Hooks {
			names = append(names, strings.Join(append([]string{h.Path}, h.Args[min(1, len(h.Args)):]...), " "))
		}
		x.a.Warn("the hooks of the devices are not run in a build: " + strings.Join(names, "; "))
	}
	for _, kv := range edits.Env {
		name, _, _ := strings.Cut(kv, "=")
		x.spec.Env = slices.DeleteFunc(x.spec.Env, func(have string) bool { return strings.HasPrefix(have, name+"=") })
		x.spec.Env = append(x.spec.Env, kv)
	}
	for _, gid := range edits.GIDs {
		x.spec.Groups = append(x.spec.Groups, int(gid))
	}
	return nil
}

// deviceNode takes what a specification leaves out from the host's device;
// its owner is the step's user then.
func (x *execution) deviceNode(n cdi.Node) (sandbox.Device, error) {
	d := sandbox.Device{
		Path: n.Path, Major: uint32(n.Major), Minor: uint32(n.Minor), Mode: 0o666,
		UID: x.user.UID, GID: x.user.GID, Access: n.Permissions,
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
