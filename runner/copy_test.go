package runner

import (
	"bytes"
	"compress/gzip"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kiln.build/solver/op"
)

// copyCase is a COPY and what the root shows after it, or what the error
// says.
type copyCase struct {
	name    string
	context []string
	root    []string // of the destination; nil is scratch
	from    []string // of the source stage; nil is the context
	c       copying
	want    []string
	err     []string
}

func runCopies(t *testing.T, cases []copyCase) {
	for _, c := range cases {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			b := newBed(t)
			b.put(c.context...)
			if c.root != nil {
				c.c.root = b.stage(c.root...)
			}
			if c.from != nil {
				c.c.from = b.stage(c.from...)
			}
			out, err := b.try(t.Context(), c.c.vertex())
			if c.err != nil {
				wantError(t, c.name, err, c.err...)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantLines(t, c.name, b.list(out), c.want...)
		})
	}
}

// two is a context used by many cases.
var two = []string{
	"d 700 7:7 dir",
	"f 640 7:7 dir/a A",
	"l 777 7:7 dir/gone nowhere",
	"d 711 7:7 dir/sub",
	"f 4755 7:7 dir/sub/b B",
	"f 644 0:0 one.txt 1",
	"f 644 0:0 two.txt 2",
	"f 644 0:0 .three.txt 3",
}

// inDir is what is in dir, below a place.
func inDir(at string) []string {
	return []string{"f 640 0:0 " + at + "a A", "l 777 0:0 " + at + "gone nowhere", "d 711 0:0 " + at + "sub", "f 4755 0:0 " + at + "sub/b B"}
}

func lines(groups ...any) []string {
	var all []string
	for _, g := range groups {
		switch g := g.(type) {
		case string:
			all = append(all, g)
		case []string:
			all = append(all, g...)
		}
	}
	return all
}

