package fs

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"

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

// A census finds the directories in the kernel's memory that are not there any more: it forgets what it has looked up
// when memory is short, not before, and for each name there is a node here.
type census struct {
	made    atomic.Int64 // nodes, since the last one
	left    atomic.Int64 // by the last one
	running atomic.Bool
	ended   atomic.Bool // the mount
	done    sync.WaitGroup
}

// fewNodes are not worth a census.
const fewNodes = 4096

// take counts a new node, and takes a census if there are twice as many nodes as the last one left.
func (c *census) take(root *gofs.Inode) {
	if c.made.Add(1) < max(fewNodes, c.left.Load()) || !c.running.CompareAndSwap(false, true) {
		return
	}
	c.done.Go(func() {
		defer c.running.Store(false)
		c.made.Store(0)
		c.left.Store(c.dropGone(root))
	})
}

// end ends the one that is being taken. There is no other after it.
func (c *census) end() {
	c.ended.Store(true)
	c.done.Wait()
}

// dropGone makes the kernel forget what is gone of that which is below a directory, and counts the rest.
func (c *census) dropGone(in *gofs.Inode) (left int64) {
	for name, child := range in.Children() {
		if c.ended.Load() {
			break
		}
		left++
		node, ok := child.Operations().(*dirNode)
		if !ok {
			continue
		}
		if _, err := node.dir.item(context.Background()); errors.Is(err, errAbsent) {
			in.NotifyEntry(name)
			continue
		}
		left += c.dropGone(child)
	}
	return left
}
