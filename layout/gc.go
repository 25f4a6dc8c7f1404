package layout

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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

// A Kept is a blob that no image or index that irfs knows uses, and that Collect keeps all the same.
type Kept struct {
	Removed
	By digest.Digest // what names it; "" if nothing does, and it is younger than the grace
}

// Collect removes the blobs that index.json does not reach, by whatever way (reach.go), and that nobody
// has written to for as long as grace: a tool that is copying an image in
// writes its blobs first. With dryRun it only tells. If anything that may say what is in use
// cannot be read, or is not its digest's, it removes nothing.
func (a *App) Collect(ctx context.Context, grace time.Duration, dryRun bool) (removed []Removed, kept []Kept, err error) {
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
	l, err := a.lock(ctx, nil)
	if err != nil {
		return nil, nil, err
	}
	defer l.release()
	snap, raw, seen, err := l.read(ctx)
	if err != nil {
		return nil, nil, err
	}
	if !dryRun {
		l.clean()
		clean(a.parent)
	}
	r, err := l.reach(ctx, snap, raw)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: nothing is removed, for not all that is in use is known: %w", a.Name, err)
	}
	if !dryRun {
		// After a power cut the index.json that was may come back, and with it the use of what this one
		// does not use.
		if err := l.settle(ctx, snap, nil); err != nil {
			return nil, nil, err
		}
	}
	dirs := map[string]bool{}
	removed, kept, err = r.removeUnused(ctx, time.Now().Add(-grace), func(name string) error {
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
	slices.SortFunc(kept, func(a, b Kept) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return removed, kept, err
}

// removeUnused gives every blob to remove that is not used and has not changed since before.
func (r *reach) removeUnused(ctx context.Context, before time.Time, remove func(name string) error) (removed []Removed, kept []Kept, err error) {
	for _, b := range r.list {
		d, ok := b.digest()
		switch {
		case !ok || !b.mode.IsRegular():
			continue
		case b.used && b.by == "":
			continue
		case b.used:
			kept = append(kept, Kept{Removed{d, b.size}, b.by})
			continue
		}
		attr, err := statBeneath(r.l.dirfd, b.path())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return removed, kept, err
		}
		if max(attr.Mtime, attr.Ctime) > before.UnixNano() {
			kept = append(kept, Kept{Removed{d, attr.Size}, ""})
			continue
		}
		if err := ctx.Err(); err != nil {
			return removed, kept, err
		}
		if err := remove(b.path()); err != nil {
			return removed, kept, err
		}
		removed = append(removed, Removed{d, attr.Size})
	}
	return removed, kept, nil
}
