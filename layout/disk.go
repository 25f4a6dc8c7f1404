package layout

// This file holds every system call that touches a registry. The rules:
//
//   - A path is resolved beneath a directory that is open already, and no
//     symbolic link in it is followed (openat2(2)); what it names must be a
//     regular file, or a directory where one is expected. O_NONBLOCK, so that
//     a FIFO cannot make the open wait.
//   - Only whether a file that was found so is still the one that it was is asked
//     with its path as it is (unmoved): whatever came to stand on the way
//     meanwhile, that answer is about this very file.
//   - A call that takes names, and would follow links in them (mkdirat(2),
//     renameat(2) …), is given the open directory and one name in it.
//   - A file is never changed where it stands. It is written under no name or
//     under a working name, synced, and then takes its place in one step.
//   - A call that a signal interrupted is made again; waiting is done outside.

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Stamp tells one state of a file from another: device, inode, size in
// bytes, modification and change time in nanoseconds since 1970.
type Stamp struct {
	Dev, Ino     uint64
	Size         int64
	Mtime, Ctime int64
}

// Attr is what a file's status says of it besides its Stamp.
type Attr struct {
	Stamp
	Mode     fs.FileMode // permission bits, the sticky bit, and type
	UID, GID uint32
	Born     int64 // nanoseconds since 1970, 0 where the file system does not say
}

// An ID tells a directory from any other, whatever name leads to it. An inode's number is used again at once for another one, which is
// born later, or belongs to another user: a directory that is given to somebody else is another one.
type ID struct {
	Dev, Ino uint64
	Born     int64
	UID      uint32
}

// racyFor is how long after a change a file's times cannot be trusted to show
// the next one ("racily clean", Documentation/technical/racy-git.txt in git).
const racyFor = 2 * time.Second

// A sighting is a file's stamp, with the time before which its content was
// read.
type sighting struct {
	Stamp
	at int64 // nanoseconds since 1970, or provesNothing
}

// provesNothing stands for the time of a sighting of a file that may not be remembered (keep.go).
const provesNothing = 0

// racy reports whether the file may have been changed after it was read with
// no trace of it in the stamp.
func (s sighting) racy() bool {
	return s.at == provesNothing || s.at-max(s.Mtime, s.Ctime) < int64(racyFor)
}

// fresh says whether the content changed so lately that somebody may be
// writing it still. A date in the future is nobody's.
func (s Stamp) fresh() bool {
	age := time.Now().UnixNano() - s.Mtime
	return -int64(racyFor) < age && age < int64(racyFor)
}

func retry(call func() error) error {
	for {
		err := call()
		if err != unix.EINTR {
			return err
		}
	}
}

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// openWait is how long an open waits for a lease to be given up. The kernel
// would wait for 45 s.
const openWait = time.Second

// openBeneath opens name below the directory dirfd, "." being itself.
func openBeneath(dirfd int, name string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_PATH == 0 { // with which openat2 takes no flags that are for reading and writing
		how.Flags |= unix.O_NONBLOCK | unix.O_NOCTTY
	}
	var fd int
	var err error
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		err = retry(func() (err error) {
			fd, err = unix.Openat2(dirfd, name, &how)
			return err
		})
		// EAGAIN, EXDEV: a rename raced with RESOLVE_BENEATH; or somebody has a
		// lease on the file (fcntl(2)), as Samba does.
		if err != unix.EAGAIN && err != unix.EXDEV || time.Since(start) > openWait {
			break
		}
	}
	switch err {
	case nil:
		return fd, nil
	case unix.ELOOP:
		return -1, errLink(name)
	case unix.ENOTDIR:
		return -1, corruptf("%s: what should be a directory in this path is something else: %w", name, err)
	}
	return -1, pathError("open", name, err)
}

func openDir(dirfd int, name string) (int, error) {
	fd, err := openBeneath(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return -1, corruptf("%s: not a directory: %w", name, unix.ENOTDIR)
	}
	return fd, err
}

func closeFD(fd int) { unix.Close(fd) }

