package layout_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"irfs/internal/irfstest"
	"irfs/layout"
	"irfs/layout/sample"
)

func exchange(t testing.TB, a, b string) {
	t.Helper()
	must(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
}

// An App stands for the directory that it was looked up as: of another one that has come to its name it reads and changes nothing.
func TestAppIsOneDirectory(t *testing.T) {
	dir := writeApp(t, small())
	must(t, errors.Join(os.Rename(dir+"/app", dir+"/library"), os.Mkdir(dir+"/app", 0o755), os.Rename(dir+"/library", dir+"/app/nginx")))
	must(t, errors.Join(os.Mkdir(dir+"/other", 0o755), small().WriteDir(dir+"/other/nginx")))
	reg := registry(t, dir)
	app, snap, err := reg.Look(t.Context(), "app/nginx")
	must(t, err)
	namespace, err := reg.Dir("app")
	must(t, err)
	entry, err := snap.Tag(t.Context(), "x")
	must(t, err)
	all := func(t *testing.T, want error) {
		_, statErr := app.Stat("index.json")
		_, openErr := app.OpenFile("index.json")
		_, listErr := app.List("blobs", true)
		_, manifestErr := snap.Manifest(t.Context(), entry)
		_, annotateErr := annotate(context.Background(), app, "x", "value")
		_, _, collectErr := app.Collect(context.Background(), 0, false)
		_, inErr := reg.DirIn("app", namespace.ID, "nginx")
		_, dirsErr := reg.Dirs("app", namespace)
		_, snapErr := app.Snapshot(t.Context())
		for name, err := range map[string]error{
			"Stat": statErr, "OpenFile": openErr, "List": listErr, "CheckVersion": app.CheckVersion(), "Manifest": manifestErr, "Snapshot": snapErr,
			"Annotate": annotateErr, "Collect": collectErr, "DirIn": inErr, "Dirs": dirsErr,
		} {
			if !errors.Is(err, want) {
				t.Errorf("%s: %v; want %v", name, err, want)
			}
		}
	}
	t.Run("exchanged in the middle", func(t *testing.T) {
		exchange(t, dir+"/app", dir+"/other")
		before := tree(t, dir)
		all(t, layout.ErrMoved)
		same(t, dir, before)
		if now, err := reg.App("app/nginx"); err != nil || now == app || now.ID() == app.ID() {
			t.Errorf("what has the name now: %v", err)
		}
		exchange(t, dir+"/app", dir+"/other")
		all(t, nil)
	})
	t.Run("of another user, under the same number", func(t *testing.T) {
		if os.Getuid() != 0 {
			irfstest.Skip(t, "only root can give a directory away")
		}
		snap, err = app.Snapshot(t.Context())
		must(t, err)
		entry, err = snap.Tag(t.Context(), "x")
		must(t, err)
		must(t, errors.Join(os.Chown(dir+"/app/nginx", 64001, 64001), os.Chown(dir+"/app", 64001, 64001)))
		all(t, layout.ErrMoved)
	})
}

var denied layout.Rights = func(context.Context, layout.Attr, func() error) error { return unix.EACCES }

// Who may not change an app is told so at once, whoever holds it, and keeps nobody waiting.
func TestWhoMayNotDoesNotWait(t *testing.T) {
	dir := writeApp(t, small())
	app := appIn(t, dir)
	before := tree(t, dir)
	release := flock(t, dir+"/app/oci-layout")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := app.AnnotateAs(ctx, denied, func(*layout.Snapshot) ([]layout.Edit, error) {
		t.Error("it is planned")
		return nil, nil
	})
	want(t, err, fs.ErrPermission, "you may not change the app app: ")
	release()
	same(t, dir, before)
}

// An import is done with the rights of whoever asks for it: in what he can reach, and may change, when it is changed.
func TestPublishAsAnother(t *testing.T) {
	if os.Getuid() != 0 {
		irfstest.Skip(t, "only root can be another user")
	}
	const user = 64001
	asUser := func(_ context.Context, _ layout.Attr, ask func() error) (err error) {
		as(t, user, user, func() { err = ask() })
		return err
	}
	for _, row := range []struct {
		name  string
		app   string
		modes map[string]os.FileMode
		users map[string]int // 0 for all others
		says  string
	}{
		{name: "a new app", app: "new", modes: map[string]os.FileMode{".": 0o777}},
		{name: "a new app where he may not", app: "new", says: "you may not make an app in .: "},
		{name: "a new app in a namespace of his", app: "ns/new", users: map[string]int{"ns": user}},
		{name: "his app", app: "ns/app", users: map[string]int{"ns/app": user, "ns/app/blobs/sha256": user}},
		{name: "another's app", app: "ns/app", modes: map[string]os.FileMode{"ns": 0o777}, says: "the app ns/app is there already: you may not change the app ns/app: "},
		{name: "his app that he cannot reach", app: "ns/app", users: map[string]int{"ns/app": user}, modes: map[string]os.FileMode{"ns": 0o700}, says: "you may not make an app in ns: "},
		{name: "a namespace of his that he cannot reach", app: "ns/in/new", users: map[string]int{"ns/in": user}, modes: map[string]os.FileMode{"ns": 0o700}, says: "you may not make an app in ns/in: "},
		{name: "blobs of another", app: "ns/app", users: map[string]int{"ns/app": user, "ns/app/blobs/sha256": 64002}, says: "you may not change the app ns/app: "},
		{name: "an index of another, which is safe from him", app: "ns/app", users: map[string]int{"ns/app/index.json": 64002}, modes: map[string]os.FileMode{"ns/app": 0o777 | os.ModeSticky}, says: "you may not change the app ns/app: "},
		{name: "an index of his", app: "ns/app", users: map[string]int{"ns/app/index.json": user}, modes: map[string]os.FileMode{"ns/app": 0o777 | os.ModeSticky}},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, errors.Join(os.Mkdir(dir+"/ns", 0o755), os.Mkdir(dir+"/ns/in", 0o755), small().WriteDir(dir+"/ns/app")))
			for name, uid := range row.users {
				must(t, os.Chown(filepath.Join(dir, name), uid, uid))
			}
			for name, mode := range row.modes {
				must(t, os.Chmod(filepath.Join(dir, name), mode))
			}
			before := tree(t, dir)
			l := sample.New()
			l.Tag("new", l.Image(sample.Linux("arm64"), sample.Gzip("a", "new")))
			staged, err := registry(t, dir).Stage(t.Context(), bytes.NewReader(archive(t, l)), layout.Intake{Owner: layout.Owner{UID: user, GID: user}})
			must(t, err)
			defer staged.Discard()
			staged.Rights = asUser
			_, err = staged.Publish(t.Context(), row.app, layout.OnExistAdd)
			staged.Discard()
			if row.says != "" {
				want(t, err, fs.ErrPermission, row.says)
				same(t, dir, before)
				return
			}
			must(t, err)
			if at, err := registry(t, dir).Dir(row.app); err != nil || at.ID != staged.ID {
				t.Errorf("it is %v, and not %v: %v", at.ID, staged.ID, err)
			}
		})
	}
}

