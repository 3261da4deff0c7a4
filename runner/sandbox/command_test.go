package sandbox

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCommand(t *testing.T) {
	umask := uint32(0o077)
	for _, c := range []struct {
		args string
		set  func(*Spec)
		want string
	}{
		{"id", func(s *Spec) { s.UID, s.GID, s.Groups = 7, 8, []int{9, 10} }, "7 8 [9 10]"},
		{"id", func(*Spec) {}, "0 0 []"},
		{"env", func(s *Spec) { s.Env = []string{"A=1", "B=x y"} }, "A=1\nB=x y"},
		{"env", func(s *Spec) { s.Env, s.Init = []string{"A=1", "GOGC=7"}, true }, "A=1\nGOGC=7"},
		{"pwd", func(s *Spec) { s.Cwd = "/tmp" }, "/tmp"},
		{"umask", func(*Spec) {}, "0022"},
		{"umask", func(s *Spec) { s.Umask = &umask }, "0077"},
		{"hostname", func(s *Spec) { s.Hostname = "cell" }, "cell"},
		{"limit 0", func(s *Spec) { s.Rlimits = []Rlimit{{"cpu", 100, 200}} }, "100 200"},
		{"pid", func(s *Spec) { s.Init = true }, "2"},
		{"cat /proc/self/oom_score_adj", func(s *Spec) { n := 500; s.OOMScoreAdj = &n }, "500"},
		{"cat /proc/sys/net/ipv4/ip_unprivileged_port_start", func(s *Spec) {
			s.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
		}, "0"},
	} {
		s := spec(t, strings.Fields(c.args)...)
		c.set(&s)
		// "pid 2" may be 3 or more: the init's threads have numbers too.
		got := output(t, s)
		if c.args == "pid" && got != "1" {
			continue
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.args, got, c.want)
		}
	}
}

