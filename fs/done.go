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
)

// doneName is the directory in import/ that tells what became of the archives
// that were taken in.
const doneName = ".done"

// maxReceipts is how many files there are in import/.done/; then the oldest goes.
const maxReceipts = 4096

// receipts are the files in MNT/import/.done/, by the app that they tell of:
// .done/library/nginx.txt tells of library/nginx.
type receipts struct {
	mu   sync.Mutex
	of   map[string]*receipt
	dirs map[string]layout.ID // directories, also empty ones; each ends with a slash. With the namespace that it was when an app came into it
}

// A receipt has a line `APP<tab>TAG<tab>DIGEST` for each image that an archive brought. It is
// for everybody, if the app is; else for who brought it.
type receipt struct {
	app   layout.ID
	text  []byte
	owner Caller
	mtime time.Time
}

// add adds a receipt. way is the way to the app (Registry.Along), nil if it is not there any more.
func (r *receipts) add(app string, way []layout.Dir, owner Caller, imported []layout.Imported) {
	var ids []layout.ID // of the directories with those names
	for _, dir := range way[min(1, len(way)):] {
		ids = append(ids, dir.ID)
	}
	ids = append(ids, make([]layout.ID, strings.Count(app, "/")+1-len(ids))...)
	var text []byte
	for _, i := range imported {
		text = fmt.Appendf(text, "%s\t%s\t%s\n", Field(i.App), Field(i.Tag), i.Digest)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of[app] = &receipt{ids[len(ids)-1], text, owner, time.Now()}
	for i, c := range app {
		if c == '/' {
			r.dirs[app[:i+1]] = ids[strings.Count(app[:i], "/")]
		}
	}
	if len(r.of) > maxReceipts {
		oldest := app
		for name, one := range r.of {
			if one.mtime.Before(r.of[oldest].mtime) {
				oldest = name
			}
		}
		delete(r.of, oldest)
	}
	if len(r.dirs) > maxReceipts {
		for dir := range r.dirs {
			if len(r.list(dir)) == 0 {
				delete(r.dirs, dir)
			}
		}
	}
}

func (r *receipts) remove(app string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.of[app] != nil
	delete(r.of, app)
	return was
}

// removeOf removes the receipt of an app for who begins another import of it. That
// of somebody else is not his to remove.
func (r *receipts) removeOf(app string, uid uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if one := r.of[app]; one != nil && (uid == 0 || uid == one.owner.UID) {
		delete(r.of, app)
	}
}

func (r *receipts) get(app string) *receipt {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of[app]
}

// in lists what is in a directory of .done/, "" being itself.
func (r *receipts) in(dir string) []Name {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sorted(r.list(dir))
}

// list is in, for who holds r.mu.
func (r *receipts) list(dir string) (names []Name) {
	for app := range r.of {
		if base, ok := strings.CutPrefix(app, dir); ok && !strings.Contains(base, "/") {
			names = append(names, Name{base + ".txt", 0})
		}
	}
	for at := range r.dirs {
		if base, ok := strings.CutPrefix(at, dir); ok && strings.Count(base, "/") == 1 {
			names = append(names, dirs(strings.TrimSuffix(base, "/"))...)
		}
	}
	return names
}

// dir tells whether there is a directory of that name, and which namespace it stands for.
func (r *receipts) dir(name string) (layout.ID, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id, ok := r.dirs[name]
	return id, ok
}

func (r *receipts) rmdir(dir string) syscall.Errno {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.dirs[dir]
	switch {
	case !ok:
		return syscall.ENOENT
	case len(r.list(dir)) > 0:
		return syscall.ENOTEMPTY
	}
	delete(r.dirs, dir)
	return 0
}

// A doneDir is MNT/import/.done/, or a directory in it.
type doneDir struct {
	gofs.Inode
	refusing
	of     *dropDir // MNT/import/
	prefix string   // of the apps in it: "", or one that ends with a slash
}

var (
	_ gofs.NodeLookuper       = (*doneDir)(nil)
	_ gofs.NodeGetattrer      = (*doneDir)(nil)
	_ gofs.NodeOpendirHandler = (*doneDir)(nil)
	_ gofs.NodeUnlinker       = (*doneDir)(nil)
	_ gofs.NodeRmdirer        = (*doneDir)(nil)
)

func (n *dropDir) lookupDone(ctx context.Context, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return n.newDone(ctx, &n.Inode, "", out)
}

// newDone is a directory in .done/.
func (n *dropDir) newDone(ctx context.Context, parent *gofs.Inode, prefix string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	var attr fuse.AttrOut
	if errno := n.Getattr(ctx, nil, &attr); errno != 0 {
		return nil, errno
	}
	out.Attr = attr.Attr
	n.closeDone(prefix, &out.Attr)
	at := path.Join(n.path, doneName, prefix)
	node := &doneDir{refusing: refusing{n.m, at}, of: n, prefix: prefix}
	return parent.NewInode(ctx, node, gofs.StableAttr{Mode: syscall.S_IFDIR, Ino: n.m.identity(at, layout.ID{}, &Item{}).Ino}), 0
}

// closeDone gives a directory in .done/, which has the attributes of import/, those of its
// namespace if that is not everybody's to list.
func (n *dropDir) closeDone(prefix string, out *fuse.Attr) {
	if prefix == "" {
		return
	}
	id, _ := n.m.drops.done.dir(prefix)
	namespace := place{n.m.tree, strings.TrimSuffix(prefix, "/"), id}
	if namespace.everybodys() {
		return
	}
	out.Mode &^= 0o777
	if at, err := namespace.at(); err == nil {
		out.Mode |= uint32(at.Mode.Perm())
		out.Owner = fuse.Owner{Uid: at.UID, Gid: at.GID}
	}
}

func (n *doneDir) Getattr(ctx context.Context, h gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	errno := n.of.Getattr(ctx, h, out)
	n.of.closeDone(n.prefix, &out.Attr)
	out.SetTimeout(0)
	return errno
}

func (n *doneDir) receipts() *receipts { return &n.m.drops.done }

func (n *doneDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	base, isText := strings.CutSuffix(name, ".txt")
	if r := n.receipts().get(n.prefix + base); isText && r != nil {
		item := r.item()
		if !(place{n.m.tree, n.prefix + base, r.app}).everybodys() {
			item.Mode = 0o400
		}
		n.m.fill(&out.Attr, item)
		at := path.Join(n.path, name)
		node := &receiptNode{refusing: refusing{n.m, at}, item: item}
		return n.NewInode(ctx, node, n.m.identity(at, layout.ID{}, item)), 0
	}
	prefix := n.prefix + name + "/"
	if _, ok := n.receipts().dir(prefix); ok {
		return n.of.newDone(ctx, &n.Inode, prefix, out)
	}
	return nil, syscall.ENOENT
}

func (n *doneDir) OpendirHandle(ctx context.Context, _ uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	return n.m.opendir(ctx, n.path, listOf(n.receipts().in(n.prefix)))
}

func (n *doneDir) Unlink(_ context.Context, name string) syscall.Errno {
	if base, ok := strings.CutSuffix(name, ".txt"); ok && n.receipts().remove(n.prefix+base) {
		return 0
	}
	return syscall.ENOENT
}

func (n *doneDir) Rmdir(_ context.Context, name string) syscall.Errno {
	return n.receipts().rmdir(n.prefix + name + "/")
}

func (r *receipt) item() *Item {
	return &Item{Mode: 0o444, UID: r.owner.UID, GID: r.owner.GID, Size: int64(len(r.text)), Mtime: r.mtime.UnixNano(), data: r.text}
}

// A receiptNode is a file in MNT/import/.done/.
type receiptNode struct {
	gofs.Inode
	refusing
	item *Item
}

func (n *receiptNode) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.m.fill(&out.Attr, n.item)
	return 0
}

func (n *receiptNode) Open(ctx context.Context, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, n.refuse(ctx, "open for writing", "")
	}
	return n.m.open(n.item, true)
}

func (n *receiptNode) Read(_ context.Context, h gofs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return part(h.(*dataHandle).data, dest, off), 0
}
