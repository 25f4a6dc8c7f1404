package faults

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"irfs/internal/irfstest"
	"irfs/sign"
)

// The bytes around the parts of a P-384 key, all of which have a fixed length (RFC 5915, RFC 5480).
const (
	idP384     = "\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22"
	spkiHead   = "\x30\x76\x30\x10" + idP384 + "\x03\x62\x00"
	sec1Head   = "\x30\x81\xa4\x02\x01\x01\x04\x30"
	sec1Middle = "\xa0\x07\x06\x05\x2b\x81\x04\x00\x22"
	scalarLen  = 48
)

// A badKey is what a key file may hold that is no key that may be used.
type badKey struct {
	name, says string
	make       func(t testing.TB, good *sign.PrivateKey) []byte
}

func join(parts ...any) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		fmt.Fprintf(&b, "%s", p)
	}
	return b.Bytes()
}

func pemOf(label string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})
}

// compressed is the point of a public key by its x alone.
func compressed(der []byte) []byte {
	point := der[len(spkiHead):]
	return join([]byte{2 + point[96]&1}, point[1:49])
}

// badPublicKeys are none wherever one is expected, a file or an annotation.
func badPublicKeys() []badKey {
	return []badKey{
		{"P-256", "the curve is P-256", func(t testing.TB, _ *sign.PrivateKey) []byte {
			k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			worked(t, err)
			der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
			worked(t, err)
			return der
		}},
		{"Ed25519", "Ed25519", func(t testing.TB, _ *sign.PrivateKey) []byte {
			k, _, err := ed25519.GenerateKey(rand.Reader)
			worked(t, err)
			der, err := x509.MarshalPKIXPublicKey(k)
			worked(t, err)
			return der
		}},
		{"compressed", "compressed", func(_ testing.TB, good *sign.PrivateKey) []byte {
			return join("\x30\x46\x30\x10", idP384, "\x03\x32\x00", compressed(good.Public().DER()))
		}},
		{"infinity", "infinity", func(testing.TB, *sign.PrivateKey) []byte { return join("\x30\x16\x30\x10", idP384, "\x03\x02\x00\x00") }},
		{"infinity of 97 bytes", "not a point on the curve", func(testing.TB, *sign.PrivateKey) []byte { return join(spkiHead, make([]byte, 97)) }},
		{"off the curve", "not a point on the curve", func(_ testing.TB, good *sign.PrivateKey) []byte {
			der := bytes.Clone(good.Public().DER())
			der[len(der)-1] ^= 1
			return der
		}},
		{"trailing byte", "trailing bytes", func(_ testing.TB, good *sign.PrivateKey) []byte { return join(good.Public().DER(), "\x00") }},
		{"trailing byte inside", "malformed", func(_ testing.TB, good *sign.PrivateKey) []byte {
			return join("\x30\x77", good.Public().DER()[2:], "\x00")
		}},
		{"long form", "malformed", func(_ testing.TB, good *sign.PrivateKey) []byte {
			return join("\x30\x81\x76", good.Public().DER()[2:])
		}},
		{"private", "private key where a public key is expected", func(_ testing.TB, good *sign.PrivateKey) []byte { return good.DER() }},
	}
}

