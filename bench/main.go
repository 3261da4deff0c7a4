// Command bench measures whole commands, from start to exit, as a user waits
// for them: builds in five shapes and the start of a container. Beside kiln it
// measures each peer that is on PATH, in the same run and turn by turn, so
// that all of them see the same machine. It prints a Markdown table.
//
//	make bench
//	make bench BENCHFLAGS='-n 20 -case noop,start'
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	n := flag.Int("n", 5, "how many times each is measured")
	only := flag.String("case", "", "comma-separated names of the cases to measure; all of them by default")
	bin := flag.String("bin", "bin", "folder of kiln and toolbox, as make puts them")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *bin, *n, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// result is what one builder took for one case.
type result struct {
	name, builder string
	took          []time.Duration
	note          string
	err           error
}

func run(ctx context.Context, bin string, n int, only string) (err error) {
	work, err := os.MkdirTemp("", "kiln-bench-")
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.RemoveAll(work); err == nil {
			err = rerr
		}
	}()
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	m := &machine{bin: bin, work: work}
	if err := m.prepare(ctx); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	var results []*result
	for _, c := range cases {
		if only != "" && !slices.Contains(strings.Split(only, ","), c.name) {
			continue
		}
		rs, err := m.measure(ctx, c, n)
		if err != nil {
			return fmt.Errorf("case %s: %w", c.name, err)
		}
		results = append(results, rs...)
	}
	fmt.Printf("%s, %d processors, %s, n=%d\n\n", kernel(), runtime.NumCPU(), runtime.GOARCH, n)
	return table(results)
}

// measure runs a case for each builder in turn, n times.
func (m *machine) measure(ctx context.Context, c benchCase, n int) ([]*result, error) {
	var rs []*result
	var steps []func() error
	for _, b := range m.runners(c) {
		r := &result{name: c.name, builder: b.name, note: c.note}
		rs = append(rs, r)
		dir := filepath.Join(m.work, c.name+"-"+b.name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if c.context != nil {
			if err := c.context(m, dir); err != nil {
				return nil, err
			}
		}
		if r.err = b.run(ctx, dir, true); r.err != nil { // the first time is not counted
			continue
		}
		steps = append(steps, func() error {
			if c.fresh {
				if err := os.WriteFile(filepath.Join(dir, "nonce"), fmt.Append(nil, time.Now().UnixNano()), 0o644); err != nil {
					return err
				}
			}
			begin := time.Now()
			err := b.run(ctx, dir, false)
			r.took = append(r.took, time.Since(begin))
			return err
		})
	}
	for range n {
		for _, s := range steps {
			if err := s(); err != nil {
				return nil, err
			}
		}
	}
	return rs, nil
}

// table prints medians and ranges in milliseconds.
func table(results []*result) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "| case\t| builder\t| median ms\t| min–max ms\t| what\t|")
	fmt.Fprintln(w, "|---\t|---\t|---:\t|---:\t|---\t|")
	for _, r := range results {
		if r.err != nil {
			text, _, _ := strings.Cut(r.err.Error(), "\n")
			fmt.Fprintf(w, "| %s\t| %s\t| –\t| –\t| did not work: %s\t|\n", r.name, r.builder, text)
			continue
		}
		slices.Sort(r.took)
		fmt.Fprintf(w, "| %s\t| %s\t| %s\t| %s–%s\t| %s\t|\n", r.name, r.builder,
			ms(median(r.took)), ms(r.took[0]), ms(r.took[len(r.took)-1]), r.note)
	}
	return w.Flush()
}

// median is that of sorted durations.
func median(d []time.Duration) time.Duration {
	if len(d)%2 == 1 {
		return d[len(d)/2]
	}
	return (d[len(d)/2-1] + d[len(d)/2]) / 2
}

func ms(d time.Duration) string {
	return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond))
}

func kernel() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown kernel"
	}
	return "Linux " + strings.TrimSpace(string(b))
}
