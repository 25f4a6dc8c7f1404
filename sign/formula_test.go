package sign

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/asn1"
	"fmt"
	"math/big"
	"testing"

	"filippo.io/nistec"
)

// keyOf is the key of a scalar, modulo n−1, plus 1.
func keyOf(t testing.TB, scalar *big.Int) *PrivateKey {
	t.Helper()
	d := new(big.Int).Sub(elliptic.P384().Params().N, big.NewInt(1))
	d.Mod(scalar, d)
	d.Add(d, big.NewInt(1))
	raw, err := ecdsa.ParseRawPrivateKey(elliptic.P384(), d.FillBytes(make([]byte, scalarSize)))
	if err != nil {
		t.Fatal(err)
	}
	key, err := newPrivateKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// agree compares the formula with crypto/ecdsa, and gives their verdict.
func agree(t testing.TB, key *PublicKey, sum []byte, r, s *big.Int) bool {
	t.Helper()
	der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
	if err != nil {
		t.Fatal(err)
	}
	sig, err := parseSignature(der)
	if err != nil {
		return false
	}
	std, fast := ecdsa.VerifyASN1(key.key, sum, der), key.fitsWith(sum, sig, nil)
	if std != fast {
		t.Errorf("key %x, sum %x, r %x, s %x: crypto/ecdsa says %v, the formula %v", key.point(), sum, r, s, std, fast)
	}
	if m := multiplesIn[key.der]; m != nil {
		if faster := key.fitsWith(sum, sig, m); std != faster {
			t.Errorf("key %x, sum %x, r %x, s %x: crypto/ecdsa says %v, the formula with multiples %v", key.point(), sum, r, s, std, faster)
		}
	}
	return std
}

// multiplesIn are the multiples of some keys.
var multiplesIn = map[string]*multiples{}

func withMultiples(t testing.TB, key *PublicKey) {
	t.Helper()
	if multiplesIn[key.der] != nil {
		return
	}
	p, err := nistec.NewP384Point().SetBytes(key.point())
	if err != nil {
		t.Fatal(err)
	}
	multiplesIn[key.der] = multiplesOf(p)
}

// TestFormulaAtTheEdges: keys that are small multiples of the base point, or of its inverse, so that points meet
// themselves and their inverses in the sum, and sums that are zero or about n.
func TestFormulaAtTheEdges(t *testing.T) {
	n := elliptic.P384().Params().N
	var sums [][]byte
	for _, v := range []*big.Int{new(big.Int), big.NewInt(1), big.NewInt(2), new(big.Int).Sub(n, big.NewInt(1)), n, new(big.Int).Add(n, big.NewInt(1))} {
		sums = append(sums, v.FillBytes(make([]byte, 48)))
	}
	for i := range 12 {
		d := big.NewInt(int64(i / 2))
		if i%2 == 1 {
			d.Sub(n, big.NewInt(int64(i/2+2)))
		}
		key := keyOf(t, d)
		withMultiples(t, key.Public())
		for j, sum := range sums {
			t.Run(fmt.Sprint(i, " ", j), func(t *testing.T) {
				der, err := key.signSum(sum)
				if err != nil {
					t.Fatal(err)
				}
				sig, err := parseSignature(der)
				if err != nil {
					t.Fatal(err)
				}
				if !agree(t, key.Public(), sum, sig.r, sig.s) {
					t.Error("its own signature does not verify")
				}
				agree(t, key.Public(), sum, sig.s, sig.r)
				agree(t, key.Public(), sums[(j+1)%len(sums)], sig.r, sig.s)
				for k := int64(1); k < 6; k++ { // u1 and u2 are small, or equal, or inverse
					agree(t, key.Public(), sum, big.NewInt(k), new(big.Int).SetBytes(sum))
					agree(t, key.Public(), sum, new(big.Int).Sub(n, big.NewInt(k)), big.NewInt(k))
				}
			})
		}
	}
}

// FuzzFormula: the formula and crypto/ecdsa agree on any key, message, and signature.
func FuzzFormula(f *testing.F) {
	f.Add([]byte{1}, []byte("message"), []byte{}, []byte{})
	f.Add([]byte{7}, []byte("message"), []byte{1, 0}, []byte{0, 1})
	f.Add([]byte{0xff, 0}, []byte{}, []byte{1}, []byte{2})
	f.Fuzz(func(t *testing.T, scalar, message, rMask, sMask []byte) {
		key := keyOf(t, new(big.Int).SetBytes(scalar))
		if len(scalar) == 1 && scalar[0] < 8 { // few keys, for it takes long
			withMultiples(t, key.Public())
		}
		sum := sha512.Sum384(message)
		der, err := key.signSum(sum[:])
		if err != nil {
			t.Fatal(err)
		}
		sig, err := parseSignature(der)
		if err != nil {
			t.Fatal(err)
		}
		r, s := sig.r.Xor(sig.r, new(big.Int).SetBytes(rMask)), sig.s.Xor(sig.s, new(big.Int).SetBytes(sMask))
		if !agree(t, key.Public(), sum[:], r, s) && len(rMask)+len(sMask) == 0 {
			t.Error("its own signature does not verify")
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	key, err := GenerateKey()
	if err != nil {
		b.Fatal(err)
	}
	message := []byte("message")
	signature, err := key.Sign(message)
	if err != nil {
		b.Fatal(err)
	}
	for name, uses := range map[string]int{"rare-key": 0, "frequent-key": manyUses} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if uses == 0 {
					frequent.uses, frequent.of = nil, nil
				}
				if err := key.Public().Verify(message, signature); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("multiples", func(b *testing.B) {
		p := nistec.NewP384Point().SetGenerator()
		for b.Loop() {
			multiplesOf(p)
		}
	})
	b.Run("crypto-ecdsa", func(b *testing.B) {
		for b.Loop() {
			sum := sha512.Sum384(message)
			if !ecdsa.VerifyASN1(key.Public().key, sum[:], signature) {
				b.Fatal("it does not verify")
			}
		}
	})
}
