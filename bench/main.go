// Command bench measures whole commands, from start to exit, as a user waits
// for them. Beside Kiln it measures each peer that this machine has and the
// machine's own limit for the job (cp, tar, pigz, a process without any
// container), in one run and turn by turn, so that all of them see the same
// machine at the same time. It prints a Markdown table.
//
//	make bench
//	make bench BENCHFLAGS='-case noop,start -n 20 -peers runc,bwrap'
//
// A case is a [benchCase]; who takes part in it is a [lane], which takes a
// turn of some [step]s. README.md in this folder has the last table.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
)

func main() {
	var o options
	flag.IntVar(&o.turns, "n", 0, "how many turns each case takes; 0 is the case's own number")
	flag.StringVar(&o.cases, "case", "", "comma-separated cases to measure; empty is all")
	flag.StringVar(&o.peers, "peers", "", "comma-separated peers to measure beside kiln; empty is all that are found, none is none")
	flag.StringVar(&o.bin, "bin", "bin", "folder of kiln and toolbox, as make puts them")
	flag.StringVar(&o.dir, "dir", "", "folder to work in; empty is a new ext4 file system, loop-mounted, where that can be had")
	flag.StringVar(&o.scratch, "scratch", os.TempDir(), "where the image of the ext4 file system is made")
	flag.StringVar(&o.debian, "debian", cmp.Or(os.Getenv("KILN_TEST_DEBIAN_TAR"), "/var/cache/kiln-test/debian.tar"), "tar of a Debian root, for pull and app")
	list := flag.Bool("list", false, "list the cases")
	size := flag.Int64("generate", 0, "write a file of this many bytes and exit; used inside builds")
	seed := flag.String("seed", "", "with -generate, the file whose content decides what is written")
	to := flag.String("to", "", "with -generate, the file to write")
	touches := flag.Bool("touch", false, "use most free memory once and exit; used before measuring")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch {
	case *list:
		for _, c := range cases {
			fmt.Printf("%-10s %s\n", c.name, c.what)
		}
	case *touches:
		err = touch()
	case *size > 0:
		err = generateFile(*to, *seed, *size)
	default:
		// A process that is started counts the memory of the one that started
		// it (execve(2) keeps the peak): stay small.
		debug.SetGCPercent(20)
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	turns                                   int
	cases, peers, bin, dir, scratch, debian string
}

// wants reports whether a comma-separated list has a name; an empty list has
// all.
func wants(list, name string) bool {
	return list == "" || slices.Contains(strings.Split(list, ","), name)
}

func run(ctx context.Context, o options) (err error) {
	for name := range strings.SplitSeq(o.cases, ",") {
		if name != "" && !slices.ContainsFunc(cases, func(c benchCase) bool { return c.name == name }) {
			return fmt.Errorf("there is no case %q: see -list", name)
		}
	}
	if err := touchMemory(ctx); err != nil {
		return err
	}
	p, err := newPlace(ctx, o.dir, o.scratch)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := p.close(); err == nil {
			err = cerr
		}
	}()
	m, err := newMachine(ctx, o, p.dir)
	if err != nil {
		return err
	}
	defer m.close()
	var rows []*row
	var failed error
	for _, c := range cases {
		if !wants(o.cases, c.name) {
			continue
		}
		fmt.Fprintln(os.Stderr, "case", c.name)
		if c.needs != nil {
			if why := c.needs(m); why != "" {
				rows = append(rows, &row{label: c.name, lane: "kiln", err: fmt.Errorf("left out: %s", why)})
				continue
			}
		}
		rs, err := m.measure(ctx, c, o.turns)
		rows = append(rows, rs...)
		if err != nil {
			failed = fmt.Errorf("case %s: %w", c.name, err)
			break
		}
	}
	header(os.Stdout, m, p)
	return cmp.Or(table(os.Stdout, rows), failed)
}

// measure lets the lanes of a case take their turns.
func (m *machine) measure(ctx context.Context, c benchCase, turns int) ([]*row, error) {
	m.dir = filepath.Join(m.work, "case-"+c.name)
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(m.dir)
	lanes, err := c.lanes(m)
	if err != nil {
		return nil, err
	}
	t := &tally{per: max(c.per, 1)}
	n := cmp.Or(turns, c.turns)
	for i := -c.warm; i < n; i++ {
		for _, l := range lanes {
			if t.failed(l) {
				continue
			}
			for _, s := range l.turn(i + c.warm) {
				sample, err := m.take(ctx, l, s)
				if ctx.Err() != nil {
					return t.sorted(), ctx.Err()
				}
				if err != nil {
					t.fail(c.name, l, err)
					break
				}
				if s.label != "" && i >= 0 {
					t.add(s.label, l, sample)
				}
			}
		}
	}
	return t.sorted(), nil
}
