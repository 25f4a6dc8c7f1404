package layout_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"irfs/layout"
	"irfs/layout/sample"
)

// An archive that says something else of a digest than the app does would make both tags corrupt.
func TestMergeRefusesAnotherDescriptor(t *testing.T) {
	untyped := func() *sample.Layout { l := sample.New(); l.Untyped = true; return l }
	for name, build := range map[string]func(app, archive *sample.Layout){
		"of another type": func(app, archive *sample.Layout) {
			app.Tag("ours", app.Image(sample.Linux("amd64")))
			image := archive.Image(sample.Linux("amd64"))
			image.MediaType = layout.MediaTypeDockerManifest
			archive.Tag("theirs", image)
		},
		"of another size": func(app, archive *sample.Layout) {
			image := app.Image(sample.Linux("amd64"))
			archive.Tag("theirs", archive.Image(sample.Linux("amd64")))
			image.Size++
			app.Tag("ours", image)
		},
		"in an index": func(app, archive *sample.Layout) {
			app.Tag("ours", app.Index(app.Image(sample.Linux("amd64"))))
			image := archive.Image(sample.Linux("amd64"))
			image.MediaType = layout.MediaTypeDockerManifest
			archive.Tag("theirs", archive.Index(image, archive.Image(sample.Linux("arm64"))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			app, theirs := untyped(), untyped()
			build(app, theirs)
			dir := writeApp(t, app)
			before := tree(t, dir)
			// Otherwise Docker's type would become OCI's, as the app has it.
			_, err := importWith(context.Background(), registry(t, dir), "app", archive(t, theirs), layout.OnExistAdd, layout.Intake{Owner: me, KeepAll: true})
			want(t, err, layout.ErrCorrupt, "the archive does not fit")
			same(t, dir, before)
		})
	}
}

// A descriptor comes over as it stands in the archive, with what Go's types have no place for.
func TestMergeKeepsDescriptors(t *testing.T) {
	dir := writeApp(t, small())
	l := sample.New()
	l.Extra = `"x":123456789012345678901234567890,"y":{"Size":1e400,"é\u00e9":[null]}`
	l.Tag("y", l.Image(sample.Linux("arm64")))
	_, err := importAs(context.Background(), registry(t, dir), "app", archive(t, l), layout.OnExistAdd)
	must(t, err)
	text := string(l.Files()["index.json"])
	descriptor := text[strings.Index(text, "[")+1 : strings.Index(text, "}]")]
	if now := string(must2(os.ReadFile(dir + "/app/index.json"))); !strings.Contains(now, l.Extra) || !strings.Contains(now, descriptor) {
		t.Errorf("index.json is\n%s\nwithout\n%s", now, descriptor)
	}
}

// Whoever imports what is there already gets what he asked for all the same: an app that is whole.
func TestMergeRepairs(t *testing.T) {
	ctx := context.Background()
	l, _, _ := two()
	text := archive(t, l)
	for name, damage := range map[string]func(file string) error{
		"other bytes": func(file string) error {
			data, err := os.ReadFile(file)
			if err == nil {
				data[len(data)/2] ^= 1
				err = os.WriteFile(file, data, 0)
			}
			return err
		},
		"cut off": func(file string) error { return os.Truncate(file, 1) },
		"missing": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			reg := registry(t, dir)
			_, err := importAs(ctx, reg, "app", text, layout.OnExistFail)
			must(t, err)
			whole := tree(t, dir)
			for name := range l.Files() {
				if strings.HasPrefix(name, "blobs/") {
					must(t, damage(filepath.Join(dir, "app", name)))
				}
			}
			_, err = importAs(ctx, reg, "app", text, layout.OnExistAdd)
			must(t, err)
			same(t, dir, whole)
		})
	}
}

