package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/sign"
)

// keys are a root CA and a vendor that it has certified, with files in dir.
type keys struct {
	ca, vendor  *sign.PrivateKey
	certificate []byte
	dir         string
}

func (b *bench) makeKeys() (err error) {
	k := &keys{dir: b.fresh()}
	if k.ca, err = sign.GenerateKey(); err != nil {
		return err
	}
	if k.vendor, err = sign.GenerateKey(); err != nil {
		return err
	}
	if k.certificate, err = k.ca.Sign(k.vendor.Public().DER()); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"root-ca.pub": k.ca.Public().DER(), "vendor.prv": k.vendor.DER(), "vendor.pub.sig": k.certificate} {
		err = errors.Join(err, os.WriteFile(filepath.Join(k.dir, name), data, 0o600))
	}
	b.keys = k
	return err
}

// A config and its signature.
type signed struct{ config, signature []byte }

// writeRegistry writes a registry of so many apps, app0, app1 …, with so many signed images each, by the tags 0, 1 …,
// no two of them with the same config. withBlobs says whether the blobs are there, or index.json alone.
func (b *bench) writeRegistry(dir string, apps, images int, withBlobs bool) error {
	n := 0
	for a := range apps {
		app := filepath.Join(dir, fmt.Sprint("app", a))
		if err := os.MkdirAll(app+"/blobs/sha256", 0o755); err != nil {
			return err
		}
		index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: make([]v1.Descriptor, images)}
		for i := range images {
			s, err := b.signed(n)
			n++
			if err != nil {
				return err
			}
			if index.Manifests[i], err = b.writeImage(app, fmt.Sprint(i), s, withBlobs); err != nil {
				return err
			}
		}
		text, err := json.Marshal(index)
		if err == nil {
			err = errors.Join(os.WriteFile(app+"/index.json", text, 0o644), os.WriteFile(app+"/oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// signed gives the n-th config, and its signature, which is made once.
func (b *bench) signed(n int) (signed, error) {
	for len(b.configs) <= n {
		config, err := json.Marshal(v1.Image{
			Author: fmt.Sprint(len(b.configs)), Platform: v1.Platform{OS: "linux", Architecture: "amd64"},
			RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(nil)}},
		})
		if err != nil {
			return signed{}, err
		}
		signature, err := b.keys.vendor.Sign(config)
		if err != nil {
			return signed{}, err
		}
		b.configs = append(b.configs, signed{config, signature})
	}
	return b.configs[n], nil
}

func (b *bench) writeImage(app, tag string, s signed, withBlobs bool) (v1.Descriptor, error) {
	empty := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: digest.FromBytes(nil)}
	manifest, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(s.config), Size: int64(len(s.config))},
		Layers: []v1.Descriptor{empty},
		Annotations: map[string]string{
			sign.SignatureAnnotation: hex.EncodeToString(s.signature), sign.VendorPubAnnotation: hex.EncodeToString(b.keys.vendor.Public().DER()),
			sign.CertificateAnnotation: hex.EncodeToString(b.keys.certificate),
		},
	})
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{
		MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest)),
		Annotations: map[string]string{v1.AnnotationRefName: tag},
	}
	if withBlobs {
		for _, blob := range [][]byte{manifest, s.config, {}} {
			err = errors.Join(err, os.WriteFile(app+"/blobs/sha256/"+digest.FromBytes(blob).Encoded(), blob, 0o644))
		}
	}
	return d, err
}

// A served registry is one that is mounted.
type served struct {
	mnt string
	pid int
}

// serve mounts a registry with the keys, until stop.
func (b *bench) serve(registry string, flags ...string) (*served, error) {
	s := &served{mnt: b.fresh()}
	args := append([]string{"mount", "-c", b.keys.dir + "/root-ca.pub", "-s", b.keys.dir + "/vendor.pub.sig"}, flags...)
	if err := b.irfs(append(args, registry, s.mnt)...); err != nil {
		return nil, err
	}
	pid, err := pidOf(s.mnt)
	s.pid = pid
	return s, err
}

func (b *bench) stop(s *served) error { return b.irfs("umount", s.mnt) }
