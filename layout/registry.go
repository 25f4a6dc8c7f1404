package layout

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Kinds of error that callers branch on. ErrCorrupt, ErrLimit and ErrDigest
// stand beside the code that finds them; what the system said (ENOSPC, EIO …)
// comes through as it is.
var (
	// ErrMissing: a blob that is named is not in the layout. Also ErrCorrupt.
	ErrMissing = errors.New("missing")
	// ErrNotFound: no app, tag or digest of that name. Nothing is wrong with what is there.
	ErrNotFound = errors.New("not found")
	// ErrExist: the app, or the tag with another digest, is there already.
	ErrExist = errors.New("exists")
	// ErrBusy: another process is changing the app, or did so in between again and again.
	ErrBusy = errors.New("busy")
	// ErrMoved: a name leads to another directory than when it was looked up. Nothing of that one was read or changed.
	ErrMoved = errors.New("moved")
	// ErrName: a name that no app or tag may have.
	ErrName = errors.New("not a usable name")
)

// MaxName is the longest name, in bytes, of an app's part or of a file.
const MaxName = 255

// A Registry is an Image Registry: a directory whose sub-directories with a
// file `oci-layout` are apps. It is safe for use by many goroutines.
type Registry struct {
	path   string
	fd     int
	keeper *keeper

	mu   sync.Mutex
	apps map[string]*App
	most int // apps, before forget looks which are gone
	dirs map[string]seenDir

	recents recents
	large   *large

	staging staging
	windows windows
}

// Open opens the registry in the directory dir.
func Open(dir string) (*Registry, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	fd, err := openTop(dir)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	keeper, err := newKeeper(fd, dir)
	if err != nil {
		closeFD(fd)
		return nil, fmt.Errorf("registry: %w", err)
	}
	return &Registry{path: dir, fd: fd, keeper: keeper, apps: map[string]*App{}, dirs: map[string]seenDir{}, large: newLarge(), windows: newWindows()}, nil
}

// Close closes the registry; its apps cannot be used any more.
func (r *Registry) Close() {
	r.StopReceiving()
	r.large.close()
	closeFD(r.fd)
}

// Path is the absolute path of the registry's directory.
func (r *Registry) Path() string { return r.path }

// ID tells the registry's directory from any other, wherever its path leads by now.
func (r *Registry) ID() string {
	attr, err := fstat(r.fd, r.path)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d", attr.Dev, attr.Ino)
}

// Writable says whether this process may create files in the registry.
func (r *Registry) Writable() bool {
	st, err := r.Statfs()
	return err == nil && st.Flags&unix.ST_RDONLY == 0 && processMayCreate(r.fd)
}

// Statfs tells the state of the file system that the registry is on.
func (r *Registry) Statfs() (syscall.Statfs_t, error) { return statfs(r.fd, r.path) }

// A Dir is a directory of a registry: an app, or a namespace, which only holds
// others.
type Dir struct {
	Attr
	ID  ID
	App bool
}

func errMovedAway(name string) error {
	return kindf(ErrMoved, "%s: the directory that had this name is not there any more, and another one is", name)
}

// Dir tells what the directory name is ("." is the registry itself).
// ErrNotFound: there is no directory of that name, or one that cannot be an app.
func (r *Registry) Dir(name string) (Dir, error) {
	if name != "." && !appName(name) {
		return Dir{}, kindf(ErrNotFound, "%s: not a name that an app can have", name)
	}
	return r.dirAt(r.fd, name, name)
}

// DirIn is Dir for the directory name in another one, which dir has to lead to still (ErrMoved).
func (r *Registry) DirIn(dir string, id ID, name string) (Dir, error) {
	if dir == "." {
		return r.Dir(name)
	}
	if !appName(name) {
		return Dir{}, kindf(ErrNotFound, "%s: not a name that an app can have", path.Join(dir, name))
	}
	fd, err := r.openDir(dir, id, unix.O_PATH)
	if err != nil {
		return Dir{}, err
	}
	defer closeFD(fd)
	return r.dirAt(fd, name, path.Join(dir, name))
}

// openDir opens the directory that name has to lead to still: ErrMoved if it leads to another one, ErrNotFound if to none. For the
// registry itself id means nothing.
func (r *Registry) openDir(name string, id ID, flags int) (int, error) {
	fd, err := openBeneath(r.fd, name, flags|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		return -1, kindf(ErrNotFound, "%s: no such directory", name)
	}
	if err != nil || name == "." {
		return fd, err
	}
	attr, err := fstat(fd, name)
	if err == nil && r.keeper.id(attr) != id {
		err = errMovedAway(name)
	}
	if err != nil {
		closeFD(fd)
		return -1, err
	}
	return fd, nil
}

