package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"irfs/layout/sample"
)

// Two users. What is the victim's is not the attacker's to change, and what he closed not to read; both may rename in the registry.
const attacker, victim = 64001, 64002

// as is a command that a user runs.
func as(user uint32, cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	cmd.Dir = "/"
	return cmd
}

// sh has a user run a script of bash, which stops at no error, and gives all that it says.
func sh(user uint32, script string, args ...string) string {
	out, _ := as(user, exec.Command("bash", append([]string{"-c", script, "bash"}, args...)...)).CombinedOutput()
	return string(out)
}

// give makes a file or directory, and what is below it, a user's.
func give(t testing.TB, user int, name string) {
	t.Helper()
	must(t, filepath.WalkDir(name, func(name string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(name, user, user))
	}))
}

// exchanging exchanges two names, as a user and in a process of his own, until stop is called, which gives how many times it did.
func exchanging(t testing.TB, user uint32, a, b string) (stop func() int) {
	t.Helper()
	cmd := as(user, inRole("exchange", a, b))
	in, err1 := cmd.StdinPipe()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, err1, cmd.Start())
	stop = func() int {
		in.Close()
		err := cmd.Wait()
		n, numberErr := strconv.Atoi(strings.TrimSpace(out.String()))
		if err != nil || numberErr != nil {
			t.Errorf("exchanging: %v: %s", err, out.Bytes())
		}
		return n
	}
	return stop
}

// exchangeForEver is what the process does: it waits up to a millisecond each time, so that others get somewhere in between.
func exchangeForEver(args []string) error {
	over := make(chan bool)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	for n := 0; ; {
		select {
		case <-over:
			_, err := fmt.Println(n)
			return err
		default:
		}
		if err := exchange(args[0], args[1]); err == nil {
			n++
		}
		time.Sleep(time.Duration(n%10) * 100 * time.Microsecond)
	}
}

func exchange(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

// twoApps makes a registry in which everybody may rename, with an app of the attacker's and one of the victim's, which both hold an image x.
func twoApps(t *testing.T) (registry string) {
	t.Helper()
	registry = newDir(t, "registry")
	must(t, os.Chmod(registry, 0o777))
	for name, user := range map[string]int{"mine": attacker, "theirs": victim} {
		l := sample.New()
		l.Tag("x", l.Image(sample.Linux("amd64"), sample.Gzip("a", "the same")))
		must(t, l.WriteDir(registry+"/"+name))
		must(t, os.WriteFile(registry+"/"+name+"/whose", []byte(name), 0o644))
		give(t, user, registry+"/"+name)
	}
	return registry
}

// same checks that everything in a directory is as it was.
func same(t *testing.T, dir string, before map[string]string) {
	t.Helper()
	now := treeOf(t, dir)
	for name := range before {
		if now[name] != before[name] {
			t.Errorf("%s is %q, and was %q", name, now[name], before[name])
		}
	}
	for name := range now {
		if _, was := before[name]; !was {
			t.Errorf("%s is new", name)
		}
	}
}

func archiveOf(t testing.TB, l *sample.Layout) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, l.WriteTar(&b))
	return b.Bytes()
}

// theirs is the victim's app, whatever it is called now.
func theirs(t testing.TB, registry string) string {
	t.Helper()
	for _, name := range []string{"mine", "theirs", ".irfs"} {
		if whose, err := os.ReadFile(registry + "/" + name + "/whose"); err == nil && string(whose) == "theirs" {
			return registry + "/" + name
		}
	}
	t.Fatal("the victim's app is gone")
	return ""
}

// ownKeys are the attacker's own keys, and the words for `sign` that use them.
func ownKeys(t testing.TB) (words string) {
	t.Helper()
	dir := newDir(t, "keys")
	for _, name := range []string{"ca.prv", "vendor.prv"} {
		run(t, "irfs", "gen-key", "-o", dir+"/"+name)
	}
	give(t, attacker, dir)
	return fmt.Sprintf("-v %s/vendor.prv -x %[1]s/ca.prv", dir)
}

