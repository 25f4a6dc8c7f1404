package faults

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"irfs/internal/irfstest"
	"irfs/layout"
	"irfs/layout/sample"
)

// zstdZeros is a frame of zstd with a window of 2^log bytes that unpacks to that many zeros, in blocks that repeat one byte
// (RFC 8878, section 3.1.1): 32768 times as many bytes as it has.
func zstdZeros(log int, size int64) []byte {
	const most, last, repeat = 128 << 10, 1, 1 << 1
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, byte(log-10) << 3}
	for ; size > most; size -= most {
		frame = append(binary.LittleEndian.AppendUint32(frame, most<<3|repeat)[:len(frame)+3], 0)
	}
	return append(binary.LittleEndian.AppendUint32(frame, uint32(size)<<3|repeat|last)[:len(frame)+3], 0)
}

// imageOfLayers adds an image with those layers, all of which have to unpack to diff.
func imageOfLayers(l *sample.Layout, diff digest.Digest, layers ...v1.Descriptor) v1.Descriptor {
	config := v1.Image{Platform: sample.Linux("amd64"), RootFS: v1.RootFS{Type: "layers"}}
	for range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diff)
	}
	return l.Manifest(v1.Manifest{Config: l.Document(v1.MediaTypeImageConfig, config), Layers: layers})
}

// vmRSS is how many bytes of memory a process has (proc_pid_status(5)).
func vmRSS(t testing.TB, pid int) (bytes int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &bytes); err == nil {
			return bytes << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// cpuOf is how long a process has computed so far (proc_pid_stat(5)).
func cpuOf(t testing.TB, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(text), ") ")
	var user, system int64
	f := strings.Fields(rest)
	fmt.Sscan(f[11], &user)
	fmt.Sscan(f[12], &system)
	return time.Duration(user+system) * time.Second / 100
}

// maxMemory is what a mount may have at most, whatever it is given.
const maxMemory = 1 << 30

// Very many readers of layers that want the largest window: their decompressors wait for one another, each gets its word, and the memory
// comes back.
func TestWindowsTogether(t *testing.T) {
	house.Need(t, "fuse")
	registry := newDir(t, "registry")
	readers := 24
	switch {
	case irfstest.Race(): // which takes several times the memory and time
		readers = 6
	case full:
		readers = 50
	}
	for i := range readers {
		l := sample.New()
		layer := l.Blob(v1.MediaTypeImageLayerZstd, zstdZeros(27, 136<<20))
		l.Tag("x", imageOfLayers(l, digest.FromString(fmt.Sprint(i)), layer))
		must(t, l.WriteDir(fmt.Sprintf("%s/a%d", registry, i)))
	}
	mnt := mount(t, registry)
	var list []*exec.Cmd
	for i := range readers {
		cmd := exec.Command("cat", fmt.Sprintf("%s/a%d/tags/x/reason", mnt, i), fmt.Sprintf("%s/a%d/tags/x/verify-full", mnt, i))
		out := &strings.Builder{}
		cmd.Stdout = out
		must(t, cmd.Start())
		list = append(list, cmd)
	}
	for i, cmd := range list {
		err := cmd.Wait()
		if out := cmd.Stdout.(*strings.Builder).String(); err != nil || !strings.HasSuffix(out, "\ncorrupt\n") {
			t.Errorf("reader %d: %v, %q", i, err, out)
		}
	}
	pid := daemonOf(t, mnt)
	if n := highWater(t, pid); n > maxMemory && !irfstest.Race() {
		t.Errorf("the mount had %d bytes of memory", n)
	} else {
		t.Logf("%d readers: at most %d MiB", readers, n>>20)
	}
	if !full {
		return
	}
	time.Sleep(20 * time.Second)
	if n := vmRSS(t, pid); n > 100<<20 {
		t.Errorf("the mount has kept %d bytes of memory", n)
	}
}

