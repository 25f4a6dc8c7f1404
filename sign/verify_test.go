package sign_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"irfs/layout"
	"irfs/layout/sample"
	"irfs/sign"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The people of these tests. Two vendors, two root CAs.
var vendor, vendor2, ca, ca2 = newKey(), newKey(), newKey(), newKey()

func newKey() *sign.PrivateKey {
	k, err := sign.GenerateKey()
	if err != nil {
		panic(err)
	}
	return k
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// appOf writes a layout as the only app of a new registry. Its index.json is old, so that nobody takes it for one that is just being written.
func appOf(t testing.TB, l interface{ WriteDir(string) error }) (app *layout.App, dir string) {
	t.Helper()
	registry := t.TempDir()
	dir = filepath.Join(registry, "app")
	must(t, l.WriteDir(dir))
	old := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(dir+"/index.json", old, old))
	reg, err := layout.Open(registry)
	must(t, err)
	t.Cleanup(reg.Close)
	app, err = reg.App("app")
	must(t, err)
	return app, dir
}

func trust(keys ...*sign.PrivateKey) *sign.Trust {
	var cas []*sign.PublicKey
	for _, k := range keys {
		cas = append(cas, k.Public())
	}
	return sign.NewTrust(cas...)
}

func resolve(t testing.TB, app *layout.App, ref string) (*layout.Snapshot, layout.Entry) {
	t.Helper()
	snap, err := app.Snapshot(t.Context())
	must(t, err)
	e, err := snap.Resolve(t.Context(), ref)
	must(t, err)
	return snap, e
}

func verify(t testing.TB, v *sign.Verifier, app *layout.App, ref string, full bool) *sign.Verdict {
	t.Helper()
	snap, e := resolve(t, app, ref)
	verdict, err := v.Verify(context.Background(), app, snap, e, full)
	must(t, err)
	return verdict
}

// wantWord fails unless the verdict is that, for a reason that says the words.
func wantWord(t testing.TB, v *sign.Verdict, status sign.Status, words string) {
	t.Helper()
	if v.Status != status || !strings.Contains(v.Reason, words) {
		t.Errorf("%s, %q; want %s, %q", v.Status, v.Reason, status, words)
	}
	if !strings.Contains(v.Text(), v.Reason) && v.Kind != layout.KindIndex {
		t.Errorf("the text does not give the reason:\n%s", v.Text())
	}
}

// put says how a file of the layout in dir changes.
func put(t testing.TB, dir string, d digest.Digest, data []byte) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, sample.Path(d)), data, 0o644))
}

func manifestOf(t testing.TB, l *sample.Layout, d v1.Descriptor) v1.Manifest {
	t.Helper()
	var m v1.Manifest
	must(t, json.Unmarshal(l.Bytes(d), &m))
	return m
}

// annotations are those of an image that by has signed, and ca certified.
func annotations(t testing.TB, config []byte, by, ca *sign.PrivateKey) map[string]string {
	t.Helper()
	signature, err := by.Sign(config)
	must(t, err)
	certificate, err := ca.Sign(by.Public().DER())
	must(t, err)
	return map[string]string{
		sign.SignatureAnnotation:   hex.EncodeToString(signature),
		sign.VendorPubAnnotation:   hex.EncodeToString(by.Public().DER()),
		sign.CertificateAnnotation: hex.EncodeToString(certificate),
	}
}

// signed adds image once more, with annotations, to which change makes changes.
func signed(t testing.TB, l *sample.Layout, image v1.Descriptor, by, ca *sign.PrivateKey, change func(map[string]string)) v1.Descriptor {
	t.Helper()
	m := manifestOf(t, l, image)
	m.Annotations = annotations(t, l.Bytes(m.Config), by, ca)
	if change != nil {
		change(m.Annotations)
	}
	d := l.Manifest(m)
	d.Platform = image.Platform
	return d
}

