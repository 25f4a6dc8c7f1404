package fs

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	iofs "io/fs"
	"path"
	"sync/atomic"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"irfs/layout"
)

// timeout is how long the kernel may answer stat and lookup by itself. Open
// always asks.
const timeout = time.Second

// mounted is what the nodes of one mount share.
type mounted struct {
	tree        *Tree
	passthrough atomic.Bool
	device      uint64 // st_dev of the mount
	secret      [32]byte
	drops       *drops
	root        *gofs.Inode

	stale  stale
	census census
}

// ino gives the inode number of what is at a path: for a directory or a file that
// has no fixed content it stands for the path alone, for any other file also for
// its content and attributes. So an inode's content never changes, and
// two contents never share a number: nobody knows the key, so nobody can look for
// a collision of 64 bits.
func (m *mounted) ino(path string, item *Item) uint64 {
	h := hmac.New(sha256.New, m.secret[:])
	fmt.Fprintf(h, "%s\x00%T", path, item.dir) // what was a namespace may become an app
	if item.dir == nil && item.control == nil && item.live == nil {
		numbers(h, 1, int64(item.Mode), int64(item.UID), int64(item.GID), item.Mtime, item.Size)
		if s := item.stamp; item.blob != nil {
			numbers(h, int64(s.Dev), int64(s.Ino), s.Size, s.Mtime, s.Ctime)
		} else {
			h.Write(item.data)
		}
	}
	return binary.LittleEndian.Uint64(h.Sum(nil)) | 1<<32 // never 0 or 1, the root's
}

// same says whether two files at one path have one inode number.
func (i *Item) same(j *Item) bool {
	return i.dir == nil && i.control == nil && i.live == nil && // one of those is another inode than a fileNode's
		i.Mode == j.Mode && i.UID == j.UID && i.GID == j.GID && i.Mtime == j.Mtime && i.Size == j.Size &&
		(i.blob == nil) == (j.blob == nil) && i.stamp == j.stamp && bytes.Equal(i.data, j.data)
}

func numbers(h hash.Hash, list ...int64) {
	h.Write([]byte{0})
	for _, n := range list {
		binary.Write(h, binary.LittleEndian, n)
	}
}

func (m *mounted) fill(out *fuse.Attr, item *Item) {
	mode := uint32(item.Mode.Perm())
	if item.Mode.IsDir() {
		mode |= syscall.S_IFDIR
	} else {
		mode |= syscall.S_IFREG
	}
	if item.Mode&iofs.ModeSticky != 0 {
		mode |= syscall.S_ISVTX
	}
	out.Mode, out.Owner = mode, fuse.Owner{Uid: item.UID, Gid: item.GID}
	out.Size = uint64(item.Size)
	out.Blocks = (out.Size + 511) / 512
	out.Blksize = 4096
	out.Nlink = 1
	t := time.Unix(0, item.Mtime)
	out.SetTimes(&t, &t, &t)
}

func pidOf(ctx context.Context) uint32 {
	if c, ok := fuse.FromContext(ctx); ok {
		return c.Pid
	}
	return 0
}

func callerOf(ctx context.Context) Caller {
	c, _ := fuse.FromContext(ctx)
	if c == nil {
		return Caller{}
	}
	return Caller{c.Pid, c.Uid, c.Gid}
}

// A dirNode shows a directory of the tree.
type dirNode struct {
	gofs.Inode
	refusing
	dir dir
}

var (
	_ gofs.NodeLookuper  = (*dirNode)(nil)
	_ gofs.NodeOpendirer = (*dirNode)(nil)
	_ gofs.NodeReaddirer = (*dirNode)(nil)
	_ gofs.NodeGetattrer = (*dirNode)(nil)
	_ gofs.NodeStatfser  = (*dirNode)(nil)
)

func (n *dirNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	at, began := path.Join(n.path, name), time.Now()
	item, err := lookup(ctx, n.dir, name)
	n.m.stale.lookedUp(pidOf(ctx), at, began)
	if err != nil {
		return nil, n.lookupErrno(ctx, err)
	}
	n.m.fill(&out.Attr, item)
	out.SetEntryTimeout(timeout)
	if item.control == nil && item.live == nil {
		out.SetAttrTimeout(timeout)
	}
	id := gofs.StableAttr{Mode: out.Mode & syscall.S_IFMT, Ino: n.m.ino(at, item)}
	if known := n.GetChild(name); known == nil || known.StableAttr() != id {
		n.m.census.take(n.m.root)
	}
	return n.NewInode(ctx, n.node(at, name, item), id), 0
}

