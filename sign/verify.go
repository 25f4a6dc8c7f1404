package sign

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unique"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"irfs/layout"
)

// The state of an image's layers in a Verdict.
const (
	LayersUnchecked = "unchecked"
	LayersVerified  = "verified"
	LayersCorrupt   = "corrupt"
)

// A Verdict is what was found of an image or index. There may be very many: it is kept small.
type Verdict struct {
	Status     Status
	Reason     string      // the check that decided and what it found, one of Checks
	Kind       layout.Kind // "" when the manifest cannot be read
	Layers     string
	Vendor, CA string // fingerprints, "" where there is none
	Platform   string // os/arch[/variant], normalised; "" if it was not read
	Mtime      int64  // the newest modification time of what was read, nanoseconds since 1970
	// Missing: the manifest itself is not in the layout, as a sparse index allows.
	Missing bool

	passed           passed // of an image
	layers           int32  // their number
	manifest, config blob
	of               uint64      // the subject
	seen             layout.Seen // tells when the verdict does not hold any more
	fault            error       // what makes the image corrupt
	lines            []string    // of an index; of an image, what was decided before its layers were read
}

// passed says which checks of an image found what they should.
type passed uint8

const (
	passedManifest passed = 1 << iota
	passedConfig
	passedRootFS
	passedAnnotations
	passedSignature
)

// A blob is one that was read.
type blob struct {
	digest digest.Digest
	size   int64
}

// Checks gives a line for each check that was made, in order.
func (v *Verdict) Checks() []string {
	var list []string
	add := func(check passed, format string, args ...any) {
		if v.passed&check != 0 {
			list = append(list, oneLine(fmt.Sprintf(format, args...)))
		}
	}
	add(passedManifest, "manifest: %s, %d bytes, as its descriptor says", v.manifest.digest, v.manifest.size)
	add(passedConfig, "config: %s, %d bytes, as the manifest says", v.config.digest, v.config.size)
	add(passedRootFS, "rootfs: %d layers, as many as the config's diff_ids", v.layers)
	add(passedAnnotations, "annotations: all three are there")
	add(passedSignature, "signature: of the config, by vendor %s", v.Vendor)
	list = append(list, v.lines...)
	if v.Kind == layout.KindIndex && v.lines != nil {
		return list
	}
	list = append(list, v.Reason)
	switch {
	case v.Layers == LayersVerified && v.Kind == layout.KindArtifact:
		list = append(list, fmt.Sprintf("layers: all %d have their digest", v.layers))
	case v.Layers == LayersVerified:
		list = append(list, fmt.Sprintf("layers: all %d have their digest, and unpack to the config's diff_id", v.layers))
	}
	return list
}

// Holds reports whether the verdict, which was given on an image in that state of its app, surely still is the one on it. It reads
// nothing; what it cannot know so does not hold.
func (v *Verdict) Holds(snap *layout.Snapshot) bool {
	return v.Kind != layout.KindIndex && v.Layers == LayersUnchecked && v.of != 0 && snap.Unmoved(v.seen)
}

// counts reports whether an image's word counts in that of its index.
func (v *Verdict) counts() bool {
	return !v.Missing && v.Kind != layout.KindAttestation
}

// found adds a line to the verdict on an index.
func (v *Verdict) found(format string, args ...any) {
	v.lines = append(v.lines, oneLine(fmt.Sprintf(format, args...)))
}

// decide ends a verdict: the check that decided, and its outcome.
func (v *Verdict) decide(s Status, check string, reason string) {
	v.Status, v.Reason = s, oneLine(check+": "+reason)
}

// unknownPlatform is that of an image that does not say it.
var unknownPlatform = layout.PlatformString(v1.Platform{})

// share makes what is the same in many verdicts take memory once.
func (v *Verdict) share() {
	for _, s := range []*string{&v.Reason, &v.Vendor, &v.CA, &v.Platform} {
		*s = unique.Make(*s).Value()
	}
}

// maxReason is how many bytes a line of a verdict has at most.
const maxReason = 2 << 10

// oneLine keeps what an image says of itself from looking like more lines, and from being long.
func oneLine(text string) string {
	text = strings.Map(func(c rune) rune {
		if EndsLine(c) {
			return unicode.ReplacementChar
		}
		return c
	}, layout.Cut(text, maxReason))
	return layout.Cut(text, maxReason) // that character takes more bytes than some
}

