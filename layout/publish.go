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
	err = s.publishNew(ctx, name)
	if errors.Is(err, fs.ErrExist) {
		app, appErr := s.reg.App(name)
		switch {
		case appErr != nil && !errors.Is(appErr, ErrNotFound) && !errors.Is(appErr, ErrCorrupt):
			err = appErr
		case appErr != nil:
			err = kindf(ErrExist, "%s: something of that name is there, and is not an app", name)
		case onExist == OnExistFail:
			err = kindf(ErrExist, "%s: the app is there already", name)
		default:
			err = s.merge(ctx, app, snap, onExist == OnExistMerge)
		}
	}
	if err != nil {
		return nil, err
	}
	s.leave(true)
	return list, nil
}

// publishNew renames the staged app to its place, in one step with the namespaces
// above it that are not there yet.
func (s *Staged) publishNew(ctx context.Context, name string) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := statBeneath(s.reg.fd, name); err == nil {
			return pathError("rename", name, fs.ErrExist)
		}
		at, err := s.reg.nearest(path.Dir(name))
		if err != nil {
			return err
		}
		if s.May != nil {
			if err := s.May(at); err != nil {
				return err
			}
		}
		missing := name
		if at != "." {
			missing = strings.TrimPrefix(name, at+"/")
		}
		err = s.publishBelow(at, missing)
		if !errors.Is(err, fs.ErrExist) || !strings.Contains(missing, "/") {
			return err
		}
		// Somebody has just made that namespace.
		if again, nearErr := s.reg.nearest(path.Dir(name)); nearErr != nil || again == at {
			return err
		}
	}
}

// publishBelow renames the staged app to a path below a directory of the registry that is
// there, of which path nothing is.
func (s *Staged) publishBelow(at, missing string) error {
	for dir := at; dir != "."; dir = path.Dir(dir) { // another import may just have made it
		if err := syncDir(s.reg.fd, path.Dir(dir)); err != nil {
			return err
		}
	}
	parent, err := openDir(s.reg.fd, at)
	if errors.Is(err, unix.ENOTDIR) {
		return kindf(ErrExist, "%s: something of that name is there, and is no directory", at)
	}
	if err != nil {
		return err
	}
	defer closeFD(parent)
	from := s.App.path
	first, below, nested := strings.Cut(missing, "/")
	if nested {
		from = s.App.path + ".above"
		defer removeEmpty(s.work.fd, from)
		if err := s.lower(from, below); err != nil {
			return err
		}
	}
	err = renameNew(s.work.fd, from, parent, first)
	if err != nil && nested {
		return errors.Join(err, rename(s.work.fd, path.Join(from, below), s.work.fd, s.App.path, 0))
	}
	if err != nil {
		return err
	}
	return fsync(parent, path.Join(at, missing))
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

// nearest is the nearest path that is there, dir itself or one above.
func (r *Registry) nearest(dir string) (string, error) {
	for ; dir != "."; dir = path.Dir(dir) {
		_, err := statBeneath(r.fd, dir)
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return "", err
		}
	}
	return dir, nil
}

// merge adds what was staged to an app that is there. Its tags move if they may.
func (s *Staged) merge(ctx context.Context, app *App, staged *Snapshot, mayMove bool) error {
	return app.change(ctx, func(l *locked, snap *Snapshot, raw []byte, seen sighting) error {
		if s.May != nil {
			if err := s.May(app.Name); err != nil {
				return err
			}
		}
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
		f, err := l.writeIndex(index) // first, for it may fail
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
		switch err := s.mkdir(l.dirfd, dir); {
		case err == nil:
			l.made = append(l.made, dir)
		case !errors.Is(err, fs.ErrExist):
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
	err = linkFile(from, name, l.dirfd, name)
	if noLinks(err) {
		err = renameNew(from, name, l.dirfd, name)
	}
	if err == nil {
		l.brought = append(l.brought, d)
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	there, err := statBeneath(l.dirfd, name)
	same := err == nil && there.Dev == staged.Dev && there.Ino == staged.Ino // under two names
	if !same {
		if same, err = isBlob(ctx, l.dirfd, name, d, staged.Size); err != nil {
			return err
		}
	}
	if same {
		return syncFile(l.dirfd, name) // whoever wrote it may not have
	}
	return rename(from, name, l.dirfd, name, 0)
}

// Keep leaves in the staged app only these images and indexes, and what hangs on
// them; of the tags that name them only that tag, if it is not "". One that index.json itself does not list takes the place of the index there
// that lists it, and its tag; of two in one index the second is an error.
func (s *Staged) Keep(ctx context.Context, keep []digest.Digest, tag string) error {
	wanted := map[digest.Digest]bool{}
	for _, d := range keep {
		wanted[d] = true
	}
	err := s.App.change(ctx, func(l *locked, snap *Snapshot, raw []byte, seen sighting) error {
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
	_, err = s.App.Collect(ctx, 0, false)
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
