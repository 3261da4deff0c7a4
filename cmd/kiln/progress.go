package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/moby/term"
	"kiln.build/solver"
)

// display shows a build to people. Events may come from many goroutines;
// Close is called once, after the last of them, with the build's outcome.
type display interface {
	solver.Sink
	Close(err error)
}

// newDisplay makes the display that --progress asks for. With "auto" it is
// "tty" on a terminal and "plain" elsewhere.
func newDisplay(mode string, out io.Writer) (display, error) {
	f, _ := out.(*os.File)
	terminal := f != nil && term.IsTerminal(f.Fd())
	switch mode {
	case "auto", "":
		if terminal && os.Getenv("TERM") != "dumb" {
			return newTTY(f), nil
		}
		return newPlain(tamed(out)), nil
	case "plain":
		return newPlain(tamed(out)), nil
	case "tty":
		if !terminal {
			return nil, errors.New("--progress=tty: standard error is not a terminal")
		}
		return newTTY(f), nil
	case "quiet", "none":
		return &quiet{out: tamed(out)}, nil
	}
	return nil, fmt.Errorf("--progress=%q: must be auto, plain, tty, quiet or none", mode)
}

// step is what a display remembers of one shown vertex.
type step struct {
	number  int
	name    string
	reason  string // why it runs, "" where that is not known
	told    bool   // that it runs was told with the reason
	started time.Time
	ended   time.Time
	state   solver.Kind
	out     [3]lines // partial lines by stream
	log     spool
	err     error
	parts   map[string]part // transfers under way
}

// title is the name, and why the step runs.
func (st *step) title() string {
	if st.reason == "" {
		return st.name
	}
	return st.name + "  (" + st.reason + ")"
}

// keep remembers a line of output for the case that the step fails.
func (st *step) keep(line []byte) { fmt.Fprintf(&st.log, "%s\n", line) }

// part is how far a transfer has come, in bytes.
type part struct{ current, total int64 }

// steps numbers the vertices in the order in which they are first heard of.
type steps struct {
	byVertex map[*solver.Vertex]*step
	last     int
}

// of returns the step of an event, or nil for a hidden vertex.
func (s *steps) of(e solver.Event) *step {
	if e.Vertex == nil || e.Vertex.Step == nil || e.Vertex.Step.Name == "" {
		return nil
	}
	st, ok := s.byVertex[e.Vertex]
	if !ok {
		if s.byVertex == nil {
			s.byVertex = map[*solver.Vertex]*step{}
		}
		s.last++
		st = &step{number: s.last, name: oneLine(e.Vertex.Step.Name), started: e.Time}
		s.byVertex[e.Vertex] = st
	}
	return st
}

// oneLine folds a name that holds a heredoc into a single line.
func oneLine(name string) string {
	if i := strings.IndexByte(name, '\n'); i >= 0 {
		return strings.TrimRight(name[:i], " \\") + " …"
	}
	return name
}

// maxLine is where a line that does not end is cut: a step may print any
// amount without an end.
const maxLine = 64 << 10

// lines cuts a stream into lines.
type lines struct{ rest []byte }

// add calls f with each line that p completes, without its end.
func (l *lines) add(p []byte, f func(line []byte)) {
	for {
		i := bytes.IndexByte(p, '\n')
		if room := maxLine - len(l.rest); i < 0 && len(p) >= room || i > room {
			f(append(l.rest, p[:room]...))
			l.rest, p = nil, p[room:]
			continue
		}
		if i < 0 {
			l.rest = append(l.rest, p...)
			return
		}
		line := p[:i]
		if len(l.rest) > 0 {
			line = append(l.rest, line...)
			l.rest = nil
		}
		f(bytes.TrimSuffix(line, []byte{'\r'}))
		p = p[i+1:]
	}
}

// flush calls f with what is left.
func (l *lines) flush(f func(line []byte)) {
	if len(l.rest) > 0 {
		f(bytes.TrimSuffix(l.rest, []byte{'\r'}))
		l.rest = nil
	}
}

// spoolMemory is how much of the beginning of a step's output is kept, in
// memory; spoolFile how much of its end, in a file. A step may print more than
// the machine has memory and disk.
const (
	spoolMemory = 256 << 10
	spoolFile   = 32 << 20
)

// spool keeps the beginning and the end of what is written to it, for one
// reading.
type spool struct {
	mem  bytes.Buffer
	file *os.File // a ring
	size int64    // of all that went to the file
}

func (s *spool) Write(p []byte) (int, error) {
	n := len(p)
	if s.file == nil && s.mem.Len()+len(p) <= spoolMemory {
		return s.mem.Write(p)
	}
	if s.file == nil {
		f, err := os.CreateTemp("", "kiln-log-")
		if err != nil {
			return n, nil // the beginning is all there is
		}
		_ = os.Remove(f.Name())
		s.file = f
	}
	for len(p) > 0 {
		at := s.size % spoolFile
		part := p[:min(int64(len(p)), spoolFile-at)]
		if _, err := s.file.WriteAt(part, at); err != nil {
			return 0, err
		}
		s.size += int64(len(part))
		p = p[len(part):]
	}
	return n, nil
}

// copyTo writes out all that is kept, and says what is not.
func (s *spool) copyTo(w io.Writer) {
	_, _ = w.Write(s.mem.Bytes())
	if s.file == nil {
		return
	}
	if s.size <= spoolFile {
		_, _ = io.Copy(w, io.NewSectionReader(s.file, 0, s.size))
		return
	}
	fmt.Fprintf(w, "\n[%d bytes of output are left out here]\n", s.size-spoolFile)
	at := s.size % spoolFile
	_, _ = io.Copy(w, io.NewSectionReader(s.file, at, spoolFile-at))
	_, _ = io.Copy(w, io.NewSectionReader(s.file, 0, at))
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close()
	}
}

// printFailures writes the whole output of every failed step, framed as
// docker does.
func printFailures(w io.Writer, byVertex map[*solver.Vertex]*step) {
	for _, st := range byVertex {
		if st.state == solver.Failed && (st.log.mem.Len() > 0 || st.log.file != nil) {
			fmt.Fprintf(w, "------\n > %s:\n", st.name)
			st.log.copyTo(w)
			fmt.Fprintln(w, "------")
		}
		st.log.close()
	}
}

// quiet shows nothing unless a step fails.
type quiet struct {
	out io.Writer

	mu    sync.Mutex
	steps steps
}

func (q *quiet) Event(e solver.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	st := q.steps.of(e)
	if st == nil {
		return
	}
	switch e.Kind {
	case solver.Logged:
		st.out[e.Stream%3].add(e.Data, st.keep)
	case solver.Warned:
		fmt.Fprintf(q.out, "warning: %s: %s\n", st.name, e.Name)
	default:
		for i := range st.out {
			st.out[i].flush(st.keep)
		}
		st.state = e.Kind
	}
}

func (q *quiet) Close(error) { printFailures(q.out, q.steps.byVertex) }

// seconds shows a duration as docker does.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }
