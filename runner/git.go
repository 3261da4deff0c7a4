package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// git makes a layer of the files of a commit. What the reference stands for
// is asked of the server each time, unless the op names a commit; a commit
// that was fetched before is not fetched again.
func (r *Runner) git(ctx context.Context, a *solver.Action, o op.Git) (solver.Result, error) {
	fail := func(err error) (solver.Result, error) {
		return solver.Result{}, fmt.Errorf("git repository %s: %w", op.Redacted(o.Remote), err)
	}
	g, err := r.newGit(a, o)
	if err != nil {
		return fail(err)
	}
	c, err := g.resolve(ctx)
	if err != nil {
		return fail(err)
	}
	act := gitAction(o, c)
	release, err := r.Store.Lock(ctx, act.Key)
	if err != nil {
		return solver.Result{}, err
	}
	defer release()
	if l, ok := r.knownLayer(ctx, act); ok {
		return stack([]solver.Layer{l}), nil
	}
	l, err := g.checkout(ctx, c)
	if err != nil {
		return fail(err)
	}
	res := stack([]solver.Layer{l})
	return res, r.Store.Save(ctx, act, res)
}

// commit is what a reference stands for.
type commit struct {
	ref    string // in full, such as "refs/heads/main", or a commit's hash
	object string // hash of what ref leads to: a commit or an annotated tag
	hash   string // of the commit
}

// gitAction is the action under which the checkout of a commit is kept.
// Where the history is kept, the name of its branch is seen in it.
func gitAction(o op.Git, c commit) *solver.Action {
	o.Commit, o.FetchByCommit = "", false
	if !o.KeepGitDir || o.Subdir != "" {
		c.ref, o.KeepGitDir = c.hash, false
	}
	o.Ref = c.ref
	description := "kiln checkout 1\n" + solver.Describe(o) + "hash " + c.hash + "\n"
	return &solver.Action{Key: digest.FromString(description), Description: description}
}

// gitRepo is a repository that a Git op names.
type gitRepo struct {
	runner *Runner
	action *solver.Action
	op     op.Git
	git    gitCommand
}

