package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// A benchCase is one kind of work.
type benchCase struct {
	name string
	what string

	turns int // by default
	warm  int // turns before those that count
	per   int // what is measured does the thing this many times

	needs func(m *machine) string // why it cannot be measured here; may be nil
	lanes func(m *machine) ([]lane, error)
}

// A lane is one who does the work of a case.
type lane struct {
	name string
	turn func(i int) []step

	// daemon is the process that does the work for the commands, whose
	// memory counts; 0 is none.
	daemon int
}

// A step is a command, or something that is done between commands.
type step struct {
	label string   // the row that the time is for; empty is not measured
	argv  []string // run where do is nil
	env   []string
	do    func(ctx context.Context) error
}

func do(f func(ctx context.Context) error) step { return step{do: f} }

// timed is a step that counts.
func timed(label string, argv ...string) step { return step{label: label, argv: argv} }

// untimed is one that does not.
func untimed(argv ...string) step { return step{argv: argv} }

// sync writes back what lies dirty in memory, so that nobody pays for what
// was done before.
func (m *machine) sync() step {
	return untimed("sync", "-f", m.work)
}

// shell is a step of a shell's command line, whose further arguments are $1
// and so on.
func shell(label, line string, args ...string) step {
	return timed(label, append([]string{"sh", "-ec", line, "sh"}, args...)...)
}

// tally collects samples by row.
type tally struct {
	per    int
	rows   []*row
	labels []string
}

func (t *tally) failed(l lane) bool {
	return slices.ContainsFunc(t.rows, func(r *row) bool { return r.lane == l.name && r.err != nil })
}

func (t *tally) fail(label string, l lane, err error) {
	t.row(label, l).err = err
}

func (t *tally) add(label string, l lane, s sample) {
	r := t.row(label, l)
	r.samples = append(r.samples, s)
}

func (t *tally) row(label string, l lane) *row {
	for _, r := range t.rows {
		if r.label == label && r.lane == l.name {
			return r
		}
	}
	if !slices.Contains(t.labels, label) {
		t.labels = append(t.labels, label)
	}
	r := &row{label: label, lane: l.name, per: t.per}
	t.rows = append(t.rows, r)
	return r
}

// sorted are the rows, those of one label together.
func (t *tally) sorted() []*row {
	slices.SortStableFunc(t.rows, func(a, b *row) int {
		return slices.Index(t.labels, a.label) - slices.Index(t.labels, b.label)
	})
	return t.rows
}

// builders makes a lane for each builder, with a folder of its own.
func (m *machine) builders(f func(b builder, dir string) (lane, error)) ([]lane, error) {
	var lanes []lane
	for _, b := range m.found {
		dir := filepath.Join(m.dir, b.name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		l, err := f(b, dir)
		if err != nil {
			return nil, err
		}
		l.name, l.daemon = b.name, b.daemon
		lanes = append(lanes, l)
	}
	return lanes, nil
}

// write makes small files, by name and content.
func write(dir string, files map[string]string) error {
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// change gives a file new content, so that what depends on it is done again.
func change(path string, i int) step {
	return do(func(context.Context) error { return os.WriteFile(path, fmt.Appendf(nil, "%d\n", i), 0o644) })
}

func onPath(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}

// lacks says which of some programs is not there.
func lacks(names ...string) func(*machine) string {
	return func(*machine) string {
		for _, n := range names {
			if !onPath(n) {
				return n + " is not on PATH"
			}
		}
		return ""
	}
}

// first is the first reason not to measure.
func first(all ...func(*machine) string) func(*machine) string {
	return func(m *machine) string {
		for _, f := range all {
			if why := f(m); why != "" {
				return why
			}
		}
		return ""
	}
}
