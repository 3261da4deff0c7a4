// Package cache keeps what builds made: layers, results of actions, images.
//
// A [Store] is a directory that any number of processes use at once. It
// implements [solver.Cache]; layers are made through a [Draft] and are
// immutable from then on. What a process has looked up or made in its life
// stays there until it ends; everything else can be removed at any time by
// [Store.Prune], and a build that wants it makes it again.
//
// The directory, version 1:
//
//	version            "kiln store 1\n"
//	images/            an OCI image layout, see package cache/layout
//	layers/HEX/        a layer: fs/ in overlay form, tree its encoded listing; see packed.go
//	actions/HH/HEX     results of actions by key; see record
//	blobs/HH/HEX       small content by SHA-256, such as listings of selected files
//	locks/             files on which the locks between processes are
//	contexts/          stat caches of local contexts; see StatCache
//	caches/            the directories of cache mounts; see CacheMount
//	tmp/               scratch directories of processes; see process
//	unsynced/BOOT/     names of what a power loss could spoil; see unsynced
//	history/           what explains builds; see HistoryDir and package history
//	containers/        belongs to package runner/container
//	programs/          belongs to package runner/monitor/monitorbin
//
// HEX is the hexadecimal part of a SHA-256 digest, HH its first two digits.
// Every file appears by a rename once it is whole, so a process that is
// killed leaves nothing behind but its directory in tmp/.
//
// The package knows nothing of ops, sandboxes and registries.
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
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"kiln.build/cache/layout"
	"kiln.build/cache/tree"
	"kiln.build/solver"
)

const storeVersion = "kiln store 1"

// ErrReadOnly is returned by what would change a store opened read-only.
var ErrReadOnly = errors.New("the store is open for reading only")

// VersionError says that a store is of a version that this program does not
// know. Nothing in it was touched.
type VersionError struct {
	Root             string
	Found, Supported string
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("open store %s: its version is %q, this program supports %q; use another directory or the program that made it", e.Root, e.Found, e.Supported)
}

// Options say how to open a store.
type Options struct {
	// ReadOnly changes nothing in the directory and protects nothing from
	// being pruned meanwhile.
	ReadOnly bool

	// BootID overrides the kernel's, for tests of what a power loss does.
	BootID string
}

// A Store is an open store. Its methods may be called by any number of
// goroutines.
type Store struct {
	root   string
	ro     bool
	boot   string
	images *layout.Layout
	proc   *process
	gate   *gate
	seq    atomic.Uint64 // numbers names made by this process

	mu      sync.Mutex
	doubts  map[digest.Digest][]string // markers of layers of other boots; see unsynced.go
	trees   map[digest.Digest]*tree.Tree
	touched map[digest.Digest]bool // layers whose use was noted

	expected *expected // set once, before look-ups; nil without Expect
	works    []string  // work directories of ended drafts, for the next ones

	pins  pins
	bound *bound
}

var _ solver.Cache = (*Store)(nil)

// parts are the directories of a store. All but images hold files that are
// setuid or owned by others, as layers have them: no one else may come in.
var parts = []struct {
	name string
	mode fs.FileMode
}{
	{"history", 0o700}, {"layers", 0o700}, {"actions", 0o700}, {"blobs", 0o700}, {"locks", 0o700}, {"contexts", 0o700},
	{"caches", 0o700}, {"tmp", 0o700}, {"unsynced", 0o700}, {"containers", 0o700}, {"programs", 0o700}, {"images", 0o755},
}

// Open opens the store in a directory, which is made if it is not there or
// empty. The caller closes it.
func Open(root string, o Options) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{root: root, ro: o.ReadOnly, boot: o.BootID, trees: map[digest.Digest]*tree.Tree{}, touched: map[digest.Digest]bool{}}
	if err := s.open(); err != nil {
		var version *VersionError
		if errors.As(err, &version) {
			return nil, err
		}
		return nil, fmt.Errorf("open store %s: %w", root, err)
	}
	return s, nil
}

func (s *Store) open() error {
	err := s.checkVersion()
	if errors.Is(err, fs.ErrNotExist) && !s.ro {
		if err = s.create(); err == nil {
			err = s.checkVersion()
		}
	}
	if err != nil {
		return err
	}
	if s.ro {
		s.images, err = layout.OpenExisting(s.path("images"))
		return err
	}
	if err := closeToOthers(s.root); err != nil {
		return err
	}
	if s.boot == "" {
		if s.boot, err = bootID(); err != nil {
			return err
		}
	}
	if s.images, err = layout.Open(s.path("images")); err != nil {
		return err
	}
	if s.gate, err = openGate(s.path("locks")); err != nil {
		return err
	}
	if s.proc, err = newProcess(s.path("tmp")); err != nil {
		s.gate.close()
		return err
	}
	if err := s.recover(); err != nil {
		return errors.Join(err, s.Close())
	}
	return nil
}

