package main

import (
	"bufio"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strconv"
	"strings"
)

// sortCmd sorts lines by bytes: -n, -r, -u, -f, -z, -s, -c, -t SEPARATOR,
// -k FIELD[.CHAR][,FIELD][nrf] (repeatable), -o FILE, -V is not there.
func sortCmd(args []string) error {
	o, err := parse(args, "nrufzsbct:k:o: numeric-sort=n reverse=r unique=u ignore-case=f zero-terminated=z stable=s check=c field-separator=t key=k output=o")
	if err != nil {
		return err
	}
	global := key{from: 1, numeric: o.has('n'), reverse: o.has('r'), fold: o.has('f'), blanks: o.has('b')}
	var keys []key
	for _, text := range o.values['k'] {
		k, err := parseKey(text, global)
		if err != nil {
			return err
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		keys = []key{global}
	}
	end := byte('\n')
	if o.has('z') {
		end = 0
	}
	all, err := readLines("sort", o.args, end)
	if err != nil {
		return err
	}
	separator := o.value('t', "")
	byKeys := func(a, b string) int {
		for _, k := range keys {
			if c := k.compare(a, b, separator); c != 0 {
				return c
			}
		}
		return 0
	}
	compare := func(a, b string) int {
		c := byKeys(a, b)
		if c == 0 && !o.has('s') && !o.has('u') { // equal keys: by the whole line
			if c = strings.Compare(a, b); global.reverse {
				c = -c
			}
		}
		return c
	}
	if o.has('c') {
		for i := 1; i < len(all); i++ {
			if compare(all[i-1], all[i]) > 0 {
				return fmt.Errorf("disorder: %s", all[i])
			}
		}
		return nil
	}
	slices.SortStableFunc(all, compare)
	if o.has('u') {
		all = slices.CompactFunc(all, func(a, b string) bool { return byKeys(a, b) == 0 })
	}
	to := os.Stdout
	if o.has('o') {
		if to, err = os.Create(o.value('o', "")); err != nil {
			return err
		}
	}
	out := bufio.NewWriter(to)
	for _, l := range all {
		out.WriteString(l)
		out.WriteByte(end)
	}
	err = out.Flush()
	if o.has('o') {
		err = errors.Join(err, to.Close())
	}
	return err
}

// key says what of a line is compared, and how.
type key struct {
	from, to                       int // fields from 1; to 0 is the end of the line
	char                           int // first character in field from; 0 is the first
	numeric, reverse, fold, blanks bool
}

func parseKey(text string, global key) (key, error) {
	bad := fmt.Errorf("key %q: must be like 2, 2n, 2.3 or 2,2r", text)
	k := key{}
	number := func(s string) (int, string) {
		i := 0
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		n, _ := strconv.Atoi(s[:i])
		return n, s[i:]
	}
	start, stop, both := strings.Cut(text, ",")
	var rest string
	k.from, rest = number(start)
	if strings.HasPrefix(rest, ".") {
		k.char, rest = number(rest[1:])
	}
	flags := rest
	if both {
		k.to, rest = number(stop)
		flags += rest
		if k.to == 0 {
			return k, bad
		}
	}
	if k.from == 0 {
		return k, bad
	}
	for _, c := range flags {
		switch c {
		case 'n':
			k.numeric = true
		case 'r':
			k.reverse = true
		case 'f':
			k.fold = true
		case 'b':
			k.blanks = true
		default:
			return k, bad
		}
	}
	if flags == "" {
		k.numeric, k.reverse, k.fold, k.blanks = global.numeric, global.reverse, global.fold, global.blanks
	}
	return k, nil
}

func (k key) compare(a, b, separator string) int {
	x, y := k.of(a, separator), k.of(b, separator)
	if k.fold {
		x, y = strings.ToUpper(x), strings.ToUpper(y)
	}
	c := strings.Compare(x, y)
	if k.numeric {
		c = leadingNumber(x).Cmp(leadingNumber(y))
	}
	if k.reverse {
		c = -c
	}
	return c
}

// of returns the key's part of a line. Without a separator fields are
// divided by runs of blanks, which belong to the field that they precede.
func (k key) of(line, separator string) string {
	if k.from == 1 && k.to == 0 && k.char <= 1 && !k.blanks {
		return line
	}
	var fields []string
	if separator != "" {
		fields = strings.SplitAfter(line, separator)
	} else {
		start := 0
		for i := 1; i < len(line); i++ {
			if blank(line[i]) && !blank(line[i-1]) {
				fields = append(fields, line[start:i])
				start = i
			}
		}
		fields = append(fields, line[start:])
	}
	if k.from > len(fields) {
		return ""
	}
	to := len(fields)
	if k.to > 0 {
		to = max(k.from-1, min(to, k.to))
	}
	s := strings.Join(fields[k.from-1:to], "")
	if k.to > 0 && k.to < len(fields) {
		s = strings.TrimSuffix(s, separator)
	}
	if k.blanks {
		s = strings.TrimLeft(s, " \t")
	}
	if k.char > 1 {
		s = s[min(len(s), k.char-1):]
	}
	return s
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

// leadingNumber is the number that a text begins with, or 0.
func leadingNumber(s string) *big.Rat {
	s = strings.TrimLeft(s, " \t")
	end, dot := 0, false
	for i, c := range s {
		switch {
		case c >= '0' && c <= '9':
			end = i + 1
			continue
		case c == '-' && i == 0:
			continue
		case c == '.' && !dot:
			dot = true
			continue
		}
		break
	}
	r, ok := new(big.Rat).SetString(s[:end])
	if !ok {
		return new(big.Rat)
	}
	return r
}