// A layer that unpacks to 1 TiB is given up within a second of its last reader, though next to nothing of it is read.
func TestLayerIsGivenUp(t *testing.T) {
	house.Need(t, "fuse")
	registry := newDir(t, "registry")
	l := sample.New()
	l.Tag("x", imageOfLayers(l, digest.FromString("?"), l.Blob(v1.MediaTypeImageLayerZstd, zstdZeros(20, 1<<40))))
	must(t, l.WriteDir(registry+"/app"))
	mnt := mount(t, registry)
	pid := daemonOf(t, mnt)
	var readers []*exec.Cmd
	for range 2 {
		cmd := exec.Command("cat", mnt+"/app/tags/x/verify-full")
		must(t, cmd.Start())
		readers = append(readers, cmd)
	}
	time.Sleep(500 * time.Millisecond)
	for _, cmd := range readers {
		must(t, cmd.Process.Signal(syscall.SIGKILL))
		began := time.Now()
		cmd.Wait()
		if d := time.Since(began); d > time.Second {
			t.Errorf("a reader ended after %v", d)
		}
	}
	time.Sleep(time.Second)
	before := cpuOf(t, pid)
	time.Sleep(time.Second)
	if d := cpuOf(t, pid) - before; d > 100*time.Millisecond {
		t.Errorf("a second after its last reader the mount computed for %v in a second", d)
	}
	for _, args := range [][]string{
		{"verify-image", "-r", registry, "-a", "app", "-d", "x", "-c", key("root-ca.pub"), "--full"},
		{"status", "-r", registry, "-c", key("root-ca.pub"), "--full"},
	} {
		endsAt(t, syscall.SIGINT, 500*time.Millisecond, command("irfs", args...))
	}
}

// An archive that unpacks for very long, while next to nothing of it is read, is given up within a second of the signal that ends its writer.
func TestArchiveIsGivenUp(t *testing.T) {
	house.Need(t, "fuse", "bzip2")
	registry, dir := newDir(t, "registry"), newDir(t, "archive")
	packed := func(data []byte) []byte {
		cmd := exec.Command("bzip2", "-c")
		cmd.Stdin = bytes.NewReader(data)
		out, err := cmd.Output()
		must(t, err)
		return out
	}
	var head bytes.Buffer
	must(t, tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: 7 << 30, Mode: 0o644}))
	text := append(packed(head.Bytes()), bytes.Repeat(packed(make([]byte, 8<<20)), 1000)...)
	must(t, os.WriteFile(dir+"/x.tar", text, 0o644))
	endsAt(t, syscall.SIGINT, 500*time.Millisecond, command("irfs", "import", "-r", registry, dir+"/x.tar"))
	mnt := mount(t, registry)
	endsAt(t, syscall.SIGKILL, 500*time.Millisecond, command("cp", dir+"/x.tar", mnt+"/import/"))
	time.Sleep(time.Second)
	pid := daemonOf(t, mnt)
	before := cpuOf(t, pid)
	time.Sleep(time.Second)
	if d := cpuOf(t, pid) - before; d > 100*time.Millisecond {
		t.Errorf("a second after its writer the mount computed for %v in a second", d)
	}
}

// endsAt starts a command that would take very long, and sees that a signal some time later ends it within a second.
func endsAt(t *testing.T, signal syscall.Signal, later time.Duration, cmd *exec.Cmd) {
	t.Helper()
	must(t, cmd.Start())
	time.Sleep(later)
	must(t, cmd.Process.Signal(signal))
	began := time.Now()
	err := cmd.Wait()
	if d := time.Since(began); d > time.Second {
		t.Errorf("%v: %v after %v", cmd.Args[1:], signal, d)
	}
	if err == nil {
		t.Errorf("%v was done in no time", cmd.Args[1:])
	}
}

// stall lists a directory into memory that never comes (userfaultfd(2)): until it is killed it holds the directory in the kernel, as a reader.
func stall(args []string) error {
	dir, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("userfaultfd", errno)
	}
	memory, err := unix.Mmap(-1, 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	// linux/userfaultfd.h: struct uffdio_api, struct uffdio_register.
	const api, uffdioAPI, uffdioRegister, missing = 0xaa, 0xc018aa3f, 0xc020aa00, 1
	hello := [3]uint64{api}
	register := [4]uint64{uint64(uintptr(unsafe.Pointer(&memory[0]))), uint64(len(memory)), missing}
	for _, call := range []struct {
		number uintptr
		data   unsafe.Pointer
	}{{uffdioAPI, unsafe.Pointer(&hello)}, {uffdioRegister, unsafe.Pointer(&register)}} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, call.number, uintptr(call.data)); errno != 0 {
			return os.NewSyscallError("ioctl", errno)
		}
	}
	done := make(chan error, 1)
	go func() {
		n, err := unix.Getdents(dir, memory)
		done <- fmt.Errorf("getdents gave %d, %v", n, err)
	}()
	go func() {
		if _, err := unix.Read(int(fd), make([]byte, 32)); err == nil { // the fault
			fmt.Println("stalled")
		}
	}()
	return <-done
}

