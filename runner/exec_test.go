package runner

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln.build/solver"
	"kiln.build/solver/op"
)

// world is a root that commands run in.
var world = []string{
	"d 755 0:0 bin", "f 755 0:0 bin/do [do]",
	"d 755 0:0 etc",
	"f 644 0:0 etc/passwd root:x:0:0::/root:\nann:x:11:12::/home/ann:\n",
	"f 644 0:0 etc/group ann:x:12:\nwheel:x:13:ann,bob\nmore:x:14:ann\n",
	"d 1777 0:0 tmp",
	"d 755 0:0 data", "f 644 0:0 data/old old", "f 644 0:0 data/more more", "d 700 3:4 data/own",
}

// running is a RUN, as the frontend makes it.
type running struct {
	op.Exec
	root   *solver.Vertex
	inputs []*solver.Vertex // of mounts
	using  []*solver.Vertex
}

// do runs lines of the program in testdata/do.
func do(root *solver.Vertex, lines ...string) *running {
	return &running{root: root, Exec: op.Exec{
		Args: append([]string{"/bin/do"}, lines...), Env: []string{"PATH=/bin"}, Cwd: "/", Network: "none",
	}}
}

func (r *running) mount(m op.Mount) *running {
	m.Input, m.Using = -1, -1
	r.Mounts = append(r.Mounts, m)
	return r
}

// bind mounts a selection: of a stage, or of the context.
func (r *running) bind(m op.Mount, from *solver.Vertex, source string) *running {
	sel, using := local(op.Select{Sources: []string{source}, Whole: true}), from
	if from == nil {
		using = sel
	} else {
		sel = &solver.Vertex{Op: op.Select{Sources: []string{source}, Whole: true}, Inputs: []*solver.Vertex{from}}
	}
	m.Input, m.Using = 1+len(r.inputs), len(r.using)
	r.inputs, r.using = append(r.inputs, sel), append(r.using, using)
	r.Mounts = append(r.Mounts, m)
	return r
}

func (r *running) vertex() *solver.Vertex {
	return &solver.Vertex{Op: r.Exec, Inputs: append([]*solver.Vertex{r.root}, r.inputs...), Using: r.using, Below: r.root}
}

// run builds r and returns what it printed.
func (b *bed) run(r *running) string {
	b.t.Helper()
	b.build(r.vertex())
	return strings.TrimSuffix(b.logs[1].String(), "\n")
}

func TestExecOutput(t *testing.T) {
	b := newBed(t)
	root := b.stage(world...)
	b.run(do(root, "echo one", "warn two", "echo three"))
	if out, err := b.logs[1].String(), b.logs[2].String(); out != "one\nthree\n" || err != "two\n" {
		t.Errorf("output %q and %q", out, err)
	}
	for _, c := range []struct {
		line string
		want string
		set  func(*running)
	}{
		{"env", "HOME=/root\nPATH=/bin", nil},
		{"env", "A=x y\nHOME=/root\nPATH=/bin\nhttp_proxy=p", func(r *running) {
			r.Env, r.ProxyEnv = append(r.Env, "A=x y"), []string{"http_proxy=p"}
		}},
		{"env", "HOME=/h\nPATH=/bin", func(r *running) { r.Env = append(r.Env, "HOME=/h") }},
		{"env", "HOME=/home/ann\nPATH=/bin", func(r *running) { r.User = "ann" }},
		{"env", "HOME=/\nPATH=/bin", func(r *running) { r.User = "77" }},
		{"id", "0 0 []", nil},
		{"id", "11 12 [13 14]", func(r *running) { r.User = "ann" }},
		{"id", "11 12 [13 14]", func(r *running) { r.User = "11" }},
		{"id", "11 13 []", func(r *running) { r.User = "ann:wheel" }},
		{"id", "77 0 []", func(r *running) { r.User = "77" }},
		{"id", "77 5 []", func(r *running) { r.User = "77:5" }},
		{"id", "0 5 []", func(r *running) { r.User = ":5" }},
		{"pwd", "/", nil},
		{"pwd", "/new/dir", func(r *running) { r.Cwd = "/new/dir" }},
		{"stat .", "40755 0:0 4096", func(r *running) { r.Cwd = "/new/dir" }},
		{"hostname", "buildkitsandbox", nil},
		{"hostname", "h", func(r *running) { r.Hostname = "h" }},
		{"stdin", "0", nil},
		{"links", "lo", nil},
		{"cat /etc/hosts", "127.0.0.1\tlocalhost h\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.1\tme", func(r *running) {
			r.Hostname, r.ExtraHosts = "h", []op.Host{{Name: "me", IP: "10.0.0.1"}}
		}},
		{"cat /etc/resolv.conf", "", nil},
		{"echo by name", "by name", func(r *running) { r.Args[0] = "do" }},
	} {
		r := do(root, c.line)
		if c.set != nil {
			c.set(r)
		}
		if got := b.run(r); got != c.want {
			t.Errorf("%s of %+v: %q, want %q", c.line, r.Exec, got, c.want)
		}
	}
}

