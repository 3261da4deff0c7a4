package main

import (
	"os"
	"path/filepath"
	"strings"

	"kiln.build/runner/cdi"
)

// cdiDirs are where devices are described: the standard folders, or those in
// KILN_CDI_DIRS.
func cdiDirs() []string {
	if v := os.Getenv("KILN_CDI_DIRS"); v != "" {
		return filepath.SplitList(v)
	}
	return cdi.DefaultDirs
}

// deviceAllowed is the rule for RUN --device: what --allow names, alone or
// with its kind, and what the machine's administrator has marked so.
func deviceAllowed(allowed map[string]bool) func(name string) bool {
	return func(name string) bool {
		kind, _, _ := strings.Cut(name, "=")
		if allowed["device"] || allowed["device="+name] || allowed["device="+kind] {
			return true
		}
		registry, err := cdi.Read(cdiDirs())
		if err != nil {
			return false
		}
		found, err := registry.Find(name)
		if err != nil || len(found) == 0 {
			return false
		}
		for _, d := range found {
			if !d.AutoAllow && !allowed["device="+d.Name] {
				return false
			}
		}
		return true
	}
}
