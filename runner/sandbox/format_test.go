package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kiln.build/runner/binfmt"
)

// foreign is a sandbox over a root with the box for arm64, which it can run.
func foreign(t *testing.T, args ...string) Spec {
	t.Helper()
	host := binfmt.This()
	host.Handlers = "/missing"
	e, err := host.Find("linux/arm64")
	if err != nil || e == nil {
		t.Skip("no emulator of its own:", err)
	}
	s := spec(t, args...)
	bin := filepath.Join(s.RootPath, "bin/box")
	if err := os.Remove(bin); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", bin, "./testdata/box")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.Formats = []Format{Format(*e)}
	return s
}

// registered lists what is registered with the kernel for all.
func registered(t *testing.T) string {
	entries, err := os.ReadDir("/proc/sys/fs/binfmt_misc")
	if err != nil {
		t.Log(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestFormats(t *testing.T) {
	s := foreign(t, "id")
	before := registered(t)
	if got := output(t, s); got != "0 0 []" {
		t.Errorf("id: %q", got)
	}
	// All ids are there, as without emulation.
	s.UID, s.GID, s.Groups = 4711, 65534, []int{12}
	if got := output(t, s); got != "4711 65534 [12]" {
		t.Errorf("id: %q", got)
	}
	s.UID, s.GID, s.Groups = 0, 0, nil
	for args, want := range map[string]string{
		"cat /proc/self/uid_map":        "0 0 4294967295",
		"ls /proc/sys/fs/binfmt_misc":   "",
		"stat /dev/null":                "20666 0:0 1:3",
		"links /proc/self/fd":           "",
		"write /proc/sys/vm/x anything": "refused",
	} {
		s.Args = append([]string{"/bin/box"}, strings.Fields(args)...)
		if want == "refused" {
			refused(t, s)
			continue
		}
		got := strings.Join(strings.Fields(output(t, s)), " ")
		if strings.HasPrefix(args, "links") { // none of the instance's descriptors
			if strings.Contains(got, "binfmt") || strings.Contains(got, "qemu") {
				t.Errorf("%s: %q", args, got)
			}
		} else if got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
	// With a map of the caller's, with an init, and in a running sandbox.
	mapped := s
	mapped.Args = []string{"/bin/box", "id"}
	mapped.UIDMap, mapped.GIDMap = []IDMap{{0, 100000, 65536}}, []IDMap{{0, 100000, 65536}}
	if got := output(t, mapped); got != "0 0 []" {
		t.Errorf("id with a map: %q", got)
	}
	s.Args, s.Init = []string{"/bin/box", "sleep", "1000"}, true
	p, err := Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if out, errOut, code := boxIn(t, p, Command{}, "id"); code != 0 || out != "0 0 []" {
		t.Errorf("exec: %q %q %d", out, errOut, code)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	// It was for them alone.
	if after := registered(t); after != before {
		t.Errorf("registered: %q, before %q", after, before)
	}
	if strings.Contains(before, "qemu") {
		return // runs anyway
	}
	s.Args, s.Init, s.Formats = []string{"/bin/box", "id"}, false, nil
	var ce *CommandError
	if p, err := Start(t.Context(), s); !errors.As(err, &ce) || ce.Code != 126 || !strings.Contains(ce.Message, "exec format error") {
		if err == nil {
			p.Wait()
		}
		t.Errorf("without the format: %v, want code 126", err)
	}
}

func TestBadFormats(t *testing.T) {
	needRoot(t)
	foreign(t, "true") // skips where there is none, as before Linux 6.7
	good := Format{Name: "x", Magic: []byte("abc"), Mask: []byte{255, 255, 255}, Interpreter: box}
	for name, set := range map[string]func(*Format){
		"no name":             func(f *Format) { f.Name = "" },
		"no magic":            func(f *Format) { f.Magic = nil },
		"short mask":          func(f *Format) { f.Mask = f.Mask[1:] },
		"separator":           func(f *Format) { f.Interpreter = "/a\x01b" },
		"missing interpreter": func(f *Format) { f.Interpreter = "/missing" },
		"name with a slash":   func(f *Format) { f.Name = "../x" },
	} {
		s, f := spec(t, "true"), good
		set(&f)
		s.Formats = []Format{f}
		if p, err := Start(t.Context(), s); err == nil {
			p.Wait()
			t.Errorf("%s: accepted", name)
		}
	}
	// One that is good runs what begins with it.
	s := spec(t)
	s.Formats, s.Args = []Format{good}, []string{"/script"}
	if err := os.WriteFile(filepath.Join(s.RootPath, "script"), []byte("abcdef"), 0o755); err != nil {
		t.Fatal(err)
	}
	if p, err := Start(t.Context(), s); err != nil {
		t.Error(err)
	} else if status, err := p.Wait(); err != nil || status.Signal == int(unix.SIGKILL) {
		t.Errorf("%+v %v", status, err)
	}
}
