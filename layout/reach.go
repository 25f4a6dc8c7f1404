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
	next      *stored // in the same directory, of a name that differs in case alone

	named bool // it and those after it, by a document

	used, scanned bool
	by            digest.Digest // what named it, if that is no index or manifest that irfs knows
}

func (b *stored) path() string { return path.Join("blobs", b.dir, b.name) }

// digest is the digest that it has to have; false for a file that is no blob as irfs knows them.
func (b *stored) digest() (digest.Digest, bool) {
	d, err := ParseDigest(b.dir + ":" + b.name)
	return d, err == nil
}

// A storedKey is a directory's name, and a file's in lower case.
type storedKey struct{ dir, name string }

// longestAlgorithm is how long the name of a directory among the blobs may be for what is in it to be looked at.
const longestAlgorithm = 32

// A reach is what is used of an app.
type reach struct {
	l    *locked
	list []*stored
	of   map[storedKey]*stored

	algorithms, names map[int]bool // lengths of the directories' names, and of the files'

	by      digest.Digest // whose names are being found
	waiting []*stored     // used, and not scanned
}

// reach finds what index.json, which has the bytes raw, reaches. An error means that not everything is known.
func (l *locked) reach(ctx context.Context, snap *Snapshot, raw []byte) (*reach, error) {
	r := &reach{l: l, of: map[storedKey]*stored{}, algorithms: map[int]bool{}, names: map[int]bool{}}
	if err := r.look(); err != nil {
		return nil, err
	}
	f := &finder{found: r.found}
	const piece = 1 << 20 // bytes, which take some milliseconds
	for part := range slices.Chunk(raw, piece) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f.Write(part)
	}
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
		if len(algorithm.name) > longestAlgorithm {
			continue
		}
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
			key := storedKey{algorithm.name, name}
			b := &stored{dir: algorithm.name, name: e.name, mode: e.mode, next: r.of[key]}
			r.of[key], r.algorithms[len(key.dir)], r.names[len(name)] = b, true, true
			r.list = append(r.list, b)
		}
	}
	return nil
}

// blob is the blob of a digest; nil if it is not there.
func (r *reach) blob(d digest.Digest) *stored {
	b := r.of[storedKey{d.Algorithm().String(), strings.ToLower(d.Encoded())}]
	for b != nil && b.name != d.Encoded() {
		b = b.next
	}
	return b
}

// uses reports whether a blob is there and used.
func (r *reach) uses(d digest.Digest) bool {
	b := r.blob(d)
	return b != nil && b.used
}

// betweens are what may stand between an algorithm and hex digits.
var betweens = []string{":", "-", "/", `\`, "_", "=", "%3a", `\u003a`}

// found is called with text of a document that ends in hex digits. Of many digits the last may be a blob's name, for a colon may be
// written %3A. The time that it takes does not grow with the number of blobs, or of directories.
func (r *reach) found(text []byte, digits int) {
	for size := range r.names {
		if digits < size {
			continue
		}
		rest, name := text[:len(text)-size], text[len(text)-size:]
		for _, between := range betweens {
			before, ok := bytes.CutSuffix(rest, []byte(between))
			if !ok {
				continue
			}
			for length := range r.algorithms {
				if length <= len(before) {
					r.name(r.of[storedKey{string(before[len(before)-length:]), string(name)}])
				}
			}
		}
	}
}

// name notes that a document names a blob, nil for none, in some case.
func (r *reach) name(b *stored) {
	if b == nil || b.named {
		return
	}
	b.named = true
	for ; b != nil; b = b.next {
		r.use(b)
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
