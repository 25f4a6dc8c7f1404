package faults

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
	"irfs/sign"
)

// A goodLayout is odd, and good all the same: its image can be read, signed and is verified then.
type goodLayout struct {
	row    int
	name   string
	make   func(f *forge)
	word   string        // what verify says before it is signed; "" is unsigned
	at     string        // the directory of the image in its app; "" is tags/x
	says   string        // a piece of what comes of signing
	within time.Duration // how long reading and signing may take together, if there is a promise
	then   func(t *testing.T, s *stage, app string)

	app string
}

func (r goodLayout) title() string { return fmt.Sprintf("%02d %s", r.row, r.name) }

func (r goodLayout) check(t *testing.T, s *stage) {
	if r.at == "" {
		r.at = "tags/x"
	}
	if r.word == "" {
		r.word = "unsigned"
	}
	at, _ := filepath.Glob(filepath.Join(s.mnt, r.app, r.at))
	if len(at) != 1 {
		t.Fatalf("%s is %q", r.at, at)
	}
	short, _ := filepath.Rel(s.mnt, at[0])
	start := time.Now()
	if word := s.read(t, short+"/verify-full"); word != r.word+"\n" {
		t.Errorf("verify-full before: %q, want %s\n%s", word, r.word, s.read(t, short+"/reason"))
	}
	control, err := os.OpenFile(at[0]+"/sign", os.O_RDWR, 0) // by its digest, the directory is gone then
	worked(t, err)
	defer control.Close()
	if _, err := control.WriteString(key("vendor.prv")); err != nil {
		t.Errorf("sign: %v: %s", err, s.logged(t, short))
	}
	if took := time.Since(start); r.within > 0 && took > slowly(r.within) {
		t.Errorf("it took %v, over %v", took, r.within)
	}
	if outcome := s.logged(t, short); !strings.Contains(outcome, "signed sha256:") || !strings.Contains(outcome, r.says) {
		t.Errorf("the outcome is %q; want %q", outcome, r.says)
	}
	if strings.HasPrefix(r.at, "tags/") {
		if word := s.read(t, short+"/verify-full"); word != "verified\n" {
			t.Errorf("verify-full after: %q\n%s", word, s.read(t, short+"/reason"))
		}
		if _, code, said := irfs("verify-image", "-r", s.registry, "-a", r.app, "-d", filepath.Base(r.at), "-c", key("root-ca.pub"), "--full"); code != 0 {
			t.Errorf("verify-image: %d, %s", code, said)
		}
	}
	if r.then != nil {
		r.then(t, s, r.app)
	}
}

// tagged gives the digests of the tags, of an app that is whole.
func tagged(t *testing.T, s *stage, app string) map[string]string {
	t.Helper()
	tags, err := whole(filepath.Join(s.registry, app))
	worked(t, err)
	return tags
}

// parse reads a blob of an app as JSON.
func parse(t *testing.T, s *stage, app, digest string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.registry, app, "blobs", strings.Replace(digest, ":", "/", 1)))
	worked(t, err)
	worked(t, json.Unmarshal(text, into))
}

// manyManifests is how many a large index.json has.
func manyManifests() int {
	if full {
		return 100_000
	}
	return 4_000
}

