package layout

import (
	"sync"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// recent is the last few small documents that were read, with what they were read from: who walks an image directory, or reads file after
// file of it, needs the same ones again and again. What is in it never changes.
type recent[T any] struct {
	mu   sync.Mutex
	list [2]recently[T]
	next int
}

type recently[T any] struct {
	of    v1.Descriptor
	value *T
	seen  Seen
}

// maxRecent is how many bytes a document may have.
const maxRecent = 16 << 10

// get gives what was read for a descriptor like that, nil for nothing. Whether it still is what would be read, seen can tell.
func (r *recent[T]) get(d v1.Descriptor) (*T, Seen) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.list {
		if e := &r.list[i]; e.value != nil && e.of.Digest == d.Digest && e.of.Size == d.Size && e.of.MediaType == d.MediaType && d.Data == nil {
			return e.value, e.seen
		}
	}
	return nil, Seen{}
}

func (r *recent[T]) put(d v1.Descriptor, value *T, seen Seen) {
	if d.Size > maxRecent || d.Data != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list[r.next] = recently[T]{v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, value, seen}
	r.next = (r.next + 1) % len(r.list)
}
