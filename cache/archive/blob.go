package archive

import (
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
	pr, pw := io.Pipe()
	diffID := sha256.New() // unless the blob's own digest is that
	packed := make(chan error, 1)
	go func() {
		err := func() error {
			if o.Blocks != nil {
				o.spans = &spans{}
			}
			z, err := compressor(pw, o.Compression, level, o.Blocks, o.spans)
			if err != nil {
				return err
			}
			w := io.Writer(z)
			if o.Compression != Uncompressed {
				w = io.MultiWriter(diffID, z)
			}
			err = Pack(ctx, w, dir, t, o.PackOptions)
			return errors.Join(err, z.Close())
		}()
		pw.CloseWithError(err) // nil is io.EOF
		packed <- err
	}()
	write, r := l.Write, io.Reader(pr)
	if o.Beside != nil { // nobody reads it back, then
		write, r = l.WriteAside, io.TeeReader(pr, o.Beside)
	}
	desc, err := write(ctx, v1.Descriptor{MediaType: o.Compression.MediaType()}, r)
	pr.CloseWithError(err) // stops Pack where Write gave up
	if packError := <-packed; packError != nil {
		err = packError
	}
	if err != nil {
		return v1.Descriptor{}, "", err
	}
	if o.Compression == Uncompressed {
		return desc, desc.Digest, nil
	}
	return desc, digest.NewDigest(digest.SHA256, diffID), nil
}
