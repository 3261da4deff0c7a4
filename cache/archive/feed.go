package archive

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"kiln.build/cache/tree"
)

// A Feed hands the contents of a layer's small files to [Pack] while someone
// else reads and checks them, for instance to make the layer: opening a small
// file takes longer than copying its bytes, and each is then opened once.
//
// The producer calls Next for some files after the other in the order of the
// tree, leaving none out, has the batches filled, and calls End. Batches are
// filled by any goroutines in any order. The consumer is one Pack. Neither
// waits for the other for ever: a consumer that stops makes Next return nil,
// and a Feed that is full stops if nobody begins to read it.
type Feed struct {
	order   chan *Batch
	stop    chan struct{}
	stopped sync.Once
	reading atomic.Bool
	spare   sync.Pool // of *Batch
	err     error     // of the producer; written before order is closed

	// Of the consumer.
	current *Batch
	next    int
}

// Batch is the contents of some files one after the other.
type Batch struct {
	// Data is appended to by who fills the batch, then Next is called, for
	// each file.
	Data []byte

	files []*tree.Entry
	ends  []int // of each file in Data
	errs  []error
	done  chan struct{}
}

// Next ends the content of a file in Data, or says why there is none.
func (b *Batch) Next(err error) {
	b.ends = append(b.ends, len(b.Data))
	b.errs = append(b.errs, err)
}

// Done hands the batch on, which is not the caller's any more.
func (b *Batch) Done() { close(b.done) }

const (
	// SmallFile is the largest file that is fed.
	SmallFile = 256 << 10

	// BatchBytes and BatchFiles are how large a batch should become.
	BatchBytes = 1 << 20
	BatchFiles = 64
)

// Feeds reports whether a file's content goes through a Feed.
func Feeds(e *tree.Entry) bool {
	return e.Type == tree.File && e.Hardlink == "" && e.Size > 0 && e.Size <= SmallFile
}

// NewFeed makes a Feed that holds so many batches.
func NewFeed(batches int) *Feed {
	return &Feed{order: make(chan *Batch, batches), stop: make(chan struct{})}
}

// Next adds a batch of files, each of which Feeds. It waits while the
// consumer has enough of them, and returns nil where none is wanted any more.
func (f *Feed) Next(files []*tree.Entry) *Batch {
	b, _ := f.spare.Get().(*Batch)
	if b == nil {
		b = &Batch{}
	}
	*b = Batch{files: append(b.files[:0], files...), ends: b.ends[:0], errs: b.errs[:0], Data: room(b.Data, files), done: make(chan struct{})}
	select {
	case <-f.stop:
		return nil
	default:
	}
	select {
	case f.order <- b:
		return b
	default:
	}
	var unread <-chan time.Time
	if !f.reading.Load() {
		unread = time.After(patience)
	}
	for {
		select {
		case f.order <- b:
			return b
		case <-f.stop:
			return nil
		case <-unread:
			if unread = nil; !f.reading.Load() {
				f.Stop()
				return nil
			}
		}
	}
}

// room is a buffer for the contents of files and a byte more, which shows who
// reads them that there is no more. A batch as it should be has all the room
// that one can need: it is used again.
func room(b []byte, files []*tree.Entry) []byte {
	total := int64(1)
	for _, e := range files {
		total += e.Size
	}
	switch full := int64(BatchBytes + SmallFile + 1); {
	case int64(cap(b)) >= total:
		return b[:0]
	case total > full/4 && total <= full:
		return make([]byte, 0, full)
	}
	return make([]byte, 0, total)
}

// patience is how long Next waits for someone to begin to read.
const patience = 200 * time.Millisecond

// End says that there are no more batches, or why the rest does not come.
func (f *Feed) End(err error) {
	f.err = err
	close(f.order)
}

// Stop makes Next return nil.
func (f *Feed) Stop() { f.stopped.Do(func() { close(f.stop) }) }

// errUnfed is the error of a Feed that ends too early.
var errUnfed = errors.New("the contents of the files did not come")

// content is that of a file, valid until the next call.
func (f *Feed) content(ctx context.Context, e *tree.Entry) ([]byte, error) {
	for f.current == nil || f.next == len(f.current.files) {
		if f.current != nil {
			clear(f.current.files)
			f.spare.Put(f.current)
			f.current = nil
		}
		var b *Batch
		select {
		case b = <-f.order:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if b == nil {
			return nil, errors.Join(errUnfed, f.err)
		}
		select {
		case <-b.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		f.current, f.next = b, 0
	}
	b, i := f.current, f.next
	f.next++
	switch {
	case i >= len(b.ends):
		return nil, errUnfed
	case b.errs[i] != nil:
		return nil, b.errs[i]
	case b.files[i].Path != e.Path:
		return nil, errUnfed // of a tree that is not ours
	}
	start := 0
	if i > 0 {
		start = b.ends[i-1]
	}
	if data := b.Data[start:b.ends[i]]; int64(len(data)) == e.Size {
		return data, nil
	}
	return nil, errUnfed
}
