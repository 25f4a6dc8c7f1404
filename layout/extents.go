package layout

import "github.com/google/btree"

// An extent is a range of bytes of an archive.
type extent struct{ start, end int64 }

// Extents are ranges of bytes that lie apart from each other, in their order. To change them takes time that grows with
// the logarithm of how many there are.
type extents struct {
	tree *btree.BTreeG[extent] // nil for none
}

func (x *extents) len() int {
	if x.tree == nil {
		return 0
	}
	return x.tree.Len()
}

// first returns the first of them; false if there is none.
func (x *extents) first() (extent, bool) {
	if x.tree == nil {
		return extent{}, false
	}
	return x.tree.Min()
}

func (x *extents) dropFirst() { x.tree.DeleteMin() }

// add joins e with those that it overlaps or touches.
func (x *extents) add(e extent) {
	if e.start == e.end {
		return
	}
	if x.tree == nil {
		const degree = 16
		x.tree = btree.NewG(degree, func(a, b extent) bool { return a.start < b.start })
	}
	for {
		var joined extent
		found := false
		x.tree.DescendLessOrEqual(extent{start: e.end}, func(other extent) bool { // the last that begins before e's end, or there
			joined, found = other, other.end >= e.start
			return false
		})
		if !found {
			break
		}
		x.tree.Delete(joined)
		e = extent{min(e.start, joined.start), max(e.end, joined.end)}
	}
	x.tree.ReplaceOrInsert(e)
}

// cut drops what lies at size and behind.
func (x *extents) cut(size int64) {
	for x.len() > 0 {
		last, _ := x.tree.DeleteMax()
		if last.start < size {
			x.tree.ReplaceOrInsert(extent{last.start, min(last.end, size)})
			return
		}
	}
}
