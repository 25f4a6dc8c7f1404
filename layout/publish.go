package layout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// OnExist says what becomes of an import when the app is there already.
type OnExist string

const (
	OnExistAdd   OnExist = "add"   // new tags are added; ErrExist if a tag would move
	OnExistMerge OnExist = "merge" // new tags are added, and those that are there move
	OnExistFail  OnExist = "fail"  // ErrExist
)

// ParseOnExist reads an OnExist; "" is OnExistAdd.
func ParseOnExist(s string) (OnExist, error) {
	switch o := OnExist(s); o {
	case "":
		return OnExistAdd, nil
	case OnExistAdd, OnExistMerge, OnExistFail:
		return o, nil
	}
	return "", fmt.Errorf("%q: what to do when the app exists is add, merge or fail", s)
}

// Publish makes the staged app appear as name, whole, in one step, durable
// when it returns. It gives what index.json of the archive listed.
func (s *Staged) Publish(ctx context.Context, name string, onExist OnExist) ([]Imported, error) {
	if err := s.reg.CheckName(name); err != nil {
		return nil, err
	}
	snap, err := s.App.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	if snap.Err != nil {
		return nil, snap.Err
	}
	list := make([]Imported, 0, len(snap.list))
	for _, row := range snap.list {
		list = append(list, Imported{name, row.tag, row.digest})
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.place(ctx, name, snap, onExist); err != nil {
		return nil, err
	}
	s.leave(true)
	return list, nil
}

// place makes a new app of the staged one, or adds it to the app that is there.
func (s *Staged) place(ctx context.Context, name string, snap *Snapshot, onExist OnExist) error {
	for start := time.Now(); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, dirfd, err := s.reg.reach(ctx, s.Rights, path.Dir(name))
		if err != nil {
			return err
		}
		err = s.placeBelow(ctx, dirfd, at, name, snap, onExist)
		closeFD(dirfd)
		// errMoved: somebody has just made that app, or a namespace; ErrMoved: another one has come to the name.
		if !errors.Is(err, errMoved) && !errors.Is(err, ErrMoved) {
			return err
		}
		if time.Since(start) > LockWait {
			return kindf(ErrBusy, "%s: what has this name changes again and again", name)
		}
	}
}

// placeBelow is place for an app whose path begins with the open directory at.
func (s *Staged) placeBelow(ctx context.Context, dirfd int, at, name string, snap *Snapshot, onExist OnExist) error {
	missing := name
	if at != "." {
		missing = strings.TrimPrefix(name, at+"/")
	}
	first, _, nested := strings.Cut(missing, "/")
	there, err := statBeneath(dirfd, first)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = s.Rights.may(ctx, dirfd, at, "")
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("you may not make an app in %s: %w", at, err)
		}
		if err == nil {
			err = s.publishBelow(dirfd, at, missing)
		}
		if errors.Is(err, fs.ErrExist) {
			err = errMoved
		}
		return err
	case err != nil:
		return err
	case nested && there.Mode.IsDir():
		return errMoved
	case nested:
		return kindf(ErrExist, "%s: something of that name is there, and is no directory", path.Join(at, first))
	}
	if there.Mode.IsDir() {
		if err := s.mayLook(ctx, dirfd, first); errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("something of the name %s is there already, and closed to you: %w", name, err)
		} else if err != nil {
			return err
		}
	}
	app, err := s.reg.App(name)
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrCorrupt), err == nil && !there.Mode.IsDir():
		return kindf(ErrExist, "%s: something of that name is there, and is not an app", name)
	case err != nil:
		return err
	case app.id != s.reg.keeper.id(there): // not the one that can be reached with these rights
		return errMoved
	case onExist == OnExistFail:
		return kindf(ErrExist, "%s: the app is there already", name)
	}
	err = s.merge(ctx, app, snap, onExist == OnExistMerge)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("the app %s is there already: %w", name, err)
	}
	if err == nil {
		s.ID = app.id
	}
	return err
}

