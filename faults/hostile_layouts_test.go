package faults

import (
	"bytes"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
	"irfs/sign"
)

// A badLayout is one that must not pass. Its tag x is a properly signed image, verified but for one thing.
type badLayout struct {
	row    int // of the list of hostile input
	name   string
	make   func(f *forge)
	word   string        // what verify says
	errno  syscall.Errno // of signing it; 0 where that would be allowed
	says   string        // a piece of the reason, and of what the log says of signing
	full   string        // what verify-full says, if not word
	broken bool          // index.json itself is, so that there is no image to look at
	within time.Duration // how long reading its word may take, if there is a promise

	app string
}

func (r badLayout) title() string { return fmt.Sprintf("%02d %s", r.row, r.name) }

// A forge makes a layout in which one thing is wrong, and all that hangs on that, digests, sizes
// and signatures, is right.
type forge struct {
	*sample.Layout
	t     *testing.T
	stage *stage
	dir   string        // of the app
	image v1.Descriptor // a good one, signed
	plain v1.Descriptor // the same, not signed

	vendor, ca *sign.PrivateKey
}

func newForge(t *testing.T, s *stage, app string) *forge {
	t.Helper()
	f := &forge{Layout: sample.New(), t: t, stage: s, dir: filepath.Join(s.registry, app)}
	f.vendor, f.ca = privateKey(t, "vendor.prv"), privateKey(t, "root-ca.prv")
	f.plain = f.Image(sample.Linux("amd64"), sample.Gzip("etc/motd", "hello\n"), sample.Plain("bin/", "", "bin/sh", "#!"))
	f.image = f.signed(f.plain)
	return f
}

func privateKey(t *testing.T, name string) *sign.PrivateKey {
	t.Helper()
	text, err := os.ReadFile(key(name))
	worked(t, err)
	k, err := sign.ParsePrivateKey(text)
	worked(t, err)
	return k
}

func (f *forge) manifest(d v1.Descriptor) (m v1.Manifest) {
	worked(f.t, json.Unmarshal(f.Bytes(d), &m))
	return m
}

// signed adds an image like d, whose chain of trust is right whatever its config is.
func (f *forge) signed(d v1.Descriptor) v1.Descriptor {
	m := f.manifest(d)
	pub := f.vendor.Public().DER()
	signature, err1 := f.vendor.Sign(f.Bytes(m.Config))
	certificate, err2 := f.ca.Sign(pub)
	worked(f.t, err1)
	worked(f.t, err2)
	m.Annotations = map[string]string{
		sign.SignatureAnnotation:   hex.EncodeToString(signature),
		sign.VendorPubAnnotation:   hex.EncodeToString(pub),
		sign.CertificateAnnotation: hex.EncodeToString(certificate),
	}
	now := f.Manifest(m)
	now.Platform = d.Platform
	return now
}

// withManifest adds an image whose manifest was changed, under the chain of trust that it had.
func (f *forge) withManifest(change func(m *v1.Manifest)) v1.Descriptor {
	m := f.manifest(f.image)
	change(&m)
	return f.Manifest(m)
}

// withConfig adds an image with another config, properly signed.
func (f *forge) withConfig(config []byte) v1.Descriptor {
	m := f.manifest(f.image)
	m.Config = f.Blob(m.Config.MediaType, config)
	return f.signed(f.Manifest(m))
}

func (f *forge) write() { worked(f.t, f.WriteDir(f.dir)) }

func (f *forge) asItIs() {
	f.Tag("x", f.image)
	f.write()
}

func (f *forge) unsigned() {
	f.Tag("x", f.plain)
	f.write()
}

// blob is where a blob of the app lies.
func (f *forge) blob(d v1.Descriptor) string { return filepath.Join(f.dir, sample.Path(d.Digest)) }

// An edit changes the text of a document. It fails the test if it changes nothing.
type edit func(text string) string

// member puts a member before all others of the document.
func member(text string) edit {
	return func(doc string) string { return strings.Replace(doc, "{", "{"+text+",", 1) }
}

// swap replaces one text, where it comes first.
func swap(old, new string) edit {
	return func(doc string) string { return strings.Replace(doc, old, new, 1) }
}

func before(text string) edit { return func(doc string) string { return text + doc } }
func after(text string) edit  { return func(doc string) string { return doc + text } }

func (f *forge) edited(text []byte, e edit) []byte {
	f.t.Helper()
	now := []byte(e(string(text)))
	if bytes.Equal(now, text) {
		f.t.Errorf("%s: an edit that changes nothing of %s", f.dir, text)
	}
	return now
}

