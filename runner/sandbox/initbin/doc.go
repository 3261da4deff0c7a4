// Package initbin holds the program of package sandbox's init where it was
// built beforehand, as make does (build tag kiln_embed). It starts in a
// fraction of the time that a big program takes to be executed again.
package initbin
