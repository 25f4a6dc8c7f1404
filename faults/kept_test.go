package faults

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"irfs/layout"
	"irfs/layout/sample"
)

// This file is about what a mount remembers: rows 60 and 61. Each test has a verdict kept, changes bytes in a way that
// no time shows, and wants the next open to see it.

// A remembered is a document of an app, and what shows its change.
type remembered struct {
	app, file           string // which is changed
	at                  int    // the first byte that is
	bytes               string // what is there then
	shown, before, then string // a file of the mount, and its content
}

// keptApps makes an app for each kind of document.
func keptApps(t *testing.T, s *stage) (list []remembered) {
	t.Helper()
	add := func(name string, of func(f *forge) v1.Descriptor, shown string) {
		f := newForge(t, s, name)
		f.Tag("x", f.Index(f.image))
		f.write()
		text := f.Bytes(of(f))
		list = append(list, remembered{name, sample.Path(of(f).Digest), len(text) / 2, string(text[len(text)/2] ^ 1), shown, "verified\n", "corrupt\n"})
	}
	add("layer", func(f *forge) v1.Descriptor { return f.manifest(f.image).Layers[1] }, "tags/x/verify-full")
	add("config", func(f *forge) v1.Descriptor { return f.manifest(f.image).Config }, "tags/x/verify")
	add("manifest", func(f *forge) v1.Descriptor { return f.image }, "tags/x/verify")
	add("nested", func(f *forge) v1.Descriptor { return f.Index(f.image) }, "tags/x/verify")

	// A tag is moved to another image, whose descriptor has as many bytes.
	f := newForge(t, s, "index.json")
	f.Tag("x", f.image)
	other := append(f.Bytes(f.plain), bytes.Repeat([]byte(" "), int(f.image.Size-f.plain.Size))...)
	f.Add(sample.Annotate(f.Blob(f.plain.MediaType, other), "other", "one"))
	f.write()
	text := string(f.Files()["index.json"])
	list = append(list, remembered{"index.json", "index.json", strings.Index(text, f.image.Digest.String()), f.Blob(f.plain.MediaType, other).Digest.String(), "tags/x/verify", "verified\n", "unsigned\n"})
	return list
}

// ripen waits until times of files prove something, where they ever do.
func ripen() { time.Sleep(2100 * time.Millisecond) }

// wantKept reads each file twice, so that it is remembered if it ever is.
func wantKept(t *testing.T, s *stage, list []remembered) {
	t.Helper()
	for _, k := range list {
		for range 2 {
			if got := s.read(t, k.app+"/"+k.shown); got != k.before {
				t.Fatalf("%s: %s is %q at first", k.app, k.shown, got)
			}
		}
	}
}

func wantChanged(t *testing.T, s *stage, list []remembered) {
	t.Helper()
	for _, k := range list {
		if got := s.read(t, k.app+"/"+k.shown); got != k.then {
			t.Errorf("%s was changed, and %s is still %q", k.app, k.shown, got)
		}
	}
}

func stampOf(t *testing.T, name string) string {
	t.Helper()
	var st unix.Stat_t
	worked(t, unix.Stat(name, &st))
	return fmt.Sprint(st.Ino, st.Size, st.Mtim, st.Ctim)
}

// mapped maps a file so that it can be written. Nobody has it open after that.
func mapped(t *testing.T, name string) []byte {
	t.Helper()
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	worked(t, err)
	defer file.Close()
	info, err := file.Stat()
	worked(t, err)
	pages, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	worked(t, err)
	return pages
}

func newKeptStage(t *testing.T, registry string) *stage {
	t.Helper()
	if err := os.MkdirAll(registry, 0o755); err != nil {
		t.Fatal(err)
	}
	return &stage{registry: registry}
}

