package dockerfile

import (
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// directives reads "# syntax=" and "# check=" at the top of the file, and
// the build arguments that override them. "# escape=" is the parser's.
func (b *build) directives() error {
	syntax, _, loc, ok := parser.DetectSyntax(b.Dockerfile)
	if v, given := b.BuildArgs["BUILDKIT_SYNTAX"]; given {
		syntax, loc, ok = v, nil, true
	}
	if ok && !builtin(syntax) {
		return b.at(loc, fmt.Errorf("syntax %q: only the official Dockerfile frontend is built in: docker/dockerfile or docker/dockerfile-upstream, of any version", syntax))
	}
	_, check, loc, ok := parser.ParseDirective("check", b.Dockerfile)
	if v, given := b.BuildArgs["BUILDKIT_DOCKERFILE_CHECK"]; given {
		check, loc, ok = v, nil, true
	}
	if !ok {
		return nil
	}
	c, err := linter.ParseLintOptions(check)
	if err != nil {
		return b.at(loc, fmt.Errorf("check directive: %w", err))
	}
	c.Warn = b.warn
	c.SkipAll = c.SkipAll || b.SkipChecks
	b.lint = linter.New(c)
	return nil
}

// builtin reports whether a "# syntax=" names the frontend that this is.
func builtin(syntax string) bool {
	name, _, _ := strings.Cut(strings.TrimSpace(syntax), " ")
	name, _, _ = strings.Cut(name, "@")
	name = strings.TrimPrefix(name, "docker.io/")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	switch name {
	case "docker/dockerfile", "docker/dockerfile-upstream", "dockerfile.v0":
		return true
	}
	return false
}