func TestExecFailures(t *testing.T) {
	b := newBed(t)
	root := b.stage(world...)
	for _, c := range []struct {
		name string
		r    *running
		want ExecError
		text string
	}{
		{"status", do(root, "exit 3"), ExecError{Code: 3}, `process "/bin/do exit 3" did not complete successfully: exit code: 3`},
		{"missing", &running{root: root, Exec: op.Exec{Args: []string{"/bin/none"}, Cwd: "/", Network: "none"}}, ExecError{Code: 127}, "/bin/none"},
		{"no program", &running{root: root, Exec: op.Exec{Args: []string{"/etc/passwd"}, Cwd: "/", Network: "none"}}, ExecError{Code: 126}, "/etc/passwd"},
	} {
		_, err := b.try(t.Context(), c.r.vertex())
		var e *ExecError
		if !errors.As(err, &e) || e.Code != c.want.Code || !strings.Contains(e.Error(), c.text) {
			t.Errorf("%s: %v, want code %d and %q", c.name, err, c.want.Code, c.text)
		}
	}
	r := do(root, "id")
	r.User = "bob"
	_, err := b.try(t.Context(), r.vertex())
	wantError(t, "unknown user", err, "unable to find user bob")
	r = do(root, "id")
	r.Cwd = "/etc/passwd/x"
	_, err = b.try(t.Context(), r.vertex())
	wantError(t, "folder below a file", err, "/etc/passwd/x")
	r = do(root, "id")
	r.Cwd = "/etc/passwd"
	_, err = b.try(t.Context(), r.vertex())
	wantError(t, "folder is a file", err, "/etc/passwd")
	r = do(root, "id")
	r.Platform = "linux/vax"
	_, err = b.try(t.Context(), r.vertex())
	wantError(t, "platform", err, "linux/vax", "emulator")
}

func TestExecLayer(t *testing.T) {
	b := newBed(t)
	root := b.stage(world...)
	run := func(r *running) []string {
		t.Helper()
		return b.layer(b.build(r.vertex()))
	}
	top := "d 755 0:0 "
	wantLines(t, "nothing", run(do(root, "echo")), top)
	wantLines(t, "change, removal, creation", run(do(root, "append /data/old +", "rm /data/more", "write /new x")),
		top, "d 755 0:0 data", "w data/more", "f 644 0:0 data/old old+", "f 644 0:0 new x")
	wantLines(t, "replaced directory", run(do(root, "rm /data", "mkdir /data", "write /data/x x")),
		top, "d 755 0:0 data opaque", "f 644 0:0 data/x x")
	wantLines(t, "made and removed", run(do(root, "write /data/y y", "rm /data/y", "mkdir /new/x", "rm /new")), top)
	wantLines(t, "directory for a file", run(do(root, "rm /data/old", "mkdir /data/old")),
		top, "d 755 0:0 data", "d 755 0:0 data/old")
	wantLines(t, "in etc", run(do(root, "write /etc/x x")), top, "d 755 0:0 etc", "f 644 0:0 etc/x x")
	wantLines(t, "own dirs", run(do(root, "write /data/own/x x", "write /tmp/x x")),
		top, "d 755 0:0 data", "d 700 3:4 data/own", "f 644 0:0 data/own/x x", "d 1777 0:0 tmp", "f 644 0:0 tmp/x x")
	wantLines(t, "file systems of the kernel's", run(do(root, "write /dev/shm/x x", "mkdir /run/x")), top, "d 755 0:0 run", "d 755 0:0 run/x")
	r := do(root, "echo")
	r.Cwd = "/a/b"
	wantLines(t, "working folder", run(r), top, "d 755 0:0 a", "d 755 0:0 a/b")
	r = do(root, "write x x")
	r.Cwd = "/a/b"
	r.User = "0:5"
	wantLines(t, "working folder used", run(r), top, "d 755 0:0 a", "d 755 0:0 a/b", "f 644 0:5 a/b/x x")

	// The root has what the base's root has.
	odd := b.stage(slices.Concat([]string{"d 750 5:6 ."}, world)...)
	wantLines(t, "odd root", run(do(odd, "write /x x")), "d 750 5:6 ", "f 644 0:0 x x")

	// The same commands give the same layer.
	one := b.build(do(root, "write /new x", "rm /data/old").vertex())
	two := b.build(&solver.Vertex{Op: do(root, "write /new x", "rm /data/old").Exec, Inputs: []*solver.Vertex{root}, Below: root, Fresh: true})
	if one.Digest != two.Digest || b.performed("Exec") != 1 {
		t.Errorf("layers %s and %s, ran %q", one.Digest, two.Digest, b.ran)
	}
}

