package faults

import (
	"bytes"
	"slices"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/layout/sample"
)

// This file has the rows 56, 57, 59 and 63: what programs understand in different ways. TestReadersAgree looks for more of it.

// objects are where members stand whose names the specification gives: an edit puts one more into each.
var objects = []struct {
	name     string
	document string
	start    string   // of the object
	members  []string // of its names, in other words
}{
	{"index.json", "index.json", `{"schemaVersion":2,`, []string{`"Manifests":[]`, `"manife\u017ft\u017f":[]`, `"MediaType":"x"`, `"SUBJECT":null`, `"Layers":[]`, `"manifests\u0000":[]`}},
	{"index", "index", `{"schemaVersion":2,`, []string{`"MANIFESTS":[]`, `"artifacttype":"x"`, `"Annotations":{}`, `"Config":{}`}},
	{"manifest", "manifest", `{"schemaVersion":2,`, []string{`"Layers":[]`, `"layerſ":[]`, `"CONFIG":{}`, `"schemaversion":3`, `"Manifests":[]`, `"Annotations":{"com.samsung.islet.image.signature":"00"}`}},
	{"a descriptor of index.json", "index.json", `"manifests":[{`, []string{`"Digest":"x"`, `"dige\u017ft":"x"`, `"digeſt":"x"`, `"SIZE":1`, `"mediatype":"x"`, `"Data":""`, `"URLs":[]`, `"Platform":{}`}},
	{"a descriptor of an index", "index", `"manifests":[{`, []string{`"DIGEST":"x"`, `"Annotations":{}`}},
	{"the config's descriptor", "manifest", `"config":{`, []string{`"Digest":"x"`, `"Size":0`}},
	{"a layer's descriptor", "manifest", `"layers":[{`, []string{`"Digest":"x"`, `"MediaType":"x"`, `"digest\u0000x":"x"`}},
	{"a platform", "index", `"platform":{`, []string{`"OS":"x"`, `"Architecture":"x"`, `"VARIANT":"x"`, `"os.Version":"x"`}},
	{"config", "config", `{`, []string{`"RootFS":{}`, `"rootf\u017f":{}`, `"Config":{}`, `"HISTORY":[]`, `"Architecture":"x"`, `"Created":"x"`}},
	{"config.config", "config", `"config":{`, []string{`"cmd":["x"]`, `"ENV":[]`, `"entrypoint":[]`, `"WorkingDIR":"/"`, `"labels":{}`}},
	{"rootfs", "config", `"rootfs":{`, []string{`"Diff_IDs":[]`, `"TYPE":"x"`}},
	{"history", "config", `{`, []string{`"history":[{"Created_By":"x"}]`, `"history":[{},{"Empty_Layer":true}]`}},
}

