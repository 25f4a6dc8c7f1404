package layout

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// MaxArchiveEntries is how many entries an archive may have.
const MaxArchiveEntries = 100_000

// ErrIncomplete: an archive that ends before its end-of-archive blocks. Also ErrCorrupt.
var ErrIncomplete = errors.New("incomplete")

// An Owner is whom imported files belong to.
type Owner struct{ UID, GID int }

// Imported is an image or index that an archive brought; Tag may be empty.
type Imported struct {
	App, Tag string
	Digest   digest.Digest
}

// A Staged is an archive that was taken in, checked, and lies in a work
// directory of the registry as an app that nobody sees yet. It is either
// published or discarded.
type Staged struct {
	App *App // may be read, and changed, like any other

	// May, if set, is asked before the archive is added to an app that is there,
	// which is locked then; its error refuses that.
	May func(*App) error

	reg   *Registry
	work  *work
	owner Owner
}

const stagedName = "archive" // also what errors call it

// Stage takes in an OCI image archive: a tar of an image layout. Everything that
// its index.json reaches has to be there and have the right digests;
// what nothing reaches is dropped. Nothing is seen of it until Publish.
func (r *Registry) Stage(ctx context.Context, archive io.Reader, owner Owner) (*Staged, error) {
	w, err := newWork(r.fd)
	if err != nil {
		return nil, err
	}
	s := &Staged{reg: r, work: w, owner: owner}
	s.App = &App{Name: stagedName, parent: w.fd, turn: make(chan struct{}, 1), indexes: map[string]*readIndex{}}
	err = s.unpack(ctx, archive)
	if err == nil {
		err = s.check(ctx)
	}
	if err != nil {
		s.Discard()
		return nil, err
	}
	return s, nil
}

// Discard removes what was staged. After Publish it does nothing.
func (s *Staged) Discard() {
	if s.work != nil {
		s.work.close()
		s.work = nil
	}
}

func (s *Staged) unpack(ctx context.Context, archive io.Reader) error {
	if err := s.mkdir(s.work.fd, stagedName); err != nil {
		return err
	}
	dirfd, err := s.App.open()
	if err != nil {
		return err
	}
	defer closeFD(dirfd)
	if err := s.mkdir(dirfd, "blobs"); err != nil {
		return err
	}
	head := bufio.NewReader(archive)
	begin, _ := head.Peek(8)
	if kind := Compressed(begin); kind != "" {
		return corruptf("archive: compressed by %s, which is not supported yet; unpack it first", kind)
	}
	tail := &tail{r: &readFrom{ctx: ctx, r: head}}
	entries := tar.NewReader(tail)
	seen := map[string]bool{}
	var padding int64
	for count := 1; ; count++ {
		h, err := entries.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return tail.failed(err)
		}
		name := path.Clean(h.Name)
		switch {
		case count > MaxArchiveEntries:
			return limitf("archive: over the limit of %d entries", MaxArchiveEntries)
		case !fs.ValidPath(name):
			return corruptf("archive: %q: not a path inside the archive", h.Name)
		case h.Typeflag == tar.TypeDir:
			padding = 0
			tail.zeros = 0
			continue
		case h.Typeflag != tar.TypeReg || sparse(h):
			return corruptf("archive: %q: neither a regular file nor a directory", h.Name)
		case seen[name]:
			return corruptf("archive: %q: twice in the archive", h.Name)
		}
		seen[name] = true
		if err := s.take(dirfd, name, entries, h.Size); err != nil {
			return tail.failed(err)
		}
		if _, err := io.Copy(io.Discard, entries); err != nil {
			return tail.failed(err)
		}
		padding = -h.Size & 511
		tail.zeros = 0
	}
	if err := tail.end(padding); err != nil {
		return err
	}
	for _, name := range []string{"oci-layout", indexName} {
		if !seen[name] {
			return corruptf("archive: it has no %s, so it is not an OCI image archive", name)
		}
	}
	return nil
}

