// Package overlay makes overlay mounts that exist only as a file descriptor.
//
// A mount made with fsmount(2) is attached nowhere: it appears in no mount
// table, and the kernel removes it when the last descriptor of it is closed,
// which it does by itself however the process ends. It is put into a sandbox
// with move_mount(2).
package overlay

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxLayers is how many lower directories the kernel takes (OVL_MAX_STACK in
// fs/overlayfs/params.h).
const MaxLayers = 500

// Options describe a mount.
type Options struct {
	// Lower are the directories below, bottom first.
	Lower []string

	// Upper takes the changes, Work is an empty directory beside it. Both
	// are empty for a read-only mount.
	Upper, Work string

	// Empty is an empty directory, which takes part where the kernel wants
	// more lower directories than there are: one, or two if read-only.
	Empty string

	// Mixed is for lower directories of several file systems: all files
	// appear to be on one, as they do where there is but one. A directory
	// may be the root of a detached mount, named /proc/self/fd/N: the mount
	// can be used once.
	Mixed bool

	// Durable makes a mount that syncs when it is asked to and when it
	// ends. Without it the mount is volatile: it never syncs, and the
	// directory "incompat" that it leaves in Work/work has to be removed
	// before Upper can be mounted again.
	Durable bool
}

// Mount makes a detached overlay mount. The caller closes the descriptor,
// which ends the mount unless it was moved to a place by then.
//
// The upper directory holds all of every change (no redirects, no metadata
// copies), so that it can be read as a layer.
func Mount(o Options) (*os.File, error) {
	o.Lower = once(o.Lower)
	if least := 1; len(o.Lower) < 2 {
		if o.Upper == "" {
			least = 2
		}
		if len(o.Lower) < least {
			o.Lower = append([]string{o.Empty}, o.Lower...)
		}
		if len(o.Lower) < least { // nothing at all, read-only
			return Clone(o.Empty)
		}
	}
	if len(o.Lower) > MaxLayers {
		return nil, fmt.Errorf("mount overlay: %d layers, and the kernel takes no more than %d", len(o.Lower), MaxLayers)
	}
	f, err := mount(o)
	if err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	return f, nil
}

// once leaves of equal directories the uppermost, since overlayfs refuses to
// have one twice: equal layers are common, every RUN that changes nothing
// makes the same. All that the lower one has is hidden by the same in the
// upper one.
func once(dirs []string) []string {
	seen := map[string]bool{}
	kept := make([]string, 0, len(dirs))
	for _, d := range slices.Backward(dirs) {
		if !seen[d] {
			seen[d] = true
			kept = append(kept, d)
		}
	}
	slices.Reverse(kept)
	return kept
}

func mount(o Options) (*os.File, error) {
	way := mountByNumbers
	if takesLayersOneByOne() {
		way = mountOneByOne
	}
	switch {
	case o.Mixed && !takesDetached():
		return attached(way)(o)
	case !takesLayersOneByOne():
		return Aside(func() (*os.File, error) { return way(o) })
	}
	return way(o)
}

func mountOneByOne(o Options) (*os.File, error) {
	return configure(o, func(set setter) error {
		// From the top: each is put below those named before.
		for _, dir := range slices.Backward(o.Lower) {
			if err := set("lowerdir+", dir); err != nil {
				return err
			}
		}
		return nil
	})
}

// setter sets an option of a mount that is being made.
type setter func(key, value string) error

// configure makes a mount; lower names its lower directories.
func configure(o Options, lower func(setter) error) (*os.File, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	set := func(key, value string) error {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return fmt.Errorf("%s=%s: %w%s", key, value, err, kernelLog(fs))
		}
		return nil
	}
	if err := lower(set); err != nil {
		return nil, err
	}
	options, flags := options(o)
	if o.Upper != "" {
		options = append(options, [2]string{"upperdir", o.Upper}, [2]string{"workdir", o.Work})
	}
	for _, kv := range options {
		if err := set(kv[0], kv[1]); err != nil {
			return nil, err
		}
	}
	for _, flag := range flags {
		if err := unix.FsconfigSetFlag(fs, flag); err != nil {
			return nil, fmt.Errorf("%s: %w%s", flag, err, kernelLog(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create: %w%s", err, kernelLog(fs))
	}
	attrs := 0
	if o.Upper == "" {
		attrs = unix.MOUNT_ATTR_RDONLY
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// options are those of a mount that name no directory.
func options(o Options) (options [][2]string, flags []string) {
	options = [][2]string{{"index", "off"}}
	initial := initialUserNamespace()
	if initial {
		// With userxattr both are off, and naming them is an error.
		options = append(options, [2]string{"redirect_dir", "off"}, [2]string{"metacopy", "off"})
	}
	if o.Mixed {
		options = append(options, [2]string{"xino", "on"})
	}
	if o.Upper != "" && !o.Durable {
		flags = append(flags, "volatile")
	}
	if !initial {
		flags = append(flags, "userxattr")
	}
	return options, flags
}

// kernelLog is what the kernel has to say of a failed configuration.
func kernelLog(fs int) string {
	buf := make([]byte, 4096)
	var said []string
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			break
		}
		said = append(said, strings.TrimSpace(string(buf[:n])))
	}
	if len(said) == 0 {
		return ""
	}
	return " (" + strings.Join(said, "; ") + ")"
}

// initialUserNamespace reports whether this process may use trusted extended
// attributes, in which overlayfs keeps its notes.
func initialUserNamespace() bool {
	uids, err := os.ReadFile("/proc/self/uid_map")
	return os.Geteuid() == 0 && err == nil && strings.Join(strings.Fields(string(uids)), " ") == "0 0 4294967295"
}

// Clone returns a detached clone of a directory, or of a file, of this
// machine, as bind mounts are. It does not follow a link in the last place.
// Of a detached mount there are none before Linux 6.15.
func Clone(path string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("clone mount of %q: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
