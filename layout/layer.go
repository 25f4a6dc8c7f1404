package layout

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// This file holds all that is said of layers. Some programs unpack a layer by its media type, others by its first bytes
// (github.com/containers/image, pkg/compression; github.com/moby/go-archive, compression), and some take its files by a table of
// contents without reading the tar. So a layer is right only if all of these come to the same files.

// compressionOf returns how a layer of that media type is compressed: "gzip", "zstd", or "" for a plain tar file. ok is false
// for any other type (OCI image-spec v1.1, layer.md and media-types.md; Docker's types end in .tar, .tar.gzip and .tar.zstd).
func compressionOf(mediaType string) (compression string, ok bool) {
	switch {
	case strings.HasSuffix(mediaType, ".tar"):
		return "", true
	case strings.HasSuffix(mediaType, ".tar+gzip"), strings.HasSuffix(mediaType, ".tar.gzip"):
		return "gzip", true
	case strings.HasSuffix(mediaType, ".tar+zstd"), strings.HasSuffix(mediaType, ".tar.zstd"):
		return "zstd", true
	}
	return "", false
}

// isEncrypted reports whether a media type is that of an encrypted layer (github.com/containers/ocicrypt, spec/spec.go).
func isEncrypted(mediaType string) bool { return strings.HasSuffix(mediaType, "+encrypted") }

// compressionMagics is what files begin with that any container tool takes for compressed.
var compressionMagics = []struct{ bytes, name string }{
	{"\x1f\x8b", "gzip"}, {"\x28\xb5\x2f\xfd", "zstd"}, {"\xfd7zXZ\x00", "xz"}, {"BZh", "bzip2"},
}

// skippableFrame is the name of what a zstd file may begin with that is no data: to a program that goes by the first bytes it
// may be another file (RFC 8878, section 3.1.2).
const skippableFrame = "a skippable frame of zstd"

// beginsLike names the compression that the first bytes of a layer are a sign of, "" for none.
func beginsLike(head []byte) string {
	for _, magic := range compressionMagics {
		if bytes.HasPrefix(head, []byte(magic.bytes)) {
			return magic.name
		}
	}
	if len(head) >= 4 && binary.LittleEndian.Uint32(head)&^0xf == 0x184d2a50 {
		return skippableFrame
	}
	return ""
}

// layerHead is how many bytes of a file looksLikeLayer wants.
const layerHead = 1028

// looksLikeLayer reports whether a file that begins so is a tar file, or compressed: some programs unpack it, whatever its media
// type says. A tar file of nothing is zeros, or no bytes at all; EROFS begins with zeros too (linux/fs/erofs/erofs_fs.h).
func looksLikeLayer(head []byte) bool {
	if len(bytes.TrimLeft(head[:min(len(head), tarBlock)], "\x00")) == 0 {
		return len(head) < layerHead || string(head[1024:layerHead]) != "\xe2\xe1\xf5\xe0"
	}
	return beginsLike(head) != "" || isTarHeader(head)
}

// isTarHeader reports whether head begins with a tar header that has the right checksum (POSIX.1-2024, pax, "ustar
// Interchange Format"; some programs sum signed bytes).
func isTarHeader(head []byte) bool {
	if len(head) < tarBlock {
		return false
	}
	// As archive/tar reads it, which takes an empty field for 0.
	field, _, _ := strings.Cut(strings.Trim(string(head[148:156]), " \x00"), "\x00")
	want, err := strconv.ParseInt("0"+field, 8, 64)
	if err != nil {
		return false
	}
	unsigned, signed := int64(8*' '), int64(8*' ')
	for i, c := range head[:tarBlock] {
		if i < 148 || i >= 156 {
			unsigned, signed = unsigned+int64(c), signed+int64(int8(c))
		}
	}
	return want == unsigned || want == signed
}

const tarBlock = 512 // bytes

