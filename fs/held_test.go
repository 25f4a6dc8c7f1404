package fs

import (
	"fmt"
	"syscall"
	"testing"
)

func lists(n int, bytes int64) (list []lazyList) {
	for i := range n {
		list = append(list, lazyList{memory: i, bytes: bytes})
	}
	return list
}

// Lists are held up to a limit, of each user and of all; the same one counts once, and what is closed gives its place back.
func TestListsAreHeldUpToALimit(t *testing.T) {
	h := newHeld()
	all := lists(13, mostHeldEach/2)
	var releases []func()
	take := func(i int, uid uint32, limited bool, want syscall.Errno) {
		t.Helper()
		_, release, errno := h.take(all[i], uid, limited)
		if errno != want {
			t.Fatalf("list %d for %d: %v, want %v", i, uid, errno, want)
		}
		if errno == 0 {
			releases = append(releases, release)
		}
	}
	for range 100 {
		take(0, 1000, true, 0)
	}
	take(1, 1000, true, 0)
	take(2, 1000, true, syscall.ENFILE) // he has as much as a user may
	take(1, 1000, true, 0)              // there already
	take(2, 1001, true, 0)
	take(2, 1000, true, syscall.ENFILE) // also if another has it open
	for i := 3; i < 2*mostHeld/mostHeldEach; i++ {
		take(i, 0, false, 0)
	}
	take(9, 1002, true, syscall.ENFILE)
	for i := 9; i < 12; i++ {
		take(i, 0, false, 0) // root, whoever holds others
	}
	take(12, 0, false, syscall.ENFILE) // root has as much as all may
	for _, release := range releases {
		release()
	}
	take(9, 1000, true, 0)
	if releases[len(releases)-1](); h.sum != 0 || len(h.of) != 0 || len(h.lists) != 0 {
		t.Errorf("%d bytes of %d lists are held when all is closed", h.sum, len(h.lists))
	}
}

// Names tell a list from any other.
func TestNamesKey(t *testing.T) {
	seen := map[any]string{}
	for _, names := range [][]Name{nil, {{"a", 0}}, {{"a", 1 << 31}}, {{"ab", 0}}, {{"a", 0}, {"b", 0}}, {{"b", 0}, {"a", 0}}, {{"", 0}, {"ab", 0}}, {{"a\x00\x00\x00\x00\x00\x00\x00\x00b", 0}}} {
		list := listOf(names)
		if other, ok := seen[list.memory]; ok {
			t.Errorf("%v is taken for %s", names, other)
		}
		seen[list.memory] = fmt.Sprint(names)
	}
}
