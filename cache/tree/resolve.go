package tree

import (
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a resolution follows, as in the kernel.
const maxLinks = 40

// NotFoundError says that a path leads to nothing. It matches
// [fs.ErrNotExist].
type NotFoundError struct {
	Path   string // as asked for
	Parent string // the deepest directory on the way that is there, links resolved
	Rest   string // what is missing below it
}

func (e *NotFoundError) Error() string {
	return "resolve /" + strings.TrimPrefix(e.Path, "/") + ": /" + join(e.Parent, e.Rest) + " does not exist"
}

// Is makes the error match [fs.ErrNotExist].
func (e *NotFoundError) Is(target error) bool { return target == fs.ErrNotExist }

// Resolve follows a path as a process whose root is the stack would: links
// resolve inside, absolute ones from the root, and ".." stops there. Without
// followLast a link in the last place is the result itself. It returns the
// path without links, its entry and layer.
//
// Errors are a [*NotFoundError], with which resolved is where the path would
// be, or an [*fs.PathError] with [unix.ENOTDIR] or [unix.ELOOP].
func (x *Index) Resolve(name string, followLast bool) (resolved string, e Entry, layer int, err error) {
	e, layer, _ = x.Lookup("")
	todo := name
	for links := 0; ; {
		todo = strings.TrimLeft(todo, "/")
		comp, rest, more := strings.Cut(todo, "/")
		if e.Type != Dir {
			return resolved, e, layer, &fs.PathError{Op: "resolve", Path: name, Err: unix.ENOTDIR}
		}
		switch comp {
		case "":
			return resolved, e, layer, nil
		case ".":
			todo = rest
			continue
		case "..":
			todo = rest
			resolved, _ = split(resolved)
			e, layer, _ = x.Lookup(resolved)
			continue
		}
		at := join(resolved, comp)
		next, nextLayer, ok := x.Lookup(at)
		if !ok {
			missing := &NotFoundError{Path: name, Parent: resolved, Rest: strings.TrimPrefix(path.Clean("/"+todo), "/")}
			return join(resolved, missing.Rest), Entry{}, -1, missing
		}
		if next.Type != Symlink || !more && !followLast {
			resolved, e, layer, todo = at, next, nextLayer, rest
			if !more {
				return resolved, e, layer, nil
			}
			continue
		}
		if links++; links > maxLinks {
			return resolved, e, layer, &fs.PathError{Op: "resolve", Path: name, Err: unix.ELOOP}
		}
		if strings.HasPrefix(next.Link, "/") {
			resolved = ""
			e, layer, _ = x.Lookup("")
		}
		todo = next.Link
		if more {
			todo += "/" + rest
		}
	}
}
