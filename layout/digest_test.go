package layout

import (
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestParseDigest(t *testing.T) {
	hex64, hex128 := strings.Repeat("0a", 32), strings.Repeat("f9", 64)
	for _, s := range []string{"sha256:" + hex64, "sha512:" + hex128} {
		d, err := ParseDigest(s)
		if err != nil || d.String() != s {
			t.Errorf("ParseDigest(%q) = %q, %v", s, d, err)
		}
		if got, want := BlobPath(d), "blobs/"+strings.Replace(s, ":", "/", 1); got != want {
			t.Errorf("BlobPath(%s) = %s, want %s", d, got, want)
		}
	}
	refused := map[string]string{
		"empty":                 "",
		"no algorithm":          hex64,
		"empty algorithm":       ":" + hex64,
		"no hex":                "sha256:",
		"path":                  "sha256:../../x",
		"path of right length":  "sha256:../../" + hex64[6:],
		"slash":                 "sha256:" + hex64[1:] + "/",
		"slash in algorithm":    "sha256/../x:" + hex64,
		"NUL":                   "sha256:" + hex64[1:] + "\x00",
		"NUL behind":            "sha256:" + hex64 + "\x00",
		"newline":               "sha256:" + hex64 + "\n",
		"space":                 " sha256:" + hex64,
		"upper case":            "sha256:" + strings.ToUpper(hex64),
		"upper case algorithm":  "SHA256:" + hex64,
		"too short":             "sha256:" + hex64[1:],
		"too long":              "sha256:" + hex64 + "0",
		"length of sha512":      "sha256:" + hex128,
		"length of sha256":      "sha512:" + hex64,
		"sha384":                "sha384:" + strings.Repeat("a", 96),
		"unknown":               "blake3:" + hex64,
		"two colons":            "sha256::" + hex64[1:],
		"full-width digit":      "sha256:" + hex64[3:] + "０",
		"algorithm with suffix": "sha256+b64:" + hex64,
	}
	for name, s := range refused {
		if d, err := ParseDigest(s); !errors.Is(err, ErrDigest) || d != "" {
			t.Errorf("%s: ParseDigest(%q) = %q, %v", name, s, d, err)
		}
	}
	if _, err := ParseDigest(strings.Repeat("x", 1<<20)); len(err.Error()) > 300 {
		t.Errorf("a long digest gives an error of %d bytes", len(err.Error()))
	}
}

// FuzzParseDigest: what is taken is as the image-spec's grammar has it, and leads to one file below blobs.
func FuzzParseDigest(f *testing.F) {
	grammar := regexp.MustCompile(`\A(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\z`)
	for _, s := range []string{
		"", ":", "sha256:", "sha256:../../x", "sha256:" + strings.Repeat("0", 64), "sha512:" + strings.Repeat("f9", 64), "sha256:" + strings.Repeat("A", 64),
		"sha256:" + strings.Repeat("0", 64) + "\n", "sha256:" + strings.Repeat("/", 64), "sha256:" + strings.Repeat("0", 63) + "\x00", "sha384:" + strings.Repeat("a", 96), "sha256+b64:x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDigest(s)
		if (err == nil) != grammar.MatchString(s) {
			t.Fatalf("ParseDigest(%q): %v", s, err)
		}
		if err != nil {
			if !errors.Is(err, ErrDigest) || d != "" || len(err.Error()) > 1000 {
				t.Fatalf("ParseDigest(%q): %q, %v", s, d, err)
			}
			return
		}
		path := BlobPath(d)
		if string(d) != s || path != "blobs/"+strings.Replace(s, ":", "/", 1) || !filepath.IsLocal(path) || d.Validate() != nil {
			t.Fatalf("ParseDigest(%q): %q, path %q, %v", s, d, path, d.Validate())
		}
	})
}

func BenchmarkParseDigest(b *testing.B) {
	text := "sha256:" + hexA
	for b.Loop() {
		if _, err := ParseDigest(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDigest(b *testing.B) {
	blob := make([]byte, 1<<20)
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		digest.SHA256.FromBytes(blob)
	}
}