func TestCopySources(t *testing.T) {
	runCopies(t, []copyCase{
		{name: "file to name", context: two, c: copyTo("/x", "one.txt"), want: []string{"f 644 0:0 x 1"}},
		{name: "file into new dir", context: two, c: copyTo("/x/", "one.txt"), want: []string{"d 755 0:0 x", "f 644 0:0 x/one.txt 1"}},
		{name: "file below new parents", context: two, c: copyTo("/x/y", "one.txt"), want: []string{"d 755 0:0 x", "f 644 0:0 x/y 1"}},
		{name: "file into existing dir", context: two, root: []string{"d 1777 3:4 x"}, c: copyTo("/x", "one.txt"), want: []string{"d 1777 3:4 x", "f 644 0:0 x/one.txt 1"}},
		{name: "dir contents", context: two, c: copyTo("/x", "dir"), want: lines("d 755 0:0 x", inDir("x/"))},
		{name: "dir with slash", context: two, c: copyTo("/x/", "dir/"), want: lines("d 755 0:0 x", inDir("x/"))},
		{name: "dir with dot", context: two, c: copyTo("/", "dir/."), want: inDir("")},
		{name: "whole context", context: two[6:7], c: copyTo("/", "."), want: []string{"f 644 0:0 two.txt 2"}},
		{name: "star has dotfiles", context: two, c: copyTo("/x/", "*.txt"), want: []string{"d 755 0:0 x", "f 644 0:0 x/.three.txt 3", "f 644 0:0 x/one.txt 1", "f 644 0:0 x/two.txt 2"}},
		{name: "matched dirs are flattened", context: two, c: copyTo("/", "d*"), want: inDir("")},
		{name: "star does not cross", context: two, c: copyTo("/", "*/b"), want: []string{}},
		{name: "star in the middle", context: two, c: copyTo("/", "d*/*/[a-c]"), want: []string{"f 4755 0:0 b B"}},
		{name: "escaped", context: []string{"f 644 0:0 [x] X", "f 644 0:0 x no"}, c: copyTo("/", "[[]x]"), want: []string{"f 644 0:0 [x] X"}},
		{name: "no match", context: two, c: copyTo("/x/", "*.nix"), want: []string{}},
		{name: "no match beside one", context: two, c: copyTo("/x/", "*.nix", "one.txt"), want: []string{"d 755 0:0 x", "f 644 0:0 x/one.txt 1"}},
		{name: "bad pattern", context: two, c: copyTo("/x/", "one["), err: []string{`"one["`, "syntax error"}},
		{name: "several", context: two, c: copyTo("/x/", "one.txt", "dir", "two.txt"), want: lines("d 755 0:0 x", inDir("x/"), "f 644 0:0 x/one.txt 1", "f 644 0:0 x/two.txt 2")},
		{name: "several without slash", context: two, c: copyTo("/x", "one.txt", "two.txt"), err: []string{"2 files", "/x"}},
		{name: "later replaces", context: []string{"f 644 0:0 a/x 1", "f 600 0:0 b/x 2"}, c: copyTo("/", "a", "b"), want: []string{"f 600 0:0 x 2"}},
		{name: "types in sources differ", context: []string{"f 644 0:0 a/x 1", "d 755 0:0 b/x"}, c: copyTo("/", "a", "b"), err: []string{`"/x" is a file in one source and a directory in another`}},
		{name: "missing", context: two, c: copyTo("/", "one.text"), err: []string{`"/one.text": not found in the build context`, `did you mean "/one.txt"?`}},
		{name: "missing below", context: two, c: copyTo("/", "dir/sub/bb"), err: []string{`"/dir/sub/bb"`, `did you mean "/dir/sub/b"?`}},
		{name: "missing far off", context: two, c: copyTo("/", "zzzzzzzz"), err: []string{`"/zzzzzzzz": not found`}},
		{name: "below a file", context: two, c: copyTo("/", "one.txt/x"), err: []string{`"/one.txt/x"`, "not a directory"}},
		{name: "fifo", context: []string{"p 622 0:0 d/p"}, c: copyTo("/", "d"), want: []string{"p 622 0:0 p"}},
		{name: "fifo by name", context: []string{"p 622 0:0 p"}, c: copyTo("/q", "p"), want: []string{"p 622 0:0 q"}},
		{name: "empty dir", context: []string{"d 700 0:0 e"}, c: copyTo("/x", "e"), want: []string{"d 755 0:0 x"}},
		{name: "odd names", context: []string{"f 644 0:0 a\nb\xff 1"}, c: copyTo("/", "."), want: []string{"f 644 0:0 a\nb\xff 1"}},

		{name: "stage keeps owners", from: two, c: copyTo("/x", "/dir"), want: []string{
			"d 755 0:0 x", "f 640 7:7 x/a A", "l 777 7:7 x/gone nowhere", "d 711 7:7 x/sub", "f 4755 7:7 x/sub/b B"}},
		{name: "stage file", from: two, c: copyTo("/x", "dir/a"), want: []string{"f 640 7:7 x A"}},
		{name: "stage wildcard", from: two, c: copyTo("/x/", "/*.txt"), want: []string{"d 755 0:0 x", "f 644 0:0 x/.three.txt 3", "f 644 0:0 x/one.txt 1", "f 644 0:0 x/two.txt 2"}},
		{name: "stage missing", from: two, c: copyTo("/x", "/one.text"), err: []string{`"/one.text": not found`, `did you mean "/one.txt"?`}},
		{name: "stage no match", from: two, c: copyTo("/x/", "/*.nix"), want: []string{}},
	})
}

