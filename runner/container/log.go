package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"kiln.build/runner/journal"
)

// logFile is the file of the log.
func (c *Container) logFile() journal.File {
	size, files := c.Log.bounds()
	return journal.File{Path: filepath.Join(c.dir, "log"), Max: size, Keep: files}
}

// Line is an entry of a log: docker's json-file form.
type Line struct {
	Log    string            `json:"log"`    // with its newline, if it has one
	Stream string            `json:"stream"` // "stdout" or "stderr"
	Attrs  map[string]string `json:"attrs,omitempty"`
	Time   time.Time         `json:"time"`
}

// logger writes a container's log; a nil one drops it.
type logger struct {
	mu    sync.Mutex
	w     *journal.Writer
	attrs []byte // of each entry: JSON, with the comma after it, or nothing
}

func (c *Container) openLog() (*logger, error) {
	if c.Log.Driver == "none" {
		return nil, nil
	}
	attrs, err := c.logAttributes()
	if err != nil {
		return nil, fmt.Errorf("attributes of the log: %w", err)
	}
	w, err := c.logFile().Open()
	return &logger{w: w, attrs: attrs}, err
}

// write adds whole entries.
func (l *logger) write(entries []byte) error {
	if l == nil || len(entries) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.w.Write(entries)
	return err
}

func (l *logger) close() error {
	if l == nil {
		return nil
	}
	return l.w.Close()
}

// maxLine is how much of a line without an end is kept in memory.
const maxLine = 16 << 10

// stream cuts what is written to it into lines of a log.
type stream struct {
	l       *logger
	name    string
	rest    []byte // of a line that has no end yet
	entries []byte // made, and not written yet
}

// Write takes what was read at once. Its lines have one time, and are written
// together, since a container that prints much waits for this.
func (s *stream) Write(p []byte) (int, error) {
	n := len(p)
	now := time.Now().UTC()
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n') + 1
		if i == 0 {
			i = len(p)
		}
		i = min(i, maxLine-len(s.rest))
		s.rest = append(s.rest, p[:i]...)
		p = p[i:]
		if s.rest[len(s.rest)-1] == '\n' || len(s.rest) >= maxLine {
			s.entry(now)
		}
	}
	return n, s.put()
}

// flush writes a line that has no end.
func (s *stream) flush() error {
	if len(s.rest) > 0 {
		s.entry(time.Now().UTC())
	}
	return s.put()
}

// entry makes an entry of a line: a [Line] as JSON.
func (s *stream) entry(at time.Time) {
	b := append(s.entries, `{"log":`...)
	b = appendString(b, s.rest)
	b = append(append(b, `,"stream":"`...), s.name...)
	b = append(b, `",`...)
	if s.l != nil {
		b = append(b, s.l.attrs...)
	}
	b = append(b, `"time":"`...)
	b = at.AppendFormat(b, time.RFC3339Nano)
	s.entries, s.rest = append(b, "\"}\n"...), s.rest[:0]
}

func (s *stream) put() error {
	err := s.l.write(s.entries)
	if s.entries = s.entries[:0]; cap(s.entries) > maxEntries {
		s.entries = nil
	}
	return err
}

// maxEntries is how much memory a stream keeps between two writes.
const maxEntries = 64 << 10

// appendString adds a text as a JSON string. Most output needs no escapes, or
// just that of its newline.
func appendString(b, text []byte) []byte {
	begin := len(b)
	b = append(b, '"')
	for _, c := range text {
		switch {
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= ' ' && c < 0x7f:
			b = append(b, c)
		default:
			return append(b[:begin], quoted(text)...)
		}
	}
	return append(b, '"')
}

// quoted is a text as a JSON string. What is no UTF-8 is replaced, as in
// docker's logs.
func quoted(text []byte) []byte {
	var q bytes.Buffer
	e := json.NewEncoder(&q)
	e.SetEscapeHTML(false)
	if err := e.Encode(string(text)); err != nil {
		return []byte(`""`) // strings always encode
	}
	return bytes.TrimSuffix(q.Bytes(), []byte("\n"))
}

// LogOptions say which lines of a log are wanted.
type LogOptions struct {
	Tail   int // last lines only; negative is all
	Since  time.Time
	Until  time.Time
	Follow bool // wait for more until the container has ended
}

// errUntil ends the reading of a log.
var errUntil = errors.New("past the time until which lines are wanted")

// Logs calls f for the lines of the container's log.
func (c *Container) Logs(ctx context.Context, o LogOptions, f func(Line) error) error {
	if c.Log.Driver == "none" {
		return errors.New("configured logging driver does not support reading")
	}
	var tail []Line // of what was there at first
	waiting := o.Tail >= 0
	show := func() error {
		for _, l := range tail {
			if err := f(l); err != nil {
				return err
			}
		}
		tail, waiting = nil, false
		return nil
	}
	took := false
	over := func() bool {
		// Called before each reading, so the second time all that was there
		// has been taken.
		if took && waiting {
			if show() != nil {
				return true
			}
		}
		took = true
		if !o.Follow || !o.Until.IsZero() && time.Now().After(o.Until) {
			return true
		}
		st, err := c.State()
		return err != nil || !st.Status.Live()
	}
	err := c.logFile().Follow(ctx, over, func(text []byte) error {
		var l Line
		if json.Unmarshal(text, &l) != nil || l.Time.Before(o.Since) {
			return nil // a torn line is skipped
		}
		if !o.Until.IsZero() && l.Time.After(o.Until) {
			return errUntil
		}
		if !waiting {
			return f(l)
		}
		if o.Tail == 0 {
			return nil
		}
		if len(tail) == o.Tail {
			tail = tail[1:]
		}
		tail = append(tail, l)
		return nil
	})
	if err != nil && !errors.Is(err, errUntil) {
		return err
	}
	return show()
}
