package dns

import (
	"errors"
	"io/fs"
	"os"
	"strings"
)

// WithNameserver returns a resolver configuration with another nameserver in
// place of its own.
func WithNameserver(conf []byte, addr string) []byte {
	var b strings.Builder
	for line := range strings.Lines(string(conf)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] != "nameserver" {
			b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	return []byte(b.String() + "nameserver " + addr + "\n")
}

// SandboxConf is the resolver configuration for a sandbox. In a network of its
// own this machine's loopback cannot be reached, so the servers that systemd's
// local one asks are taken instead, as docker does.
func SandboxConf(own bool) ([]byte, error) {
	data, err := os.ReadFile("/etc/resolv.conf")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || !own || !onlyLoopback(data) {
		return data, err
	}
	upstream, err := os.ReadFile("/run/systemd/resolve/resolv.conf")
	if err != nil {
		return data, nil
	}
	return upstream, nil
}

// onlyLoopback reports whether all name servers are on this machine's own
// loopback.
func onlyLoopback(conf []byte) bool {
	servers, local := 0, 0
	for line := range strings.Lines(string(conf)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		servers++
		if strings.HasPrefix(f[1], "127.") || f[1] == "::1" {
			local++
		}
	}
	return servers > 0 && servers == local
}
