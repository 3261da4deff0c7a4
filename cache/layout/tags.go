package layout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"kiln.build/cache/layout/unnamed"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Tag gives a manifest or index the name ref, which another may have had
// before. With an empty ref the image is kept without a name. The blobs
// written so far, and the tag, survive a power loss once Tag returns.
//
// Of desc's annotations the name is replaced and the others are kept.
func (l *Layout) Tag(ctx context.Context, ref string, desc v1.Descriptor) error {
	if !l.Has(desc.Digest) {
		return fmt.Errorf("tag %s: %w", ref, &NotFoundError{What: "blob " + desc.Digest.String(), Dir: l.dir})
	}
	desc.Annotations = maps.Clone(desc.Annotations)
	if ref == "" {
		delete(desc.Annotations, v1.AnnotationRefName)
	} else {
		if desc.Annotations == nil {
			desc.Annotations = map[string]string{}
		}
		desc.Annotations[v1.AnnotationRefName] = ref
	}
	raw, err := json.Marshal(desc)
	if err != nil {
		return fmt.Errorf("tag %s: %w", ref, err)
	}
	of, text := func(d v1.Descriptor) bool { return RefName(d) == ref }, ref
	if ref == "" {
		of, text = func(d v1.Descriptor) bool { return d.Digest == desc.Digest && RefName(d) == "" }, desc.Digest.String()
	}
	// The names of the blobs first: a tag must not outlive them. Whoever wrote
	// one that is there for good has seen to that.
	if l.has(raw, text, of) {
		return nil
	}
	l.named.Store(false)
	if err := syncPath(l.blobsDir()); err != nil {
		l.named.Store(true)
		return fmt.Errorf("tag %s: %w", ref, err)
	}
	err = l.change(ctx, func(x *index) error {
		if x.only(raw, of) {
			return l.settle()
		}
		x.remove(of)
		x.entries = append(x.entries, entry{raw: raw, desc: desc})
		return nil
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return fmt.Errorf("tag %s: %w", ref, err)
	}
	return nil
}

// has reports whether raw is the one entry that matches, a power loss would
// not undo that, and this process has named no blobs since.
func (l *Layout) has(raw []byte, text string, match func(v1.Descriptor) bool) bool {
	x, err := l.listing()
	if err != nil || !x.final || l.named.Load() {
		return false
	}
	found, err := x.find(text, match)
	return err == nil && len(found) == 1 && bytes.Equal(found[0].raw, raw)
}

// settle makes sure that index.json as it is survives a power loss: whoever
// put it there may have been killed before he had seen to that. It gives
// errUnchanged. The caller holds the lock.
func (l *Layout) settle() error {
	f, err := os.Open(filepath.Join(l.dir, v1.ImageIndexFile))
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err == nil && fi.Mode().Perm() != unsettled {
		return errUnchanged
	}
	if err = errors.Join(err, f.Sync(), syncPath(l.dir), f.Chmod(settled)); err != nil {
		return err
	}
	return errUnchanged
}

// Untag takes a name away. The error is a [*NotFoundError] if there is none
// such. The image's blobs stay until [Layout.Collect].
func (l *Layout) Untag(ctx context.Context, ref string) error {
	return l.removeEntries(ctx, ref, func(d v1.Descriptor) bool { return RefName(d) == ref && ref != "" })
}

// Forget takes an image out of the index together with all of its names.
func (l *Layout) Forget(ctx context.Context, d digest.Digest) error {
	return l.removeEntries(ctx, d.String(), func(e v1.Descriptor) bool { return e.Digest == d })
}

func (l *Layout) removeEntries(ctx context.Context, what string, match func(v1.Descriptor) bool) error {
	err := l.change(ctx, func(x *index) error {
		if x.remove(match) == 0 {
			return &NotFoundError{What: what, Dir: l.dir}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("untag: %w", err)
	}
	return nil
}

// List returns all entries of the index, in the order they were made. An
// image with several names appears with each of them; see [RefName].
func (l *Layout) List() ([]v1.Descriptor, error) {
	x, err := l.readIndex()
	if err != nil {
		return nil, err
	}
	list := make([]v1.Descriptor, len(x.entries))
	for i, e := range x.entries {
		list[i] = e.desc
	}
	return list, nil
}

// RefName is the name that an entry of the index has, or "".
func RefName(d v1.Descriptor) string { return d.Annotations[v1.AnnotationRefName] }

// index is index.json with everything in it that we do not know.
type index struct {
	fields  map[string]json.RawMessage // but manifests
	entries []entry
}

type entry struct {
	raw  json.RawMessage
	desc v1.Descriptor
}

func (x *index) remove(match func(v1.Descriptor) bool) (removed int) {
	kept := x.entries[:0]
	for _, e := range x.entries {
		if match(e.desc) {
			removed++
			continue
		}
		kept = append(kept, e)
	}
	x.entries = kept
	return removed
}

// only reports whether raw is the one entry that matches.
func (x *index) only(raw []byte, match func(v1.Descriptor) bool) bool {
	found := 0
	for _, e := range x.entries {
		if match(e.desc) {
			if found++; !bytes.Equal(e.raw, raw) {
				return false
			}
		}
	}
	return found == 1
}

// errUnchanged says that there is nothing to write.
var errUnchanged = errors.New("the index is as it should be")

func (l *Layout) readIndex() (*index, error) {
	path := filepath.Join(l.dir, v1.ImageIndexFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	x := &index{}
	if err := x.parse(b); err != nil {
		return nil, fmt.Errorf("read image index %s: %w", path, err)
	}
	return x, nil
}

func (x *index) parse(b []byte) error {
	if err := json.Unmarshal(b, &x.fields); err != nil {
		return err
	}
	if x.fields == nil {
		return errors.New("not a JSON object")
	}
	var raw []json.RawMessage
	if m, ok := x.fields["manifests"]; ok {
		if err := json.Unmarshal(m, &raw); err != nil {
			return err
		}
	}
	x.entries = make([]entry, len(raw))
	for i, r := range raw {
		x.entries[i].raw = r
		if err := json.Unmarshal(r, &x.entries[i].desc); err != nil {
			return fmt.Errorf("manifests[%d]: %w", i, err)
		}
	}
	return nil
}

func (x *index) marshal() ([]byte, error) {
	raw := make([]json.RawMessage, len(x.entries))
	for i, e := range x.entries {
		raw[i] = e.raw
	}
	m, err := json.Marshal(raw)
	if err != nil {
		return nil, err
	}
	fields := maps.Clone(x.fields)
	fields["manifests"] = m
	return json.Marshal(fields)
}

// change rewrites index.json while no one else does.
func (l *Layout) change(ctx context.Context, f func(*index) error) error {
	held, err := lock(ctx, filepath.Join(l.dir, v1.ImageLayoutFile), unix.LOCK_EX, true)
	if err != nil {
		return err
	}
	defer held.Close()
	x, err := l.readIndex()
	if err != nil {
		return err
	}
	if err := f(x); err != nil {
		return err
	}
	b, err := x.marshal()
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(l.dir, v1.ImageIndexFile), b)
}

// The modes of an index.json whose place in its directory a power loss could
// still undo, and of one that stays. Only by this can others tell what became
// of a process that was killed in between; syncing in every Tag would do as
// well, but three syncs are most of what a build with nothing to do waits for.
const (
	unsettled = 0o600
	settled   = 0o644
)

// replaceFile puts a new file in a name's place so that a reader, or the
// next boot, finds either the old or the new one. The caller holds the lock.
func replaceFile(path string, data []byte) error {
	tmp, err := unnamed.New(path, tempPrefix)
	if err != nil {
		return err
	}
	defer tmp.Close()
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Chmod(unsettled), tmp.Sync()); err != nil {
		return err
	}
	if err := tmp.SetName(path, filepath.Join(filepath.Dir(path), tempPrefix+"index")); err != nil {
		return err
	}
	if err := syncPath(filepath.Dir(path)); err != nil {
		return err
	}
	return tmp.Chmod(settled)
}

// syncPath syncs a file or a directory.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
