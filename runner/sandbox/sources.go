package sandbox

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox/launch"
)

// openSources clones the root and the bind mounts for an init in a user
// namespace of its own, which may not pass the directories that lead there, and
// makes the sysfs where the network is the machine's.
func (p *plan) openSources(hostNetwork bool) ([]*os.File, error) {
	var opened []*os.File
	open := func(path string, recursive bool) (int, error) {
		flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
		if recursive {
			flags |= unix.AT_RECURSIVE
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
		if err != nil {
			return -1, fmt.Errorf("clone mount %s: %w", path, err)
		}
		opened = append(opened, os.NewFile(uintptr(fd), path))
		return p.file(opened[len(opened)-1]), nil
	}
	var err error
	if p.Root < 0 {
		if p.Root, err = open(p.RootPath, true); err != nil {
			return opened, err
		}
	}
	for i := range p.Config.Mounts {
		m := &p.Config.Mounts[i]
		if m.Kind == "sysfs" && hostNetwork {
			f, err := openSysfs()
			if err != nil {
				return opened, err
			}
			if f != nil {
				opened = append(opened, f)
				m.Kind, m.FD = launch.KindFD, p.file(f)
			}
			continue
		}
		if m.Kind != launch.KindBind {
			continue
		}
		m.Kind = launch.KindFD
		if m.FD, err = open(m.Source, m.Recursive); err != nil {
			return opened, err
		}
	}
	return opened, nil
}

// openSysfs makes the sysfs of a sandbox that is in a user namespace of its own
// and in the machine's network namespace: its init may not, and would take the
// machine's own with all that is mounted in there, such as debugfs, which root
// may read where all ids are mapped. It returns nil where this process may not
// either.
func openSysfs() (*os.File, error) {
	fd, err := launch.NewMount("sysfs")
	if errors.Is(err, unix.EPERM) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mount sysfs: %w", err)
	}
	return os.NewFile(uintptr(fd), "sysfs"), nil
}
