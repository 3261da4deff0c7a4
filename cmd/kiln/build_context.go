package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"kiln.build/cache"
	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
	"kiln.build/frontend"
	"kiln.build/frontend/dockerfile"
	"kiln.build/runner"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// buildInput is what a build reads before anything is solved.
type buildInput struct {
	dockerfile []byte // nil until it is fetched where it is remote
	name       string // of the Dockerfile, for messages
	path       string // of the Dockerfile in root, empty is the default

	// The main context: a directory, or what root makes; both are empty
	// where there are no files.
	dir    string
	root   solver.Op
	remote string // the address that the context was given as, redacted
	shown  bool   // root was performed, with its progress, for the Dockerfile

	ignore     []string
	ignoreFile string
	contexts   map[string]namedContext
}

// readInput finds out what the contexts and the Dockerfile are, and reads
// what is on this machine.
func (b *builder) readInput(where string) (*buildInput, error) {
	in := &buildInput{name: "Dockerfile"}
	var err error
	if in.contexts, err = parseContexts(b.flags.contexts); err != nil {
		return nil, err
	}
	file := b.flags.file
	switch fi, statErr := os.Stat(where); {
	case where == "-":
		return in, b.readStdin(in, file)
	case statErr == nil && fi.IsDir():
		in.dir = where
	default:
		remote, err := remoteContext(where)
		switch {
		case err != nil:
			return nil, err
		case remote != nil:
			in.root, in.remote = remote, op.Redacted(where)
		case statErr != nil:
			return nil, fmt.Errorf("build context: %w", statErr)
		default:
			return nil, fmt.Errorf("build context %s is not a folder", where)
		}
	}
	switch {
	case file == "-":
		in.name = "-"
		in.dockerfile, err = io.ReadAll(b.app.stdin)
	case frontend.IsHTTP(file):
		in.name = file // fetched later
	case in.root != nil && !(filepath.IsAbs(file) && exists(file)):
		in.path = file
		return in, nil
	default:
		in.dockerfile, in.name, err = findDockerfile(file, in.dir)
	}
	if err != nil {
		return nil, err
	}
	if in.dir != "" {
		beside := in.name
		if file == "-" || frontend.IsHTTP(file) {
			beside = ""
		}
		if in.ignore, in.ignoreFile, err = dockerfile.ReadIgnore(in.dir, beside); err != nil {
			return nil, err
		}
	}
	if dir, err := os.Getwd(); err == nil && filepath.IsAbs(in.name) {
		if rel, err := filepath.Rel(dir, in.name); err == nil && !strings.HasPrefix(rel, "..") {
			in.name = rel
		}
	}
	return in, nil
}

// readStdin takes an archive of the context, or a Dockerfile, from standard
// input.
func (b *builder) readStdin(in *buildInput, file string) error {
	if file == "-" {
		return errors.New("standard input cannot be both the build context and the Dockerfile")
	}
	at, sum, err := keepStream(b.store, b.app.stdin)
	if err != nil {
		return fmt.Errorf("read standard input: %w", err)
	}
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	is, err := archive.IsArchive(context.Background(), f)
	if err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	if !is {
		if file != "" {
			return errors.New("ambiguous Dockerfile: standard input is one, and --file names another")
		}
		in.name = "-"
		in.dockerfile, err = readText(at, "standard input")
		return err
	}
	in.root, in.path = op.Tar{Path: at, Digest: sum}, file
	if file != "" && exists(file) {
		in.path = ""
		in.dockerfile, in.name, err = findDockerfile(file, "")
	}
	return err
}

// readText reads a Dockerfile that could be anything.
func readText(file, from string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err == nil && bytes.IndexByte(text, 0) >= 0 {
		return nil, fmt.Errorf("%s is neither a Dockerfile nor an archive that kiln knows: tar, plain or with gzip, bzip2, xz or zstd", from)
	}
	return text, err
}

// keepStream keeps a stream in a file for as long as the build goes on.
func keepStream(store *cache.Store, r io.Reader) (file string, sum digest.Digest, err error) {
	dir, err := store.Scratch("input")
	if err != nil {
		return "", "", err
	}
	f, err := os.Create(filepath.Join(dir, "stream"))
	if err != nil {
		return "", "", err
	}
	d := digest.Canonical.Digester()
	_, err = io.Copy(io.MultiWriter(f, d.Hash()), r)
	return f.Name(), d.Digest(), errors.Join(err, f.Close())
}

