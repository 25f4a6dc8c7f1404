package layout

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// appsOf are apps in a registry with that index.json.
func appsOf(t *testing.T, text string, names ...string) *Registry {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		for file, data := range map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`, "index.json": text} {
			file = filepath.Join(dir, name, file)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
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

// manyIn is an index of that many descriptors. A %d in what else is in each is its number.
func manyIn(n int, more string) string {
	var list []string
	for i := range n {
		d := digest.FromString(fmt.Sprint("image ", i))
		list = append(list, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":7%s}`, v1.MediaTypeImageManifest, d, strings.ReplaceAll(more, "%d", fmt.Sprint(i))))
	}
	return `{"schemaVersion":2,"manifests":[` + strings.Join(list, ",") + `]}`
}

func (r *Registry) remembers(t *testing.T, name string) bool {
	t.Helper()
	a, err := r.App(name)
	if err != nil {
		t.Fatal(err)
	}
	memory, _ := a.size()
	return memory > 0
}

// indexed are apps with one nested index each, of that many bytes.
func indexed(t *testing.T, size int, names ...string) *Registry {
	t.Helper()
	r := appsOf(t, `{"schemaVersion":2,"manifests":[]}`, names...)
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
	r := appsOf(t, manyIn(10, ""), "a", "b", "c")
	look(t, r, "a")
	r.large.most = r.large.sum * 5 / 2
	for _, name := range []string{"b", "a", "c"} {
		look(t, r, name)
	}
	if a, b, c := r.remembers(t, "a"), r.remembers(t, "b"), r.remembers(t, "c"); !a || b || !c {
		t.Errorf("remembered: a %t, b %t, c %t", a, b, c)
	}
}

// Also of very many small apps only some are remembered, and of those that are gone nothing.
func TestSmallAppsMakeRoom(t *testing.T) {
	var names []string
	for i := range 400 {
		names = append(names, fmt.Sprint("app", i))
	}
	r := appsOf(t, manyIn(3, ""), names...)
	look(t, r, names[0])
	r.large.most = r.large.sum * 100
	for _, name := range names {
		look(t, r, name)
	}
	remembered := 0
	for _, name := range names {
		if r.remembers(t, name) {
			remembered++
		}
	}
	if remembered < 80 || remembered > 100 {
		t.Errorf("%d are remembered, and there is place for 100", remembered)
	}
	if r.large.sum > r.large.most {
		t.Errorf("%d bytes are remembered, and the limit is %d", r.large.sum, r.large.most)
	}
	for _, name := range names {
		if err := os.RemoveAll(filepath.Join(r.Path(), name)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.App(name); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	}
	if r.large.sum != 0 || len(r.large.apps) != 0 {
		t.Errorf("of what is gone %d apps with %d bytes are remembered", len(r.large.apps), r.large.sum)
	}
}

// What readings take in memory is counted, about, whatever the documents say; and what nobody asks for takes nothing.
func TestMemoryIsCounted(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	data := `,"data":"` + strings.Repeat("QUJD", 500) + `"`
	features := `,"platform":{"os":"linux","architecture":"amd64","os.features":["x"` + strings.Repeat(`,""`, 20_000) + `]}`
	for name, text := range map[string]string{
		"plain":           manyIn(20_000, ""),
		"tags":            manyIn(20_000, `,"annotations":{"org.opencontainers.image.ref.name":"tag-%d"}`),
		"empty tags":      manyIn(20_000, `,"annotations":{"org.opencontainers.image.ref.name":""}`),
		"long names":      manyIn(20_000, `,"annotations":{"io.containerd.image.name":"`+strings.Repeat("x", 300)+`%d"}`),
		"platforms":       manyIn(20_000, `,"platform":{"os":"linux","architecture":"%d","variant":"v%d"}`),
		"inline data":     manyIn(5_000, data),
		"contradictions":  strings.Replace(manyIn(20_000, ""), `"manifests":[`, `"manifests":[`+strings.TrimSuffix(strings.SplitN(strings.ReplaceAll(manyIn(20_000, ""), `"size":7`, `"size":8`), "[", 2)[1], "]}")+",", 1),
		"what is dropped": manyIn(20, features),
	} {
		r := appsOf(t, text, "a")
		before := heap()
		_, snap, err := r.Look(t.Context(), "a")
		if err != nil || snap.Err != nil {
			t.Fatal(name, err, snap.Err)
		}
		taken, counted := heap()-before, r.large.sum
		t.Logf("%s: %d bytes of text take %d bytes, and %d are counted", name, len(text), taken, counted)
		if some := int64(64 << 10); taken > counted*3/2+some || counted > max(taken, 0)*2+some { // what others leave meanwhile may be more than it takes
			t.Errorf("%s: %d bytes of text take %d bytes, and %d are counted", name, len(text), taken, counted)
		}
		runtime.KeepAlive(snap)
	}
}
