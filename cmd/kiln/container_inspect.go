package main

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

// inspected is a container in the form of docker inspect, as far as there is
// something to tell.
type inspected struct {
	ID           string `json:"Id"`
	Created      time.Time
	Path         string
	Args         []string
	State        inspectedState
	Image        string
	LogPath      string
	Name         string
	RestartCount int
	Driver       string
	Platform     string
	HostConfig   inspectedHost
	SizeRw       *int64 `json:",omitempty"`
	SizeRootFs   *int64 `json:",omitempty"`
	Mounts       []inspectedMount
	Config       inspectedConfig
	Network      inspectedNetwork `json:"NetworkSettings"`
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
	StartedAt  time.Time
	FinishedAt time.Time
	Health     *container.HealthState `json:",omitempty"`
}

type inspectedConfig struct {
	Hostname     string
	User         string
	Tty          bool
	OpenStdin    bool
	StdinOnce    bool
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Env          []string
	Cmd          []string
	Entrypoint   []string
	Image        string
	WorkingDir   string
	Labels       map[string]string
	StopSignal   string                        `json:",omitempty"`
	StopTimeout  *int                          `json:",omitempty"`
	Healthcheck  *dockerspec.HealthcheckConfig `json:",omitempty"`
}

type inspectedHost struct {
	NetworkMode       string
	PortBindings      map[string][]inspectedPort
	RestartPolicy     inspectedPolicy
	LogConfig         inspectedLog
	AutoRemove        bool
	Privileged        bool
	ReadonlyRootfs    bool
	Init              bool
	CapAdd            []string
	CapDrop           []string
	GroupAdd          []string
	DNS               []string `json:"Dns"`
	DNSSearch         []string `json:"DnsSearch"`
	DNSOptions        []string `json:"DnsOptions"`
	ExtraHosts        []string
	Memory            int64
	MemorySwap        int64
	MemoryReservation int64
	NanoCpus          int64
	CPUShares         int64 `json:"CpuShares"`
	CPUPeriod         int64 `json:"CpuPeriod"`
	CPUQuota          int64 `json:"CpuQuota"`
	CpusetCpus        string
	CpusetMems        string
	PidsLimit         *int64
	OomScoreAdj       int
	ShmSize           int64
	Sysctls           map[string]string
	Ulimits           []units.Ulimit
	Devices           []inspectedDevice
	Binds             []string
	Tmpfs             map[string]string
	CgroupParent      string
}

type inspectedPolicy struct {
	Name              string
	MaximumRetryCount int
}

type inspectedLog struct {
	Type   string
	Config map[string]string
}

