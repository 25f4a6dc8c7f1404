package layout

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const indexName = "index.json"

// An App is one OCI image layout: the directory that its name led to when it was looked up. If the name leads to another one
// later, all that would be read or changed there is ErrMoved. What the App remembers of the files it read is checked against their stamps at
// each use, and these tell its files from any others.
type App struct {
	Name   string
	parent int    // the directory that it lies beneath
	path   string // its path there: its name, if it is published
	id     ID     // which directory it is; zero if it is not published yet, for then nobody else can exchange it

	turn chan struct{} // held by the goroutine that changes the app

	mu          sync.Mutex
	ground      ground
	guarded     atomic.Bool // when the ground was surveyed, only those who are trusted could exchange what is in the directories of blobs
	snap        *Snapshot   // the last reading of index.json
	seen        sighting
	good        *Snapshot // the last one that could be used
	torn        time.Time // since when index.json has not been usable
	looks       Flights[struct{}, *Snapshot]
	indexes     map[indexKey]*readIndex
	indexBytes  int64 // what these cost (costOf),
	indexMemory int64 // and how much memory they take, about

	noSubject map[uint64]bool // manifests, by a hash of their digests

	recents *recents // its registry's, as are
	keeper  *keeper  // this, nil for one that is not published yet,
	large   *large   // this, likewise,
	left    bool     // that has no use for the app any more; large.mu is held for it
	windows windows  // and this

	used atomic.Int64 // when it was last, in nanoseconds since 1970
}

// A readIndex is a nested index as it was read from its blob, or why it could not be read.
type readIndex struct {
	seen     sighting
	subject  *v1.Descriptor
	children []child
	bytes    int64 // of memory that it takes, about
	err      error
}

// An indexKey is what the reading of a nested index depends on besides its bytes.
type indexKey struct {
	digest    digest.Digest
	mediaType string
	size      int64
}

// ID tells which directory the app is.
func (a *App) ID() ID { return a.id }

// open opens the app's directory. ErrNotFound: it is not there any more, or something else is; ErrMoved: another directory is.
func (a *App) open() (int, error) {
	fd, err := openDir(a.parent, a.path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		return -1, kindf(ErrNotFound, "%s: no such app", a.Name)
	}
	if err != nil || a.id == (ID{}) {
		return fd, err
	}
	attr, err := fstat(fd, a.Name)
	if err == nil && a.keeper.id(attr) != a.id {
		err = errMovedAway(a.Name)
	}
	if err != nil {
		closeFD(fd)
		return -1, err
	}
	return fd, nil
}

func newApp(name string, parent int, path string) *App {
	return &App{Name: name, parent: parent, path: path, turn: make(chan struct{}, 1), indexes: map[indexKey]*readIndex{}}
}

// ground is what an app's files stand on: as long as these directories are unchanged, the app has the same oci-layout, and
// blobs/sha256 and blobs/sha512 lead where they led. It is zero where a directory changed lately, or its times prove nothing at all.
type ground struct{ app, blobs Stamp }

// survey looks at the ground of an app.
func (a *App) survey() (g ground) {
	a.guarded.Store(false)
	at := time.Now().UnixNano()
	app, err1 := lstat(a.parent, a.path)
	blobs, err2 := lstat(a.parent, a.path+"/blobs")
	mark, err3 := lstat(a.parent, a.path+"/oci-layout")
	if errors.Join(err1, err2, err3) != nil || a.keeper.id(app) != a.id || !mark.Mode.IsRegular() || !allDirs(a.parent, a.path+"/blobs") ||
		a.keeper.ofDir(app, at).racy() || a.keeper.ofDir(blobs, at).racy() {
		return ground{}
	}
	guarded := a.keeper.whoAbove(a.path+"/blobs/x") == ""
	for _, algorithm := range []string{"sha256", "sha512"} {
		name := a.path + "/blobs/" + algorithm
		switch dir, err := lstat(a.parent, name); {
		case err == unix.ENOENT:
		case err != nil || !dir.Mode.IsDir():
			return ground{}
		default:
			guarded = guarded && a.keeper.whoAbove(name+"/x") == ""
		}
	}
	a.guarded.Store(guarded)
	return ground{app.Stamp, blobs.Stamp}
}

