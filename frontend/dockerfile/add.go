package dockerfile

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"
	"kiln.build/frontend"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// add lowers an ADD: a COPY that also takes addresses and git repositories,
// and extracts local archives.
func (b *build) add(s *stage, c *command, in *instructions.AddCommand, name string) error {
	remote, git := 0, 0
	for _, src := range in.SourcePaths {
		g, err := frontend.ParseGit(src)
		switch {
		case err != nil:
			return err
		case g != nil:
			remote++
			git++
		case frontend.IsHTTP(src):
			remote++
		}
	}
	switch {
	case in.Checksum != "" && len(in.SourcePaths) != 1:
		return errors.New("checksum can't be specified for multiple sources")
	case in.Checksum != "" && remote == 0:
		return errors.New("checksum requires HTTP(S) or Git sources")
	case in.KeepGitDir != nil && *in.KeepGitDir && git == 0:
		return errors.New("--keep-git-dir requires a Git source")
	}
	return b.transfer(s, c, withoutPasswords(name), transfer{
		SourcesAndDest: in.SourcesAndDest, name: "ADD", chown: in.Chown, chmod: in.Chmod, link: in.Link,
		exclude: in.ExcludePatterns, checksum: in.Checksum, keepGitDir: in.KeepGitDir,
		unpack: in.Unpack == nil || *in.Unpack, unpackRemote: in.Unpack != nil && *in.Unpack,
	})
}

// groups are the sources in order: each remote one alone, and the local ones
// between them together.
func (t transfer) groups() [][]string {
	var groups [][]string
	local := false
	for _, src := range t.SourcePaths {
		git, err := frontend.ParseGit(src)
		far := t.name == "ADD" && (git != nil || err != nil || frontend.IsHTTP(src))
		if far || !local {
			groups = append(groups, []string{src})
		} else {
			last := len(groups) - 1
			groups[last] = append(groups[last], src)
		}
		local = !far
	}
	return groups
}

// remote is the root that a remote source of an ADD makes, and the files in
// it that are meant; nil for a local source.
func (b *build) remote(s *stage, c *command, t transfer, src string) (root *solver.Vertex, files []string, err error) {
	if t.name != "ADD" {
		return nil, nil, nil
	}
	git, err := frontend.ParseGit(src)
	switch {
	case err != nil:
		return nil, nil, err
	case git != nil:
		root, err := b.gitRoot(s, c, t, git)
		return root, []string{"/"}, err
	case frontend.IsHTTP(src):
		root, err := b.httpRoot(s, c, t.checksum, src)
		return root, []string{literal(frontend.HTTPName(src))}, err
	}
	return nil, nil, nil
}

// literal is a pattern that matches a name alone.
func literal(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}

// passwords matches those in addresses.
var passwords = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(://[^/@:\s"]*:)[^/@\s"]+@`) })

// withoutPasswords is the text of an ADD as it may be shown and kept: what is
// in an image's history everyone can read who has the image.
func withoutPasswords(text string) string { return passwords().ReplaceAllString(text, "${1}xxxxx@") }

func (b *build) httpRoot(s *stage, c *command, checksum, src string) (*solver.Vertex, error) {
	o := op.HTTP{URL: src, Name: frontend.HTTPName(src), ProxyEnv: FetchProxy(b.BuildArgs)}
	if checksum != "" {
		d, err := digest.Parse(checksum)
		if err != nil {
			return nil, fmt.Errorf("--checksum=%s: %w: must be the algorithm, a colon and the hash, as in sha256:…", checksum, err)
		}
		o.Checksum = d
	}
	return b.fetch(s, c, o), nil
}

func (b *build) gitRoot(s *stage, c *command, t transfer, git *frontend.GitSource) (*solver.Vertex, error) {
	o := git.Git
	if t.keepGitDir != nil {
		if git.KeepSet && o.KeepGitDir != *t.keepGitDir {
			return nil, errors.New("inconsistent keep-git-dir configuration")
		}
		o.KeepGitDir = *t.keepGitDir
	}
	if t.checksum != "" {
		if o.Commit != "" && o.Commit != t.checksum {
			return nil, fmt.Errorf("checksum mismatch %q != %q", t.checksum, o.Commit)
		}
		o.Commit = t.checksum
	}
	o.ProxyEnv = FetchProxy(b.BuildArgs)
	return b.fetch(s, c, o), nil
}

// fetch is the vertex that fetches what an instruction names.
func (b *build) fetch(s *stage, c *command, o solver.Op) *solver.Vertex {
	return &solver.Vertex{Op: o, Volatile: op.Volatile(o), Fresh: b.fresh(s), Step: b.step(FetchName(o), c.Location())}
}

// FetchProxy is the environment of the proxies among build arguments, for
// what the builder itself fetches.
func FetchProxy(args map[string]string) []string {
	var env []string
	for _, k := range sortedKeys(args) {
		if proxyArgs[strings.ToUpper(k)] {
			env = append(env, k+"="+args[k])
		}
	}
	return env
}
