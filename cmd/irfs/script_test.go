package main_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"irfs/layout/sample"
)

// The stories of testdata/script, run for real: irfs is a process of its own, as
// a FUSE server that serves its own process deadlocks, and so are the shells
// and tools that use its mounts.
//
// Besides testscript's commands the stories use
//
//	need WORD...          skip without these: tools, fuse, root; with IRFS_TEST_NO_SKIP=1 fail
//	sh, bash, dash 'TEXT' run TEXT in that shell
//	[!] holds FILE LINE   the file holds exactly this line
//	sample NAME PATH      write one of the layouts of samples_test.go to a directory, or an archive, PATH.tar;
//	                      or one of the archives of archives_test.go
//	unmount DIR           irfs umount DIR, once nobody uses it
//	waitfor 'TEXT'        repeat TEXT, in sh, until it succeeds, for ten seconds at most
//
// and, in their shells, what lies in testdata/script/bin.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:         "../../testdata/script",
		WorkdirRoot: work,
		Setup:       setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"need": need, "sh": shell("sh"), "bash": shell("bash"), "dash": shell("dash"),
			"holds": holds, "sample": writeSample, "unmount": unmount, "waitfor": waitFor,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// work is the directory that everything happens in, bin/irfs in it the program.
var work string

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	if work, err = os.MkdirTemp("", "irfs-test-"); err != nil {
		return 0, err
	}
	if work, err = filepath.EvalSymlinks(work); err != nil {
		return 0, err
	}
	// Other users have parts in some of the stories.
	if err := os.Chmod(work, 0o755); err != nil {
		return 0, err
	}
	if err := build(); err != nil {
		return 0, err
	}
	// The scripts wait for disks, locks and timers more than they compute.
	flag.Set("test.parallel", "6")
	code = m.Run()
	err = leftovers()
	return code, errors.Join(err, os.RemoveAll(work))
}

// build builds irfs as the tests were built: with the race detector, or without.
func build() error {
	args := []string{"build", "-o", filepath.Join(work, "bin/irfs")}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// leftovers is an error if a mount or a process outlived its script, or if the
// race detector found something in a process in the background.
func leftovers() error {
	var found []string
	for _, dir := range mountsBelow(work) {
		found = append(found, "a mount is left behind: "+dir)
		unix.Unmount(dir, unix.MNT_DETACH)
	}
	for _, pid := range processes() {
		line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		found = append(found, fmt.Sprintf("a process is left behind: %s: %q", pid, line))
		if pid, err := strconv.Atoi(pid); err == nil {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	races, err := filepath.Glob(filepath.Join(work, "race.*"))
	for _, name := range races {
		text, _ := os.ReadFile(name)
		found = append(found, string(text))
	}
	if len(found) > 0 {
		return errors.Join(err, errors.New(strings.Join(found, "\n")))
	}
	return err
}

// processes lists the ids of those that run our irfs. One that was just
// unmounted has ten seconds to end, for a mount lives on in
// the mount namespaces that were made meanwhile.
func processes() []string {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var found []string
		links, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, link := range links {
			if exe, err := os.Readlink(link); err == nil && exe == filepath.Join(work, "bin/irfs") {
				found = append(found, filepath.Base(filepath.Dir(link)))
			}
		}
		if len(found) == 0 || time.Now().After(end) {
			return found
		}
	}
}

// mountsBelow lists the mount points in dir, the last mounted first.
func mountsBelow(dir string) []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		at := strings.ReplaceAll(strings.Fields(line)[4], `\040`, " ")
		if strings.HasPrefix(at, dir+"/") {
			found = append(found, at)
		}
	}
	slices.Reverse(found)
	return found
}

