package layout_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
)

// serves fails unless an OCI registry server could serve the layout in dir.
func serves(t failer, dir string) {
	t.Helper()
	if err := served(dir); err != nil {
		t.Errorf("a registry server would not serve it: %v", err)
	}
}

// served is what a registry server asks of a layout, read by nothing of this package: its version, the mediaType of index.json, tags that are
// tags, and every blob that is listed, however deep, with its size and digest; and of ours: none of Docker's media types, no attestation,
// no blob that nothing lists.
func served(dir string) error {
	var version v1.ImageLayout
	if err := unmarshal(dir+"/oci-layout", &version); err != nil || version.Version != "1.0.0" {
		return fmt.Errorf("oci-layout: version %q, %v", version.Version, err)
	}
	var index v1.Index
	if err := unmarshal(dir+"/index.json", &index); err != nil || index.SchemaVersion != 2 || index.MediaType != v1.MediaTypeImageIndex {
		return fmt.Errorf("index.json: of type %q, schema %d, %v", index.MediaType, index.SchemaVersion, err)
	}
	tag := regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	tags := map[string]bool{}
	listed := map[string]bool{"oci-layout": true, "index.json": true}
	for _, d := range index.Manifests {
		name, ok := d.Annotations["org.opencontainers.image.ref.name"]
		if ok && !tag.MatchString(name) {
			return fmt.Errorf("%q is not a tag", name)
		}
		if ok && tags[name] {
			return fmt.Errorf("the tag %q twice", name)
		}
		tags[name] = true
		if err := servedBlob(dir, d, listed); err != nil {
			return err
		}
	}
	return filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
		if name, _ := filepath.Rel(dir, file); err == nil && !e.IsDir() && !listed[name] {
			err = fmt.Errorf("%s: nothing lists it", name)
		}
		return err
	})
}

func unmarshal(file string, to any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, to)
}

func servedBlob(dir string, d v1.Descriptor, listed map[string]bool) error {
	name := sample.Path(d.Digest)
	listed[name] = true
	data, err := os.ReadFile(filepath.Join(dir, name))
	switch {
	case err != nil:
		return err
	case int64(len(data)) != d.Size || d.Digest.Algorithm().FromBytes(data) != d.Digest:
		return fmt.Errorf("%s: other bytes than the descriptor's", name)
	case strings.Contains(d.MediaType, "docker"), d.MediaType == "application/vnd.in-toto+json":
		return fmt.Errorf("%s: is of type %s", name, d.MediaType)
	case d.MediaType != v1.MediaTypeImageIndex && d.MediaType != v1.MediaTypeImageManifest:
		return nil
	case bytes.Contains(data, []byte("application/vnd.docker")):
		return fmt.Errorf("%s: has a media type of Docker's: %s", name, data)
	}
	var doc struct {
		MediaType         string
		Config            *v1.Descriptor
		Layers, Manifests []v1.Descriptor
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return err
	}
	if doc.MediaType != "" && doc.MediaType != d.MediaType {
		return fmt.Errorf("%s: says that it is of type %s", name, doc.MediaType)
	}
	if doc.Config != nil {
		doc.Layers = append(doc.Layers, *doc.Config)
	}
	for _, child := range append(doc.Layers, doc.Manifests...) {
		if err := servedBlob(dir, child, listed); err != nil {
			return err
		}
	}
	return nil
}

// An intake is what became of an archive that was imported into a registry of its own, as the app "app".
type intake struct {
	dir     string // the app's
	app     *layout.App
	list    []layout.Imported
	dropped string // Staged.Dropped, a line for each
}

// tags are what was imported.
func (i intake) tags() string {
	var tags []string
	for _, m := range i.list {
		tags = append(tags, m.Tag)
	}
	return strings.Join(tags, " ")
}

// take imports an archive, and wants every image of it to be whole and to be served.
func take(t testing.TB, l tarWriter, in layout.Intake) intake {
	t.Helper()
	i := takeAll(t, l, in)
	serves(t, i.dir)
	return i
}

// takeAll is take for what a registry server need not like.
func takeAll(t testing.TB, l tarWriter, in layout.Intake) intake {
	t.Helper()
	dir := t.TempDir()
	in.Owner = me
	reg := registry(t, dir)
	staged, err := reg.Stage(context.Background(), bytes.NewReader(archive(t, l)), in)
	must(t, err)
	defer staged.Discard()
	list, err := staged.Publish(context.Background(), "app", layout.OnExistFail)
	must(t, err)
	i := intake{dir + "/app", must2(reg.App("app")), list, strings.Join(staged.Dropped, "\n")}
	for _, m := range list {
		if word, reason := verdict(t, i.app, m.Digest.String(), true); word != "unsigned" {
			t.Errorf("%s: %s, %s", m.Tag, word, reason)
		}
	}
	noLeftOvers(t, dir)
	return i
}

