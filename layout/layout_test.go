package layout_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
)

// The language of these tests: a sample is written into a registry of its own as the app "app", and what becomes of it is told by tree,
// which is all there is on disk.

type writer interface{ WriteDir(string) error }

// appOf writes l as the only app of a new registry. Its index.json is old, so that nobody takes it for one that is just being written.
func appOf(t testing.TB, l writer) *layout.App {
	t.Helper()
	return appIn(t, writeApp(t, l))
}

// writeApp is appOf before the registry is opened; it gives the registry's directory.
func writeApp(t testing.TB, l writer) string {
	t.Helper()
	dir := t.TempDir()
	must(t, l.WriteDir(filepath.Join(dir, "app")))
	age(t, filepath.Join(dir, "app/index.json"))
	return dir
}

func age(t testing.TB, file string) {
	t.Helper()
	old := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(file, old, old))
}

// appIn opens the registry in dir and gives its app "app".
func appIn(t testing.TB, dir string) *layout.App {
	t.Helper()
	app, err := registry(t, dir).App("app")
	must(t, err)
	return app
}

func registry(t testing.TB, dir string) *layout.Registry {
	t.Helper()
	reg, err := layout.Open(dir)
	must(t, err)
	t.Cleanup(reg.Close)
	return reg
}

// A failer is a testing.TB or a rapid.T.
type failer interface {
	Helper()
	Errorf(format string, args ...any)
	Fatal(args ...any)
}

func must(t failer, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want fails unless err is of the kind and says the words.
func want(t testing.TB, err, kind error, words string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), words) {
		t.Errorf("error %v, want one that is %q and says %q", err, kind, words)
	}
}

func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	tree, err := sample.Tree(dir)
	must(t, err)
	return tree
}

// same fails unless dir is as it was.
func same(t testing.TB, dir string, before map[string]string) {
	t.Helper()
	after := tree(t, dir)
	for name := range before {
		if after[name] != before[name] {
			t.Errorf("%s was changed from %.200q to %.200q", name, before[name], after[name])
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s is new: %.200q", name, after[name])
		}
	}
}

func snapshot(t testing.TB, app *layout.App) *layout.Snapshot {
	t.Helper()
	snap, err := app.Snapshot(t.Context())
	must(t, err)
	return snap
}

// annotate sets one annotation on the image that ref names, as signing does.
func annotate(ctx context.Context, app *layout.App, ref, value string) (*layout.Change, error) {
	return app.Annotate(ctx, func(snap *layout.Snapshot) ([]layout.Edit, error) {
		e, err := snap.Resolve(ctx, ref)
		if err != nil {
			return nil, err
		}
		m, err := snap.Manifest(ctx, e)
		return []layout.Edit{{Manifest: m, Set: []layout.Annotation{{Key: "key", Value: value}}}}, err
	})
}

// write writes a file in place, as tools do that do not know of rename.
func write(t testing.TB, file, content string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC|os.O_CREATE, 0o644)
	must(t, err)
	_, err = io.WriteString(f, content)
	must(t, err)
	must(t, f.Close())
}

func small() *sample.Layout {
	l := sample.New()
	l.Tag("x", l.Image(sample.Linux("amd64"), sample.Gzip("motd", "hello\n")))
	return l
}

