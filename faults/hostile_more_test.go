package faults

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/internal/irfstest"
	"irfs/layout"
	"irfs/layout/sample"
	"irfs/sign"
)

// This file has what a registry may do besides:
//
//	38  documents of very many small parts → refused, memory bounded
//	39  tags, platforms and apps whose names lead out, forge lines, or collide → each its own name, in the view and in every list
//	40  a layer that unpacks to very much, or wants much memory for it → verify-full says corrupt, memory bounded
//	41  files that are hard links, set-user-id, from the future → nothing of that outside the registry, or in the view
//	42  links that come and go while irfs looks → nothing outside changes, no word for what lies there
//	43  directories in one another without end → named, not followed

func missingRows() []badLayout {
	urls := func(n int) edit { return swap(`"digest":`, `"urls":[""`+strings.Repeat(`,""`, n)+`],"digest":`) }
	const over = "over the limit of 1048576 annotations and urls"
	rows := []badLayout{
		{row: 38, name: "urls in index.json", make: in("index.json", urls(2*layout.MaxStrings)), word: "corrupt", says: over, broken: true},
		{row: 38, name: "urls in a manifest", make: in("manifest", urls(layout.MaxStrings)), word: "corrupt", says: over, errno: syscall.EFBIG},
		{row: 38, name: "arrays of nothing in a config", make: in("config", member(`"x":[`+strings.Repeat("[],", 2<<20)+`[]],"x":1`)), word: "corrupt", says: duplicate, errno: syscall.EBADMSG},
	}
	if !irfstest.Race() { // it is read again for each question, which takes a minute then
		rows = append(rows, badLayout{row: 38, name: "urls in an index", make: in("index", urls(layout.MaxStrings)), word: "corrupt", says: over, errno: syscall.EFBIG})
	}
	layer := func(row badLayout, compression string, blob func() []byte) badLayout {
		row.row, row.word, row.full, row.make = 40, "verified", "corrupt", func(f *forge) {
			f.Tag("x", f.withManifest(func(m *v1.Manifest) { m.Layers[0] = f.Blob(v1.MediaTypeImageLayer+compression, blob()) }))
			f.write()
		}
		return row
	}
	return append(rows,
		layer(badLayout{name: "a layer in zstd with a window of 2 GiB", says: "window"}, "+zstd", func() []byte {
			return join("\x28\xb5\x2f\xfd\x00\xa8", "\x09\x00\x00x")
		}),
		layer(badLayout{name: "a layer in zstd that claims 2^63 bytes", says: ""}, "+zstd", func() []byte {
			return join("\x28\xb5\x2f\xfd\xe0", "\xff\xff\xff\xff\xff\xff\xff\x7f", "\x09\x00\x00x") // single segment: the window is all of it
		}),
		layer(badLayout{name: "a layer in gzip that unpacks to a thousand times its size", says: "diff_id"}, "+gzip", func() []byte {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			w.Write(make([]byte, 32<<20))
			w.Close()
			times := 4
			if full {
				times = 64
			}
			return bytes.Repeat(b.Bytes(), times)
		}))
}

// oddTags are names that a view could trip over.
var oddTags = []string{
	"../../../outside/file", "..", ".", "a/b", "a%2Fb", "a%252Fb", "/", "\n", "x\ty", "x\nverified\tgood\ty", "\x1b[31mred", "\x7f", ".irfs", "sign", "sha256:" + someHex, "sha256-" + someHex,
	strings.Repeat("t", 255), "ä", "a b", "-d", "\u202edlo", "$(reboot)", "*",
}

