package layout

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"math"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A wording is what all indexes of an app, at any depth, say of each digest, where their descriptors differ or carry data.
type wording struct {
	bad     map[digest.Digest]contradiction // of which descriptors differ, or have inline data that are not the blob's
	inlined map[digest.Digest][]byte        // right inline data, by any descriptor
	unread  []unread                        // nested indexes that are not there, damaged, or closed: what they say is not known
	own     bool                            // whoever makes it may still change it

	over    error           // the nested indexes are over MaxIndexes: what they say is not known, and may be against any word
	counted []v1.Descriptor // those that are over it
}

// A contradiction is what two descriptors of one digest say of it, the first one and another.
type contradiction struct {
	first, other saying
	inlined      bool // it is not that they differ: the data inlined in the other is not the blob's
}

type saying struct {
	size      int64
	mediaType string
}

func sayingOf(d *v1.Descriptor) saying { return saying{d.Size, d.MediaType} }

func (c contradiction) err(d digest.Digest) error {
	if c.inlined {
		return corruptf("%s: the data inlined in its descriptor is not the blob's", d)
	}
	return corruptf("%s: its descriptors disagree: %d bytes of %s, and %d bytes of %s", d, c.first.size, Short(c.first.mediaType), c.other.size, Short(c.other.mediaType))
}

// An unread is a nested index that could not be read, with what was seen of its file.
type unread struct {
	*v1.Descriptor
	seen sighting
}

// bytes is how much memory it takes, about, without the data, which its indexes have too.
func (w *wording) bytes() int64 {
	const entry = 2 * int64(unsafe.Sizeof(contradiction{})) // of a map, with its key and what is empty
	return entry * int64(len(w.bad)+len(w.inlined))
}

// with returns the wording with one more descriptor; first is what the first one of its digest says, maybe itself. That is w itself if there is nothing new in it.
func (w *wording) with(first saying, d *v1.Descriptor) *wording {
	wrongData := d.Data != nil && inlineFault(*d) != nil
	isBad := wrongData || sayingOf(d) != first
	if isBad {
		_, known := w.bad[d.Digest]
		isBad = !known
	}
	isInlined := d.Data != nil && !wrongData && sayingOf(d) == first && w.inlined[d.Digest] == nil
	if !isBad && !isInlined {
		return w
	}
	now := w
	if !w.own {
		now = &wording{bad: maps.Clone(w.bad), inlined: maps.Clone(w.inlined), own: true}
	}
	if isBad {
		if now.bad == nil {
			now.bad = map[digest.Digest]contradiction{}
		}
		now.bad[d.Digest] = contradiction{first, sayingOf(d), wrongData}
	} else {
		if now.inlined == nil {
			now.inlined = map[digest.Digest][]byte{}
		}
		now.inlined[d.Digest] = d.Data
	}
	return now
}

// disagreement returns nil if two descriptors of one digest, in the manifests of indexes, say the same of it.
func disagreement(a, b v1.Descriptor) error {
	if first, other := sayingOf(&a), sayingOf(&b); first != other {
		return contradiction{first, other, false}.err(a.Digest)
	}
	return nil
}

// judge adds to an entry what other descriptors of its digest say.
func (w *wording) judge(e Entry) Entry {
	if e.Err == nil {
		e.Err = w.over
	}
	if c, bad := w.bad[e.Digest]; bad && e.Err == nil {
		e.Err = c.err(e.Digest)
	}
	if e.Data == nil && e.Err == nil {
		e.Data = w.inlined[e.Digest]
	}
	return e
}

// few is how many nested indexes are asked for where it is needed, and not once for all who ask at that time.
const few = 64

