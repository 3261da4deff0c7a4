package archive

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/ulikunitz/xz"
)

// Compression is how a layer blob is compressed.
type Compression string

// The compressions that image layers may have.
const (
	Uncompressed Compression = "uncompressed"
	Gzip         Compression = "gzip"
	Zstd         Compression = "zstd"
)

// MediaType is that of a layer so compressed.
func (c Compression) MediaType() string {
	switch c {
	case Gzip:
		return v1.MediaTypeImageLayerGzip
	case Zstd:
		return v1.MediaTypeImageLayerZstd
	default:
		return v1.MediaTypeImageLayer
	}
}

// DefaultLevel asks for a compression's own default level.
const DefaultLevel = -1

// Compress returns a writer that compresses to w on all processors. Equal
// input gives equal output, however many there are and however it was cut
// into writes. Levels are 0-9 for gzip and 0-22 for zstd, or DefaultLevel.
// Close must be called in any case; it does not close w.
func Compress(w io.Writer, c Compression, level int) (io.WriteCloser, error) {
	return CompressWith(w, c, level, nil)
}

// CompressWith is Compress with blocks that are remembered; the output is the
// same.
func CompressWith(w io.Writer, c Compression, level int, blocks Blocks) (io.WriteCloser, error) {
	return compressor(w, c, level, blocks, nil)
}

// compressor is CompressWith for a stream of which some digests are known.
func compressor(w io.Writer, c Compression, level int, blocks Blocks, s *spans) (io.WriteCloser, error) {
	var k codec
	var err error
	switch c {
	case Uncompressed:
		return nopCloser{w}, nil
	case Gzip:
		k, err = gzipCodec(level)
	case Zstd:
		k, err = zstdCodec(level)
	default:
		err = fmt.Errorf("unknown compression %q", c)
	}
	if err != nil {
		return nil, err
	}
	return newBlockWriter(w, k, blocks, s), nil
}

// gzipLevel is the default, as of gzip and pigz.
const gzipLevel = 6

// gzipCodec makes one gzip member (RFC 1952) of all blocks.
func gzipCodec(level int) (codec, error) {
	if level == DefaultLevel {
		level = gzipLevel
	}
	if level < 0 || level > 9 {
		return codec{}, fmt.Errorf("gzip compression level %d is not in 0-9", level)
	}
	writers := sync.Pool{New: func() any {
		w, err := flate.NewWriter(nil, level)
		if err != nil {
			panic(err) // the level was checked
		}
		return w
	}}
	return codec{
		name:   fmt.Sprintf("gzip %d\n", level),
		header: []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, // no flags, time or system
		encode: func(dst, raw []byte) ([]byte, error) {
			w := writers.Get().(*flate.Writer)
			defer writers.Put(w)
			out := bytes.NewBuffer(dst)
			w.Reset(out)
			_, err := w.Write(raw)
			err = errors.Join(err, w.Flush()) // before out is looked at
			return out.Bytes(), err
		},
		footer: func(crc uint32, size int64) []byte {
			b := []byte{1, 0, 0, 0xff, 0xff} // the last block, which is empty
			b = binary.LittleEndian.AppendUint32(b, crc)
			return binary.LittleEndian.AppendUint32(b, uint32(size))
		},
		cut: cutter{least: 512 << 10, most: 2 << 20},
	}, nil
}

// zstdCodec makes a zstd frame (RFC 8878) of each block.
func zstdCodec(level int) (codec, error) {
	l := zstd.SpeedDefault
	if level > 22 || level < DefaultLevel {
		return codec{}, fmt.Errorf("zstd compression level %d is not in 0-22", level)
	}
	if level >= 0 {
		l = zstd.EncoderLevelFromZstd(level)
	}
	cut := cutter{least: 1 << 20, most: 4 << 20}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(l), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)),
		zstd.WithWindowSize(cut.most)) // more could never be used
	if err != nil {
		return codec{}, err
	}
	return codec{
		name:   fmt.Sprintf("zstd %d\n", l),
		encode: func(dst, raw []byte) ([]byte, error) { return z.EncodeAll(raw, dst[:0]), nil },
		cut:    cut,
	}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// zstdWindow bounds the memory that a stream can ask for. Streams made with
// zstd --long=27, the most that zstd reads without being told to, fit.
const zstdWindow = 128 << 20

// Decompress finds out how a stream is compressed (gzip, zstd, bzip2, xz, or
// not at all) and returns its content. Closing the result frees what reading
// took but does not close r.
func Decompress(_ context.Context, r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	start, err := b.Peek(10)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(start, []byte{0x1f, 0x8b, 8}):
		return gzip.NewReader(b)
	case bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}), isSkippable(start):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(start, []byte("BZh")) && len(start) == 10 && bytes.Equal(start[4:], []byte{0x31, 0x41, 0x59, 0x26, 0x53, 0x59}):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case bytes.HasPrefix(start, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		x, err := xz.NewReader(b)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(x), nil
	}
	return io.NopCloser(b), nil
}

// isSkippable reports a skippable zstd frame, which some tools start with
// (RFC 8878, section 3.1.2).
func isSkippable(start []byte) bool {
	return len(start) >= 4 && start[0]&0xf0 == 0x50 && bytes.Equal(start[1:4], []byte{0x2a, 0x4d, 0x18})
}
