package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
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
	unpack       bool
}

func (b *build) copy(s *stage, c *command, in *instructions.CopyCommand, name string) error {
	for _, src := range in.SourcePaths {
		if kind := remote(src); kind != "" {
			return fmt.Errorf("COPY %s: source can't be a %s for COPY", src, kind)
		}
	}
	return b.transfer(s, c, name, transfer{
		SourcesAndDest: in.SourcesAndDest, name: "COPY", chown: in.Chown, chmod: in.Chmod,
		link: in.Link, parents: in.Parents, exclude: in.ExcludePatterns,
	})
}

func (b *build) add(s *stage, c *command, in *instructions.AddCommand, name string) error {
	for _, src := range in.SourcePaths {
		if remote(src) != "" {
			return fmt.Errorf("ADD %s: remote sources are not supported: fetch it in a RUN, or give it with --build-context", src)
		}
	}
	if in.Checksum != "" {
		return errors.New("checksum requires HTTP(S) or Git sources")
	}
	if in.KeepGitDir != nil {
		return errors.New("--keep-git-dir requires a Git source")
	}
	return b.transfer(s, c, name, transfer{
		SourcesAndDest: in.SourcesAndDest, name: "ADD", chown: in.Chown, chmod: in.Chmod, link: in.Link,
		exclude: in.ExcludePatterns, unpack: in.Unpack == nil || *in.Unpack,
	})
}

// remote tells what kind of remote source a text is, or nothing.
func remote(src string) string {
	switch {
	case strings.HasPrefix(src, "git@"), strings.HasPrefix(src, "git://"), strings.HasPrefix(src, "ssh://"):
		return "git ref"
	case strings.HasPrefix(src, "http://"), strings.HasPrefix(src, "https://"):
		address, _, _ := strings.Cut(src, "#")
		if strings.HasSuffix(address, ".git") {
			return "git ref"
		}
		return "URL"
	}
	return ""
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
	sels, using := b.selections(c, t, step.Location)
	root := s.root
	if t.link && t.chmod == "" { // as in BuildKit, where --chmod switches it off
		root = &solver.Vertex{Op: op.Scratch{}} // nothing below is looked at
	}
	dest := &solver.Vertex{
		Op:     op.Dest{Path: destination(s.image.Config.WorkingDir, t.DestPath), Owner: t.chown},
		Inputs: append([]*solver.Vertex{root}, sels...),
		Step:   hidden(step.Location),
	}
	s.root = &solver.Vertex{
		Op:     op.Copy{Chmod: t.chmod, Unpack: t.unpack},
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

// selections are the vertices that choose a transfer's files, and where each
// was chosen from.
func (b *build) selections(c *command, t transfer, at solver.Location) (sels, using []*solver.Vertex) {
	if len(t.SourcePaths) > 0 {
		sel := op.Select{Sources: t.SourcePaths, Parents: t.parents, Exclude: t.exclude}
		src := source{context: MainContext}
		if len(c.sources) > 0 {
			src = c.sources[0]
		} else {
			b.checkIgnored(c, t.verb(), t.SourcePaths)
		}
		if stack := b.stack(src, c.Location()); stack != nil {
			sels = append(sels, &solver.Vertex{Op: sel, Inputs: []*solver.Vertex{stack}, Step: hidden(at)})
			using = append(using, stack)
		} else {
			v := b.selectLocal(src.context, sel, at)
			sels = append(sels, v)
			using = append(using, v)
		}
	}
	if len(t.SourceContents) > 0 {
		var files []op.InlineFile
		for _, c := range t.SourceContents {
			files = append(files, op.InlineFile{Name: c.Path, Data: []byte(c.Data)})
		}
		v := inline(files, at)
		sels = append(sels, v)
		using = append(using, v)
	}
	return sels, using
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
	return text + " " + t.DestPath + " # buildkit"
}
