package oci

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"kiln.build/runner/sandbox"
)

// mounts are all those of the config, and no others.
func (x *conversion) mounts() error {
	x.s.NoDefaultMounts = true
	for _, m := range x.c.Mounts {
		s, err := x.mount(m)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		x.s.Mounts = append(x.s.Mounts, s)
	}
	return nil
}

// mount turns the options of mount(8) into a mount.
func (x *conversion) mount(m specs.Mount) (sandbox.Mount, error) {
	if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
		return sandbox.Mount{}, fmt.Errorf("id-mapped mounts are not supported")
	}
	s := sandbox.Mount{Target: filepath.Join("/", m.Destination), Type: m.Type, Name: m.Source}
	bind := m.Type == "bind"
	for _, o := range m.Options {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case flag(&s, o):
		case o == "bind":
			bind = true
		case o == "rbind":
			bind, s.Recursive = true, true
		case slices.Contains([]string{"private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"}, o):
			s.Propagation = strings.TrimPrefix(o, "r")
		case slices.Contains([]string{"defaults", "async", "relatime", "rw", "suid", "dev", "exec", "diratime", "atime", "silent", "loud", "norelatime", "nostrictatime", "symfollow", "nomand"}, o):
			// how mounts are anyway
		case slices.Contains([]string{"remount", "sync", "mand", "dirsync", "lazytime", "iversion", "tmpcopyup", "idmap", "ridmap"}, o):
			return s, fmt.Errorf("option %q is not supported", o)
		case m.Type == "tmpfs" && key == "size":
			n, err := size(value)
			if err != nil {
				return s, fmt.Errorf("size %q: %w", value, err)
			}
			s.Size = n
		case m.Type == "tmpfs" && key == "mode":
			n, err := strconv.ParseUint(value, 8, 32)
			if err != nil {
				return s, fmt.Errorf("mode %q: %w", value, err)
			}
			s.Mode = uint32(n)
		default:
			s.Options = append(s.Options, o)
		}
	}
	if bind {
		// Other options are those of a file system that is mounted already.
		s.Type, s.Name, s.Source, s.Options = "", "", m.Source, nil
		if !filepath.IsAbs(s.Source) {
			s.Source = filepath.Join(x.bundle, s.Source)
		}
		return s, nil
	}
	switch s.Type {
	case "":
		return s, fmt.Errorf("no type")
	case "cgroup", "cgroup2":
		s.Type, s.Options, s.Name = "cgroup", nil, "" // those of the container, whatever the machine has
	}
	return s, nil
}

// flag sets what one option of a mount says about it.
func flag(s *sandbox.Mount, option string) bool {
	flags := map[string]*bool{
		"ro": &s.ReadOnly, "rro": &s.ReadOnly, "nosuid": &s.NoSuid, "nodev": &s.NoDev, "noexec": &s.NoExec,
		"noatime": &s.NoAtime, "strictatime": &s.StrictAtime, "nodiratime": &s.NoDirAtime, "nosymfollow": &s.NoSymFollow,
		"rnosuid": &s.NoSuid, "rnodev": &s.NoDev, "rnoexec": &s.NoExec, "rnoatime": &s.NoAtime,
	}
	b := flags[option]
	if b == nil {
		return false
	}
	*b = true
	return true
}

// size reads a number with the units of tmpfs.
func size(s string) (int64, error) {
	unit := int64(1)
	if s != "" {
		if i := strings.IndexByte("kmg", s[len(s)-1]|0x20); i >= 0 {
			unit, s = 1<<(10*(i+1)), s[:len(s)-1]
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, fmt.Errorf("not a number of bytes")
	}
	return n * unit, nil
}
