package fs

import (
	"bytes"
	"context"
	"errors"
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

	// mu is held for moments only: lookup and stat want it, and whoever waits for
	// those cannot be killed.
	mu       sync.Mutex
	owner    Caller // who created it
	name     string // its path below import/
	attempt  *attempt
	handles  int
	unlinked bool
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

// An attempt is one archive, which one open handle writes, and what comes of it.
// While it goes on nobody else may write to the file.
type attempt struct {
	file *dropFile
	by   *dropHandle

	// turn is held by who works on what follows.
	turn    chan struct{}
	arrival *layout.Arrival // nil before the first write, and once it is complete
	staged  *layout.Staged  // what is complete, and could not be published yet

	// These are guarded by file.mu.
	size       int64
	written    bool
	closed     bool // by its opener, since the last write
	publishing bool
	told       bool // the log says that it is not complete
	over       bool
	err        error // why it came to nothing, once it is over
}

// enter waits for the turn.
func (a *attempt) enter(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *attempt) leave() { <-a.turn }

// receipt says that it was taken in. file.mu is held.
func (a *attempt) receipt() bool { return a != nil && a.over && a.err == nil }

// end notes what came of it. Its turn is held.
func (a *attempt) end(uid uint32, name, outcome string, err error) {
	a.free()
	f := a.file
	f.mu.Lock()
	defer f.mu.Unlock()
	a.over, a.err = true, err
	if err == nil {
		f.expires = time.Now().Add(receiptFor)
	}
	if err != errIncomplete || !a.told { // it says so already
		f.m.drops.log(uid, name, outcome)
	}
}

// free frees what was written. Its turn is held.
func (a *attempt) free() {
	if a.arrival != nil {
		a.arrival.Abort()
		a.arrival = nil
	}
	if a.staged != nil {
		a.staged.Discard()
		a.staged = nil
	}
	a.file.m.drops.live.Delete(a)
}

// late is the errno for who goes on with an attempt that is over, and why it came to nothing.
// A call that was interrupted is made again, by some for ever (dd), and this one is in vain.
func late(err error) syscall.Errno {
	if errno := errnoOf(err); errno != syscall.EINTR {
		return errno
	}
	return syscall.ECANCELED
}

// discard frees what was written, once nobody works on it.
func (a *attempt) discard() {
	if a != nil && a.enter(context.Background()) == nil {
		a.free()
		a.leave()
	}
}

// A dropHandle is an open file in import/. What is imported through it is
// imported by who opened it, with the rights that he had then: whoever else
// has, or gets, a copy of the descriptor lends it none.
type dropHandle struct {
	caller   Caller
	process  int
	rights   credentials
	rightErr error // why rights are not known
	writes   bool
	// These are guarded by the file's mu.
	attempt *attempt // the last that it wrote
	wrote   bool     // anything at all
}

func newDropHandle(ctx context.Context, flags uint32) *dropHandle {
	h := &dropHandle{caller: callerOf(ctx), process: process(pidOf(ctx)), writes: flags&syscall.O_ACCMODE != syscall.O_RDONLY}
	if h.writes {
		h.rights, h.rightErr = credentialsOf(h.caller)
	}
	return h
}

// opened says whether who asks now is who opened the file.
func (h *dropHandle) opened(ctx context.Context) bool {
	c := callerOf(ctx)
	return c.UID == h.caller.UID && c.GID == h.caller.GID
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
	item := &Item{UID: f.owner.UID, GID: f.owner.GID, Mtime: f.mtime.UnixNano()}
	if f.attempt != nil {
		item.Size = f.attempt.size
	}
	f.m.fill(out, item)
	out.Mode = syscall.S_IFREG | f.mode
}

// Open opens what still has its name: the end of the last handle, which may come
// late, has a file forgotten that nothing came of.
func (f *dropFile) Open(ctx context.Context, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	h := newDropHandle(ctx, flags)
	d := f.m.drops
	d.mu.Lock()
	defer d.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if d.files[f.name] != f {
		return nil, 0, syscall.ESTALE
	}
	f.handles++
	return h, fuse.FOPEN_DIRECT_IO, 0
}

func (f *dropFile) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.fill(&out.Attr)
	return 0
}

