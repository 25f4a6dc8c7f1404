package layout

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// This file makes of what an archive holds what an OCI registry server takes:
//
//   - every tag is one (ValidTag): of a full name in org.opencontainers.image.ref.name
//     the tag stays, and the name goes to io.containerd.image.name;
//   - an index lists what is there: platforms that the archive lacks are dropped, and
//     an index of which one image is left gives way to that image;
//   - attestations are dropped;
//   - Docker's media types become OCI's;
//   - index.json has its mediaType.
//
// Documents are spliced (splice.go), and configs and layers never change.

// ValidTag is what a registry server takes for a tag (OCI distribution-spec v1.1, "Pulling manifests").
func ValidTag(tag string) bool {
	return tag != "" && len(tag) <= 128 && tag[0] != '.' && tag[0] != '-' && strings.Trim(tag, alphanumeric+"._-") == ""
}

const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" + decimal

// fullName is the annotation that holds the full name of an image, as containerd writes it (containerd, core/images/annotations.go).
const fullName = "io.containerd.image.name"

// defaultTag is the tag of an image that has none, as for `docker pull`.
const defaultTag = "latest"

// tagOf gives the tag in what archives have for org.opencontainers.image.ref.name: a
// tag, or a full name such as `docker.io/library/nginx:1.25`. What cannot be in a
// tag becomes `_`.
func tagOf(name string) string {
	repository, _, hasDigest := strings.Cut(name, "@")
	last := repository[strings.LastIndexByte(repository, '/')+1:]
	tag := last
	if i := strings.LastIndexByte(last, ':'); i >= 0 {
		tag = last[i+1:]
	} else if hasDigest || last != repository {
		tag = ""
	}
	if tag == "" {
		return defaultTag
	}
	b := []byte(tag)
	for i, c := range b {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
		if !letter && (i == 0 || c != '.' && c != '-') {
			b[i] = '_'
		}
	}
	return string(b)
}

// nameOf is what a descriptor in index.json is called: by the annotation for that, or
// by containerd's.
func nameOf(d v1.Descriptor) string {
	return cmp.Or(d.Annotations[refName], d.Annotations[fullName])
}

// ociTypes are OCI's names for Docker's media types (OCI image-spec v1.1,
// media-types.md, "Compatibility Matrix").
var ociTypes = map[string]string{
	MediaTypeDockerManifest:                             v1.MediaTypeImageManifest,
	MediaTypeDockerList:                                 v1.MediaTypeImageIndex,
	MediaTypeDockerConfig:                               v1.MediaTypeImageConfig,
	"application/vnd.docker.image.rootfs.diff.tar":      v1.MediaTypeImageLayer,
	MediaTypeDockerLayer:                                v1.MediaTypeImageLayerGzip,
	"application/vnd.docker.image.rootfs.diff.tar.zstd": v1.MediaTypeImageLayerZstd,
	MediaTypeDockerForeignLayer:                         "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
}

func ociType(mediaType string) string {
	if t, ok := ociTypes[mediaType]; ok {
		return t
	}
	return mediaType
}

// A fate is what becomes of a manifest or index.
type fate struct {
	gone string        // why it is dropped, or ""
	only v1.Descriptor // the one image that is left of an index, if others were dropped
}

// A normalising is the work on one archive.
type normalising struct {
	*unpacking
	archived map[digest.Digest]part // the blobs that the archive had: what one of them becomes may have a missing one's digest
	snap     *Snapshot
	reached  *reached
	fates    map[digest.Digest]fate
	moves    map[digest.Digest]move // without the bytes
	inToto   map[digest.Digest]bool // manifests all of whose layers are attestations
	typed    int                    // documents that have other media types now
}

