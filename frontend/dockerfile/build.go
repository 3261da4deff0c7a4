// Package dockerfile lowers Dockerfiles to vertices.
//
// [Build] parses the text with BuildKit's parser, instructions, shell and
// linter packages, which define the language, and turns the stages that the
// target needs into a graph of the ops in package solver/op and an image
// config. It reads nothing but its Options: base images come from a Resolver,
// and files are chosen by ops that the runner performs later.
package dockerfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/util/suggest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"kiln.build/frontend"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// MainContext is the name of the build context in ops.
const MainContext = "context"

// Options are the input of a build. Only Dockerfile and Resolver must be set.
type Options struct {
	Dockerfile []byte
	Name       string // of the Dockerfile, for messages

	Target    string            // stage to build; empty is the last
	BuildArgs map[string]string // values of ARGs
	Labels    map[string]string // added to the image

	Platform      ocispecs.Platform // to build for; zero is BuildPlatform
	BuildPlatform ocispecs.Platform // of this machine; zero is found out
	MultiPlatform bool              // step names tell the platform

	Contexts   map[string]frontend.Context // by lower-case name
	Ignore     []string                    // patterns of the main context's .dockerignore
	IgnoreFile string                      // its name, for messages

	NoCache       bool
	NoCacheStages []string
	GitModes      bool // see op.Select

	Network    string // of RUN steps: "", "default", "none", "host"
	Hosts      []op.Host
	ShmSize    int64
	Ulimits    []op.Ulimit
	Limits     op.Limits
	Allowed    map[string]bool // entitlements: network.host, security.insecure
	Resolver   frontend.Resolver
	SkipChecks bool // no lint warnings

	// Secrets and SSH are the ids that are given; a required one that is not
	// among them is an error before anything runs. Nil checks nothing.
	Secrets, SSH map[string]bool
}

// build is one call of Build.
type build struct {
	Options
	file      string
	escape    rune
	lint      *linter.Linter
	warnings  []frontend.Warning
	stages    []*stage
	byName    map[string]*stage // last of each name
	globals   *variables        // predefined and global arguments
	declared  map[string]bool   // names of all ARGs
	overrides map[string]string // build arguments
	images    images
}

// Build lowers a Dockerfile. Errors that have a place in it are
// [*frontend.SourceError].
func Build(ctx context.Context, o Options) (*frontend.Result, error) {
	b := &build{Options: o, file: o.Name, byName: map[string]*stage{}, declared: map[string]bool{}, overrides: o.BuildArgs}
	if b.file == "" {
		b.file = "Dockerfile"
	}
	if b.BuildPlatform.OS == "" {
		b.BuildPlatform = platforms.Normalize(platforms.DefaultSpec())
	}
	if b.Platform.OS == "" {
		b.Platform = b.BuildPlatform
	}
	b.images.resolver = o.Resolver
	if err := b.parse(); err != nil {
		return nil, err
	}
	target, err := b.target()
	if err != nil {
		return nil, err
	}
	if err := b.globalArgs(target); err != nil {
		return nil, err
	}
	used, err := b.reach(ctx, target)
	if err != nil {
		return nil, err
	}
	for _, s := range used {
		if err := b.lower(s); err != nil {
			return nil, err
		}
	}
	b.unusedArgs()
	sort.SliceStable(b.warnings, func(i, j int) bool { return b.warnings[i].Location.Start < b.warnings[j].Location.Start })
	if b.lint.Error() != nil {
		return nil, b.lint.Error()
	}
	img := target.image
	for _, k := range sortedKeys(o.Labels) {
		if img.Config.Labels == nil {
			img.Config.Labels = map[string]string{}
		}
		img.Config.Labels[k] = o.Labels[k]
	}
	img.Platform = target.imagePlatform
	img.RootFS = ocispecs.RootFS{Type: "layers"}
	return &frontend.Result{Target: target.root, Image: img, Platform: target.imagePlatform, Warnings: b.warnings}, nil
}