// in makes a layout of which one document was edited: the `config`, the `manifest`, an
// `index` that holds it, or `index.json`.
func in(document string, e edit) func(f *forge) {
	return func(f *forge) {
		image := f.image
		switch document {
		case "config":
			image = f.withConfig(f.edited(f.Bytes(f.manifest(image).Config), e))
		case "manifest":
			image = f.Blob(image.MediaType, f.edited(f.Bytes(image), e))
		case "index":
			index := f.Index(image)
			image = f.Blob(index.MediaType, f.edited(f.Bytes(index), e))
		}
		f.Tag("x", image)
		files := f.Files()
		if document == "index.json" {
			files["index.json"] = f.edited(files["index.json"], e)
		}
		worked(f.t, files.WriteDir(f.dir))
	}
}

// onDisk makes a good layout, and then changes its files.
func onDisk(change func(f *forge)) func(f *forge) {
	return func(f *forge) {
		f.asItIs()
		change(f)
	}
}

// documents are where an edit may go wrong.
var documents = []string{"index.json", "index", "manifest", "config"}

// inEach makes a row of an edit to each document, all corrupt.
func inEach(row int, name, says string, errno syscall.Errno, e edit) (rows []badLayout) {
	for _, document := range documents {
		rows = append(rows, badLayout{row: row, name: name + " in " + document, make: in(document, e), word: "corrupt", errno: errno, says: says, broken: document == "index.json"})
	}
	return rows
}

const (
	aDigest   = `"digest":"sha256:`
	someHex   = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	duplicate = "there are two members of that name"
)

// sparse makes a file as large as a size, of nothing.
func (f *forge) sparse(name string, size int64) {
	worked(f.t, os.WriteFile(name, nil, 0o644))
	worked(f.t, os.Truncate(name, size))
}