// 66: what an import makes shares a file with nobody but the importer and root.
func TestImportSharesNoFile(t *testing.T) {
	if os.Getuid() != 0 {
		irfstest.Skip(t, "only root can give files away")
	}
	const importer, other = 64001, 64002
	for _, row := range []struct {
		name   string
		user   int
		mode   os.FileMode
		rights layout.Rights
		shared bool
	}{
		{"another's", other, 0o644, nil, false},
		{"his own", importer, 0o644, nil, true},
		{"root's", 0, 0o444, nil, true},
		{"root's, in an app that he may not change", 0, 0o444, func(context.Context, layout.Attr, func() error) error { return unix.EACCES }, false},
		{"his own, which everybody may write", importer, 0o646, nil, false},
		{"his own, which a group may write", importer, 0o664, nil, false},
		{"root's, which everybody may write", 0, 0o666, nil, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := sample.New()
			image := l.Image(sample.Linux("amd64"), sample.Gzip("a", "content"))
			l.Tag("x", image)
			dir := writeApp(t, l)
			blob := "/" + sample.Path(image.Digest)
			must(t, errors.Join(os.Chown(dir+"/app"+blob, row.user, row.user), os.Chmod(dir+"/app"+blob, row.mode)))
			staged, err := registry(t, dir).Stage(t.Context(), bytes.NewReader(archive(t, l)), layout.Intake{Owner: layout.Owner{UID: importer, GID: importer}, App: "app", Rights: row.rights})
			must(t, err)
			defer staged.Discard()
			must(t, os.Rename(dir+"/app", dir+"/away"))
			_, err = staged.Publish(t.Context(), "app", layout.OnExistAdd)
			must(t, err)
			there, mine := must2(os.Stat(dir+"/away"+blob)), must2(os.Stat(dir+"/app"+blob))
			if os.SameFile(there, mine) != row.shared {
				t.Errorf("shared: %v", !row.shared)
			}
		})
	}
}

// What is closed stays closed: a new file gets owner and mode of the one whose bytes were read, and of no other that took its name since.
func TestAnnotateWhatIsReplacedMeanwhile(t *testing.T) {
	for _, replaced := range []string{"index.json", "manifest"} {
		t.Run(replaced, func(t *testing.T) {
			l := small()
			dir := writeApp(t, l)
			tries := 0
			_, err := appIn(t, dir).Annotate(t.Context(), func(snap *layout.Snapshot) ([]layout.Edit, error) {
				e, err := snap.Tag(t.Context(), "x")
				must(t, err)
				m, err := snap.Manifest(t.Context(), e)
				if tries++; tries == 1 {
					name := dir + "/app/index.json"
					if replaced == "manifest" {
						name = dir + "/app/" + sample.Path(e.Digest)
					}
					write(t, dir+"/open", string(must2(os.ReadFile(name))))
					must(t, os.Rename(dir+"/open", name))
				}
				return []layout.Edit{{Manifest: m, Set: []layout.Annotation{{Key: "key", Value: "value"}}}}, err
			})
			must(t, err)
			if tries != 2 {
				t.Errorf("tried %d times", tries)
			}
		})
	}
}
