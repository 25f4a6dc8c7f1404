package layout_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"irfs/layout"
	"irfs/layout/sample"
)

// Annotating moves digests upward. What that has to give is computed here by replacing text: in the samples' documents a size stands right
// behind its digest.

// A follower replaces, in a text, what refers to old blobs.
type follower struct {
	l     *sample.Layout
	files sample.Files // as they have to be afterwards
	moves []func(text string) string
}

func follow(l *sample.Layout) *follower { return &follower{l: l, files: l.Files()} }

// blob says that the blob of d has to become text, with all that was said before replaced in it.
func (f *follower) blob(d v1.Descriptor, text string) {
	text = f.replace(text)
	is := d.Digest.Algorithm().FromString(text)
	f.files[sample.Path(is)] = []byte(text)
	size := regexp.MustCompile(fmt.Sprintf(`(%s",\s*"size":\s?)%d\b`, d.Digest, d.Size))
	f.moves = append(f.moves, func(in string) string {
		in = size.ReplaceAllString(in, fmt.Sprintf("${1}%d", len(text)))
		return strings.ReplaceAll(in, string(d.Digest), string(is))
	})
}

func (f *follower) replace(text string) string {
	for _, move := range f.moves {
		text = move(text)
	}
	return text
}

// index says that an index has to follow what was said before.
func (f *follower) index(d v1.Descriptor) { f.blob(d, string(f.l.Bytes(d))) }

// check compares the layout in dir, byte by byte; the old blobs are there still.
func (f *follower) check(t failer, dir string) {
	t.Helper()
	f.files["index.json"] = []byte(f.replace(string(f.files["index.json"])))
	got := map[string]bool{}
	must(t, filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		short, _ := filepath.Rel(dir, name)
		got[short] = true
		data, err := os.ReadFile(name)
		if !bytes.Equal(data, f.files[short]) {
			t.Errorf("%s is\n%s\nwant\n%s", short, data, f.files[short])
		}
		return err
	}))
	for name := range f.files {
		if !got[name] {
			t.Errorf("%s is missing: %s", name, f.files[name])
		}
	}
}

func withAnnotation(l *sample.Layout, d v1.Descriptor, value string) string {
	text := l.Bytes(d)
	return string(text[:len(text)-1]) + fmt.Sprintf(`,"annotations":{"key":%q}}`, value)
}

