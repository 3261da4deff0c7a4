package seccomp

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// data is struct seccomp_data.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

// evaluate runs a program as the kernel does.
func evaluate(t testing.TB, prog []unix.SockFilter, d data) uint32 {
	t.Helper()
	var mem [64]byte
	binary.LittleEndian.PutUint32(mem[0:], d.nr)
	binary.LittleEndian.PutUint32(mem[4:], d.arch)
	for i, a := range d.args {
		binary.LittleEndian.PutUint64(mem[16+8*i:], a)
	}
	var a uint32
	for pc := 0; pc < len(prog); pc++ {
		f := prog[pc]
		test := func(yes bool) {
			if yes {
				pc += int(f.Jt)
			} else {
				pc += int(f.Jf)
			}
		}
		switch f.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = binary.LittleEndian.Uint32(mem[f.K:])
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= f.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(f.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			test(a == f.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			test(a > f.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			test(a >= f.K)
		case unix.BPF_RET | unix.BPF_K:
			return f.K
		default:
			t.Fatalf("instruction %d: code %#x", pc, f.Code)
		}
	}
	t.Fatal("the program has no end")
	return 0
}

// decide is what a profile says, by its text: the plain reading that the
// compiler is checked against.
func decide(p *Profile, names map[uint32]string, last uint32, d data) uint32 {
	act := func(a specs.LinuxSeccompAction, e *uint) uint32 {
		v, err := action(a, e)
		if err != nil {
			panic(err)
		}
		return v
	}
	name, known := names[d.nr]
	if d.nr > last && p.DefaultAction != specs.ActAllow && p.DefaultAction != specs.ActLog {
		return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	var first *uint32
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			if !known || n != name {
				continue
			}
			v := act(s.Action, s.ErrnoRet)
			if len(s.Args) == 0 {
				return v
			}
			if first == nil && holds(s.Args, d.args) {
				first = &v
			}
		}
	}
	if first != nil {
		return *first
	}
	return act(p.DefaultAction, p.DefaultErrnoRet)
}

func holds(conds []specs.LinuxSeccompArg, args [6]uint64) bool {
	all, some := true, false
	for _, c := range conds {
		a, ok := args[c.Index], false
		switch c.Op {
		case specs.OpEqualTo:
			ok = a == c.Value
		case specs.OpNotEqual:
			ok = a != c.Value
		case specs.OpLessThan:
			ok = a < c.Value
		case specs.OpLessEqual:
			ok = a <= c.Value
		case specs.OpGreaterThan:
			ok = a > c.Value
		case specs.OpGreaterEqual:
			ok = a >= c.Value
		case specs.OpMaskedEqual:
			ok = a&c.Value == c.ValueTwo
		}
		all, some = all && ok, some || ok
	}
	if repeats(conds) {
		return some
	}
	return all
}

// check compares program and profile over every system call of every table,
// with argument values at and around those that the profile names.
func check(t *testing.T, p *Profile, goarch string) {
	t.Helper()
	prog, err := compile(p, goarch)
	if err != nil {
		t.Fatal(err)
	}
	values := []uint64{0, 1, 1<<64 - 1, 1 << 32}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			values = append(values, a.Value-1, a.Value, a.Value+1, a.ValueTwo, a.Value|1<<32, ^a.Value)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, m := range machines(goarch) {
		names, last := map[uint32]string{}, uint32(0)
		for _, c := range m.calls {
			names[c.nr] = c.name
		}
		for _, s := range p.Syscalls {
			for _, n := range s.Names {
				if nr, ok := number(m.calls, n); ok {
					last = max(last, nr)
				}
			}
		}
		for nr := range uint32(last + 50) {
			conditional := false
			for _, s := range p.Syscalls {
				for _, n := range s.Names {
					conditional = conditional || n == names[nr] && len(s.Args) > 0
				}
			}
			rounds := 1
			if conditional {
				rounds = 4 * len(values)
			}
			for i := range rounds {
				d := data{nr: nr, arch: m.audit}
				for j := range d.args {
					d.args[j] = values[rng.IntN(len(values))]
				}
				d.args[0] = values[i%len(values)]
				if got, want := evaluate(t, prog, d), decide(p, names, last, d); got != want {
					t.Fatalf("%s %s(%d) %x: %#x, want %#x", m.arch, names[nr], nr, d.args, got, want)
				}
			}
		}
	}
	if got := evaluate(t, prog, data{arch: 0x1234}); got != unix.SECCOMP_RET_KILL_PROCESS {
		t.Errorf("a foreign architecture gets %#x", got)
	}
	if goarch == "amd64" {
		for _, nr := range []uint32{0, 1, 59, 512, 520} {
			if got := evaluate(t, prog, data{nr: nr | x32Bit, arch: unix.AUDIT_ARCH_X86_64}); got>>16 != unix.SECCOMP_RET_ERRNO>>16 {
				t.Errorf("x32 call %d gets %#x", nr, got)
			}
		}
	}
}

func TestDefault(t *testing.T) {
	for _, caps := range [][]string{nil, {"CAP_CHOWN"}, {"CAP_SYS_ADMIN", "CAP_BPF", "CAP_SYS_PTRACE"}} {
		p, err := Default(caps)
		if err != nil {
			t.Fatal(err)
		}
		check(t, p, runtime.GOARCH)
	}
}

// Any machine can be compiled for on any other.
func TestOtherMachine(t *testing.T) {
	p, err := Default(nil)
	if err != nil {
		t.Fatal(err)
	}
	p.Architectures = append(p.Architectures, specs.ArchARM, specs.ArchX86)
	check(t, p, "arm64")
	check(t, p, "amd64")
	if _, err := compile(p, "s390x"); err == nil {
		t.Error("a machine without a table was compiled for")
	}
}

func TestKnownVerdicts(t *testing.T) {
	p, err := Default([]string{"CAP_CHOWN"})
	if err != nil {
		t.Fatal(err)
	}
	prog, err := compile(p, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	const allow, eperm, enosys = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM), unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	for _, c := range []struct {
		name string
		args [6]uint64
		want uint32
	}{
		{"read", [6]uint64{}, allow}, {"execve", [6]uint64{}, allow}, {"ptrace", [6]uint64{}, allow},
		{"mount", [6]uint64{}, eperm}, {"bpf", [6]uint64{}, eperm}, {"keyctl", [6]uint64{}, eperm},
		{"unshare", [6]uint64{unix.CLONE_NEWUSER}, eperm}, {"kexec_load", [6]uint64{}, eperm},
		{"clone", [6]uint64{uint64(unix.SIGCHLD)}, allow}, {"clone", [6]uint64{unix.CLONE_NEWUSER}, eperm},
		{"clone3", [6]uint64{}, enosys}, {"socket", [6]uint64{unix.AF_INET}, allow},
		{"socket", [6]uint64{unix.AF_VSOCK}, eperm}, {"socket", [6]uint64{unix.AF_ALG}, eperm},
		{"personality", [6]uint64{0xffffffff}, allow}, {"personality", [6]uint64{0x40000}, eperm},
	} {
		nr, ok := number(amd64Calls[:], c.name)
		if !ok {
			t.Fatal(c.name)
		}
		if got := evaluate(t, prog, data{nr, unix.AUDIT_ARCH_X86_64, c.args}); got != c.want {
			t.Errorf("%s %x: %#x, want %#x", c.name, c.args, got, c.want)
		}
	}
}

// Random profiles, with all operators, actions and several rules a call.
func TestRandomProfiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActTrap, specs.ActLog, specs.ActKillProcess}
	values := []uint64{0, 1, 5, 1 << 31, 1 << 32, 1<<32 + 5, 1<<64 - 1}
	for i := range 40 {
		p := &Profile{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86}}
		for range 1 + rng.IntN(30) {
			s := specs.LinuxSyscall{Action: actions[rng.IntN(len(actions))]}
			for range 1 + rng.IntN(3) {
				s.Names = append(s.Names, amd64Calls[rng.IntN(20)].name)
			}
			for range rng.IntN(4) {
				s.Args = append(s.Args, specs.LinuxSeccompArg{
					Index: uint(rng.IntN(6)), Op: operators[rng.IntN(len(operators))],
					Value: values[rng.IntN(len(values))], ValueTwo: values[rng.IntN(len(values))],
				})
			}
			p.Syscalls = append(p.Syscalls, s)
		}
		t.Run(fmt.Sprint(i), func(t *testing.T) { check(t, p, "amd64") })
	}
}

