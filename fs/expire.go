package fs

import (
	"context"
	"strings"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/opencontainers/go-digest"

	"irfs/layout"
)

// expire makes the kernel forget what a change to an app made, unmade or gave
// other content or times, before the write or close that asked for it returns.
// change is nil for an import. No lock may be held: the kernel may have lookups
// under way here that it waits for. The name `sign` is left out, for this is
// called from its handler.
func (m *mounted) expire(app string, change *layout.Change) {
	top := m.root
	for part := range strings.SplitSeq(app, "/") {
		top.NotifyContent(-1, 0) // a new app, or namespace, changes its times
		if top = top.GetChild(part); top == nil {
			return
		}
	}
	top.NotifyContent(-1, 0)
	top.NotifyEntry("index.json")
	if meta := top.GetChild(".irfs"); meta != nil {
		meta.NotifyContent(-1, 0)
		meta.NotifyEntry("check")
	}
	manifests, tags := top.GetChild("manifests"), top.GetChild("tags")
	for _, dir := range []*gofs.Inode{manifests, tags} {
		if dir != nil {
			dir.NotifyContent(-1, 0)
		}
	}
	if change == nil {
		return
	}
	for old, now := range change.Moved {
		for _, sep := range []string{"-", ":"} {
			for _, d := range []digest.Digest{old, now} {
				name := d.Algorithm().String() + sep + d.Encoded()
				if manifests != nil {
					expireFiles(manifests.GetChild(name))
					manifests.NotifyEntry(name)
				}
			}
		}
		for _, tag := range change.Before.TagsOf(old) {
			if name, ok := tagName(tag); ok && tags != nil {
				expireFiles(tags.GetChild(name))
			}
		}
	}
}

// expireFiles expires the files of an image directory and of its platforms. The
// directories stay, for somebody may stand in one, but for platforms that have
// another name now.
func expireFiles(dir *gofs.Inode) {
	if dir == nil {
		return
	}
	dir.NotifyContent(-1, 0)
	gone := func(string) bool { return false }
	if node, ok := dir.Operations().(*dirNode); ok {
		if platforms, ok := node.dir.(*platformsDir); ok {
			gone = func(name string) bool {
				_, err := platforms.lookup(context.Background(), name)
				return err != nil
			}
		}
	}
	for name, child := range dir.Children() {
		switch {
		case child.IsDir():
			expireFiles(child)
			if gone(name) {
				dir.NotifyEntry(name)
			}
		case name != "sign":
			dir.NotifyEntry(name)
		}
	}
}
