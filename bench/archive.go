package main

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// An image is one whose layers are made when they are asked for, since there may
// be more of them than memory.
type image struct {
	layers []layer
	bytes  int64 // of all blobs
}

// A layer is so many bytes of noise in a tar file, compressed by gzip or not.
type layer struct {
	seed   uint64
	size   int64
	zipped bool
	blob   v1.Descriptor
	diffID digest.Digest
}

func newImage(layers int, bytes int64, zipped bool) (*image, error) {
	i := &image{}
	for n := range layers {
		l := layer{seed: uint64(n), size: bytes / int64(layers), zipped: zipped}
		blob, diff := sha256.New(), sha256.New()
		size, err := l.write(blob, diff)
		if err != nil {
			return nil, err
		}
		l.blob = v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: digest.NewDigest(digest.SHA256, blob), Size: size}
		if zipped {
			l.blob.MediaType = v1.MediaTypeImageLayerGzip
		}
		l.diffID = digest.NewDigest(digest.SHA256, diff)
		i.layers = append(i.layers, l)
		i.bytes += size
	}
	return i, nil
}

// write writes the layer as it is in a blob, and as it unpacks; it gives its size.
func (l *layer) write(blob, unpacked io.Writer) (int64, error) {
	counted := &counter{w: blob}
	w := io.MultiWriter(counted, unpacked)
	var z *gzip.Writer
	if l.zipped {
		z, _ = gzip.NewWriterLevel(counted, gzip.BestSpeed)
		w = io.MultiWriter(z, unpacked)
	}
	b := bufio.NewWriterSize(w, 1<<20)
	t := tar.NewWriter(b)
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("noise", l.seed), Size: l.size, Mode: 0o644}); err != nil {
		return 0, err
	}
	noise := rand.NewChaCha8([32]byte{byte(l.seed), byte(l.seed >> 8), 1})
	if _, err := io.CopyN(t, noise, l.size); err != nil {
		return 0, err
	}
	if err := t.Close(); err != nil {
		return 0, err
	}
	if err := b.Flush(); err != nil {
		return 0, err
	}
	if z != nil {
		if err := z.Close(); err != nil {
			return 0, err
		}
	}
	return counted.n, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// writeTo writes the archive: a tar file of an OCI image layout.
func (i *image) writeTo(w io.Writer) error {
	b := bufio.NewWriterSize(w, 1<<20)
	t := tar.NewWriter(b)
	put := func(name string, data []byte) error {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o644}); err != nil {
			return err
		}
		_, err := t.Write(data)
		return err
	}
	document := func(mediaType string, v any) (v1.Descriptor, error) {
		data, err := json.Marshal(v)
		if err != nil {
			return v1.Descriptor{}, err
		}
		sum := sha256.Sum256(data)
		d := v1.Descriptor{MediaType: mediaType, Digest: digest.NewDigestFromBytes(digest.SHA256, sum[:]), Size: int64(len(data))}
		return d, put("blobs/sha256/"+hex.EncodeToString(sum[:]), data)
	}
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers"}}
	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for _, l := range i.layers {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "blobs/sha256/" + l.blob.Digest.Encoded(), Size: l.blob.Size, Mode: 0o644}); err != nil {
			return err
		}
		if _, err := l.write(t, io.Discard); err != nil {
			return err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
		manifest.Layers = append(manifest.Layers, l.blob)
	}
	var err error
	if manifest.Config, err = document(v1.MediaTypeImageConfig, config); err != nil {
		return err
	}
	d, err := document(v1.MediaTypeImageManifest, manifest)
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{v1.AnnotationRefName: "stable"}
	index, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{d}})
	if err != nil {
		return err
	}
	if err := put("index.json", index); err != nil {
		return err
	}
	if err := put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := t.Close(); err != nil {
		return err
	}
	return b.Flush()
}

// writeFile writes the archive into a file, which is in memory and on the disk then.
func (i *image) writeFile(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := i.writeTo(f); err != nil {
		return err
	}
	return f.Sync()
}
