package main

import (
	"fmt"
	"os"

	"kiln.build/cache"
	"kiln.build/cache/registry"
	"kiln.build/runner/rootless"
)

// open opens the store. A user who is not root works in a user namespace
// from here on: the program is executed again in there.
func (a *app) open() (*cache.Store, error) {
	if _, err := rootless.Enter(); err != nil {
		return nil, err
	}
	return cache.Open(a.root, cache.Options{})
}

// registry makes the client for registries, as the environment says.
func (a *app) registry() (*registry.Client, error) {
	mirrors, err := registry.ParseMirrors(os.Getenv("KILN_REGISTRY_MIRRORS"))
	if err != nil {
		return nil, fmt.Errorf("KILN_REGISTRY_MIRRORS: %w", err)
	}
	return registry.New(registry.Options{Mirrors: mirrors, UserAgent: "kiln"})
}
