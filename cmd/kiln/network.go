package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"kiln.build/cache"
	"kiln.build/runner"
	"kiln.build/runner/container"
	"kiln.build/runner/rootless"
)

// stepNetwork is the network of RUN steps.
func (a *app) stepNetwork(*cache.Store) (runner.Network, error) { return nil, nil }

// defaultNetwork is that of containers.
func defaultNetwork() string {
	if rootless.Current() == rootless.Root {
		return "bridge"
	}
	return "host"
}

func (a *app) attachNetwork() (func(context.Context, int, []container.Port) (*container.Endpoint, error), error) {
	return func(context.Context, int, []container.Port) (*container.Endpoint, error) {
		return nil, errors.New("no network")
	}, nil
}

// parsePublish reads --publish.
func parsePublish(words []string) ([]container.Port, error) {
	var all []container.Port
	for _, w := range words {
		p := container.Port{Proto: "tcp"}
		text, proto, ok := strings.Cut(w, "/")
		if ok {
			p.Proto = proto
		}
		parts := strings.Split(text, ":")
		var err error
		if p.Container, err = strconv.Atoi(parts[len(parts)-1]); err != nil {
			return nil, fmt.Errorf("--publish=%s: %w", w, err)
		}
		all = append(all, p)
	}
	return all, nil
}