func badLayouts() []badLayout {
	corrupt := func(row int, name string, errno syscall.Errno, says string, make func(f *forge)) badLayout {
		return badLayout{row: row, name: name, make: make, word: "corrupt", errno: errno, says: says}
	}
	var rows []badLayout
	add := func(more ...badLayout) { rows = append(rows, more...) }

	// 1: whichever of two members a reader takes, another one takes the other.
	add(inEach(1, "duplicate member", duplicate, syscall.EBADMSG, member(`"x":1,"x":1`))...)
	add(inEach(1, "duplicate member that nobody knows, deep", duplicate, syscall.EBADMSG, member(`"x":[{"y":1,"z":{},"y":2}]`))...)
	add(inEach(1, "duplicate by an escape", duplicate, syscall.EBADMSG, member(`"x":1,"\u0078":1`))...)
	for _, document := range documents[:3] {
		row := corrupt(1, "duplicate of what counts in "+document, syscall.EBADMSG, duplicate, in(document, member(`"schemaVersion":2`)))
		row.broken = document == "index.json"
		descriptor := corrupt(1, "duplicate in a descriptor of "+document, syscall.EBADMSG, duplicate, in(document, swap(aDigest, aDigest+someHex+`",`+aDigest)))
		descriptor.broken = row.broken
		add(row, descriptor)
	}
	add(corrupt(1, "duplicate of the signature", syscall.EBADMSG, duplicate,
		in("manifest", swap(`"annotations":{`, `"annotations":{"com.samsung.islet.image.signature":"00",`))),
		corrupt(1, "duplicate of the layers that the signature covers", syscall.EBADMSG, duplicate, in("config", member(`"rootfs":{"type":"layers","diff_ids":[]}`))))

	// 3
	add(inEach(3, "trailing bytes", "after the end of the document", syscall.EBADMSG, after("{}"))...)
	add(inEach(3, "a trailing NUL", "after the end of the document", syscall.EBADMSG, after("\x00"))...)
	add(inEach(3, "byte order mark", "byte order mark", syscall.EBADMSG, before("\ufeff"))...)
	add(inEach(3, "invalid UTF-8", "invalid UTF-8", syscall.EBADMSG, member("\"x\":\"\xff\""))...)
	add(inEach(3, "surrogate in UTF-8", "invalid UTF-8", syscall.EBADMSG, member("\"x\":\"\xed\xa0\x80\""))...)
	add(inEach(3, "lone surrogate", "surrogate", syscall.EBADMSG, member(`"x":"\ud800"`))...)
	add(inEach(3, "nested 65 deep", "nested more than 64 deep", syscall.EFBIG, member(`"x":`+strings.Repeat("[", 64)+strings.Repeat("]", 64)))...)
	add(inEach(3, "nested a million deep", "nested more than 64 deep", syscall.EFBIG, member(`"x":`+strings.Repeat("[", 1e6)+strings.Repeat("]", 1e6)))...)

	// 4: CVE-2021-41190.
	add(corrupt(4, "manifests in a manifest", syscall.EBADMSG, "manifests belongs in an index", in("manifest", member(`"manifests":[]`))),
		corrupt(4, "layers in an index", syscall.EBADMSG, "layers belongs in a manifest", in("index", member(`"layers":[]`))),
		corrupt(4, "config in an index", syscall.EBADMSG, "config belongs in a manifest", in("index", member(`"config":{}`))),
		badLayout{row: 4, name: "layers in index.json", make: in("index.json", member(`"layers":[]`)), word: "corrupt", says: "layers belongs in a manifest", broken: true},
		badLayout{row: 4, name: "config in index.json", make: in("index.json", member(`"config":{}`)), word: "corrupt", says: "config belongs in a manifest", broken: true},
		corrupt(4, "mediaType of a manifest is another", syscall.EBADMSG, "not that of the descriptor", in("manifest", swap(v1.MediaTypeImageManifest, layout.MediaTypeDockerManifest))),
		corrupt(4, "mediaType of an index is another", syscall.EBADMSG, "not that of the descriptor", in("index", swap(v1.MediaTypeImageIndex, layout.MediaTypeDockerList))),
		corrupt(4, "image called an index", syscall.EBADMSG, "", func(f *forge) {
			f.Untyped = true
			d := f.signed(f.plain)
			d.MediaType = v1.MediaTypeImageIndex
			f.Tag("x", d)
			f.write()
		}),
		corrupt(4, "index called an image", syscall.EBADMSG, "", func(f *forge) {
			f.Untyped = true
			d := f.Index(f.image)
			d.MediaType = v1.MediaTypeImageManifest
			f.Tag("x", d)
			f.write()
		}),
		corrupt(4, "called an image and an index", syscall.EBADMSG, "descriptors disagree", func(f *forge) {
			f.Tag("x", f.image)
			f.image.MediaType = v1.MediaTypeImageIndex
			f.Tag("y", f.image)
			f.write()
		}))

	// 5
	for name, to := range map[string][2]string{
		"negative": {`"size":-`, "not a whole number"}, "2^63": {`"size":9223372036854775808,"x":`, "too large"}, "over 2^64": {`"size":18446744073709551617,"x":`, "too large"},
		"1e3": {`"size":1e3,"x":`, "not a whole number"}, "1.0": {`"size":1.0,"x":`, "not a whole number"}, "text": {`"size":"1","x":`, "size"},
	} {
		for _, document := range documents[:3] {
			row := corrupt(5, "size "+name+" in "+document, syscall.EBADMSG, to[1], in(document, swap(`"size":`, to[0])))
			row.broken = document == "index.json"
			add(row)
		}
	}
	add(corrupt(5, "size in index.json one too small", syscall.EBADMSG, "bytes, and not the", func(f *forge) {
		f.image.Size--
		f.asItIs()
	}),
		corrupt(5, "size in index one too large", syscall.EBADMSG, "bytes, and not the", func(f *forge) {
			f.image.Size++
			f.Tag("x", f.Index(f.image))
			f.write()
		}),
		corrupt(5, "size of the config", syscall.EBADMSG, "bytes, and not the", func(f *forge) {
			f.Tag("x", f.withManifest(func(m *v1.Manifest) { m.Config.Size++ }))
			f.write()
		}),
		badLayout{row: 5, name: "size of a layer", word: "verified", full: "corrupt", says: "bytes, and not the", make: func(f *forge) {
			f.Tag("x", f.withManifest(func(m *v1.Manifest) { m.Layers[0].Size++ }))
			f.write()
		}},
		corrupt(5, "manifest of 1 TiB is not hashed", syscall.EBADMSG, "1099511627776 bytes, and not the", onDisk(func(f *forge) { f.sparse(f.blob(f.image), 1<<40) })),
		corrupt(5, "config of 1 TiB is not hashed", syscall.EBADMSG, "1099511627776 bytes, and not the", onDisk(func(f *forge) { f.sparse(f.blob(f.manifest(f.image).Config), 1<<40) })),
		badLayout{row: 5, name: "layer of 1 TiB is not hashed", word: "verified", full: "corrupt", says: "1099511627776 bytes, and not the",
			make: onDisk(func(f *forge) { f.sparse(f.blob(f.manifest(f.image).Layers[1]), 1<<40) })})

	// 6
	add(corrupt(6, "manifest over 4 MiB", syscall.EFBIG, "over the limit of 4194304", in("manifest", member(`"x":"`+strings.Repeat("x", layout.MaxManifest)+`"`))),
		corrupt(6, "config over 8 MiB", syscall.EFBIG, "over the limit of 8388608", in("config", member(`"x":"`+strings.Repeat("x", layout.MaxConfig)+`"`))),
		corrupt(6, "index over 64 MiB", syscall.EFBIG, "over the limit of 67108864", func(f *forge) {
			d := f.Index(f.image)
			d.Size = layout.MaxIndex + 1
			f.Tag("x", d)
			f.write()
			f.sparse(f.blob(d), d.Size)
		}),
		badLayout{row: 6, name: "index.json over 64 MiB", word: "corrupt", says: "over the limit of 67108864", broken: true,
			make: onDisk(func(f *forge) { f.sparse(f.dir+"/index.json", layout.MaxIndex+1) })},
		badLayout{row: 6, name: "index.json of 1 TiB", word: "corrupt", says: "over the limit of 67108864", broken: true,
			make: onDisk(func(f *forge) { f.sparse(f.dir+"/index.json", 1<<40) })},
		corrupt(6, "manifest of 1 TiB, as its descriptor says", syscall.EFBIG, "over the limit of 4194304", func(f *forge) {
			f.image.Size = 1 << 40
			f.asItIs()
			f.sparse(f.blob(f.image), 1<<40)
		}),
		corrupt(6, "config of 1 TiB, as its descriptor says", syscall.EFBIG, "over the limit of 8388608", func(f *forge) {
			d := f.withManifest(func(m *v1.Manifest) { m.Config.Size = 1 << 40 })
			f.Tag("x", d)
			f.write()
			f.sparse(f.blob(f.manifest(d).Config), 1<<40)
		}))

	// 7
	deep := corrupt(7, "twenty levels of index, each naming the next ten times", syscall.EFBIG, "at most 8 lie inside each other", func(f *forge) { f.Tag("x", f.levels(20)); f.write() })
	deep.within = time.Second
	cycle := corrupt(7, "indexes that name each other", 0, "", func(f *forge) {
		// No two can have each other's digest; but their files can lie.
		a, b := f.Index(f.image), f.Index(f.image, f.image)
		f.Tag("x", f.Index(a, b))
		f.write()
		worked(f.t, os.WriteFile(f.blob(a), f.Bytes(f.Index(b)), 0o644))
		worked(f.t, os.WriteFile(f.blob(b), f.Bytes(f.Index(a)), 0o644))
	})
	cycle.errno, cycle.says, cycle.within = syscall.EBADMSG, "bytes", time.Second
	add(deep, cycle)

	// 8
	add(corrupt(8, "the same tag twice", syscall.EBADMSG, `the tag "x" is given twice`, func(f *forge) {
		f.Tag("x", f.image)
		f.Tag("x", f.signed(f.Image(sample.Linux("arm64"))))
		f.write()
	}))

	// 9
	add(corrupt(9, "inline data of a manifest in index.json", syscall.EBADMSG, "the data inlined in its descriptor is not the blob's", func(f *forge) {
		f.image.Data = append(bytes.Clone(f.Bytes(f.image)), ' ')
		f.asItIs()
	}),
		corrupt(9, "inline data of a manifest in an index", syscall.EBADMSG, "the data inlined in its descriptor is not the blob's", func(f *forge) {
			f.image.Data = []byte("{}")
			f.Tag("x", f.Index(f.image))
			f.write()
		}),
		corrupt(9, "inline data of a config", syscall.EBADMSG, "the data inlined in its descriptor is not the blob's", func(f *forge) {
			f.Tag("x", f.withManifest(func(m *v1.Manifest) { m.Config.Data = []byte("{}") }))
			f.write()
		}),
		corrupt(9, "inline data of no bytes", syscall.EBADMSG, "the data inlined in its descriptor is not the blob's", in("index.json", swap(`"digest":`, `"data":"","digest":`))),
		corrupt(9, "inline data of a blob that is not there", syscall.EBADMSG, "not in the layout", func(f *forge) {
			d := f.Inline(f.image)
			f.Tag("x", d)
			f.write()
			worked(f.t, os.Remove(f.blob(d)))
		}))

	// 10
	for name, to := range map[string]string{
		"..": "../../../outside/file", ".. and slashes for length": strings.Repeat("../", 19) + "outside", "a slash": "/" + someHex[1:], "an absolute path": "/etc/passwd", "NUL": `\u0000` + someHex[1:],
		"upper-case hex": strings.ToUpper(someHex), "63 digits": someHex[1:], "65 digits": someHex + "0", "128 digits": someHex + someHex, "no digits": "",
		"a letter that is no digit": "g" + someHex[1:], "another colon": "sha256:" + someHex,
	} {
		for _, document := range documents[:3] {
			row := corrupt(10, "digest with "+name+" in "+document, syscall.EBADMSG, "is not a digest", in(document, func(text string) string {
				at := strings.Index(text, aDigest) + len(aDigest)
				return text[:at] + to + text[at+64:]
			}))
			row.broken = document == "index.json"
			add(row)
		}
	}
	for name, to := range map[string]string{"an unknown algorithm": `"digest":"md5:`, "sha384": `"digest":"sha384:`, "an algorithm that is a path": `"digest":"../sha256:`, "no algorithm": `"digest":"`, "a capital letter": `"digest":"SHA256:`} {
		for _, document := range documents[:3] {
			row := corrupt(10, "digest with "+name+" in "+document, syscall.EBADMSG, "is not a digest", in(document, swap(aDigest, to)))
			row.broken = document == "index.json"
			add(row)
		}
	}
	add(corrupt(10, "digest of a layer with ..", syscall.EBADMSG, "layers[0].digest", in("manifest", func(text string) string {
		at := strings.Index(text, `"layers":`)
		return text[:at] + strings.Replace(text[at:], aDigest, aDigest+"../", 1)
	})),
		corrupt(10, "sha256 digits called sha512", syscall.EBADMSG, "is not a digest", in("manifest", swap(aDigest, `"digest":"sha512:`))))

	// 11, of blobs; what stands in the place of index.json, oci-layout and the app is in oddApps.
	for kind, put := range oddFiles {
		says := map[string]string{"symlink": "symbolic link", "a chain of symlinks": "symbolic link"}[kind]
		for part, of := range map[string]func(f *forge) v1.Descriptor{
			"the manifest": func(f *forge) v1.Descriptor { return f.image },
			"the config":   func(f *forge) v1.Descriptor { return f.manifest(f.image).Config },
			"a layer":      func(f *forge) v1.Descriptor { return f.manifest(f.image).Layers[0] },
		} {
			row := corrupt(11, kind+" for "+part, syscall.EBADMSG, says, onDisk(func(f *forge) { f.instead(f.blob(of(f)), put) }))
			if says == "" {
				row.says = "not a regular file"
			}
			if part == "a layer" {
				row.word, row.full, row.errno = "verified", "corrupt", 0
			}
			add(row)
		}
		add(corrupt(11, kind+" for blobs", syscall.EBADMSG, "", onDisk(func(f *forge) { f.instead(f.dir+"/blobs", put) })),
			corrupt(11, kind+" for blobs/sha256", syscall.EBADMSG, "", onDisk(func(f *forge) { f.instead(f.dir+"/blobs/sha256", put) })),
			corrupt(11, kind+" for an index", syscall.EBADMSG, "", func(f *forge) {
				index := f.Index(f.image)
				f.Tag("x", index)
				f.write()
				f.instead(f.blob(index), put)
			}),
			badLayout{row: 11, name: kind + " for index.json", word: "corrupt", says: "index.json", broken: true, make: onDisk(func(f *forge) { f.instead(f.dir+"/index.json", put) })})
	}
	add(badLayout{row: 11, name: "no index.json", word: "corrupt", says: "index.json: not there", broken: true, make: onDisk(func(f *forge) { worked(f.t, os.Remove(f.dir+"/index.json")) })})

	// 12: to sign the bytes that are there would launder them.
	flip := func(of func(f *forge) v1.Descriptor) func(f *forge) {
		return onDisk(func(f *forge) {
			text := bytes.Clone(f.Bytes(of(f)))
			text[len(text)/2] ^= 1
			worked(f.t, os.WriteFile(f.blob(of(f)), text, 0o644))
		})
	}
	add(corrupt(12, "one bit of the manifest", syscall.EBADMSG, "do not have this digest", flip(func(f *forge) v1.Descriptor { return f.image })),
		corrupt(12, "one bit of the config", syscall.EBADMSG, "do not have this digest", flip(func(f *forge) v1.Descriptor { return f.manifest(f.image).Config })),
		badLayout{row: 12, name: "one bit of a layer", word: "verified", full: "corrupt", says: "digest", make: flip(func(f *forge) v1.Descriptor { return f.manifest(f.image).Layers[1] })},
		corrupt(12, "another image's manifest", syscall.EBADMSG, "", onDisk(func(f *forge) {
			other := f.signed(f.Image(sample.Linux("arm64"), sample.Gzip("etc/motd", "hello\n"), sample.Plain("bin/", "", "bin/sh", "#!")))
			worked(f.t, os.WriteFile(f.blob(f.image), f.Bytes(other), 0o644))
		})),
		corrupt(12, "one bit of an index", syscall.EBADMSG, "do not have this digest", func(f *forge) {
			d := f.Index(f.image)
			f.Tag("x", d)
			f.write()
			worked(f.t, os.WriteFile(f.blob(d), bytes.Replace(f.Bytes(d), []byte(`"amd64"`), []byte(`"arm64"`), 1), 0o644))
		}),
		corrupt(12, "the manifest is not there", syscall.EBADMSG, "not in the layout", onDisk(func(f *forge) { worked(f.t, os.Remove(f.blob(f.image))) })),
		corrupt(12, "the config is not there", syscall.EBADMSG, "not in the layout", onDisk(func(f *forge) { worked(f.t, os.Remove(f.blob(f.manifest(f.image).Config))) })))

	// 14: a real image cannot hide by what is written on it.
	for name, hide := range map[string]func(d v1.Descriptor) v1.Descriptor{
		"the annotation": func(d v1.Descriptor) v1.Descriptor {
			return sample.Annotate(d, "vnd.docker.reference.type", "attestation-manifest")
		},
		"the platform": func(d v1.Descriptor) v1.Descriptor {
			d.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
			return d
		},
		"the annotation and the platform": func(d v1.Descriptor) v1.Descriptor {
			d.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
			return sample.Annotate(d, "vnd.docker.reference.type", "attestation-manifest")
		},
	} {
		add(badLayout{row: 14, name: "an image that calls itself an attestation by " + name, word: "unsigned", says: "not signed", make: func(f *forge) {
			f.Tag("x", f.Index(f.image, hide(f.Image(sample.Linux("arm64"), sample.Gzip("a", "b")))))
			f.write()
		}})
	}

	add(badChains()...)

	// 20: whoever signs that certifies a key.
	add(corrupt(20, "config is no JSON", syscall.EBADMSG, "config", func(f *forge) { f.Tag("x", f.withConfig([]byte("hello"))); f.write() }),
		corrupt(20, "config of no bytes", syscall.EBADMSG, "config", func(f *forge) { f.Tag("x", f.withConfig(nil)); f.write() }),
		corrupt(20, "config is empty", syscall.EBADMSG, "rootfs.type", func(f *forge) { f.Tag("x", f.withConfig([]byte("{}"))); f.write() }),
		corrupt(20, "config is a public key", syscall.EBADMSG, "found a number, want an object", func(f *forge) { f.Tag("x", f.withConfig(f.vendor.Public().DER())); f.write() }),
		corrupt(20, "config is a public key in PEM", syscall.EBADMSG, "config", func(f *forge) {
			f.Tag("x", f.withConfig([]byte("-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n")))
			f.write()
		}),
		corrupt(20, "config is a public key, and JSON after it", syscall.EBADMSG, "config", func(f *forge) {
			f.Tag("x", f.withConfig(append(f.vendor.Public().DER(), f.Bytes(f.manifest(f.image).Config)...)))
			f.write()
		}),
		corrupt(20, "config is an array", syscall.EBADMSG, "want an object", func(f *forge) { f.Tag("x", f.withConfig([]byte("[]"))); f.write() }))

	// 21
	more := func(row badLayout, change func(f *forge, m *v1.Manifest)) badLayout {
		row.row, row.make = 21, func(f *forge) {
			f.Tag("x", f.withManifest(func(m *v1.Manifest) { change(f, m) }))
			f.write()
		}
		return row
	}
	add(more(badLayout{name: "layers exchanged", word: "verified", full: "corrupt", says: "diff_id"}, func(f *forge, m *v1.Manifest) { m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0] }),
		more(badLayout{name: "another layer", word: "verified", full: "corrupt", says: "diff_id"}, func(f *forge, m *v1.Manifest) {
			m.Layers[0] = f.Blob(m.Layers[0].MediaType, sample.Gzip("etc/motd", "evil\n").Blob())
		}),
		more(badLayout{name: "a layer with more after its end", word: "verified", full: "corrupt", says: "diff_id"}, func(f *forge, m *v1.Manifest) {
			m.Layers[0] = f.Blob(m.Layers[0].MediaType, append(bytes.Clone(f.Bytes(m.Layers[0])), sample.Gzip("etc/motd", "evil\n").Blob()...))
		}),
		more(badLayout{name: "a layer of a type that nobody knows", word: "verified", full: "corrupt", says: "cannot unpack its media type"}, func(_ *forge, m *v1.Manifest) { m.Layers[0].MediaType = "application/x-secret" }),
		more(badLayout{name: "a layer fewer", word: "corrupt", errno: syscall.EBADMSG, says: "1 layers, the config 2 diff_ids"}, func(_ *forge, m *v1.Manifest) { m.Layers = m.Layers[:1] }),
		more(badLayout{name: "no layer", word: "corrupt", errno: syscall.EBADMSG, says: "0 layers, the config 2 diff_ids"}, func(_ *forge, m *v1.Manifest) { m.Layers = []v1.Descriptor{} }),
		more(badLayout{name: "a layer more", word: "corrupt", errno: syscall.EBADMSG, says: "3 layers, the config 2 diff_ids"}, func(_ *forge, m *v1.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) }),
		corrupt(21, "rootfs of another type", syscall.EBADMSG, `rootfs.type is "bundle"`, in("config", swap(`"type":"layers"`, `"type":"bundle"`))))

	add(readTwoWays()...)
	add(missingRows()...)
	return rows
}