// Setattr takes modes, times and sizes. Whom the app will belong to is who writes
// it; a tool that sets an owner is not told off.
func (f *dropFile) Setattr(ctx context.Context, h gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	f.mu.Lock()
	if mode, ok := in.GetMode(); ok {
		f.mode = mode & 0o777
	}
	if mtime, ok := in.GetMTime(); ok {
		f.mtime = mtime
	}
	f.mu.Unlock()
	if size, ok := in.GetSize(); ok {
		handle, _ := h.(*dropHandle)
		if errno := f.truncate(ctx, handle, int64(size)); errno != 0 {
			return errno
		}
	}
	f.fill(&out.Attr)
	return 0
}

// truncate sets the size. 0 begins anew; for a receipt no other size matters. The
// kernel names no handle for open(2) with O_TRUNC, nor for truncate(2).
func (f *dropFile) truncate(ctx context.Context, h *dropHandle, size int64) syscall.Errno {
	if h != nil && !h.opened(ctx) {
		return errnoOf(errCaller)
	}
	f.mu.Lock()
	a := f.attempt
	nothing := size != 0 && a.receipt() || size == 0 && (a == nil || !a.written && !a.over)
	idle := a == nil || a.over || a.closed && !a.publishing
	if !nothing && h == nil && size == 0 && idle {
		f.drop()
		f.expires, nothing = time.Time{}, true
	}
	f.mu.Unlock()
	switch {
	case nothing:
		return 0
	case h == nil:
		return syscall.EBUSY
	}
	return f.write(ctx, h, size == 0, func(ctx context.Context, a *layout.Arrival) error {
		if size == 0 {
			return nil
		}
		return a.Truncate(size)
	})
}

// begin gives the attempt that a handle writes: its own, or with anew, or if it
// has none, another one, if no other is under way.
func (f *dropFile) begin(h *dropHandle, anew bool) (*attempt, syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.attempt
	if a != nil && a.by == h && !anew {
		if a.receipt() {
			return nil, syscall.EINVAL
		}
		return a, late(a.err)
	}
	switch {
	case h.attempt != nil && !anew: // another one has begun since
		return nil, syscall.EINVAL
	case a != nil && a.closed && !a.over && !anew && staged(f.name): // it goes on, before its rename
		a.by, h.attempt = h, a
		return a, 0
	case a != nil && (a.publishing || a.by != h && !a.over && !a.closed):
		return nil, syscall.EBUSY
	}
	f.drop()
	f.attempt = &attempt{file: f, by: h, turn: make(chan struct{}, 1)}
	f.m.drops.live.Store(f.attempt, true)
	h.attempt, f.expires = f.attempt, time.Time{}
	return f.attempt, 0
}

// drop gives up the attempt, in whose place another one comes. mu is held.
func (f *dropFile) drop() {
	a := f.attempt
	if a == nil {
		return
	}
	if !a.over {
		a.over, a.err = true, errIncomplete
	}
	f.m.drops.discards.Go(a.discard)
	f.attempt = nil
}

