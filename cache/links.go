package cache

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// links tell that some files of a layer are links of another layer's, which
// take no space of their own while that is there. They are a line "HEX BYTES"
// in the file links beside the layer's tree; most layers have none.
type links struct {
	of    digest.Digest
	bytes int64 // on disk, an estimate
}

// Links notes that files which take so many bytes on disk are links of those
// of another layer. Call it before Commit, at most once.
func (d *Draft) Links(of digest.Digest, bytes int64) { d.links = links{of, bytes} }

func (l links) write(dir string) error {
	if l.bytes <= 0 {
		return nil
	}
	return os.WriteFile(filepath.Join(dir, "links"), fmt.Appendf(nil, "%s %d\n", l.of.Encoded(), l.bytes), 0o600)
}

// readLinks reads the file in a layer's directory. One that makes no sense is
// as good as none: the store seems larger than it is.
func readLinks(dir string) links {
	text, err := os.ReadFile(filepath.Join(dir, "links"))
	if err != nil {
		return links{}
	}
	var hex string
	var l links
	if _, err := fmt.Sscan(string(text), &hex, &l.bytes); err != nil || l.bytes < 0 {
		return links{}
	}
	l.of = digest.NewDigestFromEncoded(digest.SHA256, hex)
	return l
}

// countOnce takes from the sizes of layers what links of others' files they
// have. Of two that have links of a third's, which is gone, both count whole.
// One that was made later than those who name it is not the one they mean: that
// went, and what was made again may even be links of theirs.
func countOnce(layers []*item) {
	byID := make(map[string]*item, len(layers))
	for _, it := range layers {
		byID[it.ID] = it
	}
	for _, it := range layers {
		of := byID[it.links.of.String()]
		if of != nil && of != it && !of.Created.After(it.Created) && it.links.bytes <= it.Size {
			it.Size -= it.links.bytes
			it.of = of
			of.heirs = append(of.heirs, it)
		}
	}
}

// inherit leaves the files of a layer that was removed to those who have links
// of them, and returns how much stays on disk for that.
func (p *pruning) inherit(it *item) (stays int64) {
	for _, heir := range it.heirs {
		if p.gone[heir.pin] {
			continue
		}
		// What this layer had of a third, an heir has of that too, but for
		// what the two may differ in.
		var left links
		whole := it.Size
		if it.of != nil {
			whole += it.links.bytes
		}
		heir.of = nil
		if n := heir.links.bytes + it.links.bytes - whole; it.of != nil && !p.gone[it.of.pin] && n > 0 {
			left = links{it.links.of, n}
			heir.of = it.of
			it.of.heirs = append(it.of.heirs, heir)
		}
		if !p.o.DryRun {
			_ = left.write(heir.path) // else it counts whole the next time
		}
		heir.Size += heir.links.bytes - left.bytes
		stays += heir.links.bytes - left.bytes
		heir.links = left
	}
	return stays
}
