// Package layout is a directory in the format of an OCI image layout, used as
// a store of content by digest and as the table of image tags.
//
// A [Layout] holds blobs (Write, Blob) and tags (Tag, Resolve, List); an
// [Image] is what a tag stands for on one platform. Any number of processes
// may use a layout at once. What is in it can be read by every tool that
// knows the format, and entries that other tools made are kept.
//
// On disk it is what the image specification says:
//
//	oci-layout           {"imageLayoutVersion":"1.0.0"}; also the lock of index.json
//	index.json           one descriptor for each tag, named by the annotation
//	                     org.opencontainers.image.ref.name
//	blobs/sha256/HEX     content; the directory is also the lock of Collect
//	.kiln-*              blobs being written
//
// It knows nothing of registries, tar files or the build cache.
package layout

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	_ "crypto/sha512" // digests of other tools

	"kiln.build/cache/layout/unnamed"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// tempPrefix starts the names of blobs being written.
const tempPrefix = ".kiln-"

// A Layout is an OCI image layout on disk. Its methods may be called by any
// number of goroutines and processes at once.
type Layout struct {
	dir   string
	wrote func(bytes int64) // may be nil

	directFrom int64         // as the constants, but for tests
	dear       time.Duration // likewise

	named atomic.Bool             // blobs got names that are not synced yet
	seen  atomic.Pointer[listing] // the last one
}

// OnWrite makes fn hear of the size of every blob that is added. It must be
// called before anything is written.
func (l *Layout) OnWrite(fn func(bytes int64)) { l.wrote = fn }

// NotFoundError says that a layout has no such tag or blob.
type NotFoundError struct {
	What string // a reference or a digest
	Dir  string
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("%s is not in the image store %s", e.What, e.Dir)
}

// Is makes the error match [fs.ErrNotExist].
func (e *NotFoundError) Is(target error) bool { return target == fs.ErrNotExist }

// CorruptError says that a blob's bytes are not those its digest names. The
// blob can be removed and fetched or made again.
type CorruptError struct {
	Digest digest.Digest
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("blob %s is corrupt: %s", e.Digest, e.Reason)
}

// Open opens a layout, and makes an empty one where there is none.
func Open(dir string) (*Layout, error) {
	if l, err := OpenExisting(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return l, err
	}
	if err := create(dir); err != nil {
		return nil, fmt.Errorf("create image layout %s: %w", dir, err)
	}
	return OpenExisting(dir)
}

// OpenExisting opens a layout that is there. It writes nothing, so a layout
// on a read-only file system can be read.
func OpenExisting(dir string) (*Layout, error) {
	b, err := os.ReadFile(filepath.Join(dir, v1.ImageLayoutFile))
	if err != nil {
		return nil, fmt.Errorf("open image layout: %w", err)
	}
	var version v1.ImageLayout
	if err := json.Unmarshal(b, &version); err != nil {
		return nil, fmt.Errorf("open image layout %s: %s: %w", dir, v1.ImageLayoutFile, err)
	}
	if version.Version != v1.ImageLayoutVersion {
		return nil, fmt.Errorf("open image layout %s: version %q is not known, only %s", dir, version.Version, v1.ImageLayoutVersion)
	}
	return &Layout{dir: dir, directFrom: directFrom, dear: dearMemory}, nil
}

// create makes what an empty layout has. Several may do so at once, and one
// may have been stopped halfway: oci-layout, by which a layout is known,
// comes last, and nothing that is there is replaced.
func create(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, v1.ImageBlobsDir, "sha256"), 0o755); err != nil {
		return err
	}
	index, err := json.Marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{},
	})
	if err != nil {
		return err
	}
	version, err := json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := createFile(filepath.Join(dir, v1.ImageIndexFile), index); err != nil {
		return err
	}
	return createFile(filepath.Join(dir, v1.ImageLayoutFile), version)
}

// createFile makes a whole file unless there is one.
func createFile(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if err := finish(tmp, data); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		if _, missing := os.Stat(path); missing != nil {
			return err
		}
	}
	return nil
}

