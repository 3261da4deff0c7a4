package dockerfile

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"kiln.build/solver"
)

// stage is a FROM and what follows it, and the state while it is lowered.
type stage struct {
	instructions.Stage
	index int
	name  string // lower-case, or empty
	label string // in step names: "build ", or empty where it is the only one

	// What it starts from, by from.
	base     source
	platform ocispecs.Platform // asked for

	// What it consists of, by reach: triggers of the base, then its own.
	commands  []*command
	linked    bool // commands are filled in
	triggered bool // triggers are among them

	// Built up by lower.
	image      dockerspec.DockerOCIImage
	actual     ocispecs.Platform // of the root
	root       *solver.Vertex
	vars       *variables // what expansion and RUN see
	args       *variables // the ARGs declared, for the history
	workdirSet bool       // by a WORKDIR, here or in a stage below
	last       map[string]*command
	steps      int // shown in all
	step       int // shown so far
}

// command is an instruction of a stage.
type command struct {
	instructions.Command
	trigger bool     // comes from the base's ONBUILD
	sources []source // of a COPY --from: one; of a RUN: one for each mount
	lint    *linter.Linter
}

// warn raises a lint rule at the command.
func (c *command) warn(rule linter.LinterRuleI, text string) { c.lint.Run(rule, c.Location(), text) }

// source is what FROM or a "from" names: one of its fields is set, none for
// the empty root.
type source struct {
	stage   *stage
	image   *image
	context string // key of Options.Contexts, of a directory or an archive
}

// String names a source in messages.
func (s source) String() string {
	switch {
	case s.stage != nil:
		return "stage " + s.stage.String()
	case s.image != nil:
		return "image " + s.image.ref
	case s.context == MainContext:
		return "the build context"
	case s.context != "":
		return "the build context " + s.context
	}
	return "scratch"
}

// String names a stage in messages.
func (s *stage) String() string {
	if s.name != "" {
		return s.name
	}
	return "stage-" + strconv.Itoa(s.index)
}

// from finds out what a stage starts from. Stages are taken in order, and a
// name means the last stage so named before.
func (b *build) from(s *stage) error {
	lint := b.lint.WithMergedConfigFromComments(s.Comments)
	name, _, _, err := b.fromWord(s, lint, s.BaseName)
	if err != nil {
		return err
	}
	if name == "" {
		return fmt.Errorf("base name (%s) should not be blank", s.BaseName)
	}
	s.platform = b.Platform
	if s.Platform != "" {
		if err := b.fromPlatform(s, lint); err != nil {
			return err
		}
	}
	if s.name != "" {
		if src, ok := b.context(s.name, s.platform); ok {
			// A named context takes the place of the whole stage.
			s.base, s.Commands = src, nil
			return nil
		}
	}
	if src, ok := b.context(name, s.platform); ok {
		s.base = src
		return nil
	}
	if t := b.stageBefore(name, s); t != nil {
		s.base = source{stage: t}
		return nil
	}
	if name == "scratch" {
		s.platform = b.Platform
		return nil
	}
	if s.base.image, err = b.want(name, s.platform); err != nil {
		return fmt.Errorf("base image %q: %w%s", name, err, didYouMean(name, b.stageNames()))
	}
	return nil
}

// fromWord replaces the global arguments in a word of a FROM.
func (b *build) fromWord(s *stage, lint *linter.Linter, word string) (result string, matched, unmatched map[string]struct{}, err error) {
	if !special(word) {
		return word, nil, nil, nil
	}
	m := b.meter(word, b.globals)
	r, err := b.lex.ProcessWordWithMatches(word, m)
	err = m.check(err)
	for _, n := range sortedKeys(r.Unmatched) {
		if !b.unset[n] {
			lint.Run(&linter.RuleUndefinedArgInFrom, s.Location, linter.RuleUndefinedArgInFrom.Format(n, near(n, b.globals.Keys())))
		}
	}
	return r.Result, r.Matched, r.Unmatched, err
}

// fromPlatform sets the platform that a FROM asks for.
func (b *build) fromPlatform(s *stage, lint *linter.Linter) error {
	text, matched, unmatched, err := b.fromWord(s, lint, s.Platform)
	if err != nil {
		return fmt.Errorf("platform %s: %w", s.Platform, err)
	}
	_, target := matched["TARGETPLATFORM"]
	if whole, _ := b.globals.Get("TARGETPLATFORM"); target && len(matched) == 1 && len(unmatched) == 0 && text == whole {
		lint.Run(&linter.RuleRedundantTargetPlatform, s.Location, linter.RuleRedundantTargetPlatform.Format(s.Platform))
	}
	hint := ""
	for _, n := range sortedKeys(unmatched) {
		if hint == "" {
			hint = didYouMean(n, b.globals.Keys())
		}
	}
	if text == "" {
		return fmt.Errorf("empty platform value from expression %s%s", s.Platform, hint)
	}
	p, err := platforms.Parse(text)
	if err != nil {
		return fmt.Errorf("platform %s: %w%s", s.Platform, err, hint)
	}
	if len(matched)+len(unmatched) == 0 && !strings.Contains(s.Name, p.OS) && !strings.Contains(s.Name, p.Architecture) {
		lint.Run(&linter.RuleFromPlatformFlagConstDisallowed, s.Location, linter.RuleFromPlatformFlagConstDisallowed.Format(text))
	}
	s.platform = platforms.Normalize(p)
	return nil
}

// stageBefore is the last stage of a name before s, or nil.
func (b *build) stageBefore(name string, s *stage) *stage {
	all := b.byName[strings.ToLower(name)]
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].index < s.index {
			return all[i]
		}
	}
	return nil
}

func (b *build) stageNames() []string { return sortedKeys(b.byName) }

// source gives the "from" of a COPY or a mount its meaning: a named context,
// a stage by name or (for COPY) number, or an image. An image is taken for
// the target platform, whatever the stage's own platform is.
func (b *build) source(s *stage, name string, numbers bool) (source, error) {
	if name == "scratch" {
		return source{}, nil
	}
	if src, ok := b.context(name, b.Platform); ok {
		return src, nil
	}
	if t := b.stageBefore(name, s); t != nil {
		return source{stage: t}, nil
	}
	if all := b.byName[strings.ToLower(name)]; len(all) > 0 {
		return source{stage: all[0]}, nil // too late in the file: reach says so
	}
	if n, err := strconv.Atoi(name); err == nil && numbers {
		if n < 0 || n >= len(b.stages) {
			return source{}, fmt.Errorf("invalid stage index %d: the file has stages 0 to %d", n, len(b.stages)-1)
		}
		return source{stage: b.stages[n]}, nil
	}
	img, err := b.want(name, b.Platform)
	if err != nil {
		return source{}, fmt.Errorf("%q is no stage, build context or image%s: %w", name, didYouMean(name, b.stageNames()), err)
	}
	return source{image: img}, nil
}

// checkRef parses an image reference, once for each.
func (b *build) checkRef(name string) error {
	err, ok := b.badRefs[name]
	if !ok {
		_, err = reference.ParseNormalizedNamed(name)
		b.badRefs[name] = err
	}
	return err
}
