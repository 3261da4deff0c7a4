// Package monitor is what the process does that stays with a container for as
// long as that lives, and how processes get into the machine's networks.
//
// [Main] is the process, which is told on a socket which container is meant
// ([Order]) and answers there ([Answer]). It is in two programs: kiln itself,
// executed again under the name [Name], and a small one of its own
// (runner/monitor/program), which starts in a fraction of the time and needs a
// third of the memory, but has no networks for callers without root's rights.
// It knows nothing of images and builds.
package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/runner/cdi"
	"kiln.build/runner/container"
	"kiln.build/runner/rootless"
	"kiln.build/runner/sandbox"
)

// Name is what a monitor's program is called by, argv[0].
const Name = "kiln-monitor"

// Descriptors that a monitor is started with.
const (
	Talk    = 3 // the socket for orders and answers
	Watcher = 4 // that of who watches from the start; see Watched
)

// Watched is a monitor's second argument where somebody watches from the
// start. The first is the store's folder.
const Watched = "watched"

// Order is what a monitor is to do.
type Order struct {
	ID   string       `json:"id"`
	Size sandbox.Size `json:"size,omitzero"`
}

// Answer is what a monitor says: once the command runs, or cannot; and, if
// somebody watches from the start, again when the command has ended.
type Answer struct {
	Error   string `json:"error,omitempty"`
	Code    int    `json:"code,omitempty"`
	Running bool   `json:"running,omitempty"` // already: container.ErrRunning
	Exit    int    `json:"exit,omitempty"`    // second answer
}

// settled is after how long a monitor gives memory back that only its start
// needed.
const settled = 500 * time.Millisecond

// Main is the whole life of a monitor. Where it is told nothing it ends.
func Main(ctx context.Context, args []string) {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE)
	store := args[1]
	unix.CloseOnExec(Talk)
	sandbox.Warm()
	m := &container.Monitor{CDIDirs: cdi.Dirs(), Attach: func(ctx context.Context, w container.Wiring) (*container.Endpoint, error) {
		return attach(ctx, store, w)
	}}
	if len(args) > 2 && args[2] == Watched {
		unix.CloseOnExec(Watcher)
		m.Watcher = os.NewFile(Watcher, "watcher")
	}
	// A read that blocks would keep a processor of the runtime for a while.
	_ = unix.SetNonblock(Talk, true)
	serve(context.WithoutCancel(ctx), m, store, os.NewFile(Talk, "talk"))
}

// serve runs the container and says how that goes.
func serve(ctx context.Context, m *container.Monitor, store string, talk *os.File) {
	say := func(x Answer) { _ = json.NewEncoder(talk).Encode(x) } // to nobody, perhaps
	watched := m.Watcher != nil
	told := false
	m.Started = func(*sandbox.Process) {
		say(Answer{})
		if !watched {
			_ = talk.Close()
		}
	}
	// It has little to do and may live long: memory counts more than time
	// then. A command that ends at once does not wait for that.
	thrift := time.AfterFunc(settled, func() {
		debug.SetGCPercent(20)
		debug.FreeOSMemory()
	})
	defer thrift.Stop()
	m.Ended = func(code int) {
		told = true
		say(Answer{Exit: code})
	}
	code, err := run(ctx, m, store, talk)
	var start *container.StartError
	switch {
	case errors.Is(err, container.ErrRunning):
		say(Answer{Running: true})
	case errors.As(err, &start):
		say(Answer{Code: start.Code, Error: err.Error()})
	case err != nil:
		say(Answer{Code: 125, Error: err.Error()})
	case !told:
		say(Answer{Exit: code})
	}
}

// run reads the order and does it.
func run(ctx context.Context, m *container.Monitor, root string, talk *os.File) (int, error) {
	if _, err := rootless.Enter(); err != nil {
		return 0, err
	}
	store, err := cache.Open(root, cache.Options{})
	if err != nil {
		return 0, err
	}
	defer store.Close()
	m.Store = store
	var order Order
	if err := json.NewDecoder(talk).Decode(&order); err != nil {
		return 0, err // there is nothing to run
	}
	k, err := container.Set{Dir: filepath.Join(root, "containers")}.Open(order.ID)
	if err != nil {
		return 0, err
	}
	// For who looks at processes; the kernel cuts it to 15 characters.
	_ = os.WriteFile("/proc/self/comm", []byte("kiln "+k.Name), 0)
	m.Size = order.Size
	return m.Run(ctx, k)
}
