package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"kiln.build/solver"
)

// index is what a cache knows. It is stored as JSON, compressed with zstd.
type index struct {
	Version int     `json:"version"` // 1
	Entries []entry `json:"entries"`

	// Pieces tell where the content of layers and blobs lies, by digest.
	Pieces map[digest.Digest]piece `json:"pieces"`
}

// entry is the result of an action.
type entry struct {
	Key         digest.Digest `json:"key"`
	Description string        `json:"description"` // the key is its digest
	Name        string        `json:"name,omitempty"`
	Created     time.Time     `json:"created"`
	Result      solver.Result `json:"result"`
	Stack       bool          `json:"stack,omitempty"` // a stack, of no layers perhaps
}

// piece is a part of an object: a zstd frame, of a layer as package archive
// writes it, or of a blob.
type piece struct {
	Object digest.Digest `json:"object"`
	Size   int64         `json:"size"`             // of the object, in bytes
	Offset int64         `json:"offset,omitempty"` // of the piece in it
	Length int64         `json:"length"`

	// Tar says that the object is the blob of an image's layer, in which the
	// top directory may be left out.
	Tar bool `json:"tar,omitempty"`
	Top *top `json:"top,omitempty"`
}

// top is the top directory of a layer.
type top struct {
	Mode  uint32 `json:"mode"`
	UID   int    `json:"uid,omitempty"`
	GID   int    `json:"gid,omitempty"`
	Mtime int64  `json:"mtime,omitempty"` // ns since the epoch
}

func (p piece) descriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: TypeObject, Digest: p.Object, Size: p.Size}
}

// indexMax bounds what an index may unpack to, in bytes.
const indexMax = 256 << 20

func decodeIndex(b []byte) (*index, error) {
	x := &index{}
	if err := unpackJSON(b, x); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	if x.Version != 1 {
		return nil, fmt.Errorf("index: version %d is not known", x.Version)
	}
	for i := range x.Entries {
		if err := x.Entries[i].check(); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	for d, p := range x.Pieces {
		if err := errors.Join(d.Validate(), p.Object.Validate()); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
		if p.Offset < 0 || p.Length < 0 || p.Offset > p.Size-p.Length {
			return nil, errors.New("index: a piece is not in its object")
		}
	}
	return x, nil
}

func (e *entry) check() error {
	if digest.FromString(e.Description) != e.Key {
		return errors.New("an entry's key is not that of its description")
	}
	if err := e.Result.Digest.Validate(); err != nil {
		return err
	}
	for _, l := range e.Result.Layers {
		if err := l.Digest.Validate(); err != nil {
			return err
		}
		if o := l.Origin; o != nil {
			if err := errors.Join(o.DiffID.Validate(), o.Blob.Validate()); err != nil {
				return err
			}
		}
	}
	if e.Result.Blob != "" {
		if err := e.Result.Blob.Validate(); err != nil {
			return err
		}
	}
	if len(e.Result.Layers) > 0 && e.Result.Digest != solver.StackDigest(e.Result.Layers) {
		return errors.New("an entry's digest is not that of its layers")
	}
	if e.Stack && e.Result.Layers == nil {
		e.Result.Layers = []solver.Layer{}
	}
	return nil
}

func (x *index) encode() ([]byte, error) { return packJSON(x) }

func unpackJSON(b []byte, v any) error {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(indexMax))
	if err != nil {
		return err
	}
	defer d.Close()
	text, err := d.DecodeAll(b, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

func packJSON(v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer e.Close()
	return e.EncodeAll(text, nil), nil
}

// objects are those that the index refers to, in no order.
func (x *index) objects() []v1.Descriptor {
	seen := map[digest.Digest]bool{}
	var all []v1.Descriptor
	for _, p := range x.Pieces {
		if !seen[p.Object] {
			seen[p.Object] = true
			all = append(all, p.descriptor())
		}
	}
	return all
}