// 64: his app waits for its lock to be signed, and takes another's place meanwhile.
func TestSignWhatWasExchanged(t *testing.T) {
	house.Need(t, "fuse", "root")
	for name, move := range map[string]func(registry string) error{
		"exchanged": func(registry string) error { return exchange(registry+"/mine", registry+"/theirs") },
		"away":      func(registry string) error { return os.Rename(registry+"/mine", registry+"/away") },
	} {
		t.Run(name, func(t *testing.T) { signWhile(t, move) })
	}
}

// signWhile moves the attacker's app while he signs it.
func signWhile(t *testing.T, move func(registry string) error) {
	registry := twoApps(t)
	words := ownKeys(t)
	mnt := mount(t, registry, "-o", "allow_other")
	before := treeOf(t, registry+"/theirs")
	lock, err := os.Open(registry + "/mine/oci-layout")
	must(t, err)
	defer lock.Close()
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	said := make(chan string, 1)
	go func() { said <- sh(attacker, `echo "$1" > "$2"`, words, mnt+"/mine/tags/x/sign") }()
	time.Sleep(500 * time.Millisecond)
	must(t, move(registry))
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_UN))
	if text := <-said; !strings.Contains(text, "Stale file handle") && !strings.Contains(text, "Permission denied") {
		t.Errorf("signing ends with %q", text)
	}
	same(t, theirs(t, registry), before)
}

// 64: he exchanges his app and another's all the time, while he signs his, and imports into it.
func TestExchangedApps(t *testing.T) {
	house.Need(t, "fuse", "root")
	registry := twoApps(t)
	words := ownKeys(t)
	archives := newDir(t, "archives")
	const many = 8
	for i := range many {
		l := sample.New()
		l.Tag(fmt.Sprint("n", i), l.Image(sample.Linux("amd64"), sample.Gzip("a", fmt.Sprint(i))))
		must(t, os.WriteFile(fmt.Sprintf("%s/%d.tar", archives, i), archiveOf(t, l), 0o644))
	}
	mnt := mount(t, registry, "-o", "allow_other")
	before := treeOf(t, registry+"/theirs")
	own := treeOf(t, registry+"/mine")
	stop := exchanging(t, attacker, registry+"/mine", registry+"/theirs")
	attempts := 0
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		for i := range many {
			attempts += 2
			sh(attacker, `echo "$1" > "$2"; cp "$3" "$4"`, words, mnt+"/mine/tags/x/sign", fmt.Sprintf("%s/%d.tar", archives, i), mnt+"/import/mine.tar")
		}
	}
	n := stop()
	t.Logf("%d attempts, %d exchanges", attempts, n)
	if attempts < 20 || n < 200 {
		t.Errorf("only %d attempts, and %d exchanges", attempts, n)
	}
	at := theirs(t, registry)
	same(t, at, before)
	other := map[string]string{registry + "/mine": registry + "/theirs", registry + "/theirs": registry + "/mine"}[at]
	if now := treeOf(t, other); len(now) <= len(own) {
		t.Errorf("not even in his own app came anything of all that")
	}
}