func TestSymlinksInSources(t *testing.T) {
	links := []string{
		"f 644 0:0 real/f F",
		"f 644 0:0 top T",
		"l 777 0:0 todir real",
		"l 777 0:0 abs /real/f",
		"l 777 0:0 up ../../../../top",
		"l 777 0:0 real/up ../../../top",
		"l 777 0:0 host /etc/passwd",
		"l 777 0:0 hostdir /etc",
		"l 777 0:0 loop loop",
		"l 777 0:0 magic /proc/self/root/etc/passwd",
	}
	inReal := []string{"f 644 0:0 x/f F", "l 777 0:0 x/up ../../../top"}
	cases := []copyCase{
		{name: "to a dir", c: copyTo("/x", "todir"), want: lines("d 755 0:0 x", inReal)},
		{name: "matched, to a dir", c: copyTo("/x", "tod*"), want: lines("d 755 0:0 x", inReal)},
		{name: "on the way", c: copyTo("/x", "todir/f"), want: []string{"f 644 0:0 x F"}},
		{name: "on the way of a match", c: copyTo("/x", "todir/[f]"), want: []string{"f 644 0:0 x F"}},
		{name: "absolute is in the root", c: copyTo("/x", "abs"), want: []string{"f 644 0:0 x F"}},
		{name: "name is the link's", c: copyTo("/x/", "abs"), want: []string{"d 755 0:0 x", "f 644 0:0 x/abs F"}},
		{name: "dots clamp", c: copyTo("/x", "up"), want: []string{"f 644 0:0 x T"}},
		{name: "dots in the source clamp", c: copyTo("/x", "../../real/../../top"), want: []string{"f 644 0:0 x T"}},
		{name: "host file", c: copyTo("/x", "host"), err: []string{`"/host": not found`}},
		{name: "host dir", c: copyTo("/x", "hostdir"), err: []string{`"/hostdir": not found`}},
		{name: "host through dir", c: copyTo("/x", "hostdir/passwd"), err: []string{`"/hostdir/passwd": not found`}},
		{name: "host by a match", c: copyTo("/x/", "hostdir/pass*"), want: []string{}},
		{name: "through proc", c: copyTo("/x", "magic"), err: []string{`"/magic": not found`}},
		{name: "loop", c: copyTo("/x", "loop"), err: []string{`"/loop"`, "too many levels of symbolic links"}},
		{name: "two to one file", c: copyTo("/x/", "abs", "todir/f"), want: []string{"d 755 0:0 x", "f 644 0:0 x/abs F", "f 644 0:0 x/f F"}},
	}
	for i := range cases {
		cases[i].context = links
	}
	runCopies(t, cases)
	for i := range cases {
		cases[i].context, cases[i].from = nil, links
	}
	t.Run("stage", func(t *testing.T) { runCopies(t, cases) })
}

func TestIgnore(t *testing.T) {
	context := []string{
		"f 644 0:0 .dockerignore # what not to send\n/secret*\n*.log\n",
		"f 644 0:0 secret.txt no",
		"f 644 0:0 a.log no",
		"f 644 0:0 dir/b.log b",
		"f 644 0:0 dir/c.md c",
		"f 644 0:0 dir/d.txt d",
		"f 644 0:0 README.md r",
		"l 777 0:0 alias secret.txt",
	}
	with := func(c copying, patterns ...string) copying {
		c.sel.Ignore = patterns
		return c
	}
	cases := []copyCase{
		{name: "by name", c: with(copyTo("/", "secret.txt"), "secret*", "*.log"), err: []string{`"/secret.txt": not found in the build context`, ".dockerignore:2: secret*"}},
		{name: "by link", c: with(copyTo("/", "alias"), "secret*"), err: []string{"not found in the build context", "hides it"}},
		{name: "by match", c: with(copyTo("/x/", "[as]*"), "secret*", "*.log", "alias"), want: []string{}},
		{name: "in a dir", c: with(copyTo("/", "dir"), "dir/*.log"), want: []string{"f 644 0:0 c.md c", "f 644 0:0 d.txt d"}},
		{name: "whole dir", c: with(copyTo("/", "dir"), "dir"), err: []string{`"/dir": not found`}},
		{name: "below an ignored dir", c: with(copyTo("/", "dir/c.md"), "dir"), err: []string{`"/dir/c.md": not found`}},
		{name: "any depth", c: with(copyTo("/", "."), "**/*.log", ".docker*", "secret*", "alias"), want: []string{
			"f 644 0:0 README.md r", "d 755 0:0 dir", "f 644 0:0 dir/c.md c", "f 644 0:0 dir/d.txt d"}},
		{name: "brought back", c: with(copyTo("/", "."), "*", "!**/*.md"), want: []string{
			"f 644 0:0 README.md r", "d 755 0:0 dir", "f 644 0:0 dir/c.md c"}},
		{name: "brought back by name", c: with(copyTo("/x", "dir/c.md"), "*", "!dir/c.md"), want: []string{"f 644 0:0 x c"}},
		{name: "not brought back by name", c: with(copyTo("/", "secret.txt"), "*", "!**/*.md"), err: []string{`"/secret.txt": not found`}},
		{name: "not brought back beside", c: with(copyTo("/", "dir/d.txt"), "*", "!dir/c.md"), err: []string{`"/dir/d.txt": not found`}},
		{name: "link to what is not brought back", c: with(copyTo("/x", "alias"), "*", "!*.md", "!alias"), err: []string{`not found`}},
		{name: "brought back, dir by name", c: with(copyTo("/", "dir"), "*", "!dir/c.md"), want: []string{"f 644 0:0 c.md c"}},
		{name: "last one counts", c: with(copyTo("/", "dir"), "!dir/c.md", "dir/*"), want: []string{}},
		{name: "contents leave the dir", c: with(copyTo("/", "."), "dir/*", "*.*", "alias"), want: []string{"d 755 0:0 dir"}},
	}
	for i := range cases {
		cases[i].context = context
	}
	runCopies(t, cases)
}

