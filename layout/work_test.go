package layout_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"irfs/internal/irfstest"
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

// A work directory that somebody holds stays, and so does what irfs did not make: what has another name or mode, or is another user's.
func TestSweepKeepsWhatMayBeAlive(t *testing.T) {
	dir := writeApp(t, small())
	app := appIn(t, dir)
	work := dir + "/app/.irfs"
	name := func(of string) string { return ".work-" + (strings.Repeat(of, 26))[:26] }
	must(t, os.Mkdir(work, 0o755))
	for _, name := range []string{name("alive"), name("dead"), name("dead") + "/deep", name("another"), name("open"), "app", "dead", ".work-dead", ".work-" + strings.Repeat("A", 26)} {
		must(t, os.Mkdir(work+"/"+name, 0o700))
		write(t, work+"/"+name+"/file", "x")
	}
	must(t, os.Chmod(work+"/"+name("open"), 0o755))
	write(t, work+"/file", "x")
	write(t, work+"/"+name("file"), "x")
	must(t, os.Symlink(name("alive"), work+"/"+name("link")))
	must(t, os.Symlink(dir, work+"/"+name("dead")+"/out"))
	must(t, unix.Mkfifo(work+"/"+name("dead")+"/fifo", 0o644))
	stay := []string{".work-dead", ".work-" + strings.Repeat("A", 26), "app", "dead", "file", name("alive"), name("file"), name("link"), name("open")}
	if os.Getuid() == 0 {
		must(t, os.Chown(work+"/"+name("another"), 64001, 64001))
		stay = append(stay, name("another"))
	}
	held, err := os.Open(work + "/" + name("alive"))
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
	slices.Sort(stay)
	if names := left(); !slices.Equal(names, stay) {
		t.Errorf("left: %q; want %q", names, stay)
	}
	if _, err := os.Stat(work + "/" + name("alive") + "/file"); err != nil {
		t.Error(err)
	}
	held.Close()
	_, err = annotate(context.Background(), app, "x", "another")
	must(t, err)
	stay = slices.DeleteFunc(stay, func(n string) bool { return n == name("alive") })
	if names := left(); !slices.Equal(names, stay) {
		t.Errorf("left: %q; want %q", names, stay)
	}
	must(t, os.RemoveAll(work))

	t.Run("of another user", func(t *testing.T) {
		if os.Getuid() != 0 {
			irfstest.Skip(t, "only root can be another user")
		}
		must(t, os.Mkdir(work, 0o777))
		must(t, os.Chown(work, 64001, 64001))
		_, err := annotate(context.Background(), app, "x", "and another")
		must(t, err)
		if _, err := os.Stat(work); err != nil {
			t.Error(err)
		}
	})
}

// What has the name .irfs and cannot be it stays as it is: .irfs-<uid> takes its place. Where that cannot be either, an import says so.
func TestWorkWhereItCannotBe(t *testing.T) {
	own := fmt.Sprintf(".irfs-%d", os.Geteuid())
	for name, make := range map[string]func(work string) error{
		"is no directory": func(work string) error { return os.WriteFile(work, nil, 0o600) },
		"is an app":       func(work string) error { return small().WriteDir(work) },
		"is another user's, or others may exchange what is in it": func(work string) error {
			if os.Getuid() != 0 {
				return errors.Join(os.Mkdir(work, 0o777), os.Chmod(work, 0o777))
			}
			return errors.Join(os.Mkdir(work, 0o700), os.Chown(work, 64001, 64001))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, make(dir+"/.irfs"))
			// As a process left it that is dead, but in a directory that somebody else has made so.
			dead := dir + "/.irfs/.work-" + strings.Repeat("d", 26)
			if os.Mkdir(dead, 0o700) == nil {
				must(t, os.WriteFile(dead+"/precious", nil, 0o600))
			}
			before := tree(t, dir)
			stage := func() error {
				_, err := registry(t, dir).Stage(context.Background(), strings.NewReader(""), layout.Intake{Owner: me})
				return err
			}
			want(t, stage(), layout.ErrCorrupt, "archive: ")
			same(t, dir, before)
			must(t, make(dir+"/"+own))
			before = tree(t, dir)
			want(t, stage(), layout.ErrBusy, own+" "+name+": irfs needs this name for its working files; rename what has it")
			same(t, dir, before)
		})
	}
}