// 65: what was looked up a moment ago, when it was open, is exchanged for what is closed.
func TestClosedAfterLookup(t *testing.T) {
	house.Need(t, "fuse", "root")
	registry := newDir(t, "registry")
	must(t, os.Chmod(registry, 0o777))
	secret := sample.New()
	closed := secret.Image(sample.Linux("amd64"), sample.Gzip("a", "TOPSECRET"))
	closed = sample.Annotate(closed, "note", "TOPSECRET")
	secret.Tag("hush", closed)
	secret.Blob("text/plain", []byte("TOPSECRET"))
	hex := closed.Digest.Encoded()
	plain := secret.Blob("text/plain", []byte("TOPSECRET")).Digest.Encoded()
	// Of each pair the first is looked up, and its parts; what is read then, with X for its path in the mount.
	rows := []struct{ name, prime, read string }{
		{"the index", "stat -t X > /dev/null", "cat X/index.json"},
		{"tags", "stat -t X X/tags > /dev/null", "ls X/tags"},
		{"an open directory", "cd X/tags", "ls ."},
		{"manifests", "stat -t X X/manifests > /dev/null", "ls X/manifests"},
		{"blobs", "stat -t X X/blobs X/blobs/sha256 > /dev/null", "cat X/blobs/sha256/" + plain},
		{"a list of blobs", "stat -t X X/blobs X/blobs/sha256 > /dev/null", "ls X/blobs/sha256"},
		{"a namespace", "stat -t X > /dev/null", "ls X"},
		{"an app in a namespace", "stat -t X X/app > /dev/null", "cat X/app/index.json"},
		{"blobs in a namespace", "stat -t X X/app X/app/blobs X/app/blobs/sha256 > /dev/null", "cat X/app/blobs/sha256/" + plain},
	}
	for i, row := range rows {
		open, shut := fmt.Sprintf("%s/open%d", registry, i), fmt.Sprintf("%s/shut%d", registry, i)
		app := ""
		if strings.Contains(row.name, "namespace") {
			app = "/app"
			must(t, os.Mkdir(open, 0o755), os.Mkdir(shut, 0o755))
		}
		mine := sample.New()
		mine.Tag("x", mine.Image(sample.Linux("amd64"), sample.Gzip("a", "mine")))
		must(t, mine.WriteDir(open+app), secret.WriteDir(shut+app))
		if app != "" {
			must(t, os.Mkdir(shut+"/hush", 0o755))
		}
		give(t, attacker, open)
		give(t, victim, shut)
		must(t, os.Chmod(shut, 0o700))
	}
	mnt := mount(t, registry, "-o", "allow_other")
	telling := func(text string) bool {
		for line := range strings.Lines(text) { // an error names what was asked for
			if !strings.Contains(line, "denied") && !strings.Contains(line, "Stale") && !strings.Contains(line, "No such") &&
				(strings.Contains(line, "TOPSECRET") || strings.Contains(line, "hush") || strings.Contains(line, hex)) {
				return true
			}
		}
		return false
	}
	for i, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			open, shut := fmt.Sprintf("%s/open%d", registry, i), fmt.Sprintf("%s/shut%d", registry, i)
			at := strings.NewReplacer("X", fmt.Sprintf("%s/open%d", mnt, i))
			cmd := as(attacker, exec.Command("sh", "-c", at.Replace(fmt.Sprintf("%s; echo looked up; read go; %s", row.prime, row.read))))
			in, err1 := cmd.StdinPipe()
			out, err2 := cmd.StdoutPipe()
			cmd.Stderr = cmd.Stdout
			must(t, err1, err2, cmd.Start())
			_, err := io.ReadFull(out, make([]byte, len("looked up\n")))
			must(t, err, exchange(open, shut))
			in.Write([]byte("go\n"))
			read, err := io.ReadAll(out)
			must(t, err)
			cmd.Wait()
			text := string(read)
			if whose, err := os.Stat(open); err != nil || whose.Sys().(*syscall.Stat_t).Uid != victim {
				t.Fatalf("nothing was exchanged: %v: %s", err, text)
			}
			if telling(text) {
				t.Errorf("he reads %s", text)
			}
			// Its owner, who may, sees it at once (but cd(1) asks nobody for a second).
			if text := sh(victim, at.Replace(row.prime+"; "+row.read)); !telling(text) && row.name != "an open directory" {
				t.Errorf("its owner reads %s", text)
			}
		})
	}
}