// lookupErrno: a directory that is gone itself is stale, so that the kernel
// walks the whole path again instead of taking the name for missing.
func (n *dirNode) lookupErrno(ctx context.Context, err error) syscall.Errno {
	errno := n.m.errno(ctx, n.path, err)
	if errno == syscall.ENOENT && n.path != "." {
		if _, gone := patiently(ctx, n.dir.item); errors.Is(gone, errAbsent) {
			return n.gone()
		}
	}
	return errno
}

// gone is what one gets who uses a directory that is not there any more. A digest
// does not come back; for other names the kernel walks the path again.
func (n *dirNode) gone() syscall.Errno {
	d := n.dir
	if p, ok := d.(*platformsDir); ok {
		d = p.of
	}
	if image, ok := d.(*imageDir); ok && image.digest != "" {
		return syscall.ENOENT
	}
	return syscall.ESTALE
}

// errno is errnoOf. What nobody foresaw goes into the log, in words.
func (m *mounted) errno(ctx context.Context, path string, err error) syscall.Errno {
	errno := errnoOf(err)
	if errno == syscall.EIO {
		m.tree.log.add(callerOf(ctx).UID, "read", path, err.Error())
	}
	return errno
}

func (n *dirNode) node(at, name string, item *Item) gofs.InodeEmbedder {
	here := refusing{n.m, at}
	base := shown{refusing: here, parent: n.dir, name: name, item: item}
	switch {
	case item.drop:
		return &dropDir{refusing: here, parent: n.dir}
	case item.dir != nil:
		return &dirNode{refusing: here, dir: item.dir}
	case item.control != nil:
		return &controlNode{shown: base}
	case item.live != nil:
		return &liveNode{shown: base}
	}
	file := &fileNode{shown: base}
	file.basis.Store(item.basis)
	return file
}

func (n *dirNode) Getattr(ctx context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	item, err := patiently(ctx, n.dir.item)
	if errors.Is(err, errAbsent) {
		return n.gone()
	}
	if err != nil {
		return n.m.errno(ctx, n.path, err)
	}
	n.m.fill(&out.Attr, item)
	out.SetTimeout(timeout)
	return 0
}

func (n *dirNode) Opendir(ctx context.Context) syscall.Errno {
	_, err := patiently(ctx, n.dir.item)
	if errors.Is(err, errAbsent) {
		return n.gone()
	}
	return n.m.errno(ctx, n.path, err)
}

func (n *dirNode) Readdir(ctx context.Context) (gofs.DirStream, syscall.Errno) {
	if d, ok := n.dir.(*imagesDir); ok {
		list, err := patiently(ctx, d.lazyList)
		if err != nil {
			return nil, n.lookupErrno(ctx, err)
		}
		return &lazyStream{list: list}, 0
	}
	names, err := patiently(ctx, n.dir.list)
	if err != nil {
		return nil, n.lookupErrno(ctx, err)
	}
	return dirStream(names), 0
}

// A lazyStream reads a lazyList.
type lazyStream struct {
	list lazyList
	next int
}

var _ gofs.FileSeekdirer = (*lazyStream)(nil)

func (s *lazyStream) HasNext() bool {
	for ; s.next < s.list.len; s.next++ {
		if _, ok := s.list.at(s.next); ok {
			return true
		}
	}
	return false
}

func (s *lazyStream) Next() (fuse.DirEntry, syscall.Errno) {
	name, _ := s.list.at(s.next)
	s.next++
	return fuse.DirEntry{Name: name, Mode: syscall.S_IFDIR, Off: uint64(s.next)}, 0
}

func (s *lazyStream) Seekdir(_ context.Context, off uint64) syscall.Errno {
	if off > uint64(s.list.len) {
		return syscall.EINVAL
	}
	s.next = int(off)
	return 0
}

func (s *lazyStream) Close() {}

func dirStream(names []Name) gofs.DirStream {
	list := make([]fuse.DirEntry, len(names))
	for i, e := range names {
		list[i] = fuse.DirEntry{Name: e.Name, Mode: syscall.S_IFREG}
		if e.Mode.IsDir() {
			list[i].Mode = syscall.S_IFDIR
		}
	}
	return gofs.NewListDirStream(list)
}

func (n *dirNode) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	return n.m.statfs(out)
}

