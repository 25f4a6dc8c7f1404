package layout

// This file decides whether what was read of a file may be remembered by the file's [Stamp], and everything that
// remembers asks here.
//
// A stamp proves nothing about a file that somebody has open for writing, has mapped, or has pinned in memory for I/O:
// bytes change later, and no time with them. So a sighting proves something only where
//
//   - only root, this process's user and the writers that were named may write the file, or put another in its place: by owner,
//     mode and ACL of the file and of each directory from the registry down to it. Or nobody may, for the file system is
//     read-only itself (not only this mount of it);
//   - nobody has the file open for writing before it is read, nor after: the kernel gives a read lease (fcntl(2), F_SETLEASE);
//   - the file system keeps a ctime that nobody sets, and gives leases that hold for all who write: one of a list.
//
// What that leaves: a file whose rights were narrowed after somebody had pinned its memory for I/O that still goes on (SECURITY.md).
// The directories are asked when an app's ground is surveyed (app.go), and not again while files' stamps are the same: who puts another file in the
// place of one puts another inode there, whose own rights are asked, or changes the ctime of this one.

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A keeper knows who may write a registry.
type keeper struct {
	root    int // the registry's directory
	dev     uint64
	refused string          // why nothing at all may be remembered, or ""
	users   map[uint32]bool // who may write: root, this process's user, and those who were named

	mappingsLeaveNoTime bool   // it is on tmpfs
	overflow            string // the number that users and groups have who have none in this user namespace, or "" if all have one

	mu     sync.Mutex
	groups groups
	last   refusal

	// On tmpfs a store through a mapping leaves no time. What is remembered there because the file system is read-only is so only as long as it is.
	onReadOnly atomic.Bool
	since      int64 // what was seen before this time, in nanoseconds since 1970, proves nothing any more
}

// proves reports whether a stamp still shows every change since that sighting.
func (a *App) proves(s sighting) bool {
	return !s.racy() && (a.keeper == nil || !a.keeper.onReadOnly.Load() || s.at > a.keeper.writable())
}

// writable returns until when the file system could be written, as far as it was asked.
func (k *keeper) writable() int64 {
	readOnly := readOnly(k.root)
	k.mu.Lock()
	defer k.mu.Unlock()
	if !readOnly {
		k.since = time.Now().UnixNano()
	}
	return k.since
}

// A refusal is why a file could not be remembered.
type refusal struct{ app, name, why string }

// fileSystems are those whose ctime is their own and whose leases hold, by the magic number of statfs(2). fixed: it cannot be written.
var fileSystems = map[int64]struct {
	name  string
	fixed bool
}{
	unix.EXT4_SUPER_MAGIC: {"ext4", false}, unix.XFS_SUPER_MAGIC: {"xfs", false}, unix.BTRFS_SUPER_MAGIC: {"btrfs", false},
	unix.F2FS_SUPER_MAGIC: {"f2fs", false}, unix.TMPFS_MAGIC: {"tmpfs", false},
	unix.SQUASHFS_MAGIC: {"squashfs", true}, unix.EROFS_SUPER_MAGIC_V1: {"erofs", true},
}

func newKeeper(root int, dir string) (*keeper, error) {
	attr, err := fstat(root, dir)
	if err != nil {
		return nil, err
	}
	st, err := statfs(root, dir)
	if err != nil {
		return nil, err
	}
	k := &keeper{root: root, dev: attr.Dev, users: map[uint32]bool{0: true, uint32(os.Geteuid()): true}, mappingsLeaveNoTime: st.Type == unix.TMPFS_MAGIC}
	if ids, err := os.ReadFile("/proc/self/uid_map"); err != nil || strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295" {
		number, _ := os.ReadFile("/proc/sys/kernel/overflowuid") // and overflowgid, which nobody sets to another
		k.overflow = cmp.Or(strings.TrimSpace(string(number)), "65534")
	}
	if !known(st.Type) {
		k.refused = fmt.Sprintf("%s: its file system (type %#x) is none of ext4, xfs, btrfs, f2fs, tmpfs, squashfs, erofs, whose change times are known to be their own", dir, st.Type)
	}
	return k, nil
}

// AllowWriters names users (`alice`, `1000`) and groups (`@staff`), with colons between them, who may write the registry and are trusted
// not to change a file after it was checked in a way that its times do not show. It has to be called before the registry is used.
func (r *Registry) AllowWriters(list string) error {
	for name := range strings.SplitSeq(list, ":") {
		group, isGroup := strings.CutPrefix(name, "@")
		if !isGroup {
			id, err := userID(name)
			if err != nil {
				return err
			}
			r.keeper.users[id] = true
			continue
		}
		gid, err := groupID(group)
		if err != nil {
			return err
		}
		members, err := r.keeper.members(gid)
		if err != nil {
			return fmt.Errorf("group %s: %w", group, err)
		}
		for _, id := range members {
			r.keeper.users[id] = true
		}
	}
	return nil
}

