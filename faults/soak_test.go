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
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"irfs/internal/irfstest"
	"irfs/layout/sample"
)

// What the soak allows.
const (
	// soakInD is how long a task may be in uninterruptible sleep in one piece. A client that
	// was killed sleeps so until irfs answers; fsync on a busy machine takes seconds.
	soakInD = 10 * time.Second
	// soakEnd is how long clients may take to end when the load stops: irfs waits 30 s for a lock.
	soakEnd = 60 * time.Second
	// soakSettle is how long the daemon has to be as it was before the load: what was closed is
	// released after the close returned.
	soakSettle = 15 * time.Second
	// soakGrowth is how much larger the resident memory may be in the last third of the run
	// than in the first, on average, if that is also more than soakSlack. The garbage
	// collector lets the heap double between two collections, so single samples say nothing.
	soakGrowth = 1.25
	soakSlack  = 16 << 20
	// soakThreads is how many threads the daemon may have more after the load than before. Go
	// keeps the threads that it made for calls that block, so their number is that of the most calls
	// that ever blocked at once, which chance raises now and then. It has nothing to do with time:
	// a thread leaked by one call in a thousand is far over this.
	soakThreads = 16
	// soakPipes is how many pipes with both ends in the daemon it may have. go-fuse splices
	// what it answers through pipes that it keeps, as many as there ever were such answers at
	// once (splice/pool.go). All other descriptors have to be as many as before.
	soakPipes = 12
)

const (
	soakKeeps = 3 // apps that only irfs changes
	soakTorns = 2 // apps that other tools change too, without the lock
	soakTags  = 4 // of each
	soakHold  = 4 // apps that an importer leaves there before it removes the oldest
)

// soakImage is one of the archives that are imported.
type soakImage struct {
	archive, tag, digest string
}

// soak is a registry with a mount under load.
type soak struct {
	t                  *testing.T
	registry, mnt, dir string
	daemon             int    // its process id
	waiting            string // the file with the number of requests that the kernel waits for

	images  []soakImage
	clash   soakImage // has the tag of images[0], and another digest
	broken  []string  // archives
	vendors []soakVendor

	mu       sync.Mutex
	clients  map[int]bool // process groups
	errnos   map[string]int
	samples  []soakSample
	tags     [soakKeeps][soakTags]keptTag
	imported map[string]map[string]string // of each app in in/: what was acknowledged, tag to digest
	serial   atomic.Int64

	reads, signs, imports, refused, kills, stops, outside, collected atomic.Int64
}

// soakVendor is a key as flags of sign-image, and its public half.
type soakVendor struct {
	flags  []string
	public []byte
}

// keptTag is a tag of an app that only irfs changes. Who signs it holds the mutex; vendor is
// the one whose signature was acknowledged, or nil if a signer was killed since.
type keptTag struct {
	sync.Mutex
	vendor *soakVendor
}

// soakSample is what the daemon used at a time.
type soakSample struct {
	rss, descriptors, threads int
}

