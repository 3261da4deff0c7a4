package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"

	"kiln.build/cache/tree"
)

// A Problem is something in the store that is not what it should be.
type Problem struct {
	Kind Kind
	ID   string
	Path string // the file in a layer, "" where it is about the whole
	What string
}

func (p Problem) String() string {
	if p.Path != "" {
		return fmt.Sprintf("%s %s: /%s: %s", p.Kind, p.ID, p.Path, p.What)
	}
	return fmt.Sprintf("%s %s: %s", p.Kind, p.ID, p.What)
}

// Verify reads the whole store and reports all that is damaged; it changes
// nothing. Each damaged layer is reported once, with the first difference:
// [Store.Invalidate] makes it go. Damaged actions and blobs go by themselves
// when they are next read. Blobs of images are not looked at. An error means
// that something could not be read at all.
func (s *Store) Verify(ctx context.Context) ([]Problem, error) {
	var problems []Problem
	layers, err := s.layerItems(ctx)
	if err != nil {
		return nil, err
	}
	for _, it := range layers {
		d := digest.Digest(it.ID)
		path, what, err := s.verifyLayer(ctx, d, everything)
		if err != nil {
			return problems, fmt.Errorf("verify layer %s: %w", d, err)
		}
		if what != "" {
			problems = append(problems, Problem{Kind: KindLayer, ID: it.ID, Path: path, What: what})
		}
	}
	check := func(kind Kind, dir string, wrong func(d digest.Digest, b []byte) error) error {
		return s.eachHashed(ctx, dir, func(d digest.Digest, path string) error {
			b, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := wrong(d, b); err != nil {
				problems = append(problems, Problem{Kind: kind, ID: d.String(), What: err.Error()})
			}
			return nil
		})
	}
	err = check(KindAction, "actions", func(d digest.Digest, b []byte) error {
		_, err := decodeRecord(d, b)
		return err
	})
	if err != nil {
		return problems, fmt.Errorf("verify actions: %w", err)
	}
	err = check(KindBlob, "blobs", func(d digest.Digest, b []byte) error {
		if digest.FromBytes(b) != d {
			return ErrCorrupt
		}
		return nil
	})
	if err != nil {
		return problems, fmt.Errorf("verify blobs: %w", err)
	}
	return problems, nil
}

// extent is what of a layer's files is looked at.
type extent int

const (
	everything extent = iota
	contents          // without attributes, and devices that may not be there
)

// verifyLayer returns the first difference, what being "" if there is none.
func (s *Store) verifyLayer(ctx context.Context, d digest.Digest, x extent) (path, what string, err error) {
	b, err := os.ReadFile(s.layerPath(d) + "/tree")
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(s.layerPath(d)); errors.Is(err, fs.ErrNotExist) {
			return "", "", nil // pruned meanwhile
		}
		return "", "its tree is missing", nil
	}
	if err != nil {
		return "", "", err
	}
	want, err := tree.Parse(b)
	if err != nil {
		return "", err.Error(), nil
	}
	if got := want.Digest(); got != d {
		return "", fmt.Sprintf("its tree is that of layer %s", got), nil
	}
	if s.Packed(d) {
		what, err = s.verifyPacked(d)
		if !errors.Is(err, fs.ErrNotExist) { // else it was unpacked meanwhile
			return "", what, err
		}
	}
	got, err := tree.Scan(ctx, s.layerPath(d)+"/fs", tree.ScanOptions{})
	if errors.Is(err, fs.ErrNotExist) {
		return "", "its files are missing", nil
	}
	if err != nil {
		return "", "", err
	}
	path, what = compare(want, got, x)
	return path, what, nil
}

// compare returns the first difference of a layer's files from its tree.
// The root's own entry may be missing in the tree. Without privileges owners
// and devices cannot be told from what is on disk.
func compare(want, got *tree.Tree, x extent) (path, what string) {
	have, should := got.Entries, want.Entries
	if x == contents {
		// Without rights devices are in the tree alone.
		isDevice := func(e tree.Entry) bool { return e.Type == tree.Char || e.Type == tree.Block }
		have, should = slices.DeleteFunc(slices.Clone(have), isDevice), slices.DeleteFunc(slices.Clone(should), isDevice)
	}
	if len(have) > 0 && have[0].Path == "" && (len(should) == 0 || should[0].Path != "") {
		have = have[1:]
	}
	for i := range max(len(have), len(should)) {
		switch {
		case i == len(have) || i < len(should) && tree.Compare(should[i].Path, have[i].Path) < 0:
			return should[i].Path, "it is missing"
		case i == len(should) || tree.Compare(should[i].Path, have[i].Path) > 0:
			return have[i].Path, "it was added"
		}
		a, b := should[i], have[i]
		if os.Geteuid() != 0 {
			b.UID, b.GID = a.UID, a.GID
		}
		a.Source = ""
		one, other := tree.Tree{Entries: []tree.Entry{a}}, tree.Tree{Entries: []tree.Entry{b}}
		switch {
		case a.Type != b.Type:
			return a.Path, fmt.Sprintf("it is a %s and should be a %s", b.Type, a.Type)
		case a.Digest != b.Digest || a.Link != b.Link:
			return a.Path, "its content was changed"
		case x == contents:
		case one.Digest() != other.Digest():
			return a.Path, "its attributes were changed"
		}
	}
	return "", ""
}
