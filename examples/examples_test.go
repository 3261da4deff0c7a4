package examples

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// programs are built once, as a user builds them.
var programs = sync.OnceValues(func() (p struct{ dir, kiln, toolbox string }, err error) {
	if p.dir, err = os.MkdirTemp("", "kiln-examples-"); err != nil {
		return p, err
	}
	p.kiln, p.toolbox = filepath.Join(p.dir, "kiln"), filepath.Join(p.dir, "toolbox")
	for _, b := range []struct{ out, dir, pkg string }{{p.kiln, "..", "./cmd/kiln"}, {p.toolbox, "toolbox", "."}} {
		c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.out, b.pkg)
		c.Dir, c.Env = b.dir, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return p, fmt.Errorf("build %s: %w\n%s", b.pkg, err, out)
		}
	}
	return p, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if os.Geteuid() == 0 { // else nothing was built
		if p, err := programs(); err == nil {
			os.RemoveAll(p.dir)
		}
	}
	os.Exit(code)
}

// place is a store of its own and the program.
type place struct {
	t          *testing.T
	root, kiln string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	if testing.Short() {
		t.Skip("builds whole images: not with -short")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: the images change users")
	}
	p, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return &place{t: t, root: filepath.Join(t.TempDir(), "store"), kiln: p.kiln}
}

// try runs kiln and returns what it printed.
func (p *place) try(args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	c := exec.Command(p.kiln, args...)
	c.Env = append(os.Environ(), "KILN_ROOT="+p.root)
	c.Stdout, c.Stderr = &out, &errs
	err = c.Run()
	return out.String(), errs.String(), err
}

