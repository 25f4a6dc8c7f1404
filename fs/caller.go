package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

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
	if c.PID == 0 {
		return nil, &fault{syscall.EACCES, fmt.Sprintf("%s: the caller is in another pid namespace, so its rights cannot be known; write the key itself instead of its path", name)}
	}
	if name == "" || strings.IndexByte(name, 0) >= 0 {
		return nil, &fault{errCommand, "not a path"}
	}
	view, err := viewOf(c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		defer view.close()
		// The thread takes on the caller's identity for good: it is never
		// unlocked, and so ends with this goroutine.
		runtime.LockOSThread()
		fd, err := view.open(name)
		if err != nil {
			done <- result{nil, &fs.PathError{Op: "open", Path: name, Err: err}}
			return
		}
		file := os.NewFile(uintptr(fd), name)
		defer file.Close()
		data, err := readSmall(file, notOn)
		done <- result{data, err}
	}()
	select {
	case r := <-done:
		return r.data, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func readSmall(file *os.File, notOn uint64) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, err
	}
	refuse := func(kind error, why string) error {
		return &fault{kind, fmt.Sprintf("%s: %s", file.Name(), why)}
	}
	switch {
	case st.Dev == notOn:
		return nil, refuse(sign.ErrKey, "it lies in this mount itself; copy it out first")
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, refuse(sign.ErrKey, "not a regular file")
	case st.Size > sign.MaxKeyFile:
		return nil, refuse(syscall.EFBIG, fmt.Sprintf("%d bytes, over the limit of %d", st.Size, sign.MaxKeyFile))
	}
	data, err := io.ReadAll(io.LimitReader(file, sign.MaxKeyFile+1))
	if err == nil && len(data) > sign.MaxKeyFile {
		err = refuse(syscall.EFBIG, fmt.Sprintf("over the limit of %d bytes", sign.MaxKeyFile))
	}
	return data, err
}

// A view is what decides which file a path means to a process, and whether it
// may open it.
type view struct {
	Caller
	root, cwd int
	groups    []uint32
	// own: this process has no privileges, and opens for its own user only.
	own bool
}

func viewOf(c Caller) (*view, error) {
	proc := fmt.Sprintf("/proc/%d/", c.PID)
	gone := func(err error) error {
		return &fault{syscall.EACCES, fmt.Sprintf("the caller's root and working directory cannot be seen (%v)", err)}
	}
	v := &view{Caller: c, root: -1, cwd: -1, own: os.Geteuid() != 0}
	if v.own && c.UID != uint32(os.Geteuid()) {
		return nil, &fault{syscall.EACCES, "this mount's process cannot open files for another user; write the key itself: cat KEY > sign"}
	}
	var err error
	if v.root, err = unix.Open(proc+"root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, gone(err)
	}
	if v.cwd, err = unix.Open(proc+"cwd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		v.close()
		return nil, gone(err)
	}
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		v.close()
		return nil, gone(err)
	}
	for line := range strings.Lines(string(status)) {
		if list, ok := strings.CutPrefix(line, "Groups:"); ok {
			for _, g := range strings.Fields(list) {
				if id, err := strconv.ParseUint(g, 10, 32); err == nil {
					v.groups = append(v.groups, uint32(id))
				}
			}
		}
	}
	if v.own && !sameRoot(v.root) {
		v.close()
		return nil, &fault{syscall.EACCES, "the caller has another root directory; write the key itself: cat KEY > sign"}
	}
	return v, nil
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

// open opens name for reading. It changes the thread that it runs on for good.
func (v *view) open(name string) (int, error) {
	at := v.cwd
	if !v.own {
		if err := v.become(); err != nil {
			return -1, err
		}
		at = unix.AT_FDCWD
	}
	how := unix.OpenHow{
		// A FIFO or a terminal neither blocks nor is taken over.
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(at, name, &how)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ENXIO || err == unix.ENODEV { // a socket, or a device that is not there
			err = unix.EINVAL
		}
		return fd, err
	}
}

// become gives the thread the caller's root, working directory, groups and
// file system ids. With a user id other than 0 the kernel also takes from it
// the capabilities that override file permissions (capabilities(7)). Raw
// calls, for those of package syscall act on every thread.
func (v *view) become() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := errors.Join(unix.Fchdir(v.root), unix.Chroot("."), unix.Fchdir(v.cwd)); err != nil {
		return err
	}
	var groups unsafe.Pointer
	if len(v.groups) > 0 {
		groups = unsafe.Pointer(&v.groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(v.groups)), uintptr(groups), 0); errno != 0 {
		return errno
	}
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(v.GID), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(v.UID), 0, 0)
	// Neither says whether it worked; asking with an impossible id does.
	if id, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0); uint32(id) != v.UID {
		return unix.EPERM
	}
	if id, _, _ := unix.RawSyscall(unix.SYS_SETFSGID, ^uintptr(0), 0, 0); uint32(id) != v.GID {
		return unix.EPERM
	}
	return nil
}
