package fs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/sign"
)

// imageDir is MNT/nginx/tags/stable/ or MNT/nginx/manifests/sha256-<hex>/, or
// one of their platforms/linux-amd64/. Its children are the rows of
// imageFiles, sign, and platforms/.
type imageDir struct {
	place
	tag      string        // one of tag and
	digest   digest.Digest // digest is given
	platform string        // a name in platforms/, or ""
}

// An image is what an image directory stands for at one moment.
type image struct {
	t     *Tree
	app   *layout.App
	snap  *layout.Snapshot
	entry layout.Entry
	fixed bool // nothing new can be said of it, as long as index.json has these bytes
	doubt bool // something that should be there was not, or was not as it should be
}

// open finds out what the directory stands for now.
func (d *imageDir) open(ctx context.Context) (*image, error) {
	app, snap, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	fixed := snap.WordsFixed(ctx)
	entry, err := d.find(ctx, snap)
	if err != nil {
		return nil, absent(err)
	}
	return &image{t: d.t, app: app, snap: snap, entry: entry, fixed: fixed}, nil
}

// find gives the entry that the directory stands for in a state of the app.
func (d *imageDir) find(ctx context.Context, snap *layout.Snapshot) (layout.Entry, error) {
	var e layout.Entry
	var err error
	if d.digest != "" {
		e, err = snap.Digest(ctx, d.digest)
	} else {
		e, err = snap.Tag(ctx, d.tag)
	}
	if err != nil || d.platform == "" {
		return e, err
	}
	list, err := d.t.platformsOf(ctx, snap, e)
	if err != nil {
		return e, err
	}
	for _, p := range list {
		if p.name == d.platform {
			return p.entry, nil
		}
	}
	return e, fmt.Errorf("no image for %s: %w", d.platform, layout.ErrNotFound)
}

func (d *imageDir) item(ctx context.Context) (*Item, error) {
	image, err := d.open(ctx)
	if err != nil {
		return nil, err
	}
	at, err := d.at()
	if err != nil {
		return nil, err
	}
	item := directory(d, at.Attr)
	item.Mtime = image.snap.Attr.Mtime
	return item, nil
}

// with does something with the image. If that has doubts, and index.json was read anew by then, it is done again:
// what the old state needed may have been removed, as nothing needs it any more. (The new one may have the same bytes: two vendors sign in turn.)
func (d *imageDir) with(ctx context.Context, do func(*image) error) error {
	for try := 0; ; try++ {
		image, err := d.open(ctx)
		if err != nil {
			return err
		}
		if err = do(image); err != nil {
			err = absent(err) // the app itself, meanwhile
		}
		if !image.doubt || try == 5 {
			return err
		}
		if now, nowErr := image.app.Snapshot(ctx); nowErr != nil || now.Serial() == image.snap.Serial() || now.Equal(image.snap) && now.Attr.Stamp == image.snap.Attr.Stamp {
			return err
		}
	}
}

func (d *imageDir) lookup(ctx context.Context, name string) (item *Item, err error) {
	err = d.with(ctx, func(image *image) (err error) {
		item, err = d.file(ctx, image, name)
		return err
	})
	return item, err
}

func (d *imageDir) file(ctx context.Context, image *image, name string) (*Item, error) {
	switch name {
	case "sign":
		return d.sign(image)
	case "platforms":
		return (&platformsDir{d}).item(ctx)
	}
	for _, f := range imageFiles {
		if f.name == name {
			return f.get(ctx, image)
		}
	}
	return nil, errAbsent
}

func (d *imageDir) list(ctx context.Context) (list []Name, err error) {
	err = d.with(ctx, func(image *image) (err error) {
		list, err = d.names(ctx, image)
		return err
	})
	return list, err
}

func (d *imageDir) names(ctx context.Context, image *image) ([]Name, error) {
	manifest, err := image.manifest(ctx)
	if err != nil && !errors.Is(err, errAbsent) {
		return nil, err
	}
	var list []Name
	for _, f := range imageFiles {
		if f.listed == nil || f.listed(image, manifest) {
			list = append(list, Name{f.name, 0})
		}
	}
	list = append(list, Name{"sign", 0})
	if d.platform == "" {
		// One that is a platform's has a platforms/ too, of itself; it is
		// not listed, for find(1) would never come to its end.
		list = append(list, Name{"platforms", fs.ModeDir})
	}
	return sorted(list), nil
}

