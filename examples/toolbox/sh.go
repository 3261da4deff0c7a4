package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// sh is the shell: sh [-efuxil] [-o OPTION] [-c COMMAND | SCRIPT | -s] [ARG...].
//
// It is bash's language as mvdan.cc/sh interprets it, which has the whole of
// POSIX but for these: redirections of descriptors other than 0, 1 and 2;
// the number of a background command in $! is the shell's own, good for wait
// and not for kill; trap knows EXIT and ERR, and signals end the shell.
func sh(args []string) error {
	var set []string // as for the set command
	var command, fromInput bool
	for len(args) > 0 && len(args[0]) > 1 && (args[0][0] == '-' || args[0][0] == '+') {
		a := args[0]
		args = args[1:]
		if a == "--" {
			break
		}
		for _, c := range a[1:] {
			switch c {
			case 'c':
				command = true
			case 's':
				fromInput = true
			case 'i', 'l', 'm': // interactive, login, job control: nothing to do
			case 'o':
				if len(args) == 0 {
					return errors.New("-o needs the name of an option")
				}
				set = append(set, a[:1]+"o", args[0])
				args = args[1:]
			default:
				set = append(set, a[:1]+string(c))
			}
		}
	}
	name := "sh"
	var source io.Reader = os.Stdin
	switch {
	case command:
		if len(args) == 0 {
			return errors.New("-c needs a command")
		}
		source, args = strings.NewReader(args[0]), args[1:]
		if len(args) > 0 {
			name, args = args[0], args[1:]
		}
	case len(args) > 0 && !fromInput:
		f, err := os.Open(args[0])
		if err != nil {
			complain("sh", err)
			return exit(127)
		}
		defer f.Close()
		source, name, args = f, args[0], args[1:]
	}
	s := &shell{}
	r, err := s.runner(append(append(set, "--"), args...))
	if err != nil {
		return err
	}
	if source == os.Stdin && isTerminal(os.Stdin) {
		return s.interact(r)
	}
	file, err := syntax.NewParser().Parse(source, name)
	if err != nil {
		complain("sh", err)
		return exit(2)
	}
	s.last = tailCalls(file)
	if command && len(file.Stmts) == 1 && !file.Stmts[0].Background && !file.Stmts[0].Negated && !hereDocument(file.Stmts[0]) {
		if c, ok := file.Stmts[0].Cmd.(*syntax.CallExpr); ok && len(c.Args) > 0 {
			s.sole = c.Args[0].Pos()
		}
	}
	return shellStatus(r.Run(context.Background(), file))
}

// inShell makes an applet of a command that the shell has built in.
func inShell(name string) applet {
	return func(args []string) error {
		r, err := (&shell{}).runner(append([]string{"--"}, args...))
		if err != nil {
			return err
		}
		script := name + ` "$@"`
		if name == "[" {
			// The interpreter wants to see the bracket in the last argument.
			script = `test "$@"`
			if len(args) == 0 || args[len(args)-1] != "]" {
				complain("[", errors.New("missing ]"))
				return exit(2)
			}
			if r, err = (&shell{}).runner(append([]string{"--"}, args[:len(args)-1]...)); err != nil {
				return err
			}
		}
		file, err := syntax.NewParser().Parse(strings.NewReader(script), name)
		if err != nil {
			return err
		}
		return shellStatus(r.Run(context.Background(), file))
	}
}

func shellStatus(err error) error {
	var e interp.ExitStatus
	if errors.As(err, &e) {
		return exit(e)
	}
	return err
}

// shell is what the handlers of one shell share.
type shell struct {
	last map[syntax.Pos]bool // calls of exec that may replace this process
	sole syntax.Pos          // the only command there is, which may as well
}

func (s *shell) runner(params []string) (*interp.Runner, error) {
	return interp.New(
		interp.StdIO(os.Stdin, os.Stdout, os.Stderr),
		interp.Params(params...),
		interp.CallHandler(s.call),
		interp.OpenHandler(s.open),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return s.exec }),
	)
}

// open is as the interpreter's own but for the mode, which is the umask's
// business.
func (s *shell) open(ctx context.Context, path string, flag int, _ os.FileMode) (io.ReadWriteCloser, error) {
	return interp.DefaultOpenHandler()(ctx, path, flag, 0o666)
}

