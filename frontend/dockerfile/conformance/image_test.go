package conformance

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// image is what an archive in OCI form holds.
type image struct {
	config  []byte
	layers  [][]byte // nil where the base has the same
	diffIDs []digest.Digest
	history []ocispecs.History
}

// readImage reads the only image of an OCI archive. Layers of the base, which
// may be nil, are left out: they are the most of it.
func readImage(file string, base *image) (*image, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	files := map[string]*io.SectionReader{}
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		files[h.Name] = io.NewSectionReader(f, at, h.Size)
	}
	read := func(name string) ([]byte, error) {
		s, ok := files[name]
		if !ok {
			return nil, fmt.Errorf("%s has no %s", file, name)
		}
		data := make([]byte, s.Size())
		_, err := io.ReadFull(io.NewSectionReader(s, 0, s.Size()), data)
		return data, err
	}
	blob := func(d digest.Digest) ([]byte, error) {
		return read("blobs/" + d.Algorithm().String() + "/" + d.Encoded())
	}
	data, err := read("index.json")
	if err != nil {
		return nil, err
	}
	var index ocispecs.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("%d images, want one", len(index.Manifests))
	}
	if data, err = blob(index.Manifests[0].Digest); err != nil {
		return nil, err
	}
	var manifest ocispecs.Manifest
	if err := json.Unmarshal(data, &manifest); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	img := &image{}
	if img.config, err = blob(manifest.Config.Digest); err != nil {
		return nil, err
	}
	var config ocispecs.Image
	if err := json.Unmarshal(img.config, &config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	img.diffIDs, img.history = config.RootFS.DiffIDs, config.History
	if len(img.diffIDs) != len(manifest.Layers) {
		return nil, fmt.Errorf("%d layers, but %d in the config", len(manifest.Layers), len(img.diffIDs))
	}
	for i, l := range manifest.Layers {
		if base != nil && i < len(base.diffIDs) && base.diffIDs[i] == img.diffIDs[i] {
			img.layers = append(img.layers, nil)
			continue
		}
		data, err := blob(l.Digest)
		if err != nil {
			return nil, err
		}
		if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
			z, err := gzip.NewReader(bytes.NewReader(data))
			if err != nil {
				return nil, err
			}
			if data, err = io.ReadAll(z); err != nil {
				return nil, err
			}
		}
		if got := digest.FromBytes(data); got != img.diffIDs[i] {
			return nil, fmt.Errorf("layer %d is %s, in the config %s", i, got, img.diffIDs[i])
		}
		img.layers = append(img.layers, data)
	}
	return img, nil
}

