package sign

import (
	"bytes"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"irfs/internal/irfstest"
)

// openssl runs the real openssl with a file name in place of each "@", which holds the next of files, and gives its
// standard output.
func openssl(t *testing.T, command string, files ...[]byte) []byte {
	t.Helper()
	out, err := askOpenSSL(t, command, files...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// askOpenSSL is openssl where it may say no: that is the error.
func askOpenSSL(t *testing.T, command string, files ...[]byte) ([]byte, error) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		irfstest.Skip(t, "there is no openssl in PATH to compare with")
	}
	args, dir := strings.Fields(command), t.TempDir()
	for i, arg := range args {
		if arg != "@" {
			continue
		}
		args[i] = filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(args[i], files[0], 0o600); err != nil {
			t.Fatal(err)
		}
		files = files[1:]
	}
	var stderr bytes.Buffer
	cmd := exec.Command("openssl", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("openssl %s: %w\n%s", command, err, &stderr)
	}
	return out, err
}

func newKey(t testing.TB) *PrivateKey {
	t.Helper()
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func toPEM(label string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})
}

func join(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b = append(b, p...)
		case []byte:
			b = append(b, p...)
		}
	}
	return b
}

// replace gives b with old, which must be in it once, replaced.
func replace(t testing.TB, b []byte, old, new string) []byte {
	t.Helper()
	if bytes.Count(b, []byte(old)) != 1 {
		t.Fatalf("%x is not once in %x", old, b)
	}
	return bytes.Replace(b, []byte(old), []byte(new), 1)
}

func TestKeyReadsWhatOpenSSLWrites(t *testing.T) {
	key := openssl(t, "ecparam -name secp384r1 -genkey -noout -outform DER")
	pub := openssl(t, "ec -inform DER -in @ -pubout -outform DER", key)
	pkcs8 := openssl(t, "pkcs8 -topk8 -nocrypt -inform DER -in @ -outform DER", key)
	noPublic := openssl(t, "ec -inform DER -in @ -no_public -outform DER", key)
	for name, file := range map[string][]byte{
		"SEC1 DER":             key,
		"SEC1 PEM":             openssl(t, "ec -inform DER -in @", key),
		"SEC1 DER, no public":  noPublic,
		"SEC1 PEM, no public":  openssl(t, "ec -inform DER -in @ -no_public", key),
		"SEC1 PEM, parameters": join(openssl(t, "ecparam -name secp384r1"), openssl(t, "ec -inform DER -in @", key)),
		"PKCS#8 DER":           pkcs8,
		"PKCS#8 PEM":           openssl(t, "pkey -inform DER -in @", key),
		"PKCS#8, no public":    openssl(t, "pkcs8 -topk8 -nocrypt -inform DER -in @ -outform DER", noPublic),
		"PKCS#8, curve twice":  join("\x30\x81\xbf\x02\x01\x00", ecP384, "\x04\x81\xa7", key),
		"PEM with CR LF":       bytes.ReplaceAll(toPEM("EC PRIVATE KEY", key), []byte("\n"), []byte("\r\n")),
		"PEM, white space":     join("\n", toPEM("EC PRIVATE KEY", key), "\n \n"),
		"decrypted as we tell": openssl(t, "pkey -passin pass:x -in @", openssl(t, "pkcs8 -topk8 -passout pass:x -inform DER -in @ -outform DER", key)),
	} {
		k, err := ParsePrivateKey(file)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(k.DER(), key) {
			t.Errorf("%s: DER() is not what ecparam wrote", name)
		}
		if !bytes.Equal(k.Public().DER(), pub) {
			t.Errorf("%s: Public().DER() is not what ec -pubout wrote", name)
		}
	}
	for name, file := range map[string][]byte{
		"DER": pub,
		"PEM": openssl(t, "ec -inform DER -in @ -pubout", key),
	} {
		p, err := ParsePublicKey(file)
		if err != nil {
			t.Errorf("public %s: %v", name, err)
			continue
		}
		if sum := sha256.Sum256(pub); !bytes.Equal(p.DER(), pub) || p.Fingerprint() != hex.EncodeToString(sum[:]) {
			t.Errorf("public %s: other bytes, or another fingerprint, than openssl's file", name)
		}
	}
	// ecparam without -noout puts the parameters first by itself.
	if _, err := ParsePrivateKey(openssl(t, "ecparam -name secp384r1 -genkey")); err != nil {
		t.Errorf("ecparam -genkey: %v", err)
	}
}