func attrOf(st *unix.Statx_t) Attr {
	mode := fs.FileMode(st.Mode & 0o777)
	if st.Mode&unix.S_ISVTX != 0 {
		mode |= fs.ModeSticky
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	default:
		mode |= fs.ModeDevice
	}
	nanoseconds := func(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }
	attr := Attr{
		Stamp: Stamp{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino, Size: int64(st.Size), Mtime: nanoseconds(st.Mtime), Ctime: nanoseconds(st.Ctime)},
		Mode:  mode, UID: st.Uid, GID: st.Gid,
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		attr.Born = nanoseconds(st.Btime)
	}
	return attr
}

func fstat(fd int, name string) (Attr, error) {
	var st unix.Statx_t
	if err := retry(func() error { return unix.Statx(fd, "", unix.AT_EMPTY_PATH, statxMask, &st) }); err != nil {
		return Attr{}, pathError("stat", name, err)
	}
	return attrOf(&st), nil
}

// permitted is the status of an open file or directory with the rights of its group as the group bits. Where there is a
// POSIX ACL the kernel shows there its mask, which is what anybody may have at most (acl(5)). A mode cannot say whom the ACL names: nobody but the
// owner may read, or enter, what one of these may not. (Who wants to write is asked for his own rights, when he does.)
func permitted(fd int, attr Attr) Attr {
	if attr.Mode&0o077 == 0 {
		return attr
	}
	list, err := aclOf(fd)
	if err == nil && list == nil {
		return attr
	}
	group, mask, users, others := uint16(0), uint16(0o7), uint16(0o7), uint16(0o7)
	if err != nil {
		users, others = 0, 0 // nobody knows
	}
	named := false
	for _, e := range list {
		switch e.tag {
		case aclGroupOf:
			group = e.perm
		case aclMask:
			mask = e.perm
		case aclUser:
			users, named = users&e.perm, true
		case aclGroup:
			others, named = others&e.perm, true
		}
	}
	if others &= users; named {
		others &= mask
	}
	attr.Mode = attr.Mode&^0o070 | fs.FileMode(group&mask&(users|aclWrite)&0o7)<<3
	attr.Mode &^= 0o5 &^ fs.FileMode(others)
	return attr
}

// An aclEntry is one of a POSIX ACL (linux/posix_acl.h): who may do what.
type aclEntry struct {
	tag, perm uint16
	id        uint32
}

const aclUser, aclGroupOf, aclGroup, aclMask, aclWrite = 0x02, 0x04, 0x08, 0x10, 0x02

// aclOf returns the POSIX ACL of an open file or directory, nil for none.
func aclOf(fd int) ([]aclEntry, error) {
	var text [1 << 10]byte // a longer one is an error
	n, err := unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d", fd), aclName, text[:])
	if err == unix.ENODATA || err == unix.ENOTSUP {
		return nil, nil
	}
	if err != nil {
		return nil, pathError("getfacl", "", err)
	}
	list := []aclEntry{}
	for e := text[min(n, 4):n]; len(e) >= 8; e = e[8:] { // linux/posix_acl_xattr.h
		list = append(list, aclEntry{binary.LittleEndian.Uint16(e), binary.LittleEndian.Uint16(e[2:]), binary.LittleEndian.Uint32(e[4:])})
	}
	return list, nil
}

// aclBeneath is aclOf by a path.
func aclBeneath(dirfd int, name string) ([]aclEntry, error) {
	fd, err := openBeneath(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer closeFD(fd)
	return aclOf(fd)
}

// statPermitted is statBeneath with what permitted says.
func statPermitted(dirfd int, name string) (Attr, error) {
	fd, err := openBeneath(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return Attr{}, err
	}
	defer closeFD(fd)
	attr, err := fstat(fd, name)
	return permitted(fd, attr), err
}

// statBeneath tells what name is; a symbolic link at its end is reported as
// one, one in the middle is refused.
func statBeneath(dirfd int, name string) (Attr, error) {
	fd, err := openBeneath(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return Attr{}, err
	}
	defer closeFD(fd)
	return fstat(fd, name)
}

// unmoved says whether name is surely the file that was seen there, in the same state. It opens nothing, and takes
// one call for each part of the path.
func unmoved(dirfd int, name string, was Stamp) bool {
	if dir := path.Dir(name); dir != "." && !allDirs(dirfd, dir) {
		return false
	}
	attr, err := lstat(dirfd, name)
	return err == nil && attr.Stamp == was
}

// allDirs says whether each part of a path is a directory.
func allDirs(dirfd int, name string) bool {
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		if attr, err := lstat(dirfd, name[:i]); err != nil || !attr.Mode.IsDir() {
			return false
		}
	}
	return true
}

