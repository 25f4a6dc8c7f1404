package fs

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"irfs/layout"
	"irfs/sign"
)

// A Tree is what a mount shows, as data: what is at a path. It knows nothing
// of FUSE.
type Tree struct {
	Registry *layout.Registry
	Verifier *sign.Verifier

	certificate     []byte // the mount's own vendor.pub.sig, or nil
	certificateFrom string
	log             *eventLog
	started         time.Time
	version         func(uid uint32) []byte

	mu       sync.Mutex
	moved    map[movedKey]digest.Digest // what a signing made of a digest
	outcomes map[movedKey]string        // of the last signing of an image

	platforms map[platformKey]platform
}

type movedKey struct {
	app    layout.ID
	digest digest.Digest
}

// NewTree gives the tree of a registry as it looks to one who trusts t.
func NewTree(reg *layout.Registry, t *sign.Trust) *Tree {
	return &Tree{
		Registry: reg, Verifier: sign.NewVerifier(t),
		log: newEventLog(), started: time.Now(), version: func(uint32) []byte { return nil },
		moved: map[movedKey]digest.Digest{}, outcomes: map[movedKey]string{}, platforms: map[platformKey]platform{},
	}
}

// errAbsent: there is nothing of that name.
var errAbsent = fs.ErrNotExist

// An Item is what is at one path: a directory, or a file of one of several
// kinds.
type Item struct {
	Mode     fs.FileMode
	UID, GID uint32
	Size     int64
	Mtime    int64 // nanoseconds since 1970

	dir  dir
	data []byte
	// settle computes the real file, where the data is only presumed.
	settle func(context.Context) (*Item, error)
	// blob opens a file of the layout; stamp tells which one it is.
	blob  func() (*layout.Blob, error)
	stamp layout.Stamp
	// control: the file `sign` of an image directory.
	control *imageDir
	// live is a file that is another one for each reader.
	live func(uid uint32) liveText
	// drop: the directory import/.
	drop bool
	// basis is what an image directory computed the file from, if there is a quick way to know that it still holds.
	basis *basis
}

// A liveText is a file's content as one reader has it.
type liveText interface {
	io.ReaderAt
	Size() int64
}

// A Name is an entry of a directory.
type Name struct {
	Name string
	Mode fs.FileMode // type bits
}

// A dir is a directory of the tree. Its methods look at the registry as it is
// at that moment.
type dir interface {
	// of tells which directory of the registry it shows something of.
	of() layout.ID
	item(ctx context.Context) (*Item, error)
	lookup(ctx context.Context, name string) (*Item, error) // errAbsent
	list(ctx context.Context) ([]Name, error)
}