// levels are so many indexes in one another, each naming the next one ten times.
func (f *forge) levels(n int) v1.Descriptor {
	d := f.image
	for range n {
		d = f.Index(d, d, d, d, d, d, d, d, d, d)
	}
	return d
}

// oddFiles put something else in the place of a file or directory, which lies outside now, whole: who follows
// a link there finds that all is well.
var oddFiles = map[string]func(was, name string) error{
	"symlink": func(was, name string) error { return os.Symlink(was, name) },
	"a chain of symlinks": func(was, name string) error {
		if err := os.Symlink(was, was+".link"); err != nil {
			return err
		}
		return os.Symlink(was+".link", name)
	},
	"FIFO":      func(_, name string) error { return syscall.Mkfifo(name, 0o644) },
	"directory": func(_, name string) error { return os.Mkdir(name, 0o755) },
	"device":    func(_, name string) error { return syscall.Mknod(name, syscall.S_IFCHR|0o644, 1<<8|5) }, // /dev/zero
	"socket":    func(_, name string) error { return syscall.Mknod(name, syscall.S_IFSOCK|0o644, 0) },
}

func (f *forge) instead(name string, put func(was, name string) error) {
	was := fmt.Sprintf("%s/%s-%s", f.stage.outside, filepath.Base(f.dir), filepath.Base(name))
	worked(f.t, os.Rename(name, was))
	worked(f.t, put(was, name))
}

