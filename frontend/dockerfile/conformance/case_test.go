package conformance

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"
)

// old is the time of context files and archives; recent tells others from the
// build's own.
var (
	old    = time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	recent = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
)

// testCase is one file of testdata.
type testCase struct {
	path    string
	archive *txtar.Archive

	flags    []string
	needs    []string // programs of setup that not every machine has
	message  string
	position bool // Kiln's refusal names a line
	differs  string
}

func readCase(path string) (*testCase, error) {
	a, err := txtar.ParseFile(path)
	if err != nil {
		return nil, err
	}
	c := &testCase{path: path, archive: a, position: true}
	for line := range strings.Lines(string(a.Comment)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "flags":
			c.flags = append(c.flags, strings.Fields(value)...)
		case "flag":
			c.flags = append(c.flags, value)
		case "needs":
			c.needs = strings.Fields(value)
		case "message":
			c.message = value
		case "position":
			c.position = value != "none"
		case "differs":
			c.differs = value
		}
	}
	return c, nil
}

// section is a recorded result; ok says whether there is one.
func (c *testCase) section(name string) (text string, ok bool) {
	for _, f := range c.archive.Files {
		if f.Name == name {
			return string(f.Data), true
		}
	}
	return "", false
}

// record puts a result into the case's file.
func (c *testCase) record(name, text string) error {
	for i, f := range c.archive.Files {
		if f.Name == name {
			c.archive.Files[i].Data = []byte(text)
			return c.write()
		}
	}
	c.archive.Files = append(c.archive.Files, txtar.File{Name: name, Data: []byte(text)})
	return c.write()
}

func (c *testCase) write() error {
	return os.WriteFile(c.path, txtar.Format(c.archive), 0o644)
}

// unpack makes the context.
func (c *testCase) unpack(dir string) error {
	var setup []byte
	for _, f := range c.archive.Files {
		switch name, isTar := strings.CutPrefix(f.Name, "tar "); {
		case f.Name == "want" || f.Name == "kiln":
			continue
		case f.Name == "setup":
			setup = f.Data
			continue
		case isTar:
			data, err := archive(name, string(f.Data))
			if err != nil {
				return fmt.Errorf("section %q: %w", f.Name, err)
			}
			f = txtar.File{Name: name, Data: data}
			fallthrough
		default:
			at := filepath.Join(dir, f.Name)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(at, f.Data, 0o644); err != nil {
				return err
			}
		}
	}
	if setup != nil {
		sh := exec.Command("/bin/sh", "-eu")
		sh.Dir, sh.Stdin = dir, bytes.NewReader(append([]byte("umask 022\n"), setup...))
		if out, err := sh.CombinedOutput(); err != nil {
			return fmt.Errorf("setup: %w\n%s", err, out)
		}
	}
	// Times are set last: whatever was made just now becomes old.
	return filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil || fi.ModTime().Before(recent) {
			return err
		}
		ts := unix.NsecToTimespec(old.UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// archive makes a tar, compressed if its name ends in gz, from lines of
//
//	dir     MODE UID:GID NAME
//	file    MODE UID:GID NAME [TEXT]
//	symlink MODE UID:GID NAME TARGET
//	link    MODE UID:GID NAME TARGET
//	fifo    MODE UID:GID NAME
//	char    MODE UID:GID NAME MAJOR MINOR
//	xattr   KEY HEX                       of the entry of the next line
//	time    UNIX                          of the entry of the next line
func archive(name, text string) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	pax, at := map[string]string{}, old
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
			continue
		case words[0] == "xattr" && len(words) == 3:
			value, err := hex.DecodeString(words[2])
			if err != nil {
				return nil, err
			}
			pax["SCHILY.xattr."+words[1]] = string(value)
			continue
		case words[0] == "time" && len(words) == 2:
			sec, err := strconv.ParseInt(words[1], 10, 64)
			if err != nil {
				return nil, err
			}
			at = time.Unix(sec, 0)
			continue
		case len(words) < 4:
			return nil, fmt.Errorf("line %q: too few words", line)
		}
		h := &tar.Header{Name: words[3], ModTime: at, Format: tar.FormatPAX, PAXRecords: pax}
		mode, err := strconv.ParseInt(words[1], 8, 64)
		if err != nil {
			return nil, err
		}
		h.Mode = mode
		if _, err := fmt.Sscanf(words[2], "%d:%d", &h.Uid, &h.Gid); err != nil {
			return nil, fmt.Errorf("line %q: owner: %w", line, err)
		}
		rest := words[4:]
		var body string
		switch words[0] {
		case "dir":
			h.Typeflag = tar.TypeDir
		case "file":
			h.Typeflag = tar.TypeReg
			if body = strings.Join(rest, " "); body != "" {
				body += "\n"
			}
			h.Size = int64(len(body))
		case "symlink":
			h.Typeflag, h.Linkname = tar.TypeSymlink, rest[0]
		case "link":
			h.Typeflag, h.Linkname = tar.TypeLink, rest[0]
		case "fifo":
			h.Typeflag = tar.TypeFifo
		case "char":
			h.Typeflag = tar.TypeChar
			if _, err := fmt.Sscanf(strings.Join(rest, " "), "%d %d", &h.Devmajor, &h.Devminor); err != nil {
				return nil, fmt.Errorf("line %q: device: %w", line, err)
			}
		default:
			return nil, fmt.Errorf("line %q: unknown type", line)
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write([]byte(body)); err != nil {
			return nil, err
		}
		pax, at = map[string]string{}, old
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if !strings.HasSuffix(name, "gz") {
		return buf.Bytes(), nil
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(buf.Bytes()); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return packed.Bytes(), nil
}