func TestBadSpecs(t *testing.T) {
	needRoot(t)
	for name, set := range map[string]func(*Spec){
		"no command":   func(s *Spec) { s.Args = nil },
		"NUL":          func(s *Spec) { s.Args = []string{"a\x00b"} },
		"no root":      func(s *Spec) { s.RootPath = "" },
		"missing root": func(s *Spec) { s.RootPath = "/missing" },
		"missing cwd":  func(s *Spec) { s.Cwd = "/missing" },
		"capability":   func(s *Spec) { s.Capabilities = []string{"CAP_NONSENSE"} },
		"rlimit":       func(s *Spec) { s.Rlimits = []Rlimit{{"nonsense", 1, 1}} },
		"profile":      func(s *Spec) { s.Seccomp.Profile = []byte("{") },
		"group name":   func(s *Spec) { s.CgroupName = "../x" },
		"group parent": func(s *Spec) { s.Limits.Parent = "/../x" },
		"cpuset":       func(s *Spec) { s.Limits.CPUSetCPUs = "999" },
		"host name":    func(s *Spec) { s.UTS.Host, s.Hostname = true, "x" },
	} {
		s := spec(t, "true")
		set(&s)
		if p, err := Start(t.Context(), s); err == nil {
			p.Wait()
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestStdio(t *testing.T) {
	s := spec(t, "copy")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("through"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	s.Stdin = r
	if got := output(t, s); got != "through" {
		t.Errorf("%q", got)
	}
}

// A command of any user may open its standard output anew.
func TestStdoutReopened(t *testing.T) {
	s := spec(t, "write", "/dev/stdout", "anew")
	s.UID = 1000
	if got := output(t, s); got != "anew" {
		t.Errorf("%q", got)
	}
}

// Starts that fail, and sandboxes that end, leave nothing in the parent.
func TestNoDescriptorsLeftInParent(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	s := spec(t, "true")
	bad := s
	bad.Args = []string{"/missing"}
	worse := s
	worse.Mounts = []Mount{{Target: "/x", Source: "/missing"}}
	tty := s
	tty.Terminal = &Size{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := 0
	for i := range 3 {
		for _, s := range []Spec{s, bad, worse, tty} {
			p, err := Start(t.Context(), s)
			if err != nil {
				continue
			}
			if p.Terminal() != nil {
				p.Terminal().Close()
			}
			p.Wait()
		}
		if _, err := Start(ctx, s); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want canceled", err)
		}
		if i == 0 {
			before = count() // the init's file and the poller stay
		}
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestTerminal(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"size", "33 44"}, {"tty", "/dev/pts/0"}, {"stat /dev/console", "20620 0:5 136:0"},
	} {
		for _, init := range []bool{false, true} {
			s := spec(t, strings.Fields(c.args)...)
			s.Terminal, s.Init = &Size{33, 44}, init
			p, err := Start(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			out, err := io.ReadAll(p.Terminal())
			if err != nil && !errors.Is(err, unix.EIO) { // a terminal's end
				t.Error(err)
			}
			p.Terminal().Close()
			if status, err := p.Wait(); err != nil || status.Code != 0 {
				t.Error(status, err)
			}
			if got := strings.TrimSpace(string(out)); got != c.want {
				t.Errorf("%s, init %v: %q, want %q", c.args, init, got, c.want)
			}
		}
	}
	// Of an exec, in the sandbox's own devpts.
	p := running(t, nil)
	x, err := Exec(t.Context(), p.PID(), Command{Args: []string{"/bin/box", "size"}, Terminal: &Size{5, 6}})
	if err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(x.Terminal())
	if _, err := x.Wait(); err != nil || strings.TrimSpace(string(out)) != "5 6" {
		t.Errorf("%q, %v", out, err)
	}
	x.Terminal().Close()
}

func TestInitReapsAndForwards(t *testing.T) {
	s := spec(t, "sleep", "1000")
	s.Init = true
	p, err := Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, code := boxIn(t, p, Command{}, "orphan"); code != 0 {
		t.Errorf("orphan: %d", code)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); err != nil || status.Code != 143 {
		t.Errorf("status %+v, error %v; want 143", status, err)
	}
}

func TestNetwork(t *testing.T) {
	var pid int
	s := spec(t, "cat", "/proc/net/dev")
	s.NetworkReady = func(_ context.Context, p int) error { pid = p; return nil }
	if got := output(t, s); !strings.Contains(got, "lo:") || pid == 0 {
		t.Errorf("devices %q, pid %d", got, pid)
	}
	s.NetworkReady = func(context.Context, int) error { return errors.New("no network today") }
	if _, err := Start(t.Context(), s); err == nil || !strings.Contains(err.Error(), "no network today") {
		t.Errorf("error %v", err)
	}
	// A second sandbox in the first one's network.
	p := running(t, nil)
	ns, err := os.Open("/proc/" + strconv.Itoa(p.PID()) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	s = spec(t, "links", "/proc/self/ns")
	s.Network.Join = ns
	want, err := os.Readlink("/proc/" + strconv.Itoa(p.PID()) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := output(t, s); !strings.Contains(got, want) {
		t.Errorf("namespaces %q, want %s", got, want)
	}
}

func TestPrivileged(t *testing.T) {
	s := spec(t, "mount", "/tmp")
	s.Privileged = true
	output(t, s)
	s.Args = []string{"/bin/box", "write", "/proc/sys/kernel/hostname", "free"}
	output(t, s)
	if _, err := os.Stat("/dev/kmsg"); err == nil {
		s.Args = []string{"/bin/box", "stat", "/dev/kmsg"}
		output(t, s)
	}
}

func TestFreeze(t *testing.T) {
	p := running(t, nil)
	if p.Group().V2 == "" && p.Group().V1["freezer"] == "" {
		t.Skip("no control group to freeze")
	}
	if err := p.Group().Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := p.Group().Thaw(); err != nil {
		t.Fatal(err)
	}
	if err := p.Group().Freeze(); err != nil { // killed while frozen
		t.Fatal(err)
	}
}

func TestAccounting(t *testing.T) {
	p := running(t, func(s *Spec) { s.Accounting = true; s.Limits.Memory = 100 << 20; s.Limits.Pids = 30 })
	st := p.Group().Stats()
	if st.Memory == 0 || st.MemoryLimit != 100<<20 || st.Pids == 0 || st.PidsLimit != 30 || st.CPU == 0 {
		t.Errorf("%+v", st)
	}
	if err := p.Group().Update(Limits{Memory: 50 << 20}); err != nil {
		t.Error(err)
	} else if got := p.Group().Stats().MemoryLimit; got != 50<<20 {
		t.Errorf("limit %d after the update", got)
	}
}

// Many at once, from goroutines that end.
func TestParallel(t *testing.T) {
	s := spec(t, "echo", "x")
	errs := make(chan error)
	for range 20 {
		go func() {
			r, w, err := os.Pipe()
			if err != nil {
				errs <- err
				return
			}
			s := s
			s.Stdout = w
			runtime.LockOSThread() // and end with the thread
			p, err := Start(t.Context(), s)
			w.Close()
			if err == nil {
				if line, _ := bufio.NewReader(r).ReadString('\n'); line != "x\n" {
					err = errors.New("read " + strconv.Quote(line))
				}
				_, werr := p.Wait()
				err = errors.Join(err, werr)
			}
			r.Close()
			errs <- err
		}()
	}
	for range 20 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