// TestSoak puts one mount under everything at once, for as long as IRFS_SOAK says (4 s if it
// says nothing): readers, signers, importers, other tools, `irfs gc --grace 0s`, and a
// killer of clients. Then nothing has been lost, and the daemon is as it was:
// it has leaked no descriptor, no thread, no memory, no request, and nothing on disk.
//
// The apps that tools without the lock change are collected by him who runs these tools, in
// between: while they run, the grace is what protects what they are copying.
func TestSoak(t *testing.T) {
	house.Need(t, "fuse", "root", "bash", "tar", "rsync", "skopeo", "umoci")
	lasts := 4 * time.Second
	if text := os.Getenv("IRFS_SOAK"); text != "" {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatalf("IRFS_SOAK: %v", err)
		}
	}
	s := newSoak(t)
	s.load(lasts / 5)
	s.settle(nil)
	before, threads := s.descriptors(), s.now().threads
	s.samples = nil

	s.load(lasts - lasts/5)
	s.settle(before)
	after := s.now()
	third := len(s.samples) / 3
	first, last := meanRSS(s.samples[:third]), meanRSS(s.samples[len(s.samples)-third:])
	if over := last - first; over > soakSlack && float64(last) > soakGrowth*float64(first) {
		t.Errorf("resident memory has grown: %d MiB in the first third, %d MiB in the last", first>>20, last>>20)
	}
	if after.threads > threads+soakThreads {
		t.Errorf("%d threads before the load, %d after it", threads, after.threads)
	}
	s.nothingLost()
	most := slices.MaxFunc(s.samples, func(a, b soakSample) int { return a.descriptors - b.descriptors })
	t.Logf("%v: %d reads, %d signatures, %d imports (%d refused), %d outside changes, %d gc runs, %d clients killed, %d stopped; RSS %d MiB in the first third, %d MiB in the last, at most %d MiB; %d descriptors before, %d after, at most %d; %d threads before, %d after; errors of clients: %v",
		lasts, s.reads.Load(), s.signs.Load(), s.imports.Load(), s.refused.Load(), s.outside.Load(), s.collected.Load(), s.kills.Load(), s.stops.Load(),
		first>>20, last>>20, s.field("VmHWM:")>>10, len(before), after.descriptors, most.descriptors, threads, after.threads, s.errnos)
}

