// Command init is the process that a sandbox starts as, in its smallest
// form: make builds it and embeds it into kiln.
package main

import "kiln.build/runner/sandbox/launch"

func main() { launch.Main() }
