package fs_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	irfs "irfs/fs"
	"irfs/internal/irfstest"
	"irfs/layout"
	"irfs/layout/sample"
	"irfs/sign"
)

// A server of FUSE and its client must not share a process, so the test binary
// runs itself once more for each mount, with the mount in serverEnv.
const serverEnv = "IRFS_TEST_SERVE"

func TestMain(m *testing.M) {
	if words := strings.Split(os.Getenv(serverEnv), "\n"); len(words) == 3 {
		if err := serve(words[0], words[1], words[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	irfstest.Interruptible()
	goleak.VerifyTestMain(m)
}

// serve mounts a registry until SIGTERM, and then wants every goroutine ended.
func serve(registry, dir, ca string) error {
	reg, err := layout.Open(registry)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	key, err := sign.ParsePublicKey(text)
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	mount, err := irfs.NewTree(reg, sign.NewTrust(key)).Mount(dir, irfs.Options{Version: "test"})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	count := make(chan os.Signal, 1)
	signal.Notify(count, syscall.SIGUSR1)
	for counting := true; counting; {
		select {
		case <-count:
			fmt.Println(mount.Nodes())
		case <-stop:
			counting = false
		}
	}
	signal.Stop(count)
	signal.Stop(stop)
	if err := mount.Unmount(); err != nil {
		mount.Detach()
		return err
	}
	mount.Wait()
	reg.Close()
	return goleak.Find()
}

// A world is a registry that is mounted, with keys.
type world struct {
	t             testing.TB
	registry, mnt string
	keys          string
	ca, vendor    *sign.PrivateKey
	server        *exec.Cmd
	said          *bufio.Reader
}

func newWorld(t testing.TB, app *sample.Layout) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, registry: dir + "/registry", mnt: dir + "/mnt", keys: dir + "/keys"}
	for _, d := range []string{w.registry, w.mnt, w.keys} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err1, err2 error
	w.ca, err1 = sign.GenerateKey()
	w.vendor, err2 = sign.GenerateKey()
	certificate, err3 := w.ca.Sign(w.vendor.Public().DER())
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	w.write("keys/root-ca.pub", w.ca.Public().DER())
	w.write("keys/vendor.prv", w.vendor.DER())
	w.write("keys/vendor.pub.sig", certificate)
	if err := app.WriteDir(w.registry + "/app"); err != nil {
		t.Fatal(err)
	}
	w.start()
	return w
}

func (w *world) write(name string, data []byte) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(w.keys), name), data, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// noMount is what a mount says in an ordinary container, or to a user who may
// not mount.
var noMount = regexp.MustCompile(`(?i)no /dev/fuse|fusermount3 is not there|operation not permitted|permission denied|no such device`)

func (w *world) start() {
	w.t.Helper()
	w.server = exec.Command(os.Args[0])
	w.server.Env = append(os.Environ(), serverEnv+"="+w.registry+"\n"+w.mnt+"\n"+w.keys+"/root-ca.pub")
	var errs bytes.Buffer
	w.server.Stderr = &errs
	out, err := w.server.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.server.Start(); err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		w.server.Wait()
		if noMount.Match(errs.Bytes()) && os.Getenv("IRFS_TEST_NO_SKIP") == "" {
			w.t.Skipf("nothing can be mounted here: %s", errs.String())
		}
		w.t.Fatalf("the mount did not come up: %s", errs.String())
	}
	w.said = bufio.NewReader(out)
	w.t.Cleanup(func() {
		w.server.Process.Signal(syscall.SIGTERM)
		if err := w.server.Wait(); err != nil {
			w.t.Errorf("the mount ended badly: %v\n%s", err, errs.String())
			unix.Unmount(w.mnt, unix.MNT_DETACH)
		}
	})
}

