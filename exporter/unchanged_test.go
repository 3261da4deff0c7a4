package exporter

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"kiln.build/exporter/internal/storetest"
	"kiln.build/solver"
)

// TestArchiveUnchanged exports to a file that is there: it is written again
// unless it is what was written, untouched.
func TestArchiveUnchanged(t *testing.T) {
	s := storetest.Open(t)
	e := &Exporter{Store: s}
	in := image(t, s)
	noise := make([]byte, worthTick)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	in.Output.Layers = []solver.Layer{storetest.Layer(t, s, "big "+string(noise))}
	in.Config.History = in.Config.History[:1]
	path := filepath.Join(t.TempDir(), "a.tar")
	export := func(o Output) ([]byte, os.FileInfo) {
		t.Helper()
		o.Type, o.Dest = TypeOCI, path
		if _, err := e.Export(t.Context(), o, []Image{in}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return b, fi
	}
	first, before := export(Output{})
	if err := os.Chtimes(path, time.Now(), before.ModTime()); err != nil { // a change of its state
		t.Fatal(err)
	}
	_, replaced := export(Output{})
	if os.SameFile(before, replaced) {
		t.Fatal("a file that someone has touched is trusted")
	}
	time.Sleep(10 * time.Millisecond)
	again, fi := export(Output{})
	if !os.SameFile(replaced, fi) || !bytes.Equal(again, first) {
		t.Error("an archive that nobody has touched is written again")
	}
	if !fi.ModTime().After(replaced.ModTime()) {
		t.Error("its time is not new")
	}
	if _, twice := export(Output{}); !os.SameFile(fi, twice) {
		t.Error("the second time it is written again")
	}
	for what, meddle := range map[string]func() error{
		"other bytes, same size and time": func() error {
			fi, err := os.Stat(path)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte("XXXX"), 5<<20); err != nil {
				return err
			}
			return os.Chtimes(path, fi.ModTime(), fi.ModTime())
		},
		"gone": func() error { return os.Remove(path) },
		"a copy in its place": func() error {
			if err := os.WriteFile(path+"2", first, 0o644); err != nil {
				return err
			}
			return os.Rename(path+"2", path)
		},
	} {
		export(Output{})
		if err := meddle(); err != nil {
			t.Fatal(err)
		}
		if b, _ := export(Output{}); !bytes.Equal(b, first) {
			t.Errorf("%s: it is not written again", what)
		}
	}
	if b, _ := export(Output{Names: []string{"docker.io/library/app:latest"}}); bytes.Equal(b, first) {
		t.Error("another name made no difference")
	}
}

// TestRenew changes a file right after it was given its time, time restored:
// where times are said to be exact that shows in its state.
func TestRenew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	exact := 0
	for range 200 {
		s, ok, err := renew(path)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			continue
		}
		exact++
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write([]byte("two"))
		if err := errors.Join(err, f.Close(), os.Chtimes(path, time.Unix(0, s.Mtime), time.Unix(0, s.Mtime))); err != nil {
			t.Fatal(err)
		}
		if now, err := stateOf(path); err != nil || now == s {
			t.Fatalf("the change does not show: %v, %v", now, err)
		}
	}
	if exact == 0 {
		t.Skip("this kernel's times count in ticks")
	}
	if _, _, err := renew(path + "2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
