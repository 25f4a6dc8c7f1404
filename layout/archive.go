package layout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// What is more is refused, an [ErrLimit].
const (
	MaxArchiveEntries = 100_000  // entries of an archive
	MaxArchive        = 4 << 40  // bytes of all its files together, unpacked
	MaxArchiveIndex   = 16 << 20 // bytes of all its indexes together, or of its manifest.json
)

// ErrIncomplete: an archive that ends before its end-of-archive blocks. Also ErrCorrupt.
var ErrIncomplete = errors.New("incomplete")

// An Owner is whom imported files belong to.
type Owner struct{ UID, GID int }

// Imported is an image or index that an archive brought.
type Imported struct {
	App, Tag string
	Digest   digest.Digest
}

// An Intake says how an archive is taken in.
type Intake struct {
	Owner Owner
	// App is the app that it is for, "" if that is not known yet. Blobs that
	// the app has already are not written again, if who has these rights may change it.
	App    string
	Rights Rights
	// KeepAll leaves platforms that an index lists and the archive lacks,
	// attestations, and Docker's media types as they are.
	KeepAll bool
	// Compress compresses by gzip the layers of an archive in Docker's own format (docker.go).
	Compress bool
}

// A Staged is an archive that was taken in, checked, and lies in a work
// directory of the registry as an app that nobody sees yet. It is either
// published or discarded.
type Staged struct {
	App *App // may be read, and changed, like any other

	// Dropped says what of the archive was left out or converted, a part of a
	// sentence for each.
	Dropped []string

	// Rights are those of whoever publishes it: he has to reach the directory above the app that is there, and may make files in that
	// app; for a new one, in the nearest directory above it.
	Rights Rights
	// ID tells which directory the app is, once it is published.
	ID ID

	dropped map[string]bool // what Dropped says
	reg     *Registry
	work    *work // nil once it is published or discarded
	spare   []int // descriptors for removing it, where there may be no others
	owner   Owner
}

// Stage takes in an image archive while it is read, in one pass: a tar file, or
// one in gzip, zstd, xz or bzip2, of an OCI image layout or of what `docker save` writes
// (docker.go). Every blob that index.json reaches has to be there and have the
// right digest; what nothing reaches is dropped, and what is not
// as a registry server wants it is put right (normal.go). Nothing is seen of it until
// Publish.
func (r *Registry) Stage(ctx context.Context, archive io.Reader, in Intake) (*Staged, error) {
	return r.stage(ctx, archive, in, new(reading))
}

// stage is Stage, which tells how far it is.
func (r *Registry) stage(ctx context.Context, archive io.Reader, in Intake, far *reading) (*Staged, error) {
	w, name, err := r.staging.enter(r.fd)
	if err != nil {
		return nil, err
	}
	s := &Staged{App: newApp("archive", w.fd, name), reg: r, work: w, owner: in.Owner}
	s.App.windows = r.windows
	for range 3 { // .irfs/<random>/<name>/blobs/sha256/
		fd, err := openDir(w.fd, ".")
		if err != nil {
			s.Discard()
			return nil, err
		}
		s.spare = append(s.spare, fd)
	}
	if err := s.unpack(ctx, archive, in, far); err != nil {
		s.Discard()
		return nil, err
	}
	return s, nil
}

// Discard removes what was staged. After Publish it does nothing.
func (s *Staged) Discard() { s.leave(false) }

func (s *Staged) leave(published bool) {
	if s.work != nil {
		for _, fd := range s.spare {
			closeFD(fd)
		}
		removeAll(s.work.fd, s.App.path)
		s.reg.staging.leave(published)
		s.work = nil
	}
}

