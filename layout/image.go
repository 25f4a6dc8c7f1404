package layout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Kind is what a manifest stands for.
type Kind string

const (
	KindImage       Kind = "image"
	KindIndex       Kind = "index"
	KindArtifact    Kind = "artifact"    // what no program runs: a Helm chart, a signature, an SBOM
	KindAttestation Kind = "attestation" // what BuildKit says of an image, beside it in its index
)

const (
	inToto        = "application/vnd.in-toto+json"
	referenceType = "vnd.docker.reference.type"
)

// A Manifest is a manifest or index as it was read: the bytes, which have the
// descriptor's size and digest, and what the strict parse found in them.
type Manifest struct {
	v1.Descriptor
	Kind  Kind
	own   Kind // without what the descriptor says
	Bytes []byte
	Attr  Attr
	Doc   *v1.Manifest // nil for an index, and for a media type that is neither
}

// A Config is an image's config as it was read, checked like a Manifest.
type Config struct {
	Bytes []byte
	Doc   *v1.Image
}

// readBlob reads a whole blob and checks it against its descriptor. Errors
// are ErrCorrupt (ErrMissing, ErrLimit), or the system's. Unless it is the
// system's, what was found is added to seen, which may be nil.
func (a *App) readBlob(dirfd int, d v1.Descriptor, limit int64, seen *Seen) ([]byte, sighting, Attr, error) {
	name := BlobPath(d.Digest)
	if d.Size > limit {
		return nil, sighting{}, Attr{}, limitf("%s: %d bytes, over the limit of %d", d.Digest, d.Size, limit)
	}
	data, at, attr, err := a.readFile(dirfd, name, d.Size, limit)
	if errors.Is(err, fs.ErrNotExist) {
		err = missing(d)
	}
	if errors.Is(err, ErrCorrupt) {
		seen.add(d.Digest, "", at)
	}
	if err != nil {
		return nil, at, attr, err
	}
	sum := d.Digest.Algorithm().FromBytes(data)
	seen.add(d.Digest, sum, at)
	if sum != d.Digest {
		return nil, at, attr, corruptf("%s: the blob's bytes do not have this digest", name)
	}
	return data, at, attr, nil
}

// Manifest reads the manifest or index of an entry.
func (s *Snapshot) Manifest(ctx context.Context, e Entry) (*Manifest, error) {
	return s.manifest(ctx, e, nil)
}

// Examine is Manifest; it adds what it found, good or bad, to seen.
func (s *Snapshot) Examine(ctx context.Context, e Entry, seen *Seen) (*Manifest, error) {
	return s.manifest(ctx, e, seen)
}

func (s *Snapshot) manifest(ctx context.Context, e Entry, seen *Seen) (*Manifest, error) {
	if e.Err != nil {
		return nil, e.Err
	}
	recents := s.app.recents
	if recents == nil {
		return s.readManifest(ctx, e, seen)
	}
	if m, found := recents.manifests.get(s.app, e.Descriptor); m != nil && s.Unmoved(found) {
		again := *m
		again.Descriptor, again.Kind = e.Descriptor, m.kindUnder(e.Descriptor)
		seen.Add(found)
		return &again, nil
	}
	var found Seen
	m, err := s.readManifest(ctx, e, &found)
	seen.Add(found)
	if err == nil {
		recents.manifests.put(s.app, e.Descriptor, m, found)
	}
	return m, err
}

func (s *Snapshot) readManifest(ctx context.Context, e Entry, seen *Seen) (*Manifest, error) {
	dirfd, err := s.app.open()
	if err != nil {
		return nil, err
	}
	defer closeFD(dirfd)
	limit := int64(MaxManifest)
	if IsIndex(e.MediaType) {
		limit = MaxIndex
	}
	leave, err := s.app.large.enter(ctx, e.Size)
	if err != nil {
		return nil, err
	}
	defer leave()
	m := &Manifest{Descriptor: e.Descriptor}
	if m.Bytes, _, m.Attr, err = s.app.readBlob(dirfd, e.Descriptor, limit, seen); err != nil {
		return nil, err
	}
	switch {
	case IsIndex(e.MediaType):
		m.own = KindIndex
		var index *v1.Index
		if index, err = ParseIndex(m.Bytes, e.MediaType); err == nil {
			err = s.app.checkSubject(dirfd, index.Subject, seen)
		}
	case IsManifest(e.MediaType):
		if m.Doc, err = ParseManifest(m.Bytes, e.MediaType); err == nil {
			err = s.app.checkSubject(dirfd, m.Doc.Subject, seen)
		}
		if err == nil {
			m.own, err = s.kind(dirfd, e.MediaType, m.Doc, seen)
		}
	default:
		m.own = KindArtifact
		if name := memberLike(m.Bytes, "manifests", "layers", "fsLayers"); name != "" {
			err = corruptf("%q is no media type of an image or index, and the document has %s, as these have", Short(e.MediaType), Short(name))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Digest, err)
	}
	m.Kind = m.kindUnder(e.Descriptor)
	return m, nil
}