// badChains are signatures, keys and certificates that are malformed, in an image that is whole.
func badChains() (rows []badLayout) {
	with := func(row int, name, says string, change func(f *forge, a map[string]string)) {
		rows = append(rows, badLayout{row: row, name: name, word: "invalid", says: says, make: func(f *forge) {
			f.Tag("x", f.withManifest(func(m *v1.Manifest) { change(f, m.Annotations) }))
			f.write()
		}})
	}
	change := func(annotation string, to func(f *forge, was []byte) []byte) func(f *forge, a map[string]string) {
		return func(f *forge, a map[string]string) {
			was, err := hex.DecodeString(a[annotation])
			worked(f.t, err)
			a[annotation] = hex.EncodeToString(to(f, was))
		}
	}
	for _, form := range badPublicKeys() {
		with(18, "vendor key: "+form.name, form.says, change(sign.VendorPubAnnotation, func(f *forge, was []byte) []byte { return form.make(f.t, f.vendor) }))
	}
	for _, form := range badSignatures() {
		with(19, "signature: "+form.name, form.says, change(sign.SignatureAnnotation, func(_ *forge, was []byte) []byte { return form.make(was) }))
		with(19, "certificate: "+form.name, form.says, change(sign.CertificateAnnotation, func(_ *forge, was []byte) []byte { return form.make(was) }))
	}
	for _, annotation := range []string{sign.SignatureAnnotation, sign.VendorPubAnnotation, sign.CertificateAnnotation} {
		with(19, "without "+annotation, "incomplete", func(_ *forge, a map[string]string) { delete(a, annotation) })
		with(19, "no hex in "+annotation, "", func(_ *forge, a map[string]string) { a[annotation] = "xy" + a[annotation][2:] })
		with(19, "half a byte in "+annotation, "", func(_ *forge, a map[string]string) { a[annotation] = a[annotation][1:] })
	}
	with(19, "signature of another config", "signature", func(f *forge, a map[string]string) {
		signature, err := f.vendor.Sign([]byte("another"))
		worked(f.t, err)
		a[sign.SignatureAnnotation] = hex.EncodeToString(signature)
	})
	rows = append(rows, badLayout{row: 19, name: "certificate by nobody that is known", word: "untrusted", says: "is not certified by", make: func(f *forge) {
		other, err := sign.GenerateKey()
		worked(f.t, err)
		certificate, err := other.Sign(f.vendor.Public().DER())
		worked(f.t, err)
		f.Tag("x", f.withManifest(func(m *v1.Manifest) { m.Annotations[sign.CertificateAnnotation] = hex.EncodeToString(certificate) }))
		f.write()
	}})
	return rows
}

