package fs

import (
	"bytes"
	"context"
	b64 "encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/kballard/go-shellquote"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
	"irfs/sign"
)

// The key that FuzzCommand writes, for nothing else: its PEM has lines that could be paths, with slashes in them.
const fuzzKey = "3081a402010104309436ff70736b052bcfd20184502925fc7afed5fc6e24ffbe84848778d8b3302e6ed4fe28b55265f42bf84d45abc6f7fba00706052b81040022a1640362000438891c9a44cfa253c8b3886808504d282fce99c8575c4a18a37e4d4157c887e905ce3ae75ea5b0251a346cba300c0040cd949b1865e642cffe46f1ee07f7d38d68b672b9ca3e04849b65dba7db9f9326e73ba3d6709f0a0c1093e2f49db8d346"

// keyTexts are ways to spell a private key, or a part of one.
func keyTexts(t testing.TB) (texts []string, scalar []byte) {
	t.Helper()
	der, err := hex.DecodeString(fuzzKey)
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.ParsePrivateKey(der)
	if err != nil || !bytes.Equal(key.DER(), der) {
		t.Fatalf("the key is none: %v", err)
	}
	scalar = der[8 : 8+48]
	text := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	lines := strings.Split(text, "\n")
	texts = []string{
		string(der), text, strings.ReplaceAll(text, "\n", " "), strings.ReplaceAll(text, "\n", "\r\n"), strings.ReplaceAll(text, "\n", `\n`), strings.ReplaceAll(text, "\n", ""),
		lines[1], lines[2], lines[3], strings.Join(lines[1:4], ""), string(scalar),
		b64.StdEncoding.EncodeToString(scalar),
		hex.EncodeToString(der), hex.EncodeToString(scalar), strings.ToUpper(hex.EncodeToString(scalar)),
	}
	return texts, scalar
}

// shows gives what of a key text holds: 16 bytes in a row, as they are, in hex or in base64, or "".
func shows(text string, scalar []byte) string {
	lower := strings.ToLower(text)
	for i := 0; i+16 <= len(scalar); i++ {
		part := scalar[i : i+16]
		// In base64, where bytes come in groups of three, at least 18 letters are made of nothing but these 16 bytes.
		for skip := range 3 {
			if letters := b64.RawStdEncoding.EncodeToString(part[skip:])[:(16-skip)*8/6]; strings.Contains(text, letters) {
				return letters
			}
		}
		if digits := hex.EncodeToString(part); strings.Contains(lower, digits) {
			return digits
		}
		if strings.Contains(text, string(part)) {
			return string(part)
		}
	}
	return ""
}

// FuzzCommand: whatever is written to `sign` is a command or refused, with an error that is a sentence, of a known kind, and shows nothing
// of a key; every KEY in it is the spelling of a key, or a part of that. What is read is opened for real.
func FuzzCommand(f *testing.F) {
	texts, scalar := keyTexts(f)
	for i, template := range []string{
		"KEY", "KEY\n", " KEY", "KEY ", "/KEY", "./KEY", "keys/KEY", "KEY.prv", "/proc/self/cwd/KEY", "xKEY", "0KEY\n", "-KEY", "\xffKEY", "KEY\x00",
		"-v KEY", "-v 'KEY'", `-v "KEY"`, "-v 'KEY", "-vKEY", "-v=KEY", "--vendor-prv=KEY", "-v 'KEY' -x 'KEY'", "-v x -x KEY", "-v x -x 'KEY'",
		"-v fuzz_test.go -s KEY", "-v fuzz_test.go -s 'KEY' -c 'KEY'", "-v 'KEY' -c . -c KEY", "-v KEY KEY", "-h KEY", "-- KEY", "-v -- KEY", "-q KEY", "--KEY", "-q -v x", "--quiet -v x", "-v x -- y",
		"vendor.prv", "/keys/vendor.prv\n", "-v vendor.prv -s vendor.pub.sig -c a.pub -c b.pub", "-v a -x b", "-v a -x b -s c", "", "\n", "-v ''", "--vendor=a", "-v a\\", "-",
	} {
		for form := range texts {
			if form%4 == i%4 || strings.HasPrefix(template, "-v 'KEY'") {
				f.Add([]byte(template), byte(form), byte(0), byte(0))
			}
		}
	}
	for _, n := range []int{MaxCommand, MaxCommand + 1} {
		f.Add([]byte("/"+strings.Repeat(".a/", n)[1:n]), byte(0), byte(0), byte(0))
	}
	f.Add([]byte("-v '/KEY'"), byte(9), byte(40), byte(10))

	reg, err := layout.Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(reg.Close)
	tree := NewTree(reg, sign.NewTrust())
	self := Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), PID: uint32(os.Getpid())}
	f.Fuzz(func(t *testing.T, template []byte, form, from, to byte) {
		text := texts[int(form)%len(texts)]
		text = text[min(int(from), len(text)) : len(text)-min(int(to), max(0, len(text)-int(from)))]
		data := bytes.ReplaceAll(template, []byte("KEY"), []byte(text))
		c, err := parseCommand(data)
		if err == nil {
			checkCommand(t, data, c)
			read := func(name string) ([]byte, error) { return readAs(context.Background(), self, 0, name) }
			list := func(name string) ([]string, bool, error) { return listAs(context.Background(), self, 0, name) }
			_, _, err = tree.signer(c, read, list)
		} else if !errors.Is(err, errCommand) {
			t.Fatalf("%q: an error of another kind: %v", data, err)
		}
		if len(data) > MaxCommand && !errors.Is(err, errCommand) {
			t.Fatalf("%d bytes are not refused: %v", len(data), err)
		}
		if err == nil {
			return
		}
		for _, said := range []string{err.Error(), escape(inWords(err), false)} {
			if said == "" || len(said) > 2*MaxCommand {
				t.Fatalf("an error of %d bytes", len(said))
			}
			if part := shows(said, scalar); part != "" {
				t.Fatalf("%q shows %q of the private key that was written as %q", said, part, data)
			}
		}
	})
}

