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

// TestAlone holds the short way to a command to being the same command.
func TestAlone(t *testing.T) {
	a := &app{}
	short := 0
	for _, c := range a.command().Commands() {
		one := alone(c.Name())
		if one == nil {
			continue
		}
		short++
		if got := one(a); got.Use != c.Use || got.Short != c.Short {
			t.Errorf("%s: alone it is %q", c.Name(), got.Use)
		}
	}
	if short < 20 {
		t.Errorf("%d commands are made alone", short)
	}
}