// lstat follows symbolic links but for one at the end: it is for what unmoved is for. A file system on the net is asked, and
// not its cache here, as it is when a file is opened.
func lstat(dirfd int, name string) (Attr, error) {
	var st unix.Statx_t
	err := unix.Statx(dirfd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_FORCE_SYNC, statxMask, &st)
	return attrOf(&st), err
}

const statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

// leadsToDir reports whether a symbolic link leads to a directory, or to what cannot be looked at. Nothing is opened.
func leadsToDir(dirfd int, name string) bool {
	var st unix.Statx_t
	err := unix.Statx(dirfd, name, unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
	switch err {
	case nil:
		return st.Mode&unix.S_IFMT == unix.S_IFDIR
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG:
		return false
	}
	return true
}

// isNamed says whether name still is the file or directory that is open as fd.
func isNamed(dirfd int, name string, fd int) (bool, error) {
	held, err := fstat(fd, name)
	if err != nil {
		return false, err
	}
	named, err := statBeneath(dirfd, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		return false, nil
	}
	return err == nil && named.Dev == held.Dev && named.Ino == held.Ino, err
}

// isEntry is isNamed for a name in dirfd itself. It takes no descriptor.
func isEntry(dirfd int, name string, fd int) bool {
	held, err1 := fstat(fd, name)
	named, err2 := lstat(dirfd, name)
	return err1 == nil && err2 == nil && named.Dev == held.Dev && named.Ino == held.Ino
}

// openRegular opens a regular file for reading. Where it is something else, its status comes with the error.
func openRegular(dirfd int, name string) (int, Attr, error) {
	// It is looked at first: some devices do something when they are opened.
	attr, err := statBeneath(dirfd, name)
	if err == nil && attr.Mode.IsRegular() {
		var fd int
		if fd, err = openBeneath(dirfd, name, unix.O_RDONLY, 0); err == nil {
			if attr, err = fstat(fd, name); err == nil && attr.Mode.IsRegular() {
				return fd, attr, nil
			}
			closeFD(fd)
		}
	}
	switch {
	case err != nil:
		attr = Attr{}
	case attr.Mode&fs.ModeSymlink != 0:
		err = errLink(name)
	default:
		err = corruptf("%s: not a regular file but %s", name, kindOf(attr.Mode))
	}
	return -1, attr, err
}

func errLink(name string) error {
	return corruptf("%s: a symbolic link stands in the way, and is not followed", name)
}

func kindOf(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	}
	return "a regular file"
}

// fdReader reads an open file from its start, whoever else moves its offset.
type fdReader struct {
	fd   int
	name string
	off  int64
}

func (r *fdReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var n int
	err := retry(func() (err error) {
		n, err = unix.Pread(r.fd, p, r.off)
		return err
	})
	if err != nil {
		return 0, pathError("read", r.name, err)
	}
	if n == 0 {
		return 0, io.EOF
	}
	r.off += int64(n)
	return n, nil
}