// twin is the other signature that verifies whenever one does, (r, n-s).
func twin(t testing.TB, signature []byte) []byte {
	t.Helper()
	var v struct{ R, S *big.Int }
	_, err := asn1.Unmarshal(signature, &v)
	worked(t, err)
	v.S.Sub(elliptic.P384().Params().N, v.S)
	text, err := asn1.Marshal(v)
	worked(t, err)
	return text
}

// check attacks: every way of asking for the image's word gives the right one, and of signing it the right refusal.
func (r badLayout) check(t *testing.T, s *stage) {
	if r.broken {
		r.checkBroken(t, s)
		return
	}
	full := r.full
	if full == "" {
		full = r.word
	}
	at := r.app + "/tags/x/"
	start := time.Now()
	word := s.read(t, at+"verify")
	if took := time.Since(start); r.within > 0 && took > slowly(r.within) {
		t.Errorf("verify took %v, over %v", took, r.within)
	}
	if word != r.word+"\n" {
		t.Errorf("verify: %q; want %s\n%s", word, r.word, s.read(t, at+"reason"))
	}
	if word := s.read(t, at+"verify-full"); word != full+"\n" {
		t.Errorf("verify-full: %q; want %s\n%s", word, full, s.read(t, at+"reason"))
	}
	if reason := s.read(t, at+"reason"); !strings.Contains(reason, r.says) {
		t.Errorf("the reason is %q; want %q", reason, r.says)
	}
	out, code, said := irfs("verify-image", "-r", s.registry, "-a", r.app, "-d", "x", "-c", key("root-ca.pub"), "--full")
	if out != full+"\n" || code != codes[full] || !strings.Contains(said, r.says) {
		t.Errorf("verify-image: %q, exit code %d, %q; want %s, %d, and %q", out, code, said, full, codes[full], r.says)
	}
	if full != r.word {
		wantCode(t, codes[r.word], "", "verify-image", "-r", s.registry, "-a", r.app, "-d", "x", "-c", key("root-ca.pub"))
	}
	if r.errno == 0 {
		return
	}
	if errno := s.sign(r.app, key("vendor.prv")); errno != r.errno {
		t.Errorf("sign: %v; want %v: %s", errno, r.errno, s.logged(t, r.app+"/tags/x"))
	}
	if logged := s.logged(t, r.app+"/tags/x"); logged == "" || !strings.Contains(logged, r.says) {
		t.Errorf("the log says %q of signing; want %q", logged, r.says)
	}
	wantCode(t, 1, r.says, append([]string{"sign-image", "-r", s.registry, "-a", r.app, "-d", "x"}, signing()...)...)
	if r.row == 20 { // nor by who has the CA's key
		if errno := s.sign(r.app, "-v "+key("vendor.prv")+" -x "+key("root-ca.prv")); errno != r.errno {
			t.Errorf("sign with -x: %v; want %v", errno, r.errno)
		}
	}
}

