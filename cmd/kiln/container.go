package main

import (
	"path/filepath"

	"github.com/spf13/cobra"
	"kiln.build/runner/container"
	"kiln.build/runner/rootless"
)

// containerCommands are the commands for the life of containers.
func (a *app) containerCommands() []*cobra.Command {
	group := &cobra.Command{Use: "container", Short: "Manage containers", Example: "  kiln container ls -a"}
	group.AddCommand(a.containerLife()...)
	group.AddCommand(a.containerPrune())
	return append(a.containerLife(), group, a.monitorCommand())
}

func (a *app) containerLife() []*cobra.Command {
	return []*cobra.Command{
		a.runCommand(), a.createCommand(), a.startCommand(), a.psCommand(), a.logsCommand(), a.execCommand(),
		a.stopCommand(), a.killCommand(), a.waitCommand(), a.rmCommand(), a.portCommand(),
	}
}

// containers is the set of containers in the store.
func (a *app) containers() (container.Set, error) {
	if _, err := rootless.Enter(); err != nil {
		return container.Set{}, err
	}
	return container.Set{Dir: filepath.Join(a.root, "containers")}, nil
}