// readFile reads a whole regular file of at most limit bytes; where want is
// not negative its size must be exactly that. The size is checked before a
// byte is read. What was seen of the file comes with an error too.
func (a *App) readFile(dirfd int, name string, want, limit int64) ([]byte, sighting, Attr, error) {
	at := time.Now().UnixNano()
	fd, attr, err := openRegular(dirfd, name)
	if err != nil {
		return nil, sighting{attr.Stamp, at}, attr, err
	}
	defer closeFD(fd)
	switch {
	case want >= 0 && attr.Size != want:
		err = corruptf("%s: %d bytes, and not the %d of its descriptor", name, attr.Size, want)
	case attr.Size > limit:
		err = limitf("%s: %d bytes, over the limit of %d", name, attr.Size, limit)
	}
	if err != nil {
		return nil, sighting{attr.Stamp, at}, attr, err
	}
	watched := a.watch(fd, attr, name, at)
	data := make([]byte, attr.Size)
	n, err := io.ReadFull(&fdReader{fd: fd, name: name}, data)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, sighting{attr.Stamp, at}, attr, err
	}
	if want < 0 { // a blob's rights are asked for where it is shown
		attr = permitted(fd, attr)
	}
	// A file that shrank meanwhile is short here, and its digest is wrong.
	return data[:n], watched.end(), attr, nil
}

// An entry of a directory, as readDir gives it.
type dirent struct {
	name string
	mode fs.FileMode // type bits only
}

// readDir lists name below dirfd, in no order.
func readDir(dirfd int, name string) ([]dirent, error) {
	fd, err := openDir(dirfd, name)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	list, err := f.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	out := make([]dirent, len(list))
	for i, e := range list {
		out[i] = dirent{e.Name(), e.Type()}
	}
	return out, nil
}

// tryLock takes flock(2) without waiting; EWOULDBLOCK when it is held.
func tryLock(fd int) error {
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EINTR {
			return err
		}
	}
}

func writeAll(fd int, name string, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return pathError("write", name, err)
		}
		data = data[n:]
	}
	return nil
}

func fsync(fd int, name string) error {
	return pathError("fsync", name, retry(func() error { return unix.Fsync(fd) }))
}

func syncDir(dirfd int, name string) error {
	fd, err := openDir(dirfd, name)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	return fsync(fd, name)
}

func syncFile(dirfd int, name string) error {
	fd, _, err := openRegular(dirfd, name)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	return fsync(fd, name)
}

// in calls do with the directory that name lies in, and its name there: the calls
// below would follow the symbolic links in a longer path.
func in(dirfd int, name string, do func(dirfd int, base string) error) error {
	dir, base := path.Split(name)
	if dir == "" {
		return do(dirfd, base)
	}
	fd, err := openDir(dirfd, path.Clean(dir))
	if err != nil {
		return err
	}
	defer closeFD(fd)
	return do(fd, base)
}

func mkdir(dirfd int, name string, mode uint32) error {
	return in(dirfd, name, func(dirfd int, base string) error {
		return pathError("mkdir", name, retry(func() error { return unix.Mkdirat(dirfd, base, mode) }))
	})
}

func rename(fromfd int, from string, tofd int, to string, flags uint) error {
	return in(fromfd, from, func(fromfd int, fromBase string) error {
		return in(tofd, to, func(tofd int, toBase string) error {
			return pathError("rename", to, retry(func() error { return unix.Renameat2(fromfd, fromBase, tofd, toBase, flags) }))
		})
	})
}

func unlink(dirfd int, name string) error {
	return in(dirfd, name, func(dirfd int, base string) error {
		return pathError("unlink", name, retry(func() error { return unix.Unlinkat(dirfd, base, 0) }))
	})
}

func rmdir(dirfd int, name string) error {
	return in(dirfd, name, func(dirfd int, base string) error {
		return pathError("rmdir", name, retry(func() error { return unix.Unlinkat(dirfd, base, unix.AT_REMOVEDIR) }))
	})
}

// removeAll removes name and what is below it, as far as that goes. It takes one descriptor for each level. It is for what is in a work
// directory, where nobody else can exchange anything.
func removeAll(dirfd int, name string) {
	if unlink(dirfd, name) == nil {
		return
	}
	if fd, err := openDir(dirfd, name); err == nil {
		empty(fd)
		closeFD(fd)
	}
	rmdir(dirfd, name)
}

// empty removes what is in an open directory, as far as that goes.
func empty(dirfd int) {
	list, _ := readDir(dirfd, ".")
	for _, e := range list {
		removeAll(dirfd, e.name)
	}
}

