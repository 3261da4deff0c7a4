package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"kiln.build/cache"
	"kiln.build/cache/archive"
	"kiln.build/solver"
)

// packSize is from when a pack is sent; pieceMax is how large a piece may be
// to be put into one, compressed, in bytes.
const (
	packSize = 2 << 20
	pieceMax = 256 << 10
)

// sendAtOnce is how many objects are sent at a time.
const sendAtOnce = 4

// sink is a cache that is written. One goroutine packs what is given to it.
type sink struct {
	driver Driver
	store  *cache.Store
	min    bool // only the images' own layers go up
	warn   func(string)

	ctx     context.Context
	queue   chan func()
	done    chan struct{}
	sending errgroup.Group
	dir     string // for files on their way

	// Of the packing goroutine alone, until done is closed.
	old     *index
	pieces  map[digest.Digest]piece
	pack    bytes.Buffer
	packed  map[digest.Digest]piece // without Object and Size yet
	files   int
	waiting []entry
	at      map[digest.Digest]int // of entries by key

	// fetch brings content that only another cache has into the store. It is
	// used once the build has ended: until then that may never be needed.
	fetch func(digest.Digest, bool) error
	ended bool

	mu      sync.Mutex
	entries map[digest.Digest]bool
	bad     bool
}

func newSink(ctx context.Context, d Driver, store *cache.Store, minimal bool, warn func(string)) (*sink, error) {
	dir, err := store.Scratch("cache-to")
	if err != nil {
		return nil, err
	}
	s := &sink{
		driver: d, store: store, min: minimal, warn: warn, ctx: ctx, dir: dir,
		// A build has no more results than its graph has vertices, and each
		// of them is queued by a goroutine that has other things to do.
		queue: make(chan func(), 1<<16), done: make(chan struct{}),
		pieces: map[digest.Digest]piece{}, packed: map[digest.Digest]piece{}, entries: map[digest.Digest]bool{}, at: map[digest.Digest]int{},
	}
	s.sending.SetLimit(sendAtOnce)
	go func() {
		defer close(s.done)
		s.old = s.previous()
		for do := range s.queue {
			do()
		}
	}()
	return s, nil
}

// previous is the index that is there already: its objects need not be sent.
func (s *sink) previous() *index {
	b, err := s.driver.Index(s.ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return &index{}
	}
	var x *index
	if err == nil {
		if x, err = decodeIndex(b); err != nil {
			return &index{} // of another version, or damaged: it is replaced
		}
	}
	if err != nil {
		s.fail(err)
		return &index{}
	}
	return x
}

// fail gives up, and says why once.
func (s *sink) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.bad && s.ctx.Err() == nil {
		s.warn(fmt.Sprintf("cache %s is not written: %v", s.driver.Name(), err))
	}
	s.bad = true
}

func (s *sink) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bad
}

// add takes a result, whose layers and blob stay in the store until the end. A
// result that was made takes the place of one for the same key that was found.
func (s *sink) add(e entry, made bool) {
	s.mu.Lock()
	known := s.bad || s.entries[e.Key] && !made
	s.entries[e.Key] = true
	s.mu.Unlock()
	if known {
		return
	}
	s.queue <- func() {
		if i, ok := s.at[e.Key]; ok {
			s.waiting[i] = e
		} else {
			s.at[e.Key] = len(s.waiting)
			s.waiting = append(s.waiting, e)
		}
		s.content(&e)
	}
}

// content sends what belongs to a result.
func (s *sink) content(e *entry) {
	if s.failed() {
		return
	}
	if !s.min {
		for _, l := range e.Result.Layers {
			s.layer(l)
		}
	}
	if e.Result.Blob != "" {
		s.blob(e.Result.Blob)
	}
}

// has reports whether content is there or on its way.
func (s *sink) has(d digest.Digest) bool {
	if _, ok := s.pieces[d]; ok {
		return true
	}
	if _, ok := s.packed[d]; ok {
		return true
	}
	p, ok := s.old.Pieces[d]
	if ok {
		s.pieces[d] = p
	}
	return ok
}

// layer sends a layer, unless an image's registry has it. One that is not in
// the store, for nobody here had a use for it, is left out.
func (s *sink) layer(l solver.Layer) {
	if l.Origin != nil || s.has(l.Digest) {
		return
	}
	t, err := s.store.Tree(l.Digest)
	if err != nil && s.ended && s.fetch(l.Digest, false) == nil {
		t, err = s.store.Tree(l.Digest)
	}
	if err != nil {
		return
	}
	dir, err := s.store.LayerDir(s.ctx, l.Digest)
	if err == nil {
		err = s.put(l.Digest, func(w io.Writer) error { return archive.WriteLayer(s.ctx, w, dir, t) })
	}
	var corrupt *archive.CorruptError
	if errors.As(err, &corrupt) {
		_ = s.store.Invalidate(l.Digest)
	} else if err != nil {
		s.fail(err)
	}
}

