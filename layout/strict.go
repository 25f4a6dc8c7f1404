package layout

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// What is longer or deeper is not read: an [ErrLimit].
const (
	MaxManifest = 4 << 20  // bytes of an image manifest, as registries limit it (OCI distribution-spec v1.1, "Pushing Manifests")
	MaxConfig   = 8 << 20  // bytes of an image config
	MaxIndex    = 64 << 20 // bytes of index.json or of a nested index
	MaxIndexes  = 64 << 20 // bytes of all nested indexes that an index.json leads to, each digest once, and one of less than a KiB as one KiB

	MaxIndexImages = 1 << 14 // images in an index, and in the indexes in it; in index.json there may be more

	MaxDepth      = 64      // objects and arrays in one another, in any JSON document
	MaxStrings    = 1 << 20 // annotations, urls and the like in a document: in memory each takes many times its few bytes
	MaxIndexDepth = 8       // indexes in one another, below index.json
)

// Media types of Docker's image manifest version 2, schema 2; those of OCI are in image-spec's package v1.
const (
	MediaTypeDockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList         = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeDockerConfig       = "application/vnd.docker.container.image.v1+json"
	MediaTypeDockerLayer        = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	MediaTypeDockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// IsIndex reports whether a media type is that of an OCI image index or a Docker manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == MediaTypeDockerList
}

// IsManifest reports whether a media type is that of an OCI image manifest or a Docker schema 2 manifest.
func IsManifest(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == MediaTypeDockerManifest
}

// IsConfig reports whether a media type is that of an image's config, OCI's or Docker's.
func IsConfig(mediaType string) bool {
	return mediaType == v1.MediaTypeImageConfig || mediaType == MediaTypeDockerConfig
}

var (
	// ErrCorrupt is the kind of every error about what a layout holds: a wrong digest, size or structure, a missing blob, a limit exceeded.
	ErrCorrupt = errors.New("corrupt")
	// errTorn is the kind of an error about a document that ends too early, as one does that somebody is just writing. No program reads it, so that
	// what was there before may serve for a moment; of anything else that is refused some program may read something.
	errTorn = errors.New("torn")
	// ErrLimit is the kind of an error about one of the limits above. Every ErrLimit is also an [ErrCorrupt].
	ErrLimit = errors.New("over a limit")
)

// A fault is an error that is of some kinds, which its text does not spell out.
type fault struct {
	error
	kinds []error
}

func (f *fault) Unwrap() []error { return append([]error{f.error}, f.kinds...) }

// corruptf returns an [ErrCorrupt]. It takes what fmt.Errorf takes, %w too.
func corruptf(format string, args ...any) error {
	return &fault{fmt.Errorf(format, args...), []error{ErrCorrupt}}
}

// kindf returns an error of a kind, which its text does not spell out.
func kindf(kind error, format string, args ...any) error {
	return &fault{fmt.Errorf(format, args...), []error{kind}}
}

// limitf returns an [ErrLimit], which is also an [ErrCorrupt].
func limitf(format string, args ...any) error {
	return &fault{fmt.Errorf(format, args...), []error{ErrLimit, ErrCorrupt}}
}

// ParseIndex returns the strict reading of index.json or a nested index: what encoding/json would read, from a document that every other
// reader reads the same way. mediaType is that of the descriptor that led here, "" for index.json. An error is an [ErrCorrupt] and names
// the member, `manifests[2].size: 1e3 is not a whole number`.
//
// Refused (OCI image-spec v1.1, image-index.md, descriptor.md; RFC 8259):
//   - more than [MaxIndex] bytes, more than [MaxDepth] levels, more than [MaxStrings] annotations and urls;
//   - a duplicate member at any depth, invalid UTF-8, a lone surrogate, a byte order mark, anything after the object;
//   - a member of another type than the specification's; but null stands for an absent object or array, as Go programs write it;
//   - a schemaVersion other than 2, no manifests, a descriptor without mediaType, digest or size;
//   - a number that is not spelled 0 or [1-9][0-9]*, or that does not fit 63 bits;
//   - a mediaType other than the descriptor's, and any of config, layers and fsLayers, by which a manifest could pass
//     for an index (CVE-2021-41190);
//   - in an object that the specification knows, a member whose name is one of that object's but for case (see names): `Digest`,
//     `manifeſts`. Some programs take it for that one, others do not;
//   - a subject with inline data that are not its digest's. The descriptors in manifests are judged where they are used.
//
// Other unknown members are well-formed, and otherwise ignored. The names in maps, such as annotations, are free.
func ParseIndex(doc []byte, mediaType string) (*v1.Index, error) {
	var list []v1.Descriptor
	index, err := parseIndex(context.Background(), doc, mediaType, func(d v1.Descriptor, _ span) {
		d.Annotations = maps.Clone(d.Annotations)
		list = append(list, d)
	})
	if err != nil {
		return nil, err
	}
	index.Manifests = list
	return index, nil
}

