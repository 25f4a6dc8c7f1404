package faults

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"irfs/internal/irfstest"
	"irfs/layout/sample"
)

// An operation is one change to a registry, all or nothing.
type operation struct {
	name string
	args []string // of irfs, REGISTRY being the registry
	// client, if there is one, is what changes it through a mount, MNT, and irfs serves that.
	client []string
	// on says what the file system cannot do: an errno for calls that it does not know.
	on func(call) syscall.Errno
	// partly: it may be done in part, and is done in full the next time.
	partly bool
	// app is what the next operation changes, "app" if it is "".
	app string
}

// withoutUnnamed is a file system without O_TMPFILE, such as NFS.
func withoutUnnamed(c call) syscall.Errno {
	if c.name == "create" && strings.HasSuffix(c.what, "/.") {
		return unix.EOPNOTSUPP
	}
	return 0
}

// withoutLinks is one without hard links besides, such as exFAT.
func withoutLinks(c call) syscall.Errno {
	if c.name == "link" {
		return unix.EPERM
	}
	return withoutUnnamed(c)
}

func operations() []operation {
	sign := append([]string{"sign-image", "-r", "REGISTRY"}, signing()...)
	with := func(args []string, more ...string) []string { return append(slices.Clone(args), more...) }
	ops := []operation{
		{name: "sign", args: with(sign, "-a", "app", "-d", "stable")},
		{name: "import", args: []string{"import", "-r", "REGISTRY", "-a", "library/new", "FIRST"}},
		{name: "merge", args: []string{"import", "-r", "REGISTRY", "-a", "app", "--on-exist", "merge", "SECOND"}},
		{name: "gc", args: []string{"gc", "-r", "REGISTRY", "-a", "app", "--grace", "0s"}, partly: true},
		{name: "control file", client: []string{"dd", "status=none", "if=" + key("vendor.prv"), "of=MNT/app/tags/stable/sign"}},
		{name: "drop", client: []string{"cp", "SECOND", "MNT/import/app.tar"}},
	}
	if os.Getenv("IRFS_FAULTS") != "" {
		ops = append(ops, []operation{
			{name: "sign without links", args: with(sign, "-a", "app", "-d", "multi"), on: withoutLinks},
			{name: "merge without links", args: []string{"import", "-r", "REGISTRY", "-a", "app", "--on-exist", "merge", "SECOND"}, on: withoutLinks},
		}...)
	}
	if !full {
		return ops
	}
	extract := append([]string{"extract-sign-image", "-r", "REGISTRY"}, signing()...)
	return append(ops, []operation{
		{name: "sign an index", args: with(sign, "-a", "app", "-d", "multi")},
		{name: "sign in sha512", args: with(sign, "-a", "sha512", "-d", "stable"), app: "sha512"},
		{name: "import docker", args: []string{"import", "-r", "REGISTRY", "-a", "docker", "DOCKER"}},
		{name: "import over", args: []string{"import", "-r", "REGISTRY", "-a", "app", "ADDED"}},
		{name: "merge sha512", args: []string{"import", "-r", "REGISTRY", "-a", "app", "SHA512"}},
		{name: "extract and sign", args: with(extract, "-a", "library/new", "-f", "FIRST")},
		{name: "extract, sign and merge", args: with(extract, "-a", "app", "-f", "ADDED", "-d", "added")},
		{name: "drop anew", client: []string{"cp", "FIRST", "MNT/import/new.tar"}},
		{name: "sign without unnamed files", args: with(sign, "-a", "app", "-d", "multi"), on: withoutUnnamed},
		{name: "import without unnamed files", args: []string{"import", "-r", "REGISTRY", "-a", "new", "FIRST"}, on: withoutUnnamed},
		{name: "merge without unnamed files", args: []string{"import", "-r", "REGISTRY", "-a", "app", "--on-exist", "merge", "SECOND"}, on: withoutUnnamed},
		{name: "drop without unnamed files", client: []string{"cp", "SECOND", "MNT/import/app.tar"}, on: withoutUnnamed},
	}...)
}

// A bed is where an operation is tried again and again: a registry and archives, and
// what comes of it.
type bed struct {
	operation
	dir string
	// before and after it, each as it is, as it is after the next operation (then), and after
	// that and this one (again).
	before, after state
}

type state struct {
	tree, then, again map[string]string
	tags              map[string]map[string]string // by app
}

