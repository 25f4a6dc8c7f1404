package layout_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"irfs/internal/irfstest"
	"irfs/layout"
	"irfs/layout/sample"
)

func isIncomplete(err error) bool { return errors.Is(err, layout.ErrIncomplete) }
func isCorrupt(err error) bool    { return errors.Is(err, layout.ErrCorrupt) }

// An archive is known by what it begins with, whatever made it, and however many streams it is made of.
func TestCompressedArchives(t *testing.T) {
	plain := holey(t)
	wanted := inOrder(t, plain)
	third := len(plain) / 3
	pieces := [][]byte{plain[:third], plain[third : 2*third], plain[2*third:]}
	skippable := "\x50\x2a\x4d\x18\x03\x00\x00\x00abc" // a frame of zstd that is none (RFC 8878, 3.1.2)
	for _, row := range []struct{ name, command, before, after string }{
		{"plain", "", "", ""},
		{"gzip", "gzip", "", ""},
		{"gzip -1, with the name of a file", "gzip -1 -N", "", ""},
		{"gzip, with a member of nothing", "gzip", string(packed(t, "gzip", nil)), string(packed(t, "gzip", nil))},
		{"zstd", "zstd", "", ""},
		{"zstd -1 without a checksum", "zstd -1 --no-check", "", ""},
		{"zstd --long=26", "zstd --long=26", "", ""},
		{"zstd, with a frame to skip at its end", "zstd", "", skippable},
		{"xz", "xz", "", ""},
		{"xz -9", "xz -9", "", ""},
		{"xz with CRC-32", "xz -C crc32", "", ""},
		{"xz with blocks", "xz --block-size=20000", "", ""},
		{"xz with padding", "xz", "", "\x00\x00\x00\x00\x00\x00\x00\x00"},
		{"bzip2", "bzip2", "", ""},
		{"bzip2 -1", "bzip2 -1", "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, parts := range [][][]byte{{plain}, pieces} {
				text := []byte(row.before)
				for _, p := range parts {
					text = append(text, packedBy(t, row.command, p)...)
				}
				text = append(text, row.after...)
				if row.command != "" && layout.Compressed(text) != strings.Fields(row.command)[0] {
					t.Errorf("it is taken for %q", layout.Compressed(text))
				}
				same(t, appOfArchive(t, text), wanted)
			}
		})
	}
}

// appOfArchive gives the directory of the app that an archive becomes, which comes in odd pieces.
func appOfArchive(t testing.TB, archive []byte) string {
	t.Helper()
	dir := t.TempDir()
	staged, err := registry(t, dir).Stage(context.Background(), iotest.HalfReader(bytes.NewReader(archive)), layout.Intake{Owner: me})
	must(t, err)
	defer staged.Discard()
	_, err = staged.Publish(context.Background(), "app", layout.OnExistFail)
	must(t, err)
	return filepath.Join(dir, "app")
}

// 25: wherever a compressed archive is cut off, and whatever follows it.
func TestCompressedArchivesRefused(t *testing.T) {
	l, _, _ := two()
	plain := archive(t, l)
	dir := t.TempDir()
	reg := registry(t, dir)
	before := tree(t, dir)
	refused := func(t *testing.T, what string, text []byte, is func(error) bool) {
		t.Helper()
		staged, err := reg.Stage(context.Background(), bytes.NewReader(text), layout.Intake{Owner: me})
		if err == nil {
			staged.Discard()
		}
		if !is(err) || !isCorrupt(err) || !strings.HasPrefix(err.Error(), "archive: ") {
			t.Errorf("%s: %v", what, err)
		}
		same(t, dir, before)
	}
	for _, command := range packings[1:] {
		t.Run(command, func(t *testing.T) {
			text := packed(t, command, plain)
			for n := 0; n < len(text); n += max(1, min(len(text)/12, len(text)-n-16)) {
				refused(t, fmt.Sprintf("cut off after %d of %d bytes", n, len(text)), text[:n], isIncomplete)
			}
			refused(t, "cut off before, and packed whole", packed(t, command, plain[:len(plain)-1024]), isIncomplete)
			refused(t, "in the second of two streams", append(bytes.Clone(text), packed(t, command, make([]byte, 1<<20))[:20]...), isIncomplete)
			for name, after := range map[string]string{"a byte": "x", "words": "some words that nobody packed", "another archive": string(plain), "another packed archive": string(text)} {
				refused(t, "with "+name+" after it", append(bytes.Clone(text), after...), isCorrupt)
			}
			for _, other := range packings[1:] {
				if other != command {
					refused(t, "with one by "+other+" after it", append(bytes.Clone(text), packed(t, other, make([]byte, 512))...), isCorrupt)
				}
			}
			for _, at := range []int{len(text) / 3, len(text) / 2, len(text) - 6} {
				text := bytes.Clone(text)
				text[at] ^= 0x55
				refused(t, fmt.Sprintf("with another byte at %d", at), text, isCorrupt)
			}
			refused(t, "packed twice", packed(t, command, text), isCorrupt)
			refused(t, "its beginning, and then something else", append(bytes.Clone(text[:6]), plain...), isCorrupt)
		})
	}
}

