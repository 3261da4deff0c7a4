package seccomp

import (
	"fmt"
	"runtime"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// machine is an architecture that a filter can be for.
type machine struct {
	arch  specs.Arch
	audit uint32 // AUDIT_ARCH_*
	calls []call
	// x32 says that numbers with bit 30 are those of the x32 ABI, which
	// shares the audit number of amd64. Hardly any kernel has it and its
	// table is a source of mistakes, so it does not exist here.
	x32 bool
}

const x32Bit = 0x40000000

var (
	amd64 = machine{specs.ArchX86_64, unix.AUDIT_ARCH_X86_64, amd64Calls[:], true}
	i386  = machine{specs.ArchX86, unix.AUDIT_ARCH_I386, i386Calls[:], false}
	arm64 = machine{specs.ArchAARCH64, unix.AUDIT_ARCH_AARCH64, arm64Calls[:], false}
	arm   = machine{specs.ArchARM, unix.AUDIT_ARCH_ARM, armCalls[:], false}
)

// machines returns the architecture that programs here have, and the 32-bit
// one that the same kernel runs.
func machines(goarch string) []machine {
	switch goarch {
	case "amd64":
		return []machine{amd64, i386}
	case "arm64":
		return []machine{arm64, arm}
	}
	return nil
}

// verdict is what a system call gets: always Action, or, where there are
// rules, that of the first whose conditions hold and else Action.
type verdict struct {
	action uint32
	rules  []rule
	fixed  bool // a rule without conditions has decided
}

type rule struct {
	args   []specs.LinuxSeccompArg
	action uint32
}

func (v verdict) constant() bool { return len(v.rules) == 0 }

// policy is a profile for one machine: a verdict for each system call that it
// names. Numbers past the last one are newer than the profile and get ENOSYS
// and not its default action, which C libraries would not know as "use the
// older call" (as runc does).
type policy struct {
	machine
	def      uint32
	verdicts map[uint32]*verdict
	last     uint32
}

// Compile returns the program for a profile, to be loaded by seccomp(2):
// instructions of 8 bytes in the machine's byte order. A system call that no
// rule names gets the default action; a rule without conditions overrides
// those with; of those with conditions the first that holds decides.
func Compile(p *specs.LinuxSeccomp) ([]unix.SockFilter, error) {
	return compile(p, runtime.GOARCH)
}

func compile(p *specs.LinuxSeccomp, goarch string) ([]unix.SockFilter, error) {
	policies, err := policies(p, goarch)
	if err != nil {
		return nil, err
	}
	prog := []unix.SockFilter{load(4)} // seccomp_data.arch
	for _, m := range policies {
		body := m.program()
		prog = append(prog, jump(unix.BPF_JEQ, m.audit, 1, 0), goTo(len(body)))
		prog = append(prog, body...)
	}
	prog = append(prog, ret(unix.SECCOMP_RET_KILL_PROCESS))
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("compile the seccomp profile: %d instructions, the kernel takes %d", len(prog), unix.BPF_MAXINSNS)
	}
	return prog, nil
}

func policies(p *specs.LinuxSeccomp, goarch string) ([]policy, error) {
	all := machines(goarch)
	if all == nil {
		return nil, fmt.Errorf("compile the seccomp profile: no system call table for %s", goarch)
	}
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	var out []policy
	for i, m := range all {
		if i > 0 && !slices.Contains(p.Architectures, m.arch) {
			continue
		}
		x := policy{machine: m, def: def, verdicts: make(map[uint32]*verdict, 512)}
		for _, s := range p.Syscalls {
			if err := x.add(s); err != nil {
				return nil, err
			}
		}
		out = append(out, x)
	}
	return out, nil
}

// add adds a rule of the profile.
func (p *policy) add(s specs.LinuxSyscall) error {
	act, err := action(s.Action, s.ErrnoRet)
	if err != nil {
		return err
	}
	for _, a := range s.Args {
		if a.Index > 5 {
			return fmt.Errorf("compile the seccomp profile: %v has no argument %d", s.Names, a.Index)
		}
		if !slices.Contains(operators, a.Op) {
			return fmt.Errorf("compile the seccomp profile: unknown operator %q", a.Op)
		}
	}
	for _, name := range s.Names {
		nr, ok := number(p.calls, name)
		if !ok {
			continue // a call of other machines or newer kernels
		}
		p.last = max(p.last, nr)
		v := p.verdicts[nr]
		if v == nil {
			v = &verdict{action: p.def}
			p.verdicts[nr] = v
		}
		switch {
		case v.fixed:
		case len(s.Args) == 0:
			*v = verdict{action: act, fixed: true}
		case repeats(s.Args):
			// Conditions on one argument twice are alternatives (as in runc).
			for _, a := range s.Args {
				v.rules = append(v.rules, rule{[]specs.LinuxSeccompArg{a}, act})
			}
		default:
			v.rules = append(v.rules, rule{s.Args, act})
		}
	}
	return nil
}

func repeats(args []specs.LinuxSeccompArg) bool {
	var seen [6]bool
	for _, a := range args {
		if seen[a.Index] {
			return true
		}
		seen[a.Index] = true
	}
	return false
}

// action returns the filter's return value for an action.
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errno != nil {
		data = uint32(*errno) & unix.SECCOMP_RET_DATA
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	}
	return 0, fmt.Errorf("compile the seccomp profile: action %q is not supported", a)
}

// span is a run of numbers from first on with one verdict.
type span struct {
	first uint32
	verdict
}

// spans cuts the numbers into runs, the first from 0, the last endless.
func (p *policy) spans() []span {
	numbers := make([]uint32, 0, len(p.verdicts))
	for nr := range p.verdicts {
		numbers = append(numbers, nr)
	}
	slices.Sort(numbers)
	var out []span
	add := func(first uint32, v verdict) {
		if n := len(out); n > 0 && v.constant() && out[n-1].constant() && out[n-1].action == v.action {
			return
		}
		out = append(out, span{first, v})
	}
	next := uint32(0)
	for _, nr := range numbers {
		if nr > next {
			add(next, verdict{action: p.def})
		}
		add(nr, *p.verdicts[nr])
		next = nr + 1
	}
	if p.def == unix.SECCOMP_RET_ALLOW || p.def == unix.SECCOMP_RET_LOG {
		add(next, verdict{action: p.def})
	} else {
		add(next, verdict{action: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	}
	if p.x32 {
		add(x32Bit, verdict{action: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	}
	return out
}

// program returns the instructions for one machine: a binary search over the
// spans, whose leaves return.
func (p *policy) program() []unix.SockFilter {
	return append([]unix.SockFilter{load(0)}, search(p.spans())...) // seccomp_data.nr
}

func search(s []span) []unix.SockFilter {
	if len(s) == 1 {
		return s[0].program()
	}
	mid := len(s) / 2
	low, high := search(s[:mid]), search(s[mid:])
	var out []unix.SockFilter
	if len(low) <= 255 {
		out = append(out, jump(unix.BPF_JGE, s[mid].first, len(low), 0))
	} else {
		out = append(out, jump(unix.BPF_JGE, s[mid].first, 0, 1), goTo(len(low)))
	}
	return append(append(out, low...), high...)
}