func goodLayouts() []goodLayout {
	var rows []goodLayout
	add := func(more ...goodLayout) { rows = append(rows, more...) }
	isWhole := func(t *testing.T, s *stage, app string) { tagged(t, s, app) }

	add(readOneWay()...)

	// 7
	add(goodLayout{row: 7, name: "eight levels of index, each naming the next ten times", word: "verified", within: 2 * time.Second, then: isWhole, make: func(f *forge) {
		f.Tag("x", f.levels(layout.MaxIndexDepth))
		f.write()
	}})

	// 8
	add(goodLayout{row: 8, name: "the same tag twice, by digest", at: "manifests/*", make: func(f *forge) {
		f.Tag("x", f.plain)
		f.Tag("x", f.plain)
		f.write()
	}, then: func(t *testing.T, s *stage, app string) {
		if tagged(t, s, app); s.read(t, app+"/tags/x/verify") != "corrupt\n" {
			t.Error("the tag is not corrupt any more")
		}
		names, err := os.ReadDir(filepath.Join(s.mnt, app, "manifests"))
		if err != nil || len(names) != 1 || s.read(t, app+"/manifests/"+names[0].Name()+"/verify-full") != "verified\n" {
			t.Errorf("by digest: %v, %v", names, err)
		}
	}})

	// 9: data follows.
	add(goodLayout{row: 9, name: "inline data in index.json and in an index", make: func(f *forge) {
		f.Tag("x", f.Inline(f.Index(f.Inline(f.plain))))
		f.write()
	}, then: func(t *testing.T, s *stage, app string) {
		tagged(t, s, app)
		text, err := os.ReadFile(filepath.Join(s.registry, app, "index.json"))
		worked(t, err)
		var top, nested v1.Index
		worked(t, json.Unmarshal(text, &top))
		worked(t, json.Unmarshal(top.Manifests[0].Data, &nested))
		for _, d := range []v1.Descriptor{top.Manifests[0], nested.Manifests[0]} {
			if shaOf(d.Data) != d.Digest {
				t.Errorf("the data of %s is that of %s", d.Digest, shaOf(d.Data))
			}
		}
	}})

	// 13
	twoOf := func(docker bool) func(f *forge) {
		return func(f *forge) {
			f.Docker = docker
			index := f.Index(f.Image(sample.Linux("amd64"), sample.Gzip("a", "b")), f.Image(sample.Linux("arm64"), sample.Gzip("c", "d")))
			f.Tag("x", index)
			f.Tag("y", index)
			f.Tag("above", f.Index(index, index))
			f.write()
		}
	}
	both := func(t *testing.T, s *stage, app string) {
		tags := tagged(t, s, app)
		var above v1.Index
		parse(t, s, app, tags["above"], &above)
		if tags["x"] != tags["y"] || len(above.Manifests) != 2 || above.Manifests[0].Digest.String() != tags["x"] || above.Manifests[1].Digest.String() != tags["x"] {
			t.Errorf("%v, and above %v", tags, above.Manifests)
		}
		for _, tag := range []string{"y", "above"} {
			if word := s.read(t, app+"/tags/"+tag+"/verify-full"); word != "verified\n" {
				t.Errorf("%s: %q", tag, word)
			}
		}
	}
	add(goodLayout{row: 13, name: "two tags and two descriptors of one index", make: twoOf(false), then: both},
		goodLayout{row: 13, name: "two tags and two descriptors of one list of Docker's", make: twoOf(true), then: both})

	// 14
	add(goodLayout{row: 14, name: "referrers of the old manifest", says: "left behind", make: func(f *forge) {
		f.Tag("x", f.plain)
		f.Tag("sha256-"+f.plain.Digest.Encoded()+".sig", f.Artifact("application/x-cosign", "signature", nil))
		f.Add(f.Artifact("application/x-sbom", "bill of materials", &f.plain))
		f.write()
	}, then: func(t *testing.T, s *stage, app string) {
		outcome := s.logged(t, app+"/tags/x")
		if strings.Count(outcome, "left behind: ") != 2 || !strings.Contains(outcome, ".sig") {
			t.Errorf("left behind: %q", outcome)
		}
		if _, there := tagged(t, s, app)["x"]; !there {
			t.Error("no tag")
		}
	}})

	// 15
	add(goodLayout{row: 15, name: "no mediaType, and blobs of mode 0444", then: isWhole, make: func(f *forge) {
		f.Untyped, f.BlobMode = true, 0o444
		f.Tag("x", f.Index(f.Image(sample.Linux("amd64"), sample.Zstd("a", "b"))))
		f.write()
		if text := f.Files()["index.json"]; bytes.Count(text, []byte("mediaType")) != 1 {
			f.t.Errorf("index.json has a mediaType: %s", text)
		}
	}})

	// 16
	add(goodLayout{row: 16, name: "a large index.json", within: 8 * time.Second, make: func(f *forge) {
		f.Tag("x", f.plain)
		for i := range manyManifests() {
			text := fmt.Sprint(i)
			f.Add(v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: shaOf([]byte(text)), Size: int64(len(text)),
				Annotations: map[string]string{v1.AnnotationRefName: "tag-" + text}, Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}})
		}
		f.write()
	}, then: func(t *testing.T, s *stage, app string) {
		names, err := os.ReadDir(filepath.Join(s.mnt, app, "tags"))
		if err != nil || len(names) != 1+manyManifests() {
			t.Errorf("%d tags, %v", len(names), err)
		}
		if word := s.read(t, app+"/tags/tag-17/verify"); word != "corrupt\n" {
			t.Errorf("one whose manifest is not there: %q", word)
		}
	}})

	// 19: (r, n-s) verifies as well as (r, s).
	add(goodLayout{row: 19, name: "the twin of a signature and of a certificate", word: "verified", then: isWhole, make: func(f *forge) {
		f.Tag("x", f.withManifest(func(m *v1.Manifest) {
			for _, name := range []string{sign.SignatureAnnotation, sign.CertificateAnnotation} {
				was, err := hex.DecodeString(m.Annotations[name])
				worked(f.t, err)
				m.Annotations[name] = hex.EncodeToString(twin(f.t, was))
			}
		}))
		f.write()
	}})

	// 22: not promised, and README says so.
	add(goodLayout{row: 22, name: "an old signed image under another name", word: "verified", then: func(t *testing.T, s *stage, app string) {
		text, err := os.ReadFile("../README.md")
		worked(t, err)
		if says := "A signature binds neither the app's name, nor the tag, nor a time: an old signed image still verifies"; !strings.Contains(string(text), says) {
			t.Errorf("README.md does not say %q", says)
		}
	}, make: func(f *forge) { f.asItIs() }})

	add(missingGoodRows()...)
	return rows
}