// write has something done to the archive that a handle writes.
func (f *dropFile) write(ctx context.Context, h *dropHandle, anew bool, do func(context.Context, *layout.Arrival) error) syscall.Errno {
	a, errno := f.begin(h, anew)
	if errno != 0 || a == nil {
		return errno
	}
	ctx, stop := steadfast(ctx, pidOf(ctx))
	defer stop()
	if err := a.enter(ctx); err != nil {
		return errnoOf(err)
	}
	defer a.leave()
	f.mu.Lock()
	over, err, name := a.over, a.err, f.name
	f.mu.Unlock()
	switch {
	case over && err == nil: // it was taken in meanwhile
		return syscall.EINVAL
	case over:
		return late(err)
	}
	if a.arrival == nil {
		in := layout.Intake{Owner: layout.Owner{UID: int(h.caller.UID), GID: int(h.caller.GID)}, Rights: h.may}
		if !staged(name) {
			in.App = appOf(name)
			f.m.drops.done.removeOf(in.App, h.caller.UID)
		}
		a.arrival = f.m.tree.Registry.Receive(in)
	}
	err = do(ctx, a.arrival)
	size := a.arrival.Size()
	if err != nil {
		a.end(h.caller.UID, name, inWords(err), err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a.size, a.written, a.closed = size, a.written || size > 0, false
	h.wrote = h.wrote || a.written
	f.mtime = time.Now()
	return errnoOf(err)
}

// Read: what was taken in is not a file any more.
func (f *dropFile) Read(context.Context, gofs.FileHandle, []byte, int64) (fuse.ReadResult, syscall.Errno) {
	return nil, syscall.EPERM
}

func (f *dropFile) Write(ctx context.Context, h gofs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	handle := h.(*dropHandle)
	if !handle.opened(ctx) {
		f.m.drops.log(callerOf(ctx).UID, strings.TrimPrefix(f.path, "import/"), "refused: the file was opened by another user")
		return 0, errnoOf(errCaller)
	}
	f.mu.Lock()
	padding := handle.attempt.receipt() && len(bytes.Trim(data, "\x00")) == 0 // after the archive's end
	f.mu.Unlock()
	if padding {
		return uint32(len(data)), 0
	}
	errno := f.write(ctx, handle, false, func(ctx context.Context, a *layout.Arrival) error {
		_, err := a.WriteAt(ctx, data, off)
		return err
	})
	if errno != 0 {
		return 0, errno
	}
	return uint32(len(data)), 0
}

func (f *dropFile) Allocate(ctx context.Context, h gofs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	const keepSize = 1
	if mode&^keepSize != 0 {
		return syscall.EOPNOTSUPP
	}
	f.mu.Lock()
	grows := f.attempt == nil || int64(off+size) > f.attempt.size
	f.mu.Unlock()
	if mode&keepSize == 0 && grows {
		return f.truncate(ctx, h.(*dropHandle), int64(off+size))
	}
	return 0
}

func (f *dropFile) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	return f.m.statfs(out)
}

// Fsync takes in what is complete. What is not cannot be durable yet.
func (f *dropFile) Fsync(ctx context.Context, h gofs.FileHandle, _ uint32) syscall.Errno {
	return f.close(ctx, h, func(*dropHandle) bool { return false })
}

// Flush comes with every close of a descriptor, from whichever process. An
// archive that is complete by then is taken in, and how that went is what
// close returns.
func (f *dropFile) Flush(ctx context.Context, h gofs.FileHandle) syscall.Errno {
	return f.close(ctx, h, func(h *dropHandle) bool { return process(pidOf(ctx)) == h.process })
}

// close takes in the archive that a handle wrote, if it is complete; if it is not, that
// is an error for who closes it for good.
func (f *dropFile) close(ctx context.Context, h gofs.FileHandle, forGood func(*dropHandle) bool) syscall.Errno {
	handle, _ := h.(*dropHandle)
	if handle == nil {
		return 0
	}
	closing := forGood(handle)
	f.mu.Lock()
	a := handle.attempt
	other := a == nil || a.by != handle // who goes on with it
	nothing := other || !a.written && !a.over
	going := !nothing && !a.over
	wrote, name := handle.wrote, f.name
	f.mu.Unlock()
	switch {
	case !handle.opened(ctx) && closing && going:
		f.m.drops.log(callerOf(ctx).UID, name, "it is closed by another user than opened it; nothing was imported")
		return syscall.EACCES
	case !handle.opened(ctx): // a copy that somebody else has
		return 0
	case nothing && !other && wrote && closing: // and cut to nothing again
		return errnoOf(layout.ErrCorrupt)
	case nothing:
		return 0
	}
	ctx, stop := patient(ctx, pidOf(ctx))
	defer stop()
	if err := a.enter(ctx); err != nil {
		return errnoOf(err)
	}
	defer a.leave()
	f.mu.Lock()
	a.closed = a.closed || closing
	over, err, unlinked := a.over, a.err, f.unlinked
	name = f.name
	f.mu.Unlock()
	switch {
	case over:
		return late(err)
	case staged(name) && !unlinked:
		return 0 // until its rename
	case unlinked && !closing:
		return 0
	case unlinked:
		return a.fail(handle.caller.UID, name, &fault{syscall.ECANCELED, "its name was removed before it was complete; nothing was imported"})
	}
	return a.takeIn(ctx, name, closing, handle.caller, handle)
}

// may are the rights of who opened the file.
func (h *dropHandle) may(ctx context.Context, _ layout.Attr, ask func() error) error {
	if h.rightErr != nil {
		return h.rightErr
	}
	return h.rights.run(ctx, ask)
}

// fail ends it with an error. Its turn is held.
func (a *attempt) fail(uid uint32, name string, err error) syscall.Errno {
	a.end(uid, name, inWords(err), err)
	a.file.m.drops.done.removeOf(appOf(name), uid)
	return errnoOf(err)
}

// takeIn makes an app of the archive. Its turn is held.
func (a *attempt) takeIn(ctx context.Context, name string, closing bool, by Caller, opened *dropHandle) syscall.Errno {
	f := a.file
	if !f.publishing(a) {
		return syscall.EBUSY
	}
	defer f.published(a)
	if a.staged == nil {
		if a.arrival == nil {
			return a.fail(by.UID, name, errIncomplete)
		}
		whole, err := a.arrival.Complete(ctx, closing)
		switch {
		case err != nil:
			return a.fail(by.UID, name, err)
		case !whole && closing: // what is missing may come still
			f.mu.Lock()
			defer f.mu.Unlock()
			a.tell(by.UID, name)
			return errnoOf(layout.ErrCorrupt)
		case !whole:
			return 0 // a child closed its copy
		}
		if a.staged, err = a.arrival.Finish(ctx); err != nil {
			return a.fail(by.UID, name, err)
		}
		a.arrival = nil
	}
	app := appOf(name)
	defer f.m.changes.begin()()
	imported, outcome, err := f.m.drops.publish(ctx, app, a.staged, opened)
	if errors.Is(err, context.DeadlineExceeded) { // a rename, which may be tried again
		f.m.drops.log(by.UID, name, fmt.Sprintf("another process is changing the app %s (waited %v); rename it again", app, renameWait))
		return syscall.EBUSY
	}
	if err != nil {
		return a.fail(by.UID, name, err)
	}
	way, err := f.m.tree.Registry.Along(app)
	if err != nil || way[len(way)-1].ID != a.staged.ID {
		way = nil
	}
	a.end(by.UID, name, outcome, nil)
	f.m.drops.done.add(app, way, by, imported)
	f.m.expire(ctx, app, nil)
	return 0
}

// publishing notes that an attempt is being published, if it is not over.
func (f *dropFile) publishing(a *attempt) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	a.publishing = !a.over
	return a.publishing
}