// checkSubject compares a subject's descriptor with the size of its blob, if that is in the layout: otherwise it would be the only descriptor of its
// digest whose size is compared with nothing.
func (a *App) checkSubject(dirfd int, d *v1.Descriptor, seen *Seen) error {
	if d == nil {
		return nil
	}
	name := BlobPath(d.Digest)
	at := time.Now().UnixNano()
	attr, err := statBeneath(dirfd, name)
	if err == nil && attr.Mode.IsRegular() && attr.Size != d.Size {
		err = corruptf("subject: %s: %d bytes, and not the %d of its descriptor", name, attr.Size, d.Size)
	} else {
		err = unlessCorrupt(err)
	}
	seen.add(d.Digest, "", sighting{attr.Stamp, at})
	return err
}

// kindUnder is the kind of the manifest where that descriptor names it. What some program runs is no attestation, whatever it is called.
func (m *Manifest) kindUnder(d v1.Descriptor) Kind {
	if m.own == KindArtifact && m.Doc != nil && isAttestation(d, m.Doc) {
		return KindAttestation
	}
	return m.own
}

// kind finds out whether a manifest is an image's: what some program runs is one, whatever media types it is given. An artifact is
//   - what has layers, none of which is of a layer's type or begins like a layer (podman unpacks those of any type);
//   - an OCI manifest with a config that is of no image config's type, and has no `rootfs` (podman looks at neither in one of Docker's).
//
// An image without layers is an image. What cannot be read is taken for an image's, which counts.
func (s *Snapshot) kind(dirfd int, mediaType string, m *v1.Manifest, seen *Seen) (_ Kind, err error) {
	if mediaType == v1.MediaTypeImageManifest && !IsConfig(m.Config.MediaType) {
		config, _, _, err := s.app.readBlob(dirfd, m.Config, MaxConfig, seen)
		switch {
		case errors.Is(err, ErrCorrupt):
			return KindImage, nil
		case err != nil:
			return "", err
		case memberLike(config, "rootfs") == "":
			return KindArtifact, nil
		}
	}
	if len(m.Layers) == 0 {
		return KindImage, nil
	}
	for _, l := range m.Layers {
		if _, ok := compressionOf(l.MediaType); ok {
			return KindImage, nil
		}
	}
	begins := map[digest.Digest]beginning{}
	for _, l := range m.Layers {
		b, again := begins[l.Digest]
		if !again {
			if b, err = s.beginning(dirfd, l.Digest, seen); err != nil {
				return "", err
			}
			begins[l.Digest] = b
		}
		if b.missing && len(l.URLs) == 0 { // which nobody can run
			continue
		}
		// A statement is an object in JSON, and nothing that anybody takes for the end of an empty tar file.
		if b.missing || b.layer || l.MediaType == inToto && !b.object {
			return KindImage, nil
		}
	}
	return KindArtifact, nil
}

// A beginning is what the first bytes of a blob are like.
type beginning struct {
	missing bool // it is not there
	layer   bool // they are, or may be, a layer's
	object  bool // they are those of an object in JSON
}

func (s *Snapshot) beginning(dirfd int, d digest.Digest, seen *Seen) (beginning, error) {
	head, err := s.head(dirfd, d, seen)
	switch {
	case errors.Is(err, ErrMissing):
		return beginning{missing: true}, nil
	case errors.Is(err, ErrCorrupt):
		return beginning{layer: true}, nil
	}
	return beginning{layer: err == nil && looksLikeLayer(head), object: bytes.HasPrefix(head, []byte("{"))}, err
}

