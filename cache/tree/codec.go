package tree

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// The encoded form of a tree, version 1. Numbers are unsigned varints as in
// encoding/binary; a string is its length and its bytes.
//
//	"kiln tree 1\n"
//	number    entries
//	number    Size of the tree
//	number    Disk of the tree
//	entries   in walking order, each:
//	    number    how many bytes of its path are those of the entry before
//	    string    the rest of the path
//	    body      see appendBody
//	    number    mtime in zigzag form: nanoseconds since the epoch
//	    string    source
//	4 bytes   CRC-32C of everything before, little-endian
//
// The digest of a tree is the SHA-256 of "kiln tree digest 1\n" and, for each
// entry, its path as a string and its body.
//
// The checksum guards against a damaged disk, not against forgery: it costs
// a tenth of what hashing the entries does, and [Tree.Digest] is there for
// whoever wants to be sure.
const (
	magic       = "kiln tree 1\n"
	digestMagic = "kiln tree digest 1\n"
)

// The first byte of an encoded file digest.
const (
	digestNone   = 0 // nothing follows
	digestSHA256 = 1 // 32 bytes
	digestOther  = 2 // the digest's text as a string
)

// Limits that keep damaged input from taking all memory.
const (
	maxPath    = 1 << 20
	maxEntries = 1 << 28
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// ErrCorrupt says that bytes are not those of an encoded tree.
var ErrCorrupt = errors.New("the encoded tree is damaged")

// Digest is the digest of the tree: of everything but modification times and
// sources. Equal digests mean equal content.
func (t *Tree) Digest() digest.Digest {
	h := sha256.New()
	b := make([]byte, 0, 8<<10)
	b = append(b, digestMagic...)
	for i := range t.Entries {
		e := &t.Entries[i]
		b = appendString(b, e.Path)
		b = appendBody(b, e)
		if len(b) > 6<<10 {
			h.Write(b)
			b = b[:0]
		}
	}
	h.Write(b)
	return digest.NewDigest(digest.SHA256, h)
}

// Encode writes the tree in the form that [Decode] reads.
func (t *Tree) Encode(w io.Writer) error {
	_, err := w.Write(t.Append(nil))
	return err
}

// Append appends the encoded tree to b.
func (t *Tree) Append(b []byte) []byte {
	b = slices.Grow(b, 128+112*len(t.Entries))
	start := len(b)
	b = append(b, magic...)
	b = binary.AppendUvarint(b, uint64(len(t.Entries)))
	b = binary.AppendUvarint(b, uint64(t.Size()))
	b = binary.AppendUvarint(b, uint64(t.Disk()))
	before := ""
	for i := range t.Entries {
		e := &t.Entries[i]
		n := common(before, e.Path)
		b = binary.AppendUvarint(b, uint64(n))
		b = appendString(b, e.Path[n:])
		b = appendBody(b, e)
		b = binary.AppendVarint(b, e.Mtime)
		b = appendString(b, e.Source)
		before = e.Path
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], crcTable))
}

