package trace

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
	"kiln.build/cache/tree"
)

// forever is how long the kernel may keep an answer: nothing changes.
const forever = 24 * time.Hour

// Mount makes a detached mount of the layer, to be a lower directory of an
// overlay. It is served until the last user of the mount has gone; the caller
// closes the descriptor.
func (l *Layer) Mount() (*os.File, error) {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/fuse", Err: err}
	}
	mounted, err := mount(dev)
	if err != nil {
		_ = unix.Close(dev)
		return nil, fmt.Errorf("mount fuse: %w", err)
	}
	wait := forever
	options := &fs.Options{
		EntryTimeout: &wait, AttrTimeout: &wait, NegativeTimeout: &wait,
		MountOptions:    fuse.MountOptions{DisableReadDirPlus: true, MaxWrite: 128 << 10, MaxReadAhead: 1 << 20},
		Logger:          log.New(io.Discard, "", 0),
		RootStableAttr:  &fs.StableAttr{Ino: rootInode, Mode: syscall.S_IFDIR},
		NullPermissions: true,
	}
	options.MountOptions.Logger = options.Logger
	root := &node{layer: l, entry: &tree.Entry{Type: tree.Dir, Mode: 0o755}, ino: rootInode}
	if e, ok := l.tree.Lookup(""); ok {
		root.entry = e
	}
	server, err := fuse.NewServer(fs.NewNodeFS(root, options), "/dev/fd/"+strconv.Itoa(dev), &options.MountOptions)
	if err != nil {
		return nil, fmt.Errorf("serve fuse: %w", err) // the server has closed dev
	}
	go server.Serve()
	return mounted, nil
}

// mount makes a detached FUSE mount.
func mount(dev int) (*os.File, error) {
	config, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(config)
	for _, kv := range [][2]string{
		{"source", "kiln"}, {"fd", strconv.Itoa(dev)}, {"rootmode", "40000"},
		{"user_id", strconv.Itoa(os.Geteuid())}, {"group_id", strconv.Itoa(os.Getegid())},
	} {
		if err := unix.FsconfigSetString(config, kv[0], kv[1]); err != nil {
			return nil, fmt.Errorf("%s=%s: %w", kv[0], kv[1], err)
		}
	}
	if err := unix.FsconfigSetFlag(config, "allow_other"); err != nil {
		return nil, fmt.Errorf("allow_other: %w", err)
	}
	if err := unix.FsconfigCreate(config); err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	fd, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), "traced layer"), nil
}

// rootInode is FUSE_ROOT_ID; entries are numbered after it.
const rootInode = 1

// node is an entry that the kernel knows.
type node struct {
	fs.Inode
	layer *Layer
	path  string
	entry *tree.Entry
	ino   uint64
}

var (
	_ fs.NodeLookuper    = (*node)(nil)
	_ fs.NodeGetattrer   = (*node)(nil)
	_ fs.NodeReaddirer   = (*node)(nil)
	_ fs.NodeReadlinker  = (*node)(nil)
	_ fs.NodeOpener      = (*node)(nil)
	_ fs.NodeGetxattrer  = (*node)(nil)
	_ fs.NodeListxattrer = (*node)(nil)
)

func typeBits(t tree.Type) uint32 {
	switch t {
	case tree.Dir:
		return syscall.S_IFDIR
	case tree.Symlink:
		return syscall.S_IFLNK
	}
	return syscall.S_IFREG
}

// Lookup implements [fs.NodeLookuper].
func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	p := join(n.path, name)
	n.layer.Note(Name, p)
	i, ok := n.layer.tree.Position(p)
	if !ok {
		return nil, syscall.ENOENT
	}
	child := &node{layer: n.layer, path: p, entry: &n.layer.tree.Entries[i], ino: uint64(i) + rootInode + 1}
	child.attributes(&out.Attr)
	return n.NewInode(ctx, child, fs.StableAttr{Mode: typeBits(child.entry.Type), Ino: child.ino}), 0
}

// Getattr implements [fs.NodeGetattrer].
func (n *node) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.layer.Note(Name, n.path)
	n.attributes(&out.Attr)
	return 0
}

func (n *node) attributes(a *fuse.Attr) {
	e := n.entry
	a.Ino, a.Mode, a.Uid, a.Gid = n.ino, typeBits(e.Type)|e.Mode, uint32(e.UID), uint32(e.GID)
	a.Nlink, a.Blksize = 1, 4096 // one link of a directory says that it tells nothing of what is in it
	switch e.Type {
	case tree.File:
		a.Size = uint64(e.Size)
	case tree.Symlink:
		a.Mode, a.Size = typeBits(e.Type)|0o777, uint64(len(e.Link))
	case tree.Dir:
		a.Size = 4096
	}
	a.Blocks = (a.Size + 511) / 512
	at := time.Unix(0, e.Mtime)
	a.SetTimes(&at, &at, &at)
}

// Readdir implements [fs.NodeReaddirer].
func (n *node) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	n.layer.Note(Listing, n.path)
	names := n.layer.index.ReadDir(n.path)
	entries := make([]fuse.DirEntry, 0, len(names))
	for _, name := range names {
		i, ok := n.layer.tree.Position(join(n.path, name))
		if !ok {
			continue
		}
		entries = append(entries, fuse.DirEntry{Name: name, Mode: typeBits(n.layer.tree.Entries[i].Type), Ino: uint64(i) + rootInode + 1})
	}
	return fs.NewListDirStream(entries), 0
}

// Readlink implements [fs.NodeReadlinker]. The target is an attribute.
func (n *node) Readlink(context.Context) ([]byte, syscall.Errno) {
	n.layer.Note(Name, n.path)
	return []byte(n.entry.Link), 0
}

// Getxattr implements [fs.NodeGetxattrer].
func (n *node) Getxattr(_ context.Context, name string, dest []byte) (uint32, syscall.Errno) {
	n.layer.Note(Name, n.path)
	value, ok := n.entry.Xattrs[name]
	switch {
	case !ok:
		return 0, syscall.ENODATA
	case len(dest) > 0 && len(dest) < len(value):
		return uint32(len(value)), syscall.ERANGE
	}
	copy(dest, value)
	return uint32(len(value)), 0
}

// Listxattr implements [fs.NodeListxattrer].
func (n *node) Listxattr(_ context.Context, dest []byte) (uint32, syscall.Errno) {
	n.layer.Note(Name, n.path)
	var all []byte
	for name := range n.entry.Xattrs {
		all = append(append(all, name...), 0)
	}
	if len(dest) > 0 && len(dest) < len(all) {
		return uint32(len(all)), syscall.ERANGE
	}
	copy(dest, all)
	return uint32(len(all)), 0
}

// Open implements [fs.NodeOpener].
func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	n.layer.Note(Content, n.path)
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	// In its own layer the path has no links: the listing says so.
	fd, err := unix.Open(filepath.Join(n.layer.dir, n.path), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	return &handle{fd}, fuse.FOPEN_KEEP_CACHE, 0
}

// handle is an open file.
type handle struct{ fd int }

var (
	_ fs.FileReader   = (*handle)(nil)
	_ fs.FileReleaser = (*handle)(nil)
)

// Read implements [fs.FileReader].
func (h *handle) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultFd(uintptr(h.fd), off, len(dest)), 0
}

// Release implements [fs.FileReleaser].
func (h *handle) Release(context.Context) syscall.Errno { return fs.ToErrno(unix.Close(h.fd)) }
