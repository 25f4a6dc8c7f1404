package layout_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"irfs/layout"
	"irfs/layout/sample"
)

// forms are the ways in which documents are laid out.
var forms = map[string]func(l *sample.Layout){
	"compact":  func(l *sample.Layout) {},
	"indented": func(l *sample.Layout) { l.Indent = "  " },
	"with more in it": func(l *sample.Layout) {
		l.Extra = `"x":1e400,"other":{"é\u00e9":[null, 123456789012345678901234567890]}`
	},
	"all of that": func(l *sample.Layout) { l.Indent, l.Extra = "\t", `"z":[],"y":{"size":-0.0}` },
}

// is wants an import to be, to the byte, the layout l.
func is(t testing.TB, i intake, l writer) {
	t.Helper()
	whole := t.TempDir()
	must(t, l.WriteDir(whole+"/app"))
	same(t, i.dir, tree(t, whole+"/app"))
}

// What is as a registry server wants it comes out as it went in, to the byte.
func TestNormalArchiveStaysAsItIs(t *testing.T) {
	for form, set := range forms {
		for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			t.Run(form+", "+string(algorithm), func(t *testing.T) {
				l := sample.New()
				set(l)
				l.Algorithm = algorithm
				amd := l.Image(sample.Linux("amd64"), sample.Gzip("a", "1"), sample.Zstd("a", "2"), sample.Plain("a", "3"))
				arm := l.Image(sample.Linux("arm64"), sample.Gzip("a", "1"))
				l.Tag("1.25", amd)
				l.Tag("_Stable-1.0", l.Index(amd, arm))
				l.Tag("nested", l.Index(l.Index(arm), amd))
				l.Tag("alone", l.Index(arm))
				l.Add(arm)
				l.Tag("inline", l.Inline(arm))
				for _, in := range []layout.Intake{{}, {KeepAll: true}, {Compress: true}} {
					i := take(t, l, in)
					is(t, i, l)
					if i.dropped != "" {
						t.Errorf("dropped %s", i.dropped)
					}
				}
			})
		}
	}
}

// Docker's media types become OCI's, in index.json, indexes and manifests, and that is all: the archive becomes the one that a tool of OCI's would
// have made.
func TestDockerMediaTypes(t *testing.T) {
	build := func(docker bool, set func(l *sample.Layout)) *sample.Layout {
		l := sample.New()
		set(l)
		l.Docker = docker
		amd := l.Image(sample.Linux("amd64"), sample.Gzip("a", "1"), sample.Zstd("a", "2"), sample.Plain("a", "3"))
		arm := l.Image(sample.Linux("arm64"), sample.Gzip("a", "1"))
		l.Tag("image", amd)
		l.Tag("index", l.Index(amd, arm))
		l.Tag("nested", l.Index(l.Index(arm, amd), l.Inline(amd)))
		l.Tag("inline", l.Inline(l.Index(amd, arm, l.Image(sample.Linux("s390x")))))
		return l
	}
	for form, set := range forms {
		t.Run(form, func(t *testing.T) {
			l := build(true, set)
			i := take(t, l, layout.Intake{})
			is(t, i, build(false, set))
			if i.dropped != "Docker's media types of 3 manifests, which have OCI's now" {
				t.Errorf("dropped %q", i.dropped)
			}
			undone(t, i, l)
		})
	}
	t.Run("some of an OCI manifest's", func(t *testing.T) {
		l := sample.New()
		y := sample.Gzip("a", "b")
		config := v1.Image{RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{y.DiffID()}}}
		l.Tag("x", l.Manifest(v1.Manifest{Config: l.Document(layout.MediaTypeDockerConfig, config), Layers: []v1.Descriptor{l.Blob(layout.MediaTypeDockerLayer, y.Blob())}}))
		take(t, l, layout.Intake{})
	})
	t.Run("without a mediaType in the documents", func(t *testing.T) {
		l := sample.New()
		l.Docker, l.Untyped = true, true
		image := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"))
		l.Tag("x", image)
		i := take(t, l, layout.Intake{})
		text := string(blobOf(t, i, i.list[0].Digest))
		wanted := strings.NewReplacer(layout.MediaTypeDockerConfig, v1.MediaTypeImageConfig, layout.MediaTypeDockerLayer, v1.MediaTypeImageLayerGzip).Replace(string(l.Bytes(image)))
		if wanted = strings.TrimSuffix(wanted, "}") + `,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`; text != wanted {
			t.Errorf("the manifest is\n%s\nwant\n%s", text, wanted)
		}
	})
}