func TestAppsOfARegistry(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"nginx", "library/nginx", "nginx/plugin", "nginx/tags", "nginx/blobs/evil", "nginx/blobs/sha256/a/b", "import", ".hidden", ".irfs/x", "unmarked"} {
		must(t, small().WriteDir(filepath.Join(dir, name)))
	}
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o755))
	must(t, os.Symlink("nginx", filepath.Join(dir, "link")))
	must(t, os.Symlink("empty", filepath.Join(dir, "link-to-no-app")))
	must(t, os.Mkdir(filepath.Join(dir, "fake"), 0o755))
	must(t, os.Symlink("../nginx/oci-layout", filepath.Join(dir, "fake/oci-layout")))
	must(t, os.Remove(filepath.Join(dir, "unmarked/oci-layout")))
	must(t, os.Symlink("nowhere", filepath.Join(dir, "nginx/blobs/sha256/link-to-nothing")))
	must(t, os.Symlink("../../oci-layout", filepath.Join(dir, "nginx/blobs/sha256/link-to-a-file")))
	must(t, os.Symlink("../../../import", filepath.Join(dir, "nginx/blobs/sha256/link")))
	must(t, os.Symlink("link-to-itself", filepath.Join(dir, "link-to-itself")))
	reg := registry(t, dir)
	if reg.IsApp() || !registry(t, filepath.Join(dir, "nginx")).IsApp() || registry(t, filepath.Join(dir, "fake")).IsApp() {
		t.Error("only nginx is an app itself")
	}

	found, err := reg.Apps()
	must(t, err)
	apps := map[string]string{}
	unread := []string{"link", "link-to-no-app", "nginx/blobs/sha256/link", "unmarked"}
	for _, f := range found {
		if f.Shown != (f.Why == "") || f.Unread != slices.Contains(unread, f.Name) {
			t.Errorf("%+v: shown, or a reason; unread are %q", f, unread)
		}
		apps[f.Name] = f.Why
	}
	if want := (map[string]string{
		"nginx": "", "library/nginx": "", "nginx/plugin": "",
		"nginx/tags":      `the name "tags" is taken in a mount; rename the app`,
		"import":          `the name "import" is taken in a mount; rename the app`,
		"link":            "a symbolic link, which is not followed",
		"link-to-no-app":  "a symbolic link, which is not followed",
		"fake/oci-layout": "a symbolic link, which is not followed",
		"link-to-itself":  "a symbolic link, which is not followed",

		"nginx/blobs/evil":        `the name "blobs" is taken in a mount; rename the app`,
		"nginx/blobs/sha256/a/b":  `the name "blobs" is taken in a mount; rename the app`,
		"nginx/blobs/sha256/link": "a symbolic link, which is not followed",
		"unmarked":                "it has an index.json and no oci-layout, so it is no app, but some tools take it for one",
	}); !reflect.DeepEqual(apps, want) {
		t.Errorf("apps %q\nwant %q", apps, want)
	}

	for dir, want := range map[string]string{".": "empty fake library nginx unmarked", "nginx": "plugin", "library": "nginx"} {
		d, err := reg.Dir(dir)
		must(t, err)
		if names, err := reg.Dirs(dir, d); err != nil || strings.Join(names, " ") != want {
			t.Errorf("in %s: %q, %v; want %q", dir, names, err, want)
		}
	}
	for _, name := range []string{"link", "fake", "empty", "library", ".", "..", "../x", "/nginx", "nginx/", "nginx//plugin", ".hidden", ".irfs/x", "none", "nginx\x00", "nginx/index.json", ""} {
		if _, err := reg.App(name); !errors.Is(err, layout.ErrNotFound) {
			t.Errorf("app %q: %v, want that it is not found", name, err)
		}
	}
	if one, _ := reg.App("nginx"); one == nil {
		t.Error("no app nginx")
	} else if two, _ := reg.App("nginx"); one != two {
		t.Error("an app is two")
	}
}

func TestAppThatWentAway(t *testing.T) {
	dir := writeApp(t, small())
	app := appIn(t, dir)
	must(t, os.RemoveAll(dir+"/app"))
	if _, err := app.Snapshot(t.Context()); !errors.Is(err, layout.ErrNotFound) {
		t.Errorf("snapshot: %v", err)
	}
	if _, err := annotate(context.Background(), app, "x", "value"); !errors.Is(err, layout.ErrNotFound) {
		t.Errorf("annotate: %v", err)
	}
}

