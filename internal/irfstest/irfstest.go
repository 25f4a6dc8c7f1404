// Package irfstest runs irfs for tests: it builds the program as the tests were
// built, says what this machine lacks, and finds what was left behind. irfs is
// always a process of its own, as a FUSE server that serves its own process
// deadlocks.
package irfstest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A House is a directory that everything of one test binary happens in. Dir/bin/irfs
// is the program.
type House struct {
	Dir      string
	canMount func() error
}

// Interruptible has processes that the tests start end by SIGINT, also where the tests themselves were started with that signal ignored, as a shell
// does behind `&`: a signal that is handled is not inherited.
func Interruptible() { signal.Notify(make(chan os.Signal, 1), os.Interrupt) }

// Build makes a House. With the race detector in the tests there is one in the program.
func Build() (*House, error) {
	Interruptible()
	dir, err := os.MkdirTemp("", "irfs-test-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	h := &House{Dir: dir}
	h.canMount = sync.OnceValue(h.probe)
	// Other users have parts in some of the tests.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	args := []string{"build", "-o", h.Irfs()}
	if Race() {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "irfs/cmd/irfs")...).CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return h, nil
}

// lookAtSources looks at all that irfs is built from, once, while tests run: `go test` shows an old result again
// unless something changed that the tests themselves had looked at, and that the program is built anew
// does not count.
var lookAtSources = sync.OnceFunc(func() {
	mod, _ := exec.Command("go", "env", "GOMOD").Output()
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.HasPrefix(e.Name(), ".") && name != root {
			return filepath.SkipDir
		}
		return nil
	})
})

// Race says whether the tests were built with the race detector.
func Race() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// Irfs is the program's path.
func (h *House) Irfs() string { return filepath.Join(h.Dir, "bin/irfs") }

// Env are variables that the program should run with.
func (h *House) Env() []string {
	return []string{"LC_ALL=C", "TZ=UTC", "GORACE=atexit_sleep_ms=10 log_path=" + filepath.Join(h.Dir, "race")}
}

// Close removes the House. Its error tells of a mount or a process that outlived its test, or of
// what the race detector found in a process in the background.
func (h *House) Close() error {
	var found []string
	for _, dir := range MountsBelow(h.Dir) {
		found = append(found, "a mount is left behind: "+dir)
		unix.Unmount(dir, unix.MNT_DETACH)
	}
	for _, pid := range h.Processes() {
		line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		found = append(found, fmt.Sprintf("a process is left behind: %s: %q", pid, line))
		if pid, err := strconv.Atoi(pid); err == nil {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	races, err := filepath.Glob(filepath.Join(h.Dir, "race.*"))
	for _, name := range races {
		text, _ := os.ReadFile(name)
		found = append(found, string(text))
	}
	if len(found) > 0 {
		err = errors.Join(err, errors.New(strings.Join(found, "\n")))
	}
	return errors.Join(err, os.RemoveAll(h.Dir))
}

// Processes lists the ids of those that run this irfs. One that was just
// unmounted has ten seconds to end, for a mount lives on in
// the mount namespaces that were made meanwhile.
func (h *House) Processes() []string {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var found []string
		links, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, link := range links {
			if exe, err := os.Readlink(link); err == nil && exe == h.Irfs() {
				found = append(found, filepath.Base(filepath.Dir(link)))
			}
		}
		if len(found) == 0 || time.Now().After(end) {
			return found
		}
	}
}

// MountsBelow lists the mount points in dir, the last mounted first.
func MountsBelow(dir string) []string {
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

// probe mounts an empty registry: that /dev/fuse is there does not mean that
// it may be used. Its error is what irfs says.
func (h *House) probe() error {
	registry, mnt := filepath.Join(h.Dir, "probe"), filepath.Join(h.Dir, "probe-mnt")
	for _, dir := range []string{registry, mnt} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"mount", registry, mnt}, {"umount", mnt}} {
		if out, err := exec.Command(h.Irfs(), args...).CombinedOutput(); err != nil {
			return errors.New(string(bytes.TrimSpace(out)))
		}
	}
	return nil
}

// Lacks says what of the given words this machine lacks, "" for nothing: a tool, fuse (that
// irfs can mount), root (to be it), loop (devices).
func (h *House) Lacks(words ...string) string {
	lookAtSources()
	for _, word := range words {
		switch word {
		case "fuse":
			if err := h.canMount(); err != nil {
				return fmt.Sprintf("nothing can be mounted here: %v", err)
			}
		case "root":
			if os.Geteuid() != 0 {
				return "only root can do this"
			}
		case "loop":
			if _, err := os.Stat("/dev/loop-control"); err != nil {
				return fmt.Sprintf("there are no loop devices here: %v", err)
			}
		default:
			if _, err := exec.LookPath(word); err != nil {
				return word + " is not installed"
			}
		}
	}
	return ""
}

// NoSkip says that a test has to fail where it would be skipped.
func NoSkip() bool { return os.Getenv("IRFS_TEST_NO_SKIP") != "" }

// Need skips the test without these (Lacks).
func (h *House) Need(t testing.TB, words ...string) {
	t.Helper()
	if why := h.Lacks(words...); why != "" {
		Skip(t, why)
	}
}

// Skip skips the test; with NoSkip it fails.
func Skip(t testing.TB, why string) {
	t.Helper()
	if NoSkip() {
		t.Fatalf("%s, and IRFS_TEST_NO_SKIP is set", why)
	}
	t.Skip(why)
}
