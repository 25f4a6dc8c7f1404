// Package sample makes small OCI image layouts, for `irfs demo` and for tests. They are real ones: their layers are tar files that unpack,
// their configs have the right diff_ids, and every digest and size is right. The same description always gives the same bytes.
//
//	l := sample.New()
//	amd := l.Image(sample.Linux("amd64"), sample.Gzip("etc/motd", "hello\n"))
//	arm := l.Image(sample.Linux("arm64"), sample.Zstd("etc/motd", "hello\n"), sample.Plain("bin/", "", "bin/sh", "#!"))
//	l.Tag("stable", l.Index(amd, arm, l.Attestation(amd)))
//	l.Tag("arm", arm)
//	l.WriteDir("/srv/registry/nginx")
//
// How documents look and which types and digests they use is set by the fields of [Layout], at any time, for what is made from then on:
//
//	l.Indent, l.Docker = "\t", true
//
// A test that wants a damaged layout takes its [Files], changes them, and writes them. A document that none of the methods makes is put
// together with [Layout.Blob] and [Layout.Document].
package sample

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Created is the time that everything in a sample bears.
var Created = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)

// A Layout is an image layout in memory. Its methods panic at what only a wrong call can cause.
type Layout struct {
	Indent    string           // of JSON documents; "" makes them compact, without a final newline
	Extra     string           // members that every document and every descriptor in an index ends with, such as `"x":1e400`
	Docker    bool             // Docker's media types: manifest list, manifest of schema 2, config, layers
	Algorithm digest.Algorithm // of blobs; "" is sha256
	Untyped   bool             // documents have no mediaType, as index.json of zot and of older BuildKit
	BlobMode  fs.FileMode      // of blobs in WriteDir and WriteTar; 0 is 0644

	blobs Files
	top   []v1.Descriptor
}

// New returns a layout without images.
func New() *Layout { return &Layout{blobs: Files{}} }

// Linux is the platform linux of an architecture, such as "arm64", and maybe a variant, "arm/v7".
func Linux(architecture string) v1.Platform {
	architecture, variant, _ := strings.Cut(architecture, "/")
	return v1.Platform{OS: "linux", Architecture: architecture, Variant: variant}
}

// A Layer is a filesystem layer: a tar file, compressed or not.
type Layer struct {
	Compression string // "gzip", "zstd", or "" for none
	Tar         []byte
}

// Gzip makes a layer of files: a path and its content, another path and its content, and so on. A path that ends with a
// slash is a directory.
func Gzip(files ...string) Layer { return Layer{"gzip", tarOf(files)} }

// Zstd is like [Gzip].
func Zstd(files ...string) Layer { return Layer{"zstd", tarOf(files)} }

// Plain is like [Gzip], without compression.
func Plain(files ...string) Layer { return Layer{"", tarOf(files)} }

func tarOf(files []string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		writeEntry(w, files[i], []byte(files[i+1]), 0o644)
	}
	check(w.Close())
	return b.Bytes()
}

func writeEntry(w *tar.Writer, name string, data []byte, mode fs.FileMode) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: int64(mode), ModTime: Created, Format: tar.FormatPAX}
	if strings.HasSuffix(name, "/") {
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
	}
	err := w.WriteHeader(h)
	if err == nil {
		_, err = w.Write(data)
	}
	return err
}

// Blob returns the bytes of the layer as they are in a blob.
func (y Layer) Blob() []byte {
	var b bytes.Buffer
	var w io.WriteCloser
	switch y.Compression {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "zstd":
		var err error
		w, err = zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
		check(err)
	default:
		return y.Tar
	}
	_, err := w.Write(y.Tar)
	check(err)
	check(w.Close())
	return b.Bytes()
}

// DiffID returns the digest of the layer's tar file.
func (y Layer) DiffID() digest.Digest { return digest.SHA256.FromBytes(y.Tar) }

