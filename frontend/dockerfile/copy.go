package dockerfile

import (
	"fmt"
	"path"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"kiln.build/frontend"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// transfer is what COPY and ADD have in common.
type transfer struct {
	instructions.SourcesAndDest
	name         string // "COPY" or "ADD"
	chown, chmod string
	link         bool
	parents      bool
	exclude      []string
	unpack       bool // archives among local files

	// Of ADD alone.
	checksum     string
	keepGitDir   *bool
	unpackRemote bool // archives at addresses
}

func (b *build) copy(s *stage, c *command, in *instructions.CopyCommand, name string) error {
	for _, src := range in.SourcePaths {
		git, err := frontend.ParseGit(src)
		switch {
		case err != nil:
			return err
		case git != nil:
			return fmt.Errorf("COPY %s: source can't be a git ref for COPY", src)
		case frontend.IsHTTP(src):
			return fmt.Errorf("COPY %s: source can't be a URL for COPY", src)
		}
	}
	return b.transfer(s, c, name, transfer{
		SourcesAndDest: in.SourcesAndDest, name: "COPY", chown: in.Chown, chmod: in.Chmod,
		link: in.Link, parents: in.Parents, exclude: in.ExcludePatterns,
	})
}

// transfer lowers a COPY or ADD to selections, the facts about the
// destination, and the copy itself.
func (b *build) transfer(s *stage, c *command, name string, t transfer) error {
	if err := checkChmod(t.chmod); err != nil {
		return err
	}
	if t.link && namesOwner(t.chown) {
		return fmt.Errorf("--chown=%s: user and group names can't be resolved when used with --link, use numeric uid[:gid] instead", t.chown)
	}
	step := b.step(b.stepName(s, c, name), c.Location())
	sels, using, packed, err := b.selections(s, c, t, step.Location)
	if err != nil {
		return err
	}
	unpack := len(packed) < len(sels) && t.name == "ADD"
	if !unpack {
		packed = nil
	}
	root := s.root
	if t.link && t.chmod == "" { // as in BuildKit, where --chmod switches it off
		root = &solver.Vertex{Op: op.Scratch{}} // nothing below is looked at
	}
	dest := &solver.Vertex{
		Op: op.Dest{
			Path: destination(s.image.Config.WorkingDir, t.DestPath), Owner: t.chown,
			Unpack: unpack, Packed: packed,
		},
		Inputs: append([]*solver.Vertex{root}, sels...),
		Step:   hidden(step.Location),
	}
	if unpack {
		dest.Using = using // to see what is an archive
	}
	s.root = &solver.Vertex{
		Op:     op.Copy{Chmod: t.chmod, Unpack: unpack, Packed: packed},
		Inputs: append([]*solver.Vertex{dest}, sels...),
		Using:  using,
		Below:  s.root,
		Fresh:  b.fresh(s),
		Step:   step,
	}
	b.history(s, t.history(), true)
	return nil
}

// destination is where a copy goes, with a slash at the end where that must
// be a directory.
func destination(workdir, dst string) string {
	full := path.Clean(dst)
	if !path.IsAbs(dst) {
		full = path.Join("/", workdir, dst)
	}
	slash := dst == "" || dst == "." || strings.HasSuffix(dst, "/") || strings.HasSuffix(dst, "/.")
	if slash && full != "/" {
		full += "/"
	}
	return full
}

// selections are the vertices that choose a transfer's files, where each was
// chosen from, and the positions of those whose archives stay packed.
func (b *build) selections(s *stage, c *command, t transfer, at solver.Location) (sels, using []*solver.Vertex, packed []int, err error) {
	add := func(sel, from *solver.Vertex, unpack bool) {
		if !unpack {
			packed = append(packed, len(sels))
		}
		sels, using = append(sels, sel), append(using, from)
	}
	for _, group := range t.groups() {
		if root, files, err := b.remote(s, c, t, group[0]); err != nil {
			return nil, nil, nil, err
		} else if root != nil {
			sel := op.Select{Sources: files, Exclude: t.exclude}
			add(&solver.Vertex{Op: sel, Inputs: []*solver.Vertex{root}, Step: hidden(at)}, root, t.unpackRemote)
			continue
		}
		sel := op.Select{Sources: group, Parents: t.parents, Exclude: t.exclude}
		src := source{context: MainContext}
		if len(c.sources) > 0 {
			src = c.sources[0]
		} else {
			b.checkIgnored(c, t.verb(), group)
		}
		if stack := b.stack(src, c.Location()); stack != nil {
			sel.From = src.String()
			add(&solver.Vertex{Op: sel, Inputs: []*solver.Vertex{stack}, Step: hidden(at)}, stack, t.unpack)
		} else {
			v := b.selectLocal(src.context, sel, at)
			add(v, v, t.unpack)
		}
	}
	if len(t.SourceContents) > 0 {
		var files []op.InlineFile
		for _, c := range t.SourceContents {
			files = append(files, op.InlineFile{Name: c.Path, Data: []byte(c.Data)})
		}
		v := inline(files, at)
		add(v, v, false)
	}
	return sels, using, packed, nil
}

func inline(files []op.InlineFile, at solver.Location) *solver.Vertex {
	return &solver.Vertex{Op: op.Inline{Files: files}, Volatile: true, Step: hidden(at)}
}

// verb is the instruction's name as lint messages have it.
func (t transfer) verb() string { return t.name[:1] + strings.ToLower(t.name[1:]) }

// history is the instruction in the form that images made by BuildKit have.
func (t transfer) history() string {
	text := t.name
	if t.parents {
		text += " --parents"
	}
	if t.chown != "" {
		text += " --chown=" + t.chown
	}
	if t.chmod != "" {
		text += " --chmod=" + t.chmod
	}
	for _, src := range t.SourcePaths {
		text += " " + src
	}
	for _, c := range t.SourceContents {
		text += " <<" + c.Path
	}
	return withoutPasswords(text) + " " + t.DestPath + " # buildkit"
}
