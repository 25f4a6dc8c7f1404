package layout

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
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
	all, _ := a.size()
	return all > 0
}

// indexed are apps with one nested index each, of that many bytes.
func indexed(t *testing.T, size int, names ...string) *Registry {
	t.Helper()
	r := largeApps(t, 1<<10, names...)
	text := []byte(`{"schemaVersion":2,"manifests":[]}`)
	text = append(text, bytes.Repeat([]byte(" "), size-len(text))...)
	d := digest.FromBytes(text)
	for _, name := range names {
		blobs := filepath.Join(r.Path(), name, "blobs", "sha256")
		if err := os.MkdirAll(blobs, 0o755); err != nil {
			t.Fatal(err)
		}
		index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, v1.MediaTypeImageIndex, d, size)
		for file, data := range map[string][]byte{filepath.Join(blobs, d.Encoded()): text, filepath.Join(r.Path(), name, "index.json"): []byte(index)} {
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return r
}

func (r *Registry) remembersIndexes(t *testing.T, name string) bool {
	t.Helper()
	a, err := r.App(name)
	if err != nil {
		t.Fatal(err)
	}
	_, nested := a.size()
	return nested > 0
}

func look(t *testing.T, r *Registry, name string) {
	t.Helper()
	_, snap, err := r.Look(t.Context(), name)
	if err != nil || snap.Err != nil {
		t.Fatal(err, snap.Err)
	}
	if _, err := snap.Entries(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The large indexes of an app are forgotten some time after its last use, and not before; small ones never. Then nothing runs any more.
func TestLargeAppsAreForgotten(t *testing.T) {
	r := indexed(t, largeBytes+1, "large")
	small := indexed(t, largeBytes, "small")
	for _, r := range []*Registry{r, small} {
		r.large.restAfter = time.Second
	}
	look(t, small, "small")
	for range 15 {
		look(t, r, "large")
		time.Sleep(100 * time.Millisecond)
		if !r.remembersIndexes(t, "large") {
			t.Fatal("it is forgotten while it is used")
		}
	}
	for end := time.Now().Add(10 * time.Second); r.remembersIndexes(t, "large"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is still remembered")
		}
	}
	if !small.remembersIndexes(t, "small") {
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
