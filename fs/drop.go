package fs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"irfs/layout"
)

// receiptFor is how long a name in import/ stays after its archive was taken
// in, for tools that come back to set its mode or times.
const receiptFor = 30 * time.Second

// stagedFor is how long a file with a leading dot waits, closed, for the rename
// that takes it in: what a killed rsync left must not stay for ever.
const stagedFor = time.Hour

// maxDrops is how many files there may be in import/ at a time that were not
// taken in yet.
const maxDrops = 512

// drops are the files in import/.
type drops struct {
	mounted *mounted
	onExist layout.OnExist

	mu    sync.Mutex
	files map[string]*dropFile
	made  int64
}

// sweep forgets the files whose time is over, and counts those that have an
// archive in them, or will have: all but the receipts. d.mu is held.
func (d *drops) sweep() (open int) {
	for name, f := range d.files {
		f.mu.Lock()
		if !f.busy && f.handles == 0 && !f.expires.IsZero() && time.Now().After(f.expires) {
			delete(d.files, name)
			f.discard()
			f.ForgetPersistent()
		}
		if f.scratch != nil {
			open++
		}
		f.mu.Unlock()
	}
	return open
}

// close frees what was dropped and not taken in.
func (d *drops) close() {
	d.mu.Lock()
	files := d.files
	d.files = map[string]*dropFile{}
	d.mu.Unlock()
	for _, f := range files {
		f.mu.Lock()
		f.discard()
		f.mu.Unlock()
	}
}

func (d *drops) find(name string) *dropFile {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweep()
	return d.files[name]
}

// staged says whether a name is one that a tool writes to before it
// renames it.
func staged(name string) bool { return strings.HasPrefix(name, ".") }

// A dropDir is MNT/import/. What is written into it becomes an app.
type dropDir struct {
	gofs.Inode
	refusing
	parent dir
}

var (
	_ gofs.NodeLookuper  = (*dropDir)(nil)
	_ gofs.NodeGetattrer = (*dropDir)(nil)
	_ gofs.NodeReaddirer = (*dropDir)(nil)
	_ gofs.NodeCreater   = (*dropDir)(nil)
	_ gofs.NodeRenamer   = (*dropDir)(nil)
	_ gofs.NodeUnlinker  = (*dropDir)(nil)
)

func (n *dropDir) Getattr(ctx context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	item, err := n.parent.lookup(ctx, "import")
	if err != nil {
		return errnoOf(err)
	}
	n.m.fill(&out.Attr, item)
	out.SetTimeout(timeout)
	return 0
}

func (n *dropDir) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	return n.m.statfs(out)
}

func (n *dropDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	f := n.m.drops.find(name)
	if f == nil {
		return nil, syscall.ENOENT
	}
	f.fill(&out.Attr)
	return &f.Inode, 0
}

func (n *dropDir) Readdir(context.Context) (gofs.DirStream, syscall.Errno) {
	d := n.m.drops
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweep()
	var names []Name
	for name := range d.files {
		names = append(names, Name{name, 0})
	}
	return dirStream(sorted(names)), 0
}

func (n *dropDir) Create(ctx context.Context, name string, _ uint32, mode uint32, out *fuse.EntryOut) (*gofs.Inode, gofs.FileHandle, uint32, syscall.Errno) {
	caller := callerOf(ctx)
	d := n.m.drops
	if err := d.checkName(name); err != nil {
		d.log(caller.UID, name, err.Error())
		return nil, nil, 0, errnoOf(err)
	}
	d.mu.Lock()
	full := d.sweep() >= maxDrops
	d.made++
	made, there := d.made, d.files[name] != nil
	d.mu.Unlock()
	switch {
	case there:
		return nil, nil, 0, syscall.EEXIST
	case full:
		d.log(caller.UID, name, fmt.Sprintf("import/ holds %d files already that were not taken in; remove some, or wait", maxDrops))
		return nil, nil, 0, syscall.EDQUOT
	}
	f := &dropFile{refusing: refusing{n.m, path.Join(n.path, name)}, name: name, owner: caller, mode: mode & 0o777, mtime: time.Now()}
	var err error
	if f.scratch, err = n.m.tree.Registry.NewScratch(); err != nil {
		d.log(caller.UID, name, err.Error())
		return nil, nil, 0, errnoOf(err)
	}
	id := gofs.StableAttr{Mode: syscall.S_IFREG, Ino: n.m.ino(fmt.Sprintf("import/%d", made), &Item{})}
	inode := n.NewPersistentInode(ctx, f, id)
	d.mu.Lock()
	if d.files[name] != nil { // another one was faster
		d.mu.Unlock()
		f.mu.Lock()
		f.discard()
		f.mu.Unlock()
		f.ForgetPersistent()
		return nil, nil, 0, syscall.EEXIST
	}
	d.files[name] = f
	d.mu.Unlock()
	f.fill(&out.Attr)
	return inode, f.handle(ctx), fuse.FOPEN_DIRECT_IO, 0
}