func TestAnnotateIsCarriedUp(t *testing.T) {
	ctx := context.Background()
	for _, row := range []struct {
		name  string
		build func(l *sample.Layout) (image v1.Descriptor, above []v1.Descriptor) // bottom-up
	}{
		{"an image with a tag", func(l *sample.Layout) (v1.Descriptor, []v1.Descriptor) {
			m := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"))
			l.Tag("x", m)
			return m, nil
		}},
		{"two tags on one manifest", func(l *sample.Layout) (v1.Descriptor, []v1.Descriptor) {
			m := l.Image(sample.Linux("amd64"))
			l.Tag("x", m)
			l.Tag("y", l.Image(sample.Linux("arm64")))
			l.Tag("z", m)
			l.Add(m)
			return m, nil
		}},
		{"13 two tags on one nested index", func(l *sample.Layout) (v1.Descriptor, []v1.Descriptor) {
			m := l.Image(sample.Linux("amd64"))
			index := l.Index(m, l.Image(sample.Linux("arm64")))
			l.Tag("x", index)
			l.Tag("y", index)
			return m, []v1.Descriptor{index}
		}},
		{"13 index in index, by several ways", func(l *sample.Layout) (v1.Descriptor, []v1.Descriptor) {
			m := l.Image(sample.Linux("amd64"))
			inner := l.Index(m)
			middle := l.Index(inner, m, l.Image(sample.Linux("arm64")))
			other := l.Index(m, m)
			outer := l.Index(middle, inner, other)
			l.Tag("x", outer)
			l.Tag("y", inner)
			l.Tag("z", m)
			return m, []v1.Descriptor{inner, middle, other, outer}
		}},
		{"sha512", func(l *sample.Layout) (v1.Descriptor, []v1.Descriptor) {
			l.Algorithm = digest.SHA512
			m := l.Image(sample.Linux("amd64"), sample.Zstd("a", "b"))
			l.Algorithm = digest.SHA256
			index := l.Index(m)
			l.Tag("x", index)
			return m, []v1.Descriptor{index}
		}},
		{"13 Docker's types", func(l *sample.Layout) (v1.Descriptor, []v1.Descriptor) {
			l.Docker = true
			m := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"), sample.Plain("c", "d"))
			list := l.Index(m)
			l.Tag("x", list)
			return m, []v1.Descriptor{list}
		}},
		{"an attestation", func(l *sample.Layout) (v1.Descriptor, []v1.Descriptor) {
			m := l.Image(sample.Linux("amd64"))
			index := l.Index(m, l.Attestation(m))
			l.Tag("x", index)
			return m, []v1.Descriptor{index}
		}},
		{"15 without mediaType", func(l *sample.Layout) (v1.Descriptor, []v1.Descriptor) {
			l.Untyped = true
			m := l.Image(sample.Linux("amd64"))
			index := l.Index(m)
			l.Tag("x", index)
			return m, []v1.Descriptor{index}
		}},
		{"numbers and members that nobody knows", func(l *sample.Layout) (v1.Descriptor, []v1.Descriptor) {
			l.Extra = `"x":[123456789012345678901234567890,1e400,-0.0],"é\u00e9":{"A":null,"a":1}`
			m := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"))
			index := l.Index(m)
			l.Tag("x", index)
			return m, []v1.Descriptor{index}
		}},
		{"indented indexes", func(l *sample.Layout) (v1.Descriptor, []v1.Descriptor) {
			m := l.Image(sample.Linux("amd64"))
			l.Indent = "   "
			inner := l.Index(m)
			l.Indent = "\t"
			outer := l.Index(inner)
			l.Tag("x", outer)
			return m, []v1.Descriptor{inner, outer}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			l := sample.New()
			image, above := row.build(l)
			dir := writeApp(t, l)
			app := appIn(t, dir)
			f := follow(l)
			f.blob(image, withAnnotation(l, image, "value"))
			for _, d := range above {
				f.index(d)
			}
			change, err := annotate(ctx, app, image.Digest.String(), "value")
			must(t, err)
			f.check(t, dir+"/app")
			if len(change.Moved) != 1+len(above) {
				t.Errorf("moved: %v", change.Moved)
			}
			for _, d := range append(above, image) {
				if e, err := snapshot(t, app).Resolve(t.Context(), string(change.Moved[d.Digest])); err != nil || e.Err != nil {
					t.Errorf("%s is not there as %s: %v %v", d.Digest, change.Moved[d.Digest], err, e.Err)
				}
			}

			before := tree(t, dir)
			change, err = annotate(ctx, app, string(change.Moved[image.Digest]), "value")
			if err != nil || len(change.Moved) != 0 {
				t.Errorf("again: moved %v, %v", change.Moved, err)
			}
			same(t, dir, before)
		})
	}
}

// 9: inline data follows; a new annotation is laid out like its neighbours.
func TestAnnotateInlineAndIndented(t *testing.T) {
	l := sample.New()
	l.Indent = "  "
	m := l.Image(sample.Linux("amd64"))
	l.Tag("x", l.Inline(m))
	l.Tag("y", l.Inline(l.Index(l.Inline(m))))
	app := appOf(t, l)
	change, err := annotate(context.Background(), app, "x", "value")
	must(t, err)
	snap := snapshot(t, app)
	for _, tag := range snap.Tags() {
		e, err := snap.Tag(t.Context(), tag)
		must(t, err)
		images, err := snap.Images(t.Context(), e)
		must(t, err)
		for _, e := range append(images, e) {
			got, err := snap.Manifest(t.Context(), e)
			must(t, err)
			if e.Data == nil || !bytes.Equal(e.Data, got.Bytes) {
				t.Errorf("%s: inline data %s, blob %s", tag, e.Data, got.Bytes)
			}
		}
	}
	text := l.Bytes(m)
	end := "\n}\n"
	wanted := string(text[:len(text)-len(end)]) + ",\n  \"annotations\": {\n    \"key\": \"value\"\n  }" + end
	if e, _ := snap.Tag(t.Context(), "x"); string(e.Data) != wanted || change.Moved[m.Digest] != e.Digest {
		t.Errorf("%s\nwant %s", e.Data, wanted)
	}
}

