package main

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/docker/go-units"
	"kiln.build/solver"
)

// plain writes a line for each event, in the form that readers of docker's
// plain progress know: "#4 0.123 text", "#4 CACHED", "#4 DONE 0.3s".
type plain struct {
	mu    sync.Mutex
	out   io.Writer
	buf   bytes.Buffer
	steps steps
	shown *step // whose lines were written last
}

func newPlain(out io.Writer) *plain { return &plain{out: out} }

func (p *plain) Event(e solver.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.steps.of(e)
	if st == nil {
		if e.Kind == solver.Warned {
			fmt.Fprintf(p.out, "warning: %s\n", e.Name)
		}
		return
	}
	switch e.Kind {
	case solver.Started:
		st.started, st.reason = e.Time, printable(e.Name)
		p.head(st)
	case solver.Cached:
		if st.state == solver.Done {
			return // one of several equal vertices
		}
		p.head(st)
		fmt.Fprintf(&p.buf, "#%d CACHED\n", st.number)
		st.state = solver.Done
	case solver.Logged:
		p.head(st)
		st.out[e.Stream%3].add(e.Data, func(line []byte) { p.line(st, e.Time, line) })
	case solver.Progressed:
		p.progress(st, e)
	case solver.Warned:
		p.head(st)
		fmt.Fprintf(&p.buf, "#%d WARN: %s\n", st.number, e.Name)
	case solver.Done, solver.Failed, solver.Canceled:
		p.head(st)
		for i := range st.out {
			st.out[i].flush(func(line []byte) { p.line(st, e.Time, line) })
		}
		p.end(st, e)
	}
	p.write()
}

// head names the step whenever the output turns to another one.
func (p *plain) head(st *step) {
	if p.shown == st {
		return
	}
	if p.shown != nil {
		p.buf.WriteByte('\n')
	}
	p.shown = st
	name := st.title()
	if st.told {
		name = st.name // the reason is told once
	}
	st.told = true
	fmt.Fprintf(&p.buf, "#%d %s\n", st.number, name)
}

func (p *plain) line(st *step, at time.Time, line []byte) {
	fmt.Fprintf(&p.buf, "#%d %.3f %s\n", st.number, at.Sub(st.started).Seconds(), line)
	fmt.Fprintf(&st.log, "%.3f %s\n", at.Sub(st.started).Seconds(), line)
}

// progress shows only the end of a transfer: logs are read afterwards.
func (p *plain) progress(st *step, e solver.Event) {
	if e.Total == 0 || e.Current < e.Total {
		return
	}
	p.head(st)
	fmt.Fprintf(&p.buf, "#%d %s %s done\n", st.number, e.Name, units.BytesSize(float64(e.Total)))
}

func (p *plain) end(st *step, e solver.Event) {
	st.state, st.err = e.Kind, e.Err
	took := seconds(e.Time.Sub(st.started))
	switch e.Kind {
	case solver.Done:
		fmt.Fprintf(&p.buf, "#%d DONE %s\n", st.number, took)
	case solver.Failed:
		fmt.Fprintf(&p.buf, "#%d ERROR: %s\n", st.number, e.Err)
	case solver.Canceled:
		fmt.Fprintf(&p.buf, "#%d CANCELED\n", st.number)
	}
}

func (p *plain) write() {
	_, _ = p.out.Write(p.buf.Bytes())
	p.buf.Reset()
}

func (p *plain) Close(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	printFailures(p.out, p.steps.byVertex)
}
