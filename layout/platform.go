package layout

import (
	"context"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// NormalPlatform writes a platform in the one form that containerd gives it
// (github.com/containerd/platforms, database.go): so arm64/v8 is arm64, and arm is arm/v7.
func NormalPlatform(p v1.Platform) v1.Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	if p.OS == "macos" {
		p.OS = "darwin"
	}
	switch p.Architecture {
	case "i386":
		p.Architecture, p.Variant = "386", ""
	case "x86_64", "x86-64", "amd64":
		p.Architecture = "amd64"
		if p.Variant == "v1" {
			p.Variant = ""
		}
	case "aarch64", "arm64":
		p.Architecture = "arm64"
		if p.Variant == "8" || p.Variant == "v8" {
			p.Variant = ""
		}
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	case "arm":
		switch p.Variant {
		case "", "7":
			p.Variant = "v7"
		case "5", "6", "8":
			p.Variant = "v" + p.Variant
		}
	}
	return p
}

// PlatformName is a platform's name in the tree: <os>-<arch>[-<variant>],
// normalised; what is not given is "unknown".
func PlatformName(p v1.Platform) string { return platform(p, "-") }

// PlatformString is the same in the form os/arch[/variant], for messages: it is [Short].
func PlatformString(p v1.Platform) string { return Short(platform(p, "/")) }

func platform(p v1.Platform, sep string) string {
	p = NormalPlatform(p)
	if p.OS == "" {
		p.OS = "unknown"
	}
	if p.Architecture == "" {
		p.Architecture = "unknown"
	}
	name := p.OS + sep + p.Architecture
	if p.Variant != "" {
		name += sep + p.Variant
	}
	return name
}

// PlatformName gives the name of an image's platform: its descriptor's or else
// its config's.
func (s *Snapshot) PlatformName(ctx context.Context, e Entry, m *Manifest) string {
	if e.Platform != nil {
		return PlatformName(*e.Platform)
	}
	if m != nil && m.Kind == KindImage {
		if c, err := s.Config(ctx, m, nil); err == nil {
			return PlatformName(c.Doc.Platform)
		}
	}
	return PlatformName(v1.Platform{})
}
