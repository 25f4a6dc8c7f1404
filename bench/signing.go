package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// signBy writes a command to an image's `sign`: the key and flags.
func (b *bench) signBy(image, flags string) error {
	return os.WriteFile(image+"/sign", fmt.Appendf(nil, "-v %s/vendor.prv %s", b.keys.dir, flags), 0)
}

// otherCertificate signs an image with a certificate of another CA, so that signing it with the keys changes it.
func (b *bench) otherCertificate(image string) error {
	other := filepath.Join(b.keys.dir, "other.prv")
	if _, err := os.Stat(other); err != nil {
		if err := b.irfs("gen-key", "-o", other); err != nil {
			return err
		}
	}
	return b.signBy(image, "-x "+other)
}

// signing signs one image of a small app, beside the bare system calls that it takes to do so durably.
func (b *bench) signing() error {
	registry, bare := b.fresh(), b.fresh()
	if err := b.writeRegistry(registry, 1, 1, true); err != nil {
		return err
	}
	s, err := b.serve(registry)
	if err != nil {
		return err
	}
	image := s.mnt + "/app0/tags/0"
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return err
	}
	if err := os.Mkdir(bare+"/blobs", 0o755); err != nil {
		return err
	}
	n := 0
	err = b.compareTimes(20, "one sign through the control file, small app", "the same fsyncs and renames bare, and one P-384 signature", "≤ 1.3 ×",
		task{func() error { return errors.Join(b.otherCertificate(image), b.settle()) }, func() error { return b.signBy(image, "") }},
		task{b.settle, func() error {
			n++
			sum := sha512.Sum384([]byte(fmt.Sprint(n)))
			if _, err := ecdsa.SignASN1(rand.Reader, key, sum[:]); err != nil {
				return err
			}
			return replaceIndex(bare, fmt.Sprint(n))
		}})
	return errors.Join(err, b.stop(s))
}

// replaceIndex writes a blob and an index.json that names it, durably: blob, its directory, index.json, its directory.
func replaceIndex(dir, name string) error {
	return errors.Join(
		writeSynced(dir+"/blobs/"+name, 1500), syncOnly(dir+"/blobs"),
		writeSynced(dir+"/index.json.new", 300), os.Rename(dir+"/index.json.new", dir+"/index.json"), syncOnly(dir))
}

func writeSynced(name string, size int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, size))
	return errors.Join(err, f.Sync(), f.Close())
}

func syncOnly(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// command runs `irfs verify-image`, beside a program that does nothing.
func (b *bench) command() error {
	registry := b.fresh()
	if err := b.writeRegistry(registry, 1, 1, true); err != nil {
		return err
	}
	const times = 100
	many := func(line string) task {
		return task{nothing, func() error { return b.sh("for i in $(seq %d); do %s || exit; done", times, line) }}
	}
	var ours, theirs []float64
	for range b.runs {
		t, err := timed(many(fmt.Sprintf("%s/irfs verify-image -r %s -a app0 -d 0 -c %s/root-ca.pub > /dev/null", b.dir, registry, b.keys.dir)))
		if err != nil {
			return err
		}
		u, err := timed(many("/bin/true"))
		if err != nil {
			return err
		}
		ours, theirs = append(ours, t/times*1000), append(theirs, u/times*1000)
	}
	b.rows = append(b.rows, row{"`irfs verify-image`", "starting `/bin/true`", fmt.Sprintf("%+.2f ms", median(ours)-median(theirs)), "≤ + 3.6 ms",
		fmt.Sprintf("%.2f ms beside %.2f ms", median(ours), median(theirs))})
	return nil
}
