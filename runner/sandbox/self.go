package sandbox

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox/initbin"
	"kiln.build/runner/sandbox/launch"
)

// MaybeInit turns this process into the init of a sandbox if it was started
// as one, and else returns at once. Every program that starts sandboxes
// calls it first thing in main, and their tests in TestMain: a build without
// the embedded init executes the program itself again.
func MaybeInit() {
	if len(os.Args) > 0 && (os.Args[0] == launch.Name || os.Args[0] == launch.ReaperName || os.Args[0] == launch.ReaperPath) {
		launch.Main()
	}
}

// initFile returns the init's program as a sealed memfd, made once per
// process. It never is a file that anybody else executes: a sandbox could
// open it by /proc/PID/exe and, once the init is gone, write to it
// (CVE-2019-5736). The seals forbid that to everyone, for ever; a read-only
// bind mount would only as long as nobody can change mounts.
var initFile = sync.OnceValues(func() (*os.File, error) {
	f, err := sealed(launch.Name, initbin.Program)
	if err != nil {
		return nil, fmt.Errorf("make the sandbox's init: %w", err)
	}
	return f, nil
})

// sealed returns a memfd with the program, or with that of this process.
func sealed(name string, program []byte) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3, where it is the default
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if err := fill(f, program); err != nil {
		f.Close()
		return nil, err
	}
	// The last one is of the right to execute, which root in a sandbox could take
	// away by the name /proc/1/exe, from kiln exec too. Before Linux 6.3 there is
	// none.
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_EXEC
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	if err == unix.EINVAL {
		seals &^= unix.F_SEAL_EXEC
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	// On a busy machine the kernel may still hold pages that were just
	// written. It waits some 150 ms for them before it says so.
	for tries := 0; err == unix.EBUSY && tries < 40; tries++ {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("seal: %w", err)
	}
	return f, nil
}

func fill(f *os.File, program []byte) error {
	if len(program) > 0 {
		_, err := f.Write(program)
		return err
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	_, err = io.Copy(f, self)
	return err
}