// 66: in a registry with the sticky bit the app that an import was begun for is moved away, by whoever has it.
func TestImportBesideWhoMovesAway(t *testing.T) {
	house.Need(t, "fuse", "root")
	registry, archives := newDir(t, "registry"), newDir(t, "archives")
	must(t, os.Chmod(registry, 0o777|os.ModeSticky))
	l := sample.New()
	l.Tag("x", l.Image(sample.Linux("amd64"), sample.Plain("a", strings.Repeat("good\n", 10000))))
	archive := archiveOf(t, l)
	must(t, os.WriteFile(archives+"/x.tar", archive, 0o644))
	must(t, l.WriteDir(registry+"/x"))
	give(t, attacker, registry+"/x")
	mnt := mount(t, registry, "-o", "allow_other")

	cmd := as(victim, exec.Command("sh", "-c", `exec 3> "$2"; head -c $3 "$1" >&3; echo half; read go; tail -c +$(($3+1)) "$1" >&3 && exec 3>&-`,
		"sh", archives+"/x.tar", mnt+"/import/x.tar", fmt.Sprint(len(archive)-2048)))
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	must(t, err1, err2, cmd.Start())
	_, err := io.ReadFull(out, make([]byte, len("half\n")))
	must(t, err)
	if text := sh(attacker, `mv "$1" "$2"`, registry+"/x", registry+"/away"); text != "" {
		t.Fatal(text)
	}
	in.Write([]byte("go\n"))
	must(t, cmd.Wait())
	must(t, filepath.WalkDir(registry+"/x", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Sys().(*syscall.Stat_t).Uid != victim {
			t.Errorf("%s is the file of user %d", name, info.Sys().(*syscall.Stat_t).Uid)
		}
		return err
	}))
	if _, err := whole(registry + "/x"); err != nil {
		t.Error(err)
	}
}

// 67: somebody's app, or a directory of his, has the name of irfs's own working directory, or takes it in between.
func TestWorkingDirectoryThatIsNone(t *testing.T) {
	house.Need(t, "fuse", "root")
	l := sample.New()
	l.Tag("x", l.Image(sample.Linux("amd64"), sample.Gzip("a", "imported")))
	archive := newDir(t, "archives") + "/x.tar"
	must(t, os.WriteFile(archive, archiveOf(t, l), 0o644))
	work := func(dir string) { // what a killed process may have left, but for whose it is, or its mode
		must(t, os.MkdirAll(dir+"/.work-"+strings.Repeat("a", 26), 0o700))
		must(t, os.WriteFile(dir+"/.work-"+strings.Repeat("a", 26)+"/file", nil, 0o644))
		must(t, os.MkdirAll(dir+"/"+strings.Repeat("a", 26), 0o700))
	}
	for name, make := range map[string]func(registry string) string{
		"an app":      func(registry string) string { return registry + "/.irfs" },
		"a directory": func(registry string) string { return registry + "/.irfs" },
		"in an app":   func(registry string) string { return registry + "/mine/.irfs" },
		// What lies in a directory of his anybody may rename, if not remove.
		"the attacker's":           func(registry string) string { return registry + "/.irfs" },
		"the attacker's in an app": func(registry string) string { return registry + "/mine/.irfs" },
	} {
		t.Run(name, func(t *testing.T) {
			registry := twoApps(t)
			at := make(registry)
			if name == "an app" {
				must(t, os.Rename(registry+"/theirs", at))
			}
			work(at)
			if strings.HasPrefix(name, "the attacker's") {
				must(t, os.Lchown(at, attacker, attacker))
			} else {
				give(t, victim, at)
			}
			before := treeOf(t, at)
			mnt := mount(t, registry, "-o", "allow_other")
			sh(attacker, `cp "$1" "$2"; cp "$1" "$3"`, archive, mnt+"/import/new.tar", mnt+"/import/mine.tar")
			sh(attacker, `echo "$1" > "$2"`, ownKeys(t), mnt+"/mine/tags/x/sign")
			try("irfs", "import", "-r", registry, "-a", "other", archive)
			run(t, "irfs", "gc", "-r", registry)
			same(t, at, before)
		})
	}
	t.Run("in between", func(t *testing.T) {
		registry := twoApps(t)
		before := treeOf(t, registry+"/theirs")
		must(t, os.Mkdir(registry+"/.irfs", 0o777), os.Lchown(registry+"/.irfs", attacker, attacker))
		stop := exchanging(t, attacker, registry+"/.irfs", registry+"/theirs")
		attempts, came := 0, 0
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); attempts++ {
			if _, err := try("irfs", "import", "-r", registry, "-a", fmt.Sprint("n", attempts), archive); err == nil {
				came++
			}
		}
		n := stop()
		t.Logf("%d imports, %d of which came, %d exchanges", attempts, came, n)
		if attempts < 20 || came == 0 || n < 200 {
			t.Errorf("only %d imports, %d of which came, and %d exchanges", attempts, came, n)
		}
		same(t, theirs(t, registry), before)
	})
}

