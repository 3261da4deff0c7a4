// Command program is a container's monitor in its smallest form: make builds
// it with the tags kiln_embed and kiln_monitor and embeds it into kiln.
package main

import (
	"context"
	"os"

	"kiln.build/runner/monitor"
	"kiln.build/runner/sandbox"
)

func main() {
	sandbox.MaybeInit()
	if len(os.Args) < 2 || os.Args[0] != monitor.Name {
		os.Stderr.WriteString("this program is a part of kiln, which starts it\n")
		os.Exit(2)
	}
	monitor.Main(context.Background(), os.Args)
}
