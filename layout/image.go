package layout

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Kind is what a manifest stands for.
type Kind string

const (
	KindImage       Kind = "image"
	KindIndex       Kind = "index"
	KindArtifact    Kind = "artifact"    // a manifest whose config is not that of an image
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
func readBlob(dirfd int, d v1.Descriptor, limit int64, seen *Seen) ([]byte, sighting, Attr, error) {
	name := BlobPath(d.Digest)
	if d.Size > limit {
		return nil, sighting{}, Attr{}, limitf("%s: %d bytes, over the limit of %d", d.Digest, d.Size, limit)
	}
	data, at, attr, err := readFile(dirfd, name, d.Size, limit)
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
	if d.Data != nil && !bytes.Equal(d.Data, data) {
		return nil, at, attr, notInlined(d)
	}
	return data, at, attr, nil
}

func notInlined(d v1.Descriptor) error {
	return corruptf("%s: the data inlined in its descriptor is not the blob's", d.Digest)
}

// Manifest reads the manifest or index of an entry.
func (s *Snapshot) Manifest(e Entry) (*Manifest, error) { return s.manifest(e, nil) }

// Examine is Manifest; it adds what it found, good or bad, to seen.
func (s *Snapshot) Examine(e Entry, seen *Seen) (*Manifest, error) { return s.manifest(e, seen) }

func (s *Snapshot) manifest(e Entry, seen *Seen) (*Manifest, error) {
	if e.Err != nil {
		return nil, e.Err
	}
	recents := s.app.recents
	if recents == nil {
		return s.readManifest(e, seen)
	}
	if m, found := recents.manifests.get(s.app, e.Descriptor); m != nil && s.Unmoved(found) {
		seen.addAll(found)
		again := *m
		again.Descriptor = e.Descriptor
		if m.Doc != nil {
			again.Kind = kindOfManifest(e.Descriptor, m.Doc)
		}
		return &again, nil
	}
	var found Seen
	m, err := s.readManifest(e, &found)
	seen.addAll(found)
	if err == nil {
		recents.manifests.put(s.app, e.Descriptor, m, found)
	}
	return m, err
}

func (s *Snapshot) readManifest(e Entry, seen *Seen) (*Manifest, error) {
	dirfd, err := s.app.open()
	if err != nil {
		return nil, err
	}
	defer closeFD(dirfd)
	limit := int64(MaxManifest)
	if IsIndex(e.MediaType) {
		limit = MaxIndex
	}
	m := &Manifest{Descriptor: e.Descriptor}
	if m.Bytes, _, m.Attr, err = readBlob(dirfd, e.Descriptor, limit, seen); err != nil {
		return nil, err
	}
	switch {
	case IsIndex(e.MediaType):
		m.Kind = KindIndex
		_, err = ParseIndex(m.Bytes, e.MediaType)
	case IsManifest(e.MediaType):
		m.Doc, err = ParseManifest(m.Bytes, e.MediaType)
		if err == nil {
			m.Kind = kindOfManifest(e.Descriptor, m.Doc)
		}
	default:
		m.Kind = KindArtifact
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Digest, err)
	}
	return m, nil
}

