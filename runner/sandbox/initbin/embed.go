//go:build kiln_embed

package initbin

import _ "embed"

// Program is the init, built from runner/sandbox/init for this architecture:
//
//	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o runner/sandbox/initbin/init ./runner/sandbox/init
//
//go:embed init
var Program []byte
