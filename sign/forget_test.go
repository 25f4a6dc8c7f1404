package sign

import (
	"context"
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
		snap, err := app.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		e, err := snap.Tag("x")
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
