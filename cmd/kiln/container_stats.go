package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"kiln.build/runner/container"
)

// statsFlags are the flags of stats, as typed.
type statsFlags struct {
	all, once, noTrunc bool
	format             string
}

func (a *app) statsCommand() *cobra.Command {
	var f statsFlags
	c := &cobra.Command{
		Use: "stats [flags] [CONTAINER...]", Short: "Show what containers use of the machine",
		Example: "  kiln stats --no-stream\n  kiln stats --format '{{.Name}} {{.MemUsage}}' web",
		RunE: func(c *cobra.Command, args []string) error {
			return withoutPipe(a.stats(c.Context(), &f, args))
		},
	}
	c.Flags().BoolVarP(&f.all, "all", "a", false, "also those that do not run")
	c.Flags().BoolVar(&f.once, "no-stream", false, "show one result and end")
	c.Flags().BoolVar(&f.noTrunc, "no-trunc", false, "do not shorten anything")
	c.Flags().StringVar(&f.format, "format", "", formatHelp)
	return c
}

// statsEvery is the time over which the use of processors is taken.
const statsEvery = time.Second

func (a *app) stats(ctx context.Context, f *statsFlags, names []string) error {
	before := map[string]container.Usage{}
	for first := true; ; first = false {
		list, err := a.statsOf(names, f.all)
		if err != nil {
			return err
		}
		rows := []statsRow{}
		for i, k := range list {
			now, err := k.Usage(ctx)
			var ended *container.StateError
			if errors.Is(err, fs.ErrNotExist) || errors.As(err, &ended) {
				continue // since it was listed
			}
			if err != nil {
				return err
			}
			row := newStatsRow(k, before[k.ID], now, f.noTrunc)
			if len(names) == len(list) {
				row.Container = names[i] // as it was asked for
			}
			rows = append(rows, row)
			before[k.ID] = now
		}
		if !first {
			if err := a.printStats(f, rows); err != nil || f.once {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(statsEvery):
		}
	}
}

// statsOf are the containers that are named, or all that run.
func (a *app) statsOf(names []string, all bool) ([]*container.Container, error) {
	set, err := a.containers()
	if err != nil {
		return nil, err
	}
	var list []*container.Container
	for _, n := range names {
		k, err := set.Find(n)
		if err != nil {
			return nil, err
		}
		list = append(list, k)
	}
	if len(names) > 0 {
		return list, nil
	}
	every, err := set.List()
	if err != nil {
		return nil, err
	}
	for _, k := range every {
		st, err := k.State()
		if err == nil && (all || st.Status == container.Running || st.Status == container.Paused) {
			list = append(list, k)
		}
	}
	return list, nil
}

func (a *app) printStats(f *statsFlags, rows []statsRow) error {
	var b bytes.Buffer
	err := printRows(&b, f.format,
		"{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}", statsHeaders, rows)
	if err != nil {
		return err
	}
	if !f.once && isTerminal(a.stdout) {
		// Over what was shown before: home, each line's rest, and what is below.
		text := bytes.ReplaceAll(b.Bytes(), []byte("\n"), []byte("\x1b[K\n"))
		_, err = fmt.Fprintf(a.stdout, "\x1b[H%s\x1b[J", text)
		return err
	}
	_, err = a.stdout.Write(b.Bytes())
	return err
}

var statsHeaders = map[string]string{
	"ID": "CONTAINER ID", "Container": "CONTAINER", "Name": "NAME", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT",
	"MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
}

// statsRow is what stats shows of a container; the names are docker's.
type statsRow struct {
	BlockIO, CPUPerc, Container, ID, MemPerc, MemUsage, Name, NetIO, PIDs string
}

func newStatsRow(k *container.Container, before, now container.Usage, whole bool) statsRow {
	r := statsRow{
		ID: k.ID, Container: k.ID, Name: k.Name, CPUPerc: "--", MemUsage: "-- / --", MemPerc: "--",
		NetIO: "-- / --", BlockIO: "-- / --", PIDs: "--",
	}
	if !whole {
		r.ID, r.Container = r.ID[:12], r.ID[:12]
	}
	if !now.Running {
		return r
	}
	cpu := 0.0
	if took := now.At.Sub(before.At); before.Running && now.CPU >= before.CPU && took > 0 {
		cpu = 100 * float64(now.CPU-before.CPU) / float64(took)
	}
	binary := func(n int64) string { return units.BytesSize(float64(n)) }
	decimal := func(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }
	r.CPUPerc = fmt.Sprintf("%.2f%%", cpu)
	r.MemUsage = binary(now.Memory) + " / " + binary(now.MemoryLimit)
	r.MemPerc = "0.00%"
	if now.MemoryLimit > 0 {
		r.MemPerc = fmt.Sprintf("%.2f%%", 100*float64(now.Memory)/float64(now.MemoryLimit))
	}
	r.NetIO = decimal(now.Received) + " / " + decimal(now.Sent)
	r.BlockIO = decimal(now.ReadBytes) + " / " + decimal(now.WriteBytes)
	r.PIDs = fmt.Sprint(now.Pids)
	return r
}
