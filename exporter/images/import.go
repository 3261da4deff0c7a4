package images

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"kiln.build/cache/registry"

	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImportOptions say what image to make of a root file system.
type ImportOptions struct {
	Name    string   // as typed; empty is none
	Changes []string // Dockerfile instructions, such as "ENV A=b"
	Message string   // goes into the history
	From    string   // where the archive comes from, for the history

	Platform *v1.Platform // nil is this machine's
	Created  time.Time
}

// Import makes an image of one layer of a tar archive of a root file system,
// and returns its ID. The archive is kept as it is where layers may be
// compressed so (not at all, gzip, zstd), else uncompressed.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) (digest.Digest, error) {
	id, err := s.importTar(ctx, r, o)
	if err != nil {
		return "", fmt.Errorf("import %s: %w", o.From, err)
	}
	return id, nil
}

func (s *Store) importTar(ctx context.Context, r io.Reader, o ImportOptions) (digest.Digest, error) {
	// What is wrong with the words is told before a long transfer.
	var config dockerspec.DockerOCIImage
	if err := Change(&config.Config, o.Changes); err != nil {
		return "", err
	}
	name := ""
	if o.Name != "" {
		ref, err := registry.ParseReference(o.Name)
		if err != nil {
			return "", err
		}
		if ref.Digest != "" {
			return "", fmt.Errorf("%q cannot be a tag: it has a digest", o.Name)
		}
		name = ref.String()
	}
	lease, err := s.layout().Lease(ctx)
	if err != nil {
		return "", err
	}
	defer lease.Release()
	layer, err := ingest(ctx, s.layout(), r)
	if err != nil {
		return "", err
	}
	p := platforms.DefaultSpec()
	if o.Platform != nil {
		p = *o.Platform
	}
	config.Platform = platforms.Normalize(p)
	created := o.Created.UTC()
	config.Created = &created
	config.RootFS = v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.DiffID}}
	comment := o.Message
	if comment == "" {
		comment = "Imported from " + o.From
	}
	config.History = []v1.History{{Created: &created, Comment: comment}}
	configDesc, err := s.writeJSON(ctx, v1.MediaTypeImageConfig, config)
	if err != nil {
		return "", err
	}
	target, err := s.writeJSON(ctx, v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    configDesc,
		Layers:    []v1.Descriptor{layer.Descriptor},
	})
	if err != nil {
		return "", err
	}
	target.Platform = &config.Platform
	if name == "" {
		return configDesc.Digest, s.Keep(ctx, target)
	}
	return configDesc.Digest, s.Name(ctx, name, target)
}

func (s *Store) writeJSON(ctx context.Context, mediaType string, v any) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return s.layout().WriteBytes(ctx, mediaType, b)
}
