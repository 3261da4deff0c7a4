// Package archive turns tar streams into layer directories and back.
//
// [Unpack] writes the entries of a tar stream, compressed or not, below a
// directory and returns the [tree.Tree] of what it wrote; [Pack] writes a
// layer's tree as a canonical tar stream; [PackBlob] does so straight into an
// image layout. Image layers mark deleted files by names that start with
// ".wh."; on disk and in trees they are overlayfs whiteouts.
//
// The package trusts no archive: whatever a stream holds, nothing outside
// the directory is touched. It knows nothing of registries or of how layers
// are stored.
package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// Names that mean deletions in image layers
// (https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts).
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // of aufs; nothing but the next has a meaning
	whiteoutOpaque = ".wh..wh..opq"
)

// xattrPrefix starts the PAX records of extended attributes, as in all tars
// since star.
const xattrPrefix = "SCHILY.xattr."

// CorruptError says that a file of a layer is no longer what the layer's
// tree says: someone wrote into the store, or the disk failed.
type CorruptError struct {
	Path   string
	Layer  digest.Digest // empty where the caller gave none
	Reason string
}

func (e *CorruptError) Error() string {
	switch {
	case e.Path == "":
		return fmt.Sprintf("layer %s is corrupt: %s", e.Layer, e.Reason)
	case e.Layer == "":
		return fmt.Sprintf("file %q is corrupt: %s", e.Path, e.Reason)
	}
	return fmt.Sprintf("file %q of layer %s is corrupt: %s", e.Path, e.Layer, e.Reason)
}

// IsArchive reports whether r starts like a tar archive, compressed or not,
// with at least one entry: whether ADD would unpack it. An archive that is
// damaged later counts, so that unpacking it can tell.
func IsArchive(ctx context.Context, r io.Reader) (bool, error) {
	plain, err := Decompress(ctx, r)
	if err != nil {
		return false, ioError(err)
	}
	defer plain.Close()
	_, err = tar.NewReader(plain).Next()
	return err == nil, ioError(err)
}

// ioError returns errors of reading a file, and nil for those that say that
// its bytes are of no use.
func ioError(err error) error {
	var pathError interface{ Timeout() bool } // of *fs.PathError, net.Error
	if errors.As(err, &pathError) || errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