// sign is the control file (control.go). It can be written by whoever may
// write the app's directory.
func (d *imageDir) sign(image *image) (*Item, error) {
	at, err := d.at()
	if err != nil {
		return nil, err
	}
	text := d.t.outcome(d.id, image.entry.Digest)
	item := fileOf(text, at.Attr, image.snap.Attr.Mtime)
	item.Mode = at.Mode.Perm()&0o222 | image.snap.Attr.Mode.Perm()&0o444
	item.control = d
	return item, nil
}

// An imageFile is a virtual file of an image directory.
type imageFile struct {
	name string
	// listed says whether the file is shown among the names of a directory,
	// without verifying anything; nil: always. manifest is nil where it
	// cannot be read.
	listed func(*image, *layout.Manifest) bool
	// get computes the file; errAbsent.
	get func(context.Context, *image) (*Item, error)
}

// imageFiles is the table of DESIGN: a virtual file is a row here.
var imageFiles = []imageFile{
	{"verify", nil, func(ctx context.Context, i *image) (*Item, error) {
		return i.ofChain(ctx, func(_ context.Context, v *sign.Verdict) (*Item, error) {
			item := i.ofVerdict(v, word(v))
			if i.fixed {
				item.basis = &basis{i.snap.Serial(), v}
			}
			return item, nil
		})
	}},
	{"verify-full", never, func(ctx context.Context, i *image) (*Item, error) {
		return i.ofFull(ctx, []byte(presumedWord), word), nil
	}},
	{"reason", nil, func(ctx context.Context, i *image) (*Item, error) {
		if full := i.known(ctx, true); full != nil {
			return i.ofVerdict(full, []byte(full.Text())), nil
		}
		return i.ofChain(ctx, func(_ context.Context, v *sign.Verdict) (*Item, error) {
			return i.ofVerdict(v, []byte(v.Text())), nil
		})
	}},
	{"status.json", nil, func(ctx context.Context, i *image) (*Item, error) {
		return i.ofChain(ctx, func(ctx context.Context, v *sign.Verdict) (*Item, error) {
			report, mtime := v.Report(i.app, i.snap, i.entry), v.Mtime
			if full := i.known(ctx, true); full != nil {
				report.Layers, mtime = full.Layers, max(mtime, full.Mtime)
			}
			return fileOf(report.JSON(), i.snap.Attr, max(mtime, i.snap.Attr.Mtime)), nil
		})
	}},
	{"status-full.json", never, func(ctx context.Context, i *image) (*Item, error) {
		presumed := []byte(presumedWord)
		if large, err := i.large(ctx); err != nil {
			return nil, err
		} else if !large {
			v, err := i.verify(ctx, false)
			if err != nil {
				return nil, err
			}
			report := v.Report(i.app, i.snap, i.entry)
			if v.Status != sign.Corrupt && v.Kind != layout.KindAttestation {
				report.Layers = sign.LayersVerified
			}
			presumed = report.JSON()
		}
		return i.ofFull(ctx, presumed, func(v *sign.Verdict) []byte { return v.Report(i.app, i.snap, i.entry).JSON() }), nil
	}},
	{"digest", func(i *image, _ *layout.Manifest) bool { return i.entry.Digest != "" }, func(_ context.Context, i *image) (*Item, error) {
		if i.entry.Digest == "" { // a tag that is given twice
			return nil, errAbsent
		}
		return fileOf([]byte(i.entry.Digest+"\n"), i.snap.Attr, i.snap.Attr.Mtime), nil
	}},
	{"manifest.json", func(i *image, m *layout.Manifest) bool {
		if m != nil {
			return true
		}
		_, err := manifestJSON(context.Background(), i)
		return err == nil
	}, manifestJSON},
	{"config.json", hasConfig, func(ctx context.Context, i *image) (*Item, error) {
		m, err := i.manifest(ctx)
		if err != nil || m.Doc == nil {
			return nil, orAbsent(err)
		}
		return i.blob(m.Doc.Config.Digest)
	}},
	chainFile("signature", sign.SignatureAnnotation, func(c sign.Chain) []byte { return c.Signature }),
	chainFile("vendor.pub", sign.VendorPubAnnotation, func(c sign.Chain) []byte { return c.VendorPub }),
	chainFile("vendor.pub.sig", sign.CertificateAnnotation, func(c sign.Chain) []byte { return c.Certificate }),
}