// A tool that rewrites index.json all the time does not keep an import from its end, for the caller's patience is one.
func TestMergeBesideABusyTool(t *testing.T) {
	l := small()
	dir := writeApp(t, l)
	theirs := sample.New()
	theirs.Tag("y", theirs.Image(sample.Linux("arm64")))
	text := archive(t, theirs)

	stop := make(chan struct{})
	var tool sync.WaitGroup
	defer tool.Wait()
	defer close(stop)
	tool.Go(func() {
		file := dir + "/app/index.json"
		content := string(l.Files()["index.json"])
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			err := os.WriteFile(dir+"/new", []byte(content+strings.Repeat("\n", i%100)), 0o644)
			if err == nil {
				err = os.Rename(dir+"/new", file)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	reg := registry(t, dir)
	staged, err := reg.Stage(context.Background(), bytes.NewReader(text), layout.Intake{Owner: me})
	must(t, err)
	defer staged.Discard()
	ended := make(chan error, 1)
	go func() {
		_, err := staged.Publish(ctx, "app", layout.OnExistAdd)
		ended <- err
	}()
	select {
	case err := <-ended:
		// On a busy machine the tool may have paused for long enough.
		if err != nil && !errors.Is(err, layout.ErrBusy) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want that it is busy", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on and on")
	}
}

// An import is disturbed by a tool that takes the tag, so that its second try fails: what the first brought goes, too.
func TestMergeThatFailsAtItsSecondTry(t *testing.T) {
	l := small()
	dir := writeApp(t, l)
	must(t, os.Chmod(dir+"/app/blobs/sha256", 0o755|os.ModeSticky))
	mine, other := sample.New(), small()
	mine.Tag("y", mine.Image(sample.Linux("arm64"), sample.Gzip("a", "mine")))
	other.Tag("y", other.Image(sample.Linux("arm64"), sample.Gzip("a", "another's")))
	staged, err := registry(t, dir).Stage(context.Background(), bytes.NewReader(archive(t, mine)), layout.Intake{Owner: me})
	must(t, err)
	defer staged.Discard()
	var after map[string]string
	staged.Rights = atBlobs(func() {
		must(t, other.WriteDir(dir+"/new"))
		must(t, os.CopyFS(dir+"/app/blobs/sha256", missingFrom(t, dir+"/new/blobs/sha256", dir+"/app/blobs/sha256")))
		must(t, os.Rename(dir+"/new/index.json", dir+"/app/index.json"))
		after = tree(t, dir+"/app")
	})
	_, err = staged.Publish(context.Background(), "app", layout.OnExistAdd)
	want(t, err, layout.ErrExist, `the tag "y" is there already`)
	same(t, dir+"/app", after)
}

// missingFrom gives the files of one directory that another has not.
func missingFrom(t testing.TB, from, in string) fs.FS {
	t.Helper()
	missing := fstest.MapFS{}
	entries, err := os.ReadDir(from)
	must(t, err)
	for _, e := range entries {
		if _, err := os.Stat(in + "/" + e.Name()); err == nil {
			continue
		}
		data, err := os.ReadFile(from + "/" + e.Name())
		must(t, err)
		missing[e.Name()] = &fstest.MapFile{Data: data, Mode: 0o644}
	}
	return missing
}

// What oci-layout says it says to every reader, whether he folds case or takes the first or the last of two members.
func TestArchiveWithAmbiguousVersion(t *testing.T) {
	for _, text := range []string{
		`{"imageLayoutVersion":"2.0.0","imageLayoutVersion":"1.0.0"}`,
		`{"imageLayoutVersion":"1.0.0","imageLayoutVersion":"1.0.0"}`,
		`{"ImageLayoutVersion":"1.0.0"}`,
		`{"imageLayoutVersion":"2.0.0","IMAGELAYOUTVERSION":"1.0.0"}`,
		`{"imageLayoutVersion":"1.0.0","x":{"y":1,"y":2}}`,
	} {
		t.Run(text, func(t *testing.T) {
			list := members(small())
			for i := range list {
				if list[i].Name == "oci-layout" {
					list[i] = member{tar.Header{Name: "oci-layout"}, text}
				}
			}
			dir := t.TempDir()
			_, err := importAs(context.Background(), registry(t, dir), "app", tarOf(t, list...), layout.OnExistAdd)
			want(t, err, layout.ErrCorrupt, "oci-layout: ")
			if left := tree(t, dir); len(left) != 1 {
				t.Errorf("left: %q", left)
			}
		})
	}
}