func TestVerifyChain(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	spki, err := x509.MarshalPKIXPublicKey(&p256.PublicKey)
	must(t, err)
	signatureOf := func(r, s string) string {
		body := "02" + fmt.Sprintf("%02x", len(r)/2) + r + "02" + fmt.Sprintf("%02x", len(s)/2) + s
		return "30" + fmt.Sprintf("%02x", len(body)/2) + body
	}
	const s, p, c = sign.SignatureAnnotation, sign.VendorPubAnnotation, sign.CertificateAnnotation
	set := func(name, value string) func(map[string]string) { return func(a map[string]string) { a[name] = value } }
	edit := func(name string, to func(string) string) func(map[string]string) {
		return func(a map[string]string) { a[name] = to(a[name]) }
	}
	drop := func(names ...string) func(map[string]string) {
		return func(a map[string]string) {
			for _, name := range names {
				delete(a, name)
			}
		}
	}
	trailing := func(text string) string { return text + "00" }
	longForm := func(text string) string { return "3081" + text[2:] }
	one := trust(ca)
	inPEM, err := ca.Sign(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: vendor.Public().DER()}))
	must(t, err)
	for _, row := range []struct {
		name   string
		trust  *sign.Trust
		change func(map[string]string)
		status sign.Status
		reason string
	}{
		{"verified", one, nil, sign.Verified, "of the vendor key, by root CA " + ca.Public().Fingerprint()},
		{"verified, upper-case hex", one, edit(s, strings.ToUpper), sign.Verified, ""},
		{"verified, one of two CAs", trust(ca2, ca), nil, sign.Verified, ca.Public().Fingerprint()},
		{"untrusted, another CA", trust(ca2), nil, sign.Untrusted, "vendor " + vendor.Public().Fingerprint() + " is not certified by root CA " + ca2.Public().Fingerprint()},
		{"untrusted, none of two CAs", trust(ca2, vendor2), nil, sign.Untrusted, "is not certified by any of the 2 root CAs"},
		{"untrusted, the CA's signature of something else", one, func(a map[string]string) { a[c] = annotations(t, nil, vendor2, ca)[c] }, sign.Untrusted, "is not certified"},
		{"untrusted, the CA's signature of the key in PEM", trust(ca2, ca), set(c, hex.EncodeToString(inPEM)), sign.Untrusted, "is not certified by any of the 2 root CAs: the certificate is of the key in PEM, and has to be of its DER (irfs sign -k root-ca.prv -f vendor.pub -s vendor.pub.sig, with vendor.pub in DER)"},
		{"untrusted, another CA's signature of the key in PEM", trust(ca2), set(c, hex.EncodeToString(inPEM)), sign.Untrusted, "is not certified by root CA " + ca2.Public().Fingerprint()},
		{"unknown", trust(), nil, sign.Unknown, "no root CA is configured"},
		{"unsigned", one, drop(s, p, c), sign.Unsigned, "the image is not signed"},
		{"unsigned, without CA", trust(), drop(s, p, c), sign.Unsigned, "the image is not signed"},
		{"unsigned, other case", one, func(a map[string]string) {
			for _, name := range []string{s, p, c} {
				a[strings.ToUpper(name)] = a[name]
				delete(a, name)
			}
		}, sign.Unsigned, "the image is not signed"},
		{"invalid, no signature", one, drop(s), sign.Invalid, "incomplete, without " + s},
		{"invalid, no vendor key", one, drop(p), sign.Invalid, "incomplete, without " + p},
		{"invalid, no certificate", one, drop(c), sign.Invalid, "incomplete, without " + c},
		{"invalid, only a certificate", one, drop(s, p), sign.Invalid, "incomplete, without " + s + ", " + p},
		{"invalid, not hex", one, set(s, "xyz"), sign.Invalid, s + ": not bytes in hex"},
		{"invalid, half a byte", one, edit(p, func(text string) string { return text[1:] }), sign.Invalid, p + ": not bytes in hex"},
		{"invalid, empty", one, set(c, ""), sign.Invalid, c + ": not bytes in hex"},
		{"invalid, space around", one, edit(c, func(text string) string { return " " + text }), sign.Invalid, c + ": not bytes in hex"},
		{"invalid, of another config", one, func(a map[string]string) { a[s] = annotations(t, []byte("{}"), vendor, ca)[s] }, sign.Invalid, "signature: that of vendor " + vendor.Public().Fingerprint() + " does not match this config: the image was changed or built upon after it was signed; sign it again"},
		{"invalid, by another vendor", one, func(a map[string]string) { a[p] = annotations(t, nil, vendor2, ca)[p] }, sign.Invalid, "signature: that of vendor " + vendor2.Public().Fingerprint() + " does not match this config"},
		{"19 invalid, BER long form", one, edit(s, longForm), sign.Invalid, "the signature is malformed: its length is in the long form"},
		{"19 invalid, trailing bytes", one, edit(s, trailing), sign.Invalid, "the signature is malformed: trailing bytes"},
		{"19 invalid, r is zero", one, set(s, signatureOf("00", "01")), sign.Invalid, "r is zero"},
		{"19 invalid, s is zero", one, set(s, signatureOf("01", "00")), sign.Invalid, "s is zero"},
		{"19 invalid, negative", one, set(s, signatureOf("80", "01")), sign.Invalid, "r is negative"},
		{"19 invalid, certificate in BER", one, edit(c, longForm), sign.Invalid, "certificate: the signature is malformed"},
		{"19 invalid, certificate in BER, without CA", trust(), edit(c, longForm), sign.Invalid, "certificate: the signature is malformed"},
		{"19 invalid, r of the certificate is zero", trust(ca2, ca), set(c, signatureOf("00", "01")), sign.Invalid, "r is zero"},
		{"18 invalid, P-256", one, set(p, hex.EncodeToString(spki)), sign.Invalid, "vendor key: not a P-384 key: the curve is P-256"},
		{"18 invalid, PEM", one, set(p, hex.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: vendor.Public().DER()}))), sign.Invalid, "vendor key: not in the form SPKI DER"},
		{"18 invalid, trailing bytes", one, edit(p, trailing), sign.Invalid, "vendor key: trailing bytes"},
		{"18 invalid, off the curve", one, edit(p, func(text string) string { return text[:len(text)-1] + string("10"[text[len(text)-1]&1]) }), sign.Invalid, "not a point on the curve"},
		{"18 invalid, a private key", one, set(p, hex.EncodeToString(vendor.DER())), sign.Invalid, "vendor key: this is a private key"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			l := sample.New()
			l.Tag("x", signed(t, l, l.Image(sample.Linux("amd64"), sample.Gzip("a", "b")), vendor, ca, row.change))
			app, _ := appOf(t, l)
			verifier := sign.NewVerifier(row.trust)
			for _, full := range []bool{false, true} {
				v := verify(t, verifier, app, "x", full)
				wantWord(t, v, row.status, row.reason)
				if last := "layers: not checked (read verify-full)\n"; strings.HasSuffix(v.Text(), last) == full {
					t.Errorf("full %v:\n%s", full, v.Text())
				}
				if strings.HasSuffix(v.Reason, "\n") || strings.Contains(v.Text(), hex.EncodeToString(vendor.DER())) {
					t.Errorf("%s", v.Text())
				}
			}
		})
	}
}

