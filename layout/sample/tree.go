package sample

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Tree returns all that is in the directory dir, for tests that compare before and after: by path, "." being dir itself, a text with the
// mode, the owner, and the content of a file or the target of a symbolic link. Times are not in it; but of a file over 16 MiB, which may be sparse and
// endless, there are the size and the modification time only.
func Tree(dir string) (map[string]string, error) {
	tree := map[string]string{}
	return tree, filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		var content []byte
		switch info.Mode().Type() {
		case 0:
			if info.Size() > 16<<20 {
				content = fmt.Append(nil, info.Size(), info.ModTime())
				break
			}
			content, err = os.ReadFile(name)
		case fs.ModeSymlink:
			var target string
			target, err = os.Readlink(name)
			content = []byte(target)
		}
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		short, err := filepath.Rel(dir, name)
		tree[short] = fmt.Sprintf("%v %d:%d %s", info.Mode(), owner.Uid, owner.Gid, content)
		return err
	})
}
