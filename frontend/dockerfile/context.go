package dockerfile

import (
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"kiln.build/frontend"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// plainNames maps the plain forms of context names to the names themselves.
func plainNames(contexts map[string]frontend.Context) map[string]string {
	names := map[string]string{}
	for _, key := range sortedKeys(contexts) {
		name, platform, ok := strings.Cut(key, "::")
		plain := plainName(name)
		if p, err := platforms.Parse(platform); ok && err == nil {
			plain += "::" + platforms.FormatAll(platforms.Normalize(p))
		}
		names[plain] = key
	}
	return names
}

// plainName is the form in which the names of contexts, stages and images
// are compared: "docker.io/library/debian:latest" is "debian".
func plainName(name string) string {
	name = strings.ToLower(name)
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		name = reference.FamiliarString(named)
	}
	return strings.TrimSuffix(name, ":latest")
}

// context finds the named context that stands for a stage or image.
func (b *build) context(name string, p ocispecs.Platform) (source, bool) {
	if len(b.contexts) == 0 || strings.EqualFold(name, "scratch") || strings.EqualFold(name, MainContext) {
		return source{}, false
	}
	plain := plainName(name)
	key, ok := b.contexts[plain+"::"+platforms.FormatAll(platforms.Normalize(p))]
	if !ok {
		if key, ok = b.contexts[plain]; !ok {
			return source{}, false
		}
	}
	c := b.Contexts[key]
	if c.Image == "" {
		return source{context: key}, true
	}
	img, err := b.want(c.Image, p)
	if err != nil {
		// Whoever resolves it says what is wrong with the name.
		img = &image{ref: c.Image, platform: p}
	}
	return source{image: img}, true
}

// contextRoot is a named context as a root file system: the archive's
// content, or all files of the directory.
func (b *build) contextRoot(name string, step *solver.Step) *solver.Vertex {
	if o := b.Contexts[name].Root; o != nil {
		return &solver.Vertex{Op: o, Volatile: op.Volatile(o), Step: step}
	}
	sel := b.selectLocal(name, op.Select{Sources: []string{"/"}}, step.Location)
	v := put(op.Copy{}, sel)
	v.Step = step
	return v
}

// contextStep is what the step that makes a context's root is called.
func (b *build) contextStep(name string) string {
	if b.Contexts[name].Fetched {
		return ""
	}
	if fetch := FetchName(b.Contexts[name].Root); fetch != "" {
		return fetch
	}
	return "FROM " + name
}

// FetchName is the name of the step that fetches a context from elsewhere.
func FetchName(o solver.Op) string {
	switch o := o.(type) {
	case op.HTTP:
		return "[fetch] " + op.Redacted(o.URL)
	case op.Git:
		return "[fetch] " + op.Redacted((&frontend.GitSource{Git: o}).String())
	case op.Tar:
		if o.Digest != "" {
			return "[context] unpack"
		}
	}
	return ""
}

// put is a root that holds a selection and nothing else.
func put(c op.Copy, sel *solver.Vertex) *solver.Vertex {
	scratch := &solver.Vertex{Op: op.Scratch{}}
	dest := &solver.Vertex{Op: op.Dest{Path: "/"}, Inputs: []*solver.Vertex{scratch, sel}, Step: sel.Step}
	return &solver.Vertex{Op: c, Inputs: []*solver.Vertex{dest, sel}, Using: []*solver.Vertex{sel}, Below: scratch}
}

// selectLocal is a selection from the main context or a named directory.
func (b *build) selectLocal(name string, sel op.Select, at solver.Location) *solver.Vertex {
	sel.Context, sel.GitModes = name, b.GitModes
	sel.Ignore = b.Ignore
	if name != MainContext {
		sel.Ignore = b.Contexts[name].Ignore
	}
	return &solver.Vertex{Op: sel, Volatile: true, Step: hidden(at)}
}

// hidden is the step of a vertex that is not shown but may fail.
func hidden(at solver.Location) *solver.Step { return &solver.Step{Location: at} }
