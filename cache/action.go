package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"kiln.build/solver"
)

// recordVersion heads an action's file:
//
//	kiln action record 1\n
//	sha256 of all that follows, in hex\n
//	JSON of Record without Key, LastUsed and Description, on one line\n
//	the action's description
//
// The description is last and raw, so that `tail -n +4` shows it. The key is
// its digest.
const recordVersion = "kiln action record 1\n"

// A Record is what is kept of an action.
type Record struct {
	Key         digest.Digest `json:"-"`
	Description string        `json:"-"` // as in solver.Action
	LastUsed    time.Time     `json:"-"` // within an hour

	Created time.Time     `json:"created"`
	Name    string        `json:"name,omitempty"` // of the step, "" where it has none
	Result  solver.Result `json:"result"`

	// Stack tells a stack of no layers from a result without one.
	Stack bool `json:"stack,omitempty"`
}

// promises lists what a look-up guarantees to be there, in the form of pins:
// the layers and the blob.
func (r *Record) promises() []string {
	var p []string
	for _, l := range r.Result.Layers {
		p = append(p, pinned("layer", l.Digest))
	}
	if r.Result.Blob != "" {
		p = append(p, pinned("blob", r.Result.Blob))
	}
	return p
}

func (r *Record) encode() ([]byte, error) {
	meta, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	body := append(append(meta, '\n'), r.Description...)
	sum := sha256.Sum256(body)
	b := make([]byte, 0, len(recordVersion)+65+len(body))
	b = append(b, recordVersion...)
	b = hex.AppendEncode(b, sum[:])
	b = append(b, '\n')
	return append(b, body...), nil
}

// ErrCorrupt says that a file of the store is not what was written.
var ErrCorrupt = errors.New("the file is damaged")

func decodeRecord(key digest.Digest, b []byte) (*Record, error) {
	rest, ok := bytes.CutPrefix(b, []byte(recordVersion))
	if !ok {
		line, _, _ := bytes.Cut(b[:min(len(b), 64)], []byte("\n"))
		return nil, fmt.Errorf("its head is %q: %w", line, ErrCorrupt)
	}
	sum, body, _ := bytes.Cut(rest, []byte("\n"))
	if want := sha256.Sum256(body); hex.EncodeToString(want[:]) != string(sum) {
		return nil, fmt.Errorf("wrong checksum: %w", ErrCorrupt)
	}
	meta, description, _ := bytes.Cut(body, []byte("\n"))
	r := &Record{Key: key, Description: string(description)}
	if err := json.Unmarshal(meta, r); err != nil {
		return nil, fmt.Errorf("%v: %w", err, ErrCorrupt)
	}
	if solver.Digest(description) != key {
		return nil, fmt.Errorf("it is of another action: %w", ErrCorrupt)
	}
	if r.Stack && r.Result.Layers == nil {
		r.Result.Layers = []solver.Layer{}
	}
	return r, nil
}

// Lookup implements [solver.Cache]. What it returns is pinned: it stays until
// the store is closed.
func (s *Store) Lookup(ctx context.Context, key digest.Digest) (solver.Result, error) {
	r, err := s.lookup(ctx, key)
	if err != nil {
		return solver.Result{}, fmt.Errorf("look up action %s: %w", key, err)
	}
	return r.Result, nil
}

func (s *Store) lookup(ctx context.Context, key digest.Digest) (*Record, error) {
	if s.ro {
		r, _, err := s.promised(ctx, key)
		return r, err
	}
	leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	r, file, err := s.promised(ctx, key)
	if err != nil {
		return nil, err
	}
	if err := s.pin(append(r.promises(), pinned("action", key))...); err != nil {
		return nil, err
	}
	touchSince(s.hashed("actions", key), file.mtime)
	for _, l := range r.Result.Layers {
		s.used(l.Digest)
	}
	if r.Result.Blob != "" {
		s.touch(s.hashed("blobs", r.Result.Blob))
	}
	return r, nil
}

// promised reads a record and sees that it keeps its promises.
func (s *Store) promised(ctx context.Context, key digest.Digest) (*Record, fileID, error) {
	r, file, err := s.record(key)
	if err != nil {
		return nil, file, err
	}
	for _, l := range r.Result.Layers {
		if err := s.sound(ctx, l.Digest); err != nil {
			if ctx.Err() != nil {
				return nil, file, context.Cause(ctx)
			}
			return nil, file, fmt.Errorf("layer %s is gone: %w", l.Digest, solver.ErrMiss)
		}
	}
	if b := r.Result.Blob; b != "" && !s.hasBlob(b) {
		return nil, file, fmt.Errorf("blob %s is gone: %w", b, solver.ErrMiss)
	}
	return r, file, nil
}

// Record reads what is kept of an action, whether or not its promises can be
// kept, and pins nothing: for those who explain. A damaged record is removed;
// that and no record give an error that wraps [solver.ErrMiss].
func (s *Store) Record(key digest.Digest) (*Record, error) {
	r, _, err := s.record(key)
	return r, err
}

