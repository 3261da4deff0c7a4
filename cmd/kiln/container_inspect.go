package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"kiln.build/runner/container"
)

// inspected is a container in the form of docker inspect. Fields have docker's
// names, which templates use; where these differ from those in JSON, both work.
type inspected struct {
	ID              string `json:"Id"`
	Created         string
	Path            string
	Args            []string
	State           inspectedState
	Image           string
	ResolvConfPath  string
	HostnamePath    string
	HostsPath       string
	LogPath         string
	Name            string
	RestartCount    int
	Driver          string
	Platform        string
	MountLabel      string
	ProcessLabel    string
	AppArmorProfile string
	ExecIDs         []string
	HostConfig      inspectedHost
	GraphDriver     inspectedDriver
	SizeRw          *int64 `json:",omitempty"`
	SizeRootFs      *int64 `json:",omitempty"`
	Mounts          []inspectedMount
	Config          inspectedConfig
	NetworkSettings inspectedNetwork
}

type inspectedState struct {
	Status     string
	Running    bool
	Paused     bool
	Restarting bool
	OOMKilled  bool
	Dead       bool
	Pid        int
	ExitCode   int
	Error      string
	StartedAt  string
	FinishedAt string
	Health     *container.HealthState `json:",omitempty"`
}

type inspectedConfig struct {
	Hostname     string
	Domainname   string
	User         string
	AttachStdin  bool
	AttachStdout bool
	AttachStderr bool
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Tty          bool
	OpenStdin    bool
	StdinOnce    bool
	Env          []string
	Cmd          []string
	Healthcheck  *dockerspec.HealthcheckConfig `json:",omitempty"`
	Image        string
	Volumes      map[string]struct{}
	WorkingDir   string
	Entrypoint   []string
	OnBuild      []string // never any
	Labels       map[string]string
	StopSignal   string `json:",omitempty"`
	StopTimeout  *int   `json:",omitempty"`
}

// inspectedDriver says where the container's changes are.
type inspectedDriver struct {
	Data map[string]string
	Name string
}

type inspectedMount struct {
	Type        string
	Name        string `json:",omitempty"`
	Source      string
	Destination string
	Driver      string `json:",omitempty"`
	Mode        string
	RW          bool
	Propagation string
}

// inspectedNetwork has, beside all networks, what docker said for long of the
// first one; and what docker's has and nobody sets, since templates ask for it.
type inspectedNetwork struct {
	Bridge                 string
	SandboxID              string
	SandboxKey             string
	Ports                  map[string][]inspectedPort
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []string
	SecondaryIPv6Addresses []string
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
	Networks               map[string]inspectedEndpoint
}

type inspectedPort struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

