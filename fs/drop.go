package fs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"irfs/layout"
	"irfs/sign"
)

// receiptFor is how long a name in import/ stays after its archive was taken
// in, for tools that come back to set its mode or times.
const receiptFor = 30 * time.Second

// stagedFor is how long a file with a leading dot waits, closed, for the rename
// that takes it in: what a killed rsync left must not stay for ever.
const stagedFor = time.Hour

// Limits, then EDQUOT.
const (
	maxDrops    = 512  // files in import/ at a time that were not taken in yet
	maxDropDirs = 1024 // directories below import/
)

// drops are the files below import/, by their paths there.
type drops struct {
	mounted *mounted
	onExist layout.OnExist
	signer  *sign.Signer // what is imported is signed, if not nil

	mu    sync.Mutex
	files map[string]*dropFile
	dirs  map[string]*dropDir
	made  int64
	swept time.Time
	done  receipts

	discards sync.WaitGroup
}

func newDrops(m *mounted, o Options) *drops {
	return &drops{
		mounted: m, onExist: o.OnExist, signer: o.SignImports,
		files: map[string]*dropFile{}, dirs: map[string]*dropDir{}, done: receipts{of: map[string]*receipt{}, dirs: map[string]bool{}},
	}
}

// sweepEvery is how often files are looked for whose time is over.
const sweepEvery = time.Second

// sweep forgets the files whose time is over. d.mu is held.
func (d *drops) sweep() {
	if time.Since(d.swept) >= sweepEvery {
		d.swept = time.Now()
		d.count()
	}
}

// count forgets the files whose time is over, and counts those that have an
// archive in them, or will have: all but the receipts. d.mu is held.
func (d *drops) count() (open int) {
	for name, f := range d.files {
		f.mu.Lock()
		if !f.busy && f.handles == 0 && !f.expires.IsZero() && time.Now().After(f.expires) {
			delete(d.files, name)
			d.discards.Go(f.discard) // not here: it may wait
			f.ForgetPersistent()
		}
		if !f.receipt {
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
		f.discard()
	}
	d.discards.Wait()
	d.mounted.tree.Registry.StopReceiving()
}

func (d *drops) find(name string) *dropFile {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweep()
	return d.files[name]
}

// ino is a new inode number. d.mu is held.
func (d *drops) ino() uint64 {
	d.made++
	return d.mounted.ino(fmt.Sprintf("import/%d", d.made), &Item{})
}

// staged says whether a name is one that a tool writes to before it
// renames it.
func staged(name string) bool { return strings.HasPrefix(path.Base(name), ".") }

// appOf is the app that a file below import/ becomes.
func appOf(name string) string { return path.Join(path.Dir(name), AppOf(path.Base(name))) }

// checkName refuses what could never become an app, before a byte is written.
func (d *drops) checkName(name string) error {
	if staged(name) {
		if len(path.Base(name)) > layout.MaxName {
			return &fault{layout.ErrName, "the name is too long"}
		}
		return nil
	}
	return d.mounted.tree.Registry.CheckName(appOf(name))
}

func (d *drops) log(uid uint32, name, outcome string) {
	d.mounted.tree.log.add(uid, "import", path.Join("import", name), outcome)
}

// refuse logs why something cannot be done, and gives its errno.
func (d *drops) refuse(ctx context.Context, name string, err error) syscall.Errno {
	d.log(callerOf(ctx).UID, name, err.Error())
	return errnoOf(err)
}

// A dropDir is MNT/import/, or a directory that was made below it. What is written
// into it becomes an app, MNT/import/library/nginx.tar the app library/nginx.
type dropDir struct {
	gofs.Inode
	refusing
	parent dir    // of MNT/import/ itself
	name   string // its path below import/; "" for import/ itself

	mu    sync.Mutex
	owner Caller
	mode  uint32
	mtime time.Time
}

var (
	_ gofs.NodeLookuper  = (*dropDir)(nil)
	_ gofs.NodeGetattrer = (*dropDir)(nil)
	_ gofs.NodeSetattrer = (*dropDir)(nil)
	_ gofs.NodeReaddirer = (*dropDir)(nil)
	_ gofs.NodeCreater   = (*dropDir)(nil)
	_ gofs.NodeRenamer   = (*dropDir)(nil)
	_ gofs.NodeUnlinker  = (*dropDir)(nil)
	_ gofs.NodeMkdirer   = (*dropDir)(nil)
	_ gofs.NodeRmdirer   = (*dropDir)(nil)
)

func (n *dropDir) Getattr(ctx context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if n.name != "" {
		n.fill(&out.Attr)
		return 0
	}
	item, err := n.parent.lookup(ctx, "import")
	if err != nil {
		return errnoOf(err)
	}
	n.m.fill(&out.Attr, item)
	out.SetTimeout(timeout)
	return 0
}

func (n *dropDir) fill(out *fuse.Attr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.m.fill(out, &Item{UID: n.owner.UID, GID: n.owner.GID, Mtime: n.mtime.UnixNano()})
	out.Mode = syscall.S_IFDIR | n.mode
}

// Setattr takes a mode and times, as tools set them that copy a tree.
func (n *dropDir) Setattr(ctx context.Context, h gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if n.name == "" || in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		return n.refusing.Setattr(ctx, h, in, out)
	}
	n.mu.Lock()
	if mode, ok := in.GetMode(); ok {
		n.mode = mode & 0o777
	}
	if mtime, ok := in.GetMTime(); ok {
		n.mtime = mtime
	}
	n.mu.Unlock()
	n.fill(&out.Attr)
	return 0
}

