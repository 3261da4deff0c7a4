package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

var names = map[string][]netip.Addr{
	"web":  {netip.MustParseAddr("10.0.0.2")},
	"both": {netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("fd00::3")},
	"none": nil,
	"many": slices.Repeat([]netip.Addr{netip.MustParseAddr("10.0.0.4")}, 50),
}

func lookup(name string) ([]netip.Addr, bool) {
	addrs, ok := names[name]
	return addrs, ok
}

func reverse(a netip.Addr) (string, bool) {
	return "web", a == names["web"][0] || a == netip.MustParseAddr("fd00::2")
}

// question packs a query; size above zero is that of an OPT record.
func question(t testing.TB, name string, typ dnsmessage.Type, size int) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}
	if size > 0 {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(size, dnsmessage.RCodeSuccess, false); err != nil {
			t.Fatal(err)
		}
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unpack(t testing.TB, b []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	return m
}

func values(m dnsmessage.Message) []string {
	var all []string
	for _, r := range m.Answers {
		switch r := r.Body.(type) {
		case *dnsmessage.AResource:
			all = append(all, netip.AddrFrom4(r.A).String())
		case *dnsmessage.AAAAResource:
			all = append(all, netip.AddrFrom16(r.AAAA).String())
		case *dnsmessage.PTRResource:
			all = append(all, r.PTR.String())
		}
	}
	slices.Sort(all)
	return all
}

func TestLocal(t *testing.T) {
	s := &Server{Lookup: lookup, Reverse: reverse, Upstream: []netip.AddrPort{deadServer(t)}}
	for _, tt := range []struct {
		name string
		typ  dnsmessage.Type
		want []string
	}{
		{"web.", dnsmessage.TypeA, []string{"10.0.0.2"}},
		{"WeB.", dnsmessage.TypeA, []string{"10.0.0.2"}},
		{"web.", dnsmessage.TypeAAAA, nil},
		{"web.", dnsmessage.TypeMX, nil},
		{"both.", dnsmessage.TypeA, []string{"10.0.0.3"}},
		{"both.", dnsmessage.TypeAAAA, []string{"fd00::3"}},
		{"both.", dnsmessage.TypeALL, []string{"10.0.0.3", "fd00::3"}},
		{"none.", dnsmessage.TypeA, nil},
		{"2.0.0.10.in-addr.arpa.", dnsmessage.TypePTR, []string{"web."}},
		{"2." + strings.Repeat("0.", 27) + "0.0.d.f.ip6.arpa.", dnsmessage.TypePTR, []string{"web."}},
	} {
		t.Run(tt.name+tt.typ.String(), func(t *testing.T) {
			q := question(t, tt.name, tt.typ, 0)
			m := unpack(t, s.Answer(t.Context(), q, false))
			if got := values(m); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if m.RCode != dnsmessage.RCodeSuccess || m.ID != 4711 || !m.Response || !m.RecursionAvailable || !m.RecursionDesired {
				t.Errorf("header %+v", m.Header)
			}
			if len(m.Questions) != 1 || m.Questions[0].Name.String() != tt.name {
				t.Errorf("question %v, want %s as it was asked", m.Questions, tt.name)
			}
		})
	}
}

func TestLength(t *testing.T) {
	s := &Server{Lookup: lookup}
	for _, tt := range []struct {
		name      string
		size      int
		stream    bool
		truncated bool
	}{
		{"plain", 0, false, true},
		{"EDNS too small", 100, false, true},
		{"EDNS", 4096, false, false},
		{"stream", 0, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := unpack(t, s.Answer(t.Context(), question(t, "many.", dnsmessage.TypeA, tt.size), tt.stream))
			if m.Truncated != tt.truncated || (len(m.Answers) == 50) == tt.truncated {
				t.Errorf("truncated %v with %d answers", m.Truncated, len(m.Answers))
			}
			if hasOPT := len(m.Additionals) == 1 && m.Additionals[0].Header.Type == dnsmessage.TypeOPT; hasOPT != (tt.size > 0) {
				t.Errorf("additionals %v", m.Additionals)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	s := &Server{Lookup: lookup}
	good := question(t, "web.", dnsmessage.TypeA, 0)
	change := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	for _, tt := range []struct {
		name string
		in   []byte
		want int // a code, or -1 for no answer
	}{
		{"empty", nil, -1},
		{"no header", good[:11], -1},
		{"an answer", change(func(b []byte) { b[2] |= 0x80 }), -1},
		{"no question", change(func(b []byte) { b[5] = 0 }), 1},
		{"two questions", change(func(b []byte) { b[5] = 2 }), 1},
		{"cut", good[:len(good)-1], 1},
		{"opcode", change(func(b []byte) { b[2] |= 2 << 3 }), 4},
		{"additional missing", change(func(b []byte) { b[11] = 1 }), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := s.Answer(t.Context(), tt.in, false)
			if tt.want < 0 {
				if got != nil {
					t.Errorf("answered %x", got)
				}
				return
			}
			if m := unpack(t, got); int(m.RCode) != tt.want || m.ID != 4711 || !m.Response {
				t.Errorf("header %+v, want code %d", m.Header, tt.want)
			}
		})
	}
}

// upstream is a nameserver of the test's on UDP and TCP of one port.
type upstream struct {
	addr  netip.AddrPort
	asked atomic.Int32
}

// newUpstream serves answers of f, nil being silence, until the test ends.
func newUpstream(t testing.TB, f func(q []byte, stream bool) []byte) *upstream {
	t.Helper()
	u := &upstream{}
	var packets net.PacketConn
	var streams net.Listener
	for try := 0; ; try++ { // the port is free for both mostly
		var err error
		if packets, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if streams, err = net.Listen("tcp", packets.LocalAddr().String()); err == nil {
			break
		}
		packets.Close()
		if try == 10 {
			t.Fatal(err)
		}
	}
	u.addr = netip.MustParseAddrPort(packets.LocalAddr().String())
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 1<<16)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			u.asked.Add(1)
			if a := f(bytes.Clone(buf[:n]), false); a != nil {
				packets.WriteTo(a, from)
			}
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := streams.Accept()
			if err != nil {
				return
			}
			if q, err := readMessage(c, 1<<16); err == nil {
				u.asked.Add(1)
				if a := f(q, true); a != nil {
					writeMessage(c, a)
				}
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		packets.Close()
		streams.Close()
		<-done
		<-done
	})
	return u
}

// deadServer is an address that refuses.
func deadServer(t testing.TB) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

// reply answers a query with one address.
func reply(t testing.TB, q []byte, ip string) []byte {
	m := unpack(t, q)
	m.Response = true
	m.Answers = []dnsmessage.Resource{{
		Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET},
		Body:   &dnsmessage.AResource{A: netip.MustParseAddr(ip).As4()},
	}}
	b, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return b
}