func TestKeyOpenSSLReadsWhatWeWrite(t *testing.T) {
	k := newKey(t)
	if len(k.DER()) != 167 || len(k.Public().DER()) != 120 {
		t.Errorf("%d and %d bytes, want 167 and 120", len(k.DER()), len(k.Public().DER()))
	}
	openssl(t, "ec -check -noout -inform DER -in @", k.DER())
	openssl(t, "pkey -pubin -pubcheck -noout -inform DER -in @", k.Public().DER())
	if same := openssl(t, "ec -inform DER -in @ -outform DER", k.DER()); !bytes.Equal(same, k.DER()) {
		t.Error("openssl writes our private key otherwise")
	}
	if pub := openssl(t, "ec -inform DER -in @ -pubout -outform DER", k.DER()); !bytes.Equal(pub, k.Public().DER()) {
		t.Error("openssl extracts another public key")
	}
}

func TestKeyWithLeadingZeros(t *testing.T) {
	scalar := join(bytes.Repeat([]byte{0}, 47), "\x07")
	k, err := ParsePrivateKey(join("\x30\x3e", sec1Scalar, scalar, sec1Curve))
	if err != nil {
		t.Fatal(err)
	}
	if len(k.DER()) != 167 || !bytes.Contains(k.DER(), scalar) {
		t.Errorf("the scalar 7 is written as %x, not in 48 bytes", k.DER())
	}
	openssl(t, "ec -check -noout -inform DER -in @", k.DER())
}

func TestKeyEqual(t *testing.T) {
	a, b := newKey(t), newKey(t)
	again, err := ParsePublicKey(a.Public().DER())
	if err != nil {
		t.Fatal(err)
	}
	if !a.Public().Equal(again) || a.Public().Equal(b.Public()) {
		t.Error("a key is equal to itself and to no other")
	}
}