func badPrivateKeys() []badKey {
	bare := func(scalar []byte) []byte { return join("\x30\x3e\x02\x01\x01\x04\x30", scalar, sec1Middle) }
	scalarOf := func(k *sign.PrivateKey) []byte { return k.DER()[len(sec1Head) : len(sec1Head)+scalarLen] }
	return []badKey{
		{"trailing byte", "trailing bytes", func(_ testing.TB, good *sign.PrivateKey) []byte { return join(good.DER(), "\x00") }},
		{"trailing line end", "trailing bytes", func(_ testing.TB, good *sign.PrivateKey) []byte { return join(good.DER(), "\n") }},
		{"another key after it", "trailing bytes", func(_ testing.TB, good *sign.PrivateKey) []byte { return join(good.DER(), good.DER()) }},
		{"trailing byte inside", "malformed", func(_ testing.TB, good *sign.PrivateKey) []byte { return join("\x30\x81\xa5", good.DER()[3:], "\x00") }},
		{"trailing byte in PEM", "trailing bytes", func(_ testing.TB, good *sign.PrivateKey) []byte {
			return pemOf("EC PRIVATE KEY", join(good.DER(), "\x00"))
		}},
		{"text after PEM", "trailing bytes", func(_ testing.TB, good *sign.PrivateKey) []byte {
			return join(pemOf("EC PRIVATE KEY", good.DER()), "x")
		}},
		{"the public key in it is of another", "not its own", func(t testing.TB, good *sign.PrivateKey) []byte {
			other, err := sign.GenerateKey()
			worked(t, err)
			der := good.DER()
			return join(der[:len(der)-97], other.DER()[len(der)-97:])
		}},
		{"the public key in it is off the curve", "not a point on the curve", func(_ testing.TB, good *sign.PrivateKey) []byte {
			der := bytes.Clone(good.DER())
			der[len(der)-1] ^= 1
			return der
		}},
		{"the public key in it is compressed", "compressed", func(_ testing.TB, good *sign.PrivateKey) []byte {
			return join("\x30\x74\x02\x01\x01\x04\x30", scalarOf(good), sec1Middle, "\xa1\x34\x03\x32\x00", compressed(good.Public().DER()))
		}},
		{"the public key in it is infinity", "infinity", func(_ testing.TB, good *sign.PrivateKey) []byte {
			return join("\x30\x44\x02\x01\x01\x04\x30", scalarOf(good), sec1Middle, "\xa1\x04\x03\x02\x00\x00")
		}},
		{"P-256", "the curve is P-256", func(t testing.TB, _ *sign.PrivateKey) []byte {
			k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			worked(t, err)
			der, err := x509.MarshalECPrivateKey(k)
			worked(t, err)
			return der
		}},
		{"zero", "zero, or not below the order", func(testing.TB, *sign.PrivateKey) []byte { return bare(make([]byte, scalarLen)) }},
		{"the order of the curve", "zero, or not below the order", func(testing.TB, *sign.PrivateKey) []byte { return bare(elliptic.P384().Params().N.Bytes()) }},
		{"long form", "malformed", func(_ testing.TB, good *sign.PrivateKey) []byte { return join("\x30\x82\x00\xa4", good.DER()[3:]) }},
		{"public", "public key where a private key is expected", func(_ testing.TB, good *sign.PrivateKey) []byte { return good.Public().DER() }},
		{"encrypted", "encrypted", func(_ testing.TB, good *sign.PrivateKey) []byte { return pemOf("ENCRYPTED PRIVATE KEY", good.DER()) }},
		{"cut short", "cut short", func(_ testing.TB, good *sign.PrivateKey) []byte { return good.DER()[:100] }},
		{"no bytes", "empty", func(testing.TB, *sign.PrivateKey) []byte { return nil }},
		{"text", "neither DER nor PEM", func(testing.TB, *sign.PrivateKey) []byte { return []byte("a secret\n") }},
		{"over 64 KiB", "over the limit of 65536", func(_ testing.TB, good *sign.PrivateKey) []byte { return join(good.DER(), make([]byte, 64<<10)) }},
	}
}

// A badSignature is what becomes of a good one.
type badSignature struct {
	name, says string
	make       func(was []byte) []byte
}

