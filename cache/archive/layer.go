package archive

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"kiln.build/cache/tree"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// layerMagic heads a layer as WriteLayer writes it, version 1:
//
//	kiln layer 1\n
//	length of the encoded tree, 8 bytes, big endian
//	the tree, see package tree
//	the contents of its files in order, but for further hard links
//
// A tar stream cannot hold all that a layer can, such as opaque directories
// and their times, and means other things to other programs.
const layerMagic = "kiln layer 1\n"

// maxTree bounds the listing that ReadLayer takes, in bytes.
const maxTree = 1 << 30

// WriteLayer writes the layer in a directory, whose listing is t, byte for
// byte as it is.
func WriteLayer(ctx context.Context, w io.Writer, dir string, t *tree.Tree) error {
	d, err := openDisk(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	listing := t.Append(nil)
	head := binary.BigEndian.AppendUint64([]byte(layerMagic), uint64(len(listing)))
	if _, err := w.Write(append(head, listing...)); err != nil {
		return err
	}
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Type != tree.File || e.Hardlink != "" {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		fd, err := d.open(e.Path, unix.O_RDONLY)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), e.Path)
		h := sha256.New()
		n, err := io.Copy(io.MultiWriter(w, h), io.LimitReader(f, e.Size+1))
		f.Close()
		if err != nil {
			return err
		}
		if n != e.Size || digest.NewDigest(digest.SHA256, h) != e.Digest {
			return &CorruptError{Path: e.Path, Reason: "it is not what the layer's listing says"}
		}
	}
	return nil
}

// ReadLayer writes a layer that WriteLayer wrote into dir, which is empty, and
// returns its listing, whose digest must be want: nothing is written before
// that is known. Everything is checked against the listing. Where the layer
// needs rights that the process does not have, it fails.
func ReadLayer(ctx context.Context, r io.Reader, dir string, want digest.Digest) (*tree.Tree, error) {
	in := bufio.NewReaderSize(r, 1<<20)
	head := make([]byte, len(layerMagic)+8)
	if _, err := io.ReadFull(in, head); err != nil {
		return nil, fmt.Errorf("read the head of a layer: %w", err)
	}
	size := binary.BigEndian.Uint64(head[len(layerMagic):])
	if string(head[:len(layerMagic)]) != layerMagic || size > maxTree {
		return nil, errors.New("not a layer of this version")
	}
	t, err := tree.Decode(io.LimitReader(in, int64(size)))
	if err == nil {
		err = t.Check()
	}
	if err != nil {
		return nil, err
	}
	if t.Digest() != want {
		return nil, &CorruptError{Layer: want, Reason: "its listing has the digest " + t.Digest().String()}
	}
	if err := restore(ctx, dir, t, layerContents{in}, false); err != nil {
		return nil, err
	}
	if _, err := in.ReadByte(); err != io.EOF {
		return nil, errors.New("there is more than the layer's listing says")
	}
	return t, nil
}

// layerContents are contents as WriteLayer writes them.
type layerContents struct{ in *bufio.Reader }

func (c layerContents) next(*tree.Entry) (io.Reader, error) { return c.in, nil }

func (c layerContents) broken(e *tree.Entry, err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return &CorruptError{Path: e.Path, Reason: "it is not what the layer's listing says"}
	}
	return err
}
