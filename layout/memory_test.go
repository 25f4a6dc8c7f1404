package layout

import (
	"runtime"
	"testing"
	"time"
)

// The memory that was had goes back to the system once the last work has ended, and not before.
func TestMemoryIsGivenBack(t *testing.T) {
	const size = 256 << 20
	free := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapReleased
	}
	r := resting{after: 50 * time.Millisecond}
	one, two := r.begin(), r.begin()
	work := make([]byte, size)
	for i := range work {
		work[i] = 1
	}
	runtime.KeepAlive(work)
	work = nil
	before := free()
	one()
	one() // which counts once
	time.Sleep(200 * time.Millisecond)
	if n := free(); n > before+size/2 {
		t.Errorf("%d bytes were given back before the last work had ended", n-before)
	}
	two()
	for end := time.Now().Add(5 * time.Second); free() < before+size/2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("of %d bytes %d were given back", size, free()-before)
		}
	}
}
