package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of Docker's, which mean the same as those of the OCI.
const (
	DockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	DockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig   = "application/vnd.docker.container.image.v1+json"
	DockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerLayerTar = "application/vnd.docker.image.rootfs.diff.tar"
	DockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// IsIndex reports whether a media type is that of a list of manifests.
func IsIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == DockerIndex
}

// IsManifest reports whether a media type is that of an image's manifest.
func IsManifest(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == DockerManifest
}

// IsForeign reports whether a layer of that media type may be absent from
// registries and come from the URLs in its descriptor.
func IsForeign(mediaType string) bool {
	return mediaType == DockerForeign || strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.")
}

// An Image is an image for one platform: its documents, and what its layers
// are, but not their content.
type Image struct {
	Target     v1.Descriptor // what was asked for: an index, or Descriptor
	Descriptor v1.Descriptor // of the manifest, with its platform where an index told it
	Index      []byte        // what Target is, as stored; nil where that is Descriptor
	Manifest   []byte        // as stored, byte for byte
	Config     []byte        // as stored, byte for byte

	ConfigDescriptor v1.Descriptor
	Platform         v1.Platform // as the config says
	Layers           []Layer     // bottom first
}

// A Layer of an image: its blob and the digest of its uncompressed tar.
type Layer struct {
	v1.Descriptor
	DiffID digest.Digest
}

// PlatformError says that an image is there, but not for the platform asked.
type PlatformError struct {
	Want      v1.Platform
	Available []v1.Platform
}

func (e *PlatformError) Error() string {
	if len(e.Available) == 0 {
		return fmt.Sprintf("no image for platform %s, nor for any other", platforms.Format(e.Want))
	}
	names := make([]string, len(e.Available))
	for i, p := range e.Available {
		names[i] = platforms.Format(p)
	}
	return fmt.Sprintf("no image for platform %s; there are %s", platforms.Format(e.Want), strings.Join(names, ", "))
}

// A Fetch function returns the bytes of a manifest, index or config, checked
// against the descriptor's digest.
type Fetch func(context.Context, v1.Descriptor) ([]byte, error)

// Image reads the image that desc stands for. From an index the best match
// for the platform is taken; nil means that of this machine. A manifest is
// taken as it is: its platform is in the result for the caller to judge.
func (l *Layout) Image(ctx context.Context, desc v1.Descriptor, platform *v1.Platform) (*Image, error) {
	return ReadImage(ctx, desc, platform, func(_ context.Context, d v1.Descriptor) ([]byte, error) {
		return l.ReadBlob(d.Digest)
	})
}

// ReadImage is [Layout.Image] for an image that is somewhere else.
func ReadImage(ctx context.Context, desc v1.Descriptor, platform *v1.Platform, fetch Fetch) (*Image, error) {
	if platform == nil {
		p := platforms.DefaultSpec()
		platform = &p
	}
	image := &Image{Target: desc}
	// An index may list indexes; registries do not nest them deeper.
	for range 4 {
		b, err := fetch(ctx, desc)
		if err != nil {
			return nil, err
		}
		mediaType, err := documentType(desc.MediaType, b)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", desc.Digest, err)
		}
		desc.MediaType = mediaType
		if IsManifest(mediaType) {
			image.Descriptor, image.Manifest = desc, b
			if err := image.read(ctx, fetch); err != nil {
				return nil, fmt.Errorf("image %s: %w", desc.Digest, err)
			}
			return image, nil
		}
		if image.Index == nil {
			image.Index = b
		}
		var x v1.Index
		if err := json.Unmarshal(b, &x); err != nil {
			return nil, fmt.Errorf("image index %s: %w", desc.Digest, err)
		}
		if desc, err = Select(x.Manifests, *platform); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("image %s: indexes are nested too deep", image.Target.Digest)
}

// read takes the rest of an image from its manifest.
func (m *Image) read(ctx context.Context, fetch Fetch) error {
	var manifest v1.Manifest
	if err := json.Unmarshal(m.Manifest, &manifest); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if manifest.Config.Digest == "" {
		return errors.New("the manifest names no config")
	}
	config, err := fetch(ctx, manifest.Config)
	if err != nil {
		return err
	}
	m.Config, m.ConfigDescriptor = config, manifest.Config
	var parsed v1.Image
	if err := json.Unmarshal(config, &parsed); err != nil {
		return fmt.Errorf("config %s: %w", manifest.Config.Digest, err)
	}
	m.Platform = parsed.Platform
	diffIDs := parsed.RootFS.DiffIDs
	if len(diffIDs) != len(manifest.Layers) {
		return fmt.Errorf("the manifest has %d layers, the config %d", len(manifest.Layers), len(diffIDs))
	}
	for i, l := range manifest.Layers {
		if err := errors.Join(l.Digest.Validate(), diffIDs[i].Validate()); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		m.Layers = append(m.Layers, Layer{Descriptor: l, DiffID: diffIDs[i]})
	}
	return nil
}

// Select picks from an index the manifest that suits a platform best, as
// containerd does: variants fall back to lower ones, arm64 to 32-bit arm.
// Attestations are never picked. The error is a [*PlatformError].
func Select(manifests []v1.Descriptor, platform v1.Platform) (v1.Descriptor, error) {
	match := platforms.Only(platforms.Normalize(platform))
	var best *v1.Descriptor
	var available []v1.Platform
	for i, d := range manifests {
		if !IsIndex(d.MediaType) && !IsManifest(d.MediaType) || IsAttestation(d) {
			continue
		}
		if d.Platform == nil {
			// Without a platform it suits any, but worse than one that says
			// that it does.
			if best == nil {
				best = &manifests[i]
			}
			continue
		}
		available = append(available, *d.Platform)
		if !match.Match(*d.Platform) {
			continue
		}
		if best == nil || best.Platform == nil || match.Less(*d.Platform, *best.Platform) {
			best = &manifests[i]
		}
	}
	if best == nil || best.Platform == nil && len(available) > 0 {
		return v1.Descriptor{}, &PlatformError{Want: platform, Available: available}
	}
	return *best, nil
}

// IsAttestation reports whether a descriptor in an index is not an image but
// what BuildKit attests of one (https://docs.docker.com/build/metadata/attestations/attestation-storage/).
func IsAttestation(d v1.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" ||
		d.Platform != nil && d.Platform.OS == "unknown"
}

// documentType is the media type of a manifest or index. The document's own
// word must not contradict the descriptor's: a registry could otherwise have
// one digest read in two ways (CVE-2021-41190).
func documentType(claimed string, b []byte) (string, error) {
	var doc struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return "", err
	}
	if doc.SchemaVersion == 1 || doc.FSLayers != nil {
		return "", errors.New("it is in Docker's schema 1 format, which was retired in 2017; pull and push it with a tool of that time to convert it")
	}
	if doc.Manifests != nil && (doc.Config != nil || doc.Layers != nil) {
		return "", errors.New("the document is both an index and a manifest")
	}
	t := doc.MediaType
	if t == "" {
		t = claimed
	}
	switch {
	case IsIndex(t) && doc.Config == nil && doc.Layers == nil:
		return t, nil
	case IsManifest(t) && doc.Manifests == nil:
		return t, nil
	case IsIndex(t) || IsManifest(t):
		return "", fmt.Errorf("the document is not what its media type %s says", t)
	case doc.Manifests != nil:
		return v1.MediaTypeImageIndex, nil
	case doc.Config != nil:
		return v1.MediaTypeImageManifest, nil
	}
	return "", fmt.Errorf("media type %q is not that of an image", t)
}
