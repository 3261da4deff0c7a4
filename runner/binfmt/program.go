package binfmt

import (
	"encoding/binary"

	"github.com/containerd/platforms"
)

// exits is machine code, by architecture, that ends the process with status 0.
var exits = map[string]string{
	"amd64":    "\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05",             // mov $60,%eax; xor %edi,%edi; syscall
	"386":      "\xb8\x01\x00\x00\x00\x31\xdb\xcd\x80",             // mov $1,%eax; xor %ebx,%ebx; int $0x80
	"arm64":    "\x00\x00\x80\xd2\xa8\x0b\x80\xd2\x01\x00\x00\xd4", // mov x0,#0; mov x8,#93; svc #0
	"arm":      "\x00\x00\xa0\xe3\x01\x70\xa0\xe3\x00\x00\x00\xef", // mov r0,#0; mov r7,#1; svc 0
	"riscv64":  "\x13\x05\x00\x00\x93\x08\xd0\x05\x73\x00\x00\x00", // li a0,0; li a7,93; ecall
	"ppc64le":  "\x01\x00\x00\x38\x00\x00\x60\x38\x02\x00\x00\x44", // li r0,1; li r3,0; sc
	"s390x":    "\xa7\x29\x00\x00\x0a\x01",                         // lghi %r2,0; svc 1
	"loong64":  "\x04\x00\x80\x03\x0b\x74\x81\x03\x00\x00\x2b\x00", // ori a0,zero,0; ori a7,zero,93; syscall 0
	"mips64le": "\x00\x00\x04\x24\xc2\x13\x02\x24\x0c\x00\x00\x00", // li a0,0; li v0,5058; syscall
}

// Program is a static program for a platform that does nothing but exit with
// status 0, to try whether such programs run; nil for a platform that it does
// not know.
func Program(platform string) []byte {
	p, err := platforms.Parse(platform)
	if err != nil {
		return nil
	}
	m, ok := find(p)
	if !ok {
		return nil
	}
	const base, page = 0x400000, 0x10000
	var order binary.AppendByteOrder = binary.LittleEndian
	if m.big {
		order = binary.BigEndian
	}
	word := func(b []byte, v uint64) []byte { // an address, or what is as wide
		if m.bits == 64 {
			return order.AppendUint64(b, v)
		}
		return order.AppendUint32(b, uint32(v))
	}
	head, segment := uint64(52), uint64(32)
	if m.bits == 64 {
		head, segment = 64, 56
	}
	size := head + segment + uint64(len(exits[m.arch]))
	flags := map[string]uint32{"ppc64le": 2, "arm": 0x05000000, "mips64le": 0x80000000, "loong64": 0x43, "riscv64": 0}[m.arch] // ABI versions

	b := order.AppendUint32(m.header(), 1)                                       // version
	b = word(word(word(b, base+head+segment), head), 0)                          // entry; where the segments and sections are
	b = order.AppendUint32(b, flags)                                             //
	b = order.AppendUint16(order.AppendUint16(b, uint16(head)), uint16(segment)) // sizes
	b = order.AppendUint16(order.AppendUint16(b, 1), 0)                          // one segment
	b = order.AppendUint16(order.AppendUint16(b, 0), 0)                          // no section
	b = order.AppendUint32(b, 1)                                                 // PT_LOAD
	const readExecute = 5
	if m.bits == 64 {
		b = order.AppendUint32(b, readExecute)
	}
	b = word(word(word(b, 0), base), base) // offset, addresses
	b = word(word(b, size), size)          // in the file, in memory
	if m.bits == 32 {
		b = order.AppendUint32(b, readExecute)
	}
	b = word(b, page)
	return append(b, exits[m.arch]...)
}
