package fs

import "time"

// handed is an Item that an Open computed, and answered with ESTALE because its
// node is that of an older state. The kernel walks the path again by itself,
// in the same open(2); its Lookup takes the Item over.
type handed struct {
	path string
	item *Item
	at   time.Time
}

// accepts is the inode that such a Lookup gave. The Open that follows serves it
// as it is: the kernel repeats an open only once after ESTALE, and what
// the Lookup gave is younger than the open(2).
type accepts struct {
	ino uint64
	at  time.Time
}

func (m *mounted) handOver(pid uint32, path string, item *Item) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.handed) > 1024 {
		clear(m.handed)
	}
	m.handed[pid] = handed{path, item, time.Now()}
}

func (m *mounted) takeOver(pid uint32, path string) *Item {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, ok := m.handed[pid]
	if !ok || h.path != path {
		return nil
	}
	delete(m.handed, pid)
	if time.Since(h.at) > timeout {
		return nil
	}
	return h.item
}

func (m *mounted) accept(pid uint32, ino uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.accepts) > 1024 {
		clear(m.accepts)
	}
	m.accepts[pid] = accepts{ino, time.Now()}
}

func (m *mounted) accepted(pid uint32, ino uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.accepts[pid]
	if ok {
		delete(m.accepts, pid)
	}
	return ok && a.ino == ino && time.Since(a.at) <= timeout
}
