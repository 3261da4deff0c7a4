package cache

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// PutBlob keeps small content and pins it.
func (s *Store) PutBlob(data []byte) (digest.Digest, error) {
	if s.ro {
		return "", ErrReadOnly
	}
	d := digest.FromBytes(data)
	if err := s.putBlob(d, data); err != nil {
		return "", fmt.Errorf("put blob %s: %w", d, err)
	}
	return d, nil
}

func (s *Store) putBlob(d digest.Digest, data []byte) error {
	if _, err := s.gate.enter(nil); err != nil {
		return err
	}
	defer s.gate.leave()
	if err := s.pin(pinned("blob", d)); err != nil {
		return err
	}
	path := s.hashed("blobs", d)
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil && st.Size == int64(len(data)) {
		s.touch(path)
		return nil
	}
	return s.publish(path, data, "blob-"+d.Encoded())
}

// Blob returns content kept by PutBlob. It is checked: damaged content is
// removed, so that it is made again, and gives an error.
func (s *Store) Blob(d digest.Digest) ([]byte, error) {
	if err := valid(d); err != nil {
		return nil, err
	}
	path := s.hashed("blobs", d)
	b, _, err := readFile(path, nil)
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if digest.FromBytes(b) != d {
		err := fmt.Errorf("read blob %s: %w", d, ErrCorrupt)
		if !s.ro {
			err = errors.Join(err, os.Remove(path))
		}
		return nil, err
	}
	return b, nil
}

// hasBlob reports whether a blob is there: a small one, or one of an image.
func (s *Store) hasBlob(d digest.Digest) bool {
	if valid(d) != nil {
		return false
	}
	var st unix.Stat_t
	return unix.Stat(s.hashed("blobs", d), &st) == nil || s.images.Has(d)
}
