package layout_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"irfs/layout"
	"irfs/layout/sample"
	"irfs/sign"
)

// keys are made once, for making them takes time.
var keys = sync.OnceValue(func() (k struct{ vendor, ca *sign.PrivateKey }) {
	for _, key := range []**sign.PrivateKey{&k.vendor, &k.ca} {
		made, err := sign.GenerateKey()
		if err != nil {
			panic(err)
		}
		*key = made
	}
	return k
})

func signer(t testing.TB) *sign.Signer {
	t.Helper()
	s, err := sign.NewCertifyingSigner(keys().vendor, keys().ca)
	must(t, err)
	return s
}

func signRef(t testing.TB, app *layout.App, ref string) (*sign.Outcome, error) {
	return signer(t).Sign(context.Background(), app, func(snap *layout.Snapshot) ([]layout.Entry, error) {
		e, err := snap.Resolve(t.Context(), ref)
		return []layout.Entry{e}, err
	})
}

// signed adds a properly signed image to l: the same as image, but for its annotations.
func signed(t testing.TB, l *sample.Layout, image v1.Descriptor) v1.Descriptor {
	t.Helper()
	var m v1.Manifest
	must(t, json.Unmarshal(l.Bytes(image), &m))
	text := func(key *sign.PrivateKey, message []byte) string {
		signature, err := key.Sign(message)
		must(t, err)
		return hex.EncodeToString(signature)
	}
	pub := keys().vendor.Public().DER()
	m.Annotations = map[string]string{
		sign.SignatureAnnotation:   text(keys().vendor, l.Bytes(m.Config)),
		sign.VendorPubAnnotation:   hex.EncodeToString(pub),
		sign.CertificateAnnotation: text(keys().ca, pub),
	}
	d := l.Manifest(m)
	d.Platform = image.Platform
	return d
}

// verdict is the word and the reason that a reference gets. An index.json that cannot be used gives corrupt.
func verdict(t testing.TB, app *layout.App, ref string, full bool) (sign.Status, string) {
	t.Helper()
	snap := snapshot(t, app)
	if snap.Err != nil {
		return sign.Corrupt, snap.Err.Error()
	}
	e, err := snap.Resolve(t.Context(), ref)
	must(t, err)
	v, err := sign.NewVerifier(sign.NewTrust(keys().ca.Public())).Verify(context.Background(), app, snap, e, full)
	must(t, err)
	return v.Status, v.Reason
}

// retext adds a blob like that of d, with the text old in it replaced by new.
func retext(t testing.TB, l *sample.Layout, d v1.Descriptor, old, new string) v1.Descriptor {
	t.Helper()
	text := string(l.Bytes(d))
	if strings.Count(text, old) != 1 {
		t.Fatalf("%q is in %s %d times", old, text, strings.Count(text, old))
	}
	again := l.Blob(d.MediaType, []byte(strings.Replace(text, old, new, 1)))
	again.Platform, again.Annotations = d.Platform, d.Annotations
	return again
}

// indexText replaces text in the index.json of l, whose only image is tagged x.
func indexText(t testing.TB, l *sample.Layout, old, new string) sample.Files {
	t.Helper()
	files := l.Files()
	text := string(files["index.json"])
	if !strings.Contains(text, old) {
		t.Fatalf("%q is not in %s", old, text)
	}
	files["index.json"] = []byte(strings.Replace(text, old, new, 1))
	return files
}

// withConfig swaps the config for one with other bytes, under a signature that fits it.
func withConfig(t testing.TB, l *sample.Layout, image v1.Descriptor, config []byte) v1.Descriptor {
	t.Helper()
	var m v1.Manifest
	must(t, json.Unmarshal(l.Bytes(image), &m))
	m.Config = l.Blob(m.Config.MediaType, config)
	return signed(t, l, l.Manifest(m))
}