// normalise gives the index.json for what snap was read from, and adds the
// documents that it needs besides.
func (u *unpacking) normalise(snap *Snapshot, index []byte) ([]byte, error) {
	entries, err := snap.Entries(u.ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Err != nil {
			return nil, e.Err
		}
	}
	r, err := snap.all(u.ctx)
	if err != nil {
		return nil, err
	}
	n := &normalising{
		unpacking: u, archived: maps.Clone(u.blobs), snap: snap, reached: r, fates: map[digest.Digest]fate{},
		moves: map[digest.Digest]move{}, inToto: map[digest.Digest]bool{},
	}
	rows, err := n.rows()
	if err != nil {
		return nil, err
	}
	if index, err = editDescriptors(index, func(i int, text []byte) ([]byte, error) { return n.row(text, rows[i]) }); err != nil {
		return nil, err
	}
	if n.typed > 0 {
		u.Dropped = append(u.Dropped, fmt.Sprintf("Docker's media types of %d manifests, which have OCI's now", n.typed))
	}
	return setString(index, "mediaType", v1.MediaTypeImageIndex)
}

// A newRow says what becomes of a descriptor in index.json.
type newRow struct {
	dropped       bool
	was, is       v1.Descriptor // is: what it shall name; not its digest if that has moved
	tag, fullName string
}

func (n *normalising) rows() ([]newRow, error) {
	list := make([]newRow, len(n.snap.list))
	left, tagged := 0, 0
	for i, d := range n.snap.descriptors() {
		if !n.in.KeepAll && !IsIndex(d.MediaType) && !IsManifest(d.MediaType) {
			return nil, corruptf("%s: of media type %q, which is neither that of an image nor of an index", d.Digest, Short(d.MediaType))
		}
		f, err := n.settle(d)
		if err != nil {
			return nil, err
		}
		if f.gone != "" {
			return nil, fmt.Errorf("%s: %w", f.gone, missing(d))
		}
		list[i] = newRow{was: d, is: d}
		attests, err := n.attests(d)
		if err != nil {
			return nil, err
		}
		if attests {
			n.drop("attestation", d)
			list[i].dropped = true
			continue
		}
		for f.only.Digest != "" {
			list[i].is = f.only
			f = n.fates[f.only.Digest]
		}
		left++
		if nameOf(d) != "" {
			tagged++
		}
	}
	if left == 0 {
		return nil, corruptf("it holds no image, only attestations")
	}
	return list, n.tag(list, tagged > 0)
}

// tag finds the tag of each row. Where none has one, an image is the latest.
func (n *normalising) tag(list []newRow, tagged bool) error {
	type user struct {
		row  *newRow
		name string
	}
	users := map[string]user{}
	for i := range list {
		r := &list[i]
		_, named := r.was.Annotations[refName]
		name := nameOf(r.was)
		switch {
		case r.dropped:
			continue
		case name == "" && named && tagged:
			return corruptf("%s: an empty name beside others", r.was.Digest)
		case name == "" && tagged:
			continue
		}
		r.tag = tagOf(name)
		if r.fullName = name; name == r.tag {
			r.fullName = ""
		}
		name = cmp.Or(r.was.Annotations[fullName], name, string(r.is.Digest))
		if !ValidTag(r.tag) {
			return corruptf("the tag of %q is over 128 characters", Cut(name, 300))
		}
		first, taken := users[r.tag]
		switch {
		case !taken:
			users[r.tag] = user{r, name}
		case first.row.is.Digest == r.is.Digest:
			if first.name != name {
				n.Dropped = append(n.Dropped, fmt.Sprintf("the name %s (it is the same image as %s, by the same tag)", Short(name), Short(first.name)))
			}
			r.dropped = true
		default:
			return corruptf("%q and %q would both get the tag %q", Short(first.name), Short(name), r.tag)
		}
	}
	return nil
}