// appendBody appends what an entry's digest covers apart from its path:
//
//	1 byte    type; of a whiteout nothing follows
//	number    mode, not for symlinks
//	number    uid
//	number    gid
//	file:     number size, digest, string hardlink
//	symlink:  string target
//	char and block: number major, number minor
//	dir:      1 byte, 1 if opaque
//	number    xattrs, each two strings, sorted by name
func appendBody(b []byte, e *Entry) []byte {
	b = append(b, byte(e.Type))
	if e.Type == Whiteout {
		return b
	}
	if e.Type != Symlink {
		b = binary.AppendUvarint(b, uint64(e.Mode))
	}
	b = binary.AppendUvarint(b, uint64(uint32(e.UID)))
	b = binary.AppendUvarint(b, uint64(uint32(e.GID)))
	switch e.Type {
	case File:
		b = binary.AppendUvarint(b, uint64(e.Size))
		b = appendDigest(b, e.Digest)
		b = appendString(b, e.Hardlink)
	case Symlink:
		b = appendString(b, e.Link)
	case Char, Block:
		b = binary.AppendUvarint(b, uint64(e.Major))
		b = binary.AppendUvarint(b, uint64(e.Minor))
	case Dir:
		if e.Opaque {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
	if len(e.Xattrs) == 0 {
		return b
	}
	names := make([]string, 0, len(e.Xattrs))
	for name := range e.Xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		b = appendString(b, name)
		b = appendString(b, e.Xattrs[name])
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

const sha256Prefix = "sha256:"

func appendDigest(b []byte, d digest.Digest) []byte {
	if d == "" {
		return append(b, digestNone)
	}
	if len(d) == len(sha256Prefix)+64 && strings.HasPrefix(string(d), sha256Prefix) {
		var raw [32]byte
		text := string(d[len(sha256Prefix):])
		if _, err := hex.Decode(raw[:], []byte(text)); err == nil && isHex(text) {
			return append(append(b, digestSHA256), raw[:]...)
		}
	}
	return appendString(append(b, digestOther), string(d))
}

func common(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// Decode reads a tree that Encode wrote. Damaged input gives an error that
// wraps [ErrCorrupt]; an unknown version gives another one.
func Decode(r io.Reader) (*Tree, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read tree: %w", err)
	}
	return Parse(b)
}

// Parse is [Decode] for bytes in memory, which it does not keep.
func Parse(b []byte) (*Tree, error) {
	d, n, err := open(b)
	if err != nil {
		return nil, err
	}
	t := &Tree{}
	if n > 0 {
		// An entry takes eight bytes at least, so a damaged count cannot ask
		// for much more memory than the input has.
		t.Entries = make([]Entry, 0, min(n, uint64(len(d.b)/8+1)))
	}
	before := ""
	for range n {
		t.Entries = append(t.Entries, Entry{})
		e := &t.Entries[len(t.Entries)-1]
		d.entry(e, before, len(t.Entries) == 1)
		if d.failed != "" {
			return nil, fmt.Errorf("entry %d: %s: %w", len(t.Entries), d.failed, ErrCorrupt)
		}
		before = e.Path
	}
	if len(d.b) != 0 {
		return nil, fmt.Errorf("%d bytes after the last entry: %w", len(d.b), ErrCorrupt)
	}
	return t, nil
}

// A Summary is what the head of an encoded tree tells.
type Summary struct {
	Entries int
	Size    int64 // as Tree.Size
	Disk    int64 // as Tree.Disk
}

// SummaryLen is how many bytes at the start of an encoded tree are enough
// for [ReadSummary].
const SummaryLen = len(magic) + 3*binary.MaxVarintLen64

// ReadSummary reads the head of an encoded tree. The checksum is not looked
// at.
func ReadSummary(b []byte) (Summary, error) {
	d := decoder{b: b}
	if err := d.version(); err != nil {
		return Summary{}, err
	}
	s := Summary{Entries: int(d.number(maxEntries))}
	s.Size = int64(d.number(1<<63 - 1))
	s.Disk = int64(d.number(1<<63 - 1))
	if d.failed != "" {
		return Summary{}, fmt.Errorf("head: %s: %w", d.failed, ErrCorrupt)
	}
	return s, nil
}

// ReadRoot reads the first entry of an encoded tree if that is the root's, the
// one without a name, from as much of its beginning as b is; too little of it
// is [ErrCorrupt]. The checksum is not looked at.
func ReadRoot(b []byte) (e Entry, ok bool, err error) {
	s, err := ReadSummary(b)
	if err != nil || s.Entries == 0 {
		return e, false, err
	}
	d := decoder{b: b}
	_ = d.version() // read above, as are the three numbers
	for range 3 {
		d.number(1<<63 - 1)
	}
	d.entry(&e, "", true)
	if d.failed != "" {
		return Entry{}, false, fmt.Errorf("entry 1: %s: %w", d.failed, ErrCorrupt)
	}
	return e, e.Path == "", nil
}

// open checks version and checksum and returns a decoder for the entries and
// their number.
func open(b []byte) (*decoder, uint64, error) {
	d := &decoder{b: b}
	if err := d.version(); err != nil {
		return nil, 0, err
	}
	if len(d.b) < 4 {
		return nil, 0, fmt.Errorf("it ends early: %w", ErrCorrupt)
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, crcTable) != sum {
		return nil, 0, fmt.Errorf("wrong checksum: %w", ErrCorrupt)
	}
	d.b = d.b[:len(d.b)-4]
	n := d.number(maxEntries)
	d.number(1<<63 - 1)
	d.number(1<<63 - 1)
	if d.failed != "" {
		return nil, 0, fmt.Errorf("head: %s: %w", d.failed, ErrCorrupt)
	}
	return d, n, nil
}

// decoder takes values off the front of b. After the first failure all
// values are zero.
type decoder struct {
	b      []byte
	failed string
	arena  []byte // for strings; see text
}

func (d *decoder) version() error {
	line, _, ok := strings.Cut(string(d.b[:min(len(d.b), len(magic)+8)]), "\n")
	switch {
	case ok && line+"\n" == magic:
		d.b = d.b[len(magic):]
		return nil
	case ok && strings.HasPrefix(line, "kiln tree "):
		return fmt.Errorf("%q is not known, only %q", line, strings.TrimSpace(magic))
	}
	return fmt.Errorf("it is not an encoded tree: %w", ErrCorrupt)
}

func (d *decoder) fail(why string) {
	if d.failed == "" {
		d.failed = why
		d.b = nil
	}
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("it ends early")
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) number(limit uint64) uint64 {
	if len(d.b) > 0 && d.b[0] < 0x80 { // most are small
		v := uint64(d.b[0])
		d.b = d.b[1:]
		if v > limit {
			d.fail("a number is too large")
			return 0
		}
		return v
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("it ends early")
		return 0
	}
	if v > limit {
		d.fail("a number is too large")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.number(1 << 31)
	if n > uint64(len(d.b)) {
		d.fail("it ends early")
		return nil
	}
	s := d.b[:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) string() string {
	b := d.bytes()
	if len(b) == 0 {
		return ""
	}
	return string(b)
}

func (d *decoder) entry(e *Entry, before string, first bool) {
	n := d.number(maxPath)
	rest := d.bytes()
	if n > uint64(len(before)) || n+uint64(len(rest)) > maxPath {
		d.fail("its path is not valid")
		return
	}
	e.Path = d.text(before[:n], rest)
	if checkPath(e.Path) != nil {
		d.fail("its path is not valid")
		return
	}
	if !first && Compare(before[n:], e.Path[n:]) >= 0 {
		d.fail("it is out of order")
		return
	}
	d.body(e)
	v, m := binary.Varint(d.b)
	if m <= 0 {
		d.fail("it ends early")
		return
	}
	d.b = d.b[m:]
	e.Mtime = v
	e.Source = d.string()
}

func (d *decoder) body(e *Entry) {
	e.Type = Type(d.byte())
	switch e.Type {
	case Whiteout:
		return
	case Symlink:
		e.Mode = 0o777
	case Dir, File, Char, Block, Fifo:
		e.Mode = uint32(d.number(0o7777))
	default:
		d.fail("its type is not known")
		return
	}
	e.UID = int(d.number(1<<32 - 1))
	e.GID = int(d.number(1<<32 - 1))
	switch e.Type {
	case File:
		e.Size = int64(d.number(1<<63 - 1))
		e.Digest = d.digest()
		e.Hardlink = d.string()
	case Symlink:
		e.Link = d.string()
	case Char, Block:
		e.Major = uint32(d.number(1<<32 - 1))
		e.Minor = uint32(d.number(1<<32 - 1))
	case Dir:
		switch d.byte() {
		case 0:
		case 1:
			e.Opaque = true
		default:
			d.fail("its opaque mark is not valid")
		}
	}
	n := d.number(1 << 16)
	if n == 0 {
		return
	}
	e.Xattrs = make(map[string]string, min(n, uint64(len(d.b)/2)))
	last := ""
	for i := range n {
		name, value := d.string(), d.string()
		if d.failed != "" {
			return
		}
		if i > 0 && name <= last {
			d.fail("its xattrs are out of order")
			return
		}
		e.Xattrs[name] = value
		last = name
	}
}

func (d *decoder) digest() digest.Digest {
	switch d.byte() {
	case digestNone:
		return ""
	case digestSHA256:
		if len(d.b) < 32 {
			d.fail("it ends early")
			return ""
		}
		var text [64]byte
		hex.Encode(text[:], d.b[:32])
		d.b = d.b[32:]
		return digest.Digest(d.text(sha256Prefix, text[:]))
	case digestOther:
		return digest.Digest(d.string())
	}
	d.fail("its digest is not valid")
	return ""
}