func TestDestinations(t *testing.T) {
	root := []string{
		"d 755 0:0 real", "f 644 0:0 real/keep k", "d 750 5:6 real/sub",
		"f 644 0:0 file f",
		"l 777 0:0 todir real",
		"l 777 0:0 tofile real/keep",
		"l 777 0:0 dangling /new/place",
		"l 777 0:0 host ../../../etc",
		"l 777 0:0 real/link /file",
	}
	// after is the root with some lines changed or added.
	after := func(changes ...string) []string {
		all := map[string]string{}
		for _, l := range append(slices.Clone(root), changes...) {
			all[parse(t, l).path] = l
		}
		return slices.Collect(maps.Values(all))
	}
	cases := []copyCase{
		{name: "through a link to a dir", c: copyTo("/todir", "f"), want: after("f 644 0:0 real/f F")},
		{name: "through a link on the way", c: copyTo("/todir/sub/x", "f"), want: after("f 644 0:0 real/sub/x F")},
		{name: "through a link to a file", c: copyTo("/tofile", "f"), want: after("f 644 0:0 real/keep F")},
		{name: "through a dangling link", c: copyTo("/dangling", "f"), want: after("d 755 0:0 new", "f 644 0:0 new/place F")},
		{name: "links stay inside", c: copyTo("/host/x", "f"), want: after("d 755 0:0 etc", "f 644 0:0 etc/x F")},
		{name: "replaces a link in the dir", c: copyTo("/real", "d"), want: after("d 711 0:0 real/sub", "f 600 0:0 real/sub/x X", "f 644 0:0 real/link L")},
		{name: "file over file", c: copyTo("/file", "f"), want: after("f 644 0:0 file F")},
		{name: "dir on file", c: copyTo("/file", "d"), err: []string{"cannot copy to non-directory", "/file"}},
		{name: "file into file", c: copyTo("/file/", "f"), err: []string{"cannot copy to non-directory", "/file"}},
		{name: "below a file", c: copyTo("/file/x", "f"), err: []string{"/file/x", "not a directory"}},
		{name: "file on dir in dir", context: []string{"f 644 0:0 e/sub s"}, c: copyTo("/real", "e"), err: []string{"cannot replace to directory /real/sub with file"}},
		{name: "dir on file in dir", context: []string{"d 755 0:0 e/keep"}, c: copyTo("/real", "e"), err: []string{"cannot copy to non-directory", "/real/keep"}},
		{name: "dir on link to dir in dir", context: []string{"d 755 0:0 e/todir"}, c: copyTo("/", "e"), err: []string{"cannot copy to non-directory", "/todir"}},
	}
	for i := range cases {
		cases[i].root = root
		if cases[i].context == nil {
			cases[i].context = []string{"f 644 0:0 f F", "d 700 0:0 d", "d 711 0:0 d/sub", "f 600 0:0 d/sub/x X", "f 644 0:0 d/link L"}
		}
	}
	runCopies(t, cases)
}

