package fs_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	irfs "irfs/fs"
	"irfs/layout"
	"irfs/layout/sample"
	"irfs/sign"
)

// What an open costs without the kernel: from a path to its status, which is known and has not changed.
func BenchmarkLookup(b *testing.B) {
	dir := b.TempDir()
	l := sample.New()
	l.Tag("x", l.Image(sample.Linux("amd64"), sample.Gzip("a", "b")))
	if err := l.WriteDir(dir + "/app"); err != nil {
		b.Fatal(err)
	}
	reg, err := layout.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer reg.Close()
	tree := irfs.NewTree(reg, sign.NewTrust())
	// What changed less than two seconds ago is compared by content.
	time.Sleep(2100 * time.Millisecond)
	for _, name := range []string{"app", "app/tags", "app/tags/x", "app/tags/x/verify", "app/tags/x/manifest.json"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tree.Stat(b.Context(), name); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// treeOf is the tree of a registry with one app.
func treeOf(t *testing.T, l *sample.Layout) (tree *irfs.Tree, dir string) {
	t.Helper()
	dir = t.TempDir()
	must(t, l.WriteDir(dir+"/app"))
	reg, err := layout.Open(dir)
	must(t, err)
	t.Cleanup(reg.Close)
	return irfs.NewTree(reg, sign.NewTrust()), dir + "/app"
}

// An index of very many images has a presumed size until one of its files was opened, and then that of its content: also where it names one image
// for many platforms.
func TestSizeOfALargeIndex(t *testing.T) {
	for _, same := range []bool{false, true} {
		l := sample.New()
		var list []v1.Descriptor
		for i := range 70 {
			of := i
			if same {
				of = 0
			}
			d := l.Image(sample.Linux("amd64"), sample.Gzip("a", fmt.Sprint(of)))
			d.Platform = &v1.Platform{OS: "linux", Architecture: "amd64", Variant: fmt.Sprint("v", i)}
			list = append(list, d)
		}
		l.Tag("x", l.Index(list...))
		tree, _ := treeOf(t, l)
		for _, name := range []string{"app/tags/x/reason", "app/tags/x/status.json"} {
			data, _, err := tree.Read(t.Context(), name)
			must(t, err)
			item, err := tree.Stat(t.Context(), name)
			must(t, err)
			if item.Size != int64(len(data)) || len(data) < 100 {
				t.Errorf("one image: %t: %s has %d bytes by its status, and %d", same, name, item.Size, len(data))
			}
		}
	}
}

// What names there are in platforms/ is found out once: a digest stands for the same bytes always.
func TestPlatformsAreReadOnce(t *testing.T) {
	l := sample.New()
	amd, arm := l.Image(sample.Linux("amd64"), sample.Gzip("a", "b")), l.Image(sample.Linux("arm64"), sample.Gzip("a", "b"))
	amd.Platform, arm.Platform = nil, nil // it is in their configs
	l.Tag("x", l.Index(amd, arm))
	tree, dir := treeOf(t, l)
	names := func() string {
		list, err := tree.List(t.Context(), "app/tags/x/platforms")
		must(t, err)
		var names []string
		for _, n := range list {
			names = append(names, n.Name)
		}
		return strings.Join(names, " ")
	}
	if n := names(); n != "linux-amd64 linux-arm64" {
		t.Fatal(n)
	}
	file := filepath.Join(dir, sample.Path(arm.Digest))
	data, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, bytes.ReplaceAll(data, []byte("config"), []byte("CONFIG")), 0o644))
	if n := names(); n != "linux-amd64 linux-arm64" {
		t.Errorf("it is read again: %s", n)
	}
	must(t, os.Remove(file))
	if n := names(); n != "linux-amd64" {
		t.Errorf("what is not there any more has a name: %s", n)
	}
}
