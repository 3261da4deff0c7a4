package cache

import (
	"github.com/opencontainers/go-digest"

	"kiln.build/solver"
)

// UnpackAction is the action that makes a layer of an image's layer archive,
// known by its diff ID (the digest of the uncompressed stream). Whoever turns
// a layer into an archive saves its result too, so that the archive is never
// unpacked where it was made. The result has the one layer, without Origin.
func UnpackAction(diffID digest.Digest) *solver.Action {
	description := "kiln unpack 1\ndiff id " + string(diffID) + "\n"
	return &solver.Action{Key: digest.FromString(description), Description: description}
}
