package sample_test

import (
	"bytes"
	"os"
	"os/exec"
	"reflect"
	"testing"

	"irfs/layout/sample"
)

func describe() *sample.Layout {
	l := sample.New()
	l.Indent, l.Extra, l.BlobMode = "  ", `"x":123456789012345678901234567890`, 0o444
	amd := l.Image(sample.Linux("amd64"), sample.Gzip("etc/", "", "etc/motd", "hello\n"), sample.Plain("a", "b"))
	l.Docker = true
	arm := l.Image(sample.Linux("arm/v7"), sample.Zstd("etc/motd", "hello\n"))
	l.Docker = false
	l.Tag("stable", l.Index(amd, arm, l.Attestation(amd)))
	l.Add(l.Artifact("application/x", "text", &amd))
	return l
}

func TestSameDescriptionSameBytes(t *testing.T) {
	if !reflect.DeepEqual(describe().Files(), describe().Files()) {
		t.Error("the files differ")
	}
	var a, b bytes.Buffer
	if describe().WriteTar(&a) != nil || describe().WriteTar(&b) != nil || !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the archives differ")
	}
}

// GNU tar makes of the archive what WriteDir makes.
func TestArchiveIsTheDirectory(t *testing.T) {
	l := describe()
	one, two := t.TempDir(), t.TempDir()
	if err := l.WriteDir(one); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := l.WriteTar(&archive); err != nil {
		t.Fatal(err)
	}
	tar := exec.Command("tar", "-xpf", "-", "-C", two)
	tar.Stdin = &archive
	if out, err := tar.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("tar: %v: %s", err, out)
	}
	a, err := sample.Tree(one)
	if err != nil {
		t.Fatal(err)
	}
	b, err := sample.Tree(two)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(a, b) {
		t.Errorf("%d files and %d files differ", len(a), len(b))
	}
}

// What is in the layers comes out. (umoci knows no zstd.)
func TestOtherToolsReadIt(t *testing.T) {
	for _, tool := range []string{"skopeo", "umoci"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(tool + " is not installed")
		}
	}
	dir := t.TempDir()
	l := describe()
	l.Indent, l.Extra = "", ""
	l.Tag("one", l.Image(sample.Linux("amd64"), sample.Gzip("motd", "hello\n"), sample.Plain("more", "more\n")))
	if err := l.WriteDir(dir); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		{"skopeo", "inspect", "--raw", "oci:" + dir + ":stable"},
		{"skopeo", "--override-os=linux", "--override-arch=amd64", "inspect", "oci:" + dir + ":stable"},
		{"umoci", "unpack", "--rootless", "--image", dir + ":one", dir + "/bundle"},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
	for name, want := range map[string]string{"motd": "hello\n", "more": "more\n"} {
		if got, err := os.ReadFile(dir + "/bundle/rootfs/" + name); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
