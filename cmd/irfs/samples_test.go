package main_test

import (
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout/sample"
)

// samples are the layouts that the scripts' command sample writes.
var samples = map[string]func(*sample.Layout){
	// One image for one platform, three layers.
	"single": func(l *sample.Layout) { l.Tag("stable", single(l, "hello\n")) },
	// The same application, a version later.
	"newer": func(l *sample.Layout) { l.Tag("stable", single(l, "hello again\n")) },
	// Another image, under another tag.
	"testing": func(l *sample.Layout) { l.Tag("testing", single(l, "hello, testers\n")) },
	// Two platforms and an attestation; one layer is zstd.
	"multi": func(l *sample.Layout) { l.Tag("stable", multi(l)) },
	// One manifest with two tags, and another.
	"tags": func(l *sample.Layout) {
		d := single(l, "hello\n")
		l.Tag("1.0", d)
		l.Tag("latest", d)
		l.Tag("0.9", single(l, "old\n"))
	},
	// An index in an index; the inner one has two tags besides.
	"nested": func(l *sample.Layout) {
		inner := multi(l)
		l.Tag("outer", l.Index(inner, single(l, "hello\n")))
		l.Tag("inner", inner)
		l.Tag("same", inner)
	},
	"docker": func(l *sample.Layout) {
		l.Docker = true
		l.Tag("stable", l.Index(single(l, "hello\n"), l.Image(sample.Linux("arm64"), sample.Gzip("etc/motd", "hello\n"))))
	},
	"sha512": func(l *sample.Layout) {
		l.Algorithm = digest.SHA512
		l.Tag("stable", single(l, "hello\n"))
	},
	// Pretty-printed, with members that nobody knows and a number of 30 digits.
	"pretty": func(l *sample.Layout) {
		l.Indent, l.Extra = "    ", `"x-count":123456789012345678901234567890`
		l.Tag("stable", multi(l))
	},
	// As zot and older BuildKit write it: index.json without a mediaType, blobs that nobody may write to.
	"untyped": func(l *sample.Layout) {
		l.Untyped, l.BlobMode = true, 0o444
		l.Tag("stable", multi(l))
	},
	// Tags that no file can be named after.
	"odd-tags": func(l *sample.Layout) {
		d := single(l, "hello\n")
		for _, tag := range []string{"a/b", "50%", ".", "..", "line\nend", strings.Repeat("x", 256)} {
			l.Tag(tag, d)
		}
	},
	// Platforms as containerd normalises them; two have the same name.
	"platforms": func(l *sample.Layout) {
		var list []v1.Descriptor
		for _, arch := range []string{"arm", "arm64/v8", "amd64", "amd64/v1"} {
			list = append(list, l.Image(sample.Linux(arch), sample.Gzip("arch", arch)))
		}
		l.Tag("stable", l.Index(list...))
	},
	// What is no image: an artifact, a referrer of the image as cosign names it, and an image without content.
	"artifacts": func(l *sample.Layout) {
		d := single(l, "hello\n")
		l.Tag("stable", d)
		l.Tag("sbom", l.Artifact("application/spdx+json", `{"spdxVersion":"SPDX-2.3"}`, &d))
		l.Tag("sha256-"+d.Digest.Encoded()+".sig", l.Artifact("application/vnd.dev.cosign.artifact.sig.v1+json", "payload", nil))
		l.Tag("empty", l.Manifest(v1.Manifest{Config: l.Blob(v1.MediaTypeImageConfig, []byte("{}")), Layers: []v1.Descriptor{}}))
	},
	// A Helm chart as helm push makes it, by its own tag and beside an image in an index.
	"chart": func(l *sample.Layout) {
		chart := l.Manifest(v1.Manifest{
			Config: l.Blob("application/vnd.cncf.helm.config.v1+json", []byte(`{"name":"web","version":"0.1.0","apiVersion":"v2"}`)),
			Layers: []v1.Descriptor{l.Blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", sample.Gzip("web/Chart.yaml", "name: web\n").Blob())},
		})
		l.Tag("0.1.0", chart)
		l.Tag("both", l.Index(single(l, "hello\n"), chart))
	},
	// An image, and indexes in which nothing counts: an empty one, one whose image is not in the layout, one with an attestation.
	"hollow": func(l *sample.Layout) {
		image := single(l, "hello\n")
		l.Tag("stable", image)
		l.Tag("empty", l.Index())
		l.Tag("sparse", l.Index(single(sample.New(), "elsewhere\n")))
		l.Tag("attested", l.Index(l.Attestation(image)))
	},
}

func single(l *sample.Layout, motd string) v1.Descriptor {
	return l.Image(sample.Linux("amd64"),
		sample.Gzip("etc/", "", "etc/motd", motd),
		sample.Gzip("bin/", "", "bin/tool", "#!/bin/sh\necho tool\n"),
		sample.Gzip("etc/tool.conf", "colour=blue\n"))
}

func multi(l *sample.Layout) v1.Descriptor {
	amd := l.Image(sample.Linux("amd64"), sample.Gzip("etc/motd", "hello\n"), sample.Zstd("bin/tool", "amd64"))
	arm := l.Image(sample.Linux("arm64"), sample.Zstd("etc/motd", "hello\n"), sample.Gzip("bin/tool", "arm64"))
	return l.Index(amd, arm, l.Attestation(amd))
}
