package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"kiln.build/runner/container"
)

func (a *app) topCommand() *cobra.Command {
	return &cobra.Command{
		Use: "top CONTAINER", Short: "Show the processes of a container", Args: cobra.ExactArgs(1),
		Example: "  kiln top web",
		RunE: func(_ *cobra.Command, args []string) error {
			k, err := a.container(args[0])
			if err != nil {
				return err
			}
			_, st, err := k.May(container.Top)
			if err != nil {
				return err
			}
			all, err := container.Processes(st.PID)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(a.stdout, 20, 1, 3, ' ', 0)
			fmt.Fprintln(w, "UID\tPID\tPPID\tC\tSTIME\tTTY\tTIME\tCMD")
			for _, p := range all {
				cpu := int(p.CPU.Seconds())
				tty := "?"
				if p.TTY >= 0 {
					tty = fmt.Sprintf("pts/%d", p.TTY)
				}
				fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%s\t%s\t%02d:%02d:%02d\t%s\n", p.UID, p.PID, p.Parent, p.Percent(),
					p.Started.Format("15:04"), tty, cpu/3600, cpu/60%60, cpu%60, strings.Join(p.Args, " "))
			}
			return w.Flush()
		},
	}
}
