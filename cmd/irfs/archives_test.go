package main_test

import (
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout/sample"
)

// archives are what the scripts' command sample writes besides layouts: archives of tools that are not at hand.
var archives = map[string]func(*sample.Layout) sample.Tar{
	// `docker save nginx:1.25 tools/tool:2`, before version 25, and since.
	"docker-save":    func(l *sample.Layout) sample.Tar { return l.DockerSave(twoImages(l)...) },
	"docker-save-25": func(l *sample.Layout) sample.Tar { return l.DockerSaveOCI(twoImages(l)...) },
	// With the containerd image store, and of two platforms only one is there.
	"docker-save-containerd": func(l *sample.Layout) sample.Tar {
		amd, index := attested(l)
		return l.DockerSaveContainerd(sample.Saved{Image: index, Names: []string{"nginx:1.25"}}, amd)
	},
	"buildx": func(l *sample.Layout) sample.Tar {
		_, index := attested(l)
		return l.Buildx(sample.Saved{Image: index, Names: []string{"nginx:1.25"}})
	},
	"buildx-untagged": func(l *sample.Layout) sample.Tar {
		amd, _ := attested(l)
		return l.Buildx(sample.Saved{Image: l.Index(amd, l.Attestation(amd))})
	},
}

func twoImages(l *sample.Layout) []sample.Saved {
	twice := sample.Gzip("empty/", "")
	return []sample.Saved{
		{Image: l.Image(sample.Linux("amd64"), sample.Gzip("etc/motd", "hello\n"), twice, sample.Gzip("bin/nginx", "ELF"), twice), Names: []string{"nginx:1.25"}},
		{Image: l.Image(sample.Linux("amd64"), sample.Gzip("etc/motd", "hello\n"), sample.Gzip("bin/tool", "#!")), Names: []string{"tools/tool:2"}},
	}
}

// attested is an index of two images, each with an attestation.
func attested(l *sample.Layout) (amd, index v1.Descriptor) {
	amd = l.Image(sample.Linux("amd64"), sample.Gzip("etc/motd", "hello\n"))
	arm := l.Image(sample.Linux("arm64"), sample.Gzip("etc/motd", "hello, arm\n"))
	return amd, l.Index(amd, arm, l.Attestation(amd), l.Attestation(arm))
}