func (w *world) read(name string) string {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join(w.mnt, name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(data)
}

// sign writes a command to a control file, in one write.
func (w *world) sign(dir, command string) error {
	f, err := os.OpenFile(filepath.Join(w.mnt, dir, "sign"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(command)
	return errors.Join(err, f.Close())
}

func (w *world) key() string { return w.keys + "/vendor.prv" }

func images(n int) *sample.Layout {
	l := sample.New()
	for i := range n {
		l.Tag(fmt.Sprintf("t%d", i), l.Image(sample.Linux("amd64"), sample.Gzip("etc/motd", fmt.Sprint(i))))
	}
	return l
}

// TestSigningIsSeenAtOnce: no stat, open or read after a signing shows what
// was before it, and a handle that was open before keeps what it had.
func TestSigningIsSeenAtOnce(t *testing.T) {
	w := newWorld(t, images(20))
	for i := range 20 {
		dir := fmt.Sprintf("app/tags/t%d", i)
		at := filepath.Join(w.mnt, dir)
		old, err := os.Open(at + "/verify")
		if err != nil {
			t.Fatal(err)
		}
		defer old.Close()
		if st, err := os.Stat(at + "/verify"); err != nil || st.Size() != int64(len("unsigned\n")) {
			t.Fatalf("unsigned: %v, %v", st, err)
		}
		if _, err := os.Stat(at + "/signature"); !errors.Is(err, iofs.ErrNotExist) {
			t.Fatalf("signature of an unsigned image: %v", err)
		}
		before := strings.TrimSpace(w.read(dir + "/digest"))
		named := filepath.Join(w.mnt, "app/manifests", strings.Replace(before, ":", "-", 1))
		if _, err := os.Stat(named); err != nil {
			t.Fatal(err)
		}
		if err := w.sign(dir, w.key()+"\n"); err != nil {
			t.Fatalf("%v: %s", err, w.read(dir+"/sign"))
		}
		if _, err := os.Stat(at + "/signature"); err != nil {
			t.Errorf("right after the signing: %v", err)
		}
		if st, err := os.Stat(at + "/status.json"); err != nil || st.Size() != int64(len(w.read(dir+"/status.json"))) {
			t.Errorf("status.json: the size is %v, its content has %d bytes (%v)", st.Size(), len(w.read(dir+"/status.json")), err)
		}
		if got := w.read(dir + "/verify"); got != "verified\n" {
			t.Errorf("verify is %q", got)
		}
		if _, err := os.Stat(named); !errors.Is(err, iofs.ErrNotExist) {
			t.Errorf("the old name in manifests/: %v", err)
		}
		if data, err := io.ReadAll(old); err != nil || string(data) != "unsigned\n" {
			t.Errorf("the handle that was open before gives %q, %v", data, err)
		}
		if st, err := old.Stat(); err != nil || st.Size() != int64(len("unsigned\n")) {
			t.Errorf("fstat of the handle that was open before: %v, %v", st.Size(), err)
		}
	}
}

// TestNoReaderSeesStale: readers beside signers at full speed read one of the
// states, without an error.
func TestNoReaderSeesStale(t *testing.T) {
	l := images(2)
	w := newWorld(t, l)
	other, err := sign.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := w.ca.Sign(other.Public().DER())
	if err != nil {
		t.Fatal(err)
	}
	w.write("keys/other.prv", other.DER())
	w.write("keys/other.pub.sig", certificate)
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	var wait sync.WaitGroup
	var signed, reads atomic.Int64
	for i := range 2 {
		dir := fmt.Sprintf("app/tags/t%d", i)
		wait.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				key := []string{"vendor", "other"}[n%2]
				if err := w.sign(dir, w.keys+"/"+key+".prv"); err != nil {
					t.Errorf("sign: %v", err)
					return
				}
				signed.Add(1)
			}
		})
		for range 2 {
			wait.Go(func() {
				for ctx.Err() == nil {
					// A process of its own for the reader: FUSE tells
					// threads apart, and so does the shell's user.
					out, err := exec.Command("cat", filepath.Join(w.mnt, dir, "verify"), filepath.Join(w.mnt, dir, "status.json")).CombinedOutput()
					if err != nil {
						t.Errorf("cat: %v: %s", err, out)
						return
					}
					if word, _, _ := strings.Cut(string(out), "\n"); reads.Add(1) > 20 && word != "verified" && word != "unsigned" {
						t.Errorf("verify is %q", word)
					}
				}
			})
		}
	}
	wait.Wait()
	t.Logf("%d signings, %d reads", signed.Load(), reads.Load())
	if signed.Load() < 10 || reads.Load() < 10 {
		t.Errorf("only %d signings and %d reads: nothing was tried", signed.Load(), reads.Load())
	}
}

