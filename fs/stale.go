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

// staleFor is how long a refusal is remembered at most. A machine under load
// takes its time between two requests of one open(2).
const staleFor = 10 * time.Second

// again says whether this thread was just refused at this path, and remembers
// the refusal if not: the caller is to answer ESTALE then.
func (s *stale) again(pid uint32, path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.at[pid]
	delete(s.at, pid)
	if ok && r.path == path && time.Since(r.when) < staleFor {
		return true
	}
	if len(s.at) >= 1024 {
		clear(s.at)
	}
	s.at[pid] = refusal{path, time.Now()}
	return false
}

// done forgets a refusal, for the open went well.
func (s *stale) done(pid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.at, pid)
}
