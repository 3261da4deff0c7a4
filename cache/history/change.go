package history

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// line is a line of an op's description.
type line struct {
	label  string
	values []string
}

func parseLine(s string) line {
	i := strings.Index(s, ` "`)
	if i < 0 {
		return line{label: s}
	}
	l := line{label: s[:i]}
	for rest := s[i+1:]; rest != ""; rest = strings.TrimPrefix(rest, " ") {
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			break
		}
		v, _ := strconv.Unquote(quoted)
		l.values = append(l.values, v)
		rest = rest[len(quoted):]
	}
	return l
}

// opKind is the word after "op".
func opKind(op string) string {
	first, _, _ := strings.Cut(op, "\n")
	if l := parseLine(first); l.label == "op" && len(l.values) == 1 {
		return l.values[0]
	}
	return ""
}

// fields are the lines of a description by label, "env" by variable too.
func fields(op string) map[string][]string {
	m := map[string][]string{}
	for s := range strings.Lines(op) {
		l := parseLine(strings.TrimSuffix(s, "\n"))
		if l.label == "env" && len(l.values) == 1 {
			name, value, _ := strings.Cut(l.values[0], "=")
			m["env "+name] = []string{value}
			continue
		}
		if strings.HasPrefix(l.label, "mount") {
			m["mount"] = append(m["mount"], strings.TrimSuffix(s, "\n"))
			continue
		}
		m[l.label] = append(m[l.label], strings.Join(l.values, " "))
	}
	return m
}

// order is in which order differences are told: what people change most and
// what causes the most first.
var order = []string{"arg", "layer", "source", "env", "mount"}

// words are what people call the labels of descriptions.
var words = map[string]string{
	"arg": "command", "cwd": "WORKDIR", "user": "USER", "owner": "--chown", "chmod": "--chmod",
	"source": "sources", "ignore": ".dockerignore", "exclude": "--exclude", "parents": "--parents",
	"path": "destination", "network": "--network", "security": "--security", "mount": "mounts",
	"shm size": "--shm-size", "ulimit": "--ulimit", "host": "--add-host", "git modes": "--context-modes",
}

// lineChanges tells the differences between two descriptions of ops.
func lineChanges(now, then string, buildArgs []string) []string {
	if now == then {
		return nil
	}
	if opKind(now) != opKind(then) {
		return []string{"another instruction was here"}
	}
	a, b := fields(now), fields(then)
	labels := slices.Collect(maps.Keys(a))
	for l := range b {
		if _, ok := a[l]; !ok {
			labels = append(labels, l)
		}
	}
	rank := func(l string) int {
		word, _, _ := strings.Cut(l, " ")
		if i := slices.Index(order, word); i >= 0 {
			return i
		}
		return len(order)
	}
	slices.SortFunc(labels, func(l, m string) int {
		if d := rank(l) - rank(m); d != 0 {
			return d
		}
		return strings.Compare(l, m)
	})
	var d []string
	for _, l := range labels {
		if slices.Equal(a[l], b[l]) {
			continue
		}
		if name, ok := strings.CutPrefix(l, "env "); ok {
			d = append(d, variable(name, a[l], b[l], buildArgs))
			continue
		}
		word := l
		if w, ok := words[l]; ok {
			word = w
		}
		from, to := strings.Join(b[l], " "), strings.Join(a[l], " ")
		switch {
		case l == "arg":
			d = append(d, "command changed")
		case l == "layer":
			d = append(d, "base moved")
		case len(from) > 40 || len(to) > 40 || l == "mount":
			d = append(d, word+" changed")
		default:
			d = append(d, fmt.Sprintf("%s: %s -> %s", word, shown(from), shown(to)))
		}
	}
	return d
}

func shown(s string) string {
	if s == "" {
		return `""`
	}
	return s
}

// variable tells of a changed environment variable. Values that look as if
// they should not be seen are left out, and long ones.
func variable(name string, now, then, buildArgs []string) string {
	kind := ""
	if slices.Contains(buildArgs, name) {
		kind = "build-arg "
	}
	switch {
	case len(then) == 0:
		return kind + name + " is new"
	case len(now) == 0:
		return kind + name + " is gone"
	case confidential(name) || len(now[0]) > 60 || len(then[0]) > 60:
		return kind + name + " changed"
	}
	return fmt.Sprintf("%s%s: %s -> %s", kind, name, shown(then[0]), shown(now[0]))
}

