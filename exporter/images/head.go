package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"kiln.build/cache/layout"
	"kiln.build/cache/layout/unnamed"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Head is the beginning of an archive that is written while the first blob
// in it, the largest as a rule, is being made. Nothing comes of it where that
// does not work, or becomes another blob: the archive is written as ever then.
// One goroutine writes it at a time. Nil takes nothing.
type Head struct {
	path string

	mu   sync.Mutex
	file *unnamed.File // nil before the first byte, and after a failure
	into *layout.Pour  // writes to it; nil once all is written
	size int64         // of the blob, so far
	gone bool          // do not try again
	blob v1.Descriptor // once it is whole
}

// headLen is how much of an archive comes before the content of its first
// blob: the headers of two folders and its own.
const headLen = 3 * 512

// NewHead returns the beginning of an archive at a path, which takes nothing
// where that is no place for one. Discard must be called.
func NewHead(path string) *Head {
	if special, err := isSpecial(path); special || err != nil {
		return nil
	}
	return &Head{path: path}
}

// Restart forgets what was written.
func (h *Head) Restart() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop()
}

// Write takes a part of the blob. It never fails.
func (h *Head) Write(p []byte) (int, error) {
	if h == nil {
		return len(p), nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone || h.blob.Digest != "" {
		return len(p), nil
	}
	err := h.begin()
	if err == nil {
		_, err = h.into.Write(p)
	}
	if err != nil {
		h.drop()
		h.gone = true
	}
	h.size += int64(len(p))
	return len(p), nil
}

// begin makes the file, unless it is there.
func (h *Head) begin() error {
	if h.file != nil {
		return nil
	}
	// A name would show in a build context that the archive is in.
	f, err := unnamed.Nameless(h.path)
	if err != nil {
		return err
	}
	h.file, h.into = f, layout.NewPour(context.Background(), f)
	_, err = h.into.Write(make([]byte, headLen))
	return err
}

// Finish says that all of a blob was written, and which it is. Its bytes are
// those that have this digest: the caller has hashed what it wrote here.
func (h *Head) Finish(blob v1.Descriptor) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file == nil || h.blob.Digest != "" {
		return
	}
	if err := h.end(); err != nil || h.size != blob.Size {
		h.drop()
		return
	}
	h.blob = blob
}

// Discard removes what was written, unless it has become an archive.
func (h *Head) Discard() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop()
	h.gone = true
}

func (h *Head) drop() {
	if h.file != nil {
		_ = h.end() // nothing comes of this file
		_ = h.file.Close()
	}
	h.file, h.size, h.blob = nil, 0, v1.Descriptor{}
}

// end waits until all is written.
func (h *Head) end() error {
	if h.into == nil {
		return nil
	}
	err := h.into.Close()
	h.into = nil
	return err
}

// take returns the file, positioned behind the blob, if it is of this one. The
// caller closes it.
func (h *Head) take(blob v1.Descriptor) *unnamed.File {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.blob.Digest == "" || h.blob.Digest != blob.Digest || h.blob.Size != blob.Size {
		return nil
	}
	f := h.file
	h.file, h.gone = nil, true
	return f
}

// WriteArchiveFile is WriteArchive to a file, of which the beginning may be
// there.
func WriteArchiveFile(ctx context.Context, l *layout.Layout, path string, head *Head, o ArchiveOptions, exports ...Export) error {
	a, err := newArchiver(ctx, l, o, exports)
	if err != nil {
		return err
	}
	if f := head.take(a.first); f != nil {
		err = a.complete(ctx, f, o)
		if err == nil {
			err = finish(f, path)
		}
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if !errors.Is(err, errHead) {
			return err
		}
	}
	return WriteFile(path, func(w io.Writer) error { return a.write(ctx, w, o) })
}

// errHead says that a blob's header is longer than others': that of one with
// eight gigabytes or more.
var errHead = errors.New("the archive begins differently")

// complete puts before the first blob, and behind it, what belongs there.
func (a *archiver) complete(ctx context.Context, f *unnamed.File, o ArchiveOptions) error {
	var start bytes.Buffer
	tw := tar.NewWriter(&start)
	if err := folders(tw); err != nil {
		return err
	}
	if err := tw.WriteHeader(blobHeader(a.first.Digest, a.first.Size)); err != nil {
		return err
	}
	if start.Len() != headLen {
		return errHead
	}
	if _, err := f.WriteAt(start.Bytes(), 0); err != nil {
		return err
	}
	if n := a.first.Size % 512; n > 0 {
		if _, err := f.Write(make([]byte, 512-n)); err != nil {
			return err
		}
	}
	return a.rest(ctx, tar.NewWriter(f), o)
}
