package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"irfs/layout/sample"
)

// TestPowerCut cuts the power of a disk with a registry on it, at any request that the disk was
// sent while commands changed the registry. A disk that loses power has all that was written before
// a flush that it answered, and of what was written since then any part, sector by sector.
//
// Each state is brought up as a machine would do it (the journal is replayed, by mount or by
// e2fsck). Then the registry has to be as one of the commands left it: as the last one that had
// been acknowledged by then, or as the one that was at work. That one is run again, has to succeed, and
// has to leave what it left the first time, and nothing else.
func TestPowerCut(t *testing.T) {
	house.Need(t, "fuse", "root", "loop", "mkfs.ext4", "e2fsck")
	// irfs needs no more of a file system than that a rename is done or not, and that fsync means
	// what fsync(2) says. So it has to do as well on an ext4 that does not write a file's data before the
	// rename that names it, nor guesses that a program has forgotten to (auto_da_alloc, ext4(5)).
	modes := map[string]string{"ordered": ""}
	if full {
		modes["writeback"] = "data=writeback,noauto_da_alloc"
	}
	for name, options := range modes {
		t.Run(name, func(t *testing.T) {
			p := &powerCut{options: options}
			p.record(t)
			p.replay(t)
		})
	}
}

// A powerCut is what was recorded of a disk, and what was done on it.
type powerCut struct {
	options  string // of mount
	archives string // the directory with the archives that are imported
	steps    []step
	start    platter
	requests []request
	states   []registryState // states[k] is after k steps
}

// A step changes the registry.
type step struct {
	name string
	app  string // that it changes; "" for all
	gc   bool   // it removes for good what is not in use
	// do does it. It calls done, once, as soon as it knows that it was done.
	do func(t *testing.T, registry string, done func()) error
	// How many requests there had been when it began, and when it was acknowledged.
	begin, end int
}

// irfsStep is a command, whose success is the acknowledgement.
func irfsStep(name, app string, args ...string) step {
	return step{name: name, app: app, do: func(t *testing.T, registry string, done func()) error {
		_, err := try("irfs", append([]string{args[0], "-r", registry}, args[1:]...)...)
		if err == nil {
			done()
		}
		return err
	}}
}

// gcStep collects in all apps.
func gcStep(name string) step {
	s := irfsStep(name, "", "gc", "--grace", "0s")
	s.gc = true
	return s
}

// mountStep does something to a mount of the registry.
func mountStep(name, app string, do func(mnt string) error) step {
	return step{name: name, app: app, do: func(t *testing.T, registry string, done func()) error {
		mnt := newDir(t, "mnt")
		if _, err := try("irfs", "mount", "-c", key("root-ca.pub"), "-s", key("vendor.pub.sig"), registry, mnt); err != nil {
			return err
		}
		defer unmount(t, mnt)
		err := do(mnt)
		if err == nil {
			done()
		}
		return err
	}}
}

func (p *powerCut) workload() []step {
	archive := func(name string) string { return filepath.Join(p.archives, name) }
	copyIn := func(from, to string) error {
		_, err := try("cp", archive(from), to)
		return err
	}
	return []step{
		irfsStep("sign-image", "web", append([]string{"sign-image", "-a", "web", "-d", "stable"}, signing()...)...),
		irfsStep("import", "fresh", "import", "-a", "fresh", archive("fresh.tar")),
		irfsStep("import into a new namespace", "library/deep", "import", "-a", "library/deep", archive("small.tar")),
		irfsStep("import --on-exist merge", "web", "import", "-a", "web", "--on-exist", "merge", archive("web.tar")),
		irfsStep("extract-sign-image", "library/signed",
			append([]string{"extract-sign-image", "-a", "library/signed", "-f", archive("small.tar")}, signing()...)...),
		irfsStep("extract-sign-image --on-exist merge", "old",
			append([]string{"extract-sign-image", "-a", "old", "--on-exist", "merge", "-f", archive("old.tar")}, signing()...)...),
		gcStep("gc"),
		mountStep("sign through a mount", "fresh", func(mnt string) error {
			_, err := try("sh", "-c", `echo "$1" > "$2"`, "sh", key("vendor.prv"), mnt+"/fresh/tags/1/sign")
			return err
		}),
		mountStep("import through a mount", "dropped", func(mnt string) error {
			return copyIn("small.tar", mnt+"/import/dropped.tar")
		}),
		mountStep("import through a mount, into a new namespace", "team/dropped", func(mnt string) error {
			if err := os.Mkdir(mnt+"/import/team", 0o755); err != nil {
				return err
			}
			return copyIn("old.tar", mnt+"/import/team/dropped.tar")
		}),
		irfsStep("sign-image of what is signed", "fresh", append([]string{"sign-image", "-a", "fresh", "-d", "1"}, signing()...)...),
		irfsStep("sign-image of one of three", "web", append([]string{"sign-image", "-a", "web", "-d", "next"}, signing()...)...),
		gcStep("gc again"),
	}
}