// newBed makes a bed in memory, for nothing is lost from there by a kill, and a sync costs nothing.
func newBed(t *testing.T, op operation) *bed {
	t.Helper()
	dir := newDir(t, "crash")
	if os.Geteuid() == 0 {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	}
	b := &bed{operation: op, dir: dir}
	if err := errors.Join(os.MkdirAll(dir+"/origin", 0o755), os.Mkdir(dir+"/mnt", 0o755)); err != nil {
		t.Fatal(err)
	}
	b.write(t)
	run(t, "irfs", append([]string{"sign-image", "-r", dir + "/origin", "-a", "app", "-d", "signed"}, signing()...)...)
	for _, c := range "0123" { // and the manifest that it was before
		must(t, os.WriteFile(dir+"/origin/app/blobs/sha256/"+strings.Repeat(string(c), 64), []byte("nobody's\n"), 0o644))
	}
	b.before = b.reference(t, "origin")
	run(t, "cp", "-a", dir+"/origin", dir+"/done")
	if err := b.do(dir + "/done"); err != nil {
		t.Fatal(err)
	}
	b.after = b.reference(t, "done")
	if maps.Equal(b.before.tree, b.after.tree) {
		t.Fatal("the operation does nothing")
	}
	return b
}

func (b *bed) write(t *testing.T) {
	t.Helper()
	shared := sample.Gzip("etc/", "", "etc/motd", "hello\n")
	image := func(l *sample.Layout, arch, text string) v1.Descriptor {
		return l.Image(sample.Linux(arch), shared, sample.Zstd("bin/tool", strings.Repeat(text, 20000)))
	}
	app := sample.New()
	app.Tag("stable", image(app, "amd64", "stable"))
	app.Tag("signed", image(app, "amd64", "signed"))
	app.Tag("next", image(app, "amd64", "next"))
	amd := image(app, "amd64", "multi")
	app.Tag("multi", app.Index(amd, image(app, "arm64", "multi"), app.Attestation(amd)))
	wide := sample.New()
	wide.Algorithm = "sha512"
	wide.Tag("stable", image(wide, "amd64", "wide"))
	wide.Tag("next", image(wide, "amd64", "next"))
	must(t, app.WriteDir(b.dir+"/origin/app"), wide.WriteDir(b.dir+"/origin/sha512"))

	archive := func(name string, add func(l *sample.Layout)) {
		l := sample.New()
		add(l)
		f, err := os.Create(b.dir + "/" + name)
		must(t, err, l.WriteTar(f), f.Close())
	}
	archive("FIRST", func(l *sample.Layout) {
		l.Tag("stable", image(l, "amd64", "first"))
		l.Tag("multi", l.Index(image(l, "amd64", "first"), image(l, "arm64", "first")))
	})
	archive("SECOND", func(l *sample.Layout) {
		l.Tag("stable", image(l, "amd64", "second"))
		l.Tag("added", image(l, "arm64", "second"))
	})
	archive("ADDED", func(l *sample.Layout) { l.Tag("added", image(l, "amd64", "added")) })
	archive("SHA512", func(l *sample.Layout) {
		l.Algorithm = "sha512"
		l.Tag("added", image(l, "amd64", "added"))
	})
	l := sample.New()
	f, err := os.Create(b.dir + "/DOCKER")
	must(t, err, l.DockerSave(sample.Saved{Image: image(l, "amd64", "docker"), Names: []string{"example.com/docker:1"}}).WriteTar(f), f.Close())
}

// reference is the state of a registry of the bed.
func (b *bed) reference(t *testing.T, name string) state {
	t.Helper()
	registry, s := b.dir+"/"+name, state{}
	s.tree = treeOf(t, registry)
	s.tags = tagsOf(t, registry)
	later := b.dir + "/later"
	run(t, "cp", "-a", registry, later)
	defer os.RemoveAll(later)
	must(t, b.next(later))
	s.then = treeOf(t, later)
	must(t, b.do(later))
	s.again = treeOf(t, later)
	return s
}

// next is the next operation on the registry, another one, and then gc: blobs that one which was killed had brought may stay until that.
func (b *bed) next(registry string) error {
	_, err := try("irfs", append([]string{"sign-image", "-r", registry, "-a", cmp.Or(b.app, "app"), "-d", "next"}, signing()...)...)
	if err == nil {
		_, err = try("irfs", "gc", "-r", registry, "--grace", "0s")
	}
	return err
}

