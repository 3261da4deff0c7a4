//go:debug containermaxprocs=0

// Command box is the only program in the root file systems of the tests: a
// few probes, each of which prints what it finds.
// The Go runtime would keep the file with its group's CPU limit open, and the
// tests look at descriptors.
package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	args := os.Args[1:]
	if base := filepath.Base(os.Args[0]); base != "box" {
		args = append([]string{base}, args...)
	}
	if len(args) == 0 {
		return
	}
	if err := run(args[0], args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(name string, args []string) error {
	switch name {
	case "true":
	case "exit":
		n, _ := strconv.Atoi(args[0])
		os.Exit(n)
	case "echo":
		fmt.Println(strings.Join(args, " "))
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "cat":
		for _, a := range args {
			b, err := os.ReadFile(a)
			if err != nil {
				return err
			}
			os.Stdout.Write(b)
		}
	case "copy":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "write":
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(args[1])
		return err
	case "ls":
		for _, a := range args {
			entries, err := os.ReadDir(a)
			if err != nil {
				return err
			}
			for _, e := range entries {
				fmt.Println(e.Name())
			}
		}
	case "links":
		for _, a := range args {
			entries, err := os.ReadDir(a)
			if err != nil {
				return err
			}
			for _, e := range entries {
				l, _ := os.Readlink(filepath.Join(a, e.Name()))
				fmt.Println(e.Name(), l)
			}
		}
	case "id":
		groups, _ := os.Getgroups()
		sort.Ints(groups)
		fmt.Println(os.Getuid(), os.Getgid(), groups)
	case "pid":
		fmt.Println(os.Getpid())
	case "pwd":
		d, err := os.Getwd()
		fmt.Println(d)
		return err
	case "hostname":
		h, err := os.Hostname()
		fmt.Println(h)
		return err
	case "umask":
		fmt.Printf("%04o\n", syscall.Umask(0))
	case "sleep":
		n, _ := strconv.ParseFloat(args[0], 64)
		time.Sleep(time.Duration(n * float64(time.Second)))
	default:
		return attack(name, args)
	}
	return nil
}

// daemon starts this program again in a session of its own.
func daemon(args ...string) error {
	c := exec.Command("/proc/self/exe", args...)
	c.Args[0] = "box"
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	return c.Start()
}
