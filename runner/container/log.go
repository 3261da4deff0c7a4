package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// maxLog is the size at which a log is put aside; the one put aside before
// is dropped then.
const maxLog = 32 << 20

// Line is an entry of a log: docker's json-file form.
type Line struct {
	Log    string    `json:"log"`    // with its newline, if it has one
	Stream string    `json:"stream"` // "stdout" or "stderr"
	Time   time.Time `json:"time"`
}

// logger writes a container's log.
type logger struct {
	path string

	mu   sync.Mutex
	f    *os.File
	size int64
}

func openLog(path string) (*logger, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &logger{path: path, f: f, size: size}, nil
}

func (l *logger) add(line Line) error {
	data, err := json.Marshal(line)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > maxLog {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	n, err := l.f.Write(append(data, '\n'))
	l.size += int64(n)
	return err
}

func (l *logger) rotate() error {
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	err = l.f.Close()
	l.f, l.size = f, 0
	return err
}

func (l *logger) close() error { return l.f.Close() }

// maxLine is how much of a line without an end is kept in memory.
const maxLine = 16 << 10

// stream cuts what is written to it into lines of a log.
type stream struct {
	l    *logger
	name string
	rest []byte
}

func (s *stream) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n') + 1
		if i == 0 {
			i = len(p)
		}
		s.rest = append(s.rest, p[:i]...)
		p = p[i:]
		if s.rest[len(s.rest)-1] == '\n' || len(s.rest) >= maxLine {
			if err := s.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (s *stream) flush() error {
	if len(s.rest) == 0 {
		return nil
	}
	err := s.l.add(Line{Log: string(s.rest), Stream: s.name, Time: time.Now().UTC()})
	s.rest = s.rest[:0]
	return err
}

// LogOptions say which lines of a log are wanted.
type LogOptions struct {
	Tail   int // last lines only; negative is all
	Since  time.Time
	Until  time.Time
	Follow bool // wait for more until the container has ended
}

// Logs calls f for the lines of the container's log.
func (c *Container) Logs(ctx context.Context, o LogOptions, f func(Line) error) error {
	var lines []Line
	take := func(l Line) error {
		if l.Time.Before(o.Since) || !o.Until.IsZero() && l.Time.After(o.Until) {
			return nil
		}
		if o.Tail < 0 {
			return f(l)
		}
		lines = append(lines, l)
		if len(lines) > o.Tail {
			lines = lines[1:]
		}
		return nil
	}
	path := filepath.Join(c.dir, "log")
	if _, err := readLog(path+".1", 0, take); err != nil {
		return err
	}
	at, err := readLog(path, 0, take)
	if err != nil {
		return err
	}
	for _, l := range lines {
		if err := f(l); err != nil {
			return err
		}
	}
	o.Tail = -1
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for o.Follow {
		st, err := c.State()
		if err != nil {
			return err
		}
		if fi, err := os.Stat(path); err == nil && fi.Size() < at {
			at = 0 // put aside
		}
		if at, err = readLog(path, at, take); err != nil {
			return err
		}
		if st.Status == Exited {
			return nil // what was there when it had ended has been read
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// readLog reads whole lines from an offset on, and returns where it stopped.
func readLog(path string, from int64, f func(Line) error) (int64, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return from, nil
	}
	if err != nil {
		return from, err
	}
	defer file.Close()
	if _, err := file.Seek(from, io.SeekStart); err != nil {
		return from, err
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return from, err
	}
	for {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			return from, nil
		}
		var l Line
		if json.Unmarshal(data[:i], &l) == nil { // a torn line is skipped
			if err := f(l); err != nil {
				return from, err
			}
		}
		data = data[i+1:]
		from += int64(i + 1)
	}
}
