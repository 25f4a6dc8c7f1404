package fs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"irfs/layout"
)

// A dropFile is a file below MNT/import/: an archive that is taken in while it is
// written, then for a while its receipt.
type dropFile struct {
	gofs.Inode
	refusing
	owner Caller // who created it

	// io is held by who works on arrival, mu for moments only: lookup and stat
	// want it, and whoever waits for those cannot be killed.
	io      sync.Mutex
	arrival *layout.Arrival // nil before the first write, and once it is over

	mu       sync.Mutex
	busy     bool   // it is being taken in
	name     string // its path below import/
	size     int64
	written  bool
	failed   error // why the archive came to nothing
	receipt  bool  // it was taken in
	unlinked bool
	told     bool // the log says what became of it
	taken    int  // how often it was taken in
	handles  int
	mode     uint32
	mtime    time.Time
	expires  time.Time
}

var (
	_ gofs.NodeOpener    = (*dropFile)(nil)
	_ gofs.NodeGetattrer = (*dropFile)(nil)
	_ gofs.NodeSetattrer = (*dropFile)(nil)
	_ gofs.NodeReader    = (*dropFile)(nil)
	_ gofs.NodeWriter    = (*dropFile)(nil)
	_ gofs.NodeFlusher   = (*dropFile)(nil)
	_ gofs.NodeFsyncer   = (*dropFile)(nil)
	_ gofs.NodeAllocater = (*dropFile)(nil)
	_ gofs.NodeReleaser  = (*dropFile)(nil)
)

// A dropHandle is an open file in import/.
type dropHandle struct {
	process int // who opened it
	taken   int // how often it had been taken in by then
}

func (f *dropFile) handle(ctx context.Context) *dropHandle {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handles++
	return &dropHandle{process(pidOf(ctx)), f.taken}
}

// begin makes the file busy, if it is not; end is its opposite.
func (f *dropFile) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy {
		return false
	}
	f.busy = true
	return true
}

func (f *dropFile) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy = false
}

// process gives the process that a thread belongs to: FUSE reports threads.
func process(thread uint32) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err == nil {
		for line := range strings.Lines(string(status)) {
			var id int
			if _, err := fmt.Sscanf(line, "Tgid:\t%d", &id); err == nil {
				return id
			}
		}
	}
	return int(thread)
}

func (f *dropFile) fill(out *fuse.Attr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	item := &Item{UID: f.owner.UID, GID: f.owner.GID, Size: f.size, Mtime: f.mtime.UnixNano()}
	f.m.fill(out, item)
	out.Mode = syscall.S_IFREG | f.mode
}

func (f *dropFile) Open(ctx context.Context, _ uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	return f.handle(ctx), fuse.FOPEN_DIRECT_IO, 0
}

func (f *dropFile) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.fill(&out.Attr)
	return 0
}

func (f *dropFile) Setattr(_ context.Context, h gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	f.mu.Lock()
	if mode, ok := in.GetMode(); ok {
		f.mode = mode & 0o777
	}
	if mtime, ok := in.GetMTime(); ok {
		f.mtime = mtime
	}
	f.mu.Unlock()
	if size, ok := in.GetSize(); ok {
		if errno := f.truncate(h, int64(size)); errno != 0 {
			return errno
		}
	}
	f.fill(&out.Attr)
	return 0
}

func (f *dropFile) truncate(h gofs.FileHandle, size int64) syscall.Errno {
	f.mu.Lock()
	receipt := f.receipt
	f.mu.Unlock()
	if receipt && size != 0 {
		return 0
	}
	return f.change(h, size == 0, func(a *layout.Arrival) error { return a.Truncate(size) })
}

// change has a change made to the archive that is arriving. Where the last one is
// over, or with anew, another one begins. It answers EINVAL to one who had the
// file open before the last one was taken in.
func (f *dropFile) change(h gofs.FileHandle, anew bool, do func(*layout.Arrival) error) syscall.Errno {
	f.mu.Lock()
	handle, _ := h.(*dropHandle)
	switch {
	case f.busy:
		f.mu.Unlock()
		return syscall.EBUSY
	case f.receipt && handle != nil && handle.taken != f.taken:
		f.mu.Unlock()
		return syscall.EINVAL
	}
	anew = anew || f.receipt
	if anew {
		f.size, f.written, f.failed, f.receipt, f.told, f.expires = 0, false, nil, false, false, time.Time{}
	}
	failed, name, taken := f.failed, f.name, f.taken
	f.mu.Unlock()
	if failed != nil {
		return errnoOf(failed)
	}

	f.io.Lock()
	defer f.io.Unlock()
	f.mu.Lock()
	late := f.taken != taken
	f.mu.Unlock()
	if late { // it was taken in meanwhile
		return syscall.EINVAL
	}
	if anew && f.arrival != nil {
		f.arrival.Abort()
		f.arrival = nil
	}
	if f.arrival == nil {
		in := layout.Intake{Owner: layout.Owner{UID: int(f.owner.UID), GID: int(f.owner.GID)}}
		if !staged(name) {
			in.App = appOf(name)
			f.m.drops.done.remove(in.App)
		}
		f.arrival = f.m.tree.Registry.Receive(in)
	}
	err := do(f.arrival)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.size = f.arrival.Size()
	if err != nil {
		f.failed = err
		f.tell(f.owner.UID, name, err.Error())
	}
	return errnoOf(err)
}

// tell logs what became of an archive, once. f.mu is held.
func (f *dropFile) tell(uid uint32, name, outcome string) {
	if !f.told {
		f.m.drops.log(uid, name, outcome)
	}
	f.told = true
}

