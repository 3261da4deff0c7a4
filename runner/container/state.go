package container

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Status is where a container is in its life.
type Status string

// The states. A created container has never run; an exited one can be
// started again; a restarting one waits to be started again by its monitor.
const (
	Created    Status = "created"
	Running    Status = "running"
	Paused     Status = "paused"
	Restarting Status = "restarting"
	Exited     Status = "exited"
)

// Live reports whether a monitor stands behind the state.
func (s Status) Live() bool { return s == Running || s == Paused || s == Restarting }

// State is what changes about a container. Only the holder of the
// container's lock writes it.
type State struct {
	Status   Status    `json:"status"`
	PID      int       `json:"pid,omitempty"` // of the command, seen from the monitor
	ExitCode int       `json:"exitCode"`
	Error    string    `json:"error,omitempty"`
	OOM      bool      `json:"oomKilled,omitempty"`
	Started  time.Time `json:"startedAt,omitzero"`
	Finished time.Time `json:"finishedAt,omitzero"`
	Restarts int       `json:"restartCount,omitempty"`
	Stopped  bool      `json:"stopped,omitempty"` // by somebody's wish, so that no policy starts it
	IP       string    `json:"ip,omitempty"`
	Gateway  string    `json:"gateway,omitempty"`
	Networks []Joined  `json:"networks,omitempty"`
	Ports    []Port    `json:"ports,omitempty"`       // with the host's ports filled in
	Stubs    []string  `json:"mountPoints,omitempty"` // made in the root for lack of them

	Health *HealthState `json:"health,omitempty"` // nil where it is not checked
}

// Verb is something that is asked of a container.
type Verb string

// The verbs whose outcome depends on the state. Others (logs, wait, rename,
// cp, diff, export, commit, inspect) work in each.
const (
	Start       Verb = "start"
	Stop        Verb = "stop"
	Kill        Verb = "kill"
	Pause       Verb = "pause"
	Unpause     Verb = "unpause"
	Restart     Verb = "restart"
	Exec        Verb = "exec"
	Attach      Verb = "attach"
	Top         Verb = "top"
	Remove      Verb = "remove"
	ForceRemove Verb = "force remove"
)

// Outcomes of the table that are no refusals.
const (
	do   = "do it"
	done = "nothing to do"
)

// outcomes is what each verb comes to in each state: do it, nothing to do, or
// the words of the refusal, docker's, in which NAME and ID stand for the
// container's.
var outcomes = map[Verb]map[Status]string{
	Start: {
		Created: do, Exited: do, Running: done, Restarting: done,
		Paused: "cannot start a paused container, try unpause instead",
	},
	Stop:    {Created: done, Exited: done, Running: do, Paused: do, Restarting: do},
	Restart: {Created: do, Exited: do, Running: do, Paused: do, Restarting: do},
	Kill: {
		Running: do, Paused: do, Restarting: do,
		Created: "cannot kill container: NAME: container ID is not running",
		Exited:  "cannot kill container: NAME: container ID is not running",
	},
	Pause: {
		Running:    do,
		Paused:     "container ID is already paused",
		Restarting: "container ID is restarting, wait until the container is running",
		Created:    "container ID is not running",
		Exited:     "container ID is not running",
	},
	Unpause: {
		Paused:     do,
		Running:    "container ID is not paused",
		Restarting: "container ID is not paused",
		Created:    "container ID is not paused",
		Exited:     "container ID is not paused",
	},
	Exec: {
		Running:    do,
		Paused:     "container NAME is paused, unpause the container before exec",
		Restarting: "container ID is restarting, wait until the container is running",
		Created:    "container ID is not running",
		Exited:     "container ID is not running",
	},
	Attach: {
		Running:    do,
		Paused:     "cannot attach to a paused container, unpause it first",
		Restarting: "cannot attach to a restarting container, wait until it is running",
		Created:    "cannot attach to a stopped container, start it first",
		Exited:     "cannot attach to a stopped container, start it first",
	},
	Top: {
		Running: do, Paused: do,
		Restarting: "container ID is restarting, wait until the container is running",
		Created:    "container ID is not running",
		Exited:     "container ID is not running",
	},
	Remove: {
		Created: do, Exited: do,
		Running:    "cannot remove container \"/NAME\": container is running: stop the container before removing or force remove",
		Paused:     "cannot remove container \"/NAME\": container is paused and must be unpaused first",
		Restarting: "cannot remove container \"/NAME\": container is restarting: stop the container before removing or force remove",
	},
	ForceRemove: {Created: do, Exited: do, Running: do, Paused: do, Restarting: do},
}

