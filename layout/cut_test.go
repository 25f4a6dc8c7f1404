package layout_test

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
)

func TestCut(t *testing.T) {
	for _, c := range []string{"x", "é", "\u2028", "\U0001f600"} {
		for n := range 3 * layout.MaxText {
			text := strings.Repeat(c, n)
			got := layout.Short(text)
			begins, isCut := strings.CutSuffix(got, " ... (cut)")
			if isCut != (len(text) > layout.MaxText) || !strings.HasPrefix(text, begins) || !utf8.ValidString(got) ||
				len(got) > layout.MaxText || isCut && len(got) <= layout.MaxText-len(c) {
				t.Fatalf("%d times %q: %q", n, c, got)
			}
		}
	}
}

// No error and no text about a layout is long because of a text in it.
func TestErrorsAreShort(t *testing.T) {
	long := strings.Repeat("x\u202e", 1<<16)
	manifest := func(text string) error {
		_, err := layout.ParseManifest([]byte(text), v1.MediaTypeImageManifest)
		return err
	}
	index := func(text, mediaType string) error {
		_, err := layout.ParseIndex([]byte(text), mediaType)
		return err
	}
	_, badDigest := layout.ParseDigest("sha256:" + long)
	_, badAlgorithm := layout.ParseDigest(long)
	layer := func(mediaType string) error {
		return fmt.Errorf("%s", layout.LayerProblem(v1.Descriptor{MediaType: mediaType, Digest: digest.FromString("a")}, digest.FromString("b")))
	}
	note := func(name string) v1.Descriptor { return v1.Descriptor{Annotations: map[string]string{name: ""}} }
	l := sample.New()
	image := l.Image(sample.Linux("amd64"))
	other := image
	other.MediaType = long
	l.Tag("x", image)
	l.Add(other)
	app := appOf(t, l)
	snap, err := app.Snapshot(t.Context())
	must(t, err)
	x, err := snap.Tag(t.Context(), "x")
	must(t, err)
	for name, err := range map[string]error{
		"its own media type":            manifest(`{"schemaVersion":2,"mediaType":"` + long + `"}`),
		"the media type of no kind":     index(`{"schemaVersion":2,"mediaType":"`+long+`"}`, ""),
		"the media type of a manifest":  func() error { _, err := layout.ParseManifest([]byte(`{}`), long); return err }(),
		"the media type of an index":    index(`{}`, long),
		"a number":                      manifest(`{"schemaVersion":` + strings.Repeat("1", 1<<16) + `}`),
		"a fraction":                    manifest(`{"schemaVersion":1.` + strings.Repeat("1", 1<<16) + `}`),
		"a name":                        manifest(`{"annotations":{"` + long + `":1}}`),
		"a name that is another":        manifest(`{"Layers\u0000` + long + `":1}`),
		"a name twice":                  manifest(`{"` + long + `":1,"` + long + `":1}`),
		"names in one another":          manifest(strings.Repeat(`{"`+long[:1<<12]+`":`, 40) + `?`),
		"a digest":                      badDigest,
		"an algorithm":                  badAlgorithm,
		"rootfs.type":                   layout.CheckRootFS(&layout.Manifest{Doc: &v1.Manifest{}}, &layout.Config{Doc: &v1.Image{RootFS: v1.RootFS{Type: long}}}),
		"an encrypted layer":            layer(long + "+encrypted"),
		"an unknown layer":              layer(long),
		"a layer's annotation":          fmt.Errorf("%s", layout.AnnotatedTable(note("containerd.io/snapshot/"+long))),
		"a manifest's annotation":       fmt.Errorf("%s", layout.TableOf(&layout.Manifest{Doc: &v1.Manifest{Annotations: note("com.amazon.soci." + long).Annotations}})),
		"a platform":                    fmt.Errorf("%s", layout.PlatformString(v1.Platform{OS: long, Architecture: long, Variant: long})),
		"descriptors that do not agree": x.Err,
	} {
		if err == nil || len(err.Error()) < 30 {
			t.Errorf("%s: %v", name, err)
		} else if n := len(err.Error()); n > 3<<10 {
			t.Errorf("%s: %d bytes", name, n)
		}
	}
}
