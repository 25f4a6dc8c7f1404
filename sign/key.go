package sign

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// MaxKeyFile is the most bytes that a key file may have.
const MaxKeyFile = 64 << 10

// ErrKey is the kind of every error about a key that cannot be used: not P-384, encrypted, malformed, of two halves
// that do not belong together. The errors' own text says which, and never holds anything of the key.
var ErrKey = errors.New("key rejected")

// A kindError is of a kind for errors.Is, without the kind's words in its text.
type kindError struct {
	kind error
	text string
}

func (e *kindError) Error() string { return e.text }
func (e *kindError) Unwrap() error { return e.kind }

func badKey(text string) error { return &kindError{ErrKey, text} }

// A PrivateKey is an ECDSA P-384 private key. Printing it, by any verb, shows the fingerprint of its public half only.
type PrivateKey struct {
	key *ecdsa.PrivateKey
	pub *PublicKey
}

// A PublicKey is an ECDSA P-384 public key: a point on the curve, not infinity.
type PublicKey struct {
	key *ecdsa.PublicKey
	der string
}

// All parts of a P-384 key have a fixed length, so in DER a key is one of a few byte strings around the scalar and the
// point. A key is accepted if it is exactly one of these: nothing is left for a lenient decoder to be lenient about.
const (
	oidEC   = "\x06\x07\x2a\x86\x48\xce\x3d\x02\x01" // id-ecPublicKey, RFC 5480 section 2.1.1
	oidP384 = "\x06\x05\x2b\x81\x04\x00\x22"         // secp384r1, RFC 5480 section 2.1.1.1

	sec1Scalar = "\x02\x01\x01\x04\x30"       // version 1, OCTET STRING of 48 bytes
	sec1Curve  = "\xa0\x07" + oidP384         // [0] parameters
	sec1Point  = "\xa1\x64\x03\x62\x00"       // [1] BIT STRING of 97 bytes
	ecP384     = "\x30\x10" + oidEC + oidP384 // AlgorithmIdentifier
	pkcs8Begin = "\x02\x01\x00" + ecP384      // version 1 (v1 is 0), privateKeyAlgorithm; privateKey follows
	spkiBegin  = "\x30\x76" + ecP384 + "\x03\x62\x00"
	scalarSize = 48
	pointSize  = 1 + 2*48
)

// privateForms are the forms of a private key: ECPrivateKey (RFC 5915 section 3), by itself and in PrivateKeyInfo
// (RFC 5958 section 2), with and without the public key. The curve may be missing only where PKCS#8 has named it.
var privateForms = []struct{ label, begin, end string }{
	{"EC PRIVATE KEY", "\x30\x81\xa4" + sec1Scalar, sec1Curve + sec1Point},
	{"EC PRIVATE KEY", "\x30\x3e" + sec1Scalar, sec1Curve},
	{"PRIVATE KEY", "\x30\x81\xb6" + pkcs8Begin + "\x04\x81\x9e\x30\x81\x9b" + sec1Scalar, sec1Point},
	{"PRIVATE KEY", "\x30\x4e" + pkcs8Begin + "\x04\x37\x30\x35" + sec1Scalar, ""},
	{"PRIVATE KEY", "\x30\x81\xbf" + pkcs8Begin + "\x04\x81\xa7\x30\x81\xa4" + sec1Scalar, sec1Curve + sec1Point},
	{"PRIVATE KEY", "\x30\x57" + pkcs8Begin + "\x04\x40\x30\x3e" + sec1Scalar, sec1Curve},
}

// GenerateKey makes a new private key from the system's randomness.
func GenerateKey() (*PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return newPrivateKey(key)
}

func newPrivateKey(key *ecdsa.PrivateKey) (*PrivateKey, error) {
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	return &PrivateKey{key, &PublicKey{&key.PublicKey, spkiBegin + string(point)}}, nil
}

// ParsePrivateKey reads a P-384 private key in SEC1 (RFC 5915) or PKCS#8 (RFC 5958, version 1, no attributes), in DER
// or PEM, and nothing besides. The scalar has 48 bytes. The curve is named by its OID, which only PKCS#8, having
// named it already, may leave out. The public key may be left out; one that is there is uncompressed and the scalar's
// own. In PEM an EC PARAMETERS block may come first, as openssl ecparam -genkey writes it. All else is an ErrKey.
func ParsePrivateKey(b []byte) (*PrivateKey, error) {
	label, der, err := openKeyFile(b)
	if err != nil {
		return nil, err
	}
	if label == "PUBLIC KEY" || bytes.HasPrefix(der, []byte(spkiBegin)) {
		return nil, badKey("this is a public key where a private key is expected")
	}
	for _, form := range privateForms {
		rest, ok := bytes.CutPrefix(der, []byte(form.begin))
		if !ok || label != "" && label != form.label || len(rest) < scalarSize {
			continue
		}
		scalar, rest := rest[:scalarSize], rest[scalarSize:]
		if rest, ok = bytes.CutPrefix(rest, []byte(form.end)); !ok {
			continue
		}
		if !strings.HasSuffix(form.end, sec1Point) {
			return parsePrivate(scalar, nil, rest)
		}
		if len(rest) >= pointSize {
			return parsePrivate(scalar, rest[:pointSize], rest[pointSize:])
		}
	}
	return nil, explain(der, "private key in SEC1 or PKCS#8")
}