func (s *sink) blob(d digest.Digest) {
	if s.has(d) {
		return
	}
	b, err := s.store.Blob(d)
	if err != nil && s.ended && s.fetch(d, true) == nil {
		b, err = s.store.Blob(d)
	}
	if err != nil {
		return
	}
	if err := s.put(d, func(w io.Writer) error { _, err := w.Write(b); return err }); err != nil {
		s.fail(err)
	}
}

// put compresses a piece and sends it, alone or in a pack.
func (s *sink) put(d digest.Digest, write func(io.Writer) error) error {
	f, err := s.file()
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	z, err := zstd.NewWriter(io.MultiWriter(f, h), zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	if err := errors.Join(write(z), z.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if size > pieceMax {
		p := piece{Object: digest.NewDigest(digest.SHA256, h), Size: size, Length: size}
		s.pieces[d] = p
		s.send(p.descriptor(), f.Name())
		return nil
	}
	defer os.Remove(f.Name())
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	s.packed[d] = piece{Offset: int64(s.pack.Len()), Length: size}
	if _, err := s.pack.ReadFrom(f); err != nil {
		return err
	}
	if s.pack.Len() > packSize {
		return s.flush()
	}
	return nil
}

func (s *sink) file() (*os.File, error) {
	s.files++
	return os.OpenFile(filepath.Join(s.dir, strconv.Itoa(s.files)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// flush sends the pack.
func (s *sink) flush() error {
	if s.pack.Len() == 0 {
		return nil
	}
	f, err := s.file()
	if err != nil {
		return err
	}
	_, err = f.Write(s.pack.Bytes())
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	object, size := digest.FromBytes(s.pack.Bytes()), int64(s.pack.Len())
	for d, p := range s.packed {
		p.Object, p.Size = object, size
		s.pieces[d] = p
	}
	clear(s.packed)
	s.pack.Reset()
	s.send(v1.Descriptor{MediaType: TypeObject, Digest: object, Size: size}, f.Name())
	return nil
}

func (s *sink) send(d v1.Descriptor, file string) {
	s.sending.Go(func() error {
		if !s.failed() {
			if err := s.driver.Put(s.ctx, d, file); err != nil {
				s.fail(err)
			}
		}
		return os.Remove(file)
	})
}

// finish sends what is left and the index. images are the layers of the
// images that were built; complete says that the build came to its end, so
// that nothing of earlier indexes is of use.
func (s *sink) finish(images []solver.Layer, complete bool) {
	s.queue <- func() {
		s.ended = true
		for i := range s.waiting {
			s.content(&s.waiting[i])
		}
		for _, l := range images {
			s.layer(l)
		}
		if err := s.flush(); err != nil {
			s.fail(err)
		}
	}
	close(s.queue)
	<-s.done
	_ = s.sending.Wait() // files that could not be removed go with their folder
	if s.failed() {
		return
	}
	x := &index{Version: 1, Entries: s.waiting, Pieces: s.pieces}
	if !complete {
		for _, e := range s.old.Entries {
			if !s.entries[e.Key] {
				x.Entries = append(x.Entries, e)
			}
		}
		for d, p := range s.old.Pieces {
			if _, ok := x.Pieces[d]; !ok {
				x.Pieces[d] = p
			}
		}
	}
	if err := s.commit(x); err != nil {
		s.fail(err)
	}
}

// commit writes the index. Should objects of the earlier one be gone after
// all, it is written without.
func (s *sink) commit(x *index) error {
	write := func() error {
		b, err := x.encode()
		if err != nil {
			return err
		}
		return s.driver.Commit(s.ctx, b, x.objects())
	}
	err := write()
	if err == nil || s.ctx.Err() != nil {
		return err
	}
	missing, missErr := s.driver.Missing(s.ctx, x.objects())
	if missErr != nil || len(missing) == 0 {
		return err
	}
	gone := map[digest.Digest]bool{}
	for _, d := range missing {
		gone[d.Digest] = true
	}
	for d, p := range x.Pieces {
		if gone[p.Object] {
			delete(x.Pieces, d)
		}
	}
	return write()
}