func never(*image, *layout.Manifest) bool { return false }

func hasConfig(i *image, m *layout.Manifest) bool {
	if m == nil || m.Doc == nil {
		return false
	}
	_, err := i.app.Stat(layout.BlobPath(m.Doc.Config.Digest))
	return err == nil
}

// chainFile is a file that holds what one of the annotations of an image
// says, decoded.
func chainFile(name, annotation string, part func(sign.Chain) []byte) imageFile {
	listed := func(_ *image, m *layout.Manifest) bool {
		if m == nil || m.Doc == nil {
			return false
		}
		chain, _, _ := sign.ReadChain(m.Doc.Annotations)
		return part(chain) != nil
	}
	return imageFile{name, listed, func(ctx context.Context, i *image) (*Item, error) {
		m, err := i.manifest(ctx)
		if err != nil || !listed(i, m) {
			return nil, orAbsent(err)
		}
		chain, _, _ := sign.ReadChain(m.Doc.Annotations)
		blob, err := i.blob(i.entry.Digest)
		if err != nil {
			return nil, err
		}
		item := fileOf(part(chain), i.snap.Attr, m.Attr.Mtime)
		item.Mode, item.UID, item.GID = blob.Mode, blob.UID, blob.GID // for those who can read the manifest
		return item, nil
	}}
}