// dirAt is Dir for the directory base below one that is open. name is its whole name.
func (r *Registry) dirAt(dirfd int, base, name string) (Dir, error) {
	if d, ok := r.knownDir(dirfd, base, name); ok {
		return d, nil
	}
	at := time.Now().UnixNano()
	fd, err := openDir(dirfd, base)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		return Dir{}, kindf(ErrNotFound, "%s: no such app", name)
	}
	if err != nil {
		return Dir{}, err
	}
	defer closeFD(fd)
	attr, err := fstat(fd, name)
	if err != nil {
		return Dir{}, err
	}
	mark, err := statBeneath(fd, "oci-layout")
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrCorrupt) {
		return Dir{}, err
	}
	attr = permitted(fd, attr)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.dirs) >= maxDirs {
		clear(r.dirs)
	}
	r.dirs[name] = seenDir{attr, r.keeper.ofDir(attr, at)}
	return Dir{attr, r.keeper.id(attr), name != "." && err == nil && mark.Mode.IsRegular()}, nil
}

// Along gives the directories on the way to name, from the registry's own to that one, each as it was found in the one before: ErrMoved if
// one is exchanged meanwhile.
func (r *Registry) Along(name string) ([]Dir, error) {
	at, err := r.Dir(".")
	if err != nil {
		return nil, err
	}
	list := []Dir{at}
	dirfd, err := openBeneath(r.fd, ".", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { closeFD(dirfd) }()
	sofar := ""
	for part := range strings.SplitSeq(name, "/") {
		if !appName(part) {
			return nil, kindf(ErrNotFound, "%s: not a name that an app can have", name)
		}
		sofar = path.Join(sofar, part)
		if at, err = r.dirAt(dirfd, part, sofar); err != nil {
			return nil, err
		}
		next, err := openBeneath(dirfd, part, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		closeFD(dirfd)
		dirfd = next
		if attr, err := fstat(dirfd, name); err != nil {
			return nil, err
		} else if r.keeper.id(attr) != at.ID {
			return nil, errMovedAway(name)
		}
		list = append(list, at)
	}
	return list, nil
}

// A seenDir is what a directory's status was, and when.
type seenDir struct {
	Attr
	seen sighting
}

// maxDirs bounds what a Registry remembers of directories.
const maxDirs = 1 << 14

// knownDir is dirAt for a directory whose status surely is what it was.
func (r *Registry) knownDir(dirfd int, base, name string) (Dir, bool) {
	r.mu.Lock()
	seen, ok := r.dirs[name]
	r.mu.Unlock()
	if !ok || seen.seen.racy() || !unmoved(dirfd, base, seen.Stamp) {
		return Dir{}, false
	}
	if name == "." {
		return Dir{seen.Attr, r.keeper.id(seen.Attr), false}, true
	}
	mark, err := lstat(dirfd, base+"/oci-layout")
	return Dir{seen.Attr, r.keeper.id(seen.Attr), err == nil && mark.Mode.IsRegular()}, err == nil || err == unix.ENOENT
}

// Dirs lists the directories in the directory name ("." is the registry itself), which it has to lead to still (ErrMoved),
// that are apps or namespaces, sorted. What the view of an app or of the registry itself uses as a name is left out (see Hidden).
func (r *Registry) Dirs(name string, of Dir) ([]string, error) {
	fd, err := r.openDir(name, of.ID, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer closeFD(fd)
	list, err := readDir(fd, ".")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range list {
		if e.mode.IsDir() && appName(e.name) && !Hidden(e.name, of.App, name == ".") {
			names = append(names, e.name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Hidden says whether an app of that name, directly in an app or in the
// registry itself, is hidden by a name that the mounted view has there.
func Hidden(name string, inApp, inRoot bool) bool {
	switch name {
	case "blobs", "tags", "manifests", "index.json", "oci-layout":
		return inApp
	case "import":
		return inRoot
	}
	return false
}

// appName says whether name, which may have several parts, can be that of an
// app or a namespace.
func appName(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' || len(part) > MaxName || strings.IndexByte(part, 0) >= 0 {
			return false
		}
	}
	return true
}

// CheckName says why a new app cannot have that name (ErrName), or nil.
func (r *Registry) CheckName(name string) error {
	if !appName(name) || strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7f || c == '\uFFFD' }) {
		return kindf(ErrName, "%q cannot be the name of an app: each part of it is 1 to %d bytes, does not begin with a dot and has no control characters", name, MaxName)
	}
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parent := path.Join(parts[:i]...)
		inApp := false
		if i > 0 {
			d, err := r.Dir(parent)
			inApp = err == nil && d.App
		}
		if Hidden(part, inApp, i == 0) {
			return kindf(ErrName, "%q cannot be the name of an app: a mount has %q there itself", name, part)
		}
	}
	return nil
}

// IsApp reports whether the registry's directory is itself an app: it has a file oci-layout.
func (r *Registry) IsApp() bool {
	mark, err := statBeneath(r.fd, "oci-layout")
	return err == nil && mark.Mode.IsRegular()
}

// A Found is what a walk over a registry found that is an app, or may be one.
type Found struct {
	Name string
	App  bool
	// Shown is false for what a mount does not show; Why says the reason.
	Shown bool
	Why   string
	// Unread is true for what may be, or hold, an app, and was not looked into: a directory that
	// cannot be read, a symbolic link to a directory, an index.json without an oci-layout.
	Unread bool
}

// maxDepth is how many directories deep a walk looks for apps.
const maxDepth = 32

// Apps walks the whole registry and gives every app in it, sorted, before those in it,
// also those that a mount hides, be it among an app's blobs; and what may be, or hold, an app, and
// was not looked into (Found.Unread). Symbolic links are not followed; those among the blobs are named only if
// they lead to a directory.
func (r *Registry) Apps() ([]Found, error) {
	if _, err := readDir(r.fd, "."); err != nil {
		return nil, err
	}
	var found []Found
	var walk func(dir, hidden string, inBlobs bool, depth int)
	walk = func(dir, hidden string, inBlobs bool, depth int) {
		list, err := readDir(r.fd, dir)
		app, index := false, false
		for _, e := range list {
			app = app || e.name == "oci-layout" && e.mode.IsRegular() && dir != "."
			index = index || e.name == "index.json" && !e.mode.IsDir()
		}
		if app { // a directory may be listed, and closed all the same
			if _, closed := statBeneath(r.fd, dir+"/oci-layout"); !errors.Is(closed, fs.ErrNotExist) {
				err = closed
			}
		}
		if err == nil && depth > maxDepth {
			err = fmt.Errorf("over %d directories deep", maxDepth)
		}
		if errors.Is(err, fs.ErrNotExist) { // gone meanwhile
			return
		}
		if err != nil {
			found = append(found, Found{Name: dir, Unread: true, Why: err.Error()})
			return
		}
		switch {
		case app:
			found = append(found, Found{Name: dir, App: true, Shown: hidden == "", Why: hidden})
		case index:
			found = append(found, Found{Name: dir, Unread: true, Why: "it has an index.json and no oci-layout, so it is no app, but some tools take it for one"})
		}
		list = slices.DeleteFunc(list, func(e dirent) bool { return !e.mode.IsDir() && e.mode&fs.ModeSymlink == 0 || !appName(e.name) })
		slices.SortFunc(list, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
		for _, e := range list {
			name := path.Join(dir, e.name)
			if e.mode.IsDir() {
				why := hidden
				if why == "" && Hidden(e.name, app, dir == ".") {
					why = fmt.Sprintf("the name %q is taken in a mount; rename the app", e.name)
				}
				walk(name, why, inBlobs || app && e.name == "blobs", depth+1)
			} else if leads := leadsToDir(r.fd, name); leads || !inBlobs {
				found = append(found, Found{Name: name, Unread: leads, Why: "a symbolic link, which is not followed"})
			}
		}
	}
	walk(".", "", false, 0)
	return found, nil
}

// known is the app of that name, if it was asked for before.
func (r *Registry) known(name string) *App {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.apps[name]
}

// Look gives the app of that name with its present state. Its errors are those of App and Snapshot.
func (r *Registry) Look(ctx context.Context, name string) (*App, *Snapshot, error) {
	if a := r.known(name); a != nil {
		if snap := a.current(); snap != nil {
			return a, snap, nil
		}
	}
	a, err := r.App(name)
	if err != nil {
		return nil, nil, err
	}
	a.mu.Lock()
	if blobs, err := lstat(r.fd, name+"/blobs"); err != nil || blobs.Stamp != a.ground.blobs || !a.stands(a.ground) {
		a.ground = a.survey()
	}
	a.mu.Unlock()
	snap, err := a.Snapshot(ctx)
	return a, snap, err
}

// forget drops what is remembered of apps that are gone, once there are many. r.mu is held.
func (r *Registry) forget() {
	const few = 256
	if len(r.apps) < max(r.most, few) {
		return
	}
	for name, a := range r.apps {
		if dirfd, err := a.open(); err == nil {
			closeFD(dirfd)
		} else if errors.Is(err, ErrNotFound) || errors.Is(err, ErrMoved) {
			r.drop(name)
		}
	}
	r.most = 2 * len(r.apps)
}

// drop forgets the app of that name, if there is one. r.mu is held.
func (r *Registry) drop(name string) {
	if a := r.apps[name]; a != nil {
		delete(r.apps, name)
		r.large.leaves(a)
	}
}

// App gives the app of that name; ErrNotFound if there is none. When the name leads to another directory than before, that is another App.
func (r *Registry) App(name string) (*App, error) {
	if a := r.known(name); a != nil {
		dir, err := lstat(r.fd, name)
		if mark, markErr := lstat(r.fd, name+"/oci-layout"); err == nil && r.keeper.id(dir) == a.id && markErr == nil && mark.Mode.IsRegular() && allDirs(r.fd, name) {
			return a, nil
		}
	}
	d, err := r.Dir(name)
	if err == nil && !d.App {
		err = kindf(ErrNotFound, "%s: no such app (it has no file oci-layout)", name)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(err, ErrNotFound) {
		r.drop(name)
	}
	if err != nil {
		return nil, err
	}
	a := r.apps[name]
	if a == nil || a.id != d.ID {
		r.drop(name)
		r.forget()
		a = newApp(name, r.fd, name)
		a.id, a.recents, a.keeper, a.large, a.windows = d.ID, &r.recents, r.keeper, r.large, r.windows
		r.apps[name] = a
	}
	return a, nil
}
