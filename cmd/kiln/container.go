package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"
	"kiln.build/runner/container"
	"kiln.build/runner/rootless"
)

// containerCommands are the commands for the life of containers.
func (a *app) containerCommands() []*cobra.Command {
	group := &cobra.Command{Use: "container", Short: "Manage containers", Example: "  kiln container prune"}
	group.AddCommand(a.containerLife()...)
	group.AddCommand(a.containerPrune(), a.inspectCommand("container"))
	return append(a.containerLife(), group, a.eventsCommand(), a.volumeCommand(), a.networkCommand(), a.ociCommand())
}

func (a *app) containerLife() []*cobra.Command {
	return []*cobra.Command{
		a.runCommand(), a.createCommand(), a.startCommand(), a.attachCommand(), a.execCommand(),
		a.psCommand(), a.logsCommand(), a.topCommand(), a.portCommand(), a.waitCommand(),
		a.stopCommand(), a.killCommand(), a.restartCommand(), a.pauseCommand(), a.unpauseCommand(),
		a.rmCommand(), a.renameCommand(), a.updateCommand(), a.statsCommand(),
		a.cpCommand(), a.diffCommand(), a.exportCommand(), a.commitCommand(),
	}
}

// containers is the set of containers in the store.
func (a *app) containers() (container.Set, error) {
	if _, err := rootless.Enter(); err != nil {
		return container.Set{}, err
	}
	return container.Set{Dir: filepath.Join(a.root, "containers")}, nil
}

// container finds a container by its name or ID.
func (a *app) container(name string) (*container.Container, error) {
	set, err := a.containers()
	if err != nil {
		return nil, err
	}
	return set.Find(name)
}

// each applies f to the containers of the names, and goes on after errors,
// which it prints. What docker prints for each is its name.
func (a *app) each(ctx context.Context, names []string, f func(*container.Container) error) error {
	set, err := a.containers()
	if err != nil {
		return err
	}
	failed := false
	for _, n := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		k, err := set.Find(n)
		if err == nil {
			err = f(k)
		}
		if err != nil {
			fmt.Fprintf(a.stderr, "kiln: %v\n", err)
			failed = true
			continue
		}
		fmt.Fprintln(a.stdout, n)
	}
	if failed {
		return &exitError{1, nil}
	}
	return nil
}

// cliFailed is docker's exit status for failures of its own.
func cliFailed(err error) error {
	var e *exitError
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &exitError{125, err}
}

// flagsFail has unknown flags end with that status as well.
func flagsFail(c *cobra.Command) *cobra.Command {
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return cliFailed(badFlag(c, err)) })
	return c
}
