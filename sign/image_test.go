package sign_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
	"irfs/sign"
)

// signerOf signs as vendor, certified by ca.
func signerOf(t testing.TB, vendor, ca *sign.PrivateKey) *sign.Signer {
	t.Helper()
	certificate, err := ca.Sign(vendor.Public().DER())
	must(t, err)
	s, err := sign.NewSigner(vendor, certificate, trust(ca))
	must(t, err)
	return s
}

func signRefs(s *sign.Signer, app *layout.App, refs ...string) (*sign.Outcome, error) {
	return s.Sign(context.Background(), app, func(snap *layout.Snapshot) (list []layout.Entry, err error) {
		for _, ref := range refs {
			e, err := snap.Resolve(context.Background(), ref)
			if err != nil {
				return nil, err
			}
			list = append(list, e)
		}
		return list, nil
	})
}

func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	tree, err := sample.Tree(dir)
	must(t, err)
	return tree
}

// refused fails unless the error is of that kind, says the words, and left everything as it was.
func refused(t testing.TB, dir string, before map[string]string, err, kind error, words string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(fmt.Sprint(err), words) {
		t.Errorf("error %v, want one that is %q and says %q", err, kind, words)
	}
	if after := tree(t, dir); !maps.Equal(after, before) {
		t.Errorf("%s was changed", dir)
	}
}

func TestSigners(t *testing.T) {
	certificate, err := ca.Sign(vendor.Public().DER())
	must(t, err)
	foreign, err := ca.Sign(vendor2.Public().DER())
	must(t, err)
	for _, row := range []struct {
		name        string
		vendor      *sign.PrivateKey
		certificate []byte
		trust       *sign.Trust
		kind        error // nil if it is accepted
		reason      string
	}{
		{"certified", vendor, certificate, trust(ca), nil, ""},
		{"certified by one of two", vendor, certificate, trust(ca2, ca), nil, ""},
		{"certified by another CA", vendor, certificate, trust(ca2), sign.ErrUntrusted, "certificate: vendor " + vendor.Public().Fingerprint() + " is not certified by root CA " + ca2.Public().Fingerprint()},
		{"certificate of another vendor", vendor, foreign, trust(ca), sign.ErrUntrusted, "is not certified by root CA"},
		{"no CA", vendor, certificate, trust(), sign.ErrUntrusted, ""},
		{"no certificate", vendor, nil, trust(ca), sign.ErrSignature, "certificate: the signature is malformed"},
		{"certificate with trailing bytes", vendor, append(bytes.Clone(certificate), '\n'), trust(ca), sign.ErrSignature, "trailing bytes"},
		{"the CA's own key", ca, certificate, trust(ca2, ca), sign.ErrKey, "the vendor's key and the root CA's are the same"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, err := sign.NewSigner(row.vendor, row.certificate, row.trust)
			if row.kind == nil {
				must(t, err)
				if !s.CA().Equal(ca.Public()) {
					t.Errorf("CA %s", s.CA().Fingerprint())
				}
				return
			}
			if !errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.reason) {
				t.Errorf("%v", err)
			}
		})
	}
	if _, err := sign.NewCertifyingSigner(ca, ca); !errors.Is(err, sign.ErrKey) {
		t.Errorf("the CA's own key: %v", err)
	}
}