// parse reads the text into stages.
func (b *build) parse() error {
	b.lint = linter.New(&linter.Config{SkipAll: b.SkipChecks, Warn: b.warn})
	if len(bytes.TrimSpace(b.Dockerfile)) == 0 {
		return &frontend.SourceError{Location: solver.Location{File: b.file}, Err: errors.New("the Dockerfile is empty")}
	}
	if err := b.directives(); err != nil {
		return err
	}
	parsed, err := parser.Parse(bytes.NewReader(b.Dockerfile))
	if err != nil {
		return b.located(err)
	}
	b.escape = parsed.EscapeToken
	for _, w := range parsed.Warnings {
		loc := []parser.Range{}
		if w.Location != nil {
			loc = append(loc, *w.Location)
		}
		b.lint.Run(&linter.RuleNoEmptyContinuation, loc, linter.RuleNoEmptyContinuation.Format())
	}
	stages, metaArgs, err := instructions.Parse(parsed.AST, b.lint)
	if err != nil {
		return b.located(err)
	}
	if len(stages) == 0 {
		return &frontend.SourceError{Location: solver.Location{File: b.file}, Err: errors.New("no build stage: a Dockerfile needs a FROM")}
	}
	b.globals = newVariables()
	for i := range stages {
		s := &stage{index: i, total: len(stages), Stage: stages[i], name: strings.ToLower(stages[i].Name)}
		b.stages = append(b.stages, s)
	}
	return b.metaArgs(metaArgs)
}

// target finds the stage to build, and gives names their meaning on the way.
func (b *build) target() (*stage, error) {
	for _, s := range b.stages {
		if s.name == "" {
			continue
		}
		if _, ok := b.byName[s.name]; ok {
			b.lint.Run(&linter.RuleDuplicateStageName, s.Location, linter.RuleDuplicateStageName.Format(s.Name))
		}
		if s.name == "scratch" || s.name == "context" {
			b.lint.Run(&linter.RuleReservedStageName, s.Location, linter.RuleReservedStageName.Format(s.Name))
		}
		b.byName[s.name] = s
	}
	if b.Target == "" {
		return b.stages[len(b.stages)-1], nil
	}
	if s, ok := b.byName[strings.ToLower(b.Target)]; ok {
		return s, nil
	}
	return nil, fmt.Errorf("target stage %q is not in %s%s", b.Target, b.file, didYouMean(b.Target, sortedKeys(b.byName)))
}

// warn is the linter's way out.
func (b *build) warn(rule, detail, url, text string, ranges []parser.Range) {
	b.warnings = append(b.warnings, frontend.Warning{Rule: rule, Detail: detail, URL: url, Text: text, Location: b.location(ranges)})
}

// location is the lines that ranges span.
func (b *build) location(ranges []parser.Range) solver.Location {
	loc := solver.Location{File: b.file}
	for _, r := range ranges {
		if loc.Start == 0 || r.Start.Line < loc.Start {
			loc.Start = r.Start.Line
		}
		loc.End = max(loc.End, r.End.Line)
	}
	return loc
}

// located gives an error of BuildKit's packages our form.
func (b *build) located(err error) error {
	var at *parser.LocationError
	loc := solver.Location{File: b.file}
	if errors.As(err, &at) && len(at.Locations) > 0 {
		loc = b.location(at.Locations[0])
	}
	return frontend.At(loc, err)
}

// at gives an error the place of a command.
func (b *build) at(ranges []parser.Range, err error) error {
	return frontend.At(b.location(ranges), err)
}

// didYouMean is a hint at the option nearest to a name, or nothing.
func didYouMean(name string, options []string) string {
	if near, ok := suggest.Search(strings.ToLower(name), options, true); ok {
		return fmt.Sprintf(" (did you mean %s?)", near)
	}
	return ""
}