// finish writes data to a new file, makes it durable and closes it.
func finish(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Dir is the directory of the layout.
func (l *Layout) Dir() string { return l.dir }

// Path is where a blob is, or would be. It is empty for a malformed digest.
func (l *Layout) Path(d digest.Digest) string {
	if d.Validate() != nil {
		return ""
	}
	return filepath.Join(l.dir, v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// Has reports whether a blob is there.
func (l *Layout) Has(d digest.Digest) bool {
	_, err := os.Stat(l.Path(d))
	return err == nil
}

// Size is a blob's length in bytes.
func (l *Layout) Size(d digest.Digest) (int64, error) {
	fi, err := os.Stat(l.Path(d))
	if err != nil {
		return 0, l.blobError(d, err)
	}
	return fi.Size(), nil
}

// Blob opens a blob and returns its size. Reading it to the end gives a
// [*CorruptError] instead of io.EOF if the bytes are not those of the digest.
func (l *Layout) Blob(d digest.Digest) (io.ReadCloser, int64, error) {
	f, err := os.Open(l.Path(d))
	if err != nil {
		return nil, 0, l.blobError(d, err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, l.blobError(d, err)
	}
	return &verifier{f: f, want: d, hash: d.Algorithm().Hash()}, fi.Size(), nil
}

// ReadBlob returns a small blob, such as a manifest, that was checked. One
// over a limit of 64 MiB is refused.
func (l *Layout) ReadBlob(d digest.Digest) ([]byte, error) {
	r, size, err := l.Blob(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > maxDocument {
		return nil, fmt.Errorf("read blob %s: %d bytes are too many for a manifest or config", d, size)
	}
	return io.ReadAll(r)
}

// maxDocument bounds what is read into memory: registries refuse manifests
// over 4 MiB, and configs are smaller still.
const maxDocument = 64 << 20

// Remove deletes a blob, as is right for one that was found corrupt. What
// refers to it is not looked at.
func (l *Layout) Remove(d digest.Digest) error {
	if err := os.Remove(l.Path(d)); err != nil {
		return l.blobError(d, err)
	}
	return nil
}

func (l *Layout) blobError(d digest.Digest, err error) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("blob %q: %w", d, err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return &NotFoundError{What: "blob " + d.String(), Dir: l.dir}
	}
	return fmt.Errorf("blob %s: %w", d, err)
}

// Write stores what r holds as a blob and returns its descriptor, which is
// expected with size and digest filled in. Where expected has a digest the
// content must have it, and the size if that is over zero; where that blob is
// there already, r is not read. A failed write leaves nothing behind.
//
// Write alone does not protect the blob from [Layout.Collect]: hold a
// [Lease] until it is tagged.
func (l *Layout) Write(ctx context.Context, expected v1.Descriptor, r io.Reader) (v1.Descriptor, error) {
	return l.writeBlob(ctx, expected, false, func(w *Pour) error {
		_, err := w.ReadFrom(r)
		return err
	})
}

// Make stores as a blob what write writes, and returns its descriptor. With
// aside the blob is not going to be read soon: it is kept out of memory where
// that is dear.
func (l *Layout) Make(ctx context.Context, mediaType string, aside bool, write func(io.Writer) error) (v1.Descriptor, error) {
	var own error
	desc, err := l.writeBlob(ctx, v1.Descriptor{MediaType: mediaType}, aside, func(w *Pour) error {
		own = write(w)
		return own
	})
	if own != nil && errors.Unwrap(err) == own {
		err = own // which says itself what was being written
	}
	return desc, err
}

func (l *Layout) writeBlob(ctx context.Context, expected v1.Descriptor, aside bool, fill func(*Pour) error) (v1.Descriptor, error) {
	if expected.Digest != "" {
		if err := expected.Digest.Validate(); err != nil {
			return expected, fmt.Errorf("write blob %q: %w", expected.Digest, err)
		}
		if size, err := l.Size(expected.Digest); err == nil && (expected.Size <= 0 || size == expected.Size) {
			expected.Size = size
			return expected, nil
		}
	}
	lease, err := l.Lease(ctx)
	if err != nil {
		return expected, err
	}
	defer lease.Release()
	desc, err := l.write(ctx, expected, aside, fill)
	if err != nil && expected.Digest != "" {
		err = fmt.Errorf("write blob %s: %w", expected.Digest, err)
	} else if err != nil {
		err = fmt.Errorf("write blob: %w", err)
	}
	return desc, err
}

// WriteBytes stores a small blob of the given media type.
func (l *Layout) WriteBytes(ctx context.Context, mediaType string, data []byte) (v1.Descriptor, error) {
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return l.Write(ctx, desc, bytes.NewReader(data))
}

// writes numbers those of this process: several may be of one blob.
var writes atomic.Uint64

func (l *Layout) write(ctx context.Context, expected v1.Descriptor, aside bool, fill func(*Pour) error) (v1.Descriptor, error) {
	h := sha256.New()
	algorithm := digest.SHA256
	if expected.Digest != "" {
		algorithm = expected.Digest.Algorithm()
		h = algorithm.Hash()
	}
	tmp, err := unnamed.New(filepath.Join(l.dir, "new blob"), tempPrefix)
	if err != nil {
		return expected, err
	}
	defer tmp.Close()

	limit := int64(-1)
	if expected.Digest != "" && expected.Size > 0 {
		limit = expected.Size
	}
	// An uncompressed layer is kept for other tools, to be compressed some day,
	// and to be unpacked by who looks at it, which often nobody does.
	into := Pour{f: tmp, h: h, ctx: ctx, limit: limit, direct: expected.MediaType == v1.MediaTypeImageLayer, from: l.directFrom}
	if aside {
		into.dear = l.dear
	}
	err = fill(&into)
	if closeErr := into.Close(); closeErr != nil {
		err = closeErr // fill's is that it could go no further
	}
	if err != nil {
		return expected, err
	}
	n, got := into.total, digest.NewDigest(algorithm, h)
	switch {
	case limit >= 0 && n < limit:
		return expected, fmt.Errorf("content ends after %d of %d bytes: %w", n, limit, io.ErrUnexpectedEOF)
	case expected.Digest != "" && got != expected.Digest:
		return expected, &CorruptError{Digest: expected.Digest, Reason: "the bytes received have the digest " + got.String()}
	}
	expected.Digest, expected.Size = got, n
	path := l.Path(got)
	if fi, err := os.Stat(path); err == nil && fi.Size() == n {
		return expected, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return expected, err
	}
	// Before the name is there the bytes must be: after a power loss a blob
	// is whole or absent.
	if err := tmp.Chmod(0o644); err != nil {
		return expected, err
	}
	if err := tmp.Sync(); err != nil {
		return expected, err
	}
	beside := filepath.Join(l.dir, fmt.Sprintf("%s%s-%d-%d", tempPrefix, got.Encoded(), os.Getpid(), writes.Add(1)))
	if err := tmp.SetName(path, beside); err != nil {
		return expected, err
	}
	l.named.Store(true)
	if l.wrote != nil {
		l.wrote(n)
	}
	return expected, nil
}
