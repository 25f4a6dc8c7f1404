package fs_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"irfs/internal/irfstest"
	"irfs/layout/sample"
)

// TestKeyPathInTheMount: a path in the mount itself is no key, and is refused
// before the file that it names is computed, which for verify-full takes
// reading 16 GiB.
func TestKeyPathInTheMount(t *testing.T) {
	l := sample.New()
	image := l.Image(sample.Linux("amd64"), sample.Gzip("f", "one"))
	l.Tag("big", image)
	w := newWorld(t, l)
	grow(t, w, image.Digest.String())
	link := filepath.Join(filepath.Dir(w.keys), "link")
	if err := os.Symlink(w.mnt+"/app/tags/big/verify-full", link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		w.mnt + "/app/tags/big/verify-full", link,
		w.mnt + "/app/tags/big/config.json", w.mnt + "/app/tags/big/sign", w.mnt + "/.irfs/log", w.mnt,
	} {
		for _, command := range []string{name, "-v " + w.key() + " -s " + name} {
			start := time.Now()
			if err := w.sign("app/tags/big", command); !errors.Is(err, syscall.EKEYREJECTED) {
				t.Errorf("%s: %v", command, err)
			}
			if d := time.Since(start); d > 500*time.Millisecond {
				t.Errorf("%s: the answer took %v", command, d)
			}
			if said := w.read("app/tags/big/sign"); !strings.HasPrefix(said, name+": it lies in this mount itself") {
				t.Errorf("%s: %s", command, said)
			}
		}
	}
}

// jailEnv has TestInJail write a path to a control file from a root directory
// of its own: its value is the control file, the root, and the path.
const jailEnv = "IRFS_TEST_JAIL"

func TestInJail(t *testing.T) {
	words := strings.Split(os.Getenv(jailEnv), "\n")
	if len(words) != 3 {
		return // it is a part of TestCallerInJail
	}
	f, err := os.OpenFile(words[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(syscall.Chroot(words[1]), os.Chdir("/")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(words[2]); err != nil {
		t.Fatal(err)
	}
}

// TestCallerInJail: a path means the file that the caller would open by it,
// below his own root directory, and no other.
func TestCallerInJail(t *testing.T) {
	if os.Geteuid() != 0 {
		irfstest.Skip(t, "only root can do this")
	}
	w := newWorld(t, images(2))
	jail := filepath.Join(filepath.Dir(w.keys), "jail")
	if err := os.MkdirAll(jail+"/only/here", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vendor.prv", "vendor.pub.sig"} {
		data, err := os.ReadFile(w.keys + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		w.write("jail/only/here/"+name, data)
	}
	if err := os.Symlink("/only/here/vendor.prv", jail+"/link.prv"); err != nil {
		t.Fatal(err)
	}
	write := func(path string) error {
		child := exec.Command(os.Args[0], "-test.run=^TestInJail$", "-test.v")
		child.Env = append(os.Environ(), jailEnv+"="+w.mnt+"/app/tags/t0/sign\n"+jail+"\n"+path)
		out, err := child.CombinedOutput()
		if err == nil && !strings.Contains(string(out), "--- PASS: TestInJail") {
			t.Fatalf("nothing was written: %s", out)
		}
		return err
	}
	for _, outside := range []string{w.key(), "../.." + w.key(), "/../../../../.." + w.key(), "/proc/1/root" + w.key()} {
		if err := write(outside); err == nil {
			t.Errorf("%s: was found from inside", outside)
		}
		if got := w.read("app/tags/t0/verify"); got != "unsigned\n" {
			t.Fatalf("%s: verify is %q", outside, got)
		}
	}
	if said := w.read("app/tags/t0/sign"); !strings.Contains(said, "no such file or directory") {
		t.Errorf("the outcome is: %s", said)
	}
	for _, inside := range []string{"/only/here/vendor.prv", "only/here/vendor.prv", "-v /link.prv -s /only/here/vendor.pub.sig"} {
		if err := write(inside); err != nil {
			t.Errorf("%s: %v: %s", inside, err, w.read("app/tags/t0/sign"))
		}
		if got := w.read("app/tags/t0/verify"); got != "verified\n" {
			t.Fatalf("%s: verify is %q", inside, got)
		}
	}
	// The mount itself is where it was.
	if err := w.sign("app/tags/t1", w.key()); err != nil {
		t.Error(err)
	}
}