// Whatever is drawn, all bytes but digests, sizes and the annotation stay.
func TestAnnotateAnyLayout(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		l := sample.New()
		dir, err := os.MkdirTemp(t.TempDir(), "")
		must(t, err)
		draw := func(of string, max int) int { return rapid.IntRange(0, max).Draw(r, of) }
		image := l.Image(sample.Linux("amd64"), sample.Plain("a", "b"))
		var above []v1.Descriptor
		all := []v1.Descriptor{image, l.Image(sample.Linux("arm64"))}
		follows := map[digest.Digest]bool{image.Digest: true}
		for i := range draw("indexes", 6) {
			l.Indent = []string{"", " ", "\t"}[draw("indent", 2)]
			l.Extra = []string{"", `"x":1e400`, `"x":{"digest":"y"}`}[draw("extra", 2)]
			var in []v1.Descriptor
			for range 1 + draw("children", 3) {
				in = append(in, all[draw("child", len(all)-1)])
			}
			// Each has a size and digest of its own.
			in = append(in, sample.Annotate(all[1], "i", strings.Repeat("i", 1000*(i+1))))
			d := l.Index(in...)
			if slices.ContainsFunc(in, func(d v1.Descriptor) bool { return follows[d.Digest] }) {
				follows[d.Digest] = true
				above = append(above, d)
			}
			all = append(all, d)
		}
		for i := range 1 + draw("tags", 4) {
			l.Tag(fmt.Sprint(i), all[draw("tagged", len(all)-1)])
		}
		l.Tag("image", image)
		must(t, l.WriteDir(dir+"/app"))
		app := appIn(t, dir)

		entries, err := snapshot(t, app).Entries(t.Context())
		must(t, err)
		reached := map[digest.Digest]bool{}
		for _, e := range entries {
			reached[e.Digest] = true
		}
		f := follow(l)
		f.blob(image, withAnnotation(l, image, "value"))
		for _, d := range above {
			if reached[d.Digest] {
				f.index(d)
			}
		}
		_, err = annotate(context.Background(), app, "image", "value")
		must(t, err)
		f.check(r, dir+"/app")
	})
}

// 15: modes and owners are those of what is replaced.
func TestAnnotateKeepsModes(t *testing.T) {
	l := sample.New()
	l.BlobMode = 0o444
	image := l.Image(sample.Linux("amd64"))
	index := l.Index(image)
	l.Tag("x", index)
	dir := writeApp(t, l)
	file := dir + "/app/index.json"
	must(t, os.Chmod(file, 0o640))
	if os.Getuid() == 0 {
		must(t, os.Chown(file, 1234, 5678))
		must(t, os.Chown(filepath.Join(dir, "app", sample.Path(image.Digest)), 4321, 8765))
	}
	before := tree(t, dir)
	change, err := annotate(context.Background(), appIn(t, dir), image.Digest.String(), "value")
	must(t, err)
	after := tree(t, dir)
	attributes := func(tree map[string]string, name string) string {
		fields := strings.SplitN(tree[name], " ", 3)
		return strings.Join(fields[:2], " ")
	}
	pairs := map[string]string{"app/index.json": "app/index.json"}
	for old, is := range change.Moved {
		pairs["app/"+sample.Path(old)] = "app/" + sample.Path(is)
	}
	if len(pairs) != 3 {
		t.Errorf("moved %v", change.Moved)
	}
	for old, is := range pairs {
		if a, b := attributes(before, old), attributes(after, is); a != b || a == "" {
			t.Errorf("%s has %s, %s has %s", old, a, is, b)
		}
	}
	delete(before, "app/index.json")
	for name := range before {
		if after[name] != before[name] {
			t.Errorf("%s was changed", name)
		}
	}
	if len(after) != len(before)+3 { // index.json and two blobs
		t.Errorf("something is left over: %q", slices.Sorted(maps.Keys(after)))
	}
}

