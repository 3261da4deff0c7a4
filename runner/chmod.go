package runner

import (
	"fmt"
	"strconv"
	"strings"
)

// chmod is a parsed --chmod; the zero value changes nothing.
type chmod struct {
	octal bool
	mode  uint32
	parts []chmodPart
}

// chmodPart is one "ug+x" of a symbolic mode.
type chmodPart struct {
	who  string // of "ugo"
	op   byte   // '+', '-', '='
	perm string // of "rwxXst", or one of "ugo"
}

// parseChmod reads a mode as BSD's chmod(1) does, from whose code BuildKit's
// comes: X looks at the mode before all clauses, t with o alone is nothing,
// and = clears the set-id bits of directories, too.
func parseChmod(text string) (chmod, error) {
	if text == "" {
		return chmod{}, nil
	}
	if n, err := strconv.ParseUint(text, 8, 32); err == nil {
		if n > 0o7777 {
			return chmod{}, fmt.Errorf("--chmod=%s: must not be over 07777", text)
		}
		return chmod{octal: true, mode: uint32(n)}, nil
	}
	var c chmod
	for clause := range strings.SplitSeq(text, ",") {
		i := strings.IndexAny(clause, "+-=")
		if i < 0 {
			return chmod{}, fmt.Errorf("--chmod=%s: must be octal, or symbolic as in u+x,go=r", text)
		}
		who := strings.ReplaceAll(clause[:i], "a", "ugo")
		if who == "" {
			who = "ugo"
		}
		if strings.Trim(who, "ugo") != "" {
			return chmod{}, fmt.Errorf("--chmod=%s: %q must be of u, g, o and a", text, clause[:i])
		}
		for rest := clause[i:]; rest != ""; {
			operator := rest[0]
			rest = rest[1:]
			n := strings.IndexAny(rest, "+-=")
			if n < 0 {
				n = len(rest)
			}
			perm := rest[:n]
			rest = rest[n:]
			if strings.Trim(perm, "rwxXst") != "" && perm != "u" && perm != "g" && perm != "o" {
				return chmod{}, fmt.Errorf("--chmod=%s: %q must be of r, w, x, X, s and t", text, perm)
			}
			c.parts = append(c.parts, chmodPart{who, operator, perm})
		}
	}
	return c, nil
}

// apply is the mode that a file or directory of a mode gets.
func (c chmod) apply(mode uint32, dir bool) uint32 {
	if c.octal {
		return c.mode
	}
	executable := dir || mode&0o111 != 0
	for _, p := range c.parts {
		mode = p.apply(mode, executable)
	}
	return mode
}

// shifts are where the bits of user, group and others are.
var shifts = map[rune]uint{'u': 6, 'g': 3, 'o': 0}

func (p chmodPart) apply(mode uint32, executable bool) uint32 {
	var bits, reach uint32
	for _, who := range p.who {
		shift := shifts[who]
		reach |= 7 << shift
		switch who {
		case 'u':
			reach |= 0o4000
		case 'g':
			reach |= 0o2000
		}
		for _, r := range p.perm {
			switch r {
			case 'r':
				bits |= 4 << shift
			case 'w':
				bits |= 2 << shift
			case 'x':
				bits |= 1 << shift
			case 'X':
				if executable || p.op == '-' {
					bits |= 1 << shift
				}
			case 's':
				if who == 'u' {
					bits |= 0o4000
				} else if who == 'g' {
					bits |= 0o2000
				}
			case 't':
				if who != 'o' {
					bits |= 0o1000
				}
			case 'u', 'g', 'o':
				bits |= (mode >> shifts[r] & 7) << shift
			}
		}
	}
	switch p.op {
	case '+':
		return mode | bits
	case '-':
		return mode &^ bits
	}
	return mode&^reach | bits
}
