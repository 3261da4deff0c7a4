package launch

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// FormatSeparator is between the fields of a line for binfmt_misc, of which
// interpreterField is the program's path.
const (
	FormatSeparator  = "\x01" // no field has it
	interpreterField = 6
)

// formats registers what runs programs of other architectures, in an
// instance of binfmt_misc that belongs to this user namespace (Linux 6.7).
// It is attached nowhere, so that the sandbox can neither see nor change it,
// and lives as long as the parent keeps its descriptor. The kernel opens the
// interpreters now, while paths are those of the host.
func (l *launch) formats() error {
	if len(l.Formats) == 0 {
		return nil
	}
	const step = "make a binfmt_misc instance"
	fd, err := newMount("binfmt_misc", nil, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, "")
	switch err {
	case nil:
	case unix.ENODEV:
		return fail(step, "the kernel has none: modprobe binfmt_misc", err)
	case unix.EPERM:
		return fail(step, "not possible in a user namespace before Linux 6.7", err)
	default:
		return fail(step, "", err)
	}
	register, err := unix.Openat(fd, "register", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(step, "open register", err)
	}
	for _, line := range l.Formats {
		if err := registerFormat(register, line); err != nil {
			return fail(step, "register "+line[1:], err)
		}
	}
	unix.Close(register)
	if err := sendFD(Message{Kind: KindFormats}, fd); err != nil {
		return fail(step, "send it", err)
	}
	unix.Close(fd)
	return nil
}

// registerFormat registers one. The program is the host's, which each process
// that it runs shows as /proc/PID/exe, and root where all ids are mapped could
// make it setuid by that name, or another one: the kernel gets it from a mount
// through which nothing can be changed.
func registerFormat(register int, line string) error {
	fields := strings.Split(line, FormatSeparator)
	program, err := cloneReadonly(fields[interpreterField])
	if err != nil {
		return err
	}
	defer unix.Close(program)
	fields[interpreterField] = "/proc/self/fd/" + strconv.Itoa(program)
	_, err = unix.Write(register, []byte(strings.Join(fields, FormatSeparator)))
	return err
}
