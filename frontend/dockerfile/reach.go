package dockerfile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// reach finds the stages that the roots need, with their base images, and
// returns them in the order of the file, in which each comes after those it
// uses. ONBUILD triggers of a base can add to what is needed, so it looks
// again until nothing is new.
func (b *build) reach(ctx context.Context, roots []*stage) ([]*stage, error) {
	for {
		used, err := b.closure(roots)
		if err != nil {
			return nil, err
		}
		if err := b.findImages(ctx, used); err != nil {
			return nil, err
		}
		more := false
		for _, s := range used {
			if s.triggered {
				continue
			}
			s.triggered = true
			n, err := b.trigger(s)
			if err != nil {
				return nil, b.at(s.Location, err)
			}
			more = more || n > 0
		}
		if !more {
			return used, nil
		}
	}
}

// closure finds all stages that the roots depend on, in order.
func (b *build) closure(roots []*stage) ([]*stage, error) {
	const visiting, done = 1, 2
	var used []*stage
	state := make([]byte, len(b.stages))
	var visit func(s *stage, from location) error
	visit = func(s *stage, from location) error {
		switch state[s.index] {
		case visiting:
			return b.at(from, fmt.Errorf("circular dependency detected on stage: %s", s))
		case done:
			return nil
		}
		state[s.index] = visiting
		if err := b.link(s); err != nil {
			return err
		}
		if s.base.stage != nil {
			if err := visit(s.base.stage, s.Location); err != nil {
				return err
			}
		}
		for _, c := range s.commands {
			for _, src := range c.sources {
				if src.stage == nil {
					continue
				}
				if err := visit(src.stage, c.Location()); err != nil {
					return err
				}
				if src.stage.index > s.index {
					return b.at(c.Location(), fmt.Errorf("cannot copy from stage %q: it needs to be defined before stage %q", src.stage, s))
				}
			}
		}
		state[s.index] = done
		used = append(used, s)
		return nil
	}
	for _, s := range roots {
		if err := visit(s, s.Location); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(used, func(a, b *stage) int { return a.index - b.index })
	return used, nil
}

// link fills in a stage's own commands and what they name.
func (b *build) link(s *stage) error {
	if s.linked {
		return nil
	}
	s.linked = true
	s.commands = make([]*command, 0, len(s.Commands))
	for _, in := range s.Commands {
		c := &command{Command: in, lint: b.lint.WithMergedConfigFromComments(in.Comments())}
		if err := b.sources(s, c); err != nil {
			return b.at(c.Location(), err)
		}
		s.commands = append(s.commands, c)
	}
	return nil
}

// sources finds out what a command's "from" flags name.
func (b *build) sources(s *stage, c *command) error {
	switch in := c.Command.(type) {
	case *instructions.CopyCommand:
		if in.From == "" {
			return nil
		}
		if plain, _, err := b.lex.ProcessWord(in.From, &variables{}); err != nil || plain != in.From {
			return fmt.Errorf("--from=%s: variable expansion is not supported for --from: define a new stage, with FROM and an ARG before the first FROM", in.From)
		}
		src, err := b.source(s, in.From, true)
		c.sources = []source{src}
		return err
	case *instructions.RunCommand:
		// "from" is known now and takes no variables; the other options of a
		// mount are known once the variables are.
		mounts := instructions.GetMounts(in)
		c.sources = make([]source, len(mounts))
		for i, m := range mounts {
			if m.From == "" {
				continue
			}
			src, err := b.source(s, m.From, false)
			if err != nil {
				return err
			}
			c.sources[i] = src
		}
	}
	return nil
}

// trigger puts the ONBUILD triggers that a stage inherits before its own
// commands, and returns how many there are.
func (b *build) trigger(s *stage) (int, error) {
	var texts []string
	switch {
	case s.base.image != nil:
		texts = s.base.image.config.Config.OnBuild
	case s.base.stage != nil:
		for _, c := range s.base.stage.commands {
			if c, ok := c.Command.(*instructions.OnbuildCommand); ok {
				texts = append(texts, c.Expression)
			}
		}
	}
	var all []*command
	for _, text := range texts {
		at := b.place(s.Location)
		in, err := parseTrigger(text, at.Start, at.End)
		if err != nil {
			return 0, fmt.Errorf("ONBUILD trigger %q of the base: %w", text, err)
		}
		c := &command{Command: in, trigger: true, lint: b.lint}
		if in, ok := in.(*instructions.ArgCommand); ok {
			b.declare(in.Args)
		}
		if err := b.sources(s, c); err != nil {
			return 0, fmt.Errorf("ONBUILD trigger %q of the base: %w", text, err)
		}
		all = append(all, c)
	}
	s.commands = append(all, s.commands...)
	return len(all), nil
}

// parseTrigger parses the text of an ONBUILD as an instruction that stands
// in these lines.
func parseTrigger(text string, start, end int) (instructions.Command, error) {
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	if len(parsed.AST.Children) != 1 {
		return nil, errors.New("must be one instruction")
	}
	node := parsed.AST.Children[0]
	node.StartLine, node.EndLine = start, end
	return instructions.ParseCommand(node)
}