// wording returns what index.json and all nested indexes say. It does not become another as long as index.json has these bytes, for digests
// stand for bytes; unless an index can be read by now that could not, or is gone of those that are too large together.
func (s *Snapshot) wording(ctx context.Context) (*wording, error) {
	if len(s.indexes) == 0 {
		return &s.said, nil
	}
	s.mu.Lock()
	words := s.words
	fixed := words != nil && (words.fixed() || time.Since(s.asked) < min(10*s.took, longestLag)) // asking takes no more than a tenth of the time
	s.mu.Unlock()
	if fixed || words != nil && len(words.unread)+len(words.counted) <= few && s.stillUnread(ctx, words) {
		return words, nil
	}
	return s.wordings.Fresh(ctx, struct{}{}, func(ctx context.Context) (*wording, error) {
		began := time.Now()
		s.mu.Lock()
		words := s.words
		s.mu.Unlock()
		known := words != nil && s.stillUnread(ctx, words)
		asked := time.Now()
		if !known {
			r, err := s.walk(ctx, nil, s.app.wordsOf)
			if err != nil {
				return nil, err
			}
			words = r.said
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.words, s.asked, s.took = words, asked, asked.Sub(began)
		return words, nil
	})
}

// longestLag is how long it may take until it is seen that a nested index can be read that could not, where very many cannot.
const longestLag = time.Second

// fixed reports whether it cannot become another.
func (w *wording) fixed() bool { return len(w.unread) == 0 && w.over == nil }

// stillUnread reports whether files that could not be read surely are as they were, and those that were too large together still are.
func (s *Snapshot) stillUnread(ctx context.Context, w *wording) bool {
	for i, u := range w.unread {
		if i%few == 0 && ctx.Err() != nil {
			return false
		}
		attr, err := lstat(s.app.parent, s.app.path+"/"+BlobPath(u.Digest))
		if attr.Stamp != u.seen.Stamp || err == nil && !s.app.proves(u.seen) {
			return false
		}
	}
	return w.over == nil || s.stillOver(ctx, w.counted)
}

// stillOver reports whether those indexes can still be opened, and so are too large together.
func (s *Snapshot) stillOver(ctx context.Context, counted []v1.Descriptor) bool {
	dirfd, err := s.app.open()
	if err != nil {
		return false
	}
	defer closeFD(dirfd)
	for i, d := range counted {
		if i%few == 0 && ctx.Err() != nil || !canRead(dirfd, d) {
			return false
		}
	}
	return true
}

// canRead reports whether there is a regular file of the size and name of a blob, and it can be opened. It reads nothing.
func canRead(dirfd int, d v1.Descriptor) bool {
	fd, attr, err := openRegular(dirfd, BlobPath(d.Digest))
	if err != nil {
		return false
	}
	closeFD(fd)
	return attr.Size == d.Size
}

// costOf is what an index takes of MaxIndexes. The smallest ones take memory and time as well.
func costOf(d *v1.Descriptor) int64 { return min(max(d.Size, 1<<10), MaxIndex+1) }

func (s *Snapshot) judged(ctx context.Context, e Entry) (Entry, error) {
	said, err := s.wording(ctx)
	if err != nil {
		return e, err
	}
	return said.judge(e), nil
}

// Fault returns nil, or why all words of the app are `corrupt`: index.json cannot be used, or what it leads to is over a limit.
func (s *Snapshot) Fault(ctx context.Context) (fault error, err error) {
	if s.Err != nil {
		return s.Err, nil
	}
	said, err := s.wording(ctx)
	if err != nil {
		return nil, err
	}
	return said.over, nil
}

// WordsFixed reports whether what is said of any image is in index.json alone, or in nested indexes that were all read: then it does not
// become another as long as index.json has these bytes.
func (s *Snapshot) WordsFixed(ctx context.Context) bool {
	said, err := s.wording(ctx)
	return err == nil && said.fixed()
}

// reached is the outcome of one walk through nested indexes. Of all that
// index.json lists itself, a walk from there has only the indexes, and what a nested one lists too. It has nothing if the indexes are over MaxIndexes.
type reached struct {
	order   []*node // each once, but for what index.json lists itself
	nodes   map[digest.Digest]*node
	indexes []*node
	said    *wording // at that time
	closed  error    // why some index may not be read, or nil

	listed  sync.Once
	listing *Listing
}

// A node has the Err of a reading. What the wording has against it is asked for when it is used. It is kept small: there may be very many.
type node struct {
	*v1.Descriptor      // in a nested index, without what is not kept there; or of an index
	row            *row // the first one in index.json, which counts; nil for none, or in a walk that is not from there
	Err            error
	index          *readIndex      // what an index says; nil for one that was not read
	parent         digest.Digest   // a nested index that lists it, "" for none
	parents        []digest.Digest // further ones
}

func (n *node) entry() Entry { return Entry{*n.Descriptor, n.Err} }

// walk visits what a descriptor leads to, or index.json with nil, breadth first, so that a
// digest that is reached in several ways is visited at its least depth, once. A walk from index.json makes the wording, any other one begins with that,
// and is an ErrLimit if it leads to more than MaxIndexImages.
func (s *Snapshot) walk(ctx context.Context, from *v1.Descriptor, read readIndexFunc) (*reached, error) {
	w := &walker{s: s, from: from, read: read, said: &s.said, r: &reached{nodes: map[digest.Digest]*node{}}}
	if from != nil {
		var err error
		if w.said, err = s.wording(ctx); err != nil {
			return nil, err
		}
		if w.said.over != nil {
			return nil, w.said.over
		}
	}
	var err error
	if w.dirfd, err = s.app.open(); err != nil {
		return nil, err
	}
	defer closeFD(w.dirfd)
	if from != nil {
		w.visit(from, "")
	} else {
		for _, i := range s.indexes {
			d := s.bare(int(i))
			w.visit(&d, "")
			w.level = append(w.level, w.r.nodes[d.Digest])
		}
	}
	for depth := 1; len(w.level) > 0; depth++ {
		this := w.level
		w.level = nil
		if from == nil {
			if all := append(slices.Clone(w.counted), tooMuch(w.dirfd, this, MaxIndexes-w.cost)...); len(all) > len(w.counted) {
				return s.overLimit(all), nil
			}
		}
		for _, n := range this {
			if err := w.enter(ctx, n, depth); err != nil {
				return nil, err
			}
			if w.cost > MaxIndexes {
				return s.overLimit(w.counted), nil
			}
		}
	}
	return w.end(), nil
}

type readIndexFunc func(ctx context.Context, dirfd int, d v1.Descriptor) (*readIndex, error)

// A walker is a walk under way.
type walker struct {
	s     *Snapshot
	from  *v1.Descriptor
	read  readIndexFunc
	dirfd int // of the app
	r     *reached
	said  *wording

	level  []*node // the indexes to enter next
	images int

	// These are of a walk from index.json.
	cost       int64 // of the indexes in counted (costOf)
	counted    []v1.Descriptor
	unreadable []unread
}

// visit notes a descriptor that the index parent lists, or index.json with "".
func (w *walker) visit(d *v1.Descriptor, parent digest.Digest) {
	n := w.r.nodes[d.Digest]
	if n == nil {
		n = &node{Descriptor: d}
		w.r.nodes[d.Digest] = n
		if w.from == nil {
			n.row = w.s.first(d.Digest)
		}
		if n.row == nil {
			w.r.order = append(w.r.order, n)
			if IsIndex(d.MediaType) {
				w.level = append(w.level, n)
			} else {
				w.images++
			}
		}
	}
	first := sayingOf(n.Descriptor)
	if n.row != nil {
		first = saying{n.row.size, n.row.mediaType}
	}
	w.said = w.said.with(first, d)
	// An index is entered once, so it can only be the last one.
	switch last := len(n.parents) - 1; {
	case parent == "" || n.parent == parent || last >= 0 && n.parents[last] == parent:
	case n.parent == "":
		n.parent = parent
	default:
		n.parents = append(n.parents, parent)
	}
}

// enter reads an index, unless it is one too many, and visits what it lists.
func (w *walker) enter(ctx context.Context, n *node, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w.r.indexes = append(w.r.indexes, n)
	if depth > MaxIndexDepth {
		n.Err = limitf("%s: an index at depth %d; at most %d lie inside each other", n.Digest, depth, MaxIndexDepth)
		return nil
	}
	more := w.from == nil && w.cost+costOf(n.Descriptor) > MaxIndexes && canRead(w.dirfd, *n.Descriptor)
	var ri *readIndex
	var err error
	if !more {
		ri, err = w.read(ctx, w.dirfd, *n.Descriptor)
	}
	if w.from == nil && (more || err == nil || errors.Is(err, ErrCorrupt) && canRead(w.dirfd, *n.Descriptor)) {
		w.counted = append(w.counted, v1.Descriptor{Digest: n.Digest, Size: n.Size})
		w.cost += costOf(n.Descriptor)
	}
	if more {
		return nil
	}
	n.index = ri
	switch {
	case err == nil:
		return w.list(ctx, n)
	case errors.Is(err, ErrMissing): // a sparse index
	case errors.Is(err, ErrCorrupt):
		n.Err = err
	case errors.Is(err, fs.ErrPermission) && w.from == nil: // what is closed hides nothing else
		w.r.closed = err
	default:
		return err
	}
	if w.from == nil {
		w.unreadable = append(w.unreadable, w.s.app.unreadable(n.Descriptor, err))
	}
	return nil
}

// list visits what an index lists.
func (w *walker) list(ctx context.Context, n *node) error {
	for i := range n.index.children {
		if i%(1<<12) == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if w.visit(&n.index.children[i], n.Digest); w.from != nil && w.images > MaxIndexImages {
			return tooManyImages(w.from.Digest)
		}
	}
	return nil
}

// end is what came of the walk.
func (w *walker) end() *reached {
	r := w.r
	for _, n := range r.indexes {
		inline := *n.Descriptor
		if inline.Data = w.said.inlined[n.Digest]; n.index == nil && n.Err == nil && inline.Data != nil {
			n.Err = missing(inline)
		}
	}
	if r.said = w.said; w.from == nil {
		r.said = &wording{bad: w.said.bad, inlined: w.said.inlined, unread: w.unreadable}
		w.s.app.keepOnly(r.indexes)
		w.s.app.large.keeps(w.s.app)
	}
	return r
}

// tooMuch returns those of some indexes that are there, if they cost more than is left; nil if they do not. It reads nothing.
func tooMuch(dirfd int, level []*node, left int64) (list []v1.Descriptor) {
	var sum int64
	for _, n := range level {
		sum += costOf(n.Descriptor)
	}
	if sum <= left {
		return nil
	}
	for _, n := range level {
		if canRead(dirfd, *n.Descriptor) {
			list = append(list, v1.Descriptor{Digest: n.Digest, Size: n.Size})
			left -= costOf(n.Descriptor)
		}
	}
	if left >= 0 {
		return nil
	}
	return list
}

// overLimit is what a walk from index.json gives when those indexes turn out to be too large together.
func (s *Snapshot) overLimit(counted []v1.Descriptor) *reached {
	s.app.keepOnly(nil)
	err := limitf("the indexes that %s leads to are over the limit of %d bytes together", indexName, MaxIndexes)
	return &reached{nodes: map[digest.Digest]*node{}, said: &wording{over: err, counted: counted}}
}

func tooManyImages(d digest.Digest) error {
	return limitf("%s: an index of over %d images", d, MaxIndexImages)
}

// nowRead reports whether a walk read an index, by the same descriptor, that its wording is without.
func (r *reached) nowRead() bool {
	return slices.ContainsFunc(r.said.unread, func(u unread) bool {
		n := r.nodes[u.Digest]
		return n != nil && n.index != nil && n.Size == u.Size && n.MediaType == u.MediaType
	})
}

// readIndex reads a nested index, or gives the last reading while its file
// is as it was.
func (a *App) readIndex(ctx context.Context, dirfd int, d v1.Descriptor) (*readIndex, error) {
	key := indexKey{d.Digest, d.MediaType, d.Size}
	a.mu.Lock()
	old := a.indexes[key]
	a.mu.Unlock()
	if old != nil && a.proves(old.seen) {
		if attr, err := statBeneath(dirfd, BlobPath(d.Digest)); err == nil && attr.Stamp == old.seen.Stamp {
			return a.usable(dirfd, old)
		}
	}
	leave, err := a.large.enter(ctx, d.Size)
	if err != nil {
		return nil, err
	}
	defer leave()
	data, seen, _, err := a.readBlob(dirfd, d, MaxIndex, nil)
	if err != nil && (errors.Is(err, ErrMissing) || !errors.Is(err, ErrCorrupt) || d.Data != nil) {
		return nil, err
	}
	ri := &readIndex{seen: seen, err: err}
	switch {
	case err != nil:
	case old != nil && old.err == nil:
		// Its bytes have the same digest, so it says the same.
		ri.subject, ri.children, ri.bytes = old.subject, old.children, old.bytes
	default:
		ri.subject, ri.children, ri.bytes, ri.err = parseChildren(ctx, data, d.MediaType)
		if ri.err != nil && ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	a.putIndex(key, ri)
	return a.usable(dirfd, ri)
}

// putIndex keeps a reading, and drops others so that all together stay below MaxIndexes.
func (a *App) putIndex(key indexKey, ri *readIndex) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if was := a.indexes[key]; was == nil {
		a.indexBytes += key.cost()
	} else {
		a.indexMemory -= was.bytes
	}
	a.indexes[key] = ri
	a.indexMemory += ri.bytes
	for gone := range a.indexes {
		if a.indexBytes <= MaxIndexes {
			break
		}
		if gone != key {
			a.indexBytes -= gone.cost()
			a.indexMemory -= a.indexes[gone].bytes
			delete(a.indexes, gone)
		}
	}
}

func (k indexKey) cost() int64 { return costOf(&v1.Descriptor{Size: k.size}) }

// keepOnly drops the readings of all indexes but these.
func (a *App) keepOnly(list []*node) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.indexes
	a.indexes, a.indexBytes, a.indexMemory = map[indexKey]*readIndex{}, 0, 0
	for _, n := range list {
		key := indexKey{n.Digest, n.MediaType, n.Size}
		if ri := was[key]; ri != nil && a.indexes[key] == nil {
			a.indexes[key] = ri
			a.indexBytes += key.cost()
			a.indexMemory += ri.bytes
		}
	}
}

