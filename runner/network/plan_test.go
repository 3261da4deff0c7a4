package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kiln.build/runner/network/dns"
)

// another returns a further bridge with the state of b.
func another(t testing.TB, b *Bridge, name string, p Plan) *Bridge {
	t.Helper()
	o := &Bridge{name: name, table: b.table, dir: b.dir, plan: p, users: true}
	t.Cleanup(func() { remove(t, o) })
	return o
}

// Containers of one bridge reach each other, those of another bridge do not,
// and an internal one has no way out.
func TestBridgesApart(t *testing.T) {
	one := newBridge(t)
	two := another(t, one, "kilntest1", Plan{})
	inner := another(t, one, "kilntest2", Plan{Internal: true, Subnet: netip.MustParsePrefix("10.77.0.0/24")})
	a, b, c, d, e := newContainer(t), newContainer(t), newContainer(t), newContainer(t), newContainer(t)
	inOne, inTwo, friend := attach(t, one, a), attach(t, two, b), attach(t, two, c)
	hidden, neighbour := attach(t, inner, d), attach(t, inner, e)
	port := func(c *container, ep *Endpoint) string {
		return net.JoinHostPort(ep.IP.String(), serve(t, c.pid, ep.IP.String()+":0"))
	}
	toTwo, toOne, toHidden := port(b, inTwo), port(a, inOne), port(d, hidden)
	outside := net.JoinHostPort(outsideIP, serve(t, outsidePID, outsideIP+":0"))
	for _, x := range []struct {
		what string
		from *container
		to   string
		ok   bool
	}{
		{"on one bridge", c, toTwo, true},
		{"to the other bridge", a, toTwo, false},
		{"and back", b, toOne, false},
		{"out", a, outside, true},
		{"out of the other", b, outside, true},
		{"into the internal one", b, toHidden, false},
		{"within the internal one", e, toHidden, true},
		{"out of the internal one", d, outside, false},
		{"from the internal one", d, toTwo, false},
	} {
		err := inside(x.from.pid, func() error {
			k, err := net.DialTimeout("tcp", x.to, 300*time.Millisecond)
			if err == nil {
				k.Close()
			}
			return err
		})
		if (err == nil) != x.ok {
			t.Errorf("%s: %v, want it to be possible: %v", x.what, err, x.ok)
		}
	}
	if friend.Bits != 24 || !netip.MustParsePrefix("10.120.0.0/13").Contains(friend.IP) || neighbour.IP.String() != "10.77.0.3" {
		t.Errorf("addresses %s/%d, %s", friend.IP, friend.Bits, neighbour.IP)
	}
	if err := two.Remove(t.Context()); !errors.Is(err, ErrInUse) {
		t.Errorf("a bridge in use was removed: %v", err)
	}
	for _, ep := range []*Endpoint{inTwo, friend} {
		if err := ep.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := two.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	out, err := exec.Command("nft", "list", "table", "ip", one.table).Output()
	if errors.Is(err, exec.ErrNotFound) {
		return
	}
	if err != nil || strings.Contains(string(out), "kilntest1") || !strings.Contains(string(out), "kilntest2") {
		t.Errorf("rules after the removal of one: %v\n%s", err, out)
	}
}

// A container can ask for its address, and sit at two bridges.
func TestSeats(t *testing.T) {
	one := newBridge(t)
	two := another(t, one, "kilntest1", Plan{
		Subnet: netip.MustParsePrefix("10.78.0.0/24"), Gateway: netip.MustParseAddr("10.78.0.9"), Range: netip.MustParsePrefix("10.78.0.128/30"),
	})
	a, b := newContainer(t), newContainer(t)
	first := attach(t, one, a)
	mac, _ := net.ParseMAC("02:42:00:00:00:07")
	second, err := two.AttachAs(t.Context(), a.pid, Seat{Interface: "eth1", IP: netip.MustParseAddr("10.78.0.7"), MAC: mac, NoRoute: true})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if second.IP.String() != "10.78.0.7" || second.Gateway.String() != "10.78.0.9" || second.MAC.String() != mac.String() {
		t.Errorf("sits at %+v", second)
	}
	for ip, want := range map[string]string{
		"10.78.0.7": "address already in use", "10.78.0.9": "is no host's", "10.78.0.255": "is no host's", "10.79.0.1": "is no host's",
	} {
		_, err := two.AttachAs(t.Context(), b.pid, Seat{IP: netip.MustParseAddr(ip)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("address %s: %v", ip, err)
		}
	}
	var got []string
	for range 4 {
		c := newContainer(t)
		got = append(got, attach(t, two, c).IP.String())
	}
	if want := []string{"10.78.0.128", "10.78.0.129", "10.78.0.130", "10.78.0.131"}; !slices.Equal(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
	if _, err := two.Attach(t.Context(), b.pid); err == nil {
		t.Error("a fifth address was had in a range of four")
	}
	// The other way out, once the first is gone.
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := second.Lead(a.pid); err != nil {
		t.Fatal(err)
	}
	outside := net.JoinHostPort(outsideIP, serve(t, outsidePID, outsideIP+":0"))
	if err := inside(a.pid, func() error { _, err := net.DialTimeout("tcp", outside, time.Second); return err }); err != nil {
		t.Error(err)
	}
}

func TestOverlap(t *testing.T) {
	one := newBridge(t)
	gateway, err := one.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	two := another(t, one, "kilntest1", Plan{Subnet: gateway.Masked()})
	if _, err := two.Ensure(t.Context()); !errors.Is(err, ErrOverlap) {
		t.Errorf("two bridges in one subnet: %v", err)
	}
	for _, p := range []Plan{
		{Subnet: netip.MustParsePrefix("10.0.0.1/24")}, {Subnet: netip.MustParsePrefix("fd00::/64")},
		{Subnet: netip.MustParsePrefix("10.0.0.0/31")}, {Subnet: netip.MustParsePrefix("127.0.0.0/8")},
		{Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.1.1")},
		{Subnet: netip.MustParsePrefix("10.0.0.0/24"), Range: netip.MustParsePrefix("10.0.0.0/16")},
		{Gateway: netip.MustParseAddr("10.0.1.1")},
	} {
		if p.Check() == nil {
			t.Errorf("the plan %+v passes", p)
		}
	}
}

// Names are those of processes that run.
func TestNames(t *testing.T) {
	n := Names{t.TempDir()}
	a, b := netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.0.3")
	if err := errors.Join(n.Set(a, []string{"web", "www"}), n.Set(b, []string{"web2", "WWW"})); err != nil {
		t.Fatal(err)
	}
	if got := n.Lookup("www"); len(got) != 2 {
		t.Errorf("www is %v", got)
	}
	if got, ok := n.Reverse(a); !ok || got != "web" {
		t.Errorf("%s is %q", a, got)
	}
	if err := n.Remove(a); err != nil {
		t.Fatal(err)
	}
	if got := n.Lookup("WEB"); got != nil {
		t.Errorf("web is %v after it was removed", got)
	}
	dead := `{"pid":` + "4194304" + `,"start":"7","names":["ghost"]}`
	if err := os.WriteFile(filepath.Join(n.Dir, "10.1.0.9"), []byte(dead), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := n.Lookup("ghost"); got != nil {
		t.Errorf("a process that does not run is called ghost: %v", got)
	}
}

// A nameserver answers in a container, which has port 53 for itself.
func TestResolve(t *testing.T) {
	b := newBridge(t)
	c := newContainer(t)
	attach(t, b, c)
	if err := inside(c.pid, func() error { return exec.Command("ip", "link", "set", "lo", "up").Run() }); err != nil {
		t.Skip("no ip command: ", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	s := &dns.Server{ResolvConf: os.DevNull, Lookup: func(name string) ([]netip.Addr, bool) {
		return []netip.Addr{netip.MustParseAddr("10.9.8.7")}, name == "db"
	}}
	if err := Resolve(ctx, c.pid, s); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		r := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (k net.Conn, err error) {
			err = inside(c.pid, func() error { k, err = net.Dial(network, ResolverAddr+":53"); return err })
			return k, err
		}}
		got, err := r.LookupHost(ctx, "db.")
		if err != nil || !slices.Equal(got, []string{"10.9.8.7"}) {
			t.Errorf("%s: db is %v, %v", network, got, err)
		}
	}
	if err := inside(c.pid, func() error {
		l, err := net.ListenPacket("udp4", "0.0.0.0:53")
		if err == nil {
			l.Close()
		}
		return err
	}); err != nil {
		t.Errorf("the container's own port 53 is taken: %v", err)
	}
}

// Networks of two processes that are made at once have different subnets, and
// of two of one name one is made.
func TestSetAtOnce(t *testing.T) {
	s := Set{filepath.Join(t.TempDir(), "networks")}
	var wg sync.WaitGroup
	var mu sync.Mutex
	subnets, same := map[netip.Prefix]bool{}, 0
	for i := range 8 {
		wg.Go(func() {
			makeIt := func(n *Network, others []*Network) (err error) {
				n.Subnet, err = FreeOf(others)
				n.Gateway = n.Subnet.Addr().Next()
				return err
			}
			n, err := s.Create(t.Context(), Network{Name: "n" + string(rune('a'+i))}, makeIt)
			if err != nil {
				t.Error(err)
				return
			}
			_, err = s.Create(t.Context(), Network{Name: "same"}, makeIt)
			mu.Lock()
			defer mu.Unlock()
			if subnets[n.Subnet] = true; err == nil {
				same++
			}
		})
	}
	wg.Wait()
	if len(subnets) != 8 || same != 1 {
		t.Errorf("%d subnets of 8 networks, %d networks of one name", len(subnets), same)
	}
	all, err := s.List()
	if err != nil || len(all) != 9 {
		t.Fatalf("%d networks, %v", len(all), err)
	}
	if n, err := s.Find(all[3].ID[:12]); err != nil || n.Name != all[3].Name {
		t.Errorf("by ID: %v, %v", n, err)
	}
	if err := s.Remove(t.Context(), all[3], func() error { return nil }); err != nil {
		t.Error(err)
	}
	if _, err := s.Find(all[3].Name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("found after it was removed: %v", err)
	}
	for _, name := range []string{"", "host", "bridge", "none", "default", "a b", "-x", "../x"} {
		if _, err := s.Create(t.Context(), Network{Name: name}, func(*Network, []*Network) error { return nil }); err == nil {
			t.Errorf("a network could be called %q", name)
		}
	}
}
