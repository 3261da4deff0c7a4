package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
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
		_, tmpfs.Given, _ = strings.Cut(t, ":")
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
	named := !b.Anonymous && !strings.HasPrefix(b.Source, "/") && !strings.HasPrefix(b.Source, ".")
	if len(parts) == 3 {
		b.Options = parts[2]
		if err := volumeOptions(&b, named); err != nil {
			return b, fmt.Errorf("invalid mode: %s: %w", parts[2], err)
		}
	}
	if b.Anonymous {
		return b, nil
	}
	if named {
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

// volumeOptions reads the options of a value of --volume, those of docker:
// each of a kind once, and nocopy of volumes, propagation of folders alone.
func volumeOptions(b *container.Bind, named bool) error {
	kinds := map[string]string{
		"ro": "mode", "rw": "mode", "z": "label", "Z": "label", "nocopy": "copy",
		"consistent": "consistency", "cached": "consistency", "delegated": "consistency",
	}
	seen := map[string]bool{}
	for o := range strings.SplitSeq(b.Options, ",") {
		kind := kinds[o]
		if p, ok := propagations[o]; ok {
			kind, b.Propagation = "propagation", p
		}
		switch {
		case kind == "" || seen[kind]:
			return fmt.Errorf("%q is no option, or one too many", o)
		case kind == "copy" && !named:
			return errors.New("nocopy is for volumes")
		case kind == "propagation" && named:
			return errors.New("propagation is for folders of this machine")
		}
		seen[kind] = true
	}
	b.ReadOnly, b.Copy = slices.Contains(strings.Split(b.Options, ","), "ro"), !seen["copy"]
	return nil
}

// propagations are docker's names of what a mount shares with its source. What
// is below a mount is as the mount itself.
var propagations = map[string]string{
	"private": "", "rprivate": "", "slave": "slave", "rslave": "slave", "shared": "shared", "rshared": "shared",
}

// mountFields are the fields of a value of --mount.
type mountFields struct {
	kind, source, target, size, mode string
	propagation, recursive, subpath  string
	imageSubpath                     string
	readOnly, noCopy, create         bool
	labels                           []string

	given map[string]bool
}

// parseMount reads a value of --mount.
func parseMount(c *container.Config, s string) error {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return err
	}
	m := mountFields{kind: "volume", given: map[string]bool{}}
	for _, f := range fields {
		if err := m.set(f); err != nil {
			return err
		}
	}
	for key := range m.given {
		if kind, _, ok := strings.Cut(key, "-"); ok && kind != m.kind {
			return fmt.Errorf("cannot mix '%s-*' options with mount type '%s'", kind, m.kind)
		}
	}
	if m.target == "" {
		return errors.New("target is required")
	}
	if !path.IsAbs(m.target) {
		return fmt.Errorf("invalid mount path: '%s' mount path must be absolute", m.target)
	}
	m.target = path.Clean(m.target)
	switch m.kind {
	case "bind":
		return m.bind(c)
	case "volume":
		c.Binds = append(c.Binds, container.Bind{
			Volume: m.source, Anonymous: m.source == "", Target: m.target, ReadOnly: m.readOnly, Copy: !m.noCopy && m.subpath == "",
			Subpath: m.subpath, Labels: m.labels, Origin: container.OfMount,
		})
		return nil
	case "tmpfs":
		return m.tmpfs(c)
	case "image":
		if m.source == "" {
			return fmt.Errorf("invalid mount config for type %q: field Source must not be empty", "image")
		}
		c.Binds = append(c.Binds, container.Bind{Image: m.source, Target: m.target, ReadOnly: true, Subpath: m.imageSubpath, Origin: container.OfMount})
		return nil
	}
	return fmt.Errorf("mount type %q is not supported: must be bind, volume, tmpfs or image", m.kind)
}

