package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"irfs/internal/irfstest"
	"irfs/layout/sample"
)

// This file, and the three hostile_*_test.go beside it, attack irfs with layouts,
// keys and archives: the rows 1 to 27 of the list of hostile input, and those from 38 on.
// Everything lies in one registry under one mount, so that what one of them
// does to another would be seen:
//
//	top/outside/     what nobody may touch: the targets of links, and more
//	top/registry/    an app for each layout, and good ones beside them
//	top/files/       keys, certificates and archives

// A stage is where all of it happens.
type stage struct {
	registry, outside, files string
	mnt                      string
	daemon                   int // its process
}

const (
	// patience is how long one case may take at most: what would block, or go on
	// without end, takes longer.
	patience = 30 * time.Second
)

// mostMemory is how much the daemon may have needed at most, at any time: some times the largest document that it
// has to accept here, and far less than what the refused ones would take.
func mostMemory() int {
	if full {
		return 768 << 20 // an index.json of 26 MB, by several at once
	}
	return 256 << 20
}

// slowly is for a program that the race detector slows down, and makes larger.
func slowly(t time.Duration) time.Duration {
	if irfstest.Race() {
		return 5 * t
	}
	return t
}

func TestHostile(t *testing.T) {
	house.Need(t, "fuse", "root")
	top := newDir(t, "hostile")
	s := &stage{registry: top + "/registry", outside: top + "/outside", files: top + "/files"}
	for _, dir := range []string{s.registry, s.outside, s.files} {
		worked(t, os.Mkdir(dir, 0o755))
	}
	layouts, accepted := badLayouts(), goodLayouts()
	for i := range layouts {
		layouts[i].app = fmt.Sprintf("bad-%03d", i)
		layouts[i].make(newForge(t, s, layouts[i].app))
	}
	for i := range accepted {
		accepted[i].app = fmt.Sprintf("odd-%03d", i)
		accepted[i].make(newForge(t, s, accepted[i].app))
	}
	writeOddApps(t, s)
	writeMoreOddApps(t, s)
	newForge(t, s, "good").asItIs()
	newForge(t, s, "unsigned").unsigned()
	canary(t, s.outside)

	s.mnt = mount(t, s.registry)
	s.daemon = daemonOf(t, s.mnt)
	before := allIn(t, top)
	touched := changedAt(t, s.outside)

	// Whatever is bad, all at once. The group ends when all of them have.
	t.Run("refused", func(t *testing.T) {
		for _, row := range layouts {
			t.Run(row.title(), func(t *testing.T) {
				t.Parallel()
				inTime(t, func() { row.check(t, s) })
			})
		}
		oddApps(t, s)
		moreOddApps(t, s)
		commandLines(t, s)
		badKeys(t, s)
		badArchives(t, s)
	})
	t.Run("as it was", func(t *testing.T) {
		sameTrees(t, allIn(t, top), before, func(name string) bool { return strings.HasPrefix(name, "files/") })
		if now := changedAt(t, s.outside); now != touched {
			t.Error("something was outside for a moment, or was read into")
		}
		s.goodIsVerified(t)
		everyAppHasItsWord(t, s, layouts)
	})
	// What is odd, and good all the same, has to work; and that changes nothing but itself.
	t.Run("accepted", func(t *testing.T) {
		for _, row := range accepted {
			t.Run(row.title(), func(t *testing.T) {
				t.Parallel()
				inTime(t, func() { row.check(t, s) })
			})
		}
		goodArchives(t, s)
	})
	t.Run("nothing else was changed", func(t *testing.T) {
		sameTrees(t, allIn(t, top), before, func(name string) bool {
			return strings.HasPrefix(name, "files/") || strings.HasPrefix(name, "registry/odd-") || strings.HasPrefix(name, "registry/taken-")
		})
		if now := changedAt(t, s.outside); now != touched {
			t.Error("something was outside for a moment")
		}
		s.goodIsVerified(t)
	})
	if used := highWater(t, s.daemon); used > mostMemory() && !irfstest.Race() {
		t.Errorf("the daemon needed %d MiB, over %d", used>>20, mostMemory()>>20)
	} else {
		t.Logf("%d layouts, %d accepted; the daemon needed %d MiB", len(layouts), len(accepted), used>>20)
	}
}

// inTime fails the test if f takes longer than patience. What has failed may take some time
// more, for a test that is over cannot tell what else it finds; then it is left behind.
func inTime(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return
	case <-time.After(slowly(patience)):
		t.Errorf("it blocks, or takes over %v", slowly(patience))
	}
	select {
	case <-done:
	case <-time.After(5 * time.Minute):
		t.Fatal("it goes on")
	}
}

