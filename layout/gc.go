package layout

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

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
func (a *App) Collect(ctx context.Context, grace time.Duration, dryRun bool) ([]Removed, error) {
	l, err := a.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer l.release()
	snap, _, _, err := l.read()
	if err != nil {
		return nil, err
	}
	used, err := snap.used()
	if err != nil {
		return nil, fmt.Errorf("%s: nothing is removed, for not all that is in use is known: %w", a.Name, err)
	}
	removed, err := l.removeUnused(ctx, used, time.Now().Add(-grace), dryRun)
	slices.SortFunc(removed, func(a, b Removed) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return removed, err
}

// used is every digest that index.json reaches, of whatever kind.
func (s *Snapshot) used() (map[digest.Digest]bool, error) {
	entries, err := s.Entries()
	if err != nil {
		return nil, err
	}
	used := map[digest.Digest]bool{}
	for _, e := range entries {
		used[e.Digest] = true
		if !IsManifest(e.MediaType) && !IsIndex(e.MediaType) {
			continue // whatever it is, it refers to nothing
		}
		m, err := s.Manifest(e)
		if errors.Is(err, ErrMissing) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m.Doc == nil {
			continue
		}
		used[m.Doc.Config.Digest] = true
		for _, layer := range m.Doc.Layers {
			used[layer.Digest] = true
		}
	}
	return used, nil
}

func (l *locked) removeUnused(ctx context.Context, used map[digest.Digest]bool, before time.Time, dryRun bool) ([]Removed, error) {
	if w, err := newWork(l.dirfd); err == nil { // removes what the dead left
		w.close()
	}
	algorithms, err := readDir(l.dirfd, "blobs")
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
			if err != nil || max(attr.Mtime, attr.Ctime) > before.UnixNano() {
				continue
			}
			if err := ctx.Err(); err != nil {
				return removed, err
			}
			if !dryRun {
				if err := unlink(l.dirfd, BlobPath(d)); err != nil {
					return removed, err
				}
			}
			removed = append(removed, Removed{d, attr.Size})
		}
	}
	return removed, nil
}
