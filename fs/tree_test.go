package fs_test

import (
	"testing"
	"time"

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
