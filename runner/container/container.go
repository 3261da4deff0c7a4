// Package container keeps containers: what they are, what state they are in,
// and what they printed. There is no daemon. A [Container] is a folder:
//
//	containers/ID/config.json  what it is; never changes (version 1)
//	containers/ID/state.json   its [State], replaced as a whole
//	containers/ID/lock         held by the process that runs it (its monitor)
//	containers/ID/log          what it printed, in docker's json-file form;
//	                           log.1 is the part before that
//	containers/ID/fs, work     the upper and work directories of its overlay
//	containers/ID/etc/         its hosts, resolv.conf and hostname
//
// Whether a container runs is told by the lock, which the kernel frees when
// its monitor dies, however it dies; the sandbox dies with it. So nobody has
// to clean up for the state to be true.
package container

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"kiln.build/runner/sandbox"
	"kiln.build/solver"
)

// version is that of config.json. Another one is refused.
const version = 1

// Config is what a container is made of.
type Config struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`

	Image   string         `json:"image"`   // as the user named it
	ImageID digest.Digest  `json:"imageID"` // of its config
	Layers  []solver.Layer `json:"layers"`

	Args       []string          `json:"args"`
	Env        []string          `json:"env"`
	Cwd        string            `json:"cwd"`
	User       string            `json:"user"`
	Hostname   string            `json:"hostname"`
	Labels     map[string]string `json:"labels,omitempty"`
	StopSignal string            `json:"stopSignal,omitempty"`
	StopWait   int               `json:"stopTimeout"` // seconds

	Terminal   bool `json:"tty,omitempty"`
	Stdin      bool `json:"openStdin,omitempty"`
	AutoRemove bool `json:"autoRemove,omitempty"`
	ReadOnly   bool `json:"readOnly,omitempty"`
	Init       bool `json:"init,omitempty"`
	Privileged bool `json:"privileged,omitempty"`

	CapAdd   []string         `json:"capAdd,omitempty"`
	CapDrop  []string         `json:"capDrop,omitempty"`
	Network  string           `json:"network"` // "bridge", "host" or "none"
	Ports    []Port           `json:"ports,omitempty"`
	Hosts    []string         `json:"extraHosts,omitempty"` // NAME:IP
	Binds    []Bind           `json:"binds,omitempty"`
	Tmpfs    []string         `json:"tmpfs,omitempty"`
	ShmSize  int64            `json:"shmSize,omitempty"`
	Limits   sandbox.Limits   `json:"limits"`
	Rlimits  []sandbox.Rlimit `json:"ulimits,omitempty"`
	Unmasked bool             `json:"seccompUnconfined,omitempty"`
}

// Port is a published port.
type Port struct {
	HostIP    string `json:"hostIP,omitempty"`
	HostPort  int    `json:"hostPort"` // zero takes a free one
	Container int    `json:"containerPort"`
	Proto     string `json:"proto"`
}

func (p Port) String() string {
	ip := p.HostIP
	if ip == "" {
		ip = "0.0.0.0"
	}
	return fmt.Sprintf("%s:%d->%d/%s", ip, p.HostPort, p.Container, p.Proto)
}

// ContainerPort is the container's side of it, as in "80/tcp".
func (p Port) ContainerPort() string { return fmt.Sprintf("%d/%s", p.Container, p.Proto) }

// Bind is a folder or file of this machine that a container sees.
type Bind struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Status is where a container is in its life.
type Status string

// The states. A created container has never run, an exited one can be
// started again.
const (
	Created Status = "created"
	Running Status = "running"
	Exited  Status = "exited"
)

// State is what changes about a container.
type State struct {
	Status   Status    `json:"status"`
	PID      int       `json:"pid,omitempty"`
	ExitCode int       `json:"exitCode"`
	Error    string    `json:"error,omitempty"`
	OOM      bool      `json:"oomKilled,omitempty"`
	Started  time.Time `json:"startedAt,omitzero"`
	Finished time.Time `json:"finishedAt,omitzero"`
	IP       string    `json:"ip,omitempty"`
	Ports    []Port    `json:"ports,omitempty"` // with the host's ports filled in
}

// NotFoundError says that there is no such container.
type NotFoundError struct{ Name string }

func (e *NotFoundError) Error() string { return "No such container: " + e.Name }

// Is makes the error match [fs.ErrNotExist].
func (e *NotFoundError) Is(t error) bool { return t == fs.ErrNotExist }

// Set is all containers of a store.
type Set struct{ Dir string }

// Container is one of a Set.
type Container struct {
	Config
	dir string
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// Create makes a container of a config, whose ID, Created and, where it is
// empty, Name are filled in.
func (s Set) Create(c Config) (*Container, error) {
	var id [32]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	c.Version, c.ID, c.Created = version, hex.EncodeToString(id[:]), time.Now().UTC()
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lockFile(filepath.Join(s.Dir, ".names"), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	taken := func(name string) *Container {
		i := slices.IndexFunc(all, func(o *Container) bool { return o.Name == name })
		if i < 0 {
			return nil
		}
		return all[i]
	}
	for c.Name == "" {
		if name := randomName(); taken(name) == nil {
			c.Name = name
		}
	}
	if !validName.MatchString(c.Name) {
		return nil, fmt.Errorf("invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", c.Name)
	}
	if o := taken(c.Name); o != nil {
		return nil, fmt.Errorf("the container name %q is already in use by container %q: remove (or rename) that container to be able to reuse that name", "/"+c.Name, o.ID)
	}
	if c.Hostname == "" {
		c.Hostname = c.ID[:12]
	}
	// The folder appears under its name only with all that makes it one.
	tmp, err := os.MkdirTemp(s.Dir, ".new-")
	if err != nil {
		return nil, err
	}
	k := &Container{Config: c, dir: tmp}
	err = errors.Join(
		os.Mkdir(filepath.Join(tmp, "fs"), 0o755), os.Mkdir(filepath.Join(tmp, "work"), 0o700),
		os.Mkdir(filepath.Join(tmp, "etc"), 0o755),
		writeJSON(filepath.Join(tmp, "config.json"), c), k.setState(State{Status: Created}),
	)
	if err == nil {
		k.dir = filepath.Join(s.Dir, c.ID)
		err = os.Rename(tmp, k.dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create container: %w", err), os.RemoveAll(tmp))
	}
	return k, nil
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
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *Container) int { return b.Created.Compare(a.Created) })
	return all, nil
}

func open(dir string) (*Container, error) {
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return nil, err
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

// State tells how the container is. One whose monitor has died without a
// word was killed with it.
func (c *Container) State() (State, error) {
	var st State
	data, err := os.ReadFile(filepath.Join(c.dir, "state.json"))
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return st, fmt.Errorf("state of container %s: %w", c.Name, err)
	}
	if st.Status == Running && !c.monitored() {
		st.Status, st.PID, st.ExitCode = Exited, 0, 128+int(unix.SIGKILL)
		st.Error = "its monitor was killed"
	}
	return st, nil
}

// monitored reports whether some process holds the container's lock.
func (c *Container) monitored() bool {
	unlock, err := lockFile(filepath.Join(c.dir, "lock"), unix.LOCK_SH|unix.LOCK_NB)
	if err != nil {
		return errors.Is(err, unix.EWOULDBLOCK)
	}
	unlock()
	return false
}

func (c *Container) setState(st State) error {
	return writeJSON(filepath.Join(c.dir, "state.json"), st)
}

// Remove deletes a container that does not run.
func (c *Container) Remove() error {
	unlock, err := lockFile(filepath.Join(c.dir, "lock"), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("cannot remove container %q: container is running: stop the container before removing or force remove", "/"+c.Name)
	}
	if err != nil {
		return err
	}
	defer unlock()
	return c.remove()
}

// remove deletes the folder; its name goes first, so that a half-deleted one
// is never seen.
func (c *Container) remove() error {
	gone := filepath.Join(filepath.Dir(c.dir), ".old-"+c.ID)
	if err := os.Rename(c.dir, gone); err != nil {
		return err
	}
	// overlayfs leaves a directory in "work" that not even its owner may read.
	_ = os.Chmod(filepath.Join(gone, "work", "work"), 0o700)
	return os.RemoveAll(gone)
}

// lockFile takes a lock (flock(2)) on a file, which it makes if need be.
func lockFile(path string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// writeJSON replaces a file as a whole.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// The words of which names are made, as docker's are of an adjective and a
// surname: here of the potter's trade.
var (
	adjectives = strings.Fields("amber azure bold brisk calm clear cobalt crisp deft dusky earthen fine fired gentle glazed golden hardy keen lively mellow milky ochre plain polished quick quiet ruddy rustic sandy sleek smooth sober speckled steady sturdy sunny tawny thrown warm white")
	nouns      = strings.Fields("amphora basin beaker bisque bowl brick burner carafe celadon chimney clay crock cup damper dish ember ewer faience flame flask glaze goblet jar jug kettle ladle mug pitcher plate pot potter shard slip spout stoneware teapot tile tureen urn vase wheel")
)

func randomName() string {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return adjectives[int(b[0])%len(adjectives)] + "_" + nouns[int(b[1])%len(nouns)]
}