func TestVerifyReport(t *testing.T) {
	l := sample.New()
	image := signed(t, l, l.Image(sample.Linux("arm64/v8")), vendor, ca, nil)
	l.Tag("x", image)
	l.Tag("y", image)
	l.Tag("index", l.Index(image))
	app, _ := appOf(t, l)
	verifier := sign.NewVerifier(trust(ca))
	v := verify(t, verifier, app, "x", true)
	snap, e := resolve(t, app, "x")
	wanted := fmt.Sprintf(`{"app":"app","tags":["x","y"],"digest":%q,"mediaType":%q,"kind":"image","platform":"linux/arm64","status":"verified",`+
		`"reason":"certificate: of the vendor key, by root CA %s","layers":"verified","vendor":%q,"ca":%q}`+"\n",
		image.Digest, image.MediaType, ca.Public().Fingerprint(), vendor.Public().Fingerprint(), ca.Public().Fingerprint())
	if got := string(v.Report(app, snap, e).JSON()); got != wanted {
		t.Errorf("%s\nwant %s", got, wanted)
	}
	snap, e = resolve(t, app, "index")
	report := verify(t, verifier, app, "index", false).Report(app, snap, e)
	if report.Kind != "index" || report.Platform != "" || report.Layers != "unchecked" || report.Vendor != vendor.Public().Fingerprint() {
		t.Errorf("%+v", report)
	}
}

