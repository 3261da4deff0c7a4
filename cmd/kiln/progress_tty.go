package main

import (
	"bytes"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"
	"github.com/moby/term"
	"kiln.build/solver"
)

// Control sequences of every terminal in use (ECMA-48): cursor to the start
// of the line n lines up, erase to the end of the screen, wrapping off and
// on, and the colours that mark states besides their words.
const (
	escUp     = "\x1b[%dF"
	escErase  = "\x1b[J"
	escNoWrap = "\x1b[?7l"
	escWrap   = "\x1b[?7h"
	escDone   = "\x1b[34m"
	escCached = "\x1b[36m"
	escFailed = "\x1b[31m"
	escDim    = "\x1b[2m"
	escReset  = "\x1b[0m"
)

// frame is the time between two drawings; logTail is how many of a running
// step's last lines are shown.
const (
	frame   = 100 * time.Millisecond
	logTail = 4
)

// tty keeps the steps that run at the bottom of the screen, each with its
// time and last lines; finished ones scroll up as they end.
type tty struct {
	out     *os.File
	colour  bool
	stop    chan struct{}
	stopped chan struct{}

	mu       sync.Mutex
	steps    steps
	running  map[*step][]string // with the last lines printed
	finished []string           // to be written above the running ones
	drawn    int                // lines drawn below the finished ones
	begun    time.Time
	done     int
}

func newTTY(out *os.File) *tty {
	t := &tty{
		out: out, colour: os.Getenv("NO_COLOR") == "",
		stop: make(chan struct{}), stopped: make(chan struct{}),
		running: map[*step][]string{}, begun: time.Now(),
	}
	go t.loop()
	return t
}

func (t *tty) loop() {
	defer close(t.stopped)
	tick := time.NewTicker(frame)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.mu.Lock()
			t.draw()
			t.mu.Unlock()
		case <-t.stop:
			return
		}
	}
}

func (t *tty) Event(e solver.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := t.steps.of(e)
	if st == nil {
		if e.Kind == solver.Warned {
			t.finished = append(t.finished, "warning: "+printable(e.Name))
		}
		return
	}
	switch e.Kind {
	case solver.Started:
		st.started, st.reason = e.Time, printable(e.Name)
		t.running[st] = nil
	case solver.Cached:
		if st.state == solver.Done {
			return
		}
		st.state = solver.Done
		t.done++
		t.finished = append(t.finished, t.row(escCached, "CACHED "+printable(st.name), "0.0s"))
	case solver.Logged:
		st.out[e.Stream%3].add(e.Data, func(line []byte) { t.line(st, e.Time, line) })
	case solver.Progressed:
		if st.parts == nil {
			st.parts = map[string]part{}
		}
		st.parts[e.Name] = part{e.Current, e.Total}
	case solver.Warned:
		t.finished = append(t.finished, "warning: "+printable(st.name+": "+e.Name))
	case solver.Done, solver.Failed, solver.Canceled:
		for i := range st.out {
			st.out[i].flush(func(line []byte) { t.line(st, e.Time, line) })
		}
		st.state, st.err, st.ended = e.Kind, e.Err, e.Time
		delete(t.running, st)
		t.finish(st)
	}
}

func (t *tty) line(st *step, at time.Time, line []byte) {
	fmt.Fprintf(&st.log, "%.3f %s\n", at.Sub(st.started).Seconds(), line)
	tail := append(t.running[st], string(line))
	t.running[st] = tail[max(0, len(tail)-logTail):]
}

func (t *tty) finish(st *step) {
	took := seconds(st.ended.Sub(st.started))
	switch st.state {
	case solver.Done:
		t.done++
		t.finished = append(t.finished, t.row(escDone, printable(st.title()), took))
	case solver.Failed:
		t.finished = append(t.finished, t.row(escFailed, "ERROR "+printable(st.name), took))
	case solver.Canceled:
		t.finished = append(t.finished, t.row(escDim, "CANCELED "+printable(st.name), took))
	}
}

