package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// PruneOptions say what may go. The zero value removes everything that is
// not in use, and spares results whose layers are needed anyway.
type PruneOptions struct {
	// All removes these results too.
	All bool

	// Until spares what was used within this time.
	Until time.Duration

	// KeepStorage stops as soon as the store takes no more than so many
	// bytes; what was used least lately goes first. Zero does not stop.
	KeepStorage int64

	// Cap is the bound that the store is held to, in bytes, for those who ask
	// later why a result is gone; zero where someone asks for the removal.
	Cap int64

	// Filters narrow down what may go: "id" (a prefix), "type" (a Kind),
	// "description" (a part of it), "shared", "inuse" (true or false),
	// "until" (a duration). Of several values of a key one must match.
	Filters map[string][]string

	// Roots returns the layers that images and containers need. It is called
	// while nobody, itself included, can look up, commit or pin anything, so
	// it should be quick; it may read Record, Tree, Blob and Images.
	Roots func() ([]digest.Digest, error)

	// DryRun only reports.
	DryRun bool
}

// PruneReport tells what was removed.
type PruneReport struct {
	Removed []Usage
	Bytes   int64 // of all that was removed
	Left    int64 // of all that is still there, images included
}

// Prune removes what is not in use. Builds may go on beside it: see pins for
// why nothing is taken from them. They wait while it renames things away,
// which is milliseconds, not while it reads and deletes.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (PruneReport, error) {
	if s.ro {
		return PruneReport{}, ErrReadOnly
	}
	match, err := o.matcher()
	if err != nil {
		return PruneReport{}, err
	}
	report, err := s.prune(ctx, o, match)
	if err != nil {
		return report, fmt.Errorf("prune store %s: %w", s.root, err)
	}
	return report, nil
}

func (s *Store) prune(ctx context.Context, o PruneOptions, match func(Usage) bool) (PruneReport, error) {
	var r PruneReport
	s.proc.sweep() // so that the dead have no pins
	items, err := s.survey(ctx)
	if err != nil {
		return r, err
	}
	images, err := s.imageBlobs(ctx)
	if err != nil {
		return r, err
	}
	for _, it := range items {
		r.Left += it.Size
	}
	for _, u := range images {
		r.Left += u.Size
	}
	slices.SortStableFunc(items, func(a, b *item) int { return a.LastUsed.Compare(b.LastUsed) })

	p := pruning{s: s, o: o, match: match, report: &r, items: items, gone: map[string]bool{}}
	if err := p.removePinnable(ctx); err != nil {
		return r, err
	}
	for _, it := range items {
		if it.pin == "" && p.mayGo(it) && p.removeOther(it) {
			p.removed(it.Usage)
		}
	}
	if o.DryRun {
		return r, nil
	}
	if o.Cap == 0 { // the store is counted anew when it must be known
		_ = os.Remove(s.path("locks", "size"))
	}
	return r, removeAll(p.trash, s.proc.stop)
}

// pruning is one run of Prune.
type pruning struct {
	s      *Store
	o      PruneOptions
	match  func(Usage) bool
	report *PruneReport
	items  []*item // what was used least lately first

	trash   string
	gone    map[string]bool // removed in this run, by pin
	actions []string        // the keys of those
}

// mayGo reports whether an item is a candidate, and needed to come down to
// KeepStorage.
func (p *pruning) mayGo(it *item) bool {
	return !it.InUse && p.needed() && p.old(it.LastUsed) && p.match(it.Usage)
}

func (p *pruning) needed() bool {
	return p.o.KeepStorage <= 0 || p.report.Left > p.o.KeepStorage
}

func (p *pruning) old(used time.Time) bool {
	return p.o.Until <= 0 || time.Since(used) >= p.o.Until
}

func (p *pruning) removed(u Usage) {
	p.report.Removed = append(p.report.Removed, u)
	p.report.Bytes += u.Size
	p.report.Left -= u.Size
}

// removePinnable removes layers, actions, blobs and what images left: alone
// in the gate.
func (p *pruning) removePinnable(ctx context.Context) error {
	release, err := p.s.gate.exclude(ctx)
	if err != nil {
		return err
	}
	defer release()
	pins, err := p.s.allPins()
	if err != nil {
		return err
	}
	if err := p.addRoots(pins); err != nil { // after the pins: see pins
		return err
	}
	if p.trash = p.s.temp("pruned"); !p.o.DryRun {
		if err := os.Mkdir(p.trash, 0o700); err != nil {
			return err
		}
	}
	blobs, err := p.idleBlobs(ctx, pins)
	if err != nil {
		return err
	}
	defer blobs.release()
	for _, it := range blobs.among(p.items) {
		it.InUse = it.InUse || pins[it.pin]
		if it.pin == "" || it.broken || !p.mayGo(it) || blobs.needed[it.pin] > 0 {
			continue
		}
		if err := p.remove(it, blobs); err != nil {
			return err
		}
	}
	// An action whose result has gone is of no use to anyone.
	for _, it := range p.items {
		if it.Kind != KindAction || pins[it.pin] || p.gone[it.pin] {
			continue
		}
		if it.broken || slices.ContainsFunc(it.promises, func(pin string) bool { return p.gone[pin] }) {
			if err := p.remove(it, blobs); err != nil {
				return err
			}
		}
	}
	if err := p.s.noteEvictions(p.actions, p.o.Cap); err != nil {
		return err
	}
	// Now without what the removed actions promised or came from.
	for _, it := range blobs.items {
		if !p.gone[it.pin] && blobs.needed[it.pin] == 0 && p.mayGo(it) {
			if err := p.remove(it, blobs); err != nil {
				return err
			}
		}
	}
	if p.o.DryRun {
		return nil
	}
	return blobs.sweep(ctx)
}

