package layout_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"irfs/internal/irfstest"
	"irfs/layout"
	"irfs/layout/sample"
)

// What may not be remembered is not, wherever what stands against that is: in a directory, in the file, or in who has it open.
func TestProven(t *testing.T) {
	if os.Getuid() != 0 {
		irfstest.Skip(t, "only root can give files away")
	}
	l := sample.New()
	image := l.Image(sample.Linux("amd64"))
	l.Tag("x", image)
	blob := sample.Path(image.Digest)
	chown := func(name string) func(dir string) error {
		return func(dir string) error { return os.Lchown(filepath.Join(dir, name), 4711, 0) }
	}
	chmod := func(name string, mode os.FileMode) func(dir string) error {
		return func(dir string) error { return os.Chmod(filepath.Join(dir, name), mode) }
	}
	var held *os.File
	rows := []struct {
		name   string
		change func(dir string) error
		proven bool
	}{
		{"as it is", func(string) error { return nil }, true},
		{"the registry is another's", chown("."), false},
		{"the registry is everybody's", chmod(".", 0o777), false},
		{"the registry is everybody's, and sticky", chmod(".", 0o777|os.ModeSticky), true},
		{"the namespace is another's", chown("library"), false},
		{"the app is everybody's", chmod("library/app", 0o777), false},
		{"blobs is another's", chown("library/app/blobs"), false},
		{"blobs/sha256 is everybody's", chmod("library/app/blobs/sha256", 0o777), false},
		{"blobs/sha512 is everybody's", func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/library/app/blobs/sha512", 0o755), os.Chmod(dir+"/library/app/blobs/sha512", 0o777))
		}, true},
		{"the blob is another's", chown("library/app/" + blob), false},
		{"the blob is everybody's", chmod("library/app/"+blob, 0o666), false},
		{"the blob is open for writing", func(dir string) (err error) {
			held, err = os.OpenFile(filepath.Join(dir, "library/app", blob), os.O_WRONLY, 0)
			return err
		}, false},
		{"the blob is open for reading", func(dir string) error {
			f, err := os.Open(filepath.Join(dir, "library/app", blob))
			t.Cleanup(func() { f.Close() })
			return err
		}, true},
	}
	var registries []*layout.Registry
	for _, row := range rows {
		dir := t.TempDir()
		must(t, os.Chmod(dir, 0o755))
		must(t, l.WriteDir(dir+"/library/app"))
		must(t, row.change(dir))
		reg, err := layout.Open(dir)
		must(t, err)
		t.Cleanup(reg.Close)
		registries = append(registries, reg)
	}
	defer held.Close()
	time.Sleep(2100 * time.Millisecond) // before that, times prove nothing in any case
	for i, row := range rows {
		for _, again := range []string{"", ", again"} { // the second time its ground is known
			app, _, err := registries[i].Look(t.Context(), "library/app")
			must(t, err)
			file, err := app.OpenFile(blob)
			must(t, err)
			if file.Proven != row.proven {
				t.Errorf("%s%s: proven is %t", row.name, again, file.Proven)
			}
			file.Close()
		}
	}
}

// A nested index that this user may not read hides nothing but itself. It is read by another goroutine than this, so the user is one of a process.
func TestClosedIndex(t *testing.T) {
	const inDir = "IRFS_CLOSED_INDEX"
	if dir := os.Getenv(inDir); dir != "" {
		readsClosedIndex(t, dir)
		return
	}
	if os.Geteuid() != 0 {
		irfstest.Skip(t, "only root can be another user")
	}
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	l := sample.New()
	closed := l.Index(l.Image(sample.Linux("arm64")))
	l.Tag("x", l.Image(sample.Linux("amd64"), sample.Plain("a", "b")))
	l.Tag("y", closed)
	must(t, l.WriteDir(dir+"/app"))
	must(t, os.Chmod(filepath.Join(dir, "app", sample.Path(closed.Digest)), 0o600))
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestClosedIndex$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), inDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4711, Gid: 4711}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func readsClosedIndex(t *testing.T, dir string) {
	reg, err := layout.Open(dir)
	must(t, err)
	defer reg.Close()
	app, err := reg.App("app")
	must(t, err)
	snap := snapshot(t, app)
	if e, err := snap.Tag(t.Context(), "x"); err != nil || e.Err != nil {
		t.Errorf("x: %v, %v", e, err)
	}
	e, err := snap.Tag(t.Context(), "y")
	must(t, err)
	if _, err := snap.Images(t.Context(), e); !os.IsPermission(err) {
		t.Errorf("y: %v", err)
	}
	if _, err := snap.Entries(t.Context()); !os.IsPermission(err) { // gc has to know all
		t.Errorf("entries: %v", err)
	}
}