func (b *bed) fill(words []string, registry string) []string {
	filled := make([]string, len(words))
	for i, w := range words {
		w = strings.NewReplacer("REGISTRY", registry, "MNT", b.dir+"/mnt").Replace(w)
		switch w {
		case "FIRST", "SECOND", "ADDED", "SHA512", "DOCKER":
			w = b.dir + "/" + w
		}
		filled[i] = w
	}
	return filled
}

// do is the operation, with nothing in its way.
func (b *bed) do(registry string) error {
	_, err := b.disturbed(registry, func(call) verdict { return verdict{} })
	return err
}

// disturbed is the operation, with a say in each of its calls. ended: it did not live to its end.
func (b *bed) disturbed(registry string, decide func(call) verdict) (bool, error) {
	var ended atomic.Bool
	sure := func(c call) verdict {
		if b.on != nil {
			if errno := b.on(c); errno != 0 {
				return verdict{errno: errno}
			}
		}
		v := decide(c)
		if v.kill {
			ended.Store(true)
		}
		return v
	}
	if b.client == nil {
		cmd := command("irfs", b.fill(b.args, registry)...)
		var errs strings.Builder
		cmd.Stderr = &errs
		s, err := supervise(cmd, registry, sure)
		if err != nil {
			return false, err
		}
		err = cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, errs.String())
		}
		return ended.Load(), errors.Join(err, s.wait())
	}
	return b.mounted(registry, &ended, sure)
}

func (b *bed) mounted(registry string, ended *atomic.Bool, decide func(call) verdict) (bool, error) {
	mnt := b.dir + "/mnt"
	var ready atomic.Bool
	cmd := command("irfs", "mount", "-f", "-c", key("root-ca.pub"), "-s", key("vendor.pub.sig"), "-o", "on_exist=merge", registry, mnt)
	var errs strings.Builder
	cmd.Stderr = &errs
	s, err := supervise(cmd, registry, func(c call) verdict {
		if ready.Load() {
			return decide(c)
		}
		return verdict{}
	})
	if err != nil {
		return false, err
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if _, err := os.Stat(mnt + "/.irfs/version"); err == nil {
			break
		}
		if time.Now().After(end) {
			cmd.Process.Kill()
			return false, errors.Join(errors.New("the mount did not come up"), cmd.Wait(), s.wait())
		}
	}
	ready.Store(true)
	client := b.fill(b.client, registry)
	_, err = try(client[0], client[1:]...)
	// What is removed after the answer is part of the operation.
	cmd.Process.Signal(unix.SIGTERM)
	var gone error
	if ended.Load() {
		unix.Unmount(mnt, unix.MNT_DETACH)
		cmd.Wait()
	} else if gone = cmd.Wait(); gone != nil {
		gone = fmt.Errorf("irfs mount: %w: %s", gone, errs.String())
		unix.Unmount(mnt, unix.MNT_DETACH)
	}
	return ended.Load(), errors.Join(err, gone, s.wait())
}

// The tools that read layouts, besides irfs.
func toolsAccept(app string, tags map[string]string) error {
	_, err := try("umoci", "ls", "--layout", app)
	for tag, digest := range tags {
		if strings.HasPrefix(digest, "sha512:") { // of which skopeo reads no config
			continue
		}
		_, more := try("skopeo", "inspect", "--config", "oci:"+app+":"+tag)
		err = errors.Join(err, more)
	}
	return err
}

// either checks that a registry whose operation was cut off is as before it or as after
// it, and becomes, with the next one, as if there had been no cut.
func (b *bed) either(registry string, acknowledged, tools bool) error {
	tags, err := appTags(registry)
	if err != nil {
		return err
	}
	if _, ok := tags["app"]; !ok {
		return errors.New("the app is gone")
	}
	for app := range tags {
		if got := tags[app]; !(maps.Equal(got, b.before.tags[app]) && !acknowledged) && !maps.Equal(got, b.after.tags[app]) {
			return fmt.Errorf("%s: it has %v; before were %v, after %v", app, got, b.before.tags[app], b.after.tags[app])
		}
		if tools {
			if err := toolsAccept(registry+"/"+app, tags[app]); err != nil {
				return err
			}
		}
	}
	if err := b.next(registry); err != nil {
		return fmt.Errorf("the next operation: %w", err)
	}
	now, err := sample.Tree(registry)
	if err != nil {
		return err
	}
	if b.partly {
		for name := range b.before.tree {
			if _, kept := b.after.tree[name]; !kept {
				delete(now, name)
			}
		}
	}
	// A directory blobs/<algorithm> that a merge has just made stays, though nothing may be in it.
	for name := range now {
		if path.Base(path.Dir(name)) == "blobs" && b.after.then[name] != "" && !acknowledged && !hasBelow(now, name) {
			delete(now, name)
		}
	}
	was := b.after
	if diff := differences(now, was.then); diff != "" {
		if was = b.before; acknowledged {
			return fmt.Errorf("it was acknowledged, and then: %s", diff)
		}
		if other := differences(now, was.then); other != "" {
			return fmt.Errorf("after the next operation\nit is not as before, but: %s\nnor as after, but: %s", other, diff)
		}
	}
	if err := b.do(registry); err != nil {
		return fmt.Errorf("the same again: %w", err)
	}
	if now, err = sample.Tree(registry); err != nil {
		return err
	}
	if diff := differences(now, was.again); diff != "" {
		return fmt.Errorf("the same again: %s", diff)
	}
	return nil
}

