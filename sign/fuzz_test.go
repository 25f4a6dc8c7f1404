package sign

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"flag"
	"slices"
	"strings"
	"testing"
)

// Keys and signatures are compared with two other readers: Go's own, and openssl. What irfs takes, openssl has to take, and to mean the same
// by it. The other way round it is so only for signatures, for of those openssl takes one encoding too. Of keys it
// takes more, and irfs refuses it on purpose: other curves, other points (compressed, hybrid), explicit parameters, BER, a private key
// with another one's public key inside, text and blocks around the one of PEM, encrypted keys.

// sampled says whether openssl, which takes as long as a hundred runs without it, is asked about what irfs refuses: about one input in 32
// while fuzzing, always the same ones; else about all.
func sampled(input ...[]byte) bool {
	if f := flag.Lookup("test.fuzz"); f == nil || f.Value.String() == "" {
		return true
	}
	return sha256.Sum256(bytes.Join(input, nil))[0] < 8
}

// pemLabels are those that a key file may have; "" is for none, DER.
var pemLabels = []string{"", "EC PRIVATE KEY", "PRIVATE KEY", "PUBLIC KEY"}

// seedKeys adds a key in all forms to a fuzz target's corpus: the bytes, and as what in pemLabels they are to be wrapped.
func seedKeys(f *testing.F) {
	k := rfc6979Key(f)
	key, pub := k.DER(), k.Public().DER()
	scalar, point := key[8:8+scalarSize], pub[len(spkiBegin):]
	for _, form := range privateForms {
		der := join(form.begin, scalar, form.end)
		if strings.HasSuffix(form.end, sec1Point) {
			der = append(der, point...)
		}
		f.Add(der, byte(0))
		f.Add(der, byte(slices.Index(pemLabels, form.label)))
		f.Add(toPEM(form.label, der), byte(0))
	}
	f.Add(join(toPEM("EC PARAMETERS", []byte(oidP384)), toPEM("EC PRIVATE KEY", key)), byte(0))
	f.Add([]byte("-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAA==\n-----END EC PRIVATE KEY-----\n"), byte(0))
	strange := newKey(f).Public().DER()[len(spkiBegin):]
	f.Add(join(key[:len(key)-pointSize], strange), byte(0))
	f.Add(join(key, "\x00"), byte(1))
	f.Add(join(key[:len(key)-1], []byte{key[len(key)-1] ^ 1}), byte(1))
	f.Add(join(pub[:len(pub)-1], []byte{pub[len(pub)-1] ^ 1}), byte(0))
	f.Add(join(pub, "\x00"), byte(0))
	f.Add(join(toPEM("PUBLIC KEY", pub), "x"), byte(0))
	f.Add(pub, byte(0))
	f.Add(pub, byte(3))
	f.Add(toPEM("PUBLIC KEY", pub), byte(0))
	f.Add(bytes.ReplaceAll(toPEM("PUBLIC KEY", pub), []byte("\n"), []byte("\r\n")), byte(0))
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P521()} {
		other, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(other)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der, byte(0))
	}
}

// keyFile gives a file to be read as a key, and the form in which openssl reads it.
func keyFile(b []byte, label byte) (file []byte, form string) {
	if l := pemLabels[int(label)%len(pemLabels)]; l != "" {
		b = toPEM(l, b)
	}
	if len(b) > 0 && b[0] == 0x30 {
		return b, "DER"
	}
	return b, "PEM"
}