// wordsOf is readIndex for who wants to know what an index says, and not whether it is there still: what it said under its digest it says for ever.
func (a *App) wordsOf(ctx context.Context, dirfd int, d v1.Descriptor) (*readIndex, error) {
	a.mu.Lock()
	ri := a.indexes[indexKey{d.Digest, d.MediaType, d.Size}]
	a.mu.Unlock()
	if ri != nil && ri.err == nil {
		return ri, nil
	}
	return a.readIndex(ctx, dirfd, d)
}

// unreadable is an index that could not be read, for that reason.
func (a *App) unreadable(d *v1.Descriptor, err error) unread {
	if errors.Is(err, ErrMissing) {
		return unread{Descriptor: d}
	}
	at := time.Now().UnixNano()
	attr, _ := lstat(a.parent, a.path+"/"+BlobPath(d.Digest))
	if errors.Is(err, ErrCorrupt) {
		return unread{d, a.sightingOf(d, attr)}
	}
	return unread{d, a.keeper.ofDir(attr, at)} // it is closed: when it is opened, that shows in its times
}

// sightingOf is what readIndex has seen of an index that it could not read, if its file still has that status.
func (a *App) sightingOf(d *v1.Descriptor, attr Attr) sighting {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ri := a.indexes[indexKey{d.Digest, d.MediaType, d.Size}]; ri != nil && ri.err != nil && ri.seen.Stamp == attr.Stamp {
		return ri.seen
	}
	return sighting{attr.Stamp, provesNothing}
}

