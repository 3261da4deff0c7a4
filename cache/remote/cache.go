package remote

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"
	"kiln.build/cache"
	"kiln.build/solver"
)

// Sink is a cache to be written.
type Sink struct {
	Driver Driver
	Min    bool // only layers of the images go up, and all results without content
}

// Options of a [Cache].
type Options struct {
	Store *cache.Store
	From  []Driver
	To    []Sink

	KeepInline bool // for Inline

	// Unpack brings a layer of a base image into the store.
	Unpack func(context.Context, solver.Origin) (solver.Layer, error)

	// Warn tells people what does not work. It is called from many
	// goroutines, once for each cache at most.
	Warn func(string)
}

// Cache is a store with remote caches behind it. It implements
// [solver.Cache]. Finish must be called at the end.
type Cache struct {
	o       Options
	sources []*source
	sinks   []*sink
	group   singleflight.Group

	mu     sync.Mutex
	inline []entry
	from   map[digest.Digest]*source // where layers and blobs are from
	taken  map[digest.Digest]*entry  // results of sources that were used
}

// New returns a cache. What it begins ends with the context.
func New(ctx context.Context, o Options) (*Cache, error) {
	c := &Cache{o: o, from: map[digest.Digest]*source{}, taken: map[digest.Digest]*entry{}}
	for _, d := range o.From {
		c.sources = append(c.sources, &source{driver: d, warn: o.Warn})
	}
	for _, t := range o.To {
		s, err := newSink(ctx, t.Driver, o.Store, t.Min, o.Warn)
		if err != nil {
			return nil, err
		}
		s.fetch = func(d digest.Digest, blob bool) error {
			get := (*source).layer
			if blob {
				get = (*source).blob
			}
			return c.fetch(ctx, d, get)
		}
		c.sinks = append(c.sinks, s)
	}
	return c, nil
}

// Lookup implements [solver.Cache]. The content of what a source has is
// fetched by Ensure.
func (c *Cache) Lookup(ctx context.Context, key digest.Digest) (solver.Result, error) {
	res, err := c.o.Store.Lookup(ctx, key)
	if err == nil {
		if len(c.sinks) > 0 || c.o.KeepInline {
			if r, err := c.o.Store.Record(key); err == nil {
				c.add(entry{Key: key, Description: r.Description, Name: r.Name, Created: r.Created, Result: r.Result, Stack: r.Stack}, false)
			}
		}
		return res, nil
	}
	for _, s := range c.sources {
		e := s.lookup(ctx, key)
		if e == nil {
			continue
		}
		c.mu.Lock()
		c.taken[key] = e
		for _, l := range e.Result.Layers {
			c.from[l.Digest] = s
		}
		if e.Result.Blob != "" {
			c.from[e.Result.Blob] = s
		}
		c.mu.Unlock()
		c.add(*e, false)
		return e.Result, nil
	}
	return solver.Result{}, err
}

// Lock implements [solver.Cache].
func (c *Cache) Lock(ctx context.Context, key digest.Digest) (release func(), err error) {
	return c.o.Store.Lock(ctx, key)
}

// Save implements [solver.Cache].
func (c *Cache) Save(ctx context.Context, a *solver.Action, r solver.Result) error {
	if err := c.o.Store.Save(ctx, a, r); err != nil {
		return err
	}
	e := entry{Key: a.Key, Description: a.Description, Created: time.Now().UTC().Round(0), Result: r, Stack: r.Layers != nil}
	if a.Step != nil {
		e.Name = a.Step.Name
	}
	c.add(e, true)
	return nil
}

func (c *Cache) add(e entry, made bool) {
	if c.o.KeepInline {
		c.mu.Lock()
		i := slices.IndexFunc(c.inline, func(o entry) bool { return o.Key == e.Key })
		if i < 0 {
			c.inline = append(c.inline, e)
		} else if made {
			c.inline[i] = e
		}
		c.mu.Unlock()
	}
	for _, s := range c.sinks {
		s.add(e, made)
	}
}