// What was certified lies beside the certificate, by convention; where it does not, or cannot be read, less is said.
func TestExplain(t *testing.T) {
	inPEM := func(k *sign.PrivateKey) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.Public().DER()})
	}
	by := func(ca *sign.PrivateKey, of []byte) []byte {
		certificate, err := ca.Sign(of)
		must(t, err)
		return certificate
	}
	fingerprint, other := vendor.Public().Fingerprint(), vendor2.Public().Fingerprint()
	unknown := "is not by root CA " + ca.Public().Fingerprint() + ": made by another CA, or for another key"
	for _, row := range []struct {
		name        string
		file        string
		certificate []byte
		beside      []byte // nil: it cannot be read
		trust       *sign.Trust
		want        string
	}{
		{"another CA", "d/v.pub.sig", by(ca2, vendor.Public().DER()), vendor.Public().DER(), trust(ca), "d/v.pub.sig " + unknown},
		{"none of two", "d/v.pub.sig", by(ca2, vendor.Public().DER()), vendor.Public().DER(), trust(ca, vendor2), "d/v.pub.sig is not by any of the 2 root CAs: "},
		{"another key", "d/v.pub.sig", by(ca, vendor2.Public().DER()), vendor2.Public().DER(), trust(ca2, ca), "d/v.pub.sig is the certificate of another key, " + other + " (d/v.pub): give the one of this key, " + fingerprint},
		{"another key, by another CA", "d/v.pub.sig", by(ca2, vendor2.Public().DER()), vendor2.Public().DER(), trust(ca), unknown},
		{"another key, which cannot be read", "d/v.pub.sig", by(ca, vendor2.Public().DER()), nil, trust(ca), unknown},
		{"another key, and another name", "d/v.der", by(ca, vendor2.Public().DER()), vendor2.Public().DER(), trust(ca), "d/v.der " + unknown},
		{"of this key in PEM", "d/v.pub.sig", by(ca, inPEM(vendor)), nil, trust(ca), "d/v.pub.sig: certificate: vendor " + fingerprint + " is not certified by root CA " + ca.Public().Fingerprint() + ": the certificate is of the key in PEM, and has to be of its DER"},
		{"of another key in PEM", "d/v.pub.sig", by(ca, inPEM(vendor2)), inPEM(vendor2), trust(ca), "d/v.pub.sig: the certificate is of the key in PEM, and has to be of its DER (irfs sign -k root-ca.prv -f vendor.pub -s vendor.pub.sig, with vendor.pub in DER): d/v.pub is in PEM"},
		{"of what is no public key", "d/v.pub.sig", by(ca, vendor2.DER()), vendor2.DER(), trust(ca), unknown},
		{"no CA", "d/v.pub.sig", by(ca, vendor.Public().DER()), vendor.Public().DER(), trust(), "d/v.pub.sig: certificate: vendor " + fingerprint + " is not certified by any root CA, for none is given"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := sign.NewSigner(vendor, row.certificate, row.trust)
			err = row.trust.Explain(err, vendor.Public(), row.certificate, row.file, func(name string) ([]byte, error) {
				if name != "d/v.pub" {
					t.Errorf("%s is read", name)
				}
				if row.beside == nil {
					return nil, os.ErrPermission
				}
				return row.beside, nil
			})
			if !errors.Is(err, sign.ErrUntrusted) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v; want %q", err, row.want)
			}
		})
	}
	_, err := sign.NewSigner(vendor, []byte("x"), trust(ca))
	err = trust(ca).Explain(err, vendor.Public(), []byte("x"), "v.pub.sig", nil)
	if !errors.Is(err, sign.ErrSignature) || !strings.HasPrefix(err.Error(), "v.pub.sig: certificate: the signature is malformed") {
		t.Errorf("a malformed one: %v", err)
	}
}

// The realistic and the simplified scenario make the same image, and its chain holds for openssl.
func TestSignIsTheSameEverywhere(t *testing.T) {
	certifying, err := sign.NewCertifyingSigner(vendor, ca)
	must(t, err)
	var moved []digest.Digest
	var dir, config string
	for i, signer := range []*sign.Signer{signerOf(t, vendor, ca), certifying} {
		l := sample.New()
		if i == 1 { // the same image in other company
			l.Tag("other", l.Image(sample.Linux("arm64")))
		}
		image := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"))
		l.Tag("x", image)
		config = string(l.Bytes(manifestOf(t, l, image).Config))
		var app *layout.App
		app, dir = appOf(t, l)
		outcome, err := signRefs(signer, app, "x")
		must(t, err)
		moved = append(moved, outcome.Moved(image.Digest))
		if text := fmt.Sprintf("signed %s -> %s", image.Digest, moved[i]); outcome.Text() != text {
			t.Errorf("%s\nwant %s", outcome.Text(), text)
		}
		wantWord(t, verify(t, sign.NewVerifier(trust(ca)), app, "x", true), sign.Verified, "")
	}
	if moved[0] != moved[1] {
		t.Errorf("signed digests %s", moved)
	}

	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	text, err := os.ReadFile(filepath.Join(dir, sample.Path(moved[1])))
	must(t, err)
	m, err := layout.ParseManifest(text, v1.MediaTypeImageManifest)
	must(t, err)
	work := t.TempDir()
	file := func(name string, data []byte) string {
		must(t, os.WriteFile(filepath.Join(work, name), data, 0o600))
		return filepath.Join(work, name)
	}
	annotation := func(name string) []byte {
		data, err := hex.DecodeString(m.Annotations[name])
		must(t, err)
		return data
	}
	pub := file("vendor.pub", annotation(sign.VendorPubAnnotation))
	for _, args := range [][]string{
		{file("ca.pub", ca.Public().DER()), file("vendor.pub.sig", annotation(sign.CertificateAnnotation)), pub},
		{pub, file("signature", annotation(sign.SignatureAnnotation)), file("config.json", []byte(config))},
	} {
		out, err := exec.Command("openssl", "dgst", "-sha384", "-keyform", "DER", "-verify", args[0], "-signature", args[1], args[2]).CombinedOutput()
		if err != nil || string(out) != "Verified OK\n" {
			t.Errorf("openssl: %s, %v", out, err)
		}
	}
}

