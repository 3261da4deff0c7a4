// Command do is the only program in the root file systems of the tests. Each
// argument is a line: a name and what it works on.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	for _, line := range os.Args[1:] {
		f := strings.Fields(line)
		if err := do(f[0], f[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func do(name string, args []string) error {
	switch name {
	case "echo":
		fmt.Println(strings.Join(args, " "))
	case "warn":
		fmt.Fprintln(os.Stderr, strings.Join(args, " "))
	case "exit":
		n, _ := strconv.Atoi(args[0])
		os.Exit(n)
	case "env":
		env := os.Environ()
		slices.Sort(env)
		fmt.Println(strings.Join(env, "\n"))
	case "id":
		groups, err := os.Getgroups()
		fmt.Println(os.Getuid(), os.Getgid(), groups)
		return err
	case "pwd":
		d, err := os.Getwd()
		fmt.Println(d)
		return err
	case "hostname":
		h, err := os.Hostname()
		fmt.Println(h)
		return err
	case "stdin":
		n, err := io.Copy(os.Stdout, os.Stdin)
		fmt.Println(n)
		return err
	case "links":
		all, err := net.Interfaces()
		for _, i := range all {
			fmt.Println(i.Name)
		}
		return err
	case "cat":
		b, err := os.ReadFile(args[0])
		os.Stdout.Write(b)
		return err
	case "ls":
		entries, err := os.ReadDir(args[0])
		for _, e := range entries {
			fmt.Println(e.Name())
		}
		return err
	case "stat":
		var st unix.Stat_t
		if err := unix.Lstat(args[0], &st); err != nil {
			return err
		}
		fmt.Printf("%o %d:%d %d\n", st.Mode, st.Uid, st.Gid, st.Size)
	case "write":
		return os.WriteFile(args[0], []byte(args[1]), 0o644)
	case "append":
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(args[1])
		return err
	case "mkdir":
		return os.MkdirAll(args[0], 0o755)
	case "rm":
		return os.RemoveAll(args[0])
	case "chmod":
		n, _ := strconv.ParseUint(args[1], 8, 32)
		return unix.Chmod(args[0], uint32(n))
	case "dial":
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		return c.Close()
	case "mv":
		return os.Rename(args[0], args[1])
	case "see": // adds to a file what a line prints, and why it fails
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		out := os.Stdout
		os.Stdout = f
		err = do(args[1], args[2:])
		os.Stdout = out
		fmt.Fprintln(f, err)
	case "readlink":
		to, err := os.Readlink(args[0])
		fmt.Println(to)
		return err
	case "await": // another process makes the file
		for {
			if _, err := os.Stat(args[0]); err == nil {
				return nil
			}
			time.Sleep(time.Millisecond)
		}
	case "sleep":
		time.Sleep(time.Hour)
	case "spawn": // what goes on in the background
		c := exec.Command("/proc/self/exe", strings.Join(args, " "))
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return c.Start()
	default:
		return fmt.Errorf("%s is not known", name)
	}
	return nil
}