// checkCommand: a command is a key, or its path, or flags; and those are read as a plain reader of words reads them.
func checkCommand(t *testing.T, data []byte, c *command) {
	t.Helper()
	paths := append([]string{c.vendor, c.certificate, c.caPrv}, c.caPubs...)
	for _, name := range paths {
		if !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
			t.Fatalf("%q: %q is no path", data, name)
		}
	}
	if c.key != nil {
		if !bytes.Equal(c.key, data) || strings.Join(paths, "") != "" {
			t.Fatalf("%q is a key, and %q", data, paths)
		}
		return
	}
	if data[0] != '-' {
		if c.vendor != strings.TrimSuffix(string(data), "\n") || strings.Join(paths[1:], "") != "" {
			t.Fatalf("%q names %q", data, paths)
		}
		return
	}
	words, err := shellquote.Split(string(data))
	if err != nil {
		t.Fatalf("%q: %v", data, err)
	}
	var want command
	for len(words) > 0 && words[0] != "--" {
		word := words[0]
		words = words[1:]
		i := slices.IndexFunc(allowed, func(f allowedFlag) bool {
			return strings.HasPrefix(word, f.short) || word == f.long || strings.HasPrefix(word, f.long+"=")
		})
		if i < 0 {
			t.Fatalf("%q: %q is taken", data, word)
		}
		var value string
		if rest, short := strings.CutPrefix(word, allowed[i].short); short && rest != "" {
			if value = rest; len(rest) > 1 { // of -v= the value is =
				value = strings.TrimPrefix(rest, "=")
			}
		} else if rest, ok := strings.CutPrefix(word, allowed[i].long+"="); ok {
			value = rest
		} else if len(words) == 0 {
			t.Fatalf("%q: %s has no value", data, word)
		} else {
			value, words = words[0], words[1:]
		}
		allowed[i].set(&want, value)
	}
	if len(words) > 1 {
		t.Fatalf("%q: words after the flags are taken", data)
	}
	wanted := append([]string{want.vendor, want.certificate, want.caPrv}, want.caPubs...)
	if !slices.Equal(paths, wanted) || c.vendor == "" || c.caPrv != "" && len(wanted)+len(c.certificate) > 3 {
		t.Fatalf("%q means %q, and is read as %q", data, wanted, paths)
	}
}

type allowedFlag struct {
	short, long string
	set         func(*command, string)
}

var allowed = []allowedFlag{
	{"-v", "--vendor-prv", func(c *command, v string) { c.vendor = v }},
	{"-s", "--vendor-pub-signature", func(c *command, v string) { c.certificate = v }},
	{"-c", "--ca-pub", func(c *command, v string) { c.caPubs = append(c.caPubs, v) }},
	{"-x", "--ca-prv", func(c *command, v string) { c.caPrv = v }},
}

