// Package container keeps containers: what they are, what state they are in,
// and what they printed. There is no daemon. A [Container] is a folder:
//
//	containers/ID/config.json  what it is (version 1); only its name changes
//	containers/ID/state.json   its [State], replaced as a whole
//	containers/ID/lock         held by the process that runs it, its monitor
//	containers/ID/control      socket on which the monitor answers
//	containers/ID/log          what it printed, in docker's json-file form;
//	                           log.1 is the part before that
//	containers/ID/fs, work     the upper and work directories of its overlay
//	containers/ID/etc/         its hosts, resolv.conf and hostname
//
// Whether a container runs is told by the lock, which the kernel frees when
// its monitor dies, however it dies; the sandbox dies with it. So nobody has
// to clean up for the state to be true.
//
// A [Monitor] runs a container: in the process of the command that shows it,
// or in one of its own. What others want of a container that runs, to pause
// or watch it or not to start it again, they ask of the monitor, which alone
// writes the state; signals they send themselves. What is allowed in which
// state is a table: see [Verb].
package container

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"kiln.build/runner/sandbox"
	"kiln.build/solver"
)

// version is that of config.json. Another one is refused.
const version = 1

// Config is what a container is made of.
type Config struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`

	Image    string         `json:"image"`   // as the user named it
	ImageID  digest.Digest  `json:"imageID"` // of its config
	Platform string         `json:"platform,omitempty"`
	Runtime  string         `json:"runtime,omitempty"` // path of an OCI runtime; empty is kiln's own sandbox
	Layers   []solver.Layer `json:"layers"`

	Args       []string          `json:"args"`
	Entrypoint []string          `json:"entrypoint,omitempty"` // the part of Args that is the entry point
	Env        []string          `json:"env"`
	Cwd        string            `json:"cwd"`
	User       string            `json:"user"`
	Groups     []string          `json:"groups,omitempty"` // more of them
	Hostname   string            `json:"hostname"`
	Labels     map[string]string `json:"labels,omitempty"`
	Notes      map[string]string `json:"annotations,omitempty"` // for whoever inspects it
	StopSignal string            `json:"stopSignal,omitempty"`
	StopWait   int               `json:"stopTimeout"` // seconds; negative is for ever
	Restart    Policy            `json:"restart,omitzero"`
	Health     *Health           `json:"health,omitempty"` // nil is no check
	Log        Log               `json:"log,omitzero"`

	Terminal   bool `json:"tty,omitempty"`
	Stdin      bool `json:"openStdin,omitempty"`
	StdinOnce  bool `json:"stdinOnce,omitempty"` // it ends when who typed it leaves
	AutoRemove bool `json:"autoRemove,omitempty"`
	ReadOnly   bool `json:"readOnly,omitempty"`
	Init       bool `json:"init,omitempty"`
	Privileged bool `json:"privileged,omitempty"`

	CapAdd     []string         `json:"capAdd,omitempty"`
	CapDrop    []string         `json:"capDrop,omitempty"`
	NoNewPrivs bool             `json:"noNewPrivileges,omitempty"`
	Seccomp    sandbox.Seccomp  `json:"seccomp,omitzero"`
	Unmasked   bool             `json:"unmasked,omitempty"`     // paths of /proc and /sys
	Security   []string         `json:"securityOpts,omitempty"` // options as they were given, all of them
	Devices    []sandbox.Device `json:"devices,omitempty"`
	Sources    []string         `json:"deviceSources,omitempty"` // of Devices, on this machine
	// DeviceRules are further devices that may be opened or made, in docker's
	// form, "c 10:* rwm"; CDI are names of devices that files of CDI describe.
	DeviceRules []string          `json:"deviceRules,omitempty"`
	CDI         []string          `json:"cdi,omitempty"`
	Sysctls     map[string]string `json:"sysctls,omitempty"`

	// Namespaces that are the machine's instead of the container's own.
	HostPID    bool   `json:"hostPID,omitempty"`
	PIDOf      string `json:"pidOf,omitempty"` // or another container's, by its ID
	IPCOf      string `json:"ipcOf,omitempty"`
	SharesIPC  bool   `json:"sharesIPC,omitempty"` // with containers that name it so
	HostIPC    bool   `json:"hostIPC,omitempty"`
	HostUTS    bool   `json:"hostUTS,omitempty"`
	HostCgroup bool   `json:"hostCgroup,omitempty"`
	Domainname string `json:"domainname,omitempty"`

	Exposed    []string `json:"exposed,omitempty"` // ports, "80/tcp", that the image or the user names
	PublishAll bool     `json:"publishAll,omitempty"`
	CIDFile    string   `json:"cidFile,omitempty"`
	Attach     []string `json:"attach,omitempty"` // streams, where not all

	Network  string       `json:"network"`  // mode: "bridge", "host", "none", "container:ID", or the name of a network
	Networks []Membership `json:"networks"` // what it is joined to; nil is what Network says
	Ports    []Port       `json:"ports,omitempty"`
	Hosts    []string     `json:"extraHosts,omitempty"` // NAME:IP; the IP may be "host-gateway"
	DNS      DNS          `json:"dns,omitzero"`

	Binds   []Bind           `json:"binds,omitempty"`
	Others  []string         `json:"volumesFrom,omitempty"` // containers whose mounts it took over, as they were given
	Tmpfs   []Tmpfs          `json:"tmpfs,omitempty"`
	ShmSize int64            `json:"shmSize,omitempty"`
	Limits  sandbox.Limits   `json:"limits"`
	More    Resources        `json:"resources,omitzero"`
	Rlimits []sandbox.Rlimit `json:"ulimits,omitempty"`
	OOM     *int             `json:"oomScoreAdj,omitempty"`
}

// Membership is a network that a container is joined to.
type Membership struct {
	Network string   `json:"network"` // its name
	ID      string   `json:"id"`
	Aliases []string `json:"aliases,omitempty"`
	IP      string   `json:"ip,omitempty"`  // that it is to have; empty is any
	MAC     string   `json:"mac,omitempty"` // likewise

	// HostLoopback makes the gateway's address mean the machine's 127.0.0.1,
	// where there is a network stack of kiln's own.
	HostLoopback bool `json:"hostLoopback,omitempty"`
}

// Joined is a membership as it came to be.
type Joined struct {
	Membership
	Interface string   `json:"interface"`
	IP        string   `json:"ip"`
	Bits      int      `json:"bits"` // of the subnet's prefix
	Gateway   string   `json:"gateway,omitempty"`
	MAC       string   `json:"mac"`
	Names     []string `json:"names,omitempty"` // that lead here
}

// Port is a published port.
type Port struct {
	HostIP    string `json:"hostIP,omitempty"`
	HostPort  int    `json:"hostPort"`           // zero takes a free one
	HostLast  int    `json:"hostLast,omitempty"` // the first free one from HostPort to this, where not zero
	Container int    `json:"containerPort"`
	Proto     string `json:"proto"`
}

// Host is the host's side of it, as in "0.0.0.0:8080".
func (p Port) Host() string {
	ip := p.HostIP
	switch {
	case ip == "":
		ip = "0.0.0.0"
	case strings.Contains(ip, ":"):
		ip = "[" + strings.Trim(ip, "[]") + "]"
	}
	return fmt.Sprintf("%s:%d", ip, p.HostPort)
}

// ContainerPort is the container's side of it, as in "80/tcp".
func (p Port) ContainerPort() string { return fmt.Sprintf("%d/%s", p.Container, p.Proto) }

func (p Port) String() string { return p.Host() + "->" + p.ContainerPort() }

// Bind is a folder or file of this machine that a container sees.
type Bind struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`

	// Volume is the name of the volume whose folder Source is; Copy fills it
	// with what the image has at Target if it is empty.
	Volume    string `json:"volume,omitempty"`
	Anonymous bool   `json:"anonymous,omitempty"` // removed with the container, if that is asked for
	Copy      bool   `json:"copy,omitempty"`
	Subpath   string `json:"subpath,omitempty"` // what of the volume or image is seen, "" is all

	// Image is the name of the image whose files are seen instead, and Layers
	// are what it is made of.
	Image   string         `json:"image,omitempty"`
	ImageID digest.Digest  `json:"imageID,omitempty"`
	Layers  []solver.Layer `json:"layers,omitempty"`

	// Propagation is "slave" or "shared" where mounts made later are to be
	// seen on one side or both; "" is none. Mounts below the source come along
	// unless Alone; WritableBelow leaves those as they are where ReadOnly.
	Propagation   string `json:"propagation,omitempty"`
	Alone         bool   `json:"alone,omitempty"`
	WritableBelow bool   `json:"writableBelow,omitempty"`

	Labels  []string `json:"-"`                 // of a volume that is made for it, NAME=VALUE
	Options string   `json:"options,omitempty"` // as they were given
	Origin  Origin   `json:"origin,omitempty"`
}