// Each row damages a layout whose image, tagged x, is properly signed, in one way. Then its word is corrupt, the reason says why, and
// signing it is refused and changes nothing. The number is that of the row in HOSTILE.
func TestHostileLayouts(t *testing.T) {
	type damage = func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string)
	blob := func(dir string, d v1.Descriptor) string { return filepath.Join(dir, sample.Path(d.Digest)) }
	// manifest makes a row of a manifest that is signed, has the right digest, and one text in it replaced.
	manifest := func(old, new string) damage {
		return func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			l.Tag("x", retext(t, l, good, old, new))
			must(t, l.WriteDir(dir))
		}
	}
	// index makes a row of an index.json with one text in it replaced.
	index := func(old, new string) damage {
		return func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			l.Tag("x", good)
			must(t, indexText(t, l, old, new).WriteDir(dir))
		}
	}
	// config makes a row of a config that is signed as it is.
	config := func(text string) damage {
		return func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			l.Tag("x", withConfig(t, l, good, []byte(text)))
			must(t, l.WriteDir(dir))
		}
	}
	// onDisk makes a row of what happens to the files of a good layout.
	onDisk := func(change func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string)) damage {
		return func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			l.Tag("x", good)
			must(t, l.WriteDir(dir))
			change(t, l, good, dir)
		}
	}
	// instead puts something else in the place of a file or directory.
	instead := func(of func(dir string, good v1.Descriptor) string, put func(t *testing.T, was, name string)) damage {
		return onDisk(func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			name := of(dir, good)
			was := filepath.Join(filepath.Dir(dir), ".was")
			must(t, os.Rename(name, was))
			put(t, was, name)
		})
	}
	symlink := func(t *testing.T, was, name string) { must(t, os.Symlink(was, name)) }
	fifo := func(t *testing.T, _, name string) { must(t, syscall.Mkfifo(name, 0o644)) }
	directory := func(t *testing.T, _, name string) { must(t, os.Mkdir(name, 0o755)) }
	socket := func(t *testing.T, _, name string) { must(t, syscall.Mknod(name, syscall.S_IFSOCK|0o644, 0)) }
	device := func(t *testing.T, _, name string) {
		if err := syscall.Mknod(name, syscall.S_IFCHR|0o644, 1<<8|5); err != nil { // /dev/zero
			t.Skip("no device can be made here: ", err)
		}
	}
	theBlob := func(dir string, good v1.Descriptor) string { return blob(dir, good) }
	theBlobs := func(dir string, _ v1.Descriptor) string { return dir + "/blobs" }
	theIndex := func(dir string, _ v1.Descriptor) string { return dir + "/index.json" }
	sparse := func(t *testing.T, file string, size int64) {
		must(t, os.Truncate(file, size))
	}
	const (
		layers = `"layers":[`
		ours   = `"` + sign.SignatureAnnotation + `":`
	)
	hex0 := strings.Repeat("0", 64)

	for _, row := range []struct {
		name   string
		damage damage
		reason string
	}{
		{"1 duplicate member of a manifest", manifest(layers, layers+`],`+layers), "layers: there are two members of that name"},
		{"1 duplicate annotation", manifest(ours, ours+`"00",`+ours), "there are two members of that name"},
		{"1 duplicate member deep in unknown ones", manifest(layers, `"x":[{"y":{"a":1,"a":2}}],`+layers), "x[0].y.a: there are two members of that name"},
		{"1 duplicate member spelled with an escape", manifest(layers, `"l\u0061yers":[],`+layers), "layers: there are two members of that name"},
		{"1 duplicate member of index.json", index(`"manifests":`, `"manifests":[],"manifests":`), "index.json: manifests: there are two members"},
		{"1 duplicate digest of a descriptor", index(`"digest":`, `"digest":"sha256:`+hex0+`","digest":`), "manifests[0].digest: there are two members"},
		{"1 duplicate member of the config", config(`{"rootfs":{"type":"layers","diff_ids":[]},"rootfs":{"type":"layers"}}`), "rootfs: there are two members"},
		{"2 layers in other case only", manifest(layers, `"Layers":[`), `Layers: some programs take this for the member "layers"`},
		{"2 config in other case only", manifest(`"config":`, `"CONFIG":`), `CONFIG: some programs take this for the member "config"`},
		{"2 digest in other case only", index(`"digest":`, `"dige\u017ft":`), `some programs take this for the member "digest"`},
		{"2 rootfs in other case only", config(`{"RootFS":{"type":"layers","diff_ids":["sha256:` + hex0 + `"]}}`), `config: RootFS: some programs take this for the member "rootfs"`},
		{"3 trailing bytes in a manifest", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			l.Tag("x", l.Blob(good.MediaType, append(bytes.Clone(l.Bytes(good)), '{')))
			must(t, l.WriteDir(dir))
		}, "there is something after the end of the document"},
		{"3 trailing bytes in the config", config(`{} {}`), "there is something after the end of the document"},
		{"3 byte order mark in index.json", index(`{"schemaVersion"`, "\ufeff"+`{"schemaVersion"`), "begins with a byte order mark"},
		{"3 invalid UTF-8", manifest(layers, `"x":"`+"\xff"+`",`+layers), "invalid UTF-8"},
		{"3 lone surrogate", manifest(layers, `"x":"\ud800",`+layers), "surrogate"},
		{"3 nested 65 deep", manifest(layers, `"x":`+strings.Repeat("[", 64)+strings.Repeat("]", 64)+`,`+layers), "nested more than 64 deep"},
		{"4 both layers and manifests", manifest(layers, `"manifests":[],`+layers), "manifests belongs in an index, not in a manifest"},
		{"4 index.json with layers", index(`"manifests":`, layers+`],"manifests":`), "layers belongs in a manifest, not in an index"},
		{"4 an index with a config", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			l.Tag("x", retext(t, l, l.Index(good), `"manifests":`, `"config":{},"manifests":`))
			must(t, l.WriteDir(dir))
		}, "config belongs in a manifest, not in an index"},
		{"4 body's mediaType is another", manifest(`"mediaType":"`+v1.MediaTypeImageManifest, `"mediaType":"`+layout.MediaTypeDockerManifest), "is not that of the descriptor"},
		{"4 image called an index", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			l.Untyped = true
			d := signed(t, l, good)
			d.MediaType = v1.MediaTypeImageIndex
			l.Tag("x", d)
			must(t, l.WriteDir(dir))
		}, "belongs in a manifest, not in an index"},
		{"4 called an image and an index", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			l.Tag("x", good)
			good.MediaType = v1.MediaTypeImageIndex
			l.Tag("y", good)
			must(t, l.WriteDir(dir))
		}, "its descriptors disagree"},
		{"5 negative size", index(`"size":`, `"size":-`), "is not a whole number"},
		{"5 size over 2^63", index(`"size":`, `"size":9223372036854775808`), "too large"},
		{"5 size 1e3", index(`"size":`, `"size":1e3,"x":`), "1e3 is not a whole number"},
		{"5 size one too small", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			good.Size--
			l.Tag("x", good)
			must(t, l.WriteDir(dir))
		}, "bytes, and not the"},
		{"5 manifest of 1 TiB", onDisk(func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			sparse(t, blob(dir, good), 1<<40)
		}), "1099511627776 bytes, and not the"},
		{"5 config of 1 TiB", onDisk(func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			var m v1.Manifest
			must(t, json.Unmarshal(l.Bytes(good), &m))
			sparse(t, blob(dir, m.Config), 1<<40)
		}), "1099511627776 bytes, and not the"},
		{"5 two descriptors that disagree", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			l.Tag("x", good)
			good.Size = 7
			l.Tag("y", good)
			must(t, l.WriteDir(dir))
		}, "its descriptors disagree"},
		{"6 manifest over 4 MiB", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			text := bytes.Replace(l.Bytes(good), []byte(layers), []byte(`"x":"`+strings.Repeat("x", layout.MaxManifest)+`",`+layers), 1)
			l.Tag("x", l.Blob(good.MediaType, text))
			must(t, l.WriteDir(dir))
		}, "over the limit of 4194304"},
		{"6 manifest of 1 TiB, as its descriptor says", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			good.Size = 1 << 40
			l.Tag("x", good)
			must(t, l.WriteDir(dir))
			sparse(t, blob(dir, good), 1<<40)
		}, "over the limit of 4194304"},
		{"6 config over 8 MiB", config(`{"x":"` + strings.Repeat("x", layout.MaxConfig) + `"}`), "over the limit of 8388608"},
		{"6 index over 64 MiB", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			d := l.Index(good)
			d.Size = layout.MaxIndex + 1
			l.Tag("x", d)
			must(t, l.WriteDir(dir))
			sparse(t, blob(dir, d), d.Size)
		}, "over the limit of 67108864"},
		{"6 index.json over 64 MiB", onDisk(func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			sparse(t, dir+"/index.json", layout.MaxIndex+1)
		}), "over the limit of 67108864"},
		{"7 twenty levels of index, each naming the next ten times", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			d := good
			for range 20 {
				d = l.Index(d, d, d, d, d, d, d, d, d, d)
			}
			l.Tag("x", d)
			must(t, l.WriteDir(dir))
		}, "at most 8 lie inside each other"},
		{"8 the same tag twice", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			l.Tag("x", good)
			l.Tag("x", l.Image(sample.Linux("arm64")))
			must(t, l.WriteDir(dir))
		}, `the tag "x" is given twice`},
		{"9 inline data that is not the blob", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			good.Data = append(bytes.Clone(l.Bytes(good)), ' ')
			l.Tag("x", good)
			must(t, l.WriteDir(dir))
		}, "the data inlined in its descriptor is not the blob's"},
		{"9 inline data of the config is not the blob", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			var m v1.Manifest
			must(t, json.Unmarshal(l.Bytes(good), &m))
			m.Config.Data = []byte("{}")
			l.Tag("x", l.Manifest(m))
			must(t, l.WriteDir(dir))
		}, "the data inlined in its descriptor is not the blob's"},
		{"9 empty inline data", index(`"digest":`, `"data":"","digest":`), "the data inlined in its descriptor is not the blob's"},
		{"10 digest with ..", index(`"digest":"sha256:`, `"digest":"sha256:../../`), "is not a digest: after sha256: there must be 64"},
		{"10 digest with a slash", index(`"digest":"sha256:`, `"digest":"sha256:/`), "is not a digest"},
		{"10 digest with NUL", index(`"digest":"sha256:`, `"digest":"sha256:\u0000`), "is not a digest"},
		{"10 digest in upper case", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			index(string(good.Digest), "sha256:"+strings.ToUpper(good.Digest.Encoded()))(t, l, good, dir)
		}, "is not a digest"},
		{"10 digest too short", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			index(string(good.Digest), string(good.Digest[:70]))(t, l, good, dir)
		}, "is not a digest"},
		{"10 unknown algorithm", index(`"digest":"sha256:`, `"digest":"md5:`), "is not a digest"},
		{"10 layer's digest with ..", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			text := string(l.Bytes(good))
			at := strings.Index(text, layers)
			old := text[at : at+strings.Index(text[at:], `"size"`)]
			manifest(old, strings.Replace(old, "sha256:", "sha256:../", 1))(t, l, good, dir)
		}, "layers[0].digest"},
		{"11 blob is a symlink", instead(theBlob, symlink), "a symbolic link stands in the way, and is not followed"},
		{"11 blob is a FIFO", instead(theBlob, fifo), "not a regular file but a FIFO"},
		{"11 blob is a directory", instead(theBlob, directory), "not a regular file but a directory"},
		{"11 blob is a socket", instead(theBlob, socket), "not a regular file"},
		{"11 blob is a device", instead(theBlob, device), "not a regular file but a device"},
		{"11 blobs is a symlink", instead(theBlobs, symlink), "a symbolic link stands in the way, and is not followed"},
		{"11 blobs is a FIFO", instead(theBlobs, fifo), "not a directory"},
		{"11 index.json is a symlink", instead(theIndex, symlink), "index.json: a symbolic link"},
		{"11 index.json is a FIFO", instead(theIndex, fifo), "index.json: not a regular file but a FIFO"},
		{"11 index.json is a directory", instead(theIndex, directory), "index.json: not a regular file but a directory"},
		{"11 index.json is not there", onDisk(func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			must(t, os.Remove(dir+"/index.json"))
		}), "index.json: not there"},
		{"12 one bit of the manifest", onDisk(func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			text := bytes.Clone(l.Bytes(good))
			text[len(text)/2] ^= 1
			write(t, blob(dir, good), string(text))
		}), "the blob's bytes do not have this digest"},
		{"12 one bit of the config", onDisk(func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			var m v1.Manifest
			must(t, json.Unmarshal(l.Bytes(good), &m))
			text := bytes.Clone(l.Bytes(m.Config))
			text[len(text)/2] ^= 1
			write(t, blob(dir, m.Config), string(text))
		}), "the blob's bytes do not have this digest"},
		{"12 one bit of the index", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			d := l.Index(good)
			l.Tag("x", d)
			must(t, l.WriteDir(dir))
			text := bytes.Replace(l.Bytes(d), []byte(`"amd64"`), []byte(`"arm64"`), 1)
			write(t, blob(dir, d), string(text))
		}, "the blob's bytes do not have this digest"},
		{"12 the manifest is missing", onDisk(func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			must(t, os.Remove(blob(dir, good)))
		}), "not in the layout"},
		{"20 config is not JSON", config("hello"), "config"},
		{"20 config is a public key", func(t *testing.T, l *sample.Layout, good v1.Descriptor, dir string) {
			l.Tag("x", withConfig(t, l, good, keys().vendor.Public().DER()))
			must(t, l.WriteDir(dir))
		}, "config: found a number, want an object"},
		{"20 empty config", config("{}"), `rootfs.type is "", and not "layers"`},
		{"21 fewer diff_ids than layers", config(`{"rootfs":{"type":"layers","diff_ids":[]}}`), "the manifest has 1 layers, the config 0 diff_ids"},
		{"21 more diff_ids than layers", config(`{"rootfs":{"type":"layers","diff_ids":["sha256:` + hex0 + `","sha256:` + hex0 + `"]}}`), "the manifest has 1 layers, the config 2 diff_ids"},
		{"21 rootfs.type", config(`{"rootfs":{"type":"bundle","diff_ids":["sha256:` + hex0 + `"]}}`), `rootfs.type is "bundle", and not "layers"`},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			l := sample.New()
			good := signed(t, l, l.Image(sample.Linux("amd64"), sample.Gzip("motd", "hello\n")))
			dir := t.TempDir()
			row.damage(t, l, good, filepath.Join(dir, "app"))
			if info, err := os.Lstat(dir + "/app/index.json"); err == nil && info.Mode().IsRegular() {
				age(t, dir+"/app/index.json")
			}
			old := time.Now().Add(-time.Hour)
			must(t, os.Chtimes(dir+"/app", old, old)) // tells the age of an index.json that cannot be read
			app := appIn(t, dir)

			start := time.Now()
			for _, full := range []bool{false, true} {
				word, reason := verdict(t, app, "x", full)
				if word != sign.Corrupt || !strings.Contains(reason, row.reason) {
					t.Errorf("%s, %q; want corrupt, and %q", word, reason, row.reason)
				}
			}
			before := tree(t, dir)
			_, err := signRef(t, app, "x")
			want(t, err, layout.ErrCorrupt, row.reason)
			same(t, dir, before)
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
}