// A blob that is there already under the new digest is used if it is right, and replaced if it is not, whatever it is.
func TestAnnotateOverWhatIsThere(t *testing.T) {
	l := small()
	reference := appOf(t, l)
	change, err := annotate(context.Background(), reference, "x", "value")
	must(t, err)
	snap := snapshot(t, reference)
	e, err := snap.Tag(t.Context(), "x")
	must(t, err)
	m, err := snap.Manifest(t.Context(), e)
	must(t, err)
	for name, put := range map[string]func(file string) error{
		"the same":           func(file string) error { return os.WriteFile(file, m.Bytes, 0o600) },
		"other bytes":        func(file string) error { return os.WriteFile(file, []byte("x"), 0o644) },
		"a FIFO":             func(file string) error { return exec.Command("mkfifo", file).Run() },
		"a symlink to it":    func(file string) error { return os.Symlink("../../../outside", file) },
		"a symlink to /etc":  func(file string) error { return os.Symlink("/etc/passwd", file) },
		"a symlink to a dir": func(file string) error { return os.Symlink("..", file) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeApp(t, l)
			write(t, dir+"/outside", string(m.Bytes))
			must(t, put(filepath.Join(dir, "app", sample.Path(e.Digest))))
			again, err := annotate(context.Background(), appIn(t, dir), "x", "value")
			must(t, err)
			if !maps.Equal(again.Moved, change.Moved) {
				t.Errorf("moved %v, want %v", again.Moved, change.Moved)
			}
			info, err := os.Lstat(filepath.Join(dir, "app", sample.Path(e.Digest)))
			must(t, err)
			data, err := os.ReadFile(filepath.Join(dir, "app", sample.Path(e.Digest)))
			if err != nil || !bytes.Equal(data, m.Bytes) || !info.Mode().IsRegular() {
				t.Errorf("%v %q, %v", info.Mode(), data, err)
			}
			if data, err := os.ReadFile(dir + "/outside"); err != nil || !bytes.Equal(data, m.Bytes) {
				t.Errorf("outside: %q, %v", data, err)
			}
		})
	}
}

// 14: what refers to the old digest is named.
func TestAnnotateNamesWhatIsLeftBehind(t *testing.T) {
	l := sample.New()
	image := l.Image(sample.Linux("amd64"))
	other := l.Image(sample.Linux("arm64"))
	l.Tag("x", image)
	hex := image.Digest.Encoded()
	l.Tag("sha256-"+hex+".sig", l.Artifact("application/cosign", "signature", nil))
	l.Tag("sha256-"+hex, l.Artifact("application/referrers", "fallback", nil))
	l.Tag("sha256-"+hex+"0.sig", other)
	l.Tag("sha256-"+other.Digest.Encoded()+".sig", other)
	referrer := l.Artifact("application/sbom", "of image", &image)
	l.Add(referrer)
	l.Add(l.Artifact("application/sbom", "of other", &other))
	change, err := annotate(context.Background(), appOf(t, l), "x", "value")
	must(t, err)
	wanted := []string{
		fmt.Sprintf("%s (its subject is %s)", referrer.Digest, image.Digest),
		fmt.Sprintf("tag sha256-%s (of %s)", hex, image.Digest),
		fmt.Sprintf("tag sha256-%s.sig (of %s)", hex, image.Digest),
	}
	if !slices.Equal(change.LeftBehind, wanted) {
		t.Errorf("left behind %q\nwant %q", change.LeftBehind, wanted)
	}
}

