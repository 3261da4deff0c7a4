package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"kiln.build/runner/container"
	"kiln.build/runner/network"
)

// networkRow is a network as network ls shows it; the names are docker's.
type networkRow struct {
	CreatedAt, Driver, ID, IPv4, IPv6, Internal, Labels, Name, Scope string

	labels map[string]string
}

// Label is the value of a label, as docker's templates have it.
func (r networkRow) Label(name string) string { return r.labels[name] }

func (a *app) networkList() *cobra.Command {
	var quiet, whole bool
	var format string
	var filters []string
	c := &cobra.Command{
		Use: "ls [flags]", Aliases: []string{"list"}, Short: "List networks", Args: cobra.NoArgs,
		Example: "  kiln network ls --filter driver=bridge",
		RunE: func(*cobra.Command, []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			users, err := set.List()
			if err != nil {
				return err
			}
			keep, err := networkFilter(filters, users)
			if err != nil {
				return err
			}
			all, err := a.networks().List()
			if err != nil {
				return err
			}
			all = append(all, predefined()...)
			slices.SortFunc(all, func(a, b *network.Network) int { return strings.Compare(a.Name, b.Name) })
			rows := []networkRow{}
			for _, n := range all {
				if keep(n) {
					rows = append(rows, rowOf(n, whole))
				}
			}
			if quiet && format == "" {
				format = "{{.ID}}"
			}
			return printRows(a.stdout, format, "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}", map[string]string{
				"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv4": "IPV4", "IPv6": "IPV6",
				"Internal": "INTERNAL", "Labels": "LABELS", "CreatedAt": "CREATED AT",
			}, rows)
		},
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "only IDs")
	c.Flags().BoolVar(&whole, "no-trunc", false, "whole IDs")
	c.Flags().StringVar(&format, "format", "", formatHelp)
	c.Flags().StringArrayVarP(&filters, "filter", "f", nil, "dangling, driver, id, label, name, scope, type =VALUE (repeatable)")
	return c
}

func rowOf(n *network.Network, whole bool) networkRow {
	r := networkRow{
		ID: n.ID[:12], Name: n.Name, Driver: driverOf(n), Scope: "local", IPv4: "true", IPv6: "false",
		Internal: strconv.FormatBool(n.Internal), CreatedAt: stampShort(n.Created), labels: n.Labels,
	}
	if whole {
		r.ID = n.ID
	}
	var labels []string
	for _, name := range slices.Sorted(maps.Keys(n.Labels)) {
		labels = append(labels, name+"="+n.Labels[name])
	}
	r.Labels = strings.Join(labels, ",")
	return r
}

func driverOf(n *network.Network) string {
	switch n.ID {
	case hostNetworkID:
		return "host"
	case noneNetworkID:
		return "null"
	}
	return "bridge"
}

func custom(n *network.Network) bool { return !slices.Contains(network.Predefined, n.Name) }

// networkFilter reads filters. Of several values of a key one must match, but
// of labels all.
func networkFilter(filters []string, users []*container.Container) (func(*network.Network) bool, error) {
	tests := map[string][]func(*network.Network) bool{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return nil, fmt.Errorf("invalid filter %q: must be KEY=VALUE", f)
		}
		var t func(*network.Network) bool
		group := key
		switch key {
		case "driver":
			t = func(n *network.Network) bool { return driverOf(n) == value }
		case "id":
			t = func(n *network.Network) bool { return strings.HasPrefix(n.ID, value) }
		case "name":
			t = func(n *network.Network) bool { return strings.Contains(n.Name, value) }
		case "scope":
			t = func(*network.Network) bool { return value == "local" }
		case "label":
			group, t = f, func(n *network.Network) bool { return labelled(n.Labels, value) }
		case "type":
			if value != "custom" && value != "builtin" {
				return nil, fmt.Errorf("invalid filter: 'type'='%s'", value)
			}
			t = func(n *network.Network) bool { return custom(n) == (value == "custom") }
		case "dangling":
			want, err := strconv.ParseBool(value)
			if err != nil {
				return nil, fmt.Errorf("invalid filter 'dangling=%s'", value)
			}
			t = func(n *network.Network) bool {
				return custom(n) && (len(container.NetworkUsers(users, n.ID)) == 0) == want
			}
		default:
			return nil, fmt.Errorf("invalid filter '%s'", key)
		}
		tests[group] = append(tests[group], t)
	}
	return func(n *network.Network) bool {
		for _, any := range tests {
			if !slices.ContainsFunc(any, func(t func(*network.Network) bool) bool { return t(n) }) {
				return false
			}
		}
		return true
	}, nil
}

// networkDetails is what kiln network inspect shows; the names are docker's.
type networkDetails struct {
	Name       string
	Id         string //nolint:revive // as in docker
	Created    string
	Scope      string
	Driver     string
	EnableIPv4 bool
	EnableIPv6 bool
	IPAM       networkIPAM
	Internal   bool
	Attachable bool
	Ingress    bool
	ConfigFrom map[string]string
	ConfigOnly bool
	Containers map[string]networkMember
	Options    map[string]string
	Labels     map[string]string
}

