package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"kiln.build/cache/layout"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Resolved is an image in a registry: its documents, checked against their
// digests, and what its layers are, but not their content.
type Resolved struct {
	Ref Reference
	layout.Image
}

// Pinned is the reference with the digest of what it points at now.
func (r *Resolved) Pinned() Reference {
	pinned := r.Ref
	pinned.Digest = r.Target.Digest
	return pinned
}

// schema1 are the media types of the format before 2016.
var schema1 = []string{
	"application/vnd.docker.distribution.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.v1+prettyjws",
}

// accepted are the documents asked for. Schema 1 is among them so that its
// owner learns what is wrong, instead of that there is nothing.
var accepted = strings.Join(append([]string{
	v1.MediaTypeImageIndex, layout.DockerIndex, v1.MediaTypeImageManifest, layout.DockerManifest,
}, schema1...), ", ")

// maxManifest bounds manifests, as registries do (4 MiB), with some room.
const maxManifest = 16 << 20

// Resolve looks a reference up and reads the image for a platform; nil means
// that of this machine. See [layout.Layout.Image] for how it is chosen.
func (c *Client) Resolve(ctx context.Context, ref Reference, platform *v1.Platform) (*Resolved, error) {
	desc, raw, err := c.manifest(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", ref.Familiar(), err)
	}
	image, err := layout.ReadImage(ctx, desc, platform, func(ctx context.Context, d v1.Descriptor) ([]byte, error) {
		if d.Digest == desc.Digest {
			return raw, nil
		}
		return c.document(ctx, ref, d)
	})
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", ref.Familiar(), err)
	}
	return &Resolved{Ref: ref, Image: *image}, nil
}

// Head returns what a reference points at, as the registry says. It reads no
// content where the registry allows that, which Docker Hub, for one, does not
// count against its limits.
func (c *Client) Head(ctx context.Context, ref Reference) (v1.Descriptor, error) {
	var desc v1.Descriptor
	err := c.anywhere(ctx, ref.Host, "image "+ref.Path+ref.suffix(), func(e *endpoint) error {
		s, client, err := c.session(ctx, e, ref)
		if err != nil {
			return err
		}
		url := s.url("manifests", ref.identifier())
		if desc, err = headManifest(ctx, client, url); err == nil {
			return nil
		}
		desc, _, err = getManifest(ctx, client, url, ref) // also tells errors better
		return err
	})
	if err != nil {
		return desc, fmt.Errorf("resolve %s: %w", ref.Familiar(), err)
	}
	return desc, nil
}

func headManifest(ctx context.Context, client *http.Client, url string) (v1.Descriptor, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return v1.Descriptor{}, err
	}
	req.Header.Set("Accept", accepted)
	resp, err := client.Do(req)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer resp.Body.Close()
	if err := statusError(resp, http.StatusOK); err != nil {
		return v1.Descriptor{}, err
	}
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest")), Size: resp.ContentLength}
	if err := desc.Digest.Validate(); err != nil || desc.Size <= 0 {
		return desc, fmt.Errorf("the answer to HEAD tells no digest or size: %w", errors.ErrUnsupported)
	}
	return desc, nil
}

// document reads a manifest, index or config.
func (c *Client) document(ctx context.Context, ref Reference, d v1.Descriptor) ([]byte, error) {
	if layout.IsIndex(d.MediaType) || layout.IsManifest(d.MediaType) {
		ref.Digest = d.Digest
		_, b, err := c.manifest(ctx, ref)
		return b, err
	}
	if d.Size > maxManifest {
		return nil, fmt.Errorf("config %s: %d bytes are too many", d.Digest, d.Size)
	}
	r, err := c.fetch(ctx, ref, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// manifest reads the manifest or index that a reference points at.
func (c *Client) manifest(ctx context.Context, ref Reference) (desc v1.Descriptor, raw []byte, err error) {
	what := "image " + ref.Path + ref.suffix()
	err = c.anywhere(ctx, ref.Host, what, func(e *endpoint) error {
		s, client, err := c.session(ctx, e, ref)
		if err != nil {
			return err
		}
		// A response that breaks off is asked for again.
		for try := 1; ; try++ {
			desc, raw, err = getManifest(ctx, client, s.url("manifests", ref.identifier()), ref)
			if err == nil || try == maxTries || !passingError(err) {
				return err
			}
			if err := c.again(ctx, try); err != nil {
				return err
			}
		}
	})
	return desc, raw, err
}

// again waits before another try.
func (c *Client) again(ctx context.Context, try int) error {
	pause, _ := c.pause(try, nil)
	return sleep(ctx, pause)
}

func getManifest(ctx context.Context, client *http.Client, url string, ref Reference) (v1.Descriptor, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	req.Header.Set("Accept", accepted)
	resp, err := client.Do(req)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	defer resp.Body.Close()
	// wire has tried again already, so that no status is passing here.
	if err := statusError(resp, http.StatusOK); err != nil {
		return v1.Descriptor{}, nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("read manifest: %w", err)
	}
	if len(raw) > maxManifest {
		return v1.Descriptor{}, nil, fmt.Errorf("the manifest is longer than %d bytes", maxManifest)
	}
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	for _, old := range schema1 {
		if mediaType == old {
			return v1.Descriptor{}, nil, fmt.Errorf("the image is in Docker's schema 1 format, which was retired in 2017; pull and push it with a tool of that time to convert it")
		}
	}
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if ref.Digest != "" {
		if desc.Digest = ref.Digest.Algorithm().FromBytes(raw); desc.Digest != ref.Digest {
			return v1.Descriptor{}, nil, &layout.CorruptError{Digest: ref.Digest, Reason: "the manifest received has the digest " + desc.Digest.String()}
		}
	}
	return desc, raw, nil
}

// statusError returns an error for any other status.
func statusError(resp *http.Response, want ...int) error {
	if err := transport.CheckError(resp, want...); err != nil {
		return finalError{err}
	}
	return nil
}
