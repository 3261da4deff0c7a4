package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Errors for those who branch on them.
var (
	ErrInUse        = errors.New("network has active endpoints")
	ErrOverlap      = errors.New("pool overlaps with other one on this address space")
	ErrAddressTaken = errors.New("address already in use")
)

// Check reports what is wrong with a plan that has a subnet.
func (p Plan) Check() error {
	s := p.Subnet
	switch {
	case !s.IsValid():
		if p.Gateway.IsValid() || p.Range.IsValid() {
			return errors.New("every ip-range or gateway must have a corresponding subnet")
		}
		return nil
	case !s.Addr().Is4():
		return fmt.Errorf("invalid subnet %s: only IPv4 is supported", s)
	case s != s.Masked():
		return fmt.Errorf("invalid subnet %s: it should be %s", s, s.Masked())
	case s.Bits() < 8 || s.Bits() > 30:
		return fmt.Errorf("invalid subnet %s: its prefix must have 8 to 30 bits", s)
	case s.Addr().IsLoopback() || s.Addr().IsMulticast() || s.Addr().IsLinkLocalUnicast() || s.Addr().IsUnspecified():
		return fmt.Errorf("invalid subnet %s: it is not for networks", s)
	case p.Gateway.IsValid() && !usable(s, p.Gateway):
		return fmt.Errorf("no matching subnet for gateway %s", p.Gateway)
	case p.Range.IsValid() && (p.Range.Bits() < s.Bits() || !s.Contains(p.Range.Addr())):
		return fmt.Errorf("no matching subnet for range %s", p.Range)
	}
	return nil
}

// usable says whether a host of the subnet can have the address: its first
// and its last cannot be had.
func usable(s netip.Prefix, a netip.Addr) bool {
	return s.Contains(a) && s.Contains(a.Next()) && a != s.Masked().Addr()
}

// gateway is the host's address within the subnet of a plan that has one.
func (p Plan) gateway() netip.Prefix {
	a := p.Gateway
	if !a.IsValid() {
		a = p.Subnet.Addr().Next()
	}
	return netip.PrefixFrom(a, p.Subnet.Bits())
}

// chooseGateway decides on the bridge's address, and with it on its subnet.
func (b *Bridge) chooseGateway() (netip.Prefix, error) {
	used, err := usedSubnets()
	if err != nil {
		return netip.Prefix{}, err
	}
	switch {
	case !b.plan.Subnet.IsValid() && b.users:
		return chooseSmall(used)
	case !b.plan.Subnet.IsValid():
		return chooseSubnet(used)
	}
	for _, u := range used {
		if u.Overlaps(b.plan.Subnet) {
			return netip.Prefix{}, fmt.Errorf("invalid pool request: %w (%s is in use by %s)", ErrOverlap, b.plan.Subnet, u)
		}
	}
	return b.plan.gateway(), nil
}

// Ensure makes the bridge if it is missing, and returns its address in its
// subnet.
func (b *Bridge) Ensure(ctx context.Context) (netip.Prefix, error) {
	r, err := b.ensure(ctx)
	return r.gateway, err
}

// Remove takes the bridge away, with its rules. The error is [ErrInUse] where
// containers are joined to it.
func (b *Bridge) Remove(ctx context.Context) error {
	lock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	link, err := netlink.LinkByName(b.name)
	var missing netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &missing) {
		return fmt.Errorf("find bridge %s: %w", b.name, err)
	}
	if err == nil {
		all, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		for _, l := range all {
			if l.Attrs().MasterIndex == link.Attrs().Index {
				return ErrInUse
			}
		}
		if err := delLink(link.Attrs().Index); err != nil {
			return err
		}
	}
	b.sweep()
	if err := os.Remove(b.recordPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget bridge %s: %w", b.name, err)
	}
	return b.ensureFirewall()
}

// chooseSmall returns the gateway's address within the first subnet for a
// network made by a user that overlaps none of those in use.
func chooseSmall(used []netip.Prefix) (netip.Prefix, error) {
next:
	for i := range 8 << 8 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(120 + i>>8), byte(i), 1}), 24)
		for _, u := range used {
			if u.Overlaps(p) {
				continue next
			}
		}
		return p, nil
	}
	return netip.Prefix{}, errors.New("no subnet is free: the host has routes to all of 10.120.0.0/13")
}

// sweep removes the locks of addresses that nobody has any more. That one
// stays is no error: it is an empty file.
func (b *Bridge) sweep() {
	data, err := os.ReadFile(b.recordPath())
	k := known{}
	if err != nil || json.Unmarshal(data, &k) != nil {
		return
	}
	files, err := os.ReadDir(filepath.Join(b.dir, "addresses"))
	if err != nil {
		return
	}
	for _, f := range files {
		ip, err := netip.ParseAddr(f.Name())
		if err != nil || !k.Subnet.Contains(ip) {
			continue
		}
		if lock, err := lockAddress(filepath.Join(b.dir, "addresses", f.Name())); err == nil {
			_ = unlockAddress(lock)
		}
	}
}

// known is a bridge as the firewall knows it.
type known struct {
	name     string
	Subnet   netip.Prefix `json:"subnet"`
	Internal bool         `json:"internal,omitempty"`
}

func (b *Bridge) recordPath() string { return filepath.Join(b.dir, "bridges", b.name) }

// record writes the bridge down for the firewall, which is that of them all.
func (b *Bridge) record(r ready) error {
	data, err := json.Marshal(known{Subnet: r.gateway.Masked(), Internal: b.plan.Internal})
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(b.recordPath()); err == nil && string(old) == string(data) {
		return nil
	}
	if err := replaceFile(b.recordPath(), data); err != nil {
		return fmt.Errorf("remember bridge %s: %w", b.name, err)
	}
	return nil
}

// bridges lists the bridges that were written down, by name.
func (b *Bridge) bridges() ([]known, error) {
	files, err := os.ReadDir(filepath.Join(b.dir, "bridges"))
	if err != nil {
		return nil, fmt.Errorf("list bridges: %w", err)
	}
	var all []known
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".") {
			continue // half written by a process that was killed
		}
		data, err := os.ReadFile(filepath.Join(b.dir, "bridges", f.Name()))
		if err != nil {
			return nil, fmt.Errorf("list bridges: %w", err)
		}
		k := known{name: f.Name()}
		if json.Unmarshal(data, &k) != nil || !k.Subnet.IsValid() {
			return nil, fmt.Errorf("list bridges: %s: not understood", f.Name())
		}
		all = append(all, k)
	}
	if slices.ContainsFunc(all, func(k known) bool { return k.name == mainBridge }) {
		return all, nil
	}
	// One that a program made which wrote nothing down keeps its rules.
	if link, err := netlink.LinkByName(mainBridge); err == nil {
		if a, err := address(link); err == nil && a.IsValid() {
			all = append(all, known{name: mainBridge, Subnet: a.Masked()})
		}
	}
	return all, nil
}

// replaceFile writes a file as a whole. The directory is of locks and hints
// that a crash of the machine takes along: nothing is synced.
func replaceFile(path string, data []byte) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+fmt.Sprintf(".%d", os.Getpid()))
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}