// containerInspect returns all about a container, and whether there is one of
// that name.
func (a *app) containerInspect(name string, size bool) (any, bool, error) {
	set, err := a.containers()
	if err != nil {
		return nil, false, err
	}
	k, err := set.Find(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	st, err := k.State()
	if err != nil {
		return nil, false, err
	}
	x := inspect(k, st)
	if size {
		used, all := containerSizes(k)
		x.SizeRw, x.SizeRootFs = &used, &all
	}
	return x, true, nil
}

// containerSizes are what a container has changed, and all of it.
func containerSizes(k *container.Container) (used, all int64) {
	used = k.SpaceUsed()
	all = used
	for _, l := range k.Layers {
		all += l.Size
	}
	return used, all
}

func inspect(k *container.Container, st container.State) *inspected {
	etc := func(name string) string { return filepath.Join(k.Dir(), "etc", name) }
	x := &inspected{
		ID: k.ID, Created: stamp(k.Created), Path: k.Args[0], Args: k.Args[1:], Image: string(k.ImageID), Name: "/" + k.Name,
		ResolvConfPath: etc("resolv.conf"), HostnamePath: etc("hostname"), HostsPath: etc("hosts"),
		RestartCount: st.Restarts, Driver: "overlay", Platform: "linux",
		State: inspectedState{
			Status: string(st.Status), Running: st.Status.Live(), Paused: st.Status == container.Paused,
			Restarting: st.Status == container.Restarting, OOMKilled: st.OOM, Pid: st.PID,
			ExitCode: st.ExitCode, Error: st.Error, StartedAt: stamp(st.Started), FinishedAt: stamp(st.Finished), Health: st.Health,
		},
		Config:      inspectConfig(k),
		HostConfig:  inspectHost(k),
		GraphDriver: inspectedDriver{map[string]string{"UpperDir": filepath.Join(k.Dir(), "fs"), "WorkDir": filepath.Join(k.Dir(), "work")}, "overlay"},
		Mounts:      []inspectedMount{},

		NetworkSettings: inspectedNetwork{IPAddress: st.IP, Gateway: st.Gateway, Ports: publishedPorts(k, st), Networks: inspectNetworks(k, st)},
	}
	if k.Config.Log.Driver != "none" {
		x.LogPath = k.LogPath()
	}
	if n := &x.NetworkSettings; st.PID != 0 {
		n.SandboxID, n.SandboxKey = k.ID, fmt.Sprintf("/proc/%d/ns/net", st.PID)
		for _, e := range n.Networks {
			if e.IPAddress == st.IP && st.IP != "" {
				n.EndpointID, n.IPPrefixLen, n.MacAddress = e.EndpointID, e.IPPrefixLen, e.MacAddress
			}
		}
	}
	for _, b := range k.Binds {
		m := inspectedMount{Type: "bind", Source: b.Source, Destination: b.Target, Mode: b.Options, RW: !b.ReadOnly, Propagation: "rprivate"}
		if b.Propagation != "" {
			m.Propagation = "r" + b.Propagation
		}
		if b.Image != "" {
			m.Type, m.Source, m.Propagation = "image", b.Image, ""
		}
		if b.Volume != "" {
			m.Type, m.Name, m.Driver, m.Propagation = "volume", b.Volume, "local", ""
			if m.Mode == "" && !b.Anonymous {
				m.Mode = "z" // as docker has it
			}
		}
		x.Mounts = append(x.Mounts, m)
	}
	for _, t := range k.Tmpfs {
		if t.Origin == container.OfMount { // as in docker: others are in HostConfig alone
			x.Mounts = append(x.Mounts, inspectedMount{Type: "tmpfs", Destination: t.Target, RW: !t.ReadOnly})
		}
	}
	return x
}

// stamp is a time in docker's form; that of what has not happened is in the
// year 1.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func inspectConfig(k *container.Container) inspectedConfig {
	attached := func(stream string) bool { return len(k.Config.Attach) == 0 || slices.Contains(k.Config.Attach, stream) }
	c := inspectedConfig{
		Hostname: k.Hostname, Domainname: k.Domainname, User: k.User, Tty: k.Terminal, OpenStdin: k.Config.Stdin, StdinOnce: k.StdinOnce,
		AttachStdin: k.StdinOnce, AttachStdout: attached("stdout"), AttachStderr: attached("stderr"),
		Env: k.Env, Cmd: k.Args[len(k.Entrypoint):], Entrypoint: k.Entrypoint,
		Image: k.Image, WorkingDir: k.Cwd, Labels: map[string]string{}, StopSignal: k.StopSignal,
	}
	maps.Copy(c.Labels, k.Labels)
	if k.StopWait != 10 {
		c.StopTimeout = &k.StopWait
	}
	if h := k.Config.Health; h != nil {
		c.Healthcheck = &dockerspec.HealthcheckConfig{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
		}
	}
	for _, e := range k.Exposed {
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		c.ExposedPorts[e] = struct{}{}
	}
	for _, b := range k.Binds {
		if b.Origin == container.OfImage || b.Anonymous && b.Origin == "" {
			if c.Volumes == nil {
				c.Volumes = map[string]struct{}{}
			}
			c.Volumes[b.Target] = struct{}{}
		}
	}
	return c
}

// publishedPorts are those that lead to the container while it runs; exposed
// ones that nothing leads to are there without a place.
func publishedPorts(k *container.Container, st container.State) map[string][]inspectedPort {
	ports := slices.Clone(st.Ports)
	for i := range ports {
		ports[i].HostIP = cmp.Or(ports[i].HostIP, "0.0.0.0")
	}
	m := portMap(ports)
	for _, p := range shownPorts(k, st) {
		if at := p.ContainerPort(); m[at] == nil {
			m[at] = nil
		}
	}
	return m
}

func portMap(ports []container.Port) map[string][]inspectedPort {
	m := map[string][]inspectedPort{}
	for _, p := range ports {
		at := p.ContainerPort()
		host := ""
		if p.HostPort != 0 {
			host = strconv.Itoa(p.HostPort)
		}
		if p.HostLast != 0 {
			host += "-" + strconv.Itoa(p.HostLast)
		}
		m[at] = append(m[at], inspectedPort{p.HostIP, host})
	}
	return m
}
