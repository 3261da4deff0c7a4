package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"slices"
	"sync"

	"kiln.build/cache/archive"
	"kiln.build/solver"

	"github.com/opencontainers/go-digest"
)

// blocks remembers the compressed blocks of layer blobs, so that of a layer
// that is much like another only the rest is compressed. Nothing is kept
// twice: a block is a range of a blob that is in the layout, and what is
// remembered is a table of them for each blob, and which blobs were made
// last. Where a blob is gone, or a range does not hold what it should, the
// block is compressed again.
type blocks struct {
	maker *Maker

	mu    sync.Mutex
	known map[archive.BlockKey]place
	files map[digest.Digest]*ranges              // nil: it cannot be opened
	sums  map[archive.BlockKey][sha256.Size]byte // of blocks that were found whole

	made []tableEntry
}

// place is where a block is.
type place struct {
	blob digest.Digest
	tableEntry
}

// tableEntry is a block in the table of a blob, which is these one after the
// other.
type tableEntry struct {
	Key    archive.BlockKey
	Offset int64
	Size   int64
	Sum    [sha256.Size]byte // of the compressed bytes
}

var _ archive.Blocks = (*blocks)(nil)

const (
	// fewBlocks are not worth a table.
	fewBlocks = 1

	// tables is how many blobs are looked into, the last ones that were made.
	tables = 16
)

// blocks reads the tables. Close must be called.
func (m *Maker) blocks(ctx context.Context) *blocks {
	b := &blocks{
		maker: m,
		known: map[archive.BlockKey]place{},
		files: map[digest.Digest]*ranges{},
		sums:  map[archive.BlockKey][sha256.Size]byte{},
	}
	recent := m.recent(ctx)
	for i := len(recent) - 1; i >= 0; i-- { // of equal blocks that of the newest blob
		for _, e := range m.table(ctx, recent[i]) {
			b.known[e.Key] = place{recent[i], e}
		}
	}
	return b
}

// recent lists the blobs that have tables, the newest first.
func (m *Maker) recent(ctx context.Context) []digest.Digest {
	r, err := m.Store.Lookup(ctx, action(recentBlobs{}).Key)
	if err != nil {
		return nil
	}
	var all []digest.Digest
	if json.Unmarshal(r.Data, &all) != nil {
		return nil
	}
	return all
}

func (m *Maker) table(ctx context.Context, blob digest.Digest) []tableEntry {
	r, err := m.Store.Lookup(ctx, action(blockTable{blob}).Key)
	if err != nil {
		return nil
	}
	data, err := m.Store.Blob(r.Blob)
	if err != nil {
		return nil
	}
	all := make([]tableEntry, len(data)/binary.Size(tableEntry{}))
	if binary.Read(bytes.NewReader(data), binary.LittleEndian, all) != nil {
		return nil
	}
	return all
}

// Block implements [archive.Blocks].
func (b *blocks) Block(buf []byte, k archive.BlockKey) ([]byte, bool) {
	p, ok := b.known[k]
	if !ok {
		return buf, false
	}
	f := b.file(p.blob)
	if f == nil || p.Size < 0 || p.Size > 1<<30 {
		return buf, false
	}
	start := len(buf)
	out := slices.Grow(buf, int(p.Size))[:start+int(p.Size)]
	if err := f.readAt(out[start:], p.Offset); err != nil || sha256.Sum256(out[start:]) != p.Sum {
		return buf, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sums[k] = p.Sum
	return out, true
}

func (b *blocks) file(d digest.Digest) *ranges {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, ok := b.files[d]
	if !ok {
		f, _ = openRanges(b.maker.Store.Images().Path(d)) // nil where it is gone
		b.files[d] = f
	}
	return f
}

// Made implements [archive.Blocks].
func (b *blocks) Made(k archive.BlockKey, offset int64, compressed []byte) {
	b.mu.Lock()
	sum, ok := b.sums[k]
	b.mu.Unlock()
	if !ok {
		sum = sha256.Sum256(compressed)
	}
	b.made = append(b.made, tableEntry{k, offset, int64(len(compressed)), sum})
}

// Close ends reading.
func (b *blocks) Close() {
	for _, f := range b.files {
		if f != nil {
			f.close()
		}
	}
}

// save keeps the table of the blob that was made. Not to remember it costs
// time later, and nothing now.
func (b *blocks) save(ctx context.Context, blob digest.Digest) {
	if len(b.made) <= fewBlocks {
		return
	}
	var w bytes.Buffer
	if binary.Write(&w, binary.LittleEndian, b.made) != nil {
		return
	}
	s := b.maker.Store
	d, err := s.PutBlob(w.Bytes())
	if err != nil || s.Save(ctx, action(blockTable{blob}), solver.Result{Digest: d, Blob: d}) != nil {
		return
	}
	// Of two processes that do this at once one may be forgotten.
	recent := slices.DeleteFunc(b.maker.recent(ctx), func(d digest.Digest) bool { return d == blob })
	recent = slices.Insert(recent, 0, blob)
	if data, err := json.Marshal(recent[:min(len(recent), tables)]); err == nil {
		_ = s.Save(ctx, action(recentBlobs{}), solver.Result{Digest: blob, Data: data})
	}
}

// blockTable is the table of a blob, as an action.
type blockTable struct{ blob digest.Digest }

func (t blockTable) Describe(d *solver.Description) {
	d.Line("op", "block table")
	d.Line("blob", string(t.blob))
}

// recentBlobs are the blobs that have tables, as an action.
type recentBlobs struct{}

func (recentBlobs) Describe(d *solver.Description) { d.Line("op", "blobs with block tables") }

var (
	_ solver.Op = blockTable{}
	_ solver.Op = recentBlobs{}
)