// Origin is how a container came to a mount.
type Origin string

// The origins. Empty is --volume or, of a [Tmpfs], --tmpfs.
const (
	OfMount     Origin = "mount"        // --mount
	OfContainer Origin = "volumes-from" // another container has it
	OfImage     Origin = "image"        // the image wants a volume
)

// Tmpfs is a file system in memory.
type Tmpfs struct {
	Target   string   `json:"target"`
	Size     int64    `json:"size,omitempty"`
	Mode     uint32   `json:"mode,omitempty"`
	Exec     bool     `json:"exec,omitempty"`
	Suid     bool     `json:"suid,omitempty"`
	Dev      bool     `json:"dev,omitempty"`
	ReadOnly bool     `json:"readOnly,omitempty"`
	Options  []string `json:"options,omitempty"`
	Given    string   `json:"given,omitempty"` // options as they were given
	Origin   Origin   `json:"origin,omitempty"`
}

// DNS replaces parts of the host's resolv.conf.
type DNS struct {
	Servers []string `json:"servers,omitempty"`
	Search  []string `json:"search,omitempty"`
	Options []string `json:"options,omitempty"`
}

// NotFoundError says that there is no such container.
type NotFoundError struct{ Name string }

func (e *NotFoundError) Error() string { return "No such container: " + e.Name }

// Is makes the error match [fs.ErrNotExist].
func (e *NotFoundError) Is(t error) bool { return t == fs.ErrNotExist }

// Container is one of a [Set].
type Container struct {
	Config
	dir string
}

// Dir is the container's folder.
func (c *Container) Dir() string { return c.dir }

// LogPath is the file that the container's log is in.
func (c *Container) LogPath() string { return filepath.Join(c.dir, "log") }

// fsDir is where the container's changes are, in overlay form.
func (c *Container) fsDir() string { return filepath.Join(c.dir, "fs") }

// Digests are those of all layers that the container needs: of its image and
// of images that are mounted in it.
func (c *Container) Digests() []digest.Digest {
	var all []digest.Digest
	for _, l := range c.Layers {
		all = append(all, l.Digest)
	}
	for _, b := range c.Binds {
		for _, l := range b.Layers {
			all = append(all, l.Digest)
		}
	}
	return all
}

// ErrRunning says that the container runs already.
var ErrRunning = errors.New("the container is running already")
