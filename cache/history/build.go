// Package history remembers how builds went, to say of the next one why its
// steps run.
//
// In the store's directory history/, for each build (a context, a Dockerfile,
// a target and platforms):
//
//	HEX          the last one that succeeded
//	HEX.failed   the last one, if it failed
//	lists/HEX    listings of selected context files, as package tree encodes
//	             them, by the selection's digest
//
// Nothing in it is ever needed: what is lost or damaged makes explanations
// less telling. It is kept for some sixty builds.
package history

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"kiln.build/solver"
)

// build is the record of one build.
//
// Its file, version 2, is a head in lines, then the keys of its steps, 32
// bytes each, and then the JSON of the build, compressed with zstd:
//
//	kiln build history 2
//	sum HEX            changes with anything that a record is written for
//	dockerfile HEX     digest of the Dockerfile
//	names HEX8 …       of the named steps, 32 bits of a hash of each
//	lists HEX …        the listings that it refers to
//	keys N             how many keys follow
type build struct {
	BuildArgs []string  `json:"buildArgs,omitempty"` // names given on the command line
	Steps     []step    `json:"steps"`               // each after what it depends on
	Built     time.Time `json:"built"`

	names map[string]int // of steps without position, the first with each
}

// step is what is remembered of one evaluation.
type step struct {
	Name   string        `json:"name,omitempty"`
	Op     string        `json:"op"`
	Inputs []int         `json:"inputs,omitempty"` // positions among the steps
	Below  int           `json:"below,omitempty"`  // one more than the position, zero for none
	Key    digest.Digest `json:"key,omitempty"`
	Output digest.Digest `json:"output,omitempty"`
	Result digest.Digest `json:"result,omitempty"`
	Blob   digest.Digest `json:"blob,omitempty"` // listing of a selection from a stack
	State  solver.State  `json:"state"`

	// Took is how long the step ran, the last time it did, in microseconds.
	Took int64 `json:"took,omitempty"`
}

const head = "kiln build history 2\n"

