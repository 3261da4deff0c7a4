package archive

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"kiln.build/cache/layout"
	"kiln.build/cache/tree"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// BlobOptions say how a layer becomes a blob.
type BlobOptions struct {
	PackOptions
	Compression Compression // empty is Gzip
	Level       *int        // as for Compress; nil is the default
	Blocks      Blocks      // may be nil
	Beside      io.Writer   // gets the blob's bytes too; may be nil
}

// PackBlob writes the layer in dir, whose tree is t, as a blob of an image
// layout. It returns the blob's descriptor and its diff ID, the digest of the
// uncompressed stream. Nothing is kept in memory or written twice. Hold a
// lease of the layout until the blob is tagged.
func PackBlob(ctx context.Context, l *layout.Layout, dir string, t *tree.Tree, o BlobOptions) (v1.Descriptor, digest.Digest, error) {
	if o.Compression == "" {
		o.Compression = Gzip
	}
	level := DefaultLevel
	if o.Level != nil {
		level = *o.Level
	}
	diffID := sha256.New() // unless the blob's own digest is that
	desc, err := l.Make(ctx, o.Compression.MediaType(), o.Beside != nil, func(blob io.Writer) error {
		if o.Beside != nil {
			blob = io.MultiWriter(blob, o.Beside)
		}
		if o.Blocks != nil {
			o.spans = &spans{}
		}
		z, err := compressor(blob, o.Compression, level, o.Blocks, o.spans)
		if err != nil {
			return err
		}
		if o.Compression == Uncompressed {
			return errors.Join(Pack(ctx, z, dir, t, o.PackOptions), z.Close())
		}
		w := bufio.NewWriterSize(io.MultiWriter(diffID, z), 256<<10)
		err = Pack(ctx, w, dir, t, o.PackOptions)
		if err == nil {
			err = w.Flush()
		}
		return errors.Join(err, z.Close())
	})
	if err != nil {
		return v1.Descriptor{}, "", err
	}
	if o.Compression == Uncompressed {
		return desc, desc.Digest, nil
	}
	return desc, digest.NewDigest(digest.SHA256, diffID), nil
}