// Windows that decompressors would have to keep in memory are limited.
func TestWindowsAreLimited(t *testing.T) {
	l, _, _ := two()
	plain := archive(t, l)
	for command, ok := range map[string]bool{
		"xz -9": true, "xz --lzma2=dict=64MiB": true, "xz --lzma2=dict=65MiB": false, "xz --lzma2=dict=128MiB": false,
		"zstd --ultra -21": true, "zstd --long=26": true, "zstd --long=27": false, "zstd --ultra -22 --long=27": false, "zstd --ultra -1 --long=31": false,
	} {
		t.Run(command, func(t *testing.T) {
			dir := t.TempDir()
			before := tree(t, dir)
			staged, err := registry(t, dir).Stage(context.Background(), bytes.NewReader(packed(t, command, plain)), layout.Intake{Owner: me})
			if ok {
				must(t, err)
				staged.Discard()
			} else {
				want(t, err, layout.ErrLimit, "a window over the limit of 67108864 bytes")
			}
			same(t, dir, before)
		})
	}
}

// 25: a bomb is refused by what it becomes, in a file that nobody needs or after the archive's end.
func TestDecompressionBombs(t *testing.T) {
	const size = 2 << 30
	if withRaceDetector() { // it takes a minute, and would find nothing
		return
	}
	l, _, _ := two()
	whole := archive(t, l)
	for _, row := range []struct {
		name, command string
		begin         []byte
	}{
		{"gzip, one large file", "gzip -9", []byte(file("repositories", "", bytesOf(size)))},
		{"zstd, after the end", "zstd", whole},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			before := tree(t, dir)
			zeros := packed(t, row.command, make([]byte, 64<<20))
			readers := []io.Reader{bytes.NewReader(packed(t, row.command, row.begin))}
			for range size / (64 << 20) {
				readers = append(readers, bytes.NewReader(zeros))
			}
			begin := written(t)
			_, err := registry(t, dir).Stage(context.Background(), io.MultiReader(readers...), layout.Intake{Owner: me})
			want(t, err, layout.ErrLimit, "a decompression bomb")
			if n := written(t) - begin; n > len(whole)+1<<20 {
				t.Errorf("%d bytes were written", n)
			}
			same(t, dir, before)
		})
	}
}