// undone wants the documents of an import to be those of l once their media types, digests and sizes are put back.
func undone(t testing.TB, i intake, l *sample.Layout) {
	t.Helper()
	types := strings.NewReplacer(v1.MediaTypeImageManifest, layout.MediaTypeDockerManifest, v1.MediaTypeImageIndex, layout.MediaTypeDockerList,
		v1.MediaTypeImageConfig, layout.MediaTypeDockerConfig, v1.MediaTypeImageLayerZstd, "application/vnd.docker.image.rootfs.diff.tar.zstd",
		v1.MediaTypeImageLayerGzip, layout.MediaTypeDockerLayer, v1.MediaTypeImageLayer, "application/vnd.docker.image.rootfs.diff.tar")
	var undo func(was, is string)
	undo = func(was, is string) {
		t.Helper()
		var old, now v1.Index
		must(t, json.Unmarshal([]byte(was), &old))
		must(t, json.Unmarshal([]byte(is), &now))
		if len(old.Manifests) != len(now.Manifests) {
			t.Fatalf("%s became\n%s", was, is)
		}
		for n, d := range now.Manifests {
			before := old.Manifests[n]
			undo(string(l.Bytes(before)), string(blobOf(t, i, d.Digest)))
			size := regexp.MustCompile(fmt.Sprintf(`("%s",\s*"size":\s*)%d\b`, d.Digest, d.Size))
			is = size.ReplaceAllString(is, fmt.Sprintf("${1}%d", before.Size))
			is = strings.ReplaceAll(is, string(d.Digest), string(before.Digest))
			if d.Data != nil {
				text := func(data []byte) string { return string(must2(json.Marshal(data))) }
				is = strings.ReplaceAll(is, text(d.Data), text(before.Data))
			}
		}
		if is = types.Replace(is); is != types.Replace(was) {
			t.Errorf("a document was\n%s\nand comes out, after its changes are undone, as\n%s", was, is)
		}
	}
	undo(string(l.Files()["index.json"]), contentOf(t, i.dir+"/index.json"))
}

// An index.json without a mediaType gets one, after all that it has.
func TestIndexGetsItsMediaType(t *testing.T) {
	for form, set := range forms {
		t.Run(form, func(t *testing.T) {
			l := sample.New()
			set(l)
			l.Untyped = true
			l.Tag("x", l.Index(l.Image(sample.Linux("amd64")), l.Image(sample.Linux("arm64"))))
			i := take(t, l, layout.Intake{})
			was, now := string(l.Files()["index.json"]), contentOf(t, i.dir+"/index.json")
			if l.Indent == "" {
				was = strings.TrimSuffix(was, "}") + `,"mediaType":"application/vnd.oci.image.index.v1+json"}`
			} else {
				was = strings.TrimSuffix(was, "\n}\n") + ",\n" + l.Indent + `"mediaType": "application/vnd.oci.image.index.v1+json"` + "\n}\n"
			}
			if now != was {
				t.Errorf("index.json is\n%s\nwant\n%s", now, was)
			}
			all := takeAll(t, l, layout.Intake{KeepAll: true})
			if text := contentOf(t, all.dir+"/index.json"); text != now {
				t.Errorf("with everything kept it is\n%s", text)
			}
		})
	}
}

// What archives have for a tag becomes one, and a full name is kept beside it.
func TestTagNames(t *testing.T) {
	hash := "@sha256:" + hexOf('a')
	long := strings.Repeat("x", 128)
	l := sample.New()
	image := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"))
	row := func(annotations ...string) *sample.Layout {
		again := *l
		again.Add(sample.Annotate(image, annotations...))
		return &again
	}
	for _, r := range []struct{ name, tag string }{
		{"1.25", "1.25"},
		{"latest", "latest"},
		{"v1.0_x-y.z", "v1.0_x-y.z"},
		{"_", "_"},
		{"docker.io/library/nginx:1.25", "1.25"},
		{"nginx:1.25", "1.25"},
		{"localhost:5000/foo", "latest"},
		{"localhost:5000/foo:2", "2"},
		{"foo/bar", "latest"},
		{"foo/bar" + hash, "latest"},
		{"foo/bar:1" + hash, "1"},
		{"nginx" + hash, "latest"},
		{hash, "latest"},
		{"foo/bar:", "latest"},
		{":", "latest"},
		{"/", "latest"},
		{"", "latest"},
		{"v1.0+build", "v1.0_build"},
		{"registry.example/foo:v1.0+build", "v1.0_build"},
		{".x", "_x"},
		{"-x", "_x"},
		{"..", "_."},
		{"a b\tc", "a_b_c"},
		{"é", "__"},
		{"a\u2028", "a___"},
		{"sha256:" + hexOf('a'), hexOf('a')},
		{long, long},
		{"foo/bar:" + long, long},
	} {
		t.Run(r.name, func(t *testing.T) {
			i := take(t, row("org.opencontainers.image.ref.name", r.name), layout.Intake{})
			var index v1.Index
			must(t, unmarshal(i.dir+"/index.json", &index))
			full := r.name
			if r.name == r.tag {
				full = ""
			}
			d := index.Manifests[0]
			if got := d.Annotations["io.containerd.image.name"]; i.tags() != r.tag || got != full || d.Digest != image.Digest {
				t.Errorf("tag %q, full name %q, want %q, %q", i.tags(), got, r.tag, full)
			}
			// Again, it is what it should be.
			is(t, take(t, filesOf(t, i.dir), layout.Intake{}), filesOf(t, i.dir))
		})
	}
	t.Run("none", func(t *testing.T) {
		if i := take(t, row(), layout.Intake{}); i.tags() != "latest" {
			t.Errorf("tag %s", i.tags())
		}
	})
	t.Run("a full name that is there stays", func(t *testing.T) {
		i := take(t, row("org.opencontainers.image.ref.name", "foo/bar:1", "io.containerd.image.name", "registry.example/foo/bar:1"), layout.Intake{})
		if text := contentOf(t, i.dir+"/index.json"); i.tags() != "1" || !strings.Contains(text, `"io.containerd.image.name":"registry.example/foo/bar:1"`) {
			t.Errorf("tag %s in %s", i.tags(), text)
		}
	})
	for _, name := range []string{long + "y", "foo/bar:" + long + "y", "foo/bar:" + long + "y" + hash, strings.Repeat("é", 65)} {
		t.Run("too long: "+name[:10], func(t *testing.T) {
			isRefused(t, row("org.opencontainers.image.ref.name", name), layout.ErrCorrupt, name+`" is over 128 characters`)
		})
	}
	t.Run("also where everything is kept", func(t *testing.T) {
		i := takeAll(t, row("org.opencontainers.image.ref.name", "docker.io/library/nginx:1.25"), layout.Intake{KeepAll: true})
		if i.tags() != "1.25" {
			t.Errorf("tag %s", i.tags())
		}
	})
}

