package frontend

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"kiln.build/solver/op"
)

// IsHTTP reports whether a text is an http or https address. It may be that
// of a git repository: see [ParseGit].
func IsHTTP(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// HTTPName is the name of the file at an address: the last element of its
// path, whatever the query is.
func HTTPName(address string) string {
	if u, err := url.Parse(address); err == nil {
		if base := path.Base(u.Path); base != "." && base != "/" && base != ".." {
			return strings.ReplaceAll(base, "\x00", "_")
		}
	}
	return "__unnamed__"
}

// GitSource is a git repository as the text of an address names it.
type GitSource struct {
	op.Git
	KeepSet bool // the address says whether to keep .git
}

// String is the address with the reference and the subdirectory behind it.
func (g *GitSource) String() string {
	s := g.Remote
	if g.Ref != "" || g.Subdir != "" {
		s += "#" + g.Ref
	}
	if g.Subdir != "" {
		s += ":" + g.Subdir
	}
	return s
}

// scpStyle is "git@host:path", with an optional query and fragment.
var scpStyle = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([a-zA-Z0-9-_]+@[a-zA-Z0-9-.]+:.*?)(?:\?(.*?))?(?:#(.*))?$`)
})

// ParseGit parses the address of a git repository, in the forms that
// BuildKit takes: git@host:path, ssh:// and git://, and http:// and https://
// where the path ends in ".git". The reference and the subdirectory are in
// the fragment, #ref:subdir, or in a query: ref, tag, branch, commit (or
// checksum), subdir, keep-git-dir, submodules, mtime and fetch-by-commit.
//
// It returns nil for what is no such address, and an error for one that
// something is wrong with.
func ParseGit(s string) (*GitSource, error) {
	g := &GitSource{}
	var rawQuery, fragment string
	scheme, _, isURL := strings.Cut(s, "://")
	switch {
	case isURL && (scheme == "http" || scheme == "https" || scheme == "ssh" || scheme == "git"):
		u, err := url.Parse(s)
		if err != nil {
			if IsHTTP(s) {
				return nil, nil // said when it is fetched
			}
			return nil, err
		}
		if IsHTTP(s) && !strings.HasSuffix(u.Path, ".git") {
			return nil, nil
		}
		rawQuery, fragment = u.RawQuery, u.Fragment
		u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = "", false, "", ""
		g.Remote = u.String()
	case isURL:
		return nil, nil
	default:
		m := scpStyle().FindStringSubmatch(s)
		if m == nil {
			return nil, nil
		}
		g.Remote, rawQuery, fragment = m[1], m[2], m[3]
	}
	ref, sub, _ := strings.Cut(fragment, ":")
	g.Ref, g.Subdir = ref, relative(sub)
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return nil, fmt.Errorf("git repository %s: %w", s, err)
	}
	if err := g.query(query); err != nil {
		return nil, fmt.Errorf("git repository %s: %w", s, err)
	}
	if strings.HasPrefix(g.Ref, "-") {
		return nil, fmt.Errorf("git repository %s: %q is no reference", s, g.Ref)
	}
	return g, nil
}

func relative(p string) string { return strings.TrimPrefix(path.Join("/", p), "/") }

// query takes the options in an address's query.
func (g *GitSource) query(query url.Values) error {
	var tag, branch string
	for _, k := range slices.Sorted(maps.Keys(query)) {
		if len(query[k]) > 1 {
			return fmt.Errorf("query %q has several values", k)
		}
		v := query[k][0]
		flag := k == "submodules" || k == "keep-git-dir" || k == "fetch-by-commit"
		if v == "" && !flag {
			return fmt.Errorf("query %q has no value", k)
		}
		yes := true
		if flag && v != "" {
			var err error
			if yes, err = strconv.ParseBool(v); err != nil {
				return fmt.Errorf("invalid %s value: %q", k, v)
			}
		}
		switch k {
		case "ref":
			if err := g.setRef(v); err != nil {
				return err
			}
		case "tag":
			tag = "refs/tags/" + strings.TrimPrefix(v, "refs/tags/")
		case "branch":
			branch = "refs/heads/" + strings.TrimPrefix(v, "refs/heads/")
		case "subdir":
			if sub := relative(v); g.Subdir != "" && g.Subdir != sub {
				return fmt.Errorf("subdir conflicts: %q vs %q", g.Subdir, sub)
			} else {
				g.Subdir = sub
			}
		case "checksum", "commit":
			if g.Commit != "" && g.Commit != v {
				return fmt.Errorf("commit conflicts: %q vs %q", g.Commit, v)
			}
			g.Commit = v
		case "keep-git-dir":
			g.KeepGitDir, g.KeepSet = yes, true
		case "submodules":
			g.NoSubmodules = !yes
		case "fetch-by-commit":
			g.FetchByCommit = yes
		case "mtime":
			if v != "checkout" && v != "commit" {
				return fmt.Errorf("invalid mtime value: %q: must be checkout or commit", v)
			}
			g.CommitTime = v == "commit"
		default:
			return fmt.Errorf("unexpected query %q: must be ref, tag, branch, commit, subdir, keep-git-dir, submodules, mtime or fetch-by-commit", k)
		}
	}
	if tag != "" && branch != "" {
		return errors.New("branch conflicts with tag")
	}
	for _, ref := range []string{tag, branch} {
		if ref == "" {
			continue
		}
		if err := g.setRef(ref); err != nil {
			return err
		}
	}
	return nil
}

func (g *GitSource) setRef(ref string) error {
	if g.Ref != "" && g.Ref != ref {
		return fmt.Errorf("ref conflicts: %q vs %q", g.Ref, ref)
	}
	g.Ref = ref
	return nil
}
