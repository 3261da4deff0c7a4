package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"kiln.build/runner/container"
	"kiln.build/runner/rootless"
)

// connect reads --network and what belongs to it. Networks get their IDs from
// [app.joinNetworks], containers theirs too.
func (f *runFlags) connect(c *container.Config) error {
	var all []container.Membership
	for _, text := range f.networks {
		m, err := parseNetwork(text)
		if err != nil {
			return err
		}
		all = append(all, m)
	}
	if len(all) == 0 || len(all) == 1 && all[0].Network == "default" {
		all = []container.Membership{{Network: defaultNetwork()}}
	}
	first := &all[0]
	first.Aliases = append(first.Aliases, f.aliases...)
	if f.ip != "" {
		first.IP = f.ip
	}
	if f.mac != "" {
		first.MAC = f.mac
	}
	c.Network = first.Network
	for _, m := range all {
		if err := f.checkNetwork(c, m, len(all)); err != nil {
			return err
		}
	}
	if c.Networked() {
		c.Networks = all
	}
	return nil
}

// checkNetwork refuses what cannot be had together, in docker's words.
func (f *runFlags) checkNetwork(c *container.Config, m container.Membership, n int) error {
	if m.MAC != "" {
		if mac, err := net.ParseMAC(m.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return fmt.Errorf("invalid MAC address: %s", m.MAC)
		}
	}
	if m.IP != "" {
		if ip := net.ParseIP(m.IP); ip == nil || ip.To4() == nil {
			return fmt.Errorf("invalid IPv4 address: %s", m.IP)
		}
	}
	mode, shared := m.Network, strings.HasPrefix(m.Network, "container:")
	switch {
	case n > 1 && (shared || mode == "host" || mode == "none"):
		return errors.New("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
	case shared && f.hostname != "":
		return errors.New("conflicting options: hostname and the network mode")
	case shared && (len(f.dns) > 0 || len(f.dnsSearch) > 0 || len(f.dnsOptions) > 0):
		return errors.New("conflicting options: dns and the network mode")
	case shared && len(f.hosts) > 0:
		return errors.New("conflicting options: custom host-to-IP mapping and the network mode")
	case shared && (len(f.publish) > 0 || f.publishAll):
		return errors.New("conflicting options: port publishing and the container type network mode")
	case shared && len(f.expose) > 0:
		return errors.New("conflicting options: port exposing and the container type network mode")
	case shared && f.mac != "":
		return errors.New("conflicting options: mac-address and the network mode")
	case (shared || mode == "host" || mode == "none" || mode == "bridge") && len(m.Aliases) > 0:
		return errNoAliases
	case (shared || mode == "host" || mode == "none" || mode == "bridge") && m.IP != "":
		return errors.New("user specified IP address is supported on user defined networks only")
	}
	return nil
}

// parseNetwork reads a value of --network: a name, or fields.
func parseNetwork(text string) (m container.Membership, err error) {
	if options, ok := strings.CutPrefix(text, userNetwork); ok && (options == "" || options[0] == ':') {
		return parseUserNetwork(strings.TrimPrefix(options, ":"))
	}
	if !strings.Contains(text, "=") {
		if text == "" {
			return m, errors.New("--network: no network is named")
		}
		m.Network = text
		return m, nil
	}
	for _, field := range strings.Split(text, ",") {
		key, value, _ := strings.Cut(field, "=")
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "name":
			m.Network = value
		case "alias":
			m.Aliases = append(m.Aliases, value)
		case "ip":
			m.IP = value
		case "mac-address":
			m.MAC = value
		case "driver-opt", "gw-priority": // of no effect
		default:
			return m, fmt.Errorf("invalid field key %s in --network=%s", key, text)
		}
	}
	if m.Network == "" {
		return m, fmt.Errorf("--network=%s: no network is named", text)
	}
	return m, nil
}

// userNetwork is what podman calls a network stack without root's rights, and
// how options of it are set there. It is the network called bridge.
const userNetwork = "slirp4netns"

func parseUserNetwork(options string) (m container.Membership, err error) {
	if rootless.Current() == rootless.Root {
		return m, errors.New("--network=" + userNetwork + ": is for callers without root's rights")
	}
	m.Network = "bridge"
	for _, o := range strings.FieldsFunc(options, func(r rune) bool { return r == ',' }) {
		key, value, _ := strings.Cut(o, "=")
		if key != "allow_host_loopback" {
			return m, fmt.Errorf("--network=%s: option %q is not known: only allow_host_loopback is", userNetwork, key)
		}
		if m.HostLoopback, err = strconv.ParseBool(value); err != nil {
			return m, fmt.Errorf("--network=%s: %s=%q: must be true or false", userNetwork, key, value)
		}
	}
	return m, nil
}

// joinNetworks looks up the networks of a new container.
func (a *app) joinNetworks(set container.Set, c *container.Config) error {
	if name := c.SharedWith(); name != "" {
		if rootless.Current() != rootless.Root {
			return fmt.Errorf("--network=%s: the network of another container takes root's rights: each caller without them has a user namespace of its own", c.Network)
		}
		other, err := set.Find(name)
		if err != nil {
			return err
		}
		c.Network, c.Hostname = "container:"+other.ID, other.Hostname
		return nil
	}
	seen := map[string]bool{}
	for i := range c.Networks {
		m := &c.Networks[i]
		n, err := a.network(m.Network)
		if err != nil {
			return err
		}
		if seen[n.ID] {
			return fmt.Errorf("network %q is specified multiple times", n.Name)
		}
		seen[n.ID] = true
		if err := checkAddress(n, m.IP); err != nil {
			return err
		}
		m.Network, m.ID = n.Name, n.ID
	}
	if len(c.Networks) > 0 {
		c.Network = c.Networks[0].Network
	}
	return nil
}
