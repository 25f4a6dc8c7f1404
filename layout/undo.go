package layout

import (
	"context"
	"path"
)

// A change of an app brings blobs first, and then the index.json that names
// them. If it fails between the two, they go again. If it is killed there they
// stay, whole, until gc: by then nobody can tell who else has come to use them.

// takeBack removes what a change brought that failed, as far as nobody uses it: index.json is as it was when
// that was not there, or is another by now, and does not reach it.
func (l *locked) takeBack() {
	if len(l.brought)+len(l.made) == 0 {
		return
	}
	snap, raw, seen, err := l.read(context.Background())
	if err != nil {
		return
	}
	var r *reach
	if !snap.Equal(l.first) {
		if r, err = l.reach(context.Background(), snap, raw); err != nil {
			return
		}
	}
	for _, d := range l.brought {
		if same, err := l.unchanged(snap, seen); err != nil || !same {
			return
		}
		if dir, open := l.dirs[path.Dir(BlobPath(d))]; open && (r == nil || !r.uses(d)) {
			unlink(dir, path.Base(BlobPath(d)))
		}
	}
	for _, dir := range l.made {
		rmdir(l.dirs[path.Dir(dir)], path.Base(dir)) // unless it is used
	}
}
