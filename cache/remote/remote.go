// Package remote shares results of actions between machines.
//
// A remote cache is kept by a [Driver]: an index, and objects that the index
// refers to. The index says, for each action key, what the action's result
// is, and where the content of its layers and blobs lies. Layers are large
// objects of their own, or lie with other small things in packs.
//
// [Cache] puts remote caches behind a store: what the store has no result for
// is looked up in the index of each source, which is read once, when it is
// first needed. A result that comes from there is taken without its content;
// that is fetched when an action is performed that needs it, or for an export
// ([Cache.Ensure]). So a build of which everything is cached learns its result
// from the index alone. Should the content turn out to be gone or damaged, the
// build is evaluated again without the source ([LostError]).
//
// A sink is fed while the build runs: each result goes up as soon as it is
// there, and the index at the end, also of a build that failed.
//
// Whoever can write to a cache is trusted to say what an action's result is,
// as with any build cache; layers are checked against the digests in the
// index, which become part of all keys above them.
package remote

import (
	"context"
	"errors"
	"io"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Driver keeps one remote cache. Its methods may be called by several
// goroutines, but Commit, which comes last. They retry what passes by
// themselves: an error is final.
type Driver interface {
	// Name is what people call it, as in "registry example.com/app:cache".
	Name() string

	// Index reads the index; an error that wraps fs.ErrNotExist says that
	// there is none.
	Index(ctx context.Context) ([]byte, error)

	// Get reads an object. The content need not be what was asked for: the
	// caller checks.
	Get(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)

	// Missing returns which of the objects are not there.
	Missing(ctx context.Context, all []v1.Descriptor) ([]v1.Descriptor, error)

	// Put stores an object, whose bytes are in a file.
	Put(ctx context.Context, d v1.Descriptor, file string) error

	// Commit replaces the index, after which the objects it refers to have
	// to be kept and others need not.
	Commit(ctx context.Context, index []byte, objects []v1.Descriptor) error
}

// MediaTypes of what a cache consists of.
const (
	TypeCache  = "application/vnd.kiln.cache.v1"
	TypeIndex  = "application/vnd.kiln.cache.index.v1+json+zstd"
	TypeObject = "application/vnd.kiln.cache.object.v1+zstd"
)

// LostError says that the content of a result cannot be had from the cache
// that told of it. That cache is asked for nothing more.
type LostError struct {
	Cache string
	Err   error
}

func (e *LostError) Error() string { return "cache " + e.Cache + ": " + e.Err.Error() }

func (e *LostError) Unwrap() error { return e.Err }

var errContent = errors.New("its content is not what the index says")