func TestKeyPrivateRefused(t *testing.T) {
	var (
		k      = newKey(t)
		key    = k.DER()
		pub    = k.Public().DER()
		point  = pub[len(spkiBegin):]
		scalar = key[8 : 8+scalarSize]
		n      = elliptic.P384().Params().N.Bytes()
		bare   = func(scalar []byte) []byte { return join("\x30\x3e", sec1Scalar, scalar, sec1Curve) }
		sec1   = func(command string) []byte { return openssl(t, command+" -inform DER -in @ -outform DER", key) }
		enc    = "pkcs8 -topk8 -passout pass:x -inform DER -in @"
		ecPEM  = toPEM("EC PRIVATE KEY", key)
	)
	for _, test := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "it is empty"},
		{"white space", []byte(" \n"), "it is empty"},
		{"text", []byte("/keys/vendor.prv\n"), "neither DER nor PEM"},
		{"over 64 KiB", make([]byte, MaxKeyFile+1), "larger than 64 KiB"},
		{"cut short", key[:len(key)-1], "cut short"},
		{"only a header", key[:3], "cut short"},
		{"no more than a scalar", key[:8+scalarSize], "cut short"},
		{"trailing byte", join(key, "\x00"), "trailing bytes"},
		{"trailing newline", join(key, "\n"), "trailing bytes"},
		{"trailing key", join(key, key), "trailing bytes"},
		{"trailing byte inside", join("\x30\x81\xa5", key[3:], "\x00"), "malformed"},
		{"trailing byte, bare", join(bare(scalar), "\x00"), "trailing bytes"},
		{"long form of length", join("\x30\x82\x00\xa4", key[3:]), "malformed"},
		{"indefinite length", join("\x30\x80", key[3:], "\x00\x00"), "malformed"},
		{"version 2", replace(t, key, "\x02\x01\x01\x04\x30", "\x02\x01\x02\x04\x30"), "malformed"},
		{"no curve", join("\x30\x35", sec1Scalar, scalar), "malformed"},
		{"no curve, but public key", join("\x30\x81\x9b", sec1Scalar, scalar, sec1Point, point), "malformed"},
		{"scalar of 47 bytes", join("\x30\x3d\x02\x01\x01\x04\x2f", scalar[:47], sec1Curve), "malformed"},
		{"scalar of 49 bytes", join("\x30\x3f\x02\x01\x01\x04\x31\x00", scalar, sec1Curve), "malformed"},
		{"scalar zero", bare(make([]byte, scalarSize)), "zero, or not below the order"},
		{"scalar n", bare(n), "zero, or not below the order"},
		{"scalar 2^384-1", bare(bytes.Repeat([]byte{0xff}, scalarSize)), "zero, or not below the order"},
		{"another's public key", join(key[:len(key)-pointSize], newKey(t).DER()[len(key)-pointSize:]), "not its own"},
		{"public key off the curve", join(key[:len(key)-1], []byte{key[len(key)-1] ^ 1}), "not a point on the curve"},
		{"compressed public key", sec1("ec -conv_form compressed"), "compressed"},
		{"compressed public key, PKCS#8", openssl(t, "pkcs8 -topk8 -nocrypt -inform DER -in @ -outform DER", sec1("ec -conv_form compressed")), "compressed"},
		{"hybrid public key", sec1("ec -conv_form hybrid"), "hybrid"},
		{"public key infinity", join("\x30\x44", sec1Scalar, scalar, sec1Curve, "\xa1\x04\x03\x02\x00\x00"), "infinity"},
		{"explicit parameters", sec1("ec -param_enc explicit"), "explicit parameters"},
		{"P-256", openssl(t, "ecparam -name prime256v1 -genkey -noout -outform DER"), "not a P-384 key: the curve is P-256"},
		{"P-256 PKCS#8", openssl(t, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"), "not a P-384 key: the curve is P-256"},
		{"P-256 with parameters", openssl(t, "ecparam -name prime256v1 -genkey"), "not a P-384 key: the curve is P-256"},
		{"P-224", openssl(t, "ecparam -name secp224r1 -genkey -noout -outform DER"), "not a P-384 key: the curve is P-224"},
		{"P-521", openssl(t, "ecparam -name secp521r1 -genkey -noout -outform DER"), "not a P-384 key: the curve is P-521"},
		{"secp256k1", openssl(t, "ecparam -name secp256k1 -genkey -noout -outform DER"), "not a P-384 key: the curve is secp256k1"},
		{"brainpoolP384r1", openssl(t, "ecparam -name brainpoolP384r1 -genkey -noout -outform DER"), "not a P-384 key: the curve is a Brainpool"},
		{"RSA", openssl(t, "genpkey -algorithm RSA -outform DER"), "not a P-384 key: it is an RSA key"},
		{"RSA PEM", openssl(t, "genpkey -algorithm RSA"), "not a P-384 key: it is an RSA key"},
		{"RSA PKCS#1", openssl(t, "genrsa -traditional 2048"), "not a P-384 key: it is an RSA key"},
		{"Ed25519", openssl(t, "genpkey -algorithm ED25519 -outform DER"), "not a P-384 key: it is an Ed25519 key"},
		{"Ed448", openssl(t, "genpkey -algorithm ED448"), "not a P-384 key: it is an Ed448 key"},
		{"X25519", openssl(t, "genpkey -algorithm X25519"), "not a P-384 key: it is an X25519 key"},
		{"X448", openssl(t, "genpkey -algorithm X448"), "not a P-384 key: it is an X448 key"},
		{"encrypted PKCS#8 DER", openssl(t, enc+" -outform DER", key), "is encrypted: decrypt it with openssl pkey"},
		{"encrypted PKCS#8 PEM", openssl(t, enc, key), "is encrypted: decrypt it with openssl pkey"},
		{"encrypted PKCS#12's way", openssl(t, enc+" -outform DER -v1 PBE-SHA1-3DES", key), "is encrypted: decrypt it with openssl pkey"},
		{"encrypted SEC1", openssl(t, "ec -aes128 -passout pass:x -inform DER -in @", key), "is encrypted: decrypt it with openssl pkey"},
		{"PEM of OpenSSH", toPEM("OPENSSH PRIVATE KEY", key), "OpenSSH"},
		{"PEM certificate", toPEM("CERTIFICATE", key), "certificate"},
		{"PEM of something else", toPEM("SECRET", key), "malformed"},
		{"PEM label of PKCS#8", toPEM("PRIVATE KEY", key), "malformed"},
		{"PEM with a header", replace(t, ecPEM, "KEY-----\nM", "KEY-----\nA: b\n\nM"), "headers"},
		{"PEM, then text", join(ecPEM, "more"), "trailing bytes"},
		{"PEM, then PEM", join(ecPEM, ecPEM), "trailing bytes"},
		{"PEM after text", join("my key:\n", ecPEM), "neither DER nor PEM"},
		{"PEM after broken PEM", join("-----BEGIN X-----\n", ecPEM), "malformed or cut short"},
		{"PEM cut short", ecPEM[:len(ecPEM)-40], "malformed or cut short"},
		{"PEM of DER with trailing byte", toPEM("EC PRIVATE KEY", join(key, "\x00")), "trailing bytes"},
		{"parameters alone", toPEM("EC PARAMETERS", []byte(oidP384)), "not followed by"},
		{"parameters twice", join(toPEM("EC PARAMETERS", []byte(oidP384)), toPEM("EC PARAMETERS", []byte(oidP384)), ecPEM), "not followed by"},
		{"parameters of another curve", join(openssl(t, "ecparam -name prime256v1"), ecPEM), "the curve is P-256"},
		{"parameters last", join(ecPEM, toPEM("EC PARAMETERS", []byte(oidP384))), "trailing bytes"},
		{"public key", pub, "public key where a private key is expected"},
		{"public key PEM", toPEM("PUBLIC KEY", pub), "public key where a private key is expected"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParsePrivateKey(test.file)
			wantRefusal(t, err, ErrKey, test.want)
			silentAbout(t, fmt.Sprint(err), scalar)
		})
	}
}

