package faults

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"irfs/layout/sample"
)

// On a file system whose times are whole seconds a file is changed where it stands, and again within the same second, with the
// same size: nothing but its bytes tells the two states apart. Each open sees the state at that moment.
func TestTwiceInATick(t *testing.T) {
	house.Need(t, "fuse", "root", "loop", "mkfs.ext4")
	top := newDir(t, "tick")
	image, disk := top+"/image", top+"/disk"
	s := &stage{registry: disk + "/registry"}
	worked(t, os.Mkdir(disk, 0o755))
	// An inode of 128 bytes has no room for parts of a second.
	run(t, "mkfs.ext4", "-q", "-F", "-I", "128", image, "16M")
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	worked(t, err)
	defer file.Close()
	device, err := attach(file)
	worked(t, err)
	worked(t, mountDevice(device, disk, ""))
	t.Cleanup(func() { worked(t, unmountDevice(disk)) })
	device.Close()
	worked(t, os.Mkdir(s.registry, 0o755))
	f := newForge(t, s, "app")
	one, two := f.Image(sample.Linux("arm64"), sample.Plain("x", "1")), f.Image(sample.Linux("arm64"), sample.Plain("x", "2"))
	f.Tag("x", f.image)
	f.Tag("y", one)
	f.Add(two)
	f.write()
	s.mnt = mount(t, s.registry)

	text, err := os.ReadFile(f.dir + "/index.json")
	worked(t, err)
	swapped := strings.NewReplacer(one.Digest.String(), two.Digest.String(), two.Digest.String(), one.Digest.String()).Replace(string(text))
	m := f.manifest(f.image)
	spoil := func(b []byte) string { return string(b[:len(b)-1]) + "!" }
	for _, c := range []struct {
		file                string // of the app
		good, bad           string // its contents
		shown, whenGood, or string // a file of the mount, and what it shows
	}{
		{"index.json", string(text), swapped, "tags/y/digest", one.Digest.String(), two.Digest.String()},
		{sample.Path(f.image.Digest), string(f.Bytes(f.image)), spoil(f.Bytes(f.image)), "tags/x/verify", "verified", "corrupt"},
		{sample.Path(m.Config.Digest), string(f.Bytes(m.Config)), spoil(f.Bytes(m.Config)), "tags/x/verify", "verified", "corrupt"},
		{sample.Path(m.Layers[0].Digest), string(f.Bytes(m.Layers[0])), spoil(f.Bytes(m.Layers[0])), "tags/x/verify-full", "verified", "corrupt"},
	} {
		met := false
		for try := 0; !met && try < 5; try++ {
			time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(1010 * time.Millisecond))) // a second has just begun
			var stamps []changed
			for _, good := range []bool{false, true, false, true} {
				content, want := c.good, c.whenGood
				if !good {
					content, want = c.bad, c.or
				}
				stamps = append(stamps, overwrite(t, f.dir+"/"+c.file, content))
				if got := s.read(t, "app/"+c.shown); got != want+"\n" {
					t.Errorf("%s shows %q, and %s was changed so that it is %q", c.shown, got, c.file, want)
				}
			}
			met = !slices.ContainsFunc(stamps, func(at changed) bool { return at != stamps[0] })
		}
		if !met {
			t.Errorf("%s was never changed four times within a second", c.file)
		}
	}
}

// changed is what a file's status says of a change.
type changed struct{ mtime, ctime unix.Timespec }

// overwrite writes a file where it stands, as long as it is.
func overwrite(t *testing.T, name, content string) changed {
	t.Helper()
	file, err := os.OpenFile(name, os.O_WRONLY, 0)
	worked(t, err)
	defer file.Close()
	_, err = file.WriteString(content)
	worked(t, err)
	var st unix.Stat_t
	worked(t, unix.Fstat(int(file.Fd()), &st))
	return changed{st.Mtim, st.Ctim}
}