// filesOf reads a layout that is on disk.
func filesOf(t testing.TB, dir string) sample.Files {
	t.Helper()
	files := sample.Files{}
	for name, text := range tree(t, dir) {
		if strings.HasPrefix(text, "-") {
			files[name] = []byte(contentOf(t, dir+"/"+name))
		}
	}
	if files["index.json"] == nil {
		t.Fatalf("%s: no layout", dir)
	}
	return files
}

// A tag is one image's: two that would get the same are refused by both names, the same image by two names has it once.
func TestOneTagForTwoImages(t *testing.T) {
	l := sample.New()
	amd, arm := l.Image(sample.Linux("amd64")), l.Image(sample.Linux("arm64"))
	for _, row := range []struct {
		name       string
		one, other v1.Descriptor
		words      string
	}{
		{"of different repositories", tagged(amd, "a/b:1"), tagged(arm, "c/d:1"), `"a/b:1" and "c/d:1" would both get the tag "1"`},
		{"a tag, and a full name", tagged(amd, "1"), tagged(arm, "c/d:1"), `"1" and "c/d:1" would both get the tag "1"`},
		{"by what cannot be in a tag", tagged(amd, "1+2"), tagged(arm, "1_2"), `"1+2" and "1_2" would both get the tag "1_2"`},
		{"without names", amd, arm, `"` + amd.Digest.String() + `" and "` + arm.Digest.String() + `" would both get the tag "latest"`},
	} {
		t.Run(row.name, func(t *testing.T) {
			again := *l
			again.Add(row.one)
			again.Add(row.other)
			isRefused(t, &again, layout.ErrCorrupt, row.words)
		})
	}
	t.Run("the same image by two names", func(t *testing.T) {
		again := *l
		again.Add(tagged(amd, "a/b:1"))
		again.Add(tagged(amd, "c/d:1"))
		again.Add(tagged(arm, "c/d:2"))
		i := take(t, &again, layout.Intake{})
		if i.tags() != "1 2" || i.dropped != "the name c/d:1 (it is the same image as a/b:1, by the same tag)" {
			t.Errorf("tags %s, dropped %s", i.tags(), i.dropped)
		}
	})
	t.Run("one with a name, one without", func(t *testing.T) {
		again := *l
		again.Add(tagged(amd, "1"))
		again.Add(arm)
		i := take(t, &again, layout.Intake{})
		if i.tags() != "1 " || i.dropped != "" {
			t.Errorf("tags %q, dropped %s", i.tags(), i.dropped)
		}
	})
}

// The same image by the same name twice is the same.
func TestTheSameTwice(t *testing.T) {
	l := sample.New()
	image := l.Image(sample.Linux("amd64"))
	l.Tag("a/b:1", image)
	l.Tag("a/b:1", image)
	if i := take(t, l, layout.Intake{}); i.tags() != "1" || i.dropped != "" {
		t.Errorf("tags %s, dropped %s", i.tags(), i.dropped)
	}
}

// Beside a row with a name, one whose name is empty can have no tag, and what it should be nobody knows.
func TestEmptyName(t *testing.T) {
	l := sample.New()
	l.Tag("1", l.Image(sample.Linux("amd64")))
	l.Tag("", l.Image(sample.Linux("arm64")))
	_, err := importAs(context.Background(), registry(t, t.TempDir()), "app", archive(t, l), layout.OnExistAdd)
	want(t, err, layout.ErrCorrupt, "an empty name beside others")
}

func tagged(d v1.Descriptor, name string) v1.Descriptor {
	return sample.Annotate(d, "org.opencontainers.image.ref.name", name)
}

