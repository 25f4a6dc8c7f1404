package layout_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
)

// 11, 23: whatever in a registry is a symbolic link, nothing outside changes, not even for a moment.
func TestImportThroughLinks(t *testing.T) {
	l, _, _ := two()
	text := archive(t, l)
	for name, row := range map[string]struct {
		app  string
		link string // in the registry
	}{
		"blobs of an app":        {"app", "app/blobs"},
		"the digests of an app":  {"app", "app/blobs/sha256"},
		"a namespace":            {"link/new", "link"},
		"a namespace far above":  {"link/x/y/new", "link"},
		"a namespace in between": {"space/link/x/new", "space/link"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, outside := t.TempDir(), t.TempDir()
			must(t, small().WriteDir(dir+"/app"))
			must(t, os.Mkdir(dir+"/space", 0o755))
			must(t, os.RemoveAll(filepath.Join(dir, row.link)))
			must(t, os.Mkdir(outside+"/sha256", 0o755))
			target := outside
			if strings.HasSuffix(row.link, "sha256") {
				target += "/sha256"
			}
			must(t, os.Symlink(target, filepath.Join(dir, row.link)))
			var then syscall.Stat_t
			must(t, syscall.Stat(outside, &then))
			before, beforeOutside := tree(t, dir), tree(t, outside)
			_, err := importAs(context.Background(), registry(t, dir), row.app, text, layout.OnExistAdd)
			if !errors.Is(err, layout.ErrCorrupt) {
				t.Errorf("%v", err)
			}
			same(t, dir, before)
			same(t, outside, beforeOutside)
			var now syscall.Stat_t
			must(t, syscall.Stat(outside, &now))
			if now.Mtim != then.Mtim {
				t.Error("something was there for a moment")
			}
		})
	}
}

// 26: what would be corrupt at once is not taken in.
func TestImportOfWhatDoesNotFit(t *testing.T) {
	for name, row := range map[string]struct {
		make   func(l *sample.Layout) v1.Descriptor
		reason string
	}{
		"inline data of a config": {func(l *sample.Layout) v1.Descriptor {
			config := l.Document(v1.MediaTypeImageConfig, v1.Image{RootFS: v1.RootFS{Type: "layers"}})
			config.Data = []byte("other")
			return l.Manifest(v1.Manifest{Config: config, Layers: []v1.Descriptor{}})
		}, "the data inlined in its descriptor is not the blob's"},
		"inline data of an image": {func(l *sample.Layout) v1.Descriptor {
			d := l.Image(sample.Linux("amd64"))
			d.Data = []byte("other")
			return l.Index(d, l.Image(sample.Linux("arm64")))
		}, "the data inlined in its descriptor is not the blob's"},
		"a config that is none": {func(l *sample.Layout) v1.Descriptor {
			return l.Manifest(v1.Manifest{Config: l.Blob(v1.MediaTypeImageConfig, []byte("text")), Layers: []v1.Descriptor{}})
		}, "config"},
		"a layer that the config does not know": {func(l *sample.Layout) v1.Descriptor {
			return l.Manifest(v1.Manifest{
				Config: l.Document(v1.MediaTypeImageConfig, v1.Image{RootFS: v1.RootFS{Type: "layers"}}),
				Layers: []v1.Descriptor{l.Blob(v1.MediaTypeImageLayer, sample.Plain("a", "b").Blob())},
			})
		}, "the manifest has 1 layers, the config 0 diff_ids"},
		"neither an image nor an index": {func(l *sample.Layout) v1.Descriptor {
			return l.Blob("application/octet-stream", []byte("garbage"))
		}, "neither that of an image nor of an index"},
	} {
		t.Run(name, func(t *testing.T) {
			l := sample.New()
			l.Tag("x", row.make(l))
			dir := t.TempDir()
			before := tree(t, dir)
			_, err := importAs(context.Background(), registry(t, dir), "app", archive(t, l), layout.OnExistAdd)
			want(t, err, layout.ErrCorrupt, row.reason)
			same(t, dir, before)
		})
	}
}

