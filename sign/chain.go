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

// ReadChain decodes the three annotations. found is how many are there; the
// error is the first that is not hex.
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
	by := fmt.Sprintf("any of the %d root CAs", len(t.cas))
	switch len(t.cas) {
	case 0:
		by = "any root CA, for none is given"
	case 1:
		by = "root CA " + t.cas[0].Fingerprint()
	}
	c = certified{err: &kindError{ErrUntrusted, fmt.Sprintf("vendor %s is not certified by %s", vendor.Fingerprint(), by)}}
	for _, ca := range t.cas {
		err := ca.Verify(vendor.DER(), certificate)
		if err == nil || errors.Is(err, ErrSignature) {
			c = certified{ca, err}
			break
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.certs) >= 4096 {
		clear(t.certs)
	}
	t.certs[key] = c
	return c.ca, c.err
}