// Read: what was taken in is not a file any more.
func (f *dropFile) Read(context.Context, gofs.FileHandle, []byte, int64) (fuse.ReadResult, syscall.Errno) {
	return nil, syscall.EPERM
}

func (f *dropFile) Write(_ context.Context, h gofs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	f.mu.Lock()
	over := f.receipt && !f.busy && h.(*dropHandle).taken != f.taken
	f.mu.Unlock()
	if over && len(bytes.Trim(data, "\x00")) == 0 {
		return uint32(len(data)), 0 // padding after the archive's end
	}
	errno := f.change(h, false, func(a *layout.Arrival) error {
		_, err := a.WriteAt(data, off)
		return err
	})
	if errno != 0 {
		return 0, errno
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written = true
	f.mtime = time.Now()
	return uint32(len(data)), 0
}

func (f *dropFile) Allocate(_ context.Context, h gofs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	const keepSize = 1
	if mode&^keepSize != 0 {
		return syscall.EOPNOTSUPP
	}
	f.mu.Lock()
	grows := int64(off+size) > f.size
	f.mu.Unlock()
	if mode&keepSize == 0 && grows {
		return f.truncate(h, int64(off+size))
	}
	return 0
}

func (f *dropFile) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	return f.m.statfs(out)
}

func (f *dropFile) Fsync(context.Context, gofs.FileHandle, uint32) syscall.Errno { return 0 }

// Flush comes with every close of a descriptor, from whichever process. An
// archive that is complete by then is taken in, and how that went is what
// close returns.
func (f *dropFile) Flush(ctx context.Context, h gofs.FileHandle) syscall.Errno {
	f.mu.Lock()
	name := f.name
	idle := f.receipt || !f.written && f.failed == nil || f.unlinked || f.busy || staged(name)
	f.busy = f.busy || !idle
	f.mu.Unlock()
	if idle {
		return 0
	}
	defer f.end()
	ctx, stop := patient(ctx, callerOf(ctx).PID)
	defer stop()
	return f.takeIn(ctx, name, process(pidOf(ctx)) == h.(*dropHandle).process)
}

// takeInAs takes the archive in under another name than it was written to.
func (f *dropFile) takeInAs(ctx context.Context, name string) syscall.Errno {
	if !f.begin() {
		return syscall.EBUSY
	}
	defer f.end()
	f.mu.Lock()
	empty := f.receipt || !f.written && f.failed == nil
	f.mu.Unlock()
	if empty {
		return f.m.drops.refuse(ctx, name, &fault{layout.ErrCorrupt, "archive: it is empty; nothing was imported"})
	}
	ctx, stop := patient(ctx, callerOf(ctx).PID)
	defer stop()
	return f.takeIn(ctx, name, true)
}

// takeIn makes an app of the archive, if it is complete; if it is not, that is an
// error for who closes it for good. The file is busy.
func (f *dropFile) takeIn(ctx context.Context, name string, closing bool) syscall.Errno {
	f.io.Lock()
	defer f.io.Unlock()
	f.mu.Lock()
	err := f.failed
	f.mu.Unlock()
	whole := false
	if err == nil {
		whole, err = f.arrival.Complete(ctx, closing)
	}
	switch {
	case err == nil && !whole && !closing:
		return 0 // a child closed its copy
	case err == nil && !whole: // what is missing may come still
		f.mu.Lock()
		defer f.mu.Unlock()
		f.tell(callerOf(ctx).UID, name, "archive: it ends before its end-of-archive blocks; nothing was imported")
		return errnoOf(layout.ErrCorrupt)
	}
	app := appOf(name)
	var imported []layout.Imported
	var outcome string
	if err == nil {
		var staged *layout.Staged
		staged, err = f.arrival.Finish(ctx)
		f.arrival = nil
		if err == nil {
			imported, outcome, err = f.m.drops.publish(ctx, app, staged)
		}
	}
	f.mu.Lock()
	if err != nil {
		outcome = inWords(err)
	}
	f.tell(callerOf(ctx).UID, name, outcome)
	if f.failed = err; err == nil {
		f.receipt, f.expires = true, time.Now().Add(receiptFor)
		f.taken++
	}
	f.mu.Unlock()
	if err != nil {
		f.m.drops.done.remove(app)
		return errnoOf(err)
	}
	f.m.drops.done.add(app, callerOf(ctx), imported)
	f.m.expire(app, nil)
	return 0
}

// discard frees what was written.
func (f *dropFile) discard() {
	f.io.Lock()
	defer f.io.Unlock()
	if f.arrival != nil {
		f.arrival.Abort()
		f.arrival = nil
	}
}

// Release is the end of an open file. What was not taken in by then is gone,
// but for names with a leading dot, which wait for their rename.
func (f *dropFile) Release(context.Context, gofs.FileHandle) syscall.Errno {
	d := f.m.drops
	d.mu.Lock()
	f.mu.Lock()
	f.handles--
	gone := f.handles == 0 && !f.receipt
	switch {
	case gone && f.unlinked:
	case gone && staged(f.name):
		f.expires, gone = time.Now().Add(stagedFor), false
	case gone:
		f.tell(f.owner.UID, f.name, "archive: closed before it was complete; nothing was imported")
		if d.files[f.name] == f {
			delete(d.files, f.name)
		}
		f.ForgetPersistent()
	}
	f.mu.Unlock()
	d.mu.Unlock()
	if gone {
		f.discard()
	}
	return 0
}
