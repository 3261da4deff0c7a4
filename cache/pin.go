package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Why nothing in use is pruned
//
// A process appends what it has looked up or made to the file "pins" of its
// scratch directory: lines "layer HEX", "blob HEX", "action HEX". It does so
// inside the gate, together with seeing that the thing is there (a look-up)
// or giving it its name (a commit). Prune decides and renames its victims
// away alone inside the gate, after reading the pins of all processes. So
// each pin is either seen by Prune, or its maker comes after the rename and
// does not find the thing.
//
// Something that must outlive the process, such as a container or an image,
// is written down elsewhere before its maker ends, and Prune asks for those
// roots after it has read the pins: a maker that ended before the pins were
// read had written its root; one that ended later had its pins read.
//
// A process that has ended has no pins: Close empties the file, and what a
// dead one leaves is swept, at the latest by Prune itself.
type pins struct {
	mu   sync.Mutex
	have map[string]bool
	file *os.File
	torn bool // the last write may have left half a line
}

// pinsFile is the name of the file of pins in a scratch directory.
const pinsFile = "pins"

func pinned(kind string, d digest.Digest) string { return kind + " " + d.Encoded() }

// pin keeps things until Close. The caller is inside the gate.
func (s *Store) pin(lines ...string) error {
	p := &s.pins
	p.mu.Lock()
	defer p.mu.Unlock()
	var text strings.Builder
	if p.torn {
		text.WriteByte('\n')
	}
	start := text.Len()
	for _, l := range lines {
		if !p.have[l] {
			text.WriteString(l)
			text.WriteByte('\n')
		}
	}
	if text.Len() == start {
		return nil
	}
	if p.file == nil {
		f, err := os.OpenFile(filepath.Join(s.proc.dir, pinsFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("pin: %w", err)
		}
		p.file, p.have = f, map[string]bool{}
	}
	if _, err := p.file.WriteString(text.String()); err != nil {
		p.torn = true
		return fmt.Errorf("pin: %w", err)
	}
	p.torn = false
	for _, l := range lines {
		p.have[l] = true
	}
	return nil
}

// hasPin reports whether this process has pinned a thing.
func (s *Store) hasPin(line string) bool {
	s.pins.mu.Lock()
	defer s.pins.mu.Unlock()
	return s.pins.have[line]
}

// close gives all pins up.
func (p *pins) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return nil
	}
	return errors.Join(p.file.Truncate(0), p.file.Close())
}

// Pin keeps layers from being pruned while this process lives, as a look-up
// does. If one is not there it returns an error that wraps [fs.ErrNotExist].
func (s *Store) Pin(ctx context.Context, layers ...digest.Digest) error {
	if s.ro {
		return ErrReadOnly
	}
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	lines := make([]string, len(layers))
	for i, d := range layers {
		if err := s.sound(ctx, d); err != nil {
			return fmt.Errorf("layer %s: %w", d, err)
		}
		s.touch(filepath.Join(s.layerPath(d), "tree"))
		lines[i] = pinned("layer", d)
	}
	return s.pin(lines...)
}

// allPins reads the pins of all processes, this one included.
func (s *Store) allPins() (map[string]bool, error) {
	entries, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		return nil, err
	}
	all := map[string]bool{}
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), trashPrefix) {
			continue
		}
		b, err := os.ReadFile(s.path("tmp", e.Name(), pinsFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			all[strings.TrimSuffix(line, "\n")] = true
		}
	}
	return all, nil
}