// 25: a size over the limit is refused by the header that claims it.
func TestArchiveThatClaimsTooMuch(t *testing.T) {
	const most = layout.MaxArchive
	name := "blobs/sha256/" + hexOf('d')
	beyond := errors.New("the content was read")
	large := func(n int64) string {
		return pax("size", fmt.Sprint(n)) + headerOf(name)
	}
	for _, row := range []struct {
		name, text string
		kind       error
	}{
		{"in PAX", large(most + 1), layout.ErrLimit},
		{"in base 256", headerOf(name, size("\x80\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00")), layout.ErrLimit},
		{"together", file("x", "1") + large(most), layout.ErrLimit},
		{"as large as may be", large(most), beyond},
		{"an index.json", headerOf("index.json", bytesOf(layout.MaxIndex+1)), layout.ErrLimit},
		{"an oci-layout", headerOf("oci-layout", bytesOf(layout.MaxManifest+1)), layout.ErrLimit},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			before := tree(t, dir)
			begin := written(t)
			_, err := registry(t, dir).Stage(context.Background(), io.MultiReader(strings.NewReader(row.text), iotest.ErrReader(beyond)), layout.Intake{Owner: me})
			if !errors.Is(err, row.kind) {
				t.Errorf("%v", err)
			}
			// Package testing writes as well, now and then: the names of what was opened, 4 KiB at a time.
			if n := written(t) - begin; n > 64<<10 {
				t.Errorf("%d bytes were written", n)
			}
			same(t, dir, before)
		})
	}
}

// An archive whose reader stops at any point, for the caller does not want it any more, leaves nothing.
func TestStageCancelledAnywhere(t *testing.T) {
	plain := holey(t)
	dir := t.TempDir()
	must(t, small().WriteDir(dir+"/app"))
	reg := registry(t, dir)
	before := tree(t, dir)
	for _, command := range packings {
		text := packedBy(t, command, plain)
		for range 8 {
			at := rand.N(len(text))
			ctx, cancel := context.WithCancel(context.Background())
			staged, err := reg.Stage(ctx, io.MultiReader(bytes.NewReader(text[:at]), onRead(cancel), bytes.NewReader(text[at:])), layout.Intake{Owner: me, App: "app"})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: after %d of %d bytes: %v", command, at, len(text), err)
			}
			cancel()
			if err == nil {
				staged.Discard()
			}
			same(t, dir, before)
		}
	}
}

// tmpfs mounts a small file system of its own, with an app in a registry in it; it gives both directories.
func tmpfs(t *testing.T, options string) (mnt, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		irfstest.Skip(t, "only root can mount a tmpfs")
	}
	mnt = t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, options); err != nil {
		irfstest.Skip(t, "no tmpfs: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	dir = mnt + "/registry"
	was := sample.New()
	was.Tag("own", was.Image(sample.Linux("arm64"), sample.Plain("own", "content")))
	must(t, was.WriteDir(dir+"/app"))
	age(t, dir+"/app/index.json")
	return mnt, dir
}

// 28: however much room is left, an archive is taken in whole, or not at all.
func TestNoSpace(t *testing.T) {
	text := holey(t)
	for _, row := range []struct {
		name, options string
		most          int // of what fill leaves
		fill          func(t *testing.T, mnt string, left int) (undo func())
	}{
		{"bytes", "size=4m", 600, func(t *testing.T, mnt string, left int) func() {
			var st unix.Statfs_t
			must(t, unix.Statfs(mnt, &st))
			f, err := os.Create(mnt + "/filler")
			must(t, err)
			defer f.Close()
			must(t, unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bfree)*st.Bsize-int64(left)*4096))
			return func() { must(t, os.Remove(mnt+"/filler")) }
		}},
		{"inodes", "nr_inodes=100", 30, func(t *testing.T, mnt string, left int) func() {
			var st unix.Statfs_t
			must(t, unix.Statfs(mnt, &st))
			var made []string
			for i := range int(st.Ffree) - left {
				made = append(made, fmt.Sprint(mnt, "/filler", i))
				write(t, made[i], "")
			}
			return func() {
				for _, name := range made {
					must(t, os.Remove(name))
				}
			}
		}},
	} {
		for _, way := range []struct {
			name, app string
			arrives   bool
		}{{"a new app", "new/app", false}, {"an app that is there", "app", false}, {"backwards", "new/app", true}} {
			t.Run(row.name+", "+way.name, func(t *testing.T) {
				mnt, dir := tmpfs(t, row.options)
				reg := registry(t, dir)
				before := tree(t, dir)
				failed, done := 0, 0
				for left := 0; left < row.most; left += 1 + left/20 {
					undo := row.fill(t, mnt, left)
					err := takeIn(reg, way.app, text, way.arrives)
					undo()
					if err == nil {
						if done++; done == 1 {
							same(t, dir+"/"+way.app, merged(t, before, text, way.app))
						}
						must(t, os.RemoveAll(dir+"/new"))
						if way.app == "app" {
							break
						}
						continue
					}
					failed++
					if !errors.Is(err, unix.ENOSPC) {
						t.Errorf("with %d left: %v", left, err)
					}
					asItWas(t, dir, before)
					if t.Failed() {
						t.Fatalf("with %d left", left)
					}
				}
				if failed < 5 || done == 0 {
					t.Errorf("%d times there was too little room, and %d times enough", failed, done)
				}
			})
		}
	}
}