func newSoak(t *testing.T) *soak {
	dir := newDir(t, "soak")
	s := &soak{t: t, dir: dir, registry: dir + "/registry", clients: map[int]bool{}, errnos: map[string]int{}, imported: map[string]map[string]string{}}
	for _, name := range []string{"registry", "registry/keep", "registry/torn", "registry/new", "registry/in", "away", "connections"} {
		if err := os.Mkdir(dir+"/"+name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.vendors = []soakVendor{{flags: signing()}, {flags: []string{"-v", dir + "/other.prv", "-s", dir + "/other.pub.sig", "-c", key("root-ca.pub")}}}
	run(t, "irfs", "gen-key", "-o", dir+"/other.prv")
	run(t, "irfs", "extract-public", "-i", dir+"/other.prv", "-o", dir+"/other.pub")
	run(t, "irfs", "sign", "-k", key("root-ca.prv"), "-f", dir+"/other.pub", "-s", dir+"/other.pub.sig")
	for i, name := range []string{key("vendor.pub"), dir + "/other.pub"} {
		public, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s.vendors[i].public = public
	}
	for i := range soakKeeps + soakTorns {
		app := fmt.Sprintf("keep/%d", i)
		if i >= soakKeeps {
			app = fmt.Sprintf("torn/%d", i-soakKeeps)
		}
		l := sample.New()
		for j := range soakTags {
			l.Tag(fmt.Sprintf("t%d", j), l.Image(sample.Linux("amd64"), sample.Gzip("etc/motd", fmt.Sprint(i, j)), sample.Plain("bin/tool", noise(256<<10))))
		}
		if err := l.WriteDir(s.registry + "/" + app); err != nil {
			t.Fatal(err)
		}
		for j := range soakTags {
			run(t, "irfs", append([]string{"sign-image", "-r", s.registry, "-a", app, "-d", fmt.Sprintf("t%d", j)}, s.vendors[0].flags...)...)
			if i < soakKeeps {
				s.tags[i][j].vendor = &s.vendors[0]
			}
		}
	}
	l := sample.New()
	l.Tag("t", l.Image(sample.Linux("arm64"), sample.Gzip("etc/motd", "copied"), sample.Plain("bin/tool", noise(1<<20))))
	if err := l.WriteDir(dir + "/source"); err != nil {
		t.Fatal(err)
	}
	for i, size := range []int{1 << 10, 100 << 10, 2 << 20, 16 << 20} {
		s.images = append(s.images, s.image(fmt.Sprintf("image%d", i), fmt.Sprintf("v%d", i), size))
	}
	s.clash = s.image("clash", s.images[0].tag, 1<<20)
	whole, err := os.ReadFile(s.images[2].archive)
	if err != nil {
		t.Fatal(err)
	}
	wrong := bytes.Clone(whole)
	wrong[len(wrong)/2] ^= 1
	for name, data := range map[string][]byte{"cut.tar": whole[:len(whole)/2], "wrong.tar": wrong, "text.tar": []byte(strings.Repeat("no archive\n", 1000))} {
		s.broken = append(s.broken, dir+"/"+name)
		if err := os.WriteFile(dir+"/"+name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.mnt = mount(t, s.registry, "-o", "allow_other")
	s.daemon = serverOf(t, s.mnt)
	s.waiting = waitingFile(t, s.mnt, dir+"/connections")
	return s
}

func (s *soak) image(name, tag string, size int) soakImage {
	l := sample.New()
	d := l.Image(sample.Linux("amd64"), sample.Gzip("etc/motd", name), sample.Plain("bin/tool", noise(size)))
	l.Tag(tag, d)
	f, err := os.Create(s.dir + "/" + name + ".tar")
	if err == nil {
		err = errors.Join(l.WriteTar(f), f.Close())
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return soakImage{f.Name(), tag, string(d.Digest)}
}

// noise is bytes that do not compress.
func noise(size int) string {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(size)}).Read(b)
	return string(b)
}

// serverOf finds the process that serves a mount.
func serverOf(t testing.TB, mnt string) int {
	t.Helper()
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		line, err := os.ReadFile(name)
		exe, _ := os.Readlink(filepath.Dir(name) + "/exe")
		if err == nil && exe == house.Irfs() && slices.Contains(strings.Split(string(line), "\x00"), mnt) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			return pid
		}
	}
	t.Fatalf("no process serves %s", mnt)
	return 0
}

// waitingFile is where the kernel says how many requests to a mount were not answered yet
// (Linux, Documentation/filesystems/fuse.rst). dir is for the file system that says so.
func waitingFile(t testing.TB, mnt, dir string) string {
	t.Helper()
	if err := unix.Mount("fusectl", dir, "fusectl", 0, ""); err != nil {
		t.Fatalf("fusectl: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	var st unix.Stat_t
	if err := unix.Stat(mnt, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s/%d/waiting", dir, unix.Minor(st.Dev))
}

// load has everybody at work for a while, and waits until they have ended.
func (s *soak) load(lasts time.Duration) {
	stop := make(chan bool)
	var all sync.WaitGroup
	for _, work := range []func(){
		s.read, s.read, s.read, s.sign, s.sign, s.signTorn, s.importer(), s.importer(), s.importer(), s.writeOutside, s.comeAndGo, s.collect,
	} {
		all.Go(func() {
			for !s.t.Failed() {
				select {
				case <-stop:
					return
				default:
					work()
				}
			}
		})
	}
	watched := make(chan bool)
	go func() {
		s.watch(stop)
		close(watched)
	}()
	for end := time.Now().Add(lasts); time.Now().Before(end) && !s.t.Failed(); {
		time.Sleep(50 * time.Millisecond)
	}
	close(stop)
	ended := make(chan bool)
	go func() {
		all.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(soakEnd):
		s.t.Errorf("after %v without new load these clients have not ended:\n%s", soakEnd, s.stuck())
		s.mu.Lock()
		for group := range s.clients {
			unix.Kill(-group, unix.SIGKILL)
		}
		s.mu.Unlock()
		s.t.FailNow()
	}
	<-watched
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// outcome is what came of a client.
type outcome string

const (
	done    outcome = "done"
	refused outcome = "refused" // with an error that was expected
	killed  outcome = "killed"  // before it ended: nobody knows what was done
	failed  outcome = "failed"  // and so did the test
)

// client runs a client of the mount or of the registry, kills one in eight, and stops one in twelve for a moment,
// which must not disturb it.
// Each line that it says on standard error has to have one of the given errors in it.
func (s *soak) client(cmd *exec.Cmd, expected ...string) outcome {
	var errs bytes.Buffer
	cmd.Stderr = &errs
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		s.t.Error(err)
		return failed
	}
	pid := cmd.Process.Pid
	s.mu.Lock()
	s.clients[pid] = true
	s.mu.Unlock()
	wasKilled := false
	ended := make(chan bool)
	go func() {
		defer close(ended)
		for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
	}()
	after := time.After(time.Duration(rand.ExpFloat64() * float64(40*time.Millisecond)))
	switch rand.IntN(24) {
	case 0, 1, 2:
		select {
		case <-ended:
		case <-after:
			// It was not waited for yet, so its process id is still its own.
			unix.Kill(-pid, unix.SIGKILL)
			s.kills.Add(1)
			wasKilled = true
		}
	case 3, 4:
		select {
		case <-ended:
		case <-after:
			unix.Kill(-pid, unix.SIGSTOP)
			time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
			unix.Kill(-pid, unix.SIGCONT)
			s.stops.Add(1)
		}
	}
	<-ended
	if wasKilled {
		// Of a group, its head may have ended by itself.
		unix.Kill(-pid, unix.SIGKILL)
	}
	err := cmd.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, pid)
	switch {
	case wasKilled:
		return killed
	case err == nil && errs.Len() == 0:
		return done
	case errs.Len() == 0:
		s.t.Errorf("%q: %v, and said nothing", cmd.Args, err)
		return failed
	}
	for line := range strings.Lines(errs.String()) {
		i := slices.IndexFunc(expected, func(e string) bool { return strings.Contains(line, e) })
		if i < 0 {
			s.t.Errorf("%q: %v\n%s", cmd.Args, err, errs.String())
			return failed
		}
		s.errnos[expected[i]]++
	}
	if err == nil {
		return done
	}
	return refused
}

func (s *soak) bash(script string, args ...string) *exec.Cmd {
	return command("bash", append([]string{"-c", script, "bash"}, args...)...)
}

// What readers may be told of what comes and goes while they read: of a file that is not
// there any more, and of a directory. The rest is what tar says to that.
var gone = []string{
	"No such file or directory", "Stale file handle",
	"file changed as we read it", "File removed before we read it", "padding with zeros", "Exiting with failure status due to previous errors",
}

// read reads once, in one of many ways.
func (s *soak) read() {
	kept := fmt.Sprintf("%s/keep/%d/tags/t%d", s.mnt, rand.IntN(soakKeeps), rand.IntN(soakTags))
	torn := fmt.Sprintf("%s/torn/%d/tags/t%d", s.mnt, rand.IntN(soakTorns), rand.IntN(soakTags))
	var came outcome
	switch rand.IntN(10) {
	case 0, 1:
		// These are always signed, and nothing that is written beside may show through.
		came = s.client(s.bash(`for f in verify verify-full; do read -r word < $1/$f && [ "$word" = verified ] || { echo "$1/$f: $word" >&2; exit 1; }; done`, kept))
	case 2:
		came = s.client(s.bash(`cat $1/reason $1/status.json $1/manifest.json $1/config.json $1/digest $1/sign > /dev/null`, kept))
	case 3:
		came = s.client(s.bash(`cat $1/verify $1/verify-full $1/reason $1/status.json > /dev/null`, torn), gone...)
	case 4:
		came = s.client(s.bash(`ls -lR $1 > /dev/null`, s.mnt), gone...)
	case 5:
		came = s.client(s.bash(`find $1 -type f -size +1 > /dev/null`, s.mnt), gone...)
	case 6:
		came = s.client(s.bash(`grep -r corrupt $1/torn $1/new $1/keep > /dev/null; [ $? -lt 2 ] || exit 2`, s.mnt), gone...)
	case 7:
		came = s.client(s.bash(`set -o pipefail; tar cf - -C $1 keep/$2 | wc -c > /dev/null`, s.mnt, fmt.Sprint(rand.IntN(soakKeeps))), gone...)
	case 8:
		came = s.client(s.bash(`cat $1/in/*/tags/*/verify-full > /dev/null`, s.mnt), gone...)
	case 9:
		cmd := command("irfs", "status", "--full", s.mnt)
		if rand.IntN(2) == 0 {
			cmd = command("irfs", "verify-image", "-r", s.registry, "-a", "keep/0", "-d", "t0", "-c", key("root-ca.pub"))
		}
		came = s.client(cmd)
	}
	if came == done || came == refused {
		s.reads.Add(1)
	}
}

// sign signs a tag that only irfs changes, with the vendor who did not sign it last: each is a
// change. Nothing may refuse it, and an acknowledged signature is there at once.
func (s *soak) sign() {
	i, j := rand.IntN(soakKeeps), rand.IntN(soakTags)
	tag := &s.tags[i][j]
	if !tag.TryLock() {
		return
	}
	defer tag.Unlock()
	vendor := &s.vendors[0]
	if tag.vendor == vendor {
		vendor = &s.vendors[1]
	}
	dir := fmt.Sprintf("%s/keep/%d/tags/t%d", s.mnt, i, j)
	cmd := s.bash(`echo "$1" > $2/sign`, strings.Join(vendor.flags, " "), dir)
	if rand.IntN(3) == 0 {
		cmd = command("irfs", append([]string{"sign-image", "-r", s.registry, "-a", fmt.Sprintf("keep/%d", i), "-d", fmt.Sprintf("t%d", j)}, vendor.flags...)...)
	}
	tag.vendor = nil
	if s.client(cmd) != done {
		return // killed, so it is old or new
	}
	tag.vendor = vendor
	s.signs.Add(1)
	if public, err := os.ReadFile(dir + "/vendor.pub"); err != nil || !bytes.Equal(public, vendor.public) {
		s.t.Errorf("%s: it was not signed last by who was told so (%v)", dir, err)
	}
}

// signTorn signs what other tools change at the same time.
func (s *soak) signTorn() {
	app, tag := fmt.Sprintf("torn/%d", rand.IntN(soakTorns)), fmt.Sprintf("t%d", rand.IntN(soakTags))
	flags := s.vendors[rand.IntN(2)].flags
	cmd := s.bash(`echo "$1" > $2/sign`, strings.Join(flags, " "), s.mnt+"/"+app+"/tags/"+tag)
	expected := []string{"Device or resource busy", "Stale file handle", "No such file or directory"}
	if rand.IntN(3) == 0 {
		cmd = command("irfs", append([]string{"sign-image", "-r", s.registry, "-a", app, "-d", tag}, flags...)...)
		expected = []string{"another tool"}
	}
	if s.client(cmd, expected...) == done {
		s.signs.Add(1)
	}
}

// importer makes one that imports apps of its own names, and removes them later behind the mount.
func (s *soak) importer() func() {
	var names []string
	return func() {
		name := fmt.Sprintf("n%d", s.serial.Add(1))
		if len(names) > soakHold {
			s.remove("in/" + names[0])
			s.mu.Lock()
			delete(s.imported, names[0])
			s.mu.Unlock()
			names = names[1:]
		}
		if rand.IntN(4) == 0 {
			s.refuse(name)
			return
		}
		first := rand.IntN(len(s.images))
		names = append(names, name)
		if !s.take(name, s.images[first]) {
			return
		}
		// Another tag comes to it, then one that is there with another digest.
		if second := rand.IntN(len(s.images)); second != first {
			s.take(name, s.images[second])
		}
		if first == 0 {
			switch s.client(s.bash(`cp $1 $2`, s.clash.archive, s.drop(name)), "File exists") {
			case done:
				s.t.Errorf("%s: a tag that has another digest was imported", name)
			case refused:
				s.refused.Add(1)
			}
		}
	}
}

// drop is where an archive becomes the app in/<name>.
func (s *soak) drop(name string) string {
	os.Mkdir(s.mnt+"/import/in", 0o755)
	return s.mnt + "/import/in/" + name + ".tar"
}

// take imports in one of many ways. It says whether that was acknowledged.
func (s *soak) take(name string, image soakImage) bool {
	archive, to := image.archive, s.drop(name)
	var cmd *exec.Cmd
	switch rand.IntN(6) {
	case 0, 1:
		cmd = s.bash(`cp $1 $2`, archive, to)
	case 2:
		cmd = s.bash(`cp $1 $3 && mv $3 $2`, archive, to, s.dir+"/away/"+name+".tar")
	case 3:
		cmd = s.bash(`rsync $1 $2`, archive, to)
	case 4:
		cmd = s.bash(`dd if=$1 of=$2 bs=64k status=none`, archive, to)
	case 5:
		cmd = command("irfs", "import", "-r", s.registry, "-a", "in/"+name, archive)
	}
	if s.client(cmd) != done {
		// rsync's own name waits for an hour for its rename, and cp may have left its copy.
		staged, _ := filepath.Glob(s.mnt + "/import/in/." + name + ".*")
		for _, left := range append(staged, s.dir+"/away/"+name+".tar") {
			os.Remove(left)
		}
		return false
	}
	s.imports.Add(1)
	tags, err := whole(s.registry + "/in/" + name)
	if err != nil || tags[image.tag] != image.digest {
		s.t.Errorf("in/%s: acknowledged, but tag %s is not there: %v (%v)", name, image.tag, tags, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.imported[name] == nil {
		s.imported[name] = map[string]string{}
	}
	s.imported[name][image.tag] = image.digest
	return true
}

// refuse offers something that is not an image archive.
func (s *soak) refuse(name string) {
	archive := s.broken[rand.IntN(len(s.broken))]
	switch s.client(s.bash(`cp $1 $2`, archive, s.drop(name)), "Bad message", "Invalid argument") {
	case done:
		s.t.Errorf("%s was imported", archive)
	case refused:
		s.refused.Add(1)
	}
	if _, err := os.Lstat(s.registry + "/in/" + name); !errors.Is(err, fs.ErrNotExist) {
		s.t.Errorf("%s was refused, but in/%s is there (%v)", archive, name, err)
	}
}

// remove takes an app out of the registry behind the mount, in one step.
func (s *soak) remove(app string) {
	away := fmt.Sprintf("%s/away/removed-%d", s.dir, s.serial.Add(1))
	err := os.Rename(s.registry+"/"+app, away)
	if errors.Is(err, fs.ErrNotExist) {
		return // its importer was killed
	}
	if err := errors.Join(err, os.RemoveAll(away)); err != nil {
		s.t.Error(err)
	}
	s.outside.Add(1)
}

// writeOutside changes an app as tools do that know nothing of the lock.
func (s *soak) writeOutside() {
	app := fmt.Sprintf("%s/torn/%d", s.registry, rand.IntN(soakTorns))
	tag, extra := fmt.Sprintf("t%d", rand.IntN(soakTags)), fmt.Sprintf("x%d", rand.IntN(3))
	var err error
	switch rand.IntN(4) {
	case 0:
		_, err = try("umoci", "tag", "--image", app+":"+tag, extra)
	case 1:
		_, err = try("skopeo", "copy", "-q", "oci:"+s.dir+"/source:t", "oci:"+app+":"+extra)
	case 2:
		var text []byte
		if text, err = os.ReadFile(app + "/index.json"); err == nil {
			// One byte more or less, so that the bytes differ.
			if trimmed := bytes.TrimSuffix(text, []byte("\n")); len(trimmed) < len(text) {
				text = trimmed
			} else {
				text = append(text, '\n')
			}
			err = os.WriteFile(app+"/index.new", text, 0o644)
		}
		err = errors.Join(err, os.Rename(app+"/index.new", app+"/index.json"))
	case 3:
		_, err = try("irfs", "gc", "-r", s.registry, "-a", strings.TrimPrefix(app, s.registry+"/"), "--grace", "0s")
		s.collected.Add(1)
		s.outside.Add(-1)
	}
	if err != nil {
		s.t.Error(err)
		return
	}
	s.outside.Add(1)
}

// comeAndGo puts an app into the registry behind the mount, reads it through the mount, and removes it.
func (s *soak) comeAndGo() {
	name := fmt.Sprintf("new/a%d", s.serial.Add(1))
	away := s.dir + "/away/coming"
	l := sample.New()
	l.Tag("t", l.Image(sample.Linux("arm64"), sample.Gzip("etc/motd", name)))
	if err := errors.Join(l.WriteDir(away), os.Rename(away, s.registry+"/"+name)); err != nil {
		s.t.Error(err)
		return
	}
	s.outside.Add(1)
	if word, err := os.ReadFile(s.mnt + "/" + name + "/tags/t/verify-full"); string(word) != "unsigned\n" {
		s.t.Errorf("%s: %q, %v", name, word, err)
	}
	time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
	s.remove(name)
}

// collect removes what signing left behind, and what killed imports did, with no grace.
func (s *soak) collect() {
	app := fmt.Sprintf("keep/%d", rand.IntN(soakKeeps))
	var expected []string
	if apps, _ := os.ReadDir(s.registry + "/in"); len(apps) > 0 && rand.IntN(2) == 0 {
		app = "in/" + apps[rand.IntN(len(apps))].Name()
		expected = []string{"no such app", "not there"} // it was removed meanwhile
	}
	if s.client(command("irfs", "gc", "-r", s.registry, "-a", app, "--grace", "0s"), expected...) == done {
		s.collected.Add(1)
	}
	time.Sleep(50 * time.Millisecond)
}

// watch samples the daemon until stop, and looks for tasks that do not come out of uninterruptible sleep.
func (s *soak) watch(stop chan bool) {
	since := map[string]time.Time{}
	for {
		s.samples = append(s.samples, s.now())
		sleeping := s.inD()
		maps.DeleteFunc(since, func(task string, _ time.Time) bool { return !slices.Contains(sleeping, task) })
		for _, task := range sleeping {
			if since[task].IsZero() {
				since[task] = time.Now()
			}
			if time.Since(since[task]) > soakInD {
				s.t.Errorf("in uninterruptible sleep for %v: %s", soakInD, about(task))
				return
			}
		}
		select {
		case <-stop:
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// inD lists the tasks of the daemon and of the clients that are in uninterruptible sleep.
func (s *soak) inD() (tasks []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*/stat")
	for _, name := range all {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		// pid (command) state ppid pgrp …, where the command may be anything (proc(5)).
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		group, _ := strconv.Atoi(fields[2])
		s.mu.Lock()
		ours := s.clients[group] || strings.HasPrefix(name, fmt.Sprintf("/proc/%d/", s.daemon))
		s.mu.Unlock()
		if ours && fields[0] == "D" {
			tasks = append(tasks, filepath.Dir(name))
		}
	}
	return tasks
}

// about says what a task is and where in the kernel it waits.
func about(task string) string {
	name, _ := os.ReadFile(task + "/cmdline")
	where, _ := os.ReadFile(task + "/stack")
	return fmt.Sprintf("%s: %q\n%s", task, name, where)
}

// stuck tells of the clients that are there.
func (s *soak) stuck() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for pid := range s.clients {
		all = append(all, about(fmt.Sprintf("/proc/%d", pid)))
	}
	return strings.Join(all, "\n")
}

// field is a number of the daemon's /proc/PID/status.
func (s *soak) field(name string) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.daemon))
	if err != nil {
		s.t.Errorf("the daemon is gone: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == name {
			n, _ := strconv.Atoi(words[1])
			return n
		}
	}
	return 0
}

func (s *soak) now() soakSample {
	return soakSample{s.field("VmRSS:") << 10, len(s.descriptors()), s.field("Threads:")}
}

// descriptors are the daemon's, by what they are open on.
func (s *soak) descriptors() (targets []string) {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.daemon))
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil {
			targets = append(targets, target)
		}
	}
	slices.Sort(targets)
	return targets
}

// splitPipes takes the pipes with both ends in the daemon out of its descriptors.
func splitPipes(descriptors []string) (others []string, pipes int) {
	for i := 0; i < len(descriptors); i++ {
		if i+1 < len(descriptors) && strings.HasPrefix(descriptors[i], "pipe:") && descriptors[i] == descriptors[i+1] {
			pipes++
			i++
			continue
		}
		others = append(others, descriptors[i])
	}
	return others, pipes
}

// settle waits until the daemon has nothing more to do, and has as many descriptors as
// before (if not nil), pipes of go-fuse aside. The kernel is made to forget every inode, so that irfs does.
func (s *soak) settle(before []string) {
	var wrong string
	for end := time.Now().Add(soakSettle); ; time.Sleep(300 * time.Millisecond) {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
			s.t.Fatal(err)
		}
		waiting, err := os.ReadFile(s.waiting)
		if err != nil {
			s.t.Fatal(err)
		}
		now, pipes := splitPipes(s.descriptors())
		old, _ := splitPipes(before)
		sleeping := s.inD()
		switch {
		case string(bytes.TrimSpace(waiting)) != "0":
			wrong = fmt.Sprintf("requests that were not answered: %s", waiting)
		case len(sleeping) > 0:
			wrong = "in uninterruptible sleep: " + about(sleeping[0])
		case before != nil && len(now) != len(old):
			wrong = fmt.Sprintf("%d descriptors before the load, %d after it:\n%s\n\n%s", len(old), len(now), strings.Join(old, "\n"), strings.Join(now, "\n"))
		case pipes > soakPipes:
			wrong = fmt.Sprintf("%d pipes", pipes)
		default:
			wrong = ""
		}
		// At first let it come to rest, for there is nothing to compare with.
		if wrong == "" && (before != nil || time.Until(end) < soakSettle-2*time.Second) {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("the daemon did not come to rest: %s", wrong)
		}
	}
}

