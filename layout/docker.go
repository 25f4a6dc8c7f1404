package layout

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// This file makes OCI images of what `docker save` wrote before version 25, and
// what `podman save` and `skopeo copy … docker-archive:` write (moby/moby,
// image/spec/spec.md):
//
//	manifest.json       [{"Config":"<id>.json","RepoTags":["nginx:1.25"],"Layers":["<id>/layer.tar",…]},…]
//	<id>.json           an image's config
//	<id>/layer.tar      a layer, or a symbolic link to one
//
// The config stays as it is, byte for byte: its digest is what is signed. So do
// the layers, unless they are to be compressed.

// maxDockerImages is how many images an archive in Docker's format may have.
const maxDockerImages = 10_000

// A dockerImage is an element of manifest.json.
type dockerImage struct {
	config string
	tags   []string // full names
	layers []string
}

// parseDockerList is the strict reading of manifest.json, by the rules of [ParseIndex].
func parseDockerList(doc []byte) (list []dockerImage, err error) {
	r, err := newReader(doc, MaxArchiveIndex)
	if err != nil {
		return nil, err
	}
	err = r.elements(func() error {
		var image dockerImage
		err := r.members(func(name string) (err error) {
			switch name {
			case "Config":
				image.config, err = r.string()
			case "RepoTags":
				image.tags, err = r.strings()
			case "Layers":
				image.layers, err = r.strings()
			default:
				err = r.skip()
			}
			return err
		})
		if list = append(list, image); len(list) > maxDockerImages {
			return limitf("over the limit of %d images", maxDockerImages)
		}
		return err
	})
	if err == nil {
		err = r.end()
	}
	if err == nil && len(list) == 0 {
		err = corruptf("it lists no image")
	}
	return list, err
}

// fromDocker adds a manifest for each image that manifest.json lists, and gives an
// index.json of them.
func (u *unpacking) fromDocker(list []byte) ([]byte, error) {
	images, err := parseDockerList(list)
	if err != nil {
		return nil, err
	}
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	for _, image := range images {
		d, err := u.fromDockerImage(image)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", Short(image.config), err)
		}
		if len(image.tags) == 0 {
			index.Manifests = append(index.Manifests, d)
		}
		for _, tag := range image.tags {
			if last := tag[strings.LastIndexByte(tag, '/')+1:]; !strings.Contains(last, ":") {
				tag += ":" + defaultTag // it is a name, and never a tag alone
			}
			d.Annotations = map[string]string{refName: tag}
			index.Manifests = append(index.Manifests, d)
		}
	}
	return json.Marshal(index)
}

func (u *unpacking) fromDockerImage(image dockerImage) (v1.Descriptor, error) {
	config, _, err := u.find(image.config)
	if err != nil {
		return v1.Descriptor{}, err
	}
	m := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: config.digest, Size: config.size},
		Layers:    []v1.Descriptor{},
	}
	text, _, _, err := u.App.readBlob(u.dirfd, m.Config, MaxConfig, nil)
	if err != nil {
		return v1.Descriptor{}, err
	}
	doc, err := ParseConfig(text)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if l, d := len(image.layers), len(doc.RootFS.DiffIDs); l != d {
		return v1.Descriptor{}, corruptf("it has %d layers, and its config %d diff_ids", l, d)
	}
	for i, name := range image.layers {
		layer, at, err := u.find(name)
		if err != nil {
			return v1.Descriptor{}, err
		}
		d, err := u.dockerLayer(layer, doc.RootFS.DiffIDs[i])
		if err != nil {
			return v1.Descriptor{}, fmt.Errorf("layer %q: %w", Short(at), err)
		}
		m.Layers = append(m.Layers, d)
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	return d, u.put(d, manifest)
}

// dockerLayer is the descriptor of a layer that has to unpack to diffID: nothing
// else in such an archive says what its bytes have to be.
func (u *unpacking) dockerLayer(layer part, diffID digest.Digest) (v1.Descriptor, error) {
	d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: layer.digest, Size: layer.size}
	switch {
	case layer.digest == diffID:
		return d, nil // and so not compressed, whatever it begins with
	case layer.compression == "gzip" || layer.compression == "zstd":
		d.MediaType += "+" + layer.compression
	case layer.compression != "":
		return d, corruptf("compressed by %s, for which OCI has no media type", layer.compression)
	}
	switch {
	case layer.diffID == diffID:
	case layer.diffID == "" && (layer.compression != "" || diffID.Algorithm() != layer.digest.Algorithm()):
		if _, err := (&Snapshot{app: u.App}).CheckLayer(u.ctx, d, diffID, nil); err != nil {
			return d, err
		}
		layer.diffID = diffID // known from now on
		u.blobs[layer.digest] = layer
	default:
		return d, corruptf("its digest is %s, and the config's diff_id is %s", cmp.Or(layer.diffID, layer.digest), diffID)
	}
	return d, nil
}

// maxLinks is how many links a name may lead through: Docker makes one.
const maxLinks = 8

// find gives the file that a name in manifest.json stands for. Links are
// looked up, never followed on disk. at is the name of the file itself.
func (u *unpacking) find(name string) (p part, at string, err error) {
	at = path.Clean(name)
	for range maxLinks {
		target, ok := u.links[at]
		if !ok {
			break
		}
		at = path.Join(path.Dir(at), target)
	}
	if p, ok := u.parts[at]; ok {
		return u.blobs[p.digest], at, nil
	}
	if rest, ok := strings.CutPrefix(at, "blobs/"); ok { // as since version 25
		d, err := ParseDigest(strings.Replace(rest, "/", ":", 1))
		if p, ok := u.blobs[d]; ok && err == nil {
			return p, at, nil
		}
	}
	return part{}, at, corruptf("%q: %w", Short(name), errNotInArchive)
}

var errNotInArchive = notInArchive{}

type notInArchive struct{}

func (notInArchive) Error() string        { return "not in the archive" }
func (notInArchive) Is(target error) bool { return target == ErrMissing }

// put adds a document as a blob.
func (u *unpacking) put(d v1.Descriptor, text []byte) error {
	if _, there := u.blobs[d.Digest]; there {
		return nil
	}
	name := BlobPath(d.Digest)
	if err := u.mkdirs(path.Dir(name)); err != nil {
		return err
	}
	u.blobs[d.Digest] = part{digest: d.Digest, size: d.Size}
	return u.write(name, text)
}