// A LayerProblem is why nobody can say what a layer of a media type unpacks to, "" for nothing. It is known without reading the layer.
func LayerProblem(d v1.Descriptor, diffID digest.Digest) string {
	switch _, ok := compressionOf(d.MediaType); {
	case ok:
		return ""
	case isEncrypted(d.MediaType):
		return fmt.Sprintf("it is encrypted (%q), so that nobody without its key can say what it unpacks to", Short(d.MediaType))
	case d.Digest != diffID && d.Digest.Algorithm() == diffID.Algorithm():
		return fmt.Sprintf("irfs cannot unpack its media type %q, and its bytes are not the config's diff_id themselves", Short(d.MediaType))
	}
	return ""
}

// CheckLayer reads a whole layer: the blob has to have its descriptor's size and digest, begin as its media type says, and unpack, to the
// end of the stream, to the digest diffID. It adds the blob to seen, be it good or bad, and stops when ctx is done. table names the format of a
// table of contents at the layer's end, which is not checked here; "" if there is none.
func (s *Snapshot) CheckLayer(ctx context.Context, d v1.Descriptor, diffID digest.Digest, seen *Seen) (table string, err error) {
	diff := diffID.Algorithm().Hash()
	var unpackErr error
	tail, err := s.readLayer(ctx, d, seen, func(r *bufio.Reader, room *room) {
		unpackErr = unpack(&writeTo{ctx, diff}, r, d.MediaType, room)
	})
	switch {
	case err != nil:
		return "", err
	case LayerProblem(d, diffID) != "":
		return "", corruptf("%s: %s", d.Digest, LayerProblem(d, diffID))
	case unpackErr != nil:
		return "", unpackErr
	}
	if got := digest.NewDigest(diffID.Algorithm(), diff); got != diffID {
		return "", corruptf("%s: unpacks to %s, and the config's diff_id is %s", d.Digest, got, diffID)
	}
	return tableAtEnd(tail), nil
}

// CheckBlob is [Snapshot.CheckLayer] for what need not unpack to anything: a layer of an artifact.
func (s *Snapshot) CheckBlob(ctx context.Context, d v1.Descriptor, seen *Seen) error {
	_, err := s.readLayer(ctx, d, seen, func(*bufio.Reader, *room) {})
	return err
}

// readLayer reads a whole blob, which has to have its descriptor's size and digest, and returns its last bytes. use may read it. It waits until
// there is room to unpack one more layer.
func (s *Snapshot) readLayer(ctx context.Context, d v1.Descriptor, seen *Seen, use func(*bufio.Reader, *room)) (tail []byte, err error) {
	room := s.app.windows.ofLayer(ctx)
	if err := room.take(0); err != nil {
		return nil, err
	}
	defer room.giveBack()
	dirfd, err := s.app.open()
	if err != nil {
		return nil, err
	}
	defer closeFD(dirfd)
	name := BlobPath(d.Digest)
	at := time.Now().UnixNano()
	fd, attr, err := openRegular(dirfd, name)
	if errors.Is(err, fs.ErrNotExist) {
		err = missing(d)
	}
	if errors.Is(err, ErrCorrupt) {
		seen.add(d.Digest, "", sighting{attr.Stamp, at})
	}
	if err != nil {
		return nil, err
	}
	defer closeFD(fd)
	if attr.Size != d.Size {
		seen.add(d.Digest, "", sighting{attr.Stamp, at})
		return nil, corruptf("%s: %d bytes, and not the %d of its descriptor", name, attr.Size, d.Size)
	}
	watched := s.app.watch(fd, attr, name, at)
	last := &tailWriter{}
	blob := d.Digest.Algorithm().Hash()
	source := &readFrom{ctx: ctx, r: io.TeeReader(io.LimitReader(&fdReader{fd: fd, name: name}, d.Size), io.MultiWriter(blob, last))}
	use(bufio.NewReaderSize(source, 64<<10), room)
	if _, err := io.Copy(io.Discard, source); err != nil { // what the decompressor left
		return nil, err
	}
	if source.err != nil { // the system's, or the caller's: says nothing about the layer
		return nil, source.err
	}
	sum := digest.NewDigest(d.Digest.Algorithm(), blob)
	seen.add(d.Digest, sum, watched.end())
	if sum != d.Digest {
		return nil, corruptf("%s: the blob's bytes do not have this digest", name)
	}
	return last.bytes, nil
}

