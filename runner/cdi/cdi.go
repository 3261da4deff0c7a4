// Package cdi finds devices by the names that the Container Device Interface
// gives them, such as "nvidia.com/gpu=0".
//
// A [Registry] is what the specification files of this machine say; [Find]
// resolves a request as BuildKit does. What a device asks for (nodes, mounts,
// variables) is in [Edits]; carrying it out is the caller's work.
//
// Format: https://github.com/cncf-tags/container-device-interface, SPEC.md.
package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// DefaultDirs are where specifications are looked for. Those of a later
// folder win.
var DefaultDirs = []string{"/etc/cdi", "/var/run/cdi"}

// Dirs are the default ones, or those in KILN_CDI_DIRS.
func Dirs() []string {
	if v := os.Getenv("KILN_CDI_DIRS"); v != "" {
		return filepath.SplitList(v)
	}
	return DefaultDirs
}

// Annotations by which BuildKit knows a device.
const (
	classAnnotation = "org.mobyproject.buildkit.device.class"     // another name for it
	allowAnnotation = "org.mobyproject.buildkit.device.autoallow" // needs no --allow
)

// Edits are what a container needs for a device.
type Edits struct {
	Env         []string `yaml:"env"`
	DeviceNodes []Node   `yaml:"deviceNodes"`
	Mounts      []Mount  `yaml:"mounts"`
	Hooks       []Hook   `yaml:"hooks"`
	GIDs        []uint32 `yaml:"additionalGids"`
}

// Node is a device node.
type Node struct {
	Path        string  `yaml:"path"`     // in the container
	HostPath    string  `yaml:"hostPath"` // empty is Path
	Type        string  `yaml:"type"`     // "c", "b" or "p"; empty is that of the host's
	Major       int64   `yaml:"major"`
	Minor       int64   `yaml:"minor"`
	FileMode    *uint32 `yaml:"fileMode"`
	Permissions string  `yaml:"permissions"` // of "rwm", empty is all
	UID         *uint32 `yaml:"uid"`
	GID         *uint32 `yaml:"gid"`
}

// Mount is a bind mount.
type Mount struct {
	HostPath      string   `yaml:"hostPath"`
	ContainerPath string   `yaml:"containerPath"`
	Options       []string `yaml:"options"`
	Type          string   `yaml:"type"`
}

// Hook is a program that is to run at some point of a container's start.
type Hook struct {
	Name string   `yaml:"hookName"`
	Path string   `yaml:"path"`
	Args []string `yaml:"args"`
}

// spec is a specification file.
type spec struct {
	Version     string            `yaml:"cdiVersion"`
	Kind        string            `yaml:"kind"`
	Annotations map[string]string `yaml:"annotations"`
	Devices     []struct {
		Name        string            `yaml:"name"`
		Annotations map[string]string `yaml:"annotations"`
		Edits       Edits             `yaml:"containerEdits"`
	} `yaml:"devices"`
	Edits Edits `yaml:"containerEdits"`
}

// A Device is a device of this machine.
type Device struct {
	Name      string // in full, vendor/class=name
	AutoAllow bool   // needs no permission

	// Edits are those of the device, and Common those that all devices of
	// its file need.
	Edits, Common Edits

	class string
	file  string
	other string // a second file of the same folder that has the name
}

// A Registry has the devices of this machine by name.
type Registry struct{ devices map[string]*Device }

// Read reads the specifications in the folders, of which some may be missing.
func Read(dirs []string) (*Registry, error) {
	r := &Registry{devices: map[string]*Device{}}
	for _, dir := range dirs {
		names, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("CDI devices: %w", err)
		}
		for _, n := range names {
			switch filepath.Ext(n.Name()) {
			case ".json", ".yaml", ".yml":
			default:
				continue
			}
			if err := r.read(filepath.Join(dir, n.Name())); err != nil {
				return nil, fmt.Errorf("CDI devices: %w", err)
			}
		}
	}
	return r, nil
}

func (r *Registry) read(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var s spec
	if err := yaml.Unmarshal(data, &s); err != nil { // JSON is YAML too
		return fmt.Errorf("%s: %w", file, err)
	}
	if s.Version == "" || !isKind(s.Kind) {
		return fmt.Errorf("%s: no cdiVersion, or a kind that is not vendor/class", file)
	}
	for _, d := range s.Devices {
		if d.Name == "" {
			return fmt.Errorf("%s: a device has no name", file)
		}
		notes := map[string]string{}
		maps.Copy(notes, s.Annotations)
		maps.Copy(notes, d.Annotations)
		auto, _ := strconv.ParseBool(notes[allowAnnotation])
		dev := &Device{
			Name: s.Kind + "=" + d.Name, AutoAllow: auto, Edits: d.Edits, Common: s.Edits,
			class: notes[classAnnotation], file: file,
		}
		if old := r.devices[dev.Name]; old != nil && filepath.Dir(old.file) == filepath.Dir(file) {
			old.other = file
			continue
		}
		r.devices[dev.Name] = dev
	}
	return nil
}

// isKind reports whether a text is "vendor/class".
func isKind(s string) bool {
	vendor, class, ok := strings.Cut(s, "/")
	return ok && vendor != "" && class != "" && !strings.ContainsAny(class, "/=")
}

// Names are those of all devices, sorted.
func (r *Registry) Names() []string { return slices.Sorted(maps.Keys(r.devices)) }

// Find returns the devices that a request means: "vendor/class=name" the one,
// "vendor/class=*" all, "vendor/class" the first of its kind, and another
// word those that are annotated with it as their class. It returns none where
// there are none.
func (r *Registry) Find(request string) ([]*Device, error) {
	kind, name, _ := strings.Cut(request, "=")
	var found []*Device
	if isKind(kind) {
		for _, n := range r.Names() {
			if k, _, _ := strings.Cut(n, "="); k != kind || name != "" && name != "*" && n != request {
				continue
			}
			found = append(found, r.devices[n])
			if name == "" {
				break
			}
		}
	}
	if len(found) == 0 {
		for _, n := range r.Names() {
			if d := r.devices[n]; d.class != "" && d.class == request {
				found = append(found, d)
			}
		}
	}
	for _, d := range found {
		if d.other != "" {
			return nil, fmt.Errorf("device %s is in %s and in %s", d.Name, d.file, d.other)
		}
	}
	return found, nil
}

// Combine puts the edits of devices together, those of their files once.
func Combine(devices []*Device) Edits {
	var all Edits
	add := func(e Edits) {
		all.Env = append(all.Env, e.Env...)
		all.DeviceNodes = append(all.DeviceNodes, e.DeviceNodes...)
		all.Mounts = append(all.Mounts, e.Mounts...)
		all.Hooks = append(all.Hooks, e.Hooks...)
		all.GIDs = append(all.GIDs, e.GIDs...)
	}
	files, names := map[string]bool{}, map[string]bool{}
	for _, d := range devices {
		if names[d.Name] {
			continue
		}
		names[d.Name] = true
		if !files[d.file] {
			files[d.file] = true
			add(d.Common)
		}
		add(d.Edits)
	}
	return all
}
