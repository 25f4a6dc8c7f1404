package fs

import (
	"context"
	"errors"
	"sync"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/opencontainers/go-digest"
)

// A controlNode is the file `sign` of an image directory. Who has it open for writing has an inode of his own: in the kernel a truncation, which a
// shell asks for, waits for a write to the same inode, and nothing ends that wait. The inodes of one path differ in their generations, not in
// their numbers.
type controlNode struct {
	gofs.Inode
	shown

	mu      sync.Mutex
	writers int  // handles
	kept    bool // for a thread that was refused another one's
}

var (
	_ gofs.NodeOpener    = (*controlNode)(nil)
	_ gofs.NodeReader    = (*controlNode)(nil)
	_ gofs.NodeWriter    = (*controlNode)(nil)
	_ gofs.NodeGetattrer = (*controlNode)(nil)
	_ gofs.NodeSetattrer = (*controlNode)(nil)
	_ gofs.NodeFsyncer   = (*controlNode)(nil)
	_ gofs.NodeReleaser  = (*controlNode)(nil)
)

// generation is that of a node which is looked up: of the known one, or of a new one if that is somebody's. Who was refused at an open gets one that
// is kept for him.
func (n *controlNode) generation(known *gofs.Inode, refused bool) uint64 {
	if known != nil && !refused {
		if k, ok := known.Operations().(*controlNode); ok && k.isFree() {
			return known.StableAttr().Gen
		}
	}
	n.kept = refused
	return n.m.controls.Add(1)
}

func (n *controlNode) isFree() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.writers == 0 && !n.kept
}

// enter makes the node that of a writer, if it is nobody's, or this one was refused another.
func (n *controlNode) enter(refused bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if (n.writers > 0 || n.kept) && !refused {
		return false
	}
	n.writers, n.kept = n.writers+1, false
	return true
}

func (n *controlNode) Release(_ context.Context, h gofs.FileHandle) syscall.Errno {
	if h.(*controlHandle).writes {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.writers--
	}
	return 0
}

// controlHandle remembers who opened the file, and on what.
type controlHandle struct {
	caller Caller
	writes bool
	bound  []digest.Digest // see imageDir.bound
	err    error           // of finding that out

	mu   sync.Mutex
	text []byte // what reading it gives
}

func (n *controlNode) Open(ctx context.Context, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	now, err := lookup(ctx, n.parent, n.name)
	if errors.Is(err, errAbsent) {
		return nil, 0, syscall.ESTALE
	}
	if err != nil {
		return nil, 0, errnoOf(err)
	}
	h := &controlHandle{caller: callerOf(ctx), text: now.data, writes: flags&syscall.O_ACCMODE != syscall.O_RDONLY}
	if pid := pidOf(ctx); h.writes {
		if !n.enter(n.m.stale.take(pid, n.path)) {
			n.m.stale.refuse(pid, n.path)
			return nil, 0, syscall.ESTALE // the kernel walks the path again by itself
		}
		h.bound, h.err = patiently(ctx, n.item.control.bound)
	}
	// With PARALLEL_DIRECT_WRITES a writer that waits for another one of the same handle can be killed, with NOFLUSH a close waits for no write.
	return h, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES | fuse.FOPEN_NOFLUSH, 0
}

func (n *controlNode) Read(_ context.Context, h gofs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	c := h.(*controlHandle)
	c.mu.Lock()
	defer c.mu.Unlock()
	return part(c.text, dest, off), 0
}

// Write carries out one command. The offset says nothing: each write is a
// command of its own.
func (n *controlNode) Write(ctx context.Context, h gofs.FileHandle, data []byte, _ int64) (uint32, syscall.Errno) {
	c := h.(*controlHandle)
	caller := callerOf(ctx)
	defer clear(data) // there may be a key in it
	d := n.item.control
	if caller.UID != c.caller.UID || caller.GID != c.caller.GID {
		n.m.tree.log.add(caller.UID, "sign", d.path(), "refused: the file was opened by another user")
		return 0, errnoOf(errCaller)
	}
	if c.err != nil {
		n.m.tree.log.add(caller.UID, "sign", d.path(), c.err.Error())
		return 0, errnoOf(c.err)
	}
	ctx, stop := patient(ctx, caller.PID)
	defer stop()
	defer n.m.changes.begin()()
	text, change, err := n.m.tree.command(ctx, d, c.bound, caller, n.m.device, data)
	c.mu.Lock()
	c.text = []byte(text + "\n" + usage)
	c.mu.Unlock()
	if err != nil {
		return 0, errnoOf(err)
	}
	n.m.expire(ctx, d.name, change)
	return uint32(len(data)), 0
}

func (n *controlNode) Getattr(ctx context.Context, h gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	now, err := lookup(ctx, n.parent, n.name)
	if errors.Is(err, errAbsent) {
		return syscall.ESTALE
	}
	if err != nil {
		return errnoOf(err)
	}
	if h, ok := h.(*controlHandle); ok {
		h.mu.Lock()
		now.Size = int64(len(h.text))
		h.mu.Unlock()
	}
	n.m.fill(&out.Attr, now)
	return 0
}

// Setattr accepts the truncation that a shell's `>` asks for, and no other change.
func (n *controlNode) Setattr(ctx context.Context, h gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		return syscall.EPERM
	}
	return n.Getattr(ctx, h, out)
}

// Fsync has nothing to do: a write that returned is durable.
func (n *controlNode) Fsync(context.Context, gofs.FileHandle, uint32) syscall.Errno { return 0 }
