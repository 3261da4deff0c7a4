package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"kiln.build/cache/tree"

	"github.com/opencontainers/go-digest"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for owners, devices and trusted attributes")
	}
}

// member is a line of a test's archive: a name, what it is, and details.
type member struct {
	name string
	kind byte   // as in tar
	text string // content or target
	opt  func(*tar.Header)
}

var when = time.Unix(1e9, 123456789)

func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Typeflag: m.kind, Mode: 0o644, ModTime: when, Format: tar.FormatPAX}
		switch m.kind {
		case tar.TypeReg:
			h.Size = int64(len(m.text))
		case tar.TypeDir:
			h.Mode = 0o755
		default:
			h.Linkname = m.text
		}
		if m.opt != nil {
			m.opt(h)
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if m.kind == tar.TypeReg {
			if _, err := tw.Write([]byte(m.text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func dir(name string) member        { return member{name: name, kind: tar.TypeDir} }
func file(name, text string) member { return member{name: name, kind: tar.TypeReg, text: text} }
func symlink(name, target string) member {
	return member{name: name, kind: tar.TypeSymlink, text: target}
}
func link(name, target string) member { return member{name: name, kind: tar.TypeLink, text: target} }

// list writes a tree in short: a path each with what it is.
func list(t *tree.Tree) string {
	var lines []string
	for _, e := range t.Entries {
		s := e.Path
		switch e.Type {
		case tree.Dir:
			s += "/"
			if e.Opaque {
				s += " opaque"
			}
		case tree.File:
			if e.Hardlink != "" {
				s += " == " + e.Hardlink
			} else {
				s += fmt.Sprintf(" %d", e.Size)
			}
		case tree.Symlink:
			s += " -> " + e.Link
		default:
			s += " " + e.Type.String()
		}
		lines = append(lines, s)
	}
	return strings.Join(lines, ", ")
}

// cage is a directory with things around it that must not change.
func cage(t testing.TB) (inside string, check func()) {
	t.Helper()
	outer := t.TempDir()
	inside = filepath.Join(outer, "in")
	if err := os.Mkdir(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outer, "victim"), []byte("untouched"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(outer, "victims"), 0o750); err != nil {
		t.Fatal(err)
	}
	scan := func() *tree.Tree {
		got, err := tree.Scan(context.Background(), outer, tree.ScanOptions{
			Filter: func(p string, _ tree.Type) (bool, bool) { return p != "in", p != "in" },
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range got.Entries {
			if got.Entries[i].Path == "" {
				got.Entries[i].Mtime = 0
			}
		}
		return got
	}
	before := scan()
	return inside, func() {
		t.Helper()
		if after := scan(); !reflect.DeepEqual(before, after) {
			t.Errorf("what lies outside has changed:\n%+v\n%+v", before, after)
		}
	}
}

// agree checks that a tree is valid and just what is on disk.
func agree(t testing.TB, dir string, got *tree.Tree) {
	t.Helper()
	if err := got.Check(); err != nil {
		t.Error(err)
	}
	want, err := tree.Scan(t.Context(), dir, tree.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Entries) == 0 || got.Entries[0].Path != "" {
		want.Entries = want.Entries[1:]
	}
	for i := range min(len(want.Entries), len(got.Entries)) {
		w, g := want.Entries[i], got.Entries[i]
		if g.Type == tree.Whiteout {
			w.Mtime, w.Mode, w.UID, w.GID = 0, 0, 0, 0
		}
		if !reflect.DeepEqual(w, g) {
			t.Errorf("on disk\n%+v\nin the tree\n%+v", w, g)
		}
	}
	if len(want.Entries) != len(got.Entries) {
		t.Errorf("on disk: %s\nin the tree: %s", list(want), list(got))
	}
}

func TestUnpack(t *testing.T) {
	needRoot(t)
	opaque := file("a/.wh..wh..opq", "")
	tests := []struct {
		name    string
		members []member
		want    string // the tree, or
		err     string // a part of the error
		add     bool   // as ADD does, not as a layer
	}{
		{name: "plain", members: []member{dir("a/"), file("a/b", "hello"), symlink("a/l", "b"), link("c", "a/b")},
			want: "a/, a/b 5, a/l -> b, c == a/b"},
		{name: "order", members: []member{file("a-b", ""), file("a/z", ""), file("a.b", ""), file("a/b", "")},
			want: "a/, a/b 0, a/z 0, a-b 0, a.b 0"},
		{name: "devices", members: []member{
			{name: "null", kind: tar.TypeChar, opt: func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 }},
			{name: "loop", kind: tar.TypeBlock, opt: func(h *tar.Header) { h.Devmajor, h.Devminor = 7, 300 }},
			{name: "pipe", kind: tar.TypeFifo}},
			want: "loop block device, null character device, pipe fifo"},
		{name: "root entry", members: []member{{name: "./", kind: tar.TypeDir, opt: func(h *tar.Header) { h.Mode, h.Uid = 0o700, 5 }}},
			want: "/"},
		{name: "root entry of ADD", members: []member{dir("./"), file("./a", "")}, want: "a 0", add: true},

		// Names that would lead outside.
		{name: "parent", members: []member{file("../victim", "x"), file("a/../../../victim", "yy"), dir("../victims")},
			want: "victim 2, victims/"},
		{name: "absolute", members: []member{file("/victim", "x"), file("//etc/x", "")}, want: "etc/, etc/x 0, victim 1"},
		{name: "link to outside", members: []member{symlink("l", "../victim"), file("l", "x")}, want: "l 1"},
		{name: "directory link to outside", members: []member{symlink("l", "../victims"), file("l/x", "x")},
			want: "l -> ../victims, victims/, victims/x 1"},
		{name: "absolute link", members: []member{symlink("l", "/victims/../.."), file("l/x", "x")},
			want: "l -> /victims/../.., victims/, x 1"},
		{name: "link chain", members: []member{symlink("a", "b"), symlink("b", "../../c"), file("a/x", "x")},
			want: "a -> b, b -> ../../c, c/, c/x 1"},
		{name: "link in a link", members: []member{dir("d"), symlink("d/up", ".."), symlink("e", "d/up/d"), file("e/x", "")},
			want: "d/, d/up -> .., d/x 0, e -> d/up/d"},
		{name: "link loop", members: []member{symlink("a", "b"), symlink("b", "a"), file("a/x", "")}, err: "too many levels"},
		{name: "deep link loop", members: []member{symlink("a", "a/a/a/a"), file("a/x", "")}, err: "too many levels"},
		{name: "hard link to outside", members: []member{link("h", "../victim")}, err: "not in the archive"},
		{name: "hard link through a link", members: []member{symlink("l", "/"), link("h", "l/../../victim")}, err: "not in the archive"},
		{name: "hard link to a link", members: []member{symlink("l", "../victim"), link("h", "l"), file("h/../i", "")},
			want: "h -> ../victim, i 0, l -> ../victim"},
		{name: "write through a hard-linked link", members: []member{symlink("l", "../victim"), link("h", "l"), file("h", "x")},
			want: "h 1, l -> ../victim"},
		{name: "/proc", members: []member{symlink("l", "/proc/self/root/victims"), file("l/x", "")},
			want: "l -> /proc/self/root/victims, proc/, proc/self/, proc/self/root/, proc/self/root/victims/, proc/self/root/victims/x 0"},

		// One name twice.
		{name: "last wins", members: []member{file("a", "1"), file("a", "22"), file("a", "")}, want: "a 0"},
		{name: "file over link", members: []member{file("t", "1"), symlink("a", "t"), file("a", "22")}, want: "a 2, t 1"},
		{name: "file over directory", members: []member{file("a/b/c", "1"), file("a", "22")}, want: "a 2"},
		{name: "directory over file", members: []member{file("a", "1"), dir("a"), file("a/b", "")}, want: "a/, a/b 0"},
		{name: "directory over link", members: []member{dir("t"), symlink("a", "t"), dir("a"), file("a/b", "")},
			want: "a/, a/b 0, t/"},
		{name: "directory twice", members: []member{dir("a"), file("a/b", ""),
			{name: "a", kind: tar.TypeDir, opt: func(h *tar.Header) { h.Mode, h.Uid = 0o2700, 7 }}}, want: "a/, a/b 0"},
		{name: "link over directory, then through it", members: []member{file("a/x", ""), dir("t"), symlink("a", "t"), file("a/y", "")},
			want: "a -> t, t/, t/y 0"},
		{name: "replaced by its own link", members: []member{file("a", "1"), link("b", "a"), file("a", "22")}, want: "a 2, b 1"},
		{name: "links of links", members: []member{file("b", "1"), link("c", "b"), link("a", "c")}, want: "a 1, b == a, c == a"},
		{name: "link to itself", members: []member{file("a", "1"), link("a", "a")}, want: "a 1"},
		{name: "link to below a replaced directory", members: []member{file("d/f", "1"), link("d", "d/f")}, err: "no such file"},
		{name: "through a file", members: []member{file("a", "1"), file("a/b", "")}, err: `"a" is not a directory`},
		{name: "hard link to a directory", members: []member{dir("a"), link("b", "a")}, err: "not a file"},
		{name: "root as a file", members: []member{file("..", "1")}, err: "must be a directory"},

		// Deletions.
		{name: "whiteouts", members: []member{file(".wh.gone", ""), file("d/.wh.x", "")}, want: "d/, d/x whiteout, gone whiteout"},
		{name: "opaque", members: []member{dir("a"), opaque, file("a/b", "")}, want: "a/ opaque, a/b 0"},
		{name: "opaque last", members: []member{file("a/b", ""), opaque}, want: "a/ opaque, a/b 0"},
		{name: "opaque implied", members: []member{opaque}, want: "a/ opaque"},
		{name: "opaque root", members: []member{file(".wh..wh..opq", ""), file("b", "")}, want: "/ opaque, b 0"},
		{name: "opaque survives", members: []member{dir("a"), opaque, dir("a")}, want: "a/ opaque"},
		{name: "deleted and made again", members: []member{file(".wh.a", ""), file("a/b", ""), file(".wh.f", ""), file("f", "1")},
			want: "a/ opaque, a/b 0, f 1"},
		{name: "made again and deleted", members: []member{file("a/b", ""), file(".wh.a", ""), file("f", "1"), file(".wh.f", "")},
			want: "a/ opaque, a/b 0, f 1"},
		{name: "deleted twice", members: []member{file(".wh.a", ""), file(".wh.a", "")}, want: "a whiteout"},
		{name: "aufs", members: []member{dir(".wh..wh.plnk"), file(".wh..wh.aufs", "")}, want: ""},
		{name: "deletes nothing", members: []member{file("a/.wh.", "")}, err: "missing"},
		{name: "deletes the directory", members: []member{file("a/.wh...", "")}, err: "missing"},
		{name: "inside a deletion", members: []member{file(".wh.a/b", "")}, err: "mark deletions"},
		{name: "hard link to a deletion", members: []member{file(".wh.a", ""), link("b", "a")}, err: "not a file"},
		{name: "device as deletion", members: []member{{name: "a", kind: tar.TypeChar}}, want: "a whiteout"},
		{name: "device as deletion in ADD", members: []member{{name: "a", kind: tar.TypeChar}}, err: "overlayfs", add: true},
		{name: "ordinary in ADD", members: []member{file(".wh.a", ""), opaque}, want: ".wh.a 0, a/, a/.wh..wh..opq 0", add: true},

		{name: "empty name", members: []member{dir(""), file("a", "")}, want: "/, a 0"},
		{name: "not UTF-8", members: []member{file("a\xff\xfe", "1"), dir("b\x80/")}, want: "a\xff\xfe 1, b\x80/"},
		{name: "long", members: []member{file(strings.Repeat("d/", 1000)+"f", "")},
			want: func() string {
				var s []string
				for i := 1; i <= 1000; i++ {
					s = append(s, strings.Repeat("d/", i))
				}
				return strings.Join(append(s, strings.Repeat("d/", 1000)+"f 0"), ", ")
			}()},
		{name: "too long a name", members: []member{file(strings.Repeat("n", 256), "")}, err: "name too long"},
		{name: "owner out of range", members: []member{{name: "a", kind: tar.TypeReg, opt: func(h *tar.Header) { h.Uid = math.MaxUint32 }}}, err: "out of range"},
		{name: "device out of range", members: []member{{name: "a", kind: tar.TypeChar, opt: func(h *tar.Header) { h.Devmajor = 1 << 13 }}}, err: "out of range"},
		{name: "unknown type", members: []member{{name: "a", kind: 'Z'}}, err: "not supported"},
		{name: "nothing", want: ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in, check := cage(t)
			got, err := Unpack(t.Context(), bytes.NewReader(tarOf(t, test.members...)), in, UnpackOptions{Layer: !test.add})
			check()
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got error %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s := list(got); s != test.want {
				t.Errorf("got\n%s\nwant\n%s", s, test.want)
			}
			if !test.add {
				agree(t, in, got)
			}
		})
	}
}

func TestUnpackAttributes(t *testing.T) {
	needRoot(t)
	// VFS_CAP_REVISION_2 with cap_net_raw.
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	set := func(mode int64, uid, gid int, xattrs ...string) func(*tar.Header) {
		return func(h *tar.Header) {
			h.Mode, h.Uid, h.Gid = mode, uid, gid
			h.PAXRecords = map[string]string{}
			for i := 0; i < len(xattrs); i += 2 {
				h.PAXRecords[xattrPrefix+xattrs[i]] = xattrs[i+1]
			}
		}
	}
	in, _ := cage(t)
	got, err := Unpack(t.Context(), bytes.NewReader(tarOf(t,
		member{"locked", tar.TypeDir, "", set(0o3000, 10, 20, "user.k", "v", "trusted.overlay.opaque", "y", "user.overlay.opaque", "y")},
		member{"locked/ping", tar.TypeReg, "x", set(0o6755, 1000, 1<<22, "security.capability", capability, "user.n", "", "security.selinux", "s", "trusted.x", "y")},
		member{"l", tar.TypeSymlink, "none", set(0o777, 1, 2, "user.k", "v")},
		member{"old", tar.TypeReg, "", func(h *tar.Header) { h.ModTime = time.Unix(-5, 0) }},
		member{"implied/x", tar.TypeReg, "", nil},
		member{"hard", tar.TypeLink, "implied/x", set(0o600, 3, 4)},
	)), in, UnpackOptions{Layer: true})
	if err != nil {
		t.Fatal(err)
	}
	agree(t, in, got)
	empty := digest.FromString("")
	want := &tree.Tree{Entries: []tree.Entry{
		{Path: "hard", Type: tree.File, Mode: 0o600, UID: 3, GID: 4, Digest: empty, Mtime: when.UnixNano()},
		{Path: "implied", Type: tree.Dir, Mode: 0o755},
		{Path: "implied/x", Type: tree.File, Mode: 0o600, UID: 3, GID: 4, Digest: empty, Mtime: when.UnixNano(), Hardlink: "hard"},
		{Path: "l", Type: tree.Symlink, Mode: 0o777, UID: 1, GID: 2, Link: "none", Mtime: when.UnixNano()},
		{Path: "locked", Type: tree.Dir, Mode: 0o3000, UID: 10, GID: 20, Mtime: when.UnixNano(), Xattrs: map[string]string{"user.k": "v"}},
		{Path: "locked/ping", Type: tree.File, Mode: 0o6755, UID: 1000, GID: 1 << 22, Size: 1, Digest: digest.FromString("x"), Mtime: when.UnixNano(),
			Xattrs: map[string]string{"security.capability": capability, "user.n": ""}},
		{Path: "old", Type: tree.File, Mode: 0o644, Digest: empty},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

// ADD with --chown, into a directory, onto what an earlier archive left.
func TestUnpackAdd(t *testing.T) {
	needRoot(t)
	in, _ := cage(t)
	first, err := Unpack(t.Context(), bytes.NewReader(tarOf(t, dir("bin"), file("bin/a", "1"), link("bin/b", "bin/a"), symlink("sh", "bin"))),
		in, UnpackOptions{Under: "/opt/../opt/x", Owner: &Owner{5, 6}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Unpack(t.Context(), bytes.NewReader(tarOf(t, file("sh/c", "3"), file("bin/a", "22"), file("../../y", ""))),
		in, UnpackOptions{Under: "opt/x", Onto: first})
	if err != nil {
		t.Fatal(err)
	}
	agree(t, in, got)
	if s, want := list(got), "opt/, opt/x/, opt/x/bin/, opt/x/bin/a 2, opt/x/bin/b 1, opt/x/bin/c 1, opt/x/sh -> bin, opt/x/y 0"; s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
	for _, e := range got.Entries {
		owned := e.Path == "opt/x/bin" || e.Path == "opt/x/bin/b" || e.Path == "opt/x/sh"
		if owned != (e.UID == 5 && e.GID == 6) {
			t.Errorf("%s is owned by %d:%d", e.Path, e.UID, e.GID)
		}
	}
}

// A layer may imply directories of lower ones, and link to their files.
func TestUnpackOntoLower(t *testing.T) {
	needRoot(t)
	base, _ := cage(t)
	lower, err := Unpack(t.Context(), bytes.NewReader(tarOf(t,
		member{"tmp", tar.TypeDir, "", func(h *tar.Header) { h.Mode = 0o1777 }}, file("tmp/f", "data"))), base, UnpackOptions{Layer: true})
	if err != nil {
		t.Fatal(err)
	}
	o := UnpackOptions{Layer: true, Lower: tree.NewIndex(lower), LowerDirs: []string{base}}
	in, _ := cage(t)
	got, err := Unpack(t.Context(), bytes.NewReader(tarOf(t, file("tmp/g", ""), link("tmp/h", "tmp/f"))), in, o)
	if err != nil {
		t.Fatal(err)
	}
	agree(t, in, got)
	if s := list(got); s != "tmp/, tmp/g 0, tmp/h 4" || got.Entries[0].Mode != 0o1777 {
		t.Errorf("got %s, mode %o", s, got.Entries[0].Mode)
	}
	if err := os.WriteFile(filepath.Join(base, "tmp/f"), []byte("dada"), 0o600); err != nil {
		t.Fatal(err)
	}
	in, _ = cage(t)
	var corrupt *CorruptError
	if _, err := Unpack(t.Context(), bytes.NewReader(tarOf(t, link("tmp/h", "tmp/f"))), in, o); !errors.As(err, &corrupt) {
		t.Errorf("copy of a changed file: %v", err)
	}
}

// Archives of GNU tar in all of its formats, with sparse files and more.
func TestGNUTar(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("tar is not installed")
	}
	src := t.TempDir()
	run := func(script string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = src
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	run(`mkdir -p d/e; echo hi > d/f; ln d/f d/g; ln -s ../x d/l; mkfifo p; chmod 4711 d/f; chown -h 3:4 d/l
		truncate -s 1M sparse; printf end >> sparse; printf mid | dd of=sparse bs=1 seek=500000 conv=notrunc 2>/dev/null
		n=$(printf '%0120d' 0); mkdir $n; echo long > $n/$n; ln -s $n/$n longlink
		touch -d '2020-01-02 03:04:05' d/f`)
	want, err := tree.Scan(t.Context(), src, tree.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "oldgnu", "posix", "pax --sparse", "gnu --sparse", "posix --sparse-version=0.1 --sparse"} {
		t.Run(format, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "a.tar")
			run("tar --numeric-owner -cf " + out + " --format=" + format + " .")
			f, err := os.Open(out)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			in, _ := cage(t)
			got, err := Unpack(t.Context(), f, in, UnpackOptions{Layer: true})
			if err != nil {
				t.Fatal(err)
			}
			agree(t, in, got)
			if got.Digest() != want.Digest() {
				t.Errorf("got\n%s\nwant\n%s", list(got), list(want))
			}
		})
	}
}

// Without root's privileges owners and devices are in the tree alone. The
// test runs itself as another user.
func TestUnpackUnprivileged(t *testing.T) {
	archive := tarOf(t,
		member{"etc", tar.TypeDir, "", func(h *tar.Header) { h.Mode, h.Uid = 0o555, 7 }},
		member{"etc/su", tar.TypeReg, "x", func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o4755, 7, 8 }},
		member{"etc/do", tar.TypeLink, "etc/su", func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o4755, 7, 8 }},
		member{"null", tar.TypeChar, "", func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 }},
		link("zero", "null"), file(".wh.gone", ""), file("d/.wh..wh..opq", ""))
	if in := os.Getenv("KILN_TEST_UNPACK_TO"); in != "" {
		got, err := Unpack(t.Context(), bytes.NewReader(archive), in, UnpackOptions{Layer: true})
		if err != nil {
			t.Fatal(err)
		}
		want := "d/ opaque, etc/, etc/do 1, etc/su == etc/do, gone whiteout, null character device, zero character device"
		if s := list(got); s != want {
			t.Errorf("got\n%s\nwant\n%s", s, want)
		}
		if e, _ := got.Lookup("etc/su"); e.UID != 7 || e.GID != 8 || e.Mode != 0o4755 {
			t.Errorf("etc/su: %+v", e)
		}
		disk, err := tree.Scan(t.Context(), in, tree.ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if s, want := list(disk), "/, d/ opaque, etc/, etc/do 1, etc/su == etc/do, gone whiteout"; s != want {
			t.Errorf("on disk\n%s\nwant\n%s", s, want)
		}
		return
	}
	needRoot(t)
	outer, err := os.MkdirTemp("", "kiln-archive") // others cannot enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(outer)
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	self, in := filepath.Join(outer, "test"), filepath.Join(outer, "in")
	if err := errors.Join(os.Chmod(outer, 0o755), os.WriteFile(self, exe, 0o755), os.Mkdir(in, 0o755), os.Chown(in, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestUnpackUnprivileged$", "-test.v")
	cmd.Dir = in
	cmd.Env = append(os.Environ(), "KILN_TEST_UNPACK_TO="+in, "TMPDIR="+in)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// Goroutines make the coverage of equal runs differ, which go test -fuzz takes
// for a find and tries to minimize: run it with -fuzzminimizetime=10x.
func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, dir("d"), file("d/f", "1"), symlink("l", "../d"), link("h", "d/f"), file("l/x", ""), file(".wh.y", ""), file("d/.wh..wh..opq", "")), true)
	f.Add(tarOf(f, symlink("a", "/"), symlink("b", "a/.."), file("b/victim", "x"), dir("b"), file("a", ""), file("a/../b/x", "")), false)
	f.Add(gzipOf(f, tarOf(f, file("a/b", "2"))), true)
	f.Fuzz(func(t *testing.T, b []byte, layer bool) {
		in, check := cage(t)
		got, err := Unpack(t.Context(), bytes.NewReader(b), in, UnpackOptions{Layer: layer, MaxBytes: 1 << 20})
		check()
		if err == nil && layer {
			agree(t, in, got)
		}
	})
}