// call sees each simple command before it is run. It turns built-in commands
// that the interpreter names but does not have into ones that exec finds.
func (s *shell) call(ctx context.Context, args []string) ([]string, error) {
	hc := interp.HandlerCtx(ctx)
	switch args[0] {
	case "exec":
		if len(args) > 1 && s.last[hc.Pos] {
			if err := s.replace(hc, args[1:]); err != nil {
				return nil, err
			}
			return []string{"exit"}, nil // it could only be spawned
		}
	case "umask", "ulimit":
		return append([]string{builtinPrefix + args[0]}, args[1:]...), nil
	case "kill":
		return append([]string{"env", "kill"}, args[1:]...), nil
	case "trap":
		return trapArgs(args), nil
	}
	return args, nil
}

// builtinPrefix marks commands that exec performs in this process. No file
// in PATH can have such a name.
const builtinPrefix = "/\x00/"

// trapArgs leaves out the signals, which the interpreter refuses: the shell
// ends by them, which is what most traps are set to see to.
func trapArgs(args []string) []string {
	if len(args) < 3 {
		return args
	}
	kept := args[:2:2]
	for _, a := range args[2:] {
		switch a {
		case "0", "EXIT":
			kept = append(kept, "EXIT")
		case "ERR":
			kept = append(kept, a)
		default:
			if signalNumber(a) == 0 {
				return args // let the interpreter complain
			}
		}
	}
	if len(kept) == 2 {
		return []string{"true"}
	}
	return kept
}

// exec runs a program and waits for it.
func (s *shell) exec(ctx context.Context, args []string) error {
	hc := interp.HandlerCtx(ctx)
	if name, ok := strings.CutPrefix(args[0], builtinPrefix); ok {
		return builtin(hc, name, args[1:])
	}
	if s.sole.IsValid() && hc.Pos == s.sole {
		return s.replace(hc, args)
	}
	return s.spawn(hc, args)
}

// spawn runs a program as a child.
func (s *shell) spawn(hc interp.HandlerContext, args []string) error {
	path, code := lookPath(hc, args[0])
	if code != 0 {
		return interp.ExitStatus(code)
	}
	cmd := &exec.Cmd{Path: path, Args: args, Env: environ(hc), Dir: hc.Dir,
		Stdin: hc.Stdin, Stdout: hc.Stdout, Stderr: hc.Stderr}
	err := cmd.Start()
	if errors.Is(err, syscall.ENOEXEC) { // a script without #!
		self, serr := os.Executable()
		if serr != nil {
			return serr
		}
		cmd = &exec.Cmd{Path: self, Args: append([]string{"sh", path}, args[1:]...), Env: cmd.Env, Dir: hc.Dir,
			Stdin: hc.Stdin, Stdout: hc.Stdout, Stderr: hc.Stderr}
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintf(hc.Stderr, "sh: %s: %v\n", args[0], cause(err))
		return interp.ExitStatus(126)
	}
	return exitStatus(cmd.Wait())
}

// exitStatus is the shell's view of how a process ended.
func exitStatus(err error) error {
	var ee *exec.ExitError
	if !errors.As(err, &ee) {
		return err
	}
	if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return interp.ExitStatus(128 + ws.Signal())
	}
	return interp.ExitStatus(ee.ExitCode())
}

// replace becomes the program, as exec promises: same process, so that a
// container's first process is the service itself and gets its signals.
func (s *shell) replace(hc interp.HandlerContext, args []string) error {
	path, code := lookPath(hc, args[0])
	if code != 0 {
		return interp.ExitStatus(code)
	}
	for fd, stream := range []any{hc.Stdin, hc.Stdout, hc.Stderr} {
		f, ok := stream.(*os.File)
		if !ok { // no descriptor to hand over
			return s.spawn(hc, args)
		}
		if int(f.Fd()) == fd {
			continue
		}
		if err := syscall.Dup3(int(f.Fd()), fd, 0); err != nil {
			return err
		}
	}
	if err := os.Chdir(hc.Dir); err != nil {
		return err
	}
	err := syscall.Exec(path, args, environ(hc))
	if errors.Is(err, syscall.ENOEXEC) {
		return s.spawn(hc, args)
	}
	fmt.Fprintf(os.Stderr, "sh: %s: %v\n", args[0], err)
	return interp.ExitStatus(126)
}

