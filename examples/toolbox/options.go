package main

import (
	"fmt"
	"strings"
)

// options are the parsed arguments of a command.
type options struct {
	values map[byte][]string // by letter; a flag has one empty value for each use
	order  []byte            // letters as they came
	args   []string          // what is not an option
}

func (o *options) has(letter byte) bool { return len(o.values[letter]) > 0 }

// value returns the last value of an option, or otherwise.
func (o *options) value(letter byte, otherwise string) string {
	if v := o.values[letter]; len(v) > 0 {
		return v[len(v)-1]
	}
	return otherwise
}

// last returns which of the letters came last, or 0.
func (o *options) last(letters string) byte {
	for i := len(o.order) - 1; i >= 0; i-- {
		if strings.IndexByte(letters, o.order[i]) >= 0 {
			return o.order[i]
		}
	}
	return 0
}

// parse parses arguments by a specification: letters, each with ":" if it
// takes a value, then words "name=letter" for long forms. As in GNU
// commands options may stand between other arguments, unless spec starts
// with "+"; "--" ends them.
func parse(args []string, spec string) (*options, error) {
	words := strings.Fields(spec)
	letters, inOrder := "", false
	long := map[string]byte{}
	for i, w := range words {
		if i == 0 && !strings.Contains(w, "=") {
			letters, inOrder = strings.CutPrefix(w, "+")
			continue
		}
		name, letter, _ := strings.Cut(w, "=")
		long[name] = letter[0]
	}
	takesValue := func(c byte) bool { return strings.Contains(letters, string(c)+":") }
	o := &options{values: map[byte][]string{}}
	add := func(c byte, v string) {
		o.values[c] = append(o.values[c], v)
		o.order = append(o.order, c)
	}
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--":
			o.args = append(o.args, args...)
			return o, nil
		case strings.HasPrefix(a, "--"):
			name, v, given := strings.Cut(a[2:], "=")
			c, ok := long[name]
			if !ok {
				return nil, fmt.Errorf("unknown option %q", a)
			}
			if takesValue(c) && !given {
				if len(args) == 0 {
					return nil, fmt.Errorf("option %q needs a value", a)
				}
				v, args = args[0], args[1:]
			} else if !takesValue(c) && given {
				return nil, fmt.Errorf("option %q takes no value", a)
			}
			add(c, v)
		case len(a) > 1 && a[0] == '-':
			for i := 1; i < len(a); i++ {
				c := a[i]
				if c == ':' || strings.IndexByte(letters, c) < 0 {
					return nil, fmt.Errorf("unknown option %q", "-"+string(c))
				}
				if !takesValue(c) {
					add(c, "")
					continue
				}
				v := a[i+1:]
				if v == "" {
					if len(args) == 0 {
						return nil, fmt.Errorf("option %q needs a value", "-"+string(c))
					}
					v, args = args[0], args[1:]
				}
				add(c, v)
				break
			}
		default:
			o.args = append(o.args, a)
			if inOrder {
				o.args = append(o.args, args...)
				return o, nil
			}
		}
	}
	return o, nil
}
