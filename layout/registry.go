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
	"sync/atomic"
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
	windows atomic.Int32 // archives that are being unpacked and have one
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
	return &Registry{path: dir, fd: fd, keeper: keeper, apps: map[string]*App{}, dirs: map[string]seenDir{}, large: newLarge()}, nil
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
	App bool
}

// Dir tells what the directory name is ("." is the registry itself).
// ErrNotFound: there is no directory of that name, or one that cannot be an app.
func (r *Registry) Dir(name string) (Dir, error) {
	if name != "." && !appName(name) {
		return Dir{}, kindf(ErrNotFound, "%s: not a name that an app can have", name)
	}
	if d, ok := r.knownDir(name); ok {
		return d, nil
	}
	at := time.Now().UnixNano()
	fd, err := openDir(r.fd, name)
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
	return Dir{attr, name != "." && err == nil && mark.Mode.IsRegular()}, nil
}

// A seenDir is what a directory's status was, and when.
type seenDir struct {
	Attr
	seen sighting
}

// maxDirs bounds what a Registry remembers of directories.
const maxDirs = 1 << 14

// knownDir is Dir for a directory whose status surely is what it was.
func (r *Registry) knownDir(name string) (Dir, bool) {
	r.mu.Lock()
	seen, ok := r.dirs[name]
	r.mu.Unlock()
	if !ok || seen.seen.racy() || !unmoved(r.fd, name, seen.Stamp) {
		return Dir{}, false
	}
	if name == "." {
		return Dir{seen.Attr, false}, true
	}
	mark, err := lstat(r.fd, name+"/oci-layout")
	return Dir{seen.Attr, err == nil && mark.Mode.IsRegular()}, err == nil || err == unix.ENOENT
}

// Dirs lists the directories in the directory name ("." is the registry
// itself) that are apps or namespaces, sorted. What the view of an app or of
// the registry itself uses as a name is left out (see Hidden).
func (r *Registry) Dirs(name string) ([]string, error) {
	d, err := r.Dir(name)
	if err != nil {
		return nil, err
	}
	list, err := readDir(r.fd, name)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range list {
		if e.mode.IsDir() && appName(e.name) && !Hidden(e.name, d.App, name == ".") {
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

// MayChange returns an error unless the calling thread may create files in the directory name ("." is the registry itself).
func (r *Registry) MayChange(name string) error {
	dirfd, err := openDir(r.fd, name)
	if err != nil {
		return err
	}
	defer closeFD(dirfd)
	return mayCreate(dirfd, name)
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
		} else if errors.Is(err, ErrNotFound) {
			delete(r.apps, name)
		}
	}
	r.most = 2 * len(r.apps)
}

// App gives the app of that name; ErrNotFound if there is none.
func (r *Registry) App(name string) (*App, error) {
	if a := r.known(name); a != nil {
		if mark, err := lstat(r.fd, name+"/oci-layout"); err == nil && mark.Mode.IsRegular() && allDirs(r.fd, name) {
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
		delete(r.apps, name)
	}
	if err != nil {
		return nil, err
	}
	a := r.apps[name]
	if a == nil {
		r.forget()
		a = newApp(name, r.fd, name)
		a.recents, a.keeper, a.large = &r.recents, r.keeper, r.large
		r.apps[name] = a
	}
	return a, nil
}
