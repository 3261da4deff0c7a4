package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func newSet(t *testing.T) Set { return Set{filepath.Join(t.TempDir(), "containers")} }

func create(t *testing.T, s Set, c Config) *Container {
	t.Helper()
	if c.Args == nil {
		c.Args = []string{"true"}
	}
	k, err := s.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestNames(t *testing.T) {
	s := newSet(t)
	a := create(t, s, Config{Name: "web"})
	for name, want := range map[string]string{
		"web": "already in use by container", "/web": "already in use by container", "//web": "only [a-zA-Z0-9]", "a": "only [a-zA-Z0-9]", "a b": "only [a-zA-Z0-9]", ".x": "only [a-zA-Z0-9]",
	} {
		if _, err := s.Create(t.Context(), Config{Name: name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("create %q: got %v, want %q", name, err, want)
		}
	}
	seen := map[string]bool{}
	for range 50 {
		n := create(t, s, Config{}).Name
		if seen[n] || !validName().MatchString(n) {
			t.Errorf("name %q was made up", n)
		}
		seen[n] = true
	}
	for _, name := range []string{"web", "/web", a.ID, a.ID[:12], a.ID[:5]} {
		if k, err := s.Find(name); err != nil || k.ID != a.ID {
			t.Errorf("find %q: %v", name, err)
		}
	}
	for _, name := range []string{"", "nope", "we", "zz"} {
		var missing *NotFoundError
		if _, err := s.Find(name); !errors.As(err, &missing) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("find %q: %v", name, err)
		}
	}
}

// TestNameRace has many ask for the same name at once, by creation and by
// renaming.
func TestNameRace(t *testing.T) {
	s := newSet(t)
	var others []*Container
	for range 4 {
		others = append(others, create(t, s, Config{}))
	}
	var got atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			var err error
			if i < len(others) {
				err = s.Rename(t.Context(), others[i], "prize")
			} else {
				_, err = s.Create(t.Context(), Config{Name: "prize", Args: []string{"true"}})
			}
			if err == nil {
				got.Add(1)
			} else if !strings.Contains(err.Error(), "already in use") {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got.Load() != 1 {
		t.Errorf("%d have the name", got.Load())
	}
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, c := range list {
		if c.Name == "prize" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d containers are listed with the name", n)
	}
}

// TestRemoveRace has many remove one container, and one that starts it lose
// or win.
func TestRemoveRace(t *testing.T) {
	s := newSet(t)
	for range 20 {
		c := create(t, s, Config{})
		var gone, missing atomic.Int32
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				var none *NotFoundError
				switch err := c.Remove(t.Context(), RemoveOptions{}); {
				case err == nil:
					gone.Add(1)
				case errors.As(err, &none) || errors.Is(err, fs.ErrNotExist):
					missing.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if gone.Load() != 1 || missing.Load() != 5 {
			t.Fatalf("%d removed it and %d missed it", gone.Load(), missing.Load())
		}
	}
	left, err := os.ReadDir(s.Dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestDeadMonitor has a state that nobody stands behind: the truth is told,
// and whoever takes the lock writes it down.
func TestDeadMonitor(t *testing.T) {
	s := newSet(t)
	c := create(t, s, Config{Restart: Policy{Name: "unless-stopped"}})
	if err := c.setState(State{Status: Running, PID: 1, Started: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if st, err := c.State(); err != nil || st.Status != Exited || st.ExitCode != 137 {
		t.Errorf("got %+v, %v", st, err)
	}
	if wants, err := c.WantsStart(); err != nil || !wants {
		t.Errorf("its policy wants it: %t, %v", wants, err)
	}
	l, st, err := c.lock(t.Context(), Remove)
	if err != nil || st.Status != Exited {
		t.Fatalf("lock: %+v, %v", st, err)
	}
	if st, err := c.State(); err != nil || st.Status != Exited {
		t.Errorf("while it is locked: %+v, %v", st, err)
	}
	if _, err := tryLock(c.lockPath()); !errors.Is(err, errLocked) {
		t.Errorf("a second lock: %v", err)
	}
	l.unlock()
	l, err = tryLock(c.lockPath())
	if err != nil {
		t.Fatal(err)
	}
	l.unlock()
}

// TestForgotten has a container that was to remove itself, whose monitor was
// killed: it is gone with the next look.
func TestForgotten(t *testing.T) {
	s := newSet(t)
	c := create(t, s, Config{AutoRemove: true})
	create(t, s, Config{Name: "stays"})
	if err := c.setState(State{Status: Running, PID: 1}); err != nil {
		t.Fatal(err)
	}
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].Name != "stays" {
		t.Errorf("got %v, %v", list, err)
	}
	if _, err := os.Stat(c.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its folder: %v", err)
	}
}

func TestUnknownVersion(t *testing.T) {
	s := newSet(t)
	c := create(t, s, Config{})
	file := filepath.Join(c.dir, "config.json")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(data), `"version":1`, `"version":99`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(); err == nil || !strings.Contains(err.Error(), "version 99") {
		t.Errorf("got %v", err)
	}
}

func TestUpdate(t *testing.T) {
	s := newSet(t)
	c := create(t, s, Config{Name: "web"})
	stale, err := s.Find("web")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), c, func(c *Config) { c.Limits.Memory = 1 << 30 }); err != nil {
		t.Fatal(err)
	}
	// What was read before does not undo it.
	if err := s.Rename(t.Context(), stale, "site"); err != nil {
		t.Fatal(err)
	}
	now, err := s.Find("site")
	if err != nil || now.Limits.Memory != 1<<30 {
		t.Errorf("got %+v, %v", now, err)
	}
	var seen []string
	o := EventOptions{Since: time.Unix(1, 0), Until: time.Now(), Match: func(*Event) bool { return true }}
	if err := s.Events(t.Context(), o, func(e *Event) error {
		seen = append(seen, e.Action+" "+e.Actor.Attributes["name"])
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(seen, ", "); got != "create web, update web, rename site" {
		t.Errorf("events: %s", got)
	}
}

func TestVolumes(t *testing.T) {
	s := newSet(t)
	dir, err := s.CreateVolume("data", map[string]string{"a": "b"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.CreateVolume("data", map[string]string{"c": "d"}, nil); err != nil || again != dir {
		t.Errorf("again: %s, %v", again, err)
	}
	v, err := s.Volume("data")
	if err != nil || v.Labels["a"] != "b" || v.Labels["c"] != "" || time.Since(v.Created) > time.Minute || v.Anonymous {
		t.Errorf("got %+v, %v", v, err)
	}
	for _, bad := range []string{"", "a/b", "..", "../x", "a b", "."} {
		if _, err := s.VolumeDir(bad); err == nil {
			t.Errorf("volume %q was made", bad)
		}
		if err := s.RemoveVolume(t.Context(), bad); !errors.Is(err, ErrNoVolume) {
			t.Errorf("remove %q: %v", bad, err)
		}
	}
	c := create(t, s, Config{Binds: []Bind{{Volume: "data", Source: dir, Target: "/d"}}})
	if err := s.RemoveVolume(t.Context(), "data"); !errors.Is(err, ErrVolumeInUse) {
		t.Errorf("got %v", err)
	}
	if err := c.Remove(t.Context(), RemoveOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Volume("data"); err != nil {
		t.Errorf("rm -v took a volume with a name: %v", err)
	}
	anonymous := fmt.Sprintf("%064d", 7)
	if dir, err = s.VolumeDir(anonymous); err != nil {
		t.Fatal(err)
	}
	c = create(t, s, Config{Binds: []Bind{{Volume: anonymous, Anonymous: true, Source: dir, Target: "/d"}}})
	if err := c.Remove(t.Context(), RemoveOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Volume(anonymous); !errors.Is(err, ErrNoVolume) {
		t.Errorf("rm -v left its volume: %v", err)
	}
}

// TestPowerLoss has files that the machine had no time to write.
func TestPowerLoss(t *testing.T) {
	s := newSet(t)
	half, stays := create(t, s, Config{Name: "half"}), create(t, s, Config{Name: "stays"})
	for _, f := range []string{filepath.Join(half.dir, "config.json"), filepath.Join(stays.dir, "state.json")} {
		if err := os.Truncate(f, 0); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].Name != "stays" {
		t.Fatalf("got %v, %v", list, err)
	}
	if st, err := stays.State(); err != nil || st.Status != Exited || st.ExitCode != 137 {
		t.Errorf("got %+v, %v", st, err)
	}
	create(t, s, Config{Name: "half"}) // the name is free
	if _, err := os.Stat(half.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of what was never made: %v", err)
	}
	if err := stays.Remove(t.Context(), RemoveOptions{}); err != nil {
		t.Error(err)
	}
}
