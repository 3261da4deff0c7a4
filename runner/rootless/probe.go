package rootless

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts is what a machine offers for running sandboxes, as seen by this
// process.
type Facts struct {
	Kernel  string
	Arch    string
	Mode    Mode
	Overlay string // "trusted", "userxattr" or "" where it cannot be mounted
	Cgroups string // "v1", "v2", "hybrid" or "none"
	// CgroupsWritable says whether groups can be made: without, limits are
	// refused, and pausing.
	CgroupsWritable bool
	Seccomp         bool
	Fuse            bool // /dev/fuse can be opened
	Problems        []Problem
}

// Problem is something that is missing, and how to get it.
type Problem struct {
	What string // what does not work
	Fix  string // a command or a setting; may be empty
}

// Probe looks. Whether overlay mounts work is tried in dir, which should be
// on the file system of the store. Call it after Enter: an ordinary user
// without a namespace can do nothing.
func Probe(dir string) Facts {
	f := Facts{Arch: runtime.GOARCH, Mode: Current()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	problem := func(what, fix string) { f.Problems = append(f.Problems, Problem{what, fix}) }
	switch f.Mode {
	case None:
		problem("no namespaces: commands cannot be run", "see the error of Enter")
	case Single:
		_, _, why := ranges()
		problem("one id only: chown to another user fails in builds", why)
	}
	if !atLeast(f.Kernel, 5, 12) {
		problem("kernel "+f.Kernel+" lacks mount_setattr: commands cannot be run", "use Linux 5.12 or later")
	}
	f.probeOverlay(dir, problem)
	f.probeCgroups(problem)
	_, err := os.Stat("/proc/sys/kernel/seccomp")
	f.Seccomp = err == nil
	if !f.Seccomp {
		problem("the kernel has no seccomp filters", "use a kernel with CONFIG_SECCOMP_FILTER, or --security-opt seccomp=unconfined")
	}
	if fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		f.Fuse = true
		unix.Close(fd)
	}
	return f
}

// probeOverlay mounts one, attached nowhere.
func (f *Facts) probeOverlay(dir string, problem func(what, fix string)) {
	if f.Mode == None {
		return
	}
	option := ""
	f.Overlay = "trusted"
	if f.Mode != Root {
		// Without it a mount works but removing a lower directory does not.
		option, f.Overlay = "userxattr", "userxattr"
	}
	if err := tryOverlay(dir, option); err != nil {
		f.Overlay = ""
		fix := "modprobe overlay"
		if f.Mode != Root && !atLeast(f.Kernel, 5, 11) {
			fix = "use Linux 5.11 or later, or run kiln as root"
		}
		problem(fmt.Sprintf("overlay mounts do not work in %s: %v", dir, err), fix)
	}
}

func tryOverlay(dir, option string) error {
	tmp, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, d := range [][2]string{{"lowerdir", "lower"}, {"upperdir", "upper"}, {"workdir", "work"}} {
		path := filepath.Join(tmp, d[1])
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := unix.FsconfigSetString(fd, d[0], path); err != nil {
			return err
		}
	}
	if option != "" {
		if err := unix.FsconfigSetFlag(fd, option); err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return err
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(m)
}

func (f *Facts) probeCgroups(problem func(what, fix string)) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	v1 := strings.Contains(string(mounts), " - cgroup ")
	v2 := strings.Contains(string(mounts), " - cgroup2 ")
	switch {
	case v1 && v2:
		f.Cgroups = "hybrid"
	case v1:
		f.Cgroups = "v1"
	case v2:
		f.Cgroups = "v2"
	default:
		f.Cgroups = "none"
		problem("no control groups: limits and pausing are refused", "mount -t cgroup2 none /sys/fs/cgroup")
		return
	}
	for line := range strings.Lines(string(mounts)) {
		left, right, _ := strings.Cut(line, " - ")
		fields := strings.Fields(left)
		if !strings.HasPrefix(right, "cgroup") || len(fields) < 5 {
			continue
		}
		// Any hierarchy in which we may make a group will do.
		own := filepath.Join(fields[4], ownGroup(right))
		if unix.Access(own, unix.W_OK) == nil {
			f.CgroupsWritable = true
			return
		}
	}
	problem("control groups cannot be made by this user: limits and pausing are refused",
		"run kiln in a delegated group: systemd-run --user --scope -p Delegate=yes kiln …")
}

// ownGroup returns this process's group in the hierarchy that the right half
// of a mountinfo line describes.
func ownGroup(right string) string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "/"
	}
	f := strings.Fields(right)
	for line := range strings.Lines(string(b)) {
		p := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(p) != 3 {
			continue
		}
		if f[0] == "cgroup2" && p[1] == "" || f[0] == "cgroup" && p[1] != "" && strings.HasSuffix(f[len(f)-1], p[1]) {
			return p[2]
		}
	}
	return "/"
}

// atLeast compares a release such as "6.18.44-fc".
func atLeast(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n < 2 {
		return true // no release we know of looks like that
	}
	return a > major || a == major && b >= minor
}
