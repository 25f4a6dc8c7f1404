package sample

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// This file makes what tools write that save images: `docker save` and `docker buildx build -o type=oci`. The archives have the entries, names,
// modes, times and documents of the real ones, in their order, after
//
//   - moby/moby, image/spec/spec.md ("Combined Image JSON + Filesystem Changeset Format"), image/tarexport/save.go and pkg/archive;
//   - containerd/containerd, images/archive/exporter.go and reference.go;
//   - moby/buildkit, docs/attestations/attestation-storage.md and exporter/oci/export.go.
//
// Only the configs for Docker before 1.10, which nobody reads, are shorter than real ones.

// A Saved is an image, or an index, with the names that it is saved under, as one gives them to Docker: `nginx:1.25`,
// `registry.example:5000/nginx:1.25`.
type Saved struct {
	Image v1.Descriptor
	Names []string
}

// A Tar is an archive in memory, for a test to change.
type Tar []Entry

// An Entry is one of an archive's. Its size is that of its data.
type Entry struct {
	tar.Header
	Data []byte
}

// WriteTar writes the archive: a plain tar file with its end-of-archive blocks.
func (t Tar) WriteTar(w io.Writer) error {
	out := tar.NewWriter(w)
	for _, e := range t {
		e.Size = int64(len(e.Data))
		if err := out.WriteHeader(&e.Header); err != nil {
			return err
		}
		if _, err := out.Write(e.Data); err != nil {
			return err
		}
	}
	return out.Close()
}

// Entry gives the entry of that name, nil if there is none.
func (t Tar) Entry(name string) *Entry {
	for i := range t {
		if t[i].Name == name {
			return &t[i]
		}
	}
	return nil
}

// epoch is the time of the lists in Docker's archives, and of everything in containerd's.
var epoch = time.Unix(0, 0)

// A dockerTree is the directory that `docker save` packs.
type dockerTree map[string]Entry

func (d dockerTree) put(name string, data []byte, modified time.Time) {
	h := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: modified, Format: tar.FormatPAX}
	if strings.HasSuffix(name, "/") {
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
	}
	d[name] = Entry{h, data}
}

func (d dockerTree) link(name, target string) {
	d[name] = Entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: Created, Format: tar.FormatPAX}, nil}
}

func (d dockerTree) tar() Tar { return lexical(slices.Collect(maps.Values(d))) }

func lexical(entries []Entry) Tar {
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	return entries
}

// A dockerItem is an element of manifest.json.
type dockerItem struct {
	Config       string
	RepoTags     []string
	Layers       []string
	LayerSources map[digest.Digest]layerSource `json:",omitempty"`
}

// A layerSource is a descriptor with its members in the order of Docker's.
type layerSource struct {
	MediaType string        `json:"mediaType,omitempty"`
	Size      int64         `json:"size,omitempty"`
	Digest    digest.Digest `json:"digest,omitempty"`
}

// lists adds manifest.json and repositories, which is not there if no image has a name.
func (d dockerTree) lists(items []dockerItem, repositories map[string]map[string]string) {
	d.put("manifest.json", line(items), epoch)
	if len(repositories) > 0 {
		d.put("repositories", line(repositories), epoch)
	}
}

// name notes in repositories the names of an image.
func name(repositories map[string]map[string]string, names []string, id string) {
	for _, n := range names {
		at := strings.LastIndexByte(n, ':')
		repository, tag := n[:at], n[at+1:]
		if repositories[repository] == nil {
			repositories[repository] = map[string]string{}
		}
		repositories[repository][tag] = id
	}
}

