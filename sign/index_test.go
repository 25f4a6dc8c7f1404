package sign_test

import (
	"context"
	"fmt"
	"testing"

	"irfs/layout"
	"irfs/layout/sample"
	"irfs/sign"
)

// An index that is corrupt, wherever it stands, is corrupt for a reason, and so is each one above it; asking what is known of it ends, too.
func TestVerifyCorruptIndexes(t *testing.T) {
	l := sample.New()
	image := signed(t, l, l.Image(sample.Linux("amd64"), sample.Gzip("a", "b")), vendor, ca, nil)
	bad := l.Index(image, l.Image(sample.Linux("arm64")))
	l.Tag("bad", bad)
	l.Tag("above bad", l.Index(image, bad))
	l.Tag("far above bad", l.Index(l.Index(l.Index(bad, image))))
	twice := l.Index(l.Image(sample.Linux("ppc64le")))
	l.Tag("twice", twice)
	other := twice
	other.Size++
	l.Tag("disagrees", l.Index(l.Image(sample.Linux("386")), other))
	deep := l.Index(sample.Annotate(image, "deep", "deep"))
	for range layout.MaxIndexDepth {
		deep = l.Index(deep)
	}
	l.Tag("deep", deep)
	l.Tag("image", image)
	files := l.Files()
	files[sample.Path(bad.Digest)][0] = ' '
	app, _ := appOf(t, files)
	verifier := sign.NewVerifier(trust(ca))

	snap, err := app.Snapshot(t.Context())
	must(t, err)
	ask := func(name string, e layout.Entry, words string) {
		t.Helper()
		for _, full := range []bool{false, true} {
			if v := verifier.Known(context.Background(), app, snap, e, true); v != nil && v.Status != sign.Corrupt {
				t.Errorf("%s: known as %s, %s", name, v.Status, v.Reason)
			}
			v, err := verifier.Verify(context.Background(), app, snap, e, full)
			must(t, err)
			wantWord(t, v, sign.Corrupt, words)
		}
	}
	const damaged = "the blob's bytes do not have this digest"
	for tag, words := range map[string]string{
		"bad":           damaged,
		"above bad":     damaged,
		"far above bad": damaged,
		"disagrees":     fmt.Sprintf("%d bytes, and not the %d of its descriptor", twice.Size, other.Size),
		"twice":         "its descriptors disagree",
		"deep":          "an index at depth 9; at most 8 lie inside each other",
	} {
		e, err := snap.Tag(t.Context(), tag)
		must(t, err)
		ask(tag, e, words)
	}
	// Each index by itself, as the mount asks for it.
	entries, err := snap.Entries(t.Context())
	must(t, err)
	corrupt := 0
	for _, e := range entries {
		if e.Err != nil {
			ask(fmt.Sprint(e.Digest), e, e.Err.Error())
			corrupt++
		}
	}
	if corrupt != 3 {
		t.Errorf("%d entries are corrupt", corrupt)
	}
	_, e := resolve(t, app, "image")
	v, err := verifier.Verify(context.Background(), app, snap, e, true)
	must(t, err)
	wantWord(t, v, sign.Verified, "")
	if v := verifier.Known(context.Background(), app, snap, e, true); v == nil || v.Status != sign.Verified {
		t.Errorf("what is good is not known: %+v", v)
	}
}
