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

// changes counts the changes through the mount: those that are under way, which end when the kernel has forgotten what was before, and those that
// have ended.
type changes struct {
	going atomic.Int32
	ended atomic.Uint64
}

func (c *changes) begin() (end func()) {
	c.going.Add(1)
	return func() {
		c.ended.Add(1)
		c.going.Add(-1)
	}
}

// timeout is the constant, or 0 if there was a change since so many had ended: what was found out before it may come to the kernel after it.
func (c *changes) timeout(ended uint64) time.Duration {
	if c.going.Load() > 0 || c.ended.Load() != ended {
		return 0
	}
	return timeout
}

// mounted is what the nodes of one mount share.
type mounted struct {
	tree        *Tree
	passthrough atomic.Bool
	device      uint64 // st_dev of the mount
	secret      [32]byte
	drops       *drops
	root        *gofs.Inode

	stale    stale
	census   census
	held     *held
	changes  changes
	controls atomic.Uint64 // generations of the inodes of `sign`
}

// identity tells one inode from another. Its number stands for the path and the directory of the registry that this is in, and for a file with fixed
// content the generation stands for that content and the attributes. So an inode's content never changes, and two contents are never one inode: nobody knows
// the key, so nobody can look for a collision of 64 bits.
func (m *mounted) identity(path string, in layout.ID, item *Item) gofs.StableAttr {
	h := hmac.New(sha256.New, m.secret[:])
	fmt.Fprintf(h, "%s\x00%T", path, item.dir) // what was a namespace may become an app
	numbers(h, int64(in.Dev), int64(in.Ino), in.Born, int64(in.UID))
	id := gofs.StableAttr{Ino: binary.LittleEndian.Uint64(h.Sum(nil)) | 1<<32} // never 0 or 1, the root's
	if item.dir != nil {
		id.Mode = syscall.S_IFDIR
	} else {
		id.Mode = syscall.S_IFREG
	}
	if item.dir == nil && item.control == nil && item.live == nil {
		numbers(h, 1, int64(item.Mode), int64(item.UID), int64(item.GID), item.Mtime, item.Size)
		if s := item.stamp; item.blob != nil {
			numbers(h, int64(s.Dev), int64(s.Ino), s.Size, s.Mtime, s.Ctime)
		} else {
			h.Write(item.data)
		}
		id.Gen = binary.LittleEndian.Uint64(h.Sum(nil))
	}
	return id
}

// same says whether two files at one path are one inode.
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
	_ gofs.NodeLookuper       = (*dirNode)(nil)
	_ gofs.NodeOpendirHandler = (*dirNode)(nil)
	_ gofs.NodeGetattrer      = (*dirNode)(nil)
	_ gofs.NodeStatfser       = (*dirNode)(nil)
)

func (n *dirNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	at, began, ended := path.Join(n.path, name), time.Now(), n.m.changes.ended.Load()
	item, err := lookup(ctx, n.dir, name)
	refused := n.m.stale.lookedUp(pidOf(ctx), at, began)
	if err != nil {
		return nil, n.lookupErrno(ctx, err)
	}
	n.m.fill(&out.Attr, item)
	in := n.dir.of()
	if item.dir != nil {
		in = item.dir.of()
	}
	id, node := n.m.identity(at, in, item), n.node(at, name, item)
	known := n.GetChild(name)
	if control, ok := node.(*controlNode); ok {
		id.Gen = control.generation(known, refused)
	}
	isKnown := known != nil && known.StableAttr() == id
	if !isKnown {
		n.m.census.take(n.m.root)
	}
	switch node := node.(type) {
	case *controlNode: // of which there may be another one at any time
	case *liveNode:
		out.SetEntryTimeout(timeout)
	case *fileNode:
		// Before it is asked whether a change is under way: that will look whether this was set.
		node.cached()
		if isKnown { // and stays
			known.Operations().(*fileNode).cached()
		}
		out.SetEntryTimeout(n.m.changes.timeout(ended))
		out.SetAttrTimeout(n.m.changes.timeout(ended))
	default:
		out.SetEntryTimeout(timeout)
		out.SetAttrTimeout(n.m.changes.timeout(ended))
	}
	return n.NewInode(ctx, node, id), 0
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
		d = p.image
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
	ended := n.m.changes.ended.Load()
	item, err := patiently(ctx, n.dir.item)
	if errors.Is(err, errAbsent) {
		return n.gone()
	}
	if err != nil {
		return n.m.errno(ctx, n.path, err)
	}
	n.m.fill(&out.Attr, item)
	out.SetTimeout(n.m.changes.timeout(ended))
	return 0
}

