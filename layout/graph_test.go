package layout_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
)

// One manifest may stand for two platforms, as one for arm/v6 does on arm/v7.
func TestImagesOfTwoPlatforms(t *testing.T) {
	l := sample.New()
	v6 := l.Image(sample.Linux("arm/v6"))
	v7 := v6
	v7.Platform = &v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	l.Tag("x", l.Index(v6, l.Index(v7, v6), v7))
	snap := snapshot(t, appOf(t, l))
	e, err := snap.Tag(t.Context(), "x")
	must(t, err)
	images, err := snap.Images(t.Context(), e)
	must(t, err)
	var names []string
	for _, image := range images {
		names = append(names, layout.PlatformName(*image.Platform))
		if image.Digest != v6.Digest || image.Err != nil {
			t.Errorf("%+v", image)
		}
	}
	if !slices.Equal(names, []string{"linux-arm-v6", "linux-arm-v7"}) {
		t.Errorf("platforms %q", names)
	}
}

// 40,000 tags on one digest are 40,000 steps, and not their square.
func TestManyTagsOnOneDigest(t *testing.T) {
	const tags = 40_000
	l := sample.New()
	image := l.Image(sample.Linux("amd64"))
	for i := range tags {
		l.Tag(fmt.Sprint(i), image)
	}
	snap := snapshot(t, appOf(t, l))
	start := time.Now()
	top := must2(snap.Top(t.Context()))
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	if len(top) != tags || top[0].Err != nil || top[tags-1].Digest != image.Digest {
		t.Errorf("%d entries, %+v", len(top), top[0])
	}
}

// Two layers of one digest have one size.
func TestLayersThatDisagree(t *testing.T) {
	l := sample.New()
	layer := l.Blob(v1.MediaTypeImageLayer, sample.Plain("a", "b").Blob())
	config := l.Document(v1.MediaTypeImageConfig, v1.Image{})
	for name, change := range map[string]func(d *v1.Descriptor){
		"size": func(d *v1.Descriptor) { d.Size++ },
		"":     func(*v1.Descriptor) {},
	} {
		other := layer
		change(&other)
		d := l.Manifest(v1.Manifest{Config: config, Layers: []v1.Descriptor{layer, other}})
		_, err := layout.ParseManifest(l.Bytes(d), d.MediaType)
		if name == "" {
			must(t, err)
			continue
		}
		want(t, err, layout.ErrCorrupt, "its descriptors disagree")
	}
}