// Of the manifest only the annotations change, and signing again changes nothing.
func TestSignChangesNothingElse(t *testing.T) {
	l := sample.New()
	l.BlobMode = 0o444
	image := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"))
	index := l.Index(image, l.Attestation(image))
	l.Tag("x", index)
	app, dir := appOf(t, l)
	signer := signerOf(t, vendor, ca)
	before := tree(t, dir)
	outcome, err := signRefs(signer, app, "x")
	must(t, err)
	after := tree(t, dir)

	old := string(l.Bytes(image))
	a := annotations(t, l.Bytes(manifestOf(t, l, image).Config), vendor, ca)
	wanted := strings.TrimSuffix(old, "}") + `,"annotations":{`
	for i, name := range []string{sign.SignatureAnnotation, sign.VendorPubAnnotation, sign.CertificateAnnotation} {
		wanted += strings.Repeat(",", min(i, 1)) + fmt.Sprintf("%q:%q", name, a[name])
	}
	wanted += "}}"
	is := outcome.Moved(image.Digest)
	text, err := os.ReadFile(filepath.Join(dir, sample.Path(is)))
	must(t, err)
	if string(text) != wanted {
		t.Errorf("%s\nwant %s", text, wanted)
	}
	moved := strings.NewReplacer(string(image.Digest), string(is), fmt.Sprintf(`"size":%d`, image.Size), fmt.Sprintf(`"size":%d`, len(wanted)))
	text, err = os.ReadFile(filepath.Join(dir, sample.Path(outcome.Moved(index.Digest))))
	must(t, err)
	if wanted := moved.Replace(string(l.Bytes(index))); string(text) != wanted {
		t.Errorf("%s\nwant %s", text, wanted)
	}
	delete(before, "index.json")
	for name := range before {
		if after[name] != before[name] {
			t.Errorf("%s was changed", name)
		}
	}
	for name, text := range after {
		if before[name] == "" && name != "index.json" && !strings.HasPrefix(text, "-r--r--r-- ") {
			t.Errorf("%s: %.80s", name, text)
		}
	}
	if len(after) != len(before)+3 {
		t.Errorf("left over: %q", slices.Sorted(maps.Keys(after)))
	}

	again, err := signRefs(signer, app, "x", string(is))
	must(t, err)
	if text := fmt.Sprintf("signed %s -> %s (was signed just so)", is, is); again.Text() != text {
		t.Errorf("%s\nwant %s", again.Text(), text)
	}
	refused(t, dir, after, nil, nil, "")

	// Another vendor's signature takes the place of the first; the first one's gives the first digest again.
	_, err = signRefs(signerOf(t, vendor2, ca2), app, "x")
	must(t, err)
	verdict := verify(t, sign.NewVerifier(trust(ca)), app, "x", false)
	wantWord(t, verdict, sign.Untrusted, vendor2.Public().Fingerprint())
	back, err := signRefs(signer, app, "x")
	must(t, err)
	if len(back.Images) != 1 || back.Images[0].New != is {
		t.Errorf("%v, want %s", back.Images, is)
	}
	if now := tree(t, dir); now["index.json"] != after["index.json"] {
		t.Errorf("index.json is %s\nwant %s", now["index.json"], after["index.json"])
	}
}

