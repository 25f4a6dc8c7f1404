package faults

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"irfs/internal/irfstest"
	"irfs/layout"
	"irfs/layout/sample"
)

// A badArchive is refused, whichever way it comes in.
type badArchive struct {
	row   int
	name  string
	make  func(t *testing.T, good sample.Files) []byte
	errno syscall.Errno // of copying it into import/
	says  string
	logs  string // what the log says, if not says
	slow  bool   // not in the short form, nor with the race detector
}

func (r badArchive) title() string { return fmt.Sprintf("%02d archive: %s", r.row, r.name) }

// block is a member's header by hand, with a right checksum, for what archive/tar does not write.
func block(name string, kind byte, size int64, change func(h []byte)) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00", size))
	h[156] = kind
	copy(h[257:], "ustar\x0000")
	if change != nil {
		change(h)
	}
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

func fill(text []byte) []byte { return append(bytes.Clone(text), make([]byte, -len(text)&511)...) }

// member is a whole one, as archive/tar writes it.
func tarMember(t *testing.T, h tar.Header, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if h.Size == 0 {
		h.Size = int64(len(text))
	}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	worked(t, w.WriteHeader(&h))
	_, err := w.Write([]byte(text))
	worked(t, err)
	worked(t, w.Flush())
	return b.Bytes()
}

func extended(t *testing.T, records map[string]string) []byte {
	text := ""
	for key, value := range records {
		n := len(key) + len(value) + 3
		for len(fmt.Sprint(n))+len(key)+len(value)+3 != n {
			n++
		}
		text += fmt.Sprintf("%d %s=%s\n", n, key, value)
	}
	return join(block("x", 'x', int64(len(text)), nil), fill([]byte(text)))
}

var endOfTar = make([]byte, 1024)

func tarOf(t *testing.T, files sample.Files) []byte {
	t.Helper()
	var b bytes.Buffer
	worked(t, files.WriteTar(&b))
	return b.Bytes()
}

func writeArchive(t *testing.T, name string, files sample.Files) {
	t.Helper()
	worked(t, os.WriteFile(name, tarOf(t, files), 0o644))
}

func badArchives(t *testing.T, s *stage) {
	f := newForge(t, s, "-")
	f.Tag("x", f.image)
	good := f.Files()
	for i, row := range archivesRefused(f) {
		if row.slow && (irfstest.Race() || !full) {
			continue
		}
		t.Run(row.title(), func(t *testing.T) {
			t.Parallel()
			inTime(t, func() {
				app := fmt.Sprintf("never-%03d", i)
				name := filepath.Join(s.files, app+".tar")
				worked(t, os.WriteFile(name, row.make(t, good), 0o644))
				out, code, said := irfs("import", "-r", s.registry, "-a", app, name)
				if code != 1 || out != "" || !strings.Contains(said, row.says) {
					t.Errorf("irfs import: exit code %d, %q, %q; want %q", code, out, said, row.says)
				}
				if errno := s.copyIn(t, app+".tar", name); errno != row.errno {
					t.Errorf("import/: %v, want %v: %s", errno, row.errno, s.logged(t, "import/"+app+".tar"))
				}
				logs := row.says
				if row.logs != "" {
					logs = row.logs
				}
				if outcome := s.logged(t, "import/"+app+".tar"); !strings.Contains(outcome, logs) {
					t.Errorf("the log says %q; want %q", outcome, logs)
				}
				for _, at := range []string{s.registry, s.mnt} {
					if _, err := os.Lstat(filepath.Join(at, app)); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s: %v", filepath.Join(at, app), err)
					}
				}
				worked(t, os.Remove(name))
			})
		})
	}
	badNames(t, s, f)
}

// copyIn copies a file into import/, as cp does: no write after one that failed. It gives the first errno.
func (s *stage) copyIn(t *testing.T, name, file string) syscall.Errno {
	text, err := os.ReadFile(file)
	worked(t, err)
	// A child that this process starts closes its copy of the file: to the mount that is a close like any other, at which what is
	// there is imported if it is complete.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Open(filepath.Join(s.mnt, "import", name), unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return errnoIn(err)
	}
	for len(text) > 0 && err == nil {
		var n int
		n, err = unix.Write(fd, text[:min(len(text), 128<<10)])
		text = text[max(n, 0):]
	}
	return errnoIn(errors.Join(err, unix.Close(fd)))
}

