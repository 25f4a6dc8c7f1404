package layout

import (
	// The algorithms of OCI image-spec v1.1, descriptor.md, "Registered algorithms": go-digest links none of them.
	_ "crypto/sha256"
	_ "crypto/sha512"

	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
)

// ErrDigest is the kind of error that [ParseDigest] gives.
var ErrDigest = errors.New("malformed digest")

// ParseDigest returns the digest that s spells: sha256: and 64, or sha512: and 128 lower-case hex digits, and nothing else (OCI image-spec
// v1.1, descriptor.md, "Digests"). What it returns is safe in a path (CVE-2024-3727). An error is an [ErrDigest].
func ParseDigest(s string) (digest.Digest, error) {
	algorithm, hex, _ := strings.Cut(s, ":")
	var length int
	switch digest.Algorithm(algorithm) {
	case digest.SHA256:
		length = 64
	case digest.SHA512:
		length = 128
	default:
		return "", &fault{fmt.Errorf("%q is not a digest: its algorithm must be sha256 or sha512", Short(s)), []error{ErrDigest}}
	}
	if len(hex) != length || !isHex(hex) {
		return "", &fault{fmt.Errorf("%q is not a digest: after %s: there must be %d lower-case hex digits", Short(s), algorithm, length), []error{ErrDigest}}
	}
	return digest.Digest(s), nil
}

// isHex says whether there are no other characters than lower-case hex digits.
func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// BlobPath is the path of a blob in its layout, blobs/<algorithm>/<hex> (OCI image-spec v1.1, image-layout.md). d must come from [ParseDigest].
func BlobPath(d digest.Digest) string {
	return path.Join("blobs", d.Algorithm().String(), d.Encoded())
}