// parseRows is [ParseIndex] of an index.json, of which nothing but its descriptors is wanted.
func parseRows(ctx context.Context, doc []byte) (rows, error) {
	b := newRowsOf()
	b.list = make([]row, 0, mostDescriptors(doc))
	if _, err := parseIndex(ctx, doc, "", b.add); err != nil {
		return rows{}, err
	}
	return b.done(), nil
}

// parseIndex is [ParseIndex], and gives each descriptor, with where it is, to row instead of keeping it. Its annotations are row's only until it
// returns. The error may be ctx's.
func parseIndex(ctx context.Context, doc []byte, mediaType string, row func(d v1.Descriptor, at span)) (*v1.Index, error) {
	index := new(v1.Index)
	found := false
	err := parse(doc, MaxIndex, func(r reader, name string) (err error) {
		switch name {
		case "schemaVersion":
			index.SchemaVersion, err = r.schemaVersion()
		case "mediaType":
			index.MediaType, err = r.bodyMediaType(mediaType, IsIndex)
		case "artifactType":
			index.ArtifactType, err = r.string()
		case "manifests":
			found = true
			err = r.eachDescriptor(ctx, doc, row)
		case "subject":
			index.Subject, err = r.optionalDescriptor()
		case "annotations":
			index.Annotations, err = r.annotations()
		case "config", "layers", "fsLayers":
			return corruptf("%s belongs in a manifest, not in an index", name)
		default:
			err = r.unknown(name, indexNames)
		}
		return err
	})
	if err == nil && index.Subject != nil {
		err = inlineFault(*index.Subject)
	}
	switch {
	case err != nil:
		return nil, err
	case mediaType != "" && !IsIndex(mediaType):
		return nil, corruptf("%q is not the media type of an index", Short(mediaType))
	case index.SchemaVersion == 0:
		return nil, corruptf("schemaVersion is missing")
	case !found:
		return nil, corruptf("manifests is missing")
	}
	return index, nil
}

