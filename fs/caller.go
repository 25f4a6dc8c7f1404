package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"irfs/layout"
	"irfs/sign"
)

// A Caller is the process that asks for something: its id as this process
// sees it, and its file system ids.
type Caller struct{ PID, UID, GID uint32 }

// readAs reads a small file as the caller would: with its rights, from its
// working directory, below its root. The file must be a regular one of at
// most sign.MaxKeyFile bytes, and not lie on the file system notOn, the mount
// itself. No lock may be held: opening can end up in this very process.
func readAs(ctx context.Context, c Caller, notOn uint64, name string) ([]byte, error) {
	if name == "" || strings.IndexByte(name, 0) >= 0 {
		return nil, &fault{errCommand, "not a path"}
	}
	var data []byte
	err := as(ctx, c, func(v *view) error {
		fd, err := v.open(name, notOn)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		data, err = readSmall(fd, name)
		return err
	})
	if errors.Is(err, errView) { // says nothing of the name, which may be no name
		return nil, &fault{errView, err.Error() + "; write the key itself: cat KEY > sign"}
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

// listAs lists the files *.pub in a directory as the caller would; isDir is
// false for what is not a directory.
func listAs(ctx context.Context, c Caller, notOn uint64, name string) (list []string, isDir bool, err error) {
	err = as(ctx, c, func(v *view) error {
		fd, err := v.openat2(name, unix.O_PATH)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Dev == notOn || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return err
		}
		isDir = true
		if fd, err = v.openat2(name, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
			return err
		}
		dir := os.NewFile(uintptr(fd), name)
		defer dir.Close()
		names, err := dir.Readdirnames(-1)
		for _, n := range names {
			if strings.HasSuffix(n, ".pub") {
				list = append(list, strings.TrimSuffix(name, "/")+"/"+n)
			}
		}
		slices.Sort(list)
		return err
	})
	if err != nil { // the thread may still be at work on them
		return nil, false, err
	}
	return list, isDir, nil
}

// errView: it cannot be known what the caller may do. EACCES.
var errView = errors.New("unknown caller")

// as runs do on a thread that sees what the caller sees, with the caller's rights.
func as(ctx context.Context, c Caller, do func(*view) error) error {
	view, err := viewOf(c)
	if err != nil {
		return err
	}
	return onThread(ctx, func() error {
		defer view.close()
		if !view.own {
			if err := view.become(); err != nil {
				return err
			}
		}
		return do(view)
	})
}

// rightsOf are the rights of a caller to change an app. Where nobody can tell them (he is in another pid namespace, or this process has no
// privileges), the mode of the app's directory has to say them, for his user and group: his other groups are not known.
func rightsOf(c Caller) layout.Rights {
	rights, err := credentialsOf(c)
	return func(ctx context.Context, dir layout.Attr, ask func() error) error {
		if err == nil {
			return rights.run(ctx, ask)
		}
		const make = 0o3 // files in a directory
		mode := dir.Mode.Perm()
		switch {
		case c.UID == 0:
			return nil
		case c.UID == dir.UID:
			mode >>= 6
		case dir.Mode&fs.ModeSticky != 0: // whose its files are is not known
			return &fs.PathError{Op: "access", Path: ".", Err: unix.EACCES}
		case c.GID == dir.GID:
			mode >>= 3
		}
		if mode&make != make {
			return &fs.PathError{Op: "access", Path: ".", Err: unix.EACCES}
		}
		return nil
	}
}

// run runs do on a thread that has these rights.
func (c credentials) run(ctx context.Context, do func() error) error {
	return onThread(ctx, func() error {
		if !c.own {
			if err := c.take(); err != nil {
				return err
			}
		}
		return do()
	})
}

// onThread runs do on a thread of its own, which may take on another identity for
// good: it is never unlocked, and so ends with the goroutine.
func onThread(ctx context.Context, do func() error) error {
	done := make(chan error, 1)
	go layout.OffMain(func() { done <- do() })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readSmall reads a key or signature file. It never waits for more to come, as an
// os.File would.
func readSmall(fd int, name string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(descriptor(fd), sign.MaxKeyFile+1))
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	if len(data) > sign.MaxKeyFile {
		return nil, tooLarge(name, int64(len(data)))
	}
	return data, nil
}

type descriptor int

func (d descriptor) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(d), p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func tooLarge(name string, size int64) error {
	return &fault{syscall.EFBIG, fmt.Sprintf("%s: %d bytes, over the limit of %d for a key or signature", name, size, sign.MaxKeyFile)}
}

// A view is what decides which file a path means to a process, and whether it
// may open it.
type view struct {
	credentials
	root, cwd int
}

// credentials are what a process may do, as it was when it was looked at.
type credentials struct {
	Caller
	groups       []uint32
	capabilities uint64 // effective
	// own: this process has no privileges, and acts for its own user only.
	own bool
}

func credentialsOf(c Caller) (credentials, error) {
	cr := credentials{Caller: c, own: os.Geteuid() != 0}
	if c.PID == 0 {
		return cr, &fault{errView, "the caller is in another pid namespace, so nobody knows what it may do"}
	}
	if cr.own && c.UID != uint32(os.Geteuid()) {
		return cr, &fault{errView, "this mount's process has no right to act for another user"}
	}
	proc := fmt.Sprintf("/proc/%d/", c.PID)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return cr, unseen(err)
	}
	for line := range strings.Lines(string(status)) {
		if list, ok := strings.CutPrefix(line, "Groups:"); ok {
			for _, g := range strings.Fields(list) {
				if id, err := strconv.ParseUint(g, 10, 32); err == nil {
					cr.groups = append(cr.groups, uint32(id))
				}
			}
		}
		if set, ok := strings.CutPrefix(line, "CapEff:"); ok {
			cr.capabilities, _ = strconv.ParseUint(strings.TrimSpace(set), 16, 64)
		}
	}
	if !sameNamespace(proc + "ns/user") {
		cr.capabilities = 0 // those that it has count in its own namespace only
	}
	if cr.own && !cr.hasOurGroups() {
		return cr, &fault{errView, "the caller is in fewer groups than this mount's process"}
	}
	return cr, nil
}