// resolve finds the commit.
func (g *gitRepo) resolve(ctx context.Context) (commit, error) {
	o := g.op
	switch {
	case strings.HasPrefix(o.Ref, "-"):
		return commit{}, fmt.Errorf("%q is no reference", o.Ref)
	case o.Commit != "" && strings.Trim(o.Commit, "0123456789abcdefABCDEF") != "":
		return commit{}, fmt.Errorf("checksum %q: must be the hash of a commit", o.Commit)
	}
	want := strings.ToLower(o.Commit)
	if op.IsCommit(o.Ref) {
		if !strings.HasPrefix(o.Ref, want) {
			return commit{}, fmt.Errorf("checksum mismatch: the commit is %s (expected: %s)", o.Ref, o.Commit)
		}
		return commit{ref: o.Ref, object: o.Ref, hash: o.Ref}, nil
	}
	if o.FetchByCommit {
		if !op.IsCommit(want) {
			return commit{}, errors.New("fetch-by-commit needs the hash of a commit in full")
		}
		ref := o.Ref
		switch {
		case ref == "":
			ref = want
		case !strings.HasPrefix(ref, "refs/"):
			ref = "refs/heads/" + ref
		}
		return commit{ref: ref, object: want, hash: want}, nil
	}
	c, err := g.asked(ctx)
	if err != nil {
		return commit{}, err
	}
	if !strings.HasPrefix(c.object, want) && !strings.HasPrefix(c.hash, want) {
		return commit{}, fmt.Errorf("checksum mismatch: %s is commit %s (expected: %s)", or(o.Ref, "HEAD"), c.hash, o.Commit)
	}
	return c, nil
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// asked is the answer to ask, of which there is one in a build: all steps see
// the same commit.
func (g *gitRepo) asked(ctx context.Context) (commit, error) {
	r, key := g.runner, g.op.Remote+"\n"+g.op.Ref
	r.mu.Lock()
	answer, ok := r.refs[key]
	if !ok {
		if r.refs == nil {
			r.refs = map[string]func() (commit, error){}
		}
		answer = sync.OnceValues(func() (commit, error) { return g.ask(ctx) })
		r.refs[key] = answer
	}
	r.mu.Unlock()
	return answer()
}

// ask has the server say what the reference stands for. A short name is a
// branch before it is a tag, as in git and in BuildKit.
func (g *gitRepo) ask(ctx context.Context) (commit, error) {
	short := or(g.op.Ref, "HEAD")
	out, err := g.git.run(ctx, "", "ls-remote", "--symref", "--", g.op.Remote, short, short+"^{}")
	if err != nil {
		return commit{}, err
	}
	found := map[string]string{}
	branch := ""
	for line := range strings.Lines(out) {
		hash, ref, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if target, is := strings.CutPrefix(hash, "ref: "); is && ref == "HEAD" {
			branch = target
			continue
		}
		if ok && op.IsCommit(hash) {
			found[ref] = hash
		}
	}
	for _, prefix := range []string{"refs/heads/", "", "refs/", "refs/tags/"} {
		ref := prefix + short
		if prefix == "" && short != "HEAD" && !strings.HasPrefix(short, "refs/") {
			continue
		}
		hash, ok := found[ref]
		if !ok {
			continue
		}
		c := commit{ref: ref, object: hash, hash: hash}
		if peeled, ok := found[ref+"^{}"]; ok {
			c.hash = peeled
		}
		if ref == "HEAD" && strings.HasPrefix(branch, "refs/heads/") {
			c.ref = branch
		}
		return c, nil
	}
	if g.op.Ref == "" {
		return commit{}, errors.New("it has no commits")
	}
	return commit{}, fmt.Errorf("it has no branch, tag or reference %q", g.op.Ref)
}

// checkout fetches a commit and makes a layer of its files.
func (g *gitRepo) checkout(ctx context.Context, c commit) (solver.Layer, error) {
	work, err := g.runner.Store.Scratch("git")
	if err != nil {
		return solver.Layer{}, err
	}
	defer os.RemoveAll(work)
	tree := filepath.Join(work, "tree")
	if err := g.fetch(ctx, tree, c); err != nil {
		return solver.Layer{}, err
	}
	if !g.op.NoSubmodules {
		if _, err := os.Lstat(filepath.Join(tree, ".gitmodules")); err == nil {
			if _, err := g.git.run(ctx, tree, "submodule", "update", "--init", "--recursive", "--depth=1"); err != nil {
				return solver.Layer{}, fmt.Errorf("submodules: %w", err)
			}
		}
	}
	var when *time.Time
	if g.op.CommitTime {
		text, err := g.git.run(ctx, tree, "log", "-1", "--format=%ct", c.hash)
		if err != nil {
			return solver.Layer{}, err
		}
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if err != nil {
			return solver.Layer{}, fmt.Errorf("time of commit %s: %w", c.hash, err)
		}
		t := time.Unix(n, 0)
		when = &t
	}
	return g.layer(ctx, tree, when)
}

// fetch makes a repository with the one commit, checked out.
func (g *gitRepo) fetch(ctx context.Context, dir string, c commit) error {
	// Without a template there are no hooks, and nothing of this machine's
	// git gets into the layer.
	format := "sha1"
	if len(c.hash) == 64 {
		format = "sha256"
	}
	args := []string{"init", "--quiet", "--template=", "--initial-branch=master"}
	if format != "sha1" {
		args = append(args, "--object-format="+format)
	}
	if _, err := g.git.run(ctx, "", append(args, "--", dir)...); err != nil {
		return err
	}
	if _, err := g.git.run(ctx, dir, "remote", "add", "origin", g.op.Remote); err != nil {
		return err
	}
	spec := c.ref
	if g.op.FetchByCommit {
		spec = c.hash
	}
	fetch := []string{"fetch", "--quiet", "--no-tags", "--update-head-ok", "--no-recurse-submodules", "--depth=1", "--", "origin"}
	to := ""
	if g.op.KeepGitDir && strings.HasPrefix(c.ref, "refs/") {
		to = ":" + c.ref
	}
	if _, err := g.git.run(ctx, dir, append(fetch, spec+to)...); err != nil {
		if err := g.fetchAll(ctx, dir, c, err); err != nil {
			return err
		}
	}
	if _, err := g.git.run(ctx, dir, "rev-parse", "--quiet", "--verify", c.hash+"^{commit}"); err != nil {
		return fmt.Errorf("%s moved while it was being fetched: run the build again", or(g.op.Ref, "HEAD"))
	}
	if _, err := g.git.run(ctx, dir, "checkout", "--quiet", "--force", "--detach", c.hash); err != nil {
		return err
	}
	return g.tidy(ctx, dir)
}

// fetchAll gets a commit from a server that gives no single one, or knows no
// shallow clones: all branches and tags.
func (g *gitRepo) fetchAll(ctx context.Context, dir string, c commit, why error) error {
	said := why.Error()
	switch {
	case strings.Contains(said, "shallow"), strings.Contains(said, "--depth"),
		strings.Contains(said, "not our ref"), strings.Contains(said, "unadvertised object"):
	default:
		return why
	}
	_, err := g.git.run(ctx, dir, "fetch", "--quiet", "--tags", "--update-head-ok", "--no-recurse-submodules", "--", "origin",
		"+refs/heads/*:refs/remotes/origin/*")
	if err != nil {
		return err
	}
	if _, err := g.git.run(ctx, dir, "rev-parse", "--quiet", "--verify", c.hash+"^{commit}"); err != nil {
		return fmt.Errorf("it has no commit %s: %w", c.hash, why)
	}
	return nil
}

// tidy takes away from .git what tells of this fetch alone.
func (g *gitRepo) tidy(ctx context.Context, dir string) error {
	if !g.op.KeepGitDir {
		return nil
	}
	if _, err := g.git.run(ctx, dir, "remote", "set-url", "origin", op.Redacted(g.op.Remote)); err != nil {
		return err
	}
	var err error
	for _, name := range []string{"FETCH_HEAD", "logs"} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, ".git", name)))
	}
	return err
}