// head reads the first bytes of a blob, which is not compared with its digest.
func (s *Snapshot) head(dirfd int, d digest.Digest, seen *Seen) ([]byte, error) {
	name := BlobPath(d)
	at := time.Now().UnixNano()
	fd, attr, err := openRegular(dirfd, name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = missing(v1.Descriptor{Digest: d})
		}
		if errors.Is(err, ErrCorrupt) {
			seen.add(d, "", sighting{attr.Stamp, at})
		}
		return nil, err
	}
	defer closeFD(fd)
	watched := s.app.watch(fd, attr, name, at)
	small := attr.Size <= maxRecent // and can be compared later, whatever its times prove
	head := make([]byte, layerHead)
	if small {
		head = make([]byte, attr.Size)
	}
	n, err := io.ReadFull(&fdReader{fd: fd, name: name}, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	sum := headOnly
	if small {
		sum = d.Algorithm().FromBytes(head[:n])
	}
	seen.add(d, sum, watched.end())
	return head[:n], nil
}

// MaxDocuments is how many bytes the manifests and configs of the images of an index may have together, each counted as often as it is named: many
// images may have one config, and one image may be named with many platforms.
const MaxDocuments = 128 << 20

// Documents are the manifests and configs of the images of an index, as far as they were looked at.
type Documents struct{ bytes int64 }

// Add counts the manifest of an image, and its config, by what their descriptors say. ErrLimit: they are over MaxDocuments.
func (d *Documents) Add(manifest, config int64) error {
	d.bytes += min(max(manifest, 0), MaxManifest) + min(max(config, 0), MaxConfig)
	if d.bytes > MaxDocuments {
		return limitf("the manifests and configs of the images of this index, each as often as it is named, are over the limit of %d bytes", MaxDocuments)
	}
	return nil
}

// isAttestation: all three signs have to be there, for any one of them alone
// can be put on a real image to keep it from counting.
func isAttestation(d v1.Descriptor, m *v1.Manifest) bool {
	if !looksLikeAttestation(d) || len(m.Layers) == 0 {
		return false
	}
	for _, l := range m.Layers {
		if l.MediaType != inToto {
			return false
		}
	}
	return true
}

