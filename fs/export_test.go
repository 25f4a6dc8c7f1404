package fs

import gofs "github.com/hanwen/go-fuse/v2/fs"

// Nodes counts the names that the kernel has in its memory, as far as it looked them up here.
func (m *Mount) Nodes() int { return below(m.drops.mounted.root) }

func below(in *gofs.Inode) (n int) {
	for _, child := range in.Children() {
		n += 1 + below(child)
	}
	return n
}
