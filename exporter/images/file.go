package images

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"kiln.build/cache/layout/unnamed"
)

// WriteFile writes a file so that it is there whole or not at all. What is no
// regular file, such as a pipe, is written to.
func WriteFile(path string, write func(io.Writer) error) error {
	special, err := isSpecial(path)
	if err != nil {
		return err
	}
	if special {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		err = write(f)
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		return err
	}
	tmp, err := newFile(path)
	if err != nil {
		return err
	}
	if err = write(tmp); err == nil {
		err = finish(tmp, path)
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	return err
}

// isSpecial reports whether something is there that is not to be replaced.
func isSpecial(path string) (bool, error) {
	fi, err := os.Stat(path)
	if err == nil && fi.IsDir() {
		return true, fmt.Errorf("%s is a folder", path)
	}
	return err == nil && !fi.Mode().IsRegular(), nil
}

// newFile makes a file without a name in the directory of a path.
func newFile(path string) (*unnamed.File, error) {
	return unnamed.New(path, "."+filepath.Base(path)+"-")
}

// finish gives a file its name. It is not synced: whoever needs it to outlive a
// power loss syncs it, as with the output of any other tool.
func finish(f *unnamed.File, path string) error {
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	beside := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s-%x", filepath.Base(path), rand.Uint64()))
	return f.SetName(path, beside)
}