// looksLikeAttestation: two of the three signs are in the descriptor.
func looksLikeAttestation(d v1.Descriptor) bool {
	_, annotated := d.Annotations[referenceType]
	return annotated && d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// Has reports whether there is a file of the descriptor's size in its blob's place.
func (s *Snapshot) Has(d v1.Descriptor) bool {
	attr, err := s.app.Stat(BlobPath(d.Digest))
	return err == nil && attr.Mode.IsRegular() && attr.Size == d.Size
}

// Config reads the config of an image, and adds what it found, good or bad, to
// seen, which may be nil.
func (s *Snapshot) Config(ctx context.Context, m *Manifest, seen *Seen) (*Config, error) {
	recents := s.app.recents
	if recents == nil {
		return s.readConfig(ctx, m, seen)
	}
	if c, found := recents.configs.get(s.app, m.Doc.Config); c != nil && s.Unmoved(found) {
		seen.Add(found)
		return c, nil
	}
	var found Seen
	c, err := s.readConfig(ctx, m, &found)
	seen.Add(found)
	if err == nil {
		recents.configs.put(s.app, m.Doc.Config, c, found)
	}
	return c, err
}

func (s *Snapshot) readConfig(ctx context.Context, m *Manifest, seen *Seen) (*Config, error) {
	dirfd, err := s.app.open()
	if err != nil {
		return nil, err
	}
	defer closeFD(dirfd)
	leave, err := s.app.large.enter(ctx, m.Doc.Config.Size)
	if err != nil {
		return nil, err
	}
	defer leave()
	c := &Config{}
	if c.Bytes, _, _, err = s.app.readBlob(dirfd, m.Doc.Config, MaxConfig, seen); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if c.Doc, err = ParseConfig(c.Bytes); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return c, nil
}

// CheckConfig checks the size and digest of a config that need not be an image's.
func (s *Snapshot) CheckConfig(ctx context.Context, m *Manifest, seen *Seen) error {
	dirfd, err := s.app.open()
	if err != nil {
		return err
	}
	defer closeFD(dirfd)
	leave, err := s.app.large.enter(ctx, m.Doc.Config.Size)
	if err != nil {
		return err
	}
	defer leave()
	if _, _, _, err = s.app.readBlob(dirfd, m.Doc.Config, MaxConfig, seen); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	return nil
}

// CheckRootFS checks that a config's rootfs fits the manifest's layers.
func CheckRootFS(m *Manifest, c *Config) error {
	if t := c.Doc.RootFS.Type; t != "layers" {
		return corruptf("config: rootfs.type is %q, and not \"layers\"", Short(t))
	}
	if l, d := len(m.Doc.Layers), len(c.Doc.RootFS.DiffIDs); l != d {
		return corruptf("the manifest has %d layers, the config %d diff_ids", l, d)
	}
	return nil
}

// Seen is what was found of some blobs, so that it can be told later, by a few
// calls of stat, whether reading them again would give the same.
type Seen struct{ files []seenFile }

type seenFile struct {
	sighting               // no stamp for a blob that is not there
	name     digest.Digest // of the blob
	sum      digest.Digest // of its bytes; "" if only what its stamp tells was asked, its size and type; headOnly
}

// headOnly stands for the digest of a file of which only the first bytes were read.
const headOnly digest.Digest = "head"

func (s *Seen) add(name, sum digest.Digest, at sighting) {
	if s == nil {
		return
	}
	if sum == name {
		sum = name // in the same memory
	}
	s.files = append(s.files, seenFile{at, name, sum})
}

// Add adds what more has seen.
func (s *Seen) Add(more Seen) {
	if s != nil {
		s.files = append(s.files, more.files...)
	}
}

// Len is the number of blobs.
func (s *Seen) Len() int { return len(s.files) }

// Mtime is the newest modification time of the blobs, in nanoseconds since 1970.
func (s *Seen) Mtime() int64 {
	var t int64
	for _, f := range s.files {
		t = max(t, f.Mtime)
	}
	return t
}

// Racy is how many bytes Same would have to hash.
func (s *Seen) Racy() int64 {
	var n int64
	for _, f := range s.files {
		if f.sum != "" && f.racy() {
			n += f.Size
		}
	}
	return n
}

// Same says whether the blobs are still those that were seen. One whose times
// prove nothing yet is hashed again. What was found is kept in the result. The
// error is the system's, or ctx's.
func (s *Snapshot) Same(ctx context.Context, seen Seen) (Seen, bool, error) {
	if s.Unmoved(seen) {
		return seen, true, nil
	}
	dirfd, err := s.app.open()
	if err != nil {
		return seen, false, err
	}
	defer closeFD(dirfd)
	for i, f := range seen.files {
		name := BlobPath(f.name)
		attr, err := statBeneath(dirfd, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrCorrupt) {
			return seen, false, err
		}
		if attr.Stamp != f.Stamp {
			return seen, false, nil
		}
		if f.sum == "" || s.app.proves(f.sighting) {
			continue
		}
		if f.sum == headOnly {
			return seen, false, nil
		}
		same, at, _, err := s.app.sameFile(ctx, dirfd, name, f.sum, f.Size)
		if err != nil || !same || at.Stamp != f.Stamp {
			return seen, false, unlessCorrupt(err)
		}
		again := append([]seenFile(nil), seen.files...)
		again[i].at = at.at
		seen.files = again
	}
	return seen, true, nil
}

// Unmoved is a cheap Same: true means unchanged, false means unknown.
func (s *Snapshot) Unmoved(seen Seen) bool {
	a := s.app
	a.mu.Lock()
	g := a.ground
	a.mu.Unlock()
	if !a.stands(g) {
		return false
	}
	if blobs, err := lstat(a.parent, a.path+"/blobs"); err != nil || blobs.Stamp != g.blobs {
		return false
	}
	for _, f := range seen.files {
		name := a.path + "/" + BlobPath(f.name)
		if attr, err := lstat(a.parent, name); err != nil || attr.Stamp != f.Stamp || f.sum != "" && !a.proves(f.sighting) {
			return false
		}
	}
	return true
}

// isBlob reports whether name is a regular file of that size whose bytes have that
// digest. The size is compared before a byte is read.
func isBlob(ctx context.Context, dirfd int, name string, d digest.Digest, size int64) (bool, error) {
	fd, err := openBlob(ctx, dirfd, name, d, size)
	if fd >= 0 {
		closeFD(fd)
	}
	return fd >= 0, err
}

// openBlob opens a blob if isBlob; -1 if it is not.
func openBlob(ctx context.Context, dirfd int, name string, d digest.Digest, size int64) (int, error) {
	fd, attr, err := openRegular(dirfd, name)
	if err != nil {
		return -1, unlessCorrupt(err)
	}
	if same, err := hasDigest(ctx, fd, attr, name, d, size); err != nil || !same {
		closeFD(fd)
		return -1, err
	}
	return fd, nil
}

// unlessCorrupt is the error, or nil if that says that there is no such regular file.
func unlessCorrupt(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		return nil
	}
	return err
}