// stallIn starts it, and returns when it holds the directory. let ends it.
func stallIn(t *testing.T, dir string) (let func()) {
	t.Helper()
	cmd := inRole("stall", dir)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	let = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(let)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "stalled\n" {
		t.Fatalf("the reader says %q (%v)", line, err)
	}
	return let
}

// A reader who holds a directory of the view for ever holds nobody else who signs, imports, or reads.
func TestReaderHoldsADirectory(t *testing.T) {
	house.Need(t, "fuse", "root")
	for _, where := range []string{"app/tags/x", "app/tags/x/platforms", "app/tags", "app/manifests", "app/blobs/sha256", "app", "."} {
		t.Run(where, func(t *testing.T) {
			registry, dir := newDir(t, "registry"), newDir(t, "archive")
			l := sample.New()
			l.Tag("x", l.Image(sample.Linux("amd64"), sample.Gzip("a", "x")))
			l.Tag("y", l.Image(sample.Linux("amd64"), sample.Gzip("a", "y")))
			must(t, l.WriteDir(registry+"/app"))
			other := sample.New()
			other.Tag("z", other.Image(sample.Linux("amd64"), sample.Gzip("a", "z")))
			archive, err := os.Create(dir + "/app.tar")
			must(t, err)
			must(t, other.WriteTar(archive))
			must(t, archive.Close())
			mnt := mount(t, registry)
			before := strings.TrimSpace(run(t, "cat", mnt+"/app/tags/x/digest"))
			old := mnt + "/app/manifests/" + strings.Replace(before, ":", "-", 1)
			run(t, "ls", "-lR", mnt+"/app") // the kernel knows all of it
			run(t, "ls", "-l", old, mnt+"/app/tags/x/sign")
			let := stallIn(t, mnt+"/"+where)
			within := func(what string, do func() error) {
				t.Helper()
				done := make(chan error, 1)
				go func() { done <- do() }()
				select {
				case err := <-done:
					if err != nil {
						t.Errorf("%s: %v", what, err)
					}
				case <-time.After(10 * time.Second):
					let() // or nothing here would end
					<-done
					t.Fatalf("%s does not end while the reader holds %s", what, where)
				}
			}
			says := func(want string, command ...string) {
				t.Helper()
				within(strings.Join(command, " "), func() error {
					if out, err := try(command[0], command[1:]...); err != nil || strings.TrimSpace(out) != want {
						return fmt.Errorf("%q, and not %q (%v)", out, want, err)
					}
					return nil
				})
			}
			within("to sign", func() error {
				f, err := os.OpenFile(mnt+"/app/tags/x/sign", os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				_, err = f.WriteString(strings.Join(signing(), " "))
				return err
			})
			says("", "test", "!", "-e", old, "-a", "-e", mnt+"/app/tags/x/signature")
			says("verified", "cat", mnt+"/app/tags/x/verify")
			says("unsigned", "cat", mnt+"/app/tags/y/verify")
			within("to import", func() error { _, err := try("cp", dir+"/app.tar", mnt+"/import/app.tar"); return err })
			says("unsigned", "cat", mnt+"/app/tags/z/verify")
			within("to import another", func() error { _, err := try("cp", dir+"/app.tar", mnt+"/import/another.tar"); return err })
			says("unsigned", "cat", mnt+"/another/tags/z/verify")
			within("to list", func() error { _, err := try("ls", "-lR", mnt+"/app"); return err })
			if waiting := uninterruptible(t, daemonOf(t, mnt)); len(waiting) > 0 {
				t.Errorf("threads of the mount wait in the kernel: %v", waiting)
			}
		})
	}
}

// uninterruptible lists the threads of a process that wait in the kernel, and cannot be interrupted (proc_pid_stat(5)), for half a second.
func uninterruptible(t *testing.T, pid int) (threads []string) {
	t.Helper()
	for end := time.Now().Add(500 * time.Millisecond); ; time.Sleep(20 * time.Millisecond) {
		threads = nil
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		must(t, err)
		for _, file := range files {
			text, _ := os.ReadFile(file)
			if _, rest, _ := strings.Cut(string(text), ") "); strings.HasPrefix(rest, "D") {
				threads = append(threads, file)
			}
		}
		if len(threads) == 0 || time.Now().After(end) {
			return threads
		}
	}
}

// Shells that sign while another process holds the app wait side by side, though each truncates the file: each is gone when it is killed, and each has
// EBUSY after the time that it waits.
func TestSignersWaitSideBySide(t *testing.T) {
	house.Need(t, "fuse")
	registry := newDir(t, "registry")
	l := sample.New()
	l.Tag("x", l.Image(sample.Linux("amd64"), sample.Gzip("a", "x")))
	must(t, l.WriteDir(registry+"/app"))
	mnt := mount(t, registry, "-s", key("vendor.pub.sig"))
	lock, err := os.Open(registry + "/app/oci-layout")
	must(t, err)
	defer lock.Close()
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	shell := func(script string) *exec.Cmd {
		cmd := command("bash", "-c", script)
		cmd.Env = append(cmd.Env, "KEY="+key("vendor.prv"), "SIGN="+mnt+"/app/tags/x/sign")
		return cmd
	}
	var list []*exec.Cmd
	for _, script := range []string{
		"exec tee $SIGN <<< $KEY", "exec dd of=$SIGN status=none <<< $KEY", "echo $KEY > $SIGN", "echo $KEY >> $SIGN", "exec cp <(echo $KEY) $SIGN",
		"exec 3> $SIGN; echo $KEY > /proc/self/fd/3",
	} {
		cmd := shell(script)
		must(t, cmd.Start())
		list = append(list, cmd)
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(time.Second)
	for _, reader := range []string{"cat $SIGN", "stat -c %i $SIGN", "ls -l $SIGN"} {
		endsWithin(t, time.Second, reader, shell(reader))
	}
	if full { // each after 30 s
		began := time.Now()
		for i, cmd := range list {
			if err := cmd.Wait(); err == nil || time.Since(began) > 32*time.Second {
				t.Errorf("signer %d: %v after %v", i, err, time.Since(began))
			}
		}
	} else {
		for i := range list {
			cmd := list[len(list)-1-i]
			must(t, cmd.Process.Signal([]os.Signal{syscall.SIGKILL, syscall.SIGINT}[i%2]))
			endsWithin(t, time.Second, cmd.Args[2], cmd)
		}
	}
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_UN))
	endsWithin(t, 10*time.Second, "a signer", shell("echo $KEY > $SIGN && grep -qx verified ${SIGN%/sign}/verify"))
}