func TestKeyPublicRefused(t *testing.T) {
	var (
		k      = newKey(t)
		pub    = k.Public().DER()
		point  = pub[len(spkiBegin):]
		reform = func(options string) []byte {
			return openssl(t, "ec -pubin -inform DER -in @ -pubout -outform DER "+options, pub)
		}
		publicOf = func(key []byte) []byte { return openssl(t, "pkey -in @ -pubout -outform DER", key) }
	)
	for _, test := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "it is empty"},
		{"over 64 KiB", make([]byte, MaxKeyFile+1), "larger than 64 KiB"},
		{"cut short", pub[:len(pub)-1], "cut short"},
		{"trailing byte", join(pub, "\x00"), "trailing bytes"},
		{"trailing byte inside", join("\x30\x77", pub[2:], "\x00"), "malformed"},
		{"long form of length", join("\x30\x81\x76", pub[2:]), "malformed"},
		{"unused bits", join(pub[:len(spkiBegin)-1], "\x01", point), "malformed"},
		{"compressed", reform("-conv_form compressed"), "compressed"},
		{"hybrid", reform("-conv_form hybrid"), "hybrid"},
		{"infinity", join("\x30\x16", ecP384, "\x03\x02\x00\x00"), "infinity"},
		{"infinity in 97 bytes", join(spkiBegin, make([]byte, pointSize)), "not a point on the curve"},
		{"zero point", join(spkiBegin, "\x04", make([]byte, pointSize-1)), "not a point on the curve"},
		{"off the curve", join(pub[:len(pub)-1], []byte{pub[len(pub)-1] ^ 1}), "not a point on the curve"},
		{"x not below p", join(spkiBegin, "\x04", bytes.Repeat([]byte{0xff}, 48), pub[len(pub)-48:]), "not a point on the curve"},
		{"explicit parameters", reform("-param_enc explicit"), "explicit parameters"},
		{"no parameters", join("\x30\x6f\x30\x09", oidEC, "\x03\x62\x00", point), "malformed"},
		{"bare point", point, "neither DER nor PEM"},
		{"P-256", publicOf(openssl(t, "ecparam -name prime256v1 -genkey -noout")), "not a P-384 key: the curve is P-256"},
		{"RSA", publicOf(openssl(t, "genrsa 2048")), "not a P-384 key: it is an RSA key"},
		{"Ed25519", publicOf(openssl(t, "genpkey -algorithm ED25519")), "not a P-384 key: it is an Ed25519 key"},
		{"PEM, then text", join(toPEM("PUBLIC KEY", pub), "x"), "trailing bytes"},
		{"PEM of something else", toPEM("KEY", pub), "malformed"},
		{"private key", k.DER(), "private key where a public key is expected"},
		{"private key PEM", toPEM("EC PRIVATE KEY", k.DER()), "private key where a public key is expected"},
		{"private key PKCS#8", openssl(t, "pkcs8 -topk8 -nocrypt -inform DER -in @ -outform DER", k.DER()), "private key where a public key is expected"},
		{"certificate", toPEM("CERTIFICATE", pub), "certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParsePublicKey(test.file)
			wantRefusal(t, err, ErrKey, test.want)
			silentAbout(t, fmt.Sprint(err), k.DER()[8:8+scalarSize])
		})
	}
}

