package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// blobs reads a large blob through the mount, with passthrough and without.
func (b *bench) blobs() error {
	registry := b.fresh()
	if err := b.writeRegistry(registry, 1, 1, true); err != nil {
		return err
	}
	blob, size := "/app0/blobs/sha256/"+strings.Repeat("0", 64), int64(b.sized(1<<30, 1<<24))
	if err := writeNoise(registry+blob, size); err != nil {
		return err
	}
	bind := b.fresh()
	if err := b.sh("bindfs %s %s", registry, bind); err != nil {
		return err
	}
	s, err := b.serve(registry)
	if err == nil {
		version, verr := os.ReadFile(s.mnt + "/.irfs/version")
		if err = verr; err == nil && !strings.Contains(string(version), "passthrough yes") {
			for _, reads := range []string{"sequential", "random"} {
				b.rows = append(b.rows, row{reads + " reads of a blob, passthrough", "the file itself", "not measured", "≥ 0.95 ×", "no passthrough here"})
			}
		} else if err == nil {
			err = errors.Join(
				b.rate("sequential read of a blob of 1 GiB, passthrough", "the file itself", "≥ 0.95 ×", sequential(s.mnt+blob), sequential(registry+blob)),
				b.rate("random reads of 4 KiB of it", "the file itself", "≥ 0.95 ×", b.random(s.mnt+blob, size), b.random(registry+blob, size)))
		}
		err = errors.Join(err, b.stop(s))
	}
	if err == nil {
		// Without the capability the kernel does not pass through.
		err = b.withoutPassthrough(registry, func(mnt string) error {
			return errors.Join(
				b.rate("sequential read without passthrough", "bindfs", "≥ 1.2 ×", dropping(mnt+blob, sequential(mnt+blob)), dropping(bind+blob, sequential(bind+blob))),
				b.rate("random reads without passthrough", "bindfs", "≥ 1.2 ×", dropping(mnt+blob, b.random(mnt+blob, size)), dropping(bind+blob, b.random(bind+blob, size))))
		})
	}
	return errors.Join(err, b.sh("fusermount3 -u %s", bind))
}

func writeNoise(name string, size int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{1}), size)
	return errors.Join(err, f.Close())
}

// dropping does what a task does with the kernel's pages of a file gone before. Those of the file behind stay.
func dropping(name string, t task) task {
	return task{func() error {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return forgetPages(f)
	}, t.run}
}

func sequential(name string) task {
	return task{nothing, func() error {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		buf := make([]byte, 1<<20)
		for {
			if _, err := f.Read(buf); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
		}
	}}
}

func (b *bench) random(name string, size int64) task {
	return task{nothing, func() error {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		buf := make([]byte, 4096)
		r := rand.New(rand.NewPCG(1, 1))
		for range b.sized(200_000, 1000) {
			if _, err := f.ReadAt(buf, r.Int64N(size/4096)*4096); err != nil {
				return err
			}
		}
		return nil
	}}
}

// verifyFull reads `verify-full` of an image with three gzip layers, 0.5 GB.
func (b *bench) verifyFull() error {
	archive, err := b.large()
	if err != nil {
		return err
	}
	registry := b.fresh()
	if err := b.irfs("import", "-r", registry, "-a", "app", archive); err != nil {
		return err
	}
	var s *served
	defer func() {
		if s != nil {
			b.stop(s)
		}
	}()
	blobs := registry + "/app/blobs/sha256"
	return b.compare("`verify-full` of an image with three gzip layers, 0.5 GB", "`gzip -dc | sha256sum` of each layer, one after the other, and `sha256sum` of the blobs", "≤ 0.6 ×", task{
		func() (err error) {
			if s != nil {
				if err := b.stop(s); err != nil {
					return err
				}
			}
			s, err = b.serve(registry)
			return err
		},
		func() error { return b.sh("cat %s/app/tags/*/verify-full", s.mnt) },
	}, task{nothing, func() error {
		return b.sh("cd %s && for f in *; do gzip -t $f 2> /dev/null && gzip -dc $f | sha256sum; done; sha256sum * > /dev/null", blobs)
	}})
}

// forgetPages drops the kernel's pages of a file.
func forgetPages(f *os.File) error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// withoutPassthrough mounts a registry as a user who has no capabilities, so that the kernel passes nothing
// through, and runs do as that user. All of it happens in a thread with a /dev of its own, for there are machines where only
// root may open /dev/fuse.
func (b *bench) withoutPassthrough(registry string, do func(mnt string) error) error {
	const nobody = 65534
	mnt := b.fresh()
	for _, dir := range []string{b.dir, registry, b.keys.dir} {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Chmod(b.keys.dir+"/root-ca.pub", 0o644), os.Chown(mnt, nobody, nobody)); err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		err := openDevices()
		if err == nil {
			err = become(nobody)
		}
		if err == nil {
			err = b.sh("%s/irfs mount -c %s/root-ca.pub %s %s", b.dir, b.keys.dir, registry, mnt)
		}
		if err == nil {
			err = errors.Join(do(mnt), b.sh("%s/irfs umount %s", b.dir, mnt))
		}
		done <- err
	}()
	return <-done
}

// openDevices gives this thread, and the programs that it starts, a /dev in which everybody may open fuse.
func openDevices() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("a mount namespace: %w", err)
	}
	return errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""),
		unix.Mount("tmpfs", "/dev", "tmpfs", 0, "mode=755"),
		device("null", 1, 3), device("fuse", 10, 229))
}

// device makes a character device in /dev that everybody may open (Documentation/admin-guide/devices.txt in Linux).
func device(name string, major, minor uint32) error {
	if err := unix.Mknod("/dev/"+name, unix.S_IFCHR, int(unix.Mkdev(major, minor))); err != nil {
		return &os.PathError{Op: "mknod", Path: "/dev/" + name, Err: err}
	}
	return os.Chmod("/dev/"+name, 0o666) // whatever the umask
}

// become makes another user of this thread, who is in no group but that of the same number.
func become(id uintptr) error {
	for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS, 0, 0, 0}, {unix.SYS_SETRESGID, id, id, id}, {unix.SYS_SETRESUID, id, id, id}} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return errno
		}
	}
	return nil
}