func missingGoodRows() []goodLayout {
	return []goodLayout{
		{row: 39, name: "odd tags", word: "verified", make: func(f *forge) {
			f.Tag("x", f.image)
			for _, tag := range append(oddTags, strings.Repeat("u", 256), strings.Repeat("/", 100)) { // the last two are too long for a name
				f.Tag(tag, f.image)
			}
			f.write()
		}, then: func(t *testing.T, s *stage, app string) {
			names, err := os.ReadDir(filepath.Join(s.mnt, app, "tags"))
			if err != nil || len(names) != 1+len(oddTags) {
				t.Errorf("%d tags are listed, %v; want %d", len(names), err, 1+len(oddTags))
			}
			for _, name := range names {
				if strings.ContainsFunc(name.Name(), func(c rune) bool { return c < ' ' || c == 0x7f }) {
					t.Errorf("%q is listed as it is", name.Name())
				}
				if word := s.read(t, app+"/tags/"+name.Name()+"/verify"); word != "verified\n" {
					t.Errorf("%q: %q", name.Name(), word)
				}
			}
			for _, tag := range oddTags {
				args := []string{"verify-image", "-r", s.registry, "-a", app, "--reference=" + tag, "-c", key("root-ca.pub")}
				if tag == "sha256:"+someHex { // is a tag all the same? a reference that is a digest is one
					continue
				}
				if out, code, said := irfs(args...); out != "verified\n" || code != 0 {
					t.Errorf("verify-image %q: %q, %d, %s", tag, out, code, said)
				}
			}
			out, _, _ := irfs("status", "-r", s.registry, "-c", key("root-ca.pub"), "--only", "verified")
			lines := 0
			for line := range strings.Lines(out) {
				fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
				if len(fields) != 6 || strings.ContainsFunc(line[:len(line)-1], func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
					t.Errorf("a line of status: %q", line)
				} else if fields[1] == app {
					lines++
				}
			}
			if lines != 3+len(oddTags) {
				t.Errorf("%d lines of status, want %d", lines, 3+len(oddTags))
			}
		}},
		{row: 39, name: "odd platforms", make: func(f *forge) {
			var images []v1.Descriptor
			for i, p := range []v1.Platform{{OS: "..", Architecture: ".."}, {OS: "../../..", Architecture: "outside/file"}, {OS: "linux\nverified", Architecture: "\x1b[31m"}, {OS: "", Architecture: ""}, {OS: "/", Architecture: "\u0000"},
				{OS: strings.Repeat("o", 5000), Architecture: "amd64"}, {OS: "linux", Architecture: "arm", Variant: "../../../x"}, {OS: "linux", Architecture: "a", OSVersion: "\n"}, {OS: "linux", Architecture: "a"}} {
				d := f.Image(sample.Linux(fmt.Sprint("a", i)), sample.Gzip("a", fmt.Sprint(i)))
				d.Platform = &p
				images = append(images, d)
			}
			f.Tag("x", f.Index(images...))
			f.write()
		}, then: func(t *testing.T, s *stage, app string) {
			names, err := os.ReadDir(filepath.Join(s.mnt, app, "tags/x/platforms"))
			if err != nil || len(names) != 9 {
				t.Errorf("%d platforms, %v; want 9", len(names), err)
			}
			for _, name := range names {
				if name.Name() == ".." || len(name.Name()) > 255 || strings.ContainsFunc(name.Name(), func(c rune) bool { return c < ' ' || c == 0x7f || c == '/' }) {
					t.Errorf("%q is listed", name.Name())
				}
				if word := s.read(t, app+"/tags/x/platforms/"+name.Name()+"/verify"); word != "verified\n" {
					t.Errorf("%q: %q", name.Name(), word)
				}
			}
			if reason := s.read(t, app+"/tags/x/reason"); strings.Contains(reason, "\nverified") || strings.Contains(reason, "\x1b") {
				t.Errorf("a forged line: %q", reason)
			}
		}},
		{row: 41, name: "hard links to what is outside, set-user-id, from the future and the past", make: func(f *forge) {
			f.unsigned()
			hard := f.stage.outside + "/hard"
			worked(f.t, os.MkdirAll(hard, 0o755))
			for i, name := range []string{f.dir + "/index.json", f.dir + "/oci-layout", f.blob(f.plain), f.blob(f.manifest(f.plain).Config)} {
				worked(f.t, os.Link(name, fmt.Sprint(hard, "/", i)))
				worked(f.t, os.Chmod(name, 0o755|os.ModeSetuid|os.ModeSetgid|os.ModeSticky))
				when := time.Date(2400, 1, 1, 0, 0, 0, 0, time.UTC)
				if i%2 == 1 {
					when = time.Date(1905, 1, 1, 0, 0, 0, 0, time.UTC)
				}
				worked(f.t, os.Chtimes(name, when, when))
			}
		}, then: func(t *testing.T, s *stage, app string) {
			tagged(t, s, app)
			blobs, err := filepath.Glob(filepath.Join(s.mnt, app, "blobs/sha256/*"))
			worked(t, err)
			for _, name := range append(blobs, filepath.Join(s.mnt, app, "index.json"), filepath.Join(s.mnt, app, "oci-layout")) {
				if info, err := os.Lstat(name); err != nil || info.Mode()&(os.ModeSetuid|os.ModeSetgid|os.ModeSticky|0o111) != 0 {
					t.Errorf("%s: %v, %v", name, info.Mode(), err)
				}
			}
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			worked(t, err)
			for line := range strings.Lines(string(mounts)) {
				if fields := strings.Fields(line); fields[4] == s.mnt && (!strings.Contains(fields[5], "nosuid") || !strings.Contains(fields[5], "nodev")) {
					t.Errorf("mounted %s", fields[5])
				}
			}
		}},
	}
}

