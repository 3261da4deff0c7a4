package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is a kind of device that a group may open, make or both.
type Device struct {
	Type         byte   // 'c', 'b' or 'a' for both
	Major, Minor int64  // -1 is any
	Access       string // of "rwm"
}

// DefaultDevices may be used in every sandbox, as in docker: node making of
// all (opening them is another matter), the memory devices, and terminals.
var DefaultDevices = []Device{
	{'c', -1, -1, "m"}, {'b', -1, -1, "m"},
	{'c', 1, 3, "rwm"}, {'c', 1, 5, "rwm"}, {'c', 1, 7, "rwm"}, {'c', 1, 8, "rwm"}, {'c', 1, 9, "rwm"},
	{'c', 5, 0, "rwm"}, {'c', 5, 1, "rwm"}, {'c', 5, 2, "rwm"}, {'c', 136, -1, "rwm"},
}

// devices1 sets the devices through version 1.
func (g *Group) devices1(devices []Device) error {
	dir := g.V1["devices"]
	if err := write(dir, "devices.deny", "a"); err != nil {
		return fmt.Errorf("deny devices: %w", err)
	}
	for _, d := range devices {
		rule := fmt.Sprintf("%c %s:%s %s", d.Type, star(d.Major), star(d.Minor), d.Access)
		if err := write(dir, "devices.allow", rule); err != nil {
			return fmt.Errorf("allow device %s: %w", rule, err)
		}
	}
	return nil
}

func star(n int64) string {
	if n < 0 {
		return "*"
	}
	return num(n)
}

// instruction is one of eBPF: code, dst | src<<4, offset, immediate.
type instruction struct {
	code uint8
	regs uint8
	off  int16
	imm  int32
}

// Codes that x/sys/unix has in parts.
const (
	ldW    = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	movX   = unix.BPF_ALU | 0xb0 | unix.BPF_X // 32 bits
	movK64 = 0x07 | 0xb0 | unix.BPF_K
	andK   = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	rshK   = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	jneK   = 0x06 | 0x50 | unix.BPF_K // BPF_JMP32 | BPF_JNE
	exit   = unix.BPF_JMP | 0x90
)

// deviceProgram returns the filter: true for what one of devices allows. Its
// context is struct bpf_cgroup_dev_ctx: access<<16 | type, major, minor.
func deviceProgram(devices []Device) []instruction {
	const ctx, kind, access, major, minor, tmp = 1, 2, 3, 4, 5, 6
	prog := []instruction{
		{ldW, kind | ctx<<4, 0, 0},
		{movX, access | kind<<4, 0, 0},
		{andK, kind, 0, 0xffff},
		{rshK, access, 0, 16},
		{ldW, major | ctx<<4, 4, 0},
		{ldW, minor | ctx<<4, 8, 0},
	}
	for _, d := range devices {
		var tests []instruction
		switch d.Type {
		case 'b':
			tests = append(tests, instruction{jneK, kind, 0, unix.BPF_DEVCG_DEV_BLOCK})
		case 'c':
			tests = append(tests, instruction{jneK, kind, 0, unix.BPF_DEVCG_DEV_CHAR})
		}
		if denied := int32(7 &^ accessBits(d.Access)); denied != 0 {
			tests = append(tests, instruction{movX, tmp | access<<4, 0, 0},
				instruction{andK, tmp, 0, denied}, instruction{jneK, tmp, 0, 0})
		}
		if d.Major >= 0 {
			tests = append(tests, instruction{jneK, major, 0, int32(d.Major)})
		}
		if d.Minor >= 0 {
			tests = append(tests, instruction{jneK, minor, 0, int32(d.Minor)})
		}
		tests = append(tests, instruction{movK64, 0, 0, 1}, instruction{exit, 0, 0, 0})
		for i := range tests {
			if tests[i].code == jneK {
				tests[i].off = int16(len(tests) - i - 1)
			}
		}
		prog = append(prog, tests...)
	}
	return append(prog, instruction{movK64, 0, 0, 0}, instruction{exit, 0, 0, 0})
}

func accessBits(s string) int {
	bits := 0
	for c, bit := range map[string]int{"r": unix.BPF_DEVCG_ACC_READ, "w": unix.BPF_DEVCG_ACC_WRITE, "m": unix.BPF_DEVCG_ACC_MKNOD} {
		if strings.Contains(s, c) {
			bits |= bit
		}
	}
	return bits
}

// filterDevices sets the devices through version 2, which has a program of
// ours decide. The kernel keeps it as long as the group lives.
func (g *Group) filterDevices(devices []Device) error {
	prog, err := loadProgram(deviceProgram(devices))
	if err != nil {
		return err
	}
	defer unix.Close(prog)
	dir, err := os.Open(g.V2)
	if err != nil {
		return err
	}
	defer dir.Close()
	attr := struct{ target, prog, kind, flags uint32 }{
		uint32(dir.Fd()), uint32(prog), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI,
	}
	_, err = bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	g.filtered = err == nil
	return err
}

func loadProgram(prog []instruction) (int, error) {
	license := []byte("Apache-2.0\x00")
	attr := struct {
		kind, count        uint32
		insns, license     unsafe.Pointer // of 64 bits, as everything here is
		logLevel, logSize  uint32
		logBuf             uint64
		version, flags     uint32
		name               [16]byte
		ifindex, attachFor uint32
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(prog)),
		insns:     unsafe.Pointer(&prog[0]),
		license:   unsafe.Pointer(&license[0]),
		attachFor: unix.BPF_CGROUP_DEVICE,
	}
	copy(attr.name[:], "kiln_devices")
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return -1, err
	}
	unix.CloseOnExec(fd)
	return fd, nil
}

func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		r, _, e := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		if e == 0 {
			return int(r), nil
		}
		if !errors.Is(e, unix.EAGAIN) && e != unix.EINTR {
			return -1, e
		}
	}
}