// removeEmpty removes a directory with the directories in it, if there is nothing else in them.
func removeEmpty(dirfd int, name string) {
	list, _ := readDir(dirfd, name)
	for _, e := range list {
		removeEmpty(dirfd, path.Join(name, e.name))
	}
	rmdir(dirfd, name)
}

// renameNew renames where nothing may be replaced. On a file system without
// RENAME_NOREPLACE (NFS, 9p) a file is linked instead, and a directory renamed
// where nothing was a moment ago: rename(2) replaces no directory that holds anything.
func renameNew(fromfd int, from string, tofd int, to string) error {
	err := rename(fromfd, from, tofd, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	linkErr := linkFile(fromfd, from, tofd, to)
	if linkErr == nil {
		return unlink(fromfd, from)
	}
	if errors.Is(linkErr, fs.ErrExist) {
		return linkErr
	}
	if _, err := statBeneath(tofd, to); !errors.Is(err, fs.ErrNotExist) {
		return pathError("rename", to, unix.EEXIST)
	}
	return rename(fromfd, from, tofd, to, 0)
}

// linkFile gives a file one more name.
func linkFile(fromfd int, from string, tofd int, to string) error {
	return in(fromfd, from, func(fromfd int, fromBase string) error {
		return in(tofd, to, func(tofd int, toBase string) error {
			return pathError("link", to, retry(func() error { return unix.Linkat(fromfd, fromBase, tofd, toBase, 0) }))
		})
	})
}

// noLinks says whether an error means that a file cannot have one more name there: the file
// system knows no links, or this user may not make them (protected_hardlinks, proc_sys_fs(5)).
func noLinks(err error) bool {
	for _, errno := range []unix.Errno{unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS, unix.EMLINK} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// linkOpen gives an open file one more name, or its first.
func linkOpen(fd int, tofd int, to string) error {
	return in(tofd, to, func(tofd int, base string) error {
		return pathError("link", to, retry(func() error {
			return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), tofd, base, unix.AT_SYMLINK_FOLLOW)
		}))
	})
}

// own gives an open file or directory to a user, where this process may do that.
func own(fd int, name string, owner Owner, mode uint32) error {
	if err := unix.Fchown(fd, owner.UID, owner.GID); err != nil && err != unix.EPERM {
		return pathError("chown", name, err)
	}
	return pathError("chmod", name, unix.Fchmod(fd, mode))
}

// takeOwner gives an open file the owner, mode and ACL of another one. Where
// this process may not give it away, it gives it the group at least.
func takeOwner(fd int, name string, like Attr, acl []byte) error {
	if unix.Fchown(fd, int(like.UID), int(like.GID)) != nil {
		unix.Fchown(fd, -1, int(like.GID))
	}
	// The directory's default ACL may have given it one that the other has not.
	err := unix.Fremovexattr(fd, aclName)
	if acl != nil {
		err = unix.Fsetxattr(fd, aclName, acl, 0)
	}
	if err != nil && err != unix.ENODATA && err != unix.ENOTSUP {
		return pathError("setfacl", name, err)
	}
	return pathError("chmod", name, unix.Fchmod(fd, uint32(like.Mode.Perm())))
}

const aclName = "system.posix_acl_access"

// readACL gives an open file's POSIX ACL in the kernel's form, nil for none.
func readACL(fd int, name string) ([]byte, error) {
	buf := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err := unix.Fgetxattr(fd, aclName, buf)
	if err == unix.ENODATA || err == unix.ENOTSUP {
		return nil, nil
	}
	if err != nil {
		return nil, pathError("getfacl", name, err)
	}
	return buf[:n], nil
}

// likeFile makes an open file look like another one to its users: like the one that was read, and no other (errMoved), for what was closed
// stays closed.
func likeFile(fd, dirfd int, name string, read Stamp) error {
	like, attr, err := openRegular(dirfd, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		return errMoved
	}
	if err != nil {
		return err
	}
	defer closeFD(like)
	if attr.Dev != read.Dev || attr.Ino != read.Ino {
		return errMoved
	}
	acl, err := readACL(like, name)
	if err != nil {
		return err
	}
	return takeOwner(fd, name, attr, acl)
}

