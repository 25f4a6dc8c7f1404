package faults

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"irfs/internal/irfstest"
	"irfs/sign"
)

// house is where everything happens, with the keys of a root CA and of a vendor in keys.
var house *irfstest.House

// full asks for everything, and not a short form of it.
var full = os.Getenv("IRFS_FAULTS") == "full"

// roles are what this test binary does when it runs itself once more, with the role's name
// in roleEnv and its arguments as the command line's.
var roles = map[string]func(args []string) error{
	"disk":     serveDisk,
	"exchange": exchangeForEver,
	"stall":    stall,
}

const roleEnv = "IRFS_FAULTS_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if err := roles[role](os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	var err error
	if house, err = irfstest.Build(); err == nil {
		err = makeKeys(house.Dir + "/keys")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := house.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// inRole is a command that runs this binary in a role.
func inRole(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(append(os.Environ(), house.Env()...), roleEnv+"="+role)
	return cmd
}

func makeKeys(dir string) error {
	ca, err1 := sign.GenerateKey()
	vendor, err2 := sign.GenerateKey()
	if err := errors.Join(err1, err2, os.Mkdir(dir, 0o755)); err != nil {
		return err
	}
	certificate, err := ca.Sign(vendor.Public().DER())
	for name, data := range map[string][]byte{
		"root-ca.prv": ca.DER(), "root-ca.pub": ca.Public().DER(),
		"vendor.prv": vendor.DER(), "vendor.pub": vendor.Public().DER(), "vendor.pub.sig": certificate,
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), data, 0o644))
	}
	return err
}

// key is the path of one of the keys.
func key(name string) string { return filepath.Join(house.Dir, "keys", name) }

// signing are the flags of sign-image for the keys.
func signing() []string {
	return []string{"-v", key("vendor.prv"), "-s", key("vendor.pub.sig"), "-c", key("root-ca.pub")}
}

// command is a command, mostly irfs, as the tests run it.
func command(name string, args ...string) *exec.Cmd {
	if name == "irfs" {
		name = house.Irfs()
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), house.Env()...)
	return cmd
}

// run runs a command that has to succeed, and gives its standard output.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try runs a command, and gives its standard output. Its error has what it said on standard error.
func try(name string, args ...string) (string, error) { return output(command(name, args...)) }

func output(cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), err, errs.Bytes())
	}
	return out.String(), nil
}

var numbered atomic.Int64

// newDir makes a directory that other users may enter. It is removed with the test.
func newDir(t testing.TB, name string) string {
	t.Helper()
	dir := fmt.Sprintf("%s/%s-%d", house.Dir, name, numbered.Add(1))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// mount mounts a registry until the test ends, and gives the mount point.
func mount(t testing.TB, registry string, flags ...string) string {
	t.Helper()
	mnt := newDir(t, "mnt")
	run(t, "irfs", append(append([]string{"mount", "-c", key("root-ca.pub")}, flags...), registry, mnt)...)
	t.Cleanup(func() { unmount(t, mnt) })
	return mnt
}

// unmount unmounts, once nobody uses the mount: a process that was just started has, for
// an instant, the files that this one had open then.
func unmount(t testing.TB, mnt string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := try("irfs", "umount", mnt)
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "busy") || time.Now().After(end) {
			unix.Unmount(mnt, unix.MNT_DETACH)
			t.Errorf("%v", err)
			return
		}
	}
}

// A document is what whole reads of an index or a manifest.
type document struct {
	Manifests []descriptor
	Config    *descriptor
	Layers    []descriptor
}

type descriptor struct {
	Digest      string
	Size        int64
	Annotations map[string]string
	leaf        bool // a config or a layer
}

// whole checks, with no code of irfs, that every blob that an app's index.json reaches is there, of
// its size, and hashes to its name. It gives the digest of each tag.
func whole(app string) (tags map[string]string, err error) {
	tags, _, err = reach(app)
	return tags, err
}

// reach is whole, and gives also the digests of the blobs that index.json reaches.
func reach(app string) (tags map[string]string, seen map[string]bool, err error) {
	text, err := os.ReadFile(app + "/index.json")
	if err != nil {
		return nil, nil, err
	}
	var index document
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", app, err)
	}
	tags = map[string]string{}
	seen = map[string]bool{}
	todo := index.Manifests
	for _, d := range index.Manifests {
		tags[d.Annotations["org.opencontainers.image.ref.name"]] = d.Digest
	}
	for len(todo) > 0 {
		d := todo[0]
		todo = todo[1:]
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		data, err := hashed(app+"/blobs/"+strings.Replace(d.Digest, ":", "/", 1), d.Digest)
		if err == nil && int64(len(data)) != d.Size {
			err = fmt.Errorf("%s: %s: %d bytes, and not the %d of its descriptor", app, d.Digest, len(data), d.Size)
		}
		if err != nil {
			return nil, nil, err
		}
		var doc document
		if d.leaf || json.Unmarshal(data, &doc) != nil {
			continue
		}
		todo = append(todo, doc.Manifests...)
		if doc.Config != nil {
			doc.Layers = append(doc.Layers, *doc.Config)
		}
		for _, d := range doc.Layers {
			d.leaf = true
			todo = append(todo, d)
		}
	}
	return tags, seen, nil
}

// hashed reads a file, which has to have the digest.
func hashed(file, digest string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	sum := fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	if strings.HasPrefix(digest, "sha512:") {
		sum = fmt.Sprintf("sha512:%x", sha512.Sum512(data))
	}
	if sum != digest {
		return nil, fmt.Errorf("%s: %d bytes that hash to %s", file, len(data), sum)
	}
	return data, nil
}
