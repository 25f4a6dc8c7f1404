package layout

import (
	"bytes"
	"context"
	"errors"
	"hash"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// What is in use is told by bytes, and not by what irfs knows of documents: index.json is scanned (finder.go), and whatever it names is there is
// used; if that begins like JSON it is scanned in turn, whatever anybody says that it is. So a blob is kept that is a subject, or is named by an index of an unknown
// media type, by an annotation, or by inline data, with all that it names itself.

// A stored is a file among an app's blobs.
type stored struct {
	dir, name string // blobs/<dir>/<name>
	mode      fs.FileMode
	size      int64   // once it was scanned
	next      *stored // of the same name in another directory

	used, scanned bool
	by            digest.Digest // what named it, if that is no index or manifest that irfs knows
}

func (b *stored) path() string { return path.Join("blobs", b.dir, b.name) }

// digest is the digest that it has to have; false for a file that is no blob as irfs knows them.
func (b *stored) digest() (digest.Digest, bool) {
	d, err := ParseDigest(b.dir + ":" + b.name)
	return d, err == nil
}

// A reach is what is used of an app.
type reach struct {
	l    *locked
	list []*stored
	of   map[string]*stored // by name
	size map[int]bool       // lengths of names

	by      digest.Digest // whose names are being found
	waiting []*stored     // used, and not scanned
}

// reach finds what index.json, which has the bytes raw, reaches. An error means that not everything is known.
func (l *locked) reach(ctx context.Context, snap *Snapshot, raw []byte) (*reach, error) {
	r := &reach{l: l, of: map[string]*stored{}, size: map[int]bool{}}
	if err := r.look(); err != nil {
		return nil, err
	}
	f := &finder{found: r.found}
	f.Write(raw)
	f.end()
	entries, err := snap.Entries(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range entries { // these first: of what they name there is nothing to tell
		if b := r.blob(e.Digest); b != nil && (IsManifest(e.MediaType) || IsIndex(e.MediaType)) {
			r.use(b)
			if err := r.scan(ctx, b, true); err != nil {
				return nil, err
			}
		}
	}
	for len(r.waiting) > 0 {
		b := r.waiting[len(r.waiting)-1]
		r.waiting = r.waiting[:len(r.waiting)-1]
		r.by = digest.NewDigestFromEncoded(digest.Algorithm(b.dir), b.name)
		if err := r.scan(ctx, b, false); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// look lists the files among the blobs.
func (r *reach) look() error {
	algorithms, err := readDir(r.l.dirfd, "blobs")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, algorithm := range algorithms {
		list, err := readDir(r.l.dirfd, path.Join("blobs", algorithm.name))
		if errors.Is(err, ErrCorrupt) { // not a directory
			continue
		}
		if err != nil {
			return err
		}
		r.list = slices.Grow(r.list, len(list))
		for _, e := range list {
			name := strings.ToLower(e.name)
			if len(name) < shortestHex || len(name) > longestHex || !isHex(name) {
				continue
			}
			b := &stored{dir: algorithm.name, name: e.name, mode: e.mode, next: r.of[name]}
			r.of[name], r.size[len(name)] = b, true
			r.list = append(r.list, b)
		}
	}
	return nil
}

// blob is the blob of a digest; nil if it is not there.
func (r *reach) blob(d digest.Digest) *stored {
	b := r.of[d.Encoded()]
	for b != nil && (b.dir != d.Algorithm().String() || b.name != d.Encoded()) {
		b = b.next
	}
	return b
}

// uses reports whether a blob is there and used.
func (r *reach) uses(d digest.Digest) bool {
	b := r.blob(d)
	return b != nil && b.used
}

// found is called with text of a document that ends in hex digits. Of many digits the last may be a blob's name, for a colon may be
// written %3A.
func (r *reach) found(text []byte, digits int) {
	for size := range r.size {
		if digits < size {
			continue
		}
		name := len(text) - size
		for b := r.of[string(text[name:])]; b != nil; b = b.next {
			for _, between := range []string{":", "-", "/", `\`, "_", "=", "%3a", `\u003a`} {
				if before, ok := bytes.CutSuffix(text[:name], []byte(between)); ok && bytes.HasSuffix(before, []byte(b.dir)) {
					r.use(b)
				}
			}
		}
	}
}

func (r *reach) use(b *stored) {
	if !b.used {
		b.used, b.by = true, r.by
		r.waiting = append(r.waiting, b)
	}
}

// scan scans a blob if it begins like JSON, or is one that has to. Its bytes must be its digest's.
func (r *reach) scan(ctx context.Context, b *stored, always bool) error {
	if b.scanned {
		return nil
	}
	b.scanned = true
	fd, attr, err := openRegular(r.l.dirfd, b.path())
	if errors.Is(err, fs.ErrNotExist) { // gone meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	defer closeFD(fd)
	b.size = attr.Size
	d, known := b.digest()
	var sum hash.Hash
	if known {
		sum = d.Algorithm().Hash()
	}
	buf := getBuffer()
	defer putBuffer(buf)
	var start jsonStart
	f := &finder{found: r.found}
	for from := (&fdReader{fd: fd, name: b.path()}); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := *buf
		if start == unknown { // most of them are layers, of which no more is read
			part = part[:4<<10]
		}
		n, err := from.Read(part)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		part = part[:n]
		for i := 0; start == unknown && i < n; i++ {
			start.add(part[i])
		}
		if start == noJSON && !always {
			return nil
		}
		f.Write(part)
		if known {
			sum.Write(part)
		}
	}
	f.end()
	if known && digest.NewDigest(d.Algorithm(), sum) != d {
		return corruptf("%s: its bytes do not have this digest", d)
	}
	return nil
}
