package sign

import (
	"context"
	"sync"
	"time"
)

// flights make sure that what one key stands for is looked at once at a time, for all who want to know it.
type flights[K comparable, V any] struct {
	mu  sync.Mutex
	now map[K]*flight[V]
}

// A flight is a look that is under way, and those who wait for it.
type flight[V any] struct {
	done    chan struct{}
	stop    context.CancelFunc
	waiting int
	value   V
	err     error
}

// fly gives what do finds, by a call for this or an earlier fly with that key. do is told when it began, and stopped when nobody waits for it any more.
func (f *flights[K, V]) fly(ctx context.Context, key K, do func(ctx context.Context, began time.Time) (V, error)) (value V, err error) {
	f.mu.Lock()
	one := f.now[key]
	if one == nil {
		flying, stop := context.WithCancel(context.Background())
		one = &flight[V]{done: make(chan struct{}), stop: stop}
		if f.now == nil {
			f.now = map[K]*flight[V]{}
		}
		f.now[key] = one
		began := time.Now()
		go func() {
			one.value, one.err = do(flying, began)
			f.mu.Lock()
			f.land(key, one)
			f.mu.Unlock()
			close(one.done)
		}()
	}
	one.waiting++
	f.mu.Unlock()
	select {
	case <-one.done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if one.waiting--; one.waiting == 0 {
		one.stop()
		f.land(key, one)
	}
	if err != nil {
		return value, err
	}
	return one.value, one.err
}

// land ends a flight, so that the next fly begins another. f.mu is held.
func (f *flights[K, V]) land(key K, one *flight[V]) {
	if f.now[key] == one {
		delete(f.now, key)
	}
}
