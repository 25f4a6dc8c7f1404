package layout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/opencontainers/go-digest"
)

// A Removed is a blob that Collect removed, or would remove.
type Removed struct {
	Digest digest.Digest
	Size   int64 // bytes
}

// Collect removes the blobs that index.json does not reach and that nobody
// has written to for as long as grace: a tool that is copying an image in
// writes its blobs first. With dryRun it only tells. If any index or manifest
// cannot be read it removes nothing, for then nobody knows what is in use.
func (a *App) Collect(ctx context.Context, grace time.Duration, dryRun bool) (removed []Removed, err error) {
	defer func() {
		if !errors.Is(err, fs.ErrNotExist) {
			return
		}
		if dirfd, openErr := a.open(); openErr == nil {
			closeFD(dirfd)
			return
		}
		err = kindf(ErrNotFound, "%s: no such app", a.Name) // it was removed, or moved away, meanwhile
	}()
	l, err := a.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer l.release()
	snap, _, seen, err := l.read(ctx)
	if err != nil {
		return nil, err
	}
	if !dryRun {
		l.clean()
		clean(a.parent)
	}
	used, err := snap.used(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: nothing is removed, for not all that is in use is known: %w", a.Name, err)
	}
	if !dryRun {
		// After a power cut the index.json that was may come back, and with it the use of what this one
		// does not use.
		if err := l.settle(ctx, snap, nil); err != nil {
			return nil, err
		}
	}
	dirs := map[string]bool{}
	removed, err = l.removeUnused(ctx, used, time.Now().Add(-grace), func(name string) error {
		if dryRun {
			return nil
		}
		same, err := l.unchanged(snap, seen)
		switch {
		case err != nil:
			return err
		case !same:
			// What was unused may be what the other tool has just come to use.
			return kindf(ErrBusy, "%s: another tool is changing this app", a.Name)
		}
		dirs[path.Dir(name)] = true
		if err := unlink(l.dirfd, name); !errors.Is(err, fs.ErrNotExist) { // as if another tool had collected it
			return err
		}
		return nil
	})
	err = errors.Join(err, l.syncDirs(dirs))
	slices.SortFunc(removed, func(a, b Removed) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return removed, err
}

// used is every digest that index.json reaches, and every digest that any
// manifest so reached has a word of, of whatever kind it is.
func (s *Snapshot) used(ctx context.Context) (map[digest.Digest]bool, error) {
	entries, err := s.Entries(ctx)
	if err != nil {
		return nil, err
	}
	used := map[digest.Digest]bool{}
	for _, e := range entries {
		used[e.Digest] = true
		if e.Err == nil && !IsManifest(e.MediaType) && !IsIndex(e.MediaType) && e.Size > MaxManifest {
			continue // no manifest of any other kind is so large
		}
		m, err := s.Manifest(e)
		if errors.Is(err, ErrMissing) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for d := range digestsIn(m.Bytes) {
			used[d] = true
		}
	}
	return used, nil
}

// digestsIn gives the digests among the strings of a JSON document, and none
// of what is not JSON.
func digestsIn(doc []byte) iter.Seq[digest.Digest] {
	return func(yield func(digest.Digest) bool) {
		for dec := jsontext.NewDecoder(bytes.NewReader(doc)); ; {
			token, err := dec.ReadToken()
			if err != nil {
				return
			}
			if token.Kind() != jsontext.KindString {
				continue
			}
			if d, err := ParseDigest(token.String()); err == nil && !yield(d) {
				return
			}
		}
	}
}

func (l *locked) removeUnused(ctx context.Context, used map[digest.Digest]bool, before time.Time, remove func(name string) error) ([]Removed, error) {
	algorithms, err := readDir(l.dirfd, "blobs")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var removed []Removed
	for _, algorithm := range algorithms {
		dir := path.Join("blobs", algorithm.name)
		list, err := readDir(l.dirfd, dir)
		if errors.Is(err, ErrCorrupt) { // not a directory
			continue
		}
		if err != nil {
			return removed, err
		}
		for _, e := range list {
			d, err := ParseDigest(algorithm.name + ":" + e.name)
			if err != nil || used[d] || !e.mode.IsRegular() {
				continue
			}
			attr, err := statBeneath(l.dirfd, BlobPath(d))
			if errors.Is(err, fs.ErrNotExist) || err == nil && max(attr.Mtime, attr.Ctime) > before.UnixNano() {
				continue
			}
			if err != nil {
				return removed, err
			}
			if err := ctx.Err(); err != nil {
				return removed, err
			}
			if err := remove(BlobPath(d)); err != nil {
				return removed, err
			}
			removed = append(removed, Removed{d, attr.Size})
		}
	}
	return removed, nil
}