// asItWas fails unless a registry is as it was, but for blobs in the app that was there which nothing refers to. It removes those.
func asItWas(t *testing.T, dir string, before map[string]string) {
	t.Helper()
	for name := range tree(t, dir) {
		if _, was := before[name]; !was && strings.HasPrefix(name, "app/blobs/sha256/") {
			must(t, os.Remove(filepath.Join(dir, name)))
		}
	}
	same(t, dir, before)
}

// takeIn takes an archive in, or gives the first error; arrives is the way through an Arrival, from the end to the start.
func takeIn(reg *layout.Registry, app string, text []byte, arrives bool) error {
	ctx := context.Background()
	if !arrives {
		staged, err := reg.Stage(ctx, bytes.NewReader(text), layout.Intake{Owner: me, App: app})
		if err == nil {
			_, err = staged.Publish(ctx, app, layout.OnExistAdd)
			staged.Discard()
		}
		return err
	}
	a := reg.Receive(layout.Intake{Owner: me})
	defer reg.StopReceiving()
	defer a.Abort()
	for from := (len(text) - 1) / 1e5 * 1e5; from >= 0; from -= 1e5 {
		if _, err := a.WriteAt(context.Background(), text[from:min(from+1e5, len(text))], int64(from)); err != nil {
			return err
		}
	}
	if _, err := a.Complete(ctx, true); err != nil {
		return err
	}
	staged, err := a.Finish(ctx)
	if err == nil {
		_, err = staged.Publish(ctx, app, layout.OnExistAdd)
		staged.Discard()
	}
	return err
}

// merged gives the tree of an app when an archive was added to it, where there is room.
func merged(t *testing.T, before map[string]string, text []byte, app string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	if _, there := before[app]; there {
		was := sample.New()
		was.Tag("own", was.Image(sample.Linux("arm64"), sample.Plain("own", "content")))
		must(t, was.WriteDir(dir+"/"+app))
		age(t, dir+"/"+app+"/index.json")
	}
	must(t, takeIn(registry(t, dir), app, text, false))
	return tree(t, dir+"/"+app)
}

// inChild runs the test that calls it once more, in a process of its own. It says whether this is that process.
func inChild(t *testing.T, argument string) bool {
	t.Helper()
	const variable = "IRFS_TEST_CHILD"
	if os.Getenv(variable) != "" {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v")
	cmd.Env = append(os.Environ(), variable+"="+argument)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Errorf("in a process of its own: %v\n%s", err, out)
	}
	return false
}

// 28: without descriptors it is EMFILE, at whatever call there are none left.
func TestNoDescriptors(t *testing.T) {
	for _, way := range []string{"a new app", "an app that is there", "backwards"} {
		t.Run(strings.ReplaceAll(way, " ", "_"), func(t *testing.T) {
			if !inChild(t, way) {
				return
			}
			text := holey(t)
			dir := writeApp(t, small())
			reg := registry(t, dir)
			app := "new"
			if way == "an app that is there" {
				app = "app"
			}
			before := tree(t, dir)
			var limit unix.Rlimit
			must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
			must(t, takeIn(registry(t, t.TempDir()), "x", text, false)) // what the process needs besides is open by now
			failed := 0
			for more := range 60 {
				probe, err := os.Open("/")
				must(t, err)
				lowest := probe.Fd() // that is free
				probe.Close()
				low := unix.Rlimit{Cur: uint64(lowest) + uint64(more), Max: limit.Max}
				must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
				err = takeIn(reg, app, text, way == "backwards")
				must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
				if err == nil {
					if failed < 3 {
						t.Errorf("it worked with %d descriptors", more)
					}
					return
				}
				failed++
				if !errors.Is(err, unix.EMFILE) {
					t.Errorf("with %d descriptors: %v", more, err)
				}
				asItWas(t, dir, before)
				if t.Failed() {
					t.Fatalf("with %d descriptors", more)
				}
			}
			t.Error("it never worked")
		})
	}
}