func (s *Staged) unpack(ctx context.Context, archive io.Reader, in Intake, far *reading) error {
	if err := s.mkdir(s.work.fd, s.App.path); err != nil {
		return err
	}
	dirfd, err := s.App.open()
	if err != nil {
		return err
	}
	defer closeFD(dirfd)
	u := &unpacking{
		Staged: s, in: in, ctx: ctx, dirfd: dirfd, lander: newLander(), dirs: map[string]bool{},
		documents: map[string]*newFile{}, parts: map[string]part{}, blobs: map[digest.Digest]part{}, links: map[string]string{},
	}
	defer u.lander.close()
	defer func() {
		for _, f := range u.documents {
			f.close()
		}
	}()
	if app, err := s.reg.App(in.App); in.App != "" && err == nil {
		if u.known, err = app.open(); err == nil {
			defer closeFD(u.known)
			u.knows = in.Rights.may(ctx, u.known, in.App, "") == nil
		}
	}
	if err := u.mkdirs("blobs"); err != nil {
		return err
	}
	if err := u.read(archive, far); err != nil {
		return err
	}
	if err := u.settle(); err != nil {
		return err
	}
	return u.lander.flush()
}

// An unpacking is an archive on its way into a staged app.
type unpacking struct {
	*Staged
	in     Intake
	ctx    context.Context
	dirfd  int // the staged app
	known  int // the app that it is for
	knows  bool
	lander *lander
	dirs   map[string]bool // those that were made

	documents map[string]*newFile // the files that are not blobs: oci-layout, index.json, manifest.json
	parts     map[string]part     // every other file that may be a part of an image, by its name
	blobs     map[digest.Digest]part
	links     map[string]string // symbolic links, by their names
	bytes     int64             // of all files so far
}

// A part is a file of an archive that became a blob.
type part struct {
	digest digest.Digest
	size   int64
	// compression of the blob: gzip, zstd, "" for none
	compression string
	// diffID is the digest of a layer before it was compressed here, or "".
	diffID digest.Digest
}

// manifestName is the list of images in what `docker save` writes.
const manifestName = "manifest.json"

// documentLimits are the files of an archive that are read once everything is there.
var documentLimits = map[string]int64{v1.ImageLayoutFile: 64 << 10, indexName: MaxArchiveIndex, manifestName: MaxArchiveIndex}

// take puts one file of an archive where it belongs. What is known to be no
// part of an image is passed over.
func (u *unpacking) take(name string, r io.Reader, size int64) error {
	if limit, ok := documentLimits[name]; ok {
		if size > limit {
			return limitf("archive: %s: %d bytes, over the limit of %d", name, size, limit)
		}
		f, err := createNamed(u.work, name)
		if err != nil {
			return err
		}
		u.documents[name] = f
		_, err = io.Copy(f, r)
		return err
	}
	var want digest.Digest
	if rest, ok := strings.CutPrefix(name, "blobs/"); ok {
		algorithm, hex, _ := strings.Cut(rest, "/")
		d, err := ParseDigest(algorithm + ":" + hex)
		if err != nil {
			return corruptf("archive: %q: %w", name, err)
		}
		want = d
	} else if passedOver(name) {
		return nil
	}
	if p, ok := u.blobs[digest.SHA256.FromBytes(nil)]; ok && size == 0 && want == "" {
		u.parts[name] = p
		return nil
	}
	p, err := u.land(name, r, size, want)
	if err != nil {
		return err
	}
	u.blobs[p.digest] = p
	if want == "" {
		u.parts[name] = p
	}
	return nil
}

// passedOver: what Docker wrote for versions of its own before 1.10 (moby/moby,
// image/spec/spec.md, "Combined Image JSON + Filesystem Changeset Format").
func passedOver(name string) bool {
	dir, base := path.Split(name)
	return dir == "" && base == "repositories" || dir != "" && (base == "VERSION" || base == "json")
}

func (s *Staged) mkdir(dirfd int, name string) error {
	if err := mkdir(dirfd, name, 0o755); err != nil {
		return err
	}
	fd, err := openDir(dirfd, name)
	if err == nil {
		defer closeFD(fd)
		err = own(fd, name, s.owner, 0o755)
	}
	if err != nil {
		rmdir(dirfd, name)
	}
	return err
}

