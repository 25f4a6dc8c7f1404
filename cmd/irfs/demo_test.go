package main_test

import (
	"bufio"
	"bytes"
	"io"
	"irfs/internal/irfstest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// demo runs `irfs demo`, by the command line before it if there is one, and
// checks that nothing is left of it. Its watch sees the output as it comes.
func demo(t *testing.T, watch func(line string, p *os.Process), env []string, by ...string) (code int, stdout, stderr string) {
	t.Helper()
	temp := t.TempDir()
	words := append(by, house.Irfs(), "demo")
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append(append(append(os.Environ(), "TMPDIR="+temp), house.Env()...), env...)
	var out, errs bytes.Buffer
	cmd.Stderr = &errs
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(io.TeeReader(pipe, &out))
	for lines.Scan() {
		if watch != nil {
			watch(lines.Text(), cmd.Process)
		}
	}
	cmd.Wait()
	if list, _ := os.ReadDir(temp); len(list) > 0 {
		t.Errorf("%s is left behind", list[0].Name())
	}
	if left := irfstest.MountsBelow(temp); len(left) > 0 {
		t.Errorf("mounts are left behind: %v", left)
	}
	if left := house.Processes(); len(left) > 0 {
		t.Errorf("processes are left behind: %v", left)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

const noMount = "There is no mount to be had here"

func TestDemo(t *testing.T) {
	code, stdout, stderr := demo(t, nil, nil)
	if code != 0 || stderr != "" || !strings.Contains(stdout, "\nnot deployed\n") {
		t.Fatalf("exit code %d\n%s%s", code, stdout, stderr)
	}
	if strings.Contains(stdout, noMount) {
		irfstest.Skip(t, "nothing can be mounted here")
	}
}

// An ordinary container has no /dev/fuse.
func TestDemoWithoutFuse(t *testing.T) {
	own := []string{"unshare", "-m", "--propagation", "slave", "sh", "-ec", `mount -t tmpfs tmpfs /dev; mknod -m 666 /dev/null c 1 3; exec "$@"`, "sh"}
	withoutMount(t, own)
}

// Another has it, and may not mount.
func TestDemoWithoutPrivilege(t *testing.T) {
	withoutMount(t, []string{"setpriv", "--bounding-set", "-sys_admin"})
}

func withoutMount(t *testing.T, by []string) {
	if err := exec.Command(by[0], append(by[1:], "true")...).Run(); err != nil || os.Geteuid() != 0 {
		irfstest.Skip(t, "only root, with "+by[0]+", can do this")
	}
	code, stdout, stderr := demo(t, nil, nil, by...)
	if code != 0 || stderr != "" || strings.Count(stdout, noMount) != 1 || !strings.Contains(stdout, "\nnot deployed\n") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
}

func TestDemoInterrupted(t *testing.T) {
	for _, at := range []string{"$ irfs gen-key", "# There is no mount|# Mount it", "may be deployed"} {
		sent := false
		code, stdout, stderr := demo(t, func(line string, p *os.Process) {
			for begin := range strings.SplitSeq(at, "|") {
				if !sent && strings.HasPrefix(line, begin) {
					sent = true
					p.Signal(syscall.SIGINT)
				}
			}
		}, nil)
		if code != 1 || stderr != "irfs: interrupted\n" {
			t.Errorf("at %q: exit code %d\n%s%s", at, code, stdout, stderr)
		}
	}
}

// The output is not read to its end, as by head.
func TestDemoUnread(t *testing.T) {
	demo(t, nil, nil, "sh", "-c", `"$@" | head -n 3`, "sh")
}

// A step that is not as it should be ends it.
func TestDemoStops(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "grep"), []byte("#!/bin/sh\necho unexpected\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := demo(t, nil, []string{"PATH=" + bin + ":" + os.Getenv("PATH")})
	if code != 1 || !strings.HasSuffix(stdout, "\nunexpected\nmay be deployed\n") || !strings.Contains(stderr, "irfs: the demo stops at `") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
}
