package dockerfile

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// A few lines of "ENV A=$A$A" would fill any memory, so the text that
// variables are replaced by is counted. What a program can be given is less:
// Linux takes no variable of 128 KiB or more.
const (
	mostOfWord  = 4 << 20   // bytes of values in one word
	mostOfBuild = 512 << 20 // bytes of values in all words, and of environments

	// ${v//p/r} may replace each character by all of r, and that may hold
	// another; such a word has fewer bytes of values, and fewer the longer
	// it is itself.
	mostOfPattern = 32 << 10
	mostReplaced  = 1 << 31 // bytes of values times bytes of the word
)

var replaces = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^\$\{[A-Za-z0-9_]+/`) })

// replacements is how deep ${v//p/r} stand in one another in a word, or more.
func replacements(word string) int {
	var open []int
	depth := 0
	for i := range len(word) {
		switch {
		case strings.HasPrefix(word[i:], "${"):
			n := 0
			if len(open) > 0 {
				n = open[len(open)-1]
			}
			if replaces().MatchString(word[i:]) {
				n++
			}
			depth = max(depth, n)
			open = append(open, n)
		case word[i] == '}' && len(open) > 0 && !strings.ContainsRune("\\'\"`", rune(word[i-1])):
			open = open[:len(open)-1]
		}
	}
	return depth
}

// process replaces the variables in a word and quotes as lex does.
func (b *build) process(lex *shell.Lex, word string, vars shell.EnvGetter) (string, map[string]struct{}, error) {
	if !special(word) {
		return word, nil, nil
	}
	m := b.meter(word, vars)
	result, missing, err := lex.ProcessWord(word, m)
	return result, missing, m.check(err)
}

// meter counts the bytes of the values that are looked up for a word. Past
// the limit all values are empty.
type meter struct {
	shell.EnvGetter
	build *build
	left  int
	over  bool
}

func (b *build) meter(word string, vars shell.EnvGetter) *meter {
	m := &meter{EnvGetter: vars, build: b, left: mostOfWord}
	if depth := replacements(word); depth > 0 {
		m.left = min(mostOfPattern>>min(3*(depth-1), 12), mostReplaced/len(word))
	}
	return m
}

func (m *meter) Get(name string) (string, bool) {
	value, ok := m.EnvGetter.Get(name)
	m.left -= len(value)
	m.build.spent += len(value)
	if m.left < 0 || m.build.spent > mostOfBuild {
		m.over = true
		return "", ok
	}
	return value, ok
}

// check is the error of going past a limit, or err.
func (m *meter) check(err error) error {
	if m.over {
		return errTooLong
	}
	return err
}

// spend counts bytes that are kept for an instruction.
func (b *build) spend(n int) error {
	if b.spent += n; b.spent > mostOfBuild {
		return errTooLong
	}
	return nil
}

var errTooLong = fmt.Errorf("variables are replaced by too much text: at most %d MiB in a word, less where ${name//pattern/text} is used, and %d MiB in a build", mostOfWord>>20, mostOfBuild>>20)
