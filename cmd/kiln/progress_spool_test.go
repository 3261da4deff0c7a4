package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// A step's output is kept whole as long as it is not huge; of a huge one the
// beginning and the end are, and no more.
func TestSpool(t *testing.T) {
	for _, lines := range []int{0, 10, 30_000, 1_000_000} {
		s := &spool{}
		var all bytes.Buffer
		line := func(i int) string { return fmt.Sprintf("%0*d\n", 50+i%7, i) }
		for i := range lines {
			all.WriteString(line(i))
			if _, err := s.Write([]byte(line(i))); err != nil {
				t.Fatal(err)
			}
		}
		var got bytes.Buffer
		s.copyTo(&got)
		if all.Len() <= spoolFile {
			if got.String() != all.String() {
				t.Errorf("%d lines: %d bytes are not those written", lines, got.Len())
			}
		} else {
			if !strings.HasPrefix(got.String(), all.String()[:spoolMemory-100]) || !strings.HasSuffix(got.String(), all.String()[all.Len()-spoolFile:]) {
				t.Errorf("%d lines: beginning or end are missing", lines)
			}
			if !strings.Contains(got.String(), "bytes of output are left out here") {
				t.Errorf("%d lines: nothing says that some are left out", lines)
			}
			if fi, err := s.file.Stat(); err != nil || fi.Size() > spoolFile {
				t.Errorf("a file of %d bytes, %v", fi.Size(), err)
			}
		}
		s.close()
	}
}

// A line that does not end is cut, and what follows is not lost.
func TestLongLines(t *testing.T) {
	text := strings.Repeat("x", 3*maxLine+5) + "\nshort\n" + strings.Repeat("y", maxLine) + "\nend"
	for _, step := range []int{1 << 20, 1000, maxLine, maxLine - 1, maxLine + 1, 7} {
		var l lines
		var got []string
		add := func(b []byte) { got = append(got, string(b)) }
		for p := text; p != ""; {
			n := min(step, len(p))
			l.add([]byte(p[:n]), add)
			if len(l.rest) > maxLine {
				t.Fatalf("%d bytes are kept", len(l.rest))
			}
			p = p[n:]
		}
		l.flush(add)
		if strings.Join(got, "") != strings.ReplaceAll(text, "\n", "") {
			t.Errorf("step %d: not the same text", step)
		}
		for _, line := range got {
			if len(line) > maxLine {
				t.Errorf("step %d: a line of %d bytes", step, len(line))
			}
		}
	}
}