// ParseManifest returns the strict reading of an image manifest, by the rules of [ParseIndex] and up to [MaxManifest] bytes (OCI image-spec
// v1.1, manifest.md). It must have config and layers; refused are manifests, and fsLayers and signatures of Docker's schema 1
// (CVE-2021-41190).
func ParseManifest(doc []byte, mediaType string) (*v1.Manifest, error) {
	manifest := new(v1.Manifest)
	config, layers := false, false
	err := parse(doc, MaxManifest, func(r reader, name string) (err error) {
		switch name {
		case "schemaVersion":
			manifest.SchemaVersion, err = r.schemaVersion()
		case "mediaType":
			manifest.MediaType, err = r.bodyMediaType(mediaType, IsManifest)
		case "artifactType":
			manifest.ArtifactType, err = r.string()
		case "config":
			config = true
			manifest.Config, err = r.descriptor()
		case "layers":
			layers = true
			manifest.Layers, err = r.descriptors()
		case "subject":
			manifest.Subject, err = r.optionalDescriptor()
		case "annotations":
			manifest.Annotations, err = r.annotations()
		case "manifests":
			return corruptf("manifests belongs in an index, not in a manifest")
		case "fsLayers", "signatures":
			return corruptf("%s belongs in a manifest of Docker's schema 1, which is not supported", name)
		default:
			err = r.unknown(name, manifestNames)
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case mediaType != "" && !IsManifest(mediaType):
		return nil, corruptf("%q is not the media type of an image manifest", Short(mediaType))
	case manifest.SchemaVersion == 0:
		return nil, corruptf("schemaVersion is missing")
	case !config:
		return nil, corruptf("config is missing")
	case !layers:
		return nil, corruptf("layers is missing")
	}
	parts := append([]v1.Descriptor{manifest.Config}, manifest.Layers...)
	if manifest.Subject != nil {
		parts = append(parts, *manifest.Subject)
	}
	sizes := map[digest.Digest]int64{}
	for _, d := range parts {
		// An empty config may well be a layer too, under another media type.
		if size, ok := sizes[d.Digest]; ok && size != d.Size {
			return nil, corruptf("%s: its descriptors disagree: %d bytes, and %d bytes", d.Digest, size, d.Size)
		}
		sizes[d.Digest] = d.Size
		if err := inlineFault(d); err != nil {
			return nil, err
		}
	}
	return manifest, nil
}

// inlineFault returns nil if a descriptor has no inline data, or those of its blob: some programs take these, others the blob (OCI image-spec
// v1.1, descriptor.md, "Embedded Content").
func inlineFault(d v1.Descriptor) error {
	if d.Data != nil && (int64(len(d.Data)) != d.Size || d.Digest.Algorithm().FromBytes(d.Data) != d.Digest) {
		return corruptf("%s: the data inlined in its descriptor is not the blob's", d.Digest)
	}
	return nil
}

// ParseConfig returns what irfs needs of an image's config, up to [MaxConfig] bytes (OCI image-spec v1.1, config.md): its platform
// (architecture, os, os.version, os.features, variant) and rootfs (type, diff_ids). Whatever is absent is empty. The rest is skipped, but
// is well-formed by the rules of [ParseIndex], also those on names.
func ParseConfig(doc []byte) (*v1.Image, error) {
	image := new(v1.Image)
	err := parse(doc, MaxConfig, func(r reader, name string) (err error) {
		switch name {
		case "rootfs":
			image.RootFS, err = r.rootFS()
		case "config":
			err = r.skipNamed(executionNames)
		case "history":
			if r.dec.PeekKind() != jsontext.KindBeginArray {
				return r.skip()
			}
			err = r.elements(func() error { return r.skipNamed(historyNames) })
		default:
			err = r.platformMember(&image.Platform, name, configNames)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return image, nil
}

// names are those that the members of an object have (OCI image-spec v1.1: image-index.md, manifest.md, descriptor.md, config.md, and what Docker's
// documents of that kind have besides), or that it must not have. Programs in Go and some others find a member in whatever case its name is written, also
// by Unicode's simple folding (encoding/json), and programs in C may read a name up to its first NUL.
type names []string

var (
	indexNames      = names{"schemaVersion", "mediaType", "artifactType", "manifests", "subject", "annotations", "config", "layers", "fsLayers"}
	manifestNames   = names{"schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations", "manifests", "fsLayers", "signatures"}
	descriptorNames = names{"mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType"}
	platformNames   = names{"architecture", "os", "os.version", "os.features", "variant", "features"}
	configNames     = append(names{"created", "author", "config", "rootfs", "history"}, platformNames[:5]...)
	executionNames  = names{"User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "ArgsEscaped",
		"Memory", "MemorySwap", "CpuShares", "Healthcheck", "OnBuild", "Shell"}
	rootFSNames  = names{"type", "diff_ids"}
	historyNames = names{"created", "created_by", "author", "comment", "empty_layer"}
)

// takenFor returns the known name that some programs read name as, or "" if there is none, or if it is that name.
func (n names) takenFor(name string) string {
	until, _, _ := strings.Cut(name, "\x00")
	for _, known := range n {
		if name != known && strings.EqualFold(until, known) {
			return known
		}
	}
	return ""
}

// unknown reads a member that its reader does not need, of an object that has these names.
func (r reader) unknown(name string, of names) error {
	if known := of.takenFor(name); known != "" {
		return r.fail("some programs take this for the member %q", known)
	}
	return r.skip()
}

// skipNamed reads any value. If it is an object, it is one that has these names.
func (r reader) skipNamed(of names) error {
	if r.dec.PeekKind() != jsontext.KindBeginObject {
		return r.skip()
	}
	return r.members(func(name string) error { return r.unknown(name, of) })
}

// memberLike returns the first of some names that any program could find among the members of a document; "" if there is none. Of a document that begins as
// an object and is not well-formed, which some programs read all the same, it is enough that it has the text.
func memberLike(doc []byte, any ...string) string {
	doc = bytes.TrimLeft(bytes.TrimPrefix(doc, []byte("\ufeff")), whiteSpace)
	dec := jsontext.NewDecoder(bytes.NewReader(doc), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if token, err := dec.ReadToken(); err != nil || token.Kind() != jsontext.KindBeginObject {
		return ""
	}
	for dec.PeekKind() == jsontext.KindString {
		token, err := dec.ReadToken()
		if err != nil {
			return textLike(doc, any)
		}
		name := token.String()
		for _, known := range any {
			if name == known || (names{known}).takenFor(name) != "" {
				return name
			}
		}
		if dec.SkipValue() != nil {
			return textLike(doc, any)
		}
	}
	if token, err := dec.ReadToken(); err != nil || token.Kind() != jsontext.KindEndObject {
		return textLike(doc, any)
	}
	return ""
}

// textLike returns the first of some words that a text has, in any case; or the first of all if it has an escape, in which it may hide.
func textLike(text []byte, words []string) string {
	if bytes.Contains(text, []byte(`\u`)) {
		return words[0]
	}
	folded := strings.NewReplacer("ſ", "s", "K", "k").Replace(strings.ToLower(string(text)))
	for _, word := range words {
		if strings.Contains(folded, strings.ToLower(word)) {
			return word
		}
	}
	return ""
}

// parse calls member for every member of doc, which has to read that member's value.
func parse(doc []byte, limit int, member func(r reader, name string) error) error {
	r, err := newReader(doc, limit)
	if err != nil {
		return err
	}
	if kind := r.dec.PeekKind(); kind != jsontext.KindInvalid && kind != jsontext.KindBeginObject {
		return corruptf("found %s, want an object", kindName(kind))
	}
	if err := r.members(func(name string) error { return member(r, name) }); err != nil {
		return err
	}
	return r.end()
}

func newReader(doc []byte, limit int) (reader, error) {
	if len(doc) > limit {
		return reader{}, limitf("%d bytes are over the limit of %d", len(doc), limit)
	}
	if bytes.HasPrefix(doc, []byte("\ufeff")) {
		return reader{}, corruptf("the document begins with a byte order mark")
	}
	return reader{jsontext.NewDecoder(bytes.NewBuffer(doc)), &memory{words: map[string]string{}}}, nil
}

// A reader reads a document from its beginning to its end. Its methods read the value that comes next; their errors name its path.
// The decoder refuses duplicate members and invalid UTF-8 by default.
type reader struct {
	dec *jsontext.Decoder
	*memory
}

// A memory is what a reader has to remember, and what keeps it from allocating for each of many descriptors what they have in common.
type memory struct {
	kept  int               // strings that keep counted
	words map[string]string // some that came before
	spare map[string]string // annotations of which nobody has the map any more
}

// maxWords is how many words a memory has: names of members, media types and platforms are few.
const maxWords = 64

// word is the string of that text, the same one for a word that came before.
func (m *memory) word(text []byte) string {
	word, ok := m.words[string(text)]
	if !ok {
		word = string(text)
		if len(m.words) < maxWords {
			m.words[word] = word
		}
	}
	return word
}

// keep counts a string of which a document may have as many as it likes.
func (r reader) keep() error {
	if r.kept++; r.kept > MaxStrings {
		return limitf("%s: over the limit of %d annotations and urls in a document", r.path(r.dec.StackPointer()), MaxStrings)
	}
	return nil
}

// end wants the document to be over.
func (r reader) end() error {
	if _, err := r.dec.ReadToken(); err != io.EOF {
		return corruptf("there is something after the end of the document, at byte %d", r.dec.InputOffset())
	}
	return nil
}

func (r reader) token() (jsontext.Token, error) {
	token, err := r.dec.ReadToken()
	if err != nil {
		return token, r.syntax(err)
	}
	if r.dec.StackDepth() > MaxDepth {
		return token, limitf("%s: nested more than %d deep", r.path(r.dec.StackPointer()), MaxDepth)
	}
	return token, nil
}

// scalar reads a string or a number. What it returns holds until the next one is read.
func (r reader) scalar(kind jsontext.Kind) ([]byte, error) {
	if r.dec.PeekKind() != kind {
		token, err := r.token()
		if err == nil {
			err = r.fail("found %s, want %s", kindName(token.Kind()), kindName(kind))
		}
		return nil, err
	}
	text, err := r.dec.ReadValue()
	if err != nil {
		return nil, r.syntax(err)
	}
	return said(text), nil
}

// said gives what a string says, and leaves anything else as it is.
func said(text jsontext.Value) []byte {
	if text[0] != '"' {
		return text
	}
	if bytes.IndexByte(text, '\\') < 0 {
		return text[1 : len(text)-1]
	}
	plain, _ := jsontext.AppendUnquote(nil, text) // the decoder has found that it is well-formed
	return plain
}

// string reads a string of which there are many like it; text reads any.
func (r reader) string() (string, error) {
	text, err := r.scalar(jsontext.KindString)
	return r.word(text), err
}

func (r reader) text() (string, error) {
	text, err := r.scalar(jsontext.KindString)
	return string(text), err
}

// number reads a number from 0 to 2⁶³-1. Only its plain spelling is accepted: readers differ on what 1.0, 1e3 and 9223372036854775808 are.
func (r reader) number() (int64, error) {
	plain, err := r.scalar(jsontext.KindNumber)
	if err != nil {
		return 0, err
	}
	text := string(plain)
	// JSON itself has no leading zeros.
	if strings.Trim(text, "0123456789") != "" {
		return 0, r.fail("%s is not a whole number", Cut(text, shortNumber))
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, r.fail("%s is too large", Cut(text, shortNumber))
	}
	return n, nil
}

// enter reads the token that opens an object or an array. It returns false for null: so Go programs write a nil map, slice or pointer.
func (r reader) enter(kind jsontext.Kind) (bool, error) {
	token, err := r.token()
	if err != nil || token.Kind() == jsontext.KindNull {
		return false, err
	}
	if token.Kind() != kind {
		return false, r.fail("found %s, want %s", kindName(token.Kind()), kindName(kind))
	}
	return true, nil
}

// members reads an object; member has to read the value of each.
func (r reader) members(member func(name string) error) error {
	ok, err := r.enter(jsontext.KindBeginObject)
	if !ok {
		return err
	}
	for r.dec.PeekKind() != jsontext.KindEndObject {
		name, err := r.dec.ReadValue()
		if err != nil {
			return r.syntax(err)
		}
		if err := member(r.word(said(name))); err != nil {
			return err
		}
	}
	_, err = r.token()
	return err
}

// elements reads an array; element has to read each.
func (r reader) elements(element func() error) error {
	ok, err := r.enter(jsontext.KindBeginArray)
	if !ok {
		return err
	}
	for r.dec.PeekKind() != jsontext.KindEndArray {
		if err := element(); err != nil {
			return err
		}
	}
	_, err = r.token()
	return err
}

// skip reads any value.
func (r reader) skip() error {
	depth := r.dec.StackDepth()
	for {
		if _, err := r.token(); err != nil {
			return err
		}
		if r.dec.StackDepth() == depth {
			return nil
		}
	}
}

func (r reader) strings() (list []string, err error) {
	err = r.elements(func() error {
		s, err := r.text()
		if err == nil {
			err = r.keep()
		}
		list = append(list, s)
		return err
	})
	return list, err
}

func (r reader) digest() (digest.Digest, error) {
	s, err := r.text()
	if err != nil {
		return "", err
	}
	d, err := ParseDigest(s)
	if err != nil {
		return "", r.fail("%w", err)
	}
	return d, nil
}

func (r reader) schemaVersion() (int, error) {
	n, err := r.number()
	if err == nil && n != 2 {
		err = r.fail("%d is not supported, only 2", n)
	}
	return int(n), err
}

// bodyMediaType reads the mediaType of a document. want is its descriptor's, "" if there is none.
func (r reader) bodyMediaType(want string, ofItsKind func(string) bool) (string, error) {
	got, err := r.string()
	switch {
	case err != nil:
		return "", err
	case want == "" && !ofItsKind(got):
		return "", r.fail("%q is not that of such a document", Short(got))
	case want != "" && got != want:
		return "", r.fail("%q is not that of the descriptor, %q", Short(got), Short(want))
	}
	return got, nil
}

func (r reader) descriptors() (list []v1.Descriptor, err error) {
	err = r.elements(func() error {
		d, err := r.descriptor()
		list = append(list, d)
		return err
	})
	return list, err
}

// eachDescriptor reads an array of them, and tells of each where in doc it is. The annotations are do's only until it returns.
func (r reader) eachDescriptor(ctx context.Context, doc []byte, do func(d v1.Descriptor, at span)) error {
	const often = 1 << 10 // descriptors, which take about a millisecond
	n := 0
	return r.elements(func() error {
		if n++; n%often == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		start := int(r.dec.InputOffset())
		d, err := r.descriptor()
		end := int(r.dec.InputOffset())
		if err != nil {
			return err
		}
		do(d, span{end - len(bytes.TrimLeft(doc[start:end], whiteSpace+",")), end})
		r.spare = d.Annotations
		return nil
	})
}

func (r reader) optionalDescriptor() (*v1.Descriptor, error) {
	if r.dec.PeekKind() == jsontext.KindNull {
		return nil, r.skip()
	}
	d, err := r.descriptor()
	return &d, err
}

func (r reader) descriptor() (v1.Descriptor, error) {
	const missing = -1
	d := v1.Descriptor{Size: missing}
	err := r.members(func(name string) (err error) {
		switch name {
		case "mediaType":
			d.MediaType, err = r.string()
		case "digest":
			d.Digest, err = r.digest()
		case "size":
			d.Size, err = r.number()
		case "urls":
			d.URLs, err = r.strings()
		case "annotations":
			d.Annotations, err = r.annotations()
		case "data":
			d.Data, err = r.base64()
		case "platform":
			d.Platform, err = r.platform()
		case "artifactType":
			d.ArtifactType, err = r.string()
		default:
			err = r.unknown(name, descriptorNames)
		}
		return err
	})
	switch {
	case err != nil:
	case d.MediaType == "":
		err = r.fail("mediaType is missing")
	case d.Digest == "":
		err = r.fail("digest is missing")
	case d.Size == missing:
		err = r.fail("size is missing")
	}
	return d, err
}

func (r reader) annotations() (map[string]string, error) {
	var annotations map[string]string
	err := r.members(func(name string) (err error) {
		if annotations == nil {
			if annotations, r.spare = r.spare, nil; annotations == nil {
				annotations = make(map[string]string)
			}
			clear(annotations)
		}
		if annotations[name], err = r.text(); err == nil {
			err = r.keep()
		}
		return err
	})
	return annotations, err
}

// base64 reads the inline data of a descriptor. It is never nil if there is data, be it empty.
func (r reader) base64() ([]byte, error) {
	if r.dec.PeekKind() == jsontext.KindNull {
		return nil, r.skip()
	}
	text, err := r.text()
	if err != nil {
		return nil, err
	}
	data, err := base64.StdEncoding.Strict().DecodeString(text)
	// Even the strict decoder passes over line ends.
	if err != nil || strings.ContainsAny(text, "\r\n") {
		return nil, r.fail("not in base64")
	}
	return data, nil
}

func (r reader) platform() (*v1.Platform, error) {
	if r.dec.PeekKind() == jsontext.KindNull {
		return nil, r.skip()
	}
	platform := new(v1.Platform)
	err := r.members(func(name string) error { return r.platformMember(platform, name, platformNames) })
	return platform, err
}

// platformMember reads the member of that name, of a descriptor's platform or of a config, which has the same ones beside others.
func (r reader) platformMember(platform *v1.Platform, name string, of names) (err error) {
	switch name {
	case "architecture":
		platform.Architecture, err = r.string()
	case "os":
		platform.OS, err = r.string()
	case "os.version":
		platform.OSVersion, err = r.string()
	case "os.features":
		platform.OSFeatures, err = r.strings()
	case "variant":
		platform.Variant, err = r.string()
	default:
		err = r.unknown(name, of)
	}
	return err
}

func (r reader) rootFS() (rootFS v1.RootFS, err error) {
	err = r.members(func(name string) (err error) {
		switch name {
		case "type":
			rootFS.Type, err = r.string()
		case "diff_ids":
			err = r.elements(func() error {
				d, err := r.digest()
				rootFS.DiffIDs = append(rootFS.DiffIDs, d)
				return err
			})
		default:
			err = r.unknown(name, rootFSNames)
		}
		return err
	})
	return rootFS, err
}

// fail returns an [ErrCorrupt] about the value that was read last.
func (r reader) fail(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if path := r.path(r.dec.StackPointer()); path != "" {
		return corruptf("%s: %w", path, err)
	}
	return corruptf("%w", err)
}

// syntax returns an [ErrCorrupt] for an error of the decoder. It does not wrap it: the caller's io.EOF is not this one.
func (r reader) syntax(err error) error {
	var syntactic *jsontext.SyntacticError
	switch {
	case err == io.EOF:
		return kindf(errTorn, "%w", corruptf("the document is empty"))
	case !errors.As(err, &syntactic):
		return corruptf("%v", err)
	}
	text := fmt.Sprintf("%v, at byte %d", syntactic.Err, syntactic.ByteOffset)
	torn := errors.Is(err, io.ErrUnexpectedEOF)
	switch {
	case torn:
		text = "the document ends too early"
	case errors.Is(err, jsontext.ErrDuplicateName):
		text = "there are two members of that name"
	}
	if path := r.path(syntactic.JSONPointer); path != "" {
		text = path + ": " + text
	}
	if torn {
		return kindf(errTorn, "%w", corruptf("%s", text))
	}
	return corruptf("%s", text)
}

// plainName says whether a member's name can be spelled without quotes.
func plainName(name string) bool {
	return name != "" && name[0] != '-' && (name[0] < '0' || name[0] > '9') && strings.Trim(name, alphanumeric+"_-") == ""
}

// What an error holds of a number, and of each name in a path, in bytes.
const (
	shortNumber = 40
	shortName   = 60
)

// path spells a pointer that ends on the decoder's stack, or one name below, as `manifests[2].annotations["a.b"]`. Names and depth are the
// document's, so it is cut short.
func (r reader) path(pointer jsontext.Pointer) string {
	var b strings.Builder
	level := 0
	for name := range pointer.Tokens() {
		level++
		if level > 8 {
			b.WriteString("…")
			break
		}
		kind := jsontext.KindBeginObject
		if level <= r.dec.StackDepth() {
			kind, _ = r.dec.StackIndex(level)
		}
		switch {
		case kind == jsontext.KindBeginArray:
			fmt.Fprintf(&b, "[%s]", name)
		case len(name) > shortName || !plainName(name):
			fmt.Fprintf(&b, "[%q]", Cut(name, shortName))
		case level > 1:
			b.WriteString("." + name)
		default:
			b.WriteString(name)
		}
	}
	return b.String()
}

func kindName(kind jsontext.Kind) string {
	switch kind {
	case jsontext.KindNull:
		return "null"
	case jsontext.KindTrue, jsontext.KindFalse:
		return "a boolean"
	case jsontext.KindNumber:
		return "a number"
	case jsontext.KindString:
		return "a string"
	case jsontext.KindBeginObject:
		return "an object"
	}
	return "an array"
}