// TestStatBesideSignings: whoever looks right after a signing sees what it made, however others look meanwhile, and none of them gets an error.
func TestStatBesideSignings(t *testing.T) {
	w := newWorld(t, images(1))
	other, err := sign.GenerateKey()
	must(t, err)
	certificate, err := w.ca.Sign(other.Public().DER())
	must(t, err)
	w.write("keys/other.prv", other.DER())
	w.write("keys/other.pub.sig", certificate)
	at := w.mnt + "/app/tags/t0"
	must(t, w.sign("app/tags/t0", w.key()))
	dir, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(dir)
	files := []string{"verify", "reason", "status.json", "signature", "digest"}
	var stopped atomic.Bool
	var looks atomic.Int64
	var wait sync.WaitGroup
	reader := func(look func(name string) error) {
		wait.Go(func() {
			for i := 0; !stopped.Load(); i++ {
				name := files[i%len(files)]
				if err := look(name); err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				looks.Add(1)
			}
		})
	}
	for range 2 {
		reader(func(name string) error {
			_, err := os.Stat(at + "/" + name)
			return err
		})
		reader(func(name string) error {
			f, err := os.Open(at + "/" + name)
			if err != nil {
				return err
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				return err
			}
			if data, err := io.ReadAll(f); err != nil || int64(len(data)) != st.Size() {
				return fmt.Errorf("%d bytes, and fstat says %d (%v)", len(data), st.Size(), err)
			}
			return nil
		})
	}
	reader(func(name string) error { return unix.Access(at+"/"+name, unix.R_OK) })
	reader(func(name string) error {
		var st unix.Stat_t
		return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	reader(func(name string) error {
		fd, err := unix.Open(at+"/"+name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for range 10 {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	reader(func(string) error { // the directory is held, too, as ls holds it
		_, err := os.ReadDir(at)
		return err
	})
	signings := 0
	for start := time.Now(); time.Since(start) < 3*time.Second || signings < 3 && time.Since(start) < time.Minute; signings++ {
		if t.Failed() {
			break
		}
		manifest := strings.Replace(strings.TrimSpace(w.read("app/tags/t0/digest")), ":", "-", 1)
		for _, name := range []string{at, w.mnt + "/app/manifests/" + manifest + "/verify", w.mnt + "/app/index.json"} {
			if _, err := os.Stat(name); err != nil { // the kernel has it in its memory
				t.Fatal(err)
			}
		}
		var held *os.File
		if signings%10 == 0 { // somebody has it open all the time
			held, err = os.Open(at + "/verify")
			must(t, err)
		}
		must(t, w.sign("app/tags/t0", w.keys+"/"+[]string{"other", "vendor"}[signings%2]+".prv"))
		index, err := os.Stat(w.registry + "/app/index.json")
		must(t, err)
		for _, name := range []string{at, at + "/verify", at + "/status.json", at + "/digest", w.mnt + "/app/index.json"} {
			var st, same unix.Stat_t
			if err := unix.Lstat(name, &st); err != nil || time.Unix(st.Mtim.Unix()) != index.ModTime() {
				t.Errorf("signing %d: %s is of %v, and index.json of %v (%v)", signings, name, time.Unix(st.Mtim.Unix()), index.ModTime(), err)
			}
			f, err := os.Open(name)
			must(t, err)
			must(t, unix.Fstat(int(f.Fd()), &same))
			if same.Ino != st.Ino {
				t.Errorf("%s: number %d by its name, and %d when it is open", name, st.Ino, same.Ino)
			}
			f.Close()
		}
		for _, name := range []string{"", "/verify"} {
			if _, err := os.Stat(w.mnt + "/app/manifests/" + manifest + name); !errors.Is(err, iofs.ErrNotExist) {
				t.Errorf("signing %d: the old manifest%s is there (%v)", signings, name, err)
			}
		}
		held.Close()
	}
	stopped.Store(true)
	wait.Wait()
	t.Logf("%d signings, %d looks", signings, looks.Load())
	if signings < 3 {
		t.Error("nothing was tried")
	}
}

// TestInodesOfSign: its number is the same for everybody, each writer has another inode, which is forgotten after him, and keeps what he was told.
func TestInodesOfSign(t *testing.T) {
	w := newWorld(t, images(1))
	at := w.mnt + "/app/tags/t0/sign"
	var first unix.Stat_t
	must(t, unix.Stat(at, &first))
	open := func() *os.File {
		t.Helper()
		f, err := os.OpenFile(at, os.O_RDWR|os.O_TRUNC, 0)
		must(t, err)
		return f
	}
	held := open()
	for range 3000 {
		one, two := open(), open()
		var st unix.Stat_t
		if err := unix.Stat(at, &st); err != nil || st.Ino != first.Ino {
			t.Fatalf("its number is %d, and was %d (%v)", st.Ino, first.Ino, err)
		}
		one.Close()
		two.Close()
	}
	if _, err := held.WriteString(w.key()); err != nil {
		t.Error(err)
	}
	if text, err := io.ReadAll(io.NewSectionReader(held, 0, 1<<16)); err != nil || !strings.HasPrefix(string(text), "signed sha256:") {
		t.Errorf("who wrote reads %q (%v)", text, err)
	}
	must(t, held.Close())
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if n := w.nodes(); n < 30 {
			return
		} else if time.Now().After(end) {
			t.Fatalf("%d names are held", n)
		}
	}
}

// TestChangedBehind: a registry that is changed behind the mount is seen by the
// next open, even if the change leaves no trace in size and mtime.
func TestChangedBehind(t *testing.T) {
	l := sample.New()
	one := l.Image(sample.Linux("amd64"), sample.Gzip("f", "one"))
	two := l.Image(sample.Linux("amd64"), sample.Gzip("f", "two"))
	l.Tag("a", one)
	l.Tag("b", two)
	w := newWorld(t, l)
	index := w.registry + "/app/index.json"
	first, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	// The two digests change places: the same size.
	second := []byte(strings.NewReplacer(one.Digest.Encoded(), two.Digest.Encoded(), two.Digest.Encoded(), one.Digest.Encoded()).Replace(string(first)))
	st, err := os.Stat(index)
	if err != nil {
		t.Fatal(err)
	}
	texts := [][]byte{second, first}
	want := []string{two.Digest.String(), one.Digest.String()}
	if one.Size != two.Size {
		t.Fatal("the two manifests are not of one size, so the change would show in the size")
	}
	for i := range 200 {
		f, err := os.OpenFile(index, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(texts[i%2], 0); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if err := os.Chtimes(index, st.ModTime(), st.ModTime()); err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(w.read("app/tags/a/digest")); got != want[i%2] {
			t.Fatalf("change %d: the tag shows %s, and index.json says %s", i, got, want[i%2])
		}
	}
}

// TestBlobChangedBehind: a blob that is damaged in place is corrupt at the next
// open, and whole again when it is put right.
func TestBlobChangedBehind(t *testing.T) {
	l := sample.New()
	image := l.Image(sample.Linux("amd64"), sample.Gzip("f", "one"))
	l.Tag("a", image)
	w := newWorld(t, l)
	blob := filepath.Join(w.registry, "app", sample.Path(image.Digest))
	good, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	bad := slices.Clone(good)
	bad[len(bad)-2] ^= 1
	for i := range 50 {
		for _, state := range []struct {
			data []byte
			want string
		}{{bad, "corrupt\n"}, {good, "unsigned\n"}} {
			f, err := os.OpenFile(blob, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.WriteAt(state.data, 0)
			f.Close()
			if got := w.read("app/tags/a/verify"); got != state.want {
				t.Fatalf("round %d: verify is %q, not %q", i, got, state.want)
			}
			if got := w.read("app/tags/a/manifest.json"); got != string(state.data) {
				t.Fatalf("round %d: manifest.json is not the blob", i)
			}
		}
	}
}

// TestReadersTogether: many readers of one file at once, cold, get one answer,
// and the mount has as many descriptors afterwards as before.
func TestReadersTogether(t *testing.T) {
	w := newWorld(t, images(1))
	if err := w.sign("app/tags/t0", w.key()); err != nil {
		t.Fatal(err)
	}
	// go-fuse keeps some pipes, which are not counted.
	descriptors := func() int {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", w.server.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(slices.DeleteFunc(links, func(link string) bool {
			to, err := os.Readlink(link)
			return err != nil || !strings.HasPrefix(to, w.registry)
		}))
	}
	before := descriptors()
	var wait sync.WaitGroup
	for range 300 {
		wait.Go(func() {
			for _, name := range []string{"verify", "verify-full"} {
				data, err := os.ReadFile(w.mnt + "/app/tags/t0/" + name)
				if err != nil || string(data) != "verified\n" {
					t.Errorf("%s is %q, %v", name, data, err)
				}
			}
		})
	}
	wait.Wait()
	// RELEASE comes after close has returned.
	for deadline := time.Now().Add(5 * time.Second); descriptors() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors are open in the registry, and %d were before", descriptors(), before)
		}
	}
}

// TestVerifyFullIsInterrupted: who waits for a long verify-full can be ended,
// and the hashing ends with him.
func TestVerifyFullIsInterrupted(t *testing.T) {
	l := sample.New()
	image := l.Image(sample.Linux("amd64"), sample.Plain("big", strings.Repeat("0123456789abcdef", 24<<20/16)))
	l.Tag("big", image)
	w := newWorld(t, l)
	// The layer, a thousand times as long and full of holes: a size that does not
	// fit would be found before a byte is read, so the manifest says so too.
	grow(t, w, image.Digest.String())
	cat := exec.Command("cat", w.mnt+"/app/tags/big/verify-full")
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	start := time.Now()
	cat.Process.Signal(syscall.SIGINT)
	cat.Wait()
	if d := time.Since(start); d > time.Second {
		t.Errorf("it took %v to end the reader", d)
	}
	busy := func() time.Duration {
		var ticks [2]int64
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.server.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+2:]))
		fmt.Sscan(f[11], &ticks[0])
		fmt.Sscan(f[12], &ticks[1])
		return time.Duration(ticks[0]+ticks[1]) * 10 * time.Millisecond
	}
	time.Sleep(200 * time.Millisecond)
	before := busy()
	time.Sleep(500 * time.Millisecond)
	if d := busy() - before; d > 250*time.Millisecond {
		t.Errorf("the mount still works after its reader is gone: %v of processor time in half a second", d)
	}
}

