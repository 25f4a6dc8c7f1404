package fs

import (
	"sync"
	"time"
)

// stale remembers who was answered ESTALE, and where. The kernel then walks
// the path again by itself, within the same open(2), but only once: a second
// ESTALE would reach the caller, and under a steady stream of changes it would.
// So a second open that finds the inode outdated again, or was given one that
// another process looked up, is served what is there now, past the page cache.
type stale struct {
	mu sync.Mutex
	at map[uint32]refusal // by thread id
}

type refusal struct {
	path string
	when time.Time
}

// staleFor is how long a refusal is remembered between two requests of one
// open(2), at most: a machine under load takes its time. What the answers take
// does not count, for a look may take longer than that.
const staleFor = 10 * time.Second

// take says whether this thread was just refused at this path, and forgets what
// was remembered of the thread.
func (s *stale) take(pid uint32, path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.at[pid]
	delete(s.at, pid)
	return ok && r.path == path && time.Since(r.when) < staleFor
}

// refuse remembers that this thread is refused at this path.
func (s *stale) refuse(pid uint32, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.at) >= 1024 {
		clear(s.at)
	}
	s.at[pid] = refusal{path, time.Now()}
}

// lookedUp begins the time of a refusal anew: the kernel's next request is the
// open. It reports whether there was one.
func (s *stale) lookedUp(pid uint32, path string, began time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.at[pid]
	if !ok || r.path != path || began.Sub(r.when) >= staleFor {
		return false
	}
	s.at[pid] = refusal{path, time.Now()}
	return true
}