// sparse says whether an entry has holes, which a few bytes can make as large
// as they like. Those of GNU tar's own format have a type of their own.
func sparse(h *tar.Header) bool {
	for name := range h.PAXRecords {
		if strings.HasPrefix(name, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// take puts one entry of an archive where it belongs. Anything that is no
// part of an image layout is passed over.
func (s *Staged) take(dirfd int, name string, r io.Reader, size int64) error {
	algorithm, hex, isBlob := strings.Cut(strings.TrimPrefix(name, "blobs/"), "/")
	switch {
	case name == "oci-layout":
		if size > MaxManifest {
			return limitf("archive: %s: %d bytes, over the limit of %d", name, size, MaxManifest)
		}
		data, err := io.ReadAll(r)
		if err == nil {
			err = checkOCILayout(data)
		}
		if err != nil {
			return err
		}
		return s.write(dirfd, name, bytes.NewReader(data))
	case name == indexName:
		if size > MaxIndex {
			return limitf("archive: %s: %d bytes, over the limit of %d", name, size, MaxIndex)
		}
		return s.write(dirfd, name, r)
	case !isBlob || !strings.HasPrefix(name, "blobs/"):
		return nil
	}
	d, err := ParseDigest(algorithm + ":" + hex)
	if err != nil {
		return corruptf("archive: %q: %w", name, err)
	}
	if err := s.mkdir(dirfd, path.Dir(name)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	hash := d.Algorithm().Hash()
	if err := s.write(dirfd, name, io.TeeReader(r, hash)); err != nil {
		return err
	}
	if digest.NewDigest(d.Algorithm(), hash) != d {
		return corruptf("archive: %q: its bytes do not have this digest", name)
	}
	return nil
}

func (s *Staged) mkdir(dirfd int, name string) error {
	if err := mkdir(dirfd, name, 0o755); err != nil {
		return err
	}
	fd, err := openDir(dirfd, name)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	return own(fd, name, s.owner, 0o755)
}

// write writes and syncs one file of the staged app.
func (s *Staged) write(dirfd int, name string, r io.Reader) error {
	fd, err := openBeneath(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	f := &newFile{what: name, fd: fd}
	defer f.close()
	if _, err := io.CopyBuffer(f, r, make([]byte, 1<<20)); err != nil {
		return err
	}
	if err := own(fd, name, s.owner, 0o644); err != nil {
		return err
	}
	return fsync(fd, name)
}

// Compressed names the program that compressed a file which begins so, or "".
func Compressed(head []byte) string {
	for _, magic := range []struct{ bytes, name string }{
		{"\x1f\x8b", "gzip"}, {"\x28\xb5\x2f\xfd", "zstd"}, {"\xfd7zXZ\x00", "xz"}, {"BZh", "bzip2"},
	} {
		if bytes.HasPrefix(head, []byte(magic.bytes)) {
			return magic.name
		}
	}
	return ""
}

// tail watches what an archive ends with.
type tail struct {
	r     *readFrom
	zeros int64 // zero bytes read since the last other byte
}

func (t *tail) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	rest := bytes.TrimRight(p[:n], "\x00")
	if len(rest) > 0 {
		t.zeros = 0
	}
	t.zeros += int64(n - len(rest))
	return n, err
}

// failed tells what it means that an archive could not be read on.
func (t *tail) failed(err error) error {
	switch {
	case t.r.err != nil:
		return t.r.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("archive: it ends in the middle of an entry: %w", incomplete{})
	case errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong):
		return corruptf("archive: not an uncompressed tar archive, or a damaged one: %w", err)
	}
	return err
}

// end checks that the archive had its two blocks of zeros (POSIX.1-2024, pax,
// "ustar Interchange Format"), and reads on to the end of the stream, where
// only zeros may follow.
func (t *tail) end(padding int64) error {
	if t.zeros < padding+1024 {
		return fmt.Errorf("archive: its end is missing (two blocks of zeros): %w", incomplete{})
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := t.Read(buf)
		if len(bytes.TrimLeft(buf[:n], "\x00")) > 0 {
			return corruptf("archive: there is data after its end")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

type incomplete struct{}

func (incomplete) Error() string        { return "it was cut off" }
func (incomplete) Is(target error) bool { return target == ErrIncomplete || target == ErrCorrupt }

// checkOCILayout checks the content of an oci-layout file.
func checkOCILayout(data []byte) error {
	version := ""
	err := parse(data, MaxManifest, func(r reader, name string) (err error) {
		if name != "imageLayoutVersion" {
			return r.skip()
		}
		version, err = r.string()
		return err
	})
	if err == nil && version != v1.ImageLayoutVersion {
		err = corruptf("imageLayoutVersion is %q, and not %q", version, v1.ImageLayoutVersion)
	}
	if err != nil {
		return fmt.Errorf("oci-layout: %w", err)
	}
	return nil
}

// check makes sure that what the archive brought is whole, drops what
// nothing refers to, and syncs its directories.
func (s *Staged) check(ctx context.Context) error {
	l, err := s.App.lock(ctx)
	if err != nil {
		return err
	}
	defer l.release()
	s.App.mu.Lock()
	snap, _, err := s.App.load(l.dirfd)
	s.App.mu.Unlock()
	if err == nil {
		err = snap.Err
	}
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	if len(snap.index.Manifests) == 0 {
		return corruptf("archive: its index.json lists no image")
	}
	for tag, row := range snap.tags {
		if row == twice {
			return corruptf("archive: the tag %q is given twice", tag)
		}
	}
	used, err := snap.used()
	if err == nil {
		err = s.blobsThere(l.dirfd, snap)
	}
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	list, err := readDir(l.dirfd, "blobs")
	if err != nil {
		return err
	}
	for _, e := range list {
		dir := path.Join("blobs", e.name)
		blobs, err := readDir(l.dirfd, dir)
		if err != nil {
			return err
		}
		for _, b := range blobs {
			if !used[digest.Digest(e.name+":"+b.name)] {
				if err := unlink(l.dirfd, path.Join(dir, b.name)); err != nil {
					return err
				}
			}
		}
		if err := syncDir(l.dirfd, dir); err != nil {
			return err
		}
	}
	if err := syncDir(l.dirfd, "blobs"); err != nil {
		return err
	}
	return fsync(l.dirfd, stagedName)
}

// blobsThere checks that every image that is there has its config and layers,
// each of its size, and that every tag names something. The digests of all
// blobs were checked as they came in.
func (s *Staged) blobsThere(dirfd int, snap *Snapshot) error {
	for _, d := range snap.index.Manifests {
		if _, err := statBeneath(dirfd, BlobPath(d.Digest)); errors.Is(err, fs.ErrNotExist) {
			return missing(d)
		}
	}
	entries, err := snap.Entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		m, err := snap.Manifest(e)
		if errors.Is(err, ErrMissing) {
			continue
		}
		if err != nil {
			return err
		}
		if m.Doc == nil {
			continue
		}
		for _, d := range append([]v1.Descriptor{m.Doc.Config}, m.Doc.Layers...) {
			attr, err := statBeneath(dirfd, BlobPath(d.Digest))
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%s: %w", e.Digest, missing(d))
			}
			if err == nil && attr.Size != d.Size {
				err = corruptf("%s: %s has %d bytes, and not the %d of its descriptor", e.Digest, d.Digest, attr.Size, d.Size)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