func code(q []byte, c dnsmessage.RCode) []byte { return refusal(q, c) }

func TestForward(t *testing.T) {
	good := func(q []byte, stream bool) []byte { return reply(t, q, "192.0.2.7") }
	silent := func([]byte, bool) []byte { return nil }
	for _, tt := range []struct {
		name    string
		servers []func([]byte, bool) []byte
		stream  bool
		want    string
		code    dnsmessage.RCode
	}{
		{name: "one", servers: []func([]byte, bool) []byte{good}, want: "192.0.2.7"},
		{name: "stream", servers: []func([]byte, bool) []byte{good}, stream: true, want: "192.0.2.7"},
		{name: "first is silent", servers: []func([]byte, bool) []byte{silent, good}, want: "192.0.2.7"},
		{name: "first fails", servers: []func([]byte, bool) []byte{
			func(q []byte, _ bool) []byte { return code(q, dnsmessage.RCodeServerFailure) }, good,
		}, want: "192.0.2.7"},
		{name: "no such name ends it", servers: []func([]byte, bool) []byte{
			func(q []byte, _ bool) []byte { return code(q, dnsmessage.RCodeNameError) }, good,
		}, code: dnsmessage.RCodeNameError},
		{name: "all refuse", servers: []func([]byte, bool) []byte{
			func(q []byte, _ bool) []byte { return code(q, dnsmessage.RCodeRefused) },
		}, code: dnsmessage.RCodeRefused},
		{name: "all are silent", servers: []func([]byte, bool) []byte{silent, silent}, code: dnsmessage.RCodeServerFailure},
		{name: "another id", servers: []func([]byte, bool) []byte{
			func(q []byte, _ bool) []byte { a := reply(t, q, "192.0.2.66"); a[0]++; return a },
		}, code: dnsmessage.RCodeServerFailure},
		{name: "another question", servers: []func([]byte, bool) []byte{
			func(q []byte, _ bool) []byte { a := reply(t, q, "192.0.2.66"); a[headerSize+1] = 'z'; return a },
		}, code: dnsmessage.RCodeServerFailure},
		{name: "lost once", servers: []func([]byte, bool) []byte{second(good)}, want: "192.0.2.7"},
		{name: "no TCP", servers: []func([]byte, bool) []byte{
			func(q []byte, stream bool) []byte {
				if stream {
					return nil
				}
				return good(q, false)
			},
		}, stream: true, want: "192.0.2.7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &Server{Lookup: lookup, Timeout: 200 * time.Millisecond}
			s.Upstream = append(s.Upstream, deadServer(t))
			for _, f := range tt.servers {
				s.Upstream = append(s.Upstream, newUpstream(t, f).addr)
			}
			m := unpack(t, s.Answer(t.Context(), question(t, "example.com.", dnsmessage.TypeA, 0), tt.stream))
			if got := strings.Join(values(m), " "); got != tt.want || m.RCode != tt.code || m.ID != 4711 {
				t.Errorf("got %q, header %+v, want %q and %v", got, m.Header, tt.want, tt.code)
			}
		})
	}
}

