package layout

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// LockWait is how long a change waits for another process that holds the app.
const LockWait = 30 * time.Second

// errMoved: index.json is not what this change was computed from.
var errMoved = errors.New("index.json changed meanwhile")

// locked is an app that this goroutine may change: it holds flock(2) on the
// app's own oci-layout.
type locked struct {
	app   *App
	dirfd int
	lock  int

	rights Rights
	dirs   map[string]int // directories of blobs, opened, in which whoever wants the change may make files

	work *work // for what needs a name; nil if nothing did so far

	// the state that the first try of a change was made from, and what all of them brought (undo.go)
	first   *Snapshot
	brought []digest.Digest
	made    []string // directories
}

func (l *locked) release() {
	if l.work != nil {
		l.work.close()
	}
	for _, fd := range l.dirs {
		closeFD(fd)
	}
	closeFD(l.lock)
	closeFD(l.dirfd)
	<-l.app.turn
}

// lock waits its turn in this process, then for other processes: at most
// LockWait (ErrBusy), or until ctx is done. Who may not change the app does not wait, nor hold up others; whether he may is asked again of
// the directory that is locked.
func (a *App) lock(ctx context.Context, rights Rights) (*locked, error) {
	if rights != nil {
		dirfd, err := a.open()
		if err != nil {
			return nil, err
		}
		err = a.ask(ctx, rights, dirfd)
		closeFD(dirfd)
		if err != nil {
			return nil, err
		}
	}
	l, err := a.wait(ctx)
	if err != nil {
		return nil, err
	}
	l.rights = rights
	if err := a.ask(ctx, rights, l.dirfd); err != nil {
		l.release()
		return nil, err
	}
	return l, nil
}

// wait is lock for whoever has the rights.
func (a *App) wait(ctx context.Context) (*locked, error) {
	deadline := time.NewTimer(LockWait)
	defer deadline.Stop()
	busy := kindf(ErrBusy, "%s: another process is changing this app (waited %v)", a.Name, LockWait)
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-deadline.C:
		return nil, busy
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		l, err := a.tryLock()
		if l != nil {
			return l, nil
		}
		if err == nil {
			select {
			case <-time.After(wait):
				continue
			case <-ctx.Done():
				err = ctx.Err()
			case <-deadline.C:
				err = busy
			}
		}
		<-a.turn
		return nil, err
	}
}

// tryLock gives nil, nil when somebody else has the lock.
func (a *App) tryLock() (*locked, error) {
	dirfd, err := a.open()
	if err != nil {
		return nil, err
	}
	// NFS makes flock a POSIX lock, which wants a descriptor that can write.
	fd, err := openBeneath(dirfd, "oci-layout", unix.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		fd, err = openBeneath(dirfd, "oci-layout", unix.O_RDONLY, 0)
	}
	if err != nil {
		closeFD(dirfd)
		return nil, notFound(a.Name+"/oci-layout", err)
	}
	l := &locked{app: a, dirfd: dirfd, lock: fd, dirs: map[string]int{}}
	named := false
	if err = pathError("flock", a.Name+"/oci-layout", tryLock(fd)); err == nil {
		if named, err = l.named(); named {
			return l, nil
		}
	}
	closeFD(fd)
	closeFD(dirfd)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, err
}

// named says whether what is locked is still what has the app's name.
func (l *locked) named() (bool, error) {
	named, err := isNamed(l.app.parent, l.app.path, l.dirfd)
	if err != nil || !named {
		return false, err
	}
	return isNamed(l.app.parent, path.Join(l.app.path, "oci-layout"), l.lock)
}

// An Edit sets annotations on one manifest, whose bytes are those that were
// read and checked.
type Edit struct {
	Manifest *Manifest
	Set      []Annotation
}

// A Change is what was done to an app.
type Change struct {
	// Moved gives the new digest of every manifest and index that changed;
	// empty if everything was as wanted already.
	Moved map[digest.Digest]digest.Digest
	// Before is the state that was changed.
	Before *Snapshot
	// LeftBehind names what refers to an old digest and still does, such
	// as a cosign signature: a sentence part for each.
	LeftBehind []string
}

// Annotate changes annotations of images, and with them the digests in every
// index above, up to index.json, in one step that is durable when Annotate
// returns. plan is called, under the app's lock, with the app's present
// state, and gives what is to be set; it may be called again if a tool that
// does not lock came in between.
func (a *App) Annotate(ctx context.Context, plan func(*Snapshot) ([]Edit, error)) (*Change, error) {
	return a.AnnotateAs(ctx, nil, plan)
}

