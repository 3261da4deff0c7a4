package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// Packed layers
//
// The last layers of an image are seldom looked at where they are made: what
// becomes of them is a blob. Making a directory of thousands of files beside
// it would take longer than the blob. So a layer may consist of its listing
// and its blob alone. It is a layer like others to all who ask whether it is
// there, how large it is and what is in it; only [Store.LayerDir], which
// everybody asks who wants its files, unpacks it first.
//
// The blob is a further link to that of the image layout, so that what
// becomes of images there takes nothing from the layer, and none of the rules
// for who needs which blob change. The file packed has its digest: "HEX\n".
// When the files are there, both go.
const (
	packedBlob = "blob"
	packedSum  = "packed"
)

// Pack makes the draft a layer that has no files but a blob of the image
// layout, which holds them as [archive.Pack] writes them, and must say of them
// all that the listing does but for fractions of times. Nothing may have been
// put into FS. After an error, as where the file system has no links, the draft
// is good for nothing.
func (d *Draft) Pack(blob digest.Digest) error {
	err := valid(blob)
	if err == nil {
		err = os.Link(d.store.images.Path(blob), filepath.Join(d.dir, packedBlob))
	}
	if err == nil {
		err = writeFile(filepath.Join(d.dir, packedSum), []byte(blob.Encoded()+"\n"))
	}
	if err == nil {
		err = os.Remove(d.FS)
	}
	if err != nil {
		return fmt.Errorf("pack layer: %w", err)
	}
	d.packed = true
	return nil
}

// Packed reports whether a layer is there without its files.
func (s *Store) Packed(d digest.Digest) bool {
	return valid(d) == nil && exists(s.layerPath(d)+"/"+packedBlob) && !exists(s.layerPath(d)+"/fs")
}

func exists(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil
}

// LayerDir is where a layer's files are, in overlay form. They must not be
// changed. Those of a packed layer are made first: the error is an
// [*archive.CorruptError] if its blob is not what the layer's listing says,
// and the layer is gone then. The layer must be pinned.
func (s *Store) LayerDir(ctx context.Context, d digest.Digest) (string, error) {
	if err := valid(d); err != nil {
		return "", err
	}
	dir := s.layerPath(d) + "/fs"
	if exists(dir) || !s.Packed(d) {
		return dir, nil // what is not there will be missed by who opens it
	}
	if s.ro {
		return "", ErrReadOnly
	}
	err := s.unpack(ctx, d)
	if err != nil && !errors.As(err, new(*archive.CorruptError)) { // which names the layer
		err = fmt.Errorf("unpack layer %s: %w", d, err)
	}
	return dir, err
}

// LayerDirs are the directories of a stack, bottom first.
func (s *Store) LayerDirs(ctx context.Context, layers []solver.Layer) ([]string, error) {
	dirs := make([]string, len(layers))
	for i, l := range layers {
		var err error
		if dirs[i], err = s.LayerDir(ctx, l.Digest); err != nil {
			return nil, err
		}
	}
	return dirs, nil
}

// unpack makes the files of a packed layer, once.
func (s *Store) unpack(ctx context.Context, d digest.Digest) error {
	release, err := s.lockKey(ctx, d)
	if err != nil {
		return err
	}
	defer release()
	if !s.Packed(d) {
		return nil // someone was faster
	}
	t, err := s.Tree(d)
	if err != nil {
		return err
	}
	draft, err := s.NewLayer()
	if err != nil {
		return err
	}
	defer draft.Discard()
	if err := s.unpackTo(ctx, draft.FS, d, t); err != nil {
		var corrupt *archive.CorruptError
		if errors.As(err, &corrupt) {
			err = errors.Join(err, s.Invalidate(d))
		}
		return err
	}
	unmark, err := s.mark("layer-" + d.Encoded())
	if err != nil {
		return err
	}
	if err := os.Rename(draft.FS, s.layerPath(d)+"/fs"); err != nil {
		unmark()
		return err
	}
	s.bound.grew(t.Disk())
	for _, name := range []string{packedBlob, packedSum} {
		if err := gone(os.Remove(s.layerPath(d) + "/" + name)); err != nil {
			return err
		}
	}
	return nil
}

// unpackTo makes the files of a layer's listing in a directory.
func (s *Store) unpackTo(ctx context.Context, dir string, d digest.Digest, t *tree.Tree) error {
	blob, err := os.Open(s.layerPath(d) + "/" + packedBlob)
	if err != nil {
		return err
	}
	defer blob.Close()
	err = archive.Restore(ctx, blob, dir, t)
	var corrupt *archive.CorruptError
	if errors.As(err, &corrupt) {
		corrupt.Layer = d
	}
	return err
}

// verifyPacked reads a packed layer's blob and says what is wrong with it.
func (s *Store) verifyPacked(d digest.Digest) (what string, err error) {
	sum, err := os.ReadFile(s.layerPath(d) + "/" + packedSum)
	if err != nil {
		return "", err
	}
	f, err := os.Open(s.layerPath(d) + "/" + packedBlob)
	if err != nil {
		return "", err
	}
	defer f.Close()
	got, err := digest.FromReader(f)
	if err != nil {
		return "", err
	}
	if want := strings.TrimSuffix(string(sum), "\n"); got.Encoded() != want {
		return fmt.Sprintf("its blob has the digest %s, not %s", got.Encoded(), want), nil
	}
	return "", nil
}
