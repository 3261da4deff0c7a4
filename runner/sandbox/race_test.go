//go:build race

package sandbox

// race says that this program is linked dynamically, for the race detector,
// and so cannot be executed inside of a root.
const race = true
