package seccomp

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var operators = []specs.LinuxSeccompOperator{
	specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
	specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
}

// load reads 32 bits of struct seccomp_data.
func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func jump(op uint16, k uint32, yes, no int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: uint8(yes), Jf: uint8(no), K: k}
}

func goTo(n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(n)}
}

func and(k uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: k}
}

func ret(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}

// program returns what decides about a system call known to be in the span.
func (s *span) program() []unix.SockFilter {
	var out []unix.SockFilter
	for _, r := range s.rules {
		out = append(out, r.program()...)
	}
	return append(out, ret(s.action))
}

// Where a jump of a condition leads.
const (
	step  = iota // the next instruction
	hold         // past the condition: it holds
	leave        // past the rule: it does not
)

// branch is an instruction whose jumps are not placed yet.
type branch struct {
	unix.SockFilter
	yes, no int
}

// program returns the rule's action if all its conditions hold, and falls out
// of its end otherwise. A rule has at most 6 conditions of 6 instructions, so
// each jump fits.
func (r rule) program() []unix.SockFilter {
	conds := make([][]branch, len(r.args))
	total := 0
	for i, a := range r.args {
		conds[i] = condition(a)
		total += len(conds[i])
	}
	out := make([]unix.SockFilter, 0, total+1)
	for _, c := range conds {
		end := len(out) + len(c)
		for i, b := range c {
			at := len(out) + 1
			place := func(where int) uint8 {
				switch where {
				case hold:
					return uint8(end - at)
				case leave:
					return uint8(total + 1 - at)
				}
				return 0
			}
			f := c[i].SockFilter
			f.Jt, f.Jf = place(b.yes), place(b.no)
			out = append(out, f)
		}
	}
	return append(out, ret(r.action))
}

// condition compares an argument, 64 bits unsigned, in halves.
func condition(a specs.LinuxSeccompArg) []branch {
	low := uint32(16 + 8*a.Index) // seccomp_data.args, little endian
	hi, lo := uint32(a.Value>>32), uint32(a.Value)
	ld := func(offset uint32) branch { return branch{SockFilter: load(offset)} }
	test := func(op uint16, k uint32, yes, no int) branch {
		return branch{jump(op, k, 0, 0), yes, no}
	}
	switch a.Op {
	case specs.OpEqualTo:
		return []branch{
			ld(low + 4), test(unix.BPF_JEQ, hi, step, leave),
			ld(low), test(unix.BPF_JEQ, lo, hold, leave),
		}
	case specs.OpNotEqual:
		return []branch{
			ld(low + 4), test(unix.BPF_JEQ, hi, step, hold),
			ld(low), test(unix.BPF_JEQ, lo, leave, hold),
		}
	case specs.OpGreaterThan:
		return compare(ld, test, low, hi, lo, unix.BPF_JGT, hold, leave)
	case specs.OpGreaterEqual:
		return compare(ld, test, low, hi, lo, unix.BPF_JGE, hold, leave)
	case specs.OpLessEqual:
		return compare(ld, test, low, hi, lo, unix.BPF_JGT, leave, hold)
	case specs.OpLessThan:
		return compare(ld, test, low, hi, lo, unix.BPF_JGE, leave, hold)
	default: // OpMaskedEqual: Value is the mask, ValueTwo what is left
		return []branch{
			ld(low + 4), {SockFilter: and(hi)}, test(unix.BPF_JEQ, uint32(a.ValueTwo>>32), step, leave),
			ld(low), {SockFilter: and(lo)}, test(unix.BPF_JEQ, uint32(a.ValueTwo), hold, leave),
		}
	}
}

// compare orders two 64-bit numbers: the high halves decide unless equal,
// then op decides on the low ones.
func compare(ld func(uint32) branch, test func(uint16, uint32, int, int) branch, low, hi, lo uint32, op uint16, yes, no int) []branch {
	return []branch{
		ld(low + 4), test(unix.BPF_JGT, hi, yes, step), test(unix.BPF_JEQ, hi, step, no),
		ld(low), test(op, lo, yes, no),
	}
}
