package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Names are what the containers of one network find each other by: a folder
// with a file for each address, that the container's monitor writes. Only what
// a process wrote that still runs is believed. It is safe for concurrent use,
// by several processes too.
type Names struct{ Dir string }

// named is the form of such a file.
type named struct {
	PID   int      `json:"pid"`   // of the monitor,
	Start string   `json:"start"` // and when it started, in ticks
	Names []string `json:"names"` // the first is what the address is called
}

// Set says what the container at an address is called, until the calling
// process ends or calls Remove. Names are compared without regard to case.
func (n Names) Set(ip netip.Addr, names []string) error {
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		return fmt.Errorf("name %s: %w", ip, err)
	}
	data, err := json.Marshal(named{os.Getpid(), startOf(os.Getpid()), names})
	if err == nil {
		err = replaceFile(n.path(ip), data)
	}
	if err != nil {
		return fmt.Errorf("name %s: %w", ip, err)
	}
	return nil
}

// Remove forgets the names of an address.
func (n Names) Remove(ip netip.Addr) error {
	err := os.Remove(n.path(ip))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Clear forgets all names, of a network that is gone.
func (n Names) Clear() error { return os.RemoveAll(n.Dir) }

// Lookup returns the addresses that have a name.
func (n Names) Lookup(name string) []netip.Addr {
	files, err := os.ReadDir(n.Dir)
	if err != nil {
		return nil // there are no names yet
	}
	var all []netip.Addr
	for _, f := range files {
		ip, err := netip.ParseAddr(f.Name())
		if err != nil {
			continue
		}
		same := func(s string) bool { return strings.EqualFold(s, name) }
		if names := n.of(ip); slices.ContainsFunc(names, same) {
			all = append(all, ip)
		}
	}
	return all
}

// Reverse returns what an address is called.
func (n Names) Reverse(ip netip.Addr) (string, bool) {
	if names := n.of(ip); len(names) > 0 {
		return names[0], true
	}
	return "", false
}

func (n Names) of(ip netip.Addr) []string {
	var x named
	data, err := os.ReadFile(n.path(ip))
	if err != nil || json.Unmarshal(data, &x) != nil || x.Start == "" || startOf(x.PID) != x.Start {
		return nil
	}
	return x.Names
}

func (n Names) path(ip netip.Addr) string { return filepath.Join(n.Dir, ip.String()) }

// startOf is when a process started, "" if there is none (proc_pid_stat(5)).
func startOf(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The name in brackets may hold anything.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 || f[0] == "Z" {
		return ""
	}
	return f[19]
}