// stands says whether the app's directory surely is what it was at the survey.
func (a *App) stands(g ground) bool {
	return g.app.Ino != 0 && unmoved(a.parent, a.path, g.app)
}

// current gives the last reading of index.json if it surely still is what it was, and nil if not.
func (a *App) current() *Snapshot {
	a.used.Store(time.Now().UnixNano())
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.snap == nil || !a.proves(a.seen) || !a.stands(a.ground) {
		return nil
	}
	if attr, err := lstat(a.parent, a.path+"/"+indexName); err != nil || attr.Stamp != a.seen.Stamp {
		return nil
	}
	return a.snap
}

// A Snapshot is what an app's index.json said at one instant. It never changes;
// blobs are read, and checked against it, when they are asked for.
type Snapshot struct {
	Attr Attr  // of index.json, or of the app's directory where it is missing
	Err  error // ErrCorrupt: why index.json cannot be used

	app    *App
	serial uint64
	sum    [sha256.Size]byte
	*content
}

// serials numbers the snapshots.
var serials atomic.Uint64

// Serial tells the snapshot from any other, also of the same bytes.
func (s *Snapshot) Serial() uint64 { return s.serial }

// digestOfBytes is that of index.json.
func (s *Snapshot) digestOfBytes() digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, s.sum[:])
}

// A State tells the bytes that index.json had from any others.
type State [sha256.Size]byte

// State tells what index.json said.
func (s *Snapshot) State() State { return s.sum }

// Equal says whether index.json had the same bytes.
func (s *Snapshot) Equal(other *Snapshot) bool { return s.sum == other.sum }

// content is what a Snapshot has of index.json's bytes, shared by all that
// have the same ones.
type content struct {
	rows

	mu      sync.Mutex    // held for moments only
	reached *reached      // the last walk through the nested indexes
	words   *wording      // what all of them say
	asked   time.Time     // when it was made sure that this is still so,
	took    time.Duration // and how long that took

	walks    Flights[struct{}, *reached]
	wordings Flights[struct{}, *wording]
	contents Flights[indexKey, inIndex]
}

// refName is the annotation that holds a tag, OCI image-spec v1.1, annotations.md.
const refName = v1.AnnotationRefName

// Snapshot gives the present state of the app. Its error is the system's, or ctx's; an
// index.json that cannot be used gives a snapshot with Err.
//
// A file that does not parse and changed a moment ago may be one that another
// tool is writing where it stands: it is read again, and then the last good state
// of this very file serves, for two seconds at most.
func (a *App) Snapshot(ctx context.Context) (*Snapshot, error) {
	a.mu.Lock()
	last, seen := a.snap, a.seen
	a.mu.Unlock()
	a.used.Store(time.Now().UnixNano())
	if last != nil && a.proves(seen) && unmoved(a.parent, a.path+"/"+indexName, seen.Stamp) {
		return last, nil
	}
	return a.looks.Fresh(ctx, struct{}{}, a.lookAgain)
}

