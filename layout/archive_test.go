package layout_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
)

var me = layout.Owner{UID: os.Getuid(), GID: os.Getgid()}

type tarWriter interface{ WriteTar(io.Writer) error }

func archive(t testing.TB, l tarWriter) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, l.WriteTar(&b))
	return b.Bytes()
}

// A member of an archive, with a regular file's header unless told otherwise.
type member struct {
	tar.Header
	content string
}

// tarOf is an archive of members.
func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if m.Mode == 0 {
			m.Mode = 0o644
		}
		m.Size = int64(len(m.content))
		must(t, w.WriteHeader(&m.Header))
		_, err := io.WriteString(w, m.content)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// members are the files of a layout, to which a test adds.
func members(l *sample.Layout) []member {
	var list []member
	files := l.Files()
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range files {
			if !yield(name) {
				return
			}
		}
	}) {
		list = append(list, member{tar.Header{Name: name}, string(files[name])})
	}
	return list
}

func importAs(ctx context.Context, reg *layout.Registry, name string, archive []byte, onExist layout.OnExist) ([]layout.Imported, error) {
	return importWith(ctx, reg, name, archive, onExist, layout.Intake{Owner: me, App: name})
}

func importWith(ctx context.Context, reg *layout.Registry, name string, archive []byte, onExist layout.OnExist, in layout.Intake) ([]layout.Imported, error) {
	staged, err := reg.Stage(ctx, bytes.NewReader(archive), in)
	if err != nil {
		return nil, err
	}
	defer staged.Discard()
	return staged.Publish(ctx, name, onExist)
}

func two() (l *sample.Layout, image, index v1.Descriptor) {
	l = sample.New()
	image = l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"), sample.Plain("c", "d"))
	index = l.Index(image, l.Image(sample.Linux("arm64"), sample.Zstd("a", "b")))
	l.Tag("one", image)
	l.Tag("two", index)
	return l, image, index
}

func TestImport(t *testing.T) {
	ctx := context.Background()
	l, image, index := two()
	text := archive(t, l)
	for _, name := range []string{"nginx", "library/nginx", "a/b/c/d"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			reg := registry(t, dir)
			staged, err := reg.Stage(ctx, iotest.OneByteReader(bytes.NewReader(text)), layout.Intake{Owner: me})
			must(t, err)
			if apps, err := reg.Apps(); err != nil || len(apps) != 0 {
				t.Errorf("before it is published: %v, %v", apps, err)
			}
			list, err := staged.Publish(ctx, name, layout.OnExistFail)
			must(t, err)
			wanted := []layout.Imported{{App: name, Tag: "one", Digest: image.Digest}, {App: name, Tag: "two", Digest: index.Digest}}
			if !slices.Equal(list, wanted) {
				t.Errorf("imported %v", list)
			}
			whole := t.TempDir()
			must(t, l.WriteDir(filepath.Join(whole, name)))
			must(t, os.Chmod(whole, must2(os.Stat(dir)).Mode().Perm()))
			same(t, dir, tree(t, whole))
			staged.Discard()
			same(t, dir, tree(t, whole))
		})
	}
}

func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestImportOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := t.TempDir()
	reg := registry(t, dir)
	l, _, _ := two()
	staged, err := reg.Stage(context.Background(), bytes.NewReader(archive(t, l)), layout.Intake{Owner: layout.Owner{UID: 1234, GID: 5678}})
	must(t, err)
	_, err = staged.Publish(context.Background(), "a/b", layout.OnExistFail)
	must(t, err)
	for name, text := range tree(t, dir) {
		if name != "." && !strings.Contains(text, " 1234:5678 ") {
			t.Errorf("%s: %.60s", name, text)
		}
	}
}

// What tools write into the archive beside the layout is passed over; names may begin with ./; what nothing refers to is dropped.
func TestImportOddButGood(t *testing.T) {
	l, _, _ := two()
	wanted := l.Files()
	l.Blob("text/plain", []byte("unused"))
	odd := []member{{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700}, ""}}
	for _, m := range members(l) {
		m.Name = "./" + m.Name
		m.Mode = 0o4755
		m.Uid, m.Gid = 4711, 4712
		m.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "x", "comment": "x"}
		odd = append(odd, m)
	}
	odd = append(odd, member{tar.Header{Name: "manifest.json"}, "[]"}, member{tar.Header{Name: "repositories"}, "{}"})
	dir := t.TempDir()
	_, err := importAs(context.Background(), registry(t, dir), "app", append(tarOf(t, odd...), make([]byte, 8192)...), layout.OnExistFail)
	must(t, err)
	whole := t.TempDir()
	must(t, wanted.WriteDir(whole+"/app"))
	must(t, os.Chmod(whole, must2(os.Stat(dir)).Mode().Perm()))
	same(t, dir, tree(t, whole))
}