// findDockerfile reads the file that --file names, relative to the current
// folder, or the one in the context.
func findDockerfile(file, dir string) (text []byte, name string, err error) {
	name = file
	if name == "" {
		name = filepath.Join(dir, "Dockerfile")
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			if lower := filepath.Join(dir, "dockerfile"); exists(lower) {
				name = lower
			}
		}
	}
	text, err = os.ReadFile(name)
	if err != nil {
		return nil, "", fmt.Errorf("read Dockerfile: %w", err)
	}
	return text, name, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// remoteContext is the op for an address, nil for what is none.
func remoteContext(where string) (solver.Op, error) {
	if rest, ok := strings.CutPrefix(where, "github.com/"); ok {
		// Docker's short form, which could be a path too.
		end := strings.IndexAny(rest, "#?")
		if end < 0 {
			end = len(rest)
		}
		where = "https://github.com/" + strings.TrimSuffix(strings.TrimSuffix(rest[:end], "/"), ".git") + ".git" + rest[end:]
	}
	git, err := frontend.ParseGit(where)
	switch {
	case err != nil:
		return nil, err
	case git != nil:
		return git.Git, nil
	case frontend.IsHTTP(where):
		return op.HTTP{URL: where, Name: frontend.HTTPName(where)}, nil
	case strings.Contains(where, "://"):
		return nil, fmt.Errorf("build context %s: must be a folder, an address of git, http or https, or -", op.Redacted(where))
	}
	return nil, nil
}

// fetchInput fetches the main context where it is remote, and the Dockerfile
// where it is in there or remote itself.
func (b *builder) fetchInput(ctx context.Context, args map[string]string) error {
	in := b.in
	proxy := dockerfile.FetchProxy(args)
	if in.dockerfile == nil && frontend.IsHTTP(in.name) {
		file, _, err := b.fetchFile(ctx, op.HTTP{URL: in.name, Name: frontend.HTTPName(in.name), ProxyEnv: proxy})
		if err != nil {
			return err
		}
		if in.dockerfile, err = os.ReadFile(file); err != nil {
			return err
		}
	}
	switch o := in.root.(type) {
	case nil:
		return nil
	case op.Git:
		o.ProxyEnv = proxy
		if keep, _ := strconv.ParseBool(args["BUILDKIT_CONTEXT_KEEP_GIT_DIR"]); keep {
			o.KeepGitDir = true
		}
		in.root = o
	case op.HTTP:
		o.ProxyEnv = proxy
		if done, err := b.fetchHTTP(ctx, o); err != nil || done {
			return err
		}
	}
	if in.dockerfile != nil {
		return nil
	}
	out, err := b.evaluate(ctx, in.root)
	if err != nil {
		return err
	}
	in.shown = true
	names := []string{in.path}
	if in.path == "" {
		names = []string{"Dockerfile", "dockerfile"}
	}
	for _, name := range names {
		in.dockerfile, err = b.runner.ReadFile(ctx, out.Layers, strings.TrimPrefix(path.Clean("/"+name), "/"))
		if err == nil {
			in.name = name
			return nil
		}
	}
	if missing := (*tree.NotFoundError)(nil); errors.As(err, &missing) {
		return fmt.Errorf("read Dockerfile: %q: not found in %s", names[0], in.contextName())
	}
	return fmt.Errorf("read Dockerfile: %q in %s: %w", names[0], in.contextName(), err)
}

// contextName is what messages call the main context.
func (in *buildInput) contextName() string {
	if in.remote != "" {
		return in.remote
	}
	return "the archive on standard input"
}

// fetchHTTP fetches a context: an archive, or a Dockerfile alone, with which
// there is nothing else to do.
func (b *builder) fetchHTTP(ctx context.Context, o op.HTTP) (done bool, err error) {
	in := b.in
	file, sum, err := b.fetchFile(ctx, o)
	if err != nil {
		return false, err
	}
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	is, err := archive.IsArchive(ctx, f)
	if err != nil {
		return false, fmt.Errorf("%s: %w", in.remote, err)
	}
	if is {
		in.root = op.Tar{Path: file, Digest: sum}
		return false, nil
	}
	in.root = nil
	if in.path != "" {
		return false, fmt.Errorf("build context %s is a Dockerfile and no archive: --file=%s cannot be in it", in.remote, in.path)
	}
	if in.dockerfile == nil {
		in.name = o.Name
		in.dockerfile, err = readText(file, in.remote)
	}
	return true, err
}

