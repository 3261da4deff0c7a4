package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"kiln.build/runner/rootless"
)

// app is what the commands share: the terminal's streams and the place of
// the store. A command opens the store itself, and only if it needs it, so
// that `kiln version` and `--help` touch nothing.
type app struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	root   string // --root, else KILN_ROOT, else the default place
}

// exitError ends the program with a status of its own. A nil err prints
// nothing more: all has been said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// exitCode is the program's status for an error of a command: that of an
// exitError, else 1.
func exitCode(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.code
	}
	return 1
}

// defaultRoot is where the store lies if nothing else is said.
func defaultRoot(getenv func(string) string, root bool) string {
	if dir := getenv("KILN_ROOT"); dir != "" {
		return dir
	}
	if root {
		return "/var/lib/kiln"
	}
	if dir := getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "kiln")
	}
	return filepath.Join(getenv("HOME"), ".local", "share", "kiln")
}

// command builds the tree of commands. To make the flags of them all takes
// longer than most have to do, so the tree has the one that args begin with,
// and no other, where that is one that people type.
func (a *app) command(args ...string) *cobra.Command {
	c := &cobra.Command{
		Use:           "kiln",
		Short:         "Build container images and run them, without a daemon",
		SilenceUsage:  true,
		SilenceErrors: true,
		// A container's monitor has another working directory.
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			a.root, err = filepath.Abs(a.root)
			return err
		},
	}
	c.SetIn(a.stdin)
	c.SetOut(a.stdout)
	c.SetErr(a.stderr)
	c.PersistentFlags().StringVar(&a.root, "root", defaultRoot(os.Getenv, rootless.Current() == rootless.Root), "the store's folder (KILN_ROOT)")
	if len(args) > 0 {
		if one := alone(args[0]); one != nil {
			c.AddCommand(one(a))
			return c
		}
	}
	c.AddCommand(a.buildCommand())
	c.AddCommand(a.imageCommands()...)
	c.AddCommand(a.containerCommands()...)
	return c
}

// alone returns what makes a command that needs no other beside it, nil for
// groups and for what is unknown, which is answered with what is like it.
func alone(name string) func(*app) *cobra.Command {
	return map[string]func(*app) *cobra.Command{
		"attach": (*app).attachCommand, "build": (*app).buildCommand, "commit": (*app).commitCommand, "cp": (*app).cpCommand,
		"create": (*app).createCommand, "diff": (*app).diffCommand, "events": (*app).eventsCommand, "exec": (*app).execCommand,
		"export": (*app).exportCommand, "images": (*app).imagesCommand, "kill": (*app).killCommand, "logs": (*app).logsCommand,
		"pause": (*app).pauseCommand, "port": (*app).portCommand, "ps": (*app).psCommand, "pull": (*app).pullCommand,
		"push": (*app).pushCommand, "restart": (*app).restartCommand, "rm": (*app).rmCommand, "rmi": (*app).rmiCommand,
		"run": (*app).runCommand, "start": (*app).startCommand, "stats": (*app).statsCommand, "stop": (*app).stopCommand,
		"tag": (*app).tagCommand, "top": (*app).topCommand, "unpause": (*app).unpauseCommand, "version": (*app).versionCommand,
		"wait": (*app).waitCommand,
	}[name]
}
