//go:build kiln_embed

package monitorbin

import _ "embed"

// program is built from runner/monitor/program for this architecture and
// compressed with zstd; see the Makefile.
//
//go:embed program.zst
var program []byte

// sum begins the SHA-256 of the program, in hexadecimal.
//
//go:embed program.sum
var sum string
