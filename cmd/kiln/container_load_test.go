package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"kiln.build/runner/monitor"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// soak reports whether tests should take their time.
func soak() bool { return os.Getenv("KILN_SOAK") != "" }

// load is a world with a network of its own, in which containers are many and
// all that they leave behind is to be seen.
type load struct {
	*world
	net      netns.NsHandle
	mark     string // in the environment of all containers' processes
	monitors sync.Map
}

func newLoad(t *testing.T) *load {
	w := newWorld(t)
	if _, err := exec.LookPath("nsenter"); err != nil {
		t.Skip("needs nsenter")
	}
	network, err := newNetwork()
	if err != nil {
		t.Skipf("needs a network namespace: %v", err)
	}
	l := &load{world: w, net: network, mark: fmt.Sprintf("KILN_LOAD=%d-%d", os.Getpid(), time.Now().UnixNano())}
	t.Cleanup(func() { _ = l.net.Close() })
	w.prefix = []string{"nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), int(l.net))}
	t.Cleanup(func() {
		// Whatever failed, nothing stays.
		ids, _ := l.command(context.Background(), "ps", "-aq").Output()
		for _, id := range strings.Fields(string(ids)) {
			_ = l.command(context.Background(), "rm", "-f", id).Run()
		}
	})
	return l
}

// newNetwork makes a network namespace and stays in its own: should this be
// the first thread, it does not end, and all that look into /proc/self would
// find the new one.
func newNetwork() (netns.NsHandle, error) {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		return netns.None(), err
	}
	defer own.Close()
	made, err := netns.New()
	if err != nil {
		return netns.None(), err
	}
	if err := netns.Set(own); err != nil {
		return netns.None(), errors.Join(err, made.Close()) // the thread stays locked
	}
	runtime.UnlockOSThread()
	return made, nil
}

// try runs a command that must end by itself within a time, and in an orderly
// way.
func (l *load) try(args ...string) (stdout string, code int, err error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	c := l.command(ctx, args...)
	c.Stdout, c.Stderr = &out, &errs
	c.WaitDelay = time.Second
	err = c.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		return "", 0, fmt.Errorf("kiln %q: %v, %s", args, err, &errs)
	}
	for _, bad := range []string{"panic", "goroutine ", "monitor ended", "nil pointer", "i/o timeout", "bad file descriptor", "interrupted"} {
		if strings.Contains(errs.String(), bad) {
			return "", 0, fmt.Errorf("kiln %q: %s", args, &errs)
		}
	}
	return out.String(), c.ProcessState.ExitCode(), nil
}

// ok is try for a command that must succeed.
func (l *load) ok(args ...string) (string, error) {
	out, code, err := l.try(args...)
	if err == nil && code != 0 {
		_, stderr, _ := l.run(args...)
		err = fmt.Errorf("kiln %q: exit status %d; again: %s", args, code, stderr)
	}
	return out, err
}

// create are the arguments that start a container of this load.
func (l *load) create(name, network string, command ...string) []string {
	return slices.Concat([]string{"--name", name, "--network", network, "-e", l.mark, "toolbox"}, command)
}

// processes are those that a world's commands, or a load's containers, have.
func processes(environment string) []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		env, err := os.ReadFile(f)
		if err == nil && slices.Contains(strings.Split(string(env), "\x00"), environment) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// running are the store's monitors.
func (l *load) running() []int {
	var monitors []int
	for _, pid := range processes("KILN_ROOT=" + l.root) {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.HasPrefix(cmd, []byte(monitor.Name+"\x00")) {
			l.monitors.Store(pid, true)
			monitors = append(monitors, pid)
		}
	}
	return monitors
}

