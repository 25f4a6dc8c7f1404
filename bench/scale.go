package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// mounting mounts a registry of many apps beside an empty one.
func (b *bench) mounting() error {
	large, empty := b.fresh(), b.fresh()
	apps, images := b.sized(1000, 10), b.sized(100, 2)
	if err := b.writeRegistry(large, apps, images, false); err != nil {
		return err
	}
	memory := map[string]float64{}
	mount := func(registry string) task {
		return task{nothing, func() error {
			s, err := b.serve(registry)
			if err != nil {
				return err
			}
			kb, err := procNumber(s.pid, "status", "VmRSS:")
			memory[registry] = float64(kb) / 1024
			return errors.Join(err, b.stop(s))
		}}
	}
	if err := b.compareTimes(5*b.runs, fmt.Sprintf("mounting and unmounting a registry of %d apps × %d images", apps, images), "the same of an empty one", "≤ 1.2 ×", mount(large), mount(empty)); err != nil {
		return err
	}
	b.rows = append(b.rows, row{"memory of that mount", "that of an empty one", fmt.Sprintf("%+.1f MB", memory[large]-memory[empty]), "≤ 30 MB more", ""})

	s, err := b.serve(large)
	if err != nil {
		return err
	}
	return errors.Join(b.walking(s.mnt, min(apps, 100)), b.stop(s))
}

// walking walks so many apps of a mount, which are alike, beside bindfs on a tree with as many entries.
func (b *bench) walking(mnt string, apps int) error {
	count, directories, err := entries(mnt + "/app0")
	if err != nil {
		return err
	}
	count, directories = apps*count, apps*directories
	plain, bind := b.fresh(), b.fresh()
	// What there is to walk are directories: of each there are as many, with as many names in it, which here are those of few files.
	file := ""
	for made := 0; made < count; {
		dir := fmt.Sprintf("%s/%d", plain, made)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		for made++; made%(count/directories) != 0 && made < count; made++ {
			name := fmt.Sprintf("%s/%d", dir, made)
			if file == "" || os.Link(file, name) != nil { // as many as a file may have
				file = name
				if err := os.WriteFile(file, nil, 0o644); err != nil {
					return err
				}
			}
		}
	}
	if err := b.sh("bindfs %s %s", plain, bind); err != nil {
		return err
	}
	forget := func() error { return os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0) }
	find := func(dirs string) task {
		return task{forget, func() error { return b.sh("find %s > /dev/null", dirs) }}
	}
	var dirs []string
	for i := range apps {
		dirs = append(dirs, fmt.Sprintf("%s/app%d", mnt, i))
	}
	err = b.rate(fmt.Sprintf("`find` of %d apps of it: %d entries, %d of them directories", apps, count, directories), "`find` over bindfs on as many", "≥ 1.0 ×",
		find(strings.Join(dirs, " ")), find(bind))
	return errors.Join(err, b.sh("fusermount3 -u %s", bind))
}

func entries(dir string) (n, directories int, err error) {
	err = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		n++
		if e != nil && e.IsDir() {
			directories++
		}
		return err
	})
	return n, directories, err
}

// largeApp writes a registry of one app with so many manifests, of which the one with the tag is there. It gives the path of index.json.
func (b *bench) largeApp(images int) (registry, tag, index string, err error) {
	registry = b.fresh()
	if err := b.writeRegistry(registry, 1, images, false); err != nil {
		return "", "", "", err
	}
	s, err := b.signed(images / 2)
	if err == nil {
		_, err = b.writeImage(registry+"/app0", "", s, true)
	}
	return registry, fmt.Sprint("/app0/tags/", images/2), registry + "/app0/index.json", err
}

