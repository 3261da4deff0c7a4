package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cause is the innermost reason of an error.
func cause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// env prints the environment or runs a command in a changed one: -i, -u NAME,
// -C DIR, NAME=VALUE.
func env(args []string) error {
	o, err := parse(args, "+iu:C:0 ignore-environment=i unset=u chdir=C null=0")
	if err != nil {
		return err
	}
	vars := os.Environ()
	if o.has('i') {
		vars = nil
	}
	drop := func(name string) {
		vars = slices.DeleteFunc(vars, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	}
	for _, name := range o.values['u'] {
		drop(name)
	}
	for len(o.args) > 0 && strings.Contains(o.args[0], "=") {
		name, _, _ := strings.Cut(o.args[0], "=")
		drop(name)
		vars, o.args = append(vars, o.args[0]), o.args[1:]
	}
	if len(o.args) == 0 {
		end := "\n"
		if o.has('0') {
			end = "\x00"
		}
		for _, v := range vars {
			fmt.Print(v, end)
		}
		return nil
	}
	for _, v := range vars {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			os.Setenv("PATH", path)
		}
	}
	path, err := exec.LookPath(o.args[0])
	if err != nil {
		complain("env", fmt.Errorf("%s: %w", o.args[0], cause(err)))
		return exit(127)
	}
	if o.has('C') {
		if err := os.Chdir(o.value('C', "")); err != nil {
			return err
		}
	}
	err = syscall.Exec(path, o.args, vars)
	complain("env", fmt.Errorf("%s: %w", o.args[0], err))
	return exit(126)
}

// printenv prints variables of the environment.
func printenv(args []string) error {
	if len(args) == 0 {
		return env(nil)
	}
	var result error
	for _, name := range args {
		v, ok := os.LookupEnv(name)
		if !ok {
			result = exit(1)
			continue
		}
		fmt.Println(v)
	}
	return result
}

// sleep waits: NUMBER[smhd]...
func sleep(args []string) error {
	var total time.Duration
	for _, a := range args {
		unit := time.Second
		if i := strings.IndexByte("smhd", a[max(0, len(a)-1)]); a != "" && i >= 0 {
			unit = []time.Duration{time.Second, time.Minute, time.Hour, 24 * time.Hour}[i]
			a = a[:len(a)-1]
		}
		n, err := strconv.ParseFloat(a, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("time %q: must be a number, with s, m, h or d", a)
		}
		total += time.Duration(n * float64(unit))
	}
	if len(args) == 0 {
		return errors.New("need a time")
	}
	time.Sleep(total)
	return nil
}

// id prints who one is: -u, -g, -G, -n, [USER].
func id(args []string) error {
	o, err := parse(args, "ugGnr user=u group=g groups=G name=n real=r")
	if err != nil {
		return err
	}
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	if len(o.args) > 0 {
		u, err := user.Lookup(o.args[0])
		if err != nil {
			return fmt.Errorf("no user %q", o.args[0])
		}
		var ids []string
		if ids, err = u.GroupIds(); err != nil {
			return err
		}
		n, _ := strconv.Atoi(u.Uid)
		g, _ := strconv.Atoi(u.Gid)
		uid, gid, groups = uint32(n), uint32(g), nil
		for _, s := range ids {
			g, _ := strconv.Atoi(s)
			groups = append(groups, g)
		}
	}
	groups = append([]int{int(gid)}, slices.DeleteFunc(groups, func(g int) bool { return g == int(gid) })...)
	show := func(n uint32, name func(uint32) string) string {
		if o.has('n') {
			return name(n)
		}
		return strconv.Itoa(int(n))
	}
	var list []string
	switch o.last("ugG") {
	case 'u':
		fmt.Println(show(uid, userName))
		return nil
	case 'g':
		fmt.Println(show(gid, groupName))
		return nil
	case 'G':
		for _, g := range groups {
			list = append(list, show(uint32(g), groupName))
		}
		fmt.Println(strings.Join(list, " "))
		return nil
	}
	named := func(n uint32, name func(uint32) string) string {
		if s := name(n); s != strconv.Itoa(int(n)) {
			return fmt.Sprintf("%d(%s)", n, s)
		}
		return strconv.Itoa(int(n))
	}
	for _, g := range groups {
		list = append(list, named(uint32(g), groupName))
	}
	_, err = fmt.Printf("uid=%s gid=%s groups=%s\n", named(uid, userName), named(gid, groupName), strings.Join(list, ","))
	return err
}

