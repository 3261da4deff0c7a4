// Package launch is the inside of the sandbox's start: the process that is
// cloned into the new namespaces, makes the mounts, gives up its rights, and
// becomes the command. It runs in two forms, as the small program in
// runner/sandbox/init and as any program that calls sandbox.MaybeInit, and
// for that it depends on nothing but golang.org/x/sys/unix: each package
// initialised here is paid for by every RUN.
//
// Its main types are [Config], which the parent sends, and [Message], which
// comes back. It is not an API for others than package sandbox.
package launch

import (
	"encoding/binary"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Name is the argv[0] that makes a program an init; ReaperName the one that
// makes it process 1 of a sandbox with Init.
const (
	Name       = "kiln-init"
	ReaperName = "kiln-reaper"
	// ReaperPath is where the program is mounted in a sandbox that another
	// program starts; it is a reaper by that name too.
	ReaperPath = "/dev/kiln-reaper"
)

// Conn is the descriptor of the socket to the parent, in the init.
const Conn = 3

// The kinds of Message.
const (
	KindError      = 'e' // Step, Text, Code: the start has failed
	KindCreated    = 'c' // Text: a path made in the root as a mount point
	KindPTY        = 'p' // the terminal's master, as SCM_RIGHTS
	KindFormats    = 'b' // the binfmt_misc instance, as SCM_RIGHTS
	KindNamespaces = 'n' // the namespaces are there: the root waits for a byte
	KindHeld       = 'h' // all is done but to execute the command
	KindExec       = 'x' // all is done: end of file now means success
)

// Message goes from the init to the parent: one record of a seqpacket
// socket.
type Message struct {
	Kind byte
	Code int    // exit code for a command that cannot be started, else 0
	Step string // what was being done
	Text string // to what, and why it failed
}

// Encode returns the bytes of m.
func (m Message) Encode() []byte {
	x := &codec{}
	m.code(x)
	return x.b
}

// DecodeMessage is the reverse of Encode.
func DecodeMessage(b []byte) (Message, error) {
	var m Message
	x := &codec{b: b, decode: true}
	m.code(x)
	if x.bad {
		return m, errTruncated
	}
	return m, nil
}

func (m *Message) code(x *codec) {
	kind := uint64(m.Kind)
	x.u64(&kind)
	m.Kind = byte(kind)
	x.int(&m.Code)
	x.string(&m.Step)
	x.string(&m.Text)
}

// failure is an error of one step.
type failure struct {
	step string
	text string
	code int
}

func (f *failure) Error() string { return f.step + ": " + f.text }

// fail makes a failure, or nil from a nil err.
func fail(step, what string, err error) error {
	if err == nil {
		return nil
	}
	if what != "" {
		what += ": "
	}
	return &failure{step: step, text: what + err.Error()}
}

// launch is the state of a start.
type launch struct {
	*Config
	root int // the new root directory
	proc int // procfs of the new pid namespace, attached nowhere
	pts  int // devpts, once attached
	null int // the host's /dev/null, in a user namespace

	held bool // the parent has gone

	hostNodes map[string]int // the host's devices by name, there too
}

// Main runs the start and does not return.
func Main() {
	// What follows sets attributes of the thread that calls exec, which then
	// is the only one left.
	runtime.LockOSThread()
	if len(os.Args) > 0 && os.Args[0] == ReaperName {
		reap()
	}
	if len(os.Args) > 1 && os.Args[0] == ReaperPath {
		reapAlone()
	}
	// No process of the sandbox may trace or look into this one, through
	// which it could reach descriptors and memory of the host
	// (CVE-2016-9962).
	err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if err == nil {
		unix.Umask(0)
		var c *Config
		c, err = receive()
		if err == nil {
			l := &launch{Config: c, root: -1, proc: -1, pts: -1}
			err = l.run()
			if l.held { // nobody else listens
				os.Stderr.WriteString("kiln: " + err.Error() + "\n")
			}
		}
	}
	m := Message{Kind: KindError, Step: "start", Code: 0}
	if f, ok := err.(*failure); ok {
		m.Step, m.Text, m.Code = f.step, f.text, f.code
	} else {
		m.Text = err.Error()
	}
	send(m)
	os.Exit(1)
}

// run performs the steps in an order each part of which matters; doc.go of
// package sandbox tells why. It returns only with an error.
func (l *launch) run() error {
	if l.Join {
		l.root = unix.AT_FDCWD // the joined root is the working directory
	} else {
		if err := l.makeRoot(); err != nil {
			return err
		}
	}
	if err := l.session(); err != nil {
		return err
	}
	if err := l.terminal(); err != nil {
		return err
	}
	if err := l.stdio(); err != nil {
		return err
	}
	if err := l.ready(); err != nil {
		return err
	}
	if err := l.drop(); err != nil {
		return err
	}
	return l.exec()
}

// makeRoot makes everything that concerns the file system and the names of
// the machine.
func (l *launch) makeRoot() error {
	if err := l.joinNamespaces(); err != nil {
		return err
	}
	if err := l.prepared(); err != nil {
		return err
	}
	// All of the host that is needed is opened first, as detached mounts.
	if err := l.openRoot(); err != nil {
		return err
	}
	mounts, err := l.openMounts()
	if err != nil {
		return err
	}
	if err := l.openHostNodes(); err != nil {
		return err
	}
	mask, err := l.openMask()
	if err != nil {
		return err
	}
	if err := l.sysctls(); err != nil {
		return err
	}
	if err := l.formats(); err != nil {
		return err
	}
	if err := l.names(); err != nil {
		return err
	}
	// From here on no path leads to the host.
	if err := l.pivot(mounts); err != nil {
		return err
	}
	for i := range l.Mounts {
		if err := l.attach(&l.Mounts[i], mounts[i]); err != nil {
			return err
		}
	}
	if err := l.devices(); err != nil {
		return err
	}
	if err := l.seal(mounts); err != nil {
		return err
	}
	if l.ReadonlyRoot {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(l.root, "", unix.AT_EMPTY_PATH, attr); err != nil {
			return fail("make the root read-only", "", err)
		}
	}
	if err := l.protect(mask); err != nil {
		return err
	}
	unix.Close(mask)
	return nil
}

// receive reads the configuration: its layout and length, then its bytes.
func receive() (*Config, error) {
	var head [16]byte
	if err := readFull(head[:]); err != nil {
		return nil, fail("read the configuration", "", err)
	}
	if binary.LittleEndian.Uint64(head[:]) != layout() {
		return nil, &failure{step: "read the configuration", text: "the embedded init is of another build: make it again"}
	}
	n := binary.LittleEndian.Uint64(head[8:])
	if n > 64<<20 {
		return nil, fail("read the configuration", "", errTruncated)
	}
	b := make([]byte, n)
	if err := readFull(b); err != nil {
		return nil, fail("read the configuration", "", err)
	}
	c, err := decodeConfig(b)
	return c, fail("read the configuration", "", err)
}

// ready waits for the parent's word that control groups and network are as
// they have to be.
func (l *launch) ready() error {
	var b [1]byte
	return fail("wait for the parent", "", readFull(b[:]))
}

func readFull(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(Conn, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return errTruncated
		}
		b = b[n:]
	}
	return nil
}

// send writes a message as one length-prefixed record; an error has nobody
// left to go to.
func send(m Message) error { return sendFD(m, -1) }

func sendFD(m Message, fd int) error {
	body := m.Encode()
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(body)))
	b = append(b, body...)
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	for {
		err := unix.Sendmsg(Conn, b, oob, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// made reports a mount point that had to be created in the root, with the
// path that the kernel has for it. What lies in another mount, such as the
// tmpfs on /dev, goes away with that.
func (l *launch) made(parent int, name string) error {
	var a, b unix.Statx_t
	if err := unix.Statx(parent, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &a); err != nil {
		return err
	}
	if err := unix.Statx(l.root, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &b); err != nil {
		return err
	}
	if a.Mnt_id != b.Mnt_id {
		return nil
	}
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(l.proc, "self/fd/"+strconv.Itoa(parent), buf[:])
	if err != nil {
		return err
	}
	return send(Message{Kind: KindCreated, Text: join(string(buf[:n]), name)})
}

// bytePtr returns s as C has it.
func bytePtr(s string) unsafe.Pointer {
	p, err := unix.BytePtrFromString(s)
	if err != nil {
		p = new(byte)
	}
	return unsafe.Pointer(p)
}
