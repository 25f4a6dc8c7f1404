package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// OnExist says what becomes of an import when the app is there already.
type OnExist string

const (
	OnExistAdd  OnExist = "add"  // new tags are added; ErrExist if a tag would move
	OnExistFail OnExist = "fail" // ErrExist
)

// ParseOnExist reads an OnExist; "" is OnExistAdd.
func ParseOnExist(s string) (OnExist, error) {
	switch o := OnExist(s); o {
	case "":
		return OnExistAdd, nil
	case OnExistAdd, OnExistFail:
		return o, nil
	}
	return "", fmt.Errorf("%q: what to do when the app exists is add or fail", s)
}

// Publish makes the staged app appear as name, whole, in one step, durable
// when it returns. It gives what index.json of the archive listed.
func (s *Staged) Publish(ctx context.Context, name string, onExist OnExist) ([]Imported, error) {
	if err := s.reg.CheckName(name); err != nil {
		return nil, err
	}
	snap, err := s.App.Snapshot()
	if err != nil {
		return nil, err
	}
	if snap.Err != nil {
		return nil, snap.Err
	}
	list := make([]Imported, 0, len(snap.index.Manifests))
	for _, d := range snap.index.Manifests {
		list = append(list, Imported{name, d.Annotations[refName], d.Digest})
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.publishNew(name)
	if errors.Is(err, fs.ErrExist) {
		app, appErr := s.reg.App(name)
		switch {
		case appErr != nil:
			err = fmt.Errorf("%s: a directory of that name is there, and is not an app: %w", name, ErrExist)
		case onExist == OnExistFail:
			err = fmt.Errorf("%s: the app is there already: %w", name, ErrExist)
		default:
			err = s.merge(ctx, app, snap)
		}
	}
	if err != nil {
		return nil, err
	}
	s.Discard()
	return list, nil
}

// publishNew renames the staged app to its place. The namespaces that it makes
// on the way are gone again if that fails.
func (s *Staged) publishNew(name string) (err error) {
	parent := s.reg.fd
	for i, c := range name {
		if c != '/' {
			continue
		}
		dir := name[:i]
		if err = s.mkdir(s.reg.fd, dir); errors.Is(err, fs.ErrExist) {
			continue
		}
		defer func() {
			if err != nil {
				rmdir(s.reg.fd, dir)
			}
		}()
		if err == nil {
			err = syncDir(s.reg.fd, path.Dir(dir))
		}
		if err != nil {
			return err
		}
	}
	if dir := path.Dir(name); dir != "." {
		if parent, err = openDir(s.reg.fd, dir); err != nil {
			return err
		}
		defer closeFD(parent)
	}
	if err = rename(s.work.fd, stagedName, parent, path.Base(name), unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	return fsync(parent, name)
}

// merge adds what was staged to an app that is there.
func (s *Staged) merge(ctx context.Context, app *App, staged *Snapshot) error {
	l, err := app.lock(ctx)
	if err != nil {
		return err
	}
	defer l.release()
	for {
		snap, raw, seen, err := l.read()
		if err != nil {
			return err
		}
		add, err := snap.toAdd(staged)
		if err != nil || len(add) == 0 {
			return err
		}
		index, err := appendDescriptors(raw, add)
		if err != nil {
			return fmt.Errorf("%s: %w", indexName, err)
		}
		if len(index) > MaxIndex {
			return limitf("%s: would grow to %d bytes, over the limit of %d", indexName, len(index), MaxIndex)
		}
		if err := s.moveBlobs(l); err != nil {
			return err
		}
		w, err := newWork(l.dirfd)
		if err != nil {
			return err
		}
		err = l.putIndex(ctx, w, snap, seen, index)
		w.close()
		if !errors.Is(err, errMoved) {
			return err
		}
	}
}

// toAdd gives the descriptors of a staged index.json that this one lacks.
func (s *Snapshot) toAdd(staged *Snapshot) ([][]byte, error) {
	var add [][]byte
	for _, d := range staged.index.Manifests {
		tag := d.Annotations[refName]
		if row, ok := s.tags[tag]; tag != "" && ok {
			if row == twice || s.index.Manifests[row].Digest != d.Digest {
				return nil, fmt.Errorf("%s: the tag %q is there already, and names another image: %w", s.app.Name, tag, ErrExist)
			}
			continue
		}
		if tag == "" && len(s.rows[d.Digest]) > 0 {
			continue
		}
		text, err := json.Marshal(d)
		if err != nil {
			return nil, err
		}
		add = append(add, text)
	}
	return add, nil
}

// moveBlobs gives the staged blobs to the app l. What it has already stays,
// if its bytes are right.
func (s *Staged) moveBlobs(l *locked) error {
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
		if err := s.mkdir(l.dirfd, dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		list, err := readDir(from, dir)
		if err != nil {
			return err
		}
		slices.SortFunc(list, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
		for _, e := range list {
			name := path.Join(dir, e.name)
			d, err := ParseDigest(algorithm.name + ":" + e.name)
			if err != nil {
				return err
			}
			err = rename(from, name, l.dirfd, name, unix.RENAME_NOREPLACE)
			if errors.Is(err, fs.ErrExist) {
				if hashFile(l.dirfd, name, d.Algorithm()) == d {
					err = syncFile(l.dirfd, name) // whoever wrote it may not have
				} else {
					err = rename(from, name, l.dirfd, name, 0)
				}
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
