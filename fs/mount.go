package fs

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"irfs/layout"
	"irfs/sign"
)

// Options say how a tree is mounted.
type Options struct {
	Version    string // for .irfs/version
	ReadOnly   bool
	AllowOther bool // other users may look, as far as the modes allow
	NonEmpty   bool // mount over a directory that is not empty
	// OnExist: what becomes of an archive in import/ whose app is there.
	OnExist layout.OnExist
	// SignImports signs every archive in import/ before it is published, if not nil.
	SignImports *sign.Signer
	// Kernel are options for the kernel as they are, such as noexec.
	Kernel []string
	// Certificate is the vendor's certificate (vendor.pub.sig) for who signs
	// without naming one, and CertificateFrom the file that it came from.
	Certificate     []byte
	CertificateFrom string
}

// A Mount is a tree that is mounted.
type Mount struct {
	dir    string
	server *fuse.Server
	drops  *drops
}

// A Hint is an error with advice on what to do about it.
type Hint struct {
	Err  error
	Text string
}

func (h *Hint) Error() string { return h.Err.Error() }
func (h *Hint) Unwrap() error { return h.Err }

func hint(text, format string, args ...any) error {
	return &Hint{fmt.Errorf(format, args...), text}
}

// Mount mounts the tree on the directory dir, and serves it when Mount
// returns. A dead mount of the same registry that is there is replaced.
func (t *Tree) Mount(dir string, o Options) (*Mount, error) {
	dir, err := t.mountPoint(dir, o.NonEmpty)
	if err != nil {
		return nil, err
	}
	root := os.Geteuid() == 0
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return nil, hint("in a container, start it with --device /dev/fuse; irfs cat, ls, sign-image and import need no mount",
			"this machine has no /dev/fuse, so nothing can be mounted")
	}
	if _, err := exec.LookPath("fusermount3"); err != nil && !root {
		return nil, hint("install it (Debian: apt-get install fuse3), or mount as root",
			"fusermount3 is not there, and users other than root mount with its help")
	}
	if !t.Registry.Writable() {
		o.ReadOnly = true
	}
	m := &mounted{tree: t, stale: stale{at: map[uint32]refusal{}}, held: newHeld()}
	m.drops = newDrops(m, o)
	rand.Read(m.secret[:])
	t.certificate, t.certificateFrom = o.Certificate, o.CertificateFrom
	node := &dirNode{refusing: refusing{m, "."}, dir: t.root()}
	m.root = &node.Inode

	options := &gofs.Options{RootStableAttr: &gofs.StableAttr{Ino: 1}, NullPermissions: true}
	options.MountOptions = fuse.MountOptions{
		AllowOther: o.AllowOther, FsName: t.Registry.Path(), Name: "irfs",
		Options:            append([]string{"default_permissions"}, o.Kernel...),
		DisableReadDirPlus: true, // it would verify what a directory only names
		DisableXAttrs:      true,
		DirectMountStrict:  root,
		DirectMountFlags:   unix.MS_NOSUID | unix.MS_NODEV,
		MaxStackDepth:      t.stackDepth(),
	}
	if o.ReadOnly && root {
		options.DirectMountFlags |= unix.MS_RDONLY
	} else if o.ReadOnly {
		options.Options = append(options.Options, "ro")
	}
	server, err := fuse.NewServer(gofs.NewNodeFS(node, options), dir, &options.MountOptions)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot be mounted on: %w", dir, err)
	}
	if m.device, err = deviceOf(dir); err != nil {
		server.Unmount()
		return nil, err
	}
	t.version = func(uid uint32) []byte {
		return fmt.Appendf(nil, "version %s\nregistry %s\ndirectory %s\npid %d\npassthrough %s\nreadonly %s\nremembers %s\n",
			o.Version, Field(t.Registry.Path()), t.Registry.ID(), os.Getpid(), yes(m.passthrough.Load()), yes(o.ReadOnly), t.remembers(uid))
	}
	go server.Serve() // until the unmount, which Wait waits for
	if err := server.WaitMount(); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	m.passthrough.Store(canPassThrough(server))
	return &Mount{dir, server, m.drops}, nil
}

// remembers says whether what was read is remembered, as `yes` or `no: WHY`. Why names a file, which may be closed to other users.
func (t *Tree) remembers(uid uint32) string {
	remembers, why := t.Registry.Remembers()
	if !remembers && uid != 0 && uid != t.log.owner {
		return "no: who mounted this can see why"
	}
	if !remembers {
		return "no: " + Field(why)
	}
	return "yes"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// Wait returns when the mount is gone, however that came.
func (m *Mount) Wait() {
	m.server.Wait()
	m.drops.close()
	m.drops.mounted.census.end()
}

// Unmount unmounts; EBUSY while somebody uses it.
func (m *Mount) Unmount() error { return Unmount(m.dir, false) }

// Detach takes the mount out of sight at once; it ends when its last user does.
func (m *Mount) Detach() error { return Unmount(m.dir, true) }

// Unmount unmounts what is mounted on dir; with lazy, also while it is in use.
func Unmount(dir string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		if err := unix.Unmount(dir, flags); err != nil {
			return &os.PathError{Op: "unmount", Path: dir, Err: err}
		}
		return nil
	}
	args := []string{"-u"}
	if lazy {
		args = append(args, "-z")
	}
	out, err := exec.Command("fusermount3", append(args, "--", dir)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %s", dir, strings.TrimSpace(strings.TrimPrefix(string(out), "fusermount3:")))
	}
	return nil
}