// 21: the layers count only for verify-full, which reads every one of them to its end.
func TestVerifyLayers(t *testing.T) {
	const garbage = "garbage behind the end"
	hello := sample.Gzip("etc/motd", "hello\n")
	swap := func(t *testing.T, l *sample.Layout, good v1.Descriptor, change func(*v1.Manifest)) {
		m := manifestOf(t, l, good)
		change(&m)
		l.Tag("x", l.Manifest(m))
	}
	type setup = func(t *testing.T, l *sample.Layout, good v1.Descriptor)
	blob := func(data []byte, mediaType string) setup {
		return func(t *testing.T, l *sample.Layout, good v1.Descriptor) {
			swap(t, l, good, func(m *v1.Manifest) { m.Layers[0] = l.Blob(mediaType, data) })
		}
	}
	zstd := sample.Zstd("etc/motd", "hello\n")
	other := sample.Gzip("etc/motd", "evil!\n")
	skippable := []byte("\x50\x2a\x4d\x18\x03\x00\x00\x00abc")
	stargzFooter := []byte("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x1a\x00SG\x16\x000000000000000000STARGZ\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00")
	toc := func(data []byte, mediaType, annotation string) setup {
		return func(t *testing.T, l *sample.Layout, good v1.Descriptor) {
			swap(t, l, good, func(m *v1.Manifest) {
				m.Layers[0] = l.Blob(mediaType, data)
				if annotation != "" {
					m.Layers[0].Annotations = map[string]string{annotation: "x"}
				}
			})
		}
	}
	for _, row := range []struct {
		name   string
		setup  setup
		dir    func(t *testing.T, l *sample.Layout, dir string, layer v1.Descriptor)
		status sign.Status // of verify-full
		reason string
	}{
		{"gzip, zstd and plain", nil, nil, sign.Verified, ""},
		{"zstd for gzip, of the same tar", blob(zstd.Blob(), v1.MediaTypeImageLayerZstd), nil, sign.Verified, ""},
		{"two gzip members", blob(slices.Concat(sample.Layer{Compression: "gzip", Tar: hello.Tar[:99]}.Blob(), sample.Layer{Compression: "gzip", Tar: hello.Tar[99:]}.Blob()), v1.MediaTypeImageLayerGzip), nil, sign.Verified, ""},
		{"21 layers exchanged", func(t *testing.T, l *sample.Layout, good v1.Descriptor) {
			swap(t, l, good, func(m *v1.Manifest) { slices.Reverse(m.Layers) })
		}, nil, sign.Corrupt, "layer 1 of 3: sha256:"},
		{"21 another layer", blob(other.Blob(), v1.MediaTypeImageLayerGzip), nil, sign.Corrupt, "unpacks to " + string(other.DiffID()) + ", and the config's diff_id is " + string(hello.DiffID())},
		{"21 garbage after gzip", blob(append(hello.Blob(), garbage...), v1.MediaTypeImageLayerGzip), nil, sign.Corrupt, "cannot be unpacked"},
		{"21 a gzip member after gzip", blob(append(hello.Blob(), other.Blob()...), v1.MediaTypeImageLayerGzip), nil, sign.Corrupt, "unpacks to"},
		{"zeros after gzip", blob(append(hello.Blob(), make([]byte, 512)...), v1.MediaTypeImageLayerGzip), nil, sign.Verified, ""},
		{"57 a gzip member after zeros", blob(slices.Concat(sample.Layer{Compression: "gzip", Tar: hello.Tar[:99]}.Blob(), make([]byte, 512), sample.Layer{Compression: "gzip", Tar: hello.Tar[99:]}.Blob()), v1.MediaTypeImageLayerGzip), nil, sign.Corrupt, "something behind the zeros"},
		{"several zstd frames", blob(slices.Concat(sample.Layer{Compression: "zstd", Tar: hello.Tar[:99]}.Blob(), sample.Layer{Compression: "zstd", Tar: hello.Tar[99:]}.Blob()), v1.MediaTypeImageLayerZstd), nil, sign.Verified, ""},
		{"a skippable frame after zstd", blob(slices.Concat(zstd.Blob(), skippable), v1.MediaTypeImageLayerZstd), nil, sign.Verified, ""},
		{"57 a skippable frame before zstd", blob(slices.Concat(skippable, zstd.Blob()), v1.MediaTypeImageLayerZstd), nil, sign.Corrupt, "begins like a skippable frame of zstd"},
		{"57 a skippable frame before a tar file", func(t *testing.T, l *sample.Layout, good v1.Descriptor) {
			swap(t, l, good, func(m *v1.Manifest) {
				m.Layers[0] = l.Blob(v1.MediaTypeImageLayer, slices.Concat(skippable, hello.Tar))
			})
		}, nil, sign.Corrupt, "begins like a skippable frame of zstd"},
		{"57 zstd called gzip", blob(zstd.Blob(), v1.MediaTypeImageLayerGzip), nil, sign.Corrupt, "but it begins like zstd"},
		{"57 gzip called zstd", blob(hello.Blob(), v1.MediaTypeImageLayerZstd), nil, sign.Corrupt, "but it begins like gzip"},
		{"57 Docker's types", blob(hello.Blob(), "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), nil, sign.Verified, ""},
		{"58 eStargz by its annotation", toc(hello.Blob(), v1.MediaTypeImageLayerGzip, "containerd.io/snapshot/stargz/toc.digest"), nil, sign.Corrupt, "layers: layer 1 brings a table of contents (eStargz) that is not checked yet"},
		{"58 eStargz by its footer", toc(append(hello.Blob(), stargzFooter...), v1.MediaTypeImageLayerGzip, ""), nil, sign.Corrupt, "layers: layer 1 brings a table of contents (eStargz) that is not checked yet"},
		{"58 overlaybd by its annotation", toc(hello.Blob(), v1.MediaTypeImageLayerGzip, "containerd.io/snapshot/overlaybd/blob-digest"), nil, sign.Corrupt, "(containerd.io/snapshot/overlaybd/blob-digest) that is not checked yet"},
		{"58 zstd:chunked by its annotation", toc(zstd.Blob(), v1.MediaTypeImageLayerZstd, "io.github.containers.zstd-chunked.manifest-position"), nil, sign.Corrupt, "(zstd:chunked) that is not checked yet"},
		{"58 zstd:chunked by its footer", toc(slices.Concat(zstd.Blob(), skippable[:4], []byte{8, 0, 0, 0}, []byte("GNUlInUx")), v1.MediaTypeImageLayerZstd, ""), nil, sign.Corrupt, "(zstd:chunked) that is not checked yet"},
		{"21 garbage after zstd", blob(append(zstd.Blob(), garbage...), v1.MediaTypeImageLayerZstd), nil, sign.Corrupt, "cannot be unpacked"},
		{"21 garbage after tar", blob(append(bytes.Clone(hello.Tar), garbage...), v1.MediaTypeImageLayer), nil, sign.Corrupt, "unpacks to"},
		{"21 gzip cut short", blob(hello.Blob()[:60], v1.MediaTypeImageLayerGzip), nil, sign.Corrupt, "cannot be unpacked"},
		{"57 gzip called plain", blob(hello.Blob(), v1.MediaTypeImageLayer), nil, sign.Corrupt, "but it begins like gzip"},
		{"57 plain called gzip", blob(hello.Tar, v1.MediaTypeImageLayerGzip), nil, sign.Corrupt, "but it begins like a file that is not compressed"},
		{"21 encrypted", blob(hello.Blob(), v1.MediaTypeImageLayerGzip+"+encrypted"), nil, sign.Corrupt, "it is encrypted"},
		{"57 a type that cannot be unpacked", blob(hello.Blob(), "application/x"), nil, sign.Corrupt, "its bytes are not the config's diff_id themselves"},
		{"a type that cannot be unpacked, of these very bytes", blob(hello.Tar, "application/x"), nil, sign.Verified, ""},
		{"21 one bit of a layer", nil, func(t *testing.T, l *sample.Layout, dir string, layer v1.Descriptor) {
			data := bytes.Clone(l.Bytes(layer))
			data[4] ^= 1 // the time in gzip's header: it unpacks as before
			put(t, dir, layer.Digest, data)
		}, sign.Corrupt, "the blob's bytes do not have this digest"},
		{"21 a layer one byte longer", nil, func(t *testing.T, l *sample.Layout, dir string, layer v1.Descriptor) {
			put(t, dir, layer.Digest, append(bytes.Clone(l.Bytes(layer)), 0))
		}, sign.Corrupt, "bytes, and not the"},
		{"21 a layer is missing", nil, func(t *testing.T, l *sample.Layout, dir string, layer v1.Descriptor) {
			must(t, os.Remove(filepath.Join(dir, sample.Path(layer.Digest))))
		}, sign.Corrupt, "not in the layout"},
		{"21 a layer is a symlink", nil, func(t *testing.T, l *sample.Layout, dir string, layer v1.Descriptor) {
			file := filepath.Join(dir, sample.Path(layer.Digest))
			must(t, os.Rename(file, dir+"/away"))
			must(t, os.Symlink("../../away", file))
		}, sign.Corrupt, "a symbolic link stands in the way"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			l := sample.New()
			good := signed(t, l, l.Image(sample.Linux("amd64"), hello, sample.Zstd("b", "c"), sample.Plain("d", "e")), vendor, ca, nil)
			layer := manifestOf(t, l, good).Layers[0]
			if row.setup == nil {
				l.Tag("x", good)
			} else {
				row.setup(t, l, good)
			}
			l.Tag("index", l.Index(good))
			app, dir := appOf(t, l)
			if row.dir != nil {
				row.dir(t, l, dir, layer)
			}
			verifier := sign.NewVerifier(trust(ca))
			wantWord(t, verify(t, verifier, app, "x", false), sign.Verified, "")
			snap, e := resolve(t, app, "x")
			if known := verifier.Known(context.Background(), app, snap, e, true); known != nil {
				t.Errorf("known before it was read: %+v", known)
			}
			layers := map[sign.Status]string{sign.Verified: sign.LayersVerified, sign.Corrupt: sign.LayersCorrupt}
			for range 2 { // the second is remembered
				v := verify(t, verifier, app, "x", true)
				wantWord(t, v, row.status, row.reason)
				if v.Layers != layers[row.status] || strings.Contains(v.Text(), "layers: not checked") {
					t.Errorf("layers %s:\n%s", v.Layers, v.Text())
				}
				if known := verifier.Known(context.Background(), app, snap, e, true); known == nil || known.Status != row.status {
					t.Errorf("known is %+v", known)
				}
			}
			wantWord(t, verify(t, verifier, app, "x", false), sign.Verified, "")
			if row.dir == nil {
				return
			}
			index := verify(t, verifier, app, "index", true)
			wantWord(t, index, row.status, row.reason)
			if index.Layers != sign.LayersCorrupt {
				t.Errorf("layers of the index: %s", index.Layers)
			}
			// A layer that is repaired is seen to be.
			must(t, os.RemoveAll(filepath.Join(dir, sample.Path(layer.Digest))))
			put(t, dir, layer.Digest, l.Bytes(layer))
			wantWord(t, verify(t, verifier, app, "x", true), sign.Verified, "")
			wantWord(t, verify(t, verifier, app, "index", true), sign.Verified, "")
		})
	}
}

func TestVerifyIndex(t *testing.T) {
	type world struct {
		*sample.Layout
		verified, unsigned, untrusted, invalid, corrupt, absent v1.Descriptor
		attestation, fake                                       v1.Descriptor
	}
	for _, row := range []struct {
		name   string
		of     func(w world) []v1.Descriptor
		status sign.Status
		reason string
	}{
		{"verified", func(w world) []v1.Descriptor { return []v1.Descriptor{w.verified} }, sign.Verified, "(linux-amd64): certificate:"},
		{"unsigned beside verified", func(w world) []v1.Descriptor { return []v1.Descriptor{w.verified, w.unsigned} }, sign.Unsigned, "(linux-arm64): annotations: the image is not signed"},
		{"untrusted is worse", func(w world) []v1.Descriptor { return []v1.Descriptor{w.unsigned, w.untrusted, w.verified} }, sign.Untrusted, "is not certified"},
		{"invalid is worse", func(w world) []v1.Descriptor { return []v1.Descriptor{w.invalid, w.untrusted} }, sign.Invalid, "incomplete"},
		{"corrupt is worst", func(w world) []v1.Descriptor { return []v1.Descriptor{w.invalid, w.corrupt, w.verified} }, sign.Corrupt, "do not have this digest"},
		{"an index in it", func(w world) []v1.Descriptor {
			return []v1.Descriptor{w.verified, w.Index(w.verified, w.Index(w.unsigned))}
		}, sign.Unsigned, "(linux-arm64)"},
		{"sparse", func(w world) []v1.Descriptor { return []v1.Descriptor{w.absent, w.verified} }, sign.Verified, "(linux-amd64)"},
		{"a sparse index in it", func(w world) []v1.Descriptor {
			absent := w.absent
			absent.MediaType, absent.Digest = v1.MediaTypeImageIndex, digest.FromString("absent")
			return []v1.Descriptor{w.verified, absent}
		}, sign.Verified, ""},
		{"nothing of it is there", func(w world) []v1.Descriptor { return []v1.Descriptor{w.absent} }, sign.Unsigned, "it holds no image that counts"},
		{"empty", func(w world) []v1.Descriptor { return nil }, sign.Unsigned, "it holds no image that counts"},
		{"an attestation does not count", func(w world) []v1.Descriptor { return []v1.Descriptor{w.verified, w.attestation} }, sign.Verified, ""},
		{"only an attestation", func(w world) []v1.Descriptor { return []v1.Descriptor{w.attestation} }, sign.Unsigned, "it holds no image that counts"},
		{"14 an image annotated as an attestation", func(w world) []v1.Descriptor {
			d := w.unsigned
			return []v1.Descriptor{w.verified, sample.Annotate(d, "vnd.docker.reference.type", "attestation-manifest")}
		}, sign.Unsigned, "the image is not signed"},
		{"14 and of no platform", func(w world) []v1.Descriptor { return []v1.Descriptor{w.verified, w.fake} }, sign.Unsigned, "the image is not signed"},
		{"14 an attestation with a layer that is not in-toto", func(w world) []v1.Descriptor {
			m := manifestOf(t, w.Layout, w.attestation)
			y := sample.Plain("a", "b")
			m.Layers = append(m.Layers, w.Blob(v1.MediaTypeImageLayer, y.Blob()))
			d := w.Manifest(m)
			d.Platform, d.Annotations = w.attestation.Platform, w.attestation.Annotations
			return []v1.Descriptor{w.verified, d}
		}, sign.Corrupt, "the manifest has 2 layers, the config 1 diff_ids"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := world{Layout: sample.New()}
			image := func(arch string) v1.Descriptor { return w.Image(sample.Linux(arch), sample.Plain("a", arch)) }
			w.verified = signed(t, w.Layout, image("amd64"), vendor, ca, nil)
			w.unsigned = image("arm64")
			w.untrusted = signed(t, w.Layout, image("386"), vendor, ca2, nil)
			w.invalid = signed(t, w.Layout, image("s390x"), vendor, ca, func(a map[string]string) { delete(a, sign.CertificateAnnotation) })
			w.corrupt = signed(t, w.Layout, image("ppc64le"), vendor, ca, nil)
			w.absent = image("riscv64")
			w.attestation = w.Attestation(w.verified)
			w.fake = w.unsigned
			w.fake.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
			w.fake = sample.Annotate(w.fake, "vnd.docker.reference.type", "attestation-manifest")
			w.Tag("x", w.Index(row.of(w)...))
			files := w.Files()
			files[sample.Path(w.corrupt.Digest)][0] = ' '
			delete(files, sample.Path(w.absent.Digest))
			app, _ := appOf(t, files)
			verifier := sign.NewVerifier(trust(ca))
			v := verify(t, verifier, app, "x", false)
			wantWord(t, v, row.status, row.reason)
			if v.Kind != layout.KindIndex || v.Layers != sign.LayersUnchecked {
				t.Errorf("kind %s, layers %s", v.Kind, v.Layers)
			}
			wantWord(t, verify(t, verifier, app, "x", true), row.status, "")
		})
	}
}

