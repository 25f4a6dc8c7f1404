package layout

import (
	"errors"
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
)

// A change of an app brings blobs first, and then the index.json that names
// them. If it ends between the two, they have to go again, and somebody else has
// to do it if the process was killed. So each blob lies in the app's work
// directory first, as workBlob, and gets its name in blobs/ as a second one:
// what a work directory holds is what came by way of it. A directory there means
// that the one in blobs/ of that name was not there before.

// workBlob is a blob's name in a work directory.
func workBlob(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// working gives do a work directory of the app. If do fails, and index.json is as
// it was, what do brought goes again. If index.json is another by then, that may
// use what came: with a tool that takes no lock nobody knows.
func (l *locked) working(snap *Snapshot, seen sighting, do func(*work) error) error {
	w, err := newWork(l.dirfd)
	if err != nil {
		return err
	}
	if err := do(w); err != nil {
		same, statErr := l.unchanged(snap, seen)
		if statErr != nil || same && l.takeBack(w.fd, nil) != nil {
			closeFD(w.fd) // and w stays for recover
			return err
		}
		w.close()
		return err
	}
	w.close()
	return nil
}

// bring gives a blob in w its place in the app, where there is none, or one that is wrong.
func (l *locked) bring(w *work, d digest.Digest) error {
	name := BlobPath(d)
	err := linkFile(w.fd, workBlob(d), l.dirfd, name)
	switch {
	case errors.Is(err, fs.ErrExist):
		return rename(w.fd, workBlob(d), l.dirfd, name, 0)
	case noLinks(err):
		return renameNew(w.fd, workBlob(d), l.dirfd, name)
	}
	return err
}

// takeBack removes from the app what came by way of a work directory and is not used.
func (l *locked) takeBack(work int, used map[digest.Digest]bool) error {
	list, err := readDir(work, ".")
	if err != nil {
		return err
	}
	var dirs []string
	var failed []error
	for _, e := range list {
		d, err := ParseDigest(strings.Replace(e.name, "-", ":", 1))
		switch {
		case e.mode.IsDir():
			dirs = append(dirs, e.name)
			continue
		case err != nil || used[d]:
			continue
		}
		came, err := statBeneath(work, e.name)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		there, err := statBeneath(l.dirfd, BlobPath(d))
		if err == nil && there.Dev == came.Dev && there.Ino == came.Ino {
			err = unlink(l.dirfd, BlobPath(d))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	for _, name := range dirs {
		rmdir(l.dirfd, path.Join("blobs", name)) // unless it is used
	}
	return errors.Join(failed...)
}

// recover takes back what changes brought that were killed before index.json named it.
func (l *locked) recover(snap *Snapshot) {
	var used map[digest.Digest]bool
	clean(l.dirfd, func(work int) (stay bool) {
		if used == nil {
			var err error
			if used, err = snap.used(); err != nil { // then it waits for one that knows
				return true
			}
		}
		return l.takeBack(work, used) != nil
	})
}