// position is what numbers a step: "[build 2/5] RUN make".
var position = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^\[([^\]]*?) ?(\d+)/\d+\] `) })

// pinnedBy is the digest in the name of a base image.
var pinnedBy = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`@sha256:[0-9a-f]{64}$`) })

// plain is a step's name without what changes when another step is added to
// its stage, or its base moves.
func plain(name string) string {
	name = position().ReplaceAllString(name, "[$1] ")
	return pinnedBy().ReplaceAllString(name, "")
}

// stageOf is the part of a name that all steps of a stage share.
func stageOf(name string) string {
	if m := position().FindStringSubmatch(name); m != nil {
		return m[1]
	}
	return ""
}

// shortHash is enough of a name to estimate how alike two builds are.
func shortHash(name string) string { return solver.Digest(plain(name)).Encoded()[:8] }

// summary changes with everything that makes a record worth writing.
func summary(dockerfile digest.Digest, b *build) string {
	h := digest.Canonical.Digester()
	w := h.Hash()
	fmt.Fprintln(w, dockerfile, b.BuildArgs, len(b.Steps))
	for i := range b.Steps {
		s := &b.Steps[i]
		w.Write([]byte(s.Key))
		w.Write([]byte(s.Output))
		w.Write([]byte(s.Name))
	}
	return h.Digest().Encoded()
}

// header is the part of a file before the compressed record.
type header struct {
	sum, dockerfile string
	names, lists    []string
	keys            []byte
}

// keyLen is the length of a key in the head of a file.
const keyLen = 32

func (h *header) append(b []byte) []byte {
	b = fmt.Appendf(b, "%ssum %s\ndockerfile %s\nnames %s\nlists %s\nkeys %d\n", head, h.sum, h.dockerfile,
		strings.Join(h.names, " "), strings.Join(h.lists, " "), len(h.keys)/keyLen)
	return append(b, h.keys...)
}

// addKey adds the key of a step that was looked up.
func (h *header) addKey(key digest.Digest) {
	if key.Validate() == nil && key.Algorithm() == digest.SHA256 {
		h.keys, _ = hex.AppendDecode(h.keys, []byte(key.Encoded()))
	}
}

var errFormat = errors.New("not a build history of this version")

// readFile splits a file into its head and the rest.
func readFile(path string) (*header, []byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	rest, ok := bytes.CutPrefix(b, []byte(head))
	if !ok {
		return nil, nil, errFormat
	}
	h := &header{}
	for _, label := range []string{"sum", "dockerfile", "names", "lists", "keys"} {
		line, more, ok := bytes.Cut(rest, []byte("\n"))
		value, labelled := bytes.CutPrefix(line, []byte(label+" "))
		if !ok || !labelled {
			return nil, nil, errFormat
		}
		switch rest = more; label {
		case "sum":
			h.sum = string(value)
		case "dockerfile":
			h.dockerfile = string(value)
		case "names":
			h.names = strings.Fields(string(value))
		case "lists":
			h.lists = strings.Fields(string(value))
		case "keys":
			n, err := strconv.Atoi(string(value))
			if err != nil || n < 0 || n > len(rest)/keyLen {
				return nil, nil, errFormat
			}
			h.keys, rest = rest[:n*keyLen], rest[n*keyLen:]
		}
	}
	return h, rest, nil
}

// recordMax bounds what a damaged record may unpack to, in bytes.
const recordMax = 256 << 20

func decode(packed []byte) (*build, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(recordMax))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	text, err := d.DecodeAll(packed, nil)
	if err != nil {
		return nil, err
	}
	b := &build{}
	if err := json.Unmarshal(text, b); err != nil {
		return nil, err
	}
	for i := range b.Steps {
		s := &b.Steps[i]
		if s.Below > i || slices.ContainsFunc(s.Inputs, func(in int) bool { return in < 0 || in >= i }) {
			return nil, errFormat
		}
	}
	b.index()
	return b, nil
}

func (b *build) index() {
	b.names = map[string]int{}
	for i := range b.Steps {
		n := plain(b.Steps[i].Name)
		if _, ok := b.names[n]; n != "" && !ok {
			b.names[n] = i
		}
	}
}

func encode(h *header, b *build) ([]byte, error) {
	text, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return nil, err
	}
	defer e.Close()
	return e.EncodeAll(text, h.append(nil)), nil
}

// load reads a record; nil if there is none that can be read.
func load(path string) *build {
	_, packed, err := readFile(path)
	if err != nil {
		return nil
	}
	b, err := decode(packed)
	if err != nil {
		return nil
	}
	return b
}

// alike finds the record, of whatever build, that has most to do with a new
// one: the newest of the same Dockerfile, else the one with the most steps of
// the same name, if these are half of all.
func alike(dir, dockerfile string, names []string) *build {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	type candidate struct {
		path string
		same bool
		hits int
		at   time.Time
	}
	var best candidate
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() || e.Name() == "evictions" {
			continue
		}
		c := candidate{path: filepath.Join(dir, e.Name()), at: fi.ModTime()}
		h, _, err := readFile(c.path)
		if err != nil {
			continue
		}
		c.same = h.dockerfile == dockerfile
		for _, n := range names {
			if slices.Contains(h.names, n) {
				c.hits++
			}
		}
		if !c.same && 2*c.hits < len(names) {
			continue
		}
		better := c.hits > best.hits || c.hits == best.hits && c.at.After(best.at)
		if best.path == "" || c.same && !best.same || c.same == best.same && better {
			best = c
		}
	}
	if best.path == "" {
		return nil
	}
	return load(best.path)
}

// keep is how many records stay.
const keep = 64

// trim removes the oldest records, and listings that none refers to.
func trim(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type file struct {
		path string
		at   time.Time
	}
	var files []file
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() && e.Name() != "evictions" {
			files = append(files, file{filepath.Join(dir, e.Name()), fi.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return b.at.Compare(a.at) })
	for _, f := range files[min(keep, len(files)):] {
		_ = os.Remove(f.path)
	}
	used := map[string]bool{}
	for _, f := range files[:min(keep, len(files))] {
		h, _, err := readFile(f.path)
		if err != nil {
			_ = os.Remove(f.path)
			continue
		}
		for _, l := range h.lists {
			used[l] = true
		}
	}
	lists, err := os.ReadDir(filepath.Join(dir, "lists"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, l := range lists {
		fi, err := l.Info()
		// Another build may have written one and not yet its record.
		if err == nil && !used[l.Name()] && time.Since(fi.ModTime()) > time.Minute {
			_ = os.Remove(filepath.Join(dir, "lists", l.Name()))
		}
	}
	return nil
}