// FuzzName: a tag and its file name lead to each other, and no name of the tree could be anything but one file's in one directory.
func FuzzName(f *testing.F) {
	for _, name := range []string{
		"", ".", "..", "...", "latest", "a/b", "../../x", "50%", "%2F", "%2f", "%", "%2", "a%00b", "\x00", "a\nb", "\xff", "ü", "%2E", "%2E%2E", "%41", "%+2", "% 2",
		strings.Repeat("x", 255), strings.Repeat("x", 256), strings.Repeat("/", 85), strings.Repeat("/", 86),
		"sha256-" + strings.Repeat("0a", 32), "sha256:" + strings.Repeat("0a", 32), "sha512-" + strings.Repeat("f9", 64), "sha256-../../x", "sha256:sha256-" + strings.Repeat("0", 57),
		"nginx.tar", "nginx.oci.tar.zst", ".tar", ".tar.gz", "x.gz", "x.tar.tar", "a/b.tgz", "x.docker.tgz",
	} {
		f.Add(name, "linux", "v8")
	}
	f.Add("arm64", "linux", "8")
	f.Add("x86-64", "MacOS", "V1")
	f.Add("..", "/", "%\x00")
	f.Fuzz(func(t *testing.T, name, os, variant string) {
		if file, ok := tagName(name); ok {
			isFileName(t, file)
			if tag, ok := tagOf(file); !ok || tag != name {
				t.Fatalf("the tag %q is the file %q, and that is the tag %q (%v)", name, file, tag, ok)
			}
		} else if name != "" && len(name)*3 <= layout.MaxName {
			t.Fatalf("the tag %q has no name", name)
		}
		if tag, ok := tagOf(name); ok {
			isFileName(t, name)
			if file, ok := tagName(tag); !ok || file != name {
				t.Fatalf("the file %q is the tag %q, and that is the file %q (%v)", name, tag, file, ok)
			}
		}
		if d, ok := digestOf(name); ok {
			file := digestName(d)
			isFileName(t, file)
			if again, ok := digestOf(file); !ok || again != d || file != name && string(d) != name {
				t.Fatalf("the file %q is the digest %s, and that is the file %q", name, d, file)
			}
			if p := layout.BlobPath(d); !filepath.IsLocal(p) || strings.Count(p, "/") != 2 {
				t.Fatalf("%q is the blob %q", name, p)
			}
		}
		if shown := Field(name); strings.ContainsFunc(shown, unicode.IsControl) || !utf8.ValidString(shown) {
			t.Fatalf("%q is shown as %q", name, shown)
		}

		p := v1.Platform{OS: os, Architecture: name, Variant: variant}
		normal := layout.NormalPlatform(p)
		if again := layout.NormalPlatform(normal); again.OS != normal.OS || again.Architecture != normal.Architecture || again.Variant != normal.Variant {
			t.Fatalf("%+v is %+v, and that is %+v", p, normal, again)
		}
		if a, b := layout.PlatformName(p), layout.PlatformName(normal); a != b || strings.Count(a, "-") < 1 {
			t.Fatalf("the platform %+v is %q, and normalised %q", p, a, b)
		}
		if file, ok := tagName(layout.PlatformName(p)); ok {
			isFileName(t, file)
		}

		app := AppOf(name)
		if name != "" && app == "" || !strings.HasPrefix(name, app) {
			t.Fatalf("an archive %q becomes the app %q", name, app)
		}
		if app != name || app == "" {
			return
		}
		for _, ending := range []string{".tar", ".oci", ".tgz", ".txz", ".tar.gz", ".tar.zst", ".tar.zstd", ".tar.xz", ".tar.bz2", ".oci.gz", ".oci.tar", ".oci.tar.zst", ".docker.tar", ".docker.tgz"} {
			if got := AppOf(app + ending); got != app {
				t.Fatalf("an archive %q becomes the app %q", app+ending, got)
			}
		}
	})
}

// isFileName fails the test unless name is that of one file in a directory (limits.h, NAME_MAX).
func isFileName(t *testing.T, name string) {
	t.Helper()
	if name == "" || name == "." || name == ".." || len(name) > layout.MaxName || strings.ContainsAny(name, "/\x00") {
		t.Fatalf("%q is not a file name", name)
	}
}