// parsePrivate makes the key of a scalar. The point, unless it is nil, must be the scalar's own.
func parsePrivate(scalar, point, trailing []byte) (*PrivateKey, error) {
	if len(trailing) != 0 {
		return nil, errTrailing
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P384(), scalar)
	if err != nil {
		return nil, badKey("the private key's scalar is zero, or not below the order of the curve")
	}
	k, err := newPrivateKey(key)
	if err != nil || point == nil {
		return k, err
	}
	pub, err := parsePoint(point)
	if err != nil {
		return nil, err
	}
	if !pub.Equal(k.pub) {
		return nil, badKey("the public key inside the private key is not its own: make a new key, or find where this one was altered")
	}
	return k, nil
}

// ParsePublicKey reads a P-384 public key in SPKI (RFC 5480), in DER or PEM, and nothing besides: id-ecPublicKey, the
// curve named by its OID, the point uncompressed. Of DER that leaves one form, so that b and DER() are the same bytes.
// All else is an ErrKey.
func ParsePublicKey(b []byte) (*PublicKey, error) {
	label, der, err := openKeyFile(b)
	if err != nil {
		return nil, err
	}
	isPrivate := label == "EC PRIVATE KEY" || label == "PRIVATE KEY"
	for _, form := range privateForms {
		isPrivate = isPrivate || bytes.HasPrefix(der, []byte(form.begin))
	}
	if isPrivate {
		return nil, badKey("this is a private key where a public key is expected: irfs extract-public gives its public half")
	}
	point, ok := bytes.CutPrefix(der, []byte(spkiBegin))
	if !ok || len(point) < pointSize || label != "" && label != "PUBLIC KEY" {
		return nil, explain(der, "public key in SPKI")
	}
	if len(point) > pointSize {
		return nil, errTrailing
	}
	return parsePoint(point)
}

// parsePoint reads an uncompressed point (SEC 1 section 2.3.4) of 97 bytes.
func parsePoint(point []byte) (*PublicKey, error) {
	if point[0] == 6 || point[0] == 7 {
		return nil, badKey("the public key is in hybrid form: rewrite the key with openssl ec -conv_form uncompressed")
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P384(), point)
	if err != nil {
		return nil, badKey("the public key is not a point on the curve P-384")
	}
	return &PublicKey{key, spkiBegin + string(point)}, nil
}

var (
	errTrailing  = badKey("trailing bytes follow the key: the file must hold one key and nothing else")
	errEncrypted = badKey("the private key is encrypted: decrypt it with openssl pkey -in KEY -out NEW")
)

// telltales are bytes that tell what a DER is that was refused, the surest first. They choose the error's text, nothing
// else: finding one by chance does no harm.
var telltales = []struct{ bytes, text string }{
	{"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05", errEncrypted.Error()},     // PKCS#5
	{"\x06\x0a\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01", errEncrypted.Error()}, // PKCS#12's
	{"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01", "not a P-384 key: it is an RSA key"},
	{"\x02\x01\x00\x02\x82", "not a P-384 key: it is an RSA key"}, // PKCS#1: version 0 and a long modulus
	{"\x06\x07\x2a\x86\x48\xce\x38\x04\x01", "not a P-384 key: it is a DSA key"},
	{"\x06\x03\x2b\x65\x6e", "not a P-384 key: it is an X25519 key"},
	{"\x06\x03\x2b\x65\x6f", "not a P-384 key: it is an X448 key"},
	{"\x06\x03\x2b\x65\x70", "not a P-384 key: it is an Ed25519 key"},
	{"\x06\x03\x2b\x65\x71", "not a P-384 key: it is an Ed448 key"},
	{"\x06\x07\x2a\x86\x48\xce\x3d\x01\x01", "the curve is given by explicit parameters: rewrite the key with openssl ec -param_enc named_curve"},
	{"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07", "not a P-384 key: the curve is P-256"},
	{"\x06\x05\x2b\x81\x04\x00\x21", "not a P-384 key: the curve is P-224"},
	{"\x06\x05\x2b\x81\x04\x00\x23", "not a P-384 key: the curve is P-521"},
	{"\x06\x05\x2b\x81\x04\x00\x0a", "not a P-384 key: the curve is secp256k1"},
	{"\x06\x09\x2b\x24\x03\x03\x02\x08\x01\x01", "not a P-384 key: the curve is a Brainpool curve"},
	{oidP384 + "\x03\x32\x00", compressed},
	{"\xa1\x34\x03\x32\x00", compressed},
	{oidP384 + "\x03\x02\x00\x00", infinity},
	{"\xa1\x04\x03\x02\x00\x00", infinity},
}

