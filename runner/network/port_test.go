package network

import (
	"slices"
	"strings"
	"testing"
)

func TestParsePort(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string // the ports, or the end of the error
	}{
		{"80", "80/tcp"},
		{"80/udp", "80/udp"},
		{"80/TCP", "80/tcp"},
		{"8080:80", "8080:80/tcp"},
		{"0:80", "80/tcp"},
		{":80", "80/tcp"},
		{"127.0.0.1:8080:80/udp", "127.0.0.1:8080:80/udp"},
		{"127.0.0.1::80", "127.0.0.1::80/tcp"},
		{"::80", "80/tcp"},
		{"[::1]:8080:80", "[::1]:8080:80/tcp"},
		{"[::]::80", "[::]::80/tcp"},
		{"8000-8002:80-82", "8000:80/tcp 8001:81/tcp 8002:82/tcp"},
		{"80-81", "80/tcp 81/tcp"},
		{"0.0.0.0:7-7:9", "0.0.0.0:7:9/tcp"},
		{"8000-8009:80", "8000-8009:80/tcp"},
		{"127.0.0.1:8000-8009:80/udp", "127.0.0.1:8000-8009:80/udp"},

		{"", "container port is missing"},
		{"80:", "container port is missing"},
		{"0", "container port 0 does not exist"},
		{"web:80", `host port "web" is not a number`},
		{"+80", `container port "+80" is not a number`},
		{"65536", `container port "65536" is above 65535`},
		{"82-80", `container port range "82-80" runs backwards`},
		{"8000-8002:80-81", "3 host ports for 2 container ports"},
		{"0-1:80-81", `host port range "0-1" starts at 0`},
		{"80/sctp", `protocol "sctp" is neither tcp nor udp`},
		{"80/", `protocol "" is neither tcp nor udp`},
		{"localhost:80:80", `"localhost" is not an IP address`},
		{"::1:80:80", "too many colons; write an IPv6 address in brackets"},
		{"[::1]80:80", `want "]:" after the IPv6 address`},
		{"[::1]:80", "want [IP]:HOST:CONTAINER"},
		{"[127.0.0.1]:80:80", `"127.0.0.1" is not an IPv6 address`},
	} {
		t.Run(tt.in, func(t *testing.T) {
			ports, err := ParsePort(tt.in)
			if err != nil {
				if !strings.HasSuffix(err.Error(), ": "+tt.want) {
					t.Errorf("error %q, want one that ends in %q", err, tt.want)
				}
				return
			}
			var got []string
			for _, p := range ports {
				got = append(got, p.String())
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got %s, want %s", s, tt.want)
			}
		})
	}
}

func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"80", "1.2.3.4:1-2:3-4/udp", "[::1]:5:6", "[fe80::1%eth0]::6", "::80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ports, err := ParsePort(s)
		if err != nil {
			return
		}
		for _, p := range ports[:min(len(ports), 3)] {
			again, err := ParsePort(p.String())
			if err != nil || !slices.Equal(again, []Port{p}) {
				t.Errorf("%q gave %+v, printed as %q, which gave %+v, %v", s, p, p, again, err)
			}
		}
	})
}
