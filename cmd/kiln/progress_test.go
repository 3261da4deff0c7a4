package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"kiln.build/solver"
)

// play sends a small build's events: one step cached, one that fails with
// output on both streams and a last line without an end, one stopped.
func play(d solver.Sink) {
	begin := time.Unix(1000, 0)
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	from := &solver.Vertex{Step: &solver.Step{Name: "[1/3] FROM base"}}
	run := &solver.Vertex{Step: &solver.Step{Name: "[2/3] RUN make"}}
	slow := &solver.Vertex{Step: &solver.Step{Name: "[other 1/1] RUN <<EOF\nsleep 9\nEOF"}}
	hidden := &solver.Vertex{}
	for _, e := range []solver.Event{
		{Kind: solver.Cached, Vertex: from, Time: at(0)},
		{Kind: solver.Started, Vertex: hidden, Time: at(0)},
		{Kind: solver.Done, Vertex: hidden, Time: at(1)},
		{Kind: solver.Started, Vertex: run, Time: at(1)},
		{Kind: solver.Started, Vertex: slow, Time: at(1)},
		{Kind: solver.Logged, Vertex: run, Time: at(101), Stream: 1, Data: []byte("one\r\ntw")},
		{Kind: solver.Logged, Vertex: run, Time: at(201), Stream: 2, Data: []byte("oops\n")},
		{Kind: solver.Logged, Vertex: run, Time: at(301), Stream: 1, Data: []byte("o\nlast")},
		{Kind: solver.Failed, Vertex: run, Time: at(401), Err: errors.New("exit code: 2")},
		{Kind: solver.Canceled, Vertex: slow, Time: at(501)},
	} {
		d.Event(e)
	}
}

func TestPlainProgress(t *testing.T) {
	var out bytes.Buffer
	d, err := newDisplay("plain", &out)
	if err != nil {
		t.Fatal(err)
	}
	play(d)
	d.Close(errors.New("failed"))
	want := `#1 [1/3] FROM base
#1 CACHED

#2 [2/3] RUN make

#3 [other 1/1] RUN <<EOF …

#2 [2/3] RUN make
#2 0.100 one
#2 0.200 oops
#2 0.300 two
#2 0.400 last
#2 ERROR: exit code: 2

#3 [other 1/1] RUN <<EOF …
#3 CANCELED
------
 > [2/3] RUN make:
0.100 one
0.200 oops
0.300 two
0.400 last
------
`
	if got := out.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestQuietProgressShowsFailures(t *testing.T) {
	var out bytes.Buffer
	d, err := newDisplay("quiet", &out)
	if err != nil {
		t.Fatal(err)
	}
	play(d)
	d.Close(errors.New("failed"))
	want := "------\n > [2/3] RUN make:\none\noops\ntwo\nlast\n------\n"
	if got := out.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSpoolKeepsEveryLine(t *testing.T) {
	var s spool
	defer s.close()
	var want strings.Builder
	for i := range 60_000 {
		l := fmt.Sprintf("line %d\n", i)
		want.WriteString(l)
		if _, err := s.Write([]byte(l)); err != nil {
			t.Fatal(err)
		}
	}
	var got bytes.Buffer
	s.copyTo(&got)
	if got.String() != want.String() {
		t.Errorf("got %d bytes back, want %d", got.Len(), want.Len())
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[2Jb\tc\r\u009bd é"); got != "a[2Jb cd é" {
		t.Errorf("got %q", got)
	}
}

func TestUnknownProgress(t *testing.T) {
	if _, err := newDisplay("fancy", &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "fancy") {
		t.Errorf("got %v", err)
	}
}