// Also in an app with more manifests than are read: those that are where tools put them.
func TestWhatIsLeftBehindAmongMany(t *testing.T) {
	const many = 3000 // the limit is 1000
	l := sample.New()
	other := l.Image(sample.Linux("arm64"))
	var image v1.Descriptor
	var referrers []v1.Descriptor
	for i := range many {
		l.Add(l.Artifact("application/sbom", fmt.Sprint(i), &other))
		switch i {
		case 1500:
			image = l.Image(sample.Linux("amd64"))
			l.Tag("x", image)
		case 1501, many - 2:
			referrers = append(referrers, l.Artifact("application/sbom", fmt.Sprint("of image ", i), &image))
			l.Add(referrers[len(referrers)-1])
		}
	}
	change, err := annotate(context.Background(), appOf(t, l), "x", "value")
	must(t, err)
	var wanted []string
	for _, d := range referrers {
		wanted = append(wanted, fmt.Sprintf("%s (its subject is %s)", d.Digest, image.Digest))
	}
	slices.Sort(wanted)
	if !slices.Equal(change.LeftBehind, wanted) {
		t.Errorf("left behind %q\nwant %q", change.LeftBehind, wanted)
	}
}

// A file that grows while its bytes are compared is not read to a far end.
func TestIndexThatGrowsWhileItIsCompared(t *testing.T) {
	dir := t.TempDir()
	l := sample.New()
	l.Tag("x", l.Image(sample.Linux("amd64")))
	must(t, l.WriteDir(dir+"/app"))
	name := dir + "/app/index.json"
	text, err := os.ReadFile(name)
	must(t, err)
	text = append(text, bytes.Repeat([]byte(" "), 32<<20)...)
	must(t, os.WriteFile(name, text, 0o644))
	app, err := registry(t, dir).App("app")
	must(t, err)
	_, err = app.Snapshot(t.Context())
	must(t, err)
	for wait := range 10 {
		grown := make(chan error)
		go func() {
			time.Sleep(time.Duration(wait) * time.Millisecond)
			grown <- os.Truncate(name, 1<<40)
		}()
		snap, err := app.Snapshot(t.Context()) // it changed lately, so its bytes are compared
		must(t, err)
		must(t, <-grown)
		if snap.Err != nil && !errors.Is(snap.Err, layout.ErrLimit) {
			t.Error(snap.Err)
		}
		must(t, os.WriteFile(name, text, 0o644))
	}
}