func badSignatures() []badSignature {
	half := func(was []byte, n int) []byte { // r, or s, with its tag and length
		r := was[2 : 4+was[3]]
		if n == 0 {
			return r
		}
		return was[2+len(r):]
	}
	sequence := func(parts ...any) []byte {
		body := join(parts...)
		return join([]byte{0x30, byte(len(body))}, body)
	}
	return []badSignature{
		{"BER long form", "long form", func(was []byte) []byte { return join("\x30\x81", was[1:]) }},
		{"BER indefinite form", "long form", func(was []byte) []byte { return join("\x30\x80", was[2:], "\x00\x00") }},
		{"long form inside", "not a DER integer", func(was []byte) []byte {
			r := half(was, 0)
			return sequence("\x02\x81", r[1:], half(was, 1))
		}},
		{"trailing byte", "trailing bytes", func(was []byte) []byte { return join(was, "\x00") }},
		{"trailing byte inside", "something besides r and s", func(was []byte) []byte { return sequence(was[2:], "\x05\x00") }},
		{"r zero", "r is zero", func(was []byte) []byte { return sequence("\x02\x01\x00", half(was, 1)) }},
		{"s zero", "s is zero", func(was []byte) []byte { return sequence(half(was, 0), "\x02\x01\x00") }},
		{"r negative", "r is negative", func(was []byte) []byte { return sequence("\x02\x01\xff", half(was, 1)) }},
		{"r of the order", "not below the order", func(was []byte) []byte {
			n := elliptic.P384().Params().N.Bytes()
			return sequence([]byte{2, byte(len(n) + 1), 0}, n, half(was, 1))
		}},
		{"raw r and s", "not a DER sequence", func([]byte) []byte { return bytes.Repeat([]byte{1}, 96) }},
		{"cut short", "cut short", func(was []byte) []byte { return was[:len(was)-1] }},
	}
}

