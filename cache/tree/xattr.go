package tree

import (
	"bytes"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// overlayfs keeps notes of its own in extended attributes: under trusted. as
// a rule, under user. where it is mounted with "userxattr", the way without
// privileges.
const (
	opaqueTrusted = "trusted.overlay.opaque"
	opaqueUser    = "user.overlay.opaque"
)

// OverlayXattr is the name of the extended attribute by which an overlay made
// by this process marks a directory as opaque; its value is "y". It is in the
// trusted name space for root in the initial user namespace, which alone may
// write there, else in that of users, for overlays mounted with "userxattr".
var OverlayXattr = sync.OnceValue(func() string {
	uids, err := os.ReadFile("/proc/self/uid_map")
	if os.Geteuid() == 0 && err == nil && strings.Join(strings.Fields(string(uids)), " ") == "0 0 4294967295" {
		return opaqueTrusted
	}
	return opaqueUser
})

// overlayNote reports whether a name is one of overlayfs' own attributes.
func overlayNote(name string) (note string, ok bool) {
	if note, ok = strings.CutPrefix(name, "trusted.overlay."); ok {
		return note, true
	}
	return strings.CutPrefix(name, "user.overlay.")
}

// kept reports whether a layer keeps an attribute: file capabilities, which
// change what a program may do, and those that programs set themselves. ACLs,
// security labels and the like are about one machine.
func kept(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.")
}

// xattrs reads attributes by two calls that are either those for a file
// descriptor or those for a path. buf is reused.
type xattrs struct {
	list func(buf []byte) (int, error)
	get  func(name string, buf []byte) (int, error)
}

func fdXattrs(fd int) xattrs {
	return xattrs{
		list: func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		get:  func(n string, b []byte) (int, error) { return unix.Fgetxattr(fd, n, b) },
	}
}

func pathXattrs(path string) xattrs {
	return xattrs{
		list: func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		get:  func(n string, b []byte) (int, error) { return unix.Lgetxattr(path, n, b) },
	}
}

// names lists the attributes; a file system without any has none.
func (x xattrs) names() ([]string, error) {
	var small [256]byte
	buf := small[:]
	for {
		n, err := x.list(buf)
		switch {
		case err == unix.ERANGE:
			if n, err = x.list(nil); err != nil {
				return nil, err
			}
			buf = make([]byte, n+256)
			continue
		case err == unix.ENOTSUP || err == unix.EOPNOTSUPP || err == unix.EPERM || err == unix.EACCES:
			return nil, nil
		case err != nil || n == 0:
			return nil, err
		}
		var names []string
		for _, name := range bytes.Split(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0}) {
			names = append(names, string(name))
		}
		return names, nil
	}
}

// value reads one attribute; ok is false if it has gone meanwhile.
func (x xattrs) value(name string) (value string, ok bool, err error) {
	var small [256]byte
	buf := small[:]
	for {
		n, err := x.get(name, buf)
		switch err {
		case nil:
			return string(buf[:n]), true, nil
		case unix.ERANGE:
			if n, err = x.get(name, nil); err != nil {
				return "", false, err
			}
			buf = make([]byte, n+64)
		case unix.ENODATA:
			return "", false, nil
		default:
			return "", false, err
		}
	}
}