// Attestations, and platforms that are not there, are dropped, and an index of which one image is left gives way to that. What is left is
// what a tool would have written that knew nothing of the rest.
func TestDropping(t *testing.T) {
	for _, row := range []struct {
		name string
		was  func(l *sample.Layout, absent map[digest.Digest]bool)
		is   func(l *sample.Layout)
		says []string
	}{
		{
			"attestations", func(l *sample.Layout, absent map[digest.Digest]bool) {
				amd, arm := platforms(l)
				l.Tag("x", l.Index(amd, l.Attestation(amd), arm, l.Attestation(arm)))
			}, func(l *sample.Layout) { l.Tag("x", l.Index(platforms(l))) },
			[]string{"attestation sha256:", "attestation sha256:"},
		},
		{
			"an attestation that comes first", func(l *sample.Layout, absent map[digest.Digest]bool) {
				amd, arm := platforms(l)
				l.Tag("x", l.Index(l.Attestation(amd), amd, arm))
			}, func(l *sample.Layout) { l.Tag("x", l.Index(platforms(l))) },
			[]string{"attestation sha256:"},
		},
		{
			"an attestation in index.json", func(l *sample.Layout, absent map[digest.Digest]bool) {
				amd, _ := platforms(l)
				l.Add(l.Attestation(amd))
				l.Tag("x", amd)
			}, func(l *sample.Layout) { amd, _ := platforms(l); l.Tag("x", amd) },
			[]string{"attestation sha256:"},
		},
		{
			"a platform that is not there", func(l *sample.Layout, absent map[digest.Digest]bool) {
				amd, arm := platforms(l)
				gone := l.Image(sample.Linux("arm/v7"), sample.Gzip("a", "gone"))
				absent[gone.Digest] = true
				l.Tag("x", l.Index(gone, amd, arm))
			}, func(l *sample.Layout) { l.Tag("x", l.Index(platforms(l))) },
			[]string{"linux/arm/v7 sha256:"},
		},
		{
			"one image is left", func(l *sample.Layout, absent map[digest.Digest]bool) {
				amd, arm := platforms(l)
				absent[arm.Digest] = true
				l.Tag("x", l.Index(arm, amd, l.Attestation(amd)))
			}, func(l *sample.Layout) { amd, _ := platforms(l); amd.Platform = nil; l.Tag("x", amd) },
			[]string{"linux/arm64 sha256:", "attestation sha256:"},
		},
		{
			"one image is left of an index in an index", func(l *sample.Layout, absent map[digest.Digest]bool) {
				amd, arm := platforms(l)
				absent[arm.Digest] = true
				l.Tag("x", l.Index(l.Index(amd, l.Attestation(amd)), l.Index(arm)))
			}, func(l *sample.Layout) { amd, _ := platforms(l); amd.Platform = nil; l.Tag("x", amd) },
			[]string{"attestation sha256:", "linux/arm64 sha256:", "image sha256:"},
		},
		{
			"an index that was not there", func(l *sample.Layout, absent map[digest.Digest]bool) {
				amd, arm := platforms(l)
				gone := l.Index(amd)
				absent[gone.Digest] = true
				l.Tag("x", l.Index(gone, l.Index(amd, arm)))
			}, func(l *sample.Layout) { d := l.Index(platforms(l)); l.Tag("x", d) },
			[]string{"image sha256:"},
		},
		{
			"an index by two tags, and one of its images by a third", func(l *sample.Layout, absent map[digest.Digest]bool) {
				amd, arm := platforms(l)
				absent[arm.Digest] = true
				index := l.Index(amd, arm)
				l.Tag("x", index)
				l.Tag("y", index)
				l.Tag("z", amd)
			}, func(l *sample.Layout) {
				amd, _ := platforms(l)
				plain := amd
				plain.Platform = nil
				l.Tag("x", plain)
				l.Tag("y", plain)
				l.Tag("z", amd)
			},
			[]string{"linux/arm64 sha256:"},
		},
		{
			"an inlined index of which one is left", func(l *sample.Layout, absent map[digest.Digest]bool) {
				amd, arm := platforms(l)
				absent[arm.Digest] = true
				l.Tag("x", l.Inline(l.Index(amd, arm)))
			}, func(l *sample.Layout) { amd, _ := platforms(l); amd.Platform = nil; l.Tag("x", l.Inline(amd)) },
			[]string{"linux/arm64 sha256:"},
		},
	} {
		for form, set := range forms {
			for _, docker := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, Docker's types %v", row.name, form, docker), func(t *testing.T) {
					was, wanted := sample.New(), sample.New()
					set(was)
					set(wanted)
					was.Docker = docker
					absent := map[digest.Digest]bool{}
					row.was(was, absent)
					row.is(wanted)
					files := was.Files()
					for d := range absent {
						delete(files, sample.Path(d))
					}
					// Of the attestations' parts the wanted layout has none, nor of what is absent.
					i := take(t, files, layout.Intake{})
					is(t, i, wantedOf(wanted, i))
					said := strings.Split(i.dropped, "\n")
					if docker {
						said = said[:len(said)-1]
					}
					for n, words := range row.says {
						if n >= len(said) || len(said) != len(row.says) || !strings.HasPrefix(said[n], words) {
							t.Fatalf("dropped\n%s\nwant %q", i.dropped, row.says)
						}
					}
				})
			}
		}
	}
}

