package main_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"irfs/internal/irfstest"
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
		WorkdirRoot: house.Dir,
		Setup:       setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"need": need, "sh": shell("sh"), "bash": shell("bash"), "dash": shell("dash"),
			"holds": holds, "sample": writeSample, "unmount": unmount, "waitfor": waitFor,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// house is where everything happens.
var house *irfstest.House

func TestMain(m *testing.M) {
	var err error
	if house, err = irfstest.Build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// The scripts wait for disks, locks and timers more than they compute.
	flag.Set("test.parallel", "6")
	code := m.Run()
	if err := house.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func setup(env *testscript.Env) error {
	tools, err := filepath.Abs("../../testdata/script/bin")
	if err != nil {
		return err
	}
	home := filepath.Join(env.WorkDir, ".home")
	env.Setenv("HOME", home)
	for _, v := range house.Env() {
		name, value, _ := strings.Cut(v, "=")
		env.Setenv(name, value)
	}
	env.Setenv("PATH", filepath.Dir(house.Irfs())+":"+tools+":"+env.Getenv("PATH"))
	env.Values["t"] = env.T()
	// A script that fails leaves its mounts.
	env.Defer(func() {
		for _, dir := range irfstest.MountsBelow(env.WorkDir) {
			if unix.Unmount(dir, unix.MNT_DETACH) != nil {
				exec.Command("fusermount3", "-u", "-z", "--", dir).Run()
			}
		}
	})
	return os.Mkdir(home, 0o755)
}

func need(ts *testscript.TestScript, neg bool, args []string) {
	why := house.Lacks(args...)
	switch {
	case why == "":
	case irfstest.NoSkip():
		ts.Fatalf("%s, and IRFS_TEST_NO_SKIP is set", why)
	default:
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
