package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"kiln.build/cache/archive"
	"kiln.build/cache/layout"
	"kiln.build/exporter/blob"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// ingest stores a tar stream as a layer blob: as it comes if it is compressed
// in a way that layers may be, else uncompressed.
func ingest(ctx context.Context, l *layout.Layout, r io.Reader) (blob.Blob, error) {
	start := make([]byte, 6)
	n, err := io.ReadFull(r, start)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return blob.Blob{}, err
	}
	if n == 0 {
		return blob.Blob{}, errors.New("it is empty")
	}
	start = start[:n]
	r = io.MultiReader(bytes.NewReader(start), r)
	mediaType := v1.MediaTypeImageLayer
	switch {
	case bytes.HasPrefix(start, []byte{0x1f, 0x8b}):
		mediaType = v1.MediaTypeImageLayerGzip
	case bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		mediaType = v1.MediaTypeImageLayerZstd
	default:
		plain, err := archive.Decompress(ctx, r)
		if err != nil {
			return blob.Blob{}, err
		}
		defer plain.Close()
		r = plain
	}
	check, diffID := startCheck(ctx)
	desc, err := l.Write(ctx, v1.Descriptor{MediaType: mediaType}, io.TeeReader(r, check))
	check.CloseWithError(err)
	d, checkErr := diffID()
	if checkErr != nil {
		err = checkErr // of writing too, where that failed first
	}
	return blob.Blob{Descriptor: desc, DiffID: d}, err
}

// errNoTar says that a layer's content is no tar archive.
var errNoTar = errors.New("it is not a tar archive")

// startCheck returns a pipe to write a stream to, compressed or not, and a
// function that waits for its end and returns the digest of its content.
func startCheck(ctx context.Context) (*io.PipeWriter, func() (digest.Digest, error)) {
	pr, pw := io.Pipe()
	type result struct {
		digest digest.Digest
		err    error
	}
	done := make(chan result, 1)
	go func() {
		h := digest.Canonical.Digester()
		err := func() error {
			plain, err := archive.Decompress(ctx, pr)
			if err != nil {
				return err
			}
			defer plain.Close()
			content := io.TeeReader(plain, h.Hash())
			tr := tar.NewReader(content)
			for {
				if _, err := tr.Next(); err == io.EOF {
					break
				} else if err != nil {
					return fmt.Errorf("%w: %w", errNoTar, err)
				}
			}
			// What follows the end of a tar is part of the layer.
			_, err = io.Copy(io.Discard, content)
			return err
		}()
		if err == nil {
			_, err = io.Copy(io.Discard, pr)
		}
		pr.CloseWithError(err)
		done <- result{h.Digest(), err}
	}()
	return pw, func() (digest.Digest, error) {
		r := <-done
		return r.digest, r.err
	}
}
