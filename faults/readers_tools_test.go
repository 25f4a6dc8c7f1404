package faults

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"
)

// A tool is a program that takes a layout's tag for a platform. Its word on what it got is "" if that is right; an error means that it
// takes none.
type tool struct {
	name string
	take func(r *trial, dir, arch string) (wrong string, err error)
}

var tools = []tool{
	{"skopeo to dir", skopeoDir},
	{"skopeo to docker-archive", skopeoArchive},
	{"umoci", umociUnpack},
	{"podman", podmanPull},
}

// tools draws cases until there are enough that irfs verifies, and gives them to the tools.
func (c *council) tools(t *testing.T) {
	house.Need(t, "root", "skopeo", "umoci", "podman")
	want := count(t, toolCases, manyToolCases)
	withChecks(t, want)
	taken, refused := map[string]int{}, map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		var r *trial
		for i := range 50 {
			r = c.draw(t)
			err := c.judge(r)
			defer r.remove()
			if err != nil {
				t.Fatal(err)
			}
			if r.word == "verified" {
				break
			}
			if i == 49 {
				t.Fatal("none of 50 is verified")
			}
		}
		arch := rapid.SampledFrom([]string{"amd64", "arm64"}).Draw(t, "platform")
		for _, tool := range tools {
			dir := filepath.Join(r.registry, "out of "+strings.ReplaceAll(tool.name, " ", "-"))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			wrong, err := tool.take(r, dir, arch)
			switch {
			case wrong != "":
				t.Fatalf("irfs says verified; %s for %s gets %s\n%s", tool.name, arch, wrong, r)
			case err != nil:
				refused[tool.name]++
			default:
				taken[tool.name]++
			}
		}
	})
	for _, tool := range tools {
		t.Logf("%s took %d layouts and refused %d", tool.name, taken[tool.name], refused[tool.name])
		if taken[tool.name] == 0 && want >= toolCases && !t.Failed() {
			t.Errorf("%s took none", tool.name)
		}
	}
}

// filesOf are the regular files below a directory.
func filesOf(dir string) map[string]string {
	files := map[string]string{}
	filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			text, _ := os.ReadFile(name)
			files[strings.TrimPrefix(name, dir+"/")] = string(text)
		}
		return nil
	})
	return files
}

// wrongFiles says what is wrong with the files of an unpacked image. config is the digest of its config, "" if it is not known.
func (w *wording) wrongFiles(config digest.Digest, files map[string]string) string {
	for d, one := range w.signed {
		if (config == "" || config == d) && maps.Equal(files, one.files) {
			return ""
		}
	}
	return fmt.Sprintf("files that no signed image has (config %s): %q", config, files)
}

// skopeoDir copies an image as it is: which manifest it took, and which blobs.
func skopeoDir(r *trial, dir, arch string) (string, error) {
	if _, err := try("skopeo", "--override-arch", arch, "--override-os", "linux", "copy", "-q", "oci:"+r.registry+"/app:"+stable, "dir:"+dir); err != nil {
		return "", err
	}
	files := filesOf(dir)
	delete(files, "version")
	delete(files, "manifest.json")
	configs, tars := 0, map[digest.Digest]bool{}
	for _, text := range files {
		if _, ok := r.signed[digest.FromString(text)]; ok {
			configs++
			continue
		}
		tar, err := unpackByBytes([]byte(text), false)
		if strings.HasPrefix(text, "\x1f\x8b") { // there may be zeros behind it
			tar, err = python("members", []byte(text))
		}
		if err != nil {
			return fmt.Sprintf("a blob that does not unpack: %v", err), nil
		}
		tars[digest.FromBytes(tar)] = true
	}
	for _, one := range r.signed {
		same := configs == 1 && len(tars) == len(one.diffs)
		for _, d := range one.diffs {
			same = same && tars[d]
		}
		if same {
			return "", nil
		}
	}
	return fmt.Sprintf("blobs that are not those of a signed image: %.300q", files), nil
}

// skopeoArchive has an image unpacked, by the first bytes of its layers.
func skopeoArchive(r *trial, dir, arch string) (string, error) {
	file := dir + "/image.tar"
	if _, err := try("skopeo", "--override-arch", arch, "--override-os", "linux", "copy", "-q", "oci:"+r.registry+"/app:"+stable, "docker-archive:"+file+":x:y"); err != nil {
		return "", err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	files := map[string][]byte{}
	for t := tar.NewReader(bytes.NewReader(text)); ; {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
		if files[h.Name], err = io.ReadAll(t); err != nil {
			return "", err
		}
	}
	var list []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"], &list); err != nil || len(list) != 1 {
		return "", fmt.Errorf("%s: %w", files["manifest.json"], errors.Join(err))
	}
	one, ok := r.signed[digest.FromBytes(files[list[0].Config])]
	if !ok {
		return fmt.Sprintf("a config that nobody signed: %s", files[list[0].Config]), nil
	}
	for i, name := range list[0].Layers {
		if i >= len(one.diffs) || digest.FromBytes(files[name]) != one.diffs[i] {
			return fmt.Sprintf("a layer that nobody signed, %s: %.600q", name, files[name]), nil
		}
	}
	return "", nil
}

func umociUnpack(r *trial, dir, _ string) (string, error) {
	if _, err := try("umoci", "unpack", "--rootless", "--image", r.registry+"/app:"+stable, dir+"/bundle"); err != nil {
		return "", err
	}
	return r.wrongFiles("", filesOf(dir+"/bundle/rootfs")), nil
}

// podmanPull pulls an image into a store of its own. Its id is the config's digest.
func podmanPull(r *trial, dir, arch string) (string, error) {
	// Its runroot must not be longer than 50 bytes, which the directory for temporary files may be.
	run, err := os.MkdirTemp("/tmp", "irfs-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(run)
	store := []string{"--root", dir + "/store", "--runroot", run, "--tmpdir", run, "--storage-driver", "vfs"}
	podman := func(args ...string) (string, error) {
		cmd := command("podman", append(store, args...)...)
		cmd.Dir = r.registry // it makes a name of the path, and takes no capital letters there
		return output(cmd)
	}
	id, err := podman("pull", "-q", "--arch", arch, "--os", "linux", "oci:app:"+stable)
	if err != nil {
		return "", err
	}
	id = strings.TrimSpace(id)
	dirOf, err := podman("image", "mount", id)
	if err != nil {
		return "", err
	}
	defer podman("image", "umount", "-a")
	config := digest.NewDigestFromEncoded(digest.SHA256, id)
	if _, ok := r.signed[config]; !ok {
		return "an image that nobody signed: " + id, nil
	}
	return r.wrongFiles(config, filesOf(strings.TrimSpace(dirOf))), nil
}
