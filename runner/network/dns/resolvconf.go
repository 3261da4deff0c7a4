package dns

import (
	"bytes"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// maxServers is how many nameservers the C library asks (MAXNS).
const maxServers = 3

// resolvConf is what a resolv.conf said when it was last read.
type resolvConf struct {
	mu   sync.Mutex
	read bool
	stat stat
	list []netip.AddrPort
}

// stat tells versions of a file apart: it is replaced by a rename, or written
// in its place.
type stat struct {
	file os.FileInfo
	time time.Time
	size int64
}

// servers returns the nameservers of a file, which is read if it has changed.
// A file that is not there names none.
func (c *resolvConf) servers(path string) []netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	var now stat
	if fi, err := os.Stat(path); err == nil {
		now = stat{file: fi, time: fi.ModTime(), size: fi.Size()}
	}
	if c.read && c.stat.same(now) {
		return c.list
	}
	text, err := os.ReadFile(path)
	if err != nil {
		now = stat{}
	}
	c.read, c.stat, c.list = true, now, parseResolvConf(text)
	return c.list
}

func (s stat) same(t stat) bool {
	if s.file == nil || t.file == nil {
		return s.file == t.file
	}
	return os.SameFile(s.file, t.file) && s.time.Equal(t.time) && s.size == t.size
}

// parseResolvConf returns the nameservers that resolv.conf(5) names. Without
// any the one of this machine is meant.
func parseResolvConf(text []byte) []netip.AddrPort {
	var all []netip.AddrPort
	for line := range bytes.Lines(text) {
		words := strings.Fields(string(line))
		if len(words) < 2 || words[0] != "nameserver" || len(all) == maxServers {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil {
			all = append(all, netip.AddrPortFrom(a.Unmap(), 53))
		}
	}
	if len(all) == 0 {
		return []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}
	}
	return all
}
