package fs

import (
	"context"
	"fmt"
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

	live     sync.Map // the attempts that hold anything
	discards sync.WaitGroup
}

func newDrops(m *mounted, o Options) *drops {
	return &drops{
		mounted: m, onExist: o.OnExist, signer: o.SignImports,
		files: map[string]*dropFile{}, dirs: map[string]*dropDir{}, done: receipts{of: map[string]*receipt{}, dirs: map[string]layout.ID{}},
	}
}

// sweepEvery is how often files are looked for whose time is over.
const sweepEvery = time.Second

// sweep forgets the files whose time is over. d.mu is held.
func (d *drops) sweep() {
	if time.Since(d.swept) >= sweepEvery {
		d.count()
	}
}

func (d *drops) sweepNow() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count()
}

// count forgets the files whose time is over, and counts those that have an
// archive in them, or will have: all but the receipts. d.mu is held.
func (d *drops) count() (open int) {
	d.swept = time.Now()
	for name, f := range d.files {
		f.mu.Lock()
		publishing := f.attempt != nil && f.attempt.publishing
		if !publishing && f.handles == 0 && !f.expires.IsZero() && time.Now().After(f.expires) {
			delete(d.files, name)
			f.drop()
			f.ForgetPersistent()
		} else if f.isWaiting() {
			open++
		}
		f.mu.Unlock()
	}
	return open
}

// close frees what was dropped and not taken in.
func (d *drops) close() {
	d.live.Range(func(a, _ any) bool {
		a.(*attempt).discard()
		return true
	})
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
	return d.mounted.identity(fmt.Sprintf("import/%d", d.made), layout.ID{}, &Item{}).Ino
}

// staged says whether a name is one that a tool writes to before it
// renames it.
func staged(name string) bool { return strings.HasPrefix(path.Base(name), ".") }

// appOf is the app that a file below import/ becomes.
func appOf(name string) string { return path.Join(path.Dir(name), AppOf(path.Base(name))) }

// checkName refuses what could never become an app, before a byte is written.
func (d *drops) checkName(ctx context.Context, name string) error {
	if staged(name) {
		if len(path.Base(name)) > layout.MaxName {
			return &fault{layout.ErrName, "the name is too long"}
		}
		return nil
	}
	return d.checkApp(ctx, appOf(name))
}

// checkApp is checkName for an app or a namespace. What is looked at for it in the registry is looked at with the caller's rights, so that he learns
// nothing of what is closed to him.
func (d *drops) checkApp(ctx context.Context, app string) error {
	check := func() error { return d.mounted.tree.Registry.CheckName(app) }
	if !strings.Contains(app, "/") {
		return check()
	}
	rights, err := credentialsOf(callerOf(ctx))
	if err != nil {
		return err
	}
	return rights.run(context.WithoutCancel(ctx), check) // it takes a moment, and a signal that ends nobody must not fail it
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
	_ gofs.NodeLookuper       = (*dropDir)(nil)
	_ gofs.NodeGetattrer      = (*dropDir)(nil)
	_ gofs.NodeSetattrer      = (*dropDir)(nil)
	_ gofs.NodeOpendirHandler = (*dropDir)(nil)
	_ gofs.NodeCreater        = (*dropDir)(nil)
	_ gofs.NodeRenamer        = (*dropDir)(nil)
	_ gofs.NodeUnlinker       = (*dropDir)(nil)
	_ gofs.NodeMkdirer        = (*dropDir)(nil)
	_ gofs.NodeRmdirer        = (*dropDir)(nil)
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

// Setattr takes a mode and times, as tools set them that copy a tree. An owner
// means nothing here, and import/ itself stays as the registry is; but no tool is
// told off for that.
func (n *dropDir) Setattr(ctx context.Context, h gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if n.name == "" {
		return n.Getattr(ctx, h, out)
	}
	n.mu.Lock()
	if mode, ok := in.GetMode(); ok {
		n.mode = mode & 0o1777
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

func (n *dropDir) OpendirHandle(ctx context.Context, _ uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	d := n.m.drops
	d.mu.Lock()
	d.sweep()
	names := n.in()
	d.mu.Unlock()
	return n.m.opendir(ctx, n.path, listOf(sorted(names)))
}

func (n *dropDir) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	d := n.m.drops
	at := path.Join(n.name, name)
	if err := d.checkApp(ctx, at); err != nil {
		return nil, d.refuse(ctx, at, err)
	}
	made := &dropDir{refusing: refusing{n.m, path.Join(n.path, name)}, name: at, owner: callerOf(ctx), mode: mode & 0o1777, mtime: time.Now()}
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

func (n *dropDir) Create(ctx context.Context, name string, flags uint32, mode uint32, out *fuse.EntryOut) (*gofs.Inode, gofs.FileHandle, uint32, syscall.Errno) {
	d := n.m.drops
	at := path.Join(n.name, name)
	if err := d.checkName(ctx, at); err != nil {
		return nil, nil, 0, d.refuse(ctx, at, err)
	}
	f := &dropFile{refusing: refusing{n.m, path.Join(n.path, name)}, owner: callerOf(ctx), name: at, handles: 1, mode: mode & 0o777, mtime: time.Now()}
	h := newDropHandle(ctx, flags)
	d.mu.Lock()
	ino := d.ino()
	d.mu.Unlock()
	inode := n.NewPersistentInode(ctx, f, gofs.StableAttr{Mode: syscall.S_IFREG, Ino: ino})
	d.mu.Lock()
	there := d.files[at] != nil
	full := !there && len(d.files) >= maxDrops && d.count() >= maxDrops
	if !full && !there {
		d.files[at] = f
	}
	d.mu.Unlock()
	if full || there {
		f.ForgetPersistent()
	}
	switch {
	case there: // another one was faster
		return nil, nil, 0, syscall.EEXIST
	case full:
		return nil, nil, 0, d.refuse(ctx, at, &fault{syscall.EDQUOT, fmt.Sprintf("import/ holds %d files already that were not taken in; remove some, or wait", maxDrops)})
	}
	f.fill(&out.Attr)
	return inode, h, fuse.FOPEN_DIRECT_IO, 0
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
	if err := d.checkName(ctx, toAt); err != nil {
		return d.refuse(ctx, toAt, err)
	}
	if dir.isDir(toAt) {
		return syscall.EISDIR
	}
	if old := d.find(toAt); old != nil && !old.replaceable() {
		return syscall.EBUSY
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
	if d.files[at] == f {
		delete(d.files, at)
	}
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

// publish makes an app of what was staged, or adds it to the app that is there, for
// who opened the file, if he may: import/ only says who may make new ones in the registry itself.
func (d *drops) publish(ctx context.Context, app string, staged *layout.Staged, by *dropHandle) (imported []layout.Imported, outcome string, err error) {
	staged.Rights = by.may
	var signed *sign.Outcome
	if d.signer != nil {
		if signed, err = d.signer.SignStaged(ctx, staged, ""); err != nil {
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
	parts := append(sign.Few(came), sign.Few(dropped)...)
	if signed != nil {
		parts = append(parts, signed.Text())
	}
	return imported, strings.Join(parts, "; "), nil
}