// addRoots treats what images and containers need as pinned, and without All
// the results that consist of such layers.
func (p *pruning) addRoots(pins map[string]bool) error {
	if p.o.Roots == nil {
		return nil
	}
	roots, err := p.o.Roots()
	if err != nil {
		return fmt.Errorf("find what images need: %w", err)
	}
	needed := map[digest.Digest]bool{}
	for _, d := range roots {
		needed[d] = true
		pins[pinned("layer", d)] = true
	}
	if p.o.All {
		return nil
	}
	for _, it := range p.items {
		if it.Kind == KindAction && len(it.layers) > 0 && !slices.ContainsFunc(it.layers, func(d digest.Digest) bool { return !needed[d] }) {
			pins[it.pin] = true
		}
	}
	return nil
}

// remove takes a layer, an action or a blob out of the store.
func (p *pruning) remove(it *item, blobs *idleBlobs) error {
	if !p.o.DryRun {
		var err error
		if it.Kind == KindImage {
			err = blobs.remove(it)
		} else {
			err = os.Rename(it.path, p.trash+"/"+strconv.FormatUint(p.s.seq.Add(1), 10))
		}
		if errors.Is(err, fs.ErrNotExist) {
			p.gone[it.pin] = true // another process did it
			return nil
		}
		if err != nil {
			return err
		}
	}
	switch it.Kind {
	case KindAction:
		blobs.dropped(it)
		if !p.o.DryRun {
			p.actions = append(p.actions, it.ID)
		}
	case KindLayer:
		p.s.mu.Lock()
		delete(p.s.trees, digest.Digest(it.ID))
		p.s.mu.Unlock()
	}
	p.gone[it.pin] = true
	row := it.Usage
	row.Size -= p.inherit(it)
	p.removed(row)
	return nil
}

// removeOther removes a cache mount or a stat cache, which have locks of
// their own or need none.
func (p *pruning) removeOther(it *item) bool {
	switch {
	case p.o.DryRun:
		return true
	case it.Kind == KindMount:
		return it.slot.prune()
	}
	return os.Remove(it.path) == nil
}

// matcher checks the filters and makes a function of them.
func (o PruneOptions) matcher() (func(Usage) bool, error) {
	type test func(u Usage, value string) bool
	tests := map[string]test{
		"id": func(u Usage, v string) bool {
			return strings.HasPrefix(u.ID, v) || strings.HasPrefix(u.ID, "sha256:"+v)
		},
		"type":        func(u Usage, v string) bool { return string(u.Kind) == v },
		"description": func(u Usage, v string) bool { return strings.Contains(u.Description, v) },
		"shared":      func(u Usage, v string) bool { return strconv.FormatBool(u.Shared) == v },
		"inuse":       func(u Usage, v string) bool { return strconv.FormatBool(u.InUse) == v },
		"until": func(u Usage, v string) bool {
			d, _ := time.ParseDuration(v)
			return time.Since(u.LastUsed) >= d
		},
	}
	kinds := []string{string(KindLayer), string(KindAction), string(KindBlob), string(KindMount), string(KindImage), string(KindContext)}
	for key, values := range o.Filters {
		if tests[key] == nil {
			return nil, fmt.Errorf("prune filter %q is not known, only id, type, description, shared, inuse and until", key)
		}
		for _, v := range values {
			switch key {
			case "until":
				if _, err := time.ParseDuration(v); err != nil {
					return nil, fmt.Errorf("prune filter until=%q: it is not a duration such as 24h", v)
				}
			case "shared", "inuse":
				if v != "true" && v != "false" {
					return nil, fmt.Errorf("prune filter %s=%q: it is true or false", key, v)
				}
			case "type":
				if !slices.Contains(kinds, v) {
					return nil, fmt.Errorf("prune filter type=%q is not known, only %s", v, strings.Join(kinds, ", "))
				}
			}
		}
	}
	return func(u Usage) bool {
		for key, values := range o.Filters {
			if len(values) > 0 && !slices.ContainsFunc(values, func(v string) bool { return tests[key](u, v) }) {
				return false
			}
		}
		return true
	}, nil
}
