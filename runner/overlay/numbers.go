package overlay

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// The version is asked, since kernels before 6.5 take any option until the
// mount is made.
var release = sync.OnceValue(func() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
})

// takesLayersOneByOne reports whether overlayfs knows the option "lowerdir+".
func takesLayersOneByOne() bool { return atLeast(release(), 6, 5) }

// takesDetached reports whether a layer may lie in a mount that is attached
// nowhere.
func takesDetached() bool { return atLeast(release(), 6, 15) }

func atLeast(release string, major, minor int) bool {
	var a, b int
	_, _ = fmt.Sscanf(release, "%d.%d", &a, &b) // what is not there is zero
	return a > major || a == major && b >= minor
}

// ownFiles is the folder with a process's descriptors, by number.
const ownFiles = "/proc/self/fd"

// fewLayers have numbers that fit into 255 bytes, the longest value that
// fsconfig(2) takes.
const fewLayers = 50

// mountByNumbers makes a mount for which all lower directories are named in
// one short string: by the numbers of descriptors, relative to /proc/self/fd.
// The caller's thread works in there.
func mountByNumbers(o Options) (*os.File, error) {
	many := len(o.Lower) > fewLayers
	if many && !o.Mixed { // else the thread has a namespace already
		if err := OwnNamespace(); err != nil {
			return nil, err
		}
	}
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
	if err := unix.Chdir(ownFiles); err != nil {
		return nil, err
	}
	if many {
		return mountPage(o, all)
	}
	return configure(o, func(set setter) error { return set("lowerdir", all) })
}

// mountPage makes a mount by mount(2), which takes a page of options, and
// returns a clone. The thread's mount namespace is its own: there the mount
// lies over one of the lower directories.
func mountPage(o Options, lower string) (*os.File, error) {
	kvs, list := options(o)
	list = append(list, "lowerdir="+lower)
	for _, kv := range kvs {
		list = append(list, kv[0]+"="+kv[1])
	}
	var flags uintptr
	if o.Upper == "" {
		flags = unix.MS_RDONLY
	} else {
		for key, dir := range map[string]string{"upperdir": o.Upper, "workdir": o.Work} {
			// By number too: a path may have a comma.
			f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			list = append(list, key+"="+strconv.Itoa(int(f.Fd())))
		}
	}
	at := o.Lower[0]
	if err := unix.Mount("overlay", at, "overlay", flags, strings.Join(list, ",")); err != nil {
		return nil, os.NewSyscallError("mount", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// OwnNamespace gives the thread a mount namespace from which nothing
// propagates.
func OwnNamespace() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

// attached makes mounts in another way's, with layers that are the roots of
// detached mounts: those are attached for it, in a mount namespace that is
// gone afterwards, and keep the names that they have by their descriptors.
func attached(way func(Options) (*os.File, error)) func(Options) (*os.File, error) {
	return func(o Options) (*os.File, error) {
		return Aside(func() (*os.File, error) {
			if err := OwnNamespace(); err != nil {
				return nil, err
			}
			for _, dir := range o.Lower {
				number, ok := strings.CutPrefix(dir, ownFiles+"/")
				if !ok {
					continue
				}
				fd, err := strconv.Atoi(number)
				if err == nil {
					err = unix.MoveMount(fd, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH)
				}
				if err != nil {
					return nil, fmt.Errorf("attach layer %s: %w", dir, err)
				}
			}
			return way(o)
		})
	}
}

// Aside does something on a thread of its own, that has a working directory
// to itself and ends with it.
func Aside(do func() (*os.File, error)) (f *os.File, err error) {
	var wait sync.WaitGroup
	wait.Go(func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread does not end, and /proc/self is about it: hold
			// it while another one is taken.
			f, err = Aside(do)
			runtime.UnlockOSThread()
			return
		}
		if err = unix.Unshare(unix.CLONE_FS); err == nil {
			f, err = do()
		}
	})
	wait.Wait()
	return f, err
}