func setup(env *testscript.Env) error {
	tools, err := filepath.Abs("../../testdata/script/bin")
	if err != nil {
		return err
	}
	home := filepath.Join(env.WorkDir, ".home")
	env.Setenv("HOME", home)
	env.Setenv("LC_ALL", "C")
	env.Setenv("TZ", "UTC")
	env.Setenv("PATH", filepath.Join(work, "bin")+":"+tools+":"+env.Getenv("PATH"))
	env.Setenv("GORACE", "atexit_sleep_ms=10 log_path="+filepath.Join(work, "race"))
	env.Values["t"] = env.T()
	// A script that fails leaves its mounts.
	env.Defer(func() {
		for _, dir := range mountsBelow(env.WorkDir) {
			if unix.Unmount(dir, unix.MNT_DETACH) != nil {
				exec.Command("fusermount3", "-u", "-z", "--", dir).Run()
			}
		}
	})
	return os.Mkdir(home, 0o755)
}

// canMount mounts an empty registry: that /dev/fuse is there does not mean that
// it may be used. Its error is what irfs says.
var canMount = sync.OnceValue(func() error {
	registry, mnt := filepath.Join(work, "probe"), filepath.Join(work, "probe-mnt")
	for _, dir := range []string{registry, mnt} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"mount", registry, mnt}, {"umount", mnt}} {
		if out, err := exec.Command(filepath.Join(work, "bin/irfs"), args...).CombinedOutput(); err != nil {
			return errors.New(string(bytes.TrimSpace(out)))
		}
	}
	return nil
})

func need(ts *testscript.TestScript, neg bool, args []string) {
	for _, word := range args {
		why := ""
		switch word {
		case "fuse":
			if err := canMount(); err != nil {
				why = fmt.Sprintf("nothing can be mounted here: %v", err)
			}
		case "root":
			if os.Geteuid() != 0 {
				why = "only root can do this"
			}
		default:
			if _, err := exec.LookPath(word); err != nil {
				why = word + " is not installed"
			}
		}
		if why == "" {
			continue
		}
		if os.Getenv("IRFS_TEST_NO_SKIP") != "" {
			ts.Fatalf("%s, and IRFS_TEST_NO_SKIP is set", why)
		}
		ts.Value("t").(testscript.T).Skip(why)
	}
}

func shell(name string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if len(args) != 1 {
			ts.Fatalf("usage: %s 'TEXT'", name)
		}
		err := ts.Exec(name, "-c", args[0])
		switch {
		case err == nil && neg:
			ts.Fatalf("it succeeded, and should have failed")
		case err != nil && !neg:
			ts.Fatalf("%v", err)
		}
	}
}

func holds(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] holds FILE LINE")
	}
	got, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	if (string(got) == args[1]+"\n") == neg {
		ts.Fatalf("%s holds %q", args[0], got)
	}
}

// unmount tries again for a while: a program that this process starts for one script has, for the
// first instant of its life, what this process had open for another, such as holds and
// grep have files of a mount (execve(2) lets the parent go on before it closes them).
func unmount(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: unmount DIR")
	}
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := ts.Exec("irfs", "umount", args[0])
		if err == nil {
			return
		}
		if !strings.Contains(ts.ReadFile("stderr"), "busy") || time.Now().After(end) {
			ts.Fatalf("%v", err)
		}
	}
}

func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: waitfor 'TEXT'")
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := ts.Exec("sh", "-c", args[0])
		if err == nil {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("not within ten seconds: %v", err)
		}
	}
}

func writeSample(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || samples[args[0]] == nil && archives[args[0]] == nil {
		ts.Fatalf("usage: sample NAME DIRECTORY|FILE.tar")
	}
	l := sample.New()
	name := ts.MkAbs(args[1])
	var b bytes.Buffer
	switch build := archives[args[0]]; {
	case build != nil:
		ts.Check(build(l).WriteTar(&b))
	default:
		samples[args[0]](l)
		if !strings.HasSuffix(name, ".tar") {
			ts.Check(l.WriteDir(name))
			return
		}
		ts.Check(l.WriteTar(&b))
	}
	ts.Check(os.MkdirAll(filepath.Dir(name), 0o755))
	ts.Check(os.WriteFile(name, b.Bytes(), 0o644))
}