// A Verifier gives verdicts. It keeps them, and gives the same one again, without
// reading more than the stamps, as long as the files that it was made from are
// the same. It is safe for use by many goroutines; those that ask for the
// same thing at the same time wait for one answer.
type Verifier struct {
	Trust *Trust

	mu       sync.Mutex
	verdicts map[verdictKey]*Verdict
	weight   int // of all of them
	most     int // verdicts, before those are forgotten that nobody can ask for any more

	flights layout.Flights[verdictKey, look]
	indexes layout.Flights[indexVerdict, *Verdict]
	layers  layers

	documents *semaphore.Weighted // room for the documents of images
	oneByOne  chan struct{}       // held by who reads the layers of an image with a large manifest
}

type verdictKey struct {
	app    *layout.App
	digest string
	full   bool
	of     uint64 // the subject, as an index may name one manifest for several platforms
}

// An indexVerdict is what the verdict on an index is computed for at one time, by all who ask for it.
type indexVerdict struct {
	verdictKey
	known bool // only if it is known already
	state layout.State
}

// maxVerdicts bounds what a Verifier keeps, by weight, in bytes; fewVerdicts is not worth a look.
const (
	maxVerdicts = 256 << 20
	fewVerdicts = 512
)

// weight is about how many bytes a verdict takes. What it shares with others counts all the same.
func (v *Verdict) weight() int {
	const (
		self = 512 // with its key and digests
		blob = 160 // in seen
		line = 16
	)
	bytes := self + blob*v.seen.Len() + len(v.Reason) + len(v.Vendor) + len(v.CA) + len(v.Platform)
	for _, text := range v.lines {
		bytes += line + len(text)
	}
	return bytes
}

// NewVerifier gives a Verifier that trusts t.
func NewVerifier(t *Trust) *Verifier {
	return &Verifier{
		Trust: t, verdicts: map[verdictKey]*Verdict{},
		documents: semaphore.NewWeighted(roomForDocuments), oneByOne: make(chan struct{}, 1),
	}
}

// Verify gives the verdict on an entry of the app; with full, every layer is
// read too. Its error is the system's, or ctx's: an image that is bad has a
// verdict that says so.
func (v *Verifier) Verify(ctx context.Context, app *layout.App, snap *layout.Snapshot, e layout.Entry, full bool) (*Verdict, error) {
	if layout.IsIndex(e.MediaType) {
		return v.index(ctx, app, snap, e, full)
	}
	return v.image(ctx, app, snap, e, full, time.Time{})
}

// maxRehash is how many bytes Known hashes at most to know, of an image.
const maxRehash = 4 << 20

// Known gives the verdict, with full the full one, if it is known already and still holds. It reads
// nothing but small blobs whose times prove nothing yet. nil: it is not known, or ctx is done.
func (v *Verifier) Known(ctx context.Context, app *layout.App, snap *layout.Snapshot, e layout.Entry, full bool) *Verdict {
	known := func(ctx context.Context, image layout.Entry) (*Verdict, error) {
		if verdict := v.known(ctx, app, snap, image, full); verdict != nil {
			return verdict, nil
		}
		return nil, errUnknown
	}
	if !layout.IsIndex(e.MediaType) {
		verdict, _ := known(ctx, e)
		return verdict
	}
	key := indexVerdict{verdictKey{app, string(e.Digest), full, about(e.Descriptor)}, true, snap.State()}
	verdict, _ := v.indexes.Fresh(ctx, key, func(ctx context.Context) (*Verdict, error) { return index(ctx, snap, e, known) })
	return verdict
}

var errUnknown = errors.New("not known")

func (v *Verifier) known(ctx context.Context, app *layout.App, snap *layout.Snapshot, e layout.Entry, full bool) *Verdict {
	key := verdictKey{app, string(e.Digest), full, about(e.Descriptor)}
	kept := v.kept(key, e)
	if kept == nil || kept.seen.Racy() > maxRehash {
		return nil
	}
	verdict, _ := v.renew(ctx, key, snap, kept)
	return verdict
}

// kept gives the verdict that was kept, which may be outdated.
func (v *Verifier) kept(key verdictKey, e layout.Entry) *Verdict {
	v.mu.Lock()
	defer v.mu.Unlock()
	if kept := v.verdicts[key]; kept != nil && e.Err == nil {
		return kept
	}
	return nil
}

