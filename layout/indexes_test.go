package layout_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
)

// blanked is an index of that size with an image in it, most of it blanks.
func blanked(l *sample.Layout, size int, image v1.Descriptor) v1.Descriptor {
	text := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, v1.MediaTypeImageIndex, image.MediaType, image.Digest, image.Size)
	return l.Blob(v1.MediaTypeImageIndex, append(text, bytes.Repeat([]byte(" "), size-len(text))...))
}

// All indexes that an index.json leads to have one limit together, each counted once, and those that are not there not at all. Over it nothing is
// believed, whatever comes first.
func TestIndexesTogether(t *testing.T) {
	const half = layout.MaxIndexes / 2
	for _, row := range []struct {
		name string
		over bool
		make func(l *sample.Layout, image v1.Descriptor) (absent []v1.Descriptor)
	}{
		{"at the limit", false, func(l *sample.Layout, image v1.Descriptor) []v1.Descriptor {
			l.Tag("a", blanked(l, half, image))
			l.Tag("b", blanked(l, half-1<<10, image))
			l.Tag("c", l.Index(image))
			return nil
		}},
		{"a byte more", true, func(l *sample.Layout, image v1.Descriptor) []v1.Descriptor {
			l.Tag("a", blanked(l, half, image))
			l.Tag("b", blanked(l, half+1, image))
			return nil
		}},
		{"a small one more", true, func(l *sample.Layout, image v1.Descriptor) []v1.Descriptor {
			l.Tag("a", blanked(l, half, image))
			l.Tag("b", blanked(l, half-1<<10+1, image))
			l.Tag("c", l.Index(image))
			return nil
		}},
		{"in one another", true, func(l *sample.Layout, image v1.Descriptor) []v1.Descriptor {
			l.Tag("a", blanked(l, half, blanked(l, half, image)))
			l.Tag("b", blanked(l, 2000, image))
			return nil
		}},
		{"one of them under many names", false, func(l *sample.Layout, image v1.Descriptor) []v1.Descriptor {
			d := blanked(l, layout.MaxIndexes-1<<10, image)
			l.Tag("a", d)
			l.Tag("b", d)
			l.Tag("c", l.Index(d, d))
			return nil
		}},
		{"absent ones", false, func(l *sample.Layout, image v1.Descriptor) []v1.Descriptor {
			one, other := blanked(l, half, image), blanked(l, half+1, image)
			l.Tag("a", blanked(l, half+2, image))
			l.Tag("b", one)
			l.Tag("c", other)
			return []v1.Descriptor{one, other}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := sample.New()
			image := l.Image(sample.Linux("amd64"))
			nested := l.Image(sample.Linux("arm64"))
			absent := row.make(l, nested)
			l.Tag("image", image)
			files := l.Files()
			for _, d := range absent {
				delete(files, sample.Path(d.Digest))
			}
			dir := t.TempDir()
			must(t, files.WriteDir(filepath.Join(dir, "app")))
			reg, err := layout.Open(dir)
			must(t, err)
			defer reg.Close()
			app, err := reg.App("app")
			must(t, err)
			snap := snapshot(t, app)
			check := func(over bool, tag string) {
				t.Helper()
				e, err := snap.Tag(t.Context(), tag)
				must(t, err)
				if errors.Is(e.Err, layout.ErrLimit) != over || e.Err != nil && !over {
					t.Errorf("%s: %v", tag, e.Err)
				}
			}
			check(row.over, "image")
			check(row.over, "a")
			check(row.over, "b")
			fault, err := snap.Fault(t.Context())
			must(t, err)
			if errors.Is(fault, layout.ErrLimit) != row.over {
				t.Errorf("of the app: %v", fault)
			}
			entries, err := snap.Entries(t.Context())
			must(t, err)
			found := false
			for _, e := range entries {
				found = found || e.Digest == nested.Digest
				if row.over != errors.Is(e.Err, layout.ErrLimit) {
					t.Errorf("%s: %v", e.Digest, e.Err)
				}
			}
			if found == row.over || len(entries) < 3 {
				t.Errorf("entries: %d, with what is in an index: %t", len(entries), found)
			}
			if !row.over {
				return
			}
			if _, err := app.Annotate(t.Context(), func(now *layout.Snapshot) ([]layout.Edit, error) {
				m, err := now.Manifest(t.Context(), layout.Entry{Descriptor: image})
				return []layout.Edit{{Manifest: m, Set: []layout.Annotation{{Key: "a", Value: "b"}}}}, err
			}); !errors.Is(err, layout.ErrLimit) {
				t.Errorf("signing: %v", err)
			}
			if removed, _, err := app.Collect(t.Context(), 0, false); err != nil || len(removed) > 0 { // which reads all of them
				t.Errorf("gc: %v, %v", removed, err)
			}
			e, err := snap.Tag(t.Context(), "a")
			must(t, err)
			must(t, os.Remove(filepath.Join(dir, "app", sample.Path(e.Digest))))
			check(false, "image") // with no lag, of a few
		})
	}
}

// An index of more images than the limit is corrupt, of as many it is not, however they are spread over the indexes in it.
func TestImagesOfAnIndex(t *testing.T) {
	for _, more := range []int{0, 1} {
		l := sample.New()
		list := make([]v1.Descriptor, layout.MaxIndexImages+more)
		for i := range list {
			list[i] = v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(fmt.Append(nil, i)), Size: 1}
		}
		l.Tag("x", l.Index(append(slices.Clone(list[5000:]), l.Index(list[:6000]...))...))
		image := l.Image(sample.Linux("amd64"))
		l.Tag("y", image)
		snap := snapshot(t, appOf(t, l))
		e, err := snap.Tag(t.Context(), "x")
		must(t, err)
		images, err := snap.Images(t.Context(), e)
		if more == 0 && (err != nil || len(images) != len(list)) || more > 0 && !errors.Is(err, layout.ErrLimit) {
			t.Errorf("%d images: %d, %v", len(list), len(images), err)
		}
		if e, err := snap.Tag(t.Context(), "y"); err != nil || e.Err != nil {
			t.Errorf("beside it: %v, %v", err, e.Err)
		}
	}
}
