package layout

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// largeApps are apps in a registry whose index.json has that many bytes.
func largeApps(t *testing.T, size int, names ...string) *Registry {
	t.Helper()
	dir := t.TempDir()
	text := []byte(`{"schemaVersion":2,"manifests":[]}`)
	text = append(text, bytes.Repeat([]byte(" "), size-len(text))...)
	for _, name := range names {
		for file, data := range map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": text} {
			file = filepath.Join(dir, name, file)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func (r *Registry) remembers(t *testing.T, name string) bool {
	t.Helper()
	a, err := r.App(name)
	if err != nil {
		t.Fatal(err)
	}
	return a.size() > 0
}

func look(t *testing.T, r *Registry, name string) {
	t.Helper()
	if _, snap, err := r.Look(t.Context(), name); err != nil || snap.Err != nil {
		t.Fatal(err, snap.Err)
	}
}

// A large app is forgotten some time after its last use, and not before; a small one never. Then nothing runs any more.
func TestLargeAppsAreForgotten(t *testing.T) {
	r := largeApps(t, largeBytes+1, "large")
	small := largeApps(t, largeBytes, "small")
	for _, r := range []*Registry{r, small} {
		r.large.restAfter = time.Second
	}
	look(t, small, "small")
	for range 15 {
		look(t, r, "large")
		time.Sleep(100 * time.Millisecond)
		if !r.remembers(t, "large") {
			t.Fatal("it is forgotten while it is used")
		}
	}
	for end := time.Now().Add(10 * time.Second); r.remembers(t, "large"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is still remembered")
		}
	}
	if !small.remembers(t, "small") {
		t.Error("a small one is forgotten")
	}
	for _, r := range []*Registry{r, small} {
		r.large.mu.Lock()
		if r.large.timer != nil {
			t.Error("something runs with nothing to forget")
		}
		r.large.mu.Unlock()
	}
	look(t, r, "large")
}

// All apps together are remembered up to a limit; then the one goes that was used longest ago.
func TestLargeAppsMakeRoom(t *testing.T) {
	r := largeApps(t, mostBytes*2/5, "a", "b", "c")
	for _, name := range []string{"a", "b", "a", "c"} {
		look(t, r, name)
	}
	if a, b, c := r.remembers(t, "a"), r.remembers(t, "b"), r.remembers(t, "c"); !a || b || !c {
		t.Errorf("remembered: a %t, b %t, c %t", a, b, c)
	}
}
