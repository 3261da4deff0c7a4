package dockerfile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
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
	return slices.Sorted(maps.Keys(m))
}

// metaArgs gives values to the predefined arguments and to those before the
// first FROM. Such an argument may use the ones before it.
func (b *build) metaArgs(cmds []instructions.ArgCommand) error {
	for name, value := range platformArgs("BUILD", b.BuildPlatform.OS, b.BuildPlatform.Architecture, b.BuildPlatform.Variant, b.BuildPlatform.OSVersion, platforms.FormatAll(b.BuildPlatform)) {
		b.predefine(name, value)
	}
	for name, value := range platformArgs("TARGET", b.Platform.OS, b.Platform.Architecture, b.Platform.Variant, b.Platform.OSVersion, platforms.FormatAll(b.Platform)) {
		b.predefine(name, value)
	}
	lex := shell.NewLex(b.escape)
	for i := range cmds {
		for _, a := range cmds[i].Args {
			b.declared[a.Key] = true
			value, ok := b.overrides[a.Key]
			if !ok {
				if a.Value == nil {
					continue
				}
				r, err := lex.ProcessWordWithMatches(*a.Value, b.globals)
				if err != nil {
					return b.at(cmds[i].Location(), err)
				}
				b.undefined(r.Unmatched, b.globals, cmds[i].Location())
				value = r.Result
			}
			b.globals.set(a.Key, value)
		}
	}
	return nil
}

// predefine sets a global argument unless the user overrides it.
func (b *build) predefine(name, value string) {
	if v, ok := b.overrides[name]; ok {
		value = v
	}
	b.globals.set(name, value)
	b.declared[name] = true
}

func platformArgs(prefix, os, arch, variant, version, format string) map[string]string {
	return map[string]string{
		prefix + "PLATFORM": format, prefix + "OS": os, prefix + "ARCH": arch,
		prefix + "VARIANT": variant, prefix + "OSVERSION": version,
	}
}

// globalArgs sets what depends on the target.
func (b *build) globalArgs(target *stage) error {
	name := target.name
	if name == "" {
		name = "default"
	}
	b.predefine("TARGETSTAGE", name)
	return nil
}

// undefined warns of variables that have no value, once for each place.
func (b *build) undefined(names map[string]struct{}, env *variables, at []parser.Range) {
	for _, n := range sortedKeys(names) {
		if !isVariable(n) || proxyArgs[strings.ToUpper(n)] {
			continue
		}
		near := ""
		if hint := didYouMeanName(n, env.Keys()); hint != "" {
			near = hint
		}
		b.lint.Run(&linter.RuleUndefinedVar, at, linter.RuleUndefinedVar.Format(n, near))
	}
}

func isVariable(n string) bool {
	return n != "" && (n[0] == '_' || n[0] >= 'A' && n[0] <= 'Z' || n[0] >= 'a' && n[0] <= 'z')
}

// proxyArgs can be used without being declared, and never enter a key.
var proxyArgs = map[string]bool{"HTTP_PROXY": true, "HTTPS_PROXY": true, "FTP_PROXY": true, "NO_PROXY": true, "ALL_PROXY": true}

// otherArgs are predefined build arguments that mean something elsewhere.
func otherArg(name string) bool {
	return proxyArgs[strings.ToUpper(name)] || strings.HasPrefix(name, "BUILDKIT_") || name == "SOURCE_DATE_EPOCH"
}

// unusedArgs warns of build arguments that no ARG takes: most often the name
// is misspelt.
func (b *build) unusedArgs() {
	for _, name := range sortedKeys(b.overrides) {
		if b.declared[name] || otherArg(name) {
			continue
		}
		text := fmt.Sprintf("build argument %q is not used: no ARG declares it", name)
		if near := didYouMeanName(name, sortedKeys(b.declared)); near != "" {
			text += fmt.Sprintf(" (did you mean %s?)", near)
		}
		b.warn("", "", "", text, nil)
	}
}

// arg performs an ARG of a stage.
func (b *build) arg(s *stage, c *instructions.ArgCommand) error {
	lex := shell.NewLex(b.escape)
	var words []string
	for _, a := range c.Args {
		if a.Key == "" {
			return errors.New("ARG needs a name")
		}
		b.declared[a.Key] = true
		if secretName(a.Key) {
			b.lint.Run(&linter.RuleSecretsUsedInArgOrEnv, c.Location(), linter.RuleSecretsUsedInArgOrEnv.Format("ARG", a.Key))
		}
		word := a.Key
		var value string
		set := false
		switch override, given := b.overrides[a.Key]; {
		case given:
			value, set = override, true
			if a.Value != nil {
				word += "=" + *a.Value
			}
		case a.Value != nil:
			r, err := lex.ProcessWordWithMatches(*a.Value, s.vars)
			if err != nil {
				return err
			}
			b.undefined(r.Unmatched, s.vars, c.Location())
			value, set = r.Result, true
			word += "=" + value
		default:
			if value, set = b.globals.Get(a.Key); !set {
				value, set = s.vars.Get(a.Key)
			}
		}
		words = append(words, word)
		if !set {
			continue // declared, but it stays unset
		}
		s.vars.set(a.Key, value)
		if !slices.Contains(s.args, a.Key) {
			s.args = append(s.args, a.Key)
		}
	}
	s.history("ARG "+strings.Join(words, " "), false)
	return nil
}
