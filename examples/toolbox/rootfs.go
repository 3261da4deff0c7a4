package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// rootFiles are the files of the root file system that are not commands.
var rootFiles = []struct {
	name    string
	mode    int64
	content string // a directory has none and ends its name in a slash
}{
	{"bin/", 0o755, ""},
	{"dev/", 0o755, ""},
	{"etc/", 0o755, ""},
	{"etc/group", 0o644, "root:x:0:\ndaemon:x:1:\nusers:x:100:\nnogroup:x:65534:\n"},
	{"etc/nsswitch.conf", 0o644, "hosts: files dns\n"},
	{"etc/os-release", 0o644, "ID=toolbox\nNAME=\"Tool box\"\nPRETTY_NAME=\"Tool box\"\n"},
	{"etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\n" +
		"user:x:1000:100:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
	{"home/", 0o755, ""},
	{"proc/", 0o755, ""},
	{"root/", 0o700, ""},
	{"run/", 0o755, ""},
	{"sys/", 0o755, ""},
	{"tmp/", 0o1777, ""},
	{"usr/", 0o755, ""},
	{"usr/bin/", 0o755, ""},
	{"var/", 0o755, ""},
	{"var/tmp/", 0o1777, ""},
}

// tarRoot writes a root file system with this program, or with one built for
// another machine, as a tar archive. The same program gives the same bytes.
func tarRoot(args []string) error {
	binary := "/proc/self/exe"
	switch len(args) {
	case 0:
	case 1:
		binary = args[0]
	default:
		return errors.New("takes one binary")
	}
	f, err := os.Open(binary)
	if err != nil {
		return err
	}
	defer f.Close()
	if isTerminal(os.Stdout) {
		return errors.New("standard output is a terminal")
	}
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	if err := writeRoot(out, f); err != nil {
		return fmt.Errorf("write root file system: %w", err)
	}
	return out.Flush()
}

func writeRoot(w io.Writer, binary *os.File) error {
	fi, err := binary.Stat()
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	epoch := time.Unix(0, 0)
	for _, f := range rootFiles {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), ModTime: epoch, Typeflag: tar.TypeReg}
		if f.content == "" {
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.WriteString(tw, f.content); err != nil {
			return err
		}
	}
	if err := tw.WriteHeader(&tar.Header{Name: "bin/toolbox", Mode: 0o755, Size: fi.Size(), ModTime: epoch, Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	if _, err := io.Copy(tw, binary); err != nil {
		return err
	}
	link := func(name, to string) error {
		return tw.WriteHeader(&tar.Header{Name: name, Linkname: to, Mode: 0o777, ModTime: epoch, Typeflag: tar.TypeSymlink})
	}
	for _, n := range names() {
		if err := link("bin/"+n, "toolbox"); err != nil {
			return err
		}
	}
	if err := link("usr/bin/env", "../../bin/toolbox"); err != nil { // for #!/usr/bin/env
		return err
	}
	return tw.Close()
}
