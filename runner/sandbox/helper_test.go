package sandbox

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func mapValues(m map[string]string) []string { return slices.Collect(maps.Values(m)) }

// helperEnv makes the test program one of the helpers.
const helperEnv = "KILN_TEST_HELPER"

// runHelper is a helper program: "parent" starts a sandbox, prints its pid
// and waits; "runtime" runs one with runc that ends.
func runHelper() {
	if os.Getenv(helperEnv) == "runtime" {
		p, err := Start(context.Background(), Spec{Runtime: "runc", RootPath: os.Args[1], Command: Command{Args: []string{"/bin/box", "true"}}})
		if err == nil {
			_, err = p.Wait()
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	uid, _ := strconv.Atoi(os.Args[2])
	p, err := Start(context.Background(), Spec{
		RootPath: os.Args[1],
		Command:  Command{Args: []string{"/bin/box", "sleep", "1000"}, UID: uid},
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.PID())
	p.Wait()
}

// startHelper starts a helper and returns what reads its output.
func startHelper(t *testing.T, name string, args ...string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

// mapsAsSandbox tries to read a process's memory map on a thread with the
// default capabilities, and returns what it got.
func mapsAsSandbox(t *testing.T, pid int) string {
	t.Helper()
	got := make(chan string)
	go func() {
		runtime.LockOSThread() // and end with the thread
		mask, err := capMask(DefaultCapabilities)
		if err != nil {
			got <- err.Error()
			return
		}
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := [2]unix.CapUserData{{Effective: uint32(mask), Permitted: uint32(mask)}}
		if err := unix.Capset(&head, &data[0]); err != nil {
			got <- err.Error()
			return
		}
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/maps")
		got <- string(b)
	}()
	return <-got
}
