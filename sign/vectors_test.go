package sign

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"testing"

	"irfs/internal/irfstest"
)

// vectors are the project Wycheproof's (Apache License 2.0), which are known to have found what implementations get wrong.
const vectors = "github.com/c2sp/wycheproof@v0.0.0-20260902155932-3fa63dd0344a"

// TestVerifyWycheproof: of every vector for secp384r1 with SHA-384 the verdict is the expected one, and where the fast formula
// accepts, crypto/ecdsa does.
func TestVerifyWycheproof(t *testing.T) {
	download := exec.Command("go", "mod", "download", "-json", vectors)
	download.Dir = t.TempDir() // this module does not need it
	out, err := download.Output()
	if err != nil {
		irfstest.Skip(t, "the vectors cannot be downloaded")
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(module.Dir + "/testvectors_v1/ecdsa_secp384r1_sha384_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		NumberOfTests int
		TestGroups    []struct {
			PublicKeyDer string
			Tests        []struct {
				TcID                      int
				Comment, Msg, Sig, Result string
			}
		}
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	tried, slow := 0, 0
	for n, group := range file.TestGroups {
		key, err := ParsePublicKey(unhex(group.PublicKeyDer))
		if err != nil {
			t.Fatalf("%s: %v", group.PublicKeyDer, err)
		}
		if n%8 == 0 || len(group.Tests) > 8 { // they take long to compute
			withMultiples(t, key)
		}
		for _, c := range group.Tests {
			tried++
			message, sig := unhex(c.Msg), unhex(c.Sig)
			err := key.Verify(message, sig)
			if got := err == nil; got != (c.Result == "valid") {
				t.Errorf("%d, %s: it is %s; verified: %v", c.TcID, c.Comment, c.Result, err)
			}
			sum := sha512.Sum384(message)
			std := ecdsa.VerifyASN1(key.key, sum[:], sig)
			parsed, err := parseSignature(sig)
			fast := err == nil && key.fitsWith(sum[:], parsed, nil)
			if m := multiplesIn[key.der]; m != nil && err == nil && key.fitsWith(sum[:], parsed, m) != std {
				t.Errorf("%d, %s: crypto/ecdsa says %v, and the formula with multiples does not", c.TcID, c.Comment, std)
			}
			if fast && !std {
				t.Errorf("%d, %s: the formula accepts what crypto/ecdsa does not", c.TcID, c.Comment)
			}
			if std && !fast && !errors.Is(err, ErrSignature) {
				slow++
				t.Logf("%d, %s: the formula does not see that it is valid", c.TcID, c.Comment)
			}
		}
	}
	if tried != file.NumberOfTests || tried < 400 {
		t.Errorf("%d vectors of %d were tried", tried, file.NumberOfTests)
	}
	t.Logf("%d vectors, %d of them valid and left to crypto/ecdsa", tried, slow)
}