// isRefused wants an archive not to be taken in, and nothing to be left of it.
func isRefused(t testing.TB, l tarWriter, kind error, words string) {
	t.Helper()
	dir := t.TempDir()
	before := tree(t, dir)
	_, err := importAs(context.Background(), registry(t, dir), "app", archive(t, l), layout.OnExistAdd)
	want(t, err, kind, words)
	if !errors.Is(err, layout.ErrCorrupt) {
		t.Errorf("%v is not an ErrCorrupt", err)
	}
	same(t, dir, before)
}

// manifestOf reads the manifest of an image.
func manifestOf(t testing.TB, i intake, d digest.Digest) (m v1.Manifest) {
	t.Helper()
	must(t, unmarshal(filepath.Join(i.dir, sample.Path(d)), &m))
	return m
}

// blobOf reads a blob.
func blobOf(t testing.TB, i intake, d digest.Digest) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(i.dir, sample.Path(d)))
	must(t, err)
	return data
}

// nginx is an image of which one layer occurs twice.
func nginx(l *sample.Layout) v1.Descriptor {
	twice := sample.Gzip("empty/", "")
	return l.Image(sample.Linux("amd64"), sample.Gzip("bin/nginx", "ELF"), twice, sample.Zstd("etc/nginx.conf", "listen 80\n"), twice)
}

// images are what the archives below are made of: two images that share a layer.
func images() (l *sample.Layout, web, tool v1.Descriptor) {
	l = sample.New()
	return l, nginx(l), l.Image(sample.Linux("amd64"), sample.Gzip("bin/nginx", "ELF"), sample.Plain("bin/tool", "#!"))
}

// What `docker save` writes, of all versions: the right tags, every config as it is, and every layer as its diff_id says.
func TestDockerSave(t *testing.T) {
	l, web, tool := images()
	older := sample.Saved{Image: tool, Names: []string{"registry.example:5000/tools/tool:v2", "tool:old"}}
	for _, row := range []struct {
		name string
		list []sample.Saved
		tags string
	}{
		{"one image", []sample.Saved{{Image: web, Names: []string{"nginx:1.25"}}}, "1.25"},
		{"of several names", []sample.Saved{{Image: web, Names: []string{"nginx:1.25", "nginx:latest", "localhost:5000/nginx:stable"}}}, "1.25 latest stable"},
		{"two images", []sample.Saved{{Image: web, Names: []string{"nginx:1.25"}}, older}, "1.25 v2 old"},
		{"without a name", []sample.Saved{{Image: web}}, "latest"},
	} {
		for version, save := range map[string]func(...sample.Saved) sample.Tar{"before 25": l.DockerSave, "25": l.DockerSaveOCI, "25 without its index.json": onlyList(l)} {
			t.Run(row.name+", "+version, func(t *testing.T) {
				saved := save(row.list...)
				i := take(t, saved, layout.Intake{})
				if i.tags() != row.tags || i.dropped != "" {
					t.Errorf("tags %s, dropped %s", i.tags(), i.dropped)
				}
				var wanted []digest.Digest
				for _, image := range row.list {
					d := dockerManifest(t, l, image.Image)
					for range max(1, len(image.Names)) {
						wanted = append(wanted, d)
					}
				}
				for n, m := range i.list {
					if m.Digest != wanted[n] {
						t.Errorf("%s is\n%s\nwant that of %s", m.Tag, blobOf(t, i, m.Digest), wanted[n])
					}
				}
				if again := take(t, saved, layout.Intake{}); !slices.Equal(again.list, i.list) {
					t.Errorf("the second time %v", again.list)
				}
			})
		}
	}
}

// onlyList is what Docker wrote while version 25 was made: blobs, and the list of old.
func onlyList(l *sample.Layout) func(...sample.Saved) sample.Tar {
	return func(images ...sample.Saved) sample.Tar {
		return slices.DeleteFunc(l.DockerSaveOCI(images...), func(e sample.Entry) bool { return e.Name == "index.json" || e.Name == "oci-layout" })
	}
}

