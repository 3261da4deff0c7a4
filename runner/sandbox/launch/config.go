package launch

// Config is what the parent tells the init: a sandbox's spec with every
// default filled in and every name of a right resolved to its number.
// Descriptors are numbers in the init's table; -1 is none.
type Config struct {
	// Join says that the process is in the namespaces of a running sandbox
	// already: all that concerns mounts is left out.
	Join bool

	Root         int // detached mount
	RootPath     string
	ReadonlyRoot bool

	Args, Env []string
	Cwd       string
	UID, GID  int
	Groups    []int
	SetGroups bool // may setgroups be called in this user namespace
	Umask     int

	Hostname, Domainname string

	JoinNet, JoinIPC, JoinUTS int // open namespaces
	JoinMount, JoinCgroup     int
	Chroot                    bool // no mount namespace of its own
	Propagation               string

	Prepare                 bool // wait for the parent before the root is made
	CreateHooks, StartHooks []Hook
	HookInput               []byte
	Hold                    int // FIFO to wait at before the command is executed
	Loopback                bool
	CgroupNamespace         bool

	Mounts           []Mount
	Dev              bool // default nodes and links in the tmpfs on /dev
	Devices          []Device
	Masked, Readonly []string
	Sysctls          []string // a/b/c=value
	Formats          []string // lines for binfmt_misc
	Terminal         bool
	Rows, Cols       int
	Bounding, Caps   uint64 // Caps: permitted
	Effective        uint64
	Inheritable      uint64
	Ambient          uint64
	Privileged       bool
	NoNewPrivs       bool
	Filter           []byte // seccomp program, 8 bytes an instruction
	Rlimits          []Rlimit
	Detached         bool
	Init             int  // the init's own file where the command gets a reaper, else -1
	UserNamespace    bool // mknod is refused
	NoDevices        bool // no group filters devices: root and given mounts open none
	StdinNull        bool
	StdoutNull       bool
	StderrNull       bool
}

// The kinds of Mount.
const (
	KindFD   = "fd"
	KindBind = "bind"
)

// Mount is a mount to attach. Kind is KindFD, KindBind or a file system type.
type Mount struct {
	Kind        string
	Target      string
	FD          int
	Part        string // of FD, what is mounted; empty is all of it
	Source      string
	Recursive   bool
	Flags       uint64 // MOUNT_ATTR_*
	Propagation string
	Options     []string // key or key=value
	Optional    bool     // a kernel without this file system goes without
}

// Device is a device node.
type Device struct {
	Path     string
	Mode     uint32 // with S_IFCHR or S_IFBLK
	Major    uint32
	Minor    uint32
	UID, GID int
}

// Hook is a program to run. Timeout is in milliseconds; 0 is none.
type Hook struct {
	Path      string
	Args, Env []string
	Timeout   int
}

// Rlimit is a limit by number.
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

func (c *Config) code(x *codec) {
	x.bool(&c.Join)
	x.int(&c.Root)
	x.string(&c.RootPath)
	x.bool(&c.ReadonlyRoot)
	x.strings(&c.Args)
	x.strings(&c.Env)
	x.string(&c.Cwd)
	x.int(&c.UID)
	x.int(&c.GID)
	list(x, &c.Groups, (*codec).int)
	x.bool(&c.SetGroups)
	x.int(&c.Umask)
	x.string(&c.Hostname)
	x.string(&c.Domainname)
	x.int(&c.JoinNet)
	x.int(&c.JoinIPC)
	x.int(&c.JoinUTS)
	x.int(&c.JoinMount)
	x.int(&c.JoinCgroup)
	x.bool(&c.Chroot)
	x.string(&c.Propagation)
	x.bool(&c.Prepare)
	list(x, &c.CreateHooks, codeHook)
	list(x, &c.StartHooks, codeHook)
	x.bytes(&c.HookInput)
	x.int(&c.Hold)
	x.bool(&c.Loopback)
	x.bool(&c.CgroupNamespace)
	list(x, &c.Mounts, codeMount)
	x.bool(&c.Dev)
	list(x, &c.Devices, codeDevice)
	x.strings(&c.Masked)
	x.strings(&c.Readonly)
	x.strings(&c.Sysctls)
	x.strings(&c.Formats)
	x.bool(&c.Terminal)
	x.int(&c.Rows)
	x.int(&c.Cols)
	x.u64(&c.Bounding)
	x.u64(&c.Caps)
	x.u64(&c.Effective)
	x.u64(&c.Inheritable)
	x.u64(&c.Ambient)
	x.bool(&c.Privileged)
	x.bool(&c.NoNewPrivs)
	x.bytes(&c.Filter)
	list(x, &c.Rlimits, codeRlimit)
	x.bool(&c.Detached)
	x.int(&c.Init)
	x.bool(&c.UserNamespace)
	x.bool(&c.NoDevices)
	x.bool(&c.StdinNull)
	x.bool(&c.StdoutNull)
	x.bool(&c.StderrNull)
}

func codeMount(x *codec, m *Mount) {
	x.string(&m.Kind)
	x.string(&m.Target)
	x.int(&m.FD)
	x.string(&m.Part)
	x.string(&m.Source)
	x.bool(&m.Recursive)
	x.u64(&m.Flags)
	x.string(&m.Propagation)
	x.strings(&m.Options)
	x.bool(&m.Optional)
}

func codeDevice(x *codec, d *Device) {
	x.string(&d.Path)
	x.u32(&d.Mode)
	x.u32(&d.Major)
	x.u32(&d.Minor)
	x.int(&d.UID)
	x.int(&d.GID)
}

func codeHook(x *codec, h *Hook) {
	x.string(&h.Path)
	x.strings(&h.Args)
	x.strings(&h.Env)
	x.int(&h.Timeout)
}

func codeRlimit(x *codec, r *Rlimit) {
	x.int(&r.Resource)
	x.u64(&r.Soft)
	x.u64(&r.Hard)
}
