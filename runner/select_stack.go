package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/moby/buildkit/util/suggest"
	"github.com/moby/patternmatcher"
	"kiln.build/cache/tree"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// selectStack chooses files of a stage or image.
func (r *Runner) selectStack(in solver.Output, o op.Select) (*selection, error) {
	idx, err := r.Store.Index(in.Layers)
	if err != nil {
		return nil, err
	}
	t, err := pick(o, &stackPlace{index: idx, name: o.From})
	if err != nil {
		return nil, err
	}
	return &selection{tree: t}, nil
}

// stackPlace finds files in the listing of a stack, without touching a disk.
type stackPlace struct {
	index *tree.Index
	name  string // for messages, may be empty
}

func (p *stackPlace) glob(pattern string) ([]string, error) {
	return globber(pattern, func(dir string) ([]string, error) {
		resolved, e, _, err := p.index.Resolve(dir, true)
		if err != nil || e.Type != tree.Dir {
			return nil, nil
		}
		return p.index.ReadDir(resolved), nil
	})
}

func (p *stackPlace) find(name string, follow bool) (string, tree.Entry, error) {
	resolved, e, _, err := p.index.Resolve(name, follow)
	if err != nil {
		where := ""
		if p.name != "" {
			where = " in " + p.name
		}
		return "", e, notFound(name, err, func(dir string) []string { return p.index.ReadDir(dir) }, where)
	}
	return resolved, e, nil
}

func (p *stackPlace) walk(dir, under string, exclude []string) ([]tree.Entry, error) {
	excluded, err := excluder(exclude)
	if err != nil {
		return nil, err
	}
	var all []tree.Entry
	var skipped []string
	layers := map[string]int{}
	err = p.index.Walk(dir, func(e tree.Entry, layer int) error {
		rel := strings.TrimPrefix(strings.TrimPrefix(e.Path, dir), "/")
		if rel != "" {
			hide, err := excluded(path.Join(under, rel))
			if err != nil {
				return err
			}
			if hide {
				if e.Type == tree.Dir {
					skipped = append(skipped, rel)
				}
				return nil
			}
		}
		e.Source = e.Path
		// A hard link to what another layer has replaced is a file of its own.
		if e.Hardlink != "" {
			if at, ok := layers[e.Hardlink]; !ok || at != layer {
				e.Hardlink = ""
			}
		}
		layers[e.Path] = layer
		e.Path = rel
		all = append(all, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return withGaps(all, skipped, func(rel string) tree.Entry {
		e, _, _ := p.index.Lookup(path.Join(dir, rel))
		e.Path, e.Source, e.Mtime = rel, path.Join(dir, rel), time.Now().UnixNano()
		return e
	}), nil
}

// withGaps adds the excluded directories that still have something in them.
func withGaps(all []tree.Entry, skipped []string, entry func(rel string) tree.Entry) []tree.Entry {
	for _, dir := range skipped {
		for i := range all {
			if strings.HasPrefix(all[i].Path, dir+"/") {
				all = append(all, entry(dir))
				break
			}
		}
	}
	return all
}

// excluder matches --exclude patterns inside a directory.
func excluder(patterns []string) (func(rel string) (bool, error), error) {
	if len(patterns) == 0 {
		return func(string) (bool, error) { return false, nil }, nil
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fmt.Errorf("--exclude: %w", err)
	}
	return m.MatchesOrParentMatches, nil
}

// notFound says what was looked for, and what there is that looks like it.
// where names the place, "" for a stage.
func notFound(name string, err error, list func(dir string) []string, where string) error {
	var missing *tree.NotFoundError
	if !errors.As(err, &missing) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%q: %w", "/"+name, err)
	}
	hint := ""
	if near := nearName(name, list); near != "" {
		hint = fmt.Sprintf(" (did you mean %q?)", near)
	}
	return &missingError{fmt.Sprintf("%q: not found%s%s", "/"+name, where, hint)}
}

// missingError is the error of a source that is not there.
type missingError struct{ text string }

func (e *missingError) Error() string   { return e.text }
func (e *missingError) Is(t error) bool { return t == fs.ErrNotExist }

// nearName is a path like name that exists, or empty.
func nearName(name string, list func(dir string) []string) string {
	dir, base := path.Split(name)
	if near, ok := suggest.Search(base, list(strings.TrimSuffix(dir, "/")), true); ok {
		return "/" + dir + near
	}
	return ""
}