// platforms are two images.
func platforms(l *sample.Layout) (amd, arm v1.Descriptor) {
	return l.Image(sample.Linux("amd64"), sample.Gzip("a", "1"), sample.Zstd("a", "2")), l.Image(sample.Linux("arm64"), sample.Gzip("a", "1"))
}

// wantedOf are the files of l that an import has, and those that its index.json needs.
func wantedOf(l *sample.Layout, i intake) sample.Files {
	files := l.Files()
	for name := range files {
		if _, err := os.Stat(i.dir + "/" + name); err != nil {
			delete(files, name)
		}
	}
	return files
}

// What is no attestation by all three signs is an image, and stays.
func TestWhatIsNoAttestation(t *testing.T) {
	l := sample.New()
	amd, _ := platforms(l)
	known := l.Attestation(amd)
	known.Platform = &v1.Platform{OS: "linux", Architecture: "amd64", Variant: "v2"}
	unannotated := l.Attestation(amd)
	unannotated.Annotations = nil
	odd := l.Image(v1.Platform{OS: "unknown", Architecture: "unknown"}, sample.Gzip("a", "layer"))
	for name, d := range map[string]v1.Descriptor{
		"its platform is known": known, "it is not annotated": unannotated, "its layer is one": sample.Annotate(odd, "vnd.docker.reference.type", "attestation-manifest"),
	} {
		t.Run(name, func(t *testing.T) {
			again := *l
			again.Tag("x", again.Index(amd, d))
			dir := t.TempDir()
			list, err := importAs(context.Background(), registry(t, dir), "app", archive(t, &again), layout.OnExistAdd)
			must(t, err)
			is(t, intake{dir: dir + "/app"}, wantedOf(&again, intake{dir: dir + "/app"}))
			if len(list) != 1 || !strings.Contains(contentOf(t, dir+"/app/"+sample.Path(list[0].Digest)), d.Digest.String()) {
				t.Errorf("imported %v", list)
			}
		})
	}
}

// An archive of which nothing is left is refused, and says what is missing.
func TestNothingLeft(t *testing.T) {
	l := sample.New()
	amd, arm := platforms(l)
	attestation := l.Attestation(amd)
	for _, row := range []struct {
		name   string
		top    []v1.Descriptor
		absent []v1.Descriptor
		kind   error
		words  string
	}{
		{"an image", []v1.Descriptor{tagged(amd, "x")}, []v1.Descriptor{amd}, layout.ErrMissing, "not in the archive: " + amd.Digest.String()},
		{"one of two images", []v1.Descriptor{tagged(amd, "x"), tagged(arm, "y")}, []v1.Descriptor{arm}, layout.ErrMissing, "not in the archive: " + arm.Digest.String()},
		{"an index", []v1.Descriptor{tagged(l.Index(amd, arm), "x")}, []v1.Descriptor{amd, arm}, layout.ErrMissing, "nothing that it lists is in the archive"},
		{"an index in an index", []v1.Descriptor{tagged(l.Index(l.Index(amd, attestation), l.Index(arm)), "x")}, []v1.Descriptor{amd, arm}, layout.ErrMissing, "nothing that it lists is in the archive"},
		{"all but an attestation", []v1.Descriptor{tagged(l.Index(amd, attestation), "x")}, []v1.Descriptor{amd}, layout.ErrMissing, "nothing that it lists is in the archive"},
		{"an attestation", []v1.Descriptor{tagged(attestation, "x")}, nil, layout.ErrCorrupt, "it holds no image, only attestations"},
	} {
		t.Run(row.name, func(t *testing.T) {
			again := *l
			for _, d := range row.top {
				again.Add(d)
			}
			files := again.Files()
			for _, d := range row.absent {
				delete(files, sample.Path(d.Digest))
			}
			isRefused(t, files, row.kind, row.words)
		})
	}
}

// KeepAll keeps everything, but for what tags need to be ones.
func TestKeepAll(t *testing.T) {
	for form, set := range forms {
		t.Run(form, func(t *testing.T) {
			l := sample.New()
			set(l)
			l.Docker = true
			amd, arm := platforms(l)
			attestation := l.Attestation(amd)
			l.Tag("x", l.Index(amd, arm, attestation))
			l.Tag("y", attestation)
			l.Tag("z", l.Index(arm))
			files := l.Files()
			delete(files, sample.Path(arm.Digest))
			i := takeAll(t, files, layout.Intake{KeepAll: true})
			is(t, i, wantedOf(l, i))
			if i.dropped != "" || i.tags() != "x y z" {
				t.Errorf("tags %s, dropped %s", i.tags(), i.dropped)
			}
		})
	}
	t.Run("but not a tag of nothing", func(t *testing.T) {
		l := sample.New()
		amd, arm := platforms(l)
		l.Tag("x", amd)
		l.Tag("y", arm)
		files := l.Files()
		delete(files, sample.Path(arm.Digest))
		_, err := importWith(context.Background(), registry(t, t.TempDir()), "app", archive(t, files), layout.OnExistAdd, layout.Intake{Owner: me, KeepAll: true})
		want(t, err, layout.ErrMissing, arm.Digest.String())
	})
}