// What can be said of an index whose own blob is bad is only that.
func TestVerifyBadIndex(t *testing.T) {
	l := sample.New()
	index := l.Index(signed(t, l, l.Image(sample.Linux("amd64")), vendor, ca, nil))
	l.Tag("x", index)
	app, dir := appOf(t, l)
	text := bytes.Replace(l.Bytes(index), []byte("amd64"), []byte("arm64"), 1)
	put(t, dir, index.Digest, text)
	v := verify(t, sign.NewVerifier(trust(ca)), app, "x", true)
	wantWord(t, v, sign.Corrupt, "the blob's bytes do not have this digest")
	if len(v.Checks()) != 1 {
		t.Errorf("checks %q", v.Checks())
	}
	must(t, os.Remove(filepath.Join(dir, sample.Path(index.Digest))))
	v = verify(t, sign.NewVerifier(trust(ca)), app, "x", false)
	wantWord(t, v, sign.Corrupt, "not in the layout")
	if !v.Missing {
		t.Error("not missing")
	}
}

// In an index with one image that cannot be read, not all layers were verified.
func TestVerifyLayersOfAnIndex(t *testing.T) {
	l := sample.New()
	one := signed(t, l, l.Image(sample.Linux("amd64")), vendor, ca, nil)
	two := l.Image(sample.Linux("arm64"), sample.Plain("a", "b"))
	l.Tag("good", l.Index(one, l.Attestation(one)))
	l.Tag("bad", l.Index(two, one))
	files := l.Files()
	delete(files, sample.Path(manifestOf(t, l, two).Config.Digest))
	app, _ := appOf(t, files)
	verifier := sign.NewVerifier(trust(ca))
	if v := verify(t, verifier, app, "good", true); v.Layers != sign.LayersVerified {
		t.Errorf("good: %s", v.Layers)
	}
	if v := verify(t, verifier, app, "bad", true); v.Status != sign.Corrupt || v.Layers != sign.LayersUnchecked {
		t.Errorf("bad: %s, %s", v.Status, v.Layers)
	}
}