// usable is an index that was read, or why it may not be used: its subject may be another file by now.
func (a *App) usable(dirfd int, ri *readIndex) (*readIndex, error) {
	err := ri.err
	if err == nil {
		err = a.checkSubject(dirfd, ri.subject, nil)
	}
	if err != nil {
		return nil, err
	}
	return ri, nil
}

// all gives a walk over everything, as the nested indexes are now.
func (s *Snapshot) all(ctx context.Context) (*reached, error) {
	last := func(ctx context.Context, most int) (*reached, error) {
		s.mu.Lock()
		r := s.reached
		s.mu.Unlock()
		if r == nil || len(r.indexes)+len(r.said.counted) > most {
			return nil, nil
		}
		if ok, err := s.current(ctx, r, nil); err != nil || !ok {
			return nil, err
		}
		return r, nil
	}
	if r, err := last(ctx, few); r != nil || err != nil {
		return r, err
	}
	return s.walks.Fresh(ctx, struct{}{}, func(ctx context.Context) (*reached, error) {
		if r, err := last(ctx, math.MaxInt); r != nil || err != nil {
			return r, err
		}
		r, err := s.walk(ctx, nil, s.app.readIndex)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.words = r.said; r.closed != nil {
			return nil, r.closed
		}
		s.reached = r
		return r, nil
	})
}

