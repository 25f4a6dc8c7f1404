package fs

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"syscall"
)

// What the lists of open directories may take, in bytes of memory. An open of another list is refused when they take as much already: of all users, or of the one
// who asks, so that no user can keep all others from opening directories. Root and the mount's owner are refused for their own alone.
const (
	mostHeld     = 128 << 20
	mostHeldEach = 32 << 20 // for a user other than root and the mount's owner
)

// held counts the lists of open directories. All who open a directory in one state share one list.
type held struct {
	mu    sync.Mutex
	lists map[any]*heldList // by what tells a list from any other (lazyList.memory)
	sum   int64
	of    map[uint32]int64 // by the users who have them open
}

type heldList struct {
	list  lazyList
	opens map[uint32]int // by user
}

func newHeld() *held { return &held{lists: map[any]*heldList{}, of: map[uint32]int64{}} }

// take counts an open of a list, and gives that of those who opened it before. It counts for each user who has it open. Its errno is ENFILE, not EMFILE: it
// is not the caller's limit of open files that is reached, but the mount's. release has to be called once.
func (h *held) take(list lazyList, uid uint32, limited bool) (shared lazyList, release func(), errno syscall.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.lists[list.memory]
	if l == nil || l.opens[uid] == 0 { // another one for him
		if limited && (l == nil && h.sum >= mostHeld || h.of[uid] >= mostHeldEach) || h.of[uid] >= mostHeld {
			return lazyList{}, nil, syscall.ENFILE
		}
		if l == nil {
			l = &heldList{list, map[uint32]int{}}
			h.lists[list.memory] = l
			h.sum += list.bytes
		}
		h.of[uid] += l.list.bytes
	}
	l.opens[uid]++
	return l.list, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if l.opens[uid]--; l.opens[uid] > 0 {
			return
		}
		delete(l.opens, uid)
		if h.of[uid] -= l.list.bytes; h.of[uid] == 0 {
			delete(h.of, uid)
		}
		if len(l.opens) == 0 {
			delete(h.lists, l.list.memory)
			h.sum -= l.list.bytes
		}
	}, 0
}

// namesKey tells some names from any others, and says how many bytes they take in memory, about.
func namesKey(names []Name) (key [sha256.Size]byte, size int64) {
	h := sha256.New()
	for _, n := range names {
		binary.Write(h, binary.LittleEndian, [2]uint32{uint32(n.Mode), uint32(len(n.Name))})
		h.Write([]byte(n.Name))
		size += 64 + int64(len(n.Name))
	}
	h.Sum(key[:0])
	return key, size + 256
}
