package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"kiln.build/cache/layout"
	"kiln.build/cache/registry"
)

// manifest is a cache as registries and OCI layouts keep it: an image manifest
// whose config is the index and whose layers are the objects, so that neither
// takes them for garbage.
func manifest(index []byte, objects []v1.Descriptor) ([]byte, v1.Descriptor, error) {
	config := v1.Descriptor{MediaType: TypeIndex, Digest: digest.FromBytes(index), Size: int64(len(index))}
	if objects == nil {
		objects = []v1.Descriptor{}
	}
	raw, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: TypeCache,
		Config: config, Layers: objects,
	})
	return raw, config, err
}

var errNoCache = errors.New("it is no build cache")

// configOf is the descriptor of the index in a manifest.
func configOf(raw []byte) (v1.Descriptor, error) {
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return v1.Descriptor{}, err
	}
	if m.Config.MediaType != TypeIndex {
		return v1.Descriptor{}, errNoCache
	}
	if m.Config.Size > indexMax {
		return v1.Descriptor{}, fmt.Errorf("an index of %d bytes is too large", m.Config.Size)
	}
	return m.Config, m.Config.Digest.Validate()
}

// Registry keeps a cache under a name in a registry.
type Registry struct {
	Client *registry.Client
	Ref    registry.Reference
	Dir    string // an empty directory for objects on their way; for writing

	once   sync.Once
	layout *layout.Layout
	err    error
}

var _ Driver = (*Registry)(nil)

// Name implements [Driver].
func (r *Registry) Name() string { return r.Ref.Familiar() }

// Index implements [Driver].
func (r *Registry) Index(ctx context.Context) ([]byte, error) {
	desc, raw, err := r.Client.Manifest(ctx, r.Ref)
	var none *registry.NotFoundError
	if errors.As(err, &none) {
		return nil, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return nil, err
	}
	config, err := configOf(raw)
	if errors.Is(err, errNoCache) {
		x, err := r.inlineIndex(ctx, desc, raw)
		if err != nil {
			return nil, err
		}
		return x.encode()
	}
	if err != nil {
		return nil, err
	}
	body, err := r.Client.Fetch(ctx, r.Ref, config)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, indexMax))
}

// Get implements [Driver].
func (r *Registry) Get(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return r.Client.Fetch(ctx, r.Ref, d)
}

// staging is a layout that objects are sent from.
func (r *Registry) staging() (*layout.Layout, error) {
	r.once.Do(func() { r.layout, r.err = layout.Open(r.Dir) })
	return r.layout, r.err
}

// Missing implements [Driver].
func (r *Registry) Missing(ctx context.Context, all []v1.Descriptor) ([]v1.Descriptor, error) {
	var missing []v1.Descriptor
	for _, d := range all {
		body, err := r.Client.Fetch(ctx, r.Ref, d)
		var none *registry.NotFoundError
		switch {
		case errors.As(err, &none):
			missing = append(missing, d)
		case err != nil:
			return nil, err
		default:
			_ = body.Close()
		}
	}
	return missing, nil
}

// Put implements [Driver].
func (r *Registry) Put(ctx context.Context, d v1.Descriptor, file string) error {
	l, err := r.staging()
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := l.Write(ctx, d, f); err != nil {
		return err
	}
	return errors.Join(r.Client.Upload(ctx, l, d, r.Ref), l.Remove(d.Digest))
}

// Commit implements [Driver].
func (r *Registry) Commit(ctx context.Context, index []byte, objects []v1.Descriptor) error {
	l, err := r.staging()
	if err != nil {
		return err
	}
	raw, config, err := manifest(index, objects)
	if err != nil {
		return err
	}
	if _, err := l.WriteBytes(ctx, config.MediaType, index); err != nil {
		return err
	}
	if err := r.Client.Upload(ctx, l, config, r.Ref); err != nil {
		return err
	}
	return r.Client.PutManifest(ctx, v1.MediaTypeImageManifest, raw, r.Ref)
}

// Local keeps a cache in a folder, which is an OCI image layout.
type Local struct {
	Dir string
	Tag string // of the cache in the layout

	// Digest, if set, names the manifest to be read in place of the tag.
	Digest digest.Digest

	mu    sync.Mutex
	lease *layout.Lease // keeps what was put until it is committed
}

var _ Driver = (*Local)(nil)

// hold keeps others' collections away from what is put.
func (l *Local) hold(ctx context.Context, x *layout.Layout) (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lease == nil {
		l.lease, err = x.Lease(ctx)
	}
	return err
}

func (l *Local) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lease != nil {
		l.lease.Release()
		l.lease = nil
	}
}

// Name implements [Driver].
func (l *Local) Name() string { return l.Dir }

// Index implements [Driver].
func (l *Local) Index(context.Context) ([]byte, error) {
	x, err := layout.OpenExisting(l.Dir)
	if err != nil {
		return nil, err
	}
	desc := v1.Descriptor{Digest: l.Digest}
	if l.Digest == "" {
		if desc, err = x.Resolve(l.Tag); err != nil {
			return nil, err
		}
	}
	raw, err := x.ReadBlob(desc.Digest)
	if err != nil {
		return nil, err
	}
	config, err := configOf(raw)
	if err != nil {
		return nil, err
	}
	return x.ReadBlob(config.Digest)
}

// Get implements [Driver].
func (l *Local) Get(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	x, err := layout.OpenExisting(l.Dir)
	if err != nil {
		return nil, err
	}
	body, _, err := x.Blob(d.Digest)
	return body, err
}

// Missing implements [Driver].
func (l *Local) Missing(_ context.Context, all []v1.Descriptor) ([]v1.Descriptor, error) {
	x, err := layout.Open(l.Dir)
	if err != nil {
		return nil, err
	}
	var missing []v1.Descriptor
	for _, d := range all {
		if size, err := x.Size(d.Digest); err != nil || size != d.Size {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// Put implements [Driver].
func (l *Local) Put(ctx context.Context, d v1.Descriptor, file string) error {
	x, err := layout.Open(l.Dir)
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := l.hold(ctx, x); err != nil {
		return err
	}
	_, err = x.Write(ctx, d, f)
	return err
}

// Commit implements [Driver].
func (l *Local) Commit(ctx context.Context, index []byte, objects []v1.Descriptor) error {
	x, err := layout.Open(l.Dir)
	if err != nil {
		return err
	}
	raw, config, err := manifest(index, objects)
	if err != nil {
		return err
	}
	if missing, err := l.Missing(ctx, objects); err != nil || len(missing) > 0 {
		return errors.Join(err, fmt.Errorf("%d objects are not in the folder", len(missing)))
	}
	if err := l.hold(ctx, x); err != nil {
		return err
	}
	err = func() error {
		defer l.release()
		if _, err := x.WriteBytes(ctx, config.MediaType, index); err != nil {
			return err
		}
		desc, err := x.WriteBytes(ctx, v1.MediaTypeImageManifest, raw)
		if err != nil {
			return err
		}
		return x.Tag(ctx, l.Tag, desc)
	}()
	if err != nil {
		return err
	}
	// What only the earlier index had goes.
	if err := x.Collect(ctx, false); err != nil && !errors.Is(err, layout.ErrBusy) {
		return err
	}
	return nil
}
