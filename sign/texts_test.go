package sign_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
	"irfs/sign"
)

// However long the texts are that a layout has, those about it are short, and the word is the one that it would be with shorter ones.
func TestTextsOfALayoutAreCut(t *testing.T) {
	long := strings.Repeat("x\u202e", 1<<18)
	longHex := strings.Repeat("30", 1<<19)
	image := func(l *sample.Layout, change func(config *v1.Image, m *v1.Manifest)) v1.Descriptor {
		layer := sample.Gzip("a", "b")
		config := v1.Image{Platform: sample.Linux("amd64"), RootFS: v1.RootFS{Type: "layers"}}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.DiffID())
		m := v1.Manifest{Layers: []v1.Descriptor{l.Blob(v1.MediaTypeImageLayerGzip, layer.Blob())}}
		change(&config, &m)
		if m.Config.Digest == "" {
			m.Config = l.Document(v1.MediaTypeImageConfig, config)
		}
		return l.Manifest(m)
	}
	raw := func(l *sample.Layout, mediaType, text string) v1.Descriptor { return l.Blob(mediaType, []byte(text)) }
	quoted := func(text string) string {
		b, err := json.Marshal(text)
		must(t, err)
		return string(b)
	}
	plain := func(*v1.Image, *v1.Manifest) {}
	for name, row := range map[string]struct {
		full   bool // it is so only with the layers
		status sign.Status
		reason string
		make   func(l *sample.Layout) v1.Descriptor // what has the tag
	}{
		"two media types": {false, sign.Corrupt, "its descriptors disagree", func(l *sample.Layout) v1.Descriptor {
			d := image(l, plain)
			other := d
			other.MediaType = long
			l.Add(other)
			return d
		}},
		"rootfs.type": {false, sign.Corrupt, "config: rootfs.type is", func(l *sample.Layout) v1.Descriptor {
			return image(l, func(config *v1.Image, _ *v1.Manifest) { config.RootFS.Type = long })
		}},
		"platform of a config": {false, sign.Unsigned, "annotations: ", func(l *sample.Layout) v1.Descriptor {
			return image(l, func(config *v1.Image, _ *v1.Manifest) {
				config.OS, config.Architecture, config.Variant = long, long, long
			})
		}},
		"platform of a descriptor": {false, sign.Unsigned, "annotations: ", func(l *sample.Layout) v1.Descriptor {
			d := image(l, plain)
			d.Platform = &v1.Platform{OS: "linux", Architecture: "arm", Variant: long}
			return d
		}},
		"platforms in an index": {false, sign.Unsigned, "annotations: ", func(l *sample.Layout) v1.Descriptor {
			d := image(l, plain)
			d.Platform = &v1.Platform{OS: long, Architecture: long}
			return l.Index(d)
		}},
		"of no known media type": {false, sign.Unsigned, "kind: an artifact", func(l *sample.Layout) v1.Descriptor { return raw(l, long, "{}") }},
		"a member up to a NUL": {false, sign.Corrupt, "the document has layers", func(l *sample.Layout) v1.Descriptor {
			return raw(l, "text/plain", `{`+quoted("layers\x00"+long)+`:[]}`)
		}},
		"an artifact's types": {false, sign.Unsigned, "kind: an artifact, not an image (of type", func(l *sample.Layout) v1.Descriptor {
			return l.Manifest(v1.Manifest{ArtifactType: long[:1<<19], Config: l.Blob(long[:1<<19]+"x", []byte("{}")), Layers: []v1.Descriptor{l.Blob(long[:1<<19]+"y", []byte("text"))}})
		}},
		"the document's media type": {false, sign.Corrupt, "is not that of the descriptor", func(l *sample.Layout) v1.Descriptor {
			return raw(l, v1.MediaTypeImageManifest, `{"schemaVersion":2,"mediaType":`+quoted(long)+`}`)
		}},
		"a digest": {false, sign.Corrupt, "is not a digest", func(l *sample.Layout) v1.Descriptor {
			return raw(l, v1.MediaTypeImageManifest, `{"schemaVersion":2,"config":{"digest":`+quoted(long)+`}}`)
		}},
		"a number": {false, sign.Corrupt, "is too large", func(l *sample.Layout) v1.Descriptor {
			return raw(l, v1.MediaTypeImageManifest, `{"schemaVersion":`+strings.Repeat("1", 1<<20)+`}`)
		}},
		"an annotation's name": {false, sign.Corrupt, "found a number, want a string", func(l *sample.Layout) v1.Descriptor {
			return raw(l, v1.MediaTypeImageManifest, `{"schemaVersion":2,"annotations":{`+quoted(long)+`:1}}`)
		}},
		"a layer's media type": {true, sign.Corrupt, "but it begins like gzip", func(l *sample.Layout) v1.Descriptor {
			return image(l, func(_ *v1.Image, m *v1.Manifest) { m.Layers[0].MediaType = long + ".tar" })
		}},
		"an annotation that brings a table": {true, sign.Corrupt, "layers: layer 1 brings a table of contents (containerd.io/snapshot/x", func(l *sample.Layout) v1.Descriptor {
			d := image(l, func(_ *v1.Image, m *v1.Manifest) {
				m.Layers[0].Annotations = map[string]string{"containerd.io/snapshot/" + long: ""}
			})
			return signed(t, l, d, vendor, ca, nil)
		}},
		"an annotation of the manifest that brings one": {true, sign.Corrupt, "layers: the manifest brings a table of contents (com.amazon.soci.x", func(l *sample.Layout) v1.Descriptor {
			return signed(t, l, image(l, plain), vendor, ca, func(a map[string]string) { a["com.amazon.soci."+long] = "" })
		}},
		"a signature": {false, sign.Invalid, sign.SignatureAnnotation + ": malformed: over 1024 bytes", func(l *sample.Layout) v1.Descriptor {
			return signed(t, l, image(l, plain), vendor, ca, func(a map[string]string) { a[sign.SignatureAnnotation] = longHex })
		}},
		"a vendor key": {false, sign.Invalid, sign.VendorPubAnnotation + ": malformed: over 1024 bytes", func(l *sample.Layout) v1.Descriptor {
			return signed(t, l, image(l, plain), vendor, ca, func(a map[string]string) { a[sign.VendorPubAnnotation] = longHex })
		}},
		"a certificate": {false, sign.Invalid, sign.CertificateAnnotation + ": malformed: over 1024 bytes", func(l *sample.Layout) v1.Descriptor {
			return signed(t, l, image(l, plain), vendor, ca, func(a map[string]string) { a[sign.CertificateAnnotation] = longHex })
		}},
		"another tag": {false, sign.Unsigned, "annotations: ", func(l *sample.Layout) v1.Descriptor {
			d := image(l, plain)
			l.Tag(long, d)
			return d
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := sample.New()
			l.Tag("x", row.make(l))
			app, _ := appOf(t, l)
			verifier := sign.NewVerifier(trust(ca))
			for _, full := range []bool{false, true} {
				if row.full && !full {
					continue
				}
				v := verify(t, verifier, app, "x", full)
				if v.Status != row.status || !strings.Contains(v.Reason, row.reason) {
					t.Errorf("full %v: %s, %.300q; want %s, %q", full, v.Status, v.Reason, row.status, row.reason)
				}
				snap, e := resolve(t, app, "x")
				json := v.Report(app, snap, e).JSON()
				for what, most := range map[string][2]int{
					"the reason": {len(v.Reason), 2 << 10}, "the platform": {len(v.Platform), layout.MaxText},
					"the text": {len(v.Text()), 8 << 10}, "the JSON": {len(json), 64 << 10},
				} {
					if most[0] > most[1] {
						t.Errorf("full %v: %s has %d bytes", full, what, most[0])
					}
				}
				if !strings.Contains(string(json), `"tags":["x"]`) {
					t.Errorf("full %v: %.300s", full, json)
				}
			}
		})
	}
}