// second is silent the first time.
func second(f func([]byte, bool) []byte) func([]byte, bool) []byte {
	var n atomic.Int32
	return func(q []byte, stream bool) []byte {
		if n.Add(1) == 1 {
			return nil
		}
		return f(q, stream)
	}
}

// Options of the client reach the nameserver, and a cut answer the client.
func TestForwardUntouched(t *testing.T) {
	q := question(t, "Example.COM.", dnsmessage.TypeTXT, 1400)
	big := bytes.Repeat([]byte{7}, 1300)
	u := newUpstream(t, func(got []byte, _ bool) []byte {
		if !bytes.Equal(got[2:], q[2:]) {
			t.Errorf("the nameserver got %x, want %x", got[2:], q[2:])
		}
		if bytes.Equal(got[:2], q[:2]) {
			t.Error("the id is the client's, who may not be alone to know it")
		}
		a := append(code(got, dnsmessage.RCodeSuccess), big...)
		a[2] |= 2 // TC
		return a
	})
	s := &Server{Upstream: []netip.AddrPort{u.addr}}
	a := s.Answer(t.Context(), q, false)
	if a[2]&2 == 0 || !bytes.HasSuffix(a, big) || !bytes.Equal(a[:2], q[:2]) {
		t.Errorf("answer %x", a)
	}
}

func TestSealed(t *testing.T) {
	u := newUpstream(t, func(q []byte, _ bool) []byte { return reply(t, q, "192.0.2.7") })
	s := &Server{Lookup: lookup, Upstream: []netip.AddrPort{u.addr}, Sealed: func() bool { return true }}
	for name, want := range map[string]dnsmessage.RCode{"example.com.": dnsmessage.RCodeServerFailure, "web.": dnsmessage.RCodeSuccess} {
		if m := unpack(t, s.Answer(t.Context(), question(t, name, dnsmessage.TypeA, 0), false)); m.RCode != want {
			t.Errorf("%s: %v, want %v", name, m.RCode, want)
		}
	}
	if n := u.asked.Load(); n != 0 {
		t.Errorf("the nameserver was asked %d times", n)
	}
}

