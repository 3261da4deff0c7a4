package registry

import (
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// A Reference names an image in a registry, in full. Values come from
// [ParseReference].
type Reference struct {
	Host   string // as in "docker.io" or "localhost:5000"
	Path   string // as in "library/debian"
	Tag    string // "" only where there is a Digest
	Digest digest.Digest
}

// ParseReference reads an image name as docker does: "debian" is
// "docker.io/library/debian:latest". A tag beside a digest is kept, though
// the digest alone decides.
func ParseReference(s string) (Reference, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, fmt.Errorf("image reference %q: %w", s, err)
	}
	named = reference.TagNameOnly(named)
	r := Reference{Host: reference.Domain(named), Path: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.Digest = d.Digest()
	}
	return r, nil
}

// Name is the reference without tag and digest: "docker.io/library/debian".
func (r Reference) Name() string { return r.Host + "/" + r.Path }

// String is the full form: "docker.io/library/debian:latest".
func (r Reference) String() string { return r.Name() + r.suffix() }

// Familiar is the form that people type: "debian:latest".
func (r Reference) Familiar() string {
	named, err := reference.WithName(r.Name())
	if err != nil {
		return r.String() // not from ParseReference
	}
	return reference.FamiliarName(named) + r.suffix()
}

func (r Reference) suffix() string {
	var s string
	if r.Tag != "" {
		s = ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// identifier is what a registry is asked for.
func (r Reference) identifier() string {
	if r.Digest != "" {
		return string(r.Digest)
	}
	return r.Tag
}
