// Command kiln builds container images and runs them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"kiln.build/runner/monitor"
	"kiln.build/runner/sandbox"
)

func main() {
	sandbox.MaybeInit() // does not return where this process is to become a sandbox
	if len(os.Args) > 1 && os.Args[0] == monitor.Name {
		monitor.Main(context.Background(), os.Args)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	c := a.command(os.Args[1:]...)
	explainUsage(c)
	c.SetFlagErrorFunc(badFlag)
	err := c.ExecuteContext(ctx)
	stop()
	if err != nil && err.Error() != "" {
		fmt.Fprintln(tamed(os.Stderr), "kiln: "+err.Error())
	}
	os.Exit(exitCode(err))
}