// Image adds an image with its config and layers.
func (l *Layout) Image(platform v1.Platform, layers ...Layer) v1.Descriptor {
	manifest := v1.Manifest{Layers: []v1.Descriptor{}}
	config := v1.Image{
		Created:  &Created,
		Platform: platform,
		Config:   v1.ImageConfig{Cmd: []string{"/bin/sh"}},
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
	for _, y := range layers {
		manifest.Layers = append(manifest.Layers, l.Blob(l.layerType(y), y.Blob()))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, y.DiffID())
	}
	manifest.Config = l.Document(l.typed(v1.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json"), config)
	d := l.Manifest(manifest)
	d.Platform = &platform
	return d
}

func (l *Layout) layerType(y Layer) string {
	t := l.typed(v1.MediaTypeImageLayer, "application/vnd.docker.image.rootfs.diff.tar")
	switch {
	case y.Compression == "":
		return t
	case l.Docker:
		return t + "." + y.Compression
	}
	return t + "+" + y.Compression
}

// Manifest adds an image manifest; its schemaVersion and mediaType are filled in.
func (l *Layout) Manifest(m v1.Manifest) v1.Descriptor {
	mediaType := l.typed(v1.MediaTypeImageManifest, "application/vnd.docker.distribution.manifest.v2+json")
	m.Versioned = specs.Versioned{SchemaVersion: 2}
	m.MediaType = l.ownType(mediaType)
	return l.Document(mediaType, m)
}

// Index adds an index of manifests and indexes.
func (l *Layout) Index(manifests ...v1.Descriptor) v1.Descriptor {
	mediaType := l.indexType()
	return l.Blob(mediaType, l.indexText(mediaType, manifests))
}

func (l *Layout) indexType() string {
	return l.typed(v1.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.list.v2+json")
}

// indexText is the text of an index.
func (l *Layout) indexText(mediaType string, manifests []v1.Descriptor) []byte {
	doc := struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType,omitempty"`
		Manifests     []json.RawMessage `json:"manifests"`
	}{2, l.ownType(mediaType), []json.RawMessage{}}
	for _, d := range manifests {
		doc.Manifests = append(doc.Manifests, l.object(d))
	}
	return l.layOut(l.object(doc))
}

// Attestation adds what BuildKit says of an image, to stand beside it in its index (BuildKit, docs/attestations/attestation-storage.md).
func (l *Layout) Attestation(image v1.Descriptor) v1.Descriptor {
	const predicate = "https://slsa.dev/provenance/v0.2"
	statement := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v0.1","predicateType":%q,"subject":[{"digest":{%q:%q}}],"predicate":{}}`,
		predicate, image.Digest.Algorithm(), image.Digest.Encoded())
	layer := l.Blob("application/vnd.in-toto+json", []byte(statement))
	layer.Annotations = map[string]string{"in-toto.io/predicate-type": predicate}
	unknown := v1.Platform{OS: "unknown", Architecture: "unknown"}
	d := l.Manifest(v1.Manifest{
		Config: l.Document(v1.MediaTypeImageConfig, v1.Image{
			Platform: unknown,
			RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromString(statement)}},
		}),
		Layers: []v1.Descriptor{layer},
	})
	d.Platform = &unknown
	return Annotate(d, "vnd.docker.reference.type", "attestation-manifest", "vnd.docker.reference.digest", image.Digest.String())
}

// Artifact adds a manifest that is no image: an empty config, and one blob. With a subject it is a referrer of that.
func (l *Layout) Artifact(artifactType, content string, subject *v1.Descriptor) v1.Descriptor {
	if subject != nil {
		subject = &v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}
	}
	d := l.Manifest(v1.Manifest{
		ArtifactType: artifactType,
		Config:       l.Blob(v1.MediaTypeEmptyJSON, []byte("{}")),
		Layers:       []v1.Descriptor{l.Blob("text/plain", []byte(content))},
		Subject:      subject,
	})
	d.ArtifactType = artifactType
	return d
}

// Blob adds a blob.
func (l *Layout) Blob(mediaType string, data []byte) v1.Descriptor {
	algorithm := l.Algorithm
	if algorithm == "" {
		algorithm = digest.SHA256
	}
	d := v1.Descriptor{MediaType: mediaType, Digest: algorithm.FromBytes(data), Size: int64(len(data))}
	l.blobs[Path(d.Digest)] = data
	return d
}

// Document adds a blob with v as JSON, laid out as the layout's fields say.
func (l *Layout) Document(mediaType string, v any) v1.Descriptor {
	return l.Blob(mediaType, l.layOut(l.object(v)))
}

// Path is where a blob lies in a layout.
func Path(d digest.Digest) string { return path.Join("blobs", d.Algorithm().String(), d.Encoded()) }

// Bytes returns the blob of a descriptor.
func (l *Layout) Bytes(d v1.Descriptor) []byte { return l.blobs[Path(d.Digest)] }

// Inline returns the descriptor with its blob as inline data.
func (l *Layout) Inline(d v1.Descriptor) v1.Descriptor {
	d.Data = l.Bytes(d)
	return d
}

