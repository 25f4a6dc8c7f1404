package layout_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"irfs/internal/irfstest"
	"irfs/layout/sample"
)

// as runs do, on a thread of its own, as the file system sees another user: without a capability for files, in one group besides his own.
// The registry in which he works has to be open already, for he cannot look into this test's directory.
func as(t testing.TB, uid, group int, do func()) {
	t.Helper()
	if os.Getuid() != 0 {
		irfstest.Skip(t, "only root can be another user")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Setgroups([]int{group})
		if err == nil {
			unix.Setfsgid(uid)
			unix.Setfsuid(uid)
			// Neither says whether it worked, but for the second time.
			if now, _ := unix.SetfsuidRetUid(uid); now != uid {
				err = fmt.Errorf("the user is %d", now)
			} else {
				do()
			}
		}
		done <- err
	}()
	must(t, <-done)
}

// An app of a group, whose directories and files each of the group may change: what one of them signs is the group's still.
func TestAnnotateKeepsTheGroup(t *testing.T) {
	const owner, member, group = 64001, 64002, 64100
	l := sample.New()
	image := l.Image(sample.Linux("amd64"))
	l.Tag("x", l.Index(image))
	dir := writeApp(t, l)
	if os.Getuid() == 0 {
		must(t, filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
			if err == nil {
				err = os.Chown(name, owner, group)
			}
			mode := os.FileMode(0o660)
			if e.IsDir() {
				mode = 0o770 // without set-group-ID
			}
			if err == nil {
				err = os.Chmod(name, mode)
			}
			return err
		}))
	}
	app := appIn(t, dir)
	as(t, member, group, func() {
		change, err := annotate(context.Background(), app, string(image.Digest), "value")
		if err != nil {
			t.Error(err)
			return
		}
		if len(change.Moved) != 2 {
			t.Errorf("moved %v", change.Moved)
		}
	})
	of := map[string]int{}
	for name, text := range tree(t, dir) {
		fields := strings.Fields(text)
		mode, by := fields[0], fields[1]
		of[by]++
		if !strings.HasSuffix(by, fmt.Sprintf(":%d", group)) || !strings.HasSuffix(mode, "---") {
			t.Errorf("%s is %s %s", name, mode, by)
		}
	}
	if own := fmt.Sprintf("%d:%d", member, group); of[own] != 3 {
		t.Errorf("of whom: %v; want 3 files of %s, index.json and two blobs", of, own)
	}
}

func acl(t testing.TB, file string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Getxattr(file, "system.posix_acl_access", buf)
	if err == unix.ENODATA {
		return ""
	}
	must(t, err)
	return string(buf[:n])
}

// A file keeps its ACL, or has none if it had none, whatever its directory gives to new ones.
func TestAnnotateKeepsACLs(t *testing.T) {
	if _, err := exec.LookPath("setfacl"); err != nil {
		irfstest.Skip(t, "setfacl is not installed")
	}
	for _, row := range []struct {
		name          string
		directory     string // its default ACL
		index, images string // ACLs
	}{
		{"of the directory", "user:1234:rw", "", ""},
		{"of the files", "", "user:1234:rw", "group:4321:r"},
		{"of both", "group:1234:rw", "user:1234:r", "group:4321:rw"},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := sample.New()
			image := l.Image(sample.Linux("amd64"))
			l.Tag("x", l.Index(image))
			dir := writeApp(t, l)
			set := func(acl, name string, options ...string) {
				if acl == "" {
					return
				}
				args := append(options, "-m", acl, filepath.Join(dir, "app", name))
				if out, err := exec.Command("setfacl", args...).CombinedOutput(); strings.Contains(string(out), "not supported") {
					irfstest.Skip(t, "no ACLs on the file system of "+dir)
				} else if err != nil {
					t.Fatalf("setfacl: %v: %s", err, out)
				}
			}
			for _, name := range []string{".", "blobs", "blobs/sha256"} {
				set(row.directory, name, "-d")
			}
			set(row.index, "index.json")
			set(row.images, sample.Path(image.Digest))
			pairs := func(moved map[string]string) (list []string) {
				for _, name := range []string{"index.json", sample.Path(image.Digest)} {
					if to := moved[name]; to != "" {
						name = to
					}
					info := must2(os.Stat(filepath.Join(dir, "app", name)))
					list = append(list, fmt.Sprintf("%v %q", info.Mode(), acl(t, filepath.Join(dir, "app", name))))
				}
				return list
			}
			before := pairs(nil)
			change, err := annotate(context.Background(), appIn(t, dir), string(image.Digest), "value")
			must(t, err)
			after := pairs(map[string]string{sample.Path(image.Digest): sample.Path(change.Moved[image.Digest])})
			for i := range before {
				if before[i] != after[i] {
					t.Errorf("it was %s, and is %s", before[i], after[i])
				}
			}
			noLeftOvers(t, dir)
		})
	}
}
