package launch

import (
	"strings"

	"golang.org/x/sys/unix"
)

// inRoot opens path below the directory root as an O_PATH descriptor. The
// kernel resolves it: absolute links and ".." end at root, and the magic
// links of /proc, which would lead out of it, are refused.
func inRoot(root int, path string) (int, error) {
	return openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// openat2 asks again while the kernel says that a rename or a mount
// elsewhere kept it from being sure of "..".
func openat2(dir int, path string, how *unix.OpenHow) (int, error) {
	for {
		fd, err := unix.Openat2(dir, path, how)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		return fd, err
	}
}

// mountPoint opens the place that target names below root, making what is
// missing: directories, and a file at the end unless dir. Names are made on
// descriptors of their parents, so no link can lead outside
// (CVE-2024-45310), and each one made is reported to made.
func mountPoint(root int, target string, dir bool, made func(parent int, name string) error) (int, error) {
	if fd, err := inRoot(root, target); err != unix.ENOENT {
		return fd, err
	}
	rest := strings.Split(strings.Trim(target, "/"), "/")
	done := "/"
	for links := 0; ; {
		if len(rest) == 0 {
			return inRoot(root, done)
		}
		name := rest[0]
		if name == "" || name == "." {
			rest = rest[1:]
			continue
		}
		next := join(done, name)
		fd, err := inRoot(root, next)
		if err == nil {
			unix.Close(fd)
			done, rest = next, rest[1:]
			continue
		}
		if err != unix.ENOENT {
			return -1, err
		}
		parent, err := inRoot(root, done)
		if err != nil {
			return -1, err
		}
		err = create(parent, name, dir || len(rest) > 1)
		if err == nil {
			err = made(parent, name)
			unix.Close(parent)
			if err != nil {
				return -1, err
			}
			done, rest = next, rest[1:]
			continue
		}
		if err != unix.EEXIST {
			unix.Close(parent)
			return -1, err
		}
		// A link to something that is missing: make that instead.
		var buf [unix.PathMax]byte
		n, err := unix.Readlinkat(parent, name, buf[:])
		unix.Close(parent)
		if err == unix.EINVAL {
			continue // made meanwhile, by another sandbox over the same root
		}
		if err != nil {
			return -1, err
		}
		if links++; links > 40 {
			return -1, unix.ELOOP
		}
		link := string(buf[:n])
		if strings.HasPrefix(link, "/") {
			done = "/"
		}
		rest = append(strings.Split(strings.Trim(link, "/"), "/"), rest[1:]...)
	}
}

// MountPoint makes the place that target names below root, as mountPoint
// does, for a sandbox that another program starts.
func MountPoint(root int, target string, dir bool, made func(parent int, name string) error) error {
	fd, err := mountPoint(root, target, dir, made)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// create makes a mount point in a directory, which keeps its time: what the
// program finds in there is as old as the image says.
func create(parent int, name string, dir bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(parent, &st); err != nil {
		return err
	}
	if err := createNode(parent, name, dir); err != nil {
		return err
	}
	// Not worth an error: kernels before 5.8 cannot do it.
	_ = unix.UtimesNanoAt(parent, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
	return nil
}

func createNode(parent int, name string, dir bool) error {
	if dir {
		return unix.Mkdirat(parent, name, 0o755)
	}
	fd, err := unix.Openat(parent, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}
