// Package rootless lets users other than root run sandboxes: [Enter] executes
// the program again as root of a user namespace, [Current] tells which kind
// of namespace that is, and [Probe] lists what a machine offers, for people.
//
// It knows nothing of sandboxes: inside of the namespace they work as they
// do for root.
package rootless

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mode is how a process came to its rights.
type Mode string

// The modes, from most to least that works.
const (
	// Root is root of the machine, or of a container that it started in.
	Root Mode = "root"
	// Range is a user namespace with a range of subordinate ids.
	Range Mode = "user namespace with a range of ids"
	// Single is a user namespace with one id: what is owned by another user
	// cannot be made, so chown, and package managers that use it, fail.
	Single Mode = "user namespace with one id"
	// None is an ordinary user.
	None Mode = "no namespace"
)

// Current returns this process's mode.
func Current() Mode {
	if os.Geteuid() != 0 {
		return None
	}
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return Root
	}
	return modeOf(string(b), os.Getenv(entered) != "")
}

// entered is set in the environment of what Enter executes. The map alone
// cannot tell: a root user's container may look the same.
const entered = "KILN_USER_NAMESPACE"

func modeOf(uidMap string, entered bool) Mode {
	if !entered {
		return Root
	}
	var ids int64
	for line := range strings.Lines(uidMap) {
		if f := strings.Fields(line); len(f) == 3 {
			n, _ := strconv.ParseInt(f[2], 10, 64) // the kernel's own number
			ids += n
		}
	}
	if ids > 1 {
		return Range
	}
	return Single
}

// Enter makes the calling program root of a user and mount namespace where
// it is not root: it executes the program again in there, passes signals on,
// and exits with its exit status. It returns where there is nothing to do,
// and with an error that says what to do where the machine refuses. It has to
// be called before the program has done anything else, but after
// sandbox.MaybeInit.
func Enter() (Mode, error) {
	if mode := Current(); mode != None {
		return mode, nil
	}
	c, err := newChild()
	if err != nil {
		return None, err
	}
	if err := c.start(); err != nil {
		return None, err
	}
	os.Exit(c.run())
	panic("unreachable")
}

// idRange is a line of /etc/subuid or /etc/subgid.
type idRange struct{ start, count int64 }

// subordinate reads the ranges of a user, by name or number.
func subordinate(file, name string, uid int) []idRange {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var ranges []idRange
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || f[0] != name && f[0] != strconv.Itoa(uid) {
			continue
		}
		start, err1 := strconv.ParseInt(f[1], 10, 64)
		count, err2 := strconv.ParseInt(f[2], 10, 64)
		if err1 == nil && err2 == nil && count > 0 {
			ranges = append(ranges, idRange{start, count})
		}
	}
	return ranges
}

// ranges returns the subordinate ids of this user, and why there are none.
func ranges() (uids, gids []idRange, why string) {
	uid := os.Getuid()
	name := strconv.Itoa(uid)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	for _, p := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(p); err != nil {
			return nil, nil, p + " is not installed: apt-get install uidmap"
		}
	}
	uids, gids = subordinate("/etc/subuid", name, uid), subordinate("/etc/subgid", name, uid)
	if len(uids) == 0 || len(gids) == 0 {
		return nil, nil, fmt.Sprintf("%s has no subordinate ids: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s", name, name)
	}
	return uids, gids, ""
}

// mapIDs maps the ids of the child, by the helpers where there are ranges
// and else this user's alone.
func mapIDs(pid int) error {
	uids, gids, _ := ranges()
	if len(uids) > 0 {
		err := errors.Join(
			runMapper("newuidmap", pid, os.Getuid(), uids),
			runMapper("newgidmap", pid, os.Getgid(), gids),
		)
		if err != nil {
			return err
		}
		return nil
	}
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	for _, f := range []struct{ name, text string }{
		// Without it a process could drop a group by which it is refused
		// access (CVE-2014-8989), so the kernel asks for it.
		{"setgroups", "deny"},
		{"uid_map", fmt.Sprintf("0 %d 1", os.Getuid())},
		{"gid_map", fmt.Sprintf("0 %d 1", os.Getgid())},
	} {
		if err := os.WriteFile(dir+f.name, []byte(f.text), 0); err != nil {
			return fmt.Errorf("map ids: %w", err)
		}
	}
	return nil
}

func runMapper(program string, pid, id int, ranges []idRange) error {
	args := []string{strconv.Itoa(pid), "0", strconv.Itoa(id), "1"}
	next := int64(1)
	for _, r := range ranges {
		args = append(args, strconv.FormatInt(next, 10), strconv.FormatInt(r.start, 10), strconv.FormatInt(r.count, 10))
		next += r.count
	}
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// explain adds to an error of making a namespace what to do about it.
func explain(step string, err error) error {
	fix := ""
	switch {
	case sysctl("kernel.unprivileged_userns_clone") == "0":
		fix = "sysctl -w kernel.unprivileged_userns_clone=1"
	case sysctl("user.max_user_namespaces") == "0" || errors.Is(err, unix.ENOSPC):
		fix = "sysctl -w user.max_user_namespaces=28633"
	case sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1":
		fix = "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that allows kiln userns"
	case errors.Is(err, unix.EINVAL):
		fix = "use a kernel with CONFIG_USER_NS"
	default:
		fix = "run kiln as root; in a container, allow it to make namespaces (docker run --security-opt seccomp=unconfined)"
	}
	return fmt.Errorf("%s: %w\nkiln needs namespaces to run commands in; to allow them: %s", step, err, fix)
}

// sysctl returns a kernel setting, or "" if the kernel has none such.
func sysctl(name string) string {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
