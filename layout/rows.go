package layout

import (
	"bytes"
	"cmp"
	"context"
	"iter"
	"slices"
	"sync"
	"unsafe"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// rows are the descriptors of an index.json in its order, kept in little memory: there may be a hundred thousand.
type rows struct {
	list     []row
	byDigest []int32 // all of them; those of one digest in their order
	byTag    []int32 // those that have a tag
	indexes  []int32 // those of indexes, each digest once
	said     wording
	bytes    int64 // of memory that they take, about
}

type row struct {
	digest    digest.Digest
	size      int64
	mediaType string
	tag       string // "" for none
	platform  *v1.Platform
	rest      *rest // what few have; nil if there is nothing
	at        span32
	again     bool // a row before it has this digest
}

// A rest is what is kept of a row's descriptor besides: neither urls nor what nobody asks for of its annotations.
type rest struct {
	data  []byte
	notes []Annotation
}

// noted are the annotations in a rest. A tag is one only if it is empty.
var noted = []string{refName, fullName, referenceType, referenceDigest}

func restOf(d v1.Descriptor) *rest {
	r := &rest{data: d.Data}
	for _, key := range noted {
		if value, ok := d.Annotations[key]; ok && (key != refName || value == "") {
			r.notes = append(r.notes, Annotation{key, value})
		}
	}
	if r.data == nil && r.notes == nil {
		return nil
	}
	return r
}

// bytes is how much memory it takes, about.
func (r *rest) bytes() int64 {
	if r == nil {
		return 0
	}
	sum := int64(unsafe.Sizeof(*r)) + bytesOf(r.data) + int64(cap(r.notes))*int64(unsafe.Sizeof(Annotation{}))
	for _, note := range r.notes {
		sum += bytesOf(note.Value)
	}
	return sum
}

// A span32 is where a row stands in index.json, after the comma and white space that may be before it.
type span32 struct{ start, end uint32 }

// rowsOf collects rows; add takes them one by one, and done ends it.
type rowsOf struct {
	rows
	shared shared
}

// shared is what descriptors of one document say in the same words: the media types and platforms, which are mostly few, each once in memory.
type shared struct {
	types     map[string]string
	platforms map[plainPlatform]*v1.Platform
	bytes     int64 // of all of them
}

// A plainPlatform is one without os.features, which nobody asks for, and of which a descriptor may have very many.
type plainPlatform struct{ os, architecture, variant, version string }

func newShared() shared {
	return shared{types: map[string]string{}, platforms: map[plainPlatform]*v1.Platform{}}
}

// mediaType returns the same text.
func (s *shared) mediaType(text string) string {
	if same, ok := s.types[text]; ok {
		return same
	}
	s.types[text] = text
	s.bytes += bytesOf(text)
	return text
}

// platform returns a platform that says the same, without os.features.
func (s *shared) platform(p *v1.Platform) *v1.Platform {
	if p == nil {
		return nil
	}
	key := plainPlatform{p.OS, p.Architecture, p.Variant, p.OSVersion}
	if same, ok := s.platforms[key]; ok {
		return same
	}
	p = &v1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion}
	s.platforms[key] = p
	s.bytes += int64(unsafe.Sizeof(*p)) + bytesOf(p.OS) + bytesOf(p.Architecture) + bytesOf(p.Variant) + bytesOf(p.OSVersion)
	return p
}

// bytesOf is how much memory a text takes, with what Go rounds up.
func bytesOf[T ~string | ~[]byte](text T) int64 {
	if len(text) == 0 {
		return 0
	}
	return int64(len(text)+len(text)/8) + 8
}

func newRowsOf() *rowsOf { return &rowsOf{shared: newShared()} }

// add takes a row. It keeps neither the descriptor nor its annotations.
func (b *rowsOf) add(d v1.Descriptor, at span) {
	b.list = append(b.list, row{
		digest: d.Digest, size: d.Size, mediaType: b.shared.mediaType(d.MediaType), tag: d.Annotations[refName],
		platform: b.shared.platform(d.Platform), rest: restOf(d), at: span32{uint32(at.start), uint32(at.end)},
	})
}

func (b *rowsOf) done() rows {
	r := b.rows
	r.byDigest = make([]int32, len(r.list))
	for i, row := range r.list {
		r.byDigest[i] = int32(i)
		if row.tag != "" {
			r.byTag = append(r.byTag, int32(i))
		}
	}
	var sorting sync.WaitGroup
	sorting.Go(func() {
		slices.SortFunc(r.byTag, func(a, b int32) int {
			return cmp.Or(cmp.Compare(r.list[a].tag, r.list[b].tag), cmp.Compare(a, b))
		})
	})
	slices.SortFunc(r.byDigest, func(a, b int32) int {
		return cmp.Or(cmp.Compare(r.list[a].digest, r.list[b].digest), cmp.Compare(a, b))
	})
	sorting.Wait()
	var first int32
	for n, i := range r.byDigest {
		row := &r.list[i]
		if row.again = n > 0 && row.digest == r.list[first].digest; !row.again {
			first = i
		}
		if row.again || row.rest != nil {
			d := r.bare(int(i))
			r.said = *r.said.with(saying{r.list[first].size, r.list[first].mediaType}, &d)
		}
	}
	r.said.own = false
	r.bytes = b.shared.bytes
	for i, row := range r.list {
		if IsIndex(row.mediaType) && !row.again {
			r.indexes = append(r.indexes, int32(i))
		}
		r.bytes += bytesOf(row.digest) + bytesOf(row.tag) + row.rest.bytes()
	}
	r.bytes += int64(cap(r.list))*int64(unsafe.Sizeof(row{})) + 4*int64(cap(r.byDigest)+cap(r.byTag)+cap(r.indexes)) + r.said.bytes()
	return r
}

