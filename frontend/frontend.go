// Package frontend says what any frontend returns and what it needs: a graph
// of vertices, the config of the image, and a [Resolver] for base images. It
// also has the errors that point into a source file ([SourceError]) and a
// printer of graphs ([Format]). The Dockerfile frontend is in the package
// below.
package frontend

import (
	"context"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"kiln.build/solver"
)

// Result is what a frontend makes of its input for one platform.
type Result struct {
	// Target is the vertex whose stack is the image's root file system.
	Target *solver.Vertex

	// Image is the image's config without RootFS. The entries of its History
	// that are not EmptyLayer stand for the layers of Target's stack, one by
	// one, the base image's first. Times are nil where the layers tell them.
	Image dockerspec.DockerOCIImage

	Platform ocispecs.Platform

	// Epoch is the SOURCE_DATE_EPOCH in force, nil where there is none.
	Epoch *time.Time

	Warnings []Warning
}

// Warning is something a user should know about the input.
type Warning struct {
	Rule     string // name of the lint rule, or empty
	Text     string
	Detail   string // what the rule is about
	URL      string
	Location solver.Location
}

// Image is a base image for one platform, as a Resolver found it.
type Image struct {
	Ref      string        // full reference, also the place to fetch from
	Digest   digest.Digest // of the manifest
	Platform ocispecs.Platform
	Config   []byte // JSON of the config
	Layers   []solver.Origin
}

// Resolver finds base images. It is called from several goroutines.
type Resolver interface {
	// ResolveImage returns the image that a reference (as written, without
	// defaults) stands for on a platform.
	ResolveImage(ctx context.Context, ref string, p ocispecs.Platform) (*Image, error)
}

// Context is a source of files, or of a base image, that has a name.
type Context struct {
	// One of these is set. Image is a reference or an oci-layout:// URL for
	// the Resolver; Root a leaf that makes a root file system, such as an
	// op.Git; Local says that it is a directory, known to the runner by the
	// context's name.
	Image string
	Root  solver.Op
	Local bool

	Fetched bool // Root was performed and shown before: its step has no name

	Ignore     []string // patterns of the directory's .dockerignore
	IgnoreFile string   // name of that file, for messages
}