// TestMountPoints checks that the places that mounts need in the root are gone
// after the step, and that the directories around them are as they were.
func TestMountPoints(t *testing.T) {
	b := newBed(t)
	root := b.stage(world...)
	b.setup = func(r *Runner) { r.Secrets = map[string][]byte{"s": []byte("v")} }
	secret := op.Mount{Type: op.Secret, ID: "s", Target: "/run/secrets/s", Mode: 0o400}
	tmpfs := op.Mount{Type: op.Tmpfs, Target: "/data/deep/er"}
	wantLines(t, "stubs", b.layer(b.build(do(root, "echo").mount(secret).mount(tmpfs).vertex())), "d 755 0:0 ")
	wantLines(t, "stubs on scratch", b.layer(b.build(do(b.stage(world[:2]...), "echo").mount(secret).mount(tmpfs).vertex())), "d 755 0:0 ")
	wantLines(t, "used stubs", b.layer(b.build(do(root, "write /run/x x", "write /data/deep/y y", "write /data/deep/er/z z").mount(secret).mount(tmpfs).vertex())),
		"d 755 0:0 ", "d 755 0:0 data", "d 755 0:0 data/deep", "f 644 0:0 data/deep/y y", "d 755 0:0 run", "f 644 0:0 run/x x")

	out := b.build(do(root, "write /new x").mount(tmpfs).vertex())
	idx, err := b.store.Index(out.Layers)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"data", "etc", "tmp"} {
		if e, _, _ := idx.Lookup(p); e.Mtime != when.UnixNano() {
			t.Errorf("/%s has the time %d", p, e.Mtime)
		}
	}
}

