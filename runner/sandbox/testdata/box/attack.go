package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attack tries what a sandbox has to refuse, and returns the error.
func attack(name string, args []string) error {
	switch name {
	case "mountas":
		return unix.Mount("none", args[1], args[0], 0, args[2])
	case "bind":
		return unix.Mount(args[0], args[1], "", unix.MS_BIND, "")
	case "call": // a system call by its number, all arguments 0
		nr, _ := strconv.Atoi(args[0])
		if _, _, e := unix.Syscall6(uintptr(nr), 0, 0, 0, 0, 0, 0); e != 0 {
			return e
		}
	case "chroot": // out of a changed root, by a descriptor that was open before
		if err := os.MkdirAll("/tmp/jail", 0o755); err != nil {
			return err
		}
		top, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		if err := unix.Chroot("/tmp/jail"); err != nil {
			return err
		}
		if err := unix.Fchdir(top); err != nil {
			return err
		}
		for range 20 {
			if err := unix.Chdir(".."); err != nil {
				return err
			}
		}
		if err := unix.Chroot("."); err != nil {
			return err
		}
		return unix.Exec("/bin/box", []string{"box", "ls", "/"}, nil)
	case "killall":
		return unix.Kill(-1, unix.SIGKILL)
	case "hunt": // for every process there may be
		for pid := 2; pid < 70000; pid++ { // process 1 is one's own, and would stop
			if _, err := os.Stat("/proc/self/task/" + strconv.Itoa(pid)); err == nil {
				continue // a thread of its own
			}
			_ = unix.Kill(pid, unix.SIGKILL)
			if unix.PtraceAttach(pid) == nil {
				fmt.Println("traced", pid)
			}
			if f, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/mem", os.O_RDWR, 0); err == nil {
				f.Close()
				fmt.Println("opened the memory of", pid)
			}
		}
	case "bombs": // as many processes as there can be, for ever
		for {
			if pid, err := syscall.ForkExec("/bin/box", []string{"box", "bombs"}, &syscall.ProcAttr{}); err != nil || pid == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	case "install": // itself, setuid and setgid
		b, err := os.ReadFile("/bin/box")
		if err == nil {
			err = os.WriteFile(args[0], b, 0o755)
		}
		if err == nil {
			err = os.Chmod(args[0], 0o755|os.ModeSetuid|os.ModeSetgid)
		}
		return err
	case "exec":
		return unix.Exec(args[0], append([]string{"box"}, args[1:]...), nil)
	case "mount":
		return unix.Mount("none", args[0], "tmpfs", 0, "")
	case "remount":
		return unix.Mount("", args[0], "", unix.MS_REMOUNT|unix.MS_BIND, "")
	case "umount":
		return unix.Unmount(args[0], unix.MNT_DETACH)
	case "mknod":
		major, _ := strconv.Atoi(args[1])
		minor, _ := strconv.Atoi(args[2])
		return unix.Mknod(args[0], unix.S_IFBLK|0o666, int(unix.Mkdev(uint32(major), uint32(minor))))
	case "mkchr":
		major, _ := strconv.Atoi(args[1])
		minor, _ := strconv.Atoi(args[2])
		return unix.Mknod(args[0], unix.S_IFCHR|0o666, int(unix.Mkdev(uint32(major), uint32(minor))))
	case "open":
		f, err := os.OpenFile(args[0], os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	case "chmod":
		return os.Chmod(args[0], 0)
	case "mark": // as sticky, which harms nobody
		fi, err := os.Stat(args[0])
		if err != nil {
			return err
		}
		return os.Chmod(args[0], fi.Mode()|os.ModeSticky)
	case "emulator": // the program that the kernel runs for another, which is open elsewhere
		pid, err := syscall.ForkExec("sleep", []string{"1000"}, &syscall.ProcAttr{Dir: "/"})
		if err != nil {
			return err
		}
		exe := fmt.Sprintf("/proc/%d/exe", pid)
		if os.Chmod(exe, 0o755|os.ModeSetuid) == nil {
			fmt.Println("made it setuid")
		}
		if unix.Setxattr(exe, "user.owned", []byte("x"), 0) == nil {
			fmt.Println("marked it")
		}
		if os.Truncate(exe, 0) == nil {
			fmt.Println("emptied it")
		}
		if f, err := os.OpenFile(exe, os.O_WRONLY, 0); err == nil {
			f.Close()
			fmt.Println("opened it")
		}
	case "ptrace":
		pid, _ := strconv.Atoi(args[0])
		return unix.PtraceAttach(pid)
	case "kill":
		pid, _ := strconv.Atoi(args[0])
		return unix.Kill(pid, unix.SIGKILL)
	case "unshare":
		return unix.Unshare(unix.CLONE_NEWUSER)
	case "unsharens":
		return unix.Unshare(unix.CLONE_NEWNS)
	case "sethostname":
		return unix.Sethostname([]byte("owned"))
	case "reboot":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	case "swapoff":
		_, _, e := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(&[]byte("x\x00")[0])), 0, 0)
		if e != 0 {
			return e
		}
	case "bpf":
		_, _, e := unix.Syscall(unix.SYS_BPF, 0, 0, 0)
		if e != 0 {
			return e
		}
	case "keys":
		// The keys that the session keyring shows, by reading its serials.
		id, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
		if err != nil {
			return err
		}
		buf := make([]byte, 256)
		n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, buf, 0)
		fmt.Println(n / 4)
		return err
	case "caps":
		b, err := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") || strings.HasPrefix(line, "Seccomp:") {
				fmt.Print(line)
			}
		}
		return err
	case "daemons":
		n, _ := strconv.Atoi(args[0])
		for range n {
			if err := daemon("sleep", "1000"); err != nil {
				return err
			}
		}
		fmt.Println("started")
	case "bomb":
		// Children until the kernel refuses one.
		for i := range 10000 {
			if err := daemon("sleep", "1000"); err != nil {
				fmt.Println(i)
				return nil
			}
		}
		fmt.Println(10000)
	case "eat":
		n, _ := strconv.Atoi(args[0])
		var all [][]byte
		for range n {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
		}
		fmt.Println(len(all))
	case "orphan":
		// A grandchild whose parent ends at once.
		if err := daemon("true"); err != nil {
			return err
		}
		time.Sleep(time.Duration(len(args)) * time.Millisecond)
	case "zombies":
		for i := 2; i < 100; i++ {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", i))
			if err == nil && strings.Contains(string(b), ") Z ") {
				fmt.Println(i)
			}
		}
	case "size":
		ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			return err
		}
		fmt.Println(ws.Row, ws.Col)
	case "tty":
		l, err := os.Readlink("/proc/self/fd/0")
		if err != nil {
			return err
		}
		f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		fmt.Println(l)
		return f.Close()
	case "stat":
		var st unix.Stat_t
		if err := unix.Lstat(args[0], &st); err != nil {
			return err
		}
		fmt.Printf("%o %d:%d %d:%d\n", st.Mode, st.Uid, st.Gid, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case "limit":
		n, _ := strconv.Atoi(args[0])
		var r syscall.Rlimit
		if err := syscall.Getrlimit(n, &r); err != nil {
			return err
		}
		fmt.Println(r.Cur, r.Max)
	default:
		return fmt.Errorf("box: unknown probe %q", name)
	}
	return nil
}
