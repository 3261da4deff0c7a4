package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// explainUsage has commands say how they are used where their arguments or
// flags are wrong, as docker's do.
func explainUsage(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			if err == nil {
				return nil
			}
			return fmt.Errorf("'%s' %s%s", c.CommandPath(), wantedArgs(err.Error()), usageHint(c))
		}
	}
	c.DisableFlagsInUseLine = true // they are where they belong
	if c.HasParent() && c.HasSubCommands() && !c.Runnable() {
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return fmt.Errorf("unknown command: %s %s%s", c.CommandPath(), args[0], usageHint(c))
		}
	}
	for _, sub := range c.Commands() {
		explainUsage(sub)
	}
}

// badFlag adds the same to what is wrong with a flag, which is a failure of
// docker's own, whatever the command.
func badFlag(c *cobra.Command, err error) error {
	return cliFailed(fmt.Errorf("%w%s", err, usageHint(c)))
}

func usageHint(c *cobra.Command) string {
	return fmt.Sprintf("\n\nUsage:  %s\n\nRun '%s --help' for more information", c.UseLine(), c.CommandPath())
}

// numbers are cobra's ways to say how many arguments a command has, and
// docker's.
var numbers = []struct {
	from, to string
}{
	{`^requires at least (\d+) arg\(s\), .*`, "requires at least $1 argument"},
	{`^accepts at most (\d+) arg\(s\), .*`, "requires at most $1 argument"},
	{`^accepts between (\d+) and (\d+) arg\(s\), .*`, "requires at least $1 and at most $2 argument"},
	{`^accepts (\d+) arg\(s\), .*`, "requires $1 argument"},
	{`^unknown command .* for .*`, "accepts no arguments"},
}

func wantedArgs(text string) string {
	for _, n := range numbers {
		from := regexp.MustCompile(n.from) // here: a start of kiln is too short for it
		if !from.MatchString(text) {
			continue
		}
		to := from.ReplaceAllString(text, n.to)
		if strings.HasSuffix(to, " argument") && !strings.HasSuffix(to, " 1 argument") {
			to += "s"
		}
		return to
	}
	return text
}
