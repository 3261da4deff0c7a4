package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process of a container, with numbers as this machine sees
// them.
type Process struct {
	PID, Parent, UID int
	TTY              int // number of its pseudo terminal, negative if none
	Started          time.Time
	CPU              time.Duration
	Memory           int64    // bytes in use
	Args             []string // in brackets if it has none any more
}

// Percent is the part of its life that it used a processor.
func (p Process) Percent() int {
	life := time.Since(p.Started)
	if life <= 0 {
		return 0
	}
	return int(100 * p.CPU / life)
}

// Processes lists the processes of the container, which runs, in the order in
// which they were started.
func (c *Container) Processes(ctx context.Context) ([]Process, error) {
	if _, _, err := c.May(Top); err != nil {
		return nil, err
	}
	var a answer
	err := c.ask(ctx, request{Do: doTop}, &a)
	if errors.Is(err, errEnded) {
		if _, _, refused := c.May(Top); refused != nil {
			err = refused
		}
	}
	return a.Processes, err
}

// processes lists those in the PID namespace of a container's command.
func processes(pid int) ([]Process, error) {
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return nil, fmt.Errorf("find the container's processes: %w", err)
	}
	boot, err := bootTime()
	if err != nil {
		return nil, err
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []Process
	for _, d := range dirs {
		n, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		if s, err := os.Readlink("/proc/" + d.Name() + "/ns/pid"); err != nil || s != space {
			continue
		}
		p, err := readProcess(n, boot)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	slices.SortStableFunc(all, func(a, b Process) int { return a.Started.Compare(b.Started) })
	return all, nil
}

// tick is the unit of times in /proc (USER_HZ, 100 on all architectures).
const tick = time.Second / 100

func readProcess(pid int, boot time.Time) (Process, error) {
	p := Process{PID: pid, TTY: -1}
	dir := "/proc/" + strconv.Itoa(pid)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return p, err
	}
	p.UID = int(st.Uid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return p, err
	}
	// PID (NAME) STATE PPID …; the name may hold anything.
	open, closing := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || closing < open {
		return p, fmt.Errorf("read %s/stat: not understood", dir)
	}
	f := strings.Fields(string(stat[closing+1:]))
	if len(f) < 20 {
		return p, fmt.Errorf("read %s/stat: not understood", dir)
	}
	number := func(i int) int64 {
		n, _ := strconv.ParseInt(f[i], 10, 64) // the kernel writes numbers
		return n
	}
	p.Parent = int(number(1))
	if tty := number(4); tty>>8&0xfff == 136 {
		p.TTY = int(tty&0xff | tty>>12&0xfff00)
	}
	p.CPU = time.Duration(number(11)+number(12)) * tick
	p.Started = boot.Add(time.Duration(number(19)) * tick)
	if len(f) > 21 {
		p.Memory = number(21) * int64(os.Getpagesize())
	}
	args, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return p, err
	}
	if len(args) == 0 {
		p.Args = []string{"[" + string(stat[open+1:closing]) + "]"}
		return p, nil
	}
	p.Args = strings.Split(strings.TrimSuffix(string(args), "\x00"), "\x00")
	return p, nil
}

func bootTime() (time.Time, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(data)) {
		if s, ok := strings.CutPrefix(line, "btime "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
			return time.Unix(n, 0), err
		}
	}
	return time.Time{}, errors.New("read /proc/stat: no btime")
}
