// Package sandboxtest gives tests the sandbox's init as a program of its own.
// A test program executed again in its place would do where it is static;
// with the race detector or cgo it is not, and then cannot run inside of a
// root. It is for tests alone.
package sandboxtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"kiln.build/runner/sandbox/initbin"
)

// File names, in the environment, a file with the program, for processes
// that cannot build it.
const File = "KILN_TEST_INIT"

// Init builds the init, unless one is embedded. It is called in TestMain,
// after sandbox.MaybeInit.
func Init() error {
	if len(initbin.Program) > 0 {
		return nil
	}
	file := os.Getenv(File)
	if file == "" {
		dir, err := os.MkdirTemp("", "sandboxtest")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		file = filepath.Join(dir, "init")
		if err := Build(file, "kiln.build/runner/sandbox/init"); err != nil {
			return err
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the sandbox's init: %w", err)
	}
	initbin.Program = b
	return nil
}

// Build builds a static program.
func Build(file, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", file, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}