// dockerManifest gives the digest of the manifest that names an image's config as it is, and its layers without compression.
func dockerManifest(t testing.TB, l *sample.Layout, image v1.Descriptor) digest.Digest {
	t.Helper()
	var was v1.Manifest
	var config v1.Image
	must(t, json.Unmarshal(l.Bytes(image), &was))
	must(t, json.Unmarshal(l.Bytes(was.Config), &config))
	var layers []string
	for _, e := range l.DockerSaveOCI(sample.Saved{Image: image}) {
		_, hex, _ := strings.Cut(e.Name, "blobs/sha256/")
		for n, diffID := range config.RootFS.DiffIDs {
			if diffID.Encoded() == hex {
				layers = append(layers, fmt.Sprintf(`%03d{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"%s","size":%d}`, n, diffID, len(e.Data)))
			}
		}
	}
	slices.Sort(layers)
	for n := range layers {
		layers[n] = layers[n][3:]
	}
	return digest.FromString(fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%d},"layers":[%s]}`,
		was.Config.Digest, was.Config.Size, strings.Join(layers, ",")))
}

// A layer that occurs again is a link to the first, and is in the layout once.
func TestDockerSaveLinks(t *testing.T) {
	l, web, _ := images()
	saved := l.DockerSave(sample.Saved{Image: web, Names: []string{"nginx:1.25"}})
	links := 0
	for _, e := range saved {
		if e.Typeflag == tar.TypeSymlink {
			links++
		}
	}
	i := take(t, saved, layout.Intake{})
	m := manifestOf(t, i, i.list[0].Digest)
	if links != 1 || len(m.Layers) != 4 || m.Layers[1].Digest != m.Layers[3].Digest {
		t.Errorf("%d links, layers %v", links, m.Layers)
	}
	// A link may come before what it leads to, and lead through others.
	slices.Reverse(saved)
	for n := range saved {
		if saved[n].Typeflag == tar.TypeSymlink {
			target := saved[n].Linkname
			for k := range 7 {
				name := fmt.Sprint("hop", k, "/layer.tar")
				saved = append(saved, symlink(name, target))
				target = "../" + name
			}
			saved[n].Linkname = target
			break
		}
	}
	if j := take(t, saved, layout.Intake{}); !slices.Equal(i.list, j.list) {
		t.Errorf("%v, and the other way round %v", i.list, j.list)
	}
}

func symlink(name, target string) sample.Entry {
	return sample.Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

// Layers of `docker save` are compressed if that is wished; nothing else changes, and it is the same each time.
func TestDockerSaveCompressed(t *testing.T) {
	l, web, tool := images()
	list := []sample.Saved{{Image: web, Names: []string{"nginx:1.25"}}, {Image: tool, Names: []string{"tool:old"}}}
	plain := take(t, l.DockerSave(list...), layout.Intake{})
	zipped := take(t, l.DockerSave(list...), layout.Intake{Compress: true})
	if plain.tags() != zipped.tags() {
		t.Errorf("tags %s, compressed %s", plain.tags(), zipped.tags())
	}
	for n := range plain.list {
		was, is := manifestOf(t, plain, plain.list[n].Digest), manifestOf(t, zipped, zipped.list[n].Digest)
		if was.Config.Digest != is.Config.Digest || len(was.Layers) != len(is.Layers) {
			t.Errorf("%+v became %+v", was, is)
		}
		for k, y := range is.Layers {
			r, err := gzip.NewReader(bytes.NewReader(blobOf(t, zipped, y.Digest)))
			must(t, err)
			var b bytes.Buffer
			_, err = b.ReadFrom(r)
			must(t, err)
			if y.MediaType != v1.MediaTypeImageLayerGzip || digest.FromBytes(b.Bytes()) != was.Layers[k].Digest {
				t.Errorf("layer %d: %+v of %+v", k, y, was.Layers[k])
			}
		}
	}
	if again := take(t, l.DockerSave(list...), layout.Intake{Compress: true}); !slices.Equal(again.list, zipped.list) {
		t.Errorf("the second time %v, the first %v", again.list, zipped.list)
	}
}

// Since version 25 the archive has a manifest of its own, which stays as it is, and so do its layers.
func TestDockerSave25IsNotCompressed(t *testing.T) {
	l, web, _ := images()
	i := take(t, l.DockerSaveOCI(sample.Saved{Image: web, Names: []string{"nginx:1.25"}}), layout.Intake{Compress: true})
	for _, y := range manifestOf(t, i, i.list[0].Digest).Layers {
		if y.MediaType != v1.MediaTypeImageLayer {
			t.Errorf("a layer of type %s", y.MediaType)
		}
	}
}

// What is packed already comes as it is, compressed or not.
func TestDockerSaveOfPackedLayers(t *testing.T) {
	for _, row := range []struct{ compression, mediaType string }{
		{"gzip", v1.MediaTypeImageLayerGzip},
		{"zstd", v1.MediaTypeImageLayerZstd},
	} {
		for _, compress := range []bool{false, true} {
			t.Run(fmt.Sprint(row.compression, ", compress ", compress), func(t *testing.T) {
				l := sample.New()
				y := sample.Plain("a", "content")
				saved := l.DockerSave(sample.Saved{Image: l.Image(sample.Linux("amd64"), y), Names: []string{"a:x"}})
				y.Compression = row.compression
				layerOf(saved).Data = y.Blob()
				i := take(t, saved, layout.Intake{Compress: compress})
				d := manifestOf(t, i, i.list[0].Digest).Layers[0]
				if d.MediaType != row.mediaType || d.Digest != digest.FromBytes(y.Blob()) {
					t.Errorf("layer %+v", d)
				}
			})
		}
	}
}

// layerOf gives the first layer of what `docker save` wrote before version 25.
func layerOf(saved sample.Tar) *sample.Entry {
	for i, e := range saved {
		if e.Typeflag == tar.TypeReg && strings.HasSuffix(e.Name, "/layer.tar") {
			return &saved[i]
		}
	}
	panic("it has no layer")
}

func TestDockerSaveRefused(t *testing.T) {
	l, web, tool := images()
	saved := func(change func(saved *sample.Tar)) sample.Tar {
		list := l.DockerSave(sample.Saved{Image: web, Names: []string{"nginx:1.25"}})
		change(&list)
		return list
	}
	listed := func(old, new string) sample.Tar {
		return saved(func(list *sample.Tar) {
			e := list.Entry("manifest.json")
			if !bytes.Contains(e.Data, []byte(old)) {
				t.Fatalf("%q is not in %s", old, e.Data)
			}
			e.Data = bytes.Replace(e.Data, []byte(old), []byte(new), 1)
		})
	}
	layer := func(data string) sample.Tar {
		return saved(func(list *sample.Tar) { layerOf(*list).Data = []byte(data) })
	}
	linked := func(links ...string) sample.Tar { // the layer is a link, and there are others
		return saved(func(list *sample.Tar) {
			e := layerOf(*list)
			links = append([]string{e.Name}, links...)
			*list = slices.DeleteFunc(*list, func(e sample.Entry) bool { return e.Name == links[0] })
			for i := 0; i < len(links)-1; i += 2 {
				*list = append(*list, symlink(links[i], strings.ReplaceAll(links[i+1], "ITSELF", links[0])))
			}
		})
	}
	hops := []string{"../hop0/layer.tar"}
	for k := range 9 {
		hops = append(hops, fmt.Sprint("hop", k, "/layer.tar"), fmt.Sprint("../hop", k+1, "/layer.tar"))
	}
	var doc v1.Manifest
	must(t, json.Unmarshal(l.Bytes(web), &doc))
	config := doc.Config.Digest.Encoded() + ".json"
	gone := func(name func(list sample.Tar) string) sample.Tar {
		return saved(func(list *sample.Tar) {
			gone := name(*list)
			*list = slices.DeleteFunc(*list, func(e sample.Entry) bool { return e.Name == gone })
		})
	}
	_, first, _ := strings.Cut(string(saved(func(*sample.Tar) {}).Entry("manifest.json").Data), `"Layers":["`)
	first, _, _ = strings.Cut(first, `"`)
	for _, row := range []struct {
		name    string
		archive sample.Tar
		kind    error
		reason  string
	}{
		{"a layer is missing", gone(func(list sample.Tar) string { return layerOf(list).Name }), layout.ErrMissing, `layer.tar": not in the archive`},
		{"the config is missing", gone(func(sample.Tar) string { return config }), layout.ErrMissing, config + `": not in the archive`},
		{"a layer that is another", layer("other bytes"), layout.ErrCorrupt, "and the config's diff_id is sha256:"},
		{"a layer that is empty", layer(""), layout.ErrCorrupt, "and the config's diff_id is sha256:"},
		{"a layer in gzip that is another", layer(string(sample.Gzip("x", "y").Blob())), layout.ErrCorrupt, "and the config's diff_id is sha256:"},
		{"a layer in gzip that is cut off", layer(string(sample.Gzip("bin/nginx", "ELF").Blob()[:40])), layout.ErrCorrupt, "cannot be unpacked"},
		{"a layer in xz", layer("\xfd7zXZ\x00 and so on"), layout.ErrCorrupt, "compressed by xz, for which OCI has no media type"},
		{"a layer in bzip2", layer("BZh91AY&SY and so on"), layout.ErrCorrupt, "compressed by bzip2, for which OCI has no media type"},
		{"a layer too few in the list", listed(`["`+first+`",`, `[`), layout.ErrCorrupt, "it has 3 layers, and its config 4 diff_ids"},
		{"a layer too many in the list", listed(`["`+first+`",`, `["`+first+`","`+first+`",`), layout.ErrCorrupt, "it has 5 layers, and its config 4 diff_ids"},
		{"no layers in the list", listed(`"Layers":[`, `"Layers":null,"layers":[`), layout.ErrCorrupt, "it has 0 layers, and its config 4 diff_ids"},
		{"no config in the list", listed(`"Config":`, `"config":`), layout.ErrMissing, `"": not in the archive`},
		{"the config is a layer", listed(config, first), layout.ErrCorrupt, "invalid character"},
		{"the config is no JSON", saved(func(list *sample.Tar) { list.Entry(config).Data = []byte("config") }), layout.ErrCorrupt, "invalid character"},
		{"a member twice", listed(`"Config":`, `"Config":"x","Config":`), layout.ErrCorrupt, "[0].Config: there are two members of that name"},
		{"an unknown member twice", listed(`"Config":`, `"x":{"y":1,"y":2},"Config":`), layout.ErrCorrupt, "[0].x.y: there are two members of that name"},
		{"a number as a tag", listed(`"nginx:1.25"`, `1.25`), layout.ErrCorrupt, "found a number, want a string"},
		{"something after the list", listed("]\n", "]]"), layout.ErrCorrupt, "there is something after the end of the document"},
		{"an object and not a list", listed("[{", `{"x":[{`), layout.ErrCorrupt, "found an object, want an array"},
		{"no image in the list", saved(func(list *sample.Tar) { list.Entry("manifest.json").Data = []byte("[]\n") }), layout.ErrCorrupt, "it lists no image"},
		{"an empty list", saved(func(list *sample.Tar) { list.Entry("manifest.json").Data = nil }), layout.ErrCorrupt, "manifest.json"},
		{"no list", gone(func(sample.Tar) string { return "manifest.json" }), layout.ErrCorrupt, "it has neither oci-layout and index.json nor manifest.json"},
		{"a list with an oci-layout", saved(func(list *sample.Tar) {
			*list = append(*list, sample.Entry{Header: tar.Header{Name: "oci-layout"}, Data: []byte(`{"imageLayoutVersion":"1.0.0"}`)})
		}), layout.ErrCorrupt, "an oci-layout and no index.json"},
		{"a link to itself", linked("layer.tar"), layout.ErrMissing, "not in the archive"},
		{"links in a circle", linked("../other/layer.tar", "other/layer.tar", "../ITSELF"), layout.ErrMissing, "not in the archive"},
		{"a link after the other without end", linked(hops...), layout.ErrMissing, "not in the archive"},
		{"a link to nothing", linked("../nothing/layer.tar"), layout.ErrMissing, "not in the archive"},
		{"a link to a directory", linked("."), layout.ErrMissing, "not in the archive"},
		{"a link out of the archive", linked("../../../../../../etc/passwd"), layout.ErrMissing, "not in the archive"},
		{"a link to an absolute name", linked("/etc/passwd"), layout.ErrMissing, "not in the archive"},
		{"a link beside the layers", saved(func(list *sample.Tar) { *list = append(*list, symlink("etc", "/etc")) }), layout.ErrCorrupt, `"etc": neither a regular file nor a directory`},
		{"a link for the config", saved(func(list *sample.Tar) {
			*list.Entry(config) = symlink(config, "/etc/passwd")
		}), layout.ErrCorrupt, "neither a regular file nor a directory"},
		{"a layer twice in the archive", saved(func(list *sample.Tar) { *list = append(*list, *layerOf(*list)) }), layout.ErrCorrupt, "twice in the archive"},
		{"one tag for two images", l.DockerSave(sample.Saved{Image: web, Names: []string{"nginx:1.25"}}, sample.Saved{Image: tool, Names: []string{"tool:1.25"}}),
			layout.ErrCorrupt, `"nginx:1.25" and "tool:1.25" would both get the tag "1.25"`},
		{"two images without a name", l.DockerSave(sample.Saved{Image: web}, sample.Saved{Image: tool}), layout.ErrCorrupt, `would both get the tag "latest"`},
	} {
		t.Run(row.name, func(t *testing.T) { isRefused(t, row.archive, row.kind, row.reason) })
	}
}