// mayLook returns an error unless whoever publishes may look whether a directory, by its name in an open one, is an app.
func (s *Staged) mayLook(ctx context.Context, dirfd int, name string) error {
	if s.Rights == nil {
		return nil
	}
	fd, err := openDir(dirfd, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		return errMoved
	}
	if err != nil {
		return err
	}
	defer closeFD(fd)
	attr, err := fstat(fd, name)
	if err != nil {
		return err
	}
	return s.Rights(ctx, permitted(fd, attr), func() error {
		_, err := statBeneath(fd, "oci-layout")
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	})
}

// publishBelow renames the staged app to a path below an open directory of the registry, of which path nothing is there, in one step with the
// namespaces in it.
func (s *Staged) publishBelow(dirfd int, at, missing string) error {
	for dir := at; dir != "."; dir = path.Dir(dir) { // another import may just have made it
		if err := syncDir(s.reg.fd, path.Dir(dir)); err != nil {
			return err
		}
	}
	attr, err := statBeneath(s.work.fd, s.App.path)
	if err != nil {
		return err
	}
	from := s.App.path
	first, below, nested := strings.Cut(missing, "/")
	if nested {
		from = s.App.path + ".above"
		defer removeEmpty(s.work.fd, from)
		if err := s.lower(from, below); err != nil {
			return err
		}
	}
	err = renameNew(s.work.fd, from, dirfd, first)
	if err != nil && nested {
		return errors.Join(err, rename(s.work.fd, path.Join(from, below), s.work.fd, s.App.path, 0))
	}
	if err != nil {
		return err
	}
	s.ID = s.reg.keeper.id(attr)
	return syncDir(dirfd, ".")
}

// lower moves the staged app to a path below a new directory of its work directory.
func (s *Staged) lower(top, below string) error {
	dirs := []string{top}
	for i, c := range below {
		if c == '/' {
			dirs = append(dirs, path.Join(top, below[:i]))
		}
	}
	for _, dir := range dirs {
		if err := s.mkdir(s.work.fd, dir); err != nil {
			return err
		}
	}
	if err := rename(s.work.fd, s.App.path, s.work.fd, path.Join(top, below), 0); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := syncDir(s.work.fd, dir); err != nil {
			return errors.Join(err, rename(s.work.fd, path.Join(top, below), s.work.fd, s.App.path, 0))
		}
	}
	return nil
}

