package sign

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"irfs/layout"
	"irfs/layout/sample"
)

// Verdicts on images and apps that are gone are not kept for ever, nor are the apps.
func TestVerifierForgetsWhatIsGone(t *testing.T) {
	dir := t.TempDir()
	reg, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	v := NewVerifier(NewTrust())
	verify := func(name string, n int) {
		t.Helper()
		l := sample.New()
		l.Tag("x", l.Image(sample.Linux("amd64"), sample.Gzip("n", fmt.Sprint(n))))
		if err := l.WriteDir(dir + "/" + name); err != nil {
			t.Fatal(err)
		}
		app, err := reg.App(name)
		if err != nil {
			t.Fatal(err)
		}
		snap, err := app.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		e, err := snap.Tag(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		if verdict, err := v.Verify(context.Background(), app, snap, e, false); err != nil || verdict.Status != Unsigned {
			t.Fatalf("%v, %v", verdict, err)
		}
	}
	for n := range fewVerdicts + 50 {
		verify("again", n)
	}
	if len(v.verdicts) > 60 {
		t.Errorf("%d verdicts are kept, and the app has one image", len(v.verdicts))
	}
	for n := range fewVerdicts + 50 {
		name := fmt.Sprint("app", n)
		verify(name, 0)
		if err := os.RemoveAll(dir + "/" + name); err != nil {
			t.Fatal(err)
		}
	}
	if len(v.verdicts) > 130 {
		t.Errorf("%d verdicts are kept, and one app is there", len(v.verdicts))
	}
}

// What stood in an app's way for a moment is no verdict on its images.
func TestVerifierKeepsNothingOfWhatWasInTheWay(t *testing.T) {
	dir := t.TempDir()
	l := sample.New()
	image := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"))
	l.Tag("x", image)
	app, aside := dir+"/app", dir+"/.aside"
	reg, err := layout.Open(dir)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	defer reg.Close()
	must(l.WriteDir(app))
	a, err := reg.App("app")
	must(err)
	snap, err := a.Snapshot(t.Context())
	must(err)
	e, err := snap.Tag(t.Context(), "x")
	must(err)
	v := NewVerifier(NewTrust())
	for _, name := range []string{"", "/blobs", "/blobs/sha256", "/" + sample.Path(image.Digest)} {
		must(os.Rename(app+name, aside))
		must(os.Symlink(aside, app+name))
		for _, full := range []bool{false, true} {
			verdict, err := v.Verify(t.Context(), a, snap, e, full)
			if name == "" && !errors.Is(err, layout.ErrNotFound) || name != "" && (err != nil || verdict.Status != Corrupt) {
				t.Errorf("beneath a symbolic link at %q: %v, %v", name, verdict, err)
			}
		}
		must(os.Remove(app + name))
		must(os.Rename(aside, app+name))
		for _, full := range []bool{false, true} {
			if verdict, err := v.Verify(t.Context(), a, snap, e, full); err != nil || verdict.Status != Unsigned {
				t.Errorf("after a symbolic link at %q: %v, %v", name, verdict, err)
			}
		}
	}
}
