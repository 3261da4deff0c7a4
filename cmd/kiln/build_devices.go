package main

import (
	"strings"

	"kiln.build/runner/cdi"
)

// deviceAllowed is the rule for RUN --device: what --allow names, alone or
// with its kind, and what the machine's administrator has marked so.
func deviceAllowed(allowed map[string]bool) func(name string) bool {
	return func(name string) bool {
		kind, _, _ := strings.Cut(name, "=")
		if allowed["device"] || allowed["device="+name] || allowed["device="+kind] {
			return true
		}
		registry, err := cdi.Read(cdi.Dirs())
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