// mkdirs makes a directory of the staged app, once.
func (u *unpacking) mkdirs(name string) error {
	if u.dirs[name] {
		return nil
	}
	u.dirs[name] = true
	return u.mkdir(u.dirfd, name)
}

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

// settle makes an app of what came: its index.json, and no blob that this does
// not reach. What is not synced yet is on its way to be.
func (u *unpacking) settle() error {
	index, err := u.index()
	if err != nil {
		return err
	}
	snap, err := u.snapshot(index)
	if err != nil {
		return err
	}
	if index, err = u.normalise(snap, index); err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	if snap, err = u.snapshot(index); err != nil {
		return err
	}
	used, err := u.reach(snap)
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	if err := u.write(v1.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+v1.ImageLayoutVersion+`"}`)); err != nil {
		return err
	}
	if err := u.write(indexName, index); err != nil {
		return err
	}
	return u.prune(used)
}

// document gives what the archive has of that name; nil if it has not.
func (u *unpacking) document(name string) ([]byte, error) {
	f := u.documents[name]
	if f == nil {
		return nil, nil
	}
	attr, err := fstat(f.fd, name)
	if err != nil {
		return nil, err
	}
	data := make([]byte, attr.Size)
	_, err = readAt(f.fd, name, data, 0)
	if err == io.EOF {
		err = nil
	}
	return data, err
}

// index gives the index.json that the archive has, or one of what `docker save` listed.
func (u *unpacking) index() ([]byte, error) {
	_, hasIndex := u.documents[indexName]
	_, hasLayout := u.documents[v1.ImageLayoutFile]
	_, hasList := u.documents[manifestName]
	switch {
	case hasIndex && hasLayout:
		version, err := u.document(v1.ImageLayoutFile)
		if err == nil {
			err = checkOCILayout(version)
		}
		if err != nil {
			return nil, fmt.Errorf("archive: %w", err)
		}
		return u.document(indexName)
	case hasList && !hasIndex && !hasLayout:
		list, err := u.document(manifestName)
		if err != nil {
			return nil, err
		}
		index, err := u.fromDocker(list)
		if err != nil {
			return nil, fmt.Errorf("archive: %s: %w", manifestName, err)
		}
		return index, nil
	case hasIndex:
		return nil, corruptf("archive: it has an index.json and no oci-layout, so it is not an OCI image archive")
	case hasLayout:
		return nil, corruptf("archive: it has an oci-layout and no index.json, so it is not an OCI image archive")
	}
	for name := range u.parts {
		if dir, base := path.Split(name); base == v1.ImageLayoutFile || base == manifestName {
			return nil, corruptf("archive: what it should have at its top lies in %q; pack that directory's content: tar -C %[1]s -cf ARCHIVE .", path.Clean(dir))
		}
	}
	return nil, corruptf("archive: it has neither oci-layout and index.json nor manifest.json, so it is not an image archive of OCI's or Docker's kind")
}

// snapshot reads an index.json that the staged app does not have yet.
func (u *unpacking) snapshot(text []byte) (*Snapshot, error) {
	list, err := parseRows(u.ctx, text)
	if err != nil {
		return nil, fmt.Errorf("archive: %s: %w", indexName, err)
	}
	if len(list.list) == 0 {
		return nil, corruptf("archive: its index.json lists no image")
	}
	var indexes []v1.Descriptor
	for _, i := range list.indexes {
		indexes = append(indexes, list.descriptor(int(i)))
	}
	return &Snapshot{app: u.App, content: &content{rows: list}}, u.budget(indexes, int64(len(text)))
}