// A generated is an archive of one large layer, which is not kept in memory.
type generated struct {
	size  int64
	block []byte // what the layer is made of, again and again
}

func (g generated) layer() io.Reader { return io.LimitReader(&again{block: g.block}, g.size) }

// again reads the same bytes again and again.
type again struct {
	block []byte
	at    int
}

func (a *again) Read(p []byte) (int, error) {
	n := copy(p, a.block[a.at:])
	a.at = (a.at + n) % len(a.block)
	return n, nil
}

func (g generated) archive(t testing.TB) io.Reader {
	h := sha256.New()
	_, err := io.Copy(h, g.layer())
	must(t, err)
	hex := fmt.Sprintf("%x", h.Sum(nil))
	config := `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:` + hex + `"]}}`
	list := `[{"Config":"config.json","RepoTags":["x:1"],"Layers":["layer.tar"]}]`
	return io.MultiReader(
		strings.NewReader(file("config.json", config)+headerOf("layer.tar", bytesOf(int(g.size)))), g.layer(),
		strings.NewReader(strings.Repeat("\x00", int(-g.size&511))+file("manifest.json", list)+ending))
}

// However large an archive is, and however it is compressed, it takes little memory.
func TestStageTakesLittleMemory(t *testing.T) {
	most := 100 << 20
	if withRaceDetector() { // which needs some for each byte
		most *= 5
	}
	random := []byte(noise(1 << 20))
	mostlyZeros := append([]byte(noise(64<<10)), make([]byte, 8<<20)...) // xz takes long for anything else
	for _, row := range []struct {
		name, command string
		size          int64
		block         []byte
	}{
		{"plain", "", 300 << 20, random},
		{"gzip", "gzip -1", 30 << 20, random},
		{"zstd", "zstd -1", 60 << 20, random},
		{"zstd_with_the_largest_window", "zstd -1 --long=26", 80 << 20, random},
		{"xz_with_the_largest_window", "xz --lzma2=preset=0,dict=64MiB", 66 << 20, mostlyZeros},
		{"bzip2", "bzip2", 2 << 20, random},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.command != "" {
				packed(t, row.command, nil) // or it is skipped
			}
			if !inChild(t, row.name) {
				return
			}
			dir := t.TempDir()
			archive := generated{row.size, row.block}.archive(t)
			if row.command != "" {
				words := strings.Fields(row.command)
				cmd := exec.Command(words[0], append(words[1:], "-c")...)
				cmd.Stdin = archive
				out, err := cmd.StdoutPipe()
				must(t, err)
				must(t, cmd.Start())
				defer cmd.Wait()
				defer out.Close()
				archive = out
			}
			staged, err := registry(t, dir).Stage(context.Background(), archive, layout.Intake{Owner: me})
			must(t, err)
			defer staged.Discard()
			if n := highWater(t); n > most {
				t.Errorf("%d bytes of memory for an archive of %d", n, row.size)
			}
		})
	}
}

func withRaceDetector() bool {
	info, _ := debug.ReadBuildInfo()
	return slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// highWater gives the bytes of memory that this process had at the most (VmHWM, proc_pid_status(5)).
func highWater(t testing.TB) int {
	t.Helper()
	f, err := os.Open("/proc/self/status")
	must(t, err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); fields[0] == "VmHWM:" {
			n, err := strconv.Atoi(fields[1])
			must(t, err)
			return 1024 * n
		}
	}
	t.Fatal("no VmHWM in /proc/self/status")
	return 0
}
