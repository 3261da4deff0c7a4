// Package op holds the operations of a build as plain structs: the contract
// between frontends, which make them, and the runner, which performs them.
//
// Each type's comment says what its vertex's Inputs, Using and Below are and
// what its result holds. Describe writes whatever shapes the result; fields
// that it leaves out are marked "not in the key".
package op

import (
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	"kiln.build/solver"
)

// Scratch is the empty root: a stack of no layers. No inputs.
type Scratch struct{}

func (Scratch) Describe(d *solver.Description) { d.Line("op", "scratch") }

// Image is the root file system of an image for one platform, pinned by the
// content of its layers. No inputs. Its result has one layer for each of
// Layers, with Origin set.
type Image struct {
	// Ref is where the blobs are fetched from, in full form, such as
	// "docker.io/library/debian:bookworm" or "oci-layout:///path@sha256:…".
	// Not in the key: equal layers are equal wherever they come from.
	Ref string

	Layers []solver.Origin
}

func (o Image) Describe(d *solver.Description) {
	d.Line("op", "image")
	for _, l := range o.Layers {
		d.Line("layer", string(l.DiffID))
	}
}

// Tar is the root file system in a tar archive on this machine, compressed
// or not. The vertex is volatile unless Digest is set. Its result has one
// layer.
type Tar struct {
	Path string // not in the key where there is a Digest

	// Digest is of the archive as it is at Path; empty where not known.
	Digest digest.Digest
}

func (o Tar) Describe(d *solver.Description) {
	d.Line("op", "tar")
	if o.Digest != "" {
		d.Line("digest", string(o.Digest))
		return
	}
	d.Line("path", o.Path)
}

// Select chooses files, the way COPY names its sources. Either Context names
// a local directory and the vertex is a volatile leaf, or the vertex has one
// input, the stack to choose from.
//
// The result's Digest is that of the selected files: a tree (see package
// cache/tree) with paths relative to the copy's destination. It is the
// content-based key of everything that copies or mounts the selection. For a
// directory source its contents appear at the top and the root entry carries
// its own attributes; a file source appears under its base name. Owners are
// reset to 0:0 for a local context. Where there is an input, Blob names the
// selection's encoded form in the content store.
type Select struct {
	// Context is the name of the local context: "context" for the main one,
	// else that of a --build-context. Empty where there is an input.
	Context string

	// From is what messages call the input: "stage build", "image debian".
	// It does not change what is chosen and is in no description.
	From string

	// Ignore holds the patterns of the .dockerignore in force, in order; for
	// local contexts only.
	Ignore []string

	// Sources are slash-separated paths or filepath.Match patterns, in
	// order. They never leave the root: ".." clamps, links resolve inside.
	Sources []string

	// Parents keeps each source's path below the destination (--parents).
	Parents bool

	// Exclude holds patterns in .dockerignore syntax, matched inside each
	// selected directory (--exclude).
	Exclude []string

	// Whole takes a directory source itself as the root, and fails unless
	// there is just one source that exists: what a bind mount needs.
	Whole bool

	// GitModes keeps of each mode only what git keeps, the executable bit.
	GitModes bool
}

func (o Select) Describe(d *solver.Description) {
	d.Line("op", "select")
	if o.Context != "" {
		d.Line("context", o.Context)
	}
	d.List("ignore", o.Ignore)
	d.List("source", o.Sources)
	d.Bool("parents", o.Parents)
	d.List("exclude", o.Exclude)
	d.Bool("whole", o.Whole)
	d.Bool("git modes", o.GitModes)
}

// Inline is a selection of files whose contents are in the op itself, as
// from a heredoc. No inputs, and volatile: its bytes are kept nowhere else.
// The result is like that of a Select in a local context.
type Inline struct {
	Files []InlineFile
}

// InlineFile is a regular file of mode 0644.
type InlineFile struct {
	Name string
	Data []byte
}

func (o Inline) Describe(d *solver.Description) {
	d.Line("op", "inline")
	for _, f := range o.Files {
		d.Line("file", f.Name, string(f.Data))
	}
}

