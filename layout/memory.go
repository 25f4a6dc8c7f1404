package layout

import (
	"runtime/debug"
	"sync"
	"time"
)

// heavy is the work of this process that takes much memory for a while.
var heavy = resting{after: freeAfter}

// Heavy notes that such work begins; the function that it returns has to be called once, when that has ended.
func Heavy() (end func()) { return heavy.begin() }

// A resting gives memory back to the system some time after the last work that took much of it: Go's runtime alone keeps what it
// once had for as long as little is made anew.
type resting struct {
	after time.Duration

	mu    sync.Mutex
	going int
	timer *time.Timer
}

// freeAfter is how long nothing heavy has to go on. A collection takes time that grows with what is kept.
const freeAfter = 10 * time.Second

func (r *resting) begin() (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.going++
	if r.timer != nil {
		r.timer.Stop()
	}
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.going--; r.going == 0 {
			r.timer = time.AfterFunc(r.after, debug.FreeOSMemory)
		}
	})
}
