package faults

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/internal/irfstest"
	"irfs/layout"
	"irfs/layout/sample"
)

// This file is about what takes memory and time without being wrong in any part: indexes as large, and as many, as the limits allow, or more.

// listOf is an index of images that are not there, numbered from first on, of about that many bytes.
func listOf(l *sample.Layout, bytesOf, first int) (index v1.Descriptor, images int) {
	var b bytes.Buffer
	b.Grow(bytesOf)
	b.WriteString(`{"schemaVersion":2,"manifests":[`)
	for b.Len() < bytesOf-200 {
		if images > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"mediaType":"a","digest":"sha256:%064x","size":1,"platform":{"os":"%d"}}`, first+images, images)
		images++
	}
	b.WriteString("]}")
	return l.Blob(v1.MediaTypeImageIndex, b.Bytes()), images
}

// endedBy ends a process by a signal. It has to be gone within a second.
func endedBy(t *testing.T, cmd *exec.Cmd, what string, signal syscall.Signal) {
	t.Helper()
	start := time.Now()
	cmd.Process.Signal(signal)
	cmd.Wait()
	if took := time.Since(start); took > slowly(time.Second) {
		t.Errorf("%s: gone %v after %v", what, took, signal)
	}
}

// readAll runs that many cat and ls at once, and waits for them.
func readAll(t *testing.T, many int, name ...string) {
	t.Helper()
	var list []*exec.Cmd
	for range many {
		cmd := exec.Command(name[0], name[1:]...)
		worked(t, cmd.Start())
		list = append(list, cmd)
	}
	for _, cmd := range list {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", cmd, err)
		}
	}
}

// Indexes as many as one app may have, and one more.
func TestIndexesWithoutEnd(t *testing.T) {
	house.Need(t, "fuse")
	registry, tooLarge := newDir(t, "registry"), newDir(t, "registry")
	most := count(t, 8, layout.MaxIndexes>>20) // MiB
	under, over := sample.New(), sample.New()
	first := 0
	for i := range most - 1 {
		index, n := listOf(under, 1<<20, first)
		under.Tag(fmt.Sprintf("x%d", i), index)
		first += n
	}
	under.Tag("ok", under.Image(sample.Linux("amd64"), sample.Plain("a", "b")))
	worked(t, under.WriteDir(registry+"/under"))
	for i := range 2 {
		index, _ := listOf(over, layout.MaxIndexes*3/4, i<<20)
		over.Tag(fmt.Sprintf("x%d", i), index)
	}
	over.Tag("ok", over.Image(sample.Linux("amd64"), sample.Plain("a", "b")))
	worked(t, over.WriteDir(tooLarge+"/over"))
	mnt, overMnt := mount(t, registry), mount(t, tooLarge)
	daemon := daemonOf(t, mnt)
	start := vmRSS(t, daemon)

	t.Run("under the limit", func(t *testing.T) {
		if word := run(t, "cat", mnt+"/under/tags/ok/verify"); word != "unsigned\n" {
			t.Errorf("an image beside them is %q", word)
		}
		if word := run(t, "cat", mnt+"/under/tags/x0/verify"); word != "unsigned\n" {
			t.Errorf("an index of absent images is %q", word)
		}
		names := strings.Count(run(t, "ls", "-U", mnt+"/under/manifests"), "\n")
		if want := first + most; names != want {
			t.Errorf("%d names, want %d", names, want)
		}
		readAll(t, count(t, 4, 20), "ls", "-U", mnt+"/under/manifests")
		readAll(t, count(t, 20, 1000), "cat", mnt+"/under/tags/x1/reason", mnt+"/under/tags/x1/status.json")
	})
	t.Run("over the limit", func(t *testing.T) {
		began := time.Now()
		for _, name := range []string{"ok", "x0", "x1"} {
			if word := run(t, "cat", overMnt+"/over/tags/"+name+"/verify"); word != "corrupt\n" {
				t.Errorf("%s is %q", name, word)
			}
			if why := run(t, "cat", overMnt+"/over/tags/"+name+"/reason"); !strings.Contains(why, "over the limit of 67108864 bytes together") {
				t.Errorf("%s: %q", name, why)
			}
		}
		if took := time.Since(began); took > slowly(2*time.Second) {
			t.Errorf("what is not read took %v", took)
		}
		if wrong := run(t, "cat", overMnt+"/over/.irfs/check"); strings.Count(wrong, "\n") != 1 || !strings.Contains(wrong, "over the limit") {
			t.Errorf("check: %q", wrong)
		}
		if names := run(t, "ls", overMnt+"/over/tags", overMnt+"/over/manifests"); strings.Count(names, "\n") != 3+3+3 {
			t.Errorf("names: %q", names)
		}
		if err := os.WriteFile(overMnt+"/over/tags/ok/sign", []byte(strings.Join(signing(), " ")), 0); errnoIn(err) != syscall.EFBIG {
			t.Errorf("signing: %v", err)
		}
		out, _ := try("irfs", "status", "-r", tooLarge, "--check")
		if strings.Count(out, "\tover\t") != 1 {
			t.Errorf("status names it %d times", strings.Count(out, "\tover\t"))
		}
	})
	for _, pid := range []int{daemon, daemonOf(t, overMnt)} {
		if used := highWater(t, pid); used > maxMemory && !irfstest.Race() {
			t.Errorf("the daemon needed %d MiB", used>>20)
		} else {
			t.Logf("the daemon needed %d MiB", used>>20)
		}
	}
	if !full {
		return
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		used := vmRSS(t, daemon)
		if used < start+64<<20 {
			break
		}
		if time.Now().After(end) {
			t.Errorf("a minute later it has %d MiB, and had %d", used>>20, start>>20)
			break
		}
	}
}

// Whoever reads a large index may be ended while it is read and verified, and nothing goes on after that.
func TestLargeIndexIsInterrupted(t *testing.T) {
	house.Need(t, "fuse")
	registry := newDir(t, "registry")
	l := sample.New()
	image := l.Image(sample.Linux("amd64"), sample.Plain("a", "b"))
	var list []v1.Descriptor
	manifest := string(l.Bytes(image))
	for i := range 12000 {
		list = append(list, l.Blob(image.MediaType, []byte(strings.Replace(manifest, "{", "{"+strings.Repeat(" ", 20000+i), 1))))
	}
	l.Tag("x", l.Index(list...))
	l.Tag("ok", image)
	worked(t, l.WriteDir(registry+"/app"))
	mnt := mount(t, registry)
	daemon := daemonOf(t, mnt)
	x := filepath.Join(mnt, "app/tags/x")
	for _, row := range []struct {
		name   string
		signal syscall.Signal
	}{{"verify", syscall.SIGKILL}, {"reason", syscall.SIGINT}, {"status.json", syscall.SIGKILL}, {"verify-full", syscall.SIGKILL}, {"status-full.json", syscall.SIGINT}} {
		// Two at once: the second one waits for the first.
		one, other := exec.Command("cat", x+"/"+row.name), exec.Command("cat", x+"/"+row.name)
		worked(t, one.Start())
		worked(t, other.Start())
		time.Sleep(300 * time.Millisecond)
		looked := time.Now()
		run(t, "stat", x+"/"+row.name)
		if took := time.Since(looked); took > slowly(time.Second) {
			t.Errorf("%s: stat took %v beside readers", row.name, took)
		}
		endedBy(t, other, row.name, row.signal)
		endedBy(t, one, row.name, row.signal)
	}
	time.Sleep(500 * time.Millisecond)
	before := cpuOf(t, daemon)
	time.Sleep(500 * time.Millisecond)
	if used := cpuOf(t, daemon) - before; used > 50*time.Millisecond {
		t.Errorf("it goes on: %d hundredths of a second in half a second", used)
	}
	if word := run(t, "cat", mnt+"/app/tags/ok/verify"); word != "unsigned\n" {
		t.Errorf("beside it: %q", word)
	}
	for _, args := range [][]string{{"status", "-r", registry}, {"verify-image", "-r", registry, "-a", "app", "-d", "x", "-c", key("root-ca.pub")}} {
		cmd := command("irfs", args...)
		worked(t, cmd.Start())
		time.Sleep(300 * time.Millisecond)
		endedBy(t, cmd, args[0], syscall.SIGINT)
		if cmd.ProcessState.Success() {
			t.Errorf("%s was done before it was interrupted", args[0])
		}
	}
}
