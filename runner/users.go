package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// User is who a command runs as.
type User struct {
	UID, GID int
	Groups   []int // supplementary
	Home     string
}

// accounts are the users and groups of a root file system.
type accounts struct {
	users  []user.User
	groups []user.Group
}

// accounts reads the passwd and group files of a stack. Missing files have
// nobody in them.
func (r *Runner) accounts(ctx context.Context, layers []solver.Layer, idx *tree.Index) (*accounts, error) {
	var a accounts
	passwd, err := r.readFile(ctx, layers, idx, "etc/passwd")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if a.users, err = user.ParsePasswd(bytes.NewReader(passwd)); err != nil {
		return nil, fmt.Errorf("/etc/passwd: %w", err)
	}
	group, err := r.readFile(ctx, layers, idx, "etc/group")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if a.groups, err = user.ParseGroup(bytes.NewReader(group)); err != nil {
		return nil, fmt.Errorf("/etc/group: %w", err)
	}
	return &a, nil
}

func (a *accounts) user(name string) (user.User, bool) {
	i := slices.IndexFunc(a.users, func(u user.User) bool { return u.Name == name })
	if i < 0 {
		return user.User{}, false
	}
	return a.users[i], true
}

func (a *accounts) userByID(uid int) (user.User, bool) {
	i := slices.IndexFunc(a.users, func(u user.User) bool { return u.Uid == uid })
	if i < 0 {
		return user.User{}, false
	}
	return a.users[i], true
}

func (a *accounts) group(name string) (int, bool) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, inRange(n)
	}
	i := slices.IndexFunc(a.groups, func(g user.Group) bool { return g.Name == name })
	if i < 0 {
		return 0, false
	}
	return a.groups[i].Gid, true
}

// LookupUser finds out who a USER text means in a stack: "name", "uid",
// either with ":group", or empty for root. A name without a group has the
// supplementary groups of the group file; a uid that no one has gets group 0.
func (r *Runner) LookupUser(ctx context.Context, layers []solver.Layer, text string) (User, error) {
	idx, err := r.Store.Index(layers)
	if err != nil {
		return User{}, err
	}
	a, err := r.accounts(ctx, layers, idx)
	if err != nil {
		return User{}, err
	}
	return a.lookup(text)
}

func (a *accounts) lookup(text string) (User, error) {
	name, group, hasGroup := strings.Cut(text, ":")
	who := User{Home: "/"}
	if name == "" {
		name = "0"
	}
	found, known := a.user(name)
	if !known {
		uid, err := strconv.Atoi(name)
		if err != nil {
			return User{}, fmt.Errorf("unable to find user %s: no matching entries in passwd file", name)
		}
		if !inRange(uid) {
			return User{}, fmt.Errorf("user id %d is out of range", uid)
		}
		who.UID = uid
		found, known = a.userByID(uid)
	}
	if known {
		who.UID, who.GID = found.Uid, found.Gid
		if found.Home != "" {
			who.Home = found.Home
		}
	}
	if hasGroup && group != "" {
		gid, ok := a.group(group)
		if !ok {
			return User{}, fmt.Errorf("unable to find group %s: no matching entries in group file", group)
		}
		who.GID = gid
		return who, nil
	}
	if known {
		for _, g := range a.groups {
			if slices.Contains(g.List, found.Name) && g.Gid != who.GID {
				who.Groups = append(who.Groups, g.Gid)
			}
		}
	}
	return who, nil
}

// owner finds out whom a --chown text means, or USER as the owner of a
// WORKDIR: "user", "user:group", ":group". A number alone is user and group at
// once, whoever has it.
func (a *accounts) owner(text string) (uid, gid int, err error) {
	name, group, _ := strings.Cut(text, ":")
	if name != "" {
		if n, err := strconv.Atoi(name); err == nil {
			if !inRange(n) {
				return 0, 0, fmt.Errorf("user id %d is out of range", n)
			}
			uid, gid = n, n
		} else if u, ok := a.user(name); ok {
			uid, gid = u.Uid, u.Gid
		} else {
			return 0, 0, fmt.Errorf("no user %q in /etc/passwd of the destination%s: add it there, or use a number", name, empty(len(a.users)))
		}
	}
	if group != "" {
		n, ok := a.group(group)
		if !ok {
			return 0, 0, fmt.Errorf("no group %q in /etc/group of the destination%s: add it there, or use a number", group, empty(len(a.groups)))
		}
		gid = n
	}
	return uid, gid, nil
}

// inRange reports whether a number can be that of a user or group.
func inRange(id int) bool { return id >= 0 && id <= math.MaxInt32 }

// empty explains why a name cannot be found where there are none at all, as
// in scratch or with --link.
func empty(n int) string {
	if n == 0 {
		return ", which has no such file (names cannot be used on scratch, nor with --link)"
	}
	return ""
}