// listing is everything of the image that a user can see, as text. What the
// base has as well is one line.
func (img *image) listing(base *image) (string, error) {
	var b strings.Builder
	if err := img.listConfig(&b); err != nil {
		return "", err
	}
	layers, history := img.layers, img.history
	based := len(layers) >= len(base.layers) && slices.Equal(img.diffIDs[:len(base.diffIDs)], base.diffIDs)
	if based {
		layers, history = layers[len(base.layers):], history[min(len(history), len(base.history)):]
	}
	b.WriteString("history\n")
	if based {
		b.WriteString("  of the base\n")
	}
	filled := 0
	for _, h := range history {
		kind := "layer"
		if h.EmptyLayer {
			kind = "empty"
		} else {
			filled++
		}
		if h.Comment != "buildkit.dockerfile.v0" {
			kind += " comment=" + h.Comment
		}
		if h.Author != "" {
			kind += " author=" + h.Author
		}
		fmt.Fprintf(&b, "  %s %s\n", kind, quoteIfOdd(h.CreatedBy))
	}
	if filled != len(layers) {
		fmt.Fprintf(&b, "  %d layers, %d in the history\n", len(layers), filled)
	}
	if based {
		b.WriteString("layer\n  of the base\n")
	}
	for _, l := range layers {
		b.WriteString("layer\n")
		if err := listLayer(&b, l); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

// listConfig writes the fields of the config in order of their names.
func (img *image) listConfig(b *strings.Builder) error {
	var config struct {
		Config map[string]json.RawMessage `json:"config"`
	}
	top := map[string]json.RawMessage{}
	if err := errors.Join(json.Unmarshal(img.config, &top), json.Unmarshal(img.config, &config)); err != nil {
		return err
	}
	b.WriteString("config\n")
	for _, key := range slices.Sorted(maps.Keys(top)) {
		switch key {
		case "config", "created", "history", "rootfs":
		case "architecture", "os", "variant":
			if key == "os" && string(top[key]) == `"linux"` || img.native(key, top[key]) {
				continue
			}
			fallthrough
		default:
			fmt.Fprintf(b, "  %s %s\n", key, top[key])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(config.Config)) {
		// Maps are sorted by being read and written again.
		var v any
		if err := json.Unmarshal(config.Config[key], &v); err != nil {
			return err
		}
		var text bytes.Buffer
		e := json.NewEncoder(&text)
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			return err
		}
		fmt.Fprintf(b, "  %s %s", key, text.Bytes())
	}
	return nil
}

// native reports whether a field says what the machine that recorded the
// results and most others have: no case should fail for its processor.
func (img *image) native(key string, value json.RawMessage) bool {
	return key == "architecture" && string(value) == `"amd64"`
}

func listLayer(b *strings.Builder, data []byte) error {
	type line struct{ path, text string }
	var lines []line
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := path.Join("/", h.Name)
		text, err := describe(h, r)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		lines = append(lines, line{name, text})
	}
	slices.SortFunc(lines, func(a, b line) int {
		return cmp.Or(slices.Compare(strings.Split(a.path, "/"), strings.Split(b.path, "/")), strings.Compare(a.text, b.text))
	})
	for _, l := range lines {
		fmt.Fprintf(b, "  %s\n", l.text)
	}
	return nil
}

// describe is one entry of a layer as a line: path, mode, owner, time, and by
// type what it holds.
func describe(h *tar.Header, r io.Reader) (string, error) {
	name := path.Join("/", h.Name)
	if h.Typeflag == tar.TypeDir && name != "/" {
		name += "/"
	}
	at := "now"
	if t := h.ModTime.UTC(); t.Equal(old) {
		at = "old"
	} else if t.Before(recent) {
		at = strings.TrimSuffix(t.Format("2006-01-02T15:04:05.999999999"), "T00:00:00")
	}
	text := fmt.Sprintf("%s %04o %d:%d %s", quoteIfOdd(name), h.Mode&0o7777, h.Uid, h.Gid, at)
	if h.Uname != "" || h.Gname != "" {
		text += fmt.Sprintf(" names=%s:%s", h.Uname, h.Gname)
	}
	switch h.Typeflag {
	case tar.TypeDir:
	case tar.TypeReg:
		content, err := io.ReadAll(r)
		if err != nil {
			return "", err
		}
		if len(content) <= 300 && utf8.Valid(content) {
			text += fmt.Sprintf(" %q", content)
		} else {
			text += fmt.Sprintf(" %d bytes %x", len(content), sha256.Sum256(content))[:24]
		}
	case tar.TypeSymlink:
		text += " -> " + quoteIfOdd(h.Linkname)
	case tar.TypeLink:
		text += " = " + quoteIfOdd(path.Join("/", h.Linkname))
	case tar.TypeChar:
		text += fmt.Sprintf(" char %d,%d", h.Devmajor, h.Devminor)
	case tar.TypeBlock:
		text += fmt.Sprintf(" block %d,%d", h.Devmajor, h.Devminor)
	case tar.TypeFifo:
		text += " fifo"
	default:
		text += fmt.Sprintf(" type %q", h.Typeflag)
	}
	for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			text += fmt.Sprintf(" %s=%x", name, h.PAXRecords[key])
		}
	}
	return text, nil
}

// quoteIfOdd quotes what would not be readable, or not be one line.
func quoteIfOdd(s string) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) || r == '"' || r == utf8.RuneError }
	if strings.ContainsFunc(s, odd) {
		return fmt.Sprintf("%q", s)
	}
	return s
}