// statfs tells of the file system that the registry is on.
func (m *mounted) statfs(out *fuse.StatfsOut) syscall.Errno {
	st, err := m.tree.Registry.Statfs()
	if err != nil {
		return errnoOf(err)
	}
	out.FromStatfsT(&st)
	return 0
}

// shown is what the nodes of files have in common: what they show, and where
// it was found.
type shown struct {
	refusing
	parent dir
	name   string
	item   *Item
}

func (s *shown) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	return s.m.statfs(out)
}

// A fileNode shows a file that never changes: when there is other content at
// its path, that is another node.
type fileNode struct {
	gofs.Inode
	shown
	basis atomic.Pointer[basis] // by which it was looked up or opened last

	unproven atomic.Bool // there may be pages of it from when its times proved nothing
}

var (
	_ gofs.NodeOpener    = (*fileNode)(nil)
	_ gofs.NodeReader    = (*fileNode)(nil)
	_ gofs.NodeGetattrer = (*fileNode)(nil)
)

func (n *fileNode) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.m.fill(&out.Attr, n.item)
	out.SetTimeout(timeout)
	return 0
}

func (n *fileNode) Open(ctx context.Context, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, n.refuse(ctx, "open for writing", "")
	}
	pid := pidOf(ctx)
	refused := n.m.stale.take(pid, n.path)
	if d, ok := n.parent.(*imageDir); ok && d.holds(ctx, n.basis.Load()) {
		return n.open(n.item)
	}
	now, err := lookup(ctx, n.parent, n.name)
	if err == nil && now.settle != nil {
		waiting, stop := patient(ctx, pid)
		now, err = now.settle(waiting)
		stop()
	}
	if err != nil && !errors.Is(err, errAbsent) {
		return nil, 0, n.m.errno(ctx, n.path, err)
	}
	if err == nil && now.same(n.item) {
		n.basis.Store(now.basis)
		if now.blob == nil {
			now = n.item // with the data that all who have it open share
		}
		return n.open(now)
	}
	switch {
	case !refused:
		n.m.stale.refuse(pid, n.path)
		return nil, 0, syscall.ESTALE
	case err != nil:
		return nil, 0, syscall.ENOENT
	}
	return n.m.open(now, false)
}

// open opens what the inode stands for. The first open at which a file's times prove something drops the pages from before: they may be of bytes
// that came and went with no time.
func (n *fileNode) open(now *Item) (gofs.FileHandle, uint32, syscall.Errno) {
	h, flags, errno := n.m.open(now, true)
	if b, ok := h.(*blobHandle); ok && !b.blob.Proven {
		n.unproven.Store(true)
	} else if ok && n.unproven.Swap(false) {
		flags &^= fuse.FOPEN_KEEP_CACHE
	}
	return h, flags, errno
}

// lookup is that of a directory, which a signal that does not end the caller only begins anew.
func lookup(ctx context.Context, in dir, name string) (*Item, error) {
	return patiently(ctx, func(ctx context.Context) (*Item, error) { return in.lookup(ctx, name) })
}

// patiently does something that a signal that does not end the caller only begins anew.
func patiently[T any](ctx context.Context, do func(context.Context) (T, error)) (T, error) {
	done, err := do(ctx)
	if errors.Is(err, context.Canceled) {
		waiting, stop := patient(ctx, pidOf(ctx))
		defer stop()
		return do(waiting)
	}
	return done, err
}

// open opens what is there now. cached: it is what the inode stands for, so the
// kernel may keep what it reads.
func (m *mounted) open(now *Item, cached bool) (gofs.FileHandle, uint32, syscall.Errno) {
	flags := uint32(fuse.FOPEN_NOFLUSH | fuse.FOPEN_KEEP_CACHE)
	if !cached {
		flags = fuse.FOPEN_NOFLUSH | fuse.FOPEN_DIRECT_IO
	}
	if now.blob == nil {
		return &dataHandle{now.data}, flags, 0
	}
	blob, err := now.blob()
	if err != nil {
		return nil, 0, errnoOf(err)
	}
	if blob.Attr.Stamp != now.stamp { // replaced between two calls
		flags = fuse.FOPEN_NOFLUSH | fuse.FOPEN_DIRECT_IO
		cached = false
	} else if !blob.Proven {
		flags &^= fuse.FOPEN_KEEP_CACHE
	}
	return &blobHandle{blob, cached && m.passthrough.Load()}, flags, 0
}

// smallRead: of so many bytes a copy takes less time than splice(2), which needs a pipe.
const smallRead = 16 << 10

