// Package runner performs the ops of a build: it implements [solver.Runner].
//
// A [Runner] works on a store. For each kind of op there is a file: images
// and archives become layers, selections are made from local directories or
// from stacks, copies and commands make one layer each. RUN steps run in
// package sandbox; this package gives it a root, mounts and a network, and
// takes what the step changed.
package runner

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"kiln.build/cache"
	"kiln.build/cache/registry"
	"kiln.build/cache/tree"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// Runner performs actions on a store. Its fields must be set before the first
// call of Run; Close must be called at the end.
type Runner struct {
	Store    *cache.Store
	Registry *registry.Client // may be nil: then nothing can be fetched

	Contexts map[string]Context // local directories by name
	Secrets  map[string][]byte  // values by id
	SSH      map[string]string  // agents' sockets by id

	// CDIDirs are where the devices of this machine are described.
	CDIDirs []string

	// Network connects a sandbox to the outside; nil shares this machine's
	// own network with it.
	Network Network

	// Runtime is the path of an OCI runtime for RUN steps; empty is the
	// sandbox of package sandbox.
	Runtime string

	// Packer, if set, is told of layers of files that are being copied.
	Packer Packer

	// NoTrace does not look at what steps read: see reads.go.
	NoTrace bool

	mu         sync.Mutex
	origins    map[digest.Digest]origin // of images that were resolved, by blob and by diff ID
	selections map[digest.Digest]*selection
	refs       map[string]func() (commit, error) // what git servers said
	contexts   map[string]*localContext
	empty      string
	emptyOnce  sync.Once
	emptyErr   error
	detaching  sync.WaitGroup // sandboxes leaving the network
}

// Context is a local directory that files are copied from.
type Context struct {
	Dir        string
	IgnoreFile string // name of the file with the ignore patterns, for messages
}

// Network attaches sandboxes to a network.
type Network interface {
	// Attach gives the network namespace of a process an interface to the
	// outside.
	Attach(ctx context.Context, pid int) (*Attachment, error)
}

// Attachment is a sandbox's place in a network.
type Attachment struct {
	Gateway    string       // address of this machine as the sandbox sees it
	Nameserver string       // address of the network's own, empty if it has none
	Detach     func() error // frees what belongs to the sandbox, once that has ended
}

var _ solver.Runner = (*Runner)(nil)

// Run performs one action.
func (r *Runner) Run(ctx context.Context, a *solver.Action) (solver.Result, error) {
	switch o := a.Op.(type) {
	case op.Scratch:
		return stack(nil), nil
	case op.Image:
		return r.image(ctx, a, o)
	case op.Tar:
		return r.tar(ctx, o)
	case op.HTTP:
		return r.http(ctx, a, o)
	case op.Git:
		return r.git(ctx, a, o)
	case op.Select:
		return r.selectFiles(ctx, a, o)
	case op.Inline:
		return r.inline(o)
	case op.Dest:
		return r.dest(ctx, a, o)
	case op.Copy:
		return r.copy(ctx, a, o)
	case op.Mkdir:
		return r.mkdir(ctx, a, o)
	case op.Exec:
		return r.exec(ctx, a, o)
	}
	return solver.Result{}, fmt.Errorf("op %T is not known to this runner", a.Op)
}

// Close ends the use of local directories and keeps what was learned of them.
func (r *Runner) Close() error {
	r.detaching.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	var first error
	for _, c := range r.contexts {
		if err := c.close(); err != nil && first == nil {
			first = err
		}
	}
	r.contexts = nil
	return first
}

// stack is the result of an op that made layers. No layers at all is a stack
// too: the empty one.
func stack(layers []solver.Layer) solver.Result {
	if layers == nil {
		layers = []solver.Layer{}
	}
	return solver.Result{Digest: solver.StackDigest(layers), Layers: layers}
}

// emptyDir is a directory of this process's that holds nothing.
func (r *Runner) emptyDir() (string, error) {
	r.emptyOnce.Do(func() { r.empty, r.emptyErr = r.Store.Scratch("empty") })
	return r.empty, r.emptyErr
}

// ReadFile reads a small file of a stack, following links inside it.
func (r *Runner) ReadFile(ctx context.Context, layers []solver.Layer, path string) ([]byte, error) {
	idx, err := r.Store.Index(layers)
	if err != nil {
		return nil, err
	}
	return r.readFile(ctx, layers, idx, path)
}

// readFile reads a small file of a stack, following links inside it.
func (r *Runner) readFile(ctx context.Context, layers []solver.Layer, idx *tree.Index, path string) ([]byte, error) {
	resolved, e, at, err := idx.Resolve(path, true)
	if err != nil {
		return nil, err
	}
	if e.Type != tree.File {
		return nil, fmt.Errorf("/%s is a %s, not a file", resolved, e.Type)
	}
	if e.Size > 16<<20 {
		return nil, fmt.Errorf("/%s is too large: %d bytes", resolved, e.Size)
	}
	// In its own layer the entry's path has no links.
	dir, err := r.Store.LayerDir(ctx, layers[at].Digest)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, resolved))
}
