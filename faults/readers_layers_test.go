package faults

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"irfs/layout/sample"
)

// packed compresses a tar file, and remembers the result.
func packed(compression string, tar []byte) []byte {
	k := compression + ":" + string(tar)
	packedMu.Lock()
	defer packedMu.Unlock()
	if b, ok := packedBlobs[k]; ok {
		return b
	}
	b := sample.Layer{Compression: compression, Tar: tar}.Blob()
	switch compression {
	case "xz", "bzip2":
		cmd := exec.Command(compression, "-c")
		cmd.Stdin = bytes.NewReader(tar)
		var err error
		if b, err = cmd.Output(); err != nil {
			panic(err)
		}
	}
	packedBlobs[k] = b
	return b
}

var (
	packedMu    sync.Mutex
	packedBlobs = map[string][]byte{}
)

// relayer gives a layer another blob, of a compression by its media type.
func (w *wording) relayer(n *node, blob []byte, compression string) {
	n.set("mediaType", stringOf(layerType(isDockerType(n.get("mediaType").is()), compression)))
	p := &paper{data: blob, tar: n.paper().tar}
	n.replace(p)
}

// compressionMutations pack the same tar file in other ways, under right and wrong media types.
func compressionMutations() (list []mutation) {
	add := func(name string, m mark, compression string, pack func(tar, evil []byte, pick pick) []byte) {
		list = append(list, at(layerPlace, "compression", name, m, func(w *wording, n *node, pick pick) bool {
			p := n.paper()
			if p.tar == nil {
				return false
			}
			w.relayer(n, pack(p.tar, w.evil.body.get("layers").items[0].paper().tar, pick), compression)
			return true
		}))
	}
	for _, as := range []string{"", "gzip", "zstd"} {
		for _, by := range []string{"", "gzip", "zstd", "xz", "bzip2"} {
			m := ambiguous
			if as == by {
				m = harmless
			}
			add(fmt.Sprintf("packed by %q, typed as %q", by, as), m, as, func(tar, _ []byte, _ pick) []byte { return packed(by, tar) })
		}
	}
	zip := func(b []byte) []byte { return packed("gzip", b) }
	zst := func(b []byte) []byte { return packed("zstd", b) }
	add("gzip in two members", harmless, "gzip", func(tar, _ []byte, pick pick) []byte {
		i := 1 + pick(len(tar)-1)
		return slices.Concat(zip(tar[:i]), zip(tar[i:]))
	})
	add("gzip, zeros behind it", harmless, "gzip", func(tar, _ []byte, pick pick) []byte {
		return slices.Concat(zip(tar), make([]byte, 1+pick(1024)))
	})
	add("gzip with a name and a comment", harmless, "gzip", func(tar, _ []byte, pick pick) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Name, z.Comment, z.Extra = "evil", "evil", []byte("ab\x02\x00cd")
		z.Write(tar)
		z.Close()
		return b.Bytes()
	})
	add("gzip, an empty member behind it", debatable, "gzip", func(tar, _ []byte, pick pick) []byte { return slices.Concat(zip(tar), zip(nil)) })
	add("gzip, something behind it", ambiguous, "gzip", func(tar, _ []byte, pick pick) []byte {
		return append(slices.Clone(zip(tar)), pick.of("x", "\x1f", "\x00x", "\x28\xb5\x2f\xfd", "\x00\x00\x1f\x8b", "\n")...)
	})
	add("gzip, with a footer of eStargz", ambiguous, "gzip", func(tar, _ []byte, pick pick) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Extra = []byte("SG\x16\x000000000000000000STARGZ")
		z.Close()
		return slices.Concat(zip(tar), b.Bytes())
	})
	add("zstd, with a footer of zstd:chunked", ambiguous, "zstd", func(tar, _ []byte, pick pick) []byte {
		return slices.Concat(zst(tar), []byte("\x50\x2a\x4d\x18\x40\x00\x00\x00"), make([]byte, 56), []byte("GNUlInUx"))
	})
	add("gzip in two members, zeros between them", ambiguous, "gzip", func(tar, _ []byte, pick pick) []byte {
		return slices.Concat(zip(tar[:512]), make([]byte, 1+pick(512)), zip(tar[512:]))
	})
	add("gzip, zeros and the evil tar behind it", ambiguous, "gzip", func(tar, evil []byte, pick pick) []byte {
		return slices.Concat(zip(tar), make([]byte, 1+pick(512)), zip(evil))
	})
	add("gzip, something and the evil tar behind it", ambiguous, "gzip", func(tar, evil []byte, pick pick) []byte {
		return slices.Concat(zip(tar), []byte("x"), zip(evil))
	})
	add("gzip, the evil tar behind it", ambiguous, "gzip", func(tar, evil []byte, pick pick) []byte { return slices.Concat(zip(tar), zip(evil)) })
	add("gzip, its end cut off", ambiguous, "gzip", func(tar, _ []byte, pick pick) []byte { b := zip(tar); return b[:len(b)-1-pick(8)] })
	add("gzip with a wrong checksum", ambiguous, "gzip", func(tar, _ []byte, pick pick) []byte {
		b := slices.Clone(zip(tar))
		b[len(b)-8] ^= 1
		return b
	})
	add("zstd in two frames", harmless, "zstd", func(tar, _ []byte, pick pick) []byte {
		i := 1 + pick(len(tar)-1)
		return slices.Concat(zst(tar[:i]), zst(tar[i:]))
	})
	add("zstd, a skippable frame before it", ambiguous, "zstd", func(tar, evil []byte, pick pick) []byte {
		return slices.Concat(skippable(evil, pick), zst(tar))
	})
	add("zstd, a skippable frame that is a tar before it", ambiguous, "zstd", func(tar, evil []byte, pick pick) []byte {
		return slices.Concat(frameTar(), zst(tar))
	})
	add("zstd, a skippable frame within", debatable, "zstd", func(tar, evil []byte, pick pick) []byte {
		return slices.Concat(zst(tar[:512]), skippable(evil, pick), zst(tar[512:]))
	})
	add("zstd, a skippable frame behind it", debatable, "zstd", func(tar, evil []byte, pick pick) []byte {
		return slices.Concat(zst(tar), skippable(evil, pick))
	})
	add("zstd, something behind it", ambiguous, "zstd", func(tar, _ []byte, pick pick) []byte {
		return append(slices.Clone(zst(tar)), pick.of("x", "\x00", "\x1f\x8b")...)
	})
	add("zstd, the evil tar behind it", ambiguous, "zstd", func(tar, evil []byte, pick pick) []byte { return slices.Concat(zst(tar), zst(evil)) })
	add("zstd without a size", harmless, "zstd", func(tar, _ []byte, pick pick) []byte {
		var b bytes.Buffer
		z, _ := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(false))
		z.Write(tar)
		z.Close()
		return b.Bytes()
	})
	add("a plain tar, zeros behind it", ambiguous, "", func(tar, _ []byte, pick pick) []byte { return append(slices.Clone(tar), make([]byte, 512)...) })
	add("a plain tar, the evil one behind it", ambiguous, "", func(tar, evil []byte, pick pick) []byte { return slices.Concat(tar, evil) })
	for _, table := range []string{"containerd.io/snapshot/stargz/toc.digest", "io.github.containers.zstd-chunked.manifest-checksum"} {
		list = append(list, at(layerPlace, "compression", "a table of contents that is not there: "+table, ambiguous, func(w *wording, n *node, pick pick) bool {
			a := object(table, stringOf(aSum))
			if strings.Contains(table, "zstd") {
				a.set("io.github.containers.zstd-chunked.manifest-position", stringOf("10:20:30:1"))
			}
			n.set("annotations", a)
			return true
		}))
	}
	for name, magic := range map[string]string{"gzip's": "\x1f\x8b\x08", "zstd's": "\x28\xb5\x2f\xfd"} {
		list = append(list, signedTar("a signed plain tar whose first name begins with "+name+" magic", ambiguous, func() []byte { return tarBeginning(magic, "motd", "good\n") }))
	}
	list = append(list,
		signedTar("a signed plain tar whose first name begins with bzip2's magic", debatable, func() []byte { return tarBeginning("BZh91AY&SY", "motd", "good\n") }),
		signedTar("a signed plain tar that is a skippable frame, and a zstd frame behind it", debatable, func() []byte {
			return slices.Concat(frameTar(), zst(sample.Plain("motd", "EVIL\n").Tar))
		}),
	)
	slices.SortStableFunc(list, func(a, b mutation) int { return strings.Compare(a.name, b.name) })
	return list
}