// Annotate returns a copy of the descriptor with annotations added: a key and its value, another key and its value, and so on.
func Annotate(d v1.Descriptor, annotations ...string) v1.Descriptor {
	all := map[string]string{}
	maps.Copy(all, d.Annotations)
	for i := 0; i < len(annotations); i += 2 {
		all[annotations[i]] = annotations[i+1]
	}
	d.Annotations = all
	return d
}

// Tag appends a descriptor to index.json under a tag. The same one may have several.
func (l *Layout) Tag(tag string, d v1.Descriptor) { l.Add(Annotate(d, v1.AnnotationRefName, tag)) }

// Add appends a descriptor to index.json as it is.
func (l *Layout) Add(d v1.Descriptor) { l.top = append(l.top, d) }

// ownType is the mediaType that a document gives itself.
func (l *Layout) ownType(mediaType string) string {
	if l.Untyped {
		return ""
	}
	return mediaType
}

func (l *Layout) typed(oci, docker string) string {
	if l.Docker {
		return docker
	}
	return oci
}

// object is v as a compact JSON object, with Extra at its end.
func (l *Layout) object(v any) json.RawMessage {
	text, err := json.Marshal(v)
	check(err)
	if l.Extra != "" {
		text = append(append(append(text[:len(text)-1], ','), l.Extra...), '}')
	}
	return text
}

func (l *Layout) layOut(text json.RawMessage) []byte {
	if l.Indent == "" {
		return text
	}
	var b bytes.Buffer
	check(json.Indent(&b, text, "", l.Indent))
	b.WriteByte('\n')
	return b.Bytes()
}

// Files are the files of a layout, by their path in it.
type Files map[string][]byte

// Files returns what the layout is made of now: oci-layout, index.json and the blobs. They are the caller's to change.
func (l *Layout) Files() Files {
	files := Files{
		v1.ImageLayoutFile: []byte(`{"imageLayoutVersion":"` + v1.ImageLayoutVersion + `"}`),
		// Its type is OCI's even where those in it are Docker's (OCI image-spec v1.1, image-layout.md).
		v1.ImageIndexFile: l.indexText(v1.MediaTypeImageIndex, l.top),
	}
	for name, data := range l.blobs {
		files[name] = bytes.Clone(data)
	}
	return files
}

// WriteDir writes the layout into the directory dir, which it makes if need be.
func (l *Layout) WriteDir(dir string) error { return l.Files().write(dir, l.BlobMode) }

// WriteDir is [Layout.WriteDir] for files that may have been changed.
func (f Files) WriteDir(dir string) error { return f.write(dir, 0) }

func (f Files) write(dir string, blobMode fs.FileMode) error {
	for _, name := range f.names() {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		mode := modeOf(name, blobMode)
		if err := os.WriteFile(file, f[name], mode); err != nil {
			return err
		}
		if err := os.Chmod(file, mode); err != nil { // whatever the umask
			return err
		}
	}
	return nil
}

// WriteTar writes the layout as an archive: a plain tar file with its end-of-archive blocks.
func (l *Layout) WriteTar(w io.Writer) error { return l.Files().writeTar(w, l.BlobMode) }

// WriteTar is [Layout.WriteTar] for files that may have been changed.
func (f Files) WriteTar(w io.Writer) error { return f.writeTar(w, 0) }

func (f Files) writeTar(w io.Writer, blobMode fs.FileMode) error {
	t := tar.NewWriter(w)
	made := map[string]bool{".": true}
	for _, name := range f.names() {
		for _, dir := range []string{path.Dir(path.Dir(name)), path.Dir(name)} {
			if made[dir] {
				continue
			}
			made[dir] = true
			if err := writeEntry(t, dir+"/", nil, 0); err != nil {
				return err
			}
		}
		if err := writeEntry(t, name, f[name], modeOf(name, blobMode)); err != nil {
			return err
		}
	}
	return t.Close()
}

func modeOf(name string, blobMode fs.FileMode) fs.FileMode {
	if blobMode != 0 && strings.HasPrefix(name, "blobs/") {
		return blobMode
	}
	return 0o644
}

// names lists the files so that a layout is whole whenever it has an index.json: blobs, index.json, oci-layout.
func (f Files) names() []string { return slices.Sorted(maps.Keys(f)) }

func check(err error) {
	if err != nil {
		panic("sample: " + err.Error())
	}
}
