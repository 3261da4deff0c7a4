package container

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func openRoot(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// fill makes files: a name with a slash at the end is a directory, "a -> b"
// a link.
func fill(t *testing.T, dir string, files ...string) {
	t.Helper()
	for _, f := range files {
		name, target, link := strings.Cut(f, " -> ")
		at := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		switch {
		case err != nil:
		case link:
			err = os.Symlink(target, at)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(at, 0o755)
		default:
			err = os.WriteFile(at, []byte("content of "+name), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestCopyRules goes over docker's table of what cp does.
func TestCopyRules(t *testing.T) {
	for _, tt := range []struct{ name, from, to, want, fails string }{
		{name: "file to nothing", from: "f", to: "new", want: "new"},
		{name: "file to nothing with slash", from: "f", to: "new/", fails: "no such directory"},
		{name: "file to file", from: "f", to: "old", want: "old"},
		{name: "file to directory", from: "f", to: "dir", want: "dir/f"},
		{name: "file to missing parent", from: "f", to: "no/such", fails: "could not find the file"},
		{name: "directory to nothing", from: "d", to: "new", want: "new/x"},
		{name: "directory to nothing with slash", from: "d", to: "new/", want: "new/x"},
		{name: "directory to file", from: "d", to: "old", fails: "cannot copy a directory to a file"},
		{name: "directory to directory", from: "d", to: "dir", want: "dir/d/x"},
		{name: "content to directory", from: "d/.", to: "dir", want: "dir/x"},
		{name: "content to nothing", from: "d/.", to: "new", want: "new/x"},
		{name: "file as directory", from: "f/", to: "new", fails: "not a directory"},
		{name: "link as it is", from: "l", to: "dir", want: "dir/l"},
		{name: "nothing", from: "none", to: "new", fails: "could not find the file"},
		{name: "out of the root", from: "../../../f", to: "../../dir", want: "dir/f"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src, dst := t.TempDir(), t.TempDir()
			fill(t, src, "f", "d/x", "l -> f")
			fill(t, dst, "old", "dir/")
			err := func() error {
				s, err := OpenSource(openRoot(t, src), tt.from, false)
				if err != nil {
					return err
				}
				defer s.Close()
				return s.CopyTo(openRoot(t, dst), tt.to, ReadOptions{UID: os.Getuid(), GID: os.Getgid()})
			}()
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) {
					t.Fatalf("got %v, want %q", err, tt.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(filepath.Join(dst, tt.want)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCopyHostileLinks has roots full of links that lead out of them.
func TestCopyHostileLinks(t *testing.T) {
	top := t.TempDir()
	outside := filepath.Join(top, "outside")
	root := filepath.Join(top, "root")
	fill(t, outside, "secret")
	fill(t, root, "up -> ../outside", "abs -> "+outside, "deep/up -> ../../../../../../../.."+outside, "file -> ../outside/secret", "dir/")
	r := openRoot(t, root)
	dst := t.TempDir()
	for _, from := range []string{"up/secret", "abs/secret", "deep/up/secret", "file/.", "up/."} {
		if s, err := OpenSource(r, from, true); err == nil {
			_ = s.Close()
			t.Errorf("%s was opened", from)
		}
	}
	if s, err := OpenSource(r, "file", true); err == nil {
		_ = s.Close()
		t.Error("a link out of the root was followed")
	}
	fill(t, dst, "x")
	for _, to := range []string{"up/x", "abs/x", "deep/up/x", "up", "abs"} {
		s, err := OpenSource(openRoot(t, dst), "x", false)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.CopyTo(r, to, ReadOptions{UID: os.Getuid(), GID: os.Getgid()}) // it may fail, or write inside
		_ = s.Close()
	}
	files, err := os.ReadDir(outside)
	if err != nil || len(files) != 1 {
		t.Errorf("outside has %v, %v", files, err)
	}
	if data, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(data) != "content of secret" {
		t.Errorf("the secret is %q, %v", data, err)
	}
}

// TestReadHostileTar has archives that try to write outside.
func TestReadHostileTar(t *testing.T) {
	reg := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: 1}
	}
	for _, tt := range []struct {
		name    string
		entries []tar.Header
	}{
		{"dots", []tar.Header{reg("../escaped"), reg("a/../../escaped"), reg("/../escaped")}},
		{"absolute", []tar.Header{reg("/escaped")}},
		{"through a link", []tar.Header{{Typeflag: tar.TypeSymlink, Name: "l", Linkname: ".."}, reg("l/escaped")}},
		{"through an absolute link", []tar.Header{{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "OUTSIDE"}, reg("l/escaped")}},
		{"over a link", []tar.Header{{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "../escaped"}, reg("l")}},
		{"hard link to outside", []tar.Header{{Typeflag: tar.TypeLink, Name: "h", Linkname: "../outside"}, reg("h")}},
		{"hard link through a link", []tar.Header{
			{Typeflag: tar.TypeSymlink, Name: "l", Linkname: ".."}, {Typeflag: tar.TypeLink, Name: "h", Linkname: "l/outside"},
		}},
		{"directory through a link", []tar.Header{
			{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "../outdir"}, {Typeflag: tar.TypeDir, Name: "l/new", Mode: 0o777},
		}},
		{"mode through a link", []tar.Header{
			{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "../outdir"}, {Typeflag: tar.TypeDir, Name: "l", Mode: 0o777},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			top := t.TempDir()
			fill(t, top, "outside", "outdir/", "root/")
			if err := os.Chmod(filepath.Join(top, "outdir"), 0o700); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range tt.entries {
				h.Linkname = strings.ReplaceAll(h.Linkname, "OUTSIDE", top)
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
				if h.Size > 0 {
					_, _ = w.Write([]byte("x"))
				}
			}
			_ = w.Close()
			dir, err := os.Open(filepath.Join(top, "root"))
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			err = ReadTar(&b, dir, ReadOptions{UID: os.Getuid(), GID: os.Getgid()})
			t.Logf("%v", err) // refused or kept inside
			files, _ := os.ReadDir(top)
			if len(files) != 3 {
				t.Errorf("beside the root: %v", files)
			}
			if data, _ := os.ReadFile(filepath.Join(top, "outside")); string(data) != "content of outside" {
				t.Errorf("the file outside is %q", data)
			}
			if below, _ := os.ReadDir(filepath.Join(top, "outdir")); len(below) != 0 {
				t.Errorf("the directory outside has %v", below)
			}
			if fi, _ := os.Stat(filepath.Join(top, "outdir")); fi.Mode().Perm() != 0o700 {
				t.Errorf("the directory outside has mode %v", fi.Mode())
			}
		})
	}
}

// TestTarRoundTrip writes a directory as a tar and reads it back.
func TestTarRoundTrip(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	fill(t, src, "a", "d/e/f", "l -> a", "empty/")
	if err := os.Link(filepath.Join(src, "a"), filepath.Join(src, "hard")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(src, "fifo"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(src, "d/e/f"), 0o4751); err != nil && os.Geteuid() == 0 {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WriteTar(&b, openRoot(t, src), TarOptions{}); err != nil {
		t.Fatal(err)
	}
	first := bytes.Clone(b.Bytes())
	if err := ReadTar(&b, openRoot(t, dst), ReadOptions{UID: os.Getuid(), GID: os.Getgid()}); err != nil {
		t.Fatal(err)
	}
	if err := WriteTar(&b, openRoot(t, dst), TarOptions{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, b.Bytes()) {
		t.Error("the second archive differs from the first")
	}
	x, err := os.Stat(filepath.Join(dst, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if y, err := os.Stat(filepath.Join(dst, "hard")); err != nil || !os.SameFile(x, y) {
		t.Errorf("the hard link is another file: %v", err)
	}
}

func TestMakeDir(t *testing.T) {
	top := t.TempDir()
	fill(t, top, "root/real/", "root/in -> /real", "root/out -> ../../outside", "outside/")
	r := openRoot(t, filepath.Join(top, "root"))
	for _, p := range []string{"/a/b/c", "/in/x/y", "/a/b"} {
		if err := makeDir(r, p); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(top, "root/real/x/y")); err != nil {
		t.Error(err)
	}
	_ = makeDir(r, "/out/x") // below the link there is nothing inside
	if left, _ := os.ReadDir(filepath.Join(top, "outside")); len(left) != 0 {
		t.Errorf("outside: %v", left)
	}
}

// TestReadTarRaced has somebody who puts links in the place of what an archive
// makes: what they lead to stays as it is.
func TestReadTarRaced(t *testing.T) {
	top := t.TempDir()
	fill(t, top, "root/", "root/dir/", "root/secret")
	secret := filepath.Join(top, "root/secret")
	if err := os.Chmod(secret, 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(secret)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		victim := filepath.Join(top, "root/dir/new")
		for {
			select {
			case <-stop:
				return
			default:
			}
			if os.Remove(victim) == nil {
				_ = os.Symlink("../secret", victim)
			}
		}
	})
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for range 300 {
		for _, h := range []tar.Header{
			{Typeflag: tar.TypeReg, Name: "dir/new", Mode: 0o4777, Uid: 7, Gid: 8}, {Typeflag: tar.TypeFifo, Name: "dir/new", Mode: 0o4777, Uid: 7, Gid: 8},
		} {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = w.Close()
	dir, err := os.Open(filepath.Join(top, "root"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for range 20 { // an archive ends where the other comes first
		_ = ReadTar(bytes.NewReader(b.Bytes()), dir, ReadOptions{Owners: true})
	}
	close(stop)
	done.Wait()
	after, err := os.Stat(secret)
	if err != nil || after.Mode() != before.Mode() || !os.SameFile(before, after) {
		t.Errorf("the file is %v, was %v; %v", after.Mode(), before.Mode(), err)
	}
	if st := after.Sys().(*syscall.Stat_t); st.Uid == 7 {
		t.Error("the file has another owner")
	}
}
