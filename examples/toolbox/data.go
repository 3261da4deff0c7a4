package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	b64 "encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// sha256sum prints or checks (-c) the digests of files.
func sha256sum(args []string) error {
	o, err := parse(args, "cbts check=c binary=b text=t status=s quiet=q")
	if err != nil {
		return err
	}
	sum := func(r io.Reader) (string, error) {
		h := sha256.New()
		_, err := io.Copy(h, r)
		return hex.EncodeToString(h.Sum(nil)), err
	}
	if !o.has('c') {
		return eachInput("sha256sum", o.args, func(name string, r io.Reader) error {
			s, err := sum(r)
			if err == nil {
				_, err = fmt.Printf("%s  %s\n", s, name)
			}
			return err
		})
	}
	all, err := readLines("sha256sum", o.args, '\n')
	if err != nil {
		return err
	}
	bad := 0
	for _, l := range all {
		want, name, ok := strings.Cut(l, " ")
		if !ok || len(want) != 64 {
			return fmt.Errorf("line %q: must be a digest and a name", l)
		}
		name = strings.TrimLeft(name, " *")
		verdict := "FAILED"
		f, err := input(name)
		if err == nil {
			got, serr := sum(f)
			f.Close()
			if err = serr; err == nil && got == want {
				verdict = "OK"
			}
		}
		if err != nil {
			complain("sha256sum", err)
		}
		if verdict != "OK" {
			bad++
		}
		if !o.has('s') {
			fmt.Printf("%s: %s\n", name, verdict)
		}
	}
	if bad > 0 {
		complain("sha256sum", fmt.Errorf("%d of %d files do not match", bad, len(all)))
		return exit(1)
	}
	return nil
}

