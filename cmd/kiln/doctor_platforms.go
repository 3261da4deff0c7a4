package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"kiln.build/runner/binfmt"
	"kiln.build/runner/sandbox"
)

// foreignPlatforms tries which programs of other platforms run here, and
// says of those that should and do not why.
func foreignPlatforms(ctx context.Context) (works []string, broken []error) {
	for _, p := range binfmt.This().Platforms() {
		emulator, err := binfmt.Find(p)
		if err != nil {
			continue // for want of an emulator
		}
		if err := tryPlatform(ctx, p, emulator); err != nil {
			broken = append(broken, fmt.Errorf("programs for %s do not run: %w", p, err))
			continue
		}
		works = append(works, p)
	}
	return works, broken
}

// tryPlatform runs a small program of a platform, as a RUN step would.
func tryPlatform(ctx context.Context, platform string, emulator *binfmt.Emulator) error {
	dir, err := os.MkdirTemp("", "kiln-platform-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "program"), binfmt.Program(platform), 0o755); err != nil {
		return err
	}
	s := sandbox.Spec{RootPath: dir, Command: sandbox.Command{Args: []string{"/program"}}}
	if emulator != nil {
		s.Formats = []sandbox.Format{sandbox.Format(*emulator)}
	}
	p, err := sandbox.Start(ctx, s)
	if err != nil {
		return err
	}
	status, err := p.Wait()
	if err == nil && status.Code != 0 {
		err = fmt.Errorf("a program that does nothing exits with status %d", status.Code)
	}
	return err
}

// examineForeign adds what programs of other platforms run here.
func (d *diagnosis) examineForeign(ctx context.Context) {
	works, broken := foreignPlatforms(ctx)
	d.Foreign = append(d.Foreign, works...)
	if err := errors.Join(broken...); err != nil {
		d.problem(false, err.Error(), "apt-get install --reinstall qemu-user-static")
	}
}

func (d *diagnosis) foreign() string {
	if len(d.Foreign) == 0 {
		return "none: only " + d.Arch + " programs run; apt-get install qemu-user-static for others"
	}
	return strings.Join(d.Foreign, " ")
}
