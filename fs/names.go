package fs

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"irfs/layout"
)

// tagName is a tag as a file name: `/`, `%`, control bytes, and the names `.`
// and `..` are percent-encoded. ok is false for one that no file name can hold.
func tagName(tag string) (name string, ok bool) {
	var b strings.Builder
	for i := range len(tag) {
		c := tag[i]
		if c == '/' || c == '%' || c < ' ' || c == 0x7f || c == '.' && (tag == "." || tag == "..") {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String(), b.Len() > 0 && b.Len() <= layout.MaxName
}

// tagOf is the inverse of tagName. Only the one spelling that tagName gives
// is a tag's name.
func tagOf(name string) (tag string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c == '%' {
			if i+2 >= len(name) {
				return "", false
			}
			if _, err := fmt.Sscanf(name[i+1:i+3], "%02X", &c); err != nil {
				return "", false
			}
			i += 2
		}
		b.WriteByte(c)
	}
	again, ok := tagName(b.String())
	return b.String(), ok && again == name
}

// digestName is a digest as a file name: sha256-<hex>.
func digestName(d digest.Digest) string {
	return d.Algorithm().String() + "-" + d.Encoded()
}

// digestOf reads sha256-<hex> and sha256:<hex>.
func digestOf(name string) (digest.Digest, bool) {
	if i := strings.IndexAny(name, "-:"); i >= 0 {
		name = name[:i] + ":" + name[i+1:]
	}
	d, err := layout.ParseDigest(name)
	return d, err == nil
}