// grow makes the layer of the only image 16 GiB of mostly nothing, with a
// manifest and an index that say so.
func grow(t *testing.T, w *world, digest string) {
	t.Helper()
	const size = 16 << 30
	snap := snapshot(t, w.registry)
	e, err := snap.Tag(t.Context(), "big")
	if err != nil {
		t.Fatal(err)
	}
	m, err := snap.Manifest(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	layer := m.Doc.Layers[0]
	app := filepath.Join(w.registry, "app")
	if err := os.Truncate(filepath.Join(app, sample.Path(layer.Digest)), size); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(m.Bytes), fmt.Sprintf(`"size":%d`, layer.Size), fmt.Sprintf(`"size":%d`, int64(size)), 1)
	if text == string(m.Bytes) {
		t.Fatal("the layer's size is not in the manifest in the form that was looked for")
	}
	now := e.Digest.Algorithm().FromString(text)
	if err := os.WriteFile(filepath.Join(app, sample.Path(now)), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile(app + "/index.json")
	if err != nil {
		t.Fatal(err)
	}
	index = []byte(strings.NewReplacer(digest, now.String(), fmt.Sprintf(`"size":%d`, len(m.Bytes)), fmt.Sprintf(`"size":%d`, len(text))).Replace(string(index)))
	if err := os.WriteFile(app+"/index.json", index, 0o644); err != nil {
		t.Fatal(err)
	}
}

func snapshot(t *testing.T, registry string) *layout.Snapshot {
	t.Helper()
	reg, err := layout.Open(registry)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	app, err := reg.App("app")
	if err != nil {
		t.Fatal(err)
	}
	snap, err := app.Snapshot(t.Context())
	if err != nil || snap.Err != nil {
		t.Fatal(err, snap.Err)
	}
	return snap
}

// TestKeyIsNowhere: a key that was written to a control file cannot be read from
// anything that the mount shows afterwards.
func TestKeyIsNowhere(t *testing.T) {
	w := newWorld(t, images(1))
	f, err := os.OpenFile(w.mnt+"/app/tags/t0/sign", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(w.vendor.DER()); !errors.Is(err, syscall.ENOKEY) {
		t.Fatalf("signing without a certificate: %v", err)
	}
	secret := w.vendor.DER()[8:56]
	var all bytes.Buffer
	back := make([]byte, 8192)
	n, _ := f.ReadAt(back, 0)
	all.Write(back[:n])
	for _, name := range []string{"app/tags/t0/sign", ".irfs/log", "app/tags/t0/reason"} {
		all.WriteString(w.read(name))
	}
	if bytes.Contains(all.Bytes(), secret) {
		t.Error("the key can be read back")
	}
	if !strings.Contains(all.String(), "no certificate of the vendor key") {
		t.Errorf("the outcome is not there: %s", all.String())
	}
}

// TestControlFileHasNoPages: what is written to a control file, a key perhaps,
// never comes into the page cache. A file without pages cannot be mapped.
func TestControlFileHasNoPages(t *testing.T) {
	w := newWorld(t, images(1))
	for name, want := range map[string]error{"sign": syscall.ENODEV, "verify": nil} {
		f, err := os.Open(w.mnt + "/app/tags/t0/" + name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		page, err := unix.Mmap(int(f.Fd()), 0, 8, unix.PROT_READ, unix.MAP_SHARED)
		if err != want {
			t.Errorf("mapping %s: %v, want %v", name, err, want)
		}
		if err == nil {
			unix.Munmap(page)
		}
	}
}

// TestTreeAsData: what a mount shows is what the tree says, file by file.
func TestTreeAsData(t *testing.T) {
	l := sample.New()
	amd, arm := l.Image(sample.Linux("amd64"), sample.Gzip("a", "1")), l.Image(sample.Linux("arm64"), sample.Zstd("a", "2"))
	l.Tag("multi", l.Index(amd, arm, l.Attestation(amd)))
	l.Tag("single/odd%name", amd)
	w := newWorld(t, l)
	for _, tag := range []string{"multi", "single%2Fodd%25name"} {
		if err := w.sign("app/tags/"+tag, w.key()); err != nil {
			t.Fatal(err)
		}
	}
	reg, err := layout.Open(w.registry)
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	tree := irfs.NewTree(reg, sign.NewTrust(w.ca.Public()))
	files := 0
	err = filepath.WalkDir(w.mnt, func(at string, entry iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(w.mnt, at)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			names, err := tree.List(t.Context(), name)
			if err != nil {
				return err
			}
			list, err := os.ReadDir(at)
			if err != nil {
				return err
			}
			if len(list) != len(names) {
				t.Errorf("%s: the mount shows %v, the tree %v", name, list, names)
			}
			return nil
		}
		if entry.Name() == "sign" { // remembers what was done through this mount
			return nil
		}
		files++
		data, blob, err := tree.Read(t.Context(), name)
		if err != nil {
			return err
		}
		if blob != nil {
			defer blob.Close()
			data = make([]byte, blob.Attr.Size)
			if _, err := blob.ReadAt(data, 0); err != nil {
				return err
			}
		}
		shown, err := os.ReadFile(at)
		if err != nil {
			return err
		}
		st, err := entry.Info()
		if err != nil {
			return err
		}
		if !bytes.Equal(shown, data) || st.Size() != int64(len(shown)) {
			t.Errorf("%s: the mount shows %d bytes (stat says %d), the tree %d", name, len(shown), st.Size(), len(data))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("only %d files were compared", files)
	}
}

// TestWhatIsGoneIsForgotten: a registry may change for ever, and the mount holds no more names than it has now.
func TestWhatIsGoneIsForgotten(t *testing.T) {
	w := newWorld(t, images(1))
	const rounds, many = 5, 900
	for round := range rounds {
		l := sample.New()
		for i := range many {
			l.Tag(fmt.Sprintf("t%d-%d", round, i), v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint(round, i)), Size: 1})
		}
		if err := os.WriteFile(w.registry+"/app/index.json.new", l.Files()["index.json"], 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(w.registry+"/app/index.json.new", w.registry+"/app/index.json"); err != nil {
			t.Fatal(err)
		}
		for i := range many {
			if word := w.read(fmt.Sprintf("app/tags/t%d-%d/verify", round, i)); word != "corrupt\n" { // it has no blob
				t.Fatal(word)
			}
		}
	}
	// The directory and the file of each, of two rounds and the beginning of a third.
	nodes := 0
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if nodes = w.nodes(); nodes < 2*3*many {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d names are held, and there were %d at a time", nodes, 2*many)
		}
	}
}

// TestWhatIsUnusedIsForgotten: however many names are looked up, the mount holds so many at most, and those that somebody uses.
func TestWhatIsUnusedIsForgotten(t *testing.T) {
	l := images(1)
	const many = 40_000
	for i := range many {
		l.Tag(fmt.Sprint("t", i), v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint(i)), Size: 1})
	}
	w := newWorld(t, l)
	inside := w.mnt + "/app/tags/t0/platforms"
	here := exec.Command("sleep", "1000")
	here.Dir = inside
	if err := here.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Process.Kill(); here.Wait() })
	open, err := os.Open(w.mnt + "/app/tags/t1/verify")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for i := range many {
		if _, err := os.Lstat(fmt.Sprintf("%s/app/tags/t%d", w.mnt, i)); err != nil {
			t.Fatal(err)
		}
	}
	if where, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", here.Process.Pid)); where != inside {
		t.Errorf("somebody stands in %s, and not in %s (%v)", where, inside, err)
	}
	if word, err := io.ReadAll(open); string(word) != "corrupt\n" {
		t.Errorf("what was open says %q (%v)", word, err)
	}
	if word := w.read("app/tags/t0/verify"); word != "corrupt\n" {
		t.Errorf("after all that it says %q", word)
	}
	if !prunes(t) {
		return // what a mount holds is bounded since Linux 6.18
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		nodes := w.nodes()
		if nodes < many/2 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d names are held", nodes)
		}
	}
}

