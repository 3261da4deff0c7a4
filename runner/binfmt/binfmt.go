// Package binfmt finds out how this machine runs programs of another
// architecture: by itself, by an emulator that is registered with the kernel
// (binfmt_misc), or by one that lies on PATH and that a sandbox can register
// for itself. [Find] is the question and [Emulator] the answer.
//
// It registers nothing; package sandbox does, in an instance of binfmt_misc
// that nobody else sees.
package binfmt

import (
	"encoding/binary"
	"fmt"
	"os/exec"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Emulator is a program that runs those of another architecture, and how the
// kernel recognises them.
type Emulator struct {
	Name        string // such as "qemu-aarch64"
	Magic, Mask []byte // of a program's first bytes
	Interpreter string // path of a static program of this machine
}

// machine is an architecture as ELF and QEMU know it.
type machine struct {
	arch string // Go's name
	qemu string
	code uint16 // e_machine
	bits int
	big  bool // big-endian
}

var machines = []machine{
	{arch: "amd64", qemu: "x86_64", code: 62, bits: 64},
	{arch: "arm64", qemu: "aarch64", code: 183, bits: 64},
	{arch: "386", qemu: "i386", code: 3, bits: 32},
	{arch: "arm", qemu: "arm", code: 40, bits: 32},
	{arch: "riscv64", qemu: "riscv64", code: 243, bits: 64},
	{arch: "ppc64le", qemu: "ppc64le", code: 21, bits: 64},
	{arch: "s390x", qemu: "s390x", code: 22, bits: 64, big: true},
	{arch: "mips64le", qemu: "mips64el", code: 8, bits: 64},
	{arch: "loong64", qemu: "loongarch64", code: 258, bits: 64},
}

// headerSize is how much of a program's header tells its architecture.
const headerSize = 20

// header is the beginning of an ELF program of m.
func (m machine) header() []byte {
	h := make([]byte, headerSize)
	copy(h, "\x7fELF")
	h[4], h[5], h[6] = byte(m.bits/32), 1, 1 // class, byte order, version
	order := binary.ByteOrder(binary.LittleEndian)
	if m.big {
		h[5], order = 2, binary.BigEndian
	}
	order.PutUint16(h[16:], 2) // ET_EXEC
	order.PutUint16(h[18:], m.code)
	return h
}

// mask leaves out the operating system's ABI, and what tells ET_EXEC from
// ET_DYN, as QEMU's own registrations do.
func (m machine) mask() []byte {
	b := make([]byte, headerSize)
	for i := range b {
		b[i] = 0xff
	}
	b[7] = 0
	if m.big {
		b[17] = 0xfe
	} else {
		b[16] = 0xfe
	}
	return b
}

// Host is the machine as far as it matters here.
type Host struct {
	Platform ocispecs.Platform
	Handlers string                       // where binfmt_misc is mounted, if it is
	Kernel   string                       // release, such as "6.18.1"
	LookPath func(string) (string, error) // finds a program
}

// This is the machine that the program runs on.
func This() Host {
	h := Host{Platform: platforms.DefaultSpec(), Handlers: "/proc/sys/fs/binfmt_misc", LookPath: exec.LookPath}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return h
}

// Find says how this machine runs programs for a platform such as
// "linux/arm64"; an empty one is its own. A nil Emulator means that they run
// as they are, an error that they cannot, and what to do about it.
func Find(platform string) (*Emulator, error) { return This().Find(platform) }

// Find is the package's Find for any machine.
func (h Host) Find(platform string) (*Emulator, error) {
	if platform == "" {
		return nil, nil
	}
	p, err := platforms.Parse(platform)
	if err != nil {
		return nil, fmt.Errorf("platform %q: %w", platform, err)
	}
	if platforms.Only(h.Platform).Match(p) {
		return nil, nil
	}
	refuse := func(why, fix string) error {
		return fmt.Errorf("cannot run programs for %s on this %s machine: %s\nto run them: %s",
			platform, platforms.Format(h.Platform), why, fix)
	}
	m, ok := find(p)
	if !ok {
		return nil, refuse("no emulator for them is known", "use a machine for "+platform)
	}
	there, fixed := h.registered(m)
	if fixed {
		return nil, nil
	}
	program := "qemu-" + m.qemu + "-static"
	path, err := h.LookPath(program)
	switch {
	case err == nil && h.ownInstances():
		return &Emulator{Name: "qemu-" + m.qemu, Magic: m.header(), Mask: m.mask(), Interpreter: path}, nil
	case there: // perhaps the root has it
		return nil, nil
	case err == nil:
		return nil, refuse("no emulator is registered, and Linux "+h.Kernel+" lets none be registered for a sandbox alone (6.7 does)",
			"apt-get install binfmt-support")
	case !h.ownInstances():
		return nil, refuse("no emulator is registered", "apt-get install qemu-user-static binfmt-support")
	}
	return nil, refuse(program+" is not on PATH", "apt-get install qemu-user-static")
}

func find(p ocispecs.Platform) (machine, bool) {
	if p.OS != "linux" {
		return machine{}, false
	}
	for _, m := range machines {
		if m.arch == p.Architecture {
			return m, true
		}
	}
	return machine{}, false
}

// ownInstances reports whether user namespaces have instances of binfmt_misc
// of their own (Linux commit 21ca59b365c0).
func (h Host) ownInstances() bool {
	var major, minor int
	if n, _ := fmt.Sscanf(h.Kernel, "%d.%d", &major, &minor); n < 2 {
		return false
	}
	return major > 6 || major == 6 && minor >= 7
}

// Platforms are those that Find knows an emulator for, but for the machine's
// own.
func (h Host) Platforms() []string {
	var list []string
	for _, m := range machines {
		p := ocispecs.Platform{OS: "linux", Architecture: m.arch}
		if !platforms.Only(h.Platform).Match(platforms.Normalize(p)) {
			list = append(list, platforms.Format(p))
		}
	}
	return list
}