// OpendirHandle lists the directory: what comes to its name afterwards is no reason to fail a read of it.
func (n *dirNode) OpendirHandle(ctx context.Context, _ uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	var list lazyList
	_, err := patiently(ctx, n.dir.item)
	if errors.Is(err, errAbsent) {
		return nil, 0, n.gone()
	}
	if d, ok := n.dir.(*imagesDir); ok && err == nil {
		list, err = patiently(ctx, d.lazyList)
	} else if err == nil {
		var names []Name
		names, err = patiently(ctx, n.dir.list)
		list = listOf(names)
	}
	if err != nil {
		return nil, 0, n.lookupErrno(ctx, err)
	}
	return n.m.opendir(ctx, n.path, list)
}

// opendir opens a directory that has these names.
func (m *mounted) opendir(ctx context.Context, path string, list lazyList) (gofs.FileHandle, uint32, syscall.Errno) {
	uid := callerOf(ctx).UID
	shared, release, errno := m.held.take(list, uid, !m.tree.log.reads(uid))
	if errno != 0 {
		m.tree.log.add(uid, "list", path, "refused: the lists of the directories that are open take too much memory; close some")
		return nil, 0, errno
	}
	return &dirHandle{lazyStream{list: shared}, release}, 0, 0
}

// listOf is a list of names that are there.
func listOf(names []Name) lazyList {
	list := lazyList{len: len(names), at: func(i int) (Name, bool) { return names[i], true }}
	list.memory, list.bytes = namesKey(names)
	return list
}

// A dirHandle is an open directory.
type dirHandle struct {
	lazyStream
	release func()
}

var (
	_ gofs.FileReaddirenter = (*dirHandle)(nil)
	_ gofs.FileSeekdirer    = (*dirHandle)(nil)
	_ gofs.FileReleasedirer = (*dirHandle)(nil)
)

func (h *dirHandle) Releasedir(context.Context, uint32) { h.release() }

// A lazyStream reads a lazyList.
type lazyStream struct {
	list lazyList
	next int
}

func (s *lazyStream) Readdirent(context.Context) (*fuse.DirEntry, syscall.Errno) {
	for s.next < s.list.len {
		name, ok := s.list.at(s.next)
		s.next++
		if !ok {
			continue
		}
		e := &fuse.DirEntry{Name: name.Name, Mode: syscall.S_IFREG, Off: uint64(s.next)}
		if name.Mode.IsDir() {
			e.Mode = syscall.S_IFDIR
		}
		return e, 0
	}
	return nil, 0
}

func (s *lazyStream) Seekdir(_ context.Context, off uint64) syscall.Errno {
	if off > uint64(s.list.len) {
		return syscall.EINVAL
	}
	s.next = int(off)
	return 0
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

	opens       atomic.Int32 // handles on what it shows
	elsewhere   atomic.Int32 // how often Getattr told of something else
	cachedUntil atomic.Int64 // until then the kernel may take its name for it without asking: nanoseconds since 1970

	unproven atomic.Bool // there may be pages of it from when its times proved nothing
}

var (
	_ gofs.NodeOpener    = (*fileNode)(nil)
	_ gofs.NodeReader    = (*fileNode)(nil)
	_ gofs.NodeReleaser  = (*fileNode)(nil)
	_ gofs.NodeGetattrer = (*fileNode)(nil)
)

// cached notes that the kernel may take the node's name for it from now on; the answer may take a moment to get there.
func (n *fileNode) cached() {
	n.cachedUntil.Store(time.Now().Add(timeout + timeout/10).UnixNano())
}

