package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// theirs is what an import does at the least, by the tools that everybody has:
// unpack, sync, and check the digests.
func (b *bench) theirs(archive string) task {
	var dir string
	return task{
		func() error { dir = b.fresh(); return b.settle() },
		func() error {
			return b.sh("tar xf %s -C %s && sync -f %[2]s && sha256sum %[1]s", archive, dir)
		},
	}
}

const tarSyncSum = "`tar xf`, `sync -f` and `sha256sum` of it"

// settle waits until what went before is on the disk.
func (b *bench) settle() error { return b.sh("sync -f %s", b.dir) }

// large gives an archive of about 0.5 GB with three gzip layers.
func (b *bench) large() (string, error) {
	name, size := b.path("large.tar"), int64(500e6)
	if b.quick {
		size = 5e6
	}
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	i, err := newImage(3, size, true)
	if err != nil {
		return "", err
	}
	return name, i.writeFile(name)
}

func (b *bench) importing() error {
	archive, err := b.large()
	if err != nil {
		return err
	}
	var registry string
	return b.compare("`irfs import` of 0.5 GB, three gzip layers", tarSyncSum, "≤ 1.0 ×", task{
		func() error { registry = b.fresh(); return b.settle() },
		func() error { return b.sh("%s/irfs import -r %s %s", b.dir, registry, archive) },
	}, b.theirs(archive))
}

func (b *bench) dropping() error {
	archive, err := b.large()
	if err != nil {
		return err
	}
	return b.mounted(func(registry, mnt string, _ int) error {
		n := 0
		return b.compare("`cp` of the same into `import/`", tarSyncSum, "≤ 1.4 ×", task{
			func() error { n++; return b.settle() },
			func() error { return b.sh("cp %s %s/import/app%d.tar", archive, mnt, n) },
		}, b.theirs(archive))
	})
}

func (b *bench) manySmall() error {
	count := 1000
	if b.quick {
		count = 20
	}
	i, err := newImage(1, 10_000, true)
	if err != nil {
		return err
	}
	from := b.fresh()
	for n := range count {
		if err := i.writeFile(filepath.Join(from, fmt.Sprintf("app%d.tar", n))); err != nil {
			return err
		}
	}
	runs := b.runs
	defer func() { b.runs = runs }()
	b.runs = min(runs, 3)
	var mnt, plain string
	var unmount func() error
	err = b.compare("1,000 small archives, `cp *.tar import/`", "`cp` and `sync -f` of each, one by one, in a plain directory", "≤ 2 ×", task{
		func() error {
			if unmount != nil {
				if err := unmount(); err != nil {
					return err
				}
			}
			registry := b.fresh()
			mnt = b.fresh()
			unmount = func() error { return b.sh("%s/irfs umount %s", b.dir, mnt) }
			return errors.Join(b.sh("%s/irfs mount %s %s", b.dir, registry, mnt), b.settle())
		},
		func() error { return b.sh("cp %s/*.tar %s/import/", from, mnt) },
	}, task{
		func() error { plain = b.fresh(); return b.settle() },
		func() error {
			return b.sh("for f in %s/*.tar; do cp $f %s/ && sync -f %[2]s/${f##*/} || exit; done", from, plain)
		},
	})
	if unmount != nil {
		err = errors.Join(err, unmount())
	}
	return err
}

// memory sends archives of several sizes through a pipe, so that they are
// nowhere on the disk, and looks at what the process needed.
func (b *bench) memory() error {
	sizes := []int64{500e6, 10e9}
	if b.quick {
		sizes = []int64{5e6}
	}
	for _, size := range sizes {
		i, err := newImage(5, size, false)
		if err != nil {
			return err
		}
		if err := b.memoryOfImport(i); err != nil {
			return err
		}
		if err := b.memoryOfMount(i); err != nil {
			return err
		}
	}
	return nil
}

func gigabytes(n int64) string { return fmt.Sprintf("%.3g GB", float64(n)/1e9) }

func (b *bench) figure(what string, i *image, kilobytes, written int64) {
	b.rows = append(b.rows, row{
		fmt.Sprintf("%s, %s", what, gigabytes(i.bytes)), "the blobs' bytes",
		fmt.Sprintf("%.0f MB of memory, %.3f × written", float64(kilobytes)*1024/1e6, float64(written)/float64(i.bytes)), "≤ 100 MB, ≤ 1.05 ×", "",
	})
}

func (b *bench) memoryOfImport(i *image) error {
	registry := b.fresh()
	defer os.RemoveAll(registry)
	cmd := exec.Command(b.path("irfs"), "import", "-r", registry, "-a", "app", "-")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	err = i.writeTo(in)
	memory, memErr := procNumber(cmd.Process.Pid, "status", "VmHWM:") // its rusage would begin with ours
	err = errors.Join(err, memErr, in.Close(), cmd.Wait())
	if err != nil {
		return err
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	b.figure("`irfs import -`", i, memory, usage.Oublock*512)
	return nil
}

func (b *bench) memoryOfMount(i *image) error {
	return b.mounted(func(registry, mnt string, pid int) error {
		f, err := os.Create(mnt + "/import/app.tar")
		if err != nil {
			return err
		}
		if err := errors.Join(i.writeTo(f), f.Close()); err != nil {
			return err
		}
		memory, err := procNumber(pid, "status", "VmHWM:")
		if err != nil {
			return err
		}
		written, err := procNumber(pid, "io", "write_bytes:")
		if err != nil {
			return err
		}
		b.figure("written into `import/`, the mount's process", i, memory, written)
		return os.RemoveAll(registry + "/app")
	})
}

// procNumber reads a number of /proc/<pid>/<file>.
func procNumber(pid int, file, key string) (n int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	for line := range strings.Lines(string(text)) {
		if after, ok := strings.CutPrefix(line, key); ok {
			_, err = fmt.Sscan(after, &n)
			return n, err
		}
	}
	return 0, errors.Join(err, fmt.Errorf("/proc/%d/%s: no %s", pid, file, key))
}
