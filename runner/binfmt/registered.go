package binfmt

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
)

// handler is a format registered with the kernel, as its file shows it.
type handler struct {
	enabled     bool
	fixed       bool // flag F: the interpreter is open already, so it runs in any root
	offset      string
	magic, mask []byte
}

// registered reports whether an emulator for programs of m is registered with
// the kernel, and whether it runs in any root.
func (h Host) registered(m machine) (there, fixed bool) {
	entries, err := os.ReadDir(h.Handlers)
	if err != nil {
		return false, false // not mounted
	}
	for _, e := range entries {
		if e.Name() == "register" || e.Name() == "status" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(h.Handlers, e.Name()))
		if err != nil {
			continue // gone since
		}
		if f := parseHandler(string(text)); f.matches(m.header()) {
			there, fixed = true, fixed || f.fixed
		}
	}
	if status, err := os.ReadFile(filepath.Join(h.Handlers, "status")); err == nil && !strings.HasPrefix(string(status), "enabled") {
		return false, false
	}
	return there, fixed
}

// parseHandler reads the kernel's description of a format:
//
//	enabled
//	interpreter /usr/bin/qemu-aarch64-static
//	flags: POCF
//	offset 0
//	magic 7f454c46…
//	mask ffffff…
func parseHandler(text string) handler {
	var f handler
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "enabled":
			f.enabled = true
		case "flags:":
			f.fixed = strings.Contains(value, "F")
		case "offset":
			f.offset = value
		case "magic":
			f.magic, _ = hex.DecodeString(value) // the kernel's own: well formed
		case "mask":
			f.mask, _ = hex.DecodeString(value)
		}
	}
	return f
}

// matches reports whether a program that begins like this is of the format.
func (f handler) matches(header []byte) bool {
	if !f.enabled || f.offset != "0" || len(f.magic) == 0 || len(f.magic) > len(header) {
		return false
	}
	if len(f.mask) < len(f.magic) {
		return bytes.Equal(header[:len(f.magic)], f.magic)
	}
	for i, b := range f.magic {
		if (b^header[i])&f.mask[i] != 0 {
			return false
		}
	}
	return true
}