func TestReferences(t *testing.T) {
	l := sample.New()
	one := l.Image(sample.Linux("amd64"), sample.Plain("a", "1"))
	two := l.Image(sample.Linux("arm64"), sample.Plain("a", "2"))
	l.Algorithm = "sha512"
	three := l.Image(sample.Linux("amd64"))
	index := l.Index(one, two)
	l.Tag("one", one)
	l.Tag("alias", one)
	l.Tag("index", index)
	l.Tag("sha256:latest", three)
	l.Add(three)
	absent := two
	absent.Digest = digest.Digest("sha256:" + hexOf('0'))
	l.Tag("absent", absent)
	snap := snapshot(t, appOf(t, l))

	if tags := strings.Join(snap.Tags(), " "); tags != "absent alias index one sha256:latest" {
		t.Errorf("tags %s", tags)
	}
	if tags := strings.Join(snap.TagsOf(one.Digest), " "); tags != "alias one" {
		t.Errorf("tags of one: %s", tags)
	}
	if tags := snap.TagsOf(two.Digest); tags == nil || len(tags) != 0 {
		t.Errorf("tags of two: %v", tags)
	}
	for ref, want := range map[string]v1.Descriptor{
		"one": one, "alias": one, "index": index, "sha256:latest": three, "absent": absent,
		one.Digest.String(): one, two.Digest.String(): two, three.Digest.String(): three, index.Digest.String(): index,
	} {
		if e, err := snap.Resolve(t.Context(), ref); err != nil || e.Err != nil || e.Digest != want.Digest || e.Size != want.Size {
			t.Errorf("%s: %+v, %v", ref, e, err)
		}
	}
	for _, ref := range []string{"none", "", "sha256:" + hexOf('1'), one.Digest.Encoded()} {
		if _, err := snap.Resolve(t.Context(), ref); !errors.Is(err, layout.ErrNotFound) {
			t.Errorf("%q: %v, want that it is not found", ref, err)
		}
	}
	if _, err := snap.Resolve(t.Context(), "sha256:../../etc/passwd"); !errors.Is(err, layout.ErrDigest) {
		t.Errorf("a malformed digest: %v", err)
	}
	entries, err := snap.Entries(t.Context())
	must(t, err)
	var digests []string
	for _, e := range entries {
		digests = append(digests, e.Digest.String())
	}
	expected := []string{one.Digest.String(), index.Digest.String(), three.Digest.String(), absent.Digest.String(), two.Digest.String()}
	if !slices.Equal(digests, expected) {
		t.Errorf("entries %s\nwant %s", digests, expected)
	}
}

func hexOf(digit byte) string { return strings.Repeat(string(digit), 64) }

// An index.json that was changed in place, to one of the same size, within one tick of the file system's clock and with its times put
// back, shows nothing of that in its status.
func TestChangesThatTimesDoNotShow(t *testing.T) {
	l := small()
	dir := writeApp(t, l)
	app := appIn(t, dir)
	index := string(l.Files()["index.json"])
	info, err := os.Stat(dir + "/app/index.json")
	must(t, err)
	for _, tag := range []string{"x", "y", "z", "x"} {
		write(t, dir+"/app/index.json", strings.Replace(index, `"x"`, `"`+tag+`"`, 1))
		must(t, os.Chtimes(dir+"/app/index.json", info.ModTime(), info.ModTime()))
		if tags := snapshot(t, app).Tags(); len(tags) != 1 || tags[0] != tag {
			t.Errorf("tags %q, want %q", tags, tag)
		}
	}
}

