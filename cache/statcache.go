package cache

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"kiln.build/cache/tree"
)

// A StatCache remembers the digests of the files of a local context, so that
// unchanged ones need not be read. It is an accelerator only: a file is taken
// as unchanged if device, inode, size, mode, mtime and ctime are what they
// were when it was read. The ctime cannot be set by anyone, so writing to a
// file and putting its mtime back is seen.
//
// What could not be seen is a write so soon after the reading that the clock
// of the file system has not moved on ("racily clean", as git calls it). So a
// file whose times lie within racy of the reading, or in the future, is not
// remembered.
//
// It is safe for concurrent use. Processes with the same context each write
// the whole file; the last one wins and the others lose only time.
type StatCache struct {
	store *Store
	path  string // its file
	dir   string

	mu    sync.Mutex
	old   []known        // of the file, in walking order
	next  int            // in old: where a scan asks next
	fresh []known        // put since, in the order of that
	index map[string]int // of those, by path
}

type known struct {
	path string
	stamp
}

var _ tree.Digests = (*StatCache)(nil)

// racy is the coarsest time stamp of any file system in use: FAT's. It also
// covers kernels, whose clock for time stamps moves every 1-10 ms.
const racy = 2 * time.Second

// maxAge is after how many saves a file that was not asked for is forgotten:
// it may be one that other builds in the same directory look at.
const maxAge = 8

type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64
	mode         uint32
	age          uint8 // saves since it was last asked for
	sum          [32]byte
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{
		dev: st.Dev, ino: st.Ino, size: st.Size, mode: st.Mode,
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}
}

// StatCache opens the stat cache of a directory. A damaged one is an empty
// one.
func (s *Store) StatCache(contextDir string) (*StatCache, error) {
	dir, err := filepath.Abs(contextDir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open stat cache: %w", err)
	}
	c := &StatCache{store: s, dir: dir, path: s.path("contexts", digest.FromString(dir).Encoded())}
	c.index = map[string]int{}
	b, err := os.ReadFile(c.path)
	if err == nil {
		c.old, err = parseStatCache(b, dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrCorrupt) {
		return nil, fmt.Errorf("open stat cache of %s: %w", dir, err)
	}
	return c, nil
}

// Lookup returns the digest of a file that has not changed since it was put.
func (c *StatCache) Lookup(path string, st *unix.Stat_t) (digest.Digest, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := c.find(path)
	if have == nil {
		return "", false
	}
	now := stampOf(st)
	now.sum, now.age = have.sum, have.age
	if now != *have {
		return "", false
	}
	have.age = 0
	var text [len("sha256:") + 64]byte
	copy(text[:], "sha256:")
	hex.Encode(text[len("sha256:"):], have.sum[:])
	return digest.Digest(text[:]), true
}

// find returns what is known of a path, nil if nothing is. A scan asks in
// walking order, so the next one is as a rule the one that is asked for.
func (c *StatCache) find(path string) *stamp {
	if i, ok := c.index[path]; ok {
		return &c.fresh[i].stamp
	}
	if c.next == len(c.old) || c.old[c.next].path != path {
		i, ok := slices.BinarySearchFunc(c.old, path, func(k known, p string) int { return tree.Compare(k.path, p) })
		if !ok {
			return nil
		}
		c.next = i
	}
	c.next++
	return &c.old[c.next-1].stamp
}

// Put remembers the digest of a file that was read. st is of before the
// reading, equal to that of after; seen is the time of before.
func (c *StatCache) Put(path string, st *unix.Stat_t, d digest.Digest, seen time.Time) {
	now := stampOf(st)
	if !settled(st, seen) || d.Algorithm() != digest.SHA256 {
		return
	}
	if n, err := hex.Decode(now.sum[:], []byte(d.Encoded())); err != nil || n != 32 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if i, ok := c.index[path]; ok {
		c.fresh[i].stamp = now
		return
	}
	c.index[path] = len(c.fresh)
	c.fresh = append(c.fresh, known{path, now})
}

// settled reports whether any write after seen must show in the times.
func settled(st *unix.Stat_t, seen time.Time) bool {
	latest := max(st.Mtim.Nano(), st.Ctim.Nano())
	return latest < seen.Add(-racy).UnixNano()
}

// Save writes the cache if anything in it is new.
func (c *StatCache) Save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.fresh) == 0 || c.store.ro {
		return nil
	}
	merged := c.merge()
	if err := c.store.publish(c.path, encodeStatCache(c.dir, merged), ""); err != nil {
		return fmt.Errorf("save stat cache of %s: %w", c.dir, err)
	}
	c.old, c.next, c.fresh, c.index = merged, 0, nil, map[string]int{}
	return nil
}

