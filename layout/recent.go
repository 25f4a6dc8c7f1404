package layout

import (
	"sync"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// recents are the last few small documents that were read in a registry, with what they were read from: who walks an image directory, or
// reads file after file of it, needs the same ones again and again. They never change.
type recents struct {
	manifests recent[Manifest]
	configs   recent[Config]
}

type recent[T any] struct {
	mu   sync.Mutex
	list [16]recently[T]
	next int
}

type recently[T any] struct {
	app   *App
	of    v1.Descriptor
	value *T
	seen  Seen
}

// maxRecent is how many bytes a document may have that is small.
const maxRecent = 16 << 10

func (e *recently[T]) is(a *App, d v1.Descriptor) bool {
	return e.app == a && e.of.Digest == d.Digest && e.of.Size == d.Size && e.of.MediaType == d.MediaType && d.Data == nil
}

// get gives what was read for a descriptor like that, nil for nothing. Whether it still is what would be read, seen can tell.
func (r *recent[T]) get(a *App, d v1.Descriptor) (*T, Seen) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.list {
		if e := &r.list[i]; e.is(a, d) {
			return e.value, e.seen
		}
	}
	return nil, Seen{}
}

func (r *recent[T]) put(a *App, d v1.Descriptor, value *T, seen Seen) {
	if d.Size > maxRecent || d.Data != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.next
	for i := range r.list {
		if r.list[i].is(a, d) {
			at = i
		}
	}
	if at == r.next {
		r.next = (r.next + 1) % len(r.list)
	}
	r.list[at] = recently[T]{a, v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, value, seen}
}