// current reports whether the nested indexes of a walk (all, or those given) are
// still what they were.
func (s *Snapshot) current(ctx context.Context, r *reached, only []digest.Digest) (bool, error) {
	if r.said.over != nil {
		return s.stillOver(ctx, r.said.counted), ctx.Err()
	}
	if len(r.indexes) == 0 {
		return true, nil
	}
	dirfd, err := s.app.open()
	if err != nil {
		return false, err
	}
	defer closeFD(dirfd)
	same := func(n *node) bool {
		ri, _ := s.app.readIndex(ctx, dirfd, *n.Descriptor)
		return (ri == nil) == (n.index == nil) // its bytes have the same digest, so it says the same
	}
	if only != nil {
		for _, d := range only {
			if !same(r.nodes[d]) {
				return false, ctx.Err()
			}
		}
		return true, nil
	}
	for _, n := range r.indexes {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if !same(n) {
			return false, nil
		}
	}
	return true, nil
}

// nested finds a digest that index.json itself does not list. For one that is
// there only the indexes on the way to it are looked at again.
func (s *Snapshot) nested(ctx context.Context, d digest.Digest) (Entry, bool, error) {
	s.mu.Lock()
	r := s.reached
	s.mu.Unlock()
	if r != nil {
		if n := r.nodes[d]; n != nil {
			if ok, err := s.current(ctx, r, r.above(d)); err == nil && ok {
				return n.entry(), true, nil
			}
		}
	}
	r, err := s.all(ctx)
	if err != nil {
		return Entry{}, false, err
	}
	if n := r.nodes[d]; n != nil {
		return n.entry(), true, nil
	}
	return Entry{}, false, nil
}