func meanRSS(samples []soakSample) int {
	sum := 0
	for _, one := range samples {
		sum += one.rss
	}
	return sum / max(1, len(samples))
}

// nothingLost compares the registry with what was acknowledged. Commands that were killed may have
// left working files, which go with the next change beside them.
func (s *soak) nothingLost() {
	for i := range s.tags {
		for j := range s.tags[i] {
			tag := &s.tags[i][j]
			dir := fmt.Sprintf("%s/keep/%d/tags/t%d", s.mnt, i, j)
			public, err := os.ReadFile(dir + "/vendor.pub")
			word, err2 := os.ReadFile(dir + "/verify-full")
			if err := errors.Join(err, err2); err != nil || string(word) != "verified\n" || tag.vendor != nil && !bytes.Equal(public, tag.vendor.public) {
				s.t.Errorf("%s: %q, or not who signed it last (%v)", dir, word, err)
			}
		}
	}
	for n := 0; !s.take(fmt.Sprintf("last%d", n), s.images[0]) && !s.t.Failed(); n++ { // it may be killed
	}
	apps := 0
	err := filepath.WalkDir(s.registry, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "oci-layout" {
			return err
		}
		apps++
		app := filepath.Dir(path)
		name, _ := filepath.Rel(s.registry, app)
		run(s.t, "irfs", "gc", "-r", s.registry, "-a", name, "--grace", "0s")
		tags, err := whole(app)
		if err != nil {
			s.t.Error(err)
		}
		if name, in := strings.CutPrefix(app, s.registry+"/in/"); in {
			for tag, digest := range s.imported[name] {
				if tags[tag] != digest {
					s.t.Errorf("in/%s: tag %s was acknowledged as %s, and is %q", name, tag, digest, tags[tag])
				}
			}
			delete(s.imported, name)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if len(s.imported) > 0 {
		s.t.Errorf("imported and acknowledged, but not there: %v", slices.Sorted(maps.Keys(s.imported)))
	}
	if want := soakKeeps + soakTorns + 1; apps < want {
		s.t.Errorf("%d apps are there, at least %d should be", apps, want)
	}
	err = filepath.WalkDir(s.registry, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".irfs") {
			s.t.Errorf("left behind: %s", path)
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if irfstest.Race() {
		s.t.Log("memory is that of the race detector")
	}
}