func (f *dropFile) published(a *attempt) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a.publishing = false
}

// tell logs, once, that it is not complete. file.mu is held.
func (a *attempt) tell(uid uint32, name string) {
	if !a.told {
		a.file.m.drops.log(uid, name, "archive: it ends before its end-of-archive blocks; nothing was imported")
	}
	a.told = true
}

// takeInAs takes in, under another name, what was written to one with a leading dot.
func (f *dropFile) takeInAs(ctx context.Context, name string) syscall.Errno {
	caller := callerOf(ctx)
	f.mu.Lock()
	a := f.attempt
	busy := a != nil && !a.over && !a.closed && a.written
	f.mu.Unlock()
	if busy { // it is being written still
		return syscall.EBUSY
	}
	if a == nil {
		return f.m.drops.refuse(ctx, name, &fault{layout.ErrCorrupt, "archive: it is empty; nothing was imported"})
	}
	if a.by.caller.UID != caller.UID { // whom the app will belong to
		return f.m.drops.refuse(ctx, name, &fault{errCaller, "the file was written by another user; nothing was imported"})
	}
	// Meanwhile the kernel lets nobody else into the directory.
	ctx, stop := patient(ctx, caller.PID)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, renameWait)
	defer cancel()
	if err := a.enter(ctx); err != nil {
		return syscall.EBUSY
	}
	defer a.leave()
	f.mu.Lock()
	over, err := a.over, a.err
	f.mu.Unlock()
	if over {
		return late(err)
	}
	rights, rightErr := credentialsOf(caller)
	h := &dropHandle{rights: rights, rightErr: rightErr}
	return a.takeIn(ctx, name, true, caller, h)
}