// Since version 25, and from containerd, ref.name is the tag alone, and what tells two rows apart is io.containerd.image.name.
func TestDockerSave25OneTagForTwoImages(t *testing.T) {
	l, web, tool := images()
	isRefused(t, l.DockerSaveOCI(sample.Saved{Image: web, Names: []string{"nginx:1.25"}}, sample.Saved{Image: tool, Names: []string{"tool:1.25"}}),
		layout.ErrCorrupt, `"docker.io/library/nginx:1.25" and "docker.io/library/tool:1.25" would both get the tag "1.25"`)
}

// One image by two names that end with the same tag needs no second tag.
func TestDockerSaveOfOneImageByTwoNames(t *testing.T) {
	l, web, _ := images()
	saved := sample.Saved{Image: web, Names: []string{"nginx:1.25", "registry.example/nginx:1.25"}}
	for official, saved := range map[string]sample.Tar{"": l.DockerSave(saved), "docker.io/library/": l.DockerSaveOCI(saved)} {
		i := take(t, saved, layout.Intake{})
		if i.tags() != "1.25" || i.dropped != "the name registry.example/nginx:1.25 (it is the same image as "+official+"nginx:1.25, by the same tag)" {
			t.Errorf("tags %s, dropped %s", i.tags(), i.dropped)
		}
	}
}