// goodIsVerified: no bad app hides a good one.
func (s *stage) goodIsVerified(t *testing.T) {
	t.Helper()
	for _, name := range []string{"verify", "verify-full"} {
		if word := s.read(t, "good/tags/x/"+name); word != "verified\n" {
			t.Errorf("the good image beside the bad ones: %s: %q", name, word)
		}
	}
}

// read reads a file of the mount; an error is a text too.
func (s *stage) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.mnt, name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// sign writes a command to the control file of an app's tag x, in one write(2), and gives the errno.
func (s *stage) sign(app, command string) syscall.Errno {
	return writeTo(filepath.Join(s.mnt, app, "tags/x/sign"), command)
}

// writeTo opens a file, does one write(2), and closes it. It gives the first errno.
func writeTo(name, text string) syscall.Errno {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(text))
		err = errors.Join(err, unix.Close(fd))
	}
	return errnoIn(err)
}

func errnoIn(err error) syscall.Errno {
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		return syscall.EIO
	}
	return errno
}

// logged gives the last outcome that the mount's log has for a path.
func (s *stage) logged(t *testing.T, path string) string {
	t.Helper()
	outcome := ""
	for line := range strings.Lines(s.read(t, ".irfs/log")) {
		if fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t"); len(fields) == 5 && fields[3] == path {
			outcome = fields[4]
		}
	}
	return outcome
}

// irfs runs the program, and gives what it printed, its exit code, and what it said of an error.
func irfs(args ...string) (out string, code int, said string) {
	ctx, cancel := context.WithTimeout(context.Background(), slowly(patience))
	defer cancel()
	cmd := exec.CommandContext(ctx, house.Irfs(), args...)
	cmd.Env = append(os.Environ(), house.Env()...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return "", -1, "irfs " + strings.Join(args, " ") + " blocks"
	}
	if err != nil && cmd.ProcessState == nil {
		return "", -1, err.Error()
	}
	return stdout.String(), cmd.ProcessState.ExitCode(), stderr.String()
}

// wantCode fails unless irfs ends with that exit code, and says so.
func wantCode(t *testing.T, code int, says string, args ...string) {
	t.Helper()
	_, got, said := irfs(args...)
	if got != code || !strings.Contains(said, says) {
		t.Errorf("irfs %s: exit code %d, %q; want %d, and %q", strings.Join(args, " "), got, said, code, says)
	}
}

func worked(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func allIn(t testing.TB, dir string) map[string]string {
	t.Helper()
	found, err := sample.Tree(dir)
	worked(t, err)
	return found
}

// same fails unless two trees are the same, but for what may differ.
func sameTrees(t *testing.T, got, want map[string]string, mayDiffer func(name string) bool) {
	t.Helper()
	names := maps.Clone(got)
	maps.Copy(names, want)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if got[name] != want[name] && !mayDiffer(name) {
			t.Errorf("%s was %.200q, and is %.200q", name, want[name], got[name])
		}
	}
}

// canary puts into a directory what somebody who can be led there would touch.
func canary(t *testing.T, dir string) {
	t.Helper()
	worked(t, os.MkdirAll(dir+"/dir", 0o755))
	worked(t, os.WriteFile(dir+"/file", []byte("canary\n"), 0o644))
	worked(t, os.WriteFile(dir+"/dir/closed", []byte("canary\n"), 0o600))
	worked(t, os.Symlink("file", dir+"/link"))
	worked(t, syscall.Mkfifo(dir+"/fifo", 0o644))
}

// changedAt tells when the directory and what is directly in it last changed, so that
// something that was there for a moment is seen.
func changedAt(t *testing.T, dir string) string {
	t.Helper()
	text := ""
	names, err := filepath.Glob(dir + "/*")
	worked(t, err)
	for _, name := range append(names, dir) {
		var st unix.Stat_t
		worked(t, unix.Lstat(name, &st))
		text += fmt.Sprintln(name, st.Mtim, st.Ctim)
	}
	return text
}

// daemonOf is the process that serves a mount.
func daemonOf(t testing.TB, mnt string) (pid int) {
	t.Helper()
	text, err := os.ReadFile(mnt + "/.irfs/version")
	worked(t, err)
	for line := range strings.Lines(string(text)) {
		fmt.Sscanf(line, "pid %d", &pid)
	}
	if pid == 0 {
		t.Fatalf("no pid in %q", text)
	}
	return pid
}

// highWater is how many bytes of memory a process had at most (proc_pid_status(5), VmHWM).
func highWater(t testing.TB, pid int) (bytes int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	worked(t, err)
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &bytes); err == nil {
			return bytes << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}