// stride is which calls are attacked: every, or every so many.
var stride = map[string]int{"full": 1, "calls": 1, "": 5}[os.Getenv("IRFS_FAULTS")]

func init() {
	if irfstest.Race() {
		stride *= 4 // it takes its time to start
	}
}

// TestKill kills irfs before each of its system calls that changes something; that is after the one before, too
// (HOSTILE 36).
func TestKill(t *testing.T) {
	house.Need(t, "fuse", "root", "umoci", "skopeo", "dd", "cp")
	for _, op := range operations() {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, op)
			kills := 0
			for n := 1; ; n += stride {
				registry := b.fresh(t)
				var at call
				k := 0
				ended, err := b.disturbed(registry, func(c call) verdict {
					if !c.changes() {
						return verdict{}
					}
					if k++; k == n {
						at = c
						return verdict{kill: true}
					}
					return verdict{}
				})
				if !ended && err != nil {
					t.Fatalf("call %d: %v", n, err)
				}
				if ended {
					kills++
				}
				if werr := b.either(registry, err == nil, full || n%8 == 0); werr != nil {
					t.Errorf("killed before call %d, %s: %v", n, at, werr)
				}
				if !ended {
					break
				}
			}
			t.Logf("%d kills", kills)
		})
	}
}

// TestKillTwice kills an import just before index.json is replaced, and then, at each of its calls, the
// next change, which has to clean up behind that one.
func TestKillTwice(t *testing.T) {
	house.Need(t, "root")
	t.Parallel()
	for _, op := range operations() {
		if op.name != "merge" {
			continue
		}
		b := newBed(t, op)
		registry := b.fresh(t)
		ended, _ := b.disturbed(registry, func(c call) verdict {
			return verdict{kill: c.String() == "rename app/index.json"}
		})
		if !ended {
			t.Fatal("index.json was not replaced")
		}
		must(t, os.RemoveAll(b.dir+"/origin"), os.Rename(registry, b.dir+"/origin"))
		kills := 0
		for n := 1; ; n += stride {
			registry := b.fresh(t)
			k := 0
			b.operation = operation{args: append([]string{"sign-image", "-r", "REGISTRY", "-a", "app", "-d", "next"}, signing()...)}
			ended, _ := b.disturbed(registry, func(c call) verdict {
				if c.changes() {
					k++
				}
				return verdict{kill: k == n}
			})
			must(t, b.next(registry))
			if diff := differences(treeOf(t, registry), b.before.then); diff != "" {
				t.Errorf("killed before call %d: %s", n, diff)
			}
			if !ended {
				break
			}
			kills++
		}
		t.Logf("%d kills", kills)
	}
}

// fresh is the registry as it was.
func (b *bed) fresh(t *testing.T) string {
	t.Helper()
	registry := b.dir + "/registry"
	must(t, os.RemoveAll(registry))
	run(t, "cp", "-a", b.dir+"/origin", registry)
	return registry
}

// errnos are what each call may fail with.
var errnos = map[string][]syscall.Errno{
	"create": {unix.ENOSPC, unix.EMFILE, unix.EDQUOT, unix.EIO}, "mkdir": {unix.ENOSPC, unix.EDQUOT, unix.EIO}, "unlink": {unix.EIO},
	"rename": {unix.EIO, unix.ENOSPC, unix.EDQUOT}, "link": {unix.ENOSPC, unix.EIO, unix.EDQUOT}, "write": {unix.ENOSPC, unix.EIO, unix.EDQUOT},
	"truncate": {unix.EIO}, "fsync": {unix.EIO, unix.ENOSPC, unix.EDQUOT}, "chmod": {unix.EIO}, "chown": {unix.EIO}, "setxattr": {unix.EIO, unix.ENOSPC},
	"open": {unix.EMFILE, unix.EIO}, "flock": {unix.ENOLCK}, "read": {unix.EIO}, "getdents": {unix.EIO}, "stat": {unix.EIO},
}