// Remembers reports whether what is read is remembered, as far as is known without looking through the registry: by its own directory, and by
// the last file of which it was not. why says what stands in the way, for one of them.
func (r *Registry) Remembers() (yes bool, why string) {
	k := r.keeper
	k.mu.Lock()
	last := k.last
	k.mu.Unlock()
	if attr, err := fstat(k.root, "."); err != nil {
		return false, err.Error()
	} else if why = k.refuses(k.root, attr, func() string { return "." }, ""); why != "" {
		return false, why
	}
	if last.why == "" {
		return true, ""
	}
	// It may be otherwise by now, or the file may be gone.
	if a, err := r.App(last.app); err == nil {
		if blob, err := a.OpenFile(last.name); err == nil {
			blob.Close()
			if !blob.Proven {
				k.mu.Lock()
				defer k.mu.Unlock()
				return false, k.last.why
			}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last == last {
		k.last = refusal{}
	}
	return true, ""
}

// A watch is kept over a file while it is read.
type watch struct {
	seen sighting
	app  *App
	fd   int
	name string
	why  string // it cannot be remembered

	leased bool // a read lease is held
}

// watch begins to watch a file of the app that is open, whose status was attr at that time.
func (a *App) watch(fd int, attr Attr, name string, at int64) *watch {
	w := &watch{seen: sighting{attr.Stamp, at}, app: a, fd: fd, name: name}
	if a.keeper == nil { // an app that is not published yet
		w.why = "not published"
		return w
	}
	above := ""
	if !a.guarded.Load() {
		above = a.keeper.whoAbove(w.path())
	}
	if w.why = a.keeper.refuses(fd, attr, w.path, above); w.why != "" {
		return w
	}
	w.ask()
	if attr.Size > maxRecent { // a small file is read at once, and the lease is held as long
		w.giveBack()
	}
	return w
}

func (w *watch) path() string { return path.Join(w.app.path, w.name) }

// ask takes a read lease of the file: nobody has it open for writing then, or mapped so that it can be written. It notes why there is none.
func (w *watch) ask() {
	switch _, err := unix.FcntlInt(uintptr(w.fd), unix.F_SETLEASE, unix.F_RDLCK); {
	case err == nil:
		w.leased = true
	case err == unix.EAGAIN:
		w.why = w.path() + " is open for writing, or mapped, by a program"
	case err == unix.EACCES:
		w.why = w.path() + " is another user's, and without CAP_LEASE irfs cannot ask whether it is being written"
	default:
		w.why = fmt.Sprintf("%s: whether it is being written cannot be asked: %v", w.path(), err)
	}
}

// giveBack gives the lease back. Whoever wants to write meanwhile waits for that, and then the kernel has withdrawn it.
func (w *watch) giveBack() {
	if !w.leased {
		return
	}
	if kind, err := unix.FcntlInt(uintptr(w.fd), unix.F_GETLEASE, 0); err != nil || kind != unix.F_RDLCK {
		w.why = w.path() + " was opened for writing by a program while it was read"
	}
	unix.FcntlInt(uintptr(w.fd), unix.F_SETLEASE, unix.F_UNLCK)
	w.leased = false
}

// end is called when the file was read. What it returns proves nothing if the file may not be remembered.
func (w *watch) end() sighting {
	if w.why == "" && !w.leased {
		w.ask()
	}
	w.giveBack()
	if w.why != "" {
		w.seen.at = provesNothing
		w.app.keeper.note(refusal{w.app.Name, w.name, w.why})
	}
	return w.seen
}

func (k *keeper) note(r refusal) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last = r
}

// refuses returns why what is open as fd, a file or directory of the registry by that name, may not be remembered, or "". above is what whoAbove says.
func (k *keeper) refuses(fd int, attr Attr, name func() string, above string) string {
	if k.refused != "" {
		return k.refused
	}
	if attr.Dev != k.dev {
		// A device number is no other file system's as long as this one is in use. The registry's directory is open; nothing is of
		// what is mounted below it, and another disk may come by the same number, with the same stamps.
		return name() + " is on another file system than the registry's directory"
	}
	who := above
	if who == "" {
		if who = k.others(attr, func() ([]aclEntry, error) { return aclOf(fd) }); who != "" {
			who = called(name()) + " " + who
		}
	}
	if who != "" && readOnly(fd) {
		k.onReadOnly.Store(k.mappingsLeaveNoTime)
		return ""
	}
	return who
}

// whoAbove names an untrusted user or group who may exchange what is in a directory from the registry down to that name; "" if there is none.
func (k *keeper) whoAbove(name string) (above string) {
	for dir := name; dir != "."; {
		dir = path.Dir(dir)
		at, err := lstat(k.root, dir)
		if err != nil {
			return fmt.Sprintf("%s: %v", dir, err)
		}
		if who := k.others(at, func() ([]aclEntry, error) { return aclBeneath(k.root, dir) }); who != "" {
			above = called(dir) + " " + who // the topmost one
		}
	}
	return above
}

// called is what a file or directory of the registry is called in a sentence.
func called(name string) string {
	if name == "." {
		return "the registry's directory"
	}
	return name
}

// others names an untrusted user or group who may write a file, or replace what is in a directory, by its owner, mode and ACL; "" if there is none.
func (k *keeper) others(attr Attr, acl func() ([]aclEntry, error)) string {
	mode := attr.Mode.Perm()
	switch {
	case k.foreign(attr.UID):
		return "belongs to a user of another user namespace"
	case !k.users[attr.UID]:
		return fmt.Sprintf("belongs to user %d (mount with -o writers=%[1]d if that user is trusted)", attr.UID)
	case attr.Mode.IsDir() && attr.Mode&fs.ModeSticky != 0: // what is in it only its owner may rename, or remove
		return ""
	case mode&0o002 != 0:
		return "can be written by everybody (chmod o-w)"
	case mode&0o020 == 0: // nor has an ACL an entry that lets write, for these are its mask
		return ""
	}
	list, err := acl()
	if err != nil {
		return fmt.Sprintf("has an ACL that cannot be read (%v)", err)
	}
	if list == nil {
		return k.group(attr.GID)
	}
	for _, e := range list {
		who := ""
		switch {
		case e.perm&aclWrite == 0:
		case e.tag == aclGroupOf:
			who = k.group(attr.GID)
		case e.tag == aclGroup:
			who = k.group(e.id)
		case e.tag == aclUser && !k.users[e.id]:
			who = fmt.Sprintf("can be written by user %d, by its ACL (mount with -o writers=%[1]d if that user is trusted)", e.id)
		}
		if who != "" {
			return who
		}
	}
	return ""
}

// group says that a group may write, unless all who are in it are trusted with that.
func (k *keeper) group(gid uint32) string {
	if k.mappingsLeaveNoTime { // and a process may have a group's rights that is in none
		return fmt.Sprintf("can be written by group %d, and is on tmpfs, where times do not show all that it may do", gid)
	}
	if k.foreign(gid) {
		return "can be written by a group of another user namespace"
	}
	members, err := k.members(gid)
	if err != nil {
		return fmt.Sprintf("can be written by group %d, and who is in that cannot be found out: %v", gid, err)
	}
	for _, id := range members {
		if !k.users[id] {
			return fmt.Sprintf("can be written by group %d, in which user %d is (mount with -o writers=@%[1]d if they are trusted)", gid, id)
		}
	}
	return ""
}

// foreign reports whether a user or group may be any that has no number in this user namespace (user_namespaces(7)).
func (k *keeper) foreign(id uint32) bool { return k.overflow != "" && fmt.Sprint(id) == k.overflow }

// ofDir is the sighting of a directory. Every change of a directory shows in its times, whoever makes it, if the file system keeps them
// itself.
func (k *keeper) ofDir(attr Attr, at int64) sighting {
	if k == nil || k.refused != "" || attr.Dev != k.dev {
		at = provesNothing
	}
	return sighting{attr.Stamp, at}
}

// id is which directory has that status. On overlayfs, for one, a directory is born again when it is written for the first time.
func (k *keeper) id(attr Attr) ID {
	if k.refused != "" || attr.Dev != k.dev {
		attr.Born = 0
	}
	return ID{attr.Dev, attr.Ino, attr.Born, attr.UID}
}

func known(magic int64) bool { return fileSystems[magic].name != "" }

// readOnly reports whether the file system of an open file cannot be written by anybody: by its kind, or because its super block is read-only. That
// a mount of it is read-only proves nothing, for there may be others.
func readOnly(fd int) bool {
	st, err := statfs(fd, "")
	if err != nil {
		return false
	}
	if fileSystems[st.Type].fixed {
		return true
	}
	if st.Flags&unix.ST_RDONLY == 0 {
		return false
	}
	var at unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &at); err != nil || at.Mask&unix.STATX_MNT_ID == 0 {
		return false
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), " ") // a name may have other white space in it
		if f[0] == fmt.Sprint(at.Mnt_id) {
			return slices.Contains(strings.Split(f[len(f)-1], ","), "ro") // options of the super block (proc_pid_mountinfo(5))
		}
	}
	return false
}
