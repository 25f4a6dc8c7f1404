package fs

import (
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"

	"irfs/layout"
	"irfs/sign"
)

// tagName is a tag as a file name: `/`, `%`, control bytes, and the names `.`
// and `..` are percent-encoded. ok is false for one that no file name can hold.
func tagName(tag string) (name string, ok bool) {
	if len(tag) > layout.MaxName {
		return "", false
	}
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

// Field is a name as one field of a line: what [Line] encodes, and `%`, is percent-encoded, so that no tag or app can look like more
// fields or lines, and [NameOf] gives the name again.
func Field(name string) string { return escape(name, true) }

// NameOf gives the name of which field is the [Field].
func NameOf(field string) (string, error) { return url.PathUnescape(field) }

// Line is text that holds names, as one line: control characters, whatever else ends a line or turns its direction, and what is no UTF-8, are percent-encoded.
func Line(text string) string { return escape(text, false) }

func escape(text string, percent bool) string {
	if !strings.ContainsFunc(text, func(c rune) bool { return sign.EndsLine(c) || c == '%' && percent || c == utf8.RuneError }) {
		return text
	}
	var b strings.Builder
	for i, c := range text {
		_, n := utf8.DecodeRuneInString(text[i:])
		if sign.EndsLine(c) || c == '%' && percent || c == utf8.RuneError && n == 1 {
			for _, x := range []byte(text[i : i+n]) {
				fmt.Fprintf(&b, "%%%02X", x)
			}
			continue
		}
		b.WriteString(text[i : i+n])
	}
	return b.String()
}

// AppOf is the app that an archive of that file name becomes: `nginx` for
// nginx.tar, nginx.tar.gz, nginx.tgz, nginx.oci, nginx.oci.tar.zst.
func AppOf(name string) string {
	if rest := cutAny(name, ".tgz", ".tbz", ".tbz2", ".txz", ".tzst"); rest != name {
		return cutAny(rest, ".oci", ".docker")
	}
	if rest := cutAny(name, ".gz", ".zst", ".zstd", ".xz", ".bz2"); cutAny(rest, ".tar", ".oci") != rest {
		name = rest
	}
	return cutAny(cutAny(name, ".tar"), ".oci", ".docker")
}

// cutAny cuts the first of the endings that name has, if something is left then.
func cutAny(name string, endings ...string) string {
	for _, ending := range endings {
		if rest, ok := strings.CutSuffix(name, ending); ok && rest != "" {
			return rest
		}
	}
	return name
}
