package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Volume is a folder that outlives containers: volumes/NAME/_data beside the
// containers' folder, with volume.json next to _data.
// An anonymous one has 64 hexadecimal digits for a name.
type Volume struct {
	Name      string
	Dir       string
	Anonymous bool
	Created   time.Time
	Labels    map[string]string
	Options   map[string]string // docker's of the local driver
}

// Source is the folder that containers see: Dir, or the device of a volume
// that is another folder of this machine.
func (v Volume) Source() string {
	if d := v.Options["device"]; d != "" {
		return d
	}
	return v.Dir
}

// CheckVolumeOptions reports what cannot be had of options of a volume. They
// are docker's for a folder of this machine: type=none, o=bind, device=PATH.
func CheckVolumeOptions(o map[string]string) error {
	if len(o) == 0 {
		return nil
	}
	for key := range o {
		if key != "type" && key != "o" && key != "device" {
			return fmt.Errorf("invalid option: %q", key)
		}
	}
	mode := strings.Split(o["o"], ",")
	switch {
	case o["device"] == "":
		return errors.New(`missing required option: "device"`)
	case o["type"] != "none" && o["type"] != "" || !slices.Contains(mode, "bind") && !slices.Contains(mode, "rbind"):
		return fmt.Errorf("options type=%s, o=%s: must be type=none, o=bind: volumes are folders of this machine", o["type"], o["o"])
	case !filepath.IsAbs(o["device"]):
		return fmt.Errorf("option device=%s: must be an absolute path", o["device"])
	}
	return nil
}

