// Command toolbox is a small Unix userland in one static binary: a POSIX
// shell and the commands that build steps need. Kiln's examples and tests use
// it as their base image, so that RUN works on a machine that has Go and
// nothing else.
//
// The shell is mvdan.cc/sh. The commands are written here, each with the
// options that scripts use and not more; an unknown option is an error, never
// ignored. There is no sed, awk or diff. (The commands of u-root that can be
// imported differ too much from POSIX to stand behind a RUN line: cp forgets
// failures and has no -a, mv does not cross layers of an overlay, chmod has no
// -R, gzip and ls succeed when they fail.)
//
//	toolbox --list            the names of all commands
//	toolbox --install DIR     links for all commands in DIR
//	toolbox --tar [BINARY]    a root file system on standard output
//	toolbox NAME [ARG...]     run a command; also by the name it is called by
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// An applet runs a command with the arguments after its name. A returned
// exit sets the status and prints nothing; any other error is printed and
// the status is 1.
type applet func(args []string) error

// exit is an exit status.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// applets is filled in by main and not where it is declared: env, find and
// the like run other applets, which would be an initialization cycle.
func applets() map[string]applet {
	return map[string]applet{
		"[": inShell("["), "base64": base64, "basename": basename, "cat": cat,
		"chgrp": chgrp, "chmod": chmod, "chown": chown, "cmp": cmp, "cp": cp,
		"cut": cut, "date": date, "dd": dd, "df": df, "dirname": dirname,
		"du": du, "echo": inShell("echo"), "env": env, "expr": expr,
		"false": func([]string) error { return exit(1) }, "find": find,
		"grep": grep, "gunzip": gzipCmd("gunzip"), "gzip": gzipCmd("gzip"),
		"head": head, "hostname": hostname, "id": id, "kill": kill, "ln": ln,
		"ls": ls, "mkdir": mkdir, "mkfifo": mkfifo, "mktemp": mktemp,
		"mv": mv, "nproc": nproc, "od": od, "printenv": printenv,
		"printf": inShell("printf"), "ps": ps, "pwd": pwd,
		"readlink": readlink, "realpath": realpath, "rm": rm,
		"rmdir": rmdir, "seq": seq, "sh": sh, "sha256sum": sha256sum,
		"sleep": sleep, "sort": sortCmd, "stat": stat, "sync": syncCmd,
		"tail": tail, "tar": tarCmd, "tee": tee, "test": inShell("test"),
		"touch": touch, "tr": tr, "true": func([]string) error { return nil },
		"truncate": truncate, "uname": uname, "uniq": uniq, "wc": wc,
		"wget": wget, "which": which, "whoami": whoami, "xargs": xargs,
		"yes": yes, "zcat": gzipCmd("zcat"),
	}
}

func main() { os.Exit(run(os.Args)) }

// run performs a whole command line and returns the exit status.
func run(argv []string) int {
	name, args := filepath.Base(argv[0]), argv[1:]
	all := applets()
	if name == "-sh" { // a login shell
		name = "sh"
	}
	f, ok := all[name]
	if !ok && len(args) > 0 {
		switch args[0] {
		case "--list":
			f = func([]string) error { return list(os.Stdout) }
		case "--install":
			f = install
		case "--tar":
			f = tarRoot
		default:
			f = all[args[0]]
		}
		name, args = args[0], args[1:]
	}
	if f == nil {
		fmt.Fprintf(os.Stderr, "usage: toolbox --list | --install DIR | --tar [BINARY] | NAME [ARG...]\n")
		return 2
	}
	return status(name, f(args))
}

// status prints err as an error of the named command and returns the exit
// status that it means.
func status(name string, err error) int {
	var e exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return int(e)
	case errors.Is(err, syscall.EPIPE):
		return 128 + int(syscall.SIGPIPE) // the reader has gone: end as others do
	}
	complain(name, err)
	return 1
}

// complain prints an error the way commands do: without the name of the
// system call, which tells users nothing.
func complain(name string, err error) {
	var pe *fs.PathError
	var le *os.LinkError
	switch {
	case errors.As(err, &pe) && err == error(pe):
		err = fmt.Errorf("%s: %w", pe.Path, pe.Err)
	case errors.As(err, &le) && err == error(le):
		err = fmt.Errorf("%s to %s: %w", le.Old, le.New, le.Err)
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
}

// each calls f for every name, prints what fails, and goes on.
func each(command string, names []string, f func(string) error) error {
	var result error
	for _, n := range names {
		if err := f(n); err != nil {
			if errors.Is(err, syscall.EPIPE) {
				return err
			}
			complain(command, err)
			result = exit(1)
		}
	}
	return result
}

// names returns all commands in order.
func names() []string {
	var s []string
	for n := range applets() {
		s = append(s, n)
	}
	slices.Sort(s)
	return s
}

func list(w io.Writer) error {
	_, err := fmt.Fprintln(w, strings.Join(names(), "\n"))
	return err
}

// install makes a link to this program in a directory for each command.
func install(args []string) error {
	if len(args) != 1 {
		return errors.New("need one directory")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, n := range names() {
		to := filepath.Join(args[0], n)
		if err := os.Symlink(self, to); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}