// lookAgain is Snapshot for all who ask at once.
func (a *App) lookAgain(ctx context.Context) (*Snapshot, error) {
	dirfd, err := a.open()
	if err != nil {
		return nil, err
	}
	defer closeFD(dirfd)
	for try := 0; ; try++ {
		snap, err := a.look(ctx, dirfd)
		if err != nil {
			return nil, err
		}
		if snap.Err == nil {
			a.mu.Lock()
			a.good, a.torn = snap, time.Time{}
			a.mu.Unlock()
			a.large.keeps(a)
			return snap, nil
		}
		if !snap.Attr.fresh() || !snap.torn() {
			return snap, nil
		}
		if try == 3 {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.mayBeTorn(snap) {
				return a.good, nil
			}
			return snap, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// torn reports whether index.json may be one that somebody is just writing: it ends too early, or is not there.
func (s *Snapshot) torn() bool {
	return errors.Is(s.Err, errTorn) || !s.Attr.Mode.IsRegular()
}

// mayBeTorn says whether a snapshot that cannot be used may be one of a file
// that is just being written: the file of the last good snapshot itself, lately
// changed, and not broken for long. a.mu is held.
func (a *App) mayBeTorn(snap *Snapshot) bool {
	if a.torn.IsZero() {
		a.torn = time.Now()
	}
	return a.good != nil && snap.Attr.Mode.IsRegular() &&
		snap.Attr.Dev == a.good.Attr.Dev && snap.Attr.Ino == a.good.Attr.Ino &&
		time.Since(a.torn) < racyFor
}

// load reads index.json, and gives its bytes as well.
func (a *App) load(ctx context.Context, dirfd int) (*Snapshot, []byte, sighting, error) {
	was, _ := statBeneath(dirfd, indexName)
	leave, err := a.large.enter(ctx, was.Size)
	if err != nil {
		return nil, nil, sighting{}, err
	}
	defer leave()
	data, seen, attr, err := a.readFile(dirfd, indexName, -1, MaxIndex)
	if errors.Is(err, fs.ErrNotExist) {
		err = corruptf("%s: not there", indexName)
	}
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return nil, nil, seen, err
	}
	if err != nil {
		if dir, err := fstat(dirfd, a.Name); err == nil && (attr == Attr{} || !attr.Mode.IsRegular()) {
			attr = dir
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.snap = nil
		return &Snapshot{Attr: attr, Err: err, app: a, serial: serials.Add(1), content: &content{}}, nil, seen, nil
	}
	sum := sha256.Sum256(data)
	if snap := a.again(sum, attr, seen); snap != nil {
		return snap, data, seen, nil
	}
	list, err := parseRows(ctx, data)
	if err != nil && ctx.Err() != nil {
		return nil, nil, seen, ctx.Err()
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", indexName, err)
	}
	if snap := a.again(sum, attr, seen); snap != nil { // another was quicker
		return snap, data, seen, nil
	}
	snap := &Snapshot{Attr: attr, Err: err, app: a, serial: serials.Add(1), sum: sum, content: &content{rows: list}}
	a.mu.Lock()
	a.snap, a.seen = snap, seen
	a.mu.Unlock()
	a.large.keeps(a)
	return snap, data, seen, nil
}

// look is load without the bytes, which are not held in memory if they are those of the last reading.
func (a *App) look(ctx context.Context, dirfd int) (*Snapshot, error) {
	a.mu.Lock()
	last := a.snap
	a.mu.Unlock()
	if last != nil {
		if same, seen, attr, err := a.sameFile(ctx, dirfd, indexName, last.digestOfBytes(), last.Attr.Size); err == nil && same {
			if snap := a.again(last.sum, attr, seen); snap != nil {
				return snap, nil
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	snap, _, _, err := a.load(ctx, dirfd)
	return snap, err
}

// again makes the last reading that of a file with the same bytes; nil if it is of other ones.
func (a *App) again(sum [sha256.Size]byte, attr Attr, seen sighting) *Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.snap == nil || a.snap.sum != sum {
		return nil
	}
	again := *a.snap
	again.Attr, again.serial = attr, serials.Add(1)
	a.snap, a.seen = &again, seen
	return a.snap
}

// adopt makes what a change wrote, bytes of that size and SHA-256, the last reading of index.json, to be compared with what is
// there: it need not be parsed.
func (a *App) adopt(size int, sum [sha256.Size]byte, list rows) {
	snap := &Snapshot{Attr: Attr{Stamp: Stamp{Size: int64(size)}}, app: a, serial: serials.Add(1), sum: sum, content: &content{rows: list}}
	a.mu.Lock()
	a.snap, a.seen = snap, sighting{} // which proves nothing
	a.mu.Unlock()
	a.large.keeps(a)
}

// readIndexFile reads the bytes of index.json.
func (a *App) readIndexFile() ([]byte, error) {
	dirfd, err := a.open()
	if err != nil {
		return nil, err
	}
	defer closeFD(dirfd)
	data, _, _, err := a.readFile(dirfd, indexName, -1, MaxIndex)
	return data, err
}

// An Entry is an image or index that index.json reaches. Where Err is set
// (ErrCorrupt) the descriptor cannot be relied on.
type Entry struct {
	v1.Descriptor
	Err error
}

// Tags lists the app's tags, sorted.
func (s *Snapshot) Tags() []string {
	list := s.Tagged()
	tags := make([]string, 0, list.Len())
	for i := range list.Len() {
		if tag, again := list.At(i); !again {
			tags = append(tags, tag)
		}
	}
	return tags
}

// A Tagged is the descriptors in index.json that have a tag, sorted by it. It takes little memory, for all who ask for it share it.
type Tagged struct {
	rows  []row
	byTag []int32
	bytes int64
}

// Tagged gives what has a tag.
func (s *Snapshot) Tagged() Tagged { return Tagged{s.list, s.byTag, s.content.bytes} }

// Len is the number of descriptors.
func (t Tagged) Len() int { return len(t.byTag) }

// At returns the tag of the i-th, and whether the one before has the same.
func (t Tagged) At(i int) (tag string, again bool) {
	tag = t.rows[t.byTag[i]].tag
	return tag, i > 0 && t.rows[t.byTag[i-1]].tag == tag
}

// Memory tells which memory it holds, and how many bytes that is, about.
func (t Tagged) Memory() (which any, size int64) { return unsafe.SliceData(t.rows), t.bytes }

// TagsOf lists the tags that name the digest, sorted.
func (s *Snapshot) TagsOf(d digest.Digest) []string {
	tags := []string{}
	for _, i := range s.of(d) {
		if tag := s.list[i].tag; tag != "" {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}

// Tag gives what a tag names; ErrNotFound if there is no such tag.
func (s *Snapshot) Tag(ctx context.Context, tag string) (Entry, error) {
	if s.Err != nil {
		return Entry{}, s.Err
	}
	switch list := s.tagged(tag); len(list) {
	case 0:
		return Entry{}, kindf(ErrNotFound, "%s: no tag %q", s.app.Name, Short(tag))
	case 1:
		return s.judged(ctx, s.row(int(list[0])))
	}
	return Entry{Err: corruptf("%s: the tag %q is given twice", indexName, Short(tag))}, nil
}

// row is the Entry of what index.json itself lists, by its own words.
func (s *Snapshot) row(i int) Entry { return Entry{Descriptor: s.descriptor(i)} }

// Digest gives the image or index of that digest; ErrNotFound if index.json
// does not reach it.
func (s *Snapshot) Digest(ctx context.Context, d digest.Digest) (Entry, error) {
	if s.Err != nil {
		return Entry{}, s.Err
	}
	if rows := s.of(d); len(rows) > 0 {
		return s.judged(ctx, s.row(int(rows[0])))
	}
	e, ok, err := s.nested(ctx, d)
	switch {
	case err != nil:
		return e, err
	case !ok:
		return e, kindf(ErrNotFound, "%s: no image or index %s", s.app.Name, d)
	}
	return s.judged(ctx, e)
}

// Lists says whether index.json itself lists that digest.
func (s *Snapshot) Lists(d digest.Digest) bool { return len(s.of(d)) > 0 }

// Top lists what index.json itself lists, in its order.
func (s *Snapshot) Top(ctx context.Context) ([]Entry, error) {
	said, err := s.wording(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Entry, len(s.list))
	for i := range list {
		list[i] = said.judge(s.row(i))
	}
	return list, nil
}

// Resolve gives what a reference names, a digest or else a tag.
func (s *Snapshot) Resolve(ctx context.Context, ref string) (Entry, error) {
	d, err := ParseDigest(ref)
	if err == nil {
		return s.Digest(ctx, d)
	}
	if len(s.tagged(ref)) == 0 && (strings.HasPrefix(ref, "sha256:") || strings.HasPrefix(ref, "sha512:")) {
		return Entry{}, err
	}
	return s.Tag(ctx, ref)
}
