package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"kiln.build/runner/container"
)

func (f *runFlags) applyMounts(c *container.Config) error {
	for _, v := range f.volumes {
		b, err := parseVolume(v)
		if err != nil {
			return err
		}
		c.Binds = append(c.Binds, b)
	}
	for _, m := range f.mounts {
		if err := parseMount(c, m); err != nil {
			return fmt.Errorf("--mount=%s: %w", m, err)
		}
	}
	for _, t := range f.tmpfs {
		tmpfs, err := parseTmpfs(t)
		if err != nil {
			return fmt.Errorf("--tmpfs=%s: %w", t, err)
		}
		c.Tmpfs = append(c.Tmpfs, tmpfs)
	}
	var targets []string
	for _, b := range c.Binds {
		targets = append(targets, b.Target)
	}
	for _, t := range c.Tmpfs {
		targets = append(targets, t.Target)
	}
	seen := map[string]bool{}
	for _, t := range targets {
		if t == "/" {
			return errors.New("invalid mount: the target cannot be '/'")
		}
		if seen[t] {
			return fmt.Errorf("duplicate mount point: %s", t)
		}
		seen[t] = true
	}
	return nil
}

// parseVolume reads [SOURCE:]TARGET[:OPTIONS]. A source that is no path is
// the name of a volume; without one the volume has no name yet.
func parseVolume(s string) (container.Bind, error) {
	parts := strings.Split(s, ":")
	var b container.Bind
	invalid := fmt.Errorf("invalid volume specification: '%s': must be SOURCE:TARGET[:ro]", s)
	switch len(parts) {
	case 1:
		b.Target, b.Anonymous = parts[0], true
	case 2, 3:
		b.Source, b.Target = parts[0], parts[1]
	default:
		return b, invalid
	}
	if !path.IsAbs(b.Target) || !b.Anonymous && b.Source == "" {
		return b, invalid
	}
	b.Target, b.Copy = path.Clean(b.Target), true
	if len(parts) == 3 {
		for o := range strings.SplitSeq(parts[2], ",") {
			switch o {
			case "ro":
				b.ReadOnly = true
			case "nocopy":
				b.Copy = false
			case "rw", "z", "Z", "rprivate", "private":
			default:
				return b, fmt.Errorf("--volume=%s: unknown option %q", s, o)
			}
		}
	}
	if b.Anonymous {
		return b, nil
	}
	if !strings.HasPrefix(b.Source, "/") && !strings.HasPrefix(b.Source, ".") {
		b.Volume, b.Source = b.Source, ""
		return b, nil
	}
	b.Copy = false
	var err error
	if b.Source, err = filepath.Abs(b.Source); err != nil {
		return b, err
	}
	if _, err := os.Stat(b.Source); errors.Is(err, os.ErrNotExist) {
		err = os.MkdirAll(b.Source, 0o755) // as docker does
		return b, err
	}
	return b, nil
}

// mountFields are the fields of a value of --mount.
type mountFields struct {
	kind, source, target, size, mode string
	readOnly, noCopy                 bool
}

// parseMount reads a value of --mount.
func parseMount(c *container.Config, s string) error {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return err
	}
	m := mountFields{kind: "volume"}
	for _, f := range fields {
		if err := m.set(f); err != nil {
			return err
		}
	}
	if !path.IsAbs(m.target) {
		return errors.New("the target must be an absolute path")
	}
	m.target = path.Clean(m.target)
	switch m.kind {
	case "bind":
		return m.bind(c)
	case "volume":
		c.Binds = append(c.Binds, container.Bind{
			Volume: m.source, Anonymous: m.source == "", Target: m.target, ReadOnly: m.readOnly, Copy: !m.noCopy,
		})
		return nil
	case "tmpfs":
		return m.tmpfs(c)
	}
	return fmt.Errorf("type=%s: must be bind, volume or tmpfs", m.kind)
}

func (m *mountFields) set(field string) error {
	key, value, has := strings.Cut(field, "=")
	flag := func(to *bool) (err error) {
		*to = true
		if has {
			*to, err = strconv.ParseBool(value)
		}
		return err
	}
	switch strings.ToLower(key) {
	case "type":
		m.kind = value
	case "source", "src":
		m.source = value
	case "target", "dst", "destination":
		m.target = value
	case "readonly", "ro":
		return flag(&m.readOnly)
	case "volume-nocopy":
		return flag(&m.noCopy)
	case "tmpfs-size":
		m.size = value
	case "tmpfs-mode":
		m.mode = value
	case "bind-propagation":
		if value != "rprivate" && value != "private" {
			return fmt.Errorf("bind-propagation=%s: must be rprivate", value)
		}
	default:
		return fmt.Errorf("unexpected key '%s'", key)
	}
	return nil
}

func (m *mountFields) bind(c *container.Config) error {
	if m.source == "" {
		return errors.New("type=bind needs a source")
	}
	source, err := filepath.Abs(m.source)
	if err != nil {
		return err
	}
	if _, err := os.Stat(source); err != nil {
		return fmt.Errorf("bind source path does not exist: %s", source)
	}
	c.Binds = append(c.Binds, container.Bind{Source: source, Target: m.target, ReadOnly: m.readOnly})
	return nil
}

func (m *mountFields) tmpfs(c *container.Config) error {
	if m.source != "" {
		return errors.New("type=tmpfs has no source")
	}
	var options []string
	if m.size != "" {
		options = append(options, "size="+m.size)
	}
	if m.mode != "" {
		options = append(options, "mode="+m.mode)
	}
	if m.readOnly {
		options = append(options, "ro")
	}
	t, err := parseTmpfs(m.target + ":" + strings.Join(options, ","))
	c.Tmpfs = append(c.Tmpfs, t)
	return err
}

// parseTmpfs reads TARGET[:OPTIONS], the options as mount(8) has them.
func parseTmpfs(s string) (container.Tmpfs, error) {
	target, options, _ := strings.Cut(s, ":")
	t := container.Tmpfs{Target: path.Clean(target)}
	if !path.IsAbs(target) {
		return t, errors.New("the target must be an absolute path")
	}
	for o := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(o, "=")
		var err error
		switch key {
		case "", "rw", "noexec", "nosuid", "nodev":
		case "ro":
			t.ReadOnly = true
		case "exec":
			t.Exec = true
		case "suid":
			t.Suid = true
		case "dev":
			t.Dev = true
		case "size":
			t.Size, err = bytesFlag("size", value)
		case "mode":
			var n uint64
			n, err = strconv.ParseUint(value, 8, 12)
			t.Mode = uint32(n)
		case "uid", "gid", "nr_inodes", "nr_blocks", "huge":
			t.Options = append(t.Options, o)
		default:
			err = fmt.Errorf("unknown option %q", o)
		}
		if err != nil {
			return t, err
		}
	}
	return t, nil
}