// The containerd image store saves the whole index, and of its images the one that was pulled.
func TestDockerSaveContainerd(t *testing.T) {
	l, amd, index := several()
	i := take(t, l.DockerSaveContainerd(sample.Saved{Image: index, Names: []string{"nginx:1.25"}}, amd), layout.Intake{})
	if i.tags() != "1.25" || i.list[0].Digest != amd.Digest || !bytes.Equal(blobOf(t, i, amd.Digest), l.Bytes(amd)) {
		t.Errorf("imported %v, want %s", i.list, amd.Digest)
	}
	if !strings.Contains(i.dropped, "linux/arm64 sha256:") || strings.Contains(i.dropped, amd.Digest.String()) {
		t.Errorf("dropped\n%s", i.dropped)
	}
	if text := contentOf(t, i.dir+"/index.json"); !strings.Contains(text, `"io.containerd.image.name":"docker.io/library/nginx:1.25"`) {
		t.Errorf("index.json is %s", text)
	}
}

func contentOf(t testing.TB, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	return string(data)
}

// several is an index of two images, each with an attestation.
func several() (l *sample.Layout, amd, index v1.Descriptor) {
	l = sample.New()
	amd = nginx(l)
	arm := l.Image(sample.Linux("arm64"), sample.Gzip("bin/nginx", "ELF for arm"))
	return l, amd, l.Index(amd, arm, l.Attestation(amd), l.Attestation(arm))
}

