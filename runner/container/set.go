package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Set is all containers of a store.
type Set struct{ Dir string }

// Create makes a container of a config, whose ID, Created and, where it is
// empty, Name are filled in, and the volumes that it wants and that are not
// there.
func (s Set) Create(ctx context.Context, c Config) (*Container, error) {
	var id [32]byte
	_, _ = rand.Read(id[:]) // never fails
	c.Version, c.ID, c.Created = version, hex.EncodeToString(id[:]), time.Now().UTC()
	if c.Hostname == "" {
		c.Hostname = c.ID[:12]
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, err
	}
	names, err := s.lockNames(ctx)
	if err != nil {
		return nil, err
	}
	defer names.unlock()
	s.sweep()
	if c.Name, err = s.freeName(strings.TrimPrefix(c.Name, "/")); err != nil {
		return nil, err
	}
	// Now that nothing but the disk can refuse it.
	if err := s.placeVolumes(c.Binds); err != nil {
		return nil, err
	}
	// The folder appears under its name only with all that makes it one.
	tmp := filepath.Join(s.Dir, ".new-"+c.ID)
	k := &Container{Config: c, dir: tmp}
	err = errors.Join(
		os.Mkdir(tmp, 0o700), os.Mkdir(filepath.Join(tmp, "etc"), 0o755),
		os.Mkdir(filepath.Join(tmp, "fs"), 0o755), os.Mkdir(filepath.Join(tmp, "work"), 0o700),
		writeJSON(filepath.Join(tmp, "config.json"), c), k.setState(State{Status: Created}),
	)
	if err == nil {
		k.dir = filepath.Join(s.Dir, c.ID)
		err = os.Rename(tmp, k.dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create container: %w", err), os.RemoveAll(tmp))
	}
	k.Note("create")
	return k, nil
}

// Rename gives a container another name.
func (s Set) Rename(ctx context.Context, c *Container, name string) error {
	names, err := s.lockNames(ctx)
	if err != nil {
		return err
	}
	defer names.unlock()
	name = strings.TrimPrefix(name, "/")
	if name == "" {
		return errors.New("neither old nor new names may be empty")
	}
	if name == c.Name {
		return errors.New("renaming a container with the same name as its current name")
	}
	if name, err = s.freeName(name); err != nil {
		return err
	}
	old := c.Name
	if err := c.apply(ctx, func(c *Config) { c.Name = name }); err != nil {
		return err
	}
	c.Note("rename", "oldName", "/"+old)
	return nil
}

// Update changes limits and restart policy of a container, at once if it
// runs. Nothing is changed if the machine refuses.
func (s Set) Update(ctx context.Context, c *Container, f func(*Config)) error {
	names, err := s.lockNames(ctx)
	if err != nil {
		return err
	}
	defer names.unlock()
	if err := c.apply(ctx, f); err != nil {
		return err
	}
	c.Note("update")
	return nil
}

// apply changes what can change about a container. The caller holds the lock of names, which is that of configs, too.
func (c *Container) apply(ctx context.Context, f func(*Config)) error {
	now, err := open(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return &NotFoundError{c.Name}
	}
	if err != nil {
		return err
	}
	file, old := filepath.Join(c.dir, "config.json"), now.Config
	f(&now.Config)
	// Written first: a monitor that does not answer yet reads it once it does.
	if err := writeJSON(file, now.Config); err != nil {
		return err
	}
	if locked(c.lockPath()) {
		err := c.ask(ctx, request{Do: doChange, Changes: &changes{now.Name, now.Limits, now.Restart, now.Networks}}, nil)
		if err := ignoreEnded(err); err != nil {
			return errors.Join(err, writeJSON(file, old))
		}
	}
	c.Config = now.Config
	return nil
}

// lockNames is held while a name is given.
func (s Set) lockNames(ctx context.Context) (*fileLock, error) {
	return waitLock(ctx, filepath.Join(s.Dir, ".names"))
}

// freeName checks that a name may be given to a container, or makes one up.
func (s Set) freeName(name string) (string, error) {
	all, err := s.List()
	if err != nil {
		return "", err
	}
	owner := func(name string) *Container {
		i := slices.IndexFunc(all, func(o *Container) bool { return o.Name == name })
		if i < 0 {
			return nil
		}
		return all[i]
	}
	for try := 0; name == ""; try++ {
		if n := randomName(try); owner(n) == nil {
			return n, nil
		}
	}
	if !validName().MatchString(name) {
		return "", fmt.Errorf("invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	if o := owner(name); o != nil {
		return "", fmt.Errorf("the container name %q is already in use by container %q: remove (or rename) that container to be able to reuse that name", "/"+name, o.ID)
	}
	return name, nil
}

// List returns all containers, newest first.
func (s Set) List() ([]*Container, error) {
	dirs, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []*Container
	for _, d := range dirs {
		if len(d.Name()) != 64 {
			continue
		}
		c, err := open(filepath.Join(s.Dir, d.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if !c.forgotten() {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b *Container) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// Open returns the container of a whole ID.
func (s Set) Open(id string) (*Container, error) {
	c, err := open(filepath.Join(s.Dir, filepath.Base(id)))
	if errors.Is(err, fs.ErrNotExist) {
		err = &NotFoundError{id}
	}
	return c, err
}

func open(dir string) (*Container, error) {
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		// It was being made when the machine lost its power: see sweep.
		return nil, &os.PathError{Op: "open", Path: dir, Err: fs.ErrNotExist}
	}
	c := &Container{dir: dir}
	if err := json.Unmarshal(data, &c.Config); err != nil {
		return nil, fmt.Errorf("container %s: %w", filepath.Base(dir), err)
	}
	if c.Version != version {
		return nil, fmt.Errorf("container %s has version %d, and this kiln knows %d", c.ID, c.Version, version)
	}
	return c, nil
}

// Find returns the container of a name, an ID or the beginning of one.
func (s Set) Find(name string) (*Container, error) {
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	var found []*Container
	for _, c := range all {
		if c.Name == strings.TrimPrefix(name, "/") || c.ID == name {
			return c, nil
		}
		if name != "" && strings.HasPrefix(c.ID, name) {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 0:
		return nil, &NotFoundError{name}
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("multiple IDs found with provided prefix: %s", name)
}

// sweep deletes what processes that were killed, or a loss of power, have left. The caller holds
// the lock of names, without which no container is made.
func (s Set) sweep() {
	dirs, err := os.ReadDir(s.Dir)
	if err != nil {
		return
	}
	for _, d := range dirs {
		if strings.HasPrefix(d.Name(), ".new-") || strings.HasPrefix(d.Name(), ".old-") {
			dir := filepath.Join(s.Dir, d.Name())
			if locked(filepath.Join(dir, "lock")) {
				continue // somebody is at it
			}
			_ = removeAll(dir) // or another time
		}
		if fi, err := os.Stat(filepath.Join(s.Dir, d.Name(), "config.json")); err == nil && fi.Size() == 0 {
			_ = removeAll(filepath.Join(s.Dir, d.Name()))
		}
	}
}

// writeJSON replaces a file as a whole.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return replaceFile(path, data)
}

func replaceFile(path string, data []byte) error {
	tmp := path + ".new"
	err := os.WriteFile(tmp, data, 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}