func TestOwnersAndModes(t *testing.T) {
	context := []string{"d 700 0:0 d", "f 4750 0:0 d/x x", "f 644 0:0 d/y y", "l 777 0:0 d/l x", "d 1770 0:0 d/sub"}
	accounts := []string{
		"d 755 0:0 etc",
		"f 644 0:0 etc/passwd root:x:0:0::/:\nann:x:11:12::/h:",
		"f 644 0:0 etc/group wheel:x:13:\nann:x:12:",
		"d 700 8:9 there",
	}
	with := func(chown, chmod string, dst string, src ...string) copying {
		c := copyTo(dst, src...)
		c.chown, c.chmod = chown, chmod
		return c
	}
	file := func(owner string) []string {
		return lines(accounts, "f 644 "+owner+" x y")
	}
	cases := []copyCase{
		{name: "name", c: with("ann", "", "/x", "d/y"), want: file("11:12")},
		{name: "name and group", c: with("ann:wheel", "", "/x", "d/y"), want: file("11:13")},
		{name: "name and no group", c: with("ann:", "", "/x", "d/y"), want: file("11:12")},
		{name: "group alone", c: with(":wheel", "", "/x", "d/y"), want: file("0:13")},
		{name: "number", c: with("1000", "", "/x", "d/y"), want: file("1000:1000")},
		{name: "numbers", c: with("1000:5", "", "/x", "d/y"), want: file("1000:5")},
		{name: "number and name", c: with("1000:ann", "", "/x", "d/y"), want: file("1000:12")},
		{name: "unknown user", c: with("bob", "", "/x", "d/y"), err: []string{"--chown=bob", `no user "bob"`, "/etc/passwd"}},
		{name: "unknown group", c: with("ann:bobs", "", "/x", "d/y"), err: []string{`no group "bobs"`, "/etc/group"}},
		{name: "below zero", c: with("-1", "", "/x", "d/y"), err: []string{"-1"}},
		{name: "too large", c: with("5000000000:1", "", "/x", "d/y"), err: []string{"5000000000"}},
		{name: "group too large", c: with("1:5000000000", "", "/x", "d/y"), err: []string{"5000000000"}},
		{name: "tree and parents", c: with("1:2", "", "/p/q", "d"), want: lines(accounts[:3],
			"d 755 1:2 p", "d 755 1:2 p/q", "l 777 1:2 p/q/l x", "d 1770 1:2 p/q/sub", "f 4750 1:2 p/q/x x", "f 644 1:2 p/q/y y", accounts[3])},
		{name: "existing dir stays", c: with("1:2", "600", "/there/", "d/y"), want: lines(accounts, "f 600 1:2 there/y y")},
		{name: "octal", c: with("", "0640", "/p/q", "d"), want: lines(accounts[:3],
			"d 640 0:0 p", "d 640 0:0 p/q", "l 777 0:0 p/q/l x", "d 640 0:0 p/q/sub", "f 640 0:0 p/q/x x", "f 640 0:0 p/q/y y", accounts[3])},
		{name: "octal with setuid", c: with("", "4711", "/x", "d/y"), want: lines(accounts, "f 4711 0:0 x y")},
		{name: "symbolic", c: with("", "g+w,o=u,u-s,a+X", "/p", "d"), want: lines(accounts[:3],
			"d 755 0:0 p", "l 777 0:0 p/l x", "d 1777 0:0 p/sub", "f 777 0:0 p/x x", "f 666 0:0 p/y y", accounts[3])},
		{name: "bad mode", c: with("", "u+q", "/x", "d/y"), err: []string{"--chmod=u+q"}},
		{name: "large mode", c: with("", "10000", "/x", "d/y"), err: []string{"--chmod=10000", "07777"}},
		{name: "no mode", c: with("", "9", "/x", "d/y"), err: []string{"--chmod=9"}},
	}
	for i := range cases {
		cases[i].context, cases[i].root = context, accounts
	}
	runCopies(t, append(cases,
		copyCase{name: "name on scratch", context: context, c: with("ann", "", "/x", "d/y"), err: []string{`no user "ann"`, "no such file"}},
		copyCase{name: "stage owners changed", from: two, c: with("3", "", "/x", "/dir/sub/b"), want: []string{"f 4755 3:3 x B"}},
	))
}

func TestTimes(t *testing.T) {
	b := newBed(t)
	b.put("d 700 0:0 d", "f 644 0:0 d/sub/x x", "d 755 0:0 d/sub")
	b.put("d 755 0:0 d/sub", "d 700 0:0 d")
	root := b.stage("d 1777 0:0 tmp", "d 755 0:0 top", "d 755 0:0 top/there")
	for dst, old := range map[string][]string{
		"/tmp":       {"tmp", "tmp/sub", "tmp/sub/x"},
		"/top/there": {"top", "top/there", "top/there/sub"},
		"/new":       {"new", "new/sub", "new/sub/x"},
	} {
		c := copyTo(dst, "d")
		c.root = root
		out := b.build(c.vertex())
		idx, err := b.store.Index(out.Layers)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range old {
			if e, _, ok := idx.Lookup(p); !ok || e.Mtime != when.UnixNano() {
				t.Errorf("%s: /%s has the time %d", dst, p, e.Mtime)
			}
		}
	}
}