// row is the text of a descriptor in index.json.
func (n *normalising) row(text []byte, r newRow) ([]byte, error) {
	if r.dropped {
		return nil, nil
	}
	to, err := n.moved(r.is, r.was.Data != nil)
	if err != nil {
		return nil, err
	}
	text, err = n.descriptor(text, r.is.MediaType, map[digest.Digest]move{r.was.Digest: to})
	if err != nil || r.tag == "" {
		return text, err
	}
	set := []Annotation{{refName, r.tag}}
	if _, ok := r.was.Annotations[fullName]; !ok && r.fullName != "" {
		set = append(set, Annotation{fullName, r.fullName})
	}
	return setAnnotations(text, set)
}

// descriptor is redescribe with OCI's name for a media type.
func (n *normalising) descriptor(text []byte, mediaType string, moves map[digest.Digest]move) ([]byte, error) {
	if !n.in.KeepAll {
		mediaType = ociType(mediaType)
	}
	return redescribe(text, mediaType, moves)
}

// moved is what a descriptor names from now on; with inline, its bytes too.
func (n *normalising) moved(d v1.Descriptor, inline bool) (move, error) {
	to, ok := n.moves[d.Digest]
	if !ok {
		to = move{Digest: d.Digest, Size: d.Size}
	}
	if inline {
		data, _, _, err := n.App.readBlob(n.dirfd, v1.Descriptor{Digest: to.Digest, Size: to.Size}, MaxIndex, nil)
		if err != nil {
			return move{}, err
		}
		to.Bytes = data
	}
	return to, nil
}

// drop notes what is left out.
func (s *Staged) drop(what string, d v1.Descriptor) {
	if d.Platform != nil && what == "" {
		what = PlatformString(*d.Platform)
	}
	if what == "" {
		what = "image"
	}
	part := what + " " + string(d.Digest)
	if s.dropped[part] {
		return
	}
	if s.dropped == nil {
		s.dropped = map[string]bool{}
	}
	s.dropped[part] = true
	s.Dropped = append(s.Dropped, part)
}

// redescribe is the text of a descriptor of that media type, after the moves.
func redescribe(text []byte, mediaType string, moves map[digest.Digest]move) ([]byte, error) {
	s := scan(text, span{0, len(text)})
	edits, err := s.moveDescriptor(nil, moves)
	if err != nil {
		return nil, err
	}
	return setString(splice(text, edits), "mediaType", mediaType)
}

// attests says whether a descriptor is one of an attestation, which is dropped.
func (n *normalising) attests(d v1.Descriptor) (bool, error) {
	if n.in.KeepAll || !IsManifest(d.MediaType) || !looksLikeAttestation(d) {
		return false, nil
	}
	all, known := n.inToto[d.Digest]
	if known {
		return all, nil
	}
	m, err := n.snap.Manifest(n.ctx, Entry{Descriptor: d})
	if errors.Is(err, ErrMissing) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	n.inToto[d.Digest] = m.Kind == KindAttestation
	return n.inToto[d.Digest], nil
}

// settle finds out what becomes of a manifest or index, and of all that hangs on it.
func (n *normalising) settle(d v1.Descriptor) (fate, error) {
	if f, ok := n.fates[d.Digest]; ok {
		return f, nil
	}
	err := n.ctx.Err()
	f := fate{gone: "not in the archive"}
	if _, there := n.archived[d.Digest]; there && err == nil {
		f = fate{}
		switch {
		case IsIndex(d.MediaType):
			f, err = n.settleIndex(d)
		case IsManifest(d.MediaType) && !n.in.KeepAll:
			err = n.retype(d)
		}
	}
	if err != nil {
		return fate{}, err
	}
	n.fates[d.Digest] = f
	return f, nil
}

