package layout_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"irfs/layout"
	"irfs/layout/sample"
)

// What a dead process brought into an app, and lies in its work directory too, goes with the next change, but for what is in use by then.
func TestChangeTakesBackWhatTheDeadBrought(t *testing.T) {
	blob := func(n byte) string { return "blobs/sha256/" + hexOf(n) }
	for _, c := range []struct {
		name   string
		change func(ctx context.Context, app *layout.App) error
		stays  string // of the blobs
	}{
		{"signing", func(ctx context.Context, app *layout.App) error {
			_, err := annotate(ctx, app, "x", "value")
			return err
		}, "bc"},
		{"gc", func(ctx context.Context, app *layout.App) error {
			_, err := app.Collect(ctx, 1<<62, false)
			return err
		}, "bc"},
		{"gc that only tells", func(ctx context.Context, app *layout.App) error {
			_, err := app.Collect(ctx, 1<<62, true)
			return err
		}, "abc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := small()
			dir := writeApp(t, l)
			app, work := dir+"/app/", dir+"/app/.irfs/dead/"
			must(t, os.MkdirAll(work, 0o700))
			must(t, os.MkdirAll(work+"sha512", 0o700))
			must(t, os.Mkdir(app+"blobs/sha512", 0o755))
			brought := func(name string) {
				must(t, os.Link(app+"blobs/sha256/"+name, work+"sha256-"+name))
			}
			write(t, app+blob('a'), "brought")
			brought(hexOf('a'))
			write(t, app+blob('b'), "somebody's own")
			write(t, work+"sha256-"+hexOf('b'), "brought, and replaced")
			write(t, app+blob('c'), "not brought")
			config := configOf(t, l)
			brought(config)

			must(t, c.change(context.Background(), appIn(t, dir)))
			for _, n := range "abc" {
				_, err := os.Stat(app + blob(byte(n)))
				if (err == nil) != strings.ContainsRune(c.stays, n) {
					t.Errorf("%c: %v", n, err)
				}
			}
			if _, err := os.Stat(app + "blobs/sha256/" + config); err != nil {
				t.Errorf("what is in use was taken back: %v", err)
			}
			_, err := os.Stat(app + "blobs/sha512")
			if dry := strings.Contains(c.stays, "a"); !dry {
				noLeftOvers(t, dir)
				if err == nil {
					t.Error("the directory that it made is still there")
				}
			}
		})
	}
}

// While nobody can say what is in use nothing is taken back, and it is not forgotten either.
func TestNothingIsTakenBackBlindly(t *testing.T) {
	l := small()
	index := l.Index(l.Image(sample.Linux("arm64"), sample.Gzip("x", "y")))
	l.Tag("index", index)
	files := l.Files()
	whole := files[sample.Path(index.Digest)]
	files[sample.Path(index.Digest)] = []byte(strings.Repeat("x", len(whole)))
	dir := t.TempDir()
	must(t, files.WriteDir(dir+"/app"))
	left, work := dir+"/app/blobs/sha256/"+hexOf('a'), dir+"/app/.irfs/dead/"
	must(t, os.MkdirAll(work, 0o700))
	write(t, left, "brought")
	must(t, os.Link(left, work+"sha256-"+hexOf('a')))
	app := appIn(t, dir)
	if _, err := app.Collect(context.Background(), 0, false); err == nil {
		t.Error("gc of a damaged app succeeds")
	}
	if _, err := os.Stat(left); err != nil {
		t.Error(err)
	}
	write(t, dir+"/app/"+sample.Path(index.Digest), string(whole))
	_, err := annotate(context.Background(), appIn(t, dir), "x", "value")
	must(t, err)
	if _, err := os.Stat(left); err == nil {
		t.Error("it was forgotten")
	}
	noLeftOvers(t, dir)
}

// configOf gives the hex of the digest of the first image's config.
func configOf(t *testing.T, l *sample.Layout) string {
	t.Helper()
	for name, data := range l.Files() {
		if strings.HasPrefix(name, "blobs/") && strings.Contains(string(data), `"rootfs"`) {
			return strings.TrimPrefix(name, "blobs/sha256/")
		}
	}
	t.Fatal("no config")
	return ""
}
