package launch

import (
	"encoding/binary"
	"errors"
)

// codec moves values between a Config and its bytes. One method per kind
// serves both directions, so what is written and what is read cannot differ:
// numbers are 8 bytes little endian, strings and lists have their length
// first. Init and parent are always of the same build, hence no versions; see
// layout.
// Writing changes nothing: what is written may be shared.
type codec struct {
	b      []byte
	decode bool
	bad    bool
}

var errTruncated = errors.New("truncated configuration")

func (c *codec) u64(v *uint64) {
	if !c.decode {
		c.b = binary.LittleEndian.AppendUint64(c.b, *v)
		return
	}
	if len(c.b) < 8 {
		c.bad, c.b, *v = true, nil, 0
		return
	}
	*v = binary.LittleEndian.Uint64(c.b)
	c.b = c.b[8:]
}

func (c *codec) u32(v *uint32) {
	x := uint64(*v)
	c.u64(&x)
	if c.decode {
		*v = uint32(x)
	}
}

func (c *codec) int(v *int) {
	x := uint64(*v)
	c.u64(&x)
	if c.decode {
		*v = int(x)
	}
}

func (c *codec) bool(v *bool) {
	var x uint64
	if *v {
		x = 1
	}
	c.u64(&x)
	if c.decode {
		*v = x != 0
	}
}

func (c *codec) bytes(v *[]byte) {
	n := len(*v)
	c.int(&n)
	if !c.decode {
		c.b = append(c.b, *v...)
		return
	}
	if n < 0 || n > len(c.b) {
		c.bad, c.b, *v = true, nil, nil
		return
	}
	*v = c.b[:n:n]
	c.b = c.b[n:]
}

func (c *codec) string(v *string) {
	var b []byte
	if !c.decode {
		b = []byte(*v)
	}
	c.bytes(&b)
	if c.decode {
		*v = string(b)
	}
}

func (c *codec) strings(v *[]string) { list(c, v, (*codec).string) }

// list moves a slice whose elements f moves.
func list[T any](c *codec, v *[]T, f func(*codec, *T)) {
	n := len(*v)
	c.int(&n)
	if c.decode {
		if n < 0 || n > len(c.b) { // each element takes a byte at least
			c.bad, c.b = true, nil
			return
		}
		*v = make([]T, n)
	}
	for i := range *v {
		f(c, &(*v)[i])
	}
}

// layout changes with the fields of a Config. It catches an embedded init
// that was not built again after a change: read by another order of fields a
// configuration would be another sandbox.
func layout() uint64 {
	x := &codec{}
	c := &Config{Mounts: make([]Mount, 1), Devices: make([]Device, 1), Rlimits: make([]Rlimit, 1)}
	c.code(x)
	return uint64(len(x.b))
}

// Encode returns the bytes of c, after their layout and length.
func (c *Config) Encode() []byte {
	x := &codec{b: make([]byte, 16, 16<<10)}
	c.code(x)
	binary.LittleEndian.PutUint64(x.b, layout())
	binary.LittleEndian.PutUint64(x.b[8:], uint64(len(x.b)-16))
	return x.b
}

// decodeConfig is the reverse of Encode, without layout and length.
func decodeConfig(b []byte) (*Config, error) {
	x := &codec{b: b, decode: true}
	c := &Config{}
	c.code(x)
	if x.bad || len(x.b) != 0 {
		return nil, errTruncated
	}
	return c, nil
}
