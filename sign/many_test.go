package sign_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"irfs/layout"
	"irfs/layout/sample"
	"irfs/sign"
)

// opened counts how often file is opened while do runs.
func opened(t testing.TB, file string, do func()) int {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	defer unix.Close(fd)
	// Two equal events in a row become one; so the closing is watched as well.
	_, err = unix.InotifyAddWatch(fd, file, unix.IN_OPEN|unix.IN_CLOSE)
	must(t, err)
	do()
	events := 0
	buf := make([]byte, 1<<20)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			return events / 2
		}
		must(t, err)
		events += n / unix.SizeofInotifyEvent
	}
}

// A manifest is read once, however many tags it has.
func TestSignableReadsOnce(t *testing.T) {
	l := sample.New()
	image := l.Image(sample.Linux("amd64"))
	for i := range 1000 {
		l.Tag(fmt.Sprint(i), image)
	}
	app, dir := appOf(t, l)
	snap, err := app.Snapshot(t.Context())
	must(t, err)
	n := opened(t, filepath.Join(dir, sample.Path(image.Digest)), func() {
		list, err := sign.Signable(t.Context(), snap)
		if err != nil || len(list) != 1 || list[0].Digest != image.Digest {
			t.Errorf("%d entries, %v", len(list), err)
		}
	})
	if n != 1 {
		t.Errorf("it was opened %d times", n)
	}
}

// Many who ask for one image that is corrupt get one answer, as those do who ask for a good one.
func TestVerifyCorruptImageByMany(t *testing.T) {
	l := sample.New()
	l.Tag("x", l.Manifest(v1.Manifest{
		Config: l.Blob(v1.MediaTypeImageConfig, []byte(`{"x":"`+strings.Repeat("x", 2<<20)+`"`)),
		Layers: []v1.Descriptor{},
	}))
	app, _ := appOf(t, l)
	verifier := sign.NewVerifier(trust(ca))
	snap, e := resolve(t, app, "x")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			v, err := verifier.Verify(context.Background(), app, snap, e, true)
			if err != nil || v.Status != sign.Corrupt || !strings.HasPrefix(v.Reason, "config: ") {
				t.Errorf("%+v, %v", v, err)
			}
		})
	}
	all.Wait()
	runtime.ReadMemStats(&after)
	if mib := (after.TotalAlloc - before.TotalAlloc) >> 20; mib > 200 {
		t.Errorf("it took %d MiB", mib)
	}
}

// A layer is read once for all that ask, however often it is named, also where nothing proves that it stays as it is.
func TestLayersAreCheckedOnce(t *testing.T) {
	ctx := context.Background()
	text := make([]byte, 4<<20)
	rand.Read(text)
	layer := sample.Gzip("a", string(text))
	const many = 200
	l := sample.New()
	blob := l.Blob(v1.MediaTypeImageLayerGzip, layer.Blob())
	image := func(n, layers int) v1.Descriptor {
		config := v1.Image{Author: fmt.Sprint(n), Platform: sample.Linux("amd64"), RootFS: v1.RootFS{Type: "layers"}}
		m := v1.Manifest{}
		for range layers {
			config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.DiffID())
			m.Layers = append(m.Layers, blob)
		}
		m.Config = l.Document(v1.MediaTypeImageConfig, config)
		d := l.Manifest(m)
		d.Platform = &v1.Platform{OS: "linux", Architecture: "amd64", Variant: fmt.Sprint(n)}
		return d
	}
	l.Tag("often", image(-1, many))
	var images []v1.Descriptor
	for n := range many {
		d := image(n, 1)
		l.Tag(fmt.Sprint(n), d)
		images = append(images, d)
	}
	l.Tag("index", l.Index(images...))
	other := l.Blob("text/plain", []byte(strings.Repeat("x", 1<<20)))
	artifact := v1.Manifest{Config: l.Blob("text/plain", []byte("{}"))}
	for range many {
		artifact.Layers = append(artifact.Layers, other)
	}
	l.Tag("artifact", l.Manifest(artifact))
	app, dir := appOf(t, l)
	verifier := sign.NewVerifier(trust(ca))
	verify := func(ref string) {
		snap, e := resolve(t, app, ref)
		v, err := verifier.Verify(ctx, app, snap, e, true)
		must(t, err)
		if v.Layers != sign.LayersVerified {
			t.Errorf("%s: %s", ref, v.Text())
		}
	}
	for _, row := range []struct {
		what string
		blob v1.Descriptor
		most int
		do   func()
	}{
		{"an image", blob, 1, func() { verify("often") }},
		{"an index", blob, 1, func() { verify("index") }},
		{"an index, again", blob, 1, func() { verify("index") }},
		{"many at once", blob, many / 2, func() {
			var all sync.WaitGroup
			for n := range many {
				all.Go(func() { verify(fmt.Sprint(n)) })
			}
			all.Wait()
		}},
		{"an artifact", other, 2, func() { verify("artifact") }}, // and once for what it begins with
	} {
		if n := opened(t, filepath.Join(dir, sample.Path(row.blob.Digest)), row.do); n > row.most {
			t.Errorf("%s: the layer was opened %d times", row.what, n)
		}
	}
}