func whoami([]string) error {
	_, err := fmt.Println(userName(uint32(os.Geteuid())))
	return err
}

// uname prints what the system is: -s, -n, -r, -v, -m, -o, -a.
func uname(args []string) error {
	o, err := parse(args, "asnrvmpio all=a kernel-name=s nodename=n kernel-release=r kernel-version=v machine=m operating-system=o")
	if err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	var parts []string
	for _, p := range []struct {
		letter byte
		value  string
	}{
		{'s', unix.ByteSliceToString(u.Sysname[:])}, {'n', unix.ByteSliceToString(u.Nodename[:])},
		{'r', unix.ByteSliceToString(u.Release[:])}, {'v', unix.ByteSliceToString(u.Version[:])},
		{'m', unix.ByteSliceToString(u.Machine[:])}, {'o', "GNU/Linux"},
	} {
		if o.has(p.letter) || o.has('a') || p.letter == 's' && len(o.order) == 0 {
			parts = append(parts, p.value)
		}
	}
	_, err = fmt.Println(strings.Join(parts, " "))
	return err
}

func hostname(args []string) error {
	if len(args) > 0 {
		return unix.Sethostname([]byte(args[0]))
	}
	name, err := os.Hostname()
	if err == nil {
		_, err = fmt.Println(name)
	}
	return err
}

func nproc([]string) error {
	_, err := fmt.Println(runtime.NumCPU())
	return err
}

// syncCmd writes all that is cached, or the named files, to disk.
func syncCmd(args []string) error {
	if len(args) == 0 {
		unix.Sync()
		return nil
	}
	return each("sync", args, func(name string) error {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	})
}

// signalNumber is the number of a signal's name, with or without SIG, or of
// its number; 0 if there is none.
func signalNumber(name string) syscall.Signal {
	if n, err := strconv.Atoi(name); err == nil {
		return syscall.Signal(n)
	}
	return unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
}

// kill sends a signal: -SIGNAL, -s SIGNAL, -l.
func kill(args []string) error {
	signal := syscall.SIGTERM
	if len(args) > 0 && strings.HasPrefix(args[0], "-") {
		name := args[0][1:]
		switch args = args[1:]; {
		case name == "l":
			for n := 1; n < 32; n++ {
				fmt.Println(n, strings.TrimPrefix(unix.SignalName(syscall.Signal(n)), "SIG"))
			}
			return nil
		case name == "s" && len(args) > 0:
			name, args = args[0], args[1:]
		}
		if signal = signalNumber(name); signal == 0 && name != "0" {
			return fmt.Errorf("unknown signal %q", name)
		}
	}
	if len(args) == 0 {
		return errors.New("need a process")
	}
	return each("kill", args, func(text string) error {
		pid, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("process %q: must be a number", text)
		}
		if err := syscall.Kill(pid, signal); err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
		return nil
	})
}

// ps lists all processes, whatever it is asked for.
func ps([]string) error {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return err
	}
	type process struct {
		pid  int
		line string
	}
	var all []process
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		text := string(data)
		closing := strings.LastIndexByte(text, ')') // the name may hold anything
		opening := strings.IndexByte(text, '(')
		if opening < 0 || closing < opening {
			continue
		}
		fields := strings.Fields(text[closing+1:])
		dir := filepath.Dir(path)
		name := "[" + text[opening+1:closing] + "]"
		if cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && len(cmdline) > 0 {
			name = strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " ")
		}
		uid := uint32(0)
		if fi, err := os.Stat(dir); err == nil {
			uid = fi.Sys().(*syscall.Stat_t).Uid
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		all = append(all, process{pid, fmt.Sprintf("%5d %-8s %s %5s %s", pid, userName(uid), fields[0], fields[1], name)})
	}
	slices.SortFunc(all, func(a, b process) int { return a.pid - b.pid })
	fmt.Println("  PID USER     S  PPID COMMAND")
	for _, p := range all {
		fmt.Println(p.line)
	}
	return nil
}