// 33: whoever changes an app, in this process or another, the others wait.
func TestAnnotateInParallel(t *testing.T) {
	const images = 20
	l := sample.New()
	var list []v1.Descriptor
	for i := range images {
		list = append(list, l.Image(sample.Linux("amd64"), sample.Plain("a", fmt.Sprint(i))))
		l.Tag(fmt.Sprint(i), list[i])
	}
	l.Tag("index", l.Index(list...))
	dir := writeApp(t, l)
	one, two := appIn(t, dir), appIn(t, dir)
	var all sync.WaitGroup
	for i := range images {
		all.Go(func() {
			app := []*layout.App{one, two, appIn(t, dir)}[i%3]
			if _, err := annotate(context.Background(), app, fmt.Sprint(i), "value"); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	all.Wait()
	snap := snapshot(t, one)
	index, err := snap.Tag(t.Context(), "index")
	must(t, err)
	inIndex, err := snap.Images(t.Context(), index)
	must(t, err)
	for i := range images {
		e, err := snap.Tag(t.Context(), fmt.Sprint(i))
		must(t, err)
		m, err := snap.Manifest(t.Context(), e)
		must(t, err)
		if m.Doc.Annotations["key"] != "value" || inIndex[i].Digest != e.Digest {
			t.Errorf("%d: %s, in the index %s", i, m.Bytes, inIndex[i].Digest)
		}
	}
	noLeftOvers(t, dir)
}

func noLeftOvers(t testing.TB, dir string) {
	t.Helper()
	for name := range tree(t, dir) {
		if strings.Contains(name, ".irfs") {
			t.Errorf("%s is left over", name)
		}
	}
}

// What a process left that was killed is removed at the next change, what a living one works on is not.
func TestAnnotateRemovesLeftOvers(t *testing.T) {
	dir := writeApp(t, small())
	const dead, alive = "/app/.irfs/.work-deaddeaddeaddeaddeaddeadde", "/app/.irfs/.work-alivealivealivealivealivea"
	for _, name := range []string{dead, alive} {
		must(t, os.MkdirAll(dir+name, 0o700))
	}
	must(t, os.Mkdir(dir+dead+"/deep", 0o755))
	write(t, dir+dead+"/deep/file", "x")
	write(t, dir+alive+"/file", "x")
	must(t, os.Symlink(dir, dir+dead+"/link"))
	release := flock(t, dir+alive)
	_, err := annotate(context.Background(), appIn(t, dir), "x", "value")
	must(t, err)
	if names, _ := filepath.Glob(dir + "/app/.irfs/.*"); len(names) != 1 || names[0] != dir+alive {
		t.Errorf("left: %q", names)
	}
	if _, err := os.Stat(dir + "/app/index.json"); err != nil {
		t.Error(err)
	}
	release()
	_, err = annotate(context.Background(), appIn(t, dir), "x", "another")
	must(t, err)
	noLeftOvers(t, dir)
}

// flock has another process hold a lock until the function that it returns is called.
func flock(t testing.TB, file string) func() {
	t.Helper()
	if _, err := exec.LookPath("flock"); err != nil {
		t.Skip("flock (util-linux) is not installed")
	}
	child := exec.Command("flock", "-x", file, "sh", "-c", "echo held; read x")
	in, err := child.StdinPipe()
	must(t, err)
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("flock: %q, %v", line, err)
	}
	release := sync.OnceFunc(func() {
		io.WriteString(in, "\n")
		child.Wait()
	})
	t.Cleanup(release)
	return release
}

func TestAnnotateWaitsForAnotherProcess(t *testing.T) {
	dir := writeApp(t, small())
	app := appIn(t, dir)
	release := flock(t, dir+"/app/oci-layout")
	before := tree(t, dir)

	t.Run("until the context is done", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := annotate(ctx, app, "x", "value")
		if d := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || d < 100*time.Millisecond || d > time.Second {
			t.Errorf("%v after %v", err, d)
		}
		if _, _, err := app.Collect(ctx, 0, false); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("collect: %v", err)
		}
		same(t, dir, before)
	})
	t.Run("until the lock is free", func(t *testing.T) {
		const held = 500 * time.Millisecond
		start := time.Now()
		timer := time.AfterFunc(held, release)
		defer timer.Stop()
		_, err := annotate(context.Background(), app, "x", "value")
		if d := time.Since(start); err != nil || d < held || d > 5*time.Second {
			t.Errorf("%v after %v", err, d)
		}
	})
	t.Run("in its turn within the process", func(t *testing.T) {
		release := flock(t, dir+"/app/oci-layout")
		first := make(chan error)
		go func() {
			_, err := annotate(context.Background(), app, "x", "first")
			first <- err
		}()
		time.Sleep(20 * time.Millisecond)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if _, err := annotate(ctx, app, "x", "second"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		release()
		must(t, <-first)
	})
}

// Another tool replaces index.json between reading and publishing: what it did stays, and the change is made upon it.
func TestAnnotateUponAnotherToolsChange(t *testing.T) {
	l := small()
	dir := writeApp(t, l)
	app := appIn(t, dir)
	file := dir + "/app/index.json"
	calls := 0
	_, err := app.Annotate(context.Background(), func(snap *layout.Snapshot) ([]layout.Edit, error) {
		calls++
		tag := snap.Tags()[0]
		if calls == 1 {
			text, err := os.ReadFile(file)
			must(t, err)
			write(t, file, strings.Replace(string(text), `"x"`, `"y"`, 1))
		}
		e, err := snap.Tag(t.Context(), tag)
		must(t, err)
		m, err := snap.Manifest(t.Context(), e)
		return []layout.Edit{{Manifest: m, Set: []layout.Annotation{{Key: "key", Value: tag}}}}, err
	})
	must(t, err)
	snap := snapshot(t, app)
	e, err := snap.Tag(t.Context(), "y")
	must(t, err)
	m, err := snap.Manifest(t.Context(), e)
	must(t, err)
	if calls != 2 || m.Doc.Annotations["key"] != "y" {
		t.Errorf("%d calls, %s", calls, m.Bytes)
	}
	noLeftOvers(t, dir)
}
