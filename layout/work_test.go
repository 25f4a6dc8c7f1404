package layout_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"irfs/layout"
)

// Work directories come and go in one registry, from many sides at once, without getting into each other's way.
func TestWorkDirectoriesInParallel(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	for range 4 {
		reg := registry(t, dir)
		for range 3 {
			all.Go(func() {
				for range 25 {
					// An archive without anything: refused, but only after the work directory was made.
					_, err := reg.Stage(context.Background(), strings.NewReader(""), layout.Intake{Owner: me})
					want(t, err, layout.ErrIncomplete, "")
					s, err := reg.NewScratch()
					if err != nil {
						t.Error(err)
						return
					}
					if _, err := s.WriteAt([]byte("x"), 1<<20); err != nil {
						t.Error(err)
					}
					s.Close()
				}
			})
		}
	}
	all.Wait()
	if left := tree(t, dir); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
}

// A work directory that somebody holds stays, as does one that nobody can say this of; all else in .irfs goes.
func TestSweepKeepsWhatMayBeAlive(t *testing.T) {
	dir := writeApp(t, small())
	app := appIn(t, dir)
	work := dir + "/app/.irfs"
	for _, name := range []string{"", "/alive", "/dead", "/dead/deep"} {
		must(t, os.Mkdir(work+name, 0o755))
	}
	write(t, work+"/alive/file", "x")
	write(t, work+"/dead/deep/file", "x")
	write(t, work+"/file", "x")
	must(t, os.Symlink("alive", work+"/link"))
	must(t, os.Symlink(dir, work+"/out"))
	must(t, unix.Mkfifo(work+"/fifo", 0o644))
	held, err := os.Open(work + "/alive")
	must(t, err)
	defer held.Close()
	must(t, unix.Flock(int(held.Fd()), unix.LOCK_EX))

	left := func() (names []string) {
		entries, _ := os.ReadDir(work)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	_, err = annotate(context.Background(), app, "x", "value")
	must(t, err)
	if names := strings.Join(left(), " "); names != "alive" {
		t.Errorf("left: %s", names)
	}
	if _, err := os.Stat(work + "/alive/file"); err != nil {
		t.Error(err)
	}
	held.Close()
	_, err = annotate(context.Background(), app, "x", "another")
	must(t, err)
	noLeftOvers(t, dir)

	t.Run("of another user", func(t *testing.T) {
		must(t, os.Mkdir(work, 0o777))
		must(t, os.Mkdir(work+"/private", 0o700))
		for _, name := range []string{"", "/blobs", "/blobs/sha256", "/.irfs", "/index.json", "/oci-layout"} {
			must(t, os.Chmod(dir+"/app"+name, 0o777))
		}
		as(t, 64001, 64001, func() {
			if _, err := annotate(context.Background(), app, "x", "by another"); err != nil {
				t.Error(err)
			}
		})
		if names := strings.Join(left(), " "); names != "private" {
			t.Errorf("left: %s", names)
		}
	})
}