func TestSignIndex(t *testing.T) {
	l := sample.New()
	amd := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"))
	arm := l.Image(sample.Linux("arm64"))
	single := l.Image(sample.Linux("386"))
	absent := l.Image(sample.Linux("s390x"))
	l.Docker = true
	docker := l.Image(sample.Linux("ppc64le"), sample.Gzip("c", "d"))
	list := l.Index(docker)
	l.Docker = false
	l.Algorithm = digest.SHA512
	long := l.Image(sample.Linux("riscv64"))
	attestation := l.Attestation(amd)
	l.Tag("all", l.Index(amd, l.Index(arm, list), long, attestation, absent, amd))
	l.Tag("single", single)
	files := l.Files()
	delete(files, sample.Path(absent.Digest))
	app, _ := appOf(t, files)
	outcome, err := signRefs(signerOf(t, vendor, ca), app, "all", "single", string(arm.Digest))
	must(t, err)
	var signed []digest.Digest
	for _, s := range outcome.Images {
		signed = append(signed, s.Old)
		if s.New != outcome.Moved(s.Old) || s.New == s.Old || s.New.Algorithm() != s.Old.Algorithm() {
			t.Errorf("%s -> %s", s.Old, s.New)
		}
	}
	wanted := []digest.Digest{amd.Digest, long.Digest, arm.Digest, docker.Digest, single.Digest}
	if !slices.Equal(signed, wanted) {
		t.Errorf("signed %s\nwant %s", signed, wanted)
	}
	verifier := sign.NewVerifier(trust(ca))
	for _, ref := range []string{"all", "single", string(outcome.Moved(docker.Digest)), string(outcome.Moved(list.Digest))} {
		wantWord(t, verify(t, verifier, app, ref, true), sign.Verified, "")
	}
	snap, e := resolve(t, app, "all")
	m, err := snap.Manifest(t.Context(), e)
	must(t, err)
	index, err := layout.ParseIndex(m.Bytes, m.MediaType)
	must(t, err)
	found := false
	for _, d := range index.Manifests {
		if d.Digest == attestation.Digest {
			found = d.Annotations["vnd.docker.reference.digest"] == string(outcome.Moved(amd.Digest))
		}
	}
	if !found {
		t.Errorf("the attestation does not follow its image: %+v", index)
	}
}

// 14: what refers to the old manifest is named, and does not keep it from being signed.
func TestSignNamesWhatIsLeftBehind(t *testing.T) {
	l := sample.New()
	image := l.Image(sample.Linux("amd64"))
	l.Tag("x", image)
	l.Tag("sha256-"+image.Digest.Encoded()+".sig", l.Artifact("application/cosign", "x", nil))
	app, _ := appOf(t, l)
	outcome, err := signRefs(signerOf(t, vendor, ca), app, "x")
	must(t, err)
	if text := "; left behind: tag sha256-" + image.Digest.Encoded() + ".sig (of " + string(image.Digest) + ")"; !strings.HasSuffix(outcome.Text(), text) {
		t.Errorf("%s\nwant %s", outcome.Text(), text)
	}
}

