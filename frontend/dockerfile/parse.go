package dockerfile

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/util/suggest"
	"kiln.build/frontend"
	"kiln.build/solver"
)

// location is the lines of an instruction, as BuildKit's packages have it.
type location = []parser.Range

// parse reads the text into stages and returns the arguments before them.
func (b *build) parse() ([]instructions.ArgCommand, error) {
	b.lint = linter.New(&linter.Config{SkipAll: b.SkipChecks, Warn: b.warn})
	if len(bytes.TrimSpace(b.Dockerfile)) == 0 {
		return nil, &frontend.SourceError{Location: solver.Location{File: b.file}, Err: errors.New("the Dockerfile is empty")}
	}
	if err := b.directives(); err != nil {
		return nil, err
	}
	parsed, err := parseLong(b.Dockerfile)
	if err != nil {
		if _, _, loc, ok := parser.ParseDirective("escape", b.Dockerfile); ok && strings.Contains(err.Error(), "escape token") {
			return nil, b.at(loc, err) // the parser tells no place
		}
		return nil, b.located(err)
	}
	b.lex = shell.NewLex(parsed.EscapeToken)
	b.rawLex = shell.NewLex('\\')
	b.rawLex.SkipProcessQuotes = true
	b.shownLex = shell.NewLex(parsed.EscapeToken)
	b.shownLex.RawQuotes, b.shownLex.RawEscapes, b.shownLex.SkipUnsetEnv = true, true, true
	for _, w := range parsed.Warnings {
		if w.Location != nil {
			b.lint.Run(&linter.RuleNoEmptyContinuation, location{*w.Location}, linter.RuleNoEmptyContinuation.Format())
		}
	}
	stages, globalArgs, err := instructions.Parse(parsed.AST, b.lint)
	if err != nil {
		return nil, b.located(err)
	}
	if len(stages) == 0 {
		return nil, &frontend.SourceError{Location: solver.Location{File: b.file}, Err: errors.New("no build stage: a Dockerfile needs a FROM")}
	}
	for i, st := range stages {
		s := &stage{Stage: st, index: i, name: strings.ToLower(st.Name)}
		if len(stages) > 1 {
			s.label = s.String() + " "
		}
		b.stages = append(b.stages, s)
		if s.name != "" {
			b.byName[s.name] = append(b.byName[s.name], s)
		}
		for _, c := range st.Commands {
			if c, ok := c.(*instructions.ArgCommand); ok {
				b.declare(c.Args)
			}
		}
	}
	b.checkNames()
	b.checkCasing()
	return globalArgs, nil
}

func (b *build) declare(args []instructions.KeyValuePairOptional) {
	for _, a := range args {
		b.declared[a.Key] = true
	}
}

// place is the lines that ranges span.
func (b *build) place(ranges location) solver.Location {
	loc := solver.Location{File: b.file}
	for _, r := range ranges {
		if loc.Start == 0 || r.Start.Line < loc.Start {
			loc.Start = r.Start.Line
		}
		loc.End = max(loc.End, r.End.Line)
	}
	return loc
}

// located gives an error of BuildKit's packages our form. They say the line
// in words too; that is left out.
func (b *build) located(err error) error {
	var at *parser.LocationError
	loc := solver.Location{File: b.file}
	if errors.As(err, &at) && len(at.Locations) > 0 {
		loc = b.place(at.Locations[0])
	}
	if loc.Start == 0 && strings.Contains(err.Error(), "invalid escape token") {
		loc.Start = escapeLine(b.Dockerfile)
		loc.End = loc.Start
	}
	if strings.HasPrefix(err.Error(), fmt.Sprintf("dockerfile parse error on line %d: ", loc.Start)) {
		if inner := errors.Unwrap(err); inner != nil {
			err = inner
		}
	}
	return frontend.At(loc, err)
}

// escapeLine is the line of the escape directive, whose errors have no place.
func escapeLine(text []byte) int {
	n := 0
	for line := range bytes.Lines(text) {
		n++
		key, _, _ := bytes.Cut(bytes.TrimPrefix(bytes.TrimSpace(line), []byte("#")), []byte("="))
		if bytes.EqualFold(bytes.TrimSpace(key), []byte("escape")) {
			return n
		}
	}
	return 0
}

// at gives an error the place of an instruction.
func (b *build) at(ranges location, err error) error {
	return frontend.At(b.place(ranges), err)
}

// near is the option nearest to a name, or empty.
func near(name string, options []string) string {
	for _, n := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
		if found, ok := suggest.Search(n, options, true); ok && found != name {
			return found
		}
	}
	return ""
}

// didYouMean is a hint at the option nearest to a name, or empty.
func didYouMean(name string, options []string) string {
	if n := near(name, options); n != "" {
		return fmt.Sprintf(" (did you mean %s?)", n)
	}
	return ""
}
