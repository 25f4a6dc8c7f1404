package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"errors"
	"io"
	"math/big"

	"github.com/cloudflare/circl/ecc/p384"
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
	n, err := parseSignature(signature)
	if err != nil {
		return err
	}
	sum := sha512.Sum384(message)
	return k.verifySum(sum[:], n)
}

// VerifyReader is Verify of all that r gives, without holding it in memory. An error from r comes back as it is. For a
// malformed signature r is not read at all.
func (k *PublicKey) VerifyReader(r io.Reader, signature []byte) error {
	n, err := parseSignature(signature)
	if err != nil {
		return err
	}
	sum, err := sum384(r)
	if err != nil {
		return err
	}
	return k.verifySum(sum, n)
}

// A signature is an ECDSA-Sig-Value that was found to be well formed.
type signature struct {
	r, s *big.Int // both in 1..n−1
	der  []byte
}

// verifySum accepts what the formula does, which is only fast; crypto/ecdsa is asked before anything is refused, as the formula's
// point addition need not be complete (it is made for honest points).
func (k *PublicKey) verifySum(sum []byte, sig signature) error {
	if k.fits(sum, sig) || ecdsa.VerifyASN1(k.key, sum, sig.der) {
		return nil
	}
	return ErrMismatch
}

// fits is SEC 1 section 4.1.4 from step 4 on, with u1·G + u2·Q computed in half the time that crypto/ecdsa takes, and not in
// constant time: it sees nothing that is secret.
func (k *PublicKey) fits(sum []byte, sig signature) bool {
	return k.fitsWith(sum, sig, k.multiples())
}

// fitsWith is fits with the key's multiples, or nil.
func (k *PublicKey) fitsWith(sum []byte, sig signature, of *multiples) bool {
	n := elliptic.P384().Params().N
	w := new(big.Int).ModInverse(sig.s, n)
	u1 := new(big.Int).SetBytes(sum)
	u1.Mod(u1.Mul(u1, w), n)
	u2 := new(big.Int).Mul(sig.r, w)
	u2.Mod(u2, n)
	var x *big.Int
	if of != nil {
		x = sumX(u1, u2, of)
	} else {
		qx, qy := new(big.Int).SetBytes(k.point()[1:1+scalarSize]), new(big.Int).SetBytes(k.point()[1+scalarSize:])
		x, _ = p384.P384().CombinedMult(qx, qy, u1.Bytes(), u2.Bytes())
	}
	return x != nil && x.Mod(x, n).Cmp(sig.r) == 0
}

// point is the key's point, uncompressed (SEC 1 section 2.3.3).
func (k *PublicKey) point() []byte { return []byte(k.der[len(k.der)-pointSize:]) }

func sum384(r io.Reader) ([]byte, error) {
	h := sha512.New384()
	if _, err := io.Copy(h, r); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// parseSignature accepts the DER, and no other BER, of SEQUENCE { r INTEGER, s INTEGER } with both in 1..n−1 (SEC 1
// section 4.1.4). What it accepts has no second encoding.
func parseSignature(text []byte) (sig signature, err error) {
	const sequence, integer = 0x30, 0x02
	if len(text) < 2 || text[0] != sequence {
		return sig, badSignature("it is not a DER sequence")
	}
	length, rest := int(text[1]), text[2:]
	switch {
	case length >= 0x80:
		// Two numbers of 49 bytes at most need no long form.
		return sig, badSignature("its length is in the long form, or far too great")
	case len(rest) > length:
		return sig, badSignature("trailing bytes follow it")
	case len(rest) < length:
		return sig, badSignature("it is cut short")
	}
	var numbers []*big.Int
	for _, name := range []string{"r", "s"} {
		if len(rest) < 3 || rest[0] != integer || rest[1] == 0 || int(rest[1]) > len(rest)-2 {
			return sig, badSignature(name + " is not a DER integer")
		}
		end := 2 + int(rest[1])
		number := rest[2:end]
		rest = rest[end:]
		if number[0] >= 0x80 {
			return sig, badSignature(name + " is negative")
		}
		if len(number) > 1 && number[0] == 0 && number[1] < 0x80 {
			return sig, badSignature(name + " has a needless leading zero")
		}
		v := new(big.Int).SetBytes(number)
		if v.Sign() == 0 || v.Cmp(elliptic.P384().Params().N) >= 0 {
			return sig, badSignature(name + " is zero, or not below the order of the curve")
		}
		numbers = append(numbers, v)
	}
	if len(rest) != 0 {
		return sig, badSignature("it holds something besides r and s")
	}
	return signature{numbers[0], numbers[1], text}, nil
}