func TestLoad(t *testing.T) {
	p, err := Load([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	prog, err := compile(p, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	for nr, want := range map[uint32]uint32{90: unix.SECCOMP_RET_ERRNO | 13, 0: unix.SECCOMP_RET_ALLOW, 1000: unix.SECCOMP_RET_ALLOW} {
		if got := evaluate(t, prog, data{nr: nr, arch: unix.AUDIT_ARCH_X86_64}); got != want {
			t.Errorf("call %d: %#x, want %#x", nr, got, want)
		}
	}
	for _, bad := range []string{"", "{", `{"defaultAction":"SCMP_ACT_NOTIFY","syscalls":[]}`, `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}`} {
		p, err := Load([]byte(bad), nil)
		if err == nil {
			_, err = Compile(p)
		}
		if err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

// The generated tables are those of the module they come from.
func TestTables(t *testing.T) {
	for name, m := range map[string]machine{"x86_64": amd64, "i386": i386, "aarch64": arm64, "arm": arm} {
		info, err := arch.GetInfo(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.calls) != len(info.SyscallNames) || uint32(info.ID) != m.audit {
			t.Errorf("%s: %d calls of audit architecture %#x, want %d of %#x: run go generate", name, len(m.calls), m.audit, len(info.SyscallNames), uint32(info.ID))
		}
		for n, nr := range info.SyscallNames {
			if got, ok := number(m.calls, n); !ok || got != uint32(nr) {
				t.Errorf("%s: %s is %d, want %d: run go generate", name, n, got, nr)
			}
		}
	}
}

func TestSize(t *testing.T) {
	p, err := Default(nil)
	if err != nil {
		t.Fatal(err)
	}
	prog, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(prog))
	if len(prog) > 2048 {
		t.Errorf("%d instructions", len(prog))
	}
}

func BenchmarkDefault(b *testing.B) {
	for b.Loop() {
		p, err := Default([]string{"CAP_CHOWN"})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
