package dockerfile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"kiln.build/frontend"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// defaultPath is the PATH of an image that sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// stage is a FROM and what follows it, and the state while it is lowered.
type stage struct {
	instructions.Stage
	index, total int
	name         string // lower-case, or empty

	// Where it starts: one of these, or none for scratch. Set by resolve.
	resolved bool
	base     *stage
	imageRef string // key of build.images
	context  string // name of a local or tar context
	platform ocispecs.Platform
	refs     map[string]source // what its commands name by "from"
	onBuild  []instructions.Command

	// Built up by lower.
	image         dockerspec.DockerOCIImage
	imagePlatform ocispecs.Platform
	root          *solver.Vertex
	vars          *variables // what expansion and RUN see
	args          []string   // names of the ARGs in force, for the history
	workdir       bool       // an absolute WORKDIR was set, here or below
	steps, step   int        // shown steps in all, and so far
	cmdSet        bool       // CMD was set in this stage
}

// source is what a "from" names: a stage, an image, or a context.
type source struct {
	stage   *stage
	image   string // key of build.images
	context string
}

// images are the base images of a build, found in parallel and once each.
type images struct {
	resolver frontend.Resolver
	refs     map[string]imageRef

	mu    sync.Mutex // while find runs
	byKey map[string]*frontend.Image
}

type imageRef struct {
	ref      string
	platform ocispecs.Platform
}

// want notes an image to be found, and returns its key.
func (i *images) want(ref string, p ocispecs.Platform) string {
	key := platforms.FormatAll(p) + " " + ref
	if i.refs == nil {
		i.refs = map[string]imageRef{}
		i.byKey = map[string]*frontend.Image{}
	}
	i.refs[key] = imageRef{ref, p}
	return key
}

// find resolves the images under these keys that are not known yet. An error
// belongs to the lowest stage that wants the image: at tells where that is.
func (i *images) find(ctx context.Context, keys []string, at func(key string, err error) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, key := range keys {
		i.mu.Lock()
		known := i.byKey[key] != nil
		i.mu.Unlock()
		if known {
			continue
		}
		r := i.refs[key]
		g.Go(func() error {
			img, err := i.resolver.ResolveImage(ctx, r.ref, r.platform)
			if err != nil {
				return at(key, err)
			}
			i.mu.Lock()
			defer i.mu.Unlock()
			i.byKey[key] = img
			return nil
		})
	}
	return g.Wait()
}

// reach finds the stages that the target needs, resolves their base images
// and returns them in an order in which each comes after those it uses.
// ONBUILD triggers of a base can add to what is needed, so it looks again
// until nothing is new.
func (b *build) reach(ctx context.Context, target *stage) ([]*stage, error) {
	for {
		var order []*stage
		state := map[*stage]int{} // 1 visiting, 2 done
		var visit func(s *stage, from *stage, at []parser.Range) error
		visit = func(s, from *stage, at []parser.Range) error {
			switch state[s] {
			case 1:
				return b.at(at, fmt.Errorf("circular dependency detected on stage: %s", s.label()))
			case 2:
				return nil
			}
			state[s] = 1
			if err := b.resolve(s); err != nil {
				return err
			}
			if s.base != nil {
				if err := visit(s.base, s, s.Location); err != nil {
					return err
				}
			}
			for _, name := range s.refNames() {
				ref := s.refs[name]
				if ref.stage == nil {
					continue
				}
				at := s.refLocation(name)
				if err := visit(ref.stage, s, at); err != nil {
					return err
				}
				if ref.stage.index > s.index {
					return b.at(at, fmt.Errorf("cannot copy from stage %q: it needs to be defined before stage %q", name, s.label()))
				}
			}
			state[s] = 2
			order = append(order, s)
			return nil
		}
		if err := visit(target, nil, nil); err != nil {
			return nil, err
		}
		wanted := map[string]*stage{}
		for _, s := range order {
			for _, key := range s.images() {
				if wanted[key] == nil {
					wanted[key] = s
				}
			}
		}
		err := b.images.find(ctx, sortedKeys(wanted), func(key string, err error) error {
			s := wanted[key]
			at := s.Location
			for name, ref := range s.refs {
				if ref.image == key && s.imageRef != key {
					at = s.refLocation(name)
				}
			}
			return b.at(at, err)
		})
		if err != nil {
			return nil, err
		}
		more := false
		for _, s := range order {
			found, err := b.triggers(s)
			if err != nil {
				return nil, err
			}
			more = more || found
		}
		if !more {
			return order, nil
		}
	}
}