// A tailWriter keeps the last bytes that are written to it, as many as the longest footer of a table of contents has.
type tailWriter struct{ bytes []byte }

const longestFooter = 128

func (w *tailWriter) Write(p []byte) (int, error) {
	w.bytes = append(w.bytes, p[max(0, len(p)-longestFooter):]...)
	w.bytes = append(w.bytes[:0], w.bytes[max(0, len(w.bytes)-longestFooter):]...)
	return len(p), nil
}

// Some readers take the files of a layer from a table of contents that it brings along, which its annotations or its last bytes lead
// to, and go by that alone (github.com/containerd/stargz-snapshotter, docs/estargz.md; github.com/containers/storage, pkg/chunked). Any other annotation
// by which a snapshotter of containerd finds other files than the tar's is as good as one (overlaybd, nydus).

// AnnotatedTable names the format of the table of contents that the annotations of a layer lead to, "" for none.
func AnnotatedTable(d v1.Descriptor) string {
	for _, name := range slices.Sorted(maps.Keys(d.Annotations)) {
		switch {
		case strings.HasPrefix(name, "containerd.io/snapshot/stargz/"):
			return "eStargz"
		case strings.Contains(name, ".zstd-chunked."):
			return "zstd:chunked"
		case strings.HasPrefix(name, "containerd.io/snapshot/"):
			return Short(name)
		}
	}
	return ""
}

// tableAtEnd is AnnotatedTable by a layer's last bytes.
func tableAtEnd(tail []byte) string {
	switch {
	case bytes.Contains(tail, []byte("STARGZ")): // in the extra field of an empty gzip member
		return "eStargz"
	case bytes.HasSuffix(tail, []byte("GNUlInUx")):
		return "zstd:chunked"
	}
	return ""
}

// TableOf names the annotation of an image's manifest that leads to a table of contents of its layers, "" for none: the SOCI snapshotter reads files by
// that table (github.com/awslabs/soci-snapshotter, docs/soci-index-manifest-v2.md).
func TableOf(m *Manifest) string {
	for _, name := range slices.Sorted(maps.Keys(m.Doc.Annotations)) {
		if strings.HasPrefix(name, "com.amazon.soci.") {
			return Short(name)
		}
	}
	return ""
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

// writeTo writes until ctx is done: a few bytes may unpack to very many.
type writeTo struct {
	ctx context.Context
	w   io.Writer
}

func (w *writeTo) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

// unpack writes what a layer of that media type unpacks to. One of a type that irfs cannot unpack is written as it is.
func unpack(w io.Writer, r *bufio.Reader, mediaType string, room *room) error {
	compression, known := compressionOf(mediaType)
	head, err := r.Peek(longestMagic)
	if err != nil && err != io.EOF {
		return err
	}
	if found := beginsLike(head); found != compression {
		return corruptf("its media type is %q, but it begins like %s", Short(mediaType), cmp.Or(found, "a file that is not compressed"))
	}
	switch {
	case !known || compression == "":
		_, err = io.Copy(w, r)
	case compression == "gzip":
		err = gunzipTo(w, r)
	case compression == "zstd":
		z := newZstdReader(r, room, MaxLayerWindow)
		defer z.drop()
		_, err = io.Copy(w, z)
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return limitf("compressed by zstd with a window over the limit of %d bytes", MaxLayerWindow)
	}
	if err != nil {
		return corruptf("cannot be unpacked: %w", err)
	}
	return nil
}

const longestMagic = 6

// gunzipTo writes what the members of a gzip file hold, one after the other.
func gunzipTo(w io.Writer, r *bufio.Reader) error {
	z, err := gzip.NewReader(r)
	for err == nil {
		z.Multistream(false)
		if _, err = io.Copy(w, z); err != nil {
			return err
		}
		more := false
		if more, err = anotherMember(r); err != nil || !more {
			return err
		}
		if err = z.Reset(r); err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
	}
	return err
}
