package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Enter moves the calling thread into the version 1 groups, until leave is
// called: what it clones meanwhile begins there. The goroutine has to be
// locked to its thread, which is not the process's first.
//
// This is [Group.Add1] without its price. To move a process the kernel waits
// for a grace period of RCU, 5 to 20 ms on an idle machine, as long as nobody
// has moved another one just before; a thread that moves itself, by writing 0
// to the file tasks, is spared that (cgroup_procs_write_start in
// kernel/cgroup/cgroup.c).
//
// After an error of Enter the thread is where it was, after one of leave it
// may not be.
func (g *Group) Enter() (leave func() error, err error) {
	dirs := g.dirs1()
	if len(dirs) == 0 {
		return func() error { return nil }, nil
	}
	own, err := ownTasks(dirs)
	if err != nil {
		return nil, fmt.Errorf("join control group: %w", err)
	}
	entered := own[:0:0]
	leave = func() error {
		var errs []error
		for _, f := range entered {
			_, err := f.WriteString("0")
			errs = append(errs, err)
		}
		for _, f := range own {
			_ = f.Close() // all has been written, or reported
		}
		return errors.Join(errs...)
	}
	for _, dir := range dirs {
		if err := write(dir, "tasks", "0"); err != nil {
			return nil, errors.Join(fmt.Errorf("join control group: %w", err), leave())
		}
		entered = append(entered, own[len(entered)])
	}
	return leave, nil
}

// ownTasks opens the files that lead this thread back from dirs.
func ownTasks(dirs []string) (files []*os.File, err error) {
	s, err := detectAs("/proc/thread-self/cgroup")
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		f, err := os.OpenFile(filepath.Join(s.of(dir), "tasks"), os.O_WRONLY, 0)
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// of returns this process's own group in the hierarchy of version 1 that dir
// is in.
func (s *System) of(dir string) string {
	for _, h := range s.V1 {
		if len(dir) > len(h.Mount) && dir[:len(h.Mount)] == h.Mount && dir[len(h.Mount)] == '/' {
			return h.Own
		}
	}
	return "" // a group of a hierarchy that is not mounted any more: no such file
}

// startPids is how many processes and threads a sandbox may have while it is
// started: its init has a few of its own.
const startPids = 32

// Tighten sets the limit on processes, which [System.Create] leaves at
// startPids where less is asked for. It is called once the command runs.
func (g *Group) Tighten() error {
	if g.pids == 0 {
		return nil
	}
	dir := g.V2
	if d := g.V1["pids"]; d != "" {
		dir = d
	}
	if err := write(dir, "pids.max", strconv.FormatInt(g.pids, 10)); err != nil {
		return fmt.Errorf("limit the processes of the control group: %w", err)
	}
	return nil
}
