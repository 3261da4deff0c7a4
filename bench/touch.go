package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// touchMemory has each page of most free memory been used once. A virtual
// machine gets its memory from its host page by page, as it first uses it, and
// that can take ten times as long as to fill the page: until then everything
// that writes files, or starts, is measured as something else. Another process
// does it: ours would hand its peak on to those that it starts.
func touchMemory(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "using all memory once")
	if out, err := exec.CommandContext(ctx, self, "-touch").CombinedOutput(); err != nil {
		return fmt.Errorf("use all memory once: %w: %s", err, out)
	}
	return nil
}

func touch() error {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(b), "MemFree:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		return fmt.Errorf("/proc/meminfo has no MemFree")
	}
	free, err := strconv.ParseInt(f[0], 10, 64) // kB
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(-1, 0, int(free<<10/10*9), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	for i := 0; i < len(mem); i += os.Getpagesize() {
		mem[i] = 1
	}
	return unix.Munmap(mem)
}