// readAt reads like io.ReaderAt.
func readAt(fd int, name string, p []byte, off int64) (int, error) {
	n, err := io.ReadFull(&fdReader{fd: fd, name: name, off: off}, p)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return n, err
}

func writeAt(fd int, name string, p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		n, err := unix.Pwrite(fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, pathError("write", name, err)
		}
		done += n
	}
	return len(p), nil
}

func truncate(fd int, name string, size int64) error {
	return pathError("truncate", name, retry(func() error { return unix.Ftruncate(fd, size) }))
}

// openTop opens a registry's directory, by any path.
func openTop(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return fd, pathError("open", dir, err)
}

func statfs(fd int, name string) (st syscall.Statfs_t, err error) {
	err = retry(func() error { return syscall.Fstatfs(fd, &st) })
	return st, pathError("statfs", name, err)
}

// processMayCreate says whether this process may create files in a directory.
func processMayCreate(dirfd int) bool {
	return unix.Faccessat(dirfd, ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS) == nil
}

// mayCreate says, by an error, that this thread may not create files in a
// directory. Where the kernel cannot be asked (faccessat2(2) came with Linux
// 5.8), it is tried: the C library's way asks for the process, not the thread.
func mayCreate(dirfd int, name string) error {
	dot := [...]byte{'.', 0}
	_, _, errno := unix.Syscall6(unix.SYS_FACCESSAT2, uintptr(dirfd), uintptr(unsafe.Pointer(&dot)), unix.W_OK|unix.X_OK, unix.AT_EACCESS, 0, 0)
	switch errno {
	case 0:
		return nil
	case unix.ENOSYS, unix.EPERM:
		f, err := createUnnamed(dirfd, name)
		if f == nil && err == nil {
			err = pathError("access", name, unix.EACCES) // nobody knows
		}
		if f != nil {
			f.close()
		}
		return err
	}
	return pathError("access", name, errno)
}

// workName is where working files lie that need a name for longer: in an app, or in the
// registry for an app that is not there yet. With a random text behind it, it is what an index.json is called in its
// app before it takes its place.
const workName = ".irfs"

// workPrefix, and a random text, is what a work directory is called: a name that no app can have.
const workPrefix = ".work-"