func (s *Store) record(key digest.Digest) (*Record, fileID, error) {
	if err := valid(key); err != nil {
		return nil, fileID{}, err
	}
	path := s.hashed("actions", key)
	if r, file, ok := s.expected.take(key, path); ok {
		return r, file, nil
	}
	r, file, err := s.readRecord(key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, file, solver.ErrMiss
	case errors.Is(err, ErrCorrupt):
		if !s.ro {
			err = errors.Join(err, os.Remove(path))
		}
		return nil, file, fmt.Errorf("%w: %w", solver.ErrMiss, err)
	}
	return r, file, err
}

// readRecord reads a record's file.
func (s *Store) readRecord(key digest.Digest) (*Record, fileID, error) {
	buf := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(buf)
	b, file, err := readFile(s.hashed("actions", key), (*buf)[:0])
	*buf = b
	if err != nil {
		return nil, file, err
	}
	r, err := decodeRecord(key, b)
	return r, file, err
}

// Lock implements [solver.Cache].
func (s *Store) Lock(ctx context.Context, key digest.Digest) (release func(), err error) {
	if s.ro {
		return func() {}, nil
	}
	if err := valid(key); err != nil {
		return nil, fmt.Errorf("lock action: %w", err)
	}
	release, err = s.lockKey(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("lock action %s: %w", key, err)
	}
	return release, nil
}

// Save implements [solver.Cache]. The result's layers and blob are in the
// store already.
func (s *Store) Save(ctx context.Context, a *solver.Action, r solver.Result) error {
	if s.ro {
		return ErrReadOnly
	}
	rec := &Record{Description: a.Description, Created: time.Now().UTC().Round(0), Result: r, Stack: r.Layers != nil}
	if a.Step != nil {
		rec.Name = a.Step.Name
	}
	if err := s.save(ctx, a.Key, rec); err != nil {
		return fmt.Errorf("save action %s: %w", a.Key, err)
	}
	return nil
}

func (s *Store) save(ctx context.Context, key digest.Digest, r *Record) error {
	if err := valid(key); err != nil {
		return err
	}
	b, err := r.encode()
	if err != nil {
		return err
	}
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if err := s.pin(append(r.promises(), pinned("action", key))...); err != nil {
		return err
	}
	return s.publish(s.hashed("actions", key), b, "")
}

// Records calls fn for the record of each action, in no order, until fn
// returns an error, which is returned. Damaged records are left out.
func (s *Store) Records(ctx context.Context, fn func(*Record) error) error {
	return s.eachHashed(ctx, "actions", func(d digest.Digest, path string) error {
		var st unix.Stat_t
		b, err := os.ReadFile(path)
		if err == nil {
			err = unix.Stat(path, &st)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // pruned meanwhile
		}
		if err != nil {
			return err
		}
		r, err := decodeRecord(d, b)
		if err != nil {
			return nil
		}
		r.LastUsed = time.Unix(st.Mtim.Unix())
		return fn(r)
	})
}

// eachHashed lists actions or blobs.
func (s *Store) eachHashed(ctx context.Context, kind string, fn func(d digest.Digest, path string) error) error {
	groups, err := os.ReadDir(s.path(kind))
	if err != nil {
		return err
	}
	for _, g := range groups {
		if err := cause(ctx); err != nil {
			return err
		}
		files, err := os.ReadDir(s.path(kind, g.Name()))
		if err != nil {
			return err
		}
		for _, f := range files {
			d := digest.NewDigestFromEncoded(digest.SHA256, f.Name())
			if valid(d) != nil || !strings.HasPrefix(f.Name(), g.Name()) {
				continue
			}
			if err := fn(d, s.path(kind, g.Name(), f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// used notes that a layer was used, once for each process.
func (s *Store) used(d digest.Digest) {
	s.mu.Lock()
	before := s.touched[d]
	s.touched[d] = true
	s.mu.Unlock()
	if !before {
		s.touch(filepath.Join(s.layerPath(d), "tree"))
	}
}

// BlobUsed notes that a blob of the image layout was used, for those that no
// tag holds.
func (s *Store) BlobUsed(d digest.Digest) {
	if !s.ro {
		s.touch(s.images.Path(d))
	}
}

// touchEvery is how exact the time of last use is: often enough to trim by,
// rare enough that a look-up writes nothing as a rule.
const touchEvery = time.Hour

// touch notes that a file was used, by its modification time. Failure does
// no harm but that the file may be trimmed too early.
func (s *Store) touch(path string) {
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		touchSince(path, st.Mtim)
	}
}

// touchSince is touch for a file whose modification time is known.
func touchSince(path string, mtime unix.Timespec) {
	now := time.Now()
	if used := time.Unix(mtime.Unix()); now.Sub(used) > touchEvery || used.After(now.Add(touchEvery)) {
		_ = os.Chtimes(path, now, now)
	}
}