// Whoever may read the registry may hold a lock on anything in it: irfs waits for no lock on its own working directory.
func TestWorkingDirectoryThatIsLocked(t *testing.T) {
	house.Need(t, "fuse", "root")
	registry := newDir(t, "registry")
	l := sample.New()
	l.Tag("x", l.Image(sample.Linux("amd64"), sample.Gzip("a", "imported")))
	archive := newDir(t, "archives") + "/x.tar"
	must(t, os.WriteFile(archive, archiveOf(t, l), 0o644))
	mnt := mount(t, registry)
	slow, err := os.Create(mnt + "/import/slow.tar")
	must(t, err)
	defer slow.Close()
	_, err = slow.Write(archiveOf(t, l)[:2048])
	must(t, err)
	reader := as(attacker, exec.Command("flock", registry+"/.irfs", "sh", "-c", "echo held; read over; true"))
	in, err1 := reader.StdinPipe()
	out, err2 := reader.StdoutPipe()
	must(t, err1, err2, reader.Start())
	_, err = io.ReadFull(out, make([]byte, len("held\n")))
	must(t, err)
	began := time.Now()
	run(t, "cp", archive, mnt+"/import/same.tar")
	run(t, "irfs", "import", "-r", registry, "-a", "command", archive)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	in.Close()
	must(t, reader.Wait())
}

// 65: what tells of an import into what is closed stays closed, whatever has its name.
func TestReceiptsOfWhatIsClosed(t *testing.T) {
	house.Need(t, "fuse", "root")
	registry := newDir(t, "registry")
	must(t, os.Chmod(registry, 0o777))
	l := sample.New()
	l.Tag("hush", l.Image(sample.Linux("amd64"), sample.Gzip("a", "TOPSECRET")))
	archive := newDir(t, "archives") + "/x.tar"
	must(t, os.WriteFile(archive, archiveOf(t, l), 0o644))
	for name, user := range map[string]int{"closed": victim, "open": attacker} {
		must(t, os.Mkdir(registry+"/"+name, 0o755))
		give(t, user, registry+"/"+name)
	}
	must(t, l.WriteDir(registry+"/mine"))
	give(t, attacker, registry+"/mine")
	mnt := mount(t, registry, "-o", "allow_other")
	text := sh(victim, `cp "$1" "$2"/import/secret.tar; mkdir "$2"/import/closed; cp "$1" "$2"/import/closed/inner.tar; chmod 700 "$3"/secret "$3"/closed; rmdir "$2"/import/closed`, archive, mnt, registry)
	read := fmt.Sprintf("cat %s/import/.done/secret.txt; ls %[1]s/import/.done/closed; cat %[1]s/import/.done/closed/inner.txt", mnt)
	if now := sh(victim, read); !strings.Contains(now, "hush") || !strings.Contains(now, "inner.txt") {
		t.Fatalf("whoever imported reads %s, after %s", now, text)
	}
	for _, swapped := range []bool{false, true} {
		if swapped {
			must(t, exchange(registry+"/secret", registry+"/mine"), exchange(registry+"/closed", registry+"/open"))
		}
		if text := sh(attacker, read); strings.Count(text, "Permission denied") != 3 {
			t.Errorf("another reads %s", text)
		}
	}
}