// DockerSave is what `docker save` wrote before version 25: for each layer a directory, named after what the layer's image would have been called
// before 1.10. The layers are not compressed; one that occurs again is a symbolic link to the first.
func (l *Layout) DockerSave(images ...Saved) Tar {
	d := dockerTree{}
	var items []dockerItem
	repositories := map[string]map[string]string{}
	at := map[digest.Digest]string{} // directories of layers
	for _, image := range images {
		config, doc, layers := l.unpacked(image.Image)
		item := dockerItem{Config: config.Digest.Encoded() + ".json", RepoTags: image.Names}
		d.put(item.Config, l.Bytes(config), Created)
		parent := ""
		for i, diffID := range doc.RootFS.DiffIDs {
			id, legacy := legacyImage(doc, i, parent)
			parent = id
			item.Layers = append(item.Layers, id+"/layer.tar")
			if _, saved := d[id+"/"]; saved {
				continue
			}
			d.put(id+"/", nil, Created)
			d.put(id+"/VERSION", []byte("1.0"), Created)
			d.put(id+"/json", legacy, Created)
			if first, saved := at[diffID]; saved {
				d.link(id+"/layer.tar", "../"+first+"/layer.tar")
				continue
			}
			at[diffID] = id
			d.put(id+"/layer.tar", layers[i], Created)
		}
		name(repositories, image.Names, parent)
		items = append(items, item)
	}
	d.lists(items, repositories)
	return d.tar()
}

// DockerSaveOCI is what `docker save` writes since version 25, without the containerd image store: an OCI image layout that older versions of
// Docker load as well. The layers are not compressed. The configs for Docker before 1.10 are blobs that nothing refers to.
func (l *Layout) DockerSaveOCI(images ...Saved) Tar {
	d := dockerTree{}
	blob := func(data []byte, modified time.Time) digest.Digest {
		sum := digest.FromBytes(data)
		d.put(Path(sum), data, modified)
		return sum
	}
	var items []dockerItem
	var rows []v1.Descriptor
	repositories := map[string]map[string]string{}
	for _, image := range images {
		config, doc, layers := l.unpacked(image.Image)
		item := dockerItem{Config: Path(blob(l.Bytes(config), Created)), RepoTags: image.Names, LayerSources: map[digest.Digest]layerSource{}}
		m := v1.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: v1.MediaTypeImageManifest,
			Config:    v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: config.Digest, Size: config.Size},
			Layers:    []v1.Descriptor{},
		}
		parent := ""
		for i, diffID := range doc.RootFS.DiffIDs {
			id, legacy := legacyImage(doc, i, parent)
			parent = id
			blob(legacy, Created)
			blob(layers[i], Created)
			y := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: diffID, Size: int64(len(layers[i]))}
			m.Layers = append(m.Layers, y)
			item.Layers = append(item.Layers, Path(diffID))
			item.LayerSources[diffID] = layerSource{y.MediaType, y.Size, y.Digest}
		}
		manifest := compact(m)
		row := v1.Descriptor{MediaType: m.MediaType, Digest: blob(manifest, epoch), Size: int64(len(manifest))}
		for _, n := range image.Names {
			rows = append(rows, named(row, n))
		}
		if len(rows) == 0 {
			rows = append(rows, row)
		}
		last := doc.RootFS.DiffIDs[len(doc.RootFS.DiffIDs)-1]
		name(repositories, image.Names, last.Encoded())
		items = append(items, item)
	}
	d.put("blobs/", nil, Created)
	d.put("blobs/sha256/", nil, epoch)
	d.put("oci-layout", []byte(`{"imageLayoutVersion": "1.0.0"}`), epoch)
	d.put("index.json", compact(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: rows}), Created)
	d.lists(items, repositories)
	return d.tar()
}

// DockerSaveContainerd is what `docker save` writes since version 25, with the containerd image store, of an image for several platforms of
// which only one was pulled: the index lists them all, with their attestations, and the archive has the blobs of that one.
func (l *Layout) DockerSaveContainerd(index Saved, pulled v1.Descriptor) Tar {
	item := dockerItem{RepoTags: index.Names}
	m := l.manifest(pulled)
	item.Config = Path(m.Config.Digest)
	for _, y := range m.Layers {
		item.Layers = append(item.Layers, Path(y.Digest))
	}
	files := Files{"manifest.json": compact([]dockerItem{item}), Path(index.Image.Digest): l.Bytes(index.Image)}
	l.collect(files, pulled)
	return l.export(files, index)
}

// Buildx is what `docker buildx build -o type=oci` writes, and `ctr image export`: an index with everything in it. Its index.json has no mediaType.
func (l *Layout) Buildx(index Saved) Tar {
	files := Files{}
	l.collect(files, index.Image)
	index.Image = Annotate(index.Image, v1.AnnotationCreated, Created.Format(time.RFC3339))
	return l.export(files, index)
}