// readTwoWays are layouts that one program reads in one way, and another in another.
func readTwoWays() (rows []badLayout) {
	add := func(row int, name, word, full, says string, errno syscall.Errno, make func(f *forge)) {
		rows = append(rows, badLayout{row: row, name: name, word: word, full: full, says: says, errno: errno, make: make})
	}
	corrupt := func(row int, name, says string, make func(f *forge)) {
		add(row, name, "corrupt", "", says, syscall.EBADMSG, make)
	}
	for _, o := range objects {
		for _, member := range o.members {
			corrupt(56, member+" in "+o.name, "some programs take this for the member", in(o.document, swap(o.start, o.start+member+",")))
			rows[len(rows)-1].broken = o.document == "index.json"
		}
	}

	// A layer that is unpacked by its media type, or by its first bytes.
	skippable := "\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
	gzip, tar := sample.Gzip("etc/motd", "hello\n").Blob(), sample.Gzip("etc/motd", "hello\n").Tar
	zstd := sample.Zstd("etc/motd", "hello\n").Blob()
	layer := func(name, says, mediaType string, blob []byte) {
		add(57, name, "verified", "corrupt", says, 0, func(f *forge) {
			f.Tag("x", f.withManifest(func(m *v1.Manifest) { m.Layers[0] = f.Blob(mediaType, blob) }))
			f.write()
		})
	}
	layer("a skippable frame before zstd", "begins like a skippable frame of zstd", v1.MediaTypeImageLayerZstd, slices.Concat([]byte(skippable), zstd))
	layer("a tar file that begins like a skippable frame, before zstd", "begins like a skippable frame of zstd", v1.MediaTypeImageLayerZstd, slices.Concat(skippableTar(), zstd))
	layer("zstd called gzip", "begins like zstd", v1.MediaTypeImageLayerGzip, zstd)
	layer("gzip called zstd", "begins like gzip", v1.MediaTypeImageLayerZstd, gzip)
	layer("gzip called plain", "begins like gzip", v1.MediaTypeImageLayer, gzip)
	layer("zstd called plain, in Docker's words", "begins like zstd", "application/vnd.docker.image.rootfs.diff.tar", zstd)
	layer("plain called gzip", "a file that is not compressed", v1.MediaTypeImageLayerGzip, tar)
	layer("plain called gzip, not distributed", "a file that is not compressed", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", tar)
	layer("garbage behind gzip", "cannot be unpacked", v1.MediaTypeImageLayerGzip, append(bytes.Clone(gzip), "garbage"...))
	layer("a member behind gzip and zeros", "something behind the zeros", v1.MediaTypeImageLayerGzip, slices.Concat(
		sample.Layer{Compression: "gzip", Tar: tar[:512]}.Blob(), make([]byte, 512), sample.Layer{Compression: "gzip", Tar: tar[512:]}.Blob()))
	for magic, like := range map[string]string{"BZh91AY&SY": "bzip2", "BZhelp": "bzip2", "\x1f\x8bx": "gzip", "\xfd7zXZ": "xz"} {
		if like == "xz" {
			magic += "\x00"
		}
		named := sample.Plain("name", "hello\n")
		copy(named.Tar, magic)
		add(57, "a plain tar file whose first name begins like "+like+", "+magic[:3], "verified", "corrupt", "begins like "+like, 0, func(f *forge) {
			f.Tag("x", f.signed(f.Image(sample.Linux("amd64"), named)))
			f.write()
		})
	}

	// Inline data, and descriptors of one digest.
	const data, differ, only = "the data inlined in its descriptor is not the blob's", "its descriptors disagree", "only as the data inlined in a descriptor"
	twice := func(name, says string, change func(f *forge, second *v1.Descriptor)) {
		for where, put := range map[string]func(f *forge, second v1.Descriptor){
			"in index.json":          func(f *forge, second v1.Descriptor) { f.Tag("x", f.image); f.Tag("y", second) },
			"in index.json, first":   func(f *forge, second v1.Descriptor) { f.Tag("y", second); f.Tag("x", f.image) },
			"in an index":            func(f *forge, second v1.Descriptor) { f.Tag("x", f.Index(f.image, second)) },
			"in an index, first":     func(f *forge, second v1.Descriptor) { f.Tag("x", f.Index(second, f.image)) },
			"deep below another tag": func(f *forge, second v1.Descriptor) { f.Tag("x", f.image); f.Tag("y", f.Index(f.Index(second))) },
			"in two indexes, two tags": func(f *forge, second v1.Descriptor) {
				f.Tag("x", f.Index(f.image))
				f.Tag("y", f.Index(f.Index(second)))
			},
		} {
			corrupt(59, name+" "+where, says, func(f *forge) {
				second := f.image
				change(f, &second)
				put(f, second)
				f.write()
			})
		}
	}
	twice("a second descriptor with other data", data, func(f *forge, second *v1.Descriptor) { second.Data = f.Bytes(f.plain) })
	twice("a second descriptor with other data, for another platform", data, func(f *forge, second *v1.Descriptor) {
		second.Data, second.Platform = []byte("x"), &v1.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10"}
	})
	twice("a second descriptor of another size", differ, func(f *forge, second *v1.Descriptor) { second.Size++ })
	twice("a second descriptor of another media type", differ, func(f *forge, second *v1.Descriptor) { second.MediaType = layout.MediaTypeDockerManifest })
	absent := func(name string, make func(f *forge, child v1.Descriptor) v1.Descriptor) {
		corrupt(59, name, only, func(f *forge) {
			child := f.Inline(f.Image(sample.Linux("arm64"), sample.Gzip("a", "evil")))
			x := make(f, child)
			f.Tag("x", x)
			files := f.Files()
			delete(files, sample.Path(child.Digest))
			worked(f.t, files.WriteDir(f.dir))
		})
	}
	absent("a child that is only there as inline data", func(f *forge, child v1.Descriptor) v1.Descriptor { return f.Index(f.image, child) })
	absent("the same by its second descriptor", func(f *forge, child v1.Descriptor) v1.Descriptor {
		bare := child
		bare.Data = nil
		return f.Index(f.image, bare, child)
	})
	corrupt(59, "an index that is only there as inline data", only, func(f *forge) {
		child := f.Inline(f.Index(f.image))
		f.Tag("x", f.Index(f.image, child))
		files := f.Files()
		delete(files, sample.Path(child.Digest))
		worked(f.t, files.WriteDir(f.dir))
	})
	for part, change := range map[string]func(f *forge, m *v1.Manifest){
		"the config":  func(f *forge, m *v1.Manifest) { m.Config.Data = []byte("{}") },
		"a layer":     func(f *forge, m *v1.Manifest) { m.Layers[1].Data = sample.Plain("evil", "evil").Blob() },
		"the subject": func(f *forge, m *v1.Manifest) { m.Subject = &f.plain; m.Subject.Data = []byte("{}") },
	} {
		corrupt(59, "inline data of "+part, data, func(f *forge) {
			f.Tag("x", f.withManifest(func(m *v1.Manifest) { change(f, m) }))
			f.write()
		})
	}
	corrupt(59, "a subject of another size", "subject: ", func(f *forge) {
		f.Tag("x", f.withManifest(func(m *v1.Manifest) { d := f.plain; d.Size++; m.Subject = &d }))
		f.write()
	})
	corrupt(59, "an index with a subject of another size", "subject: ", func(f *forge) {
		index := f.Index(f.image)
		subject := `{"mediaType":"` + f.plain.MediaType + `","digest":"` + string(f.plain.Digest) + `","size":1}`
		f.Tag("x", f.Blob(index.MediaType, f.edited(f.Bytes(index), member(`"subject":`+subject))))
		f.write()
	})
	add(58, "an annotation of SOCI's", "verified", "corrupt", "the manifest brings a table of contents (com.amazon.soci.index-digest)", 0, func(f *forge) {
		f.Tag("x", f.withManifest(func(m *v1.Manifest) { m.Annotations["com.amazon.soci.index-digest"] = "sha256:" + someHex }))
		f.write()
	})
	corrupt(59, "a nested index by two descriptors, one of them wrong", "its descriptors disagree", func(f *forge) {
		inner := f.Index(f.image)
		f.Tag("x", f.Index(inner))
		inner.Size++
		f.Tag("y", inner)
		f.write()
	})
	corrupt(59, "a layer twice, of two sizes", "its descriptors disagree", func(f *forge) {
		f.Tag("x", f.withManifest(func(m *v1.Manifest) { d := m.Layers[1]; d.Size++; m.Layers = append(m.Layers, d) }))
		f.write()
	})

	// What some program runs is no artifact.
	runnable := func(name string, change func(m *v1.Manifest)) {
		add(63, name, "unsigned", "", "the image is not signed", 0, func(f *forge) {
			m := f.manifest(f.plain)
			change(&m)
			f.Tag("x", f.Manifest(m))
			f.write()
		})
	}
	runnable("an image whose config has another media type", func(m *v1.Manifest) { m.Config.MediaType = "application/vnd.example.config+json" })
	runnable("an image that says it is an artifact", func(m *v1.Manifest) { m.ArtifactType = "application/vnd.example" })
	runnable("both", func(m *v1.Manifest) {
		m.ArtifactType, m.Config.MediaType = "application/vnd.example", "application/vnd.oci.empty.v1+json"
	})
	for _, mediaType := range []string{"application/octet-stream", "application/vnd.dev.cosign.simplesigning.v1+json", v1.MediaTypeImageLayerGzip + "+encrypted", "application/vnd.in-toto+json"} {
		add(63, "an image whose layers are called "+mediaType, "unsigned", "corrupt", "", 0, func(f *forge) {
			m := f.manifest(f.plain)
			for i := range m.Layers {
				m.Layers[i].MediaType = mediaType
			}
			f.Tag("x", f.Manifest(m))
			f.write()
		})
	}
	add(63, "an image that calls itself an attestation in every way", "unsigned", "corrupt", "", 0, func(f *forge) {
		m := f.manifest(f.plain)
		for i := range m.Layers {
			m.Layers[i].MediaType = "application/vnd.in-toto+json"
		}
		d := f.Manifest(m)
		d.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
		f.Tag("x", f.Index(f.image, sample.Annotate(d, "vnd.docker.reference.type", "attestation-manifest")))
		f.write()
	})
	add(63, "an attestation whose layer is to be fetched from a URL", "unsigned", "corrupt", "", 0, func(f *forge) {
		attestation := f.Attestation(f.image)
		m := f.manifest(attestation)
		m.Layers[0].URLs = []string{"https://registry.example/layer"}
		d := f.Manifest(m)
		d.Platform, d.Annotations = attestation.Platform, attestation.Annotations
		f.Tag("x", f.Index(f.image, d))
		files := f.Files()
		delete(files, sample.Path(m.Layers[0].Digest))
		worked(f.t, files.WriteDir(f.dir))
	})
	for name, config := range map[string]string{"empty": "{}", "null": "null", "without rootfs": `{"config":{"Cmd":["/evil"]}}`} {
		word, says := "corrupt", "config: "
		add(63, "Docker's manifest with a config of no image's type, "+name, word, "", says, syscall.EBADMSG, func(f *forge) {
			f.Docker = true
			m := f.manifest(f.Image(sample.Linux("amd64"), sample.Gzip("a", "evil")))
			m.Config = f.Blob("application/octet-stream", []byte(config))
			f.Tag("x", f.Manifest(m))
			f.write()
		})
	}
	for name, content := range map[string]string{"of no bytes": "", "of zeros": strings.Repeat("\x00", 1024), "that begins like EROFS": strings.Repeat("\x00", 1024) + "\xe2\xe1\xf5\xe0"} {
		add(63, "an attestation whose layer is an empty tar file to some, "+name, "unsigned", "", "", 0, func(f *forge) {
			d := f.Manifest(v1.Manifest{
				Config: f.Blob(v1.MediaTypeImageConfig, []byte(`{"architecture":"unknown","os":"unknown","config":{"Cmd":["/evil"]},"rootfs":{"type":"layers","diff_ids":["`+string(digest.FromString(content))+`"]}}`)),
				Layers: []v1.Descriptor{f.Blob("application/vnd.in-toto+json", []byte(content))},
			})
			d.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
			f.Tag("x", f.Index(f.image, sample.Annotate(d, "vnd.docker.reference.type", "attestation-manifest")))
			f.write()
		})
	}
	corrupt(63, "an image whose config has another media type, and is no JSON to some", "config: ", func(f *forge) {
		m := f.manifest(f.plain)
		m.Config = f.Blob("application/vnd.example", append([]byte(`{"x":NaN,`), f.Bytes(m.Config)[1:]...))
		f.Tag("x", f.Manifest(m))
		f.write()
	})
	corrupt(63, "a manifest under a media type that nobody knows", "is no media type of an image or index", func(f *forge) {
		f.image.MediaType = "application/json"
		f.asItIs()
	})
	// And these are artifacts: whole, they are unsigned, and cannot be signed.
	artifact := func(name, mediaType string, config []byte, layerType string, content []byte) {
		add(63, name, "unsigned", "unsigned", "an artifact, not an image", syscall.EINVAL, func(f *forge) {
			f.Tag("x", f.Manifest(v1.Manifest{Config: f.Blob(mediaType, config), Layers: []v1.Descriptor{f.Blob(layerType, content)}}))
			f.write()
		})
	}
	rootfs := func(content []byte) []byte {
		return []byte(`{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["` + string(digest.FromBytes(content)) + `"]}}`)
	}
	payload, squashfs, erofs, secret := []byte(`{"critical":{}}`), append([]byte("hsqs"), make([]byte, 1000)...), append(make([]byte, 1024), "\xe2\xe1\xf5\xe0"...), []byte(strings.Repeat("\x9b\x01random", 99))
	artifact("cosign's signature", v1.MediaTypeImageConfig, rootfs(payload), "application/vnd.dev.cosign.simplesigning.v1+json", payload)
	artifact("cosign's attestation", v1.MediaTypeImageConfig, rootfs(payload), "application/vnd.dsse.envelope.v1+json", payload)
	artifact("cosign's SBOM", v1.MediaTypeImageConfig, rootfs(payload), "text/spdx+json", payload)
	artifact("a Helm chart", "application/vnd.cncf.helm.config.v1+json", []byte(`{"name":"x","Version":"1","version":"1","version":"2"}`), "application/vnd.cncf.helm.chart.content.v1.tar+gzip", gzip)
	artifact("a file by ORAS", "application/vnd.oci.empty.v1+json", []byte("{}"), "application/vnd.oci.empty.v1+json", []byte("{}"))
	artifact("a config that is no JSON", "application/yaml", []byte("a: b"), "text/plain", []byte("text"))
	artifact("squashfs", v1.MediaTypeImageConfig, rootfs(squashfs), "application/vnd.stacker.image.layer.squashfs+zstd+verity", squashfs)
	artifact("squashfs, compressed within", v1.MediaTypeImageConfig, rootfs(squashfs), "application/vnd.stacker.image.layer.squashfs+zstd", squashfs)
	artifact("EROFS", v1.MediaTypeImageConfig, rootfs(erofs), "application/vnd.erofs.layer.v1", erofs)
	artifact("encrypted layers", v1.MediaTypeImageConfig, rootfs(tar), v1.MediaTypeImageLayerGzip+"+encrypted", secret)
	damaged := func(name, word string, of func(m v1.Manifest) v1.Descriptor) {
		add(63, name, word, "corrupt", "do not have this digest", 0, func(f *forge) {
			d := f.Manifest(v1.Manifest{Config: f.Blob("application/x", []byte("config")), Layers: []v1.Descriptor{f.Blob("application/y", []byte("layer"))}})
			f.Tag("x", d)
			files := f.Files()
			files[sample.Path(of(f.manifest(d)).Digest)][0] = 'X'
			worked(f.t, files.WriteDir(f.dir))
		})
	}
	damaged("an artifact whose config is damaged", "corrupt", func(m v1.Manifest) v1.Descriptor { return m.Config })
	damaged("an artifact whose layer is damaged", "unsigned", func(m v1.Manifest) v1.Descriptor { return m.Layers[0] })
	return rows
}

// skippableTar is a tar file that a program which knows zstd takes for a skippable frame as long as it.
func skippableTar() []byte {
	tar := sample.Plain("????????x", "", "etc/motd", "EVIL\n").Tar
	copy(tar, []byte{0x50, 0x2a, 0x4d, 0x18, byte(len(tar) - 8), byte((len(tar) - 8) >> 8), 0, 0})
	return tar
}

// readOneWay are layouts that look as if they could be read in two ways, and cannot.
func readOneWay() (rows []goodLayout) {
	add := func(row int, name, word string, make func(f *forge)) {
		rows = append(rows, goodLayout{row: row, name: name, word: word, make: make})
	}
	free := `"Digest":"x","digest":"y","DIGEST":"z","Layers":"","size":""`
	add(56, "annotations in any case", "verified", in("manifest", swap(`"annotations":{`, `"annotations":{`+free+`,`)))
	add(56, "annotations in any case in index.json", "verified", in("index.json", swap(`"annotations":{`, `"annotations":{`+free+`,`)))
	add(56, "labels, volumes and ports in any case", "verified", in("config", swap(`"config":{`, `"config":{"Labels":{"Architecture":"x","labels":"y","ROOTFS":"z"},"Volumes":{"/Cmd":{"Cmd":1}},"ExposedPorts":{"80/TCP":{},"80/tcp":{}},`)))
	add(56, "unknown objects with names in any case", "verified", in("manifest", member(`"x":{"Digest":1,"digest":2,"Layers":[{"Config":3}]}`)))
	add(56, "names of other objects", "verified", in("manifest", member(`"Digest":1,"OS":2,"Rootfs":3,"History":4`)))
	add(56, "names that are longer", "verified", in("index", swap(`"manifests":[{`, `"manifests":[{"Digests":1,"digest2":2,"x-Digest":3,`)))
	add(56, "escapes in names and values", "verified", in("manifest", func(text string) string {
		return strings.NewReplacer(`"layers"`, `"l\u0061yers"`, `"digest":"sha256:`, `"\u0064igest":"sha\u0032\u00356:`, "application/vnd", `application\/vnd`).Replace(text)
	}))
	layer := func(name, mediaType string, blob []byte) {
		add(57, name, "verified", func(f *forge) {
			f.Tag("x", f.withManifest(func(m *v1.Manifest) { m.Layers[0] = f.Blob(mediaType, blob) }))
			f.write()
		})
	}
	tar := sample.Gzip("etc/motd", "hello\n").Tar
	gzip := sample.Gzip("etc/motd", "hello\n").Blob()
	layer("zeros behind gzip", v1.MediaTypeImageLayerGzip, append(bytes.Clone(gzip), make([]byte, 10_000)...))
	layer("several gzip members", v1.MediaTypeImageLayerGzip, slices.Concat(
		sample.Layer{Compression: "gzip", Tar: tar[:512]}.Blob(), sample.Layer{Compression: "gzip"}.Blob(), sample.Layer{Compression: "gzip", Tar: tar[512:]}.Blob()))
	layer("the same layer, plain", v1.MediaTypeImageLayer, tar)
	layer("the same layer, in zstd", v1.MediaTypeImageLayerZstd, sample.Zstd("etc/motd", "hello\n").Blob())
	layer("several zstd frames, and skippable ones behind the first", v1.MediaTypeImageLayerZstd, slices.Concat(
		sample.Layer{Compression: "zstd", Tar: tar[:512]}.Blob(), []byte("\x5f\x2a\x4d\x18\x01\x00\x00\x00x"), sample.Layer{Compression: "zstd", Tar: tar[512:]}.Blob()))
	layer("zstd with a window of 64 MiB", v1.MediaTypeImageLayerZstd, wideZstd(tar))
	layer("Docker's type for gzip", layout.MediaTypeDockerLayer, gzip)
	layer("a foreign layer of Docker's", layout.MediaTypeDockerForeignLayer, gzip)
	layer("a layer that is not distributed", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", gzip)
	layer("a layer of a type that nobody knows, which is its diff_id", "application/x", tar)
	add(59, "one layer under Docker's and OCI's type", "", func(f *forge) {
		m := f.manifest(f.plain)
		m.Layers[0].MediaType = layout.MediaTypeDockerLayer
		f.Tag("x", f.Index(f.plain, sample.Annotate(f.Manifest(m), "other", "one")))
		f.write()
	})
	add(59, "right inline data everywhere", "verified", func(f *forge) {
		d := f.withManifest(func(m *v1.Manifest) {
			m.Config, m.Layers[0] = f.Inline(m.Config), f.Inline(m.Layers[0])
			subject := f.Inline(f.plain)
			m.Subject = &subject
		})
		f.Tag("x", f.Inline(f.Index(d, f.Inline(d))))
		f.write()
	})
	add(63, "an image without layers", "", func(f *forge) { f.Tag("x", f.Image(sample.Linux("amd64"))); f.write() })
	return rows
}

// wideZstd is compressed with a window as large as `zstd --ultra -21` makes it.
func wideZstd(text []byte) []byte {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithWindowSize(64<<20))
	if err == nil {
		_, err = z.Write(text)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		panic(err)
	}
	return b.Bytes()
}
