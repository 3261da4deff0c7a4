package container

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// logged makes a container whose log has lines "line 1" to "line N".
func logged(t *testing.T, o Log, n int) *Container {
	t.Helper()
	c := create(t, newSet(t), Config{Log: o})
	l, err := c.openLog()
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	s := &stream{l: l, name: "stdout"}
	for i := range n {
		fmt.Fprintf(s, "line %d\n", i+1)
	}
	return c
}

func logs(t *testing.T, c *Container, o LogOptions) string {
	t.Helper()
	var b strings.Builder
	if err := c.Logs(t.Context(), o, func(l Line) error { b.WriteString(l.Log); return nil }); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestLogTail(t *testing.T) {
	c := logged(t, Log{}, 100)
	if got := logs(t, c, LogOptions{Tail: 2}); got != "line 99\nline 100\n" {
		t.Errorf("tail of 2: %q", got)
	}
	if got := logs(t, c, LogOptions{Tail: 0}); got != "" {
		t.Errorf("tail of 0: %q", got)
	}
	if got := logs(t, c, LogOptions{Tail: -1}); strings.Count(got, "\n") != 100 {
		t.Errorf("all: %q", got)
	}
	if got := logs(t, c, LogOptions{Tail: 1000}); strings.Count(got, "\n") != 100 {
		t.Errorf("tail of 1000: %q", got)
	}
	if got := logs(t, c, LogOptions{Tail: -1, Since: time.Now().Add(time.Hour)}); got != "" {
		t.Errorf("since later: %q", got)
	}
	if got := logs(t, c, LogOptions{Tail: -1, Until: time.Unix(1, 0)}); got != "" {
		t.Errorf("until earlier: %q", got)
	}
}

func TestLogBounds(t *testing.T) {
	c := logged(t, Log{MaxSize: 1000, MaxFile: 3}, 1000)
	got := logs(t, c, LogOptions{Tail: -1})
	if !strings.HasSuffix(got, "line 999\nline 1000\n") || strings.Contains(got, "line 1\n") {
		t.Errorf("got %q", got)
	}
	none := create(t, newSet(t), Config{Log: Log{Driver: "none"}})
	if l, err := none.openLog(); l != nil || err != nil || l.write([]byte("{}\n")) != nil || l.close() != nil {
		t.Errorf("no log: %v, %v", l, err)
	}
	if err := none.Logs(t.Context(), LogOptions{}, nil); err == nil {
		t.Error("a log that is not kept was read")
	}
}

// TestLogFollow reads what is written, through several turns of the file.
func TestLogFollow(t *testing.T) {
	c := create(t, newSet(t), Config{Log: Log{MaxSize: 2000, MaxFile: 50}})
	lock, err := tryLock(c.lockPath())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.setState(State{Status: Running}); err != nil {
		t.Fatal(err)
	}
	l, err := c.openLog()
	if err != nil {
		t.Fatal(err)
	}
	const n = 500
	go func() {
		s := &stream{l: l, name: "stderr"}
		for i := range n {
			fmt.Fprintf(s, "%d\n", i)
		}
		_ = c.setState(State{Status: Exited})
		lock.unlock()
	}()
	next := 0
	err = c.Logs(t.Context(), LogOptions{Tail: -1, Follow: true}, func(l Line) error {
		if l.Log != fmt.Sprintf("%d\n", next) || l.Stream != "stderr" {
			return fmt.Errorf("got %+v, want %d", l, next)
		}
		next++
		return nil
	})
	if err != nil || next != n {
		t.Errorf("%d lines, %v", next, err)
	}
}

// TestLongLines has output without newlines, which must not fill the memory.
func TestLongLines(t *testing.T) {
	c := create(t, newSet(t), Config{})
	l, err := c.openLog()
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{l: l, name: "stdout"}
	text := strings.Repeat("x", 3*maxLine+5)
	if _, err := io.WriteString(s, text); err != nil {
		t.Fatal(err)
	}
	if len(s.rest) != 5 || cap(s.rest) > 2*maxLine {
		t.Errorf("%d bytes are held, of %d", len(s.rest), cap(s.rest))
	}
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	if err := c.Logs(t.Context(), LogOptions{Tail: -1}, func(l Line) error {
		if len(l.Log) > maxLine {
			return fmt.Errorf("a line of %d bytes", len(l.Log))
		}
		got.WriteString(l.Log)
		return nil
	}); err != nil || got.String() != text {
		t.Errorf("%d bytes, %v; want %d", got.Len(), err, len(text))
	}
}

func TestLogOptions(t *testing.T) {
	var l Log
	for _, o := range []string{"max-size=10m", "max-file=4", "compress=true"} {
		if err := l.SetOption(o); err != nil {
			t.Error(err)
		}
	}
	if l.MaxSize != 10e6 || l.MaxFile != 4 {
		t.Errorf("got %+v", l)
	}
	for _, o := range []string{"max-size=", "max-size=0", "max-size=x", "max-file=0", "max-file=-1", "max-file=x", "compress=x", "labels-regex=(", "mode=x", "labels", ""} {
		if err := l.SetOption(o); err == nil {
			t.Errorf("%q was taken", o)
		}
	}
	if err := l.SetOption("max-size=-1"); err != nil || l.MaxSize != -1 {
		t.Errorf("got %+v, %v", l, err)
	}
}

// TestLogText has every byte, and what is no text, come back as JSON has it.
func TestLogText(t *testing.T) {
	c := create(t, newSet(t), Config{})
	l, err := c.openLog()
	if err != nil {
		t.Fatal(err)
	}
	var text, want strings.Builder
	for b := range 256 {
		line := "x" + string(rune(b)) + "\"\\<&>é\u2028\n"
		text.WriteString(line)
		want.WriteString(line)
	}
	text.WriteString("\xff\xfe\n")
	want.WriteString("\ufffd\ufffd\n")
	s := &stream{l: l, name: "stdout"}
	if _, err := io.WriteString(s, text.String()); err != nil {
		t.Fatal(err)
	}
	if got := logs(t, c, LogOptions{Tail: -1}); got != want.String() {
		t.Errorf("got %q, want %q", got, want.String())
	}
}

func BenchmarkLog(b *testing.B) {
	c, err := Set{b.TempDir() + "/containers"}.Create(b.Context(), Config{Args: []string{"true"}})
	if err != nil {
		b.Fatal(err)
	}
	l, err := c.openLog()
	if err != nil {
		b.Fatal(err)
	}
	s := &stream{l: l, name: "stdout"}
	chunk := []byte(strings.Repeat("a line of a usual length, as programs print them\n", 600))
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := s.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
}