func TestHardLinksAndAttributes(t *testing.T) {
	b := newBed(t)
	from := b.stage("d 755 0:0 a", "f 644 1:1 a/one linked", "h 644 1:1 a/two a/one", "d 755 0:0 a/z", "h 644 1:1 a/z/three a/one", "f 755 0:0 a/ping [capable]")
	c := copying{from: from, sel: op.Select{Sources: []string{"/a"}}, dst: "/b", chown: "4"}
	out := b.build(c.vertex())
	wantLines(t, "linked", b.list(out), "d 755 4:4 b", "f 644 4:4 b/one linked", "f 755 4:4 b/ping [capable]", "h 644 4:4 b/two b/one", "d 755 4:4 b/z", "h 644 4:4 b/z/three b/one")
	dir := layerDir(t, b.store, out.Layers[len(out.Layers)-1].Digest)
	var one, three unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "b/one"), &one); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(filepath.Join(dir, "b/z/three"), &three); err != nil || one.Ino != three.Ino || one.Nlink != 3 {
		t.Errorf("inodes %d and %d of %d links, %v", one.Ino, three.Ino, one.Nlink, err)
	}
	buf := make([]byte, 64)
	if n, err := unix.Lgetxattr(filepath.Join(dir, "b/ping"), "security.capability", buf); err != nil || string(buf[:n]) != capability {
		t.Errorf("capability %x, %v", buf[:max(n, 0)], err)
	}

	// What names one of them alone is a file of its own.
	c = copying{from: from, sel: op.Select{Sources: []string{"/a/z"}}, dst: "/b"}
	wantLines(t, "one of them", b.list(b.build(c.vertex())), "d 755 0:0 b", "f 644 1:1 b/three linked")
	c = copying{from: from, sel: op.Select{Sources: []string{"/a/z", "/a/two"}}, dst: "/b"}
	wantLines(t, "two of them", b.list(b.build(c.vertex())), "d 755 0:0 b", "f 644 1:1 b/three linked", "f 644 1:1 b/two linked")

	// The attributes of local files are this machine's.
	b.put("f 755 0:0 ping x")
	if err := unix.Setxattr(filepath.Join(b.dir, "ping"), "security.capability", []byte(capability), 0); err != nil {
		t.Fatal(err)
	}
	out = b.build(copyTo("/ping", "ping").vertex())
	dir = layerDir(t, b.store, out.Layers[0].Digest)
	if n, err := unix.Lgetxattr(filepath.Join(dir, "ping"), "security.capability", buf); err == nil {
		t.Errorf("capability %x of a local file", buf[:n])
	}
}