func (m *mountFields) set(field string) error {
	key, value, has := strings.Cut(field, "=")
	if strings.TrimSpace(key) != key {
		return fmt.Errorf("invalid option '%s' in '%s': option should not have whitespace", strings.TrimSpace(key), field)
	}
	key = strings.ToLower(key)
	flags := map[string]*bool{
		"readonly": &m.readOnly, "ro": &m.readOnly, "volume-nocopy": &m.noCopy, "bind-create-src": &m.create,
	}
	texts := map[string]*string{
		"type": &m.kind, "source": &m.source, "src": &m.source, "target": &m.target, "dst": &m.target, "destination": &m.target,
		"tmpfs-size": &m.size, "tmpfs-mode": &m.mode, "bind-propagation": &m.propagation, "bind-recursive": &m.recursive,
		"volume-subpath": &m.subpath, "image-subpath": &m.imageSubpath, "consistency": new(string),
	}
	m.given[key] = true
	if to := flags[key]; to != nil {
		*to = true
		var err error
		if has {
			if *to, err = strconv.ParseBool(value); err != nil {
				err = fmt.Errorf("invalid value for '%s': invalid boolean value: %s", key, value)
			}
		}
		return err
	}
	if !has {
		return fmt.Errorf("invalid field '%s' must be a key=value pair", field)
	}
	if strings.TrimSpace(value) != value || value == "" {
		return fmt.Errorf("invalid value for '%s': value is empty or has whitespace", key)
	}
	switch to := texts[key]; {
	case to != nil:
		*to = value
	case key == "volume-label":
		m.labels = append(m.labels, value)
	case key == "volume-driver":
		if value != "local" {
			return fmt.Errorf("plugin %q not found: volumes are local", value)
		}
	case key == "bind-nonrecursive":
		return errors.New("bind-nonrecursive is deprecated, use bind-recursive=disabled instead")
	default:
		return fmt.Errorf("unknown option '%s' in '%s'", key, field)
	}
	return nil
}

func (m *mountFields) bind(c *container.Config) error {
	if m.source == "" {
		return errors.New("type=bind needs a source")
	}
	source := m.source
	if strings.HasPrefix(source, ".") {
		var err error
		if source, err = filepath.Abs(source); err != nil {
			return err
		}
	}
	if !filepath.IsAbs(source) {
		return fmt.Errorf("invalid mount config for type %q: invalid mount path: '%s' mount path must be absolute", "bind", source)
	}
	source = filepath.Clean(source)
	_, err := os.Stat(source)
	if errors.Is(err, os.ErrNotExist) && m.create {
		err = os.MkdirAll(source, 0o755)
	}
	if err != nil {
		return fmt.Errorf("invalid mount config for type %q: bind source path does not exist: %s", "bind", source)
	}
	b := container.Bind{Source: source, Target: m.target, ReadOnly: m.readOnly, Origin: container.OfMount}
	if m.propagation != "" {
		p, ok := propagations[strings.ToLower(m.propagation)]
		if !ok {
			return fmt.Errorf("bind-propagation=%s: must be one of %s", m.propagation, strings.Join(slices.Sorted(maps.Keys(propagations)), ", "))
		}
		b.Propagation = p
	}
	switch m.recursive {
	case "", "enabled":
	case "disabled":
		b.Alone = true
	case "writable":
		if b.WritableBelow = true; !b.ReadOnly {
			return errors.New("option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction")
		}
	case "readonly":
		if !b.ReadOnly {
			return errors.New("option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction")
		}
		if b.Propagation != "" || m.propagation == "" {
			return errors.New("option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction")
		}
	default:
		return fmt.Errorf(`invalid value for bind-recursive: %s (must be "enabled", "disabled", "writable", or "readonly")`, m.recursive)
	}
	c.Binds = append(c.Binds, b)
	return nil
}

func (m *mountFields) tmpfs(c *container.Config) error {
	if m.source != "" {
		return fmt.Errorf("invalid mount config for type %q: field Source must not be specified", "tmpfs")
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
	t.Origin = container.OfMount
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
			share, percent := strings.CutSuffix(value, "%")
			if !percent {
				t.Size, err = bytesFlag("size", value)
				break
			}
			if _, err = strconv.ParseUint(share, 10, 16); err == nil {
				t.Options = append(t.Options, o) // of the machine's memory: the kernel knows
			}
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
