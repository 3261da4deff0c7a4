package main

import "github.com/spf13/cobra"

// imageCommands are the commands that work on the image store.
func (a *app) imageCommands() []*cobra.Command { return []*cobra.Command{a.tmpImport()} }
