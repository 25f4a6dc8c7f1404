package sign

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"

	"irfs/layout"
)

// The annotations of an image manifest that hold the chain of trust, in the
// order in which signing appends them.
const (
	SignatureAnnotation   = "com.samsung.islet.image.signature"
	VendorPubAnnotation   = "com.samsung.islet.image.vendorpub"
	CertificateAnnotation = "com.samsung.islet.image.vendorpub.signature"
)

// A Chain is what an image's annotations say, decoded from hex. A part that
// has no annotation is nil.
type Chain struct {
	Signature   []byte // by the vendor, of the config's bytes: DER
	VendorPub   []byte // SPKI DER
	Certificate []byte // by the root CA, of VendorPub's bytes: DER
}

// maxPart is how many bytes a part of a Chain has at most, as no signature or key of P-384 comes near it.
const maxPart = 1 << 10

// ReadChain decodes the three annotations. found is how many are there; the
// error is the first that is not hex, or is over maxPart: it is not decoded.
func ReadChain(annotations map[string]string) (c Chain, found int, err error) {
	for _, part := range []struct {
		name string
		to   *[]byte
	}{
		{SignatureAnnotation, &c.Signature},
		{VendorPubAnnotation, &c.VendorPub},
		{CertificateAnnotation, &c.Certificate},
	} {
		text, ok := annotations[part.name]
		if !ok {
			continue
		}
		found++
		if len(text) > 2*maxPart {
			if err == nil {
				err = fmt.Errorf("annotation %s: malformed: over %d bytes", part.name, maxPart)
			}
			continue
		}
		data, hexErr := hex.DecodeString(text)
		if hexErr != nil || len(data) == 0 {
			if err == nil {
				err = fmt.Errorf("annotation %s: not bytes in hex", part.name)
			}
			continue
		}
		*part.to = data
	}
	return c, found, err
}

// missing names the annotations that are not there.
func (c Chain) missing() string {
	var names []string
	if c.Signature == nil {
		names = append(names, SignatureAnnotation)
	}
	if c.VendorPub == nil {
		names = append(names, VendorPubAnnotation)
	}
	if c.Certificate == nil {
		names = append(names, CertificateAnnotation)
	}
	return strings.Join(names, ", ")
}

// annotations is the inverse of ReadChain.
func (c Chain) annotations() []layout.Annotation {
	return []layout.Annotation{
		{Key: SignatureAnnotation, Value: hex.EncodeToString(c.Signature)},
		{Key: VendorPubAnnotation, Value: hex.EncodeToString(c.VendorPub)},
		{Key: CertificateAnnotation, Value: hex.EncodeToString(c.Certificate)},
	}
}

// Trust is the set of root CAs whose vendors are trusted. It remembers the
// certificates that it checked.
type Trust struct {
	cas []*PublicKey

	mu    sync.Mutex
	certs map[[sha256.Size]byte]certified
}

type certified struct {
	ca  *PublicKey
	err error
}

// NewTrust trusts the given root CAs; with none, nothing is untrusted, and
// nothing is verified.
func NewTrust(cas ...*PublicKey) *Trust {
	t := &Trust{certs: map[[sha256.Size]byte]certified{}}
	for _, ca := range cas {
		if !t.Has(ca) {
			t.cas = append(t.cas, ca)
		}
	}
	return t
}

// CAs gives the root CAs, each once.
func (t *Trust) CAs() []*PublicKey { return t.cas }

// Has says whether ca is one of them.
func (t *Trust) Has(ca *PublicKey) bool {
	for _, c := range t.cas {
		if c.Equal(ca) {
			return true
		}
	}
	return false
}

// ErrUntrusted: a certificate that none of the root CAs made.
var ErrUntrusted = errors.New("untrusted")

// certifier gives the root CA that certified vendor. ErrUntrusted if none
// did, ErrSignature if the certificate is malformed.
func (t *Trust) certifier(vendor *PublicKey, certificate []byte) (*PublicKey, error) {
	// vendor.DER has a fixed length, so the two cannot run into each other.
	key := sha256.Sum256(append(vendor.DER(), certificate...))
	t.mu.Lock()
	c, ok := t.certs[key]
	t.mu.Unlock()
	if ok {
		return c.ca, c.err
	}
	why := fmt.Sprintf("vendor %s is not certified by %s", vendor.Fingerprint(), t.names())
	c.ca, c.err = t.maker(vendor.DER(), certificate)
	if c.ca == nil && c.err == nil {
		if ca, _ := t.maker(vendor.pem(), certificate); ca != nil {
			why += ": " + inPEM
		}
		c.err = &kindError{ErrUntrusted, why}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.certs) >= 4096 {
		clear(t.certs)
	}
	t.certs[key] = c
	return c.ca, c.err
}

// maker gives the root CA whose signature of message the certificate is, or nil. ErrSignature if it is malformed.
func (t *Trust) maker(message, certificate []byte) (*PublicKey, error) {
	for _, ca := range t.cas {
		err := ca.Verify(message, certificate)
		if err == nil {
			return ca, nil
		}
		if errors.Is(err, ErrSignature) {
			return nil, err
		}
	}
	return nil, nil
}

// names is the root CAs in a sentence.
func (t *Trust) names() string {
	switch len(t.cas) {
	case 0:
		return "any root CA, for none is given"
	case 1:
		return "root CA " + t.cas[0].Fingerprint()
	}
	return fmt.Sprintf("any of the %d root CAs", len(t.cas))
}

// inPEM is what there is to do about a certificate of a key as openssl's -pubout writes it.
const inPEM = "the certificate is of the key in PEM, and has to be of its DER (irfs sign -k root-ca.prv -f vendor.pub -s vendor.pub.sig, with vendor.pub in DER)"

// Explain says more of the error of NewSigner for a certificate that was read from the file name, if it is ErrUntrusted; any other
// comes back with the name alone. By convention the key that was certified lies beside the certificate, under its name
// without .sig: read reads that file, and if it cannot, no more is said.
func (t *Trust) Explain(err error, vendor *PublicKey, certificate []byte, name string, read func(string) ([]byte, error)) error {
	if !errors.Is(err, ErrUntrusted) || len(t.cas) == 0 {
		return fmt.Errorf("%s: %w", name, err)
	}
	if ca, _ := t.maker(vendor.pem(), certificate); ca != nil { // the error says it
		return fmt.Errorf("%s: %w", name, err)
	}
	if beside, ok := strings.CutSuffix(name, ".sig"); ok {
		text, err := read(beside)
		ca, _ := t.maker(text, certificate)
		key, keyErr := ParsePublicKey(text)
		switch {
		case err != nil || ca == nil || keyErr != nil:
		case string(text) != string(key.DER()):
			return &kindError{ErrUntrusted, fmt.Sprintf("%s: %s: %s is in PEM", name, inPEM, beside)}
		default:
			return &kindError{ErrUntrusted, fmt.Sprintf("%s is the certificate of another key, %s (%s): give the one of this key, %s",
				name, key.Fingerprint(), beside, vendor.Fingerprint())}
		}
	}
	return &kindError{ErrUntrusted, fmt.Sprintf("%s is not by %s: made by another CA, or for another key", name, t.names())}
}
