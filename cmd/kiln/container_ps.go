package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"kiln.build/runner/container"
)

// psFlags are the flags of ps, as typed.
type psFlags struct {
	all, quiet, noTrunc, size, latest bool
	last                              int
	filters                           []string
	format                            string
}

func (a *app) psCommand() *cobra.Command {
	var f psFlags
	c := &cobra.Command{
		Use: "ps [flags]", Aliases: []string{"ls", "list"}, Short: "List containers", Args: cobra.NoArgs,
		Example: "  kiln ps -a\n  kiln ps -q --filter status=exited",
		RunE:    func(*cobra.Command, []string) error { return a.ps(&f) },
	}
	fs := c.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "also those that do not run")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "only IDs")
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "do not shorten anything")
	fs.BoolVarP(&f.size, "size", "s", false, "show sizes")
	fs.IntVarP(&f.last, "last", "n", -1, "the last N that were created")
	fs.BoolVarP(&f.latest, "latest", "l", false, "the last one that was created")
	fs.StringArrayVarP(&f.filters, "filter", "f", nil, "status, name, id, label, ancestor, exited, expose, health, before, since, publish, volume, network, until, is-task, isolation =VALUE (repeatable)")
	fs.StringVar(&f.format, "format", "", formatHelp)
	return c
}

func (a *app) ps(f *psFlags) error {
	set, err := a.containers()
	if err != nil {
		return err
	}
	list, err := set.List()
	if err != nil {
		return err
	}
	keep, err := psFilter(list, f.filters)
	if err != nil {
		return err
	}
	// Sizes take a while, so they are added up where they are asked for.
	f.size = f.size || strings.Contains(f.format, ".Size")
	last := f.last
	if f.latest {
		last = 1
	}
	if last >= 0 {
		f.all = true
	}
	rows := []psRow{}
	for _, k := range list {
		if last >= 0 && len(rows) == last {
			break
		}
		st, err := k.State()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return err
		}
		if (f.all || st.Status.Live() || filtersState(f.filters)) && keep(k, st) {
			rows = append(rows, newPsRow(k, st, f))
		}
	}
	if f.quiet && f.format == "" {
		ids := make([]string, len(rows))
		for i, r := range rows {
			ids[i] = r.ID
		}
		return writeLines(a.stdout, ids...)
	}
	columns := "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
	if f.size {
		columns += "\t{{.Size}}"
	}
	return printRows(a.stdout, f.format, columns, psHeaders, rows)
}

var psHeaders = map[string]string{
	"ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "RunningFor": "CREATED", "CreatedAt": "CREATED AT",
	"Status": "STATUS", "State": "STATE", "Ports": "PORTS", "Names": "NAMES", "Labels": "LABELS", "Size": "SIZE",
	"HealthStatus": "HEALTH STATUS", "Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS", "Platform": "PLATFORM",
}

// psRow is a container as ps shows it; the names are docker's.
type psRow struct {
	ID, Image, Command, CreatedAt, RunningFor, Status, State, Ports, Names, Labels string
	Size, Mounts, LocalVolumes, Networks, Platform, HealthStatus                   string

	labels map[string]string
}

// Label is the value of a label, as docker's templates have it.
func (r psRow) Label(name string) string { return r.labels[name] }

func newPsRow(k *container.Container, st container.State, f *psFlags) psRow {
	r := psRow{
		ID: k.ID, Image: k.Image, Names: k.Name, State: string(st.Status), Networks: networkNames(k), Platform: k.Platform, labels: k.Labels,
		CreatedAt:  k.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"),
		RunningFor: units.HumanDuration(time.Since(k.Created)) + " ago", Status: statusText(st), Ports: psPorts(shownPorts(k, st)),
	}
	cmd := strings.Join(k.Args, " ")
	if !f.noTrunc {
		r.ID = r.ID[:12]
		if n := []rune(cmd); len(n) > 20 {
			cmd = string(n[:19]) + "…"
		}
	}
	r.Command = strconv.Quote(cmd)
	var labels, mounts []string
	for _, name := range slices.Sorted(maps.Keys(k.Labels)) {
		labels = append(labels, name+"="+k.Labels[name])
	}
	volumes := 0
	for _, b := range k.Binds {
		name := cmp.Or(b.Source, b.Image)
		if b.Volume != "" {
			name = b.Volume
			volumes++
		}
		if n := []rune(name); !f.noTrunc && len(n) > 15 {
			name = string(n[:14]) + "…"
		}
		mounts = append(mounts, name)
	}
	r.Labels, r.Mounts, r.LocalVolumes = strings.Join(labels, ","), strings.Join(mounts, ","), strconv.Itoa(volumes)
	if st.Health != nil {
		r.HealthStatus = string(st.Health.Status)
	}
	if f.size {
		used, all := containerSizes(k)
		r.Size = fmt.Sprintf("%s (virtual %s)", humanSize(used), humanSize(all))
	}
	return r
}