// wantRefusal fails the test unless err is of the kind and says want.
func wantRefusal(t *testing.T, err, kind error, want string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v; want one that is %q and says %q", err, kind, want)
	}
}

// silentAbout fails the test if text holds four bytes of secret in a row, in any usual notation.
func silentAbout(t *testing.T, text string, secret []byte) {
	t.Helper()
	for i := range len(secret) - 4 {
		part := secret[i : i+4]
		for _, shown := range []string{
			string(part), hex.EncodeToString(part), fmt.Sprintf("%X", part), fmt.Sprintf("% x", part),
			strings.Trim(fmt.Sprint(part), "[]"), fmt.Sprintf("%#v", part)[len("[]byte{") : len("[]byte{")+10],
			base64.RawStdEncoding.EncodeToString(part)[:5],
		} {
			if strings.Contains(text, shown) {
				t.Fatalf("%q shows %q of the private key", text, shown)
			}
		}
	}
}

func TestKeyIsNotPrinted(t *testing.T) {
	k := newKey(t)
	want := "private key of " + k.Public().Fingerprint()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		for _, key := range []any{k, *k} {
			if got := fmt.Sprintf(verb, key); got != want {
				t.Errorf("%s of a %T is %q, want %q", verb, key, got, want)
			}
		}
		// fmt calls no methods on unexported fields.
		hidden := struct {
			value PrivateKey
			ptr   *PrivateKey
		}{*k, k}
		got := fmt.Sprintf(verb, hidden)
		silentAbout(t, got, k.DER()[8:8+scalarSize])
		// A big.Int would come in decimal.
		if d := new(big.Int).SetBytes(k.DER()[8 : 8+scalarSize]); strings.Contains(got, d.String()) {
			t.Errorf("%s of a struct with a key in it shows the key", verb)
		}
	}
	if got := fmt.Sprint(PrivateKey{}, (*PrivateKey)(nil)); got != "no private key <nil>" {
		t.Errorf("no key prints as %q", got)
	}
}