// left lists what containers must not leave: see [world.leftovers]; besides,
// processes, control groups, interfaces and firewall rules.
func (l *load) left() []string {
	l.t.Helper()
	left := l.leftovers()
	for _, pid := range processes(l.mark) {
		left = append(left, fmt.Sprintf("process %d of a container", pid))
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/kiln/*")
	more, _ := filepath.Glob("/sys/fs/cgroup/kiln/*")
	for _, g := range append(groups, more...) {
		var ns, pid, start, n int
		if c, _ := fmt.Sscanf(filepath.Base(g), "%d-%d-%d-%d", &ns, &pid, &start, &n); c != 4 {
			continue
		}
		if _, ours := l.monitors.Load(pid); ours {
			left = append(left, "control group "+g)
		}
	}
	dev, err := exec.Command(l.prefix[0], append(l.prefix[1:], "cat", "/proc/net/dev")...).Output()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^ *(\w+):`).FindAllSubmatch(dev, -1) {
		if name := string(m[1]); name != "lo" && name != "kiln0" {
			left = append(left, "interface "+name)
		}
	}
	return left
}

// rules is the firewall of the load's network, as far as it can be counted.
func (l *load) rules() (n int) {
	c, err := nftables.New(nftables.WithNetNSFd(int(l.net)))
	if err != nil {
		l.t.Fatal(err)
	}
	chains, err := c.ListChains()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, chain := range chains {
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			l.t.Fatal(err)
		}
		n += len(rules)
	}
	return n
}

// nothingLeft removes all containers and looks for leftovers.
func (l *load) nothingLeft(rules int) {
	l.t.Helper()
	l.running()
	ids, _ := l.must("ps", "-aq")
	if all := strings.Fields(ids); len(all) > 0 {
		l.must(append([]string{"rm", "-f"}, all...)...)
	}
	if out, _ := l.must("ps", "-aq"); out != "" {
		l.t.Errorf("after rm -f there are still containers: %s", out)
	}
	waitFor(l.t, "leftovers to go", func() bool {
		// What killed processes leave is swept by the next one.
		l.must("run", "--rm", "--network", "none", "toolbox", "true")
		return len(l.left()) == 0
	})
	for _, x := range l.left() {
		l.t.Error(x)
	}
	for _, dir := range []string{"containers", "volumes"} {
		files, _ := filepath.Glob(filepath.Join(l.root, dir, "*"))
		for _, f := range files {
			if filepath.Base(f) != ".names" {
				l.t.Errorf("file %s", f)
			}
		}
	}
	if n := l.rules(); n != rules {
		l.t.Errorf("%d firewall rules, %d before", n, rules)
	}
}

// TestConcurrentContainers has eight clients go through the whole life of
// many containers at once, and then of the same few.
func TestConcurrentContainers(t *testing.T) {
	l := newLoad(t)
	const clients = 8
	each, steps := 3, 8
	if soak() {
		each, steps = 200/clients, 60
	}
	l.must(append([]string{"run", "--rm"}, l.create("first", "bridge", "true")...)...)
	rules := l.rules()
	looking, stop := context.WithCancel(t.Context())
	looked := make(chan error, 1)
	go func() {
		var err error
		for looking.Err() == nil && err == nil {
			_, err = l.ok("ps", "-a")
		}
		looked <- err
	}()
	var g errgroup.Group
	for client := range clients {
		g.Go(func() error {
			var names []string
			for i := range each {
				names = append(names, fmt.Sprintf("c%d-%d", client, i))
			}
			for i, n := range names {
				if _, err := l.ok(append([]string{"run", "-d"}, l.create(n, []string{"none", "bridge"}[i%2], "sleep", "1000")...)...); err != nil {
					return err
				}
			}
			for _, verb := range [][]string{{"pause"}, {"unpause"}, {"exec", "NAME", "true"}, {"stop", "-t", "0"}, {"start"}, {"kill"}, {"wait"}, {"restart", "-t", "0"}} {
				args := append(slices.Clone(verb), names...)
				if slices.Contains(verb, "NAME") {
					args = slices.Clone(verb)
					args[1] = names[0]
				}
				if _, err := l.ok(args...); err != nil {
					return err
				}
			}
			_, err := l.ok(append([]string{"rm", "-f"}, names...)...)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	// Everybody does anything to the same few: it may be refused, and no more.
	verbs := [][]string{
		{"start"}, {"stop", "-t", "0"}, {"kill"}, {"pause"}, {"unpause"}, {"restart", "-t", "0"}, {"rm"}, {"rm", "-f"},
		{"logs"}, {"inspect"}, {"top"}, {"update", "--pids-limit", "99"}, {"exec", "-d", "NAME", "true"}, {"run"}, {"run"},
	}
	for client := range clients {
		g.Go(func() error {
			r := rand.New(rand.NewPCG(1, uint64(client)))
			for range steps {
				name := fmt.Sprintf("shared%d", r.IntN(3))
				args := slices.Clone(verbs[r.IntN(len(verbs))])
				switch i := slices.Index(args, "NAME"); {
				case args[0] == "run":
					args = append([]string{"run", "-d"}, l.create(name, "none", "sleep", "1000")...)
				case i >= 0:
					args[i] = name
				default:
					args = append(args, name)
				}
				if _, _, err := l.try(args...); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-looked; err != nil && t.Context().Err() == nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	l.nothingLeft(rules)
}

// TestKilledContainers kills monitors and commands at random moments. What ps
// says afterwards is true, and rm -f leaves nothing.
func TestKilledContainers(t *testing.T) {
	l := newLoad(t)
	rounds := 12
	if soak() {
		rounds = 300
	}
	l.must(append([]string{"run", "--rm"}, l.create("first", "bridge", "true")...)...)
	rules := l.rules()
	r := rand.New(rand.NewPCG(2, 2))
	for round := range rounds {
		name := fmt.Sprintf("victim%d", round)
		network := []string{"none", "bridge"}[round%2]
		commands := [][]string{
			append([]string{"run"}, l.create(name, network, "sleep", "1000")...),
			append([]string{"run", "-d", "--rm"}, l.create(name, network, "sleep", "1000")...),
			append([]string{"run", "-d", "--restart", "always"}, l.create(name, network, "sh", "-c", "sleep 0.01")...),
			{"start", "old"}, {"restart", "-t", "0", "old"}, {"stop", "-t", "0", "old"}, {"rm", "-f", "old"}, {"pause", "old"},
		}
		if round%3 == 0 {
			l.run(append([]string{"run", "-d"}, l.create("old", "none", "sleep", "1000")...)...)
		}
		c := l.command(t.Context(), commands[r.IntN(len(commands))]...)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		// Not synchronisation: the point is to strike anywhere.
		time.Sleep(time.Duration(r.IntN(80)) * time.Millisecond)
		if monitors := l.running(); len(monitors) > 0 && r.IntN(2) == 0 {
			_ = unix.Kill(monitors[r.IntN(len(monitors))], unix.SIGKILL)
			time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
		}
		_ = c.Process.Kill()
		_ = c.Wait()
		if round%3 == 2 {
			l.truth()
		}
	}
	l.nothingLeft(rules)
}

// truth compares what ps says with the processes that there are.
func (l *load) truth() {
	l.t.Helper()
	// A monitor that was killed takes its container with it, in the kernel's
	// own time; one that starts a container says so when it runs.
	var wrong string
	waitFor(l.t, "the truth", func() bool {
		wrong = l.compare()
		return wrong == ""
	})
	if wrong != "" {
		l.t.Error(wrong)
	}
}

func (l *load) compare() string {
	out, _ := l.must("ps", "-a", "--format", "{{.Names}} {{.State}}")
	claimed := 0
	for line := range strings.Lines(out) {
		name, state, _ := strings.Cut(strings.TrimSpace(line), " ")
		text, _, code := l.run("inspect", "--format", "{{.State.Pid}} {{.State.Status}}", name)
		if code != 0 {
			return name + " is gone" // it removed itself; look again
		}
		var pid int
		var now string
		_, _ = fmt.Sscan(text, &pid, &now)
		if now != state {
			return fmt.Sprintf("%s is %s and then %s", name, state, now)
		}
		alive := pid > 0 && unix.Kill(pid, 0) == nil
		switch {
		case (state == "running" || state == "paused") && !alive:
			return fmt.Sprintf("%s is %s and has no process", name, state)
		case state == "running" || state == "paused":
			claimed++
		case alive:
			return fmt.Sprintf("%s is %s and has process %d", name, state, pid)
		}
	}
	if n := len(processes(l.mark)); claimed == 0 && n > 0 {
		return fmt.Sprintf("nothing runs, but there are %d processes", n)
	}
	return ""
}

// TestForegroundOutlivesCommand kills the command that shows a container.
func TestForegroundOutlivesCommand(t *testing.T) {
	l := newLoad(t)
	c := l.command(t.Context(), append([]string{"run"}, l.create("show", "none", "sh", "-c", "echo one; sleep 0.5; echo two")...)...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	if code, _ := l.must("wait", "show"); code != "0\n" {
		t.Errorf("the container ended with %s", code)
	}
	if log, _ := l.must("logs", "show"); log != "one\ntwo\n" {
		t.Errorf("its log is %q", log)
	}
}

// newUserWorld is [newWorld] of another user than root, with one id.
func newUserWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 || !userNamespace() {
		t.Skip("needs root to become another user, and user namespaces")
	}
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip("needs setpriv")
	}
	built, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	for _, dir := range []string{filepath.Dir(built.kiln), home} {
		for ; dir != "/"; dir = filepath.Dir(dir) {
			if fi, err := os.Stat(dir); err == nil && fi.Mode()&0o005 != 0o005 {
				_ = os.Chmod(dir, fi.Mode()|0o005)
			}
		}
	}
	if err := os.Chown(home, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, kiln: built.kiln, root: filepath.Join(home, "store")}
	w.prefix = []string{setpriv, "--reuid", "65534", "--regid", "65534", "--clear-groups", "env", "HOME=" + home}
	w.must("import", built.toolbox, "toolbox")
	return w
}

// TestContainersWithoutRoot goes through a container's life as another user.
func TestContainersWithoutRoot(t *testing.T) {
	w := newUserWorld(t)
	built, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.command(context.Background(), "rm", "-f", "web").Run() })
	w.must("run", "-d", "--name", "web", "--health-cmd", "true", "--health-interval", "50ms", "toolbox", "sleep", "1000")
	waitFor(t, "a health check", func() bool {
		out, _ := w.must("ps", "-q", "--filter", "health=healthy")
		return out != ""
	})
	for _, step := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"exec", "web", "sh", "-c", "echo inside; exit 4"}, 4, "inside\n"},
		{[]string{"exec", "web", "no-such-command"}, 127, ""},
		{[]string{"cp", built.toolbox, "web:/copy"}, 0, ""},
		{[]string{"exec", "web", "sh", "-c", "test -s /copy && echo there"}, 0, "there\n"},
		{[]string{"diff", "web"}, 0, "A /copy\n"},
		{[]string{"top", "web"}, 0, "sleep 1000"},
		{[]string{"stats", "--no-stream", "--format", "{{.Name}}", "web"}, 0, "web\n"},
		{[]string{"update", "--restart", "always", "web"}, 0, "web\n"},
		{[]string{"ps", "--filter", "health=healthy", "--format", "{{.Names}}"}, 0, "web\n"},
		{[]string{"restart", "-t", "0", "web"}, 0, "web\n"},
		{[]string{"rm", "-f", "web"}, 0, "web\n"},
		{[]string{"run", "--rm", "--network", "none", "--device", "/dev/null:/dev/sub/other", "toolbox", "sh", "-c", "echo x > /dev/sub/other && echo taken"}, 0, "taken\n"},
		{[]string{"run", "--rm", "--network", "none", "--blkio-weight", "100", "toolbox", "true"}, 125, ""},
		{[]string{"ps", "-aq"}, 0, ""},
	} {
		out, stderr, code := w.run(step.args...)
		if code != step.code || !strings.Contains(out, step.want) || step.want == "" && out != "" {
			t.Errorf("kiln %q: status %d, %q, %q; want %d, %q", step.args, code, out, stderr, step.code, step.want)
		}
	}
	for _, pid := range processes("KILN_ROOT=" + w.root) {
		waitFor(t, "the monitor to end", func() bool { return unix.Kill(pid, 0) != nil })
	}
	if left := processes("KILN_ROOT=" + w.root); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

// TestRunWritesNoImage runs a big image, 5 GB of it with KILN_SOAK, and looks
// at every file of images and layers before and after. It starts as fast as a
// small one, and writes some kilobytes of the container's own.
func TestRunWritesNoImage(t *testing.T) {
	w := newWorld(t)
	size := "300M"
	if soak() {
		size = "5G"
	}
	w.must("build", "-t", "big", w.context("FROM toolbox\nRUN truncate -s "+size+" /big; mkdir /many; cd /many; touch $(seq 1 2000)\n"))
	walk := func(f func(path string, st *unix.Stat_t), dirs ...string) {
		t.Helper()
		for _, dir := range dirs {
			err := filepath.WalkDir(filepath.Join(w.root, dir), func(path string, _ os.DirEntry, err error) error {
				if err != nil {
					return err
				}
				var st unix.Stat_t
				if err := unix.Lstat(path, &st); err != nil {
					return err
				}
				f(path, &st)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	files := func() string {
		var b strings.Builder
		walk(func(path string, st *unix.Stat_t) {
			fmt.Fprintln(&b, path, st.Ino, st.Size, st.Blocks, st.Mtim, st.Ctim)
		}, "images", "layers")
		return b.String()
	}
	taken := func() (bytes int64) {
		walk(func(_ string, st *unix.Stat_t) { bytes += st.Blocks * 512 }, ".")
		return bytes
	}
	fastest := func(image string) time.Duration {
		best := time.Hour
		for range 6 {
			began := time.Now()
			w.must("run", "--rm", "--network", "none", image, "true")
			best = min(best, time.Since(began))
		}
		return best
	}
	w.must("run", "--rm", "--network", "none", "big", "true")
	before, space := files(), taken()
	w.must("run", "--name", "kept", "--network", "none", "big", "sh", "-c", "ls /many > /list")
	if files() != before {
		t.Error("running the image changed files of images or layers")
	}
	if grown := taken() - space; grown > 256<<10 {
		t.Errorf("a container of an image of %s takes %d bytes", size, grown)
	}
	if out, _ := w.must("inspect", "--size", "--format", "{{.SizeRw}}", "kept"); len(out) > 6 {
		t.Errorf("the container takes %s bytes", out)
	}
	small, big := fastest("toolbox"), fastest("big")
	t.Logf("start to end: %v with an image of %s, %v with a small one", big, size, small)
	if big > 2*small+20*time.Millisecond {
		t.Errorf("an image of %s takes %v to start, a small one %v", size, big, small)
	}
}