// What BuildKit writes: an index, with an attestation beside each image, by a name or without one.
func TestBuildx(t *testing.T) {
	for _, names := range [][]string{nil, {"nginx:1.25"}, {"nginx:1.25", "nginx:stable"}} {
		tags := "latest"
		if names != nil {
			tags = strings.ReplaceAll(strings.Join(names, " "), "nginx:", "")
		}
		t.Run("one platform as "+tags, func(t *testing.T) {
			l := sample.New()
			image := nginx(l)
			attestation := l.Attestation(image)
			i := take(t, l.Buildx(sample.Saved{Image: l.Index(image, attestation), Names: names}), layout.Intake{})
			if i.tags() != tags || i.list[0].Digest != image.Digest || i.dropped != "attestation "+attestation.Digest.String() {
				t.Errorf("imported %v, dropped %s", i.list, i.dropped)
			}
		})
		t.Run("two platforms as "+tags, func(t *testing.T) {
			l, amd, index := several()
			var list v1.Index
			must(t, json.Unmarshal(l.Bytes(index), &list))
			i := take(t, l.Buildx(sample.Saved{Image: index, Names: names}), layout.Intake{})
			if wanted := l.Index(amd, list.Manifests[1]); i.tags() != tags || i.list[0].Digest != wanted.Digest {
				t.Errorf("imported %v", i.list)
			}
		})
	}
}