// export is how containerd packs files: read-only blobs, everything from 1970.
func (l *Layout) export(files Files, index Saved) Tar {
	var rows []v1.Descriptor
	for _, n := range index.Names {
		rows = append(rows, named(index.Image, n))
	}
	if rows == nil {
		rows = append(rows, index.Image)
	}
	files["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	files["index.json"] = compact(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: rows})
	entries := []Entry{
		{tar.Header{Typeflag: tar.TypeDir, Name: "blobs/", Mode: 0o755}, nil},
		{tar.Header{Typeflag: tar.TypeDir, Name: "blobs/sha256/", Mode: 0o755}, nil},
	}
	for name, data := range files {
		mode := fs.FileMode(0o444)
		if path.Ext(name) == ".json" {
			mode = 0o644
		}
		entries = append(entries, Entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode)}, data})
	}
	return lexical(entries)
}

// collect adds to files the blobs that hang on a descriptor.
func (l *Layout) collect(files Files, d v1.Descriptor) {
	data, ok := l.blobs[Path(d.Digest)]
	if !ok {
		return
	}
	files[Path(d.Digest)] = data
	var doc struct {
		Config            *v1.Descriptor
		Layers, Manifests []v1.Descriptor
	}
	if !strings.Contains(d.MediaType, "manifest") && !strings.Contains(d.MediaType, "index") {
		return
	}
	check(json.Unmarshal(data, &doc))
	if doc.Config != nil {
		l.collect(files, *doc.Config)
	}
	for _, child := range append(doc.Layers, doc.Manifests...) {
		l.collect(files, child)
	}
}

// named annotates a descriptor with a name as containerd does: the full one, and its tag.
func named(d v1.Descriptor, n string) v1.Descriptor {
	first, _, several := strings.Cut(n, "/")
	switch {
	case !several:
		n = "docker.io/library/" + n
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		n = "docker.io/" + n
	}
	return Annotate(d, "io.containerd.image.name", n, v1.AnnotationRefName, n[strings.LastIndexByte(n, ':')+1:])
}

func (l *Layout) manifest(d v1.Descriptor) (m v1.Manifest) {
	check(json.Unmarshal(l.Bytes(d), &m))
	return m
}

// unpacked gives an image's config, what that says, and its layers, uncompressed.
func (l *Layout) unpacked(image v1.Descriptor) (config v1.Descriptor, doc v1.Image, layers [][]byte) {
	m := l.manifest(image)
	check(json.Unmarshal(l.Bytes(m.Config), &doc))
	for _, d := range m.Layers {
		r := io.Reader(bytes.NewReader(l.Bytes(d)))
		var err error
		switch {
		case strings.HasSuffix(d.MediaType, "gzip"):
			r, err = gzip.NewReader(r)
		case strings.HasSuffix(d.MediaType, "zstd"):
			r, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		}
		check(err)
		data, err := io.ReadAll(r)
		check(err)
		layers = append(layers, data)
	}
	return m.Config, doc, layers
}

// legacyImage gives the id that layer i of an image had before Docker 1.10, and its config.
func legacyImage(doc v1.Image, i int, parent string) (id string, config []byte) {
	image := map[string]any{"created": epoch.UTC(), "os": doc.OS}
	if i == len(doc.RootFS.DiffIDs)-1 {
		image = map[string]any{"created": doc.Created, "os": doc.OS, "architecture": doc.Architecture, "config": doc.Config}
	}
	image["layer_id"] = identity.ChainID(doc.RootFS.DiffIDs[:i+1])
	if parent != "" {
		image["parent"] = "sha256:" + parent
	}
	id = digest.FromBytes(compact(image)).Encoded()
	delete(image, "layer_id")
	image["id"] = id
	if parent != "" {
		image["parent"] = parent
	}
	return id, compact(image)
}

func compact(v any) []byte {
	text, err := json.Marshal(v)
	check(err)
	return text
}

func line(v any) []byte { return append(compact(v), '\n') }