// seed writes the registry that it begins with, and the archives.
func (p *powerCut) seed(t *testing.T, registry string) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 1))
	noise := func(size int) sample.Layer {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return sample.Plain("noise", string(b))
	}
	motd := sample.Gzip("etc/motd", "hello\n")

	web := sample.New()
	one := web.Image(sample.Linux("amd64"), motd)
	web.Tag("stable", web.Index(one, web.Image(sample.Linux("arm64"), noise(20_000))))
	web.Tag("one", one)
	old := sample.New()
	old.Tag("1", old.Image(sample.Linux("amd64"), noise(10_000)))
	old.Blob("text/plain", []byte("nobody refers to this\n"))

	fresh := sample.New()
	fresh.Tag("1", fresh.Image(sample.Linux("amd64"), motd, noise(40_000), noise(4<<20+5_000))) // one that is large to irfs (layout/landing.go)
	small := sample.New()
	small.Tag("1", small.Image(sample.Linux("amd64"), noise(50_000)))
	merged := sample.New()
	merged.Tag("stable", merged.Index(merged.Image(sample.Linux("amd64"), noise(30_000)), merged.Image(sample.Linux("arm64"), motd)))
	merged.Tag("next", merged.Image(sample.Linux("amd64"), noise(200_000)))
	older := sample.New()
	older.Tag("1", older.Image(sample.Linux("amd64"), motd))
	older.Tag("2", older.Image(sample.Linux("arm64"), noise(70_000)))

	err := errors.Join(web.WriteDir(registry+"/web"), old.WriteDir(registry+"/old"))
	for name, l := range map[string]*sample.Layout{"fresh.tar": fresh, "small.tar": small, "web.tar": merged, "old.tar": older} {
		var tar bytes.Buffer
		err = errors.Join(err, l.WriteTar(&tar), os.WriteFile(filepath.Join(p.archives, name), tar.Bytes(), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// record runs the steps on a live disk.
func (p *powerCut) record(t *testing.T) {
	p.archives = newDir(t, "archives")
	content, image := newDir(t, "content"), filepath.Join(newDir(t, "image"), "ext4")
	p.seed(t, content+"/registry")
	makeDisk(t, image, content, 48)
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	p.start = newPlatter(data)

	disk, mnt := startDisk(t, image), newDir(t, "ext4")
	if err := mountDevice(disk.device, mnt, p.options); err != nil {
		t.Fatal(err)
	}
	mounted := true
	t.Cleanup(func() {
		if mounted {
			unmountDevice(mnt)
		}
		disk.stop(t)
	})
	registry := mnt + "/registry"
	now := func() registryState {
		s, err := lookAt(registry)
		if err == nil && len(s.left) > 0 {
			err = fmt.Errorf("left over: %q", s.left)
		}
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	p.steps, p.states = p.workload(), []registryState{now()}
	var lengths []int64
	for _, s := range p.steps {
		begin, end := disk.length(t), int64(-1)
		if err := s.do(t, registry, func() { end = disk.length(t) }); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		lengths = append(lengths, begin, end)
		p.states = append(p.states, now())
	}
	p.lies(t, disk, mnt)
	if err := unmountDevice(mnt); err != nil {
		t.Fatal(err)
	}
	mounted = false
	var upTo []int
	log, err := os.ReadFile(disk.log)
	if err != nil {
		t.Fatal(err)
	}
	p.requests, upTo = readLog(log, lengths)
	for i := range p.steps {
		s := &p.steps[i]
		s.begin, s.end = upTo[2*i], upTo[2*i+1]
		t.Logf("%s: requests %d to %d, %d of them flushes", s.name, s.begin, s.end, flushes(p.requests[s.begin:s.end]))
		if flushes(p.requests[s.begin:s.end]) == 0 && p.states[i].differs(p.states[i+1]) != "" {
			t.Errorf("%s was acknowledged, and nothing was flushed", s.name)
		}
	}
	p.faithful(t, disk)
	disk.stop(t)
}

// lies looks whether this disk would notice a program that forgets to sync.
func (p *powerCut) lies(t *testing.T, disk *liveDisk, mnt string) {
	t.Helper()
	const mark = "written, and not synced"
	written := func(from int64) bool {
		return slices.ContainsFunc(disk.since(t, from), func(r request) bool { return bytes.Contains(r.data, []byte(mark)) })
	}
	before := disk.length(t)
	f, err := os.Create(mnt + "/unsynced")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(mark); err != nil {
		t.Fatal(err)
	}
	if written(before) {
		t.Error("the disk has what nobody synced: it would not tell whether irfs does")
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if requests := disk.since(t, before); !written(before) || requests[len(requests)-1].off != flushed {
		t.Error("a file was synced, and the disk does not have it, flushed")
	}
}

// faithful looks whether the log makes of the disk's content what that became.
func (p *powerCut) faithful(t *testing.T, disk *liveDisk) {
	t.Helper()
	data, err := os.ReadFile(disk.mnt + "/disk")
	if err != nil {
		t.Fatal(err)
	}
	end := slices.Clone(p.start)
	for _, r := range p.requests {
		end.write(r, always)
	}
	if !end.equal(data) {
		t.Error("the log does not tell what the disk holds")
	}
}

func always() bool { return true }

// A cut is a state of the disk after so many requests.
type cut struct {
	at   int
	loss uint64 // the seed of what is lost of that which was not flushed; kept: nothing is
	fsck bool   // e2fsck brings it up, and not mount
}

const (
	kept    = 0
	allLost = 1
)

func (c cut) String() string {
	s := fmt.Sprintf("after request %d", c.at)
	switch c.loss {
	case kept:
	case allLost:
		s += ", with nothing of what was not flushed"
	default:
		s += fmt.Sprintf(", with what seed %d leaves of that which was not flushed", c.loss)
	}
	if c.fsck {
		s += ", brought up by e2fsck"
	}
	return s
}

// cuts lists them in order.
func (p *powerCut) cuts(seed uint64) []cut {
	var all []cut
	add := func(at int, loss uint64) { all = append(all, cut{at, loss, len(all)%3 == 2}) }
	// After a flush the disk is what it was before.
	var writes []int
	for i, r := range p.requests {
		if r.off != flushed {
			writes = append(writes, i+1)
		}
	}
	for _, s := range p.steps {
		// When success is told nothing that it needs may be lost.
		add(s.end, kept)
		add(s.end, allLost)
		// This is where the new state comes to be.
		if last := last(writes, s.end); !full && last > s.begin {
			add(last, kept)
			add(last, seed+uint64(last))
		}
	}
	if full {
		for i, at := range writes {
			add(at, kept)
			add(at, allLost)
			add(at, seed+uint64(2*i))
			add(at, seed+uint64(2*i+1))
		}
		return sorted(all)
	}
	const samples = 24
	for i := range samples {
		at := writes[(2*i+1)*len(writes)/(2*samples)]
		switch i % 4 {
		case 0, 2:
			add(at, seed+uint64(i))
		case 1:
			add(at, allLost)
		case 3:
			add(at, kept)
		}
	}
	return sorted(all)
}

// last is the last of the sorted numbers that is not over max, 0 for none.
func last(numbers []int, max int) int {
	found, ok := slices.BinarySearch(numbers, max)
	switch {
	case ok:
		return max
	case found == 0:
		return 0
	}
	return numbers[found-1]
}

func sorted(cuts []cut) []cut {
	slices.SortStableFunc(cuts, func(a, b cut) int { return a.at - b.at })
	return cuts
}

// replay looks at one cut after another.
func (p *powerCut) replay(t *testing.T) {
	seed := rand.Uint64()>>1 | 1<<20 // far from kept and allLost
	cuts := p.cuts(seed)
	t.Logf("%d requests, %d of them flushes; seed %d", len(p.requests), flushes(p.requests), seed)
	var (
		work    errgroup.Group
		mu      sync.Mutex
		failed  int
		between = map[string]int{}
	)
	work.SetLimit(4) // most of the time is waiting
	next := 0
	durable, pending := slices.Clone(p.start), []request(nil)
	for _, c := range cuts {
		for ; next < c.at; next++ {
			if r := p.requests[next]; r.off != flushed {
				pending = append(pending, r)
				continue
			}
			for _, r := range pending {
				durable.write(r, always)
			}
			pending = nil
		}
		disk := slices.Clone(durable)
		if c.loss != kept && len(pending) == 0 { // the same again
			continue
		}
		keep := c.keep()
		for _, r := range pending {
			disk.write(r, keep)
		}
		mu.Lock()
		enough := failed >= 10
		mu.Unlock()
		if enough {
			break
		}
		work.Go(func() error {
			found, err := p.check(t, c, disk)
			mu.Lock()
			defer mu.Unlock()
			between[found]++
			if err != nil {
				failed++
				t.Errorf("%v (%s): %v", c, p.tell(c.at), err)
			}
			return nil
		})
	}
	work.Wait()
	t.Logf("found after cuts: %v", between)
}

// keep gives what says of each sector whether it was not lost.
func (c cut) keep() func() bool {
	switch c.loss {
	case kept:
		return always
	case allLost:
		return func() bool { return false }
	}
	random := rand.New(rand.NewPCG(c.loss, 37))
	share := random.Float64()
	return func() bool { return random.Float64() < share }
}

// done gives how many steps had been acknowledged after so many requests, and whether
// the next had begun.
func (p *powerCut) done(at int) (done int, begun bool) {
	for done < len(p.steps) && p.steps[done].end <= at {
		done++
	}
	return done, done < len(p.steps) && p.steps[done].begin < at
}

func (p *powerCut) tell(at int) string {
	done, begun := p.done(at)
	switch {
	case begun:
		return "in " + p.steps[done].name
	case done == 0:
		return "before everything"
	}
	return "after " + p.steps[done-1].name
}

// check brings up a disk after a cut, and says whether it found the old state or the new.
func (p *powerCut) check(t *testing.T, c cut, disk platter) (found string, err error) {
	file, err := disk.file()
	if err != nil {
		return "", err
	}
	defer file.Close()
	device, err := attach(file)
	if err != nil {
		return "", err
	}
	defer device.Close()
	if c.fsck {
		if err := preen(device.Name()); err != nil {
			return "", err
		}
	}
	mnt := newDir(t, "ext4")
	if err := mountDevice(device, mnt, p.options); err != nil {
		return "", err
	}
	found, err = p.inspect(t, c, mnt+"/registry")
	if err := unmountDevice(mnt); err != nil {
		unix.Unmount(mnt, unix.MNT_DETACH)
		return found, fmt.Errorf("unmount: %w", err)
	}
	if err != nil {
		return found, err
	}
	_, err = try("e2fsck", "-fn", device.Name())
	return found, err
}

// preen replays the journal and clears what had no name any more (e2fsck(8): exit code 1). If more
// had to be done, the disk is not one that ext4 is made for.
func preen(device string) error {
	_, err := try("e2fsck", "-fp", device)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return nil
	}
	return err
}

// inspect looks at a registry after a cut, goes on with what was at work, and looks again.
func (p *powerCut) inspect(t *testing.T, c cut, registry string) (found string, err error) {
	done, begun := p.done(c.at)
	was, err := lookAt(registry)
	if err != nil {
		return "broken", err
	}
	found = "old"
	diff := p.states[done].differs(was)
	if diff != "" && begun {
		found, diff = "new", p.states[done+1].differs(was)
	}
	if diff != "" {
		return "neither", errors.New(diff)
	}

	if !begun && done > 0 && p.steps[done-1].gc && len(was.spare) > 0 {
		return found, fmt.Errorf("gc removed these, and they are back: %q", was.spare)
	}

	next := gcStep("gc at last")
	if done < len(p.steps) {
		next = p.steps[done]
	}
	if err := next.do(t, registry, func() {}); err != nil {
		return found, fmt.Errorf("and then: %w", err)
	}
	is, err := lookAt(registry)
	if err != nil {
		return found, fmt.Errorf("after another %s: %w", next.name, err)
	}
	if diff := p.states[min(done+1, len(p.steps))].differs(is); diff != "" {
		return found, fmt.Errorf("after another %s: %s", next.name, diff)
	}
	for _, dir := range is.left {
		// Another app's goes with the next change of that.
		if next.app == "" || filepath.Dir(dir) == "." || filepath.Dir(dir) == next.app {
			return found, fmt.Errorf("another %s leaves %s", next.name, dir)
		}
	}
	if _, err := try("irfs", "gc", "-r", registry, "--grace", "0s"); err != nil {
		return found, err
	}
	is, err = lookAt(registry)
	if err == nil && len(is.left)+len(is.spare) > 0 {
		err = fmt.Errorf("gc leaves %q, %q", is.left, is.spare)
	}
	return found, err
}

// A registryState is what a registry holds.
type registryState struct {
	files map[string]string // of the apps, as sample.Tree tells them, but for spare
	tags  map[string]string // digests by app and tag
	spare []string          // blobs that nothing refers to
	left  []string          // working directories
}

// lookAt reads a registry, with no code of irfs. It is an error if there is anything that is neither an app
// nor a namespace, or an app is not whole, or any blob of one, whether in use or not, does not
// hash to its name.
func lookAt(registry string) (registryState, error) {
	s := registryState{files: map[string]string{}, tags: map[string]string{}}
	err := filepath.WalkDir(registry, func(path string, e fs.DirEntry, err error) error {
		name, _ := filepath.Rel(registry, path)
		switch {
		case err != nil:
			return err
		case !e.IsDir():
			return fmt.Errorf("%s: this is no app's", name)
		case e.Name() == ".irfs":
			s.left = append(s.left, name)
			return fs.SkipDir
		case name == ".":
			return nil
		}
		for _, part := range []string{"oci-layout", "index.json", "blobs"} {
			if _, err := os.Lstat(path + "/" + part); err == nil {
				if err := s.app(name, path); err != nil {
					return err
				}
				return fs.SkipDir
			}
		}
		return nil
	})
	return s, err
}

// app adds an app.
func (s *registryState) app(name, dir string) error {
	text, err := os.ReadFile(dir + "/oci-layout")
	if err != nil {
		return err
	}
	if string(text) != `{"imageLayoutVersion":"1.0.0"}` {
		return fmt.Errorf("%s/oci-layout: %q", name, text)
	}
	tags, reached, err := reach(dir)
	if err != nil {
		return err
	}
	for tag, digest := range tags {
		s.tags[name+":"+tag] = digest
	}
	tree, err := sample.Tree(dir)
	if err != nil {
		return err
	}
	for _, file := range slices.Sorted(maps.Keys(tree)) {
		below, _, _ := strings.Cut(file, "/")
		digest, isBlob := strings.CutPrefix(file, "blobs/sha256/")
		digest = "sha256:" + digest
		switch {
		case below == ".irfs":
			if file == below {
				s.left = append(s.left, name+"/"+file)
			}
		case isBlob && !reached[digest]:
			if _, err := hashed(dir+"/"+file, digest); err != nil {
				return err
			}
			s.spare = append(s.spare, name+"/"+file)
		case isBlob, slices.Contains([]string{".", "oci-layout", "index.json", "blobs", "blobs/sha256"}, file):
			s.files[name+"/"+file] = tree[file]
		default:
			return fmt.Errorf("%s/%s: no part of a layout", name, file)
		}
	}
	return nil
}

// differs tells where other differs from s, in what is in use; "" for nowhere.
func (s registryState) differs(other registryState) string {
	if !maps.Equal(s.tags, other.tags) {
		return fmt.Sprintf("the tags are\n\t%v\nand were to be\n\t%v", other.tags, s.tags)
	}
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if is, ok := other.files[name]; !ok || is != s.files[name] {
			return fmt.Sprintf("%s: is\n\t%.600s\nand was to be\n\t%.600s", name, is, s.files[name])
		}
	}
	for name := range other.files {
		if _, ok := s.files[name]; !ok {
			return name + ": was not to be there"
		}
	}
	return ""
}
