// Package solver evaluates a graph of build operations.
//
// A [Vertex] is an [Op] (plain data) applied to the outputs of other
// vertices. Solving a vertex solves its inputs first; the op together with
// the content digests of the inputs makes an [Action], and the hash of the
// action's readable description is its key. A [Cache] maps keys to results;
// where it has none, a [Runner] performs the action. Because keys are made of
// output digests, a vertex that ran again and gave the same content stops a
// change there: nothing that depends on it runs (early cutoff).
//
// The package knows nothing of Dockerfiles, layers on disk or containers: it
// sees digests and hands everything else through.
package solver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
)

// An Op says what to do with the outputs of other vertices. Ops are plain
// data: equal descriptions mean equal work.
type Op interface {
	// Describe writes everything that shapes the result apart from the
	// inputs, as labelled lines. What it leaves out (names shown to people,
	// limits, secrets' values, proxies) cannot cause a cache miss.
	Describe(*Description)
}

// A Vertex is one node of the build graph. It must not be changed once it
// has been given to [Solver.Solve]. Vertices whose definitions are equal
// (ops, inputs, flags; not Step) are solved once.
type Vertex struct {
	Op Op

	// Inputs are what the result depends on: the digests of their outputs
	// are part of the action key, in order.
	Inputs []*Vertex

	// Using are outputs that the Runner is handed as well but that are not
	// in the key, because what the op takes from them is pinned by Inputs:
	// a copy is keyed by the files selected from a stage (Inputs) and reads
	// their bytes from that stage (Using).
	Using []*Vertex

	// Below is the stack of layers on which this vertex's own layers are
	// put, nil for a result that stands alone. It is not in the key: an op
	// that depends on what lies below names it in Inputs too.
	Below *Vertex

	// Volatile marks a leaf that must be looked at anew in every solve, such
	// as a local directory. Its result is neither looked up nor saved.
	Volatile bool

	// Fresh asks for the action to be performed even if the cache has its
	// result (--no-cache). The result is saved as usual.
	Fresh bool

	// Step tells how the vertex is shown to people and where it comes from;
	// nil hides it.
	Step *Step
}

// Step describes a vertex for people. It never influences results.
type Step struct {
	Name     string // as in "[build 2/5] RUN make"; empty hides it
	Location Location
}

// Location is a range of lines in a source file, counted from one.
type Location struct {
	File       string
	Start, End int
}

// A Layer is one change set of a root file system. It is stored once per
// Digest; the remaining fields travel with the result that produced it.
type Layer struct {
	// Digest of the layer's tree: paths, types, modes, owners, contents and
	// so on, without modification times.
	Digest digest.Digest `json:"digest"`

	// Size is the sum of the sizes of its regular files, in bytes.
	Size int64 `json:"size"`

	// Created is when the layer was made; it goes into image histories.
	Created time.Time `json:"created"`

	// Traceable marks a layer of files of a local context: which of them a
	// step reads is worth knowing.
	Traceable bool `json:"traceable,omitempty"`

	// Origin is set on the layers of an existing image, whose own blob is
	// exported byte for byte.
	Origin *Origin `json:"origin,omitempty"`
}

// Origin names the blob that a layer was unpacked from.
type Origin struct {
	DiffID    digest.Digest `json:"diffID"` // of the uncompressed tar stream
	MediaType string        `json:"mediaType"`
	Blob      digest.Digest `json:"blob"` // as stored in a registry
	Size      int64         `json:"size"` // of the blob, in bytes
}

// A Result is what an action itself contributed, and what a Cache keeps.
type Result struct {
	// Digest of the content: of the layers' digests where there are Layers,
	// else whatever the Runner gives. Equal digests mean equal content to
	// all who depend on it.
	Digest digest.Digest `json:"digest"`

	// Layers added to the stack below, bottom first.
	Layers []Layer `json:"layers,omitempty"`

	// Data is a small result (up to some KB) kept with the entry.
	Data []byte `json:"data,omitempty"`

	// Blob names a larger one in the content store, such as the listing of
	// selected files. An entry promises that it is there.
	Blob digest.Digest `json:"blob,omitempty"`
}

// Output is the value of a solved vertex.
type Output struct {
	// Digest of the content: for a stack that of [StackDigest], else the
	// result's.
	Digest digest.Digest

	// Layers of the whole stack, bottom first: those of Below, then the
	// result's own.
	Layers []Layer

	// Result is what the vertex itself contributed.
	Result Result
}

// StackDigest is the digest of a stack of layers: the hash of the layers'
// digests, bottom first.
func StackDigest(layers []Layer) digest.Digest {
	b := make([]byte, 0, 72*len(layers))
	for _, l := range layers {
		b = append(append(b, l.Digest...), '\n')
	}
	return Digest(b)
}

// Digest is the SHA-256 of some bytes: digest.FromBytes without what printing
// with a format costs, of which a build that is all cached does much.
func Digest[T string | []byte](data T) digest.Digest {
	sum := sha256.Sum256([]byte(data))
	var d [len("sha256:") + 2*sha256.Size]byte
	hex.Encode(d[copy(d[:], "sha256:"):], sum[:])
	return digest.Digest(d[:])
}

// output puts a result on the stack below it.
func output(below *Output, r Result) Output {
	if below == nil && r.Layers == nil {
		return Output{Digest: r.Digest, Result: r}
	}
	var layers []Layer
	if below != nil {
		layers = append(layers, below.Layers...)
	}
	layers = append(layers, r.Layers...)
	return Output{Digest: StackDigest(layers), Layers: layers, Result: r}
}

// ErrMiss is returned by [Cache.Lookup] for a key it has no result for.
var ErrMiss = errors.New("no cached result")

// Cache keeps results by action key. It must be safe for concurrent use, by
// several processes too where it is shared by them.
//
// A cache never fails a build: the solver takes any error of Lookup as a
// miss, and reports one of Save without failing.
type Cache interface {
	// Lookup returns the result kept for an action, or an error wrapping
	// ErrMiss. Whatever the result promises (layers, blobs) is there.
	Lookup(ctx context.Context, key digest.Digest) (Result, error)

	// Lock waits until no one else, in any process, performs the action.
	// The lock dies with its process.
	Lock(ctx context.Context, key digest.Digest) (release func(), err error)

	// Save keeps a result together with the description of its action.
	Save(ctx context.Context, a *Action, r Result) error
}

// Runner performs actions. Run is called at most once at a time for a key.
// It must leave nothing running when it returns.
type Runner interface {
	Run(ctx context.Context, a *Action) (Result, error)
}