func TestServe(t *testing.T) {
	u := newUpstream(t, func(q []byte, _ bool) []byte { return reply(t, q, "192.0.2.7") })
	s := &Server{Lookup: lookup, Upstream: []netip.AddrPort{u.addr}}
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	streams, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, packets, streams) }()

	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		if strings.HasPrefix(network, "tcp") {
			return net.Dial("tcp", streams.Addr().String())
		}
		return net.Dial("udp", packets.LocalAddr().String())
	}}
	for name, want := range map[string]string{"web.": "10.0.0.2", "example.com.": "192.0.2.7"} {
		if got, err := r.LookupHost(t.Context(), name); err != nil || !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %v, %v, want %s", name, got, err, want)
		}
	}
	if got, err := r.LookupHost(t.Context(), "many."); err != nil || len(got) == 0 {
		t.Errorf("an answer that needs TCP: %v, %v", got, err)
	}
	c, err := net.Dial("tcp", streams.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 { // queries of one connection
		if err := writeMessage(c, question(t, "web.", dnsmessage.TypeA, 0)); err != nil {
			t.Fatal(err)
		}
		if a, err := readMessage(c, 1<<16); err != nil || len(unpack(t, a).Answers) != 1 {
			t.Fatalf("%x, %v", a, err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What nameservers are asked at one time is bounded; names of containers are
// answered all the same.
func TestFlood(t *testing.T) {
	silent := newUpstream(t, func([]byte, bool) []byte { return nil })
	s := &Server{Lookup: lookup, Upstream: []netip.AddrPort{silent.addr}, Timeout: time.Minute}
	s.init() // this test looks at what is pending
	ctx, cancel := context.WithCancel(t.Context())
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, packets, nil) }()
	c, err := net.Dial("udp", packets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 512)
	ask := func(name string) dnsmessage.RCode {
		q := question(t, name, dnsmessage.TypeA, 0)
		if _, err := c.Write(q); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return unpack(t, buf[:n]).RCode
	}
	for i := range maxPending {
		if _, err := c.Write(question(t, "example.com.", dnsmessage.TypeA, 0)); err != nil {
			t.Fatal(err)
		}
		for len(s.pending) == i { // not before it is taken
			time.Sleep(100 * time.Microsecond)
			if t.Context().Err() != nil {
				t.Fatal("it is not")
			}
		}
	}
	if got := ask("example.com."); got != dnsmessage.RCodeServerFailure {
		t.Errorf("one too many: %v", got)
	}
	if got := ask("web."); got != dnsmessage.RCodeSuccess {
		t.Errorf("a container: %v", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	var c resolvConf
	check := func(want ...string) {
		t.Helper()
		var got []string
		for _, a := range c.servers(path) {
			got = append(got, a.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	check("127.0.0.1:53")
	write("# x\nsearch example.com\nnameserver 192.0.2.1 # one\nnameserver\t2001:db8::1\n nameserver nonsense\nnameserver fe80::1%eth0\nnameserver 192.0.2.3\n")
	check("192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%eth0]:53")
	write("nameserver 127.0.0.53")
	check("127.0.0.53:53")
	write("options edns0\n")
	check("127.0.0.1:53")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	check("127.0.0.1:53")
}

func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"web.", "many.", "x.example.com.", "2.0.0.10.in-addr.arpa."} {
		for _, typ := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypePTR, dnsmessage.TypeALL} {
			f.Add(question(f, name, typ, 0), false)
			f.Add(question(f, name, typ, 1232), true)
		}
	}
	f.Add([]byte{0: 1, 11: 0}, false)
	s := &Server{Lookup: lookup, Reverse: reverse}
	f.Fuzz(func(t *testing.T, b []byte, stream bool) {
		answer, forward := s.local(b, stream)
		if forward {
			// What is forwarded can be refused, and does not pass for its answer.
			answer = failure(b)
			if answers(b, b) {
				t.Error("a query answers itself")
			}
		}
		if answer == nil {
			if len(b) >= headerSize && b[2]&0x80 == 0 {
				t.Error("no answer to a query")
			}
			return
		}
		if !bytes.Equal(answer[:2], b[:2]) || answer[2]&0x80 == 0 {
			t.Errorf("header %x", answer[:4])
		}
		if !stream && !forward && len(answer) > plainSize {
			if q, _ := parseQuery(b); len(answer) > q.size && answer[3]&0xf == 0 {
				t.Errorf("%d bytes, the client takes %d", len(answer), q.size)
			}
		}
		if n := binary.BigEndian.Uint16(answer[4:]); n > 1 {
			t.Errorf("%d questions", n)
		}
		var m dnsmessage.Message
		if err := m.Unpack(answer); err != nil && answer[3]&0xf == 0 {
			t.Errorf("answer %x to %x: %v", answer, b, err)
		}
	})
}
