package faults

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout/sample"
)

// forging is what a hostile name ends with: it ends a line in each way that some program takes for that, and goes on like another line.
func forging(name string) string {
	var b strings.Builder
	b.WriteString(name + "\t50%")
	for _, end := range []string{"\n", "\r", "\v", "\f", "\x1c", "\u0085", "\u2028", "\u2029"} {
		b.WriteString(end + forged)
	}
	return b.String() + "\x1b[2J\u202e\xff"
}

const forged = "FORGED"

// forgedIn returns what of an output is, or looks like, a line that a name made; "" if there is nothing.
func forgedIn(out string) string {
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, forged) {
			return line
		}
		for _, c := range strings.TrimSuffix(line, "\n") {
			if c != '\t' && (unicode.IsControl(c) || unicode.In(c, unicode.Zl, unicode.Zp, unicode.Bidi_Control)) {
				return line
			}
		}
	}
	return ""
}

// TestNamesForgeNoLine: names of apps, tags, platforms, files and directories hold line ends and worse. In what every command says, and in
// every file that a mount makes, each is a part of its line.
func TestNamesForgeNoLine(t *testing.T) {
	house.Need(t, "fuse", "root")
	top := newDir(t, "forging")
	registry := filepath.Join(top, forging("registry"))
	mnt := filepath.Join(top, forging("mnt"))
	must(t, os.MkdirAll(mnt, 0o755))

	platform := v1.Platform{OS: forging("linux"), Architecture: "amd64", Variant: forging("v")}
	l := sample.New()
	image := l.Image(platform, sample.Gzip("a", "b"))
	l.Tag(strings.ToValidUTF8(forging("tag"), ""), sample.Annotate(image, strings.ToValidUTF8(forging("name"), ""), "x"))
	l.Tag("index", l.Index(image, l.Image(sample.Linux("arm64"), sample.Gzip("a", "c"))))
	l.Tag("artifact", l.Artifact(forging("x/y"), "content", &image))
	unknown := l.Document(forging("application/"), map[string]any{"x": l.Blob("x", []byte("named by what irfs does not know")).Digest})
	l.Add(unknown)
	l.Tag("twice", image)
	l.Tag("twice", unknown)
	evil := forging("app")
	writeLayout := func(app string, damage func(sample.Files)) {
		files := l.Files()
		damage(files)
		must(t, files.WriteDir(filepath.Join(registry, app)))
	}
	writeLayout("app", func(sample.Files) {})
	writeLayout(evil, func(f sample.Files) {
		unused := sample.New().Blob("x", []byte("unused"))
		f[sample.Path(unused.Digest)] = []byte("unused")
	})
	writeLayout(evil+"/tags", func(sample.Files) {}) // hidden
	writeLayout(forging("broken"), func(f sample.Files) { f["index.json"] = []byte(`{"` + forging("") + `"`) })
	writeLayout(forging("damaged"), func(f sample.Files) { f[sample.Path(image.Digest)][0] = ' ' })
	writeLayout(forging("member"), func(f sample.Files) {
		name, _ := json.Marshal(strings.ToValidUTF8(forging("x"), ""))
		f["index.json"] = bytes.Replace(f["index.json"], []byte(`"manifests"`), fmt.Appendf(nil, `%s:1,%s:2,"manifests"`, name, name), 1)
	})
	writeLayout(forging("version"), func(f sample.Files) {
		f["oci-layout"], _ = json.Marshal(map[string]string{"imageLayoutVersion": forging("2")})
	})
	must(t, os.Symlink("app", filepath.Join(registry, forging("link"))))
	writeLayout("import", func(sample.Files) {}) // hidden, and said when it is mounted
	archive := filepath.Join(top, forging("archive")+".tar")
	var tar bytes.Buffer
	whole := sample.New()
	whole.Tag(strings.ToValidUTF8(forging("tag"), ""), whole.Image(sample.Linux("amd64"), sample.Gzip("a", "b")))
	must(t, whole.WriteTar(&tar))
	must(t, os.WriteFile(archive, tar.Bytes(), 0o644))
	torn := filepath.Join(top, forging("torn")+".tar")
	must(t, os.WriteFile(torn, []byte(forging("torn")), 0o644))

	tag := strings.ToValidUTF8(forging("tag"), "")
	file := filepath.Join(top, forging("file"))
	keyed := signing()
	commands := [][]string{
		{"mount", registry, mnt}, {"mount", "-c", file, registry, mnt}, {"mount", "-c", registry, registry, mnt}, {"mount", registry, file}, {"mount", registry, registry + "/x"},
		{"mount", file, mnt}, {"mount", "-o", forging("x"), registry, mnt}, {"mount", "--sign-imports", forging("-v"), registry, mnt}, {"mount", "-o", "writers=" + forging("x"), registry, mnt},
		{"status", "-r", registry}, {"status", "-r", registry, "--full"}, {"status", "-r", registry, "--json"}, {"status", "-r", registry, "--check"}, {"status", "-r", registry, "--only", forging("x")},
		{"status", "-r", registry + "/" + evil}, {"status", "-r", file}, {"status", mnt}, {"status", mnt, "--check"}, {"status", file},
		{"ls", "-r", registry}, {"ls", "-r", registry, evil}, {"ls", "-r", registry, evil + "/tags"}, {"ls", "-r", registry, evil + "/tags/index/platforms"}, {"ls", "-r", registry, file},
		{"ls", "-r", registry, evil + "/index.json"}, {"cat", "-r", registry, evil}, {"cat", "-r", registry, file}, {"cat", "-r", registry, evil + "/.irfs/check", evil + "/tags/index/reason"},
		{"cat", "-r", registry, forging("broken") + "/.irfs/check"}, {"cat", "-r", registry, forging("version") + "/.irfs/check"}, {"cat", "-r", registry, forging("damaged") + "/.irfs/check"},
		{"gc", "-r", registry}, {"gc", "-r", registry, "--dry-run", "--grace", "0s"}, {"gc", "-r", registry, "-a", file}, {"gc", "-r", registry, "--grace", forging("1")},
		{"verify-image", "-r", registry, "-a", evil, "-d", tag, "-c", key("root-ca.pub")}, {"verify-image", "-r", registry, "-a", evil, "-d", "index", "-c", key("root-ca.pub"), "--full"},
		{"verify-image", "-r", registry, "-a", evil, "-d", "index", "-c", key("root-ca.pub"), "--json"}, {"verify-image", "-r", registry, "-a", evil, "-d", file, "-c", key("root-ca.pub")},
		{"verify-image", "-r", registry, "-a", forging("member"), "-d", "x", "-c", key("root-ca.pub")}, {"verify-image", "-r", registry, "-a", forging("broken"), "-d", "x", "-c", key("root-ca.pub")},
		{"verify-image", "-r", registry, "-a", forging("none"), "-d", "x", "-c", file},
		append([]string{"sign-image", "-r", registry, "-a", evil, "-d", file}, keyed...), append([]string{"sign-image", "-r", registry, "-a", evil, "-d", "index"}, keyed...),
		append([]string{"sign-image", "-r", registry, "-a", evil, "-d", "twice"}, keyed...), {"sign-image", "-r", registry, "-a", evil, "-d", tag, "-v", file, "-x", file},
		{"import", "-r", registry, archive}, {"import", "-r", registry, "-a", "imported", archive}, {"import", "-r", registry, "-a", "imported", "--keep-all", archive}, {"import", "-r", registry, "-a", evil, "--on-exist", "merge", archive},
		{"import", "-r", registry, "-a", evil, "--on-exist", "fail", archive}, {"import", "-r", registry, "-a", "torn", torn}, {"import", "-r", registry, torn}, {"import", "-r", registry, file + ".tar"},
		{"import", "-r", registry, "-a", "x", "--on-exist", forging("x"), archive},
		append([]string{"extract-sign-image", "-r", registry, "-a", "signed", "-f", archive}, keyed...), append([]string{"extract-sign-image", "-r", registry, "-a", "torn", "-f", torn}, keyed...),
		append([]string{"extract-sign-image", "-r", registry, "-a", "signed", "-d", file, "-f", archive}, keyed...),
		{"gen-key", "-o", torn}, {"extract-public", "-i", torn, "-o", file}, {"extract-public", "-i", file, "-o", file}, {"sign", "-k", torn, "-f", file, "-s", file}, {"verify", "-k", torn, "-f", torn, "-s", torn},
		{"umount", file}, {"umount", registry}, {"help", forging("x")}, {forging("x")}, {forging("--x")}, {"status", "--" + forging("x")}, {"completion", forging("x")}, {file},
	}
	said := 0
	for _, args := range commands {
		out, err := command("irfs", args...).CombinedOutput()
		if line := forgedIn(string(out)); line != "" {
			t.Errorf("irfs %.300q says %q", args, line)
		}
		if strings.Contains(string(out), forged) {
			said++
		}
		if len(out) == 0 && err != nil {
			t.Errorf("irfs %.300q: %v", args, err)
		}
	}
	if said < len(commands)/2 {
		t.Errorf("only %d of %d commands have a name in what they say", said, len(commands))
	}

	// The mount, which the first of the commands made.
	t.Cleanup(func() { unmount(t, mnt) })
	for _, name := range []string{evil + ".tar", "b/" + forging("x") + ".tar"} {
		os.MkdirAll(filepath.Dir(filepath.Join(mnt, "import", name)), 0o755)
		os.WriteFile(filepath.Join(mnt, "import", name), tar.Bytes(), 0o644)
	}
	must(t, os.WriteFile(mnt+"/import/dropped.tar", tar.Bytes(), 0o644))
	os.WriteFile(mnt+"/import/torn.tar", []byte(forging("x")), 0o644)
	os.Remove(filepath.Join(mnt, evil, "index.json"))
	os.Mkdir(filepath.Join(mnt, forging("x")), 0o755)
	os.WriteFile(filepath.Join(mnt, evil, "tags/index/sign"), []byte(key("vendor.prv")+forging("")), 0o644)
	os.WriteFile(filepath.Join(mnt, evil, "tags/index/sign"), []byte(file), 0o644)
	os.WriteFile(filepath.Join(mnt, evil, "tags/twice/sign"), []byte(key("vendor.prv")), 0o644)
	raw := []string{"blobs", "index.json", "oci-layout", "manifest.json", "config.json", "signature", "vendor.pub", "vendor.pub.sig"}
	files, with := 0, 0
	look := func(name string) {
		text, err := os.ReadFile(name)
		if err != nil {
			return
		}
		files++
		if line := forgedIn(string(text)); line != "" {
			t.Errorf("%.400q holds %q", strings.TrimPrefix(name, mnt), line)
		}
		if strings.Contains(string(text), forged) {
			with++
		}
	}
	must(t, filepath.WalkDir(mnt, func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil
		case slices.Contains(raw, e.Name()) && e.IsDir():
			return fs.SkipDir
		case slices.Contains(raw, e.Name()):
		case e.IsDir():
			for _, unlisted := range []string{".irfs/check", "verify-full", "status-full.json"} {
				look(filepath.Join(name, unlisted))
			}
		default:
			look(name)
		}
		return nil
	}))
	for _, name := range []string{".irfs/version", ".irfs/log", "import/.done/dropped.txt"} {
		text, err := os.ReadFile(filepath.Join(mnt, name))
		must(t, err)
		if !strings.Contains(string(text), forged) {
			t.Errorf("%s has no name in it: %q", name, text)
		}
		look(filepath.Join(mnt, name))
	}
	t.Logf("%d of %d commands, and %d of %d files, have a name in them", said, len(commands), with, files)
}
