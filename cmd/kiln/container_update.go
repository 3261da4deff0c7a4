package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"kiln.build/runner/container"
)

func (a *app) updateCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use: "update [flags] CONTAINER...", Short: "Change limits and restart policy of containers", Args: cobra.MinimumNArgs(1),
		Example: "  kiln update --memory 512m --restart unless-stopped web",
		RunE: func(c *cobra.Command, args []string) error {
			any := false
			c.LocalNonPersistentFlags().VisitAll(func(g *pflag.Flag) { any = any || g.Changed })
			if !any {
				return errors.New("you must provide one or more flags when using this command")
			}
			set, err := a.containers()
			if err != nil {
				return err
			}
			return a.each(c.Context(), args, func(k *container.Container) error {
				to, err := f.updated(c.Flags(), k)
				if err != nil {
					return err
				}
				return set.Update(c.Context(), k, to)
			})
		},
	}
	fs := c.Flags()
	f.registerUpdate(fs)
	fs.StringVar(&f.restart, "restart", "", "when to start it again: no, on-failure[:MAX], always or unless-stopped")
	return c
}

// updated is the change that the flags ask for.
func (f *runFlags) updated(fs *pflag.FlagSet, k *container.Container) (func(*container.Config), error) {
	var asked container.Config
	if err := errors.Join(f.applyLimits(&asked), f.applyProcessors(&asked)); err != nil {
		return nil, err
	}
	policy := k.Restart
	if fs.Changed("restart") {
		var err error
		if policy, err = container.ParsePolicy(f.restart); err != nil {
			return nil, err
		}
		if k.AutoRemove && policy.Name != "" {
			return nil, fmt.Errorf("cannot update container %s: restart policy cannot be updated because AutoRemove is enabled for the container", k.ID)
		}
	}
	n := asked.Limits
	if old := k.Limits.MemorySwap; n.Memory > 0 && n.MemorySwap == 0 && old > 0 && n.Memory > old {
		return nil, fmt.Errorf("cannot update container %s: memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time", k.ID)
	}
	return func(c *container.Config) {
		l := &c.Limits
		c.Restart = policy
		for _, x := range []struct {
			to    *int64
			value int64
		}{
			{&l.Memory, n.Memory}, {&l.MemorySwap, n.MemorySwap}, {&l.MemoryReservation, n.MemoryReservation},
			{&l.CPUShares, n.CPUShares}, {&l.CPUPeriod, n.CPUPeriod}, {&l.CPUQuota, n.CPUQuota}, {&l.Pids, n.Pids},
		} {
			if x.value != 0 {
				*x.to = x.value
			}
		}
		if n.CPUSetCPUs != "" {
			l.CPUSetCPUs = n.CPUSetCPUs
		}
		if n.CPUSetMems != "" {
			l.CPUSetMems = n.CPUSetMems
		}
	}, nil
}