// What the images of an index have for manifests and configs is bounded together, however few there are and however often they are named.
func TestDocumentsOfAnIndexAreLimited(t *testing.T) {
	const size = 4 << 20
	for _, row := range []struct {
		name  string
		image func(l *sample.Layout, n int) v1.Descriptor
	}{
		{"one image, named often", func(l *sample.Layout, n int) v1.Descriptor {
			config := v1.Image{Author: strings.Repeat("x", size), RootFS: v1.RootFS{Type: "layers"}}
			return l.Manifest(v1.Manifest{Config: l.Document(v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{}})
		}},
		{"two configs of many images", func(l *sample.Layout, n int) v1.Descriptor {
			config := v1.Image{Author: strings.Repeat(fmt.Sprint(n%2), size), RootFS: v1.RootFS{Type: "layers"}}
			return l.Manifest(v1.Manifest{Config: l.Document(v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{}, Annotations: map[string]string{"n": fmt.Sprint(n)}})
		}},
		{"artifacts", func(l *sample.Layout, n int) v1.Descriptor {
			return l.Manifest(v1.Manifest{Config: l.Blob("text/plain", []byte(strings.Repeat("x", size))), Layers: []v1.Descriptor{}})
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := sample.New()
			var few, many []v1.Descriptor
			for n := range layout.MaxDocuments/size + 1 {
				d := row.image(l, n)
				d.Platform = &v1.Platform{OS: "linux", Architecture: "amd64", Variant: fmt.Sprint(n)}
				if n < 3 {
					few = append(few, d)
				}
				many = append(many, d)
			}
			l.Tag("few", l.Index(few...))
			l.Tag("many", l.Index(many...))
			app, _ := appOf(t, l)
			verifier := sign.NewVerifier(trust(ca))
			if v := verify(t, verifier, app, "few", false); v.Status != sign.Unsigned {
				t.Errorf("few: %s", v.Text())
			}
			wantWord(t, verify(t, verifier, app, "many", false), sign.Corrupt, "are over the limit of 134217728 bytes")
			if _, err := signRefs(signerOf(t, vendor, ca), app, "many"); !errors.Is(err, layout.ErrLimit) {
				t.Errorf("signing: %v", err)
			}
		})
	}
}

// The documents of images that are verified at a time have room together: an image waits for as much as its manifest and config take, and no longer than
// who asks.
func TestDocumentsTakeRoom(t *testing.T) {
	l := sample.New()
	l.Tag("small", l.Image(sample.Linux("amd64"), sample.Plain("a", "b")))
	diff := sample.Plain("a", "b").DiffID()
	long := func(mediaType, text string) v1.Descriptor { return l.Blob(mediaType, []byte(text)) }
	config := long(v1.MediaTypeImageConfig, fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}%s}`, diff, strings.Repeat(" ", 2<<20)))
	layer := l.Blob(v1.MediaTypeImageLayer, sample.Plain("a", "b").Blob())
	l.Tag("config", l.Manifest(v1.Manifest{Config: config, Layers: []v1.Descriptor{layer}}))
	manifest := string(l.Bytes(l.Image(sample.Linux("amd64"), sample.Plain("a", "c"))))
	l.Tag("manifest", long(v1.MediaTypeImageManifest, manifest+strings.Repeat(" ", 2<<20)))
	app, _ := appOf(t, l)
	snap, err := app.Snapshot(t.Context())
	must(t, err)
	for _, tag := range []string{"small", "config", "manifest"} {
		verifier := sign.NewVerifier(trust(ca))
		free, err := verifier.Occupy(t.Context(), 1<<20)
		must(t, err)
		_, e := resolve(t, app, tag)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err = verifier.Verify(ctx, app, snap, e, false)
		cancel()
		if waits := tag != "small"; waits != errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", tag, err)
		}
		free()
		if v, err := verifier.Verify(t.Context(), app, snap, e, false); err != nil || v.Status != sign.Unsigned {
			t.Errorf("%s, when there is room: %v, %v", tag, v, err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := verifier.Occupy(ctx, 0); err != nil {
			t.Errorf("%s: not all of the room is given back: %v", tag, err)
		}
		cancel()
	}
}

// Whatever size a descriptor claims, the word is corrupt, and nobody waits for room that there will never be.
func TestSizesThatAreClaimed(t *testing.T) {
	l := sample.New()
	image := l.Image(sample.Linux("amd64"), sample.Plain("a", "b"))
	var list []v1.Descriptor
	for i, size := range []int64{math.MaxInt64, math.MaxInt64 - 1<<10, 1 << 40, layout.MaxManifest + 1} {
		d := v1.Descriptor{MediaType: image.MediaType, Digest: digest.FromString(fmt.Sprint(i)), Size: size}
		l.Tag(fmt.Sprint(i), d)
		m := v1.Manifest{Config: image, Layers: []v1.Descriptor{image}}
		m.Config.MediaType, m.Config.Size = v1.MediaTypeImageConfig, size
		l.Tag(fmt.Sprint("config", i), l.Manifest(m))
		image.Size = size
		list = append(list, image)
	}
	l.Tag("index", l.Index(list...))
	app, _ := appOf(t, l)
	verifier := sign.NewVerifier(trust(ca))
	snap, err := app.Snapshot(t.Context())
	must(t, err)
	for _, tag := range snap.Tags() {
		_, e := resolve(t, app, tag)
		for _, full := range []bool{false, true} {
			if v, err := verifier.Verify(t.Context(), app, snap, e, full); err != nil || v.Status != sign.Corrupt {
				t.Errorf("%s: %v, %v", tag, v, err)
			}
		}
	}
}

// Who joins a verification gets nothing that was found before he asked: a layer that the images of an index share is checked once, and changes before
// another one asks for the last of them.
func TestLayerChangesAmongTheImagesOfAnIndex(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := sample.New()
	shared := sample.Gzip("a", "shared")
	l.Tag("first", l.Image(sample.Linux("amd64"), shared))
	l.Tag("last", l.Image(sample.Linux("arm64"), shared, sample.Gzip("b", strings.Repeat("\x00", 256<<20)))) // which takes a while
	app, dir := appOf(t, l)
	time.Sleep(2100 * time.Millisecond) // until times prove something
	verifier := sign.NewVerifier(trust(ca))
	snap, first := resolve(t, app, "first")
	_, last := resolve(t, app, "last")
	began := time.Now()
	v, err := verifier.VerifySince(ctx, app, snap, first, began)
	must(t, err)
	if v.Layers != sign.LayersVerified {
		t.Fatal(v.Text())
	}
	name := filepath.Join(dir, sample.Path(l.Blob(v1.MediaTypeImageLayerGzip, shared.Blob()).Digest))
	data, err := os.ReadFile(name)
	must(t, err)
	data[len(data)-1] ^= 1
	must(t, os.WriteFile(name, data, 0o644))
	asked := time.Now()
	var other sync.WaitGroup
	other.Go(func() {
		if _, err := verifier.VerifySince(ctx, app, snap, last, began); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(30 * time.Millisecond) // in the midst of the second layer
	v, err = verifier.VerifySince(ctx, app, snap, last, asked)
	must(t, err)
	if v.Layers != sign.LayersCorrupt {
		t.Errorf("who asked after the layer had changed was told: %s", v.Text())
	}
	other.Wait()
}

// What is signed already is left as it is, byte for byte; what a signer left who was killed is not.
func TestSignAgainCleansUp(t *testing.T) {
	l := sample.New()
	image := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"))
	l.Tag("x", l.Index(image, l.Attestation(image)))
	app, dir := appOf(t, l)
	signer := signerOf(t, vendor, ca)
	_, err := signRefs(signer, app, "x")
	must(t, err)
	signed := tree(t, dir)
	dead := dir + "/.irfs/.work-" + strings.Repeat("d", 26)
	must(t, os.MkdirAll(dead, 0o700))
	must(t, os.WriteFile(dead+"/file", []byte("x"), 0o600))

	start := time.Now()
	outcome, err := signRefs(signer, app, "x")
	must(t, err)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	if !strings.HasSuffix(outcome.Text(), " (was signed just so)") || len(outcome.Change.Moved) != 0 {
		t.Error(outcome.Text())
	}
	refused(t, dir, signed, nil, nil, "")
}