// base64 encodes, or with -d decodes: -w COLUMNS.
func base64(args []string) error {
	o, err := parse(args, "dw: decode=d wrap=w")
	if err != nil {
		return err
	}
	columns, err := strconv.Atoi(o.value('w', "76"))
	if err != nil || columns < 0 {
		return fmt.Errorf("-w %s: must be a number", o.value('w', ""))
	}
	return eachInput("base64", o.args, func(_ string, r io.Reader) error {
		if o.has('d') { // the decoder skips newlines
			_, err := io.Copy(os.Stdout, b64.NewDecoder(b64.StdEncoding, r))
			return err
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		text := b64.StdEncoding.EncodeToString(data)
		for columns > 0 && len(text) > columns {
			if _, err := fmt.Println(text[:columns]); err != nil {
				return err
			}
			text = text[columns:]
		}
		end := "\n"
		if columns == 0 || text == "" {
			end = ""
		}
		_, err = fmt.Print(text, end)
		return err
	})
}

// cmp compares two files: -s.
func cmp(args []string) error {
	o, err := parse(args, "s quiet=s silent=s")
	if err != nil {
		return err
	}
	if len(o.args) != 2 {
		return errors.New("need two files")
	}
	var in [2]*bufio.Reader
	for i, n := range o.args {
		f, err := input(n)
		if err != nil {
			complain("cmp", err)
			return exit(2)
		}
		defer f.Close()
		in[i] = bufio.NewReader(f)
	}
	for at, line := 1, 1; ; at++ {
		a, err1 := in[0].ReadByte()
		b, err2 := in[1].ReadByte()
		for i, err := range []error{err1, err2} {
			if err != nil && err != io.EOF {
				complain("cmp", fmt.Errorf("%s: %w", o.args[i], err))
				return exit(2)
			}
		}
		switch {
		case err1 == io.EOF && err2 == io.EOF:
			return nil
		case err1 == io.EOF || err2 == io.EOF:
			if !o.has('s') {
				shorter := o.args[0]
				if err2 == io.EOF {
					shorter = o.args[1]
				}
				fmt.Fprintf(os.Stderr, "cmp: EOF on %s after byte %d\n", shorter, at-1)
			}
			return exit(1)
		case a != b:
			if !o.has('s') {
				fmt.Printf("%s %s differ: char %d, line %d\n", o.args[0], o.args[1], at, line)
			}
			return exit(1)
		case a == '\n':
			line++
		}
	}
}

// dd copies blocks: if= of= bs= count= skip= seek= conv=notrunc status=none.
func dd(args []string) error {
	v := map[string]string{"bs": "512"}
	for _, a := range args {
		k, val, ok := strings.Cut(a, "=")
		if !ok || !strings.Contains(" if of bs count skip seek conv status ", " "+k+" ") {
			return fmt.Errorf("unknown operand %q", a)
		}
		v[k] = val
	}
	n := map[string]int64{"count": -1}
	for _, k := range []string{"bs", "count", "skip", "seek"} {
		if v[k] == "" {
			continue
		}
		var err error
		if n[k], err = size(v[k]); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
	if n["bs"] == 0 {
		return errors.New("bs: must not be 0")
	}
	in, out := os.Stdin, os.Stdout
	var err error
	if v["if"] != "" {
		if in, err = os.Open(v["if"]); err != nil {
			return err
		}
		defer in.Close()
	}
	if v["of"] != "" {
		flags := os.O_WRONLY | os.O_CREATE
		if v["conv"] != "notrunc" && n["seek"] == 0 {
			flags |= os.O_TRUNC
		}
		if out, err = os.OpenFile(v["of"], flags, 0o666); err != nil {
			return err
		}
	}
	if n["seek"] > 0 {
		if v["conv"] != "notrunc" {
			if err := out.Truncate(n["seek"] * n["bs"]); err != nil {
				return err
			}
		}
		if _, err := out.Seek(n["seek"]*n["bs"], io.SeekStart); err != nil {
			return err
		}
	}
	if n["skip"] > 0 {
		if _, err := io.CopyN(io.Discard, in, n["skip"]*n["bs"]); err != nil && err != io.EOF {
			return err
		}
	}
	block := make([]byte, n["bs"])
	var full, partial, total int64
	for n["count"] < 0 || full+partial < n["count"] {
		got, rerr := io.ReadFull(in, block)
		if got > 0 {
			if _, err := out.Write(block[:got]); err != nil {
				return err
			}
			total += int64(got)
			if got == len(block) {
				full++
			} else {
				partial++
			}
		}
		if rerr == io.EOF || rerr == io.ErrUnexpectedEOF {
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	if v["status"] != "none" {
		fmt.Fprintf(os.Stderr, "%d+%d records in\n%d+%d records out\n%d bytes copied\n", full, partial, full, partial, total)
	}
	return out.Close()
}

// od dumps bytes: -A d|o|x|n, -t x1|o1|u1|c, -N COUNT, -v. Without -t it is
// octal words of two bytes.
func od(args []string) error {
	o, err := parse(args, "A:t:N:vcx address-radix=A format=t read-bytes=N")
	if err != nil {
		return err
	}
	format := o.value('t', "o2")
	if o.has('c') {
		format = "c"
	}
	if o.has('x') {
		format = "x2"
	}
	address, ok := map[string]string{"d": "%07d", "o": "%07o", "x": "%06x", "n": ""}[o.value('A', "o")]
	if !ok {
		return fmt.Errorf("-A %s: must be d, o, x or n", o.value('A', ""))
	}
	var data []byte
	err = eachInput("od", o.args, func(_ string, r io.Reader) error {
		d, err := io.ReadAll(r)
		data = append(data, d...)
		return err
	})
	if err != nil {
		return err
	}
	if o.has('N') {
		n, err := size(o.value('N', ""))
		if err != nil {
			return err
		}
		data = data[:min(int64(len(data)), n)]
	}
	out := bufio.NewWriter(os.Stdout)
	var previous []byte
	starred := false
	for at := 0; at < len(data); at += 16 {
		row := data[at:min(at+16, len(data))]
		if bytes.Equal(row, previous) && len(row) == 16 && !o.has('v') {
			if !starred {
				fmt.Fprintln(out, "*")
			}
			starred = true
			continue
		}
		previous, starred = row, false
		if address != "" {
			fmt.Fprintf(out, address, at)
		}
		text, err := odRow(row, format)
		if err != nil {
			return err
		}
		fmt.Fprintln(out, text)
	}
	if address != "" {
		fmt.Fprintf(out, address+"\n", len(data))
	}
	return out.Flush()
}

func odRow(row []byte, format string) (string, error) {
	var b strings.Builder
	switch format {
	case "o2", "x2":
		for i := 0; i < len(row); i += 2 {
			w := int(row[i])
			if i+1 < len(row) {
				w |= int(row[i+1]) << 8
			}
			if format == "o2" {
				fmt.Fprintf(&b, " %06o", w)
			} else {
				fmt.Fprintf(&b, " %04x", w)
			}
		}
	case "x1", "o1", "u1":
		verb := map[string]string{"x1": " %02x", "o1": " %03o", "u1": " %3d"}[format]
		for _, c := range row {
			fmt.Fprintf(&b, verb, c)
		}
	case "c":
		escapes := map[byte]string{0: `\0`, 7: `\a`, 8: `\b`, 9: `\t`, 10: `\n`, 11: `\v`, 12: `\f`, 13: `\r`}
		for _, c := range row {
			s, ok := escapes[c]
			switch {
			case ok:
			case c >= 32 && c < 127:
				s = string(rune(c))
			default:
				s = fmt.Sprintf("%03o", c)
			}
			fmt.Fprintf(&b, " %3s", s)
		}
	default:
		return "", fmt.Errorf("-t %s: must be x1, o1, u1, c, x2 or o2", format)
	}
	return b.String(), nil
}

// seq prints numbers: [-s SEPARATOR] [-w] [FIRST [STEP]] LAST.
func seq(args []string) error {
	separator, pad := "\n", false
	for len(args) > 0 {
		switch {
		case args[0] == "-s" && len(args) > 1:
			separator, args = args[1], args[2:]
			continue
		case len(args[0]) > 2 && args[0][:2] == "-s":
			separator, args = args[0][2:], args[1:]
			continue
		case args[0] == "-w":
			pad, args = true, args[1:]
			continue
		}
		break
	}
	first, step, last := "1", "1", ""
	switch len(args) {
	case 1:
		last = args[0]
	case 2:
		first, last = args[0], args[1]
	case 3:
		first, step, last = args[0], args[1], args[2]
	default:
		return errors.New("need one to three numbers")
	}
	places := 0
	var n [3]float64
	for i, s := range []string{first, step, last} {
		var err error
		if n[i], err = strconv.ParseFloat(s, 64); err != nil {
			return fmt.Errorf("number %q: %w", s, cause(err))
		}
		if _, after, ok := strings.Cut(s, "."); ok && i < 2 {
			places = max(places, len(after))
		}
	}
	if n[1] == 0 {
		return errors.New("the step must not be 0")
	}
	width := 0
	if pad {
		width = max(len(strconv.FormatFloat(n[0], 'f', places, 64)), len(strconv.FormatFloat(n[2], 'f', places, 64)))
	}
	out := bufio.NewWriter(os.Stdout)
	for i := 0; ; i++ {
		x := n[0] + float64(i)*n[1]
		if n[1] > 0 && x > n[2]+1e-9 || n[1] < 0 && x < n[2]-1e-9 {
			if i > 0 {
				out.WriteByte('\n')
			}
			return out.Flush()
		}
		if i > 0 {
			out.WriteString(separator)
		}
		if _, err := fmt.Fprintf(out, "%0*.*f", width, places, x); err != nil {
			return err
		}
	}
}

// yes prints a line until nobody reads.
func yes(args []string) error {
	text := "y"
	if len(args) > 0 {
		text = strings.Join(args, " ")
	}
	block := []byte(strings.Repeat(text+"\n", 1+4096/(len(text)+1)))
	for {
		if _, err := os.Stdout.Write(block); err != nil {
			return err
		}
	}
}
