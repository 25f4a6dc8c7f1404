package layout_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
)

// What a manifest names is in use, also if irfs does not know the manifest's kind or what it says of it.
func TestCollectKeepsWhatIsOnlyNamed(t *testing.T) {
	const artifact = "application/vnd.oci.artifact.manifest.v1+json" // of OCI image-spec v1.1.0-rc2, and of no later one
	l, unused := collectable()
	named := l.Blob("text/plain", []byte("named by an artifact manifest"))
	subject := l.Blob(v1.MediaTypeImageManifest, []byte("the subject of an artifact manifest"))
	l.Add(l.Document(artifact, map[string]any{"mediaType": artifact, "blobs": []any{named}, "subject": subject}))
	subject = l.Blob(v1.MediaTypeImageManifest, []byte("the subject of an image manifest"))
	l.Add(l.Artifact("application/sbom", "content of another", &subject))
	l.Algorithm = "sha256"
	l.Add(l.Blob("application/x", []byte("not JSON")))

	removed, _, err := appOf(t, l).Collect(context.Background(), 0, false)
	must(t, err)
	var wanted []string
	for _, d := range unused {
		wanted = append(wanted, string(d.Digest))
	}
	slices.Sort(wanted)
	if !slices.Equal(digests(removed), wanted) {
		t.Errorf("removed %q\nwant %q", digests(removed), wanted)
	}
}

// onErr is a context that runs a function each time that somebody asks whether it is done.
type onErr struct {
	context.Context
	do func()
}

func (c onErr) Err() error { c.do(); return c.Context.Err() }

// A tool that does not lock gives a tag to what was in use by nothing, when Collect is about to remove it.
func TestCollectBesideAnotherTool(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, file, content string){
		"renames": func(t *testing.T, file, content string) {
			write(t, file+".new", content)
			must(t, os.Rename(file+".new", file))
		},
		"overwrites": func(t *testing.T, file, content string) { write(t, file, content) },
		"removes":    func(t *testing.T, file, _ string) { must(t, os.Remove(file)) },
	} {
		t.Run(name, func(t *testing.T) {
			l := small()
			before := l.Files()
			image := l.Image(sample.Linux("arm64"), sample.Gzip("a", "b"), sample.Plain("c", "d"))
			l.Tag("new", image)
			after := l.Files()
			content := string(after["index.json"])
			after["index.json"] = before["index.json"]
			dir := writeApp(t, after)

			calls := 0
			unused, _, err := appIn(t, dir).Collect(onErr{context.Background(), func() { calls++ }}, 0, true)
			must(t, err)
			first := calls - len(unused) // is when the first of them is about to be removed
			changed := false
			removed, _, err := appIn(t, dir).Collect(onErr{context.Background(), func() {
				if first--; first < 0 && !changed {
					changed = true
					change(t, dir+"/app/index.json", content)
				}
			}}, 0, false)
			want(t, err, layout.ErrBusy, "another tool is changing this app")
			if len(removed) > 0 || !changed {
				t.Errorf("removed %v; index.json was changed: %v", removed, changed)
			}
			var m v1.Manifest
			must(t, json.Unmarshal(l.Bytes(image), &m))
			for _, d := range append(m.Layers, m.Config, image) {
				if _, err := os.Stat(filepath.Join(dir, "app", sample.Path(d.Digest))); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
