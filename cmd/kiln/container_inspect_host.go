package main

import (
	"cmp"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

// inspectedHost is what a container was asked to have of this machine: docker's
// HostConfig, of which nothing is left out, so that templates find it all.
type inspectedHost struct {
	Binds           []string
	ContainerIDFile string
	LogConfig       inspectedLog
	NetworkMode     string
	PortBindings    map[string][]inspectedPort
	RestartPolicy   inspectedPolicy
	AutoRemove      bool
	VolumeDriver    string
	VolumesFrom     []string
	ConsoleSize     [2]uint
	Annotations     map[string]string `json:",omitempty"`

	CapAdd          []string
	CapDrop         []string
	CgroupnsMode    string
	DNS             []string `json:"Dns"`
	DNSOptions      []string `json:"DnsOptions"`
	DNSSearch       []string `json:"DnsSearch"`
	ExtraHosts      []string
	GroupAdd        []string
	IpcMode         string
	Cgroup          string
	Links           []string
	OomScoreAdj     int
	PidMode         string
	Privileged      bool
	PublishAllPorts bool
	ReadonlyRootfs  bool
	SecurityOpt     []string
	Tmpfs           map[string]string `json:",omitempty"`
	UTSMode         string
	UsernsMode      string
	ShmSize         int64
	Sysctls         map[string]string `json:",omitempty"`
	Runtime         string
	Isolation       string

	CPUShares            int64 `json:"CpuShares"`
	Memory               int64
	NanoCPUs             int64 `json:"NanoCpus"`
	CgroupParent         string
	BlkioWeight          uint16
	BlkioWeightDevice    []inspectedWeight
	BlkioDeviceReadBps   []inspectedRate
	BlkioDeviceWriteBps  []inspectedRate
	BlkioDeviceReadIOps  []inspectedRate
	BlkioDeviceWriteIOps []inspectedRate
	CPUPeriod            int64 `json:"CpuPeriod"`
	CPUQuota             int64 `json:"CpuQuota"`
	CPURealtimePeriod    int64 `json:"CpuRealtimePeriod"`
	CPURealtimeRuntime   int64 `json:"CpuRealtimeRuntime"`
	CpusetCpus           string
	CpusetMems           string
	Devices              []inspectedDevice
	DeviceCgroupRules    []string
	DeviceRequests       []inspectedRequest
	MemoryReservation    int64
	MemorySwap           int64
	MemorySwappiness     *int64
	OomKillDisable       *bool
	PidsLimit            *int64
	Ulimits              []units.Ulimit

	Mounts        []inspectedRequestedMount `json:",omitempty"`
	MaskedPaths   []string
	ReadonlyPaths []string
	Init          *bool `json:",omitempty"`
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
	PathOnHost        string
	PathInContainer   string
	CgroupPermissions string
}

type inspectedRequest struct {
	Driver       string
	Count        int
	DeviceIDs    []string
	Capabilities [][]string
	Options      map[string]string
}

type inspectedRate struct {
	Path string
	Rate uint64
}

type inspectedWeight struct {
	Path   string
	Weight uint64
}

// inspectedRequestedMount is a value of --mount.
type inspectedRequestedMount struct {
	Type          string
	Source        string                  `json:",omitempty"`
	Target        string                  `json:",omitempty"`
	ReadOnly      bool                    `json:",omitempty"`
	BindOptions   *inspectedBindOptions   `json:",omitempty"`
	VolumeOptions *inspectedVolumeOptions `json:",omitempty"`
	ImageOptions  *inspectedVolumeOptions `json:",omitempty"`
	TmpfsOptions  *inspectedTmpfsOptions  `json:",omitempty"`
}

type inspectedBindOptions struct {
	Propagation          string `json:",omitempty"`
	NonRecursive         bool   `json:",omitempty"`
	ReadOnlyNonRecursive bool   `json:",omitempty"`
}

type inspectedVolumeOptions struct {
	NoCopy  bool   `json:",omitempty"`
	Subpath string `json:",omitempty"`
}

type inspectedTmpfsOptions struct {
	SizeBytes int64  `json:",omitempty"`
	Mode      uint32 `json:",omitempty"`
}

func inspectHost(k *container.Container) inspectedHost {
	l, r := k.Limits, k.More
	h := inspectedHost{
		ContainerIDFile: k.CIDFile, NetworkMode: k.Network, PortBindings: portMap(k.Ports),
		RestartPolicy: inspectedPolicy{Name: cmp.Or(k.Restart.Name, "no"), MaximumRetryCount: k.Restart.Max},
		LogConfig:     inspectedLog{Type: cmp.Or(k.Config.Log.Driver, "json-file"), Config: map[string]string{}},
		AutoRemove:    k.AutoRemove, Privileged: k.Privileged, ReadonlyRootfs: k.ReadOnly, PublishAllPorts: k.PublishAll,
		VolumesFrom: k.Others, Annotations: k.Notes,
		CapAdd: capabilityNames(k.CapAdd), CapDrop: capabilityNames(k.CapDrop), GroupAdd: k.Groups, ExtraHosts: k.Hosts, SecurityOpt: k.Security,
		DNS: list(k.DNS.Servers), DNSSearch: list(k.DNS.Search), DNSOptions: list(k.DNS.Options),
		CgroupnsMode: namespaceMode(k.HostCgroup, "private"), IpcMode: namespaceMode(k.HostIPC, "private"),
		PidMode: namespaceMode(k.HostPID, ""), UTSMode: namespaceMode(k.HostUTS, ""),
		Memory: l.Memory, MemorySwap: l.MemorySwap, MemoryReservation: l.MemoryReservation,
		CPUShares: l.CPUShares, CPUPeriod: l.CPUPeriod, CPUQuota: l.CPUQuota, CpusetCpus: l.CPUSetCPUs, CpusetMems: l.CPUSetMems,
		CPURealtimePeriod: r.RealtimePeriod, CPURealtimeRuntime: r.RealtimeRuntime, MemorySwappiness: r.Swappiness, BlkioWeight: r.BlockWeight,
		BlkioDeviceReadBps: rates(r.ReadBps), BlkioDeviceWriteBps: rates(r.WriteBps),
		BlkioDeviceReadIOps: rates(r.ReadIOps), BlkioDeviceWriteIOps: rates(r.WriteIOps), BlkioWeightDevice: []inspectedWeight{},
		ShmSize: cmp.Or(k.ShmSize, 64<<20), Sysctls: k.Sysctls, CgroupParent: l.Parent, Runtime: cmp.Or(filepath.Base(k.Runtime), "."),
		Devices: []inspectedDevice{}, DeviceCgroupRules: k.DeviceRules, Ulimits: []units.Ulimit{},
	}
	if k.PIDOf != "" {
		h.PidMode = "container:" + k.PIDOf
	}
	switch {
	case k.IPCOf != "":
		h.IpcMode = "container:" + k.IPCOf
	case k.SharesIPC:
		h.IpcMode = "shareable"
	}
	if h.Runtime == "." {
		h.Runtime = "kiln"
	}
	if o := k.Config.Log.Options; o != nil {
		h.LogConfig.Config = o
	}
	for _, w := range r.BlockWeights {
		h.BlkioWeightDevice = append(h.BlkioWeightDevice, inspectedWeight{w.Path, w.Rate})
	}
	if k.Init {
		h.Init = &k.Init
	}
	if r.NoOOMKill {
		h.OomKillDisable = &r.NoOOMKill
	}
	if l.CPUPeriod > 0 && l.CPUQuota > 0 {
		h.NanoCPUs = l.CPUQuota * 1e9 / l.CPUPeriod
	}
	if l.Pids != 0 {
		h.PidsLimit = &l.Pids
	}
	if h.MemorySwap == 0 && l.Memory > 0 {
		h.MemorySwap = 2 * l.Memory
	}
	if k.OOM != nil {
		h.OomScoreAdj = *k.OOM
	}
	for _, u := range k.Rlimits {
		h.Ulimits = append(h.Ulimits, units.Ulimit{Name: u.Name, Soft: int64(u.Soft), Hard: int64(u.Hard)})
	}
	for i, d := range k.Devices {
		source := d.Path
		if i < len(k.Sources) {
			source = k.Sources[i]
		}
		h.Devices = append(h.Devices, inspectedDevice{source, d.Path, cmp.Or(d.Access, "rwm")})
	}
	if len(k.CDI) > 0 {
		h.DeviceRequests = []inspectedRequest{{Driver: "cdi", DeviceIDs: k.CDI}}
	}
	switch {
	case k.Unmasked:
		h.MaskedPaths, h.ReadonlyPaths = []string{}, []string{}
	case !k.Privileged:
		h.MaskedPaths, h.ReadonlyPaths = sandbox.DefaultMaskedPaths, sandbox.DefaultReadonlyPaths
	}
	h.mounts(k)
	return h
}

// mounts shows mounts as they were asked for.
func (h *inspectedHost) mounts(k *container.Container) {
	for _, b := range k.Binds {
		source := cmp.Or(b.Volume, b.Source)
		switch {
		case b.Origin == container.OfMount:
			h.Mounts = append(h.Mounts, requestedMount(b))
		case b.Origin == "" && !b.Anonymous:
			bind := source + ":" + b.Target
			if b.Options != "" {
				bind += ":" + b.Options
			}
			h.Binds = append(h.Binds, bind)
		}
	}
	for _, t := range k.Tmpfs {
		if t.Origin != container.OfMount {
			if h.Tmpfs == nil {
				h.Tmpfs = map[string]string{}
			}
			h.Tmpfs[t.Target] = t.Given
			continue
		}
		m := inspectedRequestedMount{Type: "tmpfs", Target: t.Target, ReadOnly: t.ReadOnly}
		if t.Size != 0 || t.Mode != 0 {
			m.TmpfsOptions = &inspectedTmpfsOptions{t.Size, t.Mode}
		}
		h.Mounts = append(h.Mounts, m)
	}
}

func requestedMount(b container.Bind) inspectedRequestedMount {
	m := inspectedRequestedMount{Type: "bind", Source: b.Source, Target: b.Target, ReadOnly: b.ReadOnly}
	if b.Image != "" {
		m.Type, m.Source = "image", b.Image
		if b.Subpath != "" {
			m.ImageOptions = &inspectedVolumeOptions{Subpath: b.Subpath}
		}
		return m
	}
	if b.Volume != "" {
		m.Type, m.Source = "volume", b.Volume
		if b.Anonymous {
			m.Source = ""
		}
		if noCopy := !b.Copy && b.Subpath == ""; noCopy || b.Subpath != "" {
			m.VolumeOptions = &inspectedVolumeOptions{noCopy, b.Subpath}
		}
		return m
	}
	if b.Propagation != "" || b.Alone || b.WritableBelow {
		m.BindOptions = &inspectedBindOptions{NonRecursive: b.Alone, ReadOnlyNonRecursive: b.WritableBelow}
		if b.Propagation != "" {
			m.BindOptions.Propagation = "r" + b.Propagation
		}
	}
	return m
}

// namespaceMode says whose namespace a container has.
func namespaceMode(host bool, own string) string {
	if host {
		return "host"
	}
	return own
}

// capabilityNames are those in full, as docker shows them.
func capabilityNames(given []string) []string {
	var all []string
	for _, c := range given {
		if c = strings.ToUpper(c); c != "ALL" && !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		all = append(all, c)
	}
	return all
}

// list is never nil, as in docker.
func list(l []string) []string { return append([]string{}, l...) }

func rates(list []container.Throttle) []inspectedRate {
	all := make([]inspectedRate, 0, len(list))
	for _, t := range list {
		all = append(all, inspectedRate{t.Path, t.Rate})
	}
	return all
}
