package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/runner/overlay"
)

// Files is [Container.Root] with the container's volumes and folders in their
// places also where it does not run: a volume is filled by copying into a
// container that was only created. Of images that are mounted, and of file
// systems in memory, there is nothing while it does not run.
func (c *Container) Files(ctx context.Context, store *cache.Store, write bool) (root *os.File, closeRoot func(), err error) {
	st, err := c.State()
	if err != nil {
		return nil, nil, err
	}
	// What it has mounted has no places before its first start.
	write = write || st.Started.IsZero()
	root, live, unmount, err := c.openRoot(ctx, store, write)
	if err != nil || live || len(c.Binds) == 0 {
		return root, unmount, err
	}
	ns, err := c.mountBinds(ctx, root, write)
	if err != nil {
		unmount()
		return nil, nil, err
	}
	return root, func() { _ = ns.Close(); unmount() }, nil
}

// mountBinds puts what the container has mounted on its root, in a mount
// namespace that lasts as long as the file that is returned. That is what root
// has to be in: before Linux 6.15 nothing can be mounted on a detached mount.
func (c *Container) mountBinds(ctx context.Context, root *os.File, write bool) (*os.File, error) {
	binds := slices.DeleteFunc(slices.Clone(c.Binds), func(b Bind) bool { return b.Image != "" })
	slices.SortStableFunc(binds, func(a, b Bind) int { return depth(a.Target) - depth(b.Target) })
	ns, err := overlay.Aside(func() (*os.File, error) {
		if err := overlay.OwnNamespace(); err != nil {
			return nil, err
		}
		// Cloned before the root hides what is there.
		var trees []*os.File
		defer func() { closeAll(trees) }()
		for i, b := range binds {
			tree, err := cloneBind(b)
			if err != nil && (write || !errors.Is(err, fs.ErrNotExist)) {
				return nil, fmt.Errorf("mount %s: %w", b.Target, err)
			}
			trees = append(trees, tree)
			if err != nil {
				binds[i].Target = "" // gone: nothing of it can be read
			}
		}
		if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return nil, os.NewSyscallError("move_mount", err)
		}
		for i, b := range binds {
			if b.Target == "" {
				continue
			}
			err := c.attach(ctx, root, b, trees[i], write)
			if err != nil && (write || !errors.Is(err, fs.ErrNotExist)) {
				return nil, fmt.Errorf("mount %s: %w", b.Target, err)
			}
		}
		return os.Open("/proc/thread-self/ns/mnt")
	})
	if err != nil {
		return nil, fmt.Errorf("mount the volumes of container %s: %w", c.Name, err)
	}
	return ns, nil
}

// cloneBind is the mount of a folder or file of this machine, attached nowhere.
func cloneBind(b Bind) (*os.File, error) {
	source, err := unix.Open(b.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: b.Source, Err: err}
	}
	at := os.NewFile(uintptr(source), b.Source)
	defer at.Close()
	if b.Subpath != "" {
		// As in a container that runs: links in a volume do not lead out of it.
		in, err := openIn(at, b.Subpath, unix.O_PATH)
		if err != nil {
			return nil, err
		}
		defer in.Close()
		at = in
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if !b.Alone {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(int(at.Fd()), "", flags)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	tree := os.NewFile(uintptr(fd), b.Source)
	if !b.ReadOnly {
		return tree, nil
	}
	var how uint
	if !b.Alone && !b.WritableBelow {
		how = unix.AT_RECURSIVE
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|how, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("mount_setattr", err), tree.Close())
	}
	return tree, nil
}

// attach mounts a tree at its place in the root, which is made, and noted as
// such, if the container never ran.
func (c *Container) attach(ctx context.Context, root *os.File, b Bind, tree *os.File, write bool) error {
	if err := c.fill(ctx, root, b); err != nil {
		return err
	}
	at, err := openIn(root, b.Target, unix.O_PATH)
	if errors.Is(err, fs.ErrNotExist) && write {
		if at, err = c.makePlace(root, b, tree); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	defer at.Close()
	const empty = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	return os.NewSyscallError("move_mount", unix.MoveMount(int(tree.Fd()), "", int(at.Fd()), "", empty))
}

// makePlace makes the mount point of a tree.
func (c *Container) makePlace(root *os.File, b Bind, tree *os.File) (*os.File, error) {
	fi, err := tree.Stat()
	if err != nil {
		return nil, err
	}
	st, err := c.State() // nobody else's: the lock is held where the root can be written
	if err != nil {
		return nil, err
	}
	clean := path.Clean("/" + b.Target)
	for p := clean; p != "/"; p = path.Dir(p) {
		f, err := openIn(root, p, unix.O_PATH)
		if err == nil {
			_ = f.Close()
			break
		}
		st.Stubs = append(st.Stubs, p)
	}
	if err := c.setState(st); err != nil {
		return nil, err
	}
	if fi.IsDir() {
		err = makeDir(root, clean)
	} else if err = makeDir(root, path.Dir(clean)); err == nil {
		var dir *os.File
		if dir, err = openIn(root, path.Dir(clean), unix.O_PATH|unix.O_DIRECTORY); err == nil {
			err = unix.Mknodat(int(dir.Fd()), path.Base(clean), unix.S_IFREG|0o644, 0)
			_ = dir.Close()
		}
	}
	if err != nil {
		return nil, err
	}
	return openIn(root, clean, unix.O_PATH)
}

// depth orders mounts: outer ones come before those inside them.
func depth(target string) int { return strings.Count(path.Clean(target), "/") }