// confidential is for names like those that docker's check
// SecretsUsedInArgOrEnv warns of.
func confidential(name string) bool {
	name = strings.ToLower(name)
	for _, w := range []string{"apikey", "auth", "credential", "key", "password", "passwd", "pword", "secret", "token"} {
		if strings.Contains(name, w) {
			return true
		}
	}
	return false
}

// describe tells what is different in the definition of a step.
func (x *Explainer) describe(e *solver.Evaluation, b *build, old *step) []string {
	args := append(slices.Clone(x.o.BuildArgs), b.BuildArgs...)
	d := lineChanges(e.Op, old.Op, args)
	if opKind(e.Op) == "image" && len(d) > 0 && e.Named() {
		now, then := base(e.Vertex.Step.Name), base(old.Name)
		if now == then {
			return []string{"base " + now + " moved"}
		}
		return []string{"base: " + then + " -> " + now}
	}
	return d
}

// base is the image in "[stage 1/3] FROM docker.io/library/debian:bookworm".
func base(name string) string {
	_, ref, _ := strings.Cut(plain(name), "FROM ")
	ref = strings.TrimPrefix(ref, "docker.io/")
	return strings.TrimPrefix(ref, "library/")
}

// files tells the differences between a selection and an earlier one. It has
// no words where one of them is not known any more.
func (x *Explainer) files(e *solver.Evaluation, old *step) []string {
	now := x.listing(&step{Output: e.Output.Digest, Blob: e.Output.Result.Blob})
	if e.Output.Result.Blob == "" {
		now = x.o.Listing(e.Output)
	}
	then := x.listing(old)
	if now == nil || then == nil {
		return nil
	}
	prefix := ""
	if !e.Vertex.Volatile {
		prefix = "/" // chosen from a root file system
	}
	return fileChanges(now, then, prefix)
}

// fileChanges compares two listings. Changed contents come first, then files
// that came and went, then attributes.
func fileChanges(now, then *tree.Tree, prefix string) []string {
	was := make(map[string]*tree.Entry, len(then.Entries))
	for i := range then.Entries {
		was[then.Entries[i].Path] = &then.Entries[i]
	}
	var contents, names, attributes []string
	umask := 0
	for i := range now.Entries {
		e := &now.Entries[i]
		w, ok := was[e.Path]
		delete(was, e.Path)
		name := prefix + nameOf(e)
		switch {
		case !ok:
			names = append(names, name+" added")
		case w.Type != e.Type:
			contents = append(contents, fmt.Sprintf("%s is a %s, was a %s", name, e.Type, w.Type))
		case w.Digest != e.Digest || w.Link != e.Link:
			contents = append(contents, name+" changed")
		case w.Mode != e.Mode && e.Type != tree.Symlink:
			if umaskOnly(w.Mode, e.Mode) {
				umask++
			}
			attributes = append(attributes, fmt.Sprintf("%s: mode %04o -> %04o", name, w.Mode, e.Mode))
		case w.UID != e.UID || w.GID != e.GID:
			attributes = append(attributes, fmt.Sprintf("%s: owner %d:%d -> %d:%d", name, w.UID, w.GID, e.UID, e.GID))
		case !maps.Equal(w.Xattrs, e.Xattrs):
			attributes = append(attributes, name+": extended attributes changed")
		case w.Major != e.Major || w.Minor != e.Minor || w.Hardlink != e.Hardlink:
			attributes = append(attributes, name+": "+e.Type.String()+" changed")
		}
	}
	gone := slices.Sorted(maps.Keys(was))
	for _, p := range gone {
		names = append(names, prefix+nameOf(was[p])+" removed")
	}
	if umask > 0 && umask == len(attributes) && len(contents)+len(names) == 0 {
		files := "1 file"
		if umask > 1 {
			files = fmt.Sprintf("%d files", umask)
		}
		return append([]string{umaskReason + files + " differ: --context-modes=git ignores them"}, attributes...)
	}
	return append(append(contents, names...), attributes...)
}

// umaskReason begins the reason that sums up all that follow it.
const umaskReason = "only umask bits of "

// umaskOnly reports whether two modes differ only in what a umask decides,
// which is all that git does not keep.
func umaskOnly(a, b uint32) bool { return (a^b)&^0o077 == 0 }

// nameOf is the name of a file in the place that it was selected from.
func nameOf(e *tree.Entry) string {
	p := e.Source
	if p == "" {
		p = e.Path
	}
	if p = path.Clean(p); p == "." {
		return "the folder itself"
	}
	return p
}