// 61: files are mapped, and the pages dirty already, when they are verified. Later stores leave no time.
func TestKeptBesideAMapping(t *testing.T) {
	house.Need(t, "fuse", "root")
	s := newKeptStage(t, newDir(t, "kept")+"/registry")
	list := keptApps(t, s)
	maps := map[string][]byte{}
	for _, k := range list {
		pages := mapped(t, filepath.Join(s.registry, k.app, k.file))
		defer unix.Munmap(pages)
		pages[0] ^= 1
		worked(t, unix.Msync(pages, unix.MS_SYNC))
		pages[0] ^= 1 // the page is dirty, and the time of that is the last one
		maps[k.app] = pages
	}
	s.mnt = mount(t, s.registry)
	ripen()
	wantKept(t, s, list)
	if version := s.read(t, ".irfs/version"); !strings.Contains(version, "\nremembers no: ") || !strings.Contains(version, "open for writing, or mapped") {
		t.Errorf("version says %q", version)
	}
	unseen := 0
	for _, k := range list {
		name := filepath.Join(s.registry, k.app, k.file)
		before := stampOf(t, name)
		copy(maps[k.app][k.at:], k.bytes)
		if stampOf(t, name) == before {
			unseen++
		}
	}
	if unseen == 0 {
		t.Error("every change left a time; nothing was tried")
	}
	wantChanged(t, s, list)
}

// 61: write(2) sets the times first, and the bytes come when their page does.
func TestKeptBesideASlowWrite(t *testing.T) {
	house.Need(t, "fuse", "root")
	s := newKeptStage(t, newDir(t, "kept")+"/registry")
	list := keptApps(t, s)
	s.mnt = mount(t, s.registry)
	ripen()
	var writes []*slowWrite
	for _, k := range list {
		writes = append(writes, writeSlowly(t, filepath.Join(s.registry, k.app, k.file), k.at, k.bytes))
	}
	ripen()
	wantKept(t, s, list)
	for _, w := range writes {
		w.end(t)
	}
	wantChanged(t, s, list)
}

// A slowWrite is a write(2) that is under way.
type slowWrite struct {
	uffd int
	page []byte
	text string
	done chan error
}

// From linux/userfaultfd.h, for machines of 64 bits.
const (
	uffdAPI, uffdRegister, uffdCopy = 0xc018aa3f, 0xc020aa00, 0xc028aa03
	uffdVersion, uffdMissing        = 0xaa, 1
	uffdPagefault                   = 0x12
)

func ioctl(fd int, request uintptr, argument any) error {
	var at unsafe.Pointer
	switch a := argument.(type) {
	case *[3]uint64:
		at = unsafe.Pointer(a)
	case *[4]uint64:
		at = unsafe.Pointer(a)
	case *[5]uint64:
		at = unsafe.Pointer(a)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(at)); errno != 0 {
		return errno
	}
	return nil
}

// writeSlowly returns when a write has begun, and waits for the page that its bytes are in.
func writeSlowly(t *testing.T, name string, at int, text string) *slowWrite {
	t.Helper()
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		t.Fatalf("userfaultfd: %v", errno)
	}
	w := &slowWrite{uffd: int(fd), text: text, done: make(chan error, 1)}
	var err error
	w.page, err = unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	worked(t, err)
	start := uint64(uintptr(unsafe.Pointer(&w.page[0])))
	worked(t, ioctl(w.uffd, uffdAPI, &[3]uint64{uffdVersion}))
	worked(t, ioctl(w.uffd, uffdRegister, &[4]uint64{start, uint64(len(w.page)), uffdMissing}))
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	worked(t, err)
	go func() {
		_, err := unix.Pwrite(int(file.Fd()), w.page[:len(text)], int64(at))
		file.Close()
		w.done <- err
	}()
	var message [32]byte // struct uffd_msg
	if _, err := unix.Read(w.uffd, message[:]); err != nil || message[0] != uffdPagefault {
		t.Fatalf("userfaultfd: %v, %x", err, message)
	}
	return w
}

