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

	"golang.org/x/sys/unix"
	"kiln.build/runner/cdi"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

func (f *runFlags) applyDevices(c *container.Config) error {
	for _, d := range f.devices {
		if isCDI(d) {
			c.CDI = append(c.CDI, d)
			continue
		}
		devices, sources, err := parseDevices(d)
		if err != nil {
			return fmt.Errorf("--device=%s: %w", d, err)
		}
		c.Devices, c.Sources = append(c.Devices, devices...), append(c.Sources, sources...)
	}
	for _, g := range f.gpus {
		names, err := parseGPUs(g)
		if err != nil {
			return fmt.Errorf("--gpus=%s: %w", g, err)
		}
		c.CDI = append(c.CDI, names...)
	}
	for _, r := range f.deviceRules {
		if _, err := container.ParseDeviceRule(r); err != nil {
			return fmt.Errorf("--device-cgroup-rule: %w", err)
		}
	}
	c.DeviceRules = f.deviceRules
	return nil
}

// warnHooks says which programs of CDI devices are not run.
func (a *app) warnHooks(names []string) error {
	if len(names) == 0 {
		return nil
	}
	registry, err := cdi.Read(cdi.Dirs())
	if err != nil {
		return err
	}
	var all []*cdi.Device
	for _, n := range names {
		found, err := registry.Find(n)
		if err != nil {
			return err
		}
		all = append(all, found...)
	}
	if hooks := cdi.Combine(all).HookCommands(); len(hooks) > 0 {
		fmt.Fprintf(a.stderr, "WARNING: the hooks of the devices are not run: %s\n", strings.Join(hooks, "; "))
	}
	return nil
}

// isCDI reports whether a device is given as VENDOR/CLASS=NAME.
func isCDI(s string) bool {
	kind, name, ok := strings.Cut(s, "=")
	vendor, class, hasClass := strings.Cut(kind, "/")
	return ok && hasClass && vendor != "" && class != "" && name != "" && !strings.Contains(class, "/")
}

// parseGPUs reads a value of --gpus: the names by which CDI knows GPUs.
func parseGPUs(s string) ([]string, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return nil, err
	}
	kind, count, names := "nvidia.com/gpu", "", []string(nil)
	seen := map[string]bool{}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			key, value = "count", f
		}
		if seen[key] {
			return nil, fmt.Errorf("gpu request key '%s' can be specified only once", key)
		}
		seen[key] = true
		switch key {
		case "count":
			count = value
		case "device":
			names = strings.Split(value, ",")
		case "driver":
			switch value {
			case "", "nvidia", "cdi":
			case "amd":
				kind = "amd.com/gpu"
			default:
				return nil, fmt.Errorf("could not select device driver %q with capabilities: [[gpu]]", value)
			}
		case "capabilities", "options": // of a driver: with CDI a GPU comes with all it has
		default:
			return nil, fmt.Errorf("unexpected key '%s' in '%s'", key, f)
		}
	}
	if count != "" && names != nil {
		return nil, errors.New("cannot set both Count and DeviceIDs on device request")
	}
	switch {
	case names != nil:
	case count == "all", count == "-1":
		names = []string{"all"}
	default:
		if count == "" {
			count = "1"
		}
		n, err := strconv.ParseUint(count, 10, 8)
		if err != nil {
			return nil, fmt.Errorf(`invalid count (%s): value must be either "all" or an integer`, count)
		}
		for i := range n {
			names = append(names, strconv.FormatUint(i, 10))
		}
	}
	for i, n := range names {
		if !isCDI(n) {
			names[i] = kind + "=" + n
		}
	}
	return names, nil
}

// parseDevices reads PATH[:TARGET][:rwm]. Of a folder it takes all devices
// in it.
func parseDevices(s string) (all []sandbox.Device, sources []string, err error) {
	source, _, _ := strings.Cut(s, ":")
	if fi, err := os.Stat(source); err != nil || !fi.IsDir() {
		d, err := parseDevice(s)
		return []sandbox.Device{d}, []string{source}, err
	}
	_, rest, _ := strings.Cut(s, ":")
	target, access, _ := strings.Cut(rest, ":")
	if !path.IsAbs(target) {
		target, access = source, rest
	}
	if access != "" {
		access = ":" + access
	}
	err = filepath.WalkDir(source, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.Type()&os.ModeDevice == 0 {
			return err
		}
		d, err := parseDevice(p + ":" + target + strings.TrimPrefix(p, source) + access)
		all, sources = append(all, d), append(sources, p)
		return err
	})
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("error gathering device information while adding custom device %q: not a device node", source)
	}
	return all, sources, err
}

// parseDevice reads PATH[:TARGET][:rwm].
func parseDevice(s string) (sandbox.Device, error) {
	parts := strings.Split(s, ":")
	d := sandbox.Device{Path: parts[0]}
	rights := func(s string) bool { return s != "" && strings.Trim(s, "rwm") == "" }
	switch {
	case len(parts) == 1:
	case len(parts) == 2 && rights(parts[1]):
		d.Access = parts[1]
	case len(parts) == 2:
		d.Path = parts[1]
	case len(parts) == 3 && rights(parts[2]):
		d.Path, d.Access = parts[1], parts[2]
	default:
		return d, errors.New("must be PATH[:TARGET][:rwm]")
	}
	if !path.IsAbs(d.Path) {
		return d, fmt.Errorf("%q is not an absolute path", d.Path)
	}
	var st unix.Stat_t
	if err := unix.Stat(parts[0], &st); err != nil {
		return d, &os.PathError{Op: "stat", Path: parts[0], Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = 'c'
	case unix.S_IFBLK:
		d.Type = 'b'
	default:
		return d, fmt.Errorf("%s is no device", parts[0])
	}
	d.Major, d.Minor, d.Mode = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)), st.Mode&0o777
	d.UID, d.GID = int(st.Uid), int(st.Gid)
	return d, nil
}