type networkIPAM struct {
	Driver  string
	Options map[string]string
	Config  []networkPool
}

type networkPool struct {
	Subnet  string `json:",omitempty"`
	IPRange string `json:",omitempty"`
	Gateway string `json:",omitempty"`
}

type networkMember struct {
	Name        string
	EndpointID  string
	MacAddress  string
	IPv4Address string
	IPv6Address string
}

func (a *app) networkInspect() *cobra.Command {
	c := a.inspectCommand("network")
	c.Short = "Show all about networks, as JSON"
	c.Example = "  kiln network inspect back\n  kiln network inspect -f '{{range .Containers}}{{.Name}} {{end}}' back"
	c.Flags().BoolP("verbose", "v", false, "accepted: all is shown")
	return c
}

// networkDetails returns all about a network, and whether there is one of that
// name.
func (a *app) networkDetails(name string) (any, bool, error) {
	set, err := a.containers()
	if err != nil {
		return nil, false, err
	}
	n, err := a.network(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	d := &networkDetails{
		Name: n.Name, Id: n.ID, Created: stamp(n.Created), Scope: "local", Driver: driverOf(n), EnableIPv4: true,
		IPAM:     networkIPAM{Driver: "default", Options: map[string]string{}, Config: []networkPool{}},
		Internal: n.Internal, Attachable: n.Attachable, ConfigFrom: map[string]string{"Network": ""},
		Containers: map[string]networkMember{}, Options: n.Options, Labels: n.Labels,
	}
	if d.Options == nil {
		d.Options = map[string]string{}
	}
	if d.Labels == nil {
		d.Labels = map[string]string{}
	}
	if n.ID == container.BridgeID {
		n.Subnet, n.Gateway = bridgeSubnet()
	}
	if n.Subnet.IsValid() {
		pool := networkPool{Subnet: n.Subnet.String(), Gateway: n.Gateway.String()}
		if n.Range.IsValid() {
			pool.IPRange = n.Range.String()
		}
		d.IPAM.Config = append(d.IPAM.Config, pool)
	}
	all, err := set.List()
	if err != nil {
		return nil, false, err
	}
	for _, k := range all {
		st, err := k.State()
		if err != nil {
			continue // removed meanwhile
		}
		for _, j := range st.Networks {
			if j.ID == n.ID {
				d.Containers[k.ID] = networkMember{
					Name: k.Name, EndpointID: endpointID(k, j.ID), MacAddress: j.MAC, IPv4Address: fmt.Sprintf("%s/%d", j.IP, j.Bits),
				}
			}
		}
	}
	return d, true, nil
}

// bridgeSubnet is that of the network called bridge, and this machine's
// address in it, where they are known.
func bridgeSubnet() (netip.Prefix, netip.Addr) {
	gateway := network.New(network.State).Gateway()
	if !bridged() {
		gateway, _ = network.FreeSubnet() // which its next container has
	}
	return gateway.Masked(), gateway.Addr()
}

// endpointID names a container's place in a network.
func endpointID(k *container.Container, network string) string {
	sum := sha256.Sum256([]byte(k.ID + network))
	return hex.EncodeToString(sum[:])
}

// inspectedEndpoint is a network of a container; the names are docker's.
type inspectedEndpoint struct {
	IPAMConfig          *inspectedIPAM
	Links               []string
	Aliases             []string
	MacAddress          string
	DriverOpts          map[string]string
	GwPriority          int
	NetworkID           string
	EndpointID          string
	Gateway             string
	IPAddress           string
	IPPrefixLen         int
	IPv6Gateway         string
	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int
	DNSNames            []string
}

type inspectedIPAM struct {
	IPv4Address string `json:",omitempty"`
}

// inspectNetworks shows a container's networks, by name.
func inspectNetworks(k *container.Container, st container.State) map[string]inspectedEndpoint {
	all := map[string]inspectedEndpoint{}
	of := func(m container.Membership) inspectedEndpoint {
		e := inspectedEndpoint{Aliases: m.Aliases, NetworkID: m.ID}
		if m.IP != "" {
			e.IPAMConfig = &inspectedIPAM{m.IP}
		}
		return e
	}
	if !k.Networked() {
		for _, n := range predefined() {
			if n.Name == k.Network {
				all[n.Name] = inspectedEndpoint{NetworkID: n.ID}
			}
		}
		return all
	}
	for _, m := range k.Memberships() {
		all[m.Network] = of(m)
	}
	for _, j := range st.Networks {
		e, wanted := all[j.Network]
		if !wanted {
			e = of(j.Membership)
		}
		e.MacAddress, e.EndpointID, e.Gateway, e.IPAddress, e.IPPrefixLen = j.MAC, endpointID(k, j.ID), j.Gateway, j.IP, j.Bits
		e.DNSNames = j.Names
		all[j.Network] = e
	}
	return all
}
