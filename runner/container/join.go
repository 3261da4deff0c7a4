package container

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"kiln.build/runner/overlay"
	"kiln.build/runner/sandbox"
)

// join has the sandbox share namespaces with other containers, which run.
func (r *run) join() error {
	if r.c.PIDOf != "" {
		ns, _, err := r.namespaceOf(r.c.PIDOf, "PID", "pid")
		if err != nil {
			return err
		}
		r.spec.PID.Join = ns
	}
	if r.c.IPCOf == "" {
		return nil
	}
	ns, pid, err := r.namespaceOf(r.c.IPCOf, "IPC", "ipc")
	if err != nil {
		return err
	}
	r.spec.IPC.Join = ns
	// POSIX shared memory is files.
	shm, err := sharedMemory(pid)
	if err != nil {
		return fmt.Errorf("shared memory of container %s: %w", r.c.IPCOf, err)
	}
	r.onClose(shm.Close)
	r.spec.Mounts = append(r.spec.Mounts, sandbox.Mount{Target: "/dev/shm", FD: shm, NoSuid: true, NoDev: true, NoExec: true})
	return nil
}

// namespaceOf opens a namespace of another container's command.
func (r *run) namespaceOf(id, what, name string) (ns *os.File, pid int, err error) {
	other, err := r.c.set().Open(id)
	if err != nil {
		return nil, 0, err
	}
	st, err := other.State()
	if err != nil {
		return nil, 0, err
	}
	if st.Status != Running && st.Status != Paused {
		return nil, 0, fmt.Errorf("cannot join %s namespace of a non running container: container %s is %s", what, other.Name, st.Status)
	}
	if name == "ipc" && !other.SharesIPC {
		return nil, 0, fmt.Errorf("container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", other.ID)
	}
	ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/%s", st.PID, name))
	if err != nil {
		return nil, 0, fmt.Errorf("join the %s namespace of container %s: %w", what, other.Name, err)
	}
	r.onClose(ns.Close)
	if still, err := other.still(st); !still {
		// Else it may be the machine's own.
		return nil, 0, errors.Join(fmt.Errorf("cannot join %s namespace of a non running container: container %s has ended", what, other.Name), err)
	}
	return ns, st.PID, nil
}

// sharedMemory clones the mount of /dev/shm that a process sees. Only who is in
// its mount namespace may, so a thread goes there, and does not come back.
func sharedMemory(pid int) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return overlay.Aside(func() (*os.File, error) {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return nil, err
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, "/dev/shm", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), "/dev/shm"), nil
	})
}