func unseen(err error) error {
	return &fault{errView, fmt.Sprintf("the caller's root and working directory cannot be seen (%v)", err)}
}

func viewOf(c Caller) (*view, error) {
	cr, err := credentialsOf(c)
	if err != nil {
		return nil, err
	}
	v := &view{credentials: cr, root: -1, cwd: -1}
	proc := fmt.Sprintf("/proc/%d/", c.PID)
	for link, fd := range map[string]*int{"root": &v.root, "cwd": &v.cwd} {
		if *fd, err = unix.Open(proc+link, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			v.close()
			return nil, unseen(err)
		}
	}
	if v.own && !(sameRoot(v.root) && sameNamespace(proc+"ns/mnt")) {
		v.close()
		return nil, &fault{errView, "the caller has another root directory than this mount's process"}
	}
	return v, nil
}

// hasOurGroups says whether the caller is in every group that this process is
// in, so that opening a file here lends it no right.
func (c *credentials) hasOurGroups() bool {
	ours, err := os.Getgroups()
	if err != nil {
		return false
	}
	for _, g := range append(ours, os.Getegid()) {
		if uint32(g) != c.GID && !slices.Contains(c.groups, uint32(g)) {
			return false
		}
	}
	return true
}

// sameNamespace says whether /proc/<pid>/ns/<kind> is this process's own.
func sameNamespace(theirLink string) bool {
	theirs, err1 := os.Readlink(theirLink)
	ours, err2 := os.Readlink("/proc/self/ns/" + path.Base(theirLink))
	return err1 == nil && err2 == nil && theirs == ours
}

func sameRoot(fd int) bool {
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Stat("/", &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

func (v *view) close() {
	for _, fd := range []int{v.root, v.cwd} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// open opens a key file for reading, by the caller's path. What it is is looked
// at before it is opened: a FIFO, a terminal or a device would notice, and
// a file of the mount itself would have to be computed first. What the kernel
// makes up while it is read, as in /proc, has no size; some of it blocks, or is gone
// once it was read (/proc/kmsg: proc(5)).
func (v *view) open(name string, notOn uint64) (int, error) {
	seen, err := v.openat2(name, unix.O_PATH)
	if err != nil {
		return -1, err
	}
	defer unix.Close(seen)
	var st, now unix.Stat_t
	if err := unix.Fstat(seen, &st); err != nil {
		return -1, err
	}
	refuse := func(kind error, why string) (int, error) {
		return -1, &fault{kind, fmt.Sprintf("%s: %s", name, why)}
	}
	switch {
	case st.Dev == notOn:
		return refuse(sign.ErrKey, "it lies in this mount itself; copy it out first")
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return refuse(sign.ErrKey, "not a regular file")
	case st.Size == 0:
		return refuse(sign.ErrKey, "the file is empty")
	case st.Size > sign.MaxKeyFile:
		return -1, tooLarge(name, st.Size)
	}
	fd, err := v.openat2(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return -1, err
	}
	if err := unix.Fstat(fd, &now); err != nil || now.Dev != st.Dev || now.Ino != st.Ino {
		unix.Close(fd)
		return refuse(sign.ErrKey, "it was replaced while it was being opened")
	}
	return fd, nil
}

func (v *view) openat2(name string, flags int) (int, error) {
	at := v.cwd
	if !v.own { // the thread stands there itself
		at = unix.AT_FDCWD
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(at, name, &how)
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR:
			continue
		case unix.ELOOP:
			return -1, &fault{err, name + ": it leads through /proc, or through too many symbolic links; write the key itself: cat KEY > sign"}
		}
		return -1, &fs.PathError{Op: "open", Path: name, Err: err}
	}
}

// become gives the thread the caller's root and working directory, and its rights.
func (v *view) become() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := errors.Join(unix.Fchdir(v.root), unix.Chroot("."), unix.Fchdir(v.cwd)); err != nil {
		return err
	}
	return v.take()
}

// take gives the thread these groups and file system ids. With a user id other
// than 0 the kernel also takes from it the capabilities that override file
// permissions (capabilities(7)). Raw calls, for those of package syscall act on every
// thread.
func (c *credentials) take() error {
	var groups unsafe.Pointer
	if len(c.groups) > 0 {
		groups = unsafe.Pointer(&c.groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(c.groups)), uintptr(groups), 0); errno != 0 {
		return errno
	}
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(c.GID), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(c.UID), 0, 0)
	// Neither says whether it worked; asking with an impossible id does.
	if id, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0); uint32(id) != c.UID {
		return unix.EPERM
	}
	if id, _, _ := unix.RawSyscall(unix.SYS_SETFSGID, ^uintptr(0), 0, 0); uint32(id) != c.GID {
		return unix.EPERM
	}
	return c.drop()
}

// drop leaves the thread no capability that the caller has not: a user id of 0
// alone, as in a container, does not override permissions.
func (c *credentials) drop() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	sets[0].Effective &= uint32(c.capabilities)
	sets[1].Effective &= uint32(c.capabilities >> 32)
	return unix.Capset(&header, &sets[0])
}