// GNU tar's own archives, in each of its formats.
func TestImportFromGNUTar(t *testing.T) {
	l, _, _ := two()
	from := t.TempDir()
	must(t, l.WriteDir(from))
	for _, format := range []string{"gnu", "oldgnu", "pax", "posix", "ustar"} {
		text, err := exec.Command("tar", "-cf", "-", "--format="+format, "-C", from, ".").Output()
		must(t, err)
		if _, err := importAs(context.Background(), registry(t, t.TempDir()), "app", text, layout.OnExistFail); err != nil {
			t.Errorf("%s: %v", format, err)
		}
	}
}

// Rows are numbered as in HOSTILE. Every one is refused, and leaves the registry as it was.
func TestArchivesRefused(t *testing.T) {
	l, image, index := two()
	good := archive(t, l)
	var layer v1.Descriptor
	for name, data := range l.Files() {
		if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
			layer.Digest = digest.Digest("sha256:" + filepath.Base(name))
		}
	}
	with := func(more ...member) []byte { return tarOf(t, append(members(l), more...)...) }
	without := func(d digest.Digest) []byte {
		files := l.Files()
		if _, ok := files[sample.Path(d)]; !ok {
			t.Fatalf("%s is not there", d)
		}
		delete(files, sample.Path(d))
		return archive(t, files)
	}
	files := func(change func(f sample.Files)) []byte {
		f := l.Files()
		change(f)
		return archive(t, f)
	}
	entry := func(flag byte, name, target string) []byte {
		return with(member{tar.Header{Typeflag: flag, Name: name, Linkname: target}, ""})
	}
	sparse := func(format string) []byte {
		from := t.TempDir()
		must(t, l.WriteDir(from))
		must(t, os.WriteFile(from+"/hole", []byte("x"), 0o644))
		must(t, os.Truncate(from+"/hole", 64<<20))
		text, err := exec.Command("tar", append([]string{"-Scf", "-", "-C", from}, append(strings.Fields(format), "--transform=s|hole|blobs/sha256/"+hexOf('c')+"|", ".")...)...).Output()
		must(t, err)
		return text
	}
	end := bytes.LastIndexFunc(good, func(r rune) bool { return r != 0 })
	for _, row := range []struct {
		name    string
		archive []byte
		kind    error
		reason  string
	}{
		{"23 absolute name", with(member{tar.Header{Name: "/etc/x"}, "x"}), layout.ErrCorrupt, `"/etc/x": not a path inside the archive`},
		{"23 absolute name of a directory", entry(tar.TypeDir, "/etc/", ""), layout.ErrCorrupt, "not a path inside the archive"},
		{"23 .. name", with(member{tar.Header{Name: "../x"}, "x"}), layout.ErrCorrupt, "not a path inside the archive"},
		{"23 .. in the middle", with(member{tar.Header{Name: "blobs/../../x"}, "x"}), layout.ErrCorrupt, "not a path inside the archive"},
		{"23 symlink", entry(tar.TypeSymlink, "blobs/sha512", "/etc"), layout.ErrCorrupt, "neither a regular file nor a directory"},
		{"23 symlink in the place of index.json", tarOf(t, append([]member{{tar.Header{Typeflag: tar.TypeSymlink, Name: "index.json", Linkname: "/etc/x"}, ""}}, members(l)...)...), layout.ErrCorrupt, "neither a regular file nor a directory"},
		{"23 hard link", entry(tar.TypeLink, "blobs/sha256/"+hexOf('c'), "/etc/passwd"), layout.ErrCorrupt, "neither a regular file nor a directory"},
		{"23 FIFO", entry(tar.TypeFifo, "fifo", ""), layout.ErrCorrupt, "neither a regular file nor a directory"},
		{"23 device", entry(tar.TypeChar, "null", ""), layout.ErrCorrupt, "neither a regular file nor a directory"},
		{"24 sparse, GNU", sparse("--format=gnu"), layout.ErrCorrupt, "neither a regular file nor a directory"},
		{"24 sparse, PAX 1.0", sparse("--format=pax --sparse-version=1.0"), layout.ErrCorrupt, "a sparse file"},
		{"24 sparse, PAX 0.1", sparse("--format=pax --sparse-version=0.1"), layout.ErrCorrupt, "a sparse file"},
		{"25 nothing", nil, layout.ErrIncomplete, "its end is missing"},
		{"25 only an end", make([]byte, 1024), layout.ErrCorrupt, "it has neither oci-layout and index.json nor manifest.json"},
		{"25 truncated in a header", good[:100], layout.ErrIncomplete, "cut off"},
		{"25 truncated in a file", good[:len(good)/2+17], layout.ErrIncomplete, "cut off"},
		{"25 truncated in the last file", good[:end-3], layout.ErrIncomplete, "cut off"},
		{"25 truncated in the padding", good[:end+3], layout.ErrIncomplete, "cut off"},
		{"25 no end blocks", good[:len(good)-1024], layout.ErrIncomplete, "its end is missing"},
		{"25 one end block", good[:len(good)-512], layout.ErrIncomplete, "its end is missing"},
		{"25 data after the end", append(bytes.Clone(good), 'x'), layout.ErrCorrupt, "there is data after its end"},
		{"25 data far after the end", append(append(bytes.Clone(good), make([]byte, 1<<20)...), 'x'), layout.ErrCorrupt, "there is data after its end"},
		{"25 concatenated", slices.Concat(good, good), layout.ErrCorrupt, "there is data after its end"},
		{"25 duplicate name", with(member{tar.Header{Name: "index.json"}, "{}"}), layout.ErrCorrupt, `"index.json": twice in the archive`},
		{"25 duplicate name, spelled otherwise", with(member{tar.Header{Name: ".//.//index.json"}, "{}"}), layout.ErrCorrupt, "twice in the archive"},
		{"25 not a tar", []byte(strings.Repeat("hello, world\n", 200)), layout.ErrCorrupt, "not a tar archive"},
		{"26 wrong blob", files(func(f sample.Files) { f[sample.Path(image.Digest)][0] = ' ' }), layout.ErrCorrupt, "its bytes do not have this digest"},
		{"26 wrong blob that nothing needs", with(member{tar.Header{Name: "blobs/sha256/" + hexOf('d')}, "x"}), layout.ErrCorrupt, "its bytes do not have this digest"},
		{"26 no layer", without(layer.Digest), layout.ErrMissing, "not in the layout"},
		{"26 no manifest", without(image.Digest), layout.ErrMissing, "not in the layout"},
		{"26 no index", without(index.Digest), layout.ErrMissing, "not in the layout"},
		{"26 malformed digest", with(member{tar.Header{Name: "blobs/sha256/x"}, "x"}), layout.ErrCorrupt, "is not a digest"},
		{"26 deeper than a blob", with(member{tar.Header{Name: "blobs/sha256/" + hexOf('d') + "/x"}, "x"}), layout.ErrCorrupt, "is not a digest"},
		{"26 unknown algorithm", with(member{tar.Header{Name: "blobs/md5/x"}, "x"}), layout.ErrCorrupt, "is not a digest"},
		{"26 no index.json", files(func(f sample.Files) { delete(f, "index.json") }), layout.ErrCorrupt, "an oci-layout and no index.json"},
		{"26 no oci-layout", files(func(f sample.Files) { delete(f, "oci-layout") }), layout.ErrCorrupt, "an index.json and no oci-layout"},
		{"26 oci-layout of another version", files(func(f sample.Files) { f["oci-layout"] = []byte(`{"imageLayoutVersion":"2.0.0"}`) }), layout.ErrCorrupt, `imageLayoutVersion is "2.0.0"`},
		{"26 index.json is corrupt", files(func(f sample.Files) { f["index.json"] = append(f["index.json"], '}') }), layout.ErrCorrupt, "something after the end"},
		{"26 no image", archive(t, sample.New()), layout.ErrCorrupt, "lists no image"},
		{"26 a tag twice", files(func(f sample.Files) {
			f["index.json"] = bytes.Replace(f["index.json"], []byte(`"two"`), []byte(`"one"`), 1)
		}), layout.ErrCorrupt, `"one" and "one" would both get the tag "one"`},
		{"26 size of a layer", func() []byte {
			l := sample.New()
			y := sample.Plain("a", "b")
			d := l.Blob(v1.MediaTypeImageLayer, y.Blob())
			d.Size++
			l.Tag("x", l.Manifest(v1.Manifest{Config: l.Document(v1.MediaTypeImageConfig, v1.Image{}), Layers: []v1.Descriptor{d}}))
			return archive(t, l)
		}(), layout.ErrCorrupt, "bytes, and not the"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, small().WriteDir(dir+"/other"))
			before := tree(t, dir)
			_, err := importAs(context.Background(), registry(t, dir), "app", row.archive, layout.OnExistAdd)
			want(t, err, row.kind, row.reason)
			if !errors.Is(err, layout.ErrCorrupt) {
				t.Errorf("%v is not an ErrCorrupt", err)
			}
			same(t, dir, before)
		})
	}
}