func (p *place) run(args ...string) (stdout, stderr string) {
	p.t.Helper()
	stdout, stderr, err := p.try(args...)
	if err != nil {
		p.t.Fatalf("kiln %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout, stderr
}

var stepLine = regexp.MustCompile(`^#(\d+) (CACHED|DONE [0-9.]+s|\[.*)$`)

// build builds and returns the steps that ran, by what stands after their
// numbers: "RUN make", and how many were cached.
func (p *place) build(args ...string) (ran []string, cached int) {
	p.t.Helper()
	_, stderr := p.run(append([]string{"build", "--progress=plain"}, args...)...)
	names := map[string]string{}
	for l := range strings.SplitSeq(stderr, "\n") {
		m := stepLine.FindStringSubmatch(l)
		switch {
		case m == nil:
		case m[2] == "CACHED":
			cached++
		case m[2][0] == '[':
			_, names[m[1]], _ = strings.Cut(m[2], "] ")
		default:
			ran = append(ran, names[m[1]])
		}
	}
	slices.Sort(ran)
	return ran, cached
}

// rebuild builds again and wants just the steps that start with the given
// words to run.
func (p *place) rebuild(want []string, args ...string) {
	p.t.Helper()
	ran, cached := p.build(args...)
	ok := len(ran) == len(want) && cached > 0
	for i := range want {
		ok = ok && strings.HasPrefix(ran[i], want[i])
	}
	if !ok {
		p.t.Errorf("ran %q, want %q; %d steps were cached", ran, want, cached)
	}
}

// example copies an example's folder, so that the test can change files.
func example(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.CopyFS(dir, os.DirFS(name)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func edit(t *testing.T, path, old, new string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(data, []byte(old)) {
		t.Fatalf("%s has no %q", path, old)
	}
	if err := os.WriteFile(path, bytes.Replace(data, []byte(old), []byte(new), 1), 0o644); err != nil {
		t.Fatal(err)
	}
}

// toolbox builds the base image the way its README says.
func (p *place) toolbox() {
	p.t.Helper()
	programs, err := programs()
	if err != nil {
		p.t.Fatal(err)
	}
	dir := example(p.t, "toolbox")
	tar, err := os.Create(filepath.Join(dir, "root-"+runtime.GOARCH+".tar"))
	if err != nil {
		p.t.Fatal(err)
	}
	c := exec.Command(programs.toolbox, "--tar")
	c.Stdout, c.Stderr = tar, os.Stderr
	if err := errors.Join(c.Run(), tar.Close()); err != nil {
		p.t.Fatal(err)
	}
	p.build("-t", "toolbox", dir)
}

// debian imports a Debian root file system, or skips the test.
func (p *place) debian() {
	p.t.Helper()
	tar := os.Getenv("KILN_TEST_DEBIAN_TAR")
	if tar == "" {
		tar = "/var/cache/kiln-test/debian.tar"
	}
	if _, err := os.Stat(tar); err != nil {
		p.t.Skipf("no Debian root file system (KILN_TEST_DEBIAN_TAR; .ci/run makes one): %v", err)
	}
	p.run("import", tar, "debian:bookworm")
}

// mirror skips the test where Debian's packages cannot be had.
func mirror(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "http://deb.debian.org/debian/dists/bookworm/InRelease", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Skipf("Debian's packages cannot be reached: %v", err)
	}
	resp.Body.Close()
}

// serve starts a container whose port is published, fetches its page, and
// stops it.
func (p *place) serve(image, port string) string {
	p.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	p.run("run", "-d", "--name", image, "-p", addr+":"+port, image)
	defer p.run("rm", "-f", image)
	var last error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + addr + "/")
		if last = err; err != nil {
			continue
		}
		defer resp.Body.Close()
		page, err := io.ReadAll(resp.Body)
		if err != nil {
			p.t.Fatal(err)
		}
		return string(page)
	}
	logs, errs, _ := p.try("logs", image)
	p.t.Fatalf("no page at %s: %v\n%s%s", addr, last, logs, errs)
	return ""
}

func TestHello(t *testing.T) {
	p := newPlace(t)
	p.toolbox()
	dir := example(t, "hello")
	if ran, cached := p.build("-t", "hello", dir); len(ran) < 5 || cached > 1 {
		t.Errorf("the first build ran %q, %d steps were cached", ran, cached)
	}
	out, _ := p.run("run", "--rm", "hello")
	for _, want := range []string{"German", "Hallo", "Spanish"} {
		if !strings.Contains(out, want) {
			t.Errorf("hello printed %q: no %s", out, want)
		}
	}

	p.rebuild(nil, "-t", "hello", dir)

	edit(t, filepath.Join(dir, "hello.sh"), "world", "reader")
	p.rebuild([]string{"COPY --chmod=755 hello.sh", "COPY --from=program", "RUN sh -n"}, "-t", "hello", dir)
	if out, _ := p.run("run", "--rm", "hello"); !strings.Contains(out, "reader") {
		t.Errorf("after the change hello printed %q", out)
	}

	// A comment goes as far as the step that drops it.
	edit(t, filepath.Join(dir, "words/north.txt"), "# the north", "# the cold north")
	p.rebuild([]string{"COPY words", "RUN cat words"}, "-t", "hello", dir)
}

func TestWeb(t *testing.T) {
	p := newPlace(t)
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	goroot := strings.TrimSpace(string(out))
	if fi, err := os.Lstat(filepath.Join(goroot, "src")); err != nil || !fi.IsDir() {
		t.Skipf("the Go tool chain in %s is not in one piece", goroot)
	}
	p.toolbox()
	dir := example(t, "web")
	args := []string{"-t", "web", "--build-context", "go=" + goroot, dir}
	p.build(args...)
	if page := p.serve("web", "8080"); !strings.Contains(page, "user 65534") {
		t.Errorf("the page is %q", page)
	}

	p.rebuild(nil, args...)

	// What .dockerignore hides changes nothing.
	edit(t, filepath.Join(dir, "README.md"), "web", "WEB")
	p.rebuild(nil, args...)

	edit(t, filepath.Join(dir, "main.go"), "Hello from", "Good day from")
	p.rebuild([]string{"COPY --from=build", "RUN --mount=from=go"}, args...)
	if page := p.serve("web", "8080"); !strings.HasPrefix(page, "Good day") {
		t.Errorf("after the change the page is %q", page)
	}
}

func TestPython(t *testing.T) {
	p := newPlace(t)
	p.debian()
	mirror(t)
	dir := example(t, "python")
	p.build("-t", "report", dir)
	if out, _ := p.run("run", "--rm", "report"); out != "3 months, 157 mm, 52.3 mm a month\n" {
		t.Errorf("report printed %q", out)
	}
	p.rebuild(nil, "-t", "report", dir)
	edit(t, filepath.Join(dir, "data/rain.csv"), "61", "91")
	p.rebuild([]string{"COPY data/"}, "-t", "report", dir)
	if out, _ := p.run("run", "--rm", "report"); !strings.Contains(out, "187 mm") {
		t.Errorf("after the change report printed %q", out)
	}
}

func TestNginx(t *testing.T) {
	p := newPlace(t)
	p.debian()
	mirror(t)
	dir := example(t, "nginx")
	p.build("-t", "site", dir)
	if page := p.serve("site", "80"); !strings.Contains(page, "Served by nginx, built by kiln") {
		t.Errorf("the page is %q", page)
	}
	edit(t, filepath.Join(dir, "website/index.html"), "Served by", "Still served by")
	p.rebuild([]string{"COPY ./website/"}, "-t", "site", dir)
	if page := p.serve("site", "80"); !strings.Contains(page, "Still served") {
		t.Errorf("after the change the page is %q", page)
	}
}
