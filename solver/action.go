package solver

import (
	"io"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// descriptionVersion heads every description. Raising it makes all earlier
// keys unreachable: do so when the meaning of an op changes.
const descriptionVersion = "kiln action 1"

// An Action is an op together with the outputs it is applied to.
type Action struct {
	Key digest.Digest // digest of Description

	// Description is the readable text that the key is the hash of: one
	// labelled line for each fact. Two actions differ where their lines do.
	Description string

	Op     Op
	Inputs []Output
	Using  []Output
	Below  *Output // nil where the vertex has none
	Step   *Step   // nil for hidden vertices

	events Sink
	vertex *Vertex
}

// Log returns a writer for what the action prints on a stream (1 is
// standard output, 2 standard error). It is safe for concurrent use.
func (a *Action) Log(stream int) io.Writer { return logWriter{a, stream} }

// Progress reports how far a part of the action, such as the transfer of a
// blob, has come: current of total units, total being zero where unknown.
func (a *Action) Progress(name string, current, total int64) {
	a.emit(Event{Kind: Progressed, Name: name, Current: current, Total: total})
}

// Warn reports something that the user should know and that is no error.
func (a *Action) Warn(text string) { a.emit(Event{Kind: Warned, Name: text}) }

func (a *Action) emit(e Event) time.Time {
	e.Vertex, e.Time = a.vertex, time.Now()
	if a.events != nil {
		a.events.Event(e)
	}
	return e.Time
}

type logWriter struct {
	a      *Action
	stream int
}

func (w logWriter) Write(p []byte) (int, error) {
	w.a.emit(Event{Kind: Logged, Stream: w.stream, Data: append([]byte(nil), p...)})
	return len(p), nil
}

// A Description collects the labelled lines that define an op. A line is a
// label followed by quoted values, so no value can be mistaken for another
// line.
type Description struct {
	b strings.Builder
}

// Line adds a line, such as Line("env", "PATH", "/bin").
func (d *Description) Line(label string, values ...string) {
	d.b.WriteString(label)
	for _, v := range values {
		d.b.WriteByte(' ')
		d.b.Write(strconv.AppendQuote(nil, v))
	}
	d.b.WriteByte('\n')
}

// Int adds a line with a number, unless it is zero.
func (d *Description) Int(label string, n int64) {
	if n != 0 {
		d.Line(label, strconv.FormatInt(n, 10))
	}
}

// Bool adds a line where b is true.
func (d *Description) Bool(label string, b bool) {
	if b {
		d.Line(label)
	}
}

// Set adds a line for each value, in sorted order: for values whose order
// cannot matter.
func (d *Description) Set(label string, values []string) {
	sorted := append([]string(nil), values...)
	sort.Strings(sorted)
	for _, v := range sorted {
		d.Line(label, v)
	}
}

// List adds a line for each value, in order.
func (d *Description) List(label string, values []string) {
	for _, v := range values {
		d.Line(label, v)
	}
}

// Describe returns the text an op writes of itself.
func Describe(op Op) string {
	var d Description
	op.Describe(&d)
	return d.b.String()
}

// describeAction is the full description of an op over input digests.
func describeAction(op string, inputs []Output) string {
	var b strings.Builder
	b.Grow(len(descriptionVersion) + len(op) + 84*len(inputs) + 2)
	b.WriteString(descriptionVersion)
	b.WriteByte('\n')
	b.WriteString(op)
	for i, in := range inputs {
		b.WriteString("input ")
		b.WriteString(strconv.Itoa(i))
		b.WriteByte(' ')
		b.WriteString(string(in.Digest))
		b.WriteByte('\n')
	}
	return b.String()
}