// budget refuses an archive whose indexes, which are read whole and several times,
// are too much for memory. The descriptors are those of indexes in index.json, which has so
// many bytes.
func (u *unpacking) budget(list []v1.Descriptor, sum int64) error {
	seen := map[digest.Digest]bool{}
	for depth := 0; len(list) > 0 && depth <= MaxIndexDepth; depth++ {
		var next []v1.Descriptor
		for _, d := range list {
			if !IsIndex(d.MediaType) || seen[d.Digest] {
				continue
			}
			seen[d.Digest] = true
			if sum += u.blobs[d.Digest].size; sum > MaxArchiveIndex {
				return limitf("archive: over the limit of %d bytes for all its indexes", MaxArchiveIndex)
			}
			ri, err := u.App.readIndex(u.ctx, u.dirfd, d)
			if errors.Is(err, ErrCorrupt) { // said later, and better
				continue
			}
			if err != nil {
				return err
			}
			next = append(next, ri.children...)
		}
		list = next
	}
	return nil
}

// reach gives every blob that index.json reaches, and checks that images are whole:
// what index.json lists is there, and so is all that hangs on what is there, of its
// size, with a config that fits. The digests of all blobs were checked as they
// came in.
func (u *unpacking) reach(snap *Snapshot) (map[digest.Digest]bool, error) {
	for _, d := range snap.descriptors() {
		if _, ok := u.blobs[d.Digest]; !ok {
			return nil, missing(d)
		}
	}
	entries, err := snap.Entries(u.ctx)
	if err != nil {
		return nil, err
	}
	used := map[digest.Digest]bool{}
	for _, e := range entries {
		if err := u.ctx.Err(); err != nil {
			return nil, err
		}
		m, err := snap.Manifest(u.ctx, e)
		if errors.Is(err, ErrMissing) { // kept with KeepAll
			continue
		}
		if err != nil {
			return nil, err
		}
		used[e.Digest] = true
		if m.Doc == nil {
			continue
		}
		for _, d := range append([]v1.Descriptor{m.Doc.Config}, m.Doc.Layers...) {
			p, ok := u.blobs[d.Digest]
			switch {
			case !ok && len(d.URLs) > 0:
				err = fmt.Errorf("%w; it is one that is not distributed, but fetched from elsewhere, and has to be in the archive", missing(d))
			case !ok:
				err = missing(d)
			case p.size != d.Size:
				err = corruptf("%s has %d bytes, and not the %d of its descriptor", d.Digest, p.size, d.Size)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.Digest, err)
			}
			used[d.Digest] = true
		}
		if m.Kind == KindImage {
			c, err := snap.Config(u.ctx, m, nil)
			if err == nil {
				err = CheckRootFS(m, c)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.Digest, err)
			}
		}
	}
	return used, nil
}

// prune removes the blobs that are not used, and has the directories synced.
func (u *unpacking) prune(used map[digest.Digest]bool) error {
	list, err := readDir(u.dirfd, "blobs")
	if err != nil {
		return err
	}
	for _, e := range list {
		dir := path.Join("blobs", e.name)
		blobs, err := readDir(u.dirfd, dir)
		if err != nil {
			return err
		}
		left := len(blobs)
		for _, b := range blobs {
			if !used[digest.Digest(e.name+":"+b.name)] {
				if err := unlink(u.dirfd, path.Join(dir, b.name)); err != nil {
					return err
				}
				left--
			}
		}
		if left == 0 {
			err = rmdir(u.dirfd, dir)
		} else {
			err = u.syncDir(dir)
		}
		if err != nil {
			return err
		}
	}
	if err := u.syncDir("blobs"); err != nil {
		return err
	}
	return u.syncDir(".")
}

// syncDir has a directory of the staged app synced.
func (u *unpacking) syncDir(name string) error {
	fd, err := openDir(u.dirfd, name)
	if err == nil {
		u.lander.sync(&newFile{what: name, fd: fd}, 0)
	}
	return err
}

// write writes a file of the staged app that is not a blob.
func (u *unpacking) write(name string, data []byte) error {
	f, err := u.create(name)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.close()
		return err
	}
	return u.finish(f, int64(len(data)))
}