// codes are the exit codes of verify-image.
var codes = map[string]int{"verified": 0, "unsigned": 3, "untrusted": 4, "invalid": 5, "corrupt": 6, "unknown": 7}

// checkBroken is check for an app whose index.json cannot be used: it is there, and says why.
func (r badLayout) checkBroken(t *testing.T, s *stage) {
	if why := s.read(t, r.app+"/.irfs/check"); !strings.Contains(why, r.says) {
		t.Errorf(".irfs/check is %q; want %q", why, r.says)
	}
	if names, err := os.ReadDir(filepath.Join(s.mnt, r.app)); err != nil || len(names) == 0 {
		t.Errorf("it is not listed: %v", err)
	}
	if errno := s.sign(r.app, key("vendor.prv")); errno == 0 {
		t.Error("it was signed")
	}
	out, code, said := irfs("verify-image", "-r", s.registry, "-a", r.app, "-d", "x", "-c", key("root-ca.pub"))
	if out != "corrupt\n" || code != 6 || !strings.Contains(said, r.says) {
		t.Errorf("verify-image: %q, exit code %d, %q; want corrupt, 6, and %q", out, code, said, r.says)
	}
	wantCode(t, 1, r.says, append([]string{"sign-image", "-r", s.registry, "-a", r.app, "-d", "x"}, signing()...)...)
}

// everyAppHasItsWord: irfs status finds every one of them, each with its word.
func everyAppHasItsWord(t *testing.T, s *stage, rows []badLayout) {
	out, _, said := irfs("status", s.mnt)
	worst := map[string]string{}
	for line := range strings.Lines(out) {
		fields := strings.Split(line, "\t")
		if len(fields) < 3 || codes[fields[0]] < codes[worst[fields[1]]] {
			continue
		}
		worst[fields[1]] = fields[0]
	}
	for _, row := range rows {
		if worst[row.app] != row.word {
			t.Errorf("irfs status: %s (%s) is %q; want %s", row.app, row.title(), worst[row.app], row.word)
		}
	}
	if worst["good"] != "verified" {
		t.Errorf("irfs status: good is %q: %s", worst["good"], said)
	}
}

// shaOf names bytes as a layout does.
func shaOf(text []byte) digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, fmt.Sprintf("%x", sha256.Sum256(text)))
}