// renameWait is how long a rename waits for who holds an app.
const renameWait = 5 * time.Second

// Release is the end of an open file. What was not taken in by then is gone,
// but for names with a leading dot, which wait for their rename.
func (f *dropFile) Release(ctx context.Context, h gofs.FileHandle) syscall.Errno {
	handle := h.(*dropHandle)
	f.mu.Lock()
	a := handle.attempt
	f.mu.Unlock()
	if a != nil && a.enter(context.Background()) == nil {
		a.release(handle)
		a.leave()
	}
	d := f.m.drops
	d.mu.Lock()
	defer d.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handles--
	waits := f.attempt != nil && (!f.attempt.over || f.attempt.err == nil)
	switch {
	case f.handles > 0 || waits:
	case f.attempt == nil && staged(f.name) && !f.unlinked:
		f.wait()
	default:
		if f.attempt == nil && handle.writes && !f.unlinked {
			d.log(handle.caller.UID, f.name, errIncomplete.Error())
		}
		if d.files[f.name] == f {
			delete(d.files, f.name)
		}
		f.ForgetPersistent()
	}
	return 0
}

// release is what becomes of an archive whose writer is gone. Its turn is held.
func (a *attempt) release(h *dropHandle) {
	f := a.file
	f.mu.Lock()
	over, name, unlinked := a.over || a.by != h, f.name, f.unlinked
	f.mu.Unlock()
	if over {
		return
	}
	if staged(name) && !unlinked { // its rename may come
		f.mu.Lock()
		defer f.mu.Unlock()
		a.closed = true
		f.wait()
		return
	}
	a.fail(h.caller.UID, name, errIncomplete)
}

// wait has the file wait for its rename. mu is held.
func (f *dropFile) wait() {
	f.expires = time.Now().Add(stagedFor)
	time.AfterFunc(stagedFor+time.Second, f.m.drops.sweepNow)
}

// errIncomplete is of an archive whose writer is gone.
var errIncomplete error = &fault{layout.ErrCorrupt, "archive: closed before it was complete; nothing was imported"}

// isWaiting says whether it has an archive in it, or will have. f.mu is held.
func (f *dropFile) isWaiting() bool { return !f.attempt.receipt() }

// unlink takes the file's name from it, if it is not being taken in.
func (f *dropFile) unlink() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.attempt != nil && f.attempt.publishing {
		return false
	}
	f.unlinked = true
	if f.handles == 0 {
		f.drop()
	}
	f.ForgetPersistent()
	return true
}

// replaceable says whether another file may take its name.
func (f *dropFile) replaceable() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.attempt == nil || f.attempt.over || f.attempt.closed && !f.attempt.publishing
}