// The rows above would show nothing if their good image were not verified.
func TestHostileRowsBeginVerified(t *testing.T) {
	l := sample.New()
	l.Tag("x", signed(t, l, l.Image(sample.Linux("amd64"), sample.Gzip("motd", "hello\n"))))
	if word, reason := verdict(t, appOf(t, l), "x", true); word != sign.Verified {
		t.Errorf("%s, %s", word, reason)
	}
}

// What is wrong beside the image that is signed would be put right by signing it, and nobody would ever see it again.
func TestHostileNeighbours(t *testing.T) {
	for _, row := range []struct {
		name   string
		tag    func(l *sample.Layout, image v1.Descriptor)
		reason string
	}{
		{"8 the same tag twice, reached by digest", func(l *sample.Layout, image v1.Descriptor) {
			l.Tag("y", image)
			l.Tag("y", image)
		}, ""},
		{"9 inline data of another tag is not the blob", func(l *sample.Layout, image v1.Descriptor) {
			image.Data = append(bytes.Clone(l.Bytes(image)), ' ')
			l.Tag("y", image)
		}, "the data inlined in its descriptor is not the blob's"},
		{"9 inline data in an index is not the blob", func(l *sample.Layout, image v1.Descriptor) {
			image.Data = append(bytes.Clone(l.Bytes(image)), ' ')
			l.Tag("y", l.Index(image))
		}, "the data inlined in its descriptor is not the blob's"},
		{"5 size in an index", func(l *sample.Layout, image v1.Descriptor) {
			image.Size++
			l.Tag("y", l.Index(image))
		}, "its descriptors disagree"},
		{"5 size of the index", func(l *sample.Layout, image v1.Descriptor) {
			index := l.Index(image)
			l.Tag("y", index)
			index.Size++
			l.Tag("z", index)
		}, "its descriptors disagree"},
		{"12 the bytes of the index", func(l *sample.Layout, image v1.Descriptor) {
			index := l.Index(image)
			l.Tag("y", index)
			l.Bytes(index)[0] = ' '
		}, ""}, // what cannot be read names nothing
	} {
		t.Run(row.name, func(t *testing.T) {
			l := sample.New()
			image := l.Image(sample.Linux("amd64"))
			l.Add(image)
			row.tag(l, image)
			dir := writeApp(t, l)
			app := appIn(t, dir)
			before := tree(t, dir)
			_, err := signRef(t, app, image.Digest.String())
			if row.reason == "" {
				must(t, err)
				return
			}
			want(t, err, layout.ErrCorrupt, row.reason)
			same(t, dir, before)
		})
	}
}