// badKeys hands files to irfs that are no keys or certificates, wherever it takes one. Each has a path of its own, by
// which its line in the log is known.
func badKeys(t *testing.T, s *stage) {
	vendor, ca := privateKey(t, "vendor.prv"), privateKey(t, "root-ca.prv")
	file := func(t *testing.T, name string, text []byte) string {
		name = s.files + "/" + strings.ReplaceAll(name, " ", "-")
		worked(t, os.WriteFile(name, text, 0o600))
		return name
	}
	// refused has a command written to the control file of the image that is not signed.
	refused := func(t *testing.T, command string, errno syscall.Errno, says string) {
		t.Helper()
		if got := s.sign("unsigned", command); got != errno {
			t.Errorf("sign: %.300q: %v, want %v: %s", command, got, errno, s.logged(t, "unsigned/tags/x"))
		}
		if outcome := s.logged(t, "unsigned/tags/x"); !strings.Contains(outcome, says) {
			t.Errorf("the log says %q of %.300q; want %q", outcome, command, says)
		}
		if word := s.read(t, "unsigned/tags/x/verify"); word != "unsigned\n" {
			t.Errorf("verify: %q", word)
		}
	}
	image := []string{"-r", s.registry, "-a", "unsigned", "-d", "x"}
	signImage := func(flags ...string) []string { return append(append([]string{"sign-image"}, image...), flags...) }
	for _, row := range badPrivateKeys() {
		t.Run("17 private key: "+row.name, func(t *testing.T) {
			text := row.make(t, vendor)
			name := file(t, "bad "+row.name+".prv", text)
			rejected := syscall.EKEYREJECTED
			if len(text) > sign.MaxKeyFile {
				rejected = syscall.EFBIG
			}
			refused(t, name+"\n", rejected, row.says)
			refused(t, fmt.Sprintf("-v '%s' -s '%s' -c '%s'", name, key("vendor.pub.sig"), key("root-ca.pub")), rejected, row.says)
			ofCA := file(t, "bad "+row.name+".ca.prv", row.make(t, ca))
			refused(t, fmt.Sprintf("-v '%s' -x '%s'", key("vendor.prv"), ofCA), rejected, row.says)
			switch { // the key itself
			case len(text) > 4096:
				refused(t, string(text), syscall.EINVAL, "over the limit of 4096")
			case bytes.HasPrefix(text, []byte{0x30}) && row.name != "public", bytes.HasPrefix(text, []byte("-----BEGIN ")):
				refused(t, string(text), syscall.EKEYREJECTED, row.says)
			}
			wantCode(t, 1, row.says, signImage("-v", name, "-s", key("vendor.pub.sig"), "-c", key("root-ca.pub"))...)
			wantCode(t, 1, row.says, signImage("-v", key("vendor.prv"), "-x", ofCA)...)
			out := name + ".out"
			wantCode(t, 1, row.says, "extract-public", "-i", name, "-o", out)
			wantCode(t, 1, row.says, "sign", "-k", name, "-f", key("vendor.pub"), "-s", out)
			if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something was written: %v", err)
			}
			s.silent(t, text)
		})
	}
	for _, row := range badPublicKeys() {
		t.Run("18 public key of the CA: "+row.name, func(t *testing.T) {
			name := file(t, "bad "+row.name+".pub", row.make(t, ca))
			refused(t, fmt.Sprintf("-v '%s' -s '%s' -c '%s'", key("vendor.prv"), key("vendor.pub.sig"), name), syscall.EKEYREJECTED, row.says)
			wantCode(t, 1, row.says, signImage("-v", key("vendor.prv"), "-s", key("vendor.pub.sig"), "-c", name)...)
			wantCode(t, 1, row.says, append(append([]string{"verify-image"}, image...), "-c", name)...)
			wantCode(t, 1, row.says, "verify", "-k", name, "-f", key("vendor.pub"), "-s", key("vendor.pub.sig"))
			mnt := newDir(t, "never")
			wantCode(t, 1, row.says, "mount", "-c", name, s.registry, mnt)
			if found := irfstest.MountsBelow(house.Dir); strings.Contains(strings.Join(found, "\n")+"\n", mnt+"\n") {
				t.Errorf("it was mounted: %q", found)
			}
		})
	}
	certificate, err := os.ReadFile(key("vendor.pub.sig"))
	worked(t, err)
	for _, row := range badSignatures() {
		t.Run("19 certificate: "+row.name, func(t *testing.T) {
			name := file(t, "bad "+row.name+".sig", row.make(certificate))
			refused(t, fmt.Sprintf("-v '%s' -s '%s'", key("vendor.prv"), name), syscall.EKEYREJECTED, row.says)
			wantCode(t, 1, row.says, signImage("-v", key("vendor.prv"), "-s", name, "-c", key("root-ca.pub"))...)
			_, code, said := irfs("verify", "-k", key("root-ca.pub"), "-f", key("vendor.pub"), "-s", name)
			if code == 0 || !strings.Contains(said, row.says) {
				t.Errorf("verify: exit code %d, %q; want %q", code, said, row.says)
			}
		})
	}
	t.Run("19 the twin of a certificate is one", func(t *testing.T) {
		name := file(t, "twin.sig", twin(t, certificate))
		wantCode(t, 0, "", "verify", "-k", key("root-ca.pub"), "-f", key("vendor.pub"), "-s", name)
	})
	t.Run("a certificate by another CA, or for another vendor, and the CA as vendor", func(t *testing.T) {
		other, err := sign.GenerateKey()
		worked(t, err)
		byOther, err1 := other.Sign(vendor.Public().DER())
		ofOther, err2 := ca.Sign(other.Public().DER())
		worked(t, errors.Join(err1, err2))
		refused(t, fmt.Sprintf("-v '%s' -s '%s'", key("vendor.prv"), file(t, "by other.sig", byOther)), syscall.EKEYREJECTED, "by-other.sig is not by root CA "+ca.Public().Fingerprint()+": made by another CA, or for another key")
		refused(t, fmt.Sprintf("-v '%s' -s '%s'", key("vendor.prv"), file(t, "of other.sig", ofOther)), syscall.EKEYREJECTED, "of-other.sig is not by root CA "+ca.Public().Fingerprint()+": made by another CA, or for another key")
		refused(t, fmt.Sprintf("-v '%s' -x '%s'", key("root-ca.prv"), key("root-ca.prv")), syscall.EKEYREJECTED, "the same")
	})
}

// silent fails if the mount's log has anything of a key's secret bytes in it, however it is written.
func (s *stage) silent(t *testing.T, text []byte) {
	t.Helper()
	if len(text) < len(sec1Head)+scalarLen || text[0] != 0x30 {
		return
	}
	secret := text[len(sec1Head)+8 : len(sec1Head)+24]
	log := s.read(t, ".irfs/log")
	for _, shown := range []string{string(secret), hex.EncodeToString(secret), fmt.Sprintf("%X", secret), base64.StdEncoding.EncodeToString(secret)[:20]} {
		if strings.Contains(log, shown) {
			t.Errorf("the log shows %q of a key", shown)
		}
	}
}