// writeOddApps puts into the registry what looks like apps, and is none.
func writeOddApps(t *testing.T, s *stage) {
	for kind, put := range oddFiles {
		name := strings.ReplaceAll(kind, " ", "-")
		f := newForge(t, s, "app-"+name)
		f.asItIs()
		f.instead(f.dir, put)
		f = newForge(t, s, "mark-"+name)
		f.asItIs()
		f.instead(f.dir+"/oci-layout", put)
	}
}

// 11: an app that is not a directory, or whose oci-layout is not a file, is none; nothing goes through it.
func oddApps(t *testing.T, s *stage) {
	archive := filepath.Join(s.files, "good.tar")
	f := newForge(t, s, "-")
	f.Tag("x", f.image)
	writeArchive(t, archive, f.Files())
	for kind := range oddFiles {
		for _, what := range []string{"app", "mark"} {
			app := what + "-" + strings.ReplaceAll(kind, " ", "-")
			t.Run("11 "+kind+" for the "+map[string]string{"app": "app", "mark": "oci-layout"}[what], func(t *testing.T) {
				t.Parallel()
				inTime(t, func() {
					if _, err := os.ReadFile(filepath.Join(s.mnt, app, "tags/x/verify")); errnoIn(err) != syscall.ENOENT {
						t.Errorf("verify: %v", err)
					}
					if _, err := os.Lstat(filepath.Join(s.mnt, app)); what == "app" && kind != "directory" && errnoIn(err) != syscall.ENOENT {
						t.Errorf("it is there: %v", err)
					}
					if errno := s.sign(app, key("vendor.prv")); errno != syscall.ENOENT {
						t.Errorf("sign: %v", errno)
					}
					wantCode(t, 1, "no such app", "verify-image", "-r", s.registry, "-a", app, "-d", "x", "-c", key("root-ca.pub"))
					wantCode(t, 1, "no such app", append([]string{"sign-image", "-r", s.registry, "-a", app, "-d", "x"}, signing()...)...)
					wantCode(t, 1, "", "cat", "-r", s.registry, app+"/index.json")
					wantCode(t, 1, "", "gc", "-r", s.registry, "-a", app)
					if what == "app" && kind != "directory" {
						wantCode(t, 1, "", "import", "-r", s.registry, "-a", app, archive)
						wantCode(t, 1, "", "import", "-r", s.registry, "-a", app+"/below", archive)
						for _, name := range []string{app + ".tar"} {
							if errno := s.copyIn(t, name, archive); errno == 0 {
								t.Errorf("import/%s was taken in", name)
							}
						}
					}
				})
			})
		}
	}
	t.Run("11 links are named", func(t *testing.T) {
		t.Parallel()
		_, _, said := irfs("status", "-r", s.registry)
		if !strings.Contains(said, "app-symlink") {
			t.Errorf("irfs status does not name the link: %q", said)
		}
	})
}