// 11: whoever has a lease on a blob (fcntl(2)) can keep others from opening it, but cannot make them wait for ever.
func TestLeaseOnABlob(t *testing.T) {
	l := small()
	dir := writeApp(t, l)
	app := appIn(t, dir)
	snap := snapshot(t, app)
	e, err := snap.Tag(t.Context(), "x")
	must(t, err)
	file, err := os.OpenFile(filepath.Join(dir, "app", sample.Path(e.Digest)), os.O_RDWR, 0)
	must(t, err)
	defer file.Close()
	if _, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skip("no leases here: ", err)
	}
	signal.Ignore(unix.SIGIO) // asks for the lease
	defer signal.Reset(unix.SIGIO)
	start := time.Now()
	if _, err := snap.Manifest(t.Context(), e); !errors.Is(err, unix.EAGAIN) || time.Since(start) > 3*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	must(t, file.Close())
	_, err = snap.Manifest(t.Context(), e)
	must(t, err)
}

// 7: each blob of a deep and wide index is visited once.
func TestIndexInIndexInIndex(t *testing.T) {
	l := sample.New()
	image := l.Image(sample.Linux("amd64"))
	d := image
	for i := range layout.MaxIndexDepth {
		d = l.Index(d, d, d, d, d, d, d, d, d, d)
		l.Tag(fmt.Sprint(i), d)
	}
	l.Tag("deepest", d)
	app := appOf(t, l)
	start := time.Now()
	outcome, err := signRef(t, app, "deepest")
	must(t, err)
	if len(outcome.Change.Moved) != 1+layout.MaxIndexDepth || len(outcome.Images) != 1 {
		t.Errorf("%d moved, %d images", len(outcome.Change.Moved), len(outcome.Images))
	}
	entries, err := snapshot(t, app).Entries(t.Context())
	must(t, err)
	if len(entries) != 1+layout.MaxIndexDepth {
		t.Errorf("%d entries", len(entries))
	}
	for i := range layout.MaxIndexDepth {
		if word, reason := verdict(t, app, fmt.Sprint(i), true); word != sign.Verified {
			t.Errorf("depth %d: %s, %s", i, word, reason)
		}
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("it took %v", d)
	}
}