// Merging moves the tags that are there; every other row keeps its bytes, and what is new comes last.
func TestMergeMovesTags(t *testing.T) {
	ctx := context.Background()
	for form, set := range forms {
		t.Run(form, func(t *testing.T) {
			was := sample.New()
			set(was)
			was.Untyped = true
			images := map[string]v1.Descriptor{}
			for _, tag := range []string{"a", "b", "c"} {
				images[tag] = was.Image(sample.Linux("amd64"), sample.Gzip("tag", tag))
				was.Tag(tag, images[tag])
			}
			was.Add(images["b"])
			dir := writeApp(t, was)
			theirs := sample.New()
			theirs.Extra = `"theirs":[1]`
			theirs.Docker = true
			now := theirs.Image(sample.Linux("arm64"), sample.Gzip("tag", "b"))
			theirs.Tag("docker.io/library/x:b", now)
			theirs.Tag("new", now)
			reg := registry(t, dir)
			before := tree(t, dir)
			_, err := importAs(ctx, reg, "app", archive(t, theirs), layout.OnExistAdd)
			want(t, err, layout.ErrExist, `the tag "b" is there already, and names another image`)
			same(t, dir, before)

			list, err := importAs(ctx, reg, "app", archive(t, theirs), layout.OnExistMerge)
			must(t, err)
			if len(list) != 2 || list[0].Tag != "b" || list[1].Tag != "new" {
				t.Errorf("imported %v", list)
			}
			old, text := string(was.Files()["index.json"]), contentOf(t, dir+"/app/index.json")
			at := func(text, tag string) (start, end int) { // of the row of a tag
				name := regexp.MustCompile(`"org.opencontainers.image.ref.name": ?"` + tag + `"`).FindStringIndex(text)[0]
				open := regexp.MustCompile(`\{\s*"mediaType"`)
				starts := open.FindAllStringIndex(text, -1)
				for _, s := range starts {
					if s[0] < name {
						start = s[0]
					}
				}
				return start, start + len(must2(firstValue(text[start:])))
			}
			oldStart, oldEnd := at(old, "b")
			newStart, newEnd := at(text, "b")
			tail := strings.TrimRight(old[oldEnd:], "\n }]") // up to the end of the last row, or of what follows the list
			if form == "compact" || form == "indented" {
				if !strings.HasPrefix(text, old[:oldStart]) || oldStart != newStart || !strings.HasPrefix(text[newEnd:], tail) {
					t.Errorf("index.json was\n%s\nand is\n%s", old, text)
				}
			}
			for _, tag := range []string{"a", "c"} {
				oldStart, oldEnd := at(old, tag)
				newStart, newEnd := at(text, tag)
				if old[oldStart:oldEnd] != text[newStart:newEnd] {
					t.Errorf("the row of %s was\n%s\nand is\n%s", tag, old[oldStart:oldEnd], text[newStart:newEnd])
				}
			}
			if row := text[newStart:newEnd]; !strings.Contains(row, list[0].Digest.String()) || !strings.Contains(row, `"theirs":[1]`) {
				t.Errorf("the row that moved is %s", row)
			}
			app := must2(reg.App("app"))
			snap := snapshot(t, app)
			if tags := strings.Join(snap.Tags(), " "); tags != "a b c new" {
				t.Errorf("tags %s", tags)
			}
			for _, tag := range append(snap.Tags(), images["b"].Digest.String()) {
				if word, reason := verdict(t, app, tag, true); word != "unsigned" {
					t.Errorf("%s: %s, %s", tag, word, reason)
				}
			}
			// Once more, nothing happens, either way.
			noLeftOvers(t, dir)
			before = tree(t, dir)
			for _, how := range []layout.OnExist{layout.OnExistMerge, layout.OnExistAdd} {
				_, err = importAs(ctx, reg, "app", archive(t, theirs), how)
				must(t, err)
				same(t, dir, before)
			}
			_, err = importAs(ctx, reg, "app", archive(t, theirs), layout.OnExistFail)
			want(t, err, layout.ErrExist, "the app is there already")
			same(t, dir, before)
		})
	}
	t.Run("a tag that is there twice", func(t *testing.T) {
		was := sample.New()
		was.Tag("b", was.Image(sample.Linux("amd64")))
		was.Tag("b", was.Image(sample.Linux("arm64")))
		dir := writeApp(t, was)
		before := tree(t, dir)
		theirs := sample.New()
		theirs.Tag("b", theirs.Image(sample.Linux("s390x")))
		_, err := importAs(ctx, registry(t, dir), "app", archive(t, theirs), layout.OnExistMerge)
		want(t, err, layout.ErrExist, `the tag "b" is given twice there`)
		same(t, dir, before)
	})
	t.Run("what docker save wrote", func(t *testing.T) {
		dir := t.TempDir()
		reg := registry(t, dir)
		l, web, tool := images()
		for _, image := range []v1.Descriptor{web, tool} {
			_, err := importAs(ctx, reg, "app", archive(t, l.DockerSave(sample.Saved{Image: image, Names: []string{"nginx:1.25"}})), layout.OnExistMerge)
			must(t, err)
			if d := must2(snapshot(t, must2(reg.App("app"))).Top(t.Context())); len(d) != 1 || d[0].Digest != dockerManifest(t, l, image) {
				t.Errorf("index.json lists %v", d)
			}
		}
	})
}