// checkName refuses what could never become an app, before a byte is written.
func (d *drops) checkName(name string) error {
	if staged(name) {
		if len(name) > layout.MaxName {
			return &fault{layout.ErrName, "the name is too long"}
		}
		return nil
	}
	return d.mounted.tree.Registry.CheckName(AppOf(name))
}

func (d *drops) log(uid uint32, name, outcome string) {
	d.mounted.tree.log.add(uid, "import", path.Join("import", name), outcome)
}

func (n *dropDir) Unlink(_ context.Context, name string) syscall.Errno {
	d := n.m.drops
	f := d.find(name)
	if f == nil {
		return syscall.ENOENT
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy {
		return syscall.EBUSY
	}
	delete(d.files, name)
	f.unlinked = true
	if f.handles == 0 {
		f.discard()
	}
	f.ForgetPersistent()
	return 0
}

// Rename is the last step of tools that write to a name with a leading dot: it
// takes the archive in.
func (n *dropDir) Rename(ctx context.Context, name string, to gofs.InodeEmbedder, toName string, flags uint32) syscall.Errno {
	d := n.m.drops
	f := d.find(name)
	switch {
	case f == nil:
		return syscall.ENOENT
	case to.EmbeddedInode().StableAttr() != n.StableAttr() || !staged(name) || flags&^1 != 0: // RENAME_NOREPLACE
		return n.refuse(ctx, "rename", name)
	}
	if err := d.checkName(toName); err != nil {
		d.log(callerOf(ctx).UID, toName, err.Error())
		return errnoOf(err)
	}
	if !staged(toName) {
		if !f.begin() {
			return syscall.EBUSY
		}
		err := f.takeIn(ctx, toName)
		f.end()
		if err != nil {
			return errnoOf(err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.files[toName]; old != nil && old != f {
		old.mu.Lock()
		old.unlinked = true
		if !old.busy && old.handles == 0 {
			old.discard()
		}
		old.mu.Unlock()
		old.ForgetPersistent()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(d.files, name)
	d.files[toName] = f
	f.name = toName
	return 0
}

// A dropFile is a file in MNT/import/: an archive that is being written, then
// for a while its receipt.
type dropFile struct {
	gofs.Inode
	refusing
	owner Caller // who created it

	// mu is held for moments only: lookup and stat want it, and whoever waits
	// for those cannot be killed.
	mu       sync.Mutex
	busy     bool // it is being taken in; scratch and size stay as they are
	name     string
	scratch  *layout.Scratch // nil once it was taken in
	size     int64
	written  bool
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
	if f.busy || f.scratch == nil {
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
	errno := syscall.Errno(0)
	if size, ok := in.GetSize(); ok {
		errno = f.truncate(h, int64(size))
	}
	f.mu.Unlock()
	if errno == 0 {
		f.fill(&out.Attr)
	}
	return errno
}

func (f *dropFile) truncate(h gofs.FileHandle, size int64) syscall.Errno {
	if f.scratch == nil && size != 0 { // a receipt
		return 0
	}
	if errno := f.again(h); errno != 0 {
		return errno
	}
	if err := f.scratch.Truncate(size); err != nil {
		return errnoOf(err)
	}
	f.size = size
	return 0
}

// again starts a new import where the last one is over. It answers EINVAL to one
// who had the file open before.
func (f *dropFile) again(h gofs.FileHandle) syscall.Errno {
	if f.busy {
		return syscall.EBUSY
	}
	if f.scratch != nil {
		return 0
	}
	if h, ok := h.(*dropHandle); ok && h.taken != f.taken {
		return syscall.EINVAL
	}
	scratch, err := f.m.tree.Registry.NewScratch()
	if err != nil {
		return errnoOf(err)
	}
	f.scratch, f.size, f.written, f.told, f.expires = scratch, 0, false, false, time.Time{}
	return 0
}

func (f *dropFile) Read(_ context.Context, _ gofs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.scratch == nil {
		return nil, syscall.EPERM
	}
	n, err := f.scratch.ReadAt(dest, off)
	if err != nil && err != io.EOF {
		return nil, errnoOf(err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (f *dropFile) Write(_ context.Context, h gofs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h := h.(*dropHandle); f.scratch == nil && h.taken != f.taken && len(bytes.Trim(data, "\x00")) == 0 {
		return uint32(len(data)), 0 // padding after the archive's end
	}
	if errno := f.again(h); errno != 0 {
		return 0, errno
	}
	n, err := f.scratch.WriteAt(data, off)
	f.written = f.written || n > 0
	f.size = max(f.size, off+int64(n))
	f.mtime = time.Now()
	if err != nil {
		f.m.drops.log(f.owner.UID, f.name, err.Error())
		return 0, errnoOf(err)
	}
	return uint32(n), 0
}

func (f *dropFile) Allocate(_ context.Context, h gofs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	const keepSize = 1
	if mode&^keepSize != 0 {
		return syscall.EOPNOTSUPP
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if end := int64(off + size); mode&keepSize == 0 && end > f.size {
		return f.truncate(h, end)
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
	idle := f.scratch == nil || !f.written || f.unlinked || f.busy || staged(name)
	f.busy = f.busy || !idle
	f.mu.Unlock()
	if idle {
		return 0
	}
	defer f.end()
	if f.complete() {
		return errnoOf(f.takeIn(ctx, name))
	}
	if process(pidOf(ctx)) != h.(*dropHandle).process {
		return 0 // a child closed its copy
	}
	f.m.drops.log(callerOf(ctx).UID, name, f.cutOff())
	return errnoOf(layout.ErrCorrupt)
}

// complete says whether the file ends like an archive. The file is busy.
func (f *dropFile) complete() bool {
	end := make([]byte, 1024)
	if f.size < int64(len(end)) {
		return false
	}
	_, err := f.scratch.ReadAt(end, f.size-int64(len(end)))
	return err == nil && len(bytes.Trim(end, "\x00")) == 0
}

// cutOff says what is wrong with an archive that is not complete. The log has it
// then. The file is busy.
func (f *dropFile) cutOff() string {
	f.mu.Lock()
	f.told = true
	f.mu.Unlock()
	head := make([]byte, 8)
	n, _ := f.scratch.ReadAt(head, 0)
	if kind := layout.Compressed(head[:n]); kind != "" {
		return "archive: compressed by " + kind + ", which is not supported yet; nothing was imported"
	}
	return "archive: it ends before its end-of-archive blocks; nothing was imported"
}

// takeIn makes an app of the archive. The file is busy.
func (f *dropFile) takeIn(ctx context.Context, name string) error {
	caller, app := callerOf(ctx), AppOf(name)
	ctx, stop := patient(ctx, caller.PID)
	defer stop()
	imported, err := f.m.tree.take(ctx, caller, app, io.NewSectionReader(f.scratch, 0, f.size), f.m.drops.onExist)
	if err != nil {
		f.mu.Lock()
		f.told = true
		f.mu.Unlock()
		f.m.drops.log(caller.UID, name, inWords(err))
		return err
	}
	var parts []string
	for _, i := range imported {
		parts = append(parts, fmt.Sprintf("imported %s %s %s", i.App, i.Tag, i.Digest))
	}
	f.m.drops.log(caller.UID, name, strings.Join(parts, "; "))
	f.mu.Lock()
	f.discard()
	f.taken++
	f.expires = time.Now().Add(receiptFor)
	f.mu.Unlock()
	f.m.expire(app, nil)
	return nil
}

// take makes an app of an archive, or adds it to the app that is there, if the
// caller may change that one: import/ only says who may make new ones.
func (t *Tree) take(ctx context.Context, c Caller, name string, archive io.Reader, onExist layout.OnExist) ([]layout.Imported, error) {
	staged, err := t.Registry.Stage(ctx, archive, layout.Owner{UID: int(c.UID), GID: int(c.GID)})
	if err != nil {
		return nil, err
	}
	defer staged.Discard()
	staged.May = func(app *layout.App) error {
		if err := as(ctx, c, func(*view) error { return app.MayChange() }); err != nil {
			return fmt.Errorf("the app %s is there already, and you may not change it: %w", name, err)
		}
		return nil
	}
	return staged.Publish(ctx, name, onExist)
}

// discard frees what was written. f.mu is held.
func (f *dropFile) discard() {
	if f.scratch != nil {
		f.scratch.Close()
		f.scratch = nil
	}
}

// Release is the end of an open file. What was not taken in by then is gone,
// but for names with a leading dot, which wait for their rename.
func (f *dropFile) Release(context.Context, gofs.FileHandle) syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handles--
	switch {
	case f.handles > 0 || f.scratch == nil:
	case staged(f.name) && !f.unlinked:
		f.expires = time.Now().Add(stagedFor)
	default:
		if !f.told && !f.unlinked {
			f.m.drops.log(f.owner.UID, f.name, "archive: closed before it was complete; nothing was imported")
		}
		f.discard()
		f.expires = time.Now()
	}
	return 0
}