// isRandom reports whether a name is that prefix and a text such as rand.Text gives, in lower case.
func isRandom(name, prefix string) bool {
	text, ok := strings.CutPrefix(name, prefix)
	return ok && len(text) == len(rand.Text()) && strings.Trim(text, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// A work directory is <parent>/.irfs/.work-<random>/, of mode 0700, held by flock(2) as long as
// its owner lives, so that what a killed process left can be told and removed.
//
// Whoever may write in the parent directory may exchange .irfs for anything else at any time, somebody's app or a directory of his own. So
// irfs works in one only where nobody else can exchange what is in it: that belongs to root or to this process's user, and whoever else may write
// there has only what is his own (the sticky bit). Where .irfs is another user's, .irfs-<uid> takes its place. And
// nothing is removed by a path: what is in a work directory goes through its descriptor, which nobody else can open, and then its name in
// the .irfs that was opened, if it still has one there. What irfs did not make is never removed.
type work struct {
	parent  int    // borrowed
	topName string // .irfs
	top     int    // this, open
	name    string
	fd      int
}

// topNames are the names that .irfs may have.
func topNames() []string { return []string{workName, fmt.Sprintf("%s-%d", workName, os.Geteuid())} }

// newWork makes a work directory in the open directory parent.
func newWork(parent int) (w *work, err error) {
	like, err := fstat(parent, ".")
	if err != nil {
		return nil, err
	}
	for _, top := range topNames() {
		if w, err = newWorkIn(parent, top, like); !errors.Is(err, errForeign) {
			return w, err
		}
	}
	return nil, fmt.Errorf("%w: irfs needs this name for its working files; rename what has it", err)
}

func newWorkIn(parent int, topName string, like Attr) (*work, error) {
	for range 1000 {
		w, err := tryWork(parent, topName, like)
		if err != nil || w != nil {
			return w, err
		}
		time.Sleep(time.Millisecond) // others come and go there
	}
	return nil, kindf(ErrBusy, "%s: it is removed again and again", topName)
}

// errForeign: what is called .irfs is not for the working files of this process.
var errForeign = errors.New("not for this process")

// A foreignTop says why.
type foreignTop struct{ text string }

func (f *foreignTop) Error() string        { return f.text }
func (f *foreignTop) Is(target error) bool { return target == errForeign || target == ErrBusy }

func notOurs(topName, why string) error { return &foreignTop{topName + " " + why} }

// tryWork is one attempt at newWork; nil, nil when another process was in
// between.
func tryWork(parent int, topName string, like Attr) (*work, error) {
	// Whoever may write here may also work here, each for himself.
	mode := uint32(like.Mode.Perm()) | unix.S_ISVTX
	top, err := openDir(parent, topName)
	if errors.Is(err, fs.ErrNotExist) {
		made := mkdirExact(parent, topName, mode)
		if made != nil && !errors.Is(made, fs.ErrExist) {
			return nil, made
		}
		if top, err = openDir(parent, topName); err != nil && made == nil {
			rmdir(parent, topName) // there are no descriptors
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, ErrCorrupt):
		return nil, notOurs(topName, "is no directory")
	case errors.Is(err, fs.ErrPermission):
		return nil, notOurs(topName, "is closed")
	case err != nil:
		return nil, err
	}
	w, err := workIn(parent, topName, top)
	if w == nil {
		removeTop(parent, topName, top, uint32(os.Geteuid()))
		closeFD(top)
	}
	return w, err
}

// usable returns an error unless what is open as top is a .irfs in which nobody but root and this process's user can exchange what they make.
func usable(topName string, top int) error {
	attr, err := fstat(top, topName)
	if err != nil {
		return err
	}
	st, err := statfs(top, topName)
	if err != nil {
		return err
	}
	_, isApp := statBeneath(top, "oci-layout")
	telling := known(int64(st.Type)) || st.Type == unix.OVERLAYFS_SUPER_MAGIC // not vfat, say, nor NFS: there owners are what they are said to be
	switch {
	case isApp == nil:
		return notOurs(topName, "is an app")
	case telling && attr.UID != 0 && attr.UID != uint32(os.Geteuid()), telling && attr.Mode&0o022 != 0 && attr.Mode&fs.ModeSticky == 0:
		return notOurs(topName, "is another user's, or others may exchange what is in it")
	}
	return nil
}

// workIn makes a work directory in the open directory top, which is .irfs; nil, nil when another process was in between.
func workIn(parent int, topName string, top int) (*work, error) {
	if err := usable(topName, top); err != nil {
		return nil, err
	}
	name := workPrefix + strings.ToLower(rand.Text())
	err := mkdir(top, name, 0o700)
	if errors.Is(err, fs.ErrNotExist) { // somebody removed .irfs, for it was empty
		return nil, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, notOurs(topName, "is closed to this process")
	}
	if err != nil {
		return nil, err
	}
	fd, err := openDir(top, name)
	if errors.Is(err, fs.ErrNotExist) { // somebody took it for one that is left over
		return nil, nil
	}
	if err != nil {
		rmdir(top, name)
		return nil, err
	}
	w := &work{parent, topName, top, name, fd}
	err = tryLock(fd)
	if err == nil && w.named() {
		return w, nil
	}
	closeFD(fd)
	if err == unix.EWOULDBLOCK { // by whoever is about to remove it
		err = nil
	}
	if err != nil {
		rmdir(top, name)
	}
	return nil, pathError("flock", topName, err)
}

// OffMain runs do on a locked thread that is not the main one: that one does not
// end with a goroutine (runtime.LockOSThread), and would keep what do made of it.
func OffMain(do func()) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		do()
		return
	}
	started := make(chan struct{})
	go func() { // on another thread, for this one is locked
		runtime.LockOSThread()
		close(started)
		do()
	}()
	<-started
	runtime.UnlockOSThread()
}

