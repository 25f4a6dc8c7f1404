package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"errors"
	"io"
	"math/big"
)

// ErrSignature is the kind of every error about a signature that is not strict DER of an ECDSA-Sig-Value.
var ErrSignature = errors.New("malformed signature")

// ErrMismatch is the kind of the error about a well-formed signature that is not that key's signature of those bytes.
var ErrMismatch = errors.New("the signature does not match")

func badSignature(text string) error {
	return &kindError{ErrSignature, "the signature is malformed: " + text}
}

// Sign signs the SHA-384 of message. The signature is an ECDSA-Sig-Value (RFC 3279 section 2.2.3) in DER, at most 104
// bytes, as openssl dgst -sha384 -sign writes it. It is deterministic (RFC 6979): the same key and message always give
// the same bytes.
func (k *PrivateKey) Sign(message []byte) ([]byte, error) {
	sum := sha512.Sum384(message)
	return k.signSum(sum[:])
}

// SignReader is Sign of all that r gives, without holding it in memory. An error from r comes back as it is.
func (k *PrivateKey) SignReader(r io.Reader) ([]byte, error) {
	sum, err := sum384(r)
	if err != nil {
		return nil, err
	}
	return k.signSum(sum)
}

func (k *PrivateKey) signSum(sum []byte) ([]byte, error) {
	// No source of randomness is what asks crypto/ecdsa for RFC 6979.
	return k.key.Sign(nil, sum, crypto.SHA384)
}

// Verify returns nil if signature is k's signature of message, an ErrSignature if it is malformed, else an ErrMismatch.
//
// Whoever has one signature (r, s) can make another that verifies, (r, n−s): never take a signature's bytes for an
// identity.
func (k *PublicKey) Verify(message, signature []byte) error {
	if err := checkSignature(signature); err != nil {
		return err
	}
	sum := sha512.Sum384(message)
	return k.verifySum(sum[:], signature)
}

// VerifyReader is Verify of all that r gives, without holding it in memory. An error from r comes back as it is. For a
// malformed signature r is not read at all.
func (k *PublicKey) VerifyReader(r io.Reader, signature []byte) error {
	if err := checkSignature(signature); err != nil {
		return err
	}
	sum, err := sum384(r)
	if err != nil {
		return err
	}
	return k.verifySum(sum, signature)
}

func (k *PublicKey) verifySum(sum, signature []byte) error {
	if !ecdsa.VerifyASN1(k.key, sum, signature) {
		return ErrMismatch
	}
	return nil
}

func sum384(r io.Reader) ([]byte, error) {
	h := sha512.New384()
	if _, err := io.Copy(h, r); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// checkSignature accepts the DER, and no other BER, of SEQUENCE { r INTEGER, s INTEGER } with both in 1..n−1 (SEC 1
// section 4.1.4). What it accepts has no second encoding.
func checkSignature(signature []byte) error {
	const sequence, integer = 0x30, 0x02
	if len(signature) < 2 || signature[0] != sequence {
		return badSignature("it is not a DER sequence")
	}
	length, rest := int(signature[1]), signature[2:]
	switch {
	case length >= 0x80:
		// Two numbers of 49 bytes at most need no long form.
		return badSignature("its length is in the long form, or far too great")
	case len(rest) > length:
		return badSignature("trailing bytes follow it")
	case len(rest) < length:
		return badSignature("it is cut short")
	}
	for _, name := range []string{"r", "s"} {
		if len(rest) < 3 || rest[0] != integer || rest[1] == 0 || int(rest[1]) > len(rest)-2 {
			return badSignature(name + " is not a DER integer")
		}
		end := 2 + int(rest[1])
		number := rest[2:end]
		rest = rest[end:]
		if number[0] >= 0x80 {
			return badSignature(name + " is negative")
		}
		if len(number) > 1 && number[0] == 0 && number[1] < 0x80 {
			return badSignature(name + " has a needless leading zero")
		}
		if v := new(big.Int).SetBytes(number); v.Sign() == 0 || v.Cmp(elliptic.P384().Params().N) >= 0 {
			return badSignature(name + " is zero, or not below the order of the curve")
		}
	}
	if len(rest) != 0 {
		return badSignature("it holds something besides r and s")
	}
	return nil
}