// signedTar is an image whose vendor signed an odd tar file as its first layer.
func signedTar(name string, m mark, tar func() []byte) mutation {
	return at(manifestPlace, "compression", name, m, func(w *wording, n *node, pick pick) bool {
		tars := [][]byte{tar()}
		layers := n.get("layers").items
		for _, l := range layers[1:] {
			tars = append(tars, l.paper().tar)
		}
		config := readNode(n.get("config").paper().data)
		diffs := array()
		for _, t := range tars {
			diffs.items = append(diffs.items, stringOf(digest.FromBytes(t).String()))
		}
		config.get("rootfs").set("diff_ids", diffs)
		var b bytes.Buffer
		config.write(&b, "")
		w.resign(n, b.Bytes(), tars)
		w.relayer(layers[0], tars[0], "")
		layers[0].paper().tar = tars[0]
		return true
	})
}

// skippable is a zstd frame that decompresses to nothing (RFC 8878, 3.1.2).
func skippable(content []byte, pick pick) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(0x184D2A50+pick(16)))
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(content))), content...)
}

// frameTar is a tar file with evil in it that is also a skippable frame: its first name begins with the frame's header.
func frameTar() []byte {
	b := tarBeginning("AAAAAAAA", "motd", "EVIL\n")
	return tarBeginning(string(skippable(b, func(int) int { return 0 })[:4])+string(binary.LittleEndian.AppendUint32(nil, uint32(len(b)-8))), "motd", "EVIL\n")
}

