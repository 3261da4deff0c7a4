package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// umask returns the file mode creation mask.
func umask() uint32 {
	m := syscall.Umask(0)
	syscall.Umask(m)
	return uint32(m)
}

// changeMode applies an octal or symbolic mode to an old one.
func changeMode(text string, old uint32, dir bool) (uint32, error) {
	if n, err := strconv.ParseUint(text, 8, 32); err == nil {
		if n > 0o7777 {
			return 0, fmt.Errorf("mode %q: too large", text)
		}
		return uint32(n), nil
	}
	mode := old
	for clause := range strings.SplitSeq(text, ",") {
		who := strings.TrimLeft(clause, "ugoa")
		if who == "" || strings.IndexByte("+-=", who[0]) < 0 {
			return 0, fmt.Errorf("mode %q: must be octal or like u+x,go-w", text)
		}
		letters := clause[:len(clause)-len(who)]
		var of uint32 // the bits that the letters speak of
		for _, l := range letters {
			of |= map[rune]uint32{'u': 0o4700, 'g': 0o2070, 'o': 0o1007, 'a': 0o7777}[l]
		}
		if letters == "" {
			of = 0o7777 &^ umask()
		}
		for who != "" {
			operator := who[0]
			rest := strings.TrimLeft(who[1:], "rwxXstugo")
			perms := who[1 : len(who)-len(rest)]
			if who = rest; who != "" && strings.IndexByte("+-=", who[0]) < 0 {
				return 0, fmt.Errorf("mode %q: unknown permission %q", text, who[:1])
			}
			var bits uint32
			for _, p := range perms {
				switch p {
				case 'r':
					bits |= 0o444
				case 'w':
					bits |= 0o222
				case 'x':
					bits |= 0o111
				case 'X':
					if dir || old&0o111 != 0 {
						bits |= 0o111
					}
				case 's':
					bits |= 0o6000
				case 't':
					bits |= 0o1000
				case 'u':
					bits |= old >> 6 & 7 * 0o111
				case 'g':
					bits |= old >> 3 & 7 * 0o111
				case 'o':
					bits |= old & 7 * 0o111
				}
			}
			if strings.ContainsRune(perms, 't') && letters != "" {
				of |= 0o1000
			}
			switch bits &= of; operator {
			case '+':
				mode |= bits
			case '-':
				mode &^= bits
			case '=':
				keep := uint32(0)
				if dir { // chmod keeps the set-id bits of directories
					keep = 0o6000
				}
				mode = mode&^(of&^keep) | bits
			}
		}
	}
	return mode, nil
}

// chmod changes modes: -R, -f, -v is not there. A mode may begin with "-".
func chmod(args []string) error {
	var recursive bool
	for len(args) > 0 && (args[0] == "-R" || args[0] == "--recursive" || args[0] == "--") {
		recursive = recursive || args[0] != "--"
		args = args[1:]
	}
	if len(args) < 2 {
		return errors.New("need a mode and a file")
	}
	change := func(name string, fi fs.FileInfo) error {
		mode, err := changeMode(args[0], fi.Sys().(*syscall.Stat_t).Mode&0o7777, fi.IsDir())
		if err != nil {
			return err
		}
		if err := syscall.Chmod(name, mode); err != nil {
			return &fs.PathError{Op: "chmod", Path: name, Err: err}
		}
		return nil
	}
	if _, err := changeMode(args[0], 0, false); err != nil {
		return err
	}
	return each("chmod", args[1:], func(name string) error {
		if !recursive {
			fi, err := os.Stat(name)
			if err != nil {
				return err
			}
			return change(name, fi)
		}
		return filepath.Walk(name, func(path string, fi fs.FileInfo, err error) error {
			if err != nil {
				return err
			}
			if fi.Mode()&fs.ModeSymlink != 0 { // a link's mode means nothing, and its target is not ours
				return nil
			}
			return change(path, fi)
		})
	})
}

func chown(args []string) error { return changeOwner("chown", args) }
func chgrp(args []string) error { return changeOwner("chgrp", args) }

// changeOwner is chown and chgrp: -R, -h.
func changeOwner(command string, args []string) error {
	o, err := parse(args, "Rh recursive=R no-dereference=h")
	if err != nil {
		return err
	}
	if len(o.args) < 2 {
		return errors.New("need an owner and a file")
	}
	text := o.args[0]
	if command == "chgrp" {
		text = ":" + text
	}
	uid, gid, err := owner(text)
	if err != nil {
		return err
	}
	set := os.Chown
	if o.has('h') || o.has('R') {
		set = os.Lchown
	}
	return each(command, o.args[1:], func(name string) error {
		if !o.has('R') {
			return set(name, uid, gid)
		}
		return filepath.WalkDir(name, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return set(path, uid, gid)
		})
	})
}

