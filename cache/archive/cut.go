package archive

import (
	"bytes"
	"hash/crc32"
)

// A cutter decides where a stream is cut into blocks. It reads the stream as
// a tar and cuts before entries, by their names, so that a file that grows
// or goes moves no cuts but those near it. What is no tar is cut by length.
// Changing any of this changes the bytes of blobs.
type cutter struct {
	least int // a name ends no block that is shorter
	most  int // no block is longer; a multiple of tarBlock
}

const (
	tarBlock = 512

	// oneIn is how rarely a name ends a block.
	oneIn = 32
)

// cuts reports whether a block of filled bytes ends before an entry.
func (c cutter) cuts(header []byte, size int64, filled int) bool {
	switch {
	case filled == 0:
		return false
	case size >= int64(c.most)/2:
		return true // large files have blocks of their own
	case filled < c.least:
		return false
	}
	return crc32.ChecksumIEEE(header[:100])%oneIn == 0
}

// entrySize is how many bytes of content follow a header, padding included;
// ok is false where it is none.
func entrySize(header []byte) (size int64, ok bool) {
	if !bytes.Equal(header[257:262], []byte("ustar")) {
		return 0, false
	}
	if t := header[156]; t >= '1' && t <= '6' {
		return 0, true // links, devices, directories
	}
	field := header[124:136]
	if field[0]&0x80 != 0 { // binary
		for _, b := range field[4:] {
			size = size<<8 | int64(b)
		}
	} else {
		for _, b := range bytes.Trim(field, " \x00") {
			if b < '0' || b > '7' {
				return 0, false
			}
			size = size<<3 | int64(b-'0')
		}
	}
	if size < 0 {
		return 0, false
	}
	return (size + tarBlock - 1) / tarBlock * tarBlock, true
}
