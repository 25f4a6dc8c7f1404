package faults

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

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
	if full {
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
	if n := highWater(t, pid); n > maxMemory {
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
		endsAt(t, syscall.SIGINT, command("irfs", args...))
	}
}

// endsAt starts a command that would take very long, and sees that a signal ends it within a second.
func endsAt(t *testing.T, signal syscall.Signal, cmd *exec.Cmd) {
	t.Helper()
	must(t, cmd.Start())
	time.Sleep(500 * time.Millisecond)
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
