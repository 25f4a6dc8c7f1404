package layout

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A staging is the work directory of a registry in which archives are taken in.
// All that arrive in this process share it, and with keep it stays a while
// longer than the last of them, if that was published: to make one for each of a
// thousand archives that come one after the other costs as much as to write them.
type staging struct {
	keep atomic.Bool

	mu    sync.Mutex
	work  *work
	users int
	made  int
	timer *time.Timer
}

// keepFor is how long it stays.
const keepFor = 50 * time.Millisecond

// enter gives the work directory, and the name of a new directory in it.
func (s *staging) enter(registry int) (*work, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 && s.work != nil && !s.work.found() { // somebody cleaned up
		s.end()
	}
	if s.work == nil {
		clean(registry)
		w, err := newWork(registry)
		if err != nil {
			return nil, "", err
		}
		s.work = w
	}
	s.users++
	s.made++
	return s.work, fmt.Sprint(s.made), nil
}

func (s *staging) leave(published bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users--
	switch {
	case s.users > 0:
	case !published || !s.keep.Load():
		s.end()
	case s.timer == nil:
		s.timer = time.AfterFunc(keepFor, s.stop)
	default:
		s.timer.Reset(keepFor)
	}
}

// stop removes the work directory, if nobody uses it.
func (s *staging) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 && s.work != nil {
		s.end()
	}
}

// end removes the work directory. s.mu is held.
func (s *staging) end() {
	s.work.close()
	s.work = nil
}

// StopReceiving removes what Receive keeps for the next archive. None may be
// under way.
func (r *Registry) StopReceiving() {
	r.staging.keep.Store(false)
	r.staging.stop()
}
