package dockerfile

import (
	"cmp"
	"context"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"kiln.build/solver"
)

// Outline is what a user can give to the build of a target.
type Outline struct {
	Name        string // of the target, as written; empty where it has none
	Description string

	// Each in the order of the file.
	Args    []OutlineArg
	Secrets []OutlineMount
	SSH     []OutlineMount
	Caches  []OutlineMount
}

// OutlineArg is an ARG that the target, or what it is made of, takes.
type OutlineArg struct {
	Name, Value, Description string
	Location                 solver.Location
}

// OutlineMount is a mount that takes something by its id.
type OutlineMount struct {
	ID       string
	Required bool
	Location solver.Location
}

// Target is a stage of a Dockerfile, in its words.
type Target struct {
	Name, Description, Base, Platform string
	Default                           bool // what is built where none is named
	Location                          solver.Location
}

// Targets lists the stages of a Dockerfile; nothing but its text is read.
func Targets(o Options) ([]Target, error) {
	o.SkipChecks = true
	b := newBuild(o)
	if _, err := b.parse(); err != nil {
		return nil, err
	}
	var all []Target
	for _, s := range b.stages {
		all = append(all, Target{
			Name: s.Name, Description: s.DocComment, Base: s.BaseName, Platform: s.Platform,
			Default: s.index == len(b.stages)-1, Location: b.place(s.Location),
		})
	}
	return all, nil
}

// OutlineOf tells what the build of o.Target, and of the stages that it is
// made of, can be given.
func OutlineOf(ctx context.Context, o Options) (*Outline, error) {
	o.SkipChecks = true
	b := newBuild(o)
	target, err := b.lowered(ctx, false)
	if err != nil {
		return nil, err
	}
	out := &Outline{Name: target.Name, Description: target.DocComment}
	l := outliner{b: b, out: out, seen: map[string]bool{}, globals: b.globalArgs()}
	for _, s := range slices.Backward(b.used) { // a name means the same argument in all; the target's is the one to show
		l.stage(s)
	}
	inOrder(out.Args, func(a OutlineArg) solver.Location { return a.Location })
	for _, list := range [][]OutlineMount{out.Secrets, out.SSH, out.Caches} {
		inOrder(list, func(m OutlineMount) solver.Location { return m.Location })
	}
	return out, nil
}

func inOrder[T any](list []T, at func(T) solver.Location) {
	slices.SortStableFunc(list, func(a, b T) int { return cmp.Compare(at(a).Start, at(b).Start) })
}

// globalArg is an ARG before the first FROM.
type globalArg struct {
	OutlineArg
	uses map[string]struct{} // other arguments in its default
}

// globalArgs are the arguments before the first FROM by name.
func (b *build) globalArgs() map[string]globalArg {
	all := map[string]globalArg{}
	for i := range b.global {
		for _, a := range b.global[i].Args {
			value, _ := b.globals.Get(a.Key)
			g := globalArg{OutlineArg: OutlineArg{Name: a.Key, Value: value, Description: a.DocComment, Location: b.place(b.global[i].Location())}}
			if _, given := b.BuildArgs[a.Key]; !given && a.Value != nil {
				g.uses = b.matched(*a.Value)
			}
			all[a.Key] = g
		}
	}
	return all
}

// matched are the global arguments that a word names.
func (b *build) matched(word string) map[string]struct{} {
	m := b.meter(word, b.globals)
	r, err := b.lex.ProcessWordWithMatches(word, m)
	err = m.check(err)
	if err != nil {
		return nil // said before
	}
	return r.Matched
}

// outliner gathers an outline, each thing at most once.
type outliner struct {
	b       *build
	out     *Outline
	seen    map[string]bool
	globals map[string]globalArg
}

// first reports whether a thing comes for the first time.
func (l *outliner) first(kind, name string) bool {
	key := kind + " " + name
	if l.seen[key] {
		return false
	}
	l.seen[key] = true
	return true
}

func (l *outliner) stage(s *stage) {
	for _, c := range slices.Backward(s.commands) {
		if in, ok := c.Command.(*instructions.ArgCommand); ok {
			l.args(s, c, in)
		}
	}
	for _, word := range []string{s.BaseName, s.Platform} {
		l.global(l.b.matched(word))
	}
	for _, c := range s.commands {
		if in, ok := c.Command.(*instructions.RunCommand); ok {
			l.mounts(c, in)
		}
	}
}

func (l *outliner) args(s *stage, c *command, in *instructions.ArgCommand) {
	for _, a := range in.Args {
		if _, given := l.b.BuildArgs[a.Key]; !given && a.Value == nil {
			if _, global := l.b.globals.Get(a.Key); global {
				// It stands before the first FROM, or is predefined.
				l.global(map[string]struct{}{a.Key: {}})
				continue
			}
		}
		if l.first("arg", a.Key) {
			value, _ := s.args.Get(a.Key)
			l.out.Args = append(l.out.Args, OutlineArg{Name: a.Key, Value: value, Description: a.DocComment, Location: l.b.place(c.Location())})
		}
	}
}

// global adds global arguments and those that their defaults use.
func (l *outliner) global(names map[string]struct{}) {
	for _, n := range sortedKeys(names) {
		g, ok := l.globals[n]
		if ok && l.first("arg", n) {
			l.out.Args = append(l.out.Args, g.OutlineArg)
			l.global(g.uses)
		}
	}
}

func (l *outliner) mounts(c *command, in *instructions.RunCommand) {
	at := l.b.place(c.Location())
	for _, m := range instructions.GetMounts(in) {
		switch m.Type {
		case instructions.MountTypeSecret:
			if id := secretID(m); l.first("secret", id) {
				l.out.Secrets = append(l.out.Secrets, OutlineMount{ID: id, Required: m.Required, Location: at})
			}
		case instructions.MountTypeSSH:
			if id := cmp.Or(m.CacheID, "default"); l.first("ssh", id) {
				l.out.SSH = append(l.out.SSH, OutlineMount{ID: id, Required: m.Required, Location: at})
			}
		case instructions.MountTypeCache:
			if id := cacheID(m); l.first("cache", id) {
				l.out.Caches = append(l.out.Caches, OutlineMount{ID: id, Location: at})
			}
		}
	}
}