func (n *dropDir) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	return n.m.statfs(out)
}

func (n *dropDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	d := n.m.drops
	if n.name == "" && name == doneName {
		return n.lookupDone(ctx, out)
	}
	at := path.Join(n.name, name)
	d.mu.Lock()
	dir := d.dirs[at]
	d.mu.Unlock()
	if dir != nil {
		dir.fill(&out.Attr)
		return &dir.Inode, 0
	}
	f := d.find(at)
	if f == nil {
		return nil, syscall.ENOENT
	}
	f.fill(&out.Attr)
	return &f.Inode, 0
}

// in lists what lies in the directory. d.mu is held.
func (n *dropDir) in() (names []Name) {
	d := n.m.drops
	here := func(at string) bool { return path.Dir(at) == path.Join(".", n.name) }
	for at := range d.files {
		if here(at) {
			names = append(names, Name{path.Base(at), 0})
		}
	}
	for at := range d.dirs {
		if here(at) {
			names = append(names, dirs(path.Base(at))...)
		}
	}
	return names
}

func (n *dropDir) Readdir(context.Context) (gofs.DirStream, syscall.Errno) {
	d := n.m.drops
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweep()
	return dirStream(sorted(n.in())), 0
}

func (n *dropDir) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	d := n.m.drops
	at := path.Join(n.name, name)
	if err := n.m.tree.Registry.CheckName(at); err != nil {
		return nil, d.refuse(ctx, at, err)
	}
	made := &dropDir{refusing: refusing{n.m, path.Join(n.path, name)}, name: at, owner: callerOf(ctx), mode: mode & 0o777, mtime: time.Now()}
	d.mu.Lock()
	there, full, ino := d.dirs[at] != nil || d.files[at] != nil, len(d.dirs) >= maxDropDirs, d.ino()
	d.mu.Unlock()
	switch {
	case there:
		return nil, syscall.EEXIST
	case full:
		return nil, d.refuse(ctx, at, &fault{syscall.EDQUOT, fmt.Sprintf("import/ holds %d directories already; remove some", maxDropDirs)})
	}
	inode := n.NewPersistentInode(ctx, made, gofs.StableAttr{Mode: syscall.S_IFDIR, Ino: ino})
	d.mu.Lock()
	d.dirs[at] = made
	d.mu.Unlock()
	made.fill(&out.Attr)
	return inode, 0
}

func (n *dropDir) Rmdir(_ context.Context, name string) syscall.Errno {
	d := n.m.drops
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweep()
	at := path.Join(n.name, name)
	dir := d.dirs[at]
	switch {
	case dir == nil && n.name == "" && name == doneName:
		return syscall.EPERM
	case dir == nil:
		return syscall.ENOENT
	case len(dir.in()) > 0:
		return syscall.ENOTEMPTY
	}
	delete(d.dirs, at)
	dir.ForgetPersistent()
	return 0
}