// closeToOthers lets nobody but the owner into a directory, whoever made it and
// when: what is in a store, volumes too, may be setuid.
func closeToOthers(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil || fi.Mode().Perm()&0o077 == 0 {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// Is reports whether a folder is a store of the version that this program
// knows. It touches nothing.
func Is(root string) bool { return (&Store{root: root}).checkVersion() == nil }

func (s *Store) checkVersion() error {
	b, err := os.ReadFile(s.path("version"))
	if err != nil {
		return err
	}
	if found := strings.TrimSuffix(string(b), "\n"); found != storeVersion {
		return &VersionError{Root: s.root, Found: found, Supported: storeVersion}
	}
	return nil
}

// create makes an empty store. Several processes may do so at once: the
// version file, by which a store is known, comes last.
func (s *Store) create() error {
	if err := os.MkdirAll(filepath.Dir(s.root), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(s.root, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Volumes, networks and events are others', who may have been faster.
	known := map[string]bool{"version": true, "lost+found": true, "volumes": true, "networks": true, "events": true}
	for _, p := range parts {
		known[p.name] = true
	}
	present, err := os.ReadDir(s.root)
	if err != nil {
		return err
	}
	for _, e := range present {
		if !known[e.Name()] && !strings.HasPrefix(e.Name(), ".version-") {
			return fmt.Errorf("the directory holds %q and is not a store; choose an empty or a new one", e.Name())
		}
	}
	for _, p := range parts {
		if err := os.Mkdir(s.path(p.name), p.mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// The umask has no say in this, nor who made the directory before.
		if err := os.Chmod(s.path(p.name), p.mode); err != nil {
			return err
		}
	}
	keys, err := os.OpenFile(s.keysPath(), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = keys.Close()
	}
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(s.root, ".version-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once renamed
	_, err = tmp.WriteString(storeVersion + "\n")
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), s.path("version"))
}

// Close removes what this process has not finished, gives up its pins and
// waits for everything the store runs in the background. Nothing may use the
// store any more.
func (s *Store) Close() error {
	if s.ro {
		return nil
	}
	s.expected.close()
	err := errors.Join(s.bound.close(), s.pins.close(), s.proc.close(), s.gate.close())
	if err != nil {
		return fmt.Errorf("close store %s: %w", s.root, err)
	}
	return nil
}

// Root is the directory of the store.
func (s *Store) Root() string { return s.root }

// Images is the store of images and of all that is exported.
func (s *Store) Images() *layout.Layout { return s.images }

// Scratch makes an empty directory of mode 0700 for this process. Close
// removes it; if the process dies, a later one does.
func (s *Store) Scratch(prefix string) (string, error) {
	if s.ro {
		return "", ErrReadOnly
	}
	dir := s.temp(prefix)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("make scratch directory: %w", err)
	}
	return dir, nil
}

// temp returns an unused name in this process's directory.
func (s *Store) temp(prefix string) string {
	return filepath.Join(s.proc.dir, fmt.Sprintf("%s-%d", prefix, s.seq.Add(1)))
}

func (s *Store) path(names ...string) string {
	return filepath.Join(append([]string{s.root}, names...)...)
}

// hashed is the path of an action or a blob.
func (s *Store) hashed(kind string, d digest.Digest) string {
	hex := d.Encoded()
	return s.root + "/" + kind + "/" + hex[:2] + "/" + hex
}

// valid refuses digests that cannot name anything in the store.
func valid(d digest.Digest) error {
	if hex, ok := strings.CutPrefix(string(d), "sha256:"); ok && len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == "" {
		return nil // which Validate would find out by a regular expression
	}
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q: %w", d, digest.ErrDigestUnsupported)
	}
	return nil
}

// publish puts a whole file at a path, replacing what is there. A failure
// leaves nothing. With mark set, it is marked as unsynced.
func (s *Store) publish(path string, data []byte, mark string) (err error) {
	tmp := s.temp("file")
	if err := writeFile(tmp, data); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp)
		}
	}()
	if mark != "" {
		unmark, markErr := s.mark(mark)
		if markErr != nil {
			return markErr
		}
		defer func() {
			if err != nil {
				unmark()
			}
		}()
	}
	err = os.Rename(tmp, path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		err = os.Rename(tmp, path)
	}
	return err
}

// writeFile writes a new file; a failure leaves none.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(path)
	}
	return err
}

// cause is the error of a context that has ended, else nil.
func cause(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
