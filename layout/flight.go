package layout

import (
	"context"
	"sync"
	"time"
)

// Flights computes what a key stands for once at a time, for all who ask for it meanwhile. The zero value is ready.
type Flights[K comparable, V any] struct {
	mu sync.Mutex
	of map[K]*flight[V]
}

// A flight is a computation that is under way, and those who wait for it.
type flight[V any] struct {
	began   time.Time
	done    chan struct{}
	stop    context.CancelFunc
	waiting int
	value   V
	err     error
}

// Do returns what compute gives, and when that began, which may be before it was asked for here. Whoever waits leaves when ctx ends; compute's
// own context ends when nobody waits any more.
func (f *Flights[K, V]) Do(ctx context.Context, key K, compute func(context.Context) (V, error)) (value V, began time.Time, err error) {
	f.mu.Lock()
	one := f.of[key]
	if one == nil {
		flying, stop := context.WithCancel(context.Background())
		one = &flight[V]{began: time.Now(), done: make(chan struct{}), stop: stop}
		if f.of == nil {
			f.of = map[K]*flight[V]{}
		}
		f.of[key] = one
		go func() {
			one.value, one.err = compute(flying)
			f.land(key, one)
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
		if f.of[key] == one {
			delete(f.of, key)
		}
	}
	if err != nil {
		return value, one.began, err
	}
	return one.value, one.began, one.err
}

// Fresh is Do without what began before it was asked for.
func (f *Flights[K, V]) Fresh(ctx context.Context, key K, compute func(context.Context) (V, error)) (V, error) {
	for asked := time.Now(); ; {
		value, began, err := f.Do(ctx, key, compute)
		if !began.Before(asked) {
			return value, err
		}
		if err := ctx.Err(); err != nil {
			var none V
			return none, err
		}
	}
}

func (f *Flights[K, V]) land(key K, one *flight[V]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of[key] == one {
		delete(f.of, key)
	}
}
