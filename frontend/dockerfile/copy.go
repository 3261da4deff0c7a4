package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/patternmatcher"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// transfer is what COPY and ADD have in common.
type transfer struct {
	instructions.SourcesAndDest
	name         string // "COPY" or "ADD"
	from         string
	chown, chmod string
	link         bool
	parents      bool
	exclude      []string
	unpack       bool
	text         string // the instruction as written
	cmd          instructions.Command
	trigger      bool
}

func (b *build) copy(s *stage, c *instructions.CopyCommand, trigger bool) error {
	return b.transfer(s, transfer{
		SourcesAndDest: c.SourcesAndDest, name: "COPY", from: c.From, chown: c.Chown, chmod: c.Chmod,
		link: c.Link, parents: c.Parents, exclude: c.ExcludePatterns, text: c.String(), cmd: c, trigger: trigger,
	})
}

func (b *build) add(s *stage, c *instructions.AddCommand, trigger bool) error {
	for _, src := range c.SourcePaths {
		if strings.Contains(src, "://") || strings.HasPrefix(src, "git@") {
			return fmt.Errorf("ADD %s: remote sources are not supported: fetch it in a RUN, or give it with --build-context", src)
		}
	}
	if c.Checksum != "" {
		return errors.New("checksum can't be specified for local sources")
	}
	if c.KeepGitDir != nil {
		return errors.New("--keep-git-dir is for git sources")
	}
	return b.transfer(s, transfer{
		SourcesAndDest: c.SourcesAndDest, name: "ADD", chown: c.Chown, chmod: c.Chmod, link: c.Link,
		exclude: c.ExcludePatterns, unpack: c.Unpack == nil || *c.Unpack, text: c.String(), cmd: c, trigger: trigger,
	})
}

// transfer lowers a COPY or ADD to selections, the facts about the
// destination, and the copy itself.
func (b *build) transfer(s *stage, t transfer) error {
	step := b.shown(s, t.text, t.cmd.Location(), t.trigger)
	hidden := &solver.Step{Location: step.Location}
	dst := t.DestPath
	slash := dst == "" || dst == "." || strings.HasSuffix(dst, "/") || strings.HasSuffix(dst, "/.")
	if !path.IsAbs(dst) {
		dst = path.Join("/", s.image.Config.WorkingDir, dst)
	} else {
		dst = path.Clean(dst)
	}
	if slash && dst != "/" {
		dst += "/"
	}
	if n := len(t.SourcePaths) + len(t.SourceContents); n > 1 && !slash {
		return fmt.Errorf("%s has %d sources, so its destination must be a directory: write %s/", t.name, n, t.DestPath)
	}
	if err := checkChmod(t.chmod); err != nil {
		return err
	}
	sels, using, err := b.selections(s, t, hidden)
	if err != nil {
		return err
	}
	root := s.root
	if t.link {
		root = &solver.Vertex{Op: op.Scratch{}} // nothing below is looked at
	}
	dest := &solver.Vertex{
		Op:     op.Dest{Path: dst, Owner: t.chown},
		Step:   hidden,
		Inputs: append([]*solver.Vertex{root}, sels...),
	}
	s.root = &solver.Vertex{
		Op:     op.Copy{Chmod: t.chmod, Unpack: t.unpack},
		Inputs: append([]*solver.Vertex{dest}, sels...),
		Using:  using,
		Below:  s.root,
		Fresh:  b.fresh(s),
		Step:   step,
	}
	s.history(t.history(), true)
	return nil
}

// selections are the vertices that choose a transfer's files, and where each
// was chosen from.
func (b *build) selections(s *stage, t transfer, hidden *solver.Step) (sels, using []*solver.Vertex, err error) {
	if len(t.SourcePaths) > 0 {
		sel := op.Select{Sources: t.SourcePaths, Parents: t.parents, Exclude: t.exclude}
		src := source{context: MainContext}
		if t.from != "" {
			src = s.refs[t.from]
		}
		if stack := b.stack(src); stack != nil {
			sels = append(sels, &solver.Vertex{Op: sel, Inputs: []*solver.Vertex{stack}, Step: hidden})
			using = append(using, stack)
		} else {
			if src.context == MainContext {
				b.checkIgnored(t)
			}
			v := b.selectLocal(src.context, sel)
			v.Step = hidden
			sels = append(sels, v)
			using = append(using, v)
		}
	}
	if len(t.SourceContents) > 0 {
		var files []op.InlineFile
		for _, c := range t.SourceContents {
			files = append(files, op.InlineFile{Name: c.Path, Data: []byte(c.Data)})
		}
		v := &solver.Vertex{Op: op.Inline{Files: files}, Volatile: true}
		sels = append(sels, v)
		using = append(using, v)
	}
	return sels, using, nil
}

// checkIgnored warns of sources that .dockerignore hides.
func (b *build) checkIgnored(t transfer) {
	if len(b.Ignore) == 0 {
		return
	}
	m, err := patternmatcher.New(b.Ignore)
	if err != nil {
		return // whoever selects the files reports it
	}
	for _, src := range t.SourcePaths {
		p := strings.TrimPrefix(path.Clean("/"+src), "/")
		if p == "" {
			continue
		}
		if hidden, err := m.MatchesOrParentMatches(p); err == nil && hidden {
			b.lint.Run(&linter.RuleCopyIgnoredFile, t.cmd.Location(), linter.RuleCopyIgnoredFile.Format(t.name, src))
		}
	}
}

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
	return text + " " + t.DestPath
}

var (
	octalMode    = regexp.MustCompile(`^[0-7]{1,5}$`)
	symbolicMode = regexp.MustCompile(`^[ugoa]*[-+=][rwxXstugo]*([-+=][rwxXstugo]*)*(,[ugoa]*[-+=][rwxXstugo]*([-+=][rwxXstugo]*)*)*$`)
)

func checkChmod(mode string) error {
	if mode == "" || octalMode.MatchString(mode) && len(strings.TrimLeft(mode, "0")) <= 4 || symbolicMode.MatchString(mode) {
		return nil
	}
	return fmt.Errorf("invalid chmod parameter: %q: it should be octal (0 to 07777) or symbolic (such as u+x,go=r)", mode)
}