func TestVerifyWhatIsNoImage(t *testing.T) {
	l := sample.New()
	image := l.Image(sample.Linux("amd64"))
	l.Tag("artifact", l.Artifact("application/x", "text", nil))
	l.Tag("referrer", l.Artifact("application/x", "text", &image))
	l.Tag("attestation", l.Attestation(image))
	l.Tag("unknown", l.Blob("application/x", []byte("text")))
	// An artifact's annotations are nobody's signature.
	artifact := l.Artifact("", "text", nil)
	l.Tag("signed", signed(t, l, artifact, vendor, ca, nil))
	app, _ := appOf(t, l)
	for tag, row := range map[string]struct {
		kind   layout.Kind
		reason string
	}{
		"artifact":    {layout.KindArtifact, `an artifact, not an image (of type "application/x", its config is of media type "application/vnd.oci.empty.v1+json", its layers are of ["text/plain"])`},
		"referrer":    {layout.KindArtifact, "an artifact, not an image"},
		"attestation": {layout.KindAttestation, "an attestation, not an image"},
		"unknown":     {layout.KindArtifact, "an artifact, not an image (of media type \"application/x\")"},
		"signed":      {layout.KindArtifact, "an artifact, not an image"},
	} {
		v := verify(t, sign.NewVerifier(trust(ca)), app, tag, true)
		wantWord(t, v, sign.Unsigned, row.reason)
		if v.Kind != row.kind {
			t.Errorf("%s: kind %s", tag, v.Kind)
		}
	}
}