// firstValue is the JSON value that text begins with.
func firstValue(text string) (json.RawMessage, error) {
	var v json.RawMessage
	return v, json.NewDecoder(strings.NewReader(text)).Decode(&v)
}

// keep stages an archive, keeps some of it, and publishes that as "app".
func keep(t testing.TB, l tarWriter, digests ...digest.Digest) intake {
	t.Helper()
	dir := t.TempDir()
	reg := registry(t, dir)
	staged, err := reg.Stage(context.Background(), bytes.NewReader(archive(t, l)), layout.Intake{Owner: me})
	must(t, err)
	defer staged.Discard()
	must(t, staged.Keep(context.Background(), digests, ""))
	list, err := staged.Publish(context.Background(), "app", layout.OnExistFail)
	must(t, err)
	serves(t, dir+"/app")
	noLeftOvers(t, dir)
	return intake{dir + "/app", must2(reg.App("app")), list, strings.Join(staged.Dropped, "\n")}
}

// What is kept of an archive keeps its tag, and the rest is gone, with its blobs.
func TestKeep(t *testing.T) {
	for form, set := range forms {
		t.Run(form, func(t *testing.T) {
			build := func(rows func(l *sample.Layout, amd, arm, other v1.Descriptor)) *sample.Layout {
				l := sample.New()
				set(l)
				amd, arm := platforms(l)
				rows(l, amd, arm, l.Image(sample.Linux("s390x"), sample.Gzip("a", "other")))
				return l
			}
			var one, two, other v1.Descriptor
			l := build(func(l *sample.Layout, amd, arm, o v1.Descriptor) {
				one, two, other = o, l.Index(amd, l.Index(arm)), amd
				l.Tag("one", one)
				l.Tag("two", two)
				l.Tag("same", one)
			})
			bare := func(d v1.Descriptor) v1.Descriptor { d.Platform = nil; return d }
			for _, row := range []struct {
				name    string
				keep    []digest.Digest
				is      func(l *sample.Layout, amd, arm, other v1.Descriptor)
				dropped string
			}{
				{"an image", []digest.Digest{one.Digest}, func(l *sample.Layout, amd, arm, other v1.Descriptor) {
					l.Tag("one", other)
					l.Tag("same", other)
				}, "two " + two.Digest.String()},
				{"an index", []digest.Digest{two.Digest}, func(l *sample.Layout, amd, arm, other v1.Descriptor) {
					l.Tag("two", l.Index(amd, l.Index(arm)))
				}, "one " + one.Digest.String() + "\nsame " + one.Digest.String()},
				{"an image of an index", []digest.Digest{other.Digest}, func(l *sample.Layout, amd, arm, other v1.Descriptor) {
					l.Tag("two", bare(amd))
				}, "one " + one.Digest.String() + "\nsame " + one.Digest.String()},
				{"an image of an index in an index", []digest.Digest{l.Image(sample.Linux("arm64"), sample.Gzip("a", "1")).Digest}, func(l *sample.Layout, amd, arm, other v1.Descriptor) {
					l.Tag("two", bare(arm))
				}, "one " + one.Digest.String() + "\nsame " + one.Digest.String()},
				{"an index in an index, and an image", []digest.Digest{l.Index(l.Image(sample.Linux("arm64"), sample.Gzip("a", "1"))).Digest, one.Digest}, func(l *sample.Layout, amd, arm, other v1.Descriptor) {
					l.Tag("one", other)
					l.Tag("two", l.Index(arm))
					l.Tag("same", other)
				}, ""},
				{"everything", []digest.Digest{two.Digest, one.Digest}, func(l *sample.Layout, amd, arm, other v1.Descriptor) {
					l.Tag("one", other)
					l.Tag("two", l.Index(amd, l.Index(arm)))
					l.Tag("same", other)
				}, ""},
			} {
				t.Run(row.name, func(t *testing.T) {
					i := keep(t, l, row.keep...)
					is(t, i, wantedOf(build(row.is), i))
					if i.dropped != row.dropped {
						t.Errorf("dropped %q, want %q", i.dropped, row.dropped)
					}
				})
			}
		})
	}
	t.Run("of what docker save wrote", func(t *testing.T) {
		l, web, tool := images()
		i := keep(t, l.DockerSave(sample.Saved{Image: web, Names: []string{"nginx:1"}}, sample.Saved{Image: tool, Names: []string{"tool:2"}}), dockerManifest(t, l, tool))
		if i.tags() != "2" || !strings.HasPrefix(i.dropped, "1 sha256:") {
			t.Errorf("tags %s, dropped %s", i.tags(), i.dropped)
		}
	})
}