// reach opens dir, or the nearest directory above it that is there, as whoever has these rights may reach it, and what is in it. The error
// that he may not does not tell what is there.
func (r *Registry) reach(ctx context.Context, rights Rights, dir string) (at string, dirfd int, err error) {
	if rights == nil {
		return r.nearest(dir)
	}
	root, err := fstat(r.fd, ".")
	if err != nil {
		return "", -1, err
	}
	var mu sync.Mutex
	over, fd := false, -1
	err = rights(ctx, root, func() error {
		nearest, opened, err := r.nearest(dir)
		if err != nil {
			return err
		}
		// Of what is not there, whoever may look is told so.
		if _, err = statBeneath(opened, strings.Repeat("-", MaxName)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		mu.Lock()
		defer mu.Unlock()
		if over || err != nil { // over: nobody waits for this any more
			closeFD(opened)
			return err
		}
		at, fd = nearest, opened
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	over = true
	switch {
	case err == nil && fd >= 0:
		return at, fd, nil
	case err == nil: // nobody knows
		err = unix.EACCES
	case fd >= 0:
		closeFD(fd)
	}
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("you may not make an app in %s: %w", dir, unix.EACCES)
	}
	return "", -1, err
}

// nearest opens dir, or the nearest directory above it that is there.
func (r *Registry) nearest(dir string) (at string, dirfd int, err error) {
	for at = dir; ; at = path.Dir(at) {
		dirfd, err = openBeneath(r.fd, at, unix.O_PATH|unix.O_DIRECTORY, 0)
		if at == "." || err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return at, dirfd, err
		}
	}
}

// merge adds what was staged to an app that is there. Its tags move if they may.
func (s *Staged) merge(ctx context.Context, app *App, staged *Snapshot, mayMove bool) error {
	return app.change(ctx, s.Rights, func(l *locked, snap *Snapshot, raw []byte, seen sighting) error {
		add, moved, err := s.toAdd(ctx, snap, staged, mayMove)
		if err != nil {
			return err
		}
		index := raw
		if len(moved) > 0 {
			index, err = editDescriptors(raw, func(i int, text []byte) ([]byte, error) {
				if now, ok := moved[i]; ok {
					return now, nil
				}
				return text, nil
			})
		}
		if err == nil {
			index, err = appendDescriptors(index, add)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", indexName, err)
		}
		if len(index) > MaxIndex {
			return limitf("%s: would grow to %d bytes, over the limit of %d", indexName, len(index), MaxIndex)
		}
		f, err := l.writeIndex(snap, index) // first, for it may fail
		if err != nil {
			return err
		}
		defer f.close()
		// Also if nothing is to be added: what is there may be damaged.
		if err := s.addBlobs(ctx, l); err != nil {
			return err
		}
		if len(add)+len(moved) == 0 {
			return l.settle(ctx, snap, nil)
		}
		return l.swapIndex(ctx, snap, seen, f)
	})
}

// toAdd gives the descriptors of the staged index.json that the app's lacks, as
// they stand there, and those that take the place of a row of the app's, whose tag
// moves. Refused are a tag that would move and may not, and a descriptor, at any
// depth, that says something else of a digest than the app's.
func (s *Staged) toAdd(ctx context.Context, snap, staged *Snapshot, mayMove bool) (add [][]byte, moved map[int][]byte, err error) {
	theirs, err := staged.Entries(ctx)
	if err != nil {
		return nil, nil, err
	}
	ours, err := snap.all(ctx)
	if err != nil {
		return nil, nil, err
	}
	if ours.said.over != nil {
		return nil, nil, fmt.Errorf("%s: %w", snap.app.Name, ours.said.over)
	}
	for _, e := range theirs {
		if have, ok := snap.known(ours, e.Digest); ok {
			if err := disagreement(have.Descriptor, e.Descriptor); err != nil {
				return nil, nil, fmt.Errorf("%s: the archive does not fit: %w", snap.app.Name, err)
			}
		}
	}
	raw, err := s.App.readIndexFile()
	if err != nil {
		return nil, nil, err
	}
	texts, err := descriptorTexts(raw)
	if err != nil {
		return nil, nil, err
	}
	moved = map[int][]byte{}
	for i, row := range staged.list {
		if there := snap.tagged(row.tag); len(there) > 0 {
			switch {
			case len(there) > 1:
				return nil, nil, kindf(ErrExist, "%s: the tag %q is given twice there", snap.app.Name, row.tag)
			case snap.list[there[0]].digest == row.digest:
			case !mayMove:
				return nil, nil, kindf(ErrExist, "%s: the tag %q is there already, and names another image", snap.app.Name, row.tag)
			default:
				moved[int(there[0])] = texts[i]
			}
			continue
		}
		if row.tag == "" && len(snap.of(row.digest)) > 0 {
			continue
		}
		add = append(add, texts[i])
	}
	return add, moved, nil
}

// addBlobs gives the app l the staged blobs. What it has already stays, if its
// bytes are right.
func (s *Staged) addBlobs(ctx context.Context, l *locked) error {
	from, err := s.App.open()
	if err != nil {
		return err
	}
	defer closeFD(from)
	algorithms, err := readDir(from, "blobs")
	if err != nil {
		return err
	}
	for _, algorithm := range algorithms {
		dir := path.Join("blobs", algorithm.name)
		if err := s.makeDir(ctx, l, dir); err != nil {
			return err
		}
		list, err := readDir(from, dir)
		if err != nil {
			return err
		}
		slices.SortFunc(list, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
		for _, e := range list {
			d, err := ParseDigest(algorithm.name + ":" + e.name)
			if err == nil {
				err = addBlob(ctx, from, l, d)
			}
			if err != nil {
				return err
			}
		}
		if err := syncDir(l.dirfd, dir); err != nil {
			return err
		}
	}
	return syncDir(l.dirfd, "blobs")
}

// makeDir makes a directory of blobs in an app, unless it is there. It has its owner before it has its name: what has the name in an
// app may be exchanged at any time.
func (s *Staged) makeDir(ctx context.Context, l *locked, dir string) error {
	if _, err := statBeneath(l.dirfd, dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	blobs, err := l.dir(ctx, path.Dir(dir))
	if err != nil {
		return err
	}
	tmp := s.App.path + ".dir"
	if err := s.mkdir(s.work.fd, tmp); err != nil {
		return err
	}
	defer rmdir(s.work.fd, tmp)
	if err := renameNew(s.work.fd, tmp, blobs, path.Base(dir)); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
		return err
	}
	l.made = append(l.made, dir)
	return nil
}

// addBlob gives a staged blob to an app that may have it. Where that can be, it stays
// staged too, for another try.
func addBlob(ctx context.Context, from int, l *locked, d digest.Digest) error {
	name := BlobPath(d)
	staged, err := statBeneath(from, name)
	if errors.Is(err, fs.ErrNotExist) { // it came with another try
		return syncFile(l.dirfd, name)
	}
	if err != nil {
		return err
	}
	dir, err := l.dir(ctx, path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	err = linkFile(from, name, dir, base)
	if noLinks(err) {
		err = renameNew(from, name, dir, base)
	}
	if err == nil {
		l.brought = append(l.brought, d)
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	there, err := statBeneath(dir, base)
	same := err == nil && there.Dev == staged.Dev && there.Ino == staged.Ino // under two names
	if !same {
		if same, err = isBlob(ctx, dir, base, d, staged.Size); err != nil {
			return err
		}
	}
	if same {
		return syncFile(dir, base) // whoever wrote it may not have
	}
	if err := l.ask(ctx, dir, base); err != nil {
		return err
	}
	return rename(from, name, dir, base, 0)
}

// Keep leaves in the staged app only these images and indexes, and what hangs on
// them; of the tags that name them only that tag, if it is not "". One that index.json itself does not list takes the place of the index there
// that lists it, and its tag; of two in one index the second is an error.
func (s *Staged) Keep(ctx context.Context, keep []digest.Digest, tag string) error {
	wanted := map[digest.Digest]bool{}
	for _, d := range keep {
		wanted[d] = true
	}
	err := s.App.change(ctx, nil, func(l *locked, snap *Snapshot, raw []byte, seen sighting) error {
		heir, err := heirs(ctx, snap, keep)
		if err != nil {
			return err
		}
		index, err := editDescriptors(raw, func(i int, text []byte) ([]byte, error) {
			row := snap.descriptor(i)
			if wanted[row.Digest] && (tag == "" || row.Annotations[refName] == tag) {
				return text, nil
			}
			n, ok := heir[row.Digest]
			if !ok || wanted[row.Digest] {
				s.drop(row.Annotations[refName], row)
				return nil, nil
			}
			data, _, _, err := l.app.readBlob(l.dirfd, n, MaxIndex, nil)
			if err != nil {
				return nil, err
			}
			return redescribe(text, n.MediaType, map[digest.Digest]move{row.Digest: {n.Digest, n.Size, data}})
		})
		if err != nil || bytes.Equal(index, raw) {
			return err
		}
		return l.putIndex(ctx, snap, seen, index)
	})
	if err != nil {
		return err
	}
	_, _, err = s.App.Collect(ctx, 0, false)
	return err
}

// heirs gives, for indexes in index.json, the image or index of those to be kept
// that takes its place.
func heirs(ctx context.Context, snap *Snapshot, keep []digest.Digest) (map[digest.Digest]v1.Descriptor, error) {
	r, err := snap.all(ctx)
	if err != nil {
		return nil, err
	}
	heir := map[digest.Digest]v1.Descriptor{}
	for _, d := range keep {
		n := r.nodes[d]
		if n == nil || len(snap.of(d)) > 0 {
			continue
		}
		for _, index := range r.above(d) {
			if was, ok := heir[index]; ok && was.Digest != d {
				return nil, corruptf("%s and %s are both in the index %s, and only one can take its place", was.Digest, d, index)
			}
			heir[index] = *n.Descriptor
		}
	}
	return heir, nil
}
