package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
)

// source is a cache that is read.
type source struct {
	driver Driver
	warn   func(string)

	once    sync.Once
	entries map[digest.Digest]*entry
	pieces  map[digest.Digest]piece

	mu    sync.Mutex
	bad   bool                     // nothing more is asked
	packs map[digest.Digest][]byte // that have been read lately
	held  int64                    // bytes in packs
	group singleflight.Group       // of packs being read
}

// load reads the index.
func (s *source) load(ctx context.Context) {
	s.once.Do(func() {
		b, err := s.driver.Index(ctx)
		var x *index
		if err == nil {
			x, err = decodeIndex(b)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return // the first build
		case err != nil:
			if ctx.Err() == nil {
				s.warn(fmt.Sprintf("cache %s cannot be used: %v", s.driver.Name(), err))
			}
			return
		}
		s.entries, s.pieces = make(map[digest.Digest]*entry, len(x.Entries)), x.Pieces
		for i := range x.Entries {
			s.entries[x.Entries[i].Key] = &x.Entries[i]
		}
	})
}

func (s *source) lookup(ctx context.Context, key digest.Digest) *entry {
	s.load(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad {
		return nil
	}
	return s.entries[key]
}

// distrust stops the use of the source and says why, once.
func (s *source) distrust(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.bad {
		s.bad = true
		s.warn(fmt.Sprintf("cache %s is not used any more: %v", s.driver.Name(), err))
	}
}

// packMax is up to which size an object is read at once and kept in memory,
// for it has many pieces.
const packMax = 8 << 20

// open reads a piece. The caller closes it.
func (s *source) open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	p, ok := s.pieces[d]
	if !ok {
		return nil, fmt.Errorf("content %s is not in it", d)
	}
	if p.Size > packMax {
		if p.Offset != 0 || p.Length != p.Size {
			return nil, errContent
		}
		body, err := s.driver.Get(ctx, p.descriptor())
		if err != nil {
			return nil, err
		}
		z, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, errors.Join(err, body.Close())
		}
		return &unpacked{z, body}, nil
	}
	b, err := s.pack(ctx, p.descriptor())
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(bytes.NewReader(b[p.Offset:p.Offset+p.Length]), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return &unpacked{z, nil}, nil
}

// packsMax bounds the packs in memory, in bytes.
const packsMax = 64 << 20

// pack reads a small object whole.
func (s *source) pack(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	b, err, _ := s.group.Do(string(d.Digest), func() (any, error) {
		s.mu.Lock()
		b, ok := s.packs[d.Digest]
		s.mu.Unlock()
		if ok {
			return b, nil
		}
		return s.readPack(ctx, d)
	})
	if err != nil {
		return nil, err
	}
	return b.([]byte), nil
}

func (s *source) readPack(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	body, err := s.driver.Get(ctx, d)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, d.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != d.Size || digest.FromBytes(b) != d.Digest {
		return nil, errContent
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.packs == nil || s.held > packsMax {
		s.packs, s.held = map[digest.Digest][]byte{}, 0
	}
	s.packs[d.Digest], s.held = b, s.held+d.Size
	return b, nil
}

// layer brings a layer into the store.
func (s *source) layer(ctx context.Context, store *cache.Store, want digest.Digest) error {
	var r io.ReadCloser
	var err error
	p := s.pieces[want]
	if p.Tar {
		r, err = s.driver.Get(ctx, p.descriptor())
	} else {
		r, err = s.open(ctx, want)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	draft, err := store.NewLayer()
	if err != nil {
		return err
	}
	defer draft.Discard()
	var t *tree.Tree
	if p.Tar {
		t, err = archive.Unpack(ctx, r, draft.FS, archive.UnpackOptions{Layer: true})
	} else {
		t, err = archive.ReadLayer(ctx, r, draft.FS, want)
	}
	if err != nil {
		return err
	}
	if p.Top != nil {
		if err := setTop(draft.FS, t, p.Top); err != nil {
			return err
		}
	}
	if t.Digest() != want {
		return errContent
	}
	_, err = draft.Commit(ctx, t)
	return err
}

// setTop gives a layer the top directory that a tar stream has left out, for
// it was as in the layer below.
func setTop(dir string, t *tree.Tree, a *top) error {
	e := tree.Entry{Type: tree.Dir, Mode: a.Mode & 0o7777, UID: a.UID, GID: a.GID, Mtime: a.Mtime}
	if have, ok := t.Lookup(""); ok {
		*have = e
	} else {
		t.Entries = slices.Insert(t.Entries, 0, e)
	}
	ts := unix.NsecToTimespec(a.Mtime)
	return errors.Join(os.Lchown(dir, a.UID, a.GID), unix.Chmod(dir, e.Mode),
		unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// blobMax bounds a blob of a result, in bytes.
const blobMax = 256 << 20

// blob brings a result's blob into the store.
func (s *source) blob(ctx context.Context, store *cache.Store, want digest.Digest) error {
	r, err := s.open(ctx, want)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, blobMax))
	if err != nil {
		return err
	}
	if digest.FromBytes(b) != want {
		return errContent
	}
	_, err = store.PutBlob(b)
	return err
}

// unpacked is a decompressed stream that closes what it reads from.
type unpacked struct {
	*zstd.Decoder
	body io.Closer // may be nil
}

func (u *unpacked) Close() error {
	u.Decoder.Close()
	if u.body != nil {
		return u.body.Close()
	}
	return nil
}
