package layout

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// A listing is index.json for those who look for something in it. There may be
// thousands of entries, so only those are understood in which it can be.
type listing struct {
	Manifests []json.RawMessage `json:"manifests"`

	of    unix.Stat_t // of the file
	final bool        // a power loss does not undo it; see settled
}

// listing reads index.json, unless it is the file that was read before.
func (l *Layout) listing() (*listing, error) {
	path := filepath.Join(l.dir, v1.ImageIndexFile)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	if have := l.seen.Load(); have != nil && have.of.Ino == st.Ino && have.of.Size == st.Size &&
		have.of.Mtim == st.Mtim && have.of.Ctim == st.Ctim {
		return have, nil
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	x := &listing{of: st, final: st.Mode&0o777 != unsettled}
	if err := json.Unmarshal(b, x); err != nil {
		return nil, fmt.Errorf("read image index %s: %w", path, err)
	}
	l.seen.Store(x)
	return x, nil
}

// find returns the entries that match and have a text in one of their strings,
// in the order they were made. With an empty text it is all that match.
func (x *listing) find(text string, match func(v1.Descriptor) bool) ([]entry, error) {
	var found []entry
	for i, raw := range x.Manifests {
		// A string can be written in other ways, but then has a backslash.
		if !bytes.Contains(raw, []byte(text)) && bytes.IndexByte(raw, '\\') < 0 {
			continue
		}
		e := entry{raw: raw}
		if err := json.Unmarshal(raw, &e.desc); err != nil {
			return nil, fmt.Errorf("read image index: manifests[%d]: %w", i, err)
		}
		if match(e.desc) {
			found = append(found, e)
		}
	}
	return found, nil
}

// Resolve returns what a name stands for, or a [*NotFoundError]. The name
// must be as it was given to Tag; normalising names is left to the caller.
func (l *Layout) Resolve(ref string) (v1.Descriptor, error) {
	x, err := l.listing()
	if err != nil {
		return v1.Descriptor{}, err
	}
	found, err := x.find(ref, func(d v1.Descriptor) bool { return RefName(d) == ref && ref != "" })
	if err != nil {
		return v1.Descriptor{}, err
	}
	if len(found) == 0 {
		return v1.Descriptor{}, &NotFoundError{What: ref, Dir: l.dir}
	}
	return found[len(found)-1].desc, nil // the last wins, as in other tools that append
}

// Entries returns the entries of the index that are of a manifest or index, in
// the order they were made.
func (l *Layout) Entries(d digest.Digest) ([]v1.Descriptor, error) {
	x, err := l.listing()
	if err != nil {
		return nil, err
	}
	found, err := x.find(d.String(), func(e v1.Descriptor) bool { return e.Digest == d })
	if err != nil {
		return nil, err
	}
	list := make([]v1.Descriptor, len(found))
	for i, e := range found {
		list[i] = e.desc
	}
	return list, nil
}
