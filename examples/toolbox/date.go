package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// date prints the time: -u, -d TIME, -r FILE, -I[date|seconds], -R, +FORMAT.
// TIME is @SECONDS or a date such as 2024-05-06 or 2024-05-06T07:08:09Z.
func date(args []string) error {
	iso := ""
	var rest []string
	for _, a := range args {
		switch a {
		case "-I", "-Idate", "--iso-8601", "--iso-8601=date":
			iso = "2006-01-02"
		case "-Iseconds", "--iso-8601=seconds":
			iso = "2006-01-02T15:04:05-07:00"
		case "-R", "--rfc-email":
			iso = time.RFC1123Z
		default:
			rest = append(rest, a)
		}
	}
	o, err := parse(rest, "ud:r: utc=u universal=u date=d reference=r")
	if err != nil {
		return err
	}
	t := time.Now()
	switch {
	case o.has('d'):
		if t, err = parseTime(o.value('d', "")); err != nil {
			return err
		}
	case o.has('r'):
		fi, err := os.Stat(o.value('r', ""))
		if err != nil {
			return err
		}
		t = fi.ModTime()
	}
	if o.has('u') {
		t = t.UTC()
	}
	text := ""
	switch {
	case len(o.args) > 0 && strings.HasPrefix(o.args[0], "+"):
		if text, err = strftime(o.args[0][1:], t); err != nil {
			return err
		}
	case len(o.args) > 0:
		return errors.New("does not set the time")
	case iso != "":
		text = t.Format(iso)
	default:
		text = t.Format("Mon Jan _2 15:04:05 MST 2006")
	}
	_, err = fmt.Println(text)
	return err
}

func parseTime(s string) (time.Time, error) {
	if n, ok := strings.CutPrefix(s, "@"); ok {
		whole, fraction, _ := strings.Cut(n, ".")
		sec, err := strconv.ParseInt(whole, 10, 64)
		if err != nil {
			return time.Time{}, fmt.Errorf("time %q: %w", s, cause(err))
		}
		ns, err := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
		if err != nil {
			return time.Time{}, fmt.Errorf("time %q: %w", s, cause(err))
		}
		return time.Unix(sec, ns), nil
	}
	if s == "now" {
		return time.Now(), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05 -0700", "2006-01-02 15:04:05", "2006-01-02T15:04:05",
		"2006-01-02 15:04", "2006-01-02T15:04", "2006-01-02", "20060102", time.RFC1123Z, time.RFC1123} {
		if t, err := time.ParseInLocation(layout, strings.TrimSuffix(s, " UTC"), location(s)); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("time %q: must be @SECONDS or like 2024-05-06 or 2024-05-06T07:08:09Z", s)
}

func location(s string) *time.Location {
	if strings.HasSuffix(s, " UTC") {
		return time.UTC
	}
	return time.Local
}

func strftime(format string, t time.Time) (string, error) {
	layouts := map[byte]string{
		'Y': "2006", 'm': "01", 'd': "02", 'e': "_2", 'H': "15", 'M': "04", 'S': "05", 'y': "06", 'b': "Jan", 'h': "Jan",
		'B': "January", 'a': "Mon", 'A': "Monday", 'Z': "MST", 'z': "-0700", 'I': "03", 'p': "PM", 'j': "002",
		'F': "2006-01-02", 'T': "15:04:05", 'R': "15:04", 'D': "01/02/06", 'c': "Mon Jan _2 15:04:05 2006",
	}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		layout, ok := layouts[format[i]]
		switch {
		case ok:
			b.WriteString(t.Format(layout))
		case format[i] == 's':
			b.WriteString(strconv.FormatInt(t.Unix(), 10))
		case format[i] == 'N':
			fmt.Fprintf(&b, "%09d", t.Nanosecond())
		case format[i] == 'u':
			fmt.Fprint(&b, (int(t.Weekday())+6)%7+1)
		case format[i] == 'n':
			b.WriteByte('\n')
		case format[i] == 't':
			b.WriteByte('\t')
		case format[i] == '%':
			b.WriteByte('%')
		default:
			return "", fmt.Errorf("format: unknown %q", format[i-1:i+1])
		}
	}
	return b.String(), nil
}