// A verdict is kept only as long as what it was made from stays, whatever the times say.
func TestVerifyForgets(t *testing.T) {
	l := sample.New()
	image := signed(t, l, l.Image(sample.Linux("amd64"), sample.Gzip("a", "b")), vendor, ca, nil)
	l.Tag("x", image)
	l.Tag("index", l.Index(image))
	m := manifestOf(t, l, image)
	app, dir := appOf(t, l)
	verifier := sign.NewVerifier(trust(ca))
	words := func() (words []sign.Status) {
		for _, full := range []bool{false, true} {
			for _, ref := range []string{"x", "index", string(image.Digest)} {
				words = append(words, verify(t, verifier, app, ref, full).Status)
			}
		}
		return slices.Compact(words)
	}
	for name, d := range map[string]v1.Descriptor{"manifest": image, "config": m.Config, "layer": m.Layers[0]} {
		file := filepath.Join(dir, sample.Path(d.Digest))
		for range 3 {
			if got := words(); !slices.Equal(got, []sign.Status{sign.Verified}) {
				t.Errorf("%s: %s", name, got)
			}
			info, err := os.Stat(file)
			must(t, err)
			// One bit in place, the same size, the times put back, and all within one tick of the clock.
			data := bytes.Clone(l.Bytes(d))
			data[len(data)/2] ^= 1
			put(t, dir, d.Digest, data)
			must(t, os.Chtimes(file, info.ModTime(), info.ModTime()))
			wanted := []sign.Status{sign.Corrupt}
			if name == "layer" {
				wanted = []sign.Status{sign.Verified, sign.Corrupt}
			}
			if got := words(); !slices.Equal(got, wanted) {
				t.Errorf("%s, damaged: %s", name, got)
			}
			put(t, dir, d.Digest, l.Bytes(d))
			must(t, os.Chtimes(file, info.ModTime(), info.ModTime()))
		}
	}
}

