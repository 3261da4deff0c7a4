package main

import (
	"fmt"
	"os"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
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

// cacheMax is the size that builds hold the store to: KILN_CACHE_MAX, else a
// tenth of the disk. Zero does not bound it.
func cacheMax(root string) (int64, error) {
	switch text := os.Getenv("KILN_CACHE_MAX"); text {
	case "":
		var st unix.Statfs_t
		if err := unix.Statfs(root, &st); err != nil {
			return 0, fmt.Errorf("store %s: %w", root, err)
		}
		return int64(st.Blocks) * st.Bsize / 10, nil
	case "0", "off", "none":
		return 0, nil
	default:
		n, err := units.FromHumanSize(text)
		if err != nil || n < 0 {
			return 0, fmt.Errorf("KILN_CACHE_MAX=%q: must be a size such as 20GB, or 0 for no bound", text)
		}
		return n, nil
	}
}

// registry makes the client for registries, as the environment says. Of the
// insecure hosts any certificate will do, and plain HTTP.
func (a *app) registry(insecure ...string) (*registry.Client, error) {
	mirrors, err := registry.ParseMirrors(os.Getenv("KILN_REGISTRY_MIRRORS"))
	if err != nil {
		return nil, fmt.Errorf("KILN_REGISTRY_MIRRORS: %w", err)
	}
	return registry.New(registry.Options{Mirrors: mirrors, UserAgent: "kiln", Insecure: insecure})
}
