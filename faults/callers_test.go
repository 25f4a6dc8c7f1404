package faults

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"irfs/layout/sample"
)

// What is named as a key, and is none, is refused at once: it is not opened if it would notice, or block, and
// not read if it never ends. Meanwhile the mount serves others, and no byte of a real key is told.
func TestKeyPaths(t *testing.T) {
	house.Need(t, "fuse", "root")
	registry, other, dir := newDir(t, "registry"), newDir(t, "registry"), newDir(t, "named")
	for _, r := range []string{registry, other} {
		l := sample.New()
		l.Tag("x", l.Image(sample.Linux("amd64"), sample.Gzip("a", r)))
		l.Tag("y", l.Image(sample.Linux("arm64"), sample.Gzip("a", r)))
		if err := l.WriteDir(r + "/app"); err != nil {
			t.Fatal(err)
		}
	}
	mnt, second := mount(t, registry), mount(t, other)
	bound := newDir(t, "bound")
	must(t, unix.Mount(mnt+"/app", bound, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(bound, 0)) })
	tags, err := whole(registry + "/app")
	must(t, err)

	must(t, unix.Mkfifo(dir+"/fifo", 0o644))
	must(t, os.Symlink("fifo", dir+"/to-fifo"))
	must(t, os.Symlink("loop", dir+"/loop"))
	must(t, os.Symlink(mnt+"/app/tags/x/sign", dir+"/to-sign"))
	must(t, os.WriteFile(dir+"/sparse", nil, 0o644))
	must(t, os.Truncate(dir+"/sparse", 1<<30))
	must(t, os.WriteFile(dir+"/empty", nil, 0o644))
	socket, err := net.Listen("unix", dir+"/socket")
	must(t, err)
	defer socket.Close()
	terminal := newTerminal(t)

	const no, loop = syscall.EKEYREJECTED, syscall.ELOOP
	rows := []struct {
		path  string
		errno syscall.Errno
	}{
		{dir + "/fifo", no}, {dir + "/to-fifo", no}, {dir + "/socket", no}, {dir + "/empty", no},
		{dir + "/sparse", syscall.EFBIG},
		{dir + "/loop", loop},
		{dir + "/fifo/x", syscall.ENOTDIR},
		{dir + "/" + strings.Repeat("n", 256), syscall.ENAMETOOLONG},
		{terminal, no}, {"/dev/tty", no}, {"/dev/ptmx", no},
		{"/dev/zero", no}, {"/dev/full", no}, {"/dev/null", no}, {"/dev/random", no},
		{"/dev/stdin", loop}, {"/dev/fd/0", loop}, {"/proc/self/fd/0", loop}, {"/proc/self/exe", loop}, {"/proc/self/root/etc/passwd", loop},
		{"/proc/self/mem", no}, {"/proc/kmsg", no}, {"/proc/self/maps", no}, {"/proc/self/environ", no},
		// The mount itself, by any way to it.
		{mnt + "/app/tags/x/sign", no}, {mnt + "/app/tags/x/verify", no}, {mnt + "/app/tags/y/verify-full", no}, {mnt + "/.irfs/log", no},
		{mnt + "/app/tags/x/config.json", no}, {blobOf(mnt+"/app", tags["x"]), no}, {mnt + "/app/index.json", no},
		{bound + "/tags/x/sign", no}, {bound + "/index.json", no}, {dir + "/to-sign", no},
		{mnt + "/app/tags/x/none", syscall.ENOENT},
		// Another mount.
		{second + "/app/tags/x/sign", no}, {second + "/app/tags/x/verify-full", no}, {second + "/app/index.json", no}, {second + "/.irfs/log", no},
	}
	// For others meanwhile, on both mounts.
	var slow atomic.Int64
	reads := 0
	stop := meanwhile(t, func() {
		began := time.Now()
		for _, m := range []string{mnt, second} {
			if word, err := os.ReadFile(m + "/app/tags/y/verify"); err != nil || string(word) != "unsigned\n" {
				t.Errorf("verify is %q, %v", word, err)
			}
		}
		if reads++; time.Since(began) > 5*time.Second {
			slow.Add(1)
		}
	})
	before := treeOf(t, registry)
	write := func(command string) error {
		for try := 1; ; try++ {
			began := time.Now()
			done := make(chan error, 1)
			go func() {
				f, err := os.OpenFile(mnt+"/app/tags/x/sign", os.O_WRONLY|os.O_TRUNC, 0)
				if err == nil {
					_, err = f.WriteString(command)
					err = errors.Join(err, f.Close())
				}
				done <- err
			}()
			select {
			case err := <-done:
				if d := time.Since(began); d > time.Second && try == 3 { // on a machine that is busy with other things
					t.Errorf("%q took %v", command, d)
				} else if d > time.Second {
					continue
				}
				return err
			case <-time.After(20 * time.Second):
				t.Fatalf("%q does not end", command)
			}
		}
	}
	for _, row := range rows {
		for _, command := range []string{
			"%s\n",
			"-v %s -x " + key("root-ca.prv"),
			"-v " + key("vendor.prv") + " -x %s",
			"-v " + key("vendor.prv") + " -s %s -c " + key("root-ca.pub"),
			"-v " + key("vendor.prv") + " -s " + key("vendor.pub.sig") + " -c %s",
		} {
			if err := write(fmt.Sprintf(command, row.path)); !errors.Is(err, row.errno) {
				t.Errorf("%q of %s: %v, and not %v", command, row.path, err, row.errno)
			}
		}
	}
	for _, row := range []struct {
		command string
		errno   syscall.Errno
	}{
		{dir, no},
		{"-v " + key("vendor.prv") + " -s " + key("vendor.pub.sig") + " -c " + dir, syscall.ENOKEY}, // it might hold some
		{mnt + "/app/tags/x", no},
		{"/" + strings.Repeat("x/", 4095/2) + "x", syscall.ENAMETOOLONG},
		{"/" + strings.Repeat("x/", 4095/2) + "x\n", syscall.EINVAL},
		{key("vendor.prv") + "\x00", syscall.EINVAL},
		{key("vendor.prv") + "\n\n", syscall.EINVAL},
		{"/tmp/a\nb\n", syscall.EINVAL},
		{"-v '" + key("vendor.prv") + "\x00' -x " + key("root-ca.prv"), syscall.EINVAL},
		{"-v '/tmp/a\nb' -x " + key("root-ca.prv"), syscall.EINVAL},
		{"\x00", syscall.EINVAL},
		{"\xff\xfe", syscall.EINVAL},
	} {
		if err := write(row.command); !errors.Is(err, row.errno) {
			t.Errorf("%.100q (%d bytes): %v, and not %v", row.command, len(row.command), err, row.errno)
		}
	}
	stop()
	if reads < 3 || slow.Load() > 0 {
		t.Errorf("%d reads meanwhile, %d of them slow", reads, slow.Load())
	}
	for name, was := range before {
		if is := treeOf(t, registry)[name]; is != was {
			t.Errorf("%s was changed", name)
		}
	}
	// Each failure is in the log, on a line of its own, and no part of a key is anywhere.
	log, err1 := os.ReadFile(mnt + "/.irfs/log")
	said, err2 := os.ReadFile(mnt + "/app/tags/x/sign")
	must(t, err1, err2)
	for line := range strings.Lines(string(log)) {
		if f := strings.Split(line, "\t"); len(f) != 5 || f[2] != "sign" && f[2] != "read" {
			t.Errorf("the log has the line %q", line)
		}
	}
	if n := strings.Count(string(log), "\n"); n < 12+5*len(rows) {
		t.Errorf("the log has %d lines", n)
	}
	for _, name := range []string{"vendor.prv", "root-ca.prv"} {
		der, err := os.ReadFile(key(name))
		must(t, err)
		secret := der[8:56] // SEC 1, C.4
		for _, form := range []string{string(secret), hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(der)[16:48]} {
			if strings.Contains(string(log)+string(said), form) {
				t.Errorf("%s can be read", name)
			}
		}
	}
	must(t, write(strings.Join(signing(), " ")))
}

// newTerminal opens a pseudoterminal, and gives the path of the terminal.
func newTerminal(t *testing.T) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { master.Close() })
	must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(t, err)
	return fmt.Sprintf("/dev/pts/%d", n)
}