// fetchFile fetches the file at an address. It stays where it is for as long
// as the build goes on.
func (b *builder) fetchFile(ctx context.Context, o op.HTTP) (file string, sum digest.Digest, err error) {
	out, err := b.evaluate(ctx, o)
	if err != nil {
		return "", "", err
	}
	t, err := b.store.Tree(out.Layers[0].Digest)
	if err != nil {
		return "", "", err
	}
	e, ok := t.Lookup(o.Name)
	if !ok {
		return "", "", fmt.Errorf("%s was not fetched", op.Redacted(o.URL))
	}
	dir, err := b.store.LayerDir(ctx, out.Layers[0].Digest)
	return filepath.Join(dir, o.Name), e.Digest, err
}

// evaluate performs an op that stands alone.
func (b *builder) evaluate(ctx context.Context, o solver.Op) (solver.Output, error) {
	s := &solver.Solver{Cache: b.store, Runner: b.runner, Events: b.display}
	g, err := s.Evaluate(ctx, &solver.Vertex{Op: o, Volatile: op.Volatile(o), Step: &solver.Step{Name: dockerfile.FetchName(o)}})
	if err != nil {
		if failed := (*solver.Error)(nil); errors.As(err, &failed) {
			err = failed.Err
		}
		return solver.Output{}, err
	}
	return g.Targets[0].Output, nil
}

// directories are the contexts that are directories, for the runner.
func (in *buildInput) directories(store *cache.Store) (map[string]runner.Context, error) {
	m := map[string]runner.Context{}
	main := runner.Context{Dir: in.dir, IgnoreFile: in.ignoreFile}
	if in.dir == "" {
		dir, err := store.Scratch("empty-context")
		if err != nil {
			return nil, err
		}
		main.Dir = dir
	}
	m[dockerfile.MainContext] = main
	for name, c := range in.contexts {
		if c.dir != "" {
			m[name] = runner.Context{Dir: c.dir}
		}
	}
	return m, nil
}

// options gives the frontend the Dockerfile and the contexts.
func (in *buildInput) options(o *dockerfile.Options) error {
	o.Dockerfile, o.Name = in.dockerfile, path.Base(in.name)
	if in.name == "-" {
		o.Name = "Dockerfile"
	}
	o.Ignore, o.IgnoreFile = in.ignore, in.ignoreFile
	o.Contexts = map[string]frontend.Context{}
	for name, c := range in.contexts {
		fc := frontend.Context{Image: c.image, Root: c.root, Local: c.dir != ""}
		if c.dir != "" {
			var err error
			if fc.Ignore, fc.IgnoreFile, err = dockerfile.ReadIgnore(c.dir, ""); err != nil {
				return err
			}
		}
		o.Contexts[name] = fc
	}
	if in.root != nil {
		o.Contexts[dockerfile.MainContext] = frontend.Context{Root: in.root, Fetched: in.shown}
	}
	return nil
}

// namedContext is a --build-context; one of the fields is set.
type namedContext struct {
	image string // docker-image:// reference or oci-layout:// URL
	dir   string
	root  solver.Op // an archive, a git repository or a file at an address
}

// parseContexts parses --build-context NAME=VALUE.
func parseContexts(flags []string) (map[string]namedContext, error) {
	m := map[string]namedContext{}
	for _, s := range flags {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" || value == "" {
			return nil, fmt.Errorf("--build-context=%q: must be NAME=VALUE", s)
		}
		name = strings.ToLower(name)
		if name == dockerfile.MainContext {
			return nil, fmt.Errorf("--build-context=%q: this is the name of the main context", s)
		}
		c, err := parseContext(value)
		if err != nil {
			return nil, fmt.Errorf("--build-context=%q: %w", s, err)
		}
		m[name] = c
	}
	return m, nil
}

func parseContext(value string) (namedContext, error) {
	if ref, ok := strings.CutPrefix(value, "docker-image://"); ok {
		return namedContext{image: ref}, nil
	}
	if rest, ok := strings.CutPrefix(value, "oci-layout://"); ok {
		at, err := filepath.Abs(rest)
		return namedContext{image: "oci-layout://" + at}, err
	}
	at, err := filepath.Abs(value)
	if err != nil {
		return namedContext{}, err
	}
	switch fi, err := os.Stat(at); {
	case err == nil && fi.IsDir():
		return namedContext{dir: at}, nil
	case err == nil:
		return namedContext{root: op.Tar{Path: at}}, nil
	default:
		remote, remoteErr := remoteContext(value)
		if remoteErr != nil && strings.Contains(value, "://") {
			return namedContext{}, errors.New("must be a folder, a tar archive, an address of git, http or https, docker-image:// or oci-layout://")
		}
		if remote == nil {
			return namedContext{}, err
		}
		if o, ok := remote.(op.HTTP); ok {
			o.Name = "context" // as it is called in docker
			remote = o
		}
		return namedContext{root: remote}, remoteErr
	}
}
