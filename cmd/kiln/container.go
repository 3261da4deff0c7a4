package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"
	"kiln.build/runner/container"
	"kiln.build/runner/network"
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

// each applies f to the containers of the names, one after the other, and goes
// on after errors, which it prints. What docker prints for each is its name.
func (a *app) each(ctx context.Context, names []string, f func(*container.Container) error) error {
	set, err := a.containers()
	if err != nil {
		return err
	}
	return a.tell(ctx, names, func(i int) error { return doTo(set, names[i], f) })
}

// together is each for what need not wait for its turn: to stop many containers
// takes no longer than the slowest of them, as with docker.
func (a *app) together(ctx context.Context, names []string, f func(*container.Container) error) error {
	set, err := a.containers()
	if err != nil {
		return err
	}
	places := make(chan struct{}, 50) // docker's bound
	outcomes := make([]error, len(names))
	done := make([]sync.WaitGroup, len(names))
	for i, n := range names {
		done[i].Go(func() {
			places <- struct{}{}
			outcomes[i] = doTo(set, n, f)
			<-places
		})
	}
	defer func() {
		for i := range done {
			done[i].Wait()
		}
	}()
	return a.tell(ctx, names, func(i int) error {
		done[i].Wait()
		return outcomes[i]
	})
}

func doTo(set container.Set, name string, f func(*container.Container) error) error {
	k, err := set.Find(name)
	if err != nil {
		return err
	}
	return f(k)
}

// tell prints the names whose outcome is good, and the errors of the others.
func (a *app) tell(ctx context.Context, names []string, outcome func(int) error) error {
	failed := false
	for i, n := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := outcome(i); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
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

// networks is the set of networks in the store.
func (a *app) networks() network.Set { return network.Set{Dir: filepath.Join(a.root, "networks")} }