// Two descriptors of one digest may get two verdicts, however they are asked for.
func TestVerifyTwoDescriptorsAtOnce(t *testing.T) {
	l := sample.New()
	attestation := l.Attestation(l.Image(sample.Linux("amd64")))
	l.Tag("attestation", attestation)
	attestation.Annotations, attestation.Platform = nil, nil
	l.Tag("artifact", attestation)
	app, _ := appOf(t, l)
	var all sync.WaitGroup
	for range 5 {
		verifier := sign.NewVerifier(trust(ca))
		for i := range 20 {
			all.Go(func() {
				kind := layout.KindArtifact
				if i%2 == 1 {
					kind = layout.KindAttestation
				}
				if v := verify(t, verifier, app, string(kind), i%4 < 2); v.Status != sign.Unsigned || v.Kind != kind {
					t.Errorf("%s: %s, %s", kind, v.Status, v.Reason)
				}
			})
		}
	}
	all.Wait()
}

// 32, 35: many who ask share one verification; who is interrupted leaves, and the last one to leave stops it.
func TestVerifyInterrupted(t *testing.T) {
	l := sample.New()
	// 2 GiB of zeros: they take seconds to unpack, and little to store.
	y := sample.Gzip("a", strings.Repeat("\x00", 16<<20))
	one := y.Blob()
	l.Tag("x", l.Manifest(v1.Manifest{
		Config: l.Document(v1.MediaTypeImageConfig, v1.Image{RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{y.DiffID()}}}),
		Layers: []v1.Descriptor{l.Blob(v1.MediaTypeImageLayerGzip, bytes.Repeat(one, 128))},
	}))
	app, _ := appOf(t, l)
	verifier := sign.NewVerifier(trust(ca))
	snap, e := resolve(t, app, "x")
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if v, err := verifier.Verify(ctx, app, snap, e, true); !errors.Is(err, context.Canceled) {
				t.Errorf("%+v, %v", v, err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	cancel()
	start := time.Now()
	all.Wait()
	if d := time.Since(start); d > time.Second {
		t.Errorf("it took %v", d)
	}
	// goleak sees to it that nothing goes on.
}

func TestStatusesAreOrdered(t *testing.T) {
	list := sign.Statuses()
	for i, a := range list {
		for j, b := range list {
			if a.Worse(b) != (i > j) {
				t.Errorf("%s worse than %s: %v", a, b, a.Worse(b))
			}
		}
	}
	if len(list) != 6 || list[0] != sign.Verified {
		t.Errorf("%s", list)
	}
}

// The whole chain of one image: manifest and config read and checked, and the vendor's signature. The certificate is known.
func BenchmarkChain(b *testing.B) {
	l := sample.New()
	l.Tag("x", signed(b, l, l.Image(sample.Linux("amd64"), sample.Gzip("a", "b")), vendor, ca, nil))
	app, _ := appOf(b, l)
	trusted := trust(ca)
	for b.Loop() {
		if v := verify(b, sign.NewVerifier(trusted), app, "x", false); v.Status != sign.Verified {
			b.Fatal(v.Reason)
		}
	}
}