func archivesRefused(f *forge) (list []badArchive) {
	add := func(row int, name string, errno syscall.Errno, says string, make func(t *testing.T, good sample.Files) []byte) {
		list = append(list, badArchive{row: row, name: name, make: make, errno: errno, says: says})
	}
	with := func(more ...[]byte) func(t *testing.T, good sample.Files) []byte {
		return func(t *testing.T, good sample.Files) []byte {
			text := tarOf(t, good)
			return join(text[:len(text)-1024], join(anys(more)...), endOfTar)
		}
	}
	files := func(change func(good sample.Files)) func(t *testing.T, good sample.Files) []byte {
		return func(t *testing.T, good sample.Files) []byte {
			copied := sample.Files{}
			for name, text := range good {
				copied[name] = bytes.Clone(text)
			}
			change(copied)
			return tarOf(t, copied)
		}
	}
	odd := func(kind byte, name, target string) []byte {
		return block(name, kind, 0, func(h []byte) { copy(h[157:], target) })
	}
	blobName := "blobs/sha256/" + someHex
	text := func(name, content string) []byte { return tarMember(f.t, tar.Header{Name: name}, content) }
	target := f.stage.outside + "/file"

	// 23
	const outward, noFile = "not a path inside the archive", "neither a regular file nor a directory"
	add(23, "absolute name", syscall.EBADMSG, outward, with(text(target, "evil")))
	add(23, "absolute name by PAX", syscall.EBADMSG, outward, with(extended(f.t, map[string]string{"path": target}), text("x", "evil")))
	add(23, "absolute directory", syscall.EBADMSG, outward, with(odd('5', f.stage.outside+"/made/", "")))
	add(23, "..", syscall.EBADMSG, outward, with(text("../outside/file", "evil")))
	add(23, ".. behind a directory", syscall.EBADMSG, outward, with(text("blobs/../../outside/file", "evil")))
	add(23, ".. of a directory", syscall.EBADMSG, outward, with(odd('5', "../outside/made/", "")))
	add(23, ".. by a long name", syscall.EBADMSG, outward, with(block("././@LongLink", 'L', 16, nil), fill([]byte("../outside/file\x00")), text("x", "evil")))
	add(23, "symlink, and a write through it", syscall.EBADMSG, noFile, with(odd('2', "blobs/sha512", f.stage.outside), text("blobs/sha512/file", "evil")))
	add(23, "symlink upwards, and a write through it", syscall.EBADMSG, noFile, with(odd('2', "up", "../../outside"), text("up/file", "evil")))
	add(23, "symlink of a layer, and a write through it", syscall.EBADMSG, "no directory", with(odd('2', "layer.tar", f.stage.outside), text("layer.tar/file", "evil")))
	add(23, "symlink of a layer, and a write upon it", syscall.EBADMSG, "twice in the archive", with(odd('2', "layer.tar", target), text("layer.tar", "evil")))
	add(23, "hard link, and a write upon it", syscall.EBADMSG, noFile, with(odd('1', blobName, target), text(blobName, "evil")))
	add(23, "character device", syscall.EBADMSG, noFile, with(odd('3', "zero", "")))
	add(23, "block device", syscall.EBADMSG, noFile, with(odd('4', "disk", "")))
	add(23, "FIFO", syscall.EBADMSG, noFile, with(odd('6', "fifo", "")))
	add(23, "FIFO for a blob", syscall.EBADMSG, noFile, with(odd('6', blobName, "")))
	add(23, "contiguous file", syscall.EBADMSG, noFile, with(odd('7', "file", "")))

	// 24
	const differently = "readers understand differently"
	hidden := text("index.json", "hidden")
	add(24, "a size in PAX that hides a member", syscall.EBADMSG, "twice in the archive", // as GNU tar has it: the header's own size counts no more
		with(extended(f.t, map[string]string{"size": "0"}), block("pad", '0', int64(len(hidden)), nil), hidden))
	add(24, "a malformed size in PAX", syscall.EBADMSG, "", with(extended(f.t, map[string]string{"size": "+1"}), block("pad", '0', 1, nil), fill([]byte("x"))))
	add(24, "PAX upon PAX", syscall.EBADMSG, differently, with(extended(f.t, map[string]string{"size": fmt.Sprint(len(hidden))}), extended(f.t, map[string]string{"path": "y"}), block("x", '0', 0, nil), hidden))
	add(24, "a long name upon PAX", syscall.EBADMSG, differently, with(extended(f.t, map[string]string{"size": fmt.Sprint(len(hidden))}), block("././@LongLink", 'L', 2, nil), fill([]byte("y\x00")), block("x", '0', 0, nil), hidden))
	add(24, "a global header with a size", syscall.EBADMSG, differently, with(block("g", 'g', 10, nil), fill([]byte("10 size=9\n")), block("x", '0', 0, nil)))
	add(24, "a directory with a size", syscall.EBADMSG, differently, with(block("d/", '5', int64(len(hidden)), nil), hidden))
	add(24, "sparse, of GNU", syscall.EBADMSG, noFile, with(block("hole", 'S', 0, func(h []byte) { copy(h[257:], "ustar  \x00"); copy(h[483:], "77777777777\x00") })))
	add(24, "sparse, PAX 0.1", syscall.EBADMSG, "sparse", with(extended(f.t, map[string]string{"GNU.sparse.size": "10", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,1"}), text("x", "1")))
	add(24, "sparse, PAX 1.0 with a billion parts", syscall.EBADMSG, "",
		with(extended(f.t, map[string]string{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "y", "GNU.sparse.realsize": "10"}), text("x", "1000000000\n")))

	// 25
	from := len(list)
	cut := func(at func(n int) int) func(t *testing.T, good sample.Files) []byte {
		return func(t *testing.T, good sample.Files) []byte {
			text := tarOf(t, good)
			return text[:at(len(text))]
		}
	}
	add(25, "no bytes but some zeros", syscall.EBADMSG, "", func(*testing.T, sample.Files) []byte { return make([]byte, 100) })
	add(25, "truncated in a header", syscall.EBADMSG, "cut off", cut(func(int) int { return 300 }))
	add(25, "truncated in a file", syscall.EBADMSG, "cut off", cut(func(n int) int { return n/2 + 17 }))
	add(25, "truncated before its end", syscall.EBADMSG, "cut off", cut(func(n int) int { return n - 1024 }))
	add(25, "truncated between its two last blocks", syscall.EBADMSG, "cut off", cut(func(n int) int { return n - 512 }))
	add(25, "truncated, and packed", syscall.EBADMSG, "cut off", func(t *testing.T, good sample.Files) []byte {
		text := gzipped(t, tarOf(t, good))
		return text[:len(text)/2]
	})
	for i := range list[from:] {
		list[from+i].logs = "it ends before its end-of-archive blocks; nothing was imported"
	}
	add(25, "data after the end", syscall.EBADMSG, "data after its end", func(t *testing.T, good sample.Files) []byte { return append(tarOf(t, good), 'x') })
	add(25, "data far after the end", syscall.EBADMSG, "data after its end", func(t *testing.T, good sample.Files) []byte { return join(tarOf(t, good), make([]byte, 1<<20), "x") })
	add(25, "concatenated", syscall.EBADMSG, "data after its end", func(t *testing.T, good sample.Files) []byte { return join(tarOf(t, good), tarOf(t, good)) })
	add(25, "two packed ones", syscall.EBADMSG, "data after its end", func(t *testing.T, good sample.Files) []byte {
		text := gzipped(t, tarOf(t, good))
		return join(text, text)
	})
	add(25, "garbage after a packed one", syscall.EBADMSG, "", func(t *testing.T, good sample.Files) []byte { return join(gzipped(t, tarOf(t, good)), "garbage") })
	add(25, "packed twice", syscall.EBADMSG, "", func(t *testing.T, good sample.Files) []byte { return gzipped(t, gzipped(t, tarOf(t, good))) })
	add(25, "duplicate name", syscall.EBADMSG, "twice in the archive", with(text("index.json", "{}")))
	add(25, "duplicate name, spelled otherwise", syscall.EBADMSG, "twice in the archive", with(text(".//index.json", "{}")))
	add(25, "a million entries", syscall.EFBIG, "over the limit of 100000 entries", func(t *testing.T, _ sample.Files) []byte {
		n := layout.MaxArchiveEntries + 1
		if full {
			n = 1_000_000
		}
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		for i := range n {
			_, err := w.Write(block(fmt.Sprintf("d/%d", i), '0', 0, nil))
			worked(t, err)
		}
		worked(t, w.Close())
		return b.Bytes()
	})
	add(25, "more bytes than an archive may have", syscall.EFBIG, "over the limit of", func(t *testing.T, good sample.Files) []byte {
		return join(extended(t, map[string]string{"size": fmt.Sprint(int64(layout.MaxArchive) + 1)}), block(blobName, '0', 0, nil), make([]byte, 1024))
	})
	add(25, "an index.json of 1 TiB", syscall.EFBIG, "over the limit of", func(t *testing.T, _ sample.Files) []byte {
		return join(extended(t, map[string]string{"size": fmt.Sprint(int64(1) << 40)}), block("index.json", '0', 0, nil), make([]byte, 1024))
	})
	add(25, "a window of 2 GiB", syscall.EFBIG, "a window over the limit of 67108864 bytes", func(*testing.T, sample.Files) []byte {
		// A frame's header (RFC 8878, 3.1.1.1): no single segment, window of 2^31; then a block of a raw byte.
		return join("\x28\xb5\x2f\xfd\x00\xa8", "\x09\x00\x00x", make([]byte, 600))
	})
	list = append(list, badArchive{row: 25, name: "a decompression bomb", errno: syscall.EFBIG, says: "a decompression bomb", slow: true, make: func(t *testing.T, _ sample.Files) []byte {
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		worked(t, err)
		zeros := w.EncodeAll(make([]byte, 64<<20), nil)
		return join(w.EncodeAll(block("repositories", '0', 4<<30, nil), nil), bytes.Repeat(zeros, 40))
	}})

	// 26
	add(26, "a blob that is not its name", syscall.EBADMSG, "do not have this digest", files(func(good sample.Files) { good[sample.Path(f.image.Digest)][0] = ' ' }))
	add(26, "a blob that is not its name, and nobody needs", syscall.EBADMSG, "do not have this digest", with(text(blobName, "x")))
	add(26, "no manifest", syscall.EBADMSG, "not in the layout", files(func(good sample.Files) { delete(good, sample.Path(f.image.Digest)) }))
	add(26, "no config", syscall.EBADMSG, "not in the layout", files(func(good sample.Files) { delete(good, sample.Path(f.manifest(f.image).Config.Digest)) }))
	add(26, "no layer", syscall.EBADMSG, "not in the layout", files(func(good sample.Files) { delete(good, sample.Path(f.manifest(f.image).Layers[0].Digest)) }))
	add(26, "a name that is no digest", syscall.EBADMSG, "is not a digest", with(text("blobs/sha256/"+strings.ToUpper(someHex), "x")))
	add(26, "layers in index.json", syscall.EBADMSG, "layers belongs in a manifest", files(func(good sample.Files) {
		good["index.json"] = []byte(member(`"layers":[]`)(string(good["index.json"])))
	}))
	add(26, "a digest with .. in index.json", syscall.EBADMSG, "is not a digest", files(func(good sample.Files) {
		good["index.json"] = []byte(swap(aDigest, aDigest+"../")(string(good["index.json"])))
	}))
	add(26, "Docker's list names a file outside", syscall.EBADMSG, "", func(t *testing.T, _ sample.Files) []byte {
		return join(text("manifest.json", fmt.Sprintf(`[{"Config":%q,"RepoTags":["x:1"],"Layers":["../outside/file"]}]`, target)), endOfTar)
	})
	return list
}

func anys(parts [][]byte) (list []any) {
	for _, p := range parts {
		list = append(list, p)
	}
	return list
}

func gzipped(t *testing.T, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(text)
	worked(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

// badNames: a good archive, whose app cannot be made.
func badNames(t *testing.T, s *stage, f *forge) {
	archive := filepath.Join(s.files, "named.tar")
	writeArchive(t, archive, f.Files())
	for _, name := range []string{".", "..", ".x", "a/.x", "../x", "a/../b", "/a", "a/", "a//b", ".irfs", "import", "import/a", "a\nb", "a\xffb", "a\x1b[31m",
		strings.Repeat("a", 256), "a/" + strings.Repeat("a", 256), "good/tags", "good/blobs", "good/manifests/x", "good/index.json"} {
		t.Run(fmt.Sprintf("27 app %.20q", name), func(t *testing.T) {
			t.Parallel()
			wantCode(t, 1, "cannot be the name of an app", "import", "-r", s.registry, "-a", name, archive)
		})
	}
	t.Run("27 no name", func(t *testing.T) {
		t.Parallel()
		nameless := filepath.Join(s.files, ".tar")
		writeArchive(t, nameless, f.Files())
		wantCode(t, 1, "cannot be the name of an app", "import", "-r", s.registry, nameless)
		wantCode(t, 2, "-a APP is missing", "import", "-r", s.registry, "-")
	})
	for name, errno := range map[string]syscall.Errno{
		"import.tar": syscall.EINVAL, strings.Repeat("a", 260) + ".tar": syscall.EINVAL, "a\nb.tar": syscall.EINVAL, "a\xffb.tar": syscall.EINVAL,
		"a\x1b[31m.tar": syscall.EINVAL, "../x.tar": syscall.EPERM, "good/x.tar": syscall.ENOENT, "..": syscall.EISDIR,
	} {
		t.Run(fmt.Sprintf("27 import/%.20q", name), func(t *testing.T) {
			t.Parallel()
			if got := s.copyIn(t, name, archive); got != errno {
				t.Errorf("%v, want %v", got, errno)
			}
		})
	}
	for _, name := range []string{".irfs", ".x", "import", strings.Repeat("a", 256), "a\nb"} {
		t.Run(fmt.Sprintf("27 mkdir import/%.20q", name), func(t *testing.T) {
			t.Parallel()
			if err := os.Mkdir(filepath.Join(s.mnt, "import", name), 0o755); errnoIn(err) != syscall.EINVAL {
				t.Errorf("%v, want EINVAL", err)
			}
		})
	}
	t.Run("27 a name with a dot is never taken in, and cannot be renamed to a bad one", func(t *testing.T) {
		t.Parallel()
		staged := filepath.Join(s.mnt, "import/.hidden.tar")
		if errno := s.copyIn(t, ".hidden.tar", archive); errno != 0 {
			t.Fatalf("%v", errno)
		}
		defer os.Remove(staged)
		for _, name := range []string{"import.tar", "a\nb.tar", strings.Repeat("a", 260) + ".tar"} {
			if err := os.Rename(staged, filepath.Join(s.mnt, "import", name)); errnoIn(err) != syscall.EINVAL {
				t.Errorf("renamed to %.20q: %v, want EINVAL", name, err)
			}
		}
		if err := os.Rename(staged, filepath.Join(s.mnt, "good/x.tar")); errnoIn(err) != syscall.EPERM && errnoIn(err) != syscall.ENOENT {
			t.Errorf("renamed out of import/: %v", err)
		}
	})
	t.Run("27 the tag is there with another digest", func(t *testing.T) {
		t.Parallel()
		other := newForge(t, s, "-")
		other.Tag("x", other.Image(sample.Linux("amd64"), sample.Gzip("a", "b")))
		name := filepath.Join(s.files, "good.tar.other")
		writeArchive(t, name, other.Files())
		if errno := s.copyIn(t, "good.tar", name); errno != syscall.EEXIST {
			t.Errorf("%v, want EEXIST: %s", errno, s.logged(t, "import/good.tar"))
		}
		wantCode(t, 1, "x", "import", "-r", s.registry, "-a", "good", name)
	})
	t.Run("27 the app is there", func(t *testing.T) {
		t.Parallel()
		wantCode(t, 1, "good", "import", "-r", s.registry, "-a", "good", "--on-exist", "fail", archive)
	})
}

// goodArchives are odd, and taken: what is odd in them is nowhere.
func goodArchives(t *testing.T, s *stage) {
	house.Need(t, "tar")
	f := newForge(t, s, "-")
	f.Tag("x", f.image)
	good := f.Files()
	rest := func() []byte { // all but index.json
		files := sample.Files{}
		for name, text := range good {
			if name != "index.json" {
				files[name] = text
			}
		}
		text := tarOf(t, files)
		return text[:len(text)-1024]
	}
	index := string(good["index.json"])
	evil := strings.Replace(index, `"x"`, `"e"`, 1)
	for name, text := range map[string][]byte{
		"23 set-user-id, set-group-id, sticky": join(rest(), tarMember(t, tar.Header{Name: "index.json", Mode: 0o7777}, index), endOfTar),
		"23 an owner":                          join(rest(), tarMember(t, tar.Header{Name: "index.json", Uid: 12345, Gid: 12345, Uname: "nobody"}, index), endOfTar),
		"23 extended attributes": join(rest(), tarMember(t, tar.Header{Name: "index.json", Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr.user.evil": "1", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00", "LIBARCHIVE.xattr.user.evil": "MQ", "SCHILY.acl.access": "user::rwx,user:12345:rwx,group::rwx,mask::rwx,other::rwx"}}, index), endOfTar),
		"24 a size in PAX, and none in the header": join(rest(), extended(t, map[string]string{"size": fmt.Sprint(len(index))}), block("index.json", '0', 0, nil), fill([]byte(index)), endOfTar),
		"24 a size in PAX that is less":            join(rest(), extended(t, map[string]string{"size": fmt.Sprint(len(index))}), block("index.json", '0', int64(len(index)+512), nil), fill([]byte(index)), endOfTar),
		"24 members in what PAX says is content": join(rest(), extended(t, map[string]string{"size": "4096"}), block("notes", '0', 0, nil),
			func() []byte {
				inner := make([]byte, 4096)
				copy(inner, tarMember(t, tar.Header{Name: "index.json"}, evil))
				return inner
			}(),
			tarMember(t, tar.Header{Name: "index.json"}, index), endOfTar),
	} {
		t.Run(name, func(t *testing.T) {
			app := "taken-" + strings.Map(func(c rune) rune {
				if c == ' ' || c == ',' {
					return '-'
				}
				return c
			}, name)
			file := filepath.Join(s.files, app+".tar")
			worked(t, os.WriteFile(file, text, 0o644))
			if errno := s.copyIn(t, app+".tar", file); errno != 0 {
				t.Fatalf("%v: %s", errno, s.logged(t, "import/"+app+".tar"))
			}
			if _, code, said := irfs("import", "-r", s.registry, "-a", app+"-too", file); code != 0 {
				t.Errorf("irfs import: %d, %s", code, said)
			}
			if word := s.read(t, app+"/tags/x/verify-full"); word != "verified\n" {
				t.Errorf("verify-full: %q", word)
			}
			dir := newDir(t, "gnu")
			if out, err := exec.Command("tar", "-xf", file, "-C", dir, "index.json").CombinedOutput(); err != nil {
				t.Errorf("tar: %v: %s", err, out)
			}
			gnu, err := os.ReadFile(dir + "/index.json")
			worked(t, err)
			for _, app := range []string{app, app + "-too"} {
				tagged(t, s, app)
				taken, err := os.ReadFile(filepath.Join(s.registry, app, "index.json"))
				if err != nil || !bytes.Equal(taken, gnu) {
					t.Errorf("%v; index.json is %s, and for GNU tar %s", err, taken, gnu)
				}
				ordinary(t, filepath.Join(s.registry, app))
			}
		})
	}
}

// ordinary fails unless all in a directory is root's, with no mode, attribute or ACL that anybody could use.
func ordinary(t *testing.T, dir string) {
	t.Helper()
	for name, text := range allIn(t, dir) {
		mode, owner, _ := strings.Cut(text, " ")
		if !strings.HasPrefix(mode, "-rw") && !strings.HasPrefix(mode, "drwx") || strings.ContainsAny(mode[1:], "sStTu") || !strings.HasPrefix(owner, "0:0 ") {
			t.Errorf("%s: %.40q", name, text)
		}
		buffer := make([]byte, 4096)
		if n, err := unix.Llistxattr(filepath.Join(dir, name), buffer); err != nil && err != unix.ENOTSUP || n > 0 {
			t.Errorf("%s has attributes: %q, %v", name, buffer[:max(n, 0)], err)
		}
	}
}
