package sign

import (
	"bytes"
	"crypto/elliptic"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"
	"testing/iotest"
)

type rs struct{ R, S *big.Int }

// ecdsaSig gives r and s, in hex, as encoding/asn1 writes them.
func ecdsaSig(t testing.TB, r, s string) []byte {
	t.Helper()
	number := func(text string) *big.Int {
		v, ok := new(big.Int).SetString(text, 16)
		if !ok {
			t.Fatalf("%s is not hex", text)
		}
		return v
	}
	der, err := asn1.Marshal(rs{number(r), number(s)})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// rfc6979Key gives the P-384 key of RFC 6979, appendix A.2.6, where the signatures below are from too.
func rfc6979Key(t testing.TB) *PrivateKey {
	t.Helper()
	scalar, err := hex.DecodeString("6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5")
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParsePrivateKey(join("\x30\x3e", sec1Scalar, scalar, sec1Curve))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSignatureIsThatOfRFC6979(t *testing.T) {
	k := rfc6979Key(t)
	for message, want := range map[string][]byte{
		"sample": ecdsaSig(t,
			"94EDBB92A5ECB8AAD4736E56C691916B3F88140666CE9FA73D64C4EA95AD133C81A648152E44ACF96E36DD1E80FABE46",
			"99EF4AEB15F178CEA1FE40DB2603138F130E740A19624526203B6351D0A3A94FA329C145786E679E7B82C71A38628AC8"),
		"test": ecdsaSig(t,
			"8203B63D3C853E8D77227FB377BCF7B7B772E97892A80F36AB775D509D7A5FEB0542A7F0812998DA8F1DD3CA3CF023DB",
			"DDD0760448D42D8A43AF45AF836FCE4DE8BE06B485E9B61B827C2F13173923E06A739F040649A667BF3B828246BAA5A5"),
	} {
		for range 2 {
			if got, err := k.Sign([]byte(message)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("Sign(%q) = %x, %v; want %x", message, got, err, want)
			}
			if got, err := k.SignReader(iotest.OneByteReader(strings.NewReader(message))); err != nil || !bytes.Equal(got, want) {
				t.Errorf("SignReader(%q) = %x, %v; want %x", message, got, err, want)
			}
		}
	}
}

func TestSignatureBothWaysWithOpenSSL(t *testing.T) {
	k := newKey(t)
	for _, message := range []string{"", "x", strings.Repeat("config ", 100_000)} {
		theirs := openssl(t, "dgst -sha384 -keyform DER -sign @ @", k.DER(), []byte(message))
		if err := k.Public().Verify([]byte(message), theirs); err != nil {
			t.Errorf("openssl's signature: %v", err)
		}
		if err := k.Public().VerifyReader(strings.NewReader(message), theirs); err != nil {
			t.Errorf("openssl's signature, from a reader: %v", err)
		}
		ours, err := k.Sign([]byte(message))
		if err != nil {
			t.Fatal(err)
		}
		out := openssl(t, "dgst -sha384 -keyform DER -verify @ -signature @ @", k.Public().DER(), ours, []byte(message))
		if string(out) != "Verified OK\n" {
			t.Errorf("openssl says of our signature: %s", out)
		}
	}
}

func TestSignatureMismatch(t *testing.T) {
	k, message := newKey(t), []byte("message")
	signature, err := k.Sign(message)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Public().Verify(message, signature); err != nil {
		t.Errorf("its own message: %v", err)
	}
	for name, err := range map[string]error{
		"another message":              k.Public().Verify([]byte("massage"), signature),
		"another message, from reader": k.Public().VerifyReader(strings.NewReader("massage"), signature),
		"no message":                   k.Public().Verify(nil, signature),
		"another key":                  newKey(t).Public().Verify(message, signature),
		"r = s = 1":                    k.Public().Verify(message, ecdsaSig(t, "1", "1")),
	} {
		if !errors.Is(err, ErrMismatch) || errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %v, want ErrMismatch", name, err)
		}
	}
}

// Why a signature's bytes must not serve as an identity: anybody can make another of the same message.
func TestSignatureHasATwin(t *testing.T) {
	k, message := newKey(t), []byte("message")
	signature, err := k.Sign(message)
	if err != nil {
		t.Fatal(err)
	}
	var v rs
	if _, err := asn1.Unmarshal(signature, &v); err != nil {
		t.Fatal(err)
	}
	twin := ecdsaSig(t, v.R.Text(16), v.S.Sub(elliptic.P384().Params().N, v.S).Text(16))
	if err := k.Public().Verify(message, twin); err != nil || bytes.Equal(twin, signature) {
		t.Errorf("(r, n-s) does not verify, or is the same: %v", err)
	}
}

func TestSignatureReaderErrors(t *testing.T) {
	k, broken := newKey(t), errors.New("the disk is on fire")
	if _, err := k.SignReader(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("SignReader: got %v, want the reader's error", err)
	}
	signature, err := k.Sign(nil)
	if err != nil {
		t.Fatal(err)
	}
	// A half-read message must neither verify nor count as a mismatch.
	half := io.MultiReader(strings.NewReader(""), iotest.ErrReader(broken))
	if err := k.Public().VerifyReader(half, signature); !errors.Is(err, broken) || errors.Is(err, ErrMismatch) {
		t.Errorf("VerifyReader: got %v, want the reader's error", err)
	}
	if err := k.Public().VerifyReader(iotest.ErrReader(broken), nil); !errors.Is(err, ErrSignature) {
		t.Errorf("VerifyReader of a malformed signature: got %v, want ErrSignature", err)
	}
}

func TestSignatureRefused(t *testing.T) {
	k, message := newKey(t), []byte("message")
	good, err := k.Sign(message)
	if err != nil {
		t.Fatal(err)
	}
	n := elliptic.P384().Params().N.Text(16)
	for _, test := range []struct {
		name      string
		signature []byte
		want      string
	}{
		{"empty", nil, "not a DER sequence"},
		{"one byte", []byte("\x30"), "not a DER sequence"},
		{"raw r and s", make([]byte, 96), "not a DER sequence"},
		{"hex", []byte(hex.EncodeToString(good)), "not a DER sequence"},
		{"text", []byte("signature"), "not a DER sequence"},
		{"trailing byte", join(good, "\x00"), "trailing bytes"},
		{"cut short", good[:len(good)-1], "cut short"},
		{"BER long form", join("\x30\x81", good[1:]), "long form"},
		{"BER long form of two bytes", join("\x30\x82\x00", good[1:]), "long form"},
		{"BER indefinite", join("\x30\x80", good[2:], "\x00\x00"), "long form"},
		{"empty sequence", []byte("\x30\x00"), "r is not a DER integer"},
		{"only r", []byte("\x30\x03\x02\x01\x01"), "s is not a DER integer"},
		{"three numbers", []byte("\x30\x09\x02\x01\x01\x02\x01\x01\x02\x01\x01"), "something besides r and s"},
		{"r without bytes", []byte("\x30\x05\x02\x00\x02\x01\x01"), "r is not a DER integer"},
		{"r in long form", []byte("\x30\x07\x02\x81\x01\x01\x02\x01\x01"), "r is not a DER integer"},
		{"r over the end", []byte("\x30\x06\x02\x05\x01\x02\x01\x01"), "r is not a DER integer"},
		{"s over the end", []byte("\x30\x06\x02\x01\x01\x02\x02\x01"), "s is not a DER integer"},
		{"s another type", []byte("\x30\x06\x02\x01\x01\x03\x01\x01"), "s is not a DER integer"},
		{"r with needless zero", []byte("\x30\x07\x02\x02\x00\x01\x02\x01\x01"), "r has a needless leading zero"},
		{"s with needless zero", []byte("\x30\x07\x02\x01\x01\x02\x02\x00\x01"), "s has a needless leading zero"},
		{"r negative", ecdsaSig(t, "-1", "1"), "r is negative"},
		{"s negative", ecdsaSig(t, "1", "-1"), "s is negative"},
		{"r zero", ecdsaSig(t, "0", "1"), "r is zero"},
		{"s zero", ecdsaSig(t, "1", "0"), "s is zero"},
		{"r n", ecdsaSig(t, n, "1"), "r is zero, or not below the order"},
		{"s n", ecdsaSig(t, "1", n), "s is zero, or not below the order"},
		{"r of 60 bytes", ecdsaSig(t, strings.Repeat("11", 60), "1"), "r is zero, or not below the order"},
	} {
		t.Run(test.name, func(t *testing.T) {
			wantRefusal(t, k.Public().Verify(message, test.signature), ErrSignature, test.want)
			wantRefusal(t, k.Public().VerifyReader(bytes.NewReader(message), test.signature), ErrSignature, test.want)
		})
	}
}