// 10: what a caller writes for a name leads nowhere either.
func commandLines(t *testing.T, s *stage) {
	trusting := []string{"-c", key("root-ca.pub")}
	for _, name := range []string{"../outside", "good/../good", "./good", "/good", "good/", "good//", "", ".", "..", "good/.", "good\x00", ".irfs", strings.Repeat("a", 256), strings.Repeat("a/", 3000) + "a"} {
		if strings.ContainsRune(name, 0) {
			continue // cannot be passed on
		}
		t.Run(fmt.Sprintf("10 app %.20q", name), func(t *testing.T) {
			t.Parallel()
			for _, args := range [][]string{
				append([]string{"verify-image", "-r", s.registry, "-a", name, "-d", "x"}, trusting...),
				append([]string{"sign-image", "-r", s.registry, "-a", name, "-d", "x"}, signing()...),
			} {
				if out, code, said := irfs(args...); code != 1 && code != 2 || out != "" || said == "" {
					t.Errorf("irfs %.100q: exit code %d, %q, %q", args, code, out, said)
				}
			}
		})
	}
	for _, reference := range []string{"sha256:../../../../outside/file", "sha256:/etc/passwd", "sha256:" + strings.ToUpper(someHex), "sha256:" + someHex[1:], "md5:" + someHex[:32], "sha256:", "../x", "x/../x", "", strings.Repeat("x", 5000)} {
		t.Run(fmt.Sprintf("10 reference %.20q", reference), func(t *testing.T) {
			t.Parallel()
			for _, args := range [][]string{
				append([]string{"verify-image", "-r", s.registry, "-a", "good", "-d", reference}, trusting...),
				append([]string{"sign-image", "-r", s.registry, "-a", "good", "-d", reference}, signing()...),
			} {
				if out, code, said := irfs(args...); code != 1 && code != 2 || out != "" || said == "" {
					t.Errorf("irfs %.100q: exit code %d, %q, %q", args, code, out, said)
				}
			}
		})
	}
	for _, name := range []string{"../outside/file", "good/../../outside/file", "good/blobs/../../../outside/file", "good/blobs/sha256/../../../../outside/file", "good/tags/../../../outside/file", "good/manifests/sha256-..%2f..", "good/blobs/sha256/" + strings.ToUpper(someHex), "good/blobs/md5/x"} {
		t.Run("10 path "+name, func(t *testing.T) {
			t.Parallel()
			if out, code, said := irfs("cat", "-r", s.registry, name); code != 1 || strings.Contains(out, "canary") || said == "" {
				t.Errorf("irfs cat: exit code %d, %q, %q", code, out, said)
			}
		})
	}
}
