package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"kiln.build/runner/sandbox/launch"
)

// line is a format as binfmt_misc's register file takes it. The kernel opens
// the interpreter at once (F), so that the sandbox's root does not need it,
// and hands it the program opened (O) and the name it was called by (P). Set-id
// programs get no rights by it (C): QEMU heeds the caller's environment, by
// which the caller could make them do anything.
func (f Format) line() (string, error) {
	const separator = launch.FormatSeparator
	if f.Name == "" || len(f.Magic) == 0 || len(f.Mask) != len(f.Magic) || f.Interpreter == "" ||
		strings.Contains(f.Name+f.Interpreter, separator) {
		return "", fmt.Errorf("format %q is not complete", f.Name)
	}
	var magic, mask strings.Builder
	for i := range f.Magic {
		fmt.Fprintf(&magic, `\x%02x`, f.Magic[i])
		fmt.Fprintf(&mask, `\x%02x`, f.Mask[i])
	}
	return strings.Join([]string{"", f.Name, "M", "", magic.String(), mask.String(), f.Interpreter, "POF"}, separator), nil
}

// sameIDs maps all ids that there are here to themselves.
func sameIDs(file string) ([]IDMap, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the id map: %w", err)
	}
	var list []IDMap
	for line := range strings.Lines(string(b)) {
		var m IDMap
		var outside int
		if _, err := fmt.Sscan(line, &m.Inside, &outside, &m.Size); err != nil {
			return nil, fmt.Errorf("read the id map: %w", err)
		}
		m.Outside = m.Inside
		list = append(list, m)
	}
	if len(list) == 0 {
		return nil, errors.New("read the id map: it is empty")
	}
	return list, nil
}

// formats adds the formats of s, and the user namespace that they need.
func (p *plan) formats(s *Spec) error {
	for _, f := range s.Formats {
		line, err := f.line()
		if err != nil {
			return err
		}
		p.Formats = append(p.Formats, line)
	}
	if len(s.Formats) == 0 || s.UIDMap != nil {
		return nil
	}
	var err error
	if s.UIDMap, err = sameIDs("/proc/self/uid_map"); err != nil {
		return err
	}
	s.GIDMap, err = sameIDs("/proc/self/gid_map")
	return err
}
