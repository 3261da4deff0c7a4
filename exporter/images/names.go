package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"kiln.build/cache/layout"
	"kiln.build/cache/registry"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Name gives an image of the layout a name, which must be in full form. An
// image that had the name before, and has no other, stays without one.
func (s *Store) Name(ctx context.Context, name string, target v1.Descriptor) error {
	old, err := s.layout().Resolve(name)
	var missing *layout.NotFoundError
	switch {
	case errors.As(err, &missing):
	case err != nil:
		return err
	case old.Digest != target.Digest && !s.same(ctx, old, target):
		if err := s.Keep(ctx, old); err != nil && !errors.As(err, &missing) {
			return err
		}
	}
	return s.layout().Tag(ctx, name, target)
}

// same reports whether two manifests are forms of one image, such as with
// layers compressed and not.
func (s *Store) same(ctx context.Context, a, b v1.Descriptor) bool {
	x, y := s.read(ctx, a), s.read(ctx, b)
	return x.Err == nil && y.Err == nil && x.ID == y.ID
}

// Keep keeps an image of the layout whether it has a name or not.
func (s *Store) Keep(ctx context.Context, target v1.Descriptor) error {
	now := time.Now()
	_ = os.Chtimes(s.layout().Path(target.Digest), now, now) // see Idle
	return s.layout().Tag(ctx, "", target)
}

// Idle is the time since an image was last made or kept.
func (s *Store) Idle(i *Image) time.Duration {
	fi, err := os.Stat(s.layout().Path(i.Target.Digest))
	if err != nil {
		return 0
	}
	return time.Since(fi.ModTime())
}

// Tag gives the image that is found by source one more name.
func (s *Store) Tag(ctx context.Context, source, name string) error {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return err
	}
	if ref.Digest != "" {
		return fmt.Errorf("%q cannot be a tag: it has a digest", name)
	}
	found, err := s.Find(ctx, source)
	if err != nil {
		return err
	}
	return s.Name(ctx, ref.String(), found.Target)
}

// RemoveOptions say what may be removed.
type RemoveOptions struct {
	// Force removes an image by its ID even if it has several names, and
	// one that containers use.
	Force bool

	// Users returns what uses an image, such as "container 1234abcd";
	// nil is nothing.
	Users func(digest.Digest) ([]string, error)
}

// Removed says what happened to an image.
type Removed struct {
	Untagged []string      // names that it lost
	Deleted  digest.Digest // its ID, if it is gone
}

// ErrInUse is wrapped by errors about images that cannot be removed.
var ErrInUse = errors.New("the image is being used")

// Remove takes a name from an image, and removes the image with its last one;
// by its ID it removes the image with all of its names. Blobs that nothing
// refers to any more go with the next pruning.
func (s *Store) Remove(ctx context.Context, name string, o RemoveOptions) (Removed, error) {
	found, err := s.Find(ctx, name)
	if err != nil {
		return Removed{}, err
	}
	if found.Name != "" && len(found.Names) > 1 {
		err := s.layout().Untag(ctx, found.Name)
		return Removed{Untagged: []string{found.Name}}, err
	}
	if repositories(found.Names) > 1 && !o.Force {
		return Removed{}, fmt.Errorf("unable to delete %s (must be forced): it has names in several repositories: %s", short(found.ID), strings.Join(familiar(found.Names), ", "))
	}
	if o.Users != nil {
		users, err := o.Users(found.ID)
		if err != nil {
			return Removed{}, err
		}
		if len(users) > 0 && !o.Force {
			return Removed{}, fmt.Errorf("unable to remove %q (must be forced): %w by %s", name, ErrInUse, strings.Join(users, ", "))
		}
	}
	if err := s.layout().Forget(ctx, found.Target.Digest); err != nil {
		return Removed{}, err
	}
	return Removed{Untagged: found.Names, Deleted: found.ID}, nil
}

// repositories counts the repositories that names are in.
func repositories(names []string) int {
	seen := map[string]bool{}
	for _, n := range names {
		if ref, err := registry.ParseReference(n); err == nil {
			n = ref.Name()
		}
		seen[n] = true
	}
	return len(seen)
}

// Familiar is the form of a full name that people type: "hello:latest".
func Familiar(name string) string {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return name // of another tool
	}
	return ref.Familiar()
}

func familiar(names []string) []string {
	all := make([]string, len(names))
	for i, n := range names {
		all[i] = Familiar(n)
	}
	return all
}

// short is an ID as lists show it.
func short(d digest.Digest) string { return d.Encoded()[:12] }

// PruneOptions say which images to remove.
type PruneOptions struct {
	All   bool                                  // those with names too
	Match func(*Image) bool                     // nil matches every one
	Users func(digest.Digest) ([]string, error) // as in RemoveOptions
}

// Prune removes the images without a name that nothing uses.
func (s *Store) Prune(ctx context.Context, o PruneOptions) ([]Removed, error) {
	all, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	var done []Removed
	for _, image := range all {
		if len(image.Names) > 0 && !o.All || o.Match != nil && !o.Match(image) {
			continue
		}
		if o.Users != nil {
			users, err := o.Users(image.ID)
			if err != nil {
				return done, err
			}
			if len(users) > 0 {
				continue
			}
		}
		if err := s.layout().Forget(ctx, image.Target.Digest); err != nil {
			return done, err
		}
		done = append(done, Removed{Untagged: image.Names, Deleted: image.ID})
	}
	return done, nil
}