// oneLargeApp reads and signs in an app with 100,000 manifests.
func (b *bench) oneLargeApp() error {
	images := b.sized(100_000, 200)
	registry, tag, index, err := b.largeApp(images)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(index)
	if err != nil {
		return err
	}
	read := task{nothing, func() error {
		text, err := os.ReadFile(index)
		sha256.Sum256(text)
		if !json.Valid(text) {
			err = errors.New("index.json is not valid")
		}
		return err
	}}
	var m *served
	again := func() error {
		if m != nil {
			if err := b.stop(m); err != nil {
				return err
			}
		}
		m, err = b.serve(registry)
		return err
	}
	cat := func() error {
		var buf [64]byte
		text, err := readWhole(m.mnt+tag+"/verify", buf[:])
		if err == nil && string(text) != "verified\n" {
			err = fmt.Errorf("%s: %q", tag, text)
		}
		return err
	}
	what := fmt.Sprintf("one app with %d manifests in an index.json of %.0f MB: ", images, float64(len(text))/1e6)
	const beside = "reading and hashing index.json once, and `json.Valid`"
	err = b.compare(what+"`ls tags`", beside, "≤ 4 ×", task{again, func() error { return b.sh("ls %s/app0/tags > /dev/null", m.mnt) }}, read)
	if err == nil {
		err = b.compare(what+"`cat` of one tag's `verify`, the first", beside, "≤ 4 ×", task{again, cat}, read)
	}
	if err == nil {
		b.rest()
		err = b.compare(what+"the same again", beside, "≤ 0.1 ×", task{cat, cat}, read)
	}
	if err == nil {
		err = b.signingInLargeApp(what, m.mnt+tag, text)
	}
	if m != nil {
		err = errors.Join(err, b.stop(m))
	}
	return err
}

// signingInLargeApp signs an image in an app whose index.json is as large as text.
func (b *bench) signingInLargeApp(what, image string, text []byte) error {
	return b.compare(what+"signing one image", "writing and syncing a file of that size", "≤ 2 ×",
		task{func() error { return errors.Join(b.otherCertificate(image), b.settle(), b.rest()) }, func() error { return b.signBy(image, "") }},
		task{b.settle, func() error {
			f, err := os.Create(b.path("written"))
			if err != nil {
				return err
			}
			_, err = f.Write(text)
			return errors.Join(err, f.Sync(), f.Close())
		}})
}

// A point of the plot: a cost, by how many images there are.
type point struct {
	images int
	cost   float64 // seconds
}

// growth measures what things cost in registries of more and more images.
func (b *bench) growth() error {
	largest := b.sized(100_000, 1000)
	series := map[string][]point{}
	for images := 100; images <= largest; images *= 10 {
		if err := b.growthAt(images, images == largest, series); err != nil {
			return err
		}
	}
	b.series = series
	return nil
}

func (b *bench) growthAt(images int, last bool, series map[string][]point) error {
	registry, each := b.fresh(), 100
	if err := b.writeRegistry(registry, images/each, each, true); err != nil {
		return err
	}
	var s *served
	steps := []struct {
		name string
		per  int
		do   func() error
	}{
		{"mount", 1, func() (err error) { s, err = b.serve(registry); return err }},
		{"walk, for each image", each, func() error { return b.sh("find %s/app0 > /dev/null", s.mnt) }},
		{"first sweep, for each image", images, func() error { return readAll(s.mnt, images/each, each, "verify", "verified\n") }},
		{"second sweep, for each image", images, func() error { return readAll(s.mnt, images/each, each, "verify", "verified\n") }},
		{"sign one", 1, func() error { return errors.Join(b.otherCertificate(s.mnt + "/app0/tags/0")) }},
	}
	for _, step := range steps {
		start := time.Now()
		if err := step.do(); err != nil {
			return fmt.Errorf("%s with %d images: %w", step.name, images, err)
		}
		series[step.name] = append(series[step.name], point{images, time.Since(start).Seconds() / float64(step.per)})
	}
	if last {
		kb, err := procNumber(s.pid, "status", "VmRSS:")
		if err != nil {
			return err
		}
		b.rows = append(b.rows, row{fmt.Sprintf("memory of the mount after all of %d images were read", images), "their number",
			fmt.Sprintf("%.2f KB each", float64(kb)/float64(images)), "≤ 2 KB each", fmt.Sprintf("%d MB in all", kb/1024)})
	}
	return errors.Join(b.stop(s), os.RemoveAll(registry))
}