// A tool that writes index.json in place is not seen half way: the last good one serves. What stays torn is corrupt.
func TestTornIndex(t *testing.T) {
	l := small()
	dir := writeApp(t, l)
	file := dir + "/app/index.json"
	app := appIn(t, dir)
	whole := string(l.Files()["index.json"])
	tags := func() string {
		t.Helper()
		snap := snapshot(t, app)
		if snap.Err != nil {
			return snap.Err.Error()
		}
		return strings.Join(snap.Tags(), " ")
	}
	if got := tags(); got != "x" {
		t.Fatalf("tags %s", got)
	}
	for _, torn := range []string{"", whole[:len(whole)/2], whole[:len(whole)-1]} {
		write(t, file, torn)
		if got := tags(); got != "x" {
			t.Errorf("torn after %d bytes: %s", len(torn), got)
		}
		before := tree(t, dir)
		if _, err := annotate(context.Background(), app, "x", "value"); !errors.Is(err, layout.ErrBusy) {
			t.Errorf("torn after %d bytes: annotate: %v, want that it is busy", len(torn), err)
		}
		same(t, dir, before)
	}
	must(t, os.Remove(file))
	if got := tags(); got != "index.json: not there" {
		t.Errorf("removed: %s", got)
	}
	// One that was renamed into its place is whole, so it means what it says.
	write(t, file, whole)
	if got := tags(); got != "x" {
		t.Errorf("there again: %s", got)
	}
	write(t, file+".new", whole[:len(whole)-1])
	must(t, os.Rename(file+".new", file))
	if got := tags(); got == "x" {
		t.Errorf("replaced by one that is damaged: %s", got)
	}
	write(t, file, strings.Replace(whole, `"x"`, `"y"`, 1))
	if got := tags(); got != "y" {
		t.Errorf("whole again: %s", got)
	}

	t.Run("by another tool, all the time", func(t *testing.T) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 50 {
				os.WriteFile(file, []byte(whole[:len(whole)/2]), 0o644)
				time.Sleep(time.Millisecond)
				os.WriteFile(file, []byte(whole), 0o644)
				time.Sleep(time.Millisecond)
			}
		}()
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
			}
			if got := tags(); got != "x" && got != "y" {
				t.Errorf("tags %s", got)
			}
		}
	})

	t.Run("for good", func(t *testing.T) {
		write(t, file, whole[:len(whole)/2])
		age(t, file)
		if got := tags(); got != "index.json: manifests[0].digest: the document ends too early" && !strings.Contains(got, "ends too early") {
			t.Errorf("tags %s", got)
		}
		before := tree(t, dir)
		_, err := annotate(context.Background(), app, "x", "value")
		want(t, err, layout.ErrCorrupt, "ends too early")
		same(t, dir, before)
	})

	t.Run("dated in the future", func(t *testing.T) {
		later := time.Now().Add(time.Hour)
		must(t, os.Chtimes(file, later, later))
		if got := tags(); !strings.Contains(got, "ends too early") {
			t.Errorf("tags %s", got)
		}
	})
}

func TestFilesOfALayout(t *testing.T) {
	l := small()
	dir := writeApp(t, l)
	app := appIn(t, dir)
	must(t, os.Symlink("../../index.json", dir+"/app/blobs/sha256/link"))
	for name, content := range l.Files() {
		blob, err := app.OpenFile(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := io.ReadAll(io.NewSectionReader(blob, 0, blob.Attr.Size))
		if err != nil || string(got) != string(content) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		blob.Close()
	}
	for _, name := range []string{"blobs", "blobs/sha256/link", "none", "blobs/none/none"} {
		if _, err := app.OpenFile(name); !errors.Is(err, layout.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := app.OpenFile("../app/index.json"); err == nil {
		t.Error("a path out of the layout was opened")
	}
	names, err := app.List("blobs/sha256", false)
	must(t, err)
	slices.Sort(names)
	var blobs []string
	for _, name := range slices.Sorted(maps.Keys(l.Files())) {
		if strings.HasPrefix(name, "blobs/") {
			blobs = append(blobs, filepath.Base(name))
		}
	}
	if !slices.Equal(names, blobs) {
		t.Errorf("blobs %q, want %q", names, blobs)
	}
	if _, err := app.Stat("blobs/sha256/link"); !errors.Is(err, layout.ErrNotFound) {
		t.Errorf("a symbolic link: %v", err)
	}
}

func TestPlatformNames(t *testing.T) {
	for _, row := range []struct {
		platform v1.Platform
		name     string
	}{
		{sample.Linux("amd64"), "linux-amd64"},
		{sample.Linux("x86_64/v1"), "linux-amd64"},
		{sample.Linux("amd64/v2"), "linux-amd64-v2"},
		{sample.Linux("arm64/v8"), "linux-arm64"},
		{sample.Linux("aarch64"), "linux-arm64"},
		{sample.Linux("arm"), "linux-arm-v7"},
		{sample.Linux("arm/6"), "linux-arm-v6"},
		{sample.Linux("armhf"), "linux-arm-v7"},
		{sample.Linux("i386"), "linux-386"},
		{v1.Platform{OS: "Windows", Architecture: "AMD64"}, "windows-amd64"},
		{v1.Platform{}, "unknown-unknown"},
	} {
		if got := layout.PlatformName(row.platform); got != row.name {
			t.Errorf("%+v: %s, want %s", row.platform, got, row.name)
		}
	}
}