// end lets the bytes come.
func (w *slowWrite) end(t *testing.T) {
	t.Helper()
	source, err := unix.Mmap(-1, 0, len(w.page), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	worked(t, err)
	copy(source, w.text)
	to, from := uint64(uintptr(unsafe.Pointer(&w.page[0]))), uint64(uintptr(unsafe.Pointer(&source[0])))
	worked(t, ioctl(w.uffd, uffdCopy, &[5]uint64{to, from, uint64(len(w.page))}))
	worked(t, <-w.done)
	unix.Munmap(source)
	unix.Munmap(w.page)
	unix.Close(w.uffd)
}

// 61: on a file system whose ctime anybody can set, as on vfat, sshfs and others (here bindfs), nothing is remembered.
func TestKeptWhereTimesCanBeSet(t *testing.T) {
	house.Need(t, "fuse", "root", "bindfs", "fusermount3")
	top := newDir(t, "kept")
	worked(t, os.Mkdir(top+"/behind", 0o755))
	s := newKeptStage(t, top+"/registry")
	run(t, "bindfs", "--ctime-from-mtime", top+"/behind", s.registry)
	t.Cleanup(func() { run(t, "fusermount3", "-u", "-z", s.registry) })
	list := keptApps(t, s)
	s.mnt = mount(t, s.registry)
	ripen()
	wantKept(t, s, list)
	if version := s.read(t, ".irfs/version"); !strings.Contains(version, "\nremembers no: "+s.registry+": its file system") {
		t.Errorf("version says %q", version)
	}
	for _, k := range list {
		name := filepath.Join(s.registry, k.app, k.file)
		info, err := os.Stat(name)
		worked(t, err)
		before := stampOf(t, name)
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		worked(t, err)
		_, err = file.WriteAt([]byte(k.bytes), int64(k.at))
		worked(t, err)
		worked(t, file.Close())
		worked(t, os.Chtimes(name, info.ModTime(), info.ModTime()))
		if now := stampOf(t, name); now != before {
			t.Errorf("%s: the change left a time: %s, then %s", k.app, before, now)
		}
	}
	wantChanged(t, s, list)
}

// What one program reads is never taken for a document that is just being written, for which the last good one would serve.
func TestKeptIsNoGoodStateOfWhatCanBeRead(t *testing.T) {
	house.Need(t, "fuse", "root")
	s := newKeptStage(t, newDir(t, "kept")+"/registry")
	f := newForge(t, s, "app")
	f.Tag("x", f.image)
	f.Add(sample.Annotate(f.plain, "other", "one"))
	f.write()
	s.mnt = mount(t, s.registry)
	ripen()
	good, err := os.ReadFile(f.dir + "/index.json")
	worked(t, err)
	evil := strings.Replace(string(good), f.image.Digest.String(), f.plain.Digest.String(), 1)
	for _, text := range []string{evil[:len(evil)-1] + `,"x":"\ud800"}`, evil + "\nx", evil + "{}", evil + "\x00", evil[:len(evil)-1] + `,"x":NaN}`, evil[:len(evil)-1] + `,"Manifests":[]}`} {
		worked(t, os.WriteFile(f.dir+"/index.json", good, 0o644))
		if got := s.read(t, "app/tags/x/verify"); got != "verified\n" {
			t.Fatalf("before: %q", got)
		}
		worked(t, os.WriteFile(f.dir+"/index.json", []byte(text), 0o644))
		if got := s.read(t, "app/tags/x/verify"); got == "verified\n" {
			t.Errorf("%q is served for %s", got, text)
		}
	}
}

// 61: nobody may write a tmpfs that is read-only, and once it is not, a store through a mapping leaves no time there.
func TestKeptOnATmpfsThatWasReadOnly(t *testing.T) {
	house.Need(t, "fuse", "root")
	s := newKeptStage(t, newDir(t, "kept")+"/registry")
	worked(t, unix.Mount("tmpfs", s.registry, "tmpfs", 0, "mode=755"))
	t.Cleanup(func() { unix.Unmount(s.registry, unix.MNT_DETACH) })
	list := keptApps(t, s)
	for name := range allIn(t, s.registry) {
		worked(t, os.Lchown(filepath.Join(s.registry, name), 4711, 4711))
	}
	worked(t, unix.Mount("", s.registry, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	s.mnt = mount(t, s.registry)
	ripen()
	wantKept(t, s, list)
	if version := s.read(t, ".irfs/version"); !strings.Contains(version, "\nremembers yes") {
		t.Errorf("version says %q", version)
	}
	worked(t, unix.Mount("", s.registry, "", unix.MS_REMOUNT, ""))
	for _, k := range list {
		name := filepath.Join(s.registry, k.app, k.file)
		before := stampOf(t, name)
		pages := mapped(t, name)
		bytes.Clone(pages) // from a read on, tmpfs does not ask before a page is written
		copy(pages[k.at:], k.bytes)
		worked(t, unix.Munmap(pages))
		if stampOf(t, name) != before {
			t.Errorf("%s: the change left a time; nothing was tried", k.app)
		}
	}
	wantChanged(t, s, list)
}

// 60: a nested index stays byte for byte what it is, and its descriptor says another media type.
func TestMediaTypeOfANestedIndexChanges(t *testing.T) {
	house.Need(t, "fuse", "root")
	s := newKeptStage(t, newDir(t, "kept")+"/registry")
	f := newForge(t, s, "app")
	f.Tag("x", f.Index(f.Index(f.image)))
	f.write()
	s.mnt = mount(t, s.registry)
	ripen()
	for _, step := range []struct{ from, to, word string }{
		{"", "", "verified\n"},
		{v1.MediaTypeImageIndex + `","digest`, layout.MediaTypeDockerList + `","digest`, "corrupt\n"},
		{layout.MediaTypeDockerList + `","digest`, v1.MediaTypeImageIndex + `","digest`, "verified\n"},
	} {
		text, err := os.ReadFile(f.dir + "/index.json")
		worked(t, err)
		now := strings.Replace(string(text), step.from, step.to, 1)
		if step.from != step.to && now == string(text) {
			t.Fatalf("nothing changes in %s", text)
		}
		worked(t, os.WriteFile(f.dir+"/index.json", []byte(now), 0o644))
		for range 2 {
			if got := s.read(t, "app/tags/x/verify-full"); got != step.word {
				t.Errorf("after %q: %q; want %q", step.to, got, step.word)
			}
		}
	}
}

// 61: who may write decides whether anything is remembered, and version says why not.
func TestRemembers(t *testing.T) {
	house.Need(t, "fuse", "root", "loop", "setfacl", "mount", "mkfs.ext4")
	sh := func(t *testing.T, dir, script string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	// The user daemon is in the group daemon, as every Debian has it.
	for _, c := range []struct {
		name, script, options string
		says                  string // of `remembers`
	}{
		{"root's alone", "", "", "yes"},
		{"another's index.json", "chown 4711 registry/app/index.json", "", "no: app/index.json belongs to user 4711"},
		{"another's blob", "chown 4711 registry/app/blobs/sha256/*", "", "no: app/blobs/sha256/"},
		{"another's app", "chown 4711 registry/app", "", "no: app belongs to user 4711"},
		{"another's namespace", "mkdir registry/n; chown 4711 registry/n; mv registry/app registry/n; mkdir registry/app; cp -r registry/n/app/. registry/app", "", "yes"},
		{"another's registry", "chown 4711 registry", "", "no: the registry's directory belongs to user 4711"},
		{"another's, who is named", "chown -R 4711 registry", "writers=4711", "yes"},
		{"another's, who is named by name", "chown -R daemon registry", "writers=nobody:daemon", "yes"},
		{"another's, who is in a group that is named", "chown -R daemon registry", "writers=@daemon", "yes"},
		{"everybody's file", "chmod 666 registry/app/index.json", "", "no: app/index.json can be written by everybody"},
		{"everybody's directory", "chmod 777 registry/app/blobs/sha256", "", "no: app/blobs/sha256 can be written by everybody"},
		{"everybody's registry", "chmod 777 registry", "", "no: the registry's directory can be written by everybody"},
		{"a sticky registry", "chmod 1777 registry", "", "yes"},
		{"a sticky registry with another's app", "chmod 1777 registry; chown -R 4711 registry/app", "", "no: app belongs to user 4711"},
		{"a group of nobody else", "chgrp -R 0 registry; chmod -R g+w registry", "", "yes"},
		{"a group by its primary members", "chgrp 1 registry/app/index.json; chmod g+w registry/app/index.json", "", "no: app/index.json can be written by group 1, in which user 1 is"},
		{"a group whose members are named", "chgrp -R 1 registry; chmod -R g+w registry", "writers=@1", "yes"},
		{"a group that may only read", "chgrp -R 1 registry", "", "yes"},
		{"a user by an ACL", "setfacl -m u:4711:rw registry/app/index.json", "", "no: app/index.json can be written by user 4711, by its ACL"},
		{"a user by an ACL who may only read", "setfacl -m u:4711:r registry/app/index.json", "", "yes"},
		{"a user by an ACL whose mask closes it", "setfacl -m u:4711:rw,m::r registry/app/index.json", "", "yes"},
		{"a user by an ACL, who is named", "setfacl -m u:4711:rw registry/app/index.json", "writers=4711", "yes"},
		{"a group by an ACL of a directory", "setfacl -m g:1:rwx registry/app/blobs", "", "no: app/blobs can be written by group 1"},
		{"tmpfs", "mv registry r; mkdir registry; mount -t tmpfs -o mode=755 tmpfs registry; mv r/app registry", "", "yes"},
		{"another's tmpfs that is read-only itself", "chown -R 4711 registry; mv registry r; mkdir registry; mount -t tmpfs tmpfs registry; mv r/app registry; mount -o remount,ro registry", "", "yes"},
		{"another's tmpfs that is mounted read-only here", "chown -R 4711 registry; mv registry r; mkdir registry; mount -t tmpfs -o mode=755 tmpfs registry; mv r/app registry; mount -o bind,remount,ro registry", "", "no: app belongs to user 4711"},
		{"a group's tmpfs", "mv registry r; mkdir registry; mount -t tmpfs -o mode=755 tmpfs registry; mv r/app registry; chmod g+w registry/app/index.json", "", "no: app/index.json can be written by group 0, and is on tmpfs"},
		{"overlayfs", "mkdir o o/up o/work o/low; mv registry/app o/low; mount -t tmpfs tmpfs o/up; mkdir o/up/up o/up/work; mount -t overlay -o lowerdir=o/low,upperdir=o/up/up,workdir=o/up/work overlay registry", "", "its file system (type 0x794c7630)"},
		{"an app on another device", "mv registry/app a; mkdir registry/app; truncate -s 8M disk; mkfs.ext4 -q disk; mount -o loop disk registry/app; cp -r a/. registry/app", "", " is on another file system than the registry"},
		{"a group that no file names", "chgrp 47311 registry/app/index.json; chmod g+w registry/app/index.json", "", "no: app/index.json can be written by group 47311, and who is in that cannot be found out: no file"},
		{"an app on another file system without a device", "mv registry/app a; mkdir registry/app; mount -t tmpfs -o mode=755 tmpfs registry/app; cp -r a/. registry/app", "", " is on another file system than the registry"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			top := newDir(t, "remembers")
			s := newKeptStage(t, top+"/registry")
			newForge(t, s, "app").asItIs()
			t.Cleanup(func() {
				for _, dir := range []string{"registry/app", "registry", "o/up"} {
					unix.Unmount(filepath.Join(top, dir), unix.MNT_DETACH)
				}
			})
			if c.script != "" {
				sh(t, top, c.script)
			}
			var flags []string
			if c.options != "" {
				flags = []string{"-o", c.options}
			}
			s.mnt = mount(t, s.registry, flags...)
			if word := s.read(t, "app/tags/x/verify-full"); word != "verified\n" {
				t.Errorf("verify-full: %q", word)
			}
			_, says, _ := strings.Cut(s.read(t, ".irfs/version"), "\nremembers ")
			if !strings.Contains(says, c.says) || strings.HasPrefix(says, "yes") != (c.says == "yes") {
				t.Errorf("remembers %q; want %q", says, c.says)
			}
		})
	}
	for _, list := range []string{"nobody-at-all", "@nobody-at-all", "", "4711:"} {
		wantCode(t, 1, "-o writers="+list+": there is no", "mount", "-o", "writers="+list, newDir(t, "registry"), newDir(t, "mnt"))
	}
}
