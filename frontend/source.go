package frontend

import (
	"errors"
	"fmt"
	"strings"

	"kiln.build/solver"
)

// SourceError is an error at a place in a source file.
type SourceError struct {
	Location solver.Location
	Err      error
}

func (e *SourceError) Error() string {
	if e.Location.Start == 0 {
		return fmt.Sprintf("%s: %v", e.Location.File, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.Location.File, e.Location.Start, e.Err)
}

func (e *SourceError) Unwrap() error { return e.Err }

// At wraps an error with a place, unless it has one already.
func At(loc solver.Location, err error) error {
	var have *SourceError
	if err == nil || errors.As(err, &have) {
		return err
	}
	return &SourceError{Location: loc, Err: err}
}

// LintError says that warnings were asked to be errors, and there are some.
type LintError struct {
	Rules []string // names of the rules violated, sorted
}

func (e *LintError) Error() string {
	return "lint violation found for rules: " + strings.Join(e.Rules, ", ")
}

// Snippet shows the lines of a place as docker does: numbered, framed, with
// ">>>" before those that are meant, two lines around a single one and one
// around several. It is empty where there are none.
func Snippet(source []byte, loc solver.Location) string {
	lines := strings.Split(strings.TrimSuffix(string(source), "\n"), "\n")
	if loc.Start < 1 || loc.Start > len(lines) {
		return ""
	}
	end := min(max(loc.End, loc.Start), len(lines))
	around := 1
	if end == loc.Start {
		around = 2
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d\n--------------------\n", loc.File, loc.Start)
	for i := max(1, loc.Start-around); i <= min(len(lines), end+around); i++ {
		mark := "   "
		if i >= loc.Start && i <= end {
			mark = ">>>"
		}
		fmt.Fprintf(&b, " %3d | %s %s\n", i, mark, strings.TrimSuffix(lines[i-1], "\r"))
	}
	b.WriteString("--------------------\n")
	return b.String()
}
