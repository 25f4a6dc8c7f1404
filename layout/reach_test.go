package layout_test

import (
	"context"
	"encoding/base64"
	"errors"
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

// base64In is text as inline data in a document.
func base64In(text string) string {
	return `{"data":"` + base64.StdEncoding.EncodeToString([]byte(text)) + `"}`
}

// escapedJSON is text with each character as \uXXXX.
func escapedJSON(text string) string {
	var b strings.Builder
	for _, c := range text {
		fmt.Fprintf(&b, `\u%04x`, c)
	}
	return b.String()
}

// Whatever way a document names a blob, that is kept, with all that it names itself; what no document names is not.
func TestCollectKeepsWhatDocumentsName(t *testing.T) {
	const buffer = 128 << 10
	quoted := func(form func(d digest.Digest) string) func(d digest.Digest) string {
		return func(d digest.Digest) string { return `{"x":["` + form(d) + `"]}` }
	}
	text := func(d digest.Digest) string { return string(d) }
	nested := func(depth int, form func(d digest.Digest) string) func(d digest.Digest) string {
		return func(d digest.Digest) string {
			doc := form(d)
			for range depth {
				doc = base64In(doc)
			}
			return doc
		}
	}
	type row struct {
		name     string
		document func(d digest.Digest) string
	}
	rows := []row{
		{"a string", quoted(text)},
		{"a member's name", func(d digest.Digest) string { return `{"` + string(d) + `":1}` }},
		{"within a string", quoted(func(d digest.Digest) string { return "docker.io/library/x@" + string(d) + "#y" })},
		{"a tag of cosign's", quoted(func(d digest.Digest) string { return strings.Replace(string(d), ":", "-", 1) + ".sig" })},
		{"a path", quoted(func(d digest.Digest) string { return sample.Path(d) })},
		{"a path with escapes", quoted(func(d digest.Digest) string { return strings.ReplaceAll(sample.Path(d), "/", `\/`) })},
		{"a path with backslashes, in what is no JSON", func(d digest.Digest) string {
			return `{` + strings.ReplaceAll(sample.Path(d), "/", `\`)
		}},
		{"a package URL", quoted(func(d digest.Digest) string { return "pkg:oci/x@" + strings.Replace(string(d), ":", "%3A", 1) })},
		{"upper case", quoted(func(d digest.Digest) string { return strings.ToUpper(string(d)) })},
		{"escapes", quoted(func(d digest.Digest) string { return escapedJSON(string(d)) })},
		{"one escape among the digits", quoted(func(d digest.Digest) string { return string(d[:20]) + escapedJSON(string(d[20:21])) + string(d[21:]) })},
		{"an escaped colon", quoted(func(d digest.Digest) string { return strings.Replace(string(d), ":", `\u003A`, 1) })},
		{"JSON in a string, twice", quoted(func(d digest.Digest) string { return `{\"x\":\"{\\\"y\\\":\\\"` + string(d) + `\\\"}\"}` })},
		{"inline data", nested(1, quoted(text))},
		{"inline data in inline data, and so on", nested(12, quoted(text))},
		{"inline data behind white space", nested(1, func(d digest.Digest) string { return " \n\t[\"" + string(d) + `"]` })},
		{"inline data with escaped line ends and slashes", func(d digest.Digest) string {
			data := base64.StdEncoding.EncodeToString([]byte(`{"???":"` + string(d) + `"}`))
			return `{"data":"` + strings.ReplaceAll(data[:17]+`\n`+data[17:31]+`\r\n`+data[31:], "/", `\/`) + `"}`
		}},
		{"a payload in base64url, not padded", func(d digest.Digest) string {
			return `{"payload":"` + base64.RawURLEncoding.EncodeToString([]byte(`{"???":"`+string(d)+`"}`)) + `"}`
		}},
		{"inline data that is a string", nested(1, func(d digest.Digest) string { return `"` + string(d) + `"` })},
		{"inline data in a string in inline data", nested(1, func(d digest.Digest) string {
			return `"` + base64.StdEncoding.EncodeToString([]byte(` "`+string(d)+`"`)) + `"`
		})},
		{"a string alone", func(d digest.Digest) string { return `"` + string(d) + `"` }},
		{"inline data that end within a digest's last byte", nested(1, func(d digest.Digest) string { return `{ "` + string(d) })},
		{"white space first", func(d digest.Digest) string {
			return strings.Repeat(" \r\n\t", buffer/3) + `{"x":"` + string(d) + `"}`
		}},
		{"a byte order mark", func(d digest.Digest) string { return "\ufeff" + `{"x":"` + string(d) + `"}` }},
		{"no JSON", func(d digest.Digest) string { return `{` + string(d) }},
		{"no UTF-8, and cut in an escape", func(d digest.Digest) string { return "{\xff\x00" + string(d) + `\u0` }},
		{"brackets without end", func(d digest.Digest) string { return strings.Repeat("{", 20<<20) + string(d) }},
		{"hex digits without end", func(d digest.Digest) string {
			return `{` + strings.Repeat("0a", 1<<20) + ":" + strings.Repeat("f", 1001) + " " + string(d)
		}},
	}
	for _, part := range []int{0, 1, 6, 7, 8, 40, 70, 71} {
		rows = append(rows, row{fmt.Sprintf("divided among two buffers, %d bytes in the first", part), func(d digest.Digest) string {
			return "{" + strings.Repeat(" ", 4<<10+buffer-1-part) + string(d)
		}})
	}
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		l := sample.New()
		l.Algorithm = algorithm
		unused := []digest.Digest{l.Blob("x", []byte("nothing names this")).Digest}
		used := map[digest.Digest]string{}
		for _, row := range rows {
			leaf := l.Blob("x", []byte("a leaf of "+row.name)).Digest
			middle := l.Blob("x", []byte(`{"layers":["`+leaf+`"]}`)).Digest
			document := l.Blob("application/vnd.acme", []byte(row.document(middle)))
			document.Annotations = map[string]string{"name": row.name}
			l.Add(document)
			used[leaf], used[middle], used[document.Digest] = row.name, row.name, row.name
			other := l.Blob("x", []byte("named by its hex digits alone by "+row.name)).Digest
			document = l.Blob("application/vnd.acme", []byte(fmt.Sprintf(`{"digest":{%q:%q}}`, algorithm, other.Encoded())))
			l.Add(document)
			unused = append(unused, other)
			used[document.Digest] = row.name
		}
		dir := writeApp(t, l)
		removed, kept, err := appIn(t, dir).Collect(context.Background(), 0, false)
		must(t, err)
		if len(removed) != len(unused) {
			t.Errorf("%s: %d blobs were removed, and %d are named by nothing", algorithm, len(removed), len(unused))
		}
		for _, r := range removed {
			if !slices.Contains(unused, r.Digest) {
				t.Errorf("%s was removed", r.Digest)
			}
		}
		for d, name := range used {
			if _, err := os.Stat(filepath.Join(dir, "app", sample.Path(d))); err != nil {
				t.Errorf("%s, %s: %v", algorithm, name, err)
			}
		}
		if len(kept) != 2*len(rows) { // each row's leaf and middle
			t.Errorf("%s: %d are named for being kept, of %d", algorithm, len(kept), 2*len(rows))
		}
	}
}

// What is kept that no image or index uses is told, with what names it, and so is what is young.
func TestCollectTellsWhatItKeeps(t *testing.T) {
	l := sample.New()
	base := l.Blob("text/plain", []byte("a base that an annotation of a manifest names"))
	byConfig := l.Blob("text/plain", []byte("what a config names"))
	config := l.Document(v1.MediaTypeImageConfig, map[string]any{"x": byConfig.Digest})
	l.Add(l.Manifest(v1.Manifest{Config: config, Layers: []v1.Descriptor{}, Annotations: map[string]string{"base": "docker.io/x@" + string(base.Digest)}}))
	image := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"))
	l.Add(l.Artifact("application/sbom", "content", &image)) // names the manifest, and only that names the rest
	index := l.Document("application/vnd.acme.index", map[string]any{"manifests": []v1.Descriptor{byConfig}, "also": l.Blob("x", []byte("inner"))})
	l.Add(index)
	young := l.Blob("text/plain", []byte("young"))

	_, kept, err := appOf(t, l).Collect(context.Background(), 1<<40, false)
	must(t, err)
	got := map[digest.Digest]digest.Digest{}
	for _, k := range kept {
		got[k.Digest] = k.By
		if size := len(l.Files()[sample.Path(k.Digest)]); k.Size != int64(size) {
			t.Errorf("%s: %d bytes, want %d", k.Digest, k.Size, size)
		}
	}
	if by, ok := got[young.Digest]; !ok || by != "" {
		t.Errorf("the young one: %q, %v", by, ok)
	}
	if by := got[byConfig.Digest]; by != config.Digest && by != index.Digest {
		t.Errorf("what a config and an index name is kept for %q", by)
	}
	ofImage := 0
	for d, by := range got {
		if by == image.Digest {
			ofImage++
		}
		if d == base.Digest || d == config.Digest || d == image.Digest {
			t.Errorf("%s is named by an image, and is told to be kept for %q", d, by)
		}
	}
	if ofImage != 2 || len(got) != 5 {
		t.Errorf("%d for the image that is a subject, and %d in all", ofImage, len(got))
	}
}

// If what is in use cannot be read nothing is removed, whatever it is.
func TestCollectRefusesWhatItCannotRead(t *testing.T) {
	document := func(l *sample.Layout) v1.Descriptor {
		return l.Blob("application/vnd.acme", []byte(`{"x":"`+l.Blob("x", []byte("y")).Digest+`"}`))
	}
	for name, damage := range map[string]func(t *testing.T, file string){
		"it is another": func(t *testing.T, file string) { write(t, file, `{"x":"y"}`) },
		"it ends too early, and names itself": func(t *testing.T, file string) {
			write(t, file, `{"x":"sha256:`+filepath.Base(file))
		},
		"a link": func(t *testing.T, file string) {
			must(t, os.Rename(file, file+"-2"))
			must(t, os.Symlink(filepath.Base(file)+"-2", file))
		},
		"a directory": func(t *testing.T, file string) {
			must(t, os.Remove(file))
			must(t, os.Mkdir(file, 0o755))
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := collectable()
			d := document(l)
			l.Add(d)
			dir := writeApp(t, l)
			damage(t, filepath.Join(dir, "app", sample.Path(d.Digest)))
			before := tree(t, dir)
			removed, _, err := appIn(t, dir).Collect(context.Background(), 0, false)
			want(t, err, layout.ErrCorrupt, "app: nothing is removed, for not all that is in use is known: ")
			if len(removed) != 0 {
				t.Errorf("removed %v", removed)
			}
			same(t, dir, before)
		})
	}
}

// However many directories have a file of the same name, or files' names differ in case alone, a mention takes no longer, and whoever asks may stop.
func TestCollectWithManyOfAName(t *testing.T) {
	l := sample.New()
	used := l.Blob("x", []byte("used"))
	index := l.Document("application/vnd.acme.index", map[string]any{"x": strings.Repeat("al00000:"+used.Digest.Encoded()+" ", 100_000) + string(used.Digest)})
	l.Add(index)
	unused := l.Blob("x", []byte("unused"))
	dir := writeApp(t, l)
	upper := []rune(used.Digest.Encoded())
	for i := range 3000 {
		name := filepath.Join(dir, "app", "blobs", fmt.Sprintf("al%05d", i))
		must(t, os.Mkdir(name, 0o755))
		write(t, filepath.Join(name, used.Digest.Encoded()), "x")
		cased := slices.Clone(upper)
		n := i
		for j, c := range cased {
			if 'a' <= c && c <= 'f' && n > 0 {
				if n&1 == 1 {
					cased[j] = c - 'a' + 'A'
				}
				n >>= 1
			}
		}
		if i > 0 {
			write(t, filepath.Join(dir, "app", "blobs", "al00000", string(cased)), "x")
		}
	}
	began := time.Now()
	removed, _, err := appIn(t, dir).Collect(t.Context(), 0, false)
	must(t, err)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if len(removed) != 1 || removed[0].Digest != unused.Digest {
		t.Errorf("removed: %v", removed)
	}
}

// Collect hears that nobody waits for it any more while it looks through a large index.json.
func TestCollectOfALargeIndexIsInterrupted(t *testing.T) {
	l := sample.New()
	d := l.Blob("x", []byte("x"))
	d.Annotations = map[string]string{"x": strings.Repeat(`\u0020`, 4<<20)}
	l.Add(d)
	app := appIn(t, writeApp(t, l))
	_, _, err := app.Collect(t.Context(), 0, true) // so that index.json is known
	must(t, err)
	began := time.Now()
	_, _, err = app.Collect(t.Context(), 0, true)
	must(t, err)
	whole := time.Since(began)
	ctx, cancel := context.WithTimeout(t.Context(), whole/3)
	defer cancel()
	began = time.Now()
	_, _, err = app.Collect(ctx, 0, true)
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > whole*3/4 {
		t.Errorf("%v, after %v, and the whole takes %v", err, took, whole)
	}
}