// AnnotateAs is Annotate for somebody who has these rights.
func (a *App) AnnotateAs(ctx context.Context, rights Rights, plan func(*Snapshot) ([]Edit, error)) (*Change, error) {
	var change *Change
	err := a.change(ctx, rights, func(l *locked, snap *Snapshot, raw []byte, seen sighting) error {
		edits, err := plan(snap)
		if err != nil {
			return err
		}
		blobs, index, list, moved, err := snap.rewrite(ctx, raw, edits)
		if err != nil {
			return err
		}
		const many = 256
		if len(blobs) > many {
			defer heavy.begin()()
		}
		change = &Change{Moved: moved, Before: snap}
		if len(moved) == 0 {
			return l.settle(ctx, snap, edits)
		}
		change.LeftBehind = snap.leftBehind(ctx, moved)
		sum := make(chan [sha256.Size]byte, 1)
		if list != nil {
			go func() { sum <- sha256.Sum256(index) }() // while it is written
		}
		if err := l.publish(ctx, snap, seen, blobs, index); err != nil {
			return err
		}
		if list != nil {
			a.adopt(len(index), <-sum, *list)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return change, nil
}

// change runs one attempt at a change after another, under the app's lock, until
// none is disturbed by a tool that does not lock.
func (a *App) change(ctx context.Context, rights Rights, try func(l *locked, snap *Snapshot, raw []byte, seen sighting) error) (err error) {
	l, err := a.lock(ctx, rights)
	if err != nil {
		return err
	}
	defer l.release()
	defer func() {
		if err != nil {
			l.takeBack()
		}
	}()
	l.clean()
	clean(a.parent) // what a killed import left in the registry
	for start := time.Now(); ; {
		snap, raw, seen, err := l.read(ctx)
		if err != nil {
			return err
		}
		l.first = cmp.Or(l.first, snap)
		if err = try(l, snap, raw, seen); !errors.Is(err, errMoved) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Since(start) > LockWait {
			return kindf(ErrBusy, "%s: another tool keeps changing this app", a.Name)
		}
	}
}

// settle makes durable what was found to be as it should: whoever wrote it may
// have been killed before he did, or may never do.
func (l *locked) settle(ctx context.Context, snap *Snapshot, edits []Edit) error {
	r, err := snap.all(ctx)
	if err != nil {
		return err
	}
	var digests []digest.Digest
	for _, e := range edits {
		digests = append(digests, e.Manifest.Digest)
	}
	digests = append(digests, r.above(digests...)...)
	dirs := map[string]bool{".": true}
	for _, d := range digests {
		if err := syncFile(l.dirfd, BlobPath(d)); err != nil {
			return err
		}
		dirs[path.Dir(BlobPath(d))] = true
	}
	if err := syncFile(l.dirfd, indexName); err != nil {
		return err
	}
	return l.syncDirs(dirs)
}

func (l *locked) syncDirs(dirs map[string]bool) error {
	for dir := range dirs {
		if err := syncDir(l.dirfd, dir); err != nil {
			return err
		}
	}
	return nil
}

// read reads index.json anew, under the lock. A torn one is refused.
func (l *locked) read(ctx context.Context) (*Snapshot, []byte, sighting, error) {
	for try := 0; ; try++ {
		snap, raw, seen, err := l.app.load(ctx, l.dirfd)
		if err != nil {
			return nil, nil, seen, err
		}
		if snap.Err == nil {
			return snap, raw, seen, nil
		}
		if !snap.Attr.fresh() || !snap.torn() {
			return nil, nil, seen, snap.Err
		}
		if try == 10 {
			return nil, nil, seen, kindf(ErrBusy, "%s: another tool seems to be writing it (%v)", l.app.Name, snap.Err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// newBlob is a blob that a change brings.
type newBlob struct {
	v1.Descriptor
	bytes []byte
	old   digest.Digest // the blob whose owner and mode it takes,
	like  Stamp         // and which file that was when it was read
}

// A rewriting is what a change makes of the documents that it touches.
type rewriting struct {
	blobs []newBlob // each once, those in an index before it
	moves map[digest.Digest]move
}

// put notes what a document becomes, if that is anything else.
func (w *rewriting) put(d v1.Descriptor, like Attr, was, is []byte, limit int) error {
	if bytes.Equal(was, is) {
		return nil
	}
	if len(is) > limit {
		return limitf("%s: would grow to %d bytes, over the limit of %d", d.Digest, len(is), limit)
	}
	old := d.Digest
	d.Digest, d.Size, d.Data = old.Algorithm().FromBytes(is), int64(len(is)), nil
	w.moves[old] = move{Digest: d.Digest, Size: d.Size, Bytes: is}
	w.blobs = append(w.blobs, newBlob{d, is, old, like.Stamp})
	return nil
}

// annotate puts the edits, which have to be of manifests that r reaches.
func (w *rewriting) annotate(ctx context.Context, s *Snapshot, r *reached, edits []Edit) error {
	for _, e := range edits {
		if err := ctx.Err(); err != nil {
			return err
		}
		now, ok := s.known(r, e.Manifest.Digest)
		if !ok {
			return kindf(ErrNotFound, "%s: index.json does not reach it", e.Manifest.Digest)
		}
		if now = r.said.judge(now); now.Err != nil {
			return now.Err
		}
		is, err := setAnnotations(e.Manifest.Bytes, e.Set)
		if err == nil {
			err = w.put(e.Manifest.Descriptor, e.Manifest.Attr, e.Manifest.Bytes, is, MaxManifest)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e.Manifest.Digest, err)
		}
	}
	return nil
}

// reindex puts an index whose children have moved.
func (w *rewriting) reindex(app *App, dirfd int, e Entry) error {
	if e.Err != nil {
		return e.Err
	}
	was, _, attr, err := app.readBlob(dirfd, e.Descriptor, MaxIndex, nil)
	if err != nil {
		return err
	}
	is, err := moveDescriptors(was, w.moves)
	if err == nil {
		err = w.put(e.Descriptor, attr, was, is, MaxIndex)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e.Digest, err)
	}
	return nil
}

// rewrite computes, in memory and bottom-up, every blob that the edits make
// new, the new index.json with its rows (or nil), and which digest becomes which.
func (s *Snapshot) rewrite(ctx context.Context, raw []byte, edits []Edit) ([]newBlob, []byte, *rows, map[digest.Digest]digest.Digest, error) {
	r, err := s.all(ctx)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	dirfd, err := s.app.open()
	if err != nil {
		return nil, nil, nil, nil, err
	}
	defer closeFD(dirfd)
	w := &rewriting{moves: map[digest.Digest]move{}}
	if err := w.annotate(ctx, s, r, edits); err != nil {
		return nil, nil, nil, nil, err
	}
	var touched []digest.Digest
	for _, e := range edits {
		touched = append(touched, e.Manifest.Digest)
	}
	for _, d := range r.upward(touched) {
		if err := w.reindex(s.app, dirfd, r.said.judge(r.nodes[d].entry())); err != nil {
			return nil, nil, nil, nil, err
		}
	}
	index, list, err := s.moveRows(raw, w.moves)
	if err != nil {
		return nil, nil, nil, nil, fmt.Errorf("%s: %w", indexName, err)
	}
	if len(index) > MaxIndex {
		return nil, nil, nil, nil, limitf("%s: would grow to %d bytes, over the limit of %d", indexName, len(index), MaxIndex)
	}
	moved := map[digest.Digest]digest.Digest{}
	for old, to := range w.moves {
		moved[old] = to.Digest
	}
	return w.blobs, index, list, moved, nil
}

// upward lists the indexes above the given digests so that each comes after
// all those in it.
func (r *reached) upward(from []digest.Digest) []digest.Digest {
	above := r.above(from...)
	in := map[digest.Digest]bool{}
	for _, d := range above {
		in[d] = true
	}
	var order []digest.Digest
	done := map[digest.Digest]bool{}
	var visit func(d digest.Digest) // at most MaxIndexDepth deep
	visit = func(d digest.Digest) {
		if done[d] {
			return
		}
		done[d] = true
		for _, child := range r.nodes[d].index.children {
			if in[child.Digest] {
				visit(child.Digest)
			}
		}
		order = append(order, d)
	}
	for _, d := range above {
		visit(d)
	}
	return order
}

// publish writes the blobs, then index.json, in the order that keeps every
// moment whole (package comment). errMoved: index.json is another by now.
func (l *locked) publish(ctx context.Context, snap *Snapshot, seen sighting, blobs []newBlob, index []byte) error {
	dirs := map[string]bool{}
	for _, b := range blobs {
		err := ctx.Err()
		if err == nil {
			err = l.putBlob(ctx, b)
		}
		if err != nil {
			return err
		}
		dirs[path.Dir(BlobPath(b.Digest))] = true
	}
	if err := l.syncDirs(dirs); err != nil {
		return err
	}
	return l.putIndex(ctx, snap, seen, index)
}

// putIndex puts a new index.json in the place of the one that snap is of.
func (l *locked) putIndex(ctx context.Context, snap *Snapshot, seen sighting, index []byte) error {
	f, err := l.writeIndex(snap, index)
	if err != nil {
		return err
	}
	defer f.close()
	return l.swapIndex(ctx, snap, seen, f)
}

// writeIndex writes and syncs a new index.json that has not its name yet.
func (l *locked) writeIndex(snap *Snapshot, index []byte) (*newFile, error) {
	f, err := l.create(l.dirfd, indexName)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(index); err == nil {
		err = likeFile(f.fd, l.dirfd, indexName, snap.Attr.Stamp)
	}
	if err == nil {
		err = fsync(f.fd, indexName)
	}
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// swapIndex puts a new index.json in its place, durably.
func (l *locked) swapIndex(ctx context.Context, snap *Snapshot, seen sighting, f *newFile) error {
	if same, err := l.unchanged(snap, seen); err != nil || !same {
		return cmp.Or(err, errMoved)
	}
	if named, err := l.named(); err != nil {
		return err
	} else if !named {
		return kindf(ErrMoved, "%s: the app was moved away while it was being changed", l.app.Name)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.replace(f, l.dirfd, indexName); err != nil {
		return err
	}
	return fsync(l.dirfd, l.app.Name)
}

// unchanged says whether index.json still is what snap was read from.
func (l *locked) unchanged(snap *Snapshot, seen sighting) (bool, error) {
	attr, err := statBeneath(l.dirfd, indexName)
	if err == nil && !l.app.proves(seen) {
		var same bool
		if same, _, _, err = l.app.sameFile(context.Background(), l.dirfd, indexName, snap.digestOfBytes(), snap.Attr.Size); err == nil {
			return same, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrLimit) {
		return false, nil
	}
	return err == nil && attr.Stamp == seen.Stamp, err
}

// create makes a file that will take its place in a directory of the app: an unnamed one where that can be, otherwise one
// in a work directory.
func (l *locked) create(dirfd int, what string) (*newFile, error) {
	f, err := createUnnamed(dirfd, what)
	if f != nil || err != nil {
		return f, err
	}
	if l.work == nil {
		if l.work, err = newWork(l.dirfd); err != nil {
			return nil, err
		}
	}
	return createNamed(l.work, what)
}

// replace puts the file in the place of the one that has the name, at once. An unnamed file has a working name in the app's directory
// for a moment.
func (l *locked) replace(f *newFile, dirfd int, name string) error {
	if f.name == "" {
		tmp := workName + "-" + strings.ToLower(rand.Text())
		if err := linkOpen(f.fd, l.dirfd, tmp); err != nil {
			return err
		}
		f.dir, f.name = l.dirfd, tmp
	}
	err := rename(f.dir, f.name, dirfd, name, 0)
	if err == nil {
		f.name = ""
	}
	return err
}

// clean removes what a change that was killed left in the app. It holds the app, so nobody is just at it.
func (l *locked) clean() {
	index, err := statBeneath(l.dirfd, indexName)
	list, _ := readDir(l.dirfd, ".")
	for _, e := range list {
		if !isRandom(e.name, workName+"-") || !e.mode.IsRegular() {
			continue
		}
		// It has index.json's owner before it has a name, unless this process may not give files away.
		if file, fileErr := statBeneath(l.dirfd, e.name); fileErr == nil && (file.UID == uint32(os.Geteuid()) || err == nil && file.UID == index.UID) {
			unlink(l.dirfd, e.name)
		}
	}
	clean(l.dirfd)
}

// putBlob makes sure that the blob is there, whole and durable but for its
// name, with the owner and mode of the one that it follows.
func (l *locked) putBlob(ctx context.Context, b newBlob) error {
	name := BlobPath(b.Digest)
	there, err := isBlob(ctx, l.dirfd, name, b.Digest, b.Size)
	if err != nil {
		return err
	}
	if there {
		return syncFile(l.dirfd, name) // whoever wrote it may not have
	}
	dir, err := l.dir(ctx, path.Dir(name))
	if err != nil {
		return err
	}
	f, err := l.create(dir, name)
	if err != nil {
		return err
	}
	defer f.close()
	if _, err := f.Write(b.bytes); err != nil {
		return err
	}
	if err := likeFile(f.fd, l.dirfd, BlobPath(b.old), b.like); err != nil {
		return err
	}
	if err := fsync(f.fd, name); err != nil {
		return err
	}
	err = f.place(dir, path.Base(name))
	switch {
	case err == nil:
		l.brought = append(l.brought, b.Digest)
	case errors.Is(err, fs.ErrExist): // with other bytes, as was seen above
		if err = l.ask(ctx, dir, path.Base(name)); err == nil {
			err = l.replace(f, dir, path.Base(name))
		}
	}
	return err
}

// dir gives a directory of blobs of the app, open, in which whoever wants the change may make files.
func (l *locked) dir(ctx context.Context, name string) (int, error) {
	if fd, ok := l.dirs[name]; ok {
		return fd, nil
	}
	fd, err := openDir(l.dirfd, name)
	if err != nil {
		return -1, err
	}
	if err := l.ask(ctx, fd, ""); err != nil {
		closeFD(fd)
		return -1, err
	}
	l.dirs[name] = fd
	return fd, nil
}

// maxReferrers is how many manifests of an app are read to find those whose subject is
// an image that was changed. In an index.json with more of them, these are half of
// them after that image, and half of them at the end: where tools put a new one.
const maxReferrers = 1000

// hasNoSubject says whether a manifest was read before and has no subject. A digest stands for the same manifest always.
func (a *App) hasNoSubject(d digest.Digest) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.noSubject[maphash.String(seed, string(d))]
}

func (a *App) notesNoSubject(d digest.Digest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.noSubject == nil || len(a.noSubject) > 4*maxReferrers {
		a.noSubject = map[uint64]bool{}
	}
	a.noSubject[maphash.String(seed, string(d))] = true
}

var seed = maphash.MakeSeed()

// leftBehind names what refers to a manifest that the change replaces:
// tags as cosign and the referrers tag schema make them, and manifests
// with a subject (OCI image-spec v1.1, manifest.md).
func (s *Snapshot) leftBehind(ctx context.Context, moved map[digest.Digest]digest.Digest) []string {
	var left []string
	for old := range moved {
		prefix := old.Algorithm().String() + "-" + old.Encoded()
		from, _ := slices.BinarySearchFunc(s.byTag, prefix, func(i int32, tag string) int { return cmp.Compare(s.list[i].tag, tag) })
		for _, i := range s.byTag[from:] {
			rest, ok := strings.CutPrefix(s.list[i].tag, prefix)
			if !ok {
				break
			}
			if rest == "" || rest[0] == '.' {
				left = append(left, fmt.Sprintf("tag %s (of %s)", Short(s.list[i].tag), old))
			}
		}
	}
	r, err := s.all(ctx)
	if err != nil {
		return left
	}
	dirfd, err := s.app.open()
	if err != nil {
		return left
	}
	defer closeFD(dirfd)
	tried, count := 0, 0
	refers := func(e Entry) {
		if _, ok := moved[e.Digest]; ok || !IsManifest(e.MediaType) || e.Size > MaxManifest || s.app.hasNoSubject(e.Digest) {
			return
		}
		if tried++; tried > 4*maxReferrers || count >= maxReferrers || ctx.Err() != nil {
			return
		}
		if _, err := statBeneath(dirfd, BlobPath(e.Digest)); err != nil {
			return
		}
		count++
		m, err := s.Manifest(ctx, e)
		if err != nil {
			return
		}
		if m.Doc.Subject == nil {
			s.app.notesNoSubject(e.Digest)
		} else if _, ok := moved[m.Doc.Subject.Digest]; ok {
			left = append(left, fmt.Sprintf("%s (its subject is %s)", e.Digest, m.Doc.Subject.Digest))
		}
	}
	next := 0 // row that was not looked at yet
	some := func(from, to int) {
		for next = max(next, from); next < min(to, len(s.list)); next++ {
			if !s.list[next].again {
				refers(s.row(next))
			}
		}
	}
	if len(s.list) <= maxReferrers {
		some(0, len(s.list))
	} else {
		var rows []int32
		for old := range moved {
			rows = append(rows, s.of(old)...)
		}
		slices.Sort(rows)
		for _, i := range rows {
			some(int(i)+1, int(i)+maxReferrers/2)
		}
		some(len(s.list)-maxReferrers/2, len(s.list))
	}
	for _, n := range r.order {
		refers(n.entry())
	}
	slices.Sort(left)
	return slices.Compact(left)
}