func TestSocketIsEmptyFile(t *testing.T) {
	b := newBed(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(b.dir, "s")}); err != nil {
		t.Fatal(err)
	}
	b.put("f 644 0:0 x x")
	if err := os.Chmod(filepath.Join(b.dir, "s"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantLines(t, "socket", b.list(b.build(copyTo("/s", "s").vertex())), "f 600 0:0 s")
	wantLines(t, "socket in a directory", b.list(b.build(copyTo("/d", "/").vertex())), "d 755 0:0 d", "f 600 0:0 d/s", "f 644 0:0 d/x x")
}

func TestLocalHardLinks(t *testing.T) {
	b := newBed(t)
	b.put("f 644 0:0 d/one linked", "h 644 0:0 d/sub/two d/one", "h 644 0:0 other d/one")
	wantLines(t, "a directory", b.list(b.build(copyTo("/x", "d").vertex())),
		"d 755 0:0 x", "f 644 0:0 x/one linked", "d 755 0:0 x/sub", "h 644 0:0 x/sub/two x/one")
	wantLines(t, "files", b.list(b.build(copyTo("/x/", "d/one", "other").vertex())),
		"d 755 0:0 x", "f 644 0:0 x/one linked", "f 644 0:0 x/other linked")
	c := copyTo("/x", "/")
	c.sel.Exclude = []string{"d/one"}
	wantLines(t, "without the first", b.list(b.build(c.vertex())),
		"d 755 0:0 x", "d 755 0:0 x/d", "d 755 0:0 x/d/sub", "f 644 0:0 x/d/sub/two linked", "h 644 0:0 x/other x/d/sub/two")
}

func gzipped(t testing.TB, data []byte) string {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

func TestAddArchives(t *testing.T) {
	plain := archived(t, "d 750 3:4 d", "f 640 3:4 d/x X", "f 644 0:0 implied/y Y", "h 640 3:4 z d/x", "f 644 0:0 .wh.d W")
	inside := func(at string) []string {
		return []string{"f 644 0:0 " + at + ".wh.d W", "d 750 3:4 " + at + "d", "f 640 3:4 " + at + "d/x X", "d 755 0:0 " + at + "implied", "f 644 0:0 " + at + "implied/y Y", "h 640 3:4 " + at + "z " + at + "d/x"}
	}
	escape := archived(t, "l 777 0:0 out /etc", "f 644 0:0 out/evil E", "f 644 0:0 ../../up U")
	add := func(dst string, src ...string) copying {
		c := copyTo(dst, src...)
		c.unpack = true
		return c
	}
	owned := add("/x", "a.tar")
	owned.chown, owned.chmod = "9", "600"
	cases := []copyCase{
		{name: "plain", c: add("/", "a.tar"), want: inside("")},
		{name: "into a new dir", c: add("/x/", "a.tar"), want: lines("d 755 0:0 x", inside("x/"))},
		{name: "always a dir", c: add("/x/y", "a.tar"), want: lines("d 755 0:0 x", "d 755 0:0 x/y", inside("x/y/"))},
		{name: "gzip by any name", c: add("/x", "b.txt"), want: lines("d 755 0:0 x", inside("x/"))},
		{name: "through a link", c: add("/x", "alias"), want: lines("d 755 0:0 x", inside("x/"))},
		{name: "in a dir it is a file", c: add("/x", "dir"), want: []string{"d 755 0:0 x", "f 644 0:0 x/a.tar [10240]"}},
		{name: "no archive", c: add("/x", "text"), want: []string{"f 644 0:0 x hello"}},
		{name: "gzip of no archive", c: add("/x/", "text.gz", "empty"), want: []string{"d 755 0:0 x", "f 644 0:0 x/empty", "f 644 0:0 x/text.gz " + gzipped(t, []byte("hello"))}},
		{name: "beside a file", c: add("/x/", "a.tar", "text"), want: lines("d 755 0:0 x", inside("x/"), "f 644 0:0 x/text hello")},
		{name: "cut", c: add("/x/", "cut"), err: []string{"unexpected EOF"}},
		{name: "into a link", root: []string{"d 700 0:0 real", "l 777 0:0 x /real"}, c: add("/x", "a.tar"), want: lines("d 700 0:0 real", inside("real/"), "l 777 0:0 x /real")},
		{name: "onto a file", root: []string{"f 644 0:0 x x"}, c: add("/x", "a.tar"), err: []string{"cannot unpack", "/x"}},
		{name: "links below", root: []string{"d 700 0:0 real", "l 777 0:0 implied real", "l 777 0:0 d /real"}, c: add("/", "a.tar"), want: []string{
			"f 644 0:0 .wh.d W", "d 750 3:4 d", "f 640 3:4 d/x X", "l 777 0:0 implied real", "d 700 0:0 real", "f 644 0:0 real/y Y", "h 640 3:4 z d/x",
		}},
		{name: "a file below", root: []string{"f 644 0:0 implied x"}, c: add("/", "a.tar"), err: []string{`"implied" is not a directory`}},
		// Links that an archive brings lead inside of the destination.
		{name: "escape", c: add("/x", "escape"), want: []string{"d 755 0:0 x", "l 777 0:0 x/out /etc", "d 755 0:0 x/etc", "f 644 0:0 x/etc/evil E", "f 644 0:0 x/up U"}},
		{name: "chown", c: owned, want: []string{"d 755 9:9 x", "f 644 9:9 x/.wh.d W", "d 750 9:9 x/d", "f 640 9:9 x/d/x X", "d 755 0:0 x/implied", "f 644 9:9 x/implied/y Y", "h 640 9:9 x/z x/d/x"}},
	}
	for _, c := range cases {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			b := newBed(t)
			for name, data := range map[string]string{
				"a.tar": string(plain), "b.txt": gzipped(t, plain), "dir/a.tar": string(plain), "text": "hello", "empty": "",
				"text.gz": gzipped(t, []byte("hello")), "cut": string(plain[:1700]), "escape": string(escape),
			} {
				b.put("f 644 0:0 " + name + " " + data)
			}
			b.put("l 777 0:0 alias /a.tar")
			if c.root != nil {
				c.c.root = b.stage(c.root...)
			}
			out, err := b.try(t.Context(), c.c.vertex())
			if c.err != nil {
				wantError(t, c.name, err, c.err...)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantLines(t, c.name, b.list(out), c.want...)
			if _, err := os.Lstat("/etc/evil"); err == nil {
				t.Fatal("/etc/evil was written")
			}
		})
	}
}
