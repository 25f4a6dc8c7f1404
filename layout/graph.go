package layout

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A wording is what all indexes of an app, at any depth, say of each digest, where their descriptors differ or carry data.
type wording struct {
	bad     map[digest.Digest]error  // of which descriptors differ, or have inline data that are not the blob's
	inlined map[digest.Digest][]byte // right inline data, by any descriptor
	unread  []unread                 // nested indexes that are not there, damaged, or closed: what they say is not known
	own     bool                     // whoever makes it may still change it
}

// An unread is a nested index that could not be read, with what was seen of its file.
type unread struct {
	v1.Descriptor
	seen sighting
}

// with returns the wording with one more descriptor; first is the first one of its digest, maybe itself. That is w itself if there is nothing new in it.
func (w *wording) with(first, d v1.Descriptor) *wording {
	err := cmp.Or(inlineFault(d), disagreement(first, d))
	isBad := err != nil && w.bad[d.Digest] == nil
	isInlined := err == nil && d.Data != nil && w.inlined[d.Digest] == nil
	if !isBad && !isInlined {
		return w
	}
	now := w
	if !w.own {
		now = &wording{maps.Clone(w.bad), maps.Clone(w.inlined), w.unread, true}
	}
	if isBad {
		if now.bad == nil {
			now.bad = map[digest.Digest]error{}
		}
		now.bad[d.Digest] = err
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
	if a.Size != b.Size || a.MediaType != b.MediaType {
		return corruptf("%s: its descriptors disagree: %d bytes of %s, and %d bytes of %s", a.Digest, a.Size, a.MediaType, b.Size, b.MediaType)
	}
	return nil
}

// judge adds to an entry what other descriptors of its digest say.
func (w *wording) judge(e Entry) Entry {
	if e.Err == nil {
		e.Err = w.bad[e.Digest]
	}
	if e.Data == nil && e.Err == nil {
		e.Data = w.inlined[e.Digest]
	}
	return e
}

// wording returns what index.json and all nested indexes say. It does not become another as long as index.json has these bytes, for digests
// stand for bytes; unless an index can be read by now that could not.
func (s *Snapshot) wording(ctx context.Context) (*wording, error) {
	if len(s.indexes) == 0 {
		return &s.said, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	began := time.Now()
	if s.words != nil && began.Sub(s.asked) < min(10*s.took, longestLag) {
		return s.words, nil // asking takes no more than a tenth of the time, however many cannot be read
	}
	known := s.words != nil && s.stillUnread(s.words.unread)
	s.asked = time.Now()
	s.took = s.asked.Sub(began)
	if !known {
		r, err := s.walk(ctx, nil, s.app.wordsOf)
		if err != nil {
			return nil, err
		}
		s.words = r.said
	}
	return s.words, nil
}

// longestLag is how long it may take until it is seen that a nested index can be read that could not, where very many cannot.
const longestLag = time.Second

// stillUnread reports whether files that could not be read surely are as they were.
func (s *Snapshot) stillUnread(list []unread) bool {
	for _, u := range list {
		attr, err := lstat(s.app.parent, s.app.path+"/"+BlobPath(u.Digest))
		if attr.Stamp != u.seen.Stamp || err == nil && !s.app.proves(u.seen) {
			return false
		}
	}
	return true
}

func (s *Snapshot) judged(ctx context.Context, e Entry) (Entry, error) {
	said, err := s.wording(ctx)
	if err != nil {
		return e, err
	}
	return said.judge(e), nil
}

// WordsFixed reports whether what is said of any image is in index.json alone, or in nested indexes that were all read: then it does not
// become another as long as index.json has these bytes.
func (s *Snapshot) WordsFixed(ctx context.Context) bool {
	said, err := s.wording(ctx)
	return err == nil && len(said.unread) == 0
}

// reached is the outcome of one walk through nested indexes. Of all that
// index.json lists itself, a walk from there has only the indexes, and what a nested one lists too.
type reached struct {
	order   []digest.Digest // each once, but for what index.json lists itself
	nodes   map[digest.Digest]*node
	indexes map[digest.Digest]*readIndex // nil for one that could not be read
	said    *wording                     // at that time
	closed  error                        // why some index may not be read, or nil
}

// A node has the Err of a reading. What the wording has against it is asked for when it is used.
type node struct {
	Entry
	parents []digest.Digest // the nested indexes that list it
}

// walk visits what a descriptor leads to, or index.json with nil, breadth first, so that a
// digest that is reached in several ways is visited at its least depth, once. A walk from index.json makes the wording, any other one begins with that.
func (s *Snapshot) walk(ctx context.Context, from *v1.Descriptor, read func(dirfd int, d v1.Descriptor) (*readIndex, error)) (*reached, error) {
	said := &s.said
	if from != nil {
		var err error
		if said, err = s.wording(ctx); err != nil {
			return nil, err
		}
	}
	dirfd, err := s.app.open()
	if err != nil {
		return nil, err
	}
	defer closeFD(dirfd)
	r := &reached{nodes: map[digest.Digest]*node{}, indexes: map[digest.Digest]*readIndex{}}
	var unreadable []unread
	var level []v1.Descriptor
	visit := func(d v1.Descriptor, parent digest.Digest) {
		n := r.nodes[d.Digest]
		if n == nil && from == nil {
			n = s.node(r, d.Digest) // a row
			if n != nil {
				r.nodes[d.Digest] = n
			}
		}
		if n == nil {
			n = &node{Entry: Entry{Descriptor: d}}
			r.nodes[d.Digest] = n
			r.order = append(r.order, d.Digest)
			if IsIndex(d.MediaType) {
				level = append(level, d)
			}
		}
		said = said.with(n.Descriptor, d)
		// An index is visited once, so it can only be the last one.
		if last := len(n.parents) - 1; parent != "" && (last < 0 || n.parents[last] != parent) {
			n.parents = append(n.parents, parent)
		}
	}
	if from != nil {
		visit(*from, "")
	} else {
		for _, i := range s.indexes {
			d := s.descriptor(int(i))
			visit(d, "")
			level = append(level, d)
		}
	}
	for depth := 1; len(level) > 0; depth++ {
		this := level
		level = nil
		for _, d := range this {
			n := r.nodes[d.Digest]
			if depth > MaxIndexDepth {
				n.Err = limitf("%s: an index at depth %d; at most %d lie inside each other", d.Digest, depth, MaxIndexDepth)
				continue
			}
			ri, err := read(dirfd, d)
			r.indexes[d.Digest] = ri
			switch {
			case err == nil:
				for _, child := range ri.index.Manifests {
					visit(child, d.Digest)
				}
				continue
			case errors.Is(err, ErrMissing): // a sparse index
			case errors.Is(err, ErrCorrupt):
				n.Err = err
			case errors.Is(err, fs.ErrPermission) && from == nil: // what is closed hides nothing else
				r.closed = err
			default:
				return nil, err
			}
			if from == nil {
				unreadable = append(unreadable, s.app.unreadable(d, err))
			}
		}
	}
	for d, ri := range r.indexes {
		n := r.nodes[d]
		inline := n.Descriptor
		if inline.Data = said.inlined[d]; ri == nil && n.Err == nil && inline.Data != nil {
			n.Err = missing(inline)
		}
	}
	if r.said = said; from == nil {
		r.said = &wording{said.bad, said.inlined, unreadable, false}
	}
	return r, nil
}

// nowRead reports whether a walk read an index, by the same descriptor, that its wording is without.
func (r *reached) nowRead() bool {
	return slices.ContainsFunc(r.said.unread, func(u unread) bool {
		n := r.nodes[u.Digest]
		return r.indexes[u.Digest] != nil && n.Size == u.Size && n.MediaType == u.MediaType
	})
}

// readIndex reads a nested index, or gives the last reading while its file
// is as it was.
func (a *App) readIndex(dirfd int, d v1.Descriptor) (*readIndex, error) {
	key := indexKey{d.Digest, d.MediaType, d.Size}
	a.mu.Lock()
	old := a.indexes[key]
	a.mu.Unlock()
	if old != nil && a.proves(old.seen) {
		if attr, err := statBeneath(dirfd, BlobPath(d.Digest)); err == nil && attr.Stamp == old.seen.Stamp {
			return a.usable(dirfd, old)
		}
	}
	data, seen, _, err := a.readBlob(dirfd, d, MaxIndex, nil)
	if err != nil && (errors.Is(err, ErrMissing) || !errors.Is(err, ErrCorrupt) || d.Data != nil) {
		return nil, err
	}
	ri := &readIndex{seen: seen, err: err}
	switch {
	case err != nil:
	case old != nil && old.err == nil:
		// Its bytes have the same digest, so it says the same.
		ri.index = old.index
	default:
		ri.index, ri.err = ParseIndex(data, d.MediaType)
	}
	a.putIndex(key, ri)
	return a.usable(dirfd, ri)
}

func (a *App) putIndex(key indexKey, ri *readIndex) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for gone := range a.indexes {
		if len(a.indexes) < maxIndexes {
			break
		}
		delete(a.indexes, gone)
	}
	a.indexes[key] = ri
}

// maxIndexes is how many nested indexes of an app are kept.
const maxIndexes = 1 << 14

// wordsOf is readIndex for who wants to know what an index says, and not whether it is there still: what it said under its digest it says for ever.
func (a *App) wordsOf(dirfd int, d v1.Descriptor) (*readIndex, error) {
	a.mu.Lock()
	ri := a.indexes[indexKey{d.Digest, d.MediaType, d.Size}]
	a.mu.Unlock()
	if ri != nil && ri.err == nil {
		return ri, nil
	}
	return a.readIndex(dirfd, d)
}

// unreadable is an index that could not be read, for that reason.
func (a *App) unreadable(d v1.Descriptor, err error) unread {
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
func (a *App) sightingOf(d v1.Descriptor, attr Attr) sighting {
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
		err = a.checkSubject(dirfd, ri.index.Subject, nil)
	}
	if err != nil {
		return nil, err
	}
	return ri, nil
}

// all gives a walk over everything, as the nested indexes are now.
func (s *Snapshot) all(ctx context.Context) (*reached, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.reached; r != nil {
		if ok, err := s.current(r, nil); err != nil || ok {
			return r, err
		}
	}
	r, err := s.walk(ctx, nil, s.app.readIndex)
	if err == nil {
		s.words, err = r.said, r.closed
	}
	if err != nil {
		return nil, err
	}
	s.reached = r
	return r, nil
}

// current reports whether the nested indexes of a walk (all, or those given) are
// still what they were.
func (s *Snapshot) current(r *reached, only []digest.Digest) (bool, error) {
	if len(r.indexes) == 0 {
		return true, nil
	}
	dirfd, err := s.app.open()
	if err != nil {
		return false, err
	}
	defer closeFD(dirfd)
	same := func(d digest.Digest) bool {
		was := r.indexes[d]
		ri, _ := s.app.readIndex(dirfd, r.nodes[d].Descriptor)
		return (ri == nil) == (was == nil) // its bytes have the same digest, so it says the same
	}
	if only != nil {
		for _, d := range only {
			if !same(d) {
				return false, nil
			}
		}
		return true, nil
	}
	for d := range r.indexes {
		if !same(d) {
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
			if ok, err := s.current(r, r.above(d)); err == nil && ok {
				return n.Entry, true, nil
			}
		}
	}
	r, err := s.all(ctx)
	if err != nil {
		return Entry{}, false, err
	}
	if n := r.nodes[d]; n != nil {
		return n.Entry, true, nil
	}
	return Entry{}, false, nil
}

// node is what a walk from index.json knows of a digest; nil if it does not lead there.
func (s *Snapshot) node(r *reached, d digest.Digest) *node {
	if n := r.nodes[d]; n != nil {
		return n
	}
	if rows := s.of(d); len(rows) > 0 {
		return &node{Entry: s.row(int(rows[0]))}
	}
	return nil
}

// above lists every index on any way from index.json to d.
func (r *reached) above(ds ...digest.Digest) []digest.Digest {
	var list []digest.Digest
	seen := map[digest.Digest]bool{}
	for len(ds) > 0 {
		n := r.nodes[ds[0]]
		ds = ds[1:]
		if n == nil { // a row, which no index lists
			continue
		}
		for _, p := range n.parents {
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
		if n := r.nodes[row.digest]; n != nil && !row.again {
			list = append(list, r.said.judge(n.Entry))
		} else if !row.again {
			list = append(list, r.said.judge(s.row(i)))
		}
	}
	for _, d := range r.order {
		list = append(list, r.said.judge(r.nodes[d].Entry))
	}
	return list, nil
}

// Images lists what an index holds that is not an index itself, through
// every depth, each digest once for each platform that it is given for. An index that cannot be relied on is in the
// list, with its Err; one that is not in the layout is not. What is not an
// index is its own only image.
func (s *Snapshot) Images(ctx context.Context, e Entry) ([]Entry, error) {
	if !IsIndex(e.MediaType) || e.Err != nil {
		return []Entry{e}, nil
	}
	r, err := s.walk(ctx, &e.Descriptor, s.app.readIndex)
	if err == nil && r.nowRead() {
		s.mu.Lock()
		s.asked = time.Time{}
		s.mu.Unlock()
		r, err = s.walk(ctx, &e.Descriptor, s.app.readIndex)
	}
	if err != nil {
		return nil, err
	}
	if r.nodes[e.Digest].Err == nil && r.indexes[e.Digest] == nil {
		return nil, missing(e.Descriptor)
	}
	type image struct {
		digest              digest.Digest
		platform, reference string
	}
	var list []Entry
	seen := map[image]bool{}
	add := func(d v1.Descriptor) {
		e := r.said.judge(Entry{d, r.nodes[d.Digest].Err})
		if e.Err == nil && IsIndex(d.MediaType) {
			return
		}
		key := image{digest: d.Digest, reference: d.Annotations[referenceType]}
		if d.Platform != nil {
			key.platform = PlatformName(*d.Platform)
		}
		if !seen[key] {
			seen[key] = true
			list = append(list, e)
		}
	}
	add(e.Descriptor)
	for _, d := range r.order {
		if ri := r.indexes[d]; ri != nil {
			for _, child := range ri.index.Manifests {
				add(child)
			}
		}
	}
	return list, nil
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