// row is " => text ... time", the time at the right edge.
func (t *tty) row(colour, text, right string) string {
	width := t.width()
	text = " => " + text
	room := max(10, width-len(right)-1)
	if n := utf8.RuneCountInString(text); n > room {
		text = string([]rune(text)[:room-1]) + "…"
	} else {
		text += strings.Repeat(" ", room-n)
	}
	if t.colour {
		return colour + text + " " + right + escReset
	}
	return text + " " + right
}

func (t *tty) width() int {
	if ws, err := term.GetWinsize(t.out.Fd()); err == nil && ws.Width > 0 {
		return int(ws.Width)
	}
	return 80
}

func (t *tty) height() int {
	if ws, err := term.GetWinsize(t.out.Fd()); err == nil && ws.Height > 0 {
		return int(ws.Height)
	}
	return 24
}

// draw replaces the live part: finished steps are written for good, then the
// running ones below them.
func (t *tty) draw() {
	var b bytes.Buffer
	b.WriteString(escNoWrap)
	if t.drawn > 0 {
		fmt.Fprintf(&b, escUp, t.drawn)
	}
	b.WriteString(escErase)
	for _, l := range t.finished {
		b.WriteString(l + "\n")
	}
	t.finished = nil
	live := t.live(time.Now())
	for _, l := range live {
		b.WriteString(l + "\n")
	}
	t.drawn = len(live)
	b.WriteString(escWrap)
	_, _ = t.out.Write(b.Bytes())
}

// live is what is shown of the running steps; it never fills the screen.
func (t *tty) live(now time.Time) []string {
	if len(t.running) == 0 {
		return nil
	}
	running := make([]*step, 0, len(t.running))
	for st := range t.running {
		running = append(running, st)
	}
	sort.Slice(running, func(i, j int) bool { return running[i].number < running[j].number })
	rows := []string{fmt.Sprintf("[+] Building %s (%d/%d)", seconds(now.Sub(t.begun)), t.done, t.steps.last)}
	room := t.height() - 2
	tail := logTail
	if len(running)*(1+tail) > room {
		tail = max(0, room/len(running)-1)
	}
	for i, st := range running {
		if len(rows) >= room {
			rows = append(rows, fmt.Sprintf("    and %d more", len(running)-i))
			break
		}
		rows = append(rows, t.row("", printable(st.title())+transfer(st.parts), seconds(now.Sub(st.started))))
		tailed := t.running[st]
		for _, l := range tailed[max(0, len(tailed)-tail):] {
			rows = append(rows, t.dim(" => => # "+printable(l)))
		}
	}
	return rows
}

func (t *tty) dim(s string) string {
	if r := []rune(s); len(r) > t.width() {
		s = string(r[:t.width()-1]) + "…"
	}
	if t.colour {
		return escDim + s + escReset
	}
	return s
}

// transfer sums up the transfers of a step.
func transfer(parts map[string]part) string {
	var sum part
	for _, p := range parts {
		sum.current += p.current
		sum.total += p.total
	}
	if sum.total == 0 {
		return ""
	}
	return fmt.Sprintf("  %s / %s", units.BytesSize(float64(sum.current)), units.BytesSize(float64(sum.total)))
}

// printable replaces control characters: what a step prints must not steer
// the user's terminal while we draw on it.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0:
			return -1
		}
		return r
	}, s)
}

func (t *tty) Close(err error) {
	close(t.stop)
	<-t.stopped
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running = nil
	state := "FINISHED"
	if err != nil {
		state = "FAILED"
	}
	t.finished = append(t.finished, fmt.Sprintf("[+] Building %s (%d/%d) %s", seconds(time.Since(t.begun)), t.done, t.steps.last, state))
	t.draw()
	printFailures(tamed(t.out), t.steps.byVertex)
}