// tarBeginning is a tar file that begins with some bytes, as a part of its first name.
func tarBeginning(begin string, files ...string) []byte {
	b := sample.Plain(append([]string{strings.Repeat("A", len(begin)) + "x", ""}, files...)...).Tar
	copy(b, begin)
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

var layerMutations = func() (list []mutation) {
	add := func(name string, change func(w *wording, m, layers *node, pick pick)) {
		list = append(list, at(manifestPlace, "layers", name, ambiguous, func(w *wording, m *node, pick pick) bool {
			change(w, m, m.get("layers"), pick)
			return true
		}))
	}
	evil := func(w *wording) []*node { return w.evil.body.get("layers").clone().items }
	add("one less", func(w *wording, m, l *node, pick pick) {
		i := pick(len(l.items))
		l.items = slices.Delete(l.items, i, i+1)
	})
	add("one twice", func(w *wording, m, l *node, pick pick) {
		l.items = append(l.items, l.items[pick(len(l.items))].clone())
	})
	add("in another order", func(w *wording, m, l *node, pick pick) { slices.Reverse(l.items) })
	add("one of the evil image's for one", func(w *wording, m, l *node, pick pick) { i := pick(len(l.items)); l.items[i] = evil(w)[i] })
	add("the evil image's", func(w *wording, m, l *node, pick pick) { l.items = evil(w) })
	add("the evil image's behind", func(w *wording, m, l *node, pick pick) { l.items = append(l.items, evil(w)[pick(2)]) })
	add("the evil image's before", func(w *wording, m, l *node, pick pick) { l.items = append(evil(w)[:1], l.items...) })
	add("the evil image's config", func(w *wording, m, l *node, pick pick) { m.set("config", w.evil.body.get("config").clone()) })
	add("the evil image under the signature", func(w *wording, m, l *node, pick pick) {
		m.set("config", w.evil.body.get("config").clone())
		l.items = evil(w)
	})
	return append(list, mutation{"layers", "the evil image instead", ambiguous, func(w *wording, pick pick) bool {
		n := pick.one(w.tagged())
		n.replace(w.evil)
		n.set("mediaType", w.evil.body.get("mediaType").clone())
		return true
	}})
}()