// FindMount gives the path that a mount of irfs has in the table of mounts, by any
// path to it; an error if what is there is no mount of irfs.
func FindMount(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if real, err := realPath(abs); err == nil {
		abs = real
	}
	at, err := mountAt(abs)
	if err == nil && at.kind != "fuse.irfs" {
		err = fmt.Errorf("%s: a mount of type %s, and not of irfs", dir, at.kind)
	}
	return abs, err
}

// realPath is a path without symbolic links. Unlike filepath.EvalSymlinks it asks
// nothing of the file system that is mounted there, whose process may be dead or stopped.
func realPath(name string) (string, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// mountPoint checks the directory to mount on, and makes its path absolute.
func (t *Tree) mountPoint(dir string, nonEmpty bool) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// stat(2) may be answered from the kernel's cache for a second more; statfs(2) never is.
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); errors.Is(err, syscall.ENOTCONN) {
		if err := t.bury(dir); err != nil {
			return "", err
		}
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", hint("make the directory first: mkdir "+dir, "mount point: %w", err)
	}
	registry, err := filepath.EvalSymlinks(t.Registry.Path())
	if err != nil {
		return "", err
	}
	if inside(real, registry) || inside(registry, real) {
		return "", hint("mount it somewhere else", "the registry %s and the mount point %s lie inside each other", registry, real)
	}
	list, err := os.ReadDir(real)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	if len(list) > 0 && !nonEmpty {
		return "", hint("mount on an empty directory, or give -o nonempty", "mount point %s is not empty", dir)
	}
	return real, nil
}

func inside(a, b string) bool {
	return a == b || strings.HasPrefix(a, strings.TrimSuffix(b, "/")+"/")
}

// bury takes away a mount whose process is dead, if it was one of this registry.
func (t *Tree) bury(dir string) error {
	at, err := mountAt(dir)
	if err != nil {
		return err
	}
	if at.kind != "fuse.irfs" || at.source != t.Registry.Path() {
		return hint("unmount it: umount -l "+dir, "mount point %s holds a dead mount of %s", dir, at.source)
	}
	return Unmount(dir, true)
}

// A mountLine is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mountLine struct {
	device       uint64
	kind, source string
}

// unescapeMount undoes the octal escapes of a field (proc_pid_mountinfo(5)).
func unescapeMount(field string) string {
	var b strings.Builder
	for i := 0; i < len(field); i++ {
		if field[i] == '\\' && i+3 < len(field) {
			if c, err := strconv.ParseUint(field[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(field[i])
	}
	return b.String()
}

// mountAt finds what is mounted on dir, the last if there are several, without
// touching it.
func mountAt(dir string) (mountLine, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mountLine{}, err
	}
	var found *mountLine
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		f, g := strings.Split(before, " "), strings.Split(after, " ") // a name may have other white space in it
		if len(f) < 5 || len(g) < 2 || unescapeMount(f[4]) != dir {
			continue
		}
		var major, minor uint32
		fmt.Sscanf(f[2], "%d:%d", &major, &minor)
		found = &mountLine{unix.Mkdev(major, minor), g[0], unescapeMount(g[1])}
	}
	if found == nil {
		return mountLine{}, fmt.Errorf("%s: nothing is mounted there", dir)
	}
	return *found, nil
}

// Connection is the number of the kernel's connection to the process that serves the mount on dir.
func Connection(dir string) (uint32, error) {
	device, err := deviceOf(dir)
	return unix.Minor(device), err
}

func deviceOf(dir string) (uint64, error) {
	at, err := mountAt(dir)
	return at.device, err
}

// stackDepth is how many file systems may lie under a file that the kernel
// reads by itself: one more if the registry is on an overlay.
func (t *Tree) stackDepth() int {
	if st, err := t.Registry.Statfs(); err == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return 2
	}
	return 1
}

// canPassThrough tries whether the kernel takes a file to read by itself. One
// refusal later would turn it off for the whole mount, so it is asked
// before the first blob is opened.
func canPassThrough(server *fuse.Server) bool {
	fd, err := unix.MemfdCreate("irfs-probe", unix.MFD_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	id, errno := server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(fd)})
	if errno != 0 {
		return false
	}
	server.UnregisterBackingFd(id)
	return true
}

// HiddenApps names the apps directly in a registry that a mount hides, since it
// has a name of its own there. Those deeper down are named by `irfs status`: a
// mount does no work that grows with the registry.
func HiddenApps(reg *layout.Registry) []string {
	if at, err := reg.Dir("import"); err == nil && at.App {
		return []string{"import"}
	}
	return nil
}
