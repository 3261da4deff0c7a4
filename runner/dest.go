package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"kiln.build/cache/tree"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// dest finds the facts about a destination in the listing of a root.
func (r *Runner) dest(ctx context.Context, a *solver.Action, o op.Dest) (solver.Result, error) {
	root := a.Inputs[0]
	idx, err := r.Store.Index(root.Layers)
	if err != nil {
		return solver.Result{}, err
	}
	var sels []*tree.Tree
	archives := false
	for i, in := range a.Inputs[1:] {
		var using *solver.Output
		unpack := o.Unpack && !slices.Contains(o.Packed, i)
		if unpack {
			using = &a.Using[i]
		}
		s, err := r.selected(ctx, in, using)
		if err != nil {
			return solver.Result{}, err
		}
		if unpack && !archives {
			if archives, err = hasArchive(ctx, s); err != nil {
				return solver.Result{}, err
			}
		}
		sels = append(sels, s.tree)
	}
	facts, err := destination(idx, o, sels, archives)
	if err != nil {
		return solver.Result{}, err
	}
	if archives {
		facts.Root = root.Digest
	}
	if o.Owner != "" {
		acc, err := r.accounts(ctx, root.Layers, idx)
		if err != nil {
			return solver.Result{}, err
		}
		if o.Mkdir {
			if _, err := acc.lookup(o.Owner); err != nil {
				return solver.Result{}, err
			}
		}
		uid, gid, err := acc.owner(o.Owner)
		if err != nil {
			return solver.Result{}, fmt.Errorf("--chown=%s: %w", o.Owner, err)
		}
		facts.UID, facts.GID = &uid, &gid
	}
	return factsResult(facts)
}

// factsResult is the result that carries facts. Times are handed on, and are
// left out of the digest.
func factsResult(f *op.Facts) (solver.Result, error) {
	data, err := json.Marshal(f)
	if err != nil {
		return solver.Result{}, err
	}
	timeless := *f
	timeless.Existing = nil
	for _, d := range f.Existing {
		d.Mtime = 0
		timeless.Existing = append(timeless.Existing, d)
	}
	keyed, err := json.Marshal(timeless)
	if err != nil {
		return solver.Result{}, err
	}
	return solver.Result{Digest: digest.FromBytes(keyed), Data: data}, nil
}

// destination looks a path up and checks that the selections fit there.
func destination(idx *tree.Index, o op.Dest, sels []*tree.Tree, archives bool) (*op.Facts, error) {
	slash := strings.HasSuffix(o.Path, "/")
	resolved, e, _, err := idx.Resolve(strings.Trim(o.Path, "/"), true)
	var missing *tree.NotFoundError
	switch {
	case errors.As(err, &missing):
	case errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("%s: a part of the path is not a directory", o.Path)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", o.Path, err)
	}
	exists := err == nil
	isDir := exists && e.Type == tree.Dir
	top, anyDir, any := 0, false, false
	for _, t := range sels {
		for i := range t.Entries {
			any = true
			if p := t.Entries[i].Path; p == "" || t.Entries[i].Type == tree.Dir {
				anyDir = true
			} else if !strings.Contains(p, "/") {
				top++
			}
		}
	}
	f := &op.Facts{Path: "/" + resolved, Dir: isDir || slash || anyDir || o.Mkdir}
	switch {
	case archives && exists && !isDir:
		return nil, fmt.Errorf("cannot unpack an archive into %s, which is a %s and no directory", strings.TrimSuffix(o.Path, "/"), e.Type)
	case f.Dir && exists && !isDir && o.Mkdir:
		return nil, fmt.Errorf("%s is a %s, not a directory", o.Path, e.Type)
	case f.Dir && exists && !isDir && any:
		return nil, fmt.Errorf("cannot copy to non-directory: %s is a %s", o.Path, e.Type)
	case !f.Dir && top > 1:
		return nil, fmt.Errorf("%d files are copied to %s, which is no directory: write %s/", top, o.Path, o.Path)
	}
	f.Dir = f.Dir || archives
	f.Existing = existing(idx, resolved)
	if isDir {
		for _, t := range sels {
			if err := fits(idx, resolved, t); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

// existing lists the directories from the root to a path, as far as they are.
func existing(idx *tree.Index, resolved string) []op.Dir {
	var dirs []op.Dir
	at, rest := "", resolved
	for {
		e, _, ok := idx.Lookup(at)
		if at != "" && (!ok || e.Type != tree.Dir) {
			return dirs
		}
		if at == "" && !ok {
			e.Mode = 0o755
		}
		dirs = append(dirs, op.Dir{Path: "/" + at, Mode: e.Mode, UID: e.UID, GID: e.GID, Xattrs: e.Xattrs, Mtime: e.Mtime})
		if rest == "" {
			return dirs
		}
		var comp string
		comp, rest, _ = strings.Cut(rest, "/")
		at = path.Join(at, comp)
	}
}

// fits checks that no directory is to replace something else, or the reverse.
func fits(idx *tree.Index, dst string, t *tree.Tree) error {
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Path == "" {
			continue
		}
		there, _, ok := idx.Lookup(path.Join(dst, e.Path))
		switch {
		case !ok:
		case e.Type == tree.Dir && there.Type != tree.Dir:
			return fmt.Errorf("cannot copy to non-directory: /%s is a %s", path.Join(dst, e.Path), there.Type)
		case e.Type != tree.Dir && there.Type == tree.Dir:
			return fmt.Errorf("cannot replace to directory /%s with file", path.Join(dst, e.Path))
		}
	}
	return nil
}
