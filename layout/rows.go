package layout

import (
	"cmp"
	"iter"
	"slices"
	"sync"

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
}

type row struct {
	digest    digest.Digest
	size      int64
	mediaType string
	tag       string // "" for none
	platform  *v1.Platform
	rest      *v1.Descriptor // what few have; nil if there is nothing
	at        span32
	again     bool // a row before it has this digest
}

// A span32 is where a row stands in index.json, after the comma and white space that may be before it.
type span32 struct{ start, end uint32 }

// rowsOf collects rows; add takes them one by one, and done ends it.
type rowsOf struct {
	rows
	platforms map[plainPlatform]*v1.Platform
}

// A plainPlatform is one without os.features.
type plainPlatform struct{ os, architecture, variant, version string }

func newRowsOf() *rowsOf {
	return &rowsOf{platforms: map[plainPlatform]*v1.Platform{}}
}

// add takes a row. It reports whether it keeps all of the descriptor.
func (b *rowsOf) add(d v1.Descriptor, at span) bool {
	r := row{digest: d.Digest, size: d.Size, mediaType: d.MediaType, platform: d.Platform, at: span32{uint32(at.start), uint32(at.end)}}
	if p := d.Platform; p != nil && p.OSFeatures == nil {
		key := plainPlatform{p.OS, p.Architecture, p.Variant, p.OSVersion}
		if same, ok := b.platforms[key]; ok {
			r.platform = same
		} else {
			b.platforms[key] = p
		}
	}
	others := len(d.Annotations)
	if r.tag = d.Annotations[refName]; r.tag != "" {
		others--
	}
	if others > 0 || d.URLs != nil || d.Data != nil || d.ArtifactType != "" {
		rest := d
		r.rest = &rest
	}
	b.list = append(b.list, r)
	return r.rest != nil
}

func (b *rowsOf) done() rows {
	r := b.rows
	r.list = slices.Clip(r.list)
	r.byDigest = make([]int32, len(r.list))
	for i, row := range r.list {
		r.byDigest[i] = int32(i)
		if row.tag != "" {
			r.byTag = append(r.byTag, int32(i))
		}
	}
	r.byTag = slices.Clip(r.byTag)
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
			r.said = *r.said.with(r.descriptor(int(first)), r.descriptor(int(i)))
		}
	}
	r.said.own = false
	for i, row := range r.list {
		if IsIndex(row.mediaType) && !row.again {
			r.indexes = append(r.indexes, int32(i))
		}
	}
	return r
}

// descriptor gives a row as it was read.
func (r *rows) descriptor(i int) v1.Descriptor {
	row := &r.list[i]
	if row.rest != nil {
		d := *row.rest
		d.Digest, d.Platform = row.digest, row.platform
		return d
	}
	d := v1.Descriptor{MediaType: row.mediaType, Digest: row.digest, Size: row.size, Platform: row.platform}
	if row.tag != "" {
		d.Annotations = map[string]string{refName: row.tag}
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
