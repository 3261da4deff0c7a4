package dockerfile

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// defaultPath is the PATH of an image that sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lower makes the vertices of a stage whose sources are lowered.
func (b *build) lower(s *stage) error {
	s.last = map[string]*command{}
	if s.base.image != nil || s.base.context != "" {
		s.steps++
	}
	for _, c := range s.commands {
		switch c.Command.(type) {
		case *instructions.RunCommand, *instructions.CopyCommand, *instructions.AddCommand, *instructions.WorkdirCommand:
			s.steps++
		}
	}
	b.start(s)
	for _, c := range s.commands {
		if err := b.command(s, c); err != nil {
			return b.at(c.Location(), err)
		}
	}
	return nil
}

// start gives a stage the root, config and variables that it begins with.
func (b *build) start(s *stage) {
	s.actual = s.platform
	switch {
	case s.base.stage != nil:
		s.inherit(s.base.stage)
		return
	case s.base.image != nil:
		img := s.base.image
		s.image = cloneImage(img.config)
		s.image.Config.OnBuild = nil
		s.root = img.root(b.step(b.prefix(s)+"FROM "+img.name(), s.Location))
		if img.found.Platform.OS != "" {
			s.actual = img.found.Platform
			b.checkPlatform(s)
		}
		if dir := s.image.Config.WorkingDir; dir != "" {
			s.image.Config.WorkingDir = path.Join("/", dir)
		}
	case s.base.context != "":
		s.image.Config.WorkingDir = "/"
		s.root = b.contextRoot(s.base.context, b.step(b.prefix(s)+"FROM "+s.base.context, s.Location))
		b.history(s, "FROM "+s.base.context, true)
	default:
		s.image.Config.WorkingDir = "/"
		s.root = &solver.Vertex{Op: op.Scratch{}}
	}
	s.vars, s.args = newVariables(), newVariables()
	for _, kv := range s.image.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		s.vars.set(k, v)
	}
	if _, ok := s.vars.Get("PATH"); !ok {
		s.vars.set("PATH", defaultPath)
		s.image.Config.Env = append(s.image.Config.Env, "PATH="+defaultPath)
	}
}

// checkPlatform warns of a base image that is for another machine.
func (b *build) checkPlatform(s *stage) {
	if s.platform.OS == s.actual.OS && s.platform.Architecture == s.actual.Architecture {
		return
	}
	want, have := platforms.FormatAll(platforms.Normalize(s.platform)), platforms.FormatAll(platforms.Normalize(s.actual))
	b.lint.Run(&linter.RuleInvalidBaseImagePlatform, s.Location, linter.RuleInvalidBaseImagePlatform.Format(s.BaseName, want, have))
}

// inherit continues another stage of the file.
func (s *stage) inherit(base *stage) {
	s.root = base.root
	s.platform, s.actual = base.platform, base.actual
	s.image = cloneImage(base.image)
	s.image.Config.OnBuild = nil
	s.vars, s.args = base.vars.clone(), base.args.clone()
	s.workdirSet = base.workdirSet
}

// cloneImage copies what the instructions of a stage change in place.
func cloneImage(img dockerspec.DockerOCIImage) dockerspec.DockerOCIImage {
	c := &img.Config
	c.Env = slices.Clone(c.Env)
	c.Labels = maps.Clone(c.Labels)
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	c.Volumes = maps.Clone(c.Volumes)
	img.History = slices.Clone(img.History)
	return img
}

// historyComment is on all entries, as images built by BuildKit have it.
const historyComment = "buildkit.dockerfile.v0"

// history adds an entry for an instruction.
func (b *build) history(s *stage, text string, layer bool) {
	s.image.History = append(s.image.History, ocispecs.History{
		Created: b.SourceDateEpoch, CreatedBy: text, Comment: historyComment, EmptyLayer: !layer,
	})
}

// stepName is what a step is called: "[build 2/5] RUN make".
func (b *build) stepName(s *stage, c *command, text string) string {
	trigger := ""
	if c.trigger {
		trigger = "ONBUILD "
	}
	end := strings.IndexFunc(text, unicode.IsSpace)
	if end < 0 {
		end = len(text)
	}
	return b.prefix(s) + trigger + strings.ToUpper(text[:end]) + text[end:]
}

// prefix is the "[build 2/5] " of the next step.
func (b *build) prefix(s *stage) string {
	s.step++
	platform := ""
	if b.MultiPlatform {
		platform = platforms.FormatAll(s.platform) + s.crossTo() + " "
	}
	return fmt.Sprintf("[%s%s%*d/%d] ", platform, s.label, len(strconv.Itoa(s.steps)), s.step, s.steps)
}

// crossTo is the platform that a stage says it compiles for, as "->arm64",
// where it declares one of the target arguments and that is not its own.
func (s *stage) crossTo() string {
	if s.vars == nil {
		return "" // its FROM
	}
	target := s.platform
	if text, ok := s.vars.Get("TARGETPLATFORM"); ok {
		if p, err := platforms.Parse(text); err == nil {
			target = p
		}
	} else {
		if v, _ := s.vars.Get("TARGETOS"); v != "" {
			target.OS = v
		}
		if v, _ := s.vars.Get("TARGETARCH"); v != "" {
			target.Architecture, target.Variant = v, ""
		}
		if v, _ := s.vars.Get("TARGETVARIANT"); v != "" {
			target.Variant = v
		}
	}
	target = platforms.Normalize(target)
	switch {
	case target.OS != s.platform.OS:
		return "->" + platforms.FormatAll(target)
	case target.Architecture == s.platform.Architecture:
		return ""
	case target.Variant != "":
		return "->" + target.Architecture + "/" + target.Variant
	}
	return "->" + target.Architecture
}

// shown is an instruction's text with the values of variables as they are
// before it; lex says how quotes are treated.
func (b *build) shown(lex *shell.Lex, text string, vars shell.EnvGetter) string {
	if !special(text) {
		return text
	}
	if t, _, err := b.process(lex, text, vars); err == nil {
		return t
	}
	return text
}

// special reports whether a word means anything but itself to a Lex. What
// does not is kept from it: it is slow, and loses bytes that are not UTF-8.
func special(word string) bool { return strings.ContainsAny(word, "$'\"\\`<") }
