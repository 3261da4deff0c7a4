package container

import (
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"kiln.build/runner/network/dns"
	"kiln.build/runner/sandbox"
)

// etc mounts the container's own hosts, resolv.conf and hostname, unless the
// user has others.
func (r *run) etc() error {
	dir := filepath.Join(r.c.dir, "etc")
	if r.host != nil { // all of that is the other container's
		dir = filepath.Join(r.host.dir, "etc")
		return r.mountEtc(dir)
	}
	if err := r.writeResolvConf(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "hostname"), []byte(r.c.Hostname+"\n"), 0o644); err != nil {
		return err
	}
	if err := r.writeHosts(); err != nil {
		return err
	}
	return r.mountEtc(dir)
}

// writeResolvConf writes /etc/resolv.conf, which stays the same file.
func (w *watch) writeResolvConf() error {
	resolv, err := w.resolvConf()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(w.c.dir, "etc", "resolv.conf"), resolv, 0o644)
}

// mountEtc mounts the files of a folder.
func (r *run) mountEtc(dir string) error {
	for _, name := range []string{"hosts", "resolv.conf", "hostname"} {
		target := "/etc/" + name
		if !slices.ContainsFunc(r.c.Binds, func(b Bind) bool { return path.Clean(b.Target) == target }) {
			r.spec.Mounts = append(r.spec.Mounts, sandbox.Mount{Target: target, Source: filepath.Join(dir, name)})
		}
	}
	return nil
}

// resolvConf is the host's with what the user wants otherwise.
func (w *watch) resolvConf() ([]byte, error) {
	if w.c.Network == "none" {
		return nil, nil
	}
	conf, err := dns.SandboxConf(w.c.Network != "host")
	if err != nil {
		return nil, err
	}
	if w.wired != nil && w.wired.Nameserver != "" {
		conf = dns.WithNameserver(conf, w.wired.Nameserver)
	}
	d := w.c.DNS
	if w.wired != nil && w.wired.Resolver != "" {
		// It asks the others. A name without a dot may be a container's.
		d.Servers = []string{w.wired.Resolver}
		if !slices.ContainsFunc(d.Options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
			d.Options = append(slices.Clone(d.Options), "ndots:0")
		}
	}
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
func (w *watch) writeHosts() error {
	file := filepath.Join(w.c.dir, "etc", "hosts")
	if w.c.Network == "host" {
		if data, err := os.ReadFile("/etc/hosts"); err == nil {
			return os.WriteFile(file, append(data, w.extraHosts()...), 0o644)
		}
	}
	own := w.wired.addresses()
	if len(own) == 0 {
		own = []string{"127.0.1.1"}
	}
	text := localHosts + w.extraHosts()
	for _, ip := range own {
		text += ip + "\t" + w.ownNames() + "\n"
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// ownNames are the container's names in /etc/hosts, as docker has them: the one
// with a domain first, since that is what hostname -f looks for.
func (w *watch) ownNames() string {
	name := w.c.Hostname
	if w.c.Domainname != "" {
		return name + "." + w.c.Domainname + " " + name
	}
	if short, _, ok := strings.Cut(name, "."); ok {
		return name + " " + short
	}
	return name
}

// extraHosts are the lines of --add-host.
func (w *watch) extraHosts() string {
	var b strings.Builder
	for _, h := range w.c.Hosts {
		name, addr, _ := strings.Cut(h, ":")
		if addr = strings.Trim(addr, "[]"); addr == "host-gateway" {
			// Replaced once the gateway is known.
			if addr = w.wired.gateway(); addr == "" {
				addr = "127.0.0.1"
			}
		}
		fmt.Fprintf(&b, "%s\t%s\n", addr, name)
	}
	return b.String()
}

// ParseHost reads a value of --add-host, NAME:IP or NAME=IP, where an IPv6
// address may stand in brackets, and returns it as NAME:IP.
func ParseHost(s string) (string, error) {
	name, addr, ok := strings.Cut(s, "=")
	if !ok {
		name, addr, ok = strings.Cut(s, ":")
	}
	addr = strings.Trim(addr, "[]")
	if !ok || name == "" || strings.Contains(name, ":") || addr != "host-gateway" && net.ParseIP(addr) == nil {
		return "", fmt.Errorf("bad format for add-host: %q: must be NAME:IP", s)
	}
	return name + ":" + addr, nil
}
