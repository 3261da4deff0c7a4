package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"kiln.build/runner/overlay"
	"kiln.build/runner/sandbox"
)

// mounts adds what the user wants to see in the container, outer ones before
// those inside them.
func (r *run) mounts(ctx context.Context) error {
	var all []sandbox.Mount
	for _, b := range r.c.Binds {
		if err := r.c.fill(ctx, r.root, b); err != nil {
			return err
		}
		m, err := r.bind(ctx, b)
		if err != nil {
			return err
		}
		all = append(all, m)
	}
	for _, t := range r.c.Tmpfs {
		all = append(all, sandbox.Mount{
			Target: t.Target, Type: "tmpfs", Size: t.Size, Mode: t.Mode, Options: t.Options,
			ReadOnly: t.ReadOnly, NoSuid: !t.Suid, NoDev: !t.Dev, NoExec: !t.Exec,
		})
	}
	slices.SortStableFunc(all, func(a, b sandbox.Mount) int { return depth(a.Target) - depth(b.Target) })
	r.spec.Mounts = append(r.spec.Mounts, all...)
	return nil
}

// bind is the mount of a folder or file of this machine.
func (r *run) bind(ctx context.Context, b Bind) (sandbox.Mount, error) {
	m := sandbox.Mount{Target: b.Target, Source: b.Source, Recursive: !b.Alone, ReadOnly: b.ReadOnly, Propagation: b.Propagation}
	if b.Image != "" {
		return r.imageMount(ctx, b)
	}
	if _, err := os.Stat(b.Source); err != nil {
		return m, fmt.Errorf("bind source path does not exist: %s", b.Source)
	}
	if b.Propagation != "" {
		if err := checkPropagation(b); err != nil {
			return m, err
		}
	}
	if b.Subpath == "" && !b.WritableBelow {
		return m, nil
	}
	from, err := openPath(b.Source)
	if errors.Is(err, unix.ENOTDIR) && b.Subpath == "" {
		m.Recursive = false // a file has nothing below it
		return m, nil
	}
	if err != nil {
		return m, err
	}
	defer from.Close()
	at := from
	if b.Subpath != "" {
		// Links in a volume are its containers', which may not lead out of it.
		if at, err = openIn(from, b.Subpath, unix.O_PATH); err != nil {
			return m, fmt.Errorf("cannot access path %s: %w", filepath.Join(b.Source, b.Subpath), errors.Unwrap(err))
		}
		defer at.Close()
	}
	tree, err := r.cloneTree(at, !b.Alone)
	if err != nil {
		return m, fmt.Errorf("clone the mount of %s: %w", b.Source, err)
	}
	if b.WritableBelow {
		if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return m, fmt.Errorf("make the mount of %s read-only: %w", b.Source, err)
		}
		m.ReadOnly = false
	}
	m.Source, m.Recursive, m.FD = "", false, tree
	return m, nil
}

// cloneTree clones the mount of an open file, from there on down.
func (r *run) cloneTree(at *os.File, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(int(at.Fd()), "", flags)
	if err != nil {
		return nil, err
	}
	tree := os.NewFile(uintptr(fd), at.Name())
	r.onClose(tree.Close)
	return tree, nil
}

// imageMount is the mount of an image's files, which nobody can change. Its
// layers are pinned with those of the container.
func (r *run) imageMount(ctx context.Context, b Bind) (sandbox.Mount, error) {
	m := sandbox.Mount{Target: b.Target, ReadOnly: true}
	var o overlay.Options
	var err error
	if o.Lower, err = r.m.Store.LayerDirs(ctx, b.Layers); err != nil {
		return m, err
	}
	if o.Empty, err = r.m.Store.Scratch("empty"); err != nil {
		return m, err
	}
	if m.FD, err = overlay.Mount(o); err != nil {
		return m, fmt.Errorf("mount image %s: %w", b.Image, err)
	}
	r.onClose(m.FD.Close)
	if b.Subpath == "" {
		return m, nil
	}
	at, err := openIn(m.FD, b.Subpath, unix.O_PATH)
	if err != nil {
		return m, fmt.Errorf("cannot access path %s of image %s: %w", b.Subpath, b.Image, errors.Unwrap(err))
	}
	defer at.Close()
	if m.FD, err = r.cloneTree(at, false); err != nil {
		return m, fmt.Errorf("clone the mount of image %s: %w", b.Image, err)
	}
	return m, nil
}

// checkPropagation reports an error if the mount of the source could not show
// later mounts, as it was asked to.
func checkPropagation(b Bind) error {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, b.Source, 0, unix.STATX_MNT_ID, &st); err != nil {
		return &os.PathError{Op: "statx", Path: b.Source, Err: err}
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		// proc_pid_mountinfo(5): optional fields come between the sixth and "-".
		f := strings.Fields(line)
		if len(f) < 7 || f[0] != strconv.FormatUint(st.Mnt_id, 10) {
			continue
		}
		optional := f[6:max(6, slices.Index(f, "-"))]
		has := func(tag string) bool {
			return slices.ContainsFunc(optional, func(o string) bool { return strings.HasPrefix(o, tag+":") })
		}
		if b.Propagation == "shared" && !has("shared") {
			return fmt.Errorf("path %s is mounted on %s but it is not a shared mount", b.Source, f[4])
		}
		if b.Propagation == "slave" && !has("shared") && !has("master") {
			return fmt.Errorf("path %s is mounted on %s but it is not a shared or slave mount", b.Source, f[4])
		}
	}
	return nil
}
