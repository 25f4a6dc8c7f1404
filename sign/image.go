package sign

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"irfs/layout"
)

// ErrImage is the kind of errors about an image that cannot be signed though
// nothing in it is damaged: it is no image, or an index that holds none.
var ErrImage = errors.New("not an image")

// A Signer signs images with a vendor's key and the certificate of that key.
type Signer struct {
	vendor      *PrivateKey
	certificate []byte
	ca          *PublicKey
}

// NewSigner is for the realistic scenario: the root CA signed vendor.pub, and
// sent the signature. It is checked here, before anything is signed:
// ErrUntrusted if none of the CAs made it, ErrSignature if it is malformed,
// ErrKey for a vendor key that is a CA's.
func NewSigner(vendor *PrivateKey, certificate []byte, trust *Trust) (*Signer, error) {
	for _, ca := range trust.CAs() {
		if err := notTheCA(vendor, ca); err != nil {
			return nil, err
		}
	}
	ca, err := trust.certifier(vendor.Public(), certificate)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return &Signer{vendor, certificate, ca}, nil
}

// NewCertifyingSigner is for the simplified scenario: whoever has the root
// CA's private key as well makes the certificate on the spot.
func NewCertifyingSigner(vendor, ca *PrivateKey) (*Signer, error) {
	if err := notTheCA(vendor, ca.Public()); err != nil {
		return nil, err
	}
	certificate, err := ca.Sign(vendor.Public().DER())
	if err != nil {
		return nil, err
	}
	return &Signer{vendor, certificate, ca.Public()}, nil
}

func notTheCA(vendor *PrivateKey, ca *PublicKey) error {
	if vendor.Public().Equal(ca) {
		return badKey(fmt.Sprintf("the vendor's key and the root CA's are the same (%s): a CA's key certifies vendors and signs no image", ca.Fingerprint()))
	}
	return nil
}

// CA is the root CA under which this signer signs.
func (s *Signer) CA() *PublicKey { return s.ca }

// A Signed is what came of signing one image.
type Signed struct {
	Old, New digest.Digest // equal if it was signed just so already
}

// An Outcome is what came of a signing.
type Outcome struct {
	Images  []Signed
	LeftOut []string // what counts in an index, but is no image: a sentence part for each
	Doubts  []string // layers because of which verify-full will say corrupt: a sentence part for each
	Change  *layout.Change
}

// Moved gives the present digest of an image or index that had the digest d
// before.
func (o *Outcome) Moved(d digest.Digest) digest.Digest {
	if to, ok := o.Change.Moved[d]; ok {
		return to
	}
	return d
}

// Text says what was done, as `signed OLD -> NEW` for each image. Of very many it says how many there are, and names the first.
func (o *Outcome) Text() string {
	var signed []string
	for _, s := range o.Images {
		part := fmt.Sprintf("%s -> %s", s.Old, s.New)
		if s.Old == s.New {
			part += " (was signed just so)"
		}
		signed = append(signed, part)
	}
	var parts []string
	if list := Few(signed); len(list) < len(signed) {
		parts = append(parts, fmt.Sprintf("signed %d images: %s", len(signed), strings.Join(list, "; ")))
	} else {
		parts = prefixed("signed ", list)
	}
	parts = append(parts, prefixed("not signed: ", Few(o.LeftOut))...)
	parts = append(parts, prefixed("verify-full will say corrupt: ", Few(o.Doubts))...)
	parts = append(parts, prefixed("left behind: ", Few(o.Change.LeftBehind))...)
	return strings.Join(parts, "; ")
}

func prefixed(prefix string, list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = prefix + s
	}
	return out
}

// few is how many of a list are named where there is one line for all.
const few = 20

// Few is a list that fits into a line: the first of it, and how many more there are.
func Few(list []string) []string {
	if len(list) <= few {
		return list
	}
	return append(list[:few:few], fmt.Sprintf("and %d more", len(list)-few))
}

// Sign signs, in one step, every image that counts in what pick chooses; pick
// may be called more than once, with the state of the app at that time. An
// image that is corrupt, or that does not bind its content, is refused
// (layout.ErrCorrupt, and layout.ErrLimit if it is over one), and with it the whole.
func (s *Signer) Sign(ctx context.Context, app *layout.App, pick func(*layout.Snapshot) ([]layout.Entry, error)) (*Outcome, error) {
	return s.SignAs(ctx, app, nil, pick)
}

// SignAs is Sign for somebody who has these rights.
func (s *Signer) SignAs(ctx context.Context, app *layout.App, rights layout.Rights, pick func(*layout.Snapshot) ([]layout.Entry, error)) (*Outcome, error) {
	var picked []digest.Digest // in order
	var leftOut, doubts []string
	change, err := app.AnnotateAs(ctx, rights, func(snap *layout.Snapshot) ([]layout.Edit, error) {
		picked, leftOut, doubts = picked[:0], leftOut[:0], doubts[:0]
		have, said := map[digest.Digest]bool{}, map[string]bool{}
		entries, err := pick(snap)
		if err != nil {
			return nil, err
		}
		var edits []layout.Edit
		for _, e := range entries {
			more, out, err := s.edits(ctx, snap, e)
			if err != nil {
				return nil, err
			}
			for _, o := range out {
				if !said[o] {
					said[o] = true
					leftOut = append(leftOut, o)
				}
			}
			for _, edit := range more {
				if d := edit.Manifest.Digest; !have[d] {
					have[d] = true
					edits = append(edits, edit.Edit)
					picked = append(picked, d)
					doubts = append(doubts, edit.doubts...)
				}
			}
		}
		return edits, nil
	})
	if err != nil {
		return nil, err
	}
	o := &Outcome{Change: change, LeftOut: leftOut, Doubts: doubts}
	for _, d := range picked {
		o.Images = append(o.Images, Signed{d, o.Moved(d)})
	}
	return o, nil
}