// TestErrors lets each system call fail, one at a time (HOSTILE 28).
func TestErrors(t *testing.T) {
	house.Need(t, "fuse", "root", "dd", "cp")
	for _, op := range operations() {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, op)
			faults, borne := 0, 0
			rounds := 1
			if full {
				rounds = 4
			}
			for round := range rounds {
				for n := 1; ; n += stride {
					f := &fault{n: n, round: round}
					registry := b.fresh(t)
					_, err := b.disturbed(registry, f.decide)
					if f.errno == 0 && f.seen < n {
						break
					}
					if f.errno == 0 { // as with the round before
						continue
					}
					faults++
					if err == nil {
						borne++
					}
					if err := b.failed(registry, f, err); err != nil {
						t.Errorf("%s %v as call %d: %v", f.at, f.errno, n, err)
					}
				}
			}
			t.Logf("%d errors, %d of them borne", faults, borne)
		})
	}
}

// A fault lets the n-th call fail.
type fault struct {
	n, round, seen int
	at             call
	errno          syscall.Errno
	renamed        bool // something was, before that
}

func (f *fault) decide(c call) verdict {
	if !full && !c.changes() {
		return verdict{}
	}
	f.seen++
	if f.seen < f.n && c.name == "rename" {
		f.renamed = true
	}
	if f.seen != f.n {
		return verdict{}
	}
	list := errnos[c.name]
	i := f.round
	if !full {
		i = f.n % len(list)
	}
	if i < len(list) {
		f.at, f.errno = c, list[i]
	}
	return verdict{errno: f.errno}
}

// failed checks what came of a failed call: the error is told, and the registry is as it was; or the call was not
// needed. A failure after the renaming that makes the change seen is told too, and undoes nothing.
func (b *bed) failed(registry string, f *fault, err error) error {
	now, terr := sample.Tree(registry)
	if terr != nil {
		return terr
	}
	if err != nil && !strings.Contains(strings.ToLower(err.Error()), f.errno.Error()) {
		return fmt.Errorf("it says: %v", err)
	}
	if err == nil { // its cleaning up failed, perhaps: what is left goes with the next operation
		maps.DeleteFunc(now, func(name, _ string) bool { return strings.Contains("/"+name+"/", "/.irfs/") })
	}
	before, after := differences(now, b.before.tree), differences(now, b.after.tree)
	if b.partly {
		before = ""
	}
	switch {
	case err == nil && after != "":
		return fmt.Errorf("no error, and %s", after)
	case err != nil && before != "" && (!f.renamed || after != ""):
		return fmt.Errorf("not as it was: %s (%v)", before, err)
	}
	return b.either(registry, err == nil, false)
}

// differences says in what two trees differ, "" if in nothing.
// hasBelow says whether there is something in a directory of a tree.
func hasBelow(tree map[string]string, dir string) bool {
	for name := range tree {
		if strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}

func differences(got, want map[string]string) string {
	var list []string
	for name, is := range got {
		switch was, ok := want[name]; {
		case !ok:
			list = append(list, "+ "+name)
		case was != is:
			list = append(list, fmt.Sprintf("! %s", name))
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok {
			list = append(list, "- "+name)
		}
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func treeOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	tree, err := sample.Tree(dir)
	must(t, err)
	return tree
}

func tagsOf(t *testing.T, registry string) map[string]map[string]string {
	t.Helper()
	tags, err := appTags(registry)
	must(t, err)
	return tags
}

// appTags checks every app of a registry (whole), and gives their tags.
func appTags(registry string) (map[string]map[string]string, error) {
	apps := map[string]map[string]string{}
	for _, pattern := range []string{"/*/oci-layout", "/*/*/oci-layout"} {
		found, err := filepath.Glob(registry + pattern)
		if err != nil {
			return nil, err
		}
		for _, file := range found {
			app := filepath.Dir(file)
			tags, err := whole(app)
			if err != nil {
				return nil, err
			}
			apps[strings.TrimPrefix(app, registry+"/")] = tags
		}
	}
	return apps, nil
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}
