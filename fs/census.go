package fs

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"

	"irfs/layout"
)

// A census keeps the kernel's memory of what it has looked up, for which there is a node each here, from growing with all that was ever
// looked up: the kernel forgets when its own memory is short, and not before. It makes the kernel forget what is not there any more,
// and where there is much, all that nobody uses (FUSE_NOTIFY_PRUNE, since Linux 6.18, which waits for no lock of a directory).
type census struct {
	made    atomic.Int64 // nodes, since the last one
	left    atomic.Int64 // by the last one
	running atomic.Bool
	ended   atomic.Bool // the mount
	noPrune atomic.Bool // the kernel is older than that
	done    sync.WaitGroup
}

const (
	fewNodes  = 4096  // are not worth a census
	manyNodes = 24576 // take some 15 MB
	pruned    = 1024  // nodes, in one message to the kernel
)

// take counts a new node, and takes a census if there are twice as many nodes as the last one left, or too many.
func (c *census) take(root *gofs.Inode) {
	left := c.left.Load()
	due := max(fewNodes, min(left, manyNodes-left))
	if c.noPrune.Load() || c.made.Add(1) < due || !c.running.CompareAndSwap(false, true) {
		return
	}
	c.done.Go(func() {
		defer c.running.Store(false)
		c.made.Store(0)
		if nodes := unnecessary(root, nil); len(nodes) >= manyNodes {
			c.prune(root, nodes)
			c.left.Store(0)
			return
		}
		left, gone := c.gone(root)
		c.prune(root, gone)
		c.left.Store(left)
	})
}

// end ends the one that is being taken. There is no other after it.
func (c *census) end() {
	c.ended.Store(true)
	c.done.Wait()
}

// unnecessary lists what can be looked up again, each directory after what is in it: all but import/, and what is in that.
func unnecessary(in *gofs.Inode, list []*gofs.Inode) []*gofs.Inode {
	for _, child := range in.Children() {
		if _, ok := child.Operations().(*dropDir); !ok {
			list = append(unnecessary(child, list), child)
		}
	}
	return list
}

// prune makes the kernel forget those nodes, but for what somebody uses or stands in.
func (c *census) prune(root *gofs.Inode, nodes []*gofs.Inode) {
	for some := range slices.Chunk(nodes, pruned) {
		if c.ended.Load() {
			return
		}
		if errno := root.NotifyPrune(some); errno != 0 {
			c.noPrune.Store(errno == syscall.ENOSYS)
			return
		}
	}
}

// gone lists what is not there any more of that which is below a directory, and counts the rest.
func (c *census) gone(in *gofs.Inode) (left int64, list []*gofs.Inode) {
	for _, child := range in.Children() {
		if c.ended.Load() {
			break
		}
		node, ok := child.Operations().(*dirNode)
		if !ok {
			left++
			continue
		}
		if _, err := node.dir.item(context.Background()); errors.Is(err, errAbsent) || errors.Is(err, layout.ErrMoved) {
			list = append(unnecessary(child, list), child)
			continue
		}
		more, below := c.gone(child)
		left += 1 + more
		list = append(list, below...)
	}
	return left, list
}
