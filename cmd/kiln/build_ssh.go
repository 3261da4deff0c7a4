package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"kiln.build/cache"
)

// sshSource is what --ssh gives an id: the socket of an agent, or keys.
type sshSource struct {
	socket string
	keys   []any // private keys, as package agent takes them
}

// parseSSH parses --ssh default|ID[=SOCKET|KEY[,KEY]].
func parseSSH(flags []string) (map[string]sshSource, error) {
	m := map[string]sshSource{}
	for _, s := range flags {
		id, value, ok := strings.Cut(s, "=")
		if id == "" {
			return nil, fmt.Errorf("--ssh=%q: no id", s)
		}
		if !ok {
			if value = os.Getenv("SSH_AUTH_SOCK"); value == "" {
				return nil, fmt.Errorf("--ssh=%s: SSH_AUTH_SOCK is not set: start an agent, or give %s=SOCKET", s, id)
			}
		}
		var src sshSource
		for path := range strings.SplitSeq(value, ",") {
			fi, err := os.Stat(path)
			if err != nil {
				return nil, fmt.Errorf("--ssh=%s: %w", s, err)
			}
			if fi.Mode()&os.ModeSocket != 0 {
				if src.socket != "" || len(src.keys) > 0 || strings.Contains(value, ",") {
					return nil, fmt.Errorf("--ssh=%s: one agent's socket, or keys", s)
				}
				src.socket = path
				continue
			}
			key, err := readKey(path)
			if err != nil {
				return nil, fmt.Errorf("--ssh=%s: %w", s, err)
			}
			src.keys = append(src.keys, key)
		}
		m[id] = src
	}
	return m, nil
}

func readKey(path string) (any, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := ssh.ParseRawPrivateKey(data)
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked):
		return nil, fmt.Errorf("%s has a passphrase: add it to an agent", path)
	case err != nil:
		return nil, fmt.Errorf("%s is neither an agent's socket nor a private key", path)
	}
	return key, nil
}

// agents are the agents of a build that hold keys themselves.
type agents struct {
	listeners []net.Listener
	wg        sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // nil once closed
}

// start returns the sockets by id, with an agent for each id that has keys.
func (a *agents) start(store *cache.Store, sources map[string]sshSource) (map[string]string, error) {
	a.conns = map[net.Conn]bool{}
	sockets := map[string]string{}
	for id, src := range sources {
		if src.socket != "" {
			sockets[id] = src.socket
			continue
		}
		ring, ok := agent.NewKeyring().(agent.ExtendedAgent)
		if !ok {
			return nil, errors.New("the agent cannot sign with SHA-2")
		}
		for _, k := range src.keys {
			if err := ring.Add(agent.AddedKey{PrivateKey: k}); err != nil {
				return nil, fmt.Errorf("--ssh=%s: %w", id, err)
			}
		}
		dir, err := store.Scratch("agent")
		if err != nil {
			return nil, err
		}
		l, err := listenAt(dir)
		if err != nil {
			return nil, fmt.Errorf("--ssh=%s: %w", id, err)
		}
		a.listeners = append(a.listeners, l)
		sockets[id] = filepath.Join(dir, "socket")
		a.wg.Go(func() { a.serve(l, ring) })
	}
	return sockets, nil
}

// listenAt listens on a socket in a folder whose path may be longer than
// that of a socket can be.
func listenAt(dir string) (*net.UnixListener, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/socket", d.Fd())})
	if err == nil {
		l.SetUnlinkOnClose(false) // that name is gone then; the folder is the store's to remove
	}
	return l, err
}

func (a *agents) serve(l net.Listener, ring agent.ExtendedAgent) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		a.mu.Lock()
		if a.conns == nil {
			a.mu.Unlock()
			_ = c.Close()
			return
		}
		a.conns[c] = true
		a.mu.Unlock()
		a.wg.Go(func() {
			_ = agent.ServeAgent(readOnly{ring}, c) // ends with the connection
			_ = c.Close()
			a.mu.Lock()
			defer a.mu.Unlock()
			delete(a.conns, c)
		})
	}
}

// close ends the agents.
func (a *agents) close() {
	for _, l := range a.listeners {
		_ = l.Close()
	}
	a.mu.Lock()
	var open []io.Closer
	for c := range a.conns {
		open = append(open, c)
	}
	a.conns = nil
	a.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
	a.wg.Wait()
}

// readOnly is an agent whose keys a step can use and not change. It is an
// extended one: RSA keys sign with SHA-2 by an extension.
type readOnly struct{ agent.ExtendedAgent }

var errReadOnly = errors.New("the keys of this agent cannot be changed")

func (readOnly) Add(agent.AddedKey) error       { return errReadOnly }
func (readOnly) Remove(ssh.PublicKey) error     { return errReadOnly }
func (readOnly) RemoveAll() error               { return errReadOnly }
func (readOnly) Lock(passphrase []byte) error   { return errReadOnly }
func (readOnly) Unlock(passphrase []byte) error { return errReadOnly }