// mkdirExact makes a directory of exactly that mode, whatever the process's umask is: on a thread that shares that with no other. A mode that
// is set afterwards may be another directory's.
func mkdirExact(dirfd int, name string, mode uint32) error {
	done := make(chan error, 1)
	go OffMain(func() {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- pathError("unshare", name, err)
			return
		}
		unix.Umask(0)
		done <- mkdir(dirfd, name, mode)
	})
	return <-done
}

// clean removes the work directories in the open directory parent that nobody holds, for their
// owners are dead: those of this process's user.
func clean(parent int) {
	for _, topName := range topNames() {
		top, err := openDir(parent, topName)
		if err != nil {
			continue
		}
		if usable(topName, top) == nil {
			list, _ := readDir(top, ".")
			for _, e := range list {
				if isRandom(e.name, workPrefix) && e.mode.IsDir() {
					cleanWork(top, e.name)
				}
			}
			removeTop(parent, topName, top, uint32(os.Geteuid()))
		}
		closeFD(top)
	}
}

// cleanWork removes a directory in .irfs, if it is a work directory that nobody holds.
func cleanWork(top int, name string) {
	fd, err := openDir(top, name)
	if err != nil {
		return
	}
	w := &work{top: top, name: name, fd: fd}
	defer closeFD(fd)
	attr, err := fstat(fd, name)
	if err != nil || attr.UID != uint32(os.Geteuid()) || attr.Mode.Perm() != 0o700 || tryLock(fd) != nil || !w.named() {
		return
	}
	w.remove()
}

// removeTop removes .irfs, which is open as top, if that user made it and nobody works there.
func removeTop(parent int, topName string, top int, uid uint32) {
	attr, err := fstat(top, topName)
	if err != nil || attr.UID != uid {
		return
	}
	if isEntry(parent, topName, top) {
		rmdir(parent, topName)
	}
}

// named says whether the work directory still has its name.
func (w *work) named() bool { return isEntry(w.top, w.name, w.fd) }

// found says whether the work directory is where others of this process would make theirs.
func (w *work) found() bool { return isEntry(w.parent, w.topName, w.top) && w.named() }

// remove removes the work directory with what is in it.
func (w *work) remove() {
	empty(w.fd)
	if w.named() {
		rmdir(w.top, w.name)
	}
}

// close removes the work directory with what is in it.
func (w *work) close() {
	w.remove()
	if attr, err := fstat(w.fd, w.name); err == nil { // whose it is may be the file system's to say (NFS)
		removeTop(w.parent, w.topName, w.top, attr.UID)
	}
	closeFD(w.fd)
	closeFD(w.top)
}

// A newFile is a file that is being written and has not taken its place yet.
type newFile struct {
	what string // for errors
	fd   int
	dir  int    // where it lies if it has a name
	name string // "" for an unnamed one (O_TMPFILE)
}

// createUnnamed makes an unnamed file on the file system of the directory dirfd;
// nil, nil where there are none.
func createUnnamed(dirfd int, what string) (*newFile, error) {
	fd, err := openBeneath(dirfd, ".", unix.O_RDWR|unix.O_TMPFILE, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &newFile{what: what, fd: fd, dir: dirfd}, nil
}

// createNamed makes a file in a work directory.
func createNamed(w *work, what string) (*newFile, error) {
	name := strings.ToLower(rand.Text())
	fd, err := openBeneath(w.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &newFile{what, fd, w.fd, name}, nil
}

// place gives the file its name, where there must be none by that name yet.
func (f *newFile) place(dirfd int, name string) error {
	if f.name == "" {
		return linkOpen(f.fd, dirfd, name)
	}
	err := renameNew(f.dir, f.name, dirfd, name)
	if err == nil {
		f.name = ""
	}
	return err
}

func (f *newFile) Write(p []byte) (int, error) {
	if err := writeAll(f.fd, f.what, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *newFile) close() {
	if f.name != "" {
		unlink(f.dir, f.name)
	}
	closeFD(f.fd)
}
