package main

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"sync"

	"github.com/moby/term"
)

// tame passes text on to a terminal without what would steer it. A step, or a
// Dockerfile, may hold any text, and terminals obey: they hand out or replace
// the clipboard, and type what their title is. Of control characters, line
// ends, tabs and colours are left.
type tame struct {
	to   io.Writer
	held []byte // what may be the beginning of a colour, or of a control character
}

// tamed is out, tame where it is a terminal.
func tamed(out io.Writer) io.Writer {
	if f, ok := out.(*os.File); ok && term.IsTerminal(f.Fd()) {
		return &tame{to: out}
	}
	return out
}

var (
	controls = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`\x1b\[[0-9;:]*m|[\x00-\x08\x0b-\x1f\x7f\x{80}-\x{9f}]`)
	})
	unfinished = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\x1b(\[[0-9;:]{0,32})?$`) })
)

func (t *tame) Write(p []byte) (int, error) {
	text := append(bytes.Clone(t.held), p...)
	t.held = nil
	cut := len(text)
	if at := unfinished().FindIndex(text[max(0, cut-40):]); at != nil {
		cut = max(0, cut-40) + at[0]
	} else if cut > 0 && text[cut-1] == 0xc2 { // of U+0080 to U+009F
		cut--
	}
	t.held = bytes.Clone(text[cut:])
	shown := controls().ReplaceAllFunc(text[:cut], func(c []byte) []byte {
		if c[len(c)-1] == 'm' {
			return c
		}
		return nil
	})
	_, err := t.to.Write(shown)
	return len(p), err
}