type inspectedDevice struct {
	PathInContainer   string
	CgroupPermissions string
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

type inspectedNetwork struct {
	IPAddress string
	Gateway   string
	Ports     map[string][]inspectedPort
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
	x := &inspected{
		ID: k.ID, Created: k.Created, Path: k.Args[0], Args: k.Args[1:], Image: string(k.ImageID), Name: "/" + k.Name,
		LogPath: k.LogPath(), RestartCount: st.Restarts, Driver: "overlay", Platform: "linux",
		State: inspectedState{
			Status: string(st.Status), Running: st.Status.Live(), Paused: st.Status == container.Paused,
			Restarting: st.Status == container.Restarting, OOMKilled: st.OOM, Pid: st.PID,
			ExitCode: st.ExitCode, Error: st.Error, StartedAt: st.Started, FinishedAt: st.Finished, Health: st.Health,
		},
		Config: inspectedConfig{
			Hostname: k.Hostname, User: k.User, Tty: k.Terminal, OpenStdin: k.Config.Stdin, StdinOnce: k.StdinOnce, Env: k.Env,
			Cmd: k.Args[len(k.Entrypoint):], Entrypoint: k.Entrypoint,
			Image: k.Image, WorkingDir: k.Cwd, Labels: k.Labels, StopSignal: k.StopSignal,
		},
		HostConfig: inspectHost(k),
		Mounts:     []inspectedMount{},
		Network:    inspectedNetwork{IPAddress: st.IP, Gateway: st.Gateway, Ports: portMap(st.Ports)},
	}
	if k.StopWait != 10 {
		x.Config.StopTimeout = &k.StopWait
	}
	if h := k.Config.Health; h != nil {
		x.Config.Healthcheck = &dockerspec.HealthcheckConfig{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
		}
	}
	for _, e := range k.Exposed {
		if x.Config.ExposedPorts == nil {
			x.Config.ExposedPorts = map[string]struct{}{}
		}
		x.Config.ExposedPorts[e] = struct{}{}
	}
	for _, b := range k.Binds {
		m := inspectedMount{Type: "bind", Source: b.Source, Destination: b.Target, RW: !b.ReadOnly, Propagation: "rprivate"}
		if b.Volume != "" {
			m.Type, m.Name, m.Driver, m.Propagation = "volume", b.Volume, "local", ""
		}
		x.Mounts = append(x.Mounts, m)
	}
	for _, t := range k.Tmpfs {
		x.Mounts = append(x.Mounts, inspectedMount{Type: "tmpfs", Destination: t.Target, RW: !t.ReadOnly})
	}
	return x
}

func inspectHost(k *container.Container) inspectedHost {
	l := k.Limits
	h := inspectedHost{
		NetworkMode: k.Network, PortBindings: portMap(k.Ports),
		RestartPolicy: inspectedPolicy{Name: k.Restart.Name, MaximumRetryCount: k.Restart.Max},
		LogConfig:     inspectedLog{Type: "json-file", Config: map[string]string{}},
		AutoRemove:    k.AutoRemove, Privileged: k.Privileged, ReadonlyRootfs: k.ReadOnly, Init: k.Init,
		CapAdd: k.CapAdd, CapDrop: k.CapDrop, GroupAdd: k.Groups, ExtraHosts: k.Hosts,
		DNS: k.DNS.Servers, DNSSearch: k.DNS.Search, DNSOptions: k.DNS.Options,
		Memory: l.Memory, MemorySwap: l.MemorySwap, MemoryReservation: l.MemoryReservation,
		CPUShares: l.CPUShares, CPUPeriod: l.CPUPeriod, CPUQuota: l.CPUQuota, CpusetCpus: l.CPUSetCPUs, CpusetMems: l.CPUSetMems,
		ShmSize: k.ShmSize, Sysctls: k.Sysctls, CgroupParent: l.Parent, Binds: []string{},
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = "no"
	}
	if k.Config.Log.Driver != "" {
		h.LogConfig.Type = k.Config.Log.Driver
	}
	if o := k.Config.Log.Options; o != nil {
		h.LogConfig.Config = o
	}
	if l.CPUPeriod > 0 && l.CPUQuota > 0 {
		h.NanoCpus = l.CPUQuota * 1e9 / l.CPUPeriod
	}
	if l.Pids != 0 {
		h.PidsLimit = &l.Pids
	}
	if h.MemorySwap == 0 && l.Memory > 0 {
		h.MemorySwap = 2 * l.Memory
	}
	if h.ShmSize == 0 {
		h.ShmSize = 64 << 20
	}
	if k.OOM != nil {
		h.OomScoreAdj = *k.OOM
	}
	for _, r := range k.Rlimits {
		h.Ulimits = append(h.Ulimits, units.Ulimit{Name: r.Name, Soft: int64(r.Soft), Hard: int64(r.Hard)})
	}
	for _, d := range k.Devices {
		h.Devices = append(h.Devices, inspectDevice(d))
	}
	for _, b := range k.Binds {
		source := b.Source
		if b.Volume != "" {
			source = b.Volume
		}
		bind := source + ":" + b.Target
		if b.ReadOnly {
			bind += ":ro"
		}
		h.Binds = append(h.Binds, bind)
	}
	for _, t := range k.Tmpfs {
		if h.Tmpfs == nil {
			h.Tmpfs = map[string]string{}
		}
		h.Tmpfs[t.Target] = strings.Join(t.Options, ",")
	}
	return h
}

func inspectDevice(d sandbox.Device) inspectedDevice {
	x := inspectedDevice{PathInContainer: d.Path, CgroupPermissions: d.Access}
	if x.CgroupPermissions == "" {
		x.CgroupPermissions = "rwm"
	}
	return x
}

func portMap(ports []container.Port) map[string][]inspectedPort {
	m := map[string][]inspectedPort{}
	for _, p := range ports {
		at := p.ContainerPort()
		host := ""
		if p.HostPort != 0 {
			host = strconv.Itoa(p.HostPort)
		}
		m[at] = append(m[at], inspectedPort{p.HostIP, host})
	}
	return m
}
