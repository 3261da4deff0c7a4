package container

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// opened reports whether do opens what is at a path.
func opened(t *testing.T, path string, do func()) bool {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	do()
	n, err := unix.Read(fd, make([]byte, 4096))
	return err == nil && n > 0
}

// What a container makes of its files opens no device on the machine, although
// it can make nodes of all: some act when they are opened.
func TestDevicesNotOpened(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making devices takes root")
	}
	dir := t.TempDir()
	fill(t, dir, "etc/group", "fifo/")
	passwd := filepath.Join(dir, "etc/passwd")
	if err := unix.Mknod(passwd, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	root := openRoot(t, dir)
	if opened(t, passwd, func() {
		if who, err := lookUpUser(root, "0", nil); err != nil || who.Uid != 0 {
			t.Errorf("user %v, error %v", who, err)
		}
	}) {
		t.Error("looking a user up opened a device")
	}
	etc := openRoot(t, filepath.Join(dir, "etc"))
	w := &tarWriter{tar: tar.NewWriter(io.Discard)}
	if opened(t, passwd, func() {
		// It was a file when it was looked at.
		if err := w.regular(etc, "passwd", &tar.Header{Name: "passwd"}, &unix.Stat_t{}); err != nil {
			t.Error(err)
		}
	}) {
		t.Error("copying a file out opened the device in its place")
	}
	c := &Container{dir: t.TempDir()}
	fill(t, c.dir, "fs/")
	disk := filepath.Join(c.fsDir(), "zero")
	if err := unix.Mknod(disk, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	upper, err := c.upper()
	if err != nil {
		t.Fatal(err)
	}
	defer upper.Close()
	if fd, err := unix.Openat(int(upper.Fd()), "zero", unix.O_RDONLY, 0); !errors.Is(err, unix.EACCES) {
		_ = unix.Close(fd)
		t.Errorf("opening a device among the changes: %v", err)
	}
	// A FIFO where a directory was is not waited for.
	if err := unix.Mkfifo(filepath.Join(dir, "fifo/dir"), 0o666); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if f, err := openParent(r, "fifo/dir/file"); err == nil {
		_ = f.Close()
		t.Error("a FIFO was opened as a directory")
	}
}

// A set-id program of one owner is not one of another's.
func TestSetIDOfOthers(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, owner := range map[string][2]int{"same": {os.Getuid(), os.Getgid()}, "user": {4711, os.Getgid()}, "group": {os.Getuid(), 4711}} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o6755, Uid: owner[0], Gid: owner[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := ReadTar(&b, openRoot(t, dir), ReadOptions{UID: os.Getuid(), GID: os.Getgid()}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{
		"same": os.ModeSetuid | os.ModeSetgid | 0o755, "user": os.ModeSetgid | 0o755, "group": os.ModeSetuid | 0o755,
	} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", name, fi.Mode(), err, want)
		}
	}
}

// A device that a container made for everybody is not everybody's where it is
// copied to.
func TestDevicesOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making devices takes root")
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeChar, Name: "zero", Mode: 0o666, Devmajor: 1, Devminor: 5}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := ReadTar(&b, openRoot(t, dir), ReadOptions{}); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "zero")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

// A container can be stopped whatever its image says.
func TestStopSignalOfHostileImages(t *testing.T) {
	for _, name := range []string{"", "0", "65", "-1", "SIGFOO", "SIGRTMAX+1"} {
		if s := (&Container{Config: Config{StopSignal: name}}).stopSignal(); s != unix.SIGTERM {
			t.Errorf("%q is signal %d", name, s)
		}
	}
}