func kindOfManifest(d v1.Descriptor, m *v1.Manifest) Kind {
	if isAttestation(d, m) {
		return KindAttestation
	}
	if !IsConfig(m.Config.MediaType) || m.ArtifactType != "" {
		return KindArtifact
	}
	return KindImage
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

// Config reads the config of an image, and adds what it found, good or bad, to
// seen, which may be nil.
func (s *Snapshot) Config(m *Manifest, seen *Seen) (*Config, error) {
	recents := s.app.recents
	if recents == nil {
		return s.readConfig(m, seen)
	}
	if c, found := recents.configs.get(s.app, m.Doc.Config); c != nil && s.Unmoved(found) {
		seen.addAll(found)
		return c, nil
	}
	var found Seen
	c, err := s.readConfig(m, &found)
	seen.addAll(found)
	if err == nil {
		recents.configs.put(s.app, m.Doc.Config, c, found)
	}
	return c, err
}

func (s *Snapshot) readConfig(m *Manifest, seen *Seen) (*Config, error) {
	dirfd, err := s.app.open()
	if err != nil {
		return nil, err
	}
	defer closeFD(dirfd)
	c := &Config{}
	if c.Bytes, _, _, err = readBlob(dirfd, m.Doc.Config, MaxConfig, seen); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if c.Doc, err = ParseConfig(c.Bytes); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return c, nil
}

// CheckRootFS checks that a config's rootfs fits the manifest's layers.
func CheckRootFS(m *Manifest, c *Config) error {
	if t := c.Doc.RootFS.Type; t != "layers" {
		return corruptf("config: rootfs.type is %q, and not \"layers\"", t)
	}
	if l, d := len(m.Doc.Layers), len(c.Doc.RootFS.DiffIDs); l != d {
		return corruptf("the manifest has %d layers, the config %d diff_ids", l, d)
	}
	return nil
}

// CheckLayer reads a whole layer: the blob has to have its descriptor's size
// and digest, and what it unpacks to, to the end of the stream, the digest
// diffID. It adds the blob to seen, be it good or bad. It stops when ctx is done.
func (s *Snapshot) CheckLayer(ctx context.Context, d v1.Descriptor, diffID digest.Digest, seen *Seen) error {
	dirfd, err := s.app.open()
	if err != nil {
		return err
	}
	defer closeFD(dirfd)
	if d.Data != nil && d.Digest.Algorithm().FromBytes(d.Data) != d.Digest {
		return notInlined(d)
	}
	at := time.Now().UnixNano()
	name := BlobPath(d.Digest)
	fd, attr, err := openRegular(dirfd, name)
	if errors.Is(err, fs.ErrNotExist) {
		err = missing(d)
	}
	if errors.Is(err, ErrCorrupt) {
		seen.add(d.Digest, "", sighting{attr.Stamp, at})
	}
	if err != nil {
		return err
	}
	defer closeFD(fd)
	if attr.Size != d.Size {
		seen.add(d.Digest, "", sighting{attr.Stamp, at})
		return corruptf("%s: %d bytes, and not the %d of its descriptor", name, attr.Size, d.Size)
	}
	blob := d.Digest.Algorithm().Hash()
	source := &readFrom{ctx: ctx, r: io.TeeReader(io.LimitReader(&fdReader{fd: fd, name: name}, d.Size), blob)}
	diff := diffID.Algorithm().Hash()
	unpackErr := unpack(diff, source, d.MediaType)
	if _, err := io.Copy(io.Discard, source); err != nil { // what the decompressor left
		unpackErr = err
	}
	if source.err != nil { // the system's, or the caller's: says nothing about the layer
		return source.err
	}
	sum := digest.NewDigest(d.Digest.Algorithm(), blob)
	seen.add(d.Digest, sum, sighting{attr.Stamp, at})
	if sum != d.Digest {
		return corruptf("%s: the blob's bytes do not have this digest", name)
	}
	if unpackErr != nil {
		return unpackErr
	}
	if got := digest.NewDigest(diffID.Algorithm(), diff); got != diffID {
		return corruptf("%s: unpacks to %s, and the config's diff_id is %s", d.Digest, got, diffID)
	}
	return nil
}

// readFrom keeps the error of a reader apart from those of what reads it.
type readFrom struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (r *readFrom) Read(p []byte) (int, error) {
	if r.err == nil {
		r.err = r.ctx.Err()
	}
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// unpack writes what a layer of that media type unpacks to.
func unpack(w io.Writer, r io.Reader, mediaType string) error {
	fail := func(err error) error { return corruptf("layer: cannot be unpacked: %w", err) }
	base := strings.TrimSuffix(mediaType, "+gzip")
	switch {
	case strings.HasSuffix(mediaType, "+gzip") && isTar(base), strings.HasSuffix(mediaType, ".tar.gzip"):
		z, err := gzip.NewReader(r)
		if err == nil {
			_, err = io.Copy(w, z)
		}
		if err != nil {
			return fail(err)
		}
	case strings.HasSuffix(mediaType, "+zstd") || strings.HasSuffix(mediaType, ".tar.zstd"):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err == nil {
			defer z.Close()
			_, err = io.Copy(w, z)
		}
		if err != nil {
			return fail(err)
		}
	case isTar(mediaType):
		if _, err := io.Copy(w, r); err != nil {
			return fail(err)
		}
	default:
		return corruptf("layer: of media type %q, which irfs cannot unpack to check it", mediaType)
	}
	return nil
}

func isTar(mediaType string) bool { return strings.HasSuffix(mediaType, ".tar") }

// Seen is what was found of some blobs, so that it can be told later, by a few
// calls of stat, whether reading them again would give the same.
type Seen struct{ files []seenFile }

type seenFile struct {
	sighting               // no stamp for a blob that is not there
	name     digest.Digest // of the blob
	sum      digest.Digest // of its bytes; "" if it was refused for what its stamp tells, its size or type
}

func (s *Seen) add(name, sum digest.Digest, at sighting) {
	if s == nil {
		return
	}
	if sum == name {
		sum = name // in the same memory
	}
	s.files = append(s.files, seenFile{at, name, sum})
}

func (s *Seen) addAll(more Seen) {
	if s != nil {
		s.files = append(s.files, more.files...)
	}
}

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
		if f.sum == "" || !f.racy() {
			continue
		}
		at := time.Now().UnixNano()
		if same, err := isBlob(ctx, dirfd, name, f.sum, f.Size); err != nil || !same {
			return seen, false, err
		}
		again := append([]seenFile(nil), seen.files...)
		again[i].at = at
		seen.files = again
	}
	return seen, true, nil
}

