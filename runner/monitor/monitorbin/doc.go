// Package monitorbin holds the program runner/monitor/program where it was
// built beforehand, as make does (build tag kiln_embed), compressed: it is put
// into a file before it is executed.
package monitorbin

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// ErrNone says that this kiln was built without the program.
var ErrNone = errors.New("there is no monitor's program in this build")

// Install returns the path of the program in a folder of the caller's own, in
// which it is put there by the first who asks; what other versions left goes.
// It may be called by any number of processes at once.
func Install(dir string) (string, error) {
	if len(program) == 0 {
		return "", ErrNone
	}
	path := filepath.Join(dir, "monitor-"+strings.TrimSpace(sum))
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	if err := install(dir, path); err != nil {
		return "", fmt.Errorf("put the monitor's program into %s: %w", dir, err)
	}
	return path, nil
}

func install(dir, path string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	others, err := filepath.Glob(filepath.Join(dir, "monitor-*"))
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	z, err := zstd.NewReader(bytes.NewReader(program), zstd.WithDecoderConcurrency(1))
	if err == nil {
		_, err = z.WriteTo(f)
		z.Close()
	}
	// It is found by its name from now on, also after a power loss.
	if err = errors.Join(err, f.Chmod(0o700), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	for _, o := range others {
		if o != path {
			_ = os.Remove(o) // monitors that execute it keep it
		}
	}
	return nil
}