// SignStaged signs what a reference names in an archive that is not published yet,
// a tag or a digest, or with "" everything that can be signed, and leaves nothing else
// in it.
func (s *Signer) SignStaged(ctx context.Context, staged *layout.Staged, reference string) (*Outcome, error) {
	var picked []layout.Entry
	outcome, err := s.Sign(ctx, staged.App, func(snap *layout.Snapshot) (_ []layout.Entry, err error) {
		if reference == "" {
			picked, err = Signable(ctx, snap)
		} else {
			picked = make([]layout.Entry, 1)
			picked[0], err = snap.Resolve(ctx, reference)
		}
		return picked, err
	})
	if err != nil {
		return nil, err
	}
	var keep []digest.Digest
	for _, e := range picked {
		keep = append(keep, outcome.Moved(e.Digest))
	}
	if _, err := layout.ParseDigest(reference); err == nil {
		reference = "" // all the tags of that
	}
	return outcome, staged.Keep(ctx, keep, reference)
}

// An edit is the signing of one image.
type edit struct {
	layout.Edit
	doubts []string
}

// doubts names the layers of which nobody can say what they unpack to; of very many, the first.
func doubts(m *layout.Manifest, c *layout.Config) (list []string) {
	for i, l := range m.Doc.Layers {
		if problem := layout.LayerProblem(l, c.Doc.RootFS.DiffIDs[i]); problem != "" {
			if len(list) == few {
				return append(list, fmt.Sprintf("other layers of %s", m.Digest))
			}
			list = append(list, fmt.Sprintf("layer %d of %s: %s", i+1, m.Digest, problem))
		}
	}
	return list
}

// edits gives the annotations for each image in an entry, and what in an index
// is left out because it is no image.
func (s *Signer) edits(ctx context.Context, snap *layout.Snapshot, e layout.Entry) (edits []edit, leftOut []string, err error) {
	images, err := snap.Images(ctx, e)
	if err != nil {
		return nil, nil, err
	}
	inIndex := layout.IsIndex(e.MediaType)
	var documents layout.Documents // which are all in memory in the end
	for _, image := range images {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		v, m, c, err := examine(ctx, snap, image, func(int64) bool { return true })
		if err == nil && !v.Missing {
			err = documents.Add(image.Size, v.config.size)
		}
		switch {
		case err != nil:
			return nil, nil, err
		case inIndex && !v.counts():
			continue
		case inIndex && v.Kind == layout.KindArtifact:
			leftOut = append(leftOut, fmt.Sprintf("%s (%s)", image.Digest, v.Reason))
			continue
		case v.Status == Corrupt:
			return nil, nil, &kindError{v.fault, strings.TrimSpace(fmt.Sprintf("%s is corrupt and was not signed: %s", image.Digest, v.Reason))}
		case v.Kind != layout.KindImage:
			return nil, nil, &kindError{ErrImage, fmt.Sprintf("%s cannot be signed: %s", image.Digest, v.Reason)}
		}
		signature, err := s.vendor.Sign(c.Bytes)
		if err != nil {
			return nil, nil, err
		}
		chain := Chain{signature, s.vendor.Public().DER(), s.certificate}
		what := doubts(m, c)
		text := *m
		text.Doc = nil // it takes more memory than the bytes
		edits = append(edits, edit{layout.Edit{Manifest: &text, Set: chain.annotations()}, what})
	}
	if len(edits) == 0 {
		return nil, nil, &kindError{ErrImage, fmt.Sprintf("%s cannot be signed: it holds no image that counts", e.Digest)}
	}
	return edits, leftOut, nil
}

// Signable lists what index.json lists that can be signed: images, and indexes.
// What is neither is left out.
func Signable(ctx context.Context, snap *layout.Snapshot) ([]layout.Entry, error) {
	var list []layout.Entry
	seen := map[digest.Digest]bool{}
	top, err := snap.Top(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range top {
		if seen[e.Digest] {
			continue
		}
		seen[e.Digest] = true
		if layout.IsIndex(e.MediaType) {
			if err := snap.CheckIndex(ctx, e); err != nil {
				return nil, err
			}
			list = append(list, e)
			continue
		}
		m, err := snap.Manifest(ctx, e)
		if err != nil {
			return nil, err
		}
		if m.Kind == layout.KindImage {
			list = append(list, e)
		}
	}
	if len(list) == 0 {
		return nil, &kindError{ErrImage, "there is no image that can be signed"}
	}
	return list, nil
}
