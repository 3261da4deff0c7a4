package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"kiln.build/exporter/images"
)

func (a *app) tmpImport() *cobra.Command {
	return &cobra.Command{Use: "import", Args: cobra.ExactArgs(2), RunE: func(c *cobra.Command, args []string) error {
		store, err := a.open()
		if err != nil {
			return err
		}
		defer store.Close()
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		id, err := (&images.Store{Cache: store}).Import(c.Context(), f, images.ImportOptions{Name: args[1], From: args[0]})
		fmt.Fprintln(a.stdout, id)
		return err
	}}
}
