package faults

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A program is supervised by seccomp(2): each of its system calls that touches a registry
// waits until it is decided what becomes of it. strace(1) can inject faults too, but
// counts the calls of each thread apart, and a Go program's calls wander from
// thread to thread; here they have one order.

// A call is a system call of a supervised program that touches the registry.
type call struct {
	name string // as in strace(1); create is an open that makes a file
	what string // the file or directory, below the registry
}

func (c call) String() string { return c.name + " " + c.what }

// A verdict is what becomes of a call: nothing special, an errno instead of it, or the end of the program before it.
type verdict struct {
	errno syscall.Errno
	kill  bool
}

// supervised are the calls that are waited for, and which of their arguments is the file, or
// the directory that a name in it is changed in.
var supervised = map[uint32]struct {
	name string
	arg  int
}{
	unix.SYS_OPENAT2: {"open", 0}, unix.SYS_MKDIRAT: {"mkdir", 0}, unix.SYS_UNLINKAT: {"unlink", 0},
	unix.SYS_RENAMEAT2: {"rename", 2}, unix.SYS_LINKAT: {"link", 2},
	unix.SYS_WRITE: {"write", 0}, unix.SYS_PWRITE64: {"write", 0}, unix.SYS_FTRUNCATE: {"truncate", 0},
	unix.SYS_FSYNC: {"fsync", 0}, unix.SYS_FDATASYNC: {"fsync", 0}, unix.SYS_FCHMOD: {"chmod", 0}, unix.SYS_FCHOWN: {"chown", 0},
	unix.SYS_FSETXATTR: {"setxattr", 0}, unix.SYS_FREMOVEXATTR: {"setxattr", 0},
	unix.SYS_FLOCK: {"flock", 0}, unix.SYS_PREAD64: {"read", 0}, unix.SYS_GETDENTS64: {"getdents", 0}, unix.SYS_FSTAT: {"stat", 0},
}

// changing are those that change something on the disk, or make it durable.
var changing = []string{"create", "mkdir", "unlink", "rename", "link", "write", "truncate", "fsync", "chmod", "chown", "setxattr"}

func init() {
	roles["supervised"] = func(args []string) error {
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
		filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // seccomp_data.nr
		for nr := range supervised {
			filter = append(filter,
				unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr},
				unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
		}
		filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
		if errno != 0 {
			return os.NewSyscallError("seccomp", errno)
		}
		if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(fd)), nil, 0); err != nil {
			return err
		}
		unix.Close(3)
		return unix.Exec(args[0], args, os.Environ())
	}
}

// A supervisor decides on the calls of one program.
type supervisor struct {
	registry string
	decide   func(call) verdict
	done     chan error
}

// supervise starts a program so that decide, which is never called twice at a time, is asked about each call that
// touches the registry. The command must not have been given files besides standard ones.
func supervise(cmd *exec.Cmd, registry string, decide func(call) verdict) (*supervisor, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "supervisor"), os.NewFile(uintptr(pair[1]), "supervised")
	defer ours.Close()
	role := inRole("supervised")
	cmd.Args = append([]string{role.Path, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = role.Path
	cmd.Env = append(cmd.Env, roleEnv+"=supervised")
	cmd.ExtraFiles = []*os.File{theirs}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return nil, err
	}
	buf := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(ours.Fd()), make([]byte, 1), buf, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		return nil, errors.Join(errors.New("it cannot be supervised"), err, cmd.Wait())
	}
	messages, err := unix.ParseSocketControlMessage(buf[:n])
	if err != nil {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	s := &supervisor{registry: registry, decide: decide, done: make(chan error, 1)}
	go func() { s.done <- s.serve(fds[0]) }()
	return s, nil
}

// wait waits until the program, and all that it started, has ended.
func (s *supervisor) wait() error { return <-s.done }

// notification is struct seccomp_notif of linux/seccomp.h, response its answer.
type notification struct {
	id         uint64
	pid, flags uint32
	nr         uint32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type response struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

func (s *supervisor) serve(fd int) error {
	defer unix.Close(fd)
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		} else if err != nil {
			return err
		}
		if poll[0].Revents&unix.POLLIN == 0 { // nobody is left
			return nil
		}
		var n notification
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
			if errno == unix.ENOENT || errno == unix.EINTR { // the thread was killed meanwhile
				continue
			}
			return os.NewSyscallError("seccomp", errno)
		}
		answer := response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if c, ok := s.touches(&n); ok {
			v := s.decide(c)
			if v.kill {
				unix.Kill(int(n.pid), unix.SIGKILL)
				continue
			}
			if v.errno != 0 {
				answer = response{id: n.id, errno: -int32(v.errno)}
			}
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&answer))); errno != 0 && errno != unix.ENOENT {
			return os.NewSyscallError("seccomp", errno)
		}
	}
}

// touches says whether a call is one on the registry.
func (s *supervisor) touches(n *notification) (call, bool) {
	kind, ok := supervised[n.nr]
	if !ok {
		return call{}, false
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.pid, int32(n.args[kind.arg])))
	if err != nil || path != s.registry && !strings.HasPrefix(path, s.registry+"/") {
		return call{}, false
	}
	c := call{kind.name, strings.TrimPrefix(strings.TrimPrefix(path, s.registry), "/")}
	switch kind.name {
	case "open":
		var how [8]byte
		if !peek(n.pid, n.args[2], how[:]) {
			return call{}, false
		}
		if flags := binary.NativeEndian.Uint64(how[:]); flags&unix.O_CREAT != 0 || flags&unix.O_TMPFILE == unix.O_TMPFILE {
			c.name = "create"
		}
		c.what += name(n.pid, n.args[1])
	case "mkdir", "unlink":
		c.what += name(n.pid, n.args[1])
	case "rename", "link":
		c.what += name(n.pid, n.args[3])
	}
	return c, true
}

func name(pid uint32, at uint64) string {
	var text [256]byte
	peek(pid, at, text[:])
	before, _, _ := bytes.Cut(text[:], []byte{0})
	return "/" + string(before)
}

// peek reads memory of the program, as much as there is.
func peek(pid uint32, at uint64, p []byte) bool {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return false
	}
	defer f.Close()
	n, _ := f.ReadAt(p, int64(at))
	return n > 0
}

// changes says whether a call changes something on the disk.
func (c call) changes() bool { return slices.Contains(changing, c.name) }