// volumeFile is the form of volume.json.
type volumeFile struct {
	Version int               `json:"version"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	Options map[string]string `json:"options,omitempty"`
}

// Errors about volumes, for those who branch on them.
var (
	ErrNoVolume    = errors.New("no such volume")
	ErrVolumeInUse = errors.New("volume is in use")
)

func (s Set) volumes() string { return filepath.Join(filepath.Dir(s.Dir), "volumes") }

// VolumeDir makes the folder of a volume, if need be, and returns it.
func (s Set) VolumeDir(name string) (string, error) { return s.CreateVolume(name, nil, nil) }

// CreateVolume is VolumeDir for a volume with labels and options. Those of one
// that is there already stay as they are.
func (s Set) CreateVolume(name string, labels, options map[string]string) (string, error) {
	if !validName().MatchString(name) {
		return "", fmt.Errorf("%q includes invalid characters for a local volume name, only %q are allowed: to name a folder of this machine, use its absolute path", name, "[a-zA-Z0-9][a-zA-Z0-9_.-]")
	}
	dir := filepath.Join(s.volumes(), name, "_data")
	if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
		return dir, nil
	}
	fail := func(err error) (string, error) { return "", fmt.Errorf("make volume %s: %w", name, err) }
	// What containers put there may be setuid.
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fail(err)
	}
	if err := writeJSON(filepath.Join(s.volumes(), name, "volume.json"), volumeFile{version, time.Now().UTC(), labels, options}); err != nil {
		return fail(err)
	}
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
		return dir, nil
	} else if err != nil {
		return fail(err)
	}
	s.Note("volume", "create", name, "driver", "local")
	return dir, nil
}

// placeVolumes makes the volumes of a new container, and names for those
// without. One that it shares may have been removed since it was asked for.
func (s Set) placeVolumes(binds []Bind) error {
	for i := range binds {
		b := &binds[i]
		switch {
		case b.Image != "" || b.Volume == "" && b.Source != "":
			continue
		case b.Volume == "":
			b.Volume = AnonymousName()
		}
		labels := map[string]string{}
		for _, l := range b.Labels {
			name, value, _ := strings.Cut(l, "=")
			labels[name] = value
		}
		if _, err := s.CreateVolume(b.Volume, labels, nil); err != nil {
			return err
		}
		if b.Source != "" {
			continue
		}
		v, err := s.Volume(b.Volume)
		if err != nil {
			return err
		}
		b.Source = v.Source()
	}
	return nil
}

// AnonymousName is that of a volume that nobody has named.
func AnonymousName() string {
	var id [32]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

// Volumes lists all volumes, by name.
func (s Set) Volumes() ([]Volume, error) {
	dirs, err := os.ReadDir(s.volumes())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []Volume
	for _, d := range dirs {
		v, err := s.Volume(d.Name())
		if errors.Is(err, ErrNoVolume) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// Volume returns the volume of a name.
func (s Set) Volume(name string) (Volume, error) {
	v := Volume{Name: name, Dir: filepath.Join(s.volumes(), name, "_data")}
	fi, err := os.Stat(v.Dir)
	if !validName().MatchString(name) || errors.Is(err, fs.ErrNotExist) {
		return v, fmt.Errorf("get %s: %w", name, ErrNoVolume)
	}
	if err != nil {
		return v, err
	}
	v.Created = fi.ModTime()
	_, err = hex.DecodeString(name)
	v.Anonymous = err == nil && len(name) == 64
	data, err := os.ReadFile(filepath.Join(filepath.Dir(v.Dir), "volume.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	var f volumeFile
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err != nil {
		return v, fmt.Errorf("volume %s: %w", name, err)
	}
	v.Created, v.Labels, v.Options = f.Created, f.Labels, f.Options
	return v, nil
}

// VolumeUsers are the containers that have a volume.
func VolumeUsers(all []*Container, name string) []*Container {
	var users []*Container
	for _, c := range all {
		if slices.ContainsFunc(c.Binds, func(b Bind) bool { return b.Volume == name }) {
			users = append(users, c)
		}
	}
	return users
}

// used reports whether some container has a volume, or may have.
func (s Set) used(name string) bool {
	all, err := s.List()
	return err != nil || len(VolumeUsers(all, name)) > 0
}

// RemoveVolume removes a volume that no container has.
func (s Set) RemoveVolume(ctx context.Context, name string) error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	names, err := s.lockNames(ctx)
	if err != nil {
		return err
	}
	defer names.unlock()
	v, err := s.Volume(name)
	if err != nil {
		return err
	}
	all, err := s.List()
	if err != nil {
		return err
	}
	if users := VolumeUsers(all, name); len(users) > 0 {
		return fmt.Errorf("remove %s: %w - [%s]", name, ErrVolumeInUse, users[0].ID)
	}
	if err := os.RemoveAll(filepath.Dir(v.Dir)); err != nil {
		return err
	}
	s.Note("volume", "destroy", name, "driver", "local")
	return nil
}

// Size is what the volume's files take, in bytes.
func (v Volume) Size() int64 { return size(v.Dir) }

// size adds the sizes of regular files up, as far as they can be seen.
func size(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // what goes meanwhile takes nothing
		}
		if fi, err := d.Info(); err == nil {
			n += fi.Size()
		}
		return nil
	})
	return n
}

// fill copies what the image has at a volume's place into it, if it is empty.
func (c *Container) fill(ctx context.Context, root *os.File, b Bind) error {
	if !b.Copy {
		return nil
	}
	l, err := waitLock(ctx, filepath.Join(c.set().volumes(), b.Volume, ".lock"))
	if err != nil {
		return err
	}
	defer l.unlock()
	if there, err := os.ReadDir(b.Source); err != nil || len(there) > 0 {
		return err
	}
	from, err := openIn(root, b.Target, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	s := &Source{dir: true, self: from}
	defer s.Close()
	to, err := os.OpenFile(b.Source, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := s.pipe(to, "", ReadOptions{Owners: true}); err != nil {
		return fmt.Errorf("fill volume %s: %w", b.Volume, err)
	}
	// The folder itself is as the image's.
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	return errors.Join(to.Chown(int(st.Uid), int(st.Gid)), unix.Fchmod(int(to.Fd()), st.Mode&0o7777))
}
