// Command pack compresses the program that is its argument for package
// monitorbin, to a file beside it, and writes what it is known by to another.
package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"github.com/klauspost/compress/zstd"
)

func main() {
	if err := pack(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func pack(program string) error {
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	return errors.Join(
		os.WriteFile(program+".zst", z.EncodeAll(data, nil), 0o644),
		os.WriteFile(program+".sum", fmt.Appendf(nil, "%x\n", sum[:8]), 0o644),
	)
}