func TestBindMounts(t *testing.T) {
	b := newBed(t)
	root := b.stage(world...)
	other := b.stage("d 755 0:0 sub", "d 711 5:6 sub/in", "f 644 0:0 sub/in/f inner", "f 644 0:0 top t", "l 777 0:0 link /sub/in")
	b.put("f 644 7:7 ctx/f local", "f 600 0:0 ctx/g g", "f 644 0:0 single s")
	m := op.Mount{Type: op.Bind, Target: "/mnt", ReadOnly: true}
	rw := m
	rw.ReadOnly = false
	for _, c := range []struct {
		name   string
		m      op.Mount
		from   *solver.Vertex
		source string
		lines  []string
		want   string
	}{
		{"whole stage", m, other, "/", []string{"ls /mnt"}, "link\nsub\ntop"},
		{"directory of a stage", m, other, "/sub/in", []string{"ls /mnt", "cat /mnt/f"}, "f\ninner"},
		{"attributes of it", m, other, "/sub/in", []string{"stat /mnt"}, "40711 5:6 4096"},
		{"attributes when writable", rw, other, "/sub/in", []string{"stat /mnt"}, "40711 5:6 4096"},
		{"link in a stage", m, other, "link", []string{"cat /mnt/f"}, "inner"},
		{"file of a stage", m, other, "/sub/in/f", []string{"cat /mnt"}, "inner"},
		{"context", m, nil, "ctx", []string{"ls /mnt", "cat /mnt/f", "stat /mnt/f"}, "f\ng\nlocal100644 0:0 5"},
		{"file of the context", m, nil, "single", []string{"cat /mnt"}, "s"},
		{"writable context", rw, nil, "ctx", []string{"write /mnt/f new", "write /mnt/n n", "rm /mnt/g", "ls /mnt", "cat /mnt/f"}, "f\nn\nnew"},
		{"writable stage", rw, other, "/sub/in", []string{"write /mnt/f new", "write /mnt/n n", "ls /mnt", "cat /mnt/f"}, "f\nn\nnew"},
		{"writable root of a stage", rw, other, "/", []string{"stat /mnt", "write /mnt/n n"}, "40755 0:0 4096"},
		{"writable file", rw, other, "/top", []string{"append /mnt u", "cat /mnt"}, "tu"},
	} {
		out := b.build(do(root, c.lines...).bind(c.m, c.from, c.source).vertex())
		if got := strings.TrimSuffix(b.logs[1].String(), "\n"); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		wantLines(t, c.name, b.layer(out), "d 755 0:0 ")
	}
	wantLines(t, "stage afterwards", b.list(b.build(other)), "d 755 0:0 sub", "d 711 5:6 sub/in", "f 644 0:0 sub/in/f inner", "f 644 0:0 top t", "l 777 0:0 link /sub/in")
	if data, err := os.ReadFile(filepath.Join(b.dir, "ctx/f")); err != nil || string(data) != "local" {
		t.Errorf("the context has %q, %v", data, err)
	}
	for name, r := range map[string]*running{
		"read-only stage":   do(root, "write /mnt/f x").bind(m, other, "/sub/in"),
		"read-only context": do(root, "write /mnt/f x").bind(m, nil, "ctx"),
		"read-only file":    do(root, "write /mnt x").bind(m, nil, "single"),
	} {
		if _, err := b.try(t.Context(), r.vertex()); err == nil || !strings.Contains(b.logs[2].String(), "read-only") {
			t.Errorf("%s: %v, %q", name, err, b.logs[2].String())
		}
	}
	_, err := b.try(t.Context(), do(root, "echo").bind(m, other, "/sup").vertex())
	wantError(t, "missing", err, `"/sup": not found`, `"/sub"`)

	inner := m
	inner.Target = "/mnt/in"
	r := do(root, "cat /mnt/in/f").bind(inner, other, "/sub/in").bind(m, nil, "ctx")
	if _, err := b.try(t.Context(), r.vertex()); err == nil {
		t.Error("a mount point was made in a read-only mount")
	}
	writable := rw
	r = do(root, "cat /mnt/in/f", "cat /mnt/f").bind(inner, other, "/sub/in").bind(writable, nil, "ctx")
	if got := b.run(r); got != "innerlocal" {
		t.Errorf("mount in a mount: %q", got)
	}
}

