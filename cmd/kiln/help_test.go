package main

import (
	"testing"

	"github.com/spf13/cobra"
)

// TestHelp holds every command to saying what it does and how it is used.
func TestHelp(t *testing.T) {
	a := &app{}
	var check func(*cobra.Command)
	check = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		if c.Short == "" || c.HasParent() && c.Example == "" {
			t.Errorf("%s: Short %q, Example %q", c.CommandPath(), c.Short, c.Example)
		}
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	check(a.command())
}
