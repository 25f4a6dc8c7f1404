package fs

import (
	"context"
	"slices"
	"strings"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/opencontainers/go-digest"

	"irfs/layout"
)

// An expiry makes the kernel ask again for the attributes of what a change to an app made, unmade or gave other content or times. A
// file's Getattr then tells of what is at its path, a directory's whether it is still there. Names are not expired: for that the
// kernel would wait for the directory's lock, which who reads the directory can hold for ever (FUSE_NOTIFY_INVAL_ENTRY, linux/fs/fuse/dir.c).
type expiry struct{ files []*fileNode }

// expire is called before the write or close that asked for the change returns. change is nil for an import. The name `sign` is left out, for
// this is called from its handler.
func (m *mounted) expire(ctx context.Context, app string, change *layout.Change) {
	var x expiry
	defer func() { x.wait(ctx) }()
	top := m.root
	for part := range strings.SplitSeq(app, "/") {
		x.expire(top) // a new app, or namespace, changes its times
		if top = top.GetChild(part); top == nil {
			return
		}
	}
	x.expire(top)
	x.expire(top.GetChild("index.json"))
	if meta := top.GetChild(".irfs"); meta != nil {
		x.expireAll(meta)
	}
	manifests, tags := top.GetChild("manifests"), top.GetChild("tags")
	x.expire(manifests)
	x.expire(tags)
	if change == nil {
		return
	}
	for old, now := range change.Moved {
		for _, sep := range []string{"-", ":"} {
			for _, d := range []digest.Digest{old, now} {
				if manifests != nil {
					x.expireAll(manifests.GetChild(d.Algorithm().String() + sep + d.Encoded()))
				}
			}
		}
		for _, tag := range change.Before.TagsOf(old) {
			if name, ok := tagName(tag); ok && tags != nil {
				x.expireAll(tags.GetChild(name))
			}
		}
	}
}

// expire expires the attributes of a file or directory, if the kernel knows it.
func (x *expiry) expire(in *gofs.Inode) {
	if in == nil {
		return
	}
	if file, ok := in.Operations().(*fileNode); ok {
		x.files = append(x.files, file)
	}
	in.NotifyContent(-1, 0)
}

// expireAll expires a directory and all that is in it.
func (x *expiry) expireAll(in *gofs.Inode) {
	if in == nil {
		return
	}
	for name, child := range in.Children() {
		if name != "sign" {
			x.expireAll(child)
		}
	}
	x.expire(in)
}

// wait waits for who has a file open that is not what is at its path any more, for as long as the kernel may take the name for it: at
// most a second.
func (x *expiry) wait(ctx context.Context) {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		x.files = slices.DeleteFunc(x.files, func(n *fileNode) bool { return !n.outdated(ctx) })
		if len(x.files) == 0 {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done(): // the caller's end: the change is done
			return
		}
	}
}