// lookPath finds a program as POSIX says, and complains with the status 127
// if there is none, 126 if it may not be run.
func lookPath(hc interp.HandlerContext, name string) (path string, code uint8) {
	if strings.Contains(name, "/") {
		if path = name; !filepath.IsAbs(path) {
			path = filepath.Join(hc.Dir, path)
		}
		fi, err := os.Stat(path)
		switch {
		case err != nil:
			fmt.Fprintf(hc.Stderr, "sh: %s: not found\n", name)
			return "", 127
		case fi.IsDir() || fi.Mode()&0o111 == 0:
			fmt.Fprintf(hc.Stderr, "sh: %s: permission denied\n", name)
			return "", 126
		}
		return path, 0
	}
	path, err := interp.LookPathDir(hc.Dir, hc.Env, name)
	if err != nil {
		fmt.Fprintf(hc.Stderr, "sh: %s: not found\n", name)
		return "", 127
	}
	return path, 0
}

// environ are the exported variables.
func environ(hc interp.HandlerContext) []string {
	m := map[string]string{}
	hc.Env.Each(func(name string, v expand.Variable) bool {
		delete(m, name)
		if v.IsSet() && v.Exported && v.Kind == expand.String {
			m[name] = v.Str
		}
		return true
	})
	var env []string
	for k, v := range m {
		env = append(env, k+"="+v)
	}
	slices.Sort(env)
	return env
}

// builtin performs the commands that change the shell's own process.
func builtin(hc interp.HandlerContext, name string, args []string) error {
	fail := func(err error) error {
		fmt.Fprintf(hc.Stderr, "sh: %s: %v\n", name, err)
		return interp.ExitStatus(2)
	}
	switch name {
	case "umask":
		if len(args) == 0 {
			mask := syscall.Umask(0)
			syscall.Umask(mask)
			fmt.Fprintf(hc.Stdout, "%04o\n", mask)
			return nil
		}
		mask, err := strconv.ParseUint(args[0], 8, 9)
		if err != nil || len(args) > 1 {
			return fail(errors.New("need an octal mask"))
		}
		syscall.Umask(int(mask))
	case "ulimit":
		return ulimit(hc, args, fail)
	}
	return nil
}

// ulimit sets or prints the limit on open files, -n, the one that scripts
// raise.
func ulimit(hc interp.HandlerContext, args []string, fail func(error) error) error {
	if len(args) == 0 || args[0] != "-n" || len(args) > 2 {
		return fail(errors.New("only -n [NUMBER] is known"))
	}
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fail(err)
	}
	if len(args) == 1 {
		fmt.Fprintln(hc.Stdout, l.Cur)
		return nil
	}
	n, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return fail(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
		return fail(err)
	}
	return nil
}

// tailCalls finds the calls of exec that run in the shell itself and not in a
// subshell, a pipeline, the background or a function, which may be called
// from one of them. The interpreter runs all of these as goroutines of one
// process, which exec would end.
func tailCalls(file *syntax.File) map[syntax.Pos]bool {
	found := map[syntax.Pos]bool{}
	syntax.Walk(file, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.Stmt:
			return !n.Background && !n.Coprocess && !hereDocument(n)
		case *syntax.BinaryCmd:
			return n.Op != syntax.Pipe && n.Op != syntax.PipeAll
		case *syntax.Subshell, *syntax.FuncDecl, *syntax.CmdSubst, *syntax.ProcSubst:
			return false
		case *syntax.CallExpr:
			if len(n.Args) > 0 && n.Args[0].Lit() == "exec" {
				found[n.Args[0].Pos()] = true
			}
			return false
		}
		return true
	})
	return found
}

// hereDocument reports whether a command reads text of the script, which a
// goroutine of the shell writes to it.
func hereDocument(s *syntax.Stmt) bool {
	return slices.ContainsFunc(s.Redirs, func(r *syntax.Redirect) bool {
		return r.Op == syntax.Hdoc || r.Op == syntax.DashHdoc || r.Op == syntax.WordHdoc
	})
}

// interact reads commands from a terminal.
func (s *shell) interact(r *interp.Runner) error {
	// An interrupt is for the command that runs; caught, and not ignored, so
	// that commands start with the default.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	prompt := func() {
		dir, mark := r.Dir, "$"
		if os.Geteuid() == 0 {
			mark = "#"
		}
		fmt.Fprintf(os.Stderr, "%s %s ", dir, mark)
	}
	var last error
	for {
		prompt()
		parser := syntax.NewParser()
		var bad error
		for stmts, err := range parser.InteractiveSeq(os.Stdin) {
			if bad = err; err != nil {
				break
			}
			if parser.Incomplete() {
				fmt.Fprint(os.Stderr, "> ")
				continue
			}
			for _, st := range stmts {
				last = shellStatus(r.Run(context.Background(), st))
				if r.Exited() {
					return last
				}
			}
			prompt()
		}
		if bad == nil { // the end of input
			return last
		}
		complain("sh", bad)
		last = exit(2)
	}
}
