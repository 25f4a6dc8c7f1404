package layout_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"irfs/internal/irfstest"
	"irfs/layout"
	"irfs/layout/sample"
)

// The app is moved away while it is being changed, and another one takes its name: nobody gets to hear that this one was changed.
func TestAnnotateWhatIsMovedAway(t *testing.T) {
	l := small()
	dir := writeApp(t, l)
	app := appIn(t, dir)
	index, err := os.ReadFile(dir + "/app/index.json")
	must(t, err)
	var before map[string]string
	_, err = app.Annotate(context.Background(), func(snap *layout.Snapshot) ([]layout.Edit, error) {
		e, err := snap.Tag(t.Context(), "x")
		must(t, err)
		m, err := snap.Manifest(t.Context(), e)
		must(t, os.Rename(dir+"/app", dir+"/away"))
		must(t, l.WriteDir(dir+"/app"))
		before = tree(t, dir+"/app")
		return []layout.Edit{{Manifest: m, Set: []layout.Annotation{{Key: "key", Value: "value"}}}}, err
	})
	want(t, err, layout.ErrMoved, "another one is")
	same(t, dir+"/app", before)
	if now, err := os.ReadFile(dir + "/away/index.json"); err != nil || !bytes.Equal(now, index) {
		t.Errorf("what was moved away: %s, %v", now, err)
	}
	noLeftOvers(t, dir)
}

// A file of another size than the new blob's cannot be it, and nobody reads 20 GiB to find out.
func TestAnnotateOverAnEndlessFile(t *testing.T) {
	l := small()
	change, err := annotate(context.Background(), appOf(t, l), "x", "value")
	must(t, err)
	for old, is := range change.Moved {
		dir := writeApp(t, l)
		file := filepath.Join(dir, "app", sample.Path(is))
		write(t, file, "")
		if err := os.Truncate(file, 20<<30); err != nil {
			irfstest.Skip(t, "no sparse files: "+err.Error())
		}
		start := time.Now()
		again, err := annotate(context.Background(), appIn(t, dir), "x", "value")
		must(t, err)
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("it took %v", d)
		}
		if again.Moved[old] != is {
			t.Errorf("moved %v, want %v", again.Moved, change.Moved)
		}
		if data, err := os.ReadFile(file); err != nil || is.Algorithm().FromBytes(data) != is {
			t.Errorf("%d bytes, %v", len(data), err)
		}
	}
}