// owner parses USER, USER:GROUP, USER: and :GROUP; -1 is for what is not
// given.
func owner(text string) (uid, gid int, err error) {
	uid, gid = -1, -1
	name, group, both := strings.Cut(text, ":")
	if name != "" {
		if uid, err = strconv.Atoi(name); err != nil {
			u, err := user.Lookup(name)
			if err != nil {
				return 0, 0, fmt.Errorf("no user %q", name)
			}
			uid, _ = strconv.Atoi(u.Uid)
			if both && group == "" {
				gid, _ = strconv.Atoi(u.Gid)
			}
		}
	}
	if group != "" {
		if gid, err = strconv.Atoi(group); err != nil {
			g, err := user.LookupGroup(group)
			if err != nil {
				return 0, 0, fmt.Errorf("no group %q", group)
			}
			gid, _ = strconv.Atoi(g.Gid)
		}
	}
	return uid, gid, nil
}

// stat prints attributes by a format: -c FORMAT, -L. Without a format it
// prints the name, size, mode, owner and time.
func stat(args []string) error {
	o, err := parse(args, "c:L format=c dereference=L")
	if err != nil {
		return err
	}
	format := o.value('c', "%n: %F, %s bytes, mode %a (%A), owner %u:%g, %h links, inode %i, changed %y")
	return each("stat", o.args, func(name string) error {
		look := os.Lstat
		if o.has('L') {
			look = os.Stat
		}
		fi, err := look(name)
		if err != nil {
			return err
		}
		text, err := statFormat(format, name, fi)
		if err != nil {
			return err
		}
		_, err = fmt.Println(text)
		return err
	})
}

func statFormat(format, name string, fi fs.FileInfo) (string, error) {
	st := fi.Sys().(*syscall.Stat_t)
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		switch format[i] {
		case 'n':
			b.WriteString(name)
		case 's':
			fmt.Fprint(&b, st.Size)
		case 'a':
			fmt.Fprintf(&b, "%o", st.Mode&0o7777)
		case 'A':
			b.WriteString(modeString(st.Mode))
		case 'f':
			fmt.Fprintf(&b, "%x", st.Mode)
		case 'u':
			fmt.Fprint(&b, st.Uid)
		case 'g':
			fmt.Fprint(&b, st.Gid)
		case 'U':
			b.WriteString(userName(st.Uid))
		case 'G':
			b.WriteString(groupName(st.Gid))
		case 'h':
			fmt.Fprint(&b, st.Nlink)
		case 'i':
			fmt.Fprint(&b, st.Ino)
		case 'b':
			fmt.Fprint(&b, st.Blocks)
		case 'd':
			fmt.Fprint(&b, st.Dev)
		case 'F':
			b.WriteString(kind(fi))
		case 'Y':
			fmt.Fprint(&b, st.Mtim.Sec)
		case 'X':
			fmt.Fprint(&b, st.Atim.Sec)
		case 'Z':
			fmt.Fprint(&b, st.Ctim.Sec)
		case 'y':
			b.WriteString(time.Unix(st.Mtim.Unix()).Format("2006-01-02 15:04:05.000000000 -0700"))
		case 'N':
			fmt.Fprintf(&b, "'%s'", name)
			if to, err := os.Readlink(name); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
				fmt.Fprintf(&b, " -> '%s'", to)
			}
		case '%':
			b.WriteByte('%')
		default:
			return "", fmt.Errorf("format: unknown %q", format[i-1:i+1])
		}
	}
	return b.String(), nil
}

// kind names the type of a file as stat does.
func kind(fi fs.FileInfo) string {
	switch m := fi.Mode(); {
	case m.IsRegular() && fi.Size() == 0:
		return "regular empty file"
	case m.IsRegular():
		return "regular file"
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeCharDevice != 0:
		return "character special file"
	}
	return "block special file"
}

// modeString is the mode as ls -l shows it.
func modeString(mode uint32) string {
	b := []byte("?rwxrwxrwx")
	b[0] = map[uint32]byte{syscall.S_IFREG: '-', syscall.S_IFDIR: 'd', syscall.S_IFLNK: 'l', syscall.S_IFIFO: 'p',
		syscall.S_IFSOCK: 's', syscall.S_IFCHR: 'c', syscall.S_IFBLK: 'b'}[mode&syscall.S_IFMT]
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			b[i+1] = '-'
		}
	}
	for i, special := range []struct {
		bit uint32
		x   string
	}{{0o4000, "sS"}, {0o2000, "sS"}, {0o1000, "tT"}} {
		if at := 3 + 3*i; mode&special.bit != 0 {
			if b[at] == 'x' {
				b[at] = special.x[0]
			} else {
				b[at] = special.x[1]
			}
		}
	}
	return string(b)
}

func userName(uid uint32) string {
	if u, err := user.LookupId(strconv.Itoa(int(uid))); err == nil {
		return u.Username
	}
	return strconv.Itoa(int(uid))
}

func groupName(gid uint32) string {
	if g, err := user.LookupGroupId(strconv.Itoa(int(gid))); err == nil {
		return g.Name
	}
	return strconv.Itoa(int(gid))
}
