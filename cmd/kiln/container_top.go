package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"kiln.build/runner/container"
)

func (a *app) topCommand() *cobra.Command {
	return &cobra.Command{
		Use: "top CONTAINER [PS OPTIONS]", Short: "Show the processes of a container", Args: cobra.MinimumNArgs(1),
		Long: `Show the processes of a container. With options this machine's ps shows them,
as these say.`,
		Example:            "  kiln top web\n  kiln top web -o pid,rss,args",
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if slices.Contains(args[:1], "--help") || slices.Contains(args[:1], "-h") {
				return c.Help()
			}
			k, err := a.container(args[0])
			if err != nil {
				return err
			}
			all, err := k.Processes(c.Context())
			if err != nil {
				return err
			}
			k.Note("top")
			if len(args) > 1 {
				return a.topBy(c.Context(), all, args[1:])
			}
			w := tabwriter.NewWriter(tamed(a.stdout), 20, 1, 3, ' ', 0)
			fmt.Fprintln(w, "UID\tPID\tPPID\tC\tSTIME\tTTY\tTIME\tCMD")
			for _, p := range all {
				cpu := int(p.CPU.Seconds())
				tty := "?"
				if p.TTY >= 0 {
					tty = fmt.Sprintf("pts/%d", p.TTY)
				}
				fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%02d:%02d:%02d\t%s\n", userName(p.UID), p.PID, p.Parent, p.Percent(),
					p.Started.Format("15:04"), tty, cpu/3600, cpu/60%60, cpu%60, strings.Join(p.Args, " "))
			}
			return w.Flush()
		},
	}
}

// userName is how this machine calls a user: as ps does, by number where it
// does not know them.
func userName(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

// topBy has ps show all processes as its options say, and keeps the lines of
// some.
func (a *app) topBy(ctx context.Context, keep []container.Process, options []string) error {
	text, err := exec.CommandContext(ctx, "ps", options...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		err = errors.New(strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return fmt.Errorf("ps: %w", err)
	}
	head, rest, _ := strings.Cut(string(text), "\n")
	column := slices.Index(strings.Fields(head), "PID")
	if column < 0 {
		return errors.New("couldn't find PID field in ps output")
	}
	lines := []string{head}
	for line := range strings.Lines(rest) {
		f := strings.Fields(line)
		if column >= len(f) {
			continue
		}
		if pid, err := strconv.Atoi(f[column]); err == nil && slices.ContainsFunc(keep, func(p container.Process) bool { return p.PID == pid }) {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return writeLines(tamed(a.stdout), lines...)
}