// renew gives a verdict that was kept if it still holds, and nil if not.
func (v *Verifier) renew(ctx context.Context, key verdictKey, snap *layout.Snapshot, kept *Verdict) (*Verdict, error) {
	racy := kept.seen.Racy() > 0
	seen, same, err := snap.Same(ctx, kept.seen)
	if err != nil || !same {
		return nil, err
	}
	if !racy {
		return kept, nil
	}
	again := *kept
	again.seen = seen
	v.keep(key, &again)
	return &again, nil
}

// keep keeps a verdict. One on what is not there is as quickly found again, and of those an index may have very many.
func (v *Verifier) keep(key verdictKey, verdict *Verdict) {
	if verdict.Missing {
		return
	}
	v.mu.Lock()
	if old := v.verdicts[key]; old != nil {
		v.weight -= old.weight()
	}
	if v.weight += verdict.weight(); v.weight > maxVerdicts {
		clear(v.verdicts)
		v.weight = verdict.weight()
	}
	v.verdicts[key] = verdict
	var look []verdictKey
	if len(v.verdicts) > max(v.most, fewVerdicts) {
		look = slices.Collect(maps.Keys(v.verdicts))
		v.most = 2 * len(look) // until it is known
	}
	v.mu.Unlock()
	if look != nil {
		v.forget(look)
	}
}

