package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// readWhole opens, reads and closes a small file, with three system calls. (os.Open makes more: it tries whether one can wait for the file.)
func readWhole(name string, buf []byte) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	n, err := unix.Read(fd, buf)
	return buf[:max(n, 0)], errors.Join(err, unix.Close(fd))
}

// share does count things, spread over so many workers.
func share(workers, count int, do func(i int) error) error {
	var next atomic.Int64
	var g errgroup.Group
	for range workers {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= count {
					return nil
				}
				if err := do(i); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

func nothing() error { return nil }

// rest lets files come to rest: those that changed less than two seconds ago are compared by content.
func (b *bench) rest() error {
	if !b.quick {
		time.Sleep(2100 * time.Millisecond)
	}
	return nil
}

// status measures how often a second `verify` can be opened, read and closed.
func (b *bench) status() error {
	registry, plain, bind := b.fresh(), b.fresh(), b.fresh()
	if err := b.writeRegistry(registry, 1, 1, true); err != nil {
		return err
	}
	if err := os.WriteFile(plain+"/verify", []byte("verified\n"), 0o644); err != nil {
		return err
	}
	if err := b.sh("bindfs %s %s", plain, bind); err != nil {
		return err
	}
	s, err := b.serve(registry)
	if err == nil {
		b.rest()
		for _, readers := range []int{1, maxReaders} {
			read := func(name string) task {
				return task{nothing, func() error {
					return share(readers, b.sized(50_000, 100), func(int) error {
						var buf [64]byte
						text, err := readWhole(name, buf[:])
						if err == nil && string(text) != "verified\n" {
							err = fmt.Errorf("%s: %q", name, text)
						}
						return err
					})
				}}
			}
			err = errors.Join(err, b.rate(fmt.Sprintf("open, read, close of `verify`, nothing changed, by %d at once", readers), "bindfs on a file of that size", "≥ 1.5 ×",
				read(s.mnt+"/app0/tags/0/verify"), read(bind+"/verify")))
		}
		err = errors.Join(err, b.stop(s))
	}
	return errors.Join(err, b.sh("fusermount3 -u %s", bind))
}

// readAll reads a file of every image of a registry, by maxReaders readers.
func readAll(mnt string, apps, images int, file, want string) error {
	return share(maxReaders, apps*images, func(i int) error {
		name := fmt.Sprintf("%s/app%d/tags/%d/%s", mnt, i/images, i%images, file)
		var buf [64]byte
		text, err := readWhole(name, buf[:])
		if err == nil && string(text) != want {
			err = fmt.Errorf("%s: %q", name, text)
		}
		return err
	})
}

// sweeps reads the status of 10,000 images: for the first time, again, and again after one was signed anew.
func (b *bench) sweeps() error {
	apps, images := 100, b.sized(100, 2)
	registry := b.fresh()
	if err := b.writeRegistry(registry, apps, images, true); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return err
	}
	sum := sha512.Sum384([]byte("config"))
	signature, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		return err
	}
	var s *served
	again := func() error {
		if s != nil {
			if err := b.stop(s); err != nil {
				return err
			}
		}
		var err error
		s, err = b.serve(registry)
		return err
	}
	read := func() error { return readAll(s.mnt, apps, images, "verify", "verified\n") }
	name := fmt.Sprintf("of %d images", apps*images)
	err = b.compare("first `cat` of `verify` "+name+" (distinct configs, one vendor), 4 readers",
		"as many verifications by crypto/ecdsa, over all cores", "≤ 1.0 ×", task{again, read}, task{nothing, func() error {
			return share(runtime.NumCPU(), apps*images, func(int) error {
				if !ecdsa.VerifyASN1(&key.PublicKey, sum[:], signature) {
					return errors.New("it does not verify")
				}
				return nil
			})
		}})
	if err == nil {
		err = b.compare("the same again, nothing changed", "the first", "≤ 0.1 ×", task{nothing, read}, task{again, read})
	}
	signAgain := func() error {
		// Signing what is signed changes nothing: first it gets another certificate.
		for _, flags := range []string{"-x " + b.keys.dir + "/other.prv", "-s " + b.keys.dir + "/vendor.pub.sig -c " + b.keys.dir + "/root-ca.pub"} {
			command := fmt.Sprintf("-v %s/vendor.prv %s", b.keys.dir, flags)
			if err := os.WriteFile(s.mnt+"/app0/tags/0/sign", []byte(command), 0); err != nil {
				return err
			}
		}
		return nil
	}
	if err == nil {
		err = b.irfs("gen-key", "-o", b.keys.dir+"/other.prv")
	}
	if err == nil {
		err = b.compare("the same after one of them was signed anew", "the second", "≤ 1.1 ×", task{signAgain, read}, task{nothing, read})
	}
	if s != nil {
		err = errors.Join(err, b.stop(s))
	}
	return err
}

// stampede has a thousand processes read one `verify` at once, of an image that nobody has looked at.
func (b *bench) stampede() error {
	registry := b.fresh()
	if err := b.writeRegistry(registry, 1, 1, true); err != nil {
		return err
	}
	s, err := b.serve(registry)
	if err != nil {
		return err
	}
	processes := b.sized(1000, 20)
	var failed atomic.Int64
	var g errgroup.Group
	for range processes {
		g.Go(func() error {
			out, err := exec.Command("cat", s.mnt+"/app0/tags/0/verify").Output()
			if err != nil || !bytes.Equal(out, []byte("verified\n")) {
				failed.Add(1)
			}
			return nil
		})
	}
	g.Wait()
	cpu, err := cpuTime(s.pid)
	b.rows = append(b.rows, row{fmt.Sprintf("%d processes that read one `verify` at once, cold", processes), "one verification",
		fmt.Sprintf("%d errors", failed.Load()), "one verification, no errors", fmt.Sprintf("%.0f ms of CPU in the mount's process for all", cpu*1000)})
	return errors.Join(err, b.stop(s))
}

// cpuTime is what a process has used, in seconds.
func cpuTime(pid int) (float64, error) {
	text, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "stat"))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	var user, system float64
	fmt.Sscan(fields[11], &user)
	fmt.Sscan(fields[12], &system)
	return (user + system) / 100, nil
}