// Stat gives what is at a path; "." or "" is the root.
func (t *Tree) Stat(ctx context.Context, name string) (*Item, error) {
	var d dir = t.root()
	item, err := d.item(ctx)
	for part := range strings.SplitSeq(path.Clean("/"+name), "/") {
		if part == "" {
			continue
		}
		if err == nil && item.dir == nil {
			err = errAbsent
		}
		if err == nil {
			item, err = item.dir.lookup(ctx, part)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return item, err
}

// List gives the names in a directory, sorted.
func (t *Tree) List(ctx context.Context, name string) ([]Name, error) {
	item, err := t.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	if item.dir == nil {
		return []Name{{path.Base(name), 0}}, nil
	}
	return item.dir.list(ctx)
}

// Read gives the content of a file that the tree computes; for a blob it is
// a reader of the file itself.
func (t *Tree) Read(ctx context.Context, name string) (data []byte, blob *layout.Blob, err error) {
	item, err := t.Stat(ctx, name)
	switch {
	case err != nil:
		return nil, nil, err
	case item.dir != nil:
		return nil, nil, fmt.Errorf("%s: is a directory", name)
	case item.blob != nil:
		blob, err = item.blob()
		return nil, blob, err
	case item.settle != nil:
		if item, err = item.settle(ctx); err != nil {
			return nil, nil, err
		}
		return item.data, nil, nil
	case item.live != nil:
		text := item.live(uint32(os.Getuid()))
		data, err = io.ReadAll(io.NewSectionReader(text, 0, text.Size()))
		return data, nil, err
	}
	return item.data, nil, nil
}

func directory(d dir, attr layout.Attr) *Item {
	return &Item{Mode: fs.ModeDir | attr.Mode.Perm()&0o555, UID: attr.UID, GID: attr.GID, Mtime: attr.Mtime, dir: d}
}

func fileOf(data []byte, like layout.Attr, mtime int64) *Item {
	return &Item{
		Mode: like.Mode.Perm() & 0o444, UID: like.UID, GID: like.GID,
		Size: int64(len(data)), Mtime: mtime, data: data,
	}
}

// blobItem is a file of an app's layout, byte for byte.
func blobItem(app *layout.App, name string) (*Item, error) {
	attr, err := app.Stat(name)
	if err != nil || !attr.Mode.IsRegular() {
		return nil, absent(err)
	}
	item := fileOf(nil, attr, attr.Mtime)
	item.Size, item.stamp = attr.Size, attr.Stamp
	item.blob = func() (*layout.Blob, error) { return app.OpenFile(name) }
	return item, nil
}

// A place is a directory of the registry: its name, and which directory that led to when it was looked up. The kernel asks for rights
// where it looks names up, and may know them for a second: of another directory that has come to the name, nothing is shown. Each of its
// methods returns layout.ErrMoved then, and the kernel walks the path again.
type place struct {
	t    *Tree
	name string // "." is the registry itself, whichever directory that is
	id   layout.ID
}

func (p place) of() layout.ID { return p.id }

// stands returns an error unless id is that of the place.
func (p place) stands(id layout.ID) error {
	if id != p.id && p.name != "." {
		return &fault{layout.ErrMoved, p.name + ": another directory has come to this name since it was looked up; look at it, and open it again"}
	}
	return nil
}

// at gives the directory's status.
func (p place) at() (layout.Dir, error) {
	at, err := p.t.Registry.Dir(p.name)
	if err != nil {
		return at, absent(err)
	}
	return at, p.stands(at.ID)
}

// app gives the app that the directory is.
func (p place) app() (*layout.App, error) {
	app, err := p.t.Registry.App(p.name)
	if err != nil {
		return nil, absent(err)
	}
	return app, p.stands(app.ID())
}

// look gives the app, and its present state.
func (p place) look(ctx context.Context) (*layout.App, *layout.Snapshot, error) {
	app, snap, err := p.t.Registry.Look(ctx, p.name)
	if err != nil {
		return nil, nil, absent(err)
	}
	return app, snap, p.stands(app.ID())
}

// absent makes errAbsent of layout's ErrNotFound, and of nil.
func absent(err error) error {
	if err == nil || errors.Is(err, layout.ErrNotFound) {
		return errAbsent
	}
	return err
}

func sorted(names []Name) []Name {
	slices.SortFunc(names, func(a, b Name) int { return cmp.Compare(a.Name, b.Name) })
	return names
}

func dirs(names ...string) []Name {
	list := make([]Name, len(names))
	for i, n := range names {
		list[i] = Name{n, fs.ModeDir}
	}
	return list
}

// plainDir is MNT, a namespace MNT/library/, or an app MNT/nginx/. Its children
// are apps and namespaces; in MNT itself also .irfs and import; in an app also
// its layout, tags/, manifests/ and .irfs.
type plainDir struct{ place }

// root is MNT.
func (t *Tree) root() *plainDir { return &plainDir{place{t: t, name: "."}} }

func (d *plainDir) item(context.Context) (*Item, error) {
	at, err := d.at()
	if err != nil {
		return nil, err
	}
	return d.as(at), nil
}

// as is item for a directory with that status.
func (d *plainDir) as(at layout.Dir) *Item {
	item := directory(d, at.Attr)
	if at.App && at.Mode.Perm()&0o001 != 0 { // what is closed does not show by its times
		if app, err := d.app(); err == nil {
			if index, err := app.Stat("index.json"); err == nil {
				item.Mtime = max(item.Mtime, index.Mtime)
			}
		}
	}
	return item
}

func (d *plainDir) lookup(ctx context.Context, name string) (*Item, error) {
	at, err := d.at()
	if err != nil {
		return nil, err
	}
	isRoot := d.name == "."
	switch {
	case isRoot && name == ".irfs":
		return (&metaDir{d.t}).item(ctx)
	case isRoot && name == "import":
		item := directory(emptyDir{}, at.Attr)
		item.Mode = fs.ModeDir | at.Mode.Perm() | at.Mode&fs.ModeSticky
		item.drop = true
		return item, nil
	case at.App:
		switch name {
		case "oci-layout", "index.json":
			app, err := d.app()
			if err != nil {
				return nil, err
			}
			return blobItem(app, name)
		case "blobs":
			return (&blobsDir{d.place, name}).item(ctx)
		case "tags", "manifests":
			return (&imagesDir{d.place, name}).item(ctx)
		case ".irfs":
			return (&appMetaDir{d.place}).item(ctx)
		}
	}
	in, err := d.t.Registry.DirIn(d.name, d.id, name)
	if err != nil {
		return nil, absent(err)
	}
	return (&plainDir{place{d.t, path.Join(d.name, name), in.ID}}).as(in), nil
}

func (d *plainDir) list(ctx context.Context) ([]Name, error) {
	at, err := d.at()
	if err != nil {
		return nil, err
	}
	names, err := d.t.Registry.Dirs(d.name, at)
	if err != nil {
		return nil, absent(err)
	}
	list := dirs(names...)
	if d.name == "." {
		list = append(list, dirs("import")...)
	}
	if at.App {
		app, err := d.app()
		if err != nil {
			return nil, err
		}
		for _, name := range []string{"oci-layout", "index.json"} {
			if _, err := blobItem(app, name); err == nil { // a broken app may lack it
				list = append(list, Name{name, 0})
			}
		}
		if _, err := (&blobsDir{d.place, "blobs"}).item(ctx); err == nil {
			list = append(list, dirs("blobs")...)
		}
		list = append(list, dirs("tags", "manifests")...)
	}
	return sorted(list), nil
}

// emptyDir is MNT/import/ where nothing is mounted: there is nothing in it.
type emptyDir struct{}

func (emptyDir) of() layout.ID                                 { return layout.ID{} }
func (emptyDir) item(context.Context) (*Item, error)           { return nil, errAbsent }
func (emptyDir) lookup(context.Context, string) (*Item, error) { return nil, errAbsent }
func (emptyDir) list(context.Context) ([]Name, error)          { return nil, nil }

// metaDir is MNT/.irfs/. Its children are version, log and ca/.
type metaDir struct{ t *Tree }

func (d *metaDir) of() layout.ID { return layout.ID{} }

func (d *metaDir) root() (layout.Attr, error) {
	at, err := d.t.Registry.Dir(".")
	return at.Attr, err
}

func (d *metaDir) item(context.Context) (*Item, error) {
	attr, err := d.root()
	return directory(d, attr), err
}

func (d *metaDir) lookup(ctx context.Context, name string) (*Item, error) {
	attr, err := d.root()
	if err != nil {
		return nil, err
	}
	switch name {
	case "version":
		item := fileOf(nil, attr, d.t.started.UnixNano())
		item.live = func(uid uint32) liveText { return bytes.NewReader(d.t.version(uid)) }
		return item, nil
	case "log":
		item := fileOf(nil, attr, d.t.started.UnixNano())
		item.live = d.t.log.open
		return item, nil
	case "ca":
		return (&caDir{d}).item(ctx)
	}
	return nil, errAbsent
}

func (d *metaDir) list(context.Context) ([]Name, error) {
	return append(dirs("ca"), Name{"log", 0}, Name{"version", 0}), nil
}

// caDir is MNT/.irfs/ca/. Its children are <fingerprint>.pub, the root CAs
// that the mount trusts.
type caDir struct{ meta *metaDir }

func (d *caDir) of() layout.ID { return layout.ID{} }

func (d *caDir) item(context.Context) (*Item, error) {
	attr, err := d.meta.root()
	return directory(d, attr), err
}

func (d *caDir) lookup(_ context.Context, name string) (*Item, error) {
	attr, err := d.meta.root()
	if err != nil {
		return nil, err
	}
	for _, ca := range d.meta.t.Verifier.Trust.CAs() {
		if name == ca.Fingerprint()+".pub" {
			return fileOf(ca.DER(), attr, d.meta.t.started.UnixNano()), nil
		}
	}
	return nil, errAbsent
}

func (d *caDir) list(context.Context) ([]Name, error) {
	var list []Name
	for _, ca := range d.meta.t.Verifier.Trust.CAs() {
		list = append(list, Name{ca.Fingerprint() + ".pub", 0})
	}
	return sorted(list), nil
}

// appMetaDir is MNT/nginx/.irfs/. Its child is check.
type appMetaDir struct{ place }

func (d *appMetaDir) item(context.Context) (*Item, error) {
	at, err := d.at()
	if err != nil {
		return nil, err
	}
	return directory(d, at.Attr), nil
}

func (d *appMetaDir) lookup(ctx context.Context, name string) (*Item, error) {
	if name != "check" {
		return nil, errAbsent
	}
	app, snap, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	wrong, err := d.t.Check(ctx, app, snap)
	if err != nil {
		return nil, err
	}
	text := "ok (layers not read)\n"
	if len(wrong) > 0 {
		text = ""
		for _, sentence := range wrong {
			text += Line(sentence) + "\n"
		}
	}
	return fileOf([]byte(text), snap.Attr, snap.Attr.Mtime), nil
}

func (d *appMetaDir) list(context.Context) ([]Name, error) { return []Name{{"check", 0}}, nil }

// Check gives a sentence for each thing that is wrong with an app. It reads no layer.
func (t *Tree) Check(ctx context.Context, app *layout.App, snap *layout.Snapshot) ([]string, error) {
	var wrong []string
	if err := app.CheckVersion(); errors.Is(err, layout.ErrCorrupt) {
		wrong = append(wrong, err.Error())
	} else if err != nil {
		return nil, err
	}
	if fault, err := snap.Fault(ctx); err != nil {
		return nil, err
	} else if fault != nil {
		return append(wrong, fault.Error()), nil
	}
	for _, tag := range snap.Tags() {
		if e, err := snap.Tag(ctx, tag); err == nil && e.Digest == "" {
			wrong = append(wrong, e.Err.Error())
		}
	}
	entries, err := snap.Entries(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if layout.IsIndex(e.MediaType) && e.Err == nil {
			err := snap.CheckIndex(ctx, e)
			if errors.Is(err, layout.ErrCorrupt) && !errors.Is(err, layout.ErrMissing) {
				wrong = append(wrong, fmt.Sprintf("%s: %v", e.Digest, err))
			} else if err != nil && !errors.Is(err, layout.ErrMissing) {
				return nil, err
			}
			continue
		}
		v, err := t.Verifier.Verify(ctx, app, snap, e, false)
		if err != nil {
			return nil, err
		}
		if v.Status == sign.Corrupt && (!v.Missing || len(snap.TagsOf(e.Digest)) > 0) {
			wrong = append(wrong, fmt.Sprintf("%s: %s", e.Digest, v.Reason))
		}
	}
	return wrong, nil
}

// blobsDir is MNT/nginx/blobs/, whose children are sha256/ and sha512/, and
// each of those, whose children are the blobs.
type blobsDir struct {
	place
	path string // in the layout
}

func (d *blobsDir) item(context.Context) (*Item, error) {
	app, err := d.app()
	if err != nil {
		return nil, err
	}
	attr, err := app.Stat(d.path)
	if err != nil || !attr.Mode.IsDir() {
		return nil, absent(err)
	}
	return directory(d, attr), nil
}

func (d *blobsDir) lookup(ctx context.Context, name string) (*Item, error) {
	if d.path == "blobs" {
		if name != "sha256" && name != "sha512" {
			return nil, errAbsent
		}
		return (&blobsDir{d.place, path.Join(d.path, name)}).item(ctx)
	}
	if _, err := layout.ParseDigest(path.Base(d.path) + ":" + name); err != nil {
		return nil, errAbsent
	}
	app, err := d.app()
	if err != nil {
		return nil, err
	}
	return blobItem(app, path.Join(d.path, name))
}

func (d *blobsDir) list(context.Context) ([]Name, error) {
	app, err := d.app()
	if err != nil {
		return nil, err
	}
	top := d.path == "blobs"
	names, err := app.List(d.path, top)
	if err != nil {
		return nil, absent(err)
	}
	var list []Name
	for _, n := range names {
		if top && (n == "sha256" || n == "sha512") {
			list = append(list, Name{n, fs.ModeDir})
		}
		if _, err := layout.ParseDigest(path.Base(d.path) + ":" + n); err == nil {
			list = append(list, Name{n, 0})
		}
	}
	return sorted(list), nil
}

// imagesDir is MNT/nginx/tags/ or MNT/nginx/manifests/. Its children are
// image directories.
type imagesDir struct {
	place
	path string // tags or manifests
}

func (d *imagesDir) item(ctx context.Context) (*Item, error) {
	at, err := d.at()
	if err == nil && !at.App {
		err = errAbsent
	}
	if err != nil {
		return nil, err
	}
	_, snap, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	item := directory(d, at.Attr)
	if snap.Err == nil { // otherwise there is nothing in it
		// Its names are what index.json says, and for those who may read that.
		readers := snap.Attr.Mode.Perm() & 0o444
		item.Mode, item.UID, item.GID = fs.ModeDir|readers|readers>>2, snap.Attr.UID, snap.Attr.GID
	}
	item.Mtime = snap.Attr.Mtime
	return item, nil
}

// everybodys says whether every user may look at what a directory of the registry has in it: an
// app, with its index.json, or a namespace. What is not there any more, or is another directory, may have been closed.
func (p place) everybodys() bool {
	way, err := p.t.Registry.Along(p.name)
	if err != nil {
		return false
	}
	for _, dir := range way {
		if dir.Mode.Perm()&0o001 == 0 {
			return false
		}
	}
	at := way[len(way)-1]
	if p.stands(at.ID) != nil {
		return false
	}
	if !at.App {
		return at.Mode.Perm()&0o004 != 0
	}
	app, err := p.app()
	if err != nil {
		return false
	}
	index, err := app.Stat("index.json")
	return err == nil && index.Mode.Perm()&0o004 != 0
}

func (d *imagesDir) lookup(ctx context.Context, name string) (*Item, error) {
	image := &imageDir{place: d.place}
	var ok bool
	if d.path == "tags" {
		image.tag, ok = tagOf(name)
	} else {
		image.digest, ok = digestOf(name)
	}
	if !ok {
		return nil, errAbsent
	}
	return image.item(ctx)
}

func (d *imagesDir) list(ctx context.Context) ([]Name, error) {
	lazy, err := d.lazyList(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Name, 0, lazy.len)
	for i := range lazy.len {
		if name, ok := lazy.at(i); ok {
			list = append(list, name)
		}
	}
	return sorted(list), nil
}

// A lazyList makes the names of directories one by one, of what all who read the list share: there may be very many.
type lazyList struct {
	len int
	at  func(i int) (name Name, ok bool) // false: there is none

	memory any   // tells the list from any other
	bytes  int64 // that it takes, about
}

func (d *imagesDir) lazyList(ctx context.Context) (lazyList, error) {
	_, snap, err := d.look(ctx)
	if err != nil || snap.Err != nil {
		return lazyList{}, err
	}
	if d.path == "tags" {
		tags := snap.Tagged()
		list := lazyList{len: tags.Len(), at: func(i int) (Name, bool) {
			tag, again := tags.At(i)
			name, ok := tagName(tag)
			return Name{name, fs.ModeDir}, ok && !again
		}}
		list.memory, list.bytes = tags.Memory()
		return list, nil
	}
	digests, err := snap.Listing(ctx)
	if err != nil {
		return lazyList{}, err
	}
	list := lazyList{len: digests.Len(), at: func(i int) (Name, bool) { return Name{digestName(digests.At(i)), fs.ModeDir}, true }}
	list.memory, list.bytes = digests.Memory()
	return list, nil
}
