//go:build !kiln_embed

package monitorbin

// program is empty: kiln executes itself again.
var program []byte

var sum string
