package container

import (
	"os"
	"testing"
)

// TestMakeGroups makes control groups before it is known whether the limits
// stay: those of other limits are not taken.
func TestMakeGroups(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("control groups are made as root")
	}
	for _, changed := range []bool{false, true} {
		w := &watch{c: &Container{}}
		w.makeGroups()
		first := w.groups
		if changed {
			w.c.Limits.Pids = 100
		}
		g, err := w.takeGroups()
		if err != nil || g == nil || w.groups != nil {
			t.Fatalf("got %v, error %v; %v are left", g, err, w.groups)
		}
		if (g != first) != changed {
			t.Errorf("limits changed: %v; other groups: %v", changed, g != first)
		}
		if err := g.Discard(); err != nil {
			t.Error(err)
		}
	}
	w := &watch{c: &Container{}}
	w.c.CDI = []string{"vendor.com/class=device"}
	w.makeGroups()
	if g, err := w.takeGroups(); g != nil || err != nil {
		t.Errorf("got %v, error %v before its devices are known", g, err)
	}
}
