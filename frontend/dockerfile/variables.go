package dockerfile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// variables are names and values in the order in which they were first set.
type variables struct {
	names  []string
	values map[string]string
}

func newVariables() *variables { return &variables{values: map[string]string{}} }

func (v *variables) set(name, value string) {
	if _, ok := v.values[name]; !ok {
		v.names = append(v.names, name)
	}
	v.values[name] = value
}

// Get and Keys make it a shell.EnvGetter.
func (v *variables) Get(name string) (string, bool) {
	value, ok := v.values[name]
	return value, ok
}

func (v *variables) Keys() []string { return v.names }

func (v *variables) clone() *variables {
	return &variables{names: slices.Clone(v.names), values: maps.Clone(v.values)}
}

// list is all of them as NAME=VALUE.
func (v *variables) list() []string {
	l := make([]string, 0, len(v.names))
	for _, n := range v.names {
		l = append(l, n+"="+v.values[n])
	}
	return l
}

var _ shell.EnvGetter = (*variables)(nil)

func sortedKeys[V any](m map[string]V) []string {
	if len(m) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(m))
}

// setKey sets a key of a map that may be nil.
func setKey[V any](m *map[string]V, key string, value V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[key] = value
}

// proxyArgs can be used without being declared, and never enter a key.
var proxyArgs = map[string]bool{"HTTP_PROXY": true, "HTTPS_PROXY": true, "FTP_PROXY": true, "NO_PROXY": true, "ALL_PROXY": true}

// otherArg reports whether a build argument means something without an ARG.
func otherArg(name string) bool {
	return proxyArgs[strings.ToUpper(name)] || strings.HasPrefix(name, "BUILDKIT_") || name == "SOURCE_DATE_EPOCH"
}

// controlArg reports whether an ARG steers BuildKit's scans of an image and
// is no variable.
func controlArg(name string) bool {
	return name == "BUILDKIT_SBOM_SCAN_CONTEXT" || name == "BUILDKIT_SBOM_SCAN_STAGE"
}

// setGlobals gives values to the predefined arguments and to those before
// the first FROM. Such an argument may use the ones before it.
func (b *build) setGlobals(cmds []instructions.ArgCommand, target *stage) error {
	name := cmp.Or(b.Target, target.name, "default")
	bp, tp := b.BuildPlatform, b.Platform
	for _, kv := range [][2]string{
		{"BUILDPLATFORM", platforms.Format(bp)}, {"BUILDOS", bp.OS}, {"BUILDOSVERSION", bp.OSVersion},
		{"BUILDARCH", bp.Architecture}, {"BUILDVARIANT", bp.Variant},
		{"TARGETPLATFORM", platforms.FormatAll(tp)}, {"TARGETOS", tp.OS}, {"TARGETOSVERSION", tp.OSVersion},
		{"TARGETARCH", tp.Architecture}, {"TARGETVARIANT", tp.Variant},
		{"TARGETSTAGE", name},
	} {
		value, ok := b.BuildArgs[kv[0]]
		if !ok {
			value = kv[1]
		}
		b.globals.set(kv[0], value)
		b.declared[kv[0]] = true
	}
	b.checkDefaultBases(cmds)
	for i := range cmds {
		b.declare(cmds[i].Args)
		for _, a := range cmds[i].Args {
			value, ok := b.BuildArgs[a.Key]
			if !ok {
				if a.Value == nil {
					b.unset[a.Key] = true
					continue
				}
				var err error
				if value, _, err = b.process(b.lex, *a.Value, b.globals); err != nil {
					return b.at(cmds[i].Location(), err)
				}
			}
			b.globals.set(a.Key, value)
		}
	}
	return nil
}

// unusedArgs warns of build arguments that no ARG takes: most often the name
// is misspelt.
func (b *build) unusedArgs() {
	for _, name := range sortedKeys(b.BuildArgs) {
		if b.declared[name] || otherArg(name) {
			continue
		}
		text := fmt.Sprintf("build argument %q is not used: no ARG declares it%s", name, didYouMean(name, sortedKeys(b.declared)))
		b.warn("", "", "", text, nil)
	}
}

// expand replaces the variables of an instruction by their values, all as
// they were before it.
func (b *build) expand(s *stage, c *command) error {
	var unmatched map[string]struct{}
	word := func(lex *shell.Lex) instructions.SingleWordExpander {
		return func(w string) (string, error) {
			result, missing, err := b.process(lex, w, s.vars)
			for n := range missing {
				setKey(&unmatched, n, struct{}{})
			}
			return result, err
		}
	}
	if e, ok := c.Command.(instructions.SupportsSingleWordExpansion); ok {
		if err := e.Expand(word(b.lex)); err != nil {
			return err
		}
	}
	if e, ok := c.Command.(instructions.SupportsSingleWordExpansionRaw); ok {
		if err := e.ExpandRaw(word(b.rawLex)); err != nil {
			return err
		}
	}
	b.undefined(s, c, unmatched)
	return nil
}

// undefined warns of variables that were used and are neither set nor
// declared.
func (b *build) undefined(s *stage, c *command, names map[string]struct{}) {
	for _, n := range sortedKeys(names) {
		if _, ok := s.args.Get(n); !ok {
			c.warn(&linter.RuleUndefinedVar, linter.RuleUndefinedVar.Format(n, near(n, s.vars.Keys())))
		}
	}
}

// arg performs an ARG of a stage, name by name: a later one sees an earlier
// one's value. The value is that of the build argument, else the default on
// the line, else that of the global argument, else that of a stage below.
func (b *build) arg(s *stage, c *command, in *instructions.ArgCommand) error {
	var words []string
	for _, a := range in.Args {
		b.checkSecret(c, "ARG", a.Key)
		value, set := b.BuildArgs[a.Key]
		if !set && a.Value != nil {
			result, missing, err := b.process(b.lex, *a.Value, s.vars)
			b.undefined(s, c, missing)
			if err != nil {
				return err
			}
			value, set = result, true
		}
		if !set {
			value, set = b.globals.Get(a.Key)
		}
		s.args.set(a.Key, value)
		word := a.Key
		if set {
			word += "=" + value
			if !controlArg(a.Key) {
				s.vars.set(a.Key, value)
			}
		}
		words = append(words, word)
	}
	b.history(s, "ARG "+strings.Join(words, " "), false)
	return nil
}

// argsText is what the history of a RUN says of the arguments in force.
func (s *stage) argsText() string {
	if len(s.args.names) == 0 {
		return ""
	}
	text := fmt.Sprintf("|%d ", len(s.args.names))
	for _, n := range s.args.names {
		value, ok := s.vars.Get(n)
		if !ok {
			value, _ = s.args.Get(n)
		}
		text += n + "=" + value + " "
	}
	return text
}