// hasDigest reports whether an open file has that many bytes with that digest.
func hasDigest(ctx context.Context, fd int, attr Attr, name string, d digest.Digest, size int64) (bool, error) {
	if attr.Size != size {
		return false, nil
	}
	h := d.Algorithm().Hash()
	_, err := io.Copy(h, &readFrom{ctx: ctx, r: io.LimitReader(&fdReader{fd: fd, name: name}, size)})
	return err == nil && digest.NewDigest(d.Algorithm(), h) == d, err
}

// sameFile reports whether a regular file has that many bytes with that digest, and holds few of them in memory.
func (a *App) sameFile(ctx context.Context, dirfd int, name string, d digest.Digest, size int64) (bool, sighting, Attr, error) {
	at := time.Now().UnixNano()
	fd, attr, err := openRegular(dirfd, name)
	if err != nil {
		return false, sighting{attr.Stamp, at}, attr, err
	}
	defer closeFD(fd)
	watched := a.watch(fd, attr, name, at)
	same, err := hasDigest(ctx, fd, attr, name, d, size)
	return same, watched.end(), permitted(fd, attr), err
}

// A Blob is an open file of a layout: a blob, index.json or oci-layout.
type Blob struct {
	fd   int
	name string
	Attr Attr
	// Proven is true if the stamp shows every change of the file from now on.
	Proven bool
}

// FD is the file's descriptor; it belongs to the Blob.
func (b *Blob) FD() int { return b.fd }

// Close closes the file.
func (b *Blob) Close() { closeFD(b.fd) }

// ReadAt reads like io.ReaderAt.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) {
	return readAt(b.fd, b.name, p, off)
}

// OpenFile opens a file of the layout by its path in it, as it stands.
// ErrNotFound if it is not there, or is not a regular file.
func (a *App) OpenFile(name string) (*Blob, error) {
	dirfd, err := a.open()
	if err != nil {
		return nil, err
	}
	defer closeFD(dirfd)
	at := time.Now().UnixNano()
	fd, attr, err := openRegular(dirfd, name)
	if err != nil {
		return nil, notFound(name, err)
	}
	return &Blob{fd, name, attr, a.proves(a.watch(fd, attr, name, at).end())}, nil
}

// Stat tells what a file or directory of the layout is, by its path in it.
func (a *App) Stat(name string) (Attr, error) {
	dirfd, err := a.open()
	if err != nil {
		return Attr{}, err
	}
	defer closeFD(dirfd)
	attr, err := statPermitted(dirfd, name)
	if err == nil && !attr.Mode.IsRegular() && !attr.Mode.IsDir() {
		err = corruptf("%s: %s", name, kindOf(attr.Mode))
	}
	return attr, notFound(name, err)
}

// List lists the names in a directory of the layout: regular files, or
// directories.
func (a *App) List(name string, dirs bool) ([]string, error) {
	dirfd, err := a.open()
	if err != nil {
		return nil, err
	}
	defer closeFD(dirfd)
	list, err := readDir(dirfd, name)
	if err != nil {
		return nil, notFound(name, err)
	}
	var names []string
	for _, e := range list {
		if dirs && e.mode.IsDir() || !dirs && e.mode.IsRegular() {
			names = append(names, e.name)
		}
	}
	return names, nil
}

func notFound(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		return kindf(ErrNotFound, "%s: not there", name)
	}
	return err
}

// CheckVersion checks the app's file oci-layout; ErrCorrupt if its version is
// not one that irfs knows (OCI image-spec v1.1, image-layout.md).
func (a *App) CheckVersion() error {
	dirfd, err := a.open()
	if err != nil {
		return err
	}
	defer closeFD(dirfd)
	data, _, _, err := a.readFile(dirfd, "oci-layout", -1, MaxManifest)
	if err != nil {
		return err
	}
	return checkOCILayout(data)
}