// images are the keys of all images that a stage names.
func (s *stage) images() []string {
	var keys []string
	if s.imageRef != "" {
		keys = append(keys, s.imageRef)
	}
	for _, ref := range s.refs {
		if ref.image != "" {
			keys = append(keys, ref.image)
		}
	}
	return keys
}

// label names a stage in messages.
func (s *stage) label() string {
	if s.name != "" {
		return s.name
	}
	return "stage-" + strconv.Itoa(s.index)
}

// commands are those of ONBUILD triggers of the base, then the stage's own.
func (s *stage) commands() []instructions.Command {
	return append(slices.Clip(s.onBuild), s.Commands...)
}

func (s *stage) refNames() []string { return sortedKeys(s.refs) }

// refLocation is where a stage first names a source.
func (s *stage) refLocation(name string) []parser.Range {
	for _, c := range s.commands() {
		if slices.Contains(fromNames(c), name) {
			return c.Location()
		}
	}
	return s.Location
}

// fromNames are the sources a command names: COPY --from, RUN --mount from.
func fromNames(c instructions.Command) []string {
	switch c := c.(type) {
	case *instructions.CopyCommand:
		if c.From != "" {
			return []string{c.From}
		}
	case *instructions.RunCommand:
		var names []string
		for _, m := range instructions.GetMounts(c) {
			if m.From != "" {
				names = append(names, m.From)
			}
		}
		return names
	}
	return nil
}

// resolve finds out what a stage starts from and what its commands name.
func (b *build) resolve(s *stage) error {
	if !s.resolved {
		if err := b.from(s); err != nil {
			return b.at(s.Location, err)
		}
		s.resolved = true
		s.refs = map[string]source{}
	}
	for _, c := range s.commands() {
		if run, ok := c.(*instructions.RunCommand); ok && !strings.Contains(strings.Join(run.FlagsUsed, " "), "mount") {
			continue
		} else if ok {
			// Mounts are parsed when the command is expanded; "from" is
			// never expanded, so any expansion will do to learn it.
			if err := run.Expand(func(word string) (string, error) { return word, nil }); err != nil {
				continue // lower reports it, with the variables known
			}
		}
		for _, name := range fromNames(c) {
			if _, ok := s.refs[name]; ok {
				continue
			}
			src, err := b.source(s, name)
			if err != nil {
				return b.at(c.Location(), err)
			}
			s.refs[name] = src
		}
	}
	return nil
}

// source gives a "from" its meaning: a named context, a stage by name or
// number, or an image, which is taken for the target platform whatever the
// stage's own platform is.
func (b *build) source(s *stage, name string) (source, error) {
	lower := strings.ToLower(name)
	if c, ok := b.Contexts[lower]; ok {
		if c.Image != "" {
			return source{image: b.images.want(c.Image, b.Platform)}, nil
		}
		return source{context: lower}, nil
	}
	if t, ok := b.stageBefore(lower, s); ok {
		return source{stage: t}, nil
	}
	if n, err := strconv.Atoi(name); err == nil {
		if n < 0 || n >= len(b.stages) || n >= s.index && n != s.index {
			return source{}, fmt.Errorf("invalid stage index %d: the stages before this one are 0 to %d", n, s.index-1)
		}
		return source{stage: b.stages[n]}, nil
	}
	if _, err := reference.ParseNormalizedNamed(name); err != nil {
		return source{}, fmt.Errorf("%q is no stage, build context or image%s: %w", name, didYouMean(name, sortedKeys(b.byName)), err)
	}
	return source{image: b.images.want(name, b.Platform)}, nil
}