// known is what a walk from index.json knows of a digest; false if it does not lead there.
func (s *Snapshot) known(r *reached, d digest.Digest) (Entry, bool) {
	n := r.nodes[d]
	if rows := s.of(d); len(rows) > 0 {
		e := s.row(int(rows[0]))
		if n != nil {
			e.Err = n.Err
		}
		return e, true
	}
	if n == nil {
		return Entry{}, false
	}
	return n.entry(), true
}

// above lists every index on any way from index.json to d.
func (r *reached) above(ds ...digest.Digest) []digest.Digest {
	var list []digest.Digest
	seen := map[digest.Digest]bool{}
	for len(ds) > 0 {
		n := r.nodes[ds[0]]
		ds = ds[1:]
		if n == nil || n.parent == "" { // a row, which no index lists
			continue
		}
		for _, p := range append([]digest.Digest{n.parent}, n.parents...) {
			if !seen[p] {
				seen[p] = true
				list = append(list, p)
				ds = append(ds, p)
			}
		}
	}
	return list
}

// Entries lists every image and index that index.json reaches, each digest
// once, those of index.json first.
func (s *Snapshot) Entries(ctx context.Context) ([]Entry, error) {
	if s.Err != nil {
		return nil, s.Err
	}
	r, err := s.all(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Entry, 0, len(s.list)+len(r.order))
	for i, row := range s.list {
		if row.again {
			continue
		}
		e := s.row(i)
		if n := r.nodes[row.digest]; n != nil {
			e.Err = n.Err
		}
		list = append(list, r.said.judge(e))
	}
	for _, n := range r.order {
		list = append(list, r.said.judge(n.entry()))
	}
	return list, nil
}

// A Listing is the digest of every image and index that index.json reaches, each once, sorted. It takes little memory, for all who ask for it share it.
type Listing struct {
	rows   []row
	order  []*node
	sorted []int32 // a row, or ^i for order[i]
	bytes  int64
}

// Len is the number of digests.
func (l *Listing) Len() int { return len(l.sorted) }

// At returns the i-th digest.
func (l *Listing) At(i int) digest.Digest { return l.at(l.sorted[i]) }

// Memory tells which memory it holds, and how many bytes that is, about.
func (l *Listing) Memory() (which any, size int64) { return l, l.bytes }

func (l *Listing) at(i int32) digest.Digest {
	if i < 0 {
		return l.order[^i].Digest
	}
	return l.rows[i].digest
}

