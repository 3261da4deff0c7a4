package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
)

// findRuntime returns the absolute path of the OCI runtime that a --runtime
// flag names, by its path or on PATH; without a flag none.
func findRuntime(flag string) (string, error) {
	if flag == "" {
		return "", nil
	}
	path, err := exec.LookPath(flag)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", fmt.Errorf("--runtime=%s: %w", flag, err)
	}
	return path, nil
}
