package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Network is a network that a user has made.
type Network struct {
	Version    int               `json:"version"` // 1; another one is refused
	ID         string            `json:"id"`      // 64 hexadecimal digits
	Name       string            `json:"name"`
	Created    time.Time         `json:"created"`
	Subnet     netip.Prefix      `json:"subnet"`
	Gateway    netip.Addr        `json:"gateway"`
	Range      netip.Prefix      `json:"range,omitzero"`
	Internal   bool              `json:"internal,omitempty"`
	Attachable bool              `json:"attachable,omitempty"` // shown, and of no effect
	MTU        int               `json:"mtu,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Options    map[string]string `json:"options,omitempty"`
}

// Plan is what the network's bridge is to be like.
func (n *Network) Plan() Plan { return Plan{n.Subnet, n.Gateway, n.Range, n.Internal, n.MTU} }

// Interface is the name of the network's bridge.
func (n *Network) Interface() string { return "kn-" + n.ID[:12] }

// Bridge is the network as root has it.
func (n *Network) Bridge(stateDir string) *Bridge { return Named(stateDir, n.Interface(), n.Plan()) }

// Names are those of the network's containers.
func (n *Network) Names(stateDir string) Names { return Names{filepath.Join(stateDir, "names", n.ID)} }

// Set are the networks of a store: a folder with a file ID.json for each. It
// is safe for concurrent use, by several processes too.
type Set struct{ Dir string }

// NotFoundError says that there is no such network.
type NotFoundError struct{ Name string }

func (e *NotFoundError) Error() string { return "network " + e.Name + " not found" }

// Is makes the error match [fs.ErrNotExist].
func (e *NotFoundError) Is(t error) bool { return t == fs.ErrNotExist }

// setVersion is that of the files.
// State is where the locks of the machine's bridges are, whatever store a
// command works on.
const State = "/run/kiln/network"

const setVersion = 1

var validName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`) })

// Predefined are the networks that are always there.
var Predefined = []string{"bridge", "host", "none"}

// Create makes a network of a name, plan and so on. MakeIt is called with it
// before anybody sees it, to have it given a subnet, and gets all others.
func (s Set) Create(ctx context.Context, n Network, makeIt func(n *Network, others []*Network) error) (*Network, error) {
	if !validName().MatchString(n.Name) {
		return nil, fmt.Errorf("invalid network name %q: only %q are allowed", n.Name, "[a-zA-Z0-9][a-zA-Z0-9_.-]")
	}
	if slices.Contains(Predefined, n.Name) || n.Name == "default" {
		return nil, fmt.Errorf("operation is not permitted on predefined %s network", n.Name)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create network %s: %w", n.Name, err)
	}
	lock, err := s.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("create network %s: %w", n.Name, err)
	}
	defer lock.Close()
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(all, func(o *Network) bool { return o.Name == n.Name }) {
		return nil, fmt.Errorf("network with name %s already exists", n.Name)
	}
	var id [32]byte
	_, _ = rand.Read(id[:]) // never fails
	n.Version, n.ID, n.Created = setVersion, hex.EncodeToString(id[:]), time.Now().UTC()
	if err := makeIt(&n, all); err != nil {
		return nil, err
	}
	if err := s.write(&n); err != nil {
		return nil, fmt.Errorf("create network %s: %w", n.Name, err)
	}
	return &n, nil
}

// Remove forgets a network, after undo has taken away what it consists of.
func (s Set) Remove(ctx context.Context, n *Network, undo func() error) error {
	lock, err := s.lock(ctx)
	if err != nil {
		return fmt.Errorf("remove network %s: %w", n.Name, err)
	}
	defer lock.Close()
	if err := undo(); err != nil {
		return err
	}
	err = os.Remove(s.path(n.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return &NotFoundError{n.Name}
	}
	return err
}

// List lists the networks, by name.
func (s Set) List() ([]*Network, error) {
	files, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	var all []*Network
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok || len(id) != 64 {
			continue
		}
		data, err := os.ReadFile(filepath.Join(s.Dir, f.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		n := &Network{}
		if err == nil {
			err = json.Unmarshal(data, n)
		}
		if err == nil && (n.Version != setVersion || n.ID != id || n.Plan().Check() != nil || !n.Subnet.IsValid()) {
			err = errors.New("not understood")
		}
		if err != nil {
			return nil, fmt.Errorf("network %s: %w", id, err)
		}
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b *Network) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Find returns the network of a name, an ID, or the beginning of one. The
// error is a [*NotFoundError] if there is none.
func (s Set) Find(name string) (*Network, error) {
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	var found []*Network
	for _, n := range all {
		if n.Name == name || n.ID == name {
			return n, nil
		}
		if name != "" && strings.HasPrefix(n.ID, name) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return nil, &NotFoundError{name}
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("network %s is ambiguous (%d matches found on ID prefix)", name, len(found))
}

// FreeOf returns the first candidate subnet that none of the networks has and
// that the machine has no route to, for networks that take nothing of the
// machine.
func FreeOf(all []*Network) (netip.Prefix, error) {
	used, err := usedSubnets()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, n := range all {
		used = append(used, n.Subnet)
	}
	p, err := chooseSmall(used)
	return p.Masked(), err
}

func (s Set) path(id string) string { return filepath.Join(s.Dir, id+".json") }

// write makes the file last.
func (s Set) write(n *Network) error {
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.Dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // renamed, if all went well
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), s.path(n.ID))
}

// lock is held while networks come and go.
func (s Set) lock(ctx context.Context) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.Dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := flock(f)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
}
