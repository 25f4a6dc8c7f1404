package fs

import (
	"testing"
	"time"
)

// A refusal is forgotten when nobody comes back, and not because an answer took long.
func TestRefusalsAreRemembered(t *testing.T) {
	for _, row := range []struct {
		name   string
		before time.Duration // between the refusal and the lookup
		lookup time.Duration // how long it takes
		path   string        // that is looked up
		want   bool
	}{
		{"at once", 0, 0, "x/verify", true},
		{"a long lookup", 0, 3 * staleFor, "x/verify", true},
		{"a late lookup", 2 * staleFor, 0, "x/verify", false},
		{"a long lookup of something else", 0, 3 * staleFor, "y/verify", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			now := time.Now()
			refused := now.Add(-row.before - row.lookup)
			s := stale{at: map[uint32]refusal{1: {"x/verify", refused}}}
			s.lookedUp(1, row.path, refused.Add(row.before))
			if got := s.take(2, "x/verify"); got {
				t.Error("another thread's refusal was taken")
			}
			if got := s.take(1, "x/verify"); got != row.want {
				t.Errorf("remembered: %v", got)
			}
			if s.take(1, "x/verify") {
				t.Error("taken twice")
			}
		})
	}
}