// networkNames are the networks of a container, or else its mode.
func networkNames(k *container.Container) string {
	if !k.Networked() {
		return k.Network
	}
	var names []string
	for _, m := range k.Memberships() {
		names = append(names, m.Network)
	}
	return strings.Join(names, ",")
}

// shownPorts are the published ports and, while the container runs, those that
// are only exposed.
func shownPorts(k *container.Container, st container.State) []container.Port {
	all := slices.Clone(st.Ports)
	if !st.Status.Live() || k.Network == "host" {
		return all
	}
	for _, e := range k.Exposed {
		if slices.ContainsFunc(st.Ports, func(p container.Port) bool { return p.ContainerPort() == e }) {
			continue
		}
		port, proto, _ := strings.Cut(e, "/")
		if n, err := strconv.Atoi(port); err == nil {
			all = append(all, container.Port{Container: n, Proto: proto})
		}
	}
	return all
}

// psPorts lists published ports in docker's order, those next to each other as
// ranges.
func psPorts(ports []container.Port) string {
	slices.SortFunc(ports, func(a, b container.Port) int {
		return cmp.Or(cmp.Compare(a.Container, b.Container), cmp.Compare(a.HostIP, b.HostIP), cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.Proto, b.Proto))
	})
	var all []string
	for i := 0; i < len(ports); {
		first, last := ports[i], ports[i]
		for i++; i < len(ports); i++ {
			p := ports[i]
			step := min(last.HostPort, 1) // one that is only exposed has none
			if p.HostIP != first.HostIP || p.Proto != first.Proto || p.HostPort != last.HostPort+step || p.Container != last.Container+1 {
				break
			}
			last = p
		}
		text := first.String()
		switch {
		case first.HostPort == 0 && last != first:
			text = fmt.Sprintf("%d-%d/%s", first.Container, last.Container, first.Proto)
		case first.HostPort == 0:
			text = first.ContainerPort()
		case last != first:
			text = fmt.Sprintf("%s-%d->%d-%d/%s", first.Host(), last.HostPort, first.Container, last.Container, first.Proto)
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

func statusText(st container.State) string {
	since := func(t time.Time) string { return units.HumanDuration(time.Since(t)) }
	switch st.Status {
	case container.Running:
		text := "Up " + since(st.Started)
		switch h := st.Health; {
		case h == nil:
		case h.Status == container.Starting:
			text += " (health: starting)"
		default:
			text += " (" + string(h.Status) + ")"
		}
		return text
	case container.Paused:
		return "Up " + since(st.Started) + " (Paused)"
	case container.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", st.ExitCode, since(st.Finished))
	case container.Exited:
		if st.Finished.IsZero() {
			return fmt.Sprintf("Exited (%d)", st.ExitCode) // nobody saw it
		}
		return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, since(st.Finished))
	}
	return "Created"
}

func filtersState(filters []string) bool {
	return slices.ContainsFunc(filters, func(f string) bool {
		return strings.HasPrefix(f, "status=") || strings.HasPrefix(f, "exited=")
	})
}

// psFilter reads filters. Of several values of a key one must match, but of
// labels all.
func psFilter(all []*container.Container, filters []string) (func(*container.Container, container.State) bool, error) {
	type test func(*container.Container, container.State) bool
	tests := map[string][]test{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return nil, fmt.Errorf("invalid filter %q: must be KEY=VALUE", f)
		}
		t, err := psTest(all, key, value)
		if err != nil {
			return nil, err
		}
		if key == "label" || key == "label!" {
			key = f
		}
		tests[key] = append(tests[key], t)
	}
	return func(k *container.Container, st container.State) bool {
		for _, any := range tests {
			if !slices.ContainsFunc(any, func(t test) bool { return t(k, st) }) {
				return false
			}
		}
		return true
	}, nil
}

