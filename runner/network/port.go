package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Port is a port of a container that is to be reached through the host.
type Port struct {
	HostIP        string // address to listen on; "" is all, IPv4 and IPv6
	HostPort      int    // 0 lets the kernel choose a free one
	HostLast      int    // the first free one from HostPort to this, where not 0
	ContainerPort int
	Proto         string // "tcp" or "udp"
}

// String returns the port in the form that [ParsePort] reads.
func (p Port) String() string {
	s := strconv.Itoa(p.ContainerPort) + "/" + p.Proto
	if p.HostPort != 0 || p.HostIP != "" {
		host := ""
		if p.HostPort != 0 {
			host = strconv.Itoa(p.HostPort)
		}
		if p.HostLast != 0 {
			host += "-" + strconv.Itoa(p.HostLast)
		}
		s = host + ":" + s
	}
	if p.HostIP != "" {
		ip := p.HostIP
		if strings.Contains(ip, ":") {
			ip = "[" + ip + "]"
		}
		s = ip + ":" + s
	}
	return s
}

// ParsePort reads docker's notation for published ports,
//
//	[[IP:][HOST]:]CONTAINER[/PROTOCOL]
//
// where HOST and CONTAINER are a port or a range FIRST-LAST, an IPv6 address
// stands in brackets, and the protocol is tcp unless it is given. A HOST that
// is missing or 0 means a port chosen by the kernel. Two ranges must be of
// equal length and are paired in order; the result has one Port for each
// container port. A range of host ports for one container port means the first
// of them that is free.
func ParsePort(s string) ([]Port, error) {
	ports, err := parsePort(s)
	if err != nil {
		return nil, fmt.Errorf("port %q: %w", s, err)
	}
	return ports, nil
}

func parsePort(s string) ([]Port, error) {
	proto := "tcp"
	rest, after, found := strings.Cut(s, "/")
	if found {
		proto = strings.ToLower(after)
	}
	if proto != "tcp" && proto != "udp" {
		return nil, fmt.Errorf("protocol %q is neither tcp nor udp", after)
	}
	ip, host, container, err := splitPort(rest)
	if err != nil {
		return nil, err
	}
	first, last, err := parseRange(container)
	if err != nil {
		return nil, fmt.Errorf("container port %w", err)
	}
	if first == 0 {
		return nil, errors.New("container port 0 does not exist")
	}
	hostFirst, hostLast := 0, 0
	if host != "" && host != "0" {
		if hostFirst, hostLast, err = parseRange(host); err != nil {
			return nil, fmt.Errorf("host port %w", err)
		}
		if hostFirst == 0 {
			return nil, fmt.Errorf("host port range %q starts at 0", host)
		}
		if h, c := hostLast-hostFirst, last-first; h != c && c > 0 {
			return nil, fmt.Errorf("%d host ports for %d container ports", h+1, c+1)
		}
	}
	var ports []Port
	for c := first; c <= last; c++ {
		p := Port{HostIP: ip, ContainerPort: c, Proto: proto}
		if hostFirst != 0 {
			p.HostPort = hostFirst + c - first
		}
		if first == last && hostFirst != hostLast {
			p.HostLast = hostLast
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// splitPort cuts "ip:host:container" into its parts and checks the address.
func splitPort(s string) (ip, host, container string, err error) {
	if after, ok := strings.CutPrefix(s, "["); ok {
		inside, rest, found := strings.Cut(after, "]:")
		if !found {
			return "", "", "", errors.New(`want "]:" after the IPv6 address`)
		}
		a, err := netip.ParseAddr(inside)
		if err != nil || !a.Is6() {
			return "", "", "", fmt.Errorf("%q is not an IPv6 address", inside)
		}
		host, container, found = strings.Cut(rest, ":")
		if !found || strings.Contains(container, ":") {
			return "", "", "", errors.New("want [IP]:HOST:CONTAINER")
		}
		return inside, host, container, nil
	}
	parts := strings.Split(s, ":")
	switch len(parts) {
	case 1:
		return "", "", parts[0], nil
	case 2:
		return "", parts[0], parts[1], nil
	case 3:
		if parts[0] == "" {
			return "", parts[1], parts[2], nil
		}
		a, err := netip.ParseAddr(parts[0])
		if err != nil || !a.Is4() {
			return "", "", "", fmt.Errorf("%q is not an IP address", parts[0])
		}
		return parts[0], parts[1], parts[2], nil
	}
	return "", "", "", errors.New("too many colons; write an IPv6 address in brackets")
}

// parseRange reads a port or a range of them; its errors follow a noun.
func parseRange(s string) (first, last int, err error) {
	if s == "" {
		return 0, 0, errors.New("is missing")
	}
	from, to, isRange := strings.Cut(s, "-")
	if first, err = parseNumber(from); err != nil {
		return 0, 0, err
	}
	if !isRange {
		return first, first, nil
	}
	if last, err = parseNumber(to); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("range %q runs backwards", s)
	}
	return first, last, nil
}

func parseNumber(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if errors.Is(err, strconv.ErrRange) {
		return 0, fmt.Errorf("%q is above 65535", s)
	}
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return int(n), nil
}

// hostAddress is the address to listen on.
func (p Port) hostAddress() string {
	return net.JoinHostPort(p.HostIP, strconv.Itoa(p.HostPort))
}
