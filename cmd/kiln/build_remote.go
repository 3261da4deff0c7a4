package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"kiln.build/cache/registry"
	"kiln.build/cache/remote"
	"kiln.build/exporter"
	"kiln.build/solver"
)

// remoteCache is a --cache-from or --cache-to.
type remoteCache struct {
	kind   string // "registry", "local" or "inline"
	ref    registry.Reference
	dir    string
	tag    string
	digest digest.Digest
	min    bool
}

// fields of each kind of cache; those after the bar are for writing. What
// shapes the objects of other builders' caches is taken and has no meaning.
var remoteFields = map[string]string{
	"registry": "ref registry.insecure | mode ignore-error compression compression-level force-compression oci-mediatypes image-manifest",
	"local":    "src tag digest | dest tag mode ignore-error compression compression-level force-compression oci-mediatypes image-manifest",
	"inline":   "| mode",
}

// parseRemote reads a --cache-from or --cache-to.
func parseRemote(flag, text string) (remoteCache, error) {
	c, err := parseRemoteFields(flag == "--cache-to", text)
	if err != nil {
		return c, fmt.Errorf("%s=%s: %w", flag, text, err)
	}
	return c, nil
}

func parseRemoteFields(to bool, text string) (remoteCache, error) {
	c := remoteCache{tag: "latest", min: true}
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return c, fmt.Errorf("not a list of fields: %w", err)
	}
	if len(fields) == 1 && !strings.Contains(text, "=") { // the name of an image
		fields = []string{"type=registry", "ref=" + text}
	}
	values := map[string]string{}
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return c, fmt.Errorf("field %q must be key=value", f)
		}
		values[strings.ToLower(strings.TrimSpace(k))] = v
	}
	c.kind = values["type"]
	delete(values, "type")
	known, ok := remoteFields[c.kind]
	switch {
	case c.kind == "":
		return c, errors.New("no type: must be registry, local or inline")
	case c.kind == "gha" || c.kind == "s3" || c.kind == "azblob":
		return c, fmt.Errorf("type %s is not there: registry, local and inline are", c.kind)
	case !ok:
		return c, fmt.Errorf("unknown type %q: must be registry, local or inline", c.kind)
	case c.kind == "inline" && !to:
		return c, errors.New("type inline is for --cache-to: name the image, type=registry,ref=NAME")
	}
	reading, writing, _ := strings.Cut(known, "|")
	if to {
		reading += writing
	}
	for k, v := range values {
		if !contains(strings.Fields(reading), k) {
			return c, fmt.Errorf("type %s has no key %q: must be one of %s", c.kind, k, strings.Join(strings.Fields(reading), ", "))
		}
		if err := c.set(k, v); err != nil {
			return c, fmt.Errorf("%s=%q: %w", k, v, err)
		}
	}
	switch {
	case c.kind == "registry" && c.ref.Host == "":
		return c, errors.New("no ref: the name of the cache in its registry")
	case c.kind == "local" && to && values["dest"] == "":
		return c, errors.New("no dest: the folder of the cache")
	case c.kind == "local" && !to && values["src"] == "":
		return c, errors.New("no src: the folder of the cache")
	}
	return c, nil
}

func contains(all []string, s string) bool {
	for _, a := range all {
		if a == s {
			return true
		}
	}
	return false
}

func (c *remoteCache) set(k, v string) (err error) {
	switch k {
	case "ref":
		if c.ref, err = registry.ParseReference(v); err == nil && c.ref.Digest != "" {
			err = errors.New("a cache has a tag, no digest")
		}
	case "src", "dest":
		c.dir = v
	case "tag":
		c.tag = v
	case "digest":
		c.digest = digest.Digest(v)
		err = c.digest.Validate()
	case "mode":
		if v != "min" && v != "max" {
			return errors.New("must be min or max")
		}
		c.min = v == "min"
	case "ignore-error", "registry.insecure", "force-compression", "oci-mediatypes", "image-manifest":
		_, err = strconv.ParseBool(v)
	}
	return err
}

// parseRemotes reads all flags for remote caches.
func (f *buildFlags) parseRemotes() (from, to []remoteCache, err error) {
	for _, s := range f.cacheFrom {
		c, err := parseRemote("--cache-from", s)
		if err != nil {
			return nil, nil, err
		}
		from = append(from, c)
	}
	for _, s := range f.cacheTo {
		c, err := parseRemote("--cache-to", s)
		if err != nil {
			return nil, nil, err
		}
		to = append(to, c)
	}
	for _, a := range f.buildArgs { // as BuildKit takes it, too
		if a == "BUILDKIT_INLINE_CACHE=1" || a == "BUILDKIT_INLINE_CACHE=true" {
			to = append(to, remoteCache{kind: "inline"})
		}
	}
	return from, to, nil
}

// remotes makes the cache that --cache-from and --cache-to ask for; nil
// without them.
func (b *builder) remotes(ctx context.Context) (*remote.Cache, error) {
	o := remote.Options{Store: b.store, Unpack: b.runner.UnpackLayer, Warn: func(text string) {
		b.display.Event(solver.Event{Kind: solver.Warned, Name: text, Time: time.Now()})
	}}
	for _, c := range b.cacheFrom {
		o.From = append(o.From, b.driver(c, ""))
	}
	for _, c := range b.cacheTo {
		if c.kind == "inline" || b.flags.dryRun {
			o.KeepInline = o.KeepInline || c.kind == "inline"
			continue
		}
		staging, err := b.store.Scratch("cache-staging")
		if err != nil {
			return nil, err
		}
		o.To = append(o.To, remote.Sink{Driver: b.driver(c, staging), Min: c.min})
	}
	if len(o.From)+len(o.To) == 0 && !o.KeepInline {
		return nil, nil
	}
	return remote.New(ctx, o)
}

func (b *builder) driver(c remoteCache, staging string) remote.Driver {
	if c.kind == "local" {
		return &remote.Local{Dir: c.dir, Tag: c.tag, Digest: c.digest}
	}
	return &remote.Registry{Client: b.runner.Registry, Ref: c.ref, Dir: staging}
}

// evaluateGraph solves the targets. What a remote cache promised and does not have
// is made here: then all is evaluated again, without it.
func (b *builder) evaluateGraph(ctx context.Context, s *solver.Solver, targets []*solver.Vertex) (*solver.Graph, error) {
	for {
		g, err := s.Evaluate(ctx, targets...)
		if err == nil && b.remote != nil && !b.flags.dryRun {
			err = b.ensure(ctx, g)
		}
		var lost *remote.LostError
		if errors.As(err, &lost) && ctx.Err() == nil {
			if err := b.remote.Settle(ctx); err != nil {
				return g, err
			}
			continue // at most as often as there are results of caches
		}
		return g, err
	}
}

// ensure brings what is exported into the store.
func (b *builder) ensure(ctx context.Context, g *solver.Graph) error {
	for _, o := range b.outputs {
		if o.Type == exporter.TypeCacheOnly {
			continue
		}
		for _, t := range g.Targets {
			if err := b.remote.Ensure(ctx, t.Output); err != nil {
				return err
			}
		}
	}
	return nil
}

// finishRemote ends the use of remote caches.
func (b *builder) finishRemote(ctx context.Context, g *solver.Graph, failed error) error {
	if b.remote == nil {
		return nil
	}
	var built []solver.Output
	if failed == nil && !b.flags.dryRun {
		for _, t := range g.Targets {
			built = append(built, t.Output)
		}
	}
	return b.remote.Finish(ctx, built)
}