// stageBefore is the stage of a name: the last one before s, else (for the
// error that it gives) the last of all.
func (b *build) stageBefore(name string, s *stage) (*stage, bool) {
	for i := s.index - 1; i >= 0; i-- {
		if b.stages[i].name == name {
			return b.stages[i], true
		}
	}
	t, ok := b.byName[name]
	return t, ok
}

// from resolves a stage's FROM line with the global arguments.
func (b *build) from(s *stage) error {
	lex := shell.NewLex(b.escape)
	expand := func(word string) (string, error) {
		r, err := lex.ProcessWordWithMatches(word, b.globals)
		if err != nil {
			return "", err
		}
		for _, n := range sortedKeys(r.Unmatched) {
			b.lint.Run(&linter.RuleUndefinedArgInFrom, s.Location, linter.RuleUndefinedArgInFrom.Format(n, didYouMeanName(n, b.globals.Keys())))
		}
		return r.Result, nil
	}
	s.platform = b.Platform
	if s.Platform != "" {
		text, err := expand(s.Platform)
		if err != nil {
			return err
		}
		if text == "" {
			return fmt.Errorf("empty platform value from expression %s", s.Platform)
		}
		p, err := platforms.Parse(text)
		if err != nil {
			return fmt.Errorf("platform %q: %w", text, err)
		}
		s.platform = platforms.Normalize(p)
		if s.Platform == "$TARGETPLATFORM" || s.Platform == "${TARGETPLATFORM}" {
			b.lint.Run(&linter.RuleRedundantTargetPlatform, s.Location, linter.RuleRedundantTargetPlatform.Format(s.Platform))
		}
	}
	name, err := expand(s.BaseName)
	if err != nil {
		return err
	}
	if name == "" {
		return fmt.Errorf("base name (%s) should not be blank", s.BaseName)
	}
	lower := strings.ToLower(name)
	if c, ok := b.Contexts[lower]; ok {
		if c.Image != "" {
			s.imageRef = b.images.want(c.Image, s.platform)
		} else {
			s.context = lower
		}
		return nil
	}
	for i := s.index - 1; i >= 0; i-- {
		if b.stages[i].name == lower {
			s.base = b.stages[i]
			return nil
		}
	}
	if name == "scratch" {
		return nil
	}
	if _, err := reference.ParseNormalizedNamed(name); err != nil {
		return fmt.Errorf("base image %q: %w%s", name, err, didYouMean(name, sortedKeys(b.byName)))
	}
	s.imageRef = b.images.want(name, s.platform)
	return nil
}

// triggers parses the ONBUILD triggers that a stage inherits; it reports
// whether there were any that were not known.
func (b *build) triggers(s *stage) (bool, error) {
	if s.onBuild != nil {
		return false, nil
	}
	var texts []string
	switch {
	case s.imageRef != "":
		var img dockerspec.DockerOCIImage
		if err := json.Unmarshal(b.images.byKey[s.imageRef].Config, &img); err != nil {
			return false, b.at(s.Location, fmt.Errorf("config of base image: %w", err))
		}
		texts = img.Config.OnBuild
	case s.base != nil:
		for _, c := range s.base.Commands {
			if c, ok := c.(*instructions.OnbuildCommand); ok {
				texts = append(texts, c.Expression)
			}
		}
	}
	s.onBuild = []instructions.Command{}
	for _, text := range texts {
		c, err := b.trigger(text, s.Location)
		if err != nil {
			return false, b.at(s.Location, fmt.Errorf("ONBUILD trigger %q of the base: %w", text, err))
		}
		s.onBuild = append(s.onBuild, c)
	}
	return len(texts) > 0, nil
}

