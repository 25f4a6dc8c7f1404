package layout_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
)

// collectable is a layout of which the blobs that it returns are used by nothing.
func collectable() (*sample.Layout, []v1.Descriptor) {
	l := sample.New()
	amd := l.Image(sample.Linux("amd64"), sample.Gzip("a", "amd64"))
	arm := l.Image(sample.Linux("arm64"), sample.Gzip("a", "arm64"))
	l.Tag("x", l.Index(l.Index(amd), arm, l.Attestation(amd)))
	l.Add(l.Artifact("application/sbom", "content", &amd))
	unused := []v1.Descriptor{l.Blob("text/plain", []byte("one")), l.Blob("text/plain", []byte("other"))}
	l.Algorithm = "sha512"
	return l, append(unused, l.Blob("text/plain", []byte("one")))
}

func digests(removed []layout.Removed) []string {
	var list []string
	for _, r := range removed {
		list = append(list, string(r.Digest))
	}
	return list
}

func TestCollect(t *testing.T) {
	ctx := context.Background()
	l, unused := collectable()
	dir := writeApp(t, l)
	app := appIn(t, dir)
	var wanted []string
	for _, d := range unused {
		wanted = append(wanted, string(d.Digest))
	}
	slices.Sort(wanted)
	write(t, dir+"/app/blobs/sha256/not-a-digest", "x")
	must(t, os.Symlink("not-a-digest", dir+"/app/blobs/sha256/"+hexOf('a')))
	must(t, os.Mkdir(dir+"/app/blobs/sha256/"+hexOf('b'), 0o755))
	write(t, dir+"/app/blobs/file", "x")
	before := tree(t, dir)

	removed, _, err := app.Collect(ctx, time.Hour, false)
	if err != nil || len(removed) != 0 {
		t.Errorf("younger than grace: %v, %v", removed, err)
	}
	same(t, dir, before)

	removed, _, err = app.Collect(ctx, 0, true)
	if err != nil || !slices.Equal(digests(removed), wanted) {
		t.Errorf("dry run: %v, %v; want %v", removed, err, wanted)
	}
	same(t, dir, before)

	time.Sleep(50 * time.Millisecond)
	must(t, os.Chmod(filepath.Join(dir, "app", sample.Path(unused[0].Digest)), 0o600)) // touched just now
	removed, _, err = app.Collect(ctx, 40*time.Millisecond, false)
	wantLess := slices.DeleteFunc(slices.Clone(wanted), func(d string) bool { return d == string(unused[0].Digest) })
	if err != nil || !slices.Equal(digests(removed), wantLess) {
		t.Errorf("older than grace: %v, %v; want %v", removed, err, wantLess)
	}
	removed, _, err = app.Collect(ctx, 0, false)
	if err != nil || len(removed) != 1 || removed[0] != (layout.Removed{Digest: unused[0].Digest, Size: 3}) {
		t.Errorf("the last: %v, %v", removed, err)
	}
	for _, d := range unused {
		delete(before, filepath.Join("app", sample.Path(d.Digest)))
	}
	same(t, dir, before)
}

// Signing leaves the old manifest and indexes behind; nothing else is ever in the way.
func TestCollectAfterAChange(t *testing.T) {
	l, _ := collectable()
	app := appOf(t, l)
	_, _, err := app.Collect(context.Background(), 0, false)
	must(t, err)
	entry, err := snapshot(t, app).Tag(t.Context(), "x")
	must(t, err)
	images, err := snapshot(t, app).Images(t.Context(), entry)
	must(t, err)
	change, err := annotate(context.Background(), app, string(images[0].Digest), "value")
	must(t, err)
	removed, _, err := app.Collect(context.Background(), 0, false)
	must(t, err)
	var old []string
	for d := range change.Moved {
		old = append(old, string(d))
	}
	slices.Sort(old)
	if !slices.Equal(digests(removed), old) {
		t.Errorf("removed %v, want %v", removed, old)
	}
}

// What is in use is known only if everything that says so can be read.
func TestCollectRefuses(t *testing.T) {
	for name, damage := range map[string]func(f sample.Files, manifest, index v1.Descriptor){
		"a manifest is corrupt": func(f sample.Files, manifest, _ v1.Descriptor) { f[sample.Path(manifest.Digest)][0] = ' ' },
		"an index is corrupt":   func(f sample.Files, _, index v1.Descriptor) { f[sample.Path(index.Digest)][0] = ' ' },
		"an index larger than any manifest is torn": func(f sample.Files, _, index v1.Descriptor) {
			text := f[sample.Path(index.Digest)]
			large := append([]byte(`{"x":"`+strings.Repeat("x", layout.MaxManifest)+`",`), text[1:]...)
			d := digest.FromBytes(large)
			f["index.json"] = bytes.ReplaceAll(f["index.json"], []byte(index.Digest), []byte(d))
			f["index.json"] = bytes.Replace(f["index.json"], fmt.Appendf(nil, `"size":%d`, len(text)), fmt.Appendf(nil, `"size":%d`, len(large)), 1)
			f["blobs/sha256/"+d.Encoded()] = large[:len(large)/2]
		},
		"index.json is corrupt": func(f sample.Files, _, _ v1.Descriptor) { f["index.json"] = f["index.json"][:10] },
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := collectable()
			manifest := l.Image(sample.Linux("riscv64"))
			index := l.Index(manifest)
			l.Tag("y", index)
			files := l.Files()
			damage(files, manifest, index)
			dir := writeApp(t, files)
			before := tree(t, dir)
			removed, _, err := appIn(t, dir).Collect(context.Background(), 0, false)
			want(t, err, layout.ErrCorrupt, "")
			if len(removed) != 0 {
				t.Errorf("removed %v", removed)
			}
			same(t, dir, before)
		})
	}
}

// A sparse index names what is not there; that keeps nothing else from being collected.
func TestCollectSparse(t *testing.T) {
	l, unused := collectable()
	absent := l.Image(sample.Linux("riscv64"))
	l.Tag("y", l.Index(absent))
	files := l.Files()
	delete(files, sample.Path(absent.Digest))
	removed, _, err := appOf(t, files).Collect(context.Background(), 0, true)
	if err != nil || len(removed) != len(unused)+1 { // and the absent image's config
		t.Errorf("%v, %v", removed, err)
	}
}