// Dest finds out what a copy or a WORKDIR meets in the root that it changes.
// Inputs: the root; then, for a copy, the selections. Its result's Data is
// the JSON of [Facts]. Keeping this apart from Copy and Mkdir makes those
// depend on these facts alone and not on the whole root below them.
type Dest struct {
	Path string // absolute; a trailing slash asks for a directory

	// Owner is a --chown text or a USER, resolved in the root's passwd and
	// group files. Empty means 0:0, or "as the source has it".
	Owner string

	// Mkdir asks for a directory at Path, as WORKDIR does.
	Mkdir bool

	// Unpack and Packed are as in the Copy that follows. With Unpack the
	// vertex has the Copy's Using too, and where there are archives, their
	// destination is a directory, and the facts name the root below.
	Unpack bool
	Packed []int
}

func (o Dest) Describe(d *solver.Description) {
	d.Line("op", "dest")
	d.Line("path", o.Path)
	d.Line("owner", o.Owner)
	d.Bool("mkdir", o.Mkdir)
	d.Bool("unpack", o.Unpack)
	for _, i := range o.Packed {
		d.Line("packed", strconv.Itoa(i))
	}
}

// Facts is the result of a Dest.
type Facts struct {
	// Path is where the Dest's path leads, links resolved, absolute and
	// clean.
	Path string `json:"path"`

	// Dir says that Path is, or is to become, a directory that the
	// selection is put into; else the one selected file gets this path.
	Dir bool `json:"dir,omitempty"`

	// Existing are the directories that exist on the way to Path, from the
	// top, Path itself last where it exists and is a directory. The layer
	// repeats them so that they keep their attributes.
	Existing []Dir `json:"existing,omitempty"`

	// UID and GID are set where the Dest has an Owner.
	UID *int `json:"uid,omitempty"`
	GID *int `json:"gid,omitempty"`

	// Root is the digest of the root where an archive is to be extracted
	// into it: links that are anywhere in there are followed.
	Root digest.Digest `json:"root,omitempty"`
}

// Dir is a directory's path and attributes.
type Dir struct {
	Path   string            `json:"path"`
	Mode   uint32            `json:"mode"` // permission, setuid, setgid and sticky bits
	UID    int               `json:"uid"`
	GID    int               `json:"gid"`
	Xattrs map[string]string `json:"xattrs,omitempty"`

	// Mtime is in nanoseconds since the epoch. It does not count in the
	// digest of the facts.
	Mtime int64 `json:"mtime,omitempty"`
}

// Copy puts selections into a root, making one layer. Inputs: the Dest, then
// the selections, in order. Using: for each selection the stack it was chosen
// from; for one from a local context or an Inline the selection itself
// again. Below: the root.
type Copy struct {
	// Chmod is an octal or symbolic mode, or empty.
	Chmod string

	// Unpack extracts local tar archives among the selected top-level files
	// (ADD): true only where contents are sniffed to be archives.
	Unpack bool

	// Packed are the selections, by position, whose archives are not
	// extracted all the same: those of an address, unless --unpack is given.
	Packed []int
}

func (o Copy) Describe(d *solver.Description) {
	d.Line("op", "copy")
	d.Line("chmod", o.Chmod)
	d.Bool("unpack", o.Unpack)
	for _, i := range o.Packed {
		d.Line("packed", strconv.Itoa(i))
	}
}

// Mkdir makes the directories of a WORKDIR that are missing, with mode 0755
// and the owner in the facts; one layer, empty where nothing is missing.
// Inputs: a Dest with Mkdir set. Below: the root.
type Mkdir struct {
	Path string
	Time *time.Time // of the new directories; nil is the time of the action
}

func (o Mkdir) Describe(d *solver.Description) {
	d.Line("op", "mkdir")
	d.Line("path", o.Path)
	if o.Time != nil {
		d.Line("time", o.Time.UTC().Format(time.RFC3339Nano))
	}
}

// Exec runs a command in a sandbox over a root; its changes become one
// layer. Inputs: the root, then one for each mount that names one (see
// Mount). Using: the stacks behind bind mounts. Below: the root.
type Exec struct {
	Args []string
	Env  []string // K=V, a set: no name twice
	Cwd  string   // absolute; made if missing
	User string   // as in USER; empty is root

	Mounts []Mount

	Network  string // "", "none" or "host"; empty is the sandbox's default
	Security string // "" or "insecure"
	Hostname string // empty is "buildkitsandbox", as users of BuildKit expect

	Platform string // "linux/arm64", always set: results travel between machines

	Devices []Device

	ExtraHosts []Host
	ShmSize    int64 // bytes; zero is 64 MiB
	Ulimits    []Ulimit

	// ProxyEnv is set for the command as Env is. Not in the key.
	ProxyEnv []string

	// Limits on the step. Not in the key.
	Limits Limits

	// ClearCaches empties the step's cache mounts first. Not in the key.
	ClearCaches bool
}

