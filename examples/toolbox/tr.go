package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// tr translates (SET1 SET2), deletes (-d) and squeezes (-s) bytes; -c takes
// the complement of SET1. Sets have ranges, escapes and classes.
func tr(args []string) error {
	o, err := parse(args, "+cCdst complement=c delete=d squeeze-repeats=s truncate-set1=t")
	if err != nil {
		return err
	}
	if len(o.args) == 0 || len(o.args) > 2 {
		return errors.New("need one or two sets")
	}
	first, err := set(o.args[0])
	if err != nil {
		return err
	}
	if o.has('c') || o.has('C') {
		var in [256]bool
		for _, c := range first {
			in[c] = true
		}
		first = nil
		for c := range 256 {
			if !in[c] {
				first = append(first, byte(c))
			}
		}
	}
	var second []byte
	if len(o.args) == 2 {
		if second, err = set(o.args[1]); err != nil {
			return err
		}
	}
	translate := len(second) > 0 && !o.has('d')
	if !translate && !o.has('d') && !o.has('s') {
		return errors.New("need a second set")
	}
	var to [256]byte
	var drop, squeeze [256]bool
	for c := range to {
		to[c] = byte(c)
	}
	for i, c := range first {
		drop[c] = o.has('d')
		if translate {
			to[c] = second[min(i, len(second)-1)]
		}
	}
	if o.has('s') {
		last := first
		if len(second) > 0 {
			last = second
		}
		for _, c := range last {
			squeeze[c] = true
		}
	}
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	previous := -1
	for {
		c, err := in.ReadByte()
		if err == io.EOF {
			return out.Flush()
		}
		if err != nil {
			return err
		}
		if drop[c] {
			continue
		}
		c = to[c]
		if squeeze[c] && int(c) == previous {
			continue
		}
		previous = int(c)
		if err := out.WriteByte(c); err != nil {
			return err
		}
	}
}

var classes = map[string]func(c byte) bool{
	"alpha":  func(c byte) bool { return c|32 >= 'a' && c|32 <= 'z' },
	"digit":  func(c byte) bool { return c >= '0' && c <= '9' },
	"alnum":  func(c byte) bool { return c|32 >= 'a' && c|32 <= 'z' || c >= '0' && c <= '9' },
	"upper":  func(c byte) bool { return c >= 'A' && c <= 'Z' },
	"lower":  func(c byte) bool { return c >= 'a' && c <= 'z' },
	"space":  func(c byte) bool { return strings.IndexByte(" \t\n\v\f\r", c) >= 0 },
	"blank":  blank,
	"cntrl":  func(c byte) bool { return c < 32 || c == 127 },
	"print":  func(c byte) bool { return c >= 32 && c < 127 },
	"graph":  func(c byte) bool { return c > 32 && c < 127 },
	"punct":  func(c byte) bool { return strings.IndexByte("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", c) >= 0 },
	"xdigit": func(c byte) bool { return strings.IndexByte("0123456789abcdefABCDEF", c) >= 0 },
}

// set expands a set of tr.
func set(text string) ([]byte, error) {
	var s []byte
	rangeFrom := -1 // the byte before a "-" that makes a range
	add := func(c byte) error {
		if rangeFrom < 0 {
			s = append(s, c)
			return nil
		}
		if int(c) < rangeFrom {
			return fmt.Errorf("set %q: range in reverse", text)
		}
		for b := rangeFrom + 1; b <= int(c); b++ {
			s = append(s, byte(b))
		}
		rangeFrom = -1
		return nil
	}
	for i := 0; i < len(text); i++ {
		if strings.HasPrefix(text[i:], "[:") {
			if end := strings.Index(text[i:], ":]"); end > 0 {
				in, ok := classes[text[i+2:i+end]]
				if !ok {
					return nil, fmt.Errorf("set %q: unknown class", text)
				}
				for c := range 256 {
					if in(byte(c)) {
						s = append(s, byte(c))
					}
				}
				i += end + 1
				continue
			}
		}
		if text[i] == '-' && len(s) > 0 && i+1 < len(text) && rangeFrom < 0 {
			rangeFrom = int(s[len(s)-1])
			continue
		}
		c := text[i]
		if c == '\\' && i+1 < len(text) {
			i++
			switch c = text[i]; c {
			case 'n':
				c = '\n'
			case 't':
				c = '\t'
			case 'r':
				c = '\r'
			case 'a', 'b':
				c -= 'a' - 7
			case 'f':
				c = '\f'
			case 'v':
				c = '\v'
			case '0', '1', '2', '3', '4', '5', '6', '7':
				end := i
				for end < len(text) && end < i+3 && text[end] >= '0' && text[end] <= '7' {
					end++
				}
				n, err := strconv.ParseUint(text[i:end], 8, 8)
				if err != nil {
					return nil, fmt.Errorf("set %q: %w", text, err)
				}
				c, i = byte(n), end-1
			}
		}
		if err := add(c); err != nil {
			return nil, err
		}
	}
	return s, nil
}