// Ensure brings the content of outputs into the store. An error that wraps a
// [*LostError] means that a source did not keep its promise; it is not asked
// again, and the evaluation can be repeated.
func (c *Cache) Ensure(ctx context.Context, outs ...solver.Output) error {
	for _, o := range outs {
		for _, l := range o.Layers {
			if err := c.layer(ctx, l); err != nil {
				return err
			}
		}
		if d := o.Result.Blob; d != "" {
			if _, err := c.o.Store.Blob(d); err == nil {
				continue
			}
			if err := c.fetch(ctx, d, (*source).blob); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cache) layer(ctx context.Context, l solver.Layer) error {
	if c.o.Store.Pin(ctx, l.Digest) == nil {
		return nil
	}
	if l.Origin == nil {
		return c.fetch(ctx, l.Digest, (*source).layer)
	}
	_, err, _ := c.group.Do(string(l.Digest), func() (any, error) {
		got, err := c.o.Unpack(ctx, *l.Origin)
		if err == nil && got.Digest != l.Digest {
			err = c.lost(l.Digest, fmt.Errorf("layer %s of an image: %w", l.Origin.DiffID, errContent), true)
		}
		return nil, err
	})
	return err
}

// fetch brings content from its source.
func (c *Cache) fetch(ctx context.Context, d digest.Digest, get func(*source, context.Context, *cache.Store, digest.Digest) error) error {
	_, err, _ := c.group.Do(string(d), func() (any, error) {
		c.mu.Lock()
		s := c.from[d]
		c.mu.Unlock()
		if s == nil {
			return nil, fmt.Errorf("content %s is not in the store", d)
		}
		p, listed := s.pieces[d]
		err := get(s, ctx, c.o.Store, d)
		if err == nil || ctx.Err() != nil {
			return nil, err
		}
		// Not every layer comes out of an image as it went in.
		return nil, c.lost(d, err, listed && !(p.Tar && errors.Is(err, errContent)))
	})
	return err
}

// lost makes a LostError. A source that listed the content and does not have
// it is not used any more; of one that said that it has it not, only the
// results that need it are not.
func (c *Cache) lost(d digest.Digest, err error, listed bool) error {
	c.mu.Lock()
	s := c.from[d]
	c.mu.Unlock()
	if s == nil {
		return err
	}
	if listed {
		s.distrust(err)
		return &LostError{Cache: s.driver.Name(), Err: err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, e := range s.entries {
		if e.Result.Blob == d || slices.ContainsFunc(e.Result.Layers, func(l solver.Layer) bool { return l.Digest == d }) {
			delete(s.entries, key)
		}
	}
	return &LostError{Cache: s.driver.Name(), Err: err}
}

// Settle keeps the results whose content was fetched in the store. It is to be
// called before an evaluation is repeated.
func (c *Cache) Settle(ctx context.Context) error {
	c.mu.Lock()
	taken := c.taken
	c.taken = map[digest.Digest]*entry{}
	c.mu.Unlock()
	var failed error
	for key, e := range taken {
		if !c.present(e) {
			continue
		}
		a := &solver.Action{Key: key, Description: e.Description}
		if e.Name != "" {
			a.Step = &solver.Step{Name: e.Name}
		}
		failed = errors.Join(failed, c.o.Store.Save(ctx, a, e.Result))
	}
	return failed
}

// Finish ends the use of the caches: results whose content was fetched are
// kept in the store, and sinks get what is left, and their index. images are
// the outputs that were built, nil if the build failed.
func (c *Cache) Finish(ctx context.Context, images []solver.Output) error {
	failed := c.Settle(ctx)
	var layers []solver.Layer
	for _, o := range images {
		layers = append(layers, o.Layers...)
	}
	for _, s := range c.sinks {
		s.finish(layers, images != nil)
	}
	return failed
}

// present reports whether the content of a result is in the store.
func (c *Cache) present(e *entry) bool {
	for _, l := range e.Result.Layers {
		if _, err := c.o.Store.Tree(l.Digest); err != nil {
			return false
		}
	}
	if e.Result.Blob == "" {
		return true
	}
	_, err := c.o.Store.Blob(e.Result.Blob)
	return err == nil
}

// Runner fetches what an action needs before it is performed.
type Runner struct {
	solver.Runner
	Cache *Cache
}

// Run implements [solver.Runner].
func (r Runner) Run(ctx context.Context, a *solver.Action) (solver.Result, error) {
	if err := r.Cache.Ensure(ctx, append(slices.Clone(a.Inputs), a.Using...)...); err != nil {
		return solver.Result{}, err
	}
	return r.Runner.Run(ctx, a)
}

var _ solver.Cache = (*Cache)(nil)
