package unnamed

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFile makes files that have no name before they are whole, and such as
// have a temporary one.
func TestFile(t *testing.T) {
	for what, make := range map[string]func(path string) (*File, error){
		"no name": Nameless,
		"a temporary name": func(path string) (*File, error) {
			f, err := os.CreateTemp(filepath.Dir(path), ".new-")
			return &File{File: f, temp: f.Name()}, err
		},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "f")
		write := func(text string, name bool) {
			f, err := make(path)
			if errors.Is(err, errors.ErrUnsupported) {
				t.Skipf("files without a name: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString(text); err != nil {
				t.Fatal(err)
			}
			if name {
				err = f.SetName(path, filepath.Join(dir, "beside"))
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		check := func(text string) {
			t.Helper()
			b, err := os.ReadFile(path)
			all, _ := os.ReadDir(dir)
			if err != nil || string(b) != text || len(all) != 1 {
				t.Errorf("%s: the file holds %q, %v; there are %v", what, b, err, all)
			}
		}
		write("nothing comes of it", false)
		if all, _ := os.ReadDir(dir); len(all) != 0 {
			t.Errorf("%s: left are %v", what, all)
		}
		write("first", true)
		check("first")
		write("second", true)
		check("second")
		write("nothing comes of it", false)
		check("second")
	}
}

func TestErrorsNameThePath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "f")
	if _, err := New(path, ".new-"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}