// prunes says whether this kernel can be made to forget what nobody uses.
func prunes(t *testing.T) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	return major > 6 || major == 6 && minor >= 18
}

// nodes is how many names the mount holds.
func (w *world) nodes() (n int) {
	w.t.Helper()
	if err := w.server.Process.Signal(syscall.SIGUSR1); err != nil {
		w.t.Fatal(err)
	}
	if _, err := fmt.Fscanln(w.said, &n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// TestDamageInBetweenIsSeenAtOnce: an image that is reached through a nested index is not there when that is damaged, or gone.
func TestDamageInBetweenIsSeenAtOnce(t *testing.T) {
	for _, damage := range []string{"spoiled", "removed"} {
		t.Run(damage, func(t *testing.T) {
			l := sample.New()
			child := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b"))
			index := l.Index(child)
			l.Tag("multi", index)
			w := newWorld(t, l)
			names := []string{"app/tags/multi/platforms/linux-amd64/verify", "app/manifests/" + strings.Replace(string(child.Digest), ":", "-", 1) + "/verify"}
			time.Sleep(2100 * time.Millisecond) // files come to rest
			for range 2 {
				for _, name := range names {
					if word := w.read(name); word != "unsigned\n" {
						t.Fatalf("%s: %q", name, word)
					}
				}
			}
			at := w.registry + "/app/" + sample.Path(index.Digest)
			if damage == "removed" {
				must(t, os.Remove(at))
			} else {
				must(t, os.WriteFile(at, bytes.Replace(l.Bytes(index), []byte("a"), []byte("b"), 1), 0o644))
			}
			for _, name := range names {
				if word, err := os.ReadFile(filepath.Join(w.mnt, name)); !errors.Is(err, iofs.ErrNotExist) {
					t.Errorf("%s: %q, %v", name, word, err)
				}
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestOpenDirectoriesShareTheirLists: those who have directories open take no memory for each, as long as these are in one state.
func TestOpenDirectoriesShareTheirLists(t *testing.T) {
	w := newWorld(t, images(1))
	const files = 10_000
	for i := range files {
		must(t, os.WriteFile(filepath.Join(w.registry, "app/blobs/sha256", digest.FromString(fmt.Sprint(i)).Encoded()), nil, 0o644))
	}
	memory := func() (kib int) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.server.Process.Pid))
		must(t, err)
		_, rest, _ := strings.Cut(string(status), "VmRSS:")
		fmt.Sscan(rest, &kib)
		return kib
	}
	var open []*os.File
	for range 100 {
		f, err := os.Open(w.mnt + "/app/blobs/sha256")
		must(t, err)
		open = append(open, f)
	}
	kib := memory()
	t.Logf("%d KiB", kib)
	if kib > 100<<10 {
		t.Errorf("100 open directories of %d files take %d KiB", files, kib)
	}
	names, err := open[50].Readdirnames(-1)
	if must(t, err); len(names) < files {
		t.Errorf("%d names", len(names))
	}
	for _, f := range open {
		must(t, f.Close())
	}
}