// df shows how full file systems are, in KiB: [-k|-h] [PATH...].
func df(args []string) error {
	o, err := parse(args, "kPh human-readable=h portability=P")
	if err != nil {
		return err
	}
	if len(o.args) == 0 {
		o.args = []string{"/"}
	}
	fmt.Printf("%12s %12s %12s %4s %s\n", "Total", "Used", "Available", "Use%", "Path")
	return each("df", o.args, func(path string) error {
		var s unix.Statfs_t
		if err := unix.Statfs(path, &s); err != nil {
			return &fs.PathError{Op: "statfs", Path: path, Err: err}
		}
		unit := uint64(s.Bsize)
		total, free, available := s.Blocks*unit, s.Bfree*unit, s.Bavail*unit
		percent := uint64(0)
		if used := total - free; used+available > 0 {
			percent = (used*100 + used + available - 1) / (used + available)
		}
		show := func(n uint64) string { return amount(int64(n), o.has('h')) }
		_, err := fmt.Printf("%12s %12s %12s %3d%% %s\n", show(total), show(total-free), show(available), percent, path)
		return err
	})
}

// amount is a number of bytes in KiB, or in a readable unit.
func amount(n int64, human bool) string {
	if !human {
		return strconv.FormatInt((n+1023)/1024, 10)
	}
	units := "BKMGTP"
	f := float64(n)
	for f >= 1024 && len(units) > 1 {
		f, units = f/1024, units[1:]
	}
	if units[0] == 'B' {
		return strconv.FormatInt(n, 10)
	}
	return fmt.Sprintf("%.1f%c", f, units[0])
}

// du adds up the blocks of files, in KiB: -s, -a, -h, -k, -b (sizes in bytes).
func du(args []string) error {
	o, err := parse(args, "sahkbx summarize=s all=a human-readable=h bytes=b")
	if err != nil {
		return err
	}
	if len(o.args) == 0 {
		o.args = []string{"."}
	}
	seen := map[[2]uint64]bool{}
	show := func(n int64, path string) {
		if o.has('b') {
			fmt.Printf("%d\t%s\n", n, path)
			return
		}
		fmt.Printf("%s\t%s\n", amount(n, o.has('h')), path)
	}
	var sum func(path string, top bool) (int64, error)
	sum = func(path string, top bool) (int64, error) {
		fi, err := os.Lstat(path)
		if err != nil {
			return 0, err
		}
		st := fi.Sys().(*syscall.Stat_t)
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if !fi.IsDir() && st.Nlink > 1 && seen[key] {
			return 0, nil
		}
		seen[key] = true
		n := st.Blocks * 512
		if o.has('b') {
			n = st.Size
		}
		if fi.IsDir() {
			entries, err := os.ReadDir(path)
			if err != nil {
				return 0, err
			}
			for _, e := range entries {
				m, err := sum(strings.TrimSuffix(path, "/")+"/"+e.Name(), false)
				if err != nil {
					return 0, err
				}
				n += m
			}
		}
		if top || !o.has('s') && (fi.IsDir() || o.has('a')) {
			show(n, path)
		}
		return n, nil
	}
	return each("du", o.args, func(path string) error { _, err := sum(path, true); return err })
}

// follow prints what is added to a file, for ever.
func follow(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	for {
		n, err := io.Copy(os.Stdout, f)
		if err != nil {
			return err
		}
		if n == 0 {
			time.Sleep(200 * time.Millisecond)
		}
	}
}