// trigger parses the text of an ONBUILD as an instruction that stands where
// the FROM stands.
func (b *build) trigger(text string, at []parser.Range) (instructions.Command, error) {
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	if len(parsed.AST.Children) != 1 {
		return nil, errors.New("must be one instruction")
	}
	node := parsed.AST.Children[0]
	if len(at) > 0 {
		node.StartLine, node.EndLine = at[0].Start.Line, at[len(at)-1].End.Line
	}
	return instructions.ParseCommand(node)
}

// lower makes the vertices of a stage whose sources are lowered.
func (b *build) lower(s *stage) error {
	if err := b.start(s); err != nil {
		return b.at(s.Location, err)
	}
	cmds := s.commands()
	for _, c := range cmds {
		switch c.(type) {
		case *instructions.RunCommand, *instructions.CopyCommand, *instructions.AddCommand, *instructions.WorkdirCommand:
			s.steps++
		}
	}
	b.checkRepeats(s)
	for i, c := range cmds {
		if err := b.command(s, c, i < len(s.onBuild)); err != nil {
			return b.at(c.Location(), err)
		}
	}
	return nil
}

// checkRepeats warns of instructions of which only the last counts.
func (b *build) checkRepeats(s *stage) {
	last := map[string]instructions.Command{}
	for _, c := range s.Commands {
		switch c.Name() {
		case "CMD", "ENTRYPOINT", "HEALTHCHECK", "cmd", "entrypoint", "healthcheck":
			name := strings.ToUpper(c.Name())
			if before := last[name]; before != nil {
				b.lint.Run(&linter.RuleMultipleInstructionsDisallowed, before.Location(), linter.RuleMultipleInstructionsDisallowed.Format(name))
			}
			last[name] = c
		}
	}
}

// start gives a stage the root, config and variables that it begins with.
func (b *build) start(s *stage) error {
	s.imagePlatform = s.platform
	switch {
	case s.base != nil:
		s.inherit(s.base)
		return nil
	case s.imageRef != "":
		img := b.images.byKey[s.imageRef]
		s.steps++
		s.root = b.imageVertex(s, img)
		if err := json.Unmarshal(img.Config, &s.image); err != nil {
			return fmt.Errorf("config of base image %s: %w", img.Ref, err)
		}
		s.image.Config.OnBuild = nil
		if img.Platform.OS != "" {
			s.imagePlatform = img.Platform
		}
		if !platforms.OnlyStrict(s.platform).Match(s.imagePlatform) && s.Platform == "" {
			b.lint.Run(&linter.RuleInvalidBaseImagePlatform, s.Location,
				linter.RuleInvalidBaseImagePlatform.Format(img.Ref, platforms.FormatAll(s.platform), platforms.FormatAll(s.imagePlatform)))
		}
		s.workdir = s.image.Config.WorkingDir != ""
	case s.context != "":
		s.steps++
		s.root = b.contextRoot(s.context, b.shown(s, "FROM "+s.context, s.Location, false))
	default:
		s.root = &solver.Vertex{Op: op.Scratch{}}
	}
	s.image.RootFS = ocispecs.RootFS{}
	s.vars = newVariables()
	for _, kv := range s.image.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		s.vars.set(k, v)
	}
	if _, ok := s.vars.Get("PATH"); !ok {
		s.vars.set("PATH", defaultPath)
		s.image.Config.Env = append(s.image.Config.Env, "PATH="+defaultPath)
	}
	return nil
}

// inherit continues another stage of the file.
func (s *stage) inherit(base *stage) {
	s.root = base.root
	s.image = base.image
	s.imagePlatform = base.imagePlatform
	c := &s.image.Config
	c.Env = slices.Clone(c.Env)
	c.Labels = maps.Clone(c.Labels)
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	c.Volumes = maps.Clone(c.Volumes)
	c.OnBuild = nil
	s.image.History = slices.Clone(s.image.History)
	s.vars = base.vars.clone()
	s.args = slices.Clone(base.args)
	s.workdir = base.workdir
}