const forgedApp = "bent\nverified\tnobody\tx\tlinux"

// writeMoreOddApps makes an app whose name looks like more lines, and one that lies very deep.
func writeMoreOddApps(t *testing.T, s *stage) {
	newForge(t, s, forgedApp).unsigned()
	newForge(t, s, "deep"+strings.Repeat("/d", 60)).unsigned()
}

func moreOddApps(t *testing.T, s *stage) {
	t.Run("39 an app whose name looks like lines, 43 one that lies deep", func(t *testing.T) {
		t.Parallel()
		for _, from := range [][]string{{"status", s.mnt}, {"status", "-r", s.registry, "-c", key("root-ca.pub")}} {
			out, _, said := irfs(from...)
			for line := range strings.Lines(out) {
				if fields := strings.Split(line, "\t"); len(fields) != 6 || fields[1] == "nobody" {
					t.Errorf("a line of status: %q", line)
				}
			}
			if !strings.Contains(said, "over 32 directories deep") {
				t.Errorf("what lies deep is not named: %q", said)
			}
		}
		if errno := s.sign(forgedApp, "/nowhere"); errno != syscall.ENOENT {
			t.Errorf("%v", errno)
		}
		for line := range strings.Lines(s.read(t, ".irfs/log")) {
			if fields := strings.Split(line, "\t"); len(fields) != 5 {
				t.Errorf("a line of the log: %q", line)
			}
		}
	})
}