// Getattr tells of what the node shows if somebody has that open: the kernel does not say whether it asks for fstat(2) or for stat(2). Otherwise
// it tells of what is at the path now, for the kernel may have taken the name for this node by itself. (An answer of ESTALE would make
// stat(2) walk the path again, but reach who has a descriptor that was opened with O_PATH.)
func (n *fileNode) Getattr(ctx context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if n.opens.Load() > 0 {
		n.m.fill(&out.Attr, n.item)
		return 0
	}
	ended := n.m.changes.ended.Load()
	now, err := lookup(ctx, n.parent, n.name)
	if err == nil && now.same(n.item) {
		n.m.fill(&out.Attr, n.item)
		out.SetTimeout(n.m.changes.timeout(ended))
		return 0
	}
	n.elsewhere.Add(1) // before it is seen whether somebody has it open by now: see Open
	switch {
	case n.opens.Load() > 0:
		n.m.fill(&out.Attr, n.item)
	case errors.Is(err, errAbsent):
		return syscall.ENOENT
	case err != nil:
		return n.m.errno(ctx, n.path, err)
	default:
		n.m.fill(&out.Attr, now)
	}
	return 0
}

// outdated reports whether the kernel may still take the node's name for it, though there is something else by now, and somebody has
// it open, so that it is not told by Getattr.
func (n *fileNode) outdated(ctx context.Context) bool {
	if n.opens.Load() == 0 || time.Now().UnixNano() > n.cachedUntil.Load() {
		return false
	}
	now, err := n.parent.lookup(ctx, n.name)
	return err != nil || !now.same(n.item)
}

func (n *fileNode) Open(ctx context.Context, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, n.refuse(ctx, "open for writing", "")
	}
	pid, told := pidOf(ctx), n.elsewhere.Load()
	refused := n.m.stale.take(pid, n.path)
	h, flags, errno := n.openNow(ctx, pid, refused)
	if own, ok := h.(ownHandle); !ok || !own.isOwn() {
		return h, flags, errno
	}
	n.opens.Add(1)
	if n.elsewhere.Load() == told || refused {
		return h, flags, 0
	}
	// It was what is there, and Getattr has told of something else since: the kernel has that size for it.
	n.Release(ctx, h)
	n.m.stale.refuse(pid, n.path)
	return nil, 0, syscall.ESTALE
}

// An ownHandle is an open file which knows whether it has the content of the inode that it was opened on.
type ownHandle interface{ isOwn() bool }

func (h *dataHandle) isOwn() bool { return h.own }
func (h *blobHandle) isOwn() bool { return h.own }

func (n *fileNode) Release(_ context.Context, h gofs.FileHandle) syscall.Errno {
	if own, ok := h.(ownHandle); ok && own.isOwn() {
		n.opens.Add(-1)
	}
	if h, ok := h.(*blobHandle); ok {
		h.blob.Close()
	}
	return 0
}

func (n *fileNode) openNow(ctx context.Context, pid uint32, refused bool) (gofs.FileHandle, uint32, syscall.Errno) {
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
		return &dataHandle{now.data, cached}, flags, 0
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
	return &blobHandle{blob, cached && m.passthrough.Load(), cached}, flags, 0
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
type dataHandle struct {
	data []byte
	own  bool // it is what the inode shows
}

// A blobHandle is an open file of a layout, which the kernel reads without
// asking where passthrough works (linux/fuse.h, FOPEN_PASSTHROUGH).
type blobHandle struct {
	blob        *layout.Blob
	passthrough bool
	own         bool
}

var _ gofs.FilePassthroughFder = (*blobHandle)(nil)

func (h *blobHandle) PassthroughFd() (int, bool) { return h.blob.FD(), h.passthrough }

// A liveNode shows a file that is another one for each opener: .irfs/log.
type liveNode struct {
	gofs.Inode
	shown
}

// A liveHandle is such a file that is open.
type liveHandle struct{ text liveText }

func (n *liveNode) Getattr(ctx context.Context, h gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	now := *n.item
	if h, ok := h.(*liveHandle); ok {
		now.Size = h.text.Size()
	} else {
		now.Size = n.item.live(callerOf(ctx).UID).Size()
	}
	n.m.fill(&out.Attr, &now)
	return 0
}

func (n *liveNode) Open(ctx context.Context, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, n.refuse(ctx, "open for writing", "")
	}
	return &liveHandle{n.item.live(callerOf(ctx).UID)}, fuse.FOPEN_DIRECT_IO, 0
}

func (n *liveNode) Read(_ context.Context, h gofs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	read, err := h.(*liveHandle).text.ReadAt(dest, off)
	if err != nil && err != io.EOF {
		return nil, errnoOf(err)
	}
	return fuse.ReadResultVector([][]byte{dest[:read]}), 0
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