// Unmoved is Same for what can be known without reading or opening anything: false means nothing.
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
		if attr, err := lstat(a.parent, name); err != nil || attr.Stamp != f.Stamp || f.sum != "" && f.racy() {
			return false
		}
	}
	return true
}

// isBlob says whether name is a regular file of that size whose bytes have that
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
	fd, _, err := openSame(ctx, dirfd, name, d, size)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		err = nil
	}
	return fd, err
}

// openSame opens a regular file if it has that many bytes with that digest; -1 if not. Its status is from before they were read.
func openSame(ctx context.Context, dirfd int, name string, d digest.Digest, size int64) (int, Attr, error) {
	fd, attr, err := openRegular(dirfd, name)
	if err != nil {
		return -1, attr, err
	}
	h := d.Algorithm().Hash()
	if attr.Size == size {
		_, err = io.Copy(h, &readFrom{ctx: ctx, r: io.LimitReader(&fdReader{fd: fd, name: name}, size)})
	}
	if err == nil && attr.Size == size && digest.NewDigest(d.Algorithm(), h) == d {
		return fd, attr, nil
	}
	closeFD(fd)
	return -1, attr, err
}

// sameFile says whether a regular file has that many bytes with that SHA-256, and holds few of them in memory.
func sameFile(dirfd int, name string, size int64, sum [sha256.Size]byte) (bool, sighting, Attr, error) {
	at := time.Now().UnixNano()
	fd, attr, err := openSame(context.Background(), dirfd, name, digest.NewDigestFromBytes(digest.SHA256, sum[:]), size)
	seen := sighting{attr.Stamp, at}
	if fd < 0 {
		return false, seen, attr, err
	}
	defer closeFD(fd)
	return true, seen, permitted(fd, attr), nil
}

// A Blob is an open file of a layout: a blob, index.json or oci-layout.
type Blob struct {
	fd   int
	name string
	Attr Attr
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
	fd, attr, err := openRegular(dirfd, name)
	if err != nil {
		return nil, notFound(name, err)
	}
	return &Blob{fd, name, attr}, nil
}

// Stat tells what a file or directory of the layout is, by its path in it.
func (a *App) Stat(name string) (Attr, error) {
	attr, err := statPermitted(a.parent, path.Join(a.path, name))
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
	data, _, _, err := readFile(dirfd, "oci-layout", -1, MaxManifest)
	if err != nil {
		return err
	}
	return checkOCILayout(data)
}