// A tag that is given twice, and is long, makes no long reason.
func TestLongTagThatIsGivenTwice(t *testing.T) {
	l := sample.New()
	tag := strings.Repeat("x", 1<<20)
	l.Tag(tag, l.Image(sample.Linux("amd64")))
	l.Tag(tag, l.Image(sample.Linux("arm64")))
	app, _ := appOf(t, l)
	v := verify(t, sign.NewVerifier(trust(ca)), app, tag, false)
	if v.Status != sign.Corrupt || len(v.Reason) > 2<<10 {
		t.Errorf("%s, %d bytes", v.Status, len(v.Reason))
	}
}

// An image with very many tags has a report with some of them.
func TestReportOfManyTags(t *testing.T) {
	l := sample.New()
	image := l.Image(sample.Linux("amd64"))
	var tags []string
	for n := range 1500 {
		tag := fmt.Sprintf("v%04d", (n*7)%1500)
		l.Tag(tag, image)
		tags = append(tags, tag)
	}
	app, _ := appOf(t, l)
	v := verify(t, sign.NewVerifier(trust(ca)), app, "v0007", false)
	snap, err := app.Snapshot(context.Background())
	must(t, err)
	e, err := snap.Digest(context.Background(), image.Digest)
	must(t, err)
	got, want := v.Report(app, snap, e).Tags, slices.Sorted(slices.Values(tags[:1000]))
	if !slices.Equal(got, want) {
		t.Errorf("%d tags, from %s to %s; want %d, from %s to %s", len(got), got[0], got[len(got)-1], len(want), want[0], want[len(want)-1])
	}
}

// What would end a line or turn its direction is escaped, and the text stays the same.
func TestJSONLine(t *testing.T) {
	text := "a\x00\n\x1f\x7f\u0085\u061c\u200e\u2028\u2029\u202e\u2066é\U0001f600z"
	line := sign.JSONLine([]string{text})
	if i := strings.IndexFunc(string(line), sign.EndsLine); i != len(line)-1 {
		t.Errorf("%q", line)
	}
	var got []string
	must(t, json.Unmarshal(line, &got))
	if got[0] != text {
		t.Errorf("%q, want %q", got[0], text)
	}
}