// Read serves what the handle holds.
func (n *fileNode) Read(_ context.Context, h gofs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	switch h := h.(type) {
	case *blobHandle:
		if len(dest) > smallRead {
			return fuse.ReadResultFd(uintptr(h.blob.FD()), off, len(dest)), 0
		}
		n, err := h.blob.ReadAt(dest, off)
		if err != nil && err != io.EOF {
			return nil, errnoOf(err)
		}
		return fuse.ReadResultVector([][]byte{dest[:n]}), 0
	case *dataHandle:
		return part(h.data, dest, off), 0
	}
	return nil, syscall.EBADF
}

// part is what a read of len(dest) bytes at off gives, never more. (Of ReadResultData go-fuse first tries to make a splice(2).)
func part(data, dest []byte, off int64) fuse.ReadResult {
	data = data[min(off, int64(len(data))):]
	return fuse.ReadResultVector([][]byte{data[:min(len(data), len(dest))]})
}

// A dataHandle is an open file that the tree computed.
type dataHandle struct{ data []byte }

// A blobHandle is an open file of a layout, which the kernel reads without
// asking where passthrough works (linux/fuse.h, FOPEN_PASSTHROUGH).
type blobHandle struct {
	blob        *layout.Blob
	passthrough bool
}

var (
	_ gofs.FilePassthroughFder = (*blobHandle)(nil)
	_ gofs.FileReleaser        = (*blobHandle)(nil)
)

func (h *blobHandle) PassthroughFd() (int, bool) { return h.blob.FD(), h.passthrough }

func (h *blobHandle) Release(context.Context) syscall.Errno {
	h.blob.Close()
	return 0
}

// A liveNode shows a file that is made anew for each opener: .irfs/log.
type liveNode struct {
	gofs.Inode
	shown
}

func (n *liveNode) Getattr(ctx context.Context, h gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	now := *n.item
	if h, ok := h.(*dataHandle); ok {
		now.Size = int64(len(h.data))
	} else {
		now.Size = int64(len(n.item.live(callerOf(ctx).UID)))
	}
	n.m.fill(&out.Attr, &now)
	return 0
}

func (n *liveNode) Open(ctx context.Context, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, n.refuse(ctx, "open for writing", "")
	}
	return &dataHandle{n.item.live(callerOf(ctx).UID)}, fuse.FOPEN_DIRECT_IO, 0
}

func (n *liveNode) Read(_ context.Context, h gofs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return part(h.(*dataHandle).data, dest, off), 0
}

// refusing answers what cannot be done anywhere in the tree. go-fuse's
// defaults for some of these would say that it was done.
type refusing struct {
	m    *mounted
	path string // in the mount, "." its root
}

func (r *refusing) refuse(ctx context.Context, operation, name string) syscall.Errno {
	r.m.tree.log.add(callerOf(ctx).UID, operation, path.Join(r.path, name), "refused: this cannot be done here")
	return syscall.EPERM
}

func (r *refusing) Unlink(ctx context.Context, name string) syscall.Errno {
	return r.refuse(ctx, "unlink", name)
}

func (r *refusing) Rmdir(ctx context.Context, name string) syscall.Errno {
	return r.refuse(ctx, "rmdir", name)
}

func (r *refusing) Rename(ctx context.Context, name string, _ gofs.InodeEmbedder, _ string, _ uint32) syscall.Errno {
	return r.refuse(ctx, "rename", name)
}

func (r *refusing) Mkdir(ctx context.Context, name string, _ uint32, _ *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return nil, r.refuse(ctx, "mkdir", name)
}

func (r *refusing) Mknod(ctx context.Context, name string, _, _ uint32, _ *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return nil, r.refuse(ctx, "mknod", name)
}

func (r *refusing) Symlink(ctx context.Context, _, name string, _ *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return nil, r.refuse(ctx, "symlink", name)
}

func (r *refusing) Link(ctx context.Context, _ gofs.InodeEmbedder, name string, _ *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return nil, r.refuse(ctx, "link", name)
}

func (r *refusing) Create(ctx context.Context, name string, _, _ uint32, _ *fuse.EntryOut) (*gofs.Inode, gofs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, r.refuse(ctx, "create", name)
}

func (r *refusing) Setattr(ctx context.Context, _ gofs.FileHandle, _ *fuse.SetAttrIn, _ *fuse.AttrOut) syscall.Errno {
	return r.refuse(ctx, "setattr", "")
}