// 25: entries are limited, and cost nothing before they are refused.
func TestArchiveOfTooManyEntries(t *testing.T) {
	r, w := io.Pipe()
	go func() {
		t := tar.NewWriter(w)
		for i := 0; ; i++ {
			if t.WriteHeader(&tar.Header{Name: fmt.Sprint("x/", i), Typeflag: tar.TypeReg}) != nil {
				return
			}
		}
	}()
	defer r.Close()
	dir := t.TempDir()
	before := tree(t, dir)
	_, err := registry(t, dir).Stage(context.Background(), r, layout.Intake{Owner: me})
	want(t, err, layout.ErrLimit, "over the limit of 100000 entries")
	same(t, dir, before)
}

// What the reader or the context says comes through as it is.
func TestStageInterrupted(t *testing.T) {
	l, _, _ := two()
	text := archive(t, l)
	dir := t.TempDir()
	reg := registry(t, dir)
	before := tree(t, dir)
	trouble := errors.New("trouble")
	if _, err := reg.Stage(context.Background(), io.MultiReader(bytes.NewReader(text[:2000]), iotest.ErrReader(trouble)), layout.Intake{Owner: me}); !errors.Is(err, trouble) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := reg.Stage(ctx, io.MultiReader(bytes.NewReader(text[:2000]), onRead(cancel), bytes.NewReader(text[2000:])), layout.Intake{Owner: me}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	same(t, dir, before)
	staged, err := reg.Stage(context.Background(), bytes.NewReader(text), layout.Intake{Owner: me})
	must(t, err)
	if _, err := staged.Publish(ctx, "app", layout.OnExistAdd); !errors.Is(err, context.Canceled) {
		t.Errorf("publish: %v", err)
	}
	staged.Discard()
	same(t, dir, before)
}

type onRead func()

func (f onRead) Read([]byte) (int, error) { f(); return 0, io.EOF }

// 27: names that no app may have.
func TestImportNames(t *testing.T) {
	dir := t.TempDir()
	must(t, small().WriteDir(dir+"/nginx"))
	write(t, dir+"/file", "x")
	must(t, os.Mkdir(dir+"/space", 0o755))
	must(t, os.Symlink("nginx", dir+"/link"))
	before := tree(t, dir)
	l, _, _ := two()
	reg := registry(t, dir)
	staged, err := reg.Stage(context.Background(), bytes.NewReader(archive(t, l)), layout.Intake{Owner: me})
	must(t, err)
	for _, name := range []string{"", ".", "..", ".x", "a/.x", "../x", "a/../b", "/a", "a/", "a//b", ".irfs", "import", "a\nb", "a\x00b", "a\xffb", "a\x7f",
		strings.Repeat("a", 256), "a/" + strings.Repeat("a", 256), "import/a", "nginx/tags", "nginx/blobs", "nginx/manifests", "nginx/index.json", "nginx/tags/a"} {
		if _, err := staged.Publish(context.Background(), name, layout.OnExistAdd); !errors.Is(err, layout.ErrName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"nginx", "space", "file", "link"} {
		if _, err := staged.Publish(context.Background(), name, layout.OnExistFail); !errors.Is(err, layout.ErrExist) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"file/x", "link/x"} {
		if _, err := staged.Publish(context.Background(), name, layout.OnExistAdd); err == nil {
			t.Errorf("%q was published", name)
		}
	}
	staged.Discard()
	same(t, dir, before)
	if _, err := layout.ParseOnExist("replace"); err == nil {
		t.Error("an unknown word for what to do when the app exists")
	}
}

func TestImportIntoAnApp(t *testing.T) {
	ctx := context.Background()
	l, image, index := two()
	text := archive(t, l)
	// There is one app with the tag "one" on the same image, an image of its own, and a wrong layer.
	was := sample.New()
	was.Indent = "\t"
	was.Extra = `"x":1e400`
	was.Tag("own", was.Image(sample.Linux("arm64"), sample.Plain("own", "content")))
	was.Extra = ""
	other := sample.New()
	other.Tag("one", other.Image(sample.Linux("arm64")))

	t.Run("add", func(t *testing.T) {
		dir := writeApp(t, was)
		must(t, os.Chmod(dir+"/app/index.json", 0o600))
		wrong := filepath.Join(dir, "app", sample.Path(image.Digest))
		write(t, wrong, "not these bytes")
		reg := registry(t, dir)
		app := must2(reg.App("app"))
		snapshot(t, app)
		list, err := importAs(ctx, reg, "app", text, layout.OnExistAdd)
		must(t, err)
		if len(list) != 2 || list[0].Tag != "one" || list[1].Digest != index.Digest {
			t.Errorf("imported %v", list)
		}
		snap := snapshot(t, app)
		if tags := strings.Join(snap.Tags(), " "); tags != "one own two" {
			t.Errorf("tags %s", tags)
		}
		old := string(was.Files()["index.json"])
		now := must2(os.ReadFile(dir + "/app/index.json"))
		// What was there stays as it was, up to the end of the list.
		if kept := old[:strings.LastIndex(old, "\n\t]")]; !strings.HasPrefix(string(now), kept+",\n\t\t{") {
			t.Errorf("index.json was\n%s\nand is\n%s", old, now)
		}
		if mode := must2(os.Stat(dir + "/app/index.json")).Mode(); mode != 0o600 {
			t.Errorf("mode %v", mode)
		}
		for _, tag := range snap.Tags() {
			if word, reason := verdict(t, app, tag, true); word != "unsigned" {
				t.Errorf("%s: %s, %s", tag, word, reason)
			}
		}
		noLeftOvers(t, dir)

		before := tree(t, dir)
		_, err = importAs(ctx, reg, "app", text, layout.OnExistAdd)
		must(t, err)
		same(t, dir, before)
	})
	for _, row := range []struct {
		name    string
		was     *sample.Layout
		onExist layout.OnExist
		reason  string
	}{
		{"fail", was, layout.OnExistFail, "the app is there already"},
		{"a tag would move", other, layout.OnExistAdd, `the tag "one" is there already, and names another image`},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := writeApp(t, row.was)
			before := tree(t, dir)
			_, err := importAs(ctx, registry(t, dir), "app", text, row.onExist)
			want(t, err, layout.ErrExist, row.reason)
			same(t, dir, before)
		})
	}
	t.Run("that is corrupt", func(t *testing.T) {
		files := was.Files()
		files["index.json"] = files["index.json"][:20]
		dir := writeApp(t, files)
		before := tree(t, dir)
		_, err := importAs(ctx, registry(t, dir), "app", text, layout.OnExistAdd)
		want(t, err, layout.ErrCorrupt, "index.json")
		same(t, dir, before)
	})
}

// A staged app can be changed before it is published: nobody ever sees it otherwise.
func TestImportSigned(t *testing.T) {
	l, image, _ := two()
	dir := t.TempDir()
	reg := registry(t, dir)
	staged, err := reg.Stage(context.Background(), bytes.NewReader(archive(t, l)), layout.Intake{Owner: me})
	must(t, err)
	outcome, err := signRef(t, staged.App, "two")
	must(t, err)
	list, err := staged.Publish(context.Background(), "app", layout.OnExistFail)
	must(t, err)
	if len(outcome.Images) != 2 || list[0].Digest != outcome.Moved(image.Digest) || list[0].Digest == image.Digest {
		t.Errorf("signed %v, imported %v", outcome.Images, list)
	}
	for _, tag := range []string{"one", "two"} {
		if word, reason := verdict(t, must2(reg.App("app")), tag, true); word != "verified" {
			t.Errorf("%s: %s, %s", tag, word, reason)
		}
	}
	noLeftOvers(t, dir)
}