func psTest(all []*container.Container, key, value string) (func(*container.Container, container.State) bool, error) {
	other := func() (time.Time, error) {
		for _, k := range all {
			if k.Name == value || strings.HasPrefix(k.ID, value) {
				return k.Created, nil
			}
		}
		return time.Time{}, &container.NotFoundError{Name: value}
	}
	switch key {
	case "status":
		known := []container.Status{container.Created, container.Running, container.Paused, container.Restarting, container.Exited, "removing", "dead"}
		if !slices.Contains(known, container.Status(value)) {
			return nil, fmt.Errorf("invalid filter 'status=%s': must be one of created, running, paused, restarting, removing, exited, dead", value)
		}
		return func(_ *container.Container, st container.State) bool { return string(st.Status) == value }, nil
	case "name":
		match := matcher(value)
		return func(k *container.Container, _ container.State) bool { return match("/"+k.Name) || match(k.Name) }, nil
	case "id":
		match := matcher(value)
		return func(k *container.Container, _ container.State) bool { return match(k.ID) }, nil
	case "ancestor":
		return func(k *container.Container, _ container.State) bool {
			id := k.ImageID.Encoded()
			return k.Image == value || strings.HasPrefix(k.Image, value+":") || k.Image+":latest" == value ||
				len(value) >= 4 && strings.HasPrefix(id, strings.TrimPrefix(value, "sha256:"))
		}, nil
	case "health":
		if !slices.Contains([]string{"none", "starting", "healthy", "unhealthy"}, value) {
			return nil, fmt.Errorf("invalid filter 'health=%s': must be one of healthy, none, starting, unhealthy", value)
		}
		return func(_ *container.Container, st container.State) bool {
			if st.Health == nil {
				return value == "none"
			}
			return string(st.Health.Status) == value
		}, nil
	case "exited":
		code, err := strconv.Atoi(value)
		if err != nil {
			return nil, fmt.Errorf("invalid filter 'exited=%s'", value)
		}
		return func(_ *container.Container, st container.State) bool {
			return st.Status == container.Exited && st.ExitCode == code
		}, nil
	case "label", "label!":
		name, want, has := strings.Cut(value, "=")
		return func(k *container.Container, _ container.State) bool {
			v, ok := k.Labels[name]
			return (ok && (!has || v == want)) == (key == "label")
		}, nil
	case "until":
		at, err := when("until", value)
		return func(k *container.Container, _ container.State) bool { return k.Created.Before(at) }, err
	case "expose", "publish":
		wanted, err := portRange(key, value)
		return func(k *container.Container, st container.State) bool {
			ports := k.Exposed
			if key == "publish" { // as this machine has them
				ports = nil
				for _, p := range st.Ports {
					ports = append(ports, fmt.Sprintf("%d/%s", p.HostPort, p.Proto))
				}
			}
			return slices.ContainsFunc(ports, wanted)
		}, err
	case "before", "since":
		at, err := other()
		return func(k *container.Container, _ container.State) bool {
			return key == "before" && k.Created.Before(at) || key == "since" && k.Created.After(at)
		}, err
	case "network":
		return func(k *container.Container, _ container.State) bool {
			return k.Network == value || slices.ContainsFunc(k.Memberships(), func(m container.Membership) bool { return m.Network == value || strings.HasPrefix(m.ID, value) })
		}, nil
	case "volume":
		return func(k *container.Container, _ container.State) bool {
			return slices.ContainsFunc(k.Binds, func(b container.Bind) bool { return b.Volume == value || b.Source == value || b.Target == value })
		}, nil
	case "is-task":
		want, err := strconv.ParseBool(value)
		return func(*container.Container, container.State) bool { return !want }, err
	case "isolation": // there is one
		return func(*container.Container, container.State) bool { return value == "default" }, nil
	}
	return nil, fmt.Errorf("invalid filter '%s'", key)
}

// matcher is how docker compares names and IDs with filters: as a regular
// expression, or as text where that is none.
func matcher(value string) func(string) bool {
	re, err := regexp.Compile(value)
	if err != nil {
		return func(s string) bool { return s == value }
	}
	return re.MatchString
}

// portRange reads PORT[-PORT][/PROTO], and returns what tells ports in it, in
// the form "80/tcp".
func portRange(key, value string) (func(string) bool, error) {
	if strings.Contains(value, ":") {
		return nil, fmt.Errorf("filter for '%s' should not contain ':': %s", key, value)
	}
	ports, proto, _ := strings.Cut(value, "/")
	from, to, isRange := strings.Cut(ports, "-")
	first, err := strconv.ParseUint(from, 10, 16)
	last := first
	if err == nil && isRange {
		last, err = strconv.ParseUint(to, 10, 16)
	}
	if err != nil || last < first {
		return nil, fmt.Errorf("error while looking up for %s %s: not a port or a range of ports", key, value)
	}
	return func(s string) bool {
		port, p, _ := strings.Cut(s, "/")
		n, err := strconv.ParseUint(port, 10, 16)
		return err == nil && first <= n && n <= last && p == cmp.Or(strings.ToLower(proto), "tcp")
	}, nil
}