// imageVertex is the root of a base image.
func (b *build) imageVertex(s *stage, img *frontend.Image) *solver.Vertex {
	v := &solver.Vertex{Op: op.Image{Ref: img.Ref, Layers: img.Layers}}
	if s != nil {
		name := img.Ref
		if img.Digest != "" && !strings.Contains(name, "@") {
			name += "@" + string(img.Digest)
		}
		v.Step = b.shown(s, "FROM "+name, s.Location, false)
	}
	return v
}

// contextRoot is a named context as a root file system: the archive's
// content, or all files of the directory.
func (b *build) contextRoot(name string, step *solver.Step) *solver.Vertex {
	c := b.Contexts[name]
	if c.Tar != "" {
		return &solver.Vertex{Op: op.Tar{Path: c.Tar}, Volatile: true, Step: step}
	}
	scratch := &solver.Vertex{Op: op.Scratch{}}
	sel := b.selectLocal(name, op.Select{Sources: []string{"/"}})
	dest := &solver.Vertex{Op: op.Dest{Path: "/"}, Inputs: []*solver.Vertex{scratch, sel}}
	return &solver.Vertex{Op: op.Copy{}, Inputs: []*solver.Vertex{dest, sel}, Using: []*solver.Vertex{sel}, Below: scratch, Step: step}
}

// stack is the root that a "from" names.
func (b *build) stack(src source) *solver.Vertex {
	switch {
	case src.stage != nil:
		return src.stage.root
	case src.image != "":
		img := b.images.byKey[src.image]
		v := b.imageVertex(nil, img)
		v.Step = &solver.Step{Name: "FROM " + img.Ref}
		return v
	case src.context != "" && b.Contexts[src.context].Tar != "":
		return b.contextRoot(src.context, nil)
	}
	return nil
}

// selectLocal is a selection from the main context or a named directory.
func (b *build) selectLocal(name string, sel op.Select) *solver.Vertex {
	sel.Context, sel.GitModes = name, b.GitModes
	sel.Ignore = b.Ignore
	if name != MainContext {
		sel.Ignore = b.Contexts[name].Ignore
	}
	return &solver.Vertex{Op: sel, Volatile: true}
}

// shown names the next step of a stage, as "[build 2/5] RUN make".
func (b *build) shown(s *stage, text string, at []parser.Range, trigger bool) *solver.Step {
	s.step++
	total := s.steps
	if s.step == 1 && (s.imageRef != "" || s.context != "") {
		// FROM comes before the commands are counted.
		total = 1
		for _, c := range s.commands() {
			switch c.(type) {
			case *instructions.RunCommand, *instructions.CopyCommand, *instructions.AddCommand, *instructions.WorkdirCommand:
				total++
			}
		}
	}
	prefix := ""
	if b.MultiPlatform {
		prefix = platforms.Format(s.platform) + " "
	}
	switch {
	case s.name != "":
		prefix += s.name + " "
	case s.total > 1:
		prefix += s.label() + " "
	}
	name := fmt.Sprintf("[%s%*d/%d] ", prefix, len(strconv.Itoa(total)), s.step, total)
	if trigger {
		name += "ONBUILD "
	}
	return &solver.Step{Name: name + text, Location: b.location(at)}
}

// fresh reports whether a stage's steps run whatever the cache has.
func (b *build) fresh(s *stage) bool {
	if b.NoCache {
		return true
	}
	for _, name := range b.NoCacheStages {
		if strings.EqualFold(name, s.name) && name != "" {
			return true
		}
	}
	return false
}

// history adds an entry; what makes a layer is marked as BuildKit does.
func (s *stage) history(text string, layer bool) {
	if layer {
		text += " # buildkit"
	}
	s.image.History = append(s.image.History, ocispecs.History{CreatedBy: text, Comment: "buildkit.dockerfile.v0", EmptyLayer: !layer})
}

// sortedEnv is the environment of a RUN; ops treat it as a set.
func sortedEnv(v *variables) []string {
	l := v.list()
	sort.Strings(l)
	return l
}
