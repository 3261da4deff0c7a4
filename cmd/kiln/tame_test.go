package main

import (
	"bytes"
	"testing"
)

func TestTame(t *testing.T) {
	const hostile = "\x1b]52;c;cHduZWQ=\aa\x1b[2Jb\x1b[1;31mred\x1b[0m\r\n\ttab é\u009b6n\x1b[\x7f\x1bPq\x1b\\end\n"
	const want = "]52;c;cHduZWQ=a[2Jb\x1b[1;31mred\x1b[0m\n\ttab é6n[Pq\\end\n"
	for size := 1; size <= len(hostile); size++ {
		var b bytes.Buffer
		w := &tame{to: &b}
		for p := []byte(hostile); len(p) > 0; {
			n := min(size, len(p))
			if m, err := w.Write(p[:n]); m != n || err != nil {
				t.Fatal(m, err)
			}
			p = p[n:]
		}
		if b.String() != want {
			t.Fatalf("in pieces of %d: %q, want %q", size, b.String(), want)
		}
	}
}