// manifest reads the image's manifest; errAbsent if there is none to be read. That of an index, which may be large, is without its bytes.
func (i *image) manifest(ctx context.Context) (m *layout.Manifest, err error) {
	if layout.IsIndex(i.entry.MediaType) {
		m, err = &layout.Manifest{Descriptor: i.entry.Descriptor, Kind: layout.KindIndex}, i.snap.CheckIndex(ctx, i.entry)
	} else {
		m, err = i.snap.Manifest(ctx, i.entry)
	}
	if errors.Is(err, layout.ErrCorrupt) {
		i.doubt = true
		err = errAbsent
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

// orAbsent is err, or errAbsent where there was none.
func orAbsent(err error) error {
	if err == nil {
		return errAbsent
	}
	return err
}

// blob is a blob that is shown outside of blobs/. It can be read by those only
// who could read it there.
func (i *image) blob(d digest.Digest) (*Item, error) {
	item, err := blobItem(i.app, layout.BlobPath(d))
	if err != nil {
		i.doubt = true
		return nil, err
	}
	for dir := path.Dir(layout.BlobPath(d)); dir != "."; dir = path.Dir(dir) {
		at, err := i.app.Stat(dir)
		if err != nil {
			return nil, absent(err)
		}
		item.Mode &= through(at, item.UID, item.GID)
	}
	return item, nil
}

// through gives the read bits that a directory leaves to a file of that owner and
// group in it: those of whom it lets pass.
func through(dir layout.Attr, uid, gid uint32) fs.FileMode {
	pass := dir.Mode.Perm() & 0o111 << 2
	if dir.UID != uid { // then its owner's bit says nothing of the file's owner
		pass = pass&^0o400 | pass&0o004<<6
	}
	if dir.GID != gid {
		pass = pass&^0o040 | pass&0o004<<3
	}
	return pass
}

func word(v *sign.Verdict) []byte { return []byte(string(v.Status) + "\n") }

func (i *image) ofVerdict(v *sign.Verdict, text []byte) *Item {
	return fileOf(text, i.snap.Attr, max(v.Mtime, i.snap.Attr.Mtime))
}

// A basis is a state of the app, and the verdict on an image that its index.json lists: no nested index can come between, nor say
// something new of it.
type basis struct {
	serial  uint64
	verdict *sign.Verdict
}

// holds reports whether what is based on it surely is what would be computed anew.
func (d *imageDir) holds(ctx context.Context, b *basis) bool {
	if b == nil || b.verdict.Status == sign.Corrupt || d.platform != "" {
		return false
	}
	_, snap, err := d.look(ctx)
	return err == nil && snap.Serial() == b.serial && (d.tag != "" || snap.Lists(d.digest)) && b.verdict.Holds(snap)
}

// known is the verdict, if it is known already and still holds.
func (i *image) known(ctx context.Context, full bool) *sign.Verdict {
	return i.t.Verifier.Known(ctx, i.app, i.snap, i.entry, full)
}

// atOnce is how many images of an index are verified when somebody only looks at its files, and does not open one. More may take long, and whoever looks at
// the same name meanwhile waits in the kernel, beyond SIGKILL.
const atOnce = 64

// large reports whether the image is an index of more images than that.
func (i *image) large(ctx context.Context) (bool, error) {
	if !layout.IsIndex(i.entry.MediaType) {
		return false, nil
	}
	images, err := i.snap.Images(ctx, i.entry)
	if errors.Is(err, layout.ErrCorrupt) {
		err = nil
	}
	return len(images) > atOnce, err
}

// presumedWord is the content of a file, and so its size, as long as what it says is not known, and nobody has opened it.
const presumedWord = string(sign.Verified) + "\n"

// ofChain is a file that is made of the verdict without layers. Of a large index it is presumed until it is opened.
func (i *image) ofChain(ctx context.Context, file func(context.Context, *sign.Verdict) (*Item, error)) (*Item, error) {
	large, err := i.large(ctx)
	if err != nil {
		return nil, err
	}
	verify := func(ctx context.Context) (*Item, error) {
		v, err := i.verify(ctx, false)
		if err != nil {
			return nil, err
		}
		return file(ctx, v)
	}
	if !large {
		return verify(ctx)
	}
	if v := i.known(ctx, false); v != nil {
		return file(ctx, v)
	}
	item := fileOf([]byte(presumedWord), i.snap.Attr, i.snap.Attr.Mtime)
	item.settle = func(ctx context.Context) (*Item, error) {
		real, err := verify(ctx)
		if err != nil {
			return nil, absent(err)
		}
		return real, nil
	}
	return item, nil
}

func (i *image) verify(ctx context.Context, full bool) (*sign.Verdict, error) {
	v, err := i.t.Verifier.Verify(ctx, i.app, i.snap, i.entry, full)
	if err == nil && v.Status == sign.Corrupt {
		i.doubt = true
	}
	return v, err
}

// ofFull is a file with what text makes of the full verdict. No layer is read before it is opened: until then its
// content, and so its size, is presumed.
func (i *image) ofFull(ctx context.Context, presumed []byte, text func(*sign.Verdict) []byte) *Item {
	if v := i.known(ctx, true); v != nil {
		return fileOf(text(v), i.snap.Attr, i.snap.Attr.Mtime)
	}
	item := fileOf(presumed, i.snap.Attr, i.snap.Attr.Mtime)
	item.settle = func(ctx context.Context) (*Item, error) {
		v, err := i.t.Verifier.Verify(ctx, i.app, i.snap, i.entry, true)
		if err != nil {
			return nil, absent(err)
		}
		return fileOf(text(v), i.snap.Attr, i.snap.Attr.Mtime), nil
	}
	return item
}

// manifestJSON is the blob itself, also when its bytes are not what its name
// says: somebody will want to look at them.
func manifestJSON(_ context.Context, i *image) (*Item, error) {
	if i.entry.Digest == "" {
		return nil, errAbsent
	}
	return i.blob(i.entry.Digest)
}

// platformsDir is the directory platforms/ of an image directory. Its children
// are the image directories of the images for each platform; that of an image
// that is not an index is itself.
type platformsDir struct{ image *imageDir }

func (d *platformsDir) of() layout.ID { return d.image.id }

func (d *platformsDir) item(ctx context.Context) (*Item, error) {
	item, err := d.image.item(ctx)
	if err == nil {
		item.dir = d
	}
	return item, err
}

func (d *platformsDir) images(ctx context.Context) ([]platformImage, error) {
	image, err := d.image.open(ctx)
	if err != nil {
		return nil, err
	}
	return d.image.t.platformsOf(ctx, image.snap, image.entry)
}

func (d *platformsDir) lookup(ctx context.Context, name string) (*Item, error) {
	list, err := d.images(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		if p.name == name {
			// platforms/x/platforms/x is platforms/x.
			return (&imageDir{d.image.place, d.image.tag, d.image.digest, name}).item(ctx)
		}
	}
	return nil, errAbsent
}

func (d *platformsDir) list(ctx context.Context) ([]Name, error) {
	images, err := d.images(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range images {
		names = append(names, p.name)
	}
	return sorted(dirs(names...)), nil
}

// A platform is what an image's documents say of its name in platforms/.
type platform struct {
	name                 string
	config               int64 // bytes of the config that was read for it
	missing, attestation bool
}

// platformKey is what that depends on: a digest stands for the same bytes always.
type platformKey struct {
	digest              digest.Digest
	mediaType           string
	size                int64
	platform, reference string // by the descriptor
}

// maxPlatforms is how many are kept.
const maxPlatforms = 1 << 14

// platformOf gives it for an image that is there, and reads it once. One that cannot be read is `unknown`, and read again.
func (t *Tree) platformOf(ctx context.Context, snap *layout.Snapshot, e layout.Entry) (platform, error) {
	key := platformKey{digest: e.Digest, mediaType: e.MediaType, size: e.Size, reference: e.Annotations["vnd.docker.reference.type"]}
	if e.Platform != nil {
		key.platform = layout.PlatformName(*e.Platform)
	}
	t.mu.Lock()
	known, ok := t.platforms[key]
	t.mu.Unlock()
	if ok && e.Err == nil && snap.Has(e.Descriptor) {
		return known, nil
	}
	m, err := snap.Manifest(ctx, e)
	if err != nil && !errors.Is(err, layout.ErrCorrupt) {
		return platform{}, err
	}
	p := platform{missing: errors.Is(err, layout.ErrMissing), attestation: m != nil && m.Kind == layout.KindAttestation}
	if m != nil && m.Doc != nil && e.Platform == nil { // its platform is in its config
		p.config = m.Doc.Config.Size
	}
	if p.name, ok = tagName(snap.PlatformName(ctx, e, m)); !ok {
		p.name = "unknown"
	}
	if err == nil && ctx.Err() == nil && p.name != layout.PlatformName(v1.Platform{}) { // for its config may have been missing
		t.mu.Lock()
		defer t.mu.Unlock()
		if len(t.platforms) >= maxPlatforms {
			clear(t.platforms)
		}
		t.platforms[key] = p
	}
	return p, nil
}

// A platformImage is an image by its name in platforms/.
type platformImage struct {
	name  string
	entry layout.Entry
}

// platformsOf lists the images that count in an entry by the names that they
// have in platforms/. Names that would be the same get the digest's beginning.
func (t *Tree) platformsOf(ctx context.Context, snap *layout.Snapshot, e layout.Entry) ([]platformImage, error) {
	images, err := snap.Images(ctx, e)
	if errors.Is(err, layout.ErrCorrupt) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []platformImage
	times := map[string]int{}
	var documents layout.Documents
	for _, image := range images {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p, err := t.platformOf(ctx, snap, image)
		if err != nil {
			return nil, err
		}
		if !p.missing && layout.IsIndex(e.MediaType) && documents.Add(image.Size, p.config) != nil {
			return nil, nil // it is corrupt
		}
		if p.missing && layout.IsIndex(e.MediaType) || p.attestation {
			continue
		}
		times[p.name]++
		list = append(list, platformImage{p.name, image})
	}
	for i, p := range list {
		if times[p.name] > 1 {
			hex := p.entry.Digest.Encoded()
			list[i].name += "-" + hex[:min(12, len(hex))]
		}
	}
	return list, nil
}

// outcome is what reading `sign` gives.
func (t *Tree) outcome(app layout.ID, d digest.Digest) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	if last := t.outcomes[movedKey{app, d}]; last != "" {
		b.WriteString(last + "\n")
	}
	b.WriteString(usage)
	return []byte(b.String())
}