func TestOtherMounts(t *testing.T) {
	b := newBed(t)
	root := b.stage(world...)
	secrets := map[string][]byte{"s": []byte("value")}
	b.setup = func(r *Runner) { r.Secrets = secrets }

	cached := op.Mount{Type: op.Cache, Target: "/data", CacheID: "c"}
	if got := b.run(do(root, "stat /data", "write /data/x 1").mount(cached)); got != "40755 0:0 4096" {
		t.Errorf("new cache: %q", got)
	}
	wantLines(t, "cache", b.layer(b.build(do(root, "append /data/x 2").mount(cached).vertex())), "d 755 0:0 ")
	if got := b.run(do(root, "cat /data/x").mount(cached)); got != "12" {
		t.Errorf("cache: %q, want what two steps wrote", got)
	}
	readOnly := cached
	readOnly.ReadOnly = true
	if _, err := b.try(t.Context(), do(root, "write /data/x 1").mount(readOnly).vertex()); err == nil {
		t.Error("a read-only cache was written")
	}
	own := op.Mount{Type: op.Cache, Target: "/c", CacheID: "own", Mode: 0o2770, UID: 5, GID: 6}
	if got := b.run(do(root, "stat /c").mount(own)); got != "42770 5:6 4096" {
		t.Errorf("owned cache: %q", got)
	}
	from := b.stage("d 750 2:3 seed", "f 640 2:3 seed/f first", "f 644 0:0 out o")
	seeded := op.Mount{Type: op.Cache, Target: "/c", CacheID: "seeded"}
	if got := b.run(do(root, "ls /c", "cat /c/f", "write /c/g 2").bind(seeded, from, "/seed")); got != "f\nfirst" {
		t.Errorf("cache with content: %q", got)
	}
	if got := b.run(do(root, "ls /c").bind(seeded, from, "/seed")); got != "f\ng" {
		t.Errorf("cache with content, again: %q", got)
	}
	clear := do(root, "ls /c", "echo cleared").mount(op.Mount{Type: op.Cache, Target: "/c", CacheID: "c"})
	clear.ClearCaches = true
	if got := b.run(clear); got != "cleared" {
		t.Errorf("cleared cache: %q", got)
	}

	tmpfs := op.Mount{Type: op.Tmpfs, Target: "/data", Size: 1 << 20}
	if got := b.run(do(root, "ls /data", "write /data/x x", "ls /data").mount(tmpfs)); got != "x" {
		t.Errorf("tmpfs: %q", got)
	}

	secret := op.Mount{Type: op.Secret, ID: "s", Target: "/run/secrets/s", Mode: 0o400}
	read := []string{"stat /run/secrets/s", "cat /run/secrets/s"}
	if got := b.run(do(root, read...).mount(secret)); got != "100400 0:0 5\nvalue" {
		t.Errorf("secret: %q", got)
	}
	owned := secret
	owned.UID, owned.GID, owned.Mode = 11, 12, 0o440
	if got := b.run(do(root, read...).mount(owned)); got != "100440 11:12 5\nvalue" {
		t.Errorf("owned secret: %q", got)
	}
	asEnv := op.Mount{Type: op.Secret, ID: "s", Env: "TOKEN"}
	if got := b.run(do(root, "env").mount(asEnv)); !strings.Contains(got, "TOKEN=value") {
		t.Errorf("secret as a variable: %q", got)
	}
	secrets = nil
	if got := b.run(do(root, "env", "echo again").mount(asEnv)); strings.Contains(got, "TOKEN") {
		t.Errorf("missing secret as a variable: %q", got)
	}
	if _, err := b.try(t.Context(), do(root, "cat /run/secrets/s").mount(secret).vertex()); err == nil {
		t.Error("a missing secret has a file")
	}
	secret.Required = true
	_, err := b.try(t.Context(), do(root, "echo").mount(secret).vertex())
	wantError(t, "required secret", err, "secret s: not found")

	// Neither the value nor the cache is in the store's layers.
	err = filepath.WalkDir(filepath.Join(b.store.Root(), "layers"), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != "do" {
			var data []byte
			if data, err = os.ReadFile(p); strings.Contains(string(data), "value") {
				t.Errorf("%s holds a secret", p)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestCacheSharing runs two steps that wait for each other in a shared cache,
// and two that would meet in a locked one.
func TestCacheSharing(t *testing.T) {
	b := newBed(t)
	root := b.stage(world...)
	m := op.Mount{Type: op.Cache, Target: "/c", CacheID: "shared"}
	join := func(one, two *running) *solver.Vertex {
		last := do(root, "write /joined x")
		last.inputs = []*solver.Vertex{one.vertex(), two.vertex()}
		return last.vertex()
	}
	b.build(join(
		do(root, "write /c/one 1", "await /c/two").mount(m),
		do(root, "write /c/two 2", "await /c/one").mount(m)))

	m.CacheID, m.Sharing = "locked", "locked"
	step := func(name string) *running {
		return do(root, "mkdir /c/busy/"+name, "ls /c/busy", "rm /c/busy").mount(m)
	}
	b.build(join(step("one"), step("two")))
	if got := b.logs[1].String(); got != "one\ntwo\n" && got != "two\none\n" {
		t.Errorf("steps met in a locked cache: %q", got)
	}

	m.CacheID, m.Sharing = "private", "private"
	b.build(join(step("three"), step("four")))
	if got := b.logs[1].String(); got != "three\nfour\n" && got != "four\nthree\n" {
		t.Errorf("steps met in a private cache: %q", got)
	}
}

func TestBackgroundProcessesEnd(t *testing.T) {
	b := newBed(t)
	if got := b.run(do(b.stage(world...), "spawn sleep", "echo started")); got != "started" {
		t.Errorf("output %q", got)
	}
}

func TestCancel(t *testing.T) {
	b := newBed(t)
	root := b.stage(world...)
	why := errors.New("enough")
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	var at time.Time
	b.events = func(e solver.Event) {
		if e.Kind == solver.Logged {
			at = time.Now()
			stop(why)
		}
	}
	_, err := b.try(ctx, do(root, "write /x x", "echo running", "sleep").vertex())
	if took := time.Since(at); !errors.Is(err, why) || took > 5*time.Second {
		t.Errorf("%v after %v", err, took)
	}
	if b.performed("Exec") != 1 {
		t.Errorf("ran %q", b.ran)
	}
}

// TestEarlyCutoff changes a file, of which a command makes the same as before:
// the command after it does not run.
func TestEarlyCutoff(t *testing.T) {
	b := newBed(t)
	graph := func() *solver.Vertex {
		root := b.stage(world...)
		c := copyTo("/src", "src")
		c.root = root
		made := do(c.vertex(), "write /out same").vertex()
		final := copying{root: root, from: made, sel: op.Select{Sources: []string{"/out"}}, dst: "/out"}
		return do(final.vertex(), "append /out +").vertex()
	}
	b.put("f 644 0:0 src one")
	first := b.build(graph())
	if b.performed("Exec") != 2 {
		t.Errorf("ran %q", b.ran)
	}
	b.put("f 644 0:0 src two")
	second := b.build(graph())
	if b.performed("Exec") != 1 || first.Digest != second.Digest {
		t.Errorf("ran %q, digests %s and %s", b.ran, first.Digest, second.Digest)
	}
	b.build(graph())
	if b.performed("Exec") != 0 || b.performed("Copy") != 0 {
		t.Errorf("unchanged: ran %q", b.ran)
	}
}

func TestMkdir(t *testing.T) {
	b := newBed(t)
	root := b.stage(slices.Concat(world, []string{"l 777 0:0 link /data/own"})...)
	workdir := func(at, user string) *solver.Vertex {
		dest := &solver.Vertex{Op: op.Dest{Path: at, Owner: user, Mkdir: true}, Inputs: []*solver.Vertex{root}}
		return &solver.Vertex{Op: op.Mkdir{Path: at}, Inputs: []*solver.Vertex{dest}, Below: root}
	}
	wantLines(t, "new", b.layer(b.build(workdir("/data/x/y", "ann"))), "d 755 0:0 ", "d 755 0:0 data", "d 755 11:12 data/x", "d 755 11:12 data/x/y")
	wantLines(t, "there", b.layer(b.build(workdir("/data/own", "ann"))))
	wantLines(t, "root", b.layer(b.build(workdir("/", ""))))
	wantLines(t, "link", b.layer(b.build(workdir("/link/x", ""))), "d 755 0:0 ", "d 755 0:0 data", "d 700 3:4 data/own", "d 755 0:0 data/own/x")
	_, err := b.try(t.Context(), workdir("/data/old", ""))
	wantError(t, "file", err, "/data/old is a file")
	_, err = b.try(t.Context(), workdir("/data/old/x", ""))
	wantError(t, "below a file", err, "/data/old/x", "not a directory")
	_, err = b.try(t.Context(), workdir("/x", "bob"))
	wantError(t, "user", err, "unable to find user bob")
}

// TestLogIsComplete prints more than a pipe holds.
func TestLogIsComplete(t *testing.T) {
	b := newBed(t)
	var script []string
	for range 200 {
		script = append(script, "echo "+strings.Repeat("x", 1000))
	}
	if got := len(b.run(do(b.stage(world...), script...))); got != 200*1001-1 {
		t.Errorf("%d bytes of output", got)
	}
}