const (
	compressed = "the public key is compressed: rewrite the key with openssl ec -conv_form uncompressed"
	infinity   = "the public key is the point at infinity, which is nobody's key"
)

func explain(der []byte, want string) error {
	for _, t := range telltales {
		if bytes.Contains(der, []byte(t.bytes)) {
			return badKey(t.text)
		}
	}
	return badKey("not a P-384 " + want + ": it is malformed, cut short, or in a form that openssl does not write")
}

// openKeyFile gives the DER in a key file, and the label of the PEM block that it was in, or "". A PEM file holds
// nothing else.
func openKeyFile(b []byte) (label string, der []byte, err error) {
	const sequence = 0x30
	text := bytes.TrimSpace(b)
	switch {
	case len(b) > MaxKeyFile:
		return "", nil, badKey("not a key: it is larger than 64 KiB")
	case len(text) == 0:
		return "", nil, badKey("not a key: it is empty")
	case b[0] == sequence:
		return "", b, nil
	case !bytes.HasPrefix(text, []byte("-----BEGIN ")):
		return "", nil, badKey("not a key: it is neither DER nor PEM (which begins with -----BEGIN)")
	}
	block, rest := nextBlock(text)
	if block != nil && block.Type == "EC PARAMETERS" {
		if string(block.Bytes) != oidP384 {
			return "", nil, explain(block.Bytes, "curve")
		}
		if block, rest = nextBlock(rest); block == nil || block.Type != "EC PRIVATE KEY" {
			return "", nil, badKey("the PEM block EC PARAMETERS is not followed by an EC PRIVATE KEY")
		}
	}
	switch {
	case block == nil:
		return "", nil, badKey("the PEM block is malformed or cut short")
	case block.Headers["Proc-Type"] != "", block.Type == "ENCRYPTED PRIVATE KEY":
		return "", nil, errEncrypted
	case block.Type == "OPENSSH PRIVATE KEY":
		return "", nil, badKey("the private key is in OpenSSH's own form: irfs reads SEC1 and PKCS#8")
	case block.Type == "CERTIFICATE":
		return "", nil, badKey("this is an X.509 certificate, not a key")
	case len(block.Headers) != 0:
		return "", nil, badKey("the PEM block has headers: rewrite the key with openssl pkey -in KEY -out NEW")
	case len(rest) != 0:
		return "", nil, errTrailing
	}
	return block.Type, block.Bytes, nil
}

// nextBlock gives the PEM block that text begins with, or nil, and what follows its white space.
func nextBlock(text []byte) (*pem.Block, []byte) {
	block, rest := pem.Decode(text)
	// pem.Decode skips what it cannot read, up to the next block that it can.
	if block == nil || bytes.Count(text[:len(text)-len(rest)], []byte("-----BEGIN ")) != 1 {
		return nil, nil
	}
	return block, bytes.TrimSpace(rest)
}

// DER gives the key in SEC1 (RFC 5915), 167 bytes with the curve's OID and the public key, exactly as
// openssl ecparam -name secp384r1 -genkey -noout -outform DER writes it.
func (k *PrivateKey) DER() []byte {
	scalar, err := k.key.Bytes()
	if err != nil {
		panic("sign: " + k.String() + " has become invalid")
	}
	form := privateForms[0]
	return slices.Concat([]byte(form.begin), scalar, []byte(form.end), []byte(k.pub.der[len(spkiBegin):]))
}

// Public gives the public half.
func (k *PrivateKey) Public() *PublicKey { return k.pub }

// String gives the public half's fingerprint, in words.
func (k PrivateKey) String() string {
	if k.pub == nil {
		return "no private key"
	}
	return "private key of " + k.pub.Fingerprint()
}

// GoString gives String.
func (k PrivateKey) GoString() string { return k.String() }

// Format prints String for every verb, so that none walks into the key.
func (k PrivateKey) Format(s fmt.State, _ rune) { io.WriteString(s, k.String()) }

// DER gives the key in SPKI (RFC 5480), 120 bytes with the point uncompressed.
func (k *PublicKey) DER() []byte { return []byte(k.der) }

// pem gives the key as openssl's -pubout writes it.
func (k *PublicKey) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.DER()})
}

// Fingerprint gives the SHA-256 of DER() in lower-case hex, as sha256sum prints it.
func (k *PublicKey) Fingerprint() string {
	sum := sha256.Sum256([]byte(k.der))
	return hex.EncodeToString(sum[:])
}

// Equal tells whether both are the same point.
func (k *PublicKey) Equal(o *PublicKey) bool { return k.der == o.der }