// An image that has a tag of its own is kept by that, and takes no index's place.
func TestKeepOfAnImageThatAnIndexListsToo(t *testing.T) {
	l, image, _ := two()
	if i := keep(t, l, image.Digest); i.tags() != "one" {
		t.Errorf("tags %s", i.tags())
	}
}

func TestKeepOfTwoImagesOfAnIndex(t *testing.T) {
	l := sample.New()
	amd, arm := platforms(l)
	l.Tag("x", l.Index(amd, arm, l.Image(sample.Linux("s390x"))))
	staged, err := registry(t, t.TempDir()).Stage(context.Background(), bytes.NewReader(archive(t, l)), layout.Intake{Owner: me})
	must(t, err)
	defer staged.Discard()
	want(t, staged.Keep(context.Background(), []digest.Digest{amd.Digest, arm.Digest}, ""), layout.ErrCorrupt, "only one can take its place")
}

// What Docker's index becomes has the digest of one that is missing.
func TestMissingIndexIsWhatAnotherBecomes(t *testing.T) {
	l := sample.New()
	l.Docker = true
	docker := l.Index()
	l.Docker = false
	absent := l.Index()
	image := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"))
	l.Add(tagged(l.Index(image, docker, absent), "a"))
	files := l.Files()
	delete(files, sample.Path(absent.Digest))
	dir := t.TempDir()
	reg, err := layout.Open(dir)
	must(t, err)
	defer reg.Close()
	_, err = importAs(context.Background(), reg, "app", archive(t, files), layout.OnExistFail)
	must(t, err)
	serves(t, dir+"/app")
}

// Whatever an archive nests, and whatever of it is missing: it is refused whole, or comes out so that it can be served, and is the same the next time.
func TestAnyArchive(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		l := sample.New()
		pick := func(what string, n int) int { return rapid.IntRange(0, n-1).Draw(r, what) }
		var all []v1.Descriptor
		var node func(depth int) v1.Descriptor
		node = func(depth int) (d v1.Descriptor) {
			defer func() { all = append(all, d) }()
			l.Docker, l.Untyped = pick("Docker's types", 3) == 0, pick("untyped", 3) == 0
			kind := pick("kind", 6)
			switch {
			case len(all) > 0 && kind == 0:
				return all[pick("again", len(all))]
			case depth > 0 && kind < 3:
				var list []v1.Descriptor
				docker, untyped := l.Docker, l.Untyped
				for range pick("children", 4) {
					child := node(depth - 1)
					list = append(list, child)
					if pick("attested", 4) == 0 {
						list = append(list, l.Attestation(child))
					}
				}
				l.Docker, l.Untyped = docker, untyped
				return l.Index(list...)
			case kind == 3:
				return l.Artifact("text/x", "artifact", nil)
			}
			architecture := rapid.SampledFrom([]string{"amd64", "arm64", "arm/v7"}).Draw(r, "architecture")
			content := rapid.SampledFrom([]string{"a", "b"}).Draw(r, "content")
			return l.Image(sample.Linux(architecture), sample.Gzip("x", content), sample.Plain("y", content))
		}
		names := rapid.Permutation([]string{"a", "b:1", "docker.io/library/c:2", "localhost:5000/d", "é"}).Draw(r, "names")
		for n := range 1 + pick("rows", 3) {
			d := node(3)
			if pick("named", 8) > 0 {
				d = tagged(d, names[n])
			}
			l.Add(d)
		}
		l.Untyped = pick("untyped index.json", 2) == 0
		files := l.Files()
		var blobs []string
		for _, m := range members(l) {
			if strings.HasPrefix(m.Name, "blobs/") {
				blobs = append(blobs, m.Name)
			}
		}
		for range pick("missing", 4) {
			delete(files, rapid.SampledFrom(blobs).Draw(r, "blob"))
		}

		dir, err := os.MkdirTemp(t.TempDir(), "")
		must(r, err)
		taken := func(files sample.Files) error {
			must(r, os.RemoveAll(dir))
			must(r, os.Mkdir(dir, 0o755))
			reg, err := layout.Open(dir)
			must(r, err)
			defer reg.Close()
			_, err = importAs(context.Background(), reg, "app", archive(t, files), layout.OnExistFail)
			if err == nil {
				serves(r, dir+"/app")
			} else if left := tree(t, dir); len(left) != 1 {
				r.Errorf("refused, and left: %q", left)
			}
			return err
		}
		if err := taken(files); err != nil {
			if !errors.Is(err, layout.ErrCorrupt) {
				r.Errorf("%v is not an ErrCorrupt", err)
			}
			return
		}
		first := tree(t, dir)
		must(r, taken(filesOf(t, dir+"/app")))
		for name, text := range tree(t, dir) {
			if first[name] != text {
				r.Errorf("%s was %.300q, and the next time %.300q", name, first[name], text)
			}
		}
	})
}