// endsWithin waits for a command, which it starts if need be.
func endsWithin(t *testing.T, most time.Duration, what string, cmd *exec.Cmd) {
	t.Helper()
	started := cmd.Process != nil
	if !started {
		must(t, cmd.Start())
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil && !started {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(most):
		t.Errorf("%s has not ended after %v", what, most)
	}
}

// An index of very many images is signed in one step, in little memory, and what is said of it is short, wherever it is said.
func TestSigningOfManyImages(t *testing.T) {
	house.Need(t, "fuse")
	images := 600
	if full {
		images = 10_000
	}
	registry := newDir(t, "registry")
	l := sample.New()
	var list []v1.Descriptor
	layer := sample.Gzip("a", "b")
	for i := range images {
		platform := sample.Linux("amd64")
		platform.Variant = fmt.Sprint(i)
		list = append(list, l.Image(platform, layer))
	}
	for i := range min(images, layout.MaxIndexImages-images) { // and as many that are no images, as far as that goes
		list = append(list, l.Artifact("text/plain", fmt.Sprint(i), nil))
	}
	l.Tag("x", l.Index(list...))
	must(t, l.WriteDir(registry+"/app"))
	args := append([]string{"sign-image", "-r", registry, "-a", "app", "-d", "x"}, signing()...)
	endsAt(t, syscall.SIGINT, 200*time.Millisecond, command("irfs", args...))
	mnt := mount(t, registry)
	at := mnt + "/app/tags/x"
	began := time.Now()
	must(t, os.WriteFile(at+"/sign", []byte(strings.Join(signing(), " ")), 0))
	took := time.Since(began)
	log := run(t, "cat", mnt+"/.irfs/log")
	said := run(t, "head", "-n", "1", at+"/sign")
	for what, text := range map[string]string{"the log": log, "what sign says": said} {
		if len(text) > 16<<10 || !strings.Contains(text, fmt.Sprintf("signed %d images: ", images)) || !strings.Contains(text, fmt.Sprintf("and %d more", images-20)) {
			t.Errorf("%s has %d bytes: %.300s", what, len(text), text)
		}
	}
	n := highWater(t, daemonOf(t, mnt))
	t.Logf("%d images: %v, %d MiB", images, took, n>>20)
	if n > maxMemory/2 {
		t.Errorf("the mount had %d bytes of memory", n)
	}
	tags, err := whole(registry + "/app")
	must(t, err)
	if tags["x"] != strings.TrimSpace(run(t, "cat", at+"/digest")) {
		t.Errorf("the tag names %s", tags["x"])
	}
}
