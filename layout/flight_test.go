package layout

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A computation serves all who ask while it runs, and stops when the last of them leaves; what began before it was asked for does not count for Fresh.
func TestFlights(t *testing.T) {
	var f Flights[string, int]
	runs := 0
	release, stopped := make(chan struct{}), make(chan struct{})
	compute := func(ctx context.Context) (int, error) {
		runs++
		select {
		case <-release:
			return runs, nil
		case <-ctx.Done():
			close(stopped)
			return 0, ctx.Err()
		}
	}
	first, leave := context.WithCancel(t.Context())
	second, leaveToo := context.WithCancel(t.Context())
	done := make(chan error)
	for _, ctx := range []context.Context{first, second} {
		go func() {
			_, _, err := f.Do(ctx, "x", compute)
			done <- err
		}()
	}
	for f.waiting("x") < 2 {
		time.Sleep(time.Millisecond)
	}
	leave()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-stopped:
		t.Error("it stopped, and one still waited")
	case <-time.After(20 * time.Millisecond):
	}
	leaveToo()
	<-done
	<-stopped
	if runs != 1 {
		t.Errorf("it ran %d times for two", runs)
	}

	go f.Do(t.Context(), "y", compute)
	for f.waiting("y") == 0 {
		time.Sleep(time.Millisecond)
	}
	fresh := make(chan int)
	go func() {
		n, _ := f.Fresh(t.Context(), "y", compute)
		fresh <- n
	}()
	for f.waiting("y") < 2 {
		time.Sleep(time.Millisecond)
	}
	close(release)
	if n := <-fresh; n != 3 {
		t.Errorf("what came of run %d was taken for fresh", n)
	}
}

func (f *Flights[K, V]) waiting(key K) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if one := f.of[key]; one != nil {
		return one.waiting
	}
	return 0
}
