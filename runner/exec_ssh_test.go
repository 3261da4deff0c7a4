package runner

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"kiln.build/solver/op"
)

// A step can talk to the user's agent, and not open its socket to other users
// of the machine.
func TestSSHSocket(t *testing.T) {
	b := newBed(t)
	root := b.stage(world...)
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(socket, 0o600); err != nil {
		t.Fatal(err)
	}
	b.setup = func(r *Runner) { r.SSH = map[string]string{"default": socket} }
	agent := op.Mount{Type: op.SSH, ID: "default", Target: "/run/agent"}
	if got := b.run(do(root, "dial /run/agent", "echo connected").mount(agent)); got != "connected" {
		t.Errorf("the agent: %q", got)
	}
	if _, err := b.try(t.Context(), do(root, "chmod /run/agent 777").mount(agent).vertex()); err == nil {
		t.Error("a step changed the mode of the agent's socket")
	}
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the agent's socket: %v, %v", fi.Mode(), err)
	}
}