// Listing lists every image and index that index.json reaches.
func (s *Snapshot) Listing(ctx context.Context) (*Listing, error) {
	if s.Err != nil {
		return nil, s.Err
	}
	r, err := s.all(ctx)
	if err != nil {
		return nil, err
	}
	r.listed.Do(func() {
		l := &Listing{rows: s.list, order: r.order, sorted: make([]int32, 0, len(s.list)+len(r.order))}
		for _, i := range s.byDigest {
			if !s.list[i].again {
				l.sorted = append(l.sorted, i)
			}
		}
		for i := range r.order {
			l.sorted = append(l.sorted, ^int32(i))
		}
		slices.SortFunc(l.sorted, func(a, b int32) int { return cmp.Compare(l.at(a), l.at(b)) })
		l.bytes = s.content.bytes + childBytes*int64(len(l.order)) + 4*int64(cap(l.sorted))
		r.listing = l
	})
	return r.listing, nil
}

// Images lists what an index holds that is not an index itself, through
// every depth, each digest once for each platform that it is given for. An index that cannot be relied on is in the
// list, with its Err; one that is not in the layout is not. What is not an
// index is its own only image. ErrLimit: there are over MaxIndexImages. The list is not the caller's to change.
func (s *Snapshot) Images(ctx context.Context, e Entry) ([]Entry, error) {
	if !IsIndex(e.MediaType) || e.Err != nil {
		return []Entry{e}, nil
	}
	// What an index says of itself is not in the list, but for its Err.
	from := v1.Descriptor{MediaType: e.MediaType, Digest: e.Digest, Size: e.Size, Data: e.Data}
	images, err := s.contents.Fresh(ctx, indexKey{e.Digest, e.MediaType, e.Size}, func(ctx context.Context) (inIndex, error) { return s.images(ctx, &from) })
	if images.err != nil {
		e.Err = images.err
		return append([]Entry{e}, images.list...), err
	}
	return images.list, err
}

// CheckIndex returns nil if the index of an entry is there, well-formed, and within the limits. It is for who does not want its bytes, as Manifest gives them.
func (s *Snapshot) CheckIndex(ctx context.Context, e Entry) error {
	images, err := s.Images(ctx, e)
	if err == nil && len(images) > 0 && images[0].Digest == e.Digest {
		err = images[0].Err
	}
	return err
}

// inIndex is what an index holds.
type inIndex struct {
	err  error // why the index itself cannot be relied on
	list []Entry
}

func (s *Snapshot) images(ctx context.Context, from *v1.Descriptor) (inIndex, error) {
	r, err := s.walk(ctx, from, s.app.readIndex)
	if err == nil && r.nowRead() {
		s.mu.Lock()
		s.asked = time.Time{}
		s.mu.Unlock()
		r, err = s.walk(ctx, from, s.app.readIndex)
	}
	if err != nil {
		return inIndex{}, err
	}
	top := r.nodes[from.Digest]
	if top.Err == nil && top.index == nil {
		return inIndex{}, missing(*from)
	}
	type image struct {
		digest              digest.Digest
		platform, reference string
	}
	in := inIndex{err: r.said.judge(Entry{*from, top.Err}).Err}
	seen := map[image]bool{}
	for _, n := range r.order {
		if n.index == nil {
			continue
		}
		for _, d := range n.index.children {
			e := r.said.judge(Entry{d, r.nodes[d.Digest].Err})
			if e.Err == nil && IsIndex(d.MediaType) {
				continue
			}
			key := image{digest: d.Digest, reference: d.Annotations[referenceType]}
			if d.Platform != nil {
				key.platform = PlatformName(*d.Platform)
			}
			if seen[key] {
				continue
			}
			if len(in.list) == MaxIndexImages {
				return inIndex{}, tooManyImages(from.Digest)
			}
			seen[key] = true
			in.list = append(in.list, e)
		}
	}
	return in, nil
}

// missing is the error about a blob that is not there. One that is inlined is no part that a sparse index may lack, for some programs take that.
func missing(d v1.Descriptor) error {
	if d.Data != nil {
		return corruptf("%s: not in the layout as a blob, only as the data inlined in a descriptor", d.Digest)
	}
	return corruptf("%s: %w", d.Digest, errNotThere)
}

var errNotThere = missingError{}

type missingError struct{}

func (missingError) Error() string        { return "not in the layout" }
func (missingError) Is(target error) bool { return target == ErrMissing }
