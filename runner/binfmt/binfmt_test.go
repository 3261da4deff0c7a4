package binfmt

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// machineWith is an amd64 machine with these handlers and programs.
func machineWith(t *testing.T, kernel string, handlers map[string]string, programs ...string) Host {
	dir := t.TempDir()
	for name, text := range handlers {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Host{
		Platform: ocispecs.Platform{OS: "linux", Architecture: "amd64"}, Handlers: dir, Kernel: kernel,
		LookPath: func(name string) (string, error) {
			for _, p := range programs {
				if p == name {
					return "/opt/" + p, nil
				}
			}
			return "", errors.New("not found")
		},
	}
}

// As Debian registers it, and as others do without the flag F.
const (
	debian = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POF\noffset 0\n" +
		"magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
)

func TestFind(t *testing.T) {
	const static = "qemu-aarch64-static"
	open := strings.Replace(debian, "POF", "PO", 1)
	on, off := map[string]string{"status": "enabled\n"}, strings.Replace(debian, "enabled", "disabled", 1)
	with := func(text string) map[string]string {
		return map[string]string{"status": "enabled\n", "some-name": text, "register": ""}
	}
	for _, c := range []struct {
		name, platform string
		host           Host
		own            bool
		err            string
	}{
		{"nothing said", "", machineWith(t, "6.1", nil), false, ""},
		{"its own", "linux/amd64", machineWith(t, "6.1", nil), false, ""},
		{"runs here as well", "linux/386", machineWith(t, "6.1", nil), false, ""},
		{"registered", "linux/arm64", machineWith(t, "6.1", with(debian)), false, ""},
		{"registered, and on PATH", "linux/arm64", machineWith(t, "6.18.1", with(debian), static), false, ""},
		{"registered for another", "linux/riscv64", machineWith(t, "6.18.1", with(debian)), false, "apt-get install qemu-user-static"},
		{"on PATH", "linux/arm64", machineWith(t, "6.18.1", on, static), true, ""},
		{"with a variant", "linux/arm64/v8", machineWith(t, "6.18.1", on, static), true, ""},
		{"switched off", "linux/arm64", machineWith(t, "6.7", with(off), static), true, ""},
		{"not for any root", "linux/arm64", machineWith(t, "6.7", with(open), static), true, ""},
		{"not for any root, old kernel", "linux/arm64", machineWith(t, "6.6", with(open), static), false, ""},
		{"all switched off", "linux/arm64", machineWith(t, "6.6.1", map[string]string{"status": "disabled\n", "x": debian}, static), false, "binfmt-support"},
		{"old kernel", "linux/arm64", machineWith(t, "6.6.1-x", on, static), false, "apt-get install binfmt-support"},
		{"old kernel and nothing", "linux/arm64", machineWith(t, "5.15", on), false, "qemu-user-static binfmt-support"},
		{"nothing", "linux/arm64", machineWith(t, "7.0", on, "qemu-arm-static"), false, "qemu-aarch64-static is not on PATH"},
		{"not mounted", "linux/arm64", Host{Platform: ocispecs.Platform{OS: "linux", Architecture: "amd64"}, Handlers: "/missing", Kernel: "6.7",
			LookPath: func(string) (string, error) { return "/opt/" + static, nil }}, true, ""},
		{"unknown", "linux/vax", machineWith(t, "7.0", on), false, "no emulator for them is known"},
		{"another system", "windows/amd64", machineWith(t, "7.0", on), false, "no emulator for them is known"},
		{"no platform", "linux/arm64/v8/x/y", machineWith(t, "7.0", on), false, "platform"},
	} {
		e, err := c.host.Find(c.platform)
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want %q", c.name, err, c.err)
		case c.err == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case (e != nil) != c.own:
			t.Errorf("%s: %+v, want an emulator: %v", c.name, e, c.own)
		case e != nil && (e.Interpreter != "/opt/"+static || len(e.Magic) != len(e.Mask)):
			t.Errorf("%s: %+v", c.name, e)
		}
	}
}

// The formats are those of QEMU's own registrations.
func TestFormats(t *testing.T) {
	f := parseHandler(debian)
	for _, m := range machines {
		if got, want := f.matches(m.header()), m.arch == "arm64"; got != want {
			t.Errorf("%s: matches %v", m.arch, got)
		}
		own := handler{enabled: true, offset: "0", magic: m.header(), mask: m.mask()}
		for _, other := range machines {
			if got, want := own.matches(other.header()), other.arch == m.arch; got != want {
				t.Errorf("%s as %s: matches %v", other.arch, m.arch, got)
			}
		}
		pie := m.header()
		if m.big {
			pie[17] = 3
		} else {
			pie[16] = 3
		}
		pie[7] = 3 // GNU/Linux
		if !own.matches(pie) {
			t.Errorf("%s: a position-independent program does not match", m.arch)
		}
	}
	if (handler{enabled: true, offset: "0"}).matches(machines[0].header()) {
		t.Error("a handler by extension matches a program")
	}
}

// The programs run, here or in their emulators.
func TestProgram(t *testing.T) {
	ran := 0
	for _, m := range machines {
		program := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(program, Program("linux/"+m.arch), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program)
		if emulator, err := exec.LookPath("qemu-" + m.qemu + "-static"); err == nil {
			cmd = exec.Command(emulator, program)
		} else if m.arch != This().Platform.Architecture {
			continue
		}
		ran++
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", m.arch, err, out)
		}
	}
	if ran < 2 {
		t.Skip("no qemu-*-static on PATH: apt-get install qemu-user-static")
	}
}