// Device is a device by its name in the Container Device Interface, such as
// "nvidia.com/gpu=0". One that is not Required may be missing.
type Device struct {
	Name     string
	Required bool
}

// Host is a line of /etc/hosts.
type Host struct {
	Name string
	IP   string // not in the key
}

// Ulimit is a resource limit, as in "nofile", 1024, 2048.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// Limits bound what a step may use; zero values do not bound.
type Limits struct {
	Memory     int64 // bytes
	MemorySwap int64 // bytes of memory and swap together
	CPUShares  int64
	CPUPeriod  int64 // microseconds
	CPUQuota   int64 // microseconds in each period
	CPUSetCPUs string
	CPUSetMems string
	Pids       int64
	Parent     string // cgroup parent
}

// MountType is the kind of a RUN mount.
type MountType string

// The mount types of RUN --mount=type=….
const (
	Bind   MountType = "bind"
	Cache  MountType = "cache"
	Tmpfs  MountType = "tmpfs"
	Secret MountType = "secret"
	SSH    MountType = "ssh"
)

// Mount is one RUN --mount. A bind mount has a selection (with Whole set) at
// Inputs[Input] and the stack that it was chosen from at Using[Using]; the
// selection of a local context is itself in both places. A cache mount with
// initial content has the same.
type Mount struct {
	Type     MountType
	Target   string // absolute
	ReadOnly bool

	// Input and Using are positions in the vertex's Inputs and Using; -1
	// where the mount has none.
	Input, Using int

	// CacheID names a cache mount's directory. Not in the key.
	CacheID string
	Sharing string // "shared", "private" or "locked"; not in the key

	ID       string // of a secret or an ssh agent
	Env      string // variable that a secret is given in
	Required bool

	Mode     uint32
	UID, GID int
	Size     int64 // of a tmpfs, in bytes; zero does not bound
}

func (o Exec) Describe(d *solver.Description) {
	d.Line("op", "exec")
	d.List("arg", o.Args)
	d.Set("env", o.Env)
	d.Line("cwd", o.Cwd)
	d.Line("user", o.User)
	if o.Network != "" {
		d.Line("network", o.Network)
	}
	if o.Security != "" {
		d.Line("security", o.Security)
	}
	if o.Hostname != "" {
		d.Line("hostname", o.Hostname)
	}
	d.Line("platform", o.Platform)
	for _, h := range o.ExtraHosts {
		d.Line("host", h.Name)
	}
	d.Int("shm size", o.ShmSize)
	for _, u := range o.Ulimits {
		d.Line("ulimit", u.Name, strconv.FormatInt(u.Soft, 10), strconv.FormatInt(u.Hard, 10))
	}
	for _, dev := range o.Devices {
		d.Line("device", dev.Name)
		d.Bool("device required", dev.Required)
	}
	for _, m := range o.Mounts {
		m.describe(d)
	}
}

func (m Mount) describe(d *solver.Description) {
	d.Line("mount", string(m.Type), m.Target)
	d.Bool("mount read-only", m.ReadOnly)
	if m.Input >= 0 {
		d.Line("mount input", strconv.Itoa(m.Input))
	}
	switch m.Type {
	case Tmpfs:
		d.Int("mount size", m.Size)
	case Secret, SSH:
		d.Line("mount id", m.ID)
		d.Line("mount env", m.Env)
		d.Bool("mount required", m.Required)
		d.Line("mount owner", strconv.Itoa(m.UID), strconv.Itoa(m.GID))
		d.Line("mount mode", strconv.FormatUint(uint64(m.Mode), 8))
	}
}

// What only looks at what is there is done in a dry run too.

func (Scratch) Looks() {}
func (Select) Looks()  {}
func (Inline) Looks()  {}
func (Dest) Looks()    {}

var (
	_ solver.Op = Scratch{}
	_ solver.Op = Image{}
	_ solver.Op = Tar{}
	_ solver.Op = Select{}
	_ solver.Op = Inline{}
	_ solver.Op = Dest{}
	_ solver.Op = Copy{}
	_ solver.Op = Mkdir{}
	_ solver.Op = Exec{}
)
