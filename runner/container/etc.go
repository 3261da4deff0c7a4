package container

import (
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"kiln.build/runner"
	"kiln.build/runner/sandbox"
)

// etc mounts the container's own hosts, resolv.conf and hostname, unless the
// user has others.
func (r *run) etc() error {
	dir := filepath.Join(r.c.dir, "etc")
	if err := r.writeResolvConf(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "hostname"), []byte(r.c.Hostname+"\n"), 0o644); err != nil {
		return err
	}
	if err := r.writeHosts(); err != nil {
		return err
	}
	for _, name := range []string{"hosts", "resolv.conf", "hostname"} {
		target := "/etc/" + name
		if !slices.ContainsFunc(r.c.Binds, func(b Bind) bool { return path.Clean(b.Target) == target }) {
			r.spec.Mounts = append(r.spec.Mounts, sandbox.Mount{Target: target, Source: filepath.Join(dir, name)})
		}
	}
	return nil
}

// writeResolvConf writes /etc/resolv.conf, again once the network's own
// nameserver is known. The file stays the same one, since it is mounted.
func (r *run) writeResolvConf() error {
	conf, err := r.resolvConf()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.c.dir, "etc", "resolv.conf"), conf, 0o644)
}

// resolvConf is the host's with what the user wants otherwise.
func (r *run) resolvConf() ([]byte, error) {
	if r.c.Network == "none" {
		return nil, nil
	}
	conf, err := runner.ResolvConf(r.c.Network == "bridge")
	if err != nil {
		return nil, err
	}
	if r.endpoint.Nameserver != "" {
		conf = runner.WithNameserver(conf, r.endpoint.Nameserver)
	}
	d := r.c.DNS
	replaced := map[string]bool{
		"nameserver": len(d.Servers) > 0, "search": len(d.Search) > 0, "domain": len(d.Search) > 0, "options": len(d.Options) > 0,
	}
	var b strings.Builder
	for line := range strings.Lines(string(conf)) {
		if f := strings.Fields(line); len(f) > 0 && !replaced[f[0]] {
			b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	for _, s := range d.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(d.Search) > 0 && !slices.Equal(d.Search, []string{"."}) { // "." is none
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Search, " "))
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return []byte(b.String()), nil
}

const localHosts = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
ff00::	ip6-mcastprefix
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
`

// writeHosts writes /etc/hosts, with the container's address once that is
// known. The file stays the same one, since it is mounted.
func (r *run) writeHosts() error {
	file := filepath.Join(r.c.dir, "etc", "hosts")
	if r.c.Network == "host" {
		if data, err := os.ReadFile("/etc/hosts"); err == nil {
			return os.WriteFile(file, append(data, r.extraHosts()...), 0o644)
		}
	}
	ip := r.endpoint.IP
	if ip == "" {
		ip = "127.0.1.1"
	}
	return os.WriteFile(file, []byte(localHosts+r.extraHosts()+ip+"\t"+r.c.Hostname+"\n"), 0o644)
}

// extraHosts are the lines of --add-host.
func (r *run) extraHosts() string {
	var b strings.Builder
	for _, h := range r.c.Hosts {
		name, addr, _ := strings.Cut(h, ":")
		addr = strings.Trim(addr, "[]")
		if addr == "host-gateway" {
			// Replaced once the gateway is known.
			if addr = r.endpoint.Gateway; addr == "" {
				addr = "127.0.0.1"
			}
		}
		fmt.Fprintf(&b, "%s\t%s\n", addr, name)
	}
	return b.String()
}

// CheckHost checks a value of --add-host.
func CheckHost(s string) error {
	name, addr, ok := strings.Cut(s, ":")
	if !ok || name == "" || addr != "host-gateway" && net.ParseIP(strings.Trim(addr, "[]")) == nil {
		return fmt.Errorf("bad format for add-host: %q: must be NAME:IP", s)
	}
	return nil
}