// What no image refers to as a part of it is not taken in, though a manifest may mention it.
func TestImportLeavesOutWhatIsOnlyMentioned(t *testing.T) {
	l := sample.New()
	payload := l.Blob("text/plain", []byte("payload"))
	m := v1.Manifest{
		Config:      l.Document(v1.MediaTypeImageConfig, v1.Image{RootFS: v1.RootFS{Type: "layers"}}),
		Layers:      []v1.Descriptor{},
		Annotations: map[string]string{"x": payload.Digest.String()},
	}
	l.Tag("x", l.Manifest(m))
	dir := t.TempDir()
	_, err := importAs(context.Background(), registry(t, dir), "app", archive(t, l), layout.OnExistAdd)
	must(t, err)
	if _, err := os.Stat(filepath.Join(dir, "app", sample.Path(payload.Digest))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// Documents are limited so that no small archive takes much memory or time.
func TestArchivesOfManyDocuments(t *testing.T) {
	images := "[" + strings.Repeat("{},", 20_000) + "{}]"
	index := func(n int) []byte {
		l := sample.New()
		var rows []v1.Descriptor
		for range n {
			d := l.Blob(v1.MediaTypeImageManifest, []byte("absent"))
			d.Annotations = map[string]string{"x": strings.Repeat("x", 1000)}
			rows = append(rows, d)
		}
		l.Tag("x", l.Index(rows...))
		return archive(t, l)
	}
	for name, row := range map[string]struct {
		archive []byte
		reason  string
	}{
		"images in Docker's list": {tarOf(t, named("manifest.json", images)), "over the limit of 10000 images"},
		"bytes in an index":       {index(20_000), "for all its indexes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := registry(t, t.TempDir()).Stage(context.Background(), bytes.NewReader(row.archive), layout.Intake{Owner: me})
			want(t, err, layout.ErrLimit, row.reason)
		})
	}
}

func named(name, content string) (m member) {
	m.Name, m.content = name, content
	return m
}

// A directory that was packed as a whole is told what to do.
func TestArchiveOfADirectory(t *testing.T) {
	l, _, _ := two()
	var list []member
	for _, m := range members(l) {
		m.Name = "nginx/" + m.Name
		list = append(list, m)
	}
	_, err := importAs(context.Background(), registry(t, t.TempDir()), "app", tarOf(t, list...), layout.OnExistAdd)
	want(t, err, layout.ErrCorrupt, `lies in "nginx"; pack that directory's content: tar -C nginx -cf ARCHIVE .`)
}

// 28, 36: an import that fails while it adds to an app leaves none of its blobs there.
func TestMergeThatFailsLeavesNoBlobs(t *testing.T) {
	l, _, _ := two()
	dir := writeApp(t, small())
	must(t, os.Chmod(dir+"/app/blobs/sha256", 0o755|os.ModeSticky))
	before := tree(t, dir)
	ctx, cancel := context.WithCancel(context.Background())
	staged, err := registry(t, dir).Stage(ctx, bytes.NewReader(archive(t, l)), layout.Intake{Owner: me})
	must(t, err)
	defer staged.Discard()
	staged.Rights = atBlobs(cancel)
	if _, err := staged.Publish(ctx, "app", layout.OnExistAdd); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	staged.Discard()
	same(t, dir, before)
}

// atBlobs are all rights there are. do is called when they are asked for the directory of blobs, which has the sticky bit, in an app that
// is there already: after its index.json was read, and before blobs are added.
func atBlobs(do func()) layout.Rights {
	asked := 0
	return func(_ context.Context, _ layout.Attr, ask func() error) error {
		// Whether the app can be reached, may be changed, is still the one when it is locked; then blobs/sha256.
		if asked++; asked == 4 {
			do()
		}
		return ask()
	}
}