// A child is what is kept of a descriptor in a nested index: of its annotations only the type of what refers to another, and no urls.
type child = v1.Descriptor

// mapBytes is how much memory a map with one member takes, about.
const mapBytes = 400

// mostDescriptors guesses how many descriptors a document has, and is never far above.
func mostDescriptors(doc []byte) int {
	const shortest = 100 // bytes of one
	return min(bytes.Count(doc, []byte(`"digest"`)), len(doc)/shortest)
}

// childBytes is how much memory a child takes, about, with the node that a walk makes of it.
const childBytes = int64(unsafe.Sizeof(child{}) + 2*unsafe.Sizeof(node{}))

// parseChildren is [ParseIndex] of a nested index, of which its subject and its children are wanted. size is how much memory they take, about.
func parseChildren(ctx context.Context, doc []byte, mediaType string) (subject *v1.Descriptor, list []child, size int64, err error) {
	list = make([]child, 0, mostDescriptors(doc))
	shared := newShared()
	types := map[string]map[string]string{}
	index, err := parseIndex(ctx, doc, mediaType, func(d v1.Descriptor, _ span) {
		c := child{MediaType: shared.mediaType(d.MediaType), Digest: d.Digest, Size: d.Size, Data: d.Data, Platform: shared.platform(d.Platform)}
		if what, ok := d.Annotations[referenceType]; ok {
			if types[what] == nil {
				types[what] = map[string]string{referenceType: what}
				shared.bytes += bytesOf(what) + mapBytes
			}
			c.Annotations = types[what]
		}
		list = append(list, c)
		size += bytesOf(c.Digest) + bytesOf(c.Data)
	})
	if err != nil {
		return nil, nil, 0, err
	}
	if d := index.Subject; d != nil {
		subject = &v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Data: d.Data}
		size += int64(unsafe.Sizeof(*d)) + bytesOf(d.MediaType) + bytesOf(d.Digest) + bytesOf(d.Data)
	}
	size += int64(unsafe.Sizeof(readIndex{})+unsafe.Sizeof(indexKey{})) + shared.bytes + int64(cap(list))*childBytes
	return subject, list, size, nil
}

// descriptor gives a row, as much of it as is kept.
func (r *rows) descriptor(i int) v1.Descriptor {
	row := &r.list[i]
	d := v1.Descriptor{MediaType: row.mediaType, Digest: row.digest, Size: row.size, Platform: row.platform}
	if row.tag != "" {
		d.Annotations = map[string]string{refName: row.tag}
	}
	if row.rest == nil {
		return d
	}
	d.Data = row.rest.data
	for _, note := range row.rest.notes {
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[note.Key] = note.Value
	}
	return d
}

// bare gives a row without its annotations and platform.
func (r *rows) bare(i int) v1.Descriptor {
	row := &r.list[i]
	d := v1.Descriptor{MediaType: row.mediaType, Digest: row.digest, Size: row.size}
	if row.rest != nil {
		d.Data = row.rest.data
	}
	return d
}

func (r *rows) descriptors() iter.Seq2[int, v1.Descriptor] {
	return func(yield func(int, v1.Descriptor) bool) {
		for i := range r.list {
			if !yield(i, r.descriptor(i)) {
				return
			}
		}
	}
}

// of gives the rows with that digest, in their order.
func (r *rows) of(d digest.Digest) []int32 {
	return equalRange(r.byDigest, func(i int32) int { return cmp.Compare(r.list[i].digest, d) })
}

// first gives the first row with that digest, nil for none.
func (r *rows) first(d digest.Digest) *row {
	if list := r.of(d); len(list) > 0 {
		return &r.list[list[0]]
	}
	return nil
}

// tagged gives the rows with that tag, in their order; there should be one.
func (r *rows) tagged(tag string) []int32 {
	return equalRange(r.byTag, func(i int32) int { return cmp.Compare(r.list[i].tag, tag) })
}

// equalRange gives the part of a sorted list for which compare gives 0.
func equalRange(list []int32, compare func(i int32) int) []int32 {
	from, found := slices.BinarySearchFunc(list, 0, func(i int32, _ int) int { return compare(i) })
	if !found {
		return nil
	}
	to := from + 1
	for to < len(list) && compare(list[to]) == 0 {
		to++
	}
	return list[from:to]
}

// SomeTagsOf lists the tags that name the digest, sorted: the first most of them in index.json, without those over MaxName bytes, which no directory can have for a name.
func (r *rows) SomeTagsOf(d digest.Digest, most int) []string {
	tags := []string{}
	for _, i := range r.of(d) {
		if tag := r.list[i].tag; tag != "" && len(tag) <= MaxName {
			if tags = append(tags, tag); len(tags) == most {
				break
			}
		}
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}
