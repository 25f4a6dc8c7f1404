package sign_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

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
	must(t, os.MkdirAll(dir+"/.irfs/dead", 0o755))
	must(t, os.WriteFile(dir+"/.irfs/dead/file", []byte("x"), 0o600))

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