func (n *dropDir) Create(ctx context.Context, name string, _ uint32, mode uint32, out *fuse.EntryOut) (*gofs.Inode, gofs.FileHandle, uint32, syscall.Errno) {
	d := n.m.drops
	at := path.Join(n.name, name)
	if err := d.checkName(at); err != nil {
		return nil, nil, 0, d.refuse(ctx, at, err)
	}
	d.mu.Lock()
	full, there, ino := len(d.files) >= maxDrops && d.count() >= maxDrops, d.files[at] != nil, d.ino()
	d.mu.Unlock()
	switch {
	case there:
		return nil, nil, 0, syscall.EEXIST
	case full:
		return nil, nil, 0, d.refuse(ctx, at, &fault{syscall.EDQUOT, fmt.Sprintf("import/ holds %d files already that were not taken in; remove some, or wait", maxDrops)})
	}
	f := &dropFile{refusing: refusing{n.m, path.Join(n.path, name)}, name: at, owner: callerOf(ctx), mode: mode & 0o777, mtime: time.Now()}
	inode := n.NewPersistentInode(ctx, f, gofs.StableAttr{Mode: syscall.S_IFREG, Ino: ino})
	d.mu.Lock()
	if d.files[at] != nil { // another one was faster
		d.mu.Unlock()
		f.ForgetPersistent()
		return nil, nil, 0, syscall.EEXIST
	}
	d.files[at] = f
	d.mu.Unlock()
	f.fill(&out.Attr)
	return inode, f.handle(ctx), fuse.FOPEN_DIRECT_IO, 0
}

func (n *dropDir) Unlink(_ context.Context, name string) syscall.Errno {
	d := n.m.drops
	at := path.Join(n.name, name)
	f := d.find(at)
	if f == nil {
		return syscall.ENOENT
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[at] == f {
		if !f.unlink() {
			return syscall.EBUSY
		}
		delete(d.files, at)
	}
	return 0
}

// unlink takes the file's name from it, if it is not being taken in.
func (f *dropFile) unlink() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy {
		return false
	}
	f.unlinked = true
	if f.handles == 0 {
		f.m.drops.discards.Go(f.discard)
	}
	f.ForgetPersistent()
	return true
}

// Rename is the last step of tools that write to a name with a leading dot: it
// takes the archive in.
func (n *dropDir) Rename(ctx context.Context, name string, to gofs.InodeEmbedder, toName string, flags uint32) syscall.Errno {
	d := n.m.drops
	at := path.Join(n.name, name)
	f := d.find(at)
	dir, ok := to.(*dropDir)
	switch {
	case f == nil && !n.isDir(at):
		return syscall.ENOENT
	case f == nil || !ok || !staged(name) || flags&^1 != 0: // RENAME_NOREPLACE
		return n.refuse(ctx, "rename", name)
	}
	toAt := path.Join(dir.name, toName)
	if err := d.checkName(toAt); err != nil {
		return d.refuse(ctx, toAt, err)
	}
	if dir.isDir(toAt) {
		return syscall.EISDIR
	}
	if !staged(toAt) {
		if errno := f.takeInAs(ctx, toAt); errno != 0 {
			return errno
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.files[toAt]; old != nil && old != f {
		old.unlink()
	}
	delete(d.files, at)
	d.files[toAt] = f
	f.mu.Lock()
	f.name = toAt
	f.mu.Unlock()
	return 0
}

// isDir says whether there is a directory of that path below import/.
func (n *dropDir) isDir(at string) bool {
	d := n.m.drops
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dirs[at] != nil || at == doneName
}

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

// publish makes an app of what was staged, or adds it to the app that is there, if
// the caller may: import/ only says who may make new ones in the registry itself.
func (d *drops) publish(ctx context.Context, app string, staged *layout.Staged) (imported []layout.Imported, outcome string, err error) {
	defer staged.Discard()
	caller := callerOf(ctx)
	reg := d.mounted.tree.Registry
	staged.May = func(dir string) error {
		err := as(ctx, caller, func(*view) error { return reg.MayChange(dir) })
		switch {
		case err == nil:
			return nil
		case dir == app:
			return fmt.Errorf("the app %s is there already, and you may not change it: %w", dir, err)
		}
		return fmt.Errorf("you may not make an app in %s: %w", dir, err)
	}
	var signed *sign.Outcome
	if d.signer != nil {
		if signed, err = d.signer.SignStaged(ctx, staged, sign.Signable); err != nil {
			return nil, "", err
		}
	}
	if imported, err = staged.Publish(ctx, app, d.onExist); err != nil {
		return nil, "", err
	}
	var came, dropped []string
	for _, i := range imported {
		came = append(came, fmt.Sprintf("imported %s %s %s", i.App, i.Tag, i.Digest))
	}
	for _, what := range staged.Dropped {
		dropped = append(dropped, "dropped "+what)
	}
	parts := append(few(came), few(dropped)...)
	if signed != nil {
		parts = append(parts, signed.Text())
	}
	return imported, strings.Join(parts, "; "), nil
}

// few is a list that fits into a line of the log.
func few(list []string) []string {
	const most = 20
	if len(list) <= most {
		return list
	}
	return append(list[:most:most], fmt.Sprintf("and %d more", len(list)-most))
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