// StateError says that a container's state does not allow what was asked.
type StateError struct {
	Verb    Verb
	Status  Status
	Message string
}

func (e *StateError) Error() string { return e.Message }

// errNothingToDo says that the container is as the verb would have it.
var errNothingToDo = errors.New("nothing to do")

// may looks the outcome of a verb up: whether there is something to do, or a
// [*StateError].
func (c *Container) may(v Verb, s Status) (bool, error) {
	switch text := outcomes[v][s]; text {
	case do:
		return true, nil
	case done:
		return false, nil
	default:
		return false, &StateError{v, s, strings.NewReplacer("NAME", c.Name, "ID", c.ID).Replace(text)}
	}
}

// May reports whether a verb has something to do in the container's present
// state, or returns a [*StateError] if it is refused.
func (c *Container) May(v Verb) (bool, State, error) {
	st, err := c.State()
	if err != nil {
		return false, st, err
	}
	ok, err := c.may(v, st.Status)
	return ok, st, err
}

// State tells how the container is. One whose monitor has died without a
// word was killed with it.
func (c *Container) State() (State, error) {
	st, err := c.readState()
	if err != nil || !st.Status.Live() || locked(c.lockPath()) {
		return st, err
	}
	// The monitor may have ended in good order since the state was read.
	if st, err = c.readState(); err != nil {
		return st, err
	}
	return settled(st), nil
}

// settled is a state that no monitor stands behind.
func settled(st State) State {
	if st.Status.Live() {
		st = State{
			Status: Exited, ExitCode: 128 + int(unix.SIGKILL), Error: "its monitor was killed",
			Started: st.Started, Restarts: st.Restarts, Stopped: st.Stopped, Stubs: st.Stubs,
		}
	}
	return st
}

func (c *Container) readState() (State, error) {
	for try := 0; ; try++ {
		var st State
		data, err := os.ReadFile(c.statePath())
		if err != nil {
			return st, err
		}
		if len(data) == 0 {
			// What a loss of power leaves of a file that was just replaced.
			return State{Status: Exited, ExitCode: 128 + int(unix.SIGKILL), Error: "its state was lost"}, nil
		}
		err = json.Unmarshal(data, &st)
		if err == nil {
			return st, nil
		}
		if try == 3 {
			return st, fmt.Errorf("state of container %s: %w", c.Name, err)
		}
		time.Sleep(time.Millisecond) // it was being overwritten, on a full disk
	}
}

func (c *Container) statePath() string { return filepath.Join(c.dir, "state.json") }

// stateRoom is the least size of the file of a state. As much can be written
// over it on a full disk, so that ps tells the truth there.
const stateRoom = 2 << 10

func (c *Container) setState(st State) error {
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if n := stateRoom - len(data); n > 0 {
		data = append(data, bytes.Repeat([]byte{' '}, n)...)
	}
	err = replaceFile(c.statePath(), data)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	if len(data) > stateRoom && st.Health != nil {
		h := *st.Health
		h.Log, st.Health = nil, &h // what checks printed is too long then
		if data, err = json.Marshal(st); err != nil {
			return err
		}
	}
	if overErr := overwrite(c.statePath(), data); overErr != nil {
		return errors.Join(err, overErr)
	}
	return nil
}

// overwrite writes over a file that is not shorter, in the blocks that it
// has, by one call.
func overwrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() < int64(len(data)) {
		err = fmt.Errorf("overwrite %s: %w", path, unix.ENOSPC)
	}
	if err == nil {
		// Spaces after a value mean nothing in JSON.
		_, err = f.WriteAt(append(data, bytes.Repeat([]byte{' '}, int(fi.Size())-len(data))...), 0)
	}
	return errors.Join(err, f.Close())
}