func TestSignRefused(t *testing.T) {
	for _, row := range []struct {
		name   string
		ref    string
		kind   error
		reason string
	}{
		{"no such tag", "none", layout.ErrNotFound, `no tag "none"`},
		{"an artifact", "artifact", sign.ErrImage, "cannot be signed: kind: an artifact, not an image"},
		{"an attestation", "attestation", sign.ErrImage, "cannot be signed: kind: an attestation, not an image"},
		{"an index without images", "empty", sign.ErrImage, "it holds no image that counts"},
		{"an index of an attestation", "attested", sign.ErrImage, "it holds no image that counts"},
		{"an index with one corrupt image", "half", layout.ErrCorrupt, "is corrupt and was not signed: config: "},
		{"12 a corrupt manifest", "corrupt", layout.ErrCorrupt, "the blob's bytes do not have this digest"},
		{"8 a tag that is given twice", "twice", layout.ErrCorrupt, `the tag "twice" is given twice`},
		{"20 a config that is not JSON", "text", layout.ErrCorrupt, "config"},
		{"20 a config that is a public key", "key", layout.ErrCorrupt, "config"},
		{"20 an empty config", "{}", layout.ErrCorrupt, "rootfs.type"},
		{"21 more layers than diff_ids", "layers", layout.ErrCorrupt, "the manifest has 1 layers, the config 0 diff_ids"},
		{"3 a config that is nested too deep", "deep", layout.ErrLimit, "nested more than 64 deep"},
		{"6 a manifest that is too large", "large", layout.ErrLimit, "over the limit of 4194304"},
		{"a manifest that is not there", "absent", layout.ErrCorrupt, "not in the layout"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			l := sample.New()
			good := l.Image(sample.Linux("amd64"))
			corrupt := l.Image(sample.Linux("arm64"))
			absent := l.Image(sample.Linux("s390x"))
			config := func(text []byte, layers ...v1.Descriptor) v1.Descriptor {
				return l.Manifest(v1.Manifest{Config: l.Blob(v1.MediaTypeImageConfig, text), Layers: append([]v1.Descriptor{}, layers...)})
			}
			l.Tag("good", good)
			l.Tag("artifact", l.Artifact("application/x", "text", nil))
			l.Tag("attestation", l.Attestation(good))
			l.Tag("empty", l.Index())
			l.Tag("attested", l.Index(l.Attestation(good)))
			l.Tag("half", l.Index(good, config([]byte("text"))))
			l.Tag("corrupt", corrupt)
			l.Tag("twice", good)
			l.Tag("twice", good)
			l.Tag("text", config([]byte("text")))
			l.Tag("key", config(vendor2.Public().DER()))
			l.Tag("{}", config([]byte("{}")))
			l.Tag("layers", config([]byte(`{"rootfs":{"type":"layers","diff_ids":[]}}`), l.Blob(v1.MediaTypeImageLayer, nil)))
			l.Tag("deep", config([]byte(`{"x":`+strings.Repeat("[", 64)+strings.Repeat("]", 64)+`}`)))
			large := l.Image(sample.Linux("ppc64le"))
			large.Size = layout.MaxManifest + 1
			l.Tag("large", l.Index(large))
			l.Tag("absent", absent)
			files := l.Files()
			files[sample.Path(corrupt.Digest)][0] = ' '
			delete(files, sample.Path(absent.Digest))
			app, dir := appOf(t, files)
			before := tree(t, dir)
			signer := signerOf(t, vendor, ca)
			_, err := signRefs(signer, app, row.ref)
			refused(t, dir, before, err, row.kind, row.reason)
			// One that is refused takes all others with it.
			_, err = signRefs(signer, app, "good", row.ref)
			refused(t, dir, before, err, row.kind, row.reason)
			_, err = signRefs(signer, app, "good")
			must(t, err)
		})
	}
}

// 33: signing one app in parallel, through registries of their own, loses nothing.
func TestSignInParallel(t *testing.T) {
	const images = 20
	l := sample.New()
	var list []v1.Descriptor
	for i := range images {
		list = append(list, l.Image(sample.Linux("amd64"), sample.Plain("a", fmt.Sprint(i))))
		l.Tag(fmt.Sprint(i), list[i])
	}
	l.Tag("index", l.Index(list...))
	app, dir := appOf(t, l)
	signer := signerOf(t, vendor, ca)
	var all sync.WaitGroup
	for i := range images {
		all.Go(func() {
			app := app
			if i%2 == 0 {
				reg, err := layout.Open(filepath.Dir(dir))
				if err != nil {
					t.Error(err)
					return
				}
				defer reg.Close()
				if app, err = reg.App("app"); err != nil {
					t.Error(err)
					return
				}
			}
			outcome, err := signRefs(signer, app, fmt.Sprint(i))
			if err != nil || len(outcome.Images) != 1 {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	all.Wait()
	verifier := sign.NewVerifier(trust(ca))
	for i := range images {
		wantWord(t, verify(t, verifier, app, fmt.Sprint(i), true), sign.Verified, "")
	}
	wantWord(t, verify(t, verifier, app, "index", true), sign.Verified, "")
	for name := range tree(t, dir) {
		if strings.Contains(name, ".irfs") {
			t.Errorf("%s is left over", name)
		}
	}
}
