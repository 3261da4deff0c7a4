// Package dockerfile lowers Dockerfiles to vertices.
//
// [Build] parses the text with BuildKit's parser, instructions, shell and
// linter packages, which define the language, and turns the stages that the
// target needs into a graph of the ops in package solver/op and an image
// config. [Lint] does the same for its warnings alone. Both read nothing but
// their Options: base images come from a Resolver, and files are chosen by
// ops that the runner performs later.
//
// The work has four steps: parse (text to stages), from (what each stage
// starts from), reach (the stages that the target needs, with their base
// images and ONBUILD triggers), and lower (instructions to vertices).
package dockerfile

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/patternmatcher"
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

	// Contexts are the named contexts: "name", or "name::platform" for one
	// platform. They come before stages and images of the same name.
	Contexts map[string]frontend.Context

	Ignore     []string // patterns of the main context's .dockerignore
	IgnoreFile string   // its name, for messages

	NoCache       bool
	NoCacheStages []string

	// NoCacheMounts empties the cache mounts of the RUN steps that run.
	NoCacheMounts bool

	GitModes bool // see op.Select

	// SourceDateEpoch is the time of the history entries; nil takes it from
	// the build or global argument SOURCE_DATE_EPOCH, if there is one.
	SourceDateEpoch *time.Time

	Network    string // of RUN steps: "", "default", "none", "host"
	Hosts      []op.Host
	ShmSize    int64
	Ulimits    []op.Ulimit
	Limits     op.Limits
	Allowed    map[string]bool // entitlements: network.host, security.insecure
	Resolver   frontend.Resolver
	SkipChecks bool // no lint warnings

	// DeviceAllowed tells which devices RUN --device may name; nil is none.
	DeviceAllowed func(name string) bool

	// Secrets and SSH are the ids that are given; a required one that is not
	// among them is an error before anything runs. Nil checks nothing.
	Secrets, SSH map[string]bool
}

// build is one call of Build.
type build struct {
	Options
	file     string
	spent    int  // bytes of variables' values
	crossing bool // the target platform is not simply this machine's
	warnings []frontend.Warning
	lint     *linter.Linter
	ignore   *patternmatcher.PatternMatcher // of the main context; nil hides nothing

	lex      *shell.Lex // variables and quotes
	rawLex   *shell.Lex // variables alone, as in heredocs
	shownLex *shell.Lex // variables that are set, all else verbatim

	globals  *variables      // predefined and global arguments
	unset    map[string]bool // global arguments without a value
	declared map[string]bool // names of all ARGs, of all stages

	global   []instructions.ArgCommand // before the first FROM
	stages   []*stage
	used     []*stage            // those that the target needs
	byName   map[string][]*stage // in order
	contexts map[string]string   // names in Contexts by their plain form
	images   map[string]*image
	badRefs  map[string]error // results of parsing references
}

// Build lowers a Dockerfile. Errors that have a place in it are
// [*frontend.SourceError]. The result is never nil: beside an error it holds
// the warnings found so far.
func Build(ctx context.Context, o Options) (*frontend.Result, error) {
	b := newBuild(o)
	target, err := b.lowered(ctx, false)
	if err != nil {
		return &frontend.Result{Warnings: b.sortedWarnings()}, err
	}
	img := target.image
	for _, k := range sortedKeys(o.Labels) {
		setKey(&img.Config.Labels, k, o.Labels[k])
	}
	img.Platform = platforms.Normalize(target.actual)
	if b.crossing {
		img.Platform = platforms.Normalize(b.Platform)
	}
	img.RootFS = ocispecs.RootFS{Type: "layers"}
	return &frontend.Result{
		Target: target.root, Image: img, Platform: img.Platform,
		Epoch: b.SourceDateEpoch, Warnings: b.sortedWarnings(),
	}, nil
}

// Lint checks a Dockerfile without a build, every stage of it unless
// o.Target names one. The warnings are complete where the error is nil or a
// [*frontend.LintError].
func Lint(ctx context.Context, o Options) ([]frontend.Warning, error) {
	b := newBuild(o)
	_, err := b.lowered(ctx, o.Target == "")
	return b.sortedWarnings(), err
}

func newBuild(o Options) *build {
	b := &build{
		Options: o, file: o.Name, globals: newVariables(), unset: map[string]bool{}, declared: map[string]bool{},
		byName: map[string][]*stage{}, images: map[string]*image{}, badRefs: map[string]error{},
	}
	if b.file == "" {
		b.file = "Dockerfile"
	}
	if b.BuildPlatform.OS == "" {
		b.BuildPlatform = platforms.Normalize(platforms.DefaultSpec())
	}
	if b.Platform.OS == "" {
		b.Platform = b.BuildPlatform
	}
	b.crossing = o.MultiPlatform || platforms.FormatAll(b.Platform) != platforms.FormatAll(b.BuildPlatform)
	b.contexts = plainNames(o.Contexts)
	return b
}

// lowered does all the work up to the lowered target, or for all stages.
func (b *build) lowered(ctx context.Context, all bool) (*stage, error) {
	globalArgs, err := b.parse()
	if err != nil {
		return nil, err
	}
	if len(b.Ignore) > 0 {
		if b.ignore, err = patternmatcher.New(b.Ignore); err != nil {
			return nil, fmt.Errorf("%s: %w", b.IgnoreFile, err)
		}
	}
	b.global = globalArgs
	target, err := b.target()
	if err != nil {
		return nil, err
	}
	if err := b.setGlobals(globalArgs, target); err != nil {
		return nil, err
	}
	if err := b.setEpoch(); err != nil {
		return nil, err
	}
	for _, s := range b.stages {
		if err := b.from(s); err != nil {
			return nil, b.at(s.Location, err)
		}
	}
	roots := []*stage{target}
	if all {
		roots = b.stages
	}
	if b.used, err = b.reach(ctx, roots); err != nil {
		return nil, err
	}
	for _, s := range b.used {
		if err := b.lower(s); err != nil {
			return nil, err
		}
	}
	b.unusedArgs()
	return target, b.lintError()
}

// target finds the stage to build.
func (b *build) target() (*stage, error) {
	if b.Target == "" {
		return b.stages[len(b.stages)-1], nil
	}
	if all := b.byName[strings.ToLower(b.Target)]; len(all) > 0 {
		return all[len(all)-1], nil
	}
	return nil, fmt.Errorf("target stage %q could not be found in %s%s", b.Target, b.file, didYouMean(b.Target, b.stageNames()))
}

// setEpoch takes SOURCE_DATE_EPOCH from the arguments where the options have
// none. An empty build argument switches off the default in the file.
func (b *build) setEpoch() error {
	if b.SourceDateEpoch != nil {
		return nil
	}
	text, ok := b.BuildArgs["SOURCE_DATE_EPOCH"]
	if !ok {
		text, _ = b.globals.Get("SOURCE_DATE_EPOCH")
	}
	if text == "" {
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH %q: must be a number of seconds", text)
	}
	t := time.Unix(n, 0).UTC()
	b.SourceDateEpoch = &t
	return nil
}

// fresh reports whether a stage's steps run whatever the cache has.
func (b *build) fresh(s *stage) bool {
	return b.NoCache || s.name != "" && slices.ContainsFunc(b.NoCacheStages, func(name string) bool {
		return strings.EqualFold(name, s.name)
	})
}

// step is how a vertex is shown to people.
func (b *build) step(name string, at location) *solver.Step {
	return &solver.Step{Name: name, Location: b.place(at)}
}
