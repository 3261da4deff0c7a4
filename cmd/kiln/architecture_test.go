package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// mayImport says which of our packages each part may know; a part is the
// longest prefix listed here. "x/..." stands for x and all below it. See
// ARCHITECTURE.md.
var mayImport = map[string][]string{
	"cmd":             {"..."},
	"bench":           {},
	"examples":        {},
	"solver":          {},
	"solver/op":       {"solver"},
	"frontend":        {"solver", "solver/op", "frontend/..."},
	"cache":           {"solver", "cache/..."},
	"cache/tree":      {},
	"runner":          {"solver", "solver/op", "cache/...", "runner/..."},
	"runner/binfmt":   {},
	"runner/sandbox":  {"runner/sandbox/..."},
	"runner/rootless": {},
	"runner/network":  {"runner/network/..."},
	"runner/overlay":  {},
	"runner/journal":  {},
	"exporter":        {"solver", "solver/op", "cache/...", "exporter/..."},
}

func TestImports(t *testing.T) {
	const module, root = "kiln.build/", "../.."
	seen := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			to, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if to, ours := strings.CutPrefix(to, module); ours {
				seen++
				if !allowed(rel, to) {
					t.Errorf("%s imports %s", path, to)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 10 {
		t.Errorf("saw only %d imports of ours: looked in the wrong place?", seen)
	}
}

// allowed reports whether the package in folder from may import to.
func allowed(from, to string) bool {
	part := from
	for {
		if _, ok := mayImport[part]; ok {
			break
		}
		i := strings.LastIndexByte(part, '/')
		if i < 0 {
			return false
		}
		part = part[:i]
	}
	for _, rule := range mayImport[part] {
		prefix, tree := strings.CutSuffix(rule, "...")
		if tree && (strings.HasPrefix(to, prefix) || to == strings.TrimSuffix(prefix, "/")) || to == rule {
			return true
		}
	}
	return false
}
