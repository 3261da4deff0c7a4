package main

import (
	"math"
	"runtime"
	"runtime/debug"
)

// heapBefore is how large the program gets before it looks for garbage.
const heapBefore = 64 << 20

// lateGarbage has the program look for garbage only once it has grown to some
// size, and then as usual. Most builds end before that; of those of many
// files that find nothing to do, collecting took an eighth of the time.
func lateGarbage() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(heapBefore)
	first := new([16]byte) // found to be garbage by the first collection
	runtime.AddCleanup(first, func(struct{}) {
		debug.SetGCPercent(100)
		debug.SetMemoryLimit(math.MaxInt64)
	}, struct{}{})
}
