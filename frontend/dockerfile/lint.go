package dockerfile

import (
	"path"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"kiln.build/frontend"
)

// The rules that BuildKit's parser and instructions packages do not raise
// are here, or beside what they are about.

// warn is the linter's way out.
func (b *build) warn(rule, detail, url, text string, at location) {
	b.warnings = append(b.warnings, frontend.Warning{Rule: rule, Detail: detail, URL: url, Text: text, Location: b.place(at)})
}

// sortedWarnings are the warnings in the order of the file.
func (b *build) sortedWarnings() []frontend.Warning {
	sort.SliceStable(b.warnings, func(i, j int) bool { return b.warnings[i].Location.Start < b.warnings[j].Location.Start })
	return b.warnings
}

// lintError is the error that "# check=error=true" makes of warnings.
func (b *build) lintError() error {
	if b.lint.Error() == nil {
		return nil
	}
	rules := slices.Clone(*b.lint.CalledRules)
	slices.Sort(rules)
	return &frontend.LintError{Rules: slices.Compact(rules)}
}

// checkNames raises what is wrong with the names of stages.
func (b *build) checkNames() {
	seen := map[string]bool{}
	for _, s := range b.stages {
		if s.name == "" {
			continue
		}
		if s.name == "scratch" || s.name == MainContext {
			b.lint.Run(&linter.RuleReservedStageName, s.Location, linter.RuleReservedStageName.Format(s.Name))
		}
		if seen[s.name] {
			b.lint.Run(&linter.RuleDuplicateStageName, s.Location, linter.RuleDuplicateStageName.Format(s.Name))
		}
		seen[s.name] = true
	}
}

// checkCasing raises instructions written in another case than most are.
func (b *build) checkCasing() {
	lower, upper := 0, 0
	b.keywords(func(word string, _ location) {
		switch word {
		case strings.ToLower(word):
			lower++
		case strings.ToUpper(word):
			upper++
		}
	})
	right, want := strings.ToUpper, "uppercase"
	if lower > upper {
		right, want = strings.ToLower, "lowercase"
	}
	b.keywords(func(word string, at location) {
		if right(word) != word {
			b.lint.Run(&linter.RuleConsistentInstructionCasing, at, linter.RuleConsistentInstructionCasing.Format(word, want))
		}
	})
}

// keywords goes through the instructions' names as they are written.
func (b *build) keywords(visit func(word string, at location)) {
	for _, s := range b.stages {
		visit(s.OrigCmd, s.Location)
		for _, c := range s.Commands {
			visit(c.Name(), c.Location())
		}
	}
}

// checkDefaultBases raises base images that are no references where no build
// arguments are given.
func (b *build) checkDefaultBases(cmds []instructions.ArgCommand) {
	defaults := b.globals.clone()
	for _, cmd := range cmds {
		for _, a := range cmd.Args {
			if a.Value == nil {
				continue
			}
			value, _, err := b.process(b.lex, *a.Value, defaults)
			if err != nil {
				return // setGlobals says so
			}
			defaults.set(a.Key, value)
		}
	}
	for _, s := range b.stages {
		if !special(s.BaseName) {
			continue // defaults do not change a constant
		}
		name, _, err := b.process(b.lex, s.BaseName, defaults)
		if err != nil {
			return
		}
		if _, err := reference.ParseNormalizedNamed(name); err != nil {
			b.lint.Run(&linter.RuleInvalidDefaultArgInFrom, s.Location, linter.RuleInvalidDefaultArgInFrom.Format(s.BaseName))
		}
	}
}

// checkOnce raises an instruction of which only the last counts, at the one
// before.
func (s *stage) checkOnce(c *command) {
	name := strings.ToUpper(c.Name())
	if before := s.last[name]; before != nil {
		c.lint.Run(&linter.RuleMultipleInstructionsDisallowed, before.Location(), linter.RuleMultipleInstructionsDisallowed.Format(c.Name()))
	}
	s.last[name] = c
}

// Names that give a secret away, and those that make them harmless: the
// words that BuildKit's check SecretsUsedInArgOrEnv documents.
var (
	secretWords = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?i)(?:_|^)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|$)`)
	})
	publicWords = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?i)(?:_|^)(?:public|file|version)(?:_|$)`) })
)

// checkSecret raises variables that look like secrets.
func (b *build) checkSecret(c *command, instruction, name string) {
	if secretWords().MatchString(name) && !publicWords().MatchString(name) {
		c.warn(&linter.RuleSecretsUsedInArgOrEnv, linter.RuleSecretsUsedInArgOrEnv.Format(instruction, name))
	}
}

// checkIgnored raises sources of a copy that .dockerignore hides. Where that
// file has exceptions, what is hidden cannot be told without looking.
func (b *build) checkIgnored(c *command, verb string, sources []string) {
	if b.ignore == nil || b.ignore.Exclusions() {
		return
	}
	for _, src := range sources {
		clean := path.Clean(src)
		if (clean == "." || clean == "/") && !b.ignoresAll() {
			continue
		}
		if hides, err := b.ignore.MatchesOrParentMatches(clean); err == nil && hides {
			c.warn(&linter.RuleCopyIgnoredFile, linter.RuleCopyIgnoredFile.Format(verb, clean))
		}
	}
}

// ignoresAll reports whether a pattern hides everything at the top.
func (b *build) ignoresAll() bool {
	return slices.ContainsFunc(b.Ignore, func(p string) bool { return p == "*" || p == "**" || p == "**/*" })
}