// forget drops verdicts on what is gone: an app, or an image that its index.json does not reach any more.
func (v *Verifier) forget(look []verdictKey) {
	states := map[*layout.App]*layout.Snapshot{}
	var gone []verdictKey
	for _, key := range look {
		snap, seen := states[key.app]
		if !seen {
			snap, _ = key.app.Snapshot(context.Background())
			states[key.app] = snap
		}
		if snap != nil && snap.Err == nil {
			if _, err := snap.Digest(context.Background(), digest.Digest(key.digest)); !errors.Is(err, layout.ErrNotFound) {
				continue
			}
		}
		gone = append(gone, key)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, key := range gone {
		if old := v.verdicts[key]; old != nil {
			v.weight -= old.weight()
			delete(v.verdicts, key)
		}
	}
	v.most = 2 * len(v.verdicts)
}

// subject is what a verdict depends on besides the blobs.
type subject struct {
	size                      int64
	mediaType, reference      string
	isReference, hasPlatform  bool
	os, architecture, variant string
	inlined                   bool
	data                      [sha256.Size]byte
}

// about gives what stands for a descriptor's subject. Nobody knows the seed, so nobody can make two that are the same.
func about(d v1.Descriptor) uint64 {
	s := subject{size: d.Size, mediaType: d.MediaType}
	s.reference, s.isReference = d.Annotations["vnd.docker.reference.type"]
	if p := d.Platform; p != nil {
		s.hasPlatform, s.os, s.architecture, s.variant = true, p.OS, p.Architecture, p.Variant
	}
	if d.Data != nil {
		s.inlined, s.data = true, sha256.Sum256(d.Data)
	}
	return maphash.Comparable(seed, s)
}

var seed = maphash.MakeSeed()

// A look is a verdict with the time that the oldest thing was seen at which it rests upon and which proves nothing any more.
type look struct {
	verdict *Verdict
	since   time.Time
}

// The documents of images that are verified at a time take room for their bytes, of which a parse makes several times as many.
const (
	roomForDocuments = 32 << 20
	smallManifest    = 256 << 10
	smallConfig      = 64 << 10
)

// errNoRoom: there is no room for an image's config.
var errNoRoom = errors.New("no room for the config")

// checkInTurn is Trust.check, once there is room for the image's documents. How large its config is, its manifest says; if that is more than there is room
// for, it is read again later.
func (v *Verifier) checkInTurn(ctx context.Context, snap *layout.Snapshot, e layout.Entry) (verdict *Verdict, m *layout.Manifest, c *layout.Config, err error) {
	manifest := min(max(e.Size, 0), layout.MaxManifest) // a larger one is refused unread
	room := min(manifest+smallConfig, roomForDocuments)
	for {
		if err := v.documents.Acquire(ctx, room); err != nil {
			return nil, nil, nil, err
		}
		needs := room
		verdict, m, c, err = v.Trust.check(ctx, snap, e, func(config int64) bool {
			needs = min(manifest+min(max(config, 0), layout.MaxConfig), roomForDocuments)
			return needs <= room
		})
		v.documents.Release(room)
		if !errors.Is(err, errNoRoom) {
			return verdict, m, c, err
		}
		room = needs
	}
}

// image gives the verdict on an image. Of its layers, what was seen after since will do; with no time, after this was asked for.
func (v *Verifier) image(ctx context.Context, app *layout.App, snap *layout.Snapshot, e layout.Entry, full bool, since time.Time) (*Verdict, error) {
	do := func(ctx context.Context, began time.Time) (look, error) {
		if full && e.Size > smallManifest && e.Size <= layout.MaxManifest { // which is kept while its layers are read
			select {
			case v.oneByOne <- struct{}{}:
				defer func() { <-v.oneByOne }()
			case <-ctx.Done():
				return look{}, ctx.Err()
			}
		}
		verdict, m, c, err := v.checkInTurn(ctx, snap, e)
		found := look{verdict, began}
		if err == nil && full {
			if c != nil { // the rest need not wait for the layers
				c = &layout.Config{Doc: &v1.Image{RootFS: c.Doc.RootFS}}
			}
			var oldest time.Time
			oldest, err = v.checkLayers(ctx, app, snap, verdict, m, c, earlier(since, began))
			found.since = earlier(oldest, began)
		}
		if err != nil {
			return look{}, err
		}
		verdict.Mtime = verdict.seen.Mtime()
		verdict.fault = nil // for who signs
		verdict.share()
		return found, nil
	}
	asked := earlier(since, time.Now())
	if e.Err != nil {
		found, err := do(ctx, asked)
		return found.verdict, err
	}
	key := verdictKey{app, string(e.Digest), full, about(e.Descriptor)}
	for {
		kept := v.kept(key, e)
		if kept != nil && kept.seen.Racy() == 0 {
			if verdict, err := v.renew(ctx, key, snap, kept); verdict != nil || err != nil {
				return verdict, err
			}
			kept = nil
		}
		found, _, err := v.flights.Do(ctx, key, func(ctx context.Context) (look, error) {
			began := time.Now()
			if kept != nil && !full { // layers are renewed one by one, for they may be those of many images
				if verdict, err := v.renew(ctx, key, snap, kept); verdict != nil || err != nil {
					return look{verdict, began}, err
				}
			}
			found, err := do(ctx, began)
			if err == nil {
				v.keep(key, found.verdict)
			}
			return found, err
		})
		if err != nil {
			return nil, err
		}
		// One that others began before it was asked for here does not count; the next round asks again.
		if !found.since.Before(asked) {
			return found.verdict, nil
		}
	}
}

// earlier is the earlier of two times, of which the first may be none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// check makes every check of section "Verifying" of the package comment on an
// image, but for its layers. The manifest and config are nil where they
// could not be read.
func (t *Trust) check(ctx context.Context, snap *layout.Snapshot, e layout.Entry, fits func(config int64) bool) (*Verdict, *layout.Manifest, *layout.Config, error) {
	v, m, c, err := examine(ctx, snap, e, fits)
	if err == nil && v.Status == "" {
		v.checkChain(t, m, c)
	}
	return v, m, c, err
}

// examine is check as far as nobody has to be trusted; the Status of an image with which nothing is wrong so far is "".
// fits is asked whether there is room for a config of so many bytes: errNoRoom if not.
func examine(ctx context.Context, snap *layout.Snapshot, e layout.Entry, fits func(config int64) bool) (*Verdict, *layout.Manifest, *layout.Config, error) {
	v := &Verdict{of: about(e.Descriptor), Layers: LayersUnchecked}
	if e.Platform != nil {
		v.Platform = layout.PlatformString(*e.Platform)
	}
	m, err := snap.Examine(ctx, e, &v.seen)
	if errors.Is(err, layout.ErrCorrupt) {
		v.Missing, v.fault = errors.Is(err, layout.ErrMissing), err
		v.decide(Corrupt, "manifest", err.Error())
		return v, nil, nil, nil
	}
	if err != nil {
		return nil, nil, nil, err
	}
	if m.Doc != nil && !fits(m.Doc.Config.Size) {
		return nil, nil, nil, errNoRoom
	}
	v.Kind = m.Kind
	v.passed, v.manifest = passedManifest, blob{m.Digest, m.Size}
	switch m.Kind {
	case layout.KindAttestation:
		v.decide(Unsigned, "kind", "an attestation, not an image")
		return v, m, nil, nil
	case layout.KindArtifact:
		err := v.examineArtifact(ctx, snap, m)
		return v, m, nil, err
	}
	v.config = blob{m.Doc.Config.Digest, m.Doc.Config.Size}
	c, err := snap.Config(ctx, m, &v.seen)
	if err == nil {
		if e.Platform == nil {
			v.Platform = layout.PlatformString(c.Doc.Platform)
		}
		v.passed |= passedConfig
		err = layout.CheckRootFS(m, c)
	}
	if errors.Is(err, layout.ErrCorrupt) {
		v.fault = err
		v.decide(Corrupt, "config", strings.TrimPrefix(err.Error(), "config: "))
		return v, m, c, nil
	}
	if err != nil {
		return nil, nil, nil, err
	}
	v.passed, v.layers = v.passed|passedRootFS, int32(len(m.Doc.Layers))
	return v, m, c, nil
}

// examineArtifact checks of an artifact what is not its layers.
func (v *Verdict) examineArtifact(ctx context.Context, snap *layout.Snapshot, m *layout.Manifest) error {
	what := fmt.Sprintf("of media type %q", layout.Short(m.MediaType))
	if m.Doc != nil {
		v.config = blob{m.Doc.Config.Digest, m.Doc.Config.Size}
		err := snap.CheckConfig(ctx, m, &v.seen)
		if errors.Is(err, layout.ErrCorrupt) {
			v.fault = err
			v.decide(Corrupt, "config", strings.TrimPrefix(err.Error(), "config: "))
			return nil
		}
		if err != nil {
			return err
		}
		v.passed, v.layers = v.passed|passedConfig, int32(len(m.Doc.Layers))
		types := []string{}
		for _, l := range m.Doc.Layers {
			types = append(types, layout.Short(l.MediaType))
		}
		slices.Sort(types)
		what = fmt.Sprintf("its config is of media type %q, its layers are of %q", layout.Short(m.Doc.Config.MediaType), slices.Compact(types))
		if m.Doc.ArtifactType != "" {
			what = fmt.Sprintf("of type %q, %s", layout.Short(m.Doc.ArtifactType), what)
		}
	}
	v.decide(Unsigned, "kind", fmt.Sprintf("an artifact, not an image (%s)", layout.Cut(what, 500)))
	return nil
}

// checkChain checks the three annotations, the vendor's signature and its
// certificate.
func (v *Verdict) checkChain(t *Trust, m *layout.Manifest, c *layout.Config) {
	chain, found, err := ReadChain(m.Doc.Annotations)
	switch {
	case found == 0:
		v.decide(Unsigned, "annotations", "the image is not signed")
		return
	case err != nil:
		v.decide(Invalid, "annotations", err.Error())
		return
	case found < 3:
		v.decide(Invalid, "annotations", "incomplete, without "+chain.missing())
		return
	}
	v.passed |= passedAnnotations
	vendor, err := ParsePublicKey(chain.VendorPub)
	if err == nil && string(vendor.DER()) != string(chain.VendorPub) {
		err = errors.New("not in the form SPKI DER")
	}
	if err != nil {
		v.decide(Invalid, "vendor key", err.Error())
		return
	}
	v.Vendor = vendor.Fingerprint()
	err = vendor.Verify(c.Bytes, chain.Signature)
	switch {
	case errors.Is(err, ErrMismatch): // an image that is built on a signed one has the annotations of its base
		v.decide(Invalid, "signature", fmt.Sprintf("that of vendor %s does not match this config: the image was changed or built upon after it was signed; sign it again", v.Vendor))
		return
	case err != nil:
		v.decide(Invalid, "signature", fmt.Sprintf("of the config, by vendor %s: %v", v.Vendor, err))
		return
	}
	v.passed |= passedSignature
	if len(t.cas) == 0 {
		if _, err := parseSignature(chain.Certificate); err != nil {
			v.decide(Invalid, "certificate", err.Error())
			return
		}
		v.decide(Unknown, "certificate", "no root CA is configured, so nobody can say whether the vendor is trusted")
		return
	}
	ca, err := t.certifier(vendor, chain.Certificate)
	switch {
	case errors.Is(err, ErrUntrusted):
		v.decide(Untrusted, "certificate", err.Error())
	case err != nil:
		v.decide(Invalid, "certificate", err.Error())
	default:
		v.CA = ca.Fingerprint()
		v.decide(Verified, "certificate", "of the vendor key, by root CA "+v.CA)
	}
}

// index gives an index the worst word of the images that count in it.
func (v *Verifier) index(ctx context.Context, app *layout.App, snap *layout.Snapshot, e layout.Entry, full bool) (*Verdict, error) {
	verify := func(ctx context.Context) (*Verdict, error) {
		began := time.Now() // its images may have the same layers
		return index(ctx, snap, e, func(ctx context.Context, image layout.Entry) (*Verdict, error) {
			return v.image(ctx, app, snap, image, full, began)
		})
	}
	if e.Err != nil {
		return verify(ctx)
	}
	key := indexVerdict{verdictKey{app, string(e.Digest), full, about(e.Descriptor)}, false, snap.State()}
	return v.indexes.Fresh(ctx, key, verify)
}

// reasonLines is how many images of an index have a line in its reason. Where there are more, only those do that count and are not verified.
const reasonLines = 256

// index is the verdict on an index; of gives those on the images in it.
func index(ctx context.Context, snap *layout.Snapshot, e layout.Entry, of func(context.Context, layout.Entry) (*Verdict, error)) (*Verdict, error) {
	verdict := &Verdict{Kind: layout.KindIndex, Layers: LayersUnchecked}
	images, err := snap.Images(ctx, e)
	if err == nil && len(images) > 0 && images[0].Digest == e.Digest { // it cannot be read itself
		err = images[0].Err
	}
	if errors.Is(err, layout.ErrCorrupt) {
		verdict.Missing = errors.Is(err, layout.ErrMissing)
		verdict.decide(Corrupt, "index", err.Error())
		verdict.found("%s", verdict.Reason)
		return verdict, nil
	}
	if err != nil {
		return nil, err
	}
	verdict.found("index: %s, %d bytes, as its descriptor says", e.Digest, e.Size)
	var worst *Verdict
	var documents layout.Documents
	unchecked := false
	lines, more := 0, map[string]int{}
	for _, image := range images {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		one := &Verdict{}
		if image.Err != nil {
			one.decide(Corrupt, "index", image.Err.Error())
		} else if one, err = of(ctx, image); err != nil {
			return nil, err
		}
		if one.Missing {
			// It was not read.
		} else if err := documents.Add(image.Size, one.config.size); err != nil {
			tooMuch := &Verdict{Kind: layout.KindIndex, Layers: LayersUnchecked}
			tooMuch.decide(Corrupt, "index", err.Error())
			tooMuch.found("%s", tooMuch.Reason)
			return tooMuch, nil
		}
		verdict.Mtime = max(verdict.Mtime, one.Mtime)
		if len(images) <= reasonLines || lines < reasonLines && one.counts() && one.Status != Verified {
			verdict.found("%s: %s: %s", name(image, one), one.Status, one.Reason)
			lines++
		} else {
			more[one.inShort()]++
		}
		if one.counts() && (worst == nil || one.Status.Worse(worst.Status)) {
			worst = one
			verdict.Status, verdict.Vendor, verdict.CA = one.Status, one.Vendor, one.CA
			verdict.Reason = oneLine(name(image, one) + ": " + one.Reason)
		}
		switch {
		case one.Layers == LayersCorrupt:
			verdict.Layers = LayersCorrupt
		case one.Layers != LayersVerified && one.counts():
			unchecked = true
		}
	}
	for _, what := range slices.Sorted(maps.Keys(more)) {
		verdict.found("%d more: %s", more[what], what)
	}
	switch {
	case worst == nil:
		verdict.decide(Unsigned, "index", "it holds no image that counts")
		verdict.found("%s", verdict.Reason)
	case verdict.Layers != LayersCorrupt && !unchecked:
		verdict.Layers = LayersVerified
	}
	return verdict, nil
}

// inShort is what the reason of an index says of images of which there are too many to list.
func (v *Verdict) inShort() string {
	switch {
	case v.Kind == layout.KindAttestation:
		return "attestations, which do not count"
	case v.Missing:
		return "not in the layout, which do not count"
	}
	return string(v.Status)
}

func name(e layout.Entry, v *Verdict) string {
	what := strings.ReplaceAll(cmp.Or(v.Platform, unknownPlatform), "/", "-")
	switch {
	case v.Kind == layout.KindAttestation:
		what = "attestation, does not count"
	case v.Missing:
		what = "not in the layout, does not count"
	}
	return fmt.Sprintf("%s (%s)", e.Digest, what)
}
