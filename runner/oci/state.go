package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"kiln.build/runner/sandbox/cgroup"
)

// Runtime is a runtime whose containers are kept in a folder, one in each.
type Runtime struct {
	Root string
}

// record is what is kept of a container, in state.json.
type record struct {
	ID      string    `json:"id"`
	Bundle  string    `json:"bundle"`
	PID     int       `json:"pid"`
	Birth   string    `json:"birth"` // when the process began: numbers are used again
	Created time.Time `json:"created"`
	Started bool      `json:"started"`

	Config *specs.Spec       `json:"config"` // as it was when the container was created
	V1     map[string]string `json:"cgroups,omitempty"`
	V2     string            `json:"cgroup2,omitempty"`
}

// container is one that is known, and locked for others as long as it is
// open.
type container struct {
	record
	dir  string
	lock *os.File
}

// ErrUnknown says that there is no container of a name.
var ErrUnknown = errors.New("container does not exist")

func checkID(id string) error {
	if id == "" || id == "." || id == ".." || len(id) > 255 || strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_+-.", r))
	}) {
		return fmt.Errorf("container ID %q: not of letters, digits, '_', '+', '-' and '.'", id)
	}
	return nil
}

// open finds a container.
func (r Runtime) open(id string) (*container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	c := &container{dir: filepath.Join(r.Root, id)}
	if err := c.acquire(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("container %q: %w", id, ErrUnknown)
		}
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(c.dir, "state.json"))
	if err == nil {
		err = json.Unmarshal(data, &c.record)
	}
	if err != nil {
		c.close()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("container %q: %w", id, ErrUnknown)
		}
		return nil, fmt.Errorf("container %q: %w", id, err)
	}
	return c, nil
}

// acquire locks the container's folder.
func (c *container) acquire() error {
	f, err := os.Open(c.dir)
	if err != nil {
		return err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("lock %s: %w", c.dir, err)
	}
	c.lock = f
	return nil
}

func (c *container) close() { c.lock.Close() }

// save replaces the record.
func (c *container) save() error {
	data, err := json.Marshal(&c.record)
	if err != nil {
		return err
	}
	tmp := filepath.Join(c.dir, "state.json.new")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(c.dir, "state.json"))
}

// group is the container's control group.
func (c *container) group() *cgroup.Group { return &cgroup.Group{V1: c.V1, V2: c.V2} }

// status looks at the container's process.
func (c *container) status() specs.ContainerState {
	if birth, alive := processBirth(c.PID); !alive || birth != c.Birth {
		return specs.StateStopped
	}
	if c.Started {
		return specs.StateRunning
	}
	return specs.StateCreated
}

// state is the container as the runtime-spec describes it.
func (c *container) state(status specs.ContainerState) *specs.State {
	s := &specs.State{
		Version: specs.Version, ID: c.ID, Status: status, Bundle: c.Bundle, Annotations: c.Config.Annotations,
	}
	if status != specs.StateStopped {
		s.Pid = c.PID
	}
	return s
}

// processBirth returns when a process began, in the kernel's ticks; a zombie
// is not alive.
func processBirth(pid int) (birth string, alive bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", false
	}
	// The name in parentheses may hold anything.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return "", false
	}
	return f[19], f[0] != "Z" && f[0] != "X"
}
