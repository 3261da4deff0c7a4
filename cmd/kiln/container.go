package main

import "github.com/spf13/cobra"

// containerCommands are the commands for the life of containers.
func (a *app) containerCommands() []*cobra.Command { return nil }