// 42: links to a whole copy outside stand in the place of an app's directories, again and again, while it is read
// and signed. What is outside does not change, and nobody sees it.
func TestHostileSwaps(t *testing.T) {
	house.Need(t, "fuse", "root")
	top := newDir(t, "swaps")
	s := &stage{registry: top + "/registry", outside: top + "/outside", files: top + "/files"}
	for _, dir := range []string{s.registry, s.outside, s.files, s.outside + "/app"} {
		worked(t, os.Mkdir(dir, 0o755))
	}
	f := newForge(t, s, "app")
	f.unsigned()
	worked(t, os.CopyFS(s.outside+"/app", os.DirFS(f.dir)))
	// The copy has an image more, which is signed: its word would be seen.
	other := newForge(t, s, "other")
	other.image = other.signed(other.Image(sample.Linux("amd64"), sample.Gzip("outside", "")))
	other.Tag("x", other.image)
	other.dir = s.outside + "/app"
	worked(t, os.Remove(other.dir+"/index.json"))
	other.write()
	vendors := []string{"-v " + key("vendor.prv") + " -s " + key("vendor.pub.sig"), "-v " + s.files + "/v2.prv -s " + s.files + "/v2.pub.sig"}
	second, err := sign.GenerateKey()
	worked(t, err)
	certificate, err := f.ca.Sign(second.Public().DER())
	worked(t, err)
	worked(t, errors.Join(os.WriteFile(s.files+"/v2.prv", second.DER(), 0o600), os.WriteFile(s.files+"/v2.pub.sig", certificate, 0o644)))
	s.mnt = mount(t, s.registry)
	before, touched := allIn(t, s.outside), changedAt(t, s.outside+"/app/blobs/sha256")

	stop, stopped := make(chan struct{}), make(chan struct{})
	var swapped atomic.Int64
	go func() {
		defer close(stopped)
		for {
			for _, name := range []string{"app", "app/blobs", "app/blobs/sha256"} {
				swaps := swapped.Load()
				select {
				case <-stop:
					return
				default:
				}
				at := filepath.Join(s.registry, name)
				aside := filepath.Join(s.registry, ".aside")
				link := filepath.Join(s.registry, ".link")
				err := errors.Join(os.Symlink(filepath.Join(s.outside, name), link), os.Rename(at, aside), os.Rename(link, at))
				time.Sleep(time.Duration(swaps%5) * 200 * time.Microsecond)
				err = errors.Join(err, os.Remove(at), os.Rename(aside, at))
				if err != nil {
					t.Error(err)
					return
				}
				swapped.Add(1)
				time.Sleep(time.Duration((swaps+1)%7) * 200 * time.Microsecond)
			}
		}
	}()
	rounds, signed := 200, 0
	if full {
		rounds = 5000
	}
	refusals := map[syscall.Errno]int{}
	met := func() bool { return signed > 0 && len(refusals) > 0 && swapped.Load() >= 10 }
	for i, end := 0, time.Now().Add(20*time.Second); i < rounds || !met() && time.Now().Before(end); i++ { // a slow disk holds up the swaps
		errno := s.sign("app", vendors[i%2])
		if errno == 0 {
			signed++
		} else {
			refusals[errno]++
		}
		allowed := []syscall.Errno{0, syscall.ENOENT, syscall.EBADMSG, syscall.EBUSY, syscall.ESTALE}
		if !slices.Contains(allowed, errno) {
			t.Errorf("sign: %v: %s", errno, s.logged(t, "app/tags/x"))
		}
		word, err := os.ReadFile(s.mnt + "/app/tags/x/verify-full")
		if text := string(word); err == nil && (text == "verified\n" && signed == 0 || text != "verified\n" && text != "unsigned\n" && text != "corrupt\n") {
			t.Errorf("verify-full: %q", text)
		}
		if _, err := os.Stat(filepath.Join(s.mnt, "app", sample.Path(other.image.Digest))); err == nil {
			t.Error("a blob that lies outside is in the view")
		}
	}
	close(stop)
	<-stopped
	sameTrees(t, allIn(t, s.outside), before, func(string) bool { return false })
	if now := changedAt(t, s.outside+"/app/blobs/sha256"); now != touched {
		t.Error("something was outside for a moment")
	}
	_, err = whole(s.registry + "/app")
	worked(t, err)
	if errno := s.sign("app", vendors[0]); errno != 0 {
		t.Errorf("in the end: %v: %s", errno, s.logged(t, "app/tags/x"))
	}
	if word := s.read(t, "app/tags/x/verify-full"); word != "verified\n" {
		t.Errorf("in the end: %q", word)
	}
	if !met() {
		t.Errorf("%d signed, refused %v, %d swaps: nothing met", signed, refusals, swapped.Load())
	}
	t.Logf("%d rounds: %d signed, refused %v; %d swaps", rounds, signed, refusals, swapped.Load())
}