func FuzzParsePrivateKey(f *testing.F) {
	seedKeys(f)
	f.Fuzz(func(t *testing.T, b []byte, label byte) {
		file, form := keyFile(b, label)
		before := bytes.Clone(file)
		k, err := ParsePrivateKey(file)
		if !bytes.Equal(file, before) {
			t.Fatal("the file that was given is changed")
		}
		if err != nil {
			if !errors.Is(err, ErrKey) {
				t.Fatalf("%v is not an ErrKey", err)
			}
			// A P-384 key exactly as openssl writes it is refused for nothing but its two halves. (It writes any version that it has read.)
			if form != "DER" || !bytes.Contains(file, []byte(oidP384)) || !bytes.Contains(file, []byte(sec1Scalar)) || !sampled(file) {
				return
			}
			out, asked := askOpenSSL(t, "ec -inform DER -in @ -outform DER -conv_form uncompressed -param_enc named_curve", file)
			if asked == nil && bytes.Equal(out, file) && !strings.Contains(err.Error(), "not its own") && !strings.Contains(err.Error(), "below the order") &&
				!strings.Contains(err.Error(), "on the curve") {
				t.Fatalf("%x is what openssl writes, and yet: %v", file, err)
			}
			return
		}
		again, err := ParsePrivateKey(k.DER())
		if err != nil || !bytes.Equal(again.DER(), k.DER()) || !again.Public().Equal(k.Public()) {
			t.Fatalf("%x does not come back as it is: %v", k.DER(), err)
		}
		std, err := x509.ParseECPrivateKey(k.DER())
		if err != nil {
			t.Fatalf("crypto/x509 refuses %x: %v", k.DER(), err)
		}
		if der, err := x509.MarshalECPrivateKey(std); err != nil || !bytes.Equal(der, k.DER()) {
			t.Fatalf("crypto/x509 writes %x as %x: %v", k.DER(), der, err)
		}
		if _, err := ParsePublicKey(file); err == nil {
			t.Fatal("this is both a private and a public key")
		}
		if out, err := askOpenSSL(t, "ec -inform "+form+" -in @ -outform DER", file); err != nil || !bytes.Equal(out, k.DER()) {
			t.Fatalf("%q is %x, and for openssl %x: %v", file, k.DER(), out, err)
		}
		if !sampled(file) {
			return
		}
		if out, err := askOpenSSL(t, "pkey -inform "+form+" -in @ -pubout -outform DER", file); err != nil || !bytes.Equal(out, k.Public().DER()) {
			t.Fatalf("the public key of %q is %x, and for openssl %x: %v", file, k.Public().DER(), out, err)
		}
		if _, err := askOpenSSL(t, "pkey -inform "+form+" -in @ -check -noout", file); err != nil {
			t.Fatalf("%q is taken, and: %v", file, err)
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	seedKeys(f)
	f.Fuzz(func(t *testing.T, b []byte, label byte) {
		file, form := keyFile(b, label)
		before := bytes.Clone(file)
		k, err := ParsePublicKey(file)
		if !bytes.Equal(file, before) {
			t.Fatal("the file that was given is changed")
		}
		if err != nil {
			if !errors.Is(err, ErrKey) {
				t.Fatalf("%v is not an ErrKey", err)
			}
			if form != "DER" || !bytes.Contains(file, []byte(oidP384)) || !sampled(file) {
				return
			}
			out, asked := askOpenSSL(t, "ec -pubin -inform DER -in @ -pubout -outform DER -conv_form uncompressed -param_enc named_curve", file)
			if asked == nil && bytes.Equal(out, file) {
				t.Fatalf("%x is what openssl writes, and yet: %v", file, err)
			}
			return
		}
		if form == "DER" && !bytes.Equal(k.DER(), file) {
			t.Fatalf("%x is written as %x", file, k.DER())
		}
		again, err := ParsePublicKey(k.DER())
		if err != nil || !again.Equal(k) || again.Fingerprint() != k.Fingerprint() {
			t.Fatalf("%x does not come back as it is: %v", k.DER(), err)
		}
		std, err := x509.ParsePKIXPublicKey(k.DER())
		if err != nil {
			t.Fatalf("crypto/x509 refuses %x: %v", k.DER(), err)
		}
		if der, err := x509.MarshalPKIXPublicKey(std); err != nil || !bytes.Equal(der, k.DER()) {
			t.Fatalf("crypto/x509 writes %x as %x: %v", k.DER(), der, err)
		}
		if out, err := askOpenSSL(t, "pkey -pubin -inform "+form+" -in @ -pubout -outform DER", file); err != nil || !bytes.Equal(out, k.DER()) {
			t.Fatalf("%q is %x, and for openssl %x: %v", file, k.DER(), out, err)
		}
	})
}

// FuzzVerify: a signature verifies here if, and only if, it does with openssl, which is as strict about DER. One that is not DER of two
// numbers in range is malformed, and any other one a mismatch. With laidOver, signature is combined by exclusive or with
// the one that the key makes of message: so something near to a good signature is met.
func FuzzVerify(f *testing.F) {
	k := rfc6979Key(f)
	good, err := k.Sign([]byte("message"))
	if err != nil {
		f.Fatal(err)
	}
	n := elliptic.P384().Params().N.Text(16)
	for _, signature := range [][]byte{
		good, join("\x30\x81", good[1:]), join("\x30\x80", good[2:], "\x00\x00"), join(good, "\x00"), good[:len(good)-1],
		ecdsaSig(f, "1", "1"), ecdsaSig(f, "0", "-1"), ecdsaSig(f, n, "1"), []byte("\x30\x07\x02\x02\x00\x01\x02\x01\x01"), nil,
	} {
		f.Add(signature, []byte("message"), false)
	}
	f.Add([]byte{}, []byte(""), true)
	f.Add([]byte{}, []byte("message"), true)
	f.Add(join(make([]byte, len(good)-1), "\x01"), []byte("message"), true)
	f.Add([]byte("\x00\x01"), []byte("x"), true)
	f.Fuzz(func(t *testing.T, signature, message []byte, laidOver bool) {
		if laidOver {
			own, err := k.Sign(message)
			if err != nil {
				t.Fatal(err)
			}
			if len(signature) > len(own) {
				own = append(own, make([]byte, len(signature)-len(own))...)
			}
			for i, c := range signature {
				own[i] ^= c
			}
			signature = own
		}
		err := k.Public().Verify(message, signature)
		// encoding/asn1 takes more than DER, such as further members, but what it writes is DER.
		var v rs
		strict := false
		if rest, err := asn1.Unmarshal(signature, &v); err == nil && len(rest) == 0 {
			n := elliptic.P384().Params().N
			inRange := v.R.Sign() > 0 && v.S.Sign() > 0 && v.R.Cmp(n) < 0 && v.S.Cmp(n) < 0
			strict = inRange && bytes.Equal(ecdsaSig(t, v.R.Text(16), v.S.Text(16)), signature)
		}
		switch {
		case strict && err != nil && !errors.Is(err, ErrMismatch):
			t.Fatalf("%x is DER of two numbers in range, but: %v", signature, err)
		case !strict && !errors.Is(err, ErrSignature):
			t.Fatalf("%x is not DER of two numbers in range, but: %v", signature, err)
		}
		if read := k.Public().VerifyReader(bytes.NewReader(message), signature); (read == nil) != (err == nil) {
			t.Fatalf("from a reader: %v; and from memory: %v", read, err)
		}
		if err != nil && !sampled(signature, message) {
			return
		}
		out, asked := askOpenSSL(t, "dgst -sha384 -keyform DER -verify @ -signature @ @", k.Public().DER(), signature, message)
		if (asked == nil) != (err == nil) {
			t.Fatalf("%x of %q: %v; and for openssl: %s%v", signature, message, err, out, asked)
		}
	})
}