// merge joins what was there and what was put, a save older.
func (c *StatCache) merge() []known {
	all := make([]known, 0, len(c.old)+len(c.fresh))
	all = append(all, c.fresh...)
	for _, k := range c.old {
		if _, ok := c.index[k.path]; !ok && k.age < maxAge {
			all = append(all, k)
		}
	}
	// Sorting is quick where most is in order.
	slices.SortFunc(all, func(a, b known) int { return tree.Compare(a.path, b.path) })
	for i := range all {
		all[i].age++
	}
	return all
}

// The file, version 1; numbers are varints, strings have their length before
// them:
//
//	"kiln stat cache 1\n"
//	string   the directory
//	number   entries
//	entries, in walking order, each:
//	    number   how many bytes of the path are those of the entry before
//	    string   the rest of the path
//	    numbers  device, inode, size, mode, mtime, ctime, age
//	    32 bytes SHA-256 of the content
//	4 bytes  CRC-32C of everything before, little-endian
const statCacheMagic = "kiln stat cache 1\n"

var crcTable = crc32.MakeTable(crc32.Castagnoli)

func encodeStatCache(dir string, entries []known) []byte {
	b := make([]byte, 0, 64+len(dir)+len(entries)*110)
	b = append(b, statCacheMagic...)
	b = appendString(b, dir)
	b = binary.AppendUvarint(b, uint64(len(entries)))
	before := ""
	for i := range entries {
		e, p := &entries[i], entries[i].path
		n := 0
		for n < min(len(before), len(p)) && before[n] == p[n] {
			n++
		}
		b = binary.AppendUvarint(b, uint64(n))
		b = appendString(b, p[n:])
		for _, v := range []uint64{e.dev, e.ino, uint64(e.size), uint64(e.mode), uint64(e.mtime), uint64(e.ctime), uint64(e.age)} {
			b = binary.AppendUvarint(b, v)
		}
		b = append(b, e.sum[:]...)
		before = p
	}
	return appendSum(b)
}

func appendSum(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crcTable))
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func parseStatCache(b []byte, dir string) ([]known, error) {
	if len(b) < len(statCacheMagic)+4 || string(b[:len(statCacheMagic)]) != statCacheMagic {
		return nil, ErrCorrupt
	}
	body := b[:len(b)-4]
	if crc32.Checksum(body, crcTable) != binary.LittleEndian.Uint32(b[len(body):]) {
		return nil, ErrCorrupt
	}
	r := reader{b: body[len(statCacheMagic):]}
	if string(r.bytes(r.number())) != dir {
		return nil, ErrCorrupt // of another directory with an equal hash
	}
	n := r.number()
	entries := make([]known, 0, min(n, uint64(len(r.b)/40)))
	// All paths lie in one string, with one allocation for every 64 KB.
	var names strings.Builder
	before := ""
	for range n {
		shared := r.number()
		rest := r.bytes(r.number())
		if r.bad || shared > uint64(len(before)) {
			return nil, ErrCorrupt
		}
		size := int(shared) + len(rest)
		if names.Cap()-names.Len() < size {
			names = strings.Builder{}
			names.Grow(max(size, 64<<10))
		}
		start := names.Len()
		names.WriteString(before[:shared])
		names.Write(rest)
		path := names.String()[start:]
		if len(entries) > 0 && tree.Compare(before, path) >= 0 {
			return nil, ErrCorrupt
		}
		entries = append(entries, known{path: path})
		e := &entries[len(entries)-1].stamp
		*e = stamp{
			dev: r.number(), ino: r.number(), size: int64(r.number()), mode: uint32(r.number()),
			mtime: int64(r.number()), ctime: int64(r.number()), age: uint8(r.number()),
		}
		copy(e.sum[:], r.bytes(32))
		if r.bad {
			return nil, ErrCorrupt
		}
		before = path
	}
	return entries, nil
}

// reader takes values off b; after a failure all are zero and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

// statCacheDir reads which directory a stat cache is of.
func statCacheDir(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, len(statCacheMagic)+4200)
	n, _ := f.ReadAt(head, 0)
	rest, ok := strings.CutPrefix(string(head[:n]), statCacheMagic)
	r := reader{b: []byte(rest)}
	if dir := r.bytes(r.number()); ok && !r.bad {
		return string(dir), nil
	}
	return "", ErrCorrupt
}
