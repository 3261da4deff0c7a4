package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// foreignMu guards the making of archives.
var foreignMu sync.Mutex

// foreignToolbox makes an archive of the tool box for another architecture,
// once.
func foreignToolbox(arch string) (string, error) {
	foreignMu.Lock()
	defer foreignMu.Unlock()
	archive := filepath.Join(os.TempDir(), fmt.Sprintf("kiln-test-toolbox-%s-%d.tar", arch, os.Getpid()))
	if _, err := os.Stat(archive); !errors.Is(err, fs.ErrNotExist) {
		return archive, err
	}
	build := func(arch, out string) error {
		c := exec.Command("go", "build", "-o", out, ".")
		c.Dir, c.Env = "../../examples/toolbox", append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
		if text, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("build the tool box for %s: %w\n%s", arch, err, text)
		}
		return nil
	}
	dir, err := os.MkdirTemp("", "kiln-test-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	own, foreign := filepath.Join(dir, "own"), filepath.Join(dir, "foreign")
	if err := errors.Join(build("", own), build(arch, foreign)); err != nil {
		return "", err
	}
	tar, err := exec.Command(own, "--tar", foreign).Output()
	if err != nil {
		return "", fmt.Errorf("toolbox --tar: %w", err)
	}
	return archive, os.WriteFile(archive, tar, 0o644)
}
