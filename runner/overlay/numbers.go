package overlay

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// takesLayersOneByOne reports whether overlayfs knows the option "lowerdir+",
// which came with Linux 6.5. The version is asked, since earlier kernels take
// any option until the mount is made.
var takesLayersOneByOne = sync.OnceValue(func() bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	return atLeast(unix.ByteSliceToString(u.Release[:]), 6, 5)
})

func atLeast(release string, major, minor int) bool {
	var a, b int
	_, _ = fmt.Sscanf(release, "%d.%d", &a, &b) // what is not there is zero
	return a > major || a == major && b >= minor
}

// maxString is the longest value that fsconfig(2) takes.
const maxString = 255

// mountByNumbers makes a mount for which all lower directories are named in
// one short string: by the numbers of descriptors, relative to /proc/self/fd.
// For that a thread gets a working directory of its own.
func mountByNumbers(o Options) (*os.File, error) {
	var names []string
	for _, dir := range slices.Backward(o.Lower) {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		names = append(names, strconv.Itoa(int(f.Fd())))
	}
	all := strings.Join(names, ":")
	if len(all) > maxString {
		return nil, fmt.Errorf("%d layers are too many for this kernel: Linux 6.5 or later takes %d", len(o.Lower), MaxLayers)
	}
	var mounted *os.File
	var err error
	var wait sync.WaitGroup
	wait.Go(func() {
		runtime.LockOSThread() // until it ends: its working directory is odd
		if err = errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chdir("/proc/self/fd")); err == nil {
			mounted, err = configure(o, func(set setter) error { return set("lowerdir", all) })
		}
	})
	wait.Wait()
	return mounted, err
}