func (n *normalising) settleIndex(d v1.Descriptor) (fate, error) {
	was, _, _, err := n.App.readBlob(n.dirfd, d, MaxIndex, nil)
	if err != nil {
		return fate{}, err
	}
	children := n.reached.nodes[d.Digest].index.children
	dropped := make([]bool, len(children))
	var left []v1.Descriptor
	for i, child := range children {
		f, err := n.settle(child)
		if err != nil {
			return fate{}, err
		}
		attests, err := n.attests(child)
		if err != nil {
			return fate{}, err
		}
		switch {
		case n.in.KeepAll:
		case attests:
			dropped[i] = true
			n.drop("attestation", child)
			continue
		case f.gone != "":
			dropped[i] = true
			n.drop("", child)
			continue
		}
		left = append(left, child)
	}
	if n.in.KeepAll {
		return fate{}, nil
	}
	if len(left) == 0 && len(children) > 0 {
		return fate{gone: "nothing that it lists is in the archive"}, nil
	}
	is, err := editDescriptors(was, func(i int, text []byte) ([]byte, error) {
		if dropped[i] {
			return nil, nil
		}
		moves := n.moves
		if _, ok := moves[children[i].Digest]; ok && children[i].Data != nil {
			to, err := n.moved(children[i], true)
			if err != nil {
				return nil, err
			}
			moves = maps.Clone(moves)
			moves[children[i].Digest] = to
		}
		return n.descriptor(text, children[i].MediaType, moves)
	})
	if err == nil {
		is, err = n.typeOf(is, d.MediaType)
	}
	if err == nil {
		err = n.became(d, was, is, MaxIndex)
	}
	f := fate{}
	if len(left) == 1 && len(left) < len(children) {
		f.only = left[0]
	}
	return f, err
}

// typeOf gives a document of Docker's kind OCI's mediaType.
func (n *normalising) typeOf(text []byte, mediaType string) ([]byte, error) {
	oci := ociType(mediaType)
	if oci == mediaType {
		return text, nil
	}
	return setString(text, "mediaType", oci)
}

// became notes what a document becomes, if that is anything else, and adds it.
func (n *normalising) became(d v1.Descriptor, was, is []byte, limit int) error {
	if bytes.Equal(was, is) {
		return nil
	}
	if len(is) > limit {
		return limitf("%s: would grow to %d bytes, over the limit of %d", d.Digest, len(is), limit)
	}
	now := v1.Descriptor{Digest: d.Digest.Algorithm().FromBytes(is), Size: int64(len(is))}
	n.moves[d.Digest] = move{Digest: now.Digest, Size: now.Size}
	return n.put(now, is)
}

// retype makes an OCI manifest of one that has media types of Docker's.
func (n *normalising) retype(d v1.Descriptor) error {
	m, err := n.snap.Manifest(n.ctx, Entry{Descriptor: d})
	if err != nil {
		return err
	}
	is, err := n.typeOf(m.Bytes, d.MediaType)
	if err == nil {
		is, err = retypeParts(is)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.Digest, err)
	}
	if !bytes.Equal(is, m.Bytes) {
		n.typed++
	}
	return n.became(d, m.Bytes, is, MaxManifest)
}

// retypeParts gives the descriptors of config and layers in a manifest OCI's media types.
func retypeParts(doc []byte) ([]byte, error) {
	top, err := scanObject(doc, span{0, len(doc)})
	if err != nil {
		return nil, err
	}
	var edits []edit
	retype := func(at span) error {
		o, err := scanObject(doc, at)
		if err != nil {
			return err
		}
		m, ok := o.member("mediaType")
		if !ok {
			return corruptf("a descriptor without mediaType")
		}
		was, err := unquote(m.value.of(doc))
		if oci := ociType(was); err == nil && oci != was {
			edits = append(edits, edit{m.value, plain(oci)})
		}
		return err
	}
	if config, ok := top.member("config"); ok {
		if err := retype(config.value); err != nil {
			return nil, err
		}
	}
	if layers, ok := top.member("layers"); ok && !layers.value.isNull(doc) {
		s := scan(doc, layers.value)
		if err := s.elements(func() error {
			at, err := s.value()
			if err != nil {
				return err
			}
			return retype(at)
		}); err != nil {
			return nil, err
		}
	}
	return splice(doc, edits), nil
}