// FuzzReference: an app with any tag at all shows it as one directory, which leads to the image; any other reference finds nothing, and no path
// finds what lies outside of the registry, or an app by a second name.
func FuzzReference(f *testing.F) {
	for _, tag := range []string{
		"latest", "a/b", "..", ".", "", "%2F", "50%", "a\x00b", "a\nb", "ü", "sha256:x", "sha256:" + strings.Repeat("0", 64), "../../../outside", strings.Repeat("/", 90), strings.Repeat("x", 300), "�",
	} {
		f.Add(tag, "latest")
		f.Add("latest", tag)
		f.Add(tag, tag)
	}
	for _, name := range []string{"app", "ns/app", "app/", "./app", "ns/../app", "link", "ns/link/app", "../outside", "app\x00", "/app", "app/blobs", "app/tags/latest", "app/blobs/sha256/../../index.json"} {
		f.Add("latest", name)
	}
	top := f.TempDir()
	build := func(dir, tag string) v1.Descriptor {
		l := sample.New()
		image := l.Image(sample.Linux("amd64"), sample.Gzip("f", "one"))
		l.Tag(tag, image)
		if err := l.WriteDir(dir); err != nil {
			f.Fatal(err)
		}
		return image
	}
	if err := os.MkdirAll(top+"/registry/ns", 0o755); err != nil {
		f.Fatal(err)
	}
	image := build(top+"/registry/app", "latest")
	build(top+"/registry/ns/app", "latest")
	build(top+"/outside", "latest")
	if err := errors.Join(os.Symlink("../outside", top+"/registry/link"), os.Symlink("..", top+"/registry/ns/link")); err != nil {
		f.Fatal(err)
	}
	reg, err := layout.Open(top + "/registry")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(reg.Close)
	tree := NewTree(reg, sign.NewTrust())
	ctx := context.Background()
	f.Fuzz(func(t *testing.T, tag, ref string) {
		if !utf8.ValidString(tag) || len(tag) > 4096 {
			return // it cannot stand in JSON
		}
		l := sample.New()
		d := l.Image(sample.Linux("amd64"), sample.Gzip("f", "one"))
		l.Tag(tag, d)
		if err := os.WriteFile(top+"/registry/app/index.json", l.Files()["index.json"], 0o644); err != nil {
			t.Fatal(err)
		}
		app, err := reg.App("app")
		if err != nil {
			t.Fatal(err)
		}
		snap, err := app.Snapshot(t.Context())
		if err != nil || snap.Err != nil {
			t.Fatalf("%v, %v", err, snap.Err)
		}
		if tag != "" {
			if e, err := snap.Resolve(t.Context(), tag); err != nil || e.Digest != image.Digest {
				if _, err := layout.ParseDigest(tag); err != nil { // one that is a digest is taken for it
					t.Fatalf("the tag %q: %s, %v", tag, e.Digest, err)
				}
			}
		}
		if e, err := snap.Resolve(t.Context(), ref); err == nil && ref != tag && ref != string(image.Digest) {
			t.Fatalf("%q resolves to %s", ref, e.Digest)
		} else if err != nil && !errors.Is(err, layout.ErrNotFound) && !errors.Is(err, layout.ErrDigest) {
			t.Fatalf("%q: an error of another kind: %v", ref, err)
		}

		names, err := tree.List(ctx, "app/tags")
		if err != nil {
			t.Fatal(err)
		}
		file, ok := tagName(tag)
		if ok != (len(names) == 1) || ok && names[0].Name != file {
			t.Fatalf("the tag %q is listed as %v", tag, names)
		}
		for _, n := range names {
			isFileName(t, n.Name)
			if text, _, err := tree.Read(ctx, "app/tags/"+n.Name+"/digest"); err != nil || strings.TrimSpace(string(text)) != string(image.Digest) {
				t.Fatalf("%s/digest: %q, %v", n.Name, text, err)
			}
		}
		for _, dir := range []string{"app/tags", "app/manifests", "app/blobs", "app/blobs/sha256", "."} {
			parent, err := tree.Stat(ctx, dir)
			if err != nil {
				t.Fatal(err)
			}
			// The kernel looks up parts of paths only.
			if strings.ContainsAny(ref, "/\x00") || ref == "" || ref == "." || ref == ".." {
				break
			}
			item, err := parent.dir.lookup(ctx, ref)
			if err != nil {
				if errno := errnoOf(err); errno != errnoOf(errAbsent) && len(ref) <= layout.MaxName {
					t.Fatalf("%s/%q: %v", dir, ref, err)
				}
				continue
			}
			listed, err := parent.dir.list(ctx)
			alias := dir == "app/manifests" && ref == string(image.Digest)
			if err != nil || !alias && !slices.ContainsFunc(listed, func(n Name) bool { return n.Name == ref && n.Mode == item.Mode&fs.ModeType }) {
				t.Fatalf("%s/%q is there, and not listed: %v, %v", dir, ref, listed, err)
			}
		}

		if at, err := reg.App(ref); err == nil && ref != "app" && ref != "ns/app" {
			t.Fatalf("there is an app %q: %q", ref, at.Name)
		}
		if _, err := reg.Dir(ref); err == nil && !filepath.IsLocal(ref) {
			t.Fatalf("there is a directory %q", ref)
		}
		if err := reg.CheckName(ref); err == nil {
			if !filepath.IsLocal(ref) || filepath.Clean(ref) != ref || strings.ContainsFunc(ref, func(c rune) bool { return c < ' ' || c == 0x7f }) || !utf8.ValidString(ref) {
				t.Fatalf("%q can be the name of an app", ref)
			}
			for part := range strings.SplitSeq(ref, "/") {
				if isFileName(t, part); part[0] == '.' {
					t.Fatalf("%q can be the name of an app", ref)
				}
			}
		} else if !errors.Is(err, layout.ErrName) {
			t.Fatalf("%q: an error of another kind: %v", ref, err)
		}
	})
}
