//go:build !kiln_embed

package initbin

// Program is empty: the sandbox executes the program itself again.
var Program []byte
