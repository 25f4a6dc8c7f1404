package layout

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/opencontainers/go-digest"
)

// Annotation is one annotation to be set.
type Annotation struct{ Key, Value string }

// setAnnotations returns doc, a manifest, with the annotations set, and every other byte as it was. An annotation that has the value already
// stays as it is spelled; of one with another value, only the value is replaced; what is new goes last, in the order of set. The same set
// a second time changes nothing. A document that is not one object, with annotations of strings, is an [ErrCorrupt].
func setAnnotations(doc []byte, set []Annotation) ([]byte, error) {
	if len(set) == 0 {
		return doc, nil
	}
	top, err := scanObject(doc, span{0, len(doc)})
	if err != nil {
		return nil, err
	}
	annotations, found := top.member("annotations")
	var old object // no members, unless there are annotations
	if found && !annotations.value.isNull(doc) {
		if old, err = scanObject(doc, annotations.value); err != nil {
			return nil, fmt.Errorf("annotations: %w", err)
		}
	}

	var edits []edit
	var fresh [][]byte
	for i, a := range set {
		if slices.ContainsFunc(set[:i], func(b Annotation) bool { return b.Key == a.Key }) {
			return nil, fmt.Errorf("annotation %q: set twice", a.Key)
		}
		value, err := quote(a.Value)
		if err != nil {
			return nil, fmt.Errorf("annotation %q: value: %w", a.Key, err)
		}
		if m, ok := old.member(a.Key); ok {
			was, err := unquote(m.value.of(doc))
			if err != nil {
				return nil, corruptf("annotations[%q]: %w", a.Key, err)
			}
			if was != a.Value {
				edits = append(edits, edit{m.value, value})
			}
			continue
		}
		key, err := quote(a.Key)
		if err != nil {
			return nil, fmt.Errorf("annotation %q: %w", a.Key, err)
		}
		fresh = append(fresh, append(append(key, ':'), value...))
	}
	if len(fresh) == 0 {
		return splice(doc, edits), nil
	}

	style := spacingOf(doc, top, spacing{colon: ":"})
	whole := enclose('{', fresh, '}')
	switch {
	case len(old.members) > 0:
		edits = append(edits, insert(old.last().value.end, spacingOf(doc, old, style).further(fresh)))
	case found && !annotations.value.isNull(doc):
		edits = append(edits, style.fill(doc, old.span, fresh))
	case found:
		edits = append(edits, edit{annotations.value, style.spread(nil, whole, style.member)})
	default:
		added := [][]byte{append([]byte(`"annotations":`), whole...)}
		if len(top.members) == 0 {
			edits = append(edits, style.fill(doc, top.span, added))
			break
		}
		edits = append(edits, insert(top.last().value.end, style.further(added)))
	}
	return splice(doc, edits), nil
}

// A move tells what the descriptor of one digest becomes.
type move struct {
	Digest digest.Digest
	Size   int64
	Bytes  []byte // the new blob, for an inline data member
}

// referenceDigest annotates a BuildKit attestation's descriptor with the digest of the image manifest that it is about
// (BuildKit, docs/attestations/attestation-storage.md).
const referenceDigest = "vnd.docker.reference.digest"

// moveDescriptors returns doc, an index, with every element of `manifests` whose digest is a key of moves given its new digest, size and,
// if it has one, data, and every annotation vnd.docker.reference.digest of such an element that names a key of moves given the new
// digest. Every other byte stays. A document that is not an object with an array `manifests` of objects is an [ErrCorrupt].
func moveDescriptors(doc []byte, moves map[digest.Digest]move) ([]byte, error) {
	_, list, err := scanManifests(doc)
	if err != nil {
		return nil, err
	}
	if list.isNull(doc) {
		return doc, nil
	}
	var edits []edit
	s := scan(doc, list)
	if err := s.elements(func() (err error) {
		edits, err = s.moveDescriptor(edits, moves)
		return err
	}); err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	return splice(doc, edits), nil
}

// moveRows is moveDescriptors of the index.json whose rows these are. It reads only the rows that change. It also gives the rows of the new
// one, or nil if they have to be read from it.
func (r *rows) moveRows(doc []byte, moves map[digest.Digest]move) ([]byte, *rows, error) {
	var edits []edit
	now := *r
	now.list = slices.Clone(r.list)
	shift := 0
	simple := r.said.bad == nil && r.said.inlined == nil // which would follow
	for i := range now.list {
		row := &now.list[i]
		at := span{int(row.at.start), int(row.at.end)}
		row.at.start += uint32(shift)
		_, moved := moves[row.digest]
		if !moved && row.rest != nil {
			_, moved = moves[digest.Digest(r.descriptor(i).Annotations[referenceDigest])]
		}
		if moved {
			here, err := scan(doc, at).moveDescriptor(nil, moves)
			if err != nil {
				return nil, nil, fmt.Errorf("manifests: element %d: %w", i, err)
			}
			edits = append(edits, here...)
			for _, e := range here {
				shift += len(e.text) - (e.end - e.start)
			}
			simple = simple && now.moveRow(i, splicePart(doc, at, here))
		}
		row.at.end += uint32(shift)
	}
	if !simple {
		return splice(doc, edits), nil, nil
	}
	return splice(doc, edits), &now, nil
}

// splicePart is a part of a document after the edits, which lie in it.
func splicePart(doc []byte, at span, edits []edit) []byte {
	inside := slices.Clone(edits)
	for i := range inside {
		inside[i].start -= at.start
		inside[i].end -= at.start
	}
	return splice(at.of(doc), inside)
}

// moveRow gives the row i, which is the only one of its digest, what its descriptor says now. It returns false where that is not enough.
func (r *rows) moveRow(i int, text []byte) bool {
	read, err := newReader(text, MaxIndex)
	if err != nil {
		return false
	}
	d, err := read.descriptor()
	row := &r.list[i]
	if err != nil || len(r.of(row.digest)) != 1 || d.Digest != row.digest && len(r.of(d.Digest)) > 0 {
		return false
	}
	if d.Digest != row.digest {
		from, _ := slices.BinarySearchFunc(r.byDigest, row.digest, func(i int32, d digest.Digest) int { return cmp.Compare(r.list[i].digest, d) })
		sorted := slices.Delete(slices.Clone(r.byDigest), from, from+1)
		to, _ := slices.BinarySearchFunc(sorted, d.Digest, func(i int32, d digest.Digest) int { return cmp.Compare(r.list[i].digest, d) })
		r.byDigest = slices.Insert(sorted, to, int32(i))
	}
	row.digest, row.size = d.Digest, d.Size
	row.rest = restOf(d)
	return true
}

// moveDescriptor reads one descriptor, and appends what has to change in it to edits.
func (s scanner) moveDescriptor(edits []edit, moves map[digest.Digest]move) ([]edit, error) {
	var size, data, own span
	var to move
	moved := false
	err := s.members(func(name string, _ span) error {
		if name == "annotations" && s.dec.PeekKind() == jsontext.KindBeginObject {
			return s.members(func(name string, _ span) error {
				value, err := s.value()
				if err != nil || name != referenceDigest {
					return err
				}
				if to, ok := moves[s.digest(value)]; ok {
					edits = append(edits, edit{value, plain(to.Digest.String())})
				}
				return nil
			})
		}
		value, err := s.value()
		if err != nil {
			return err
		}
		switch name {
		case "digest":
			own = value
			to, moved = moves[s.digest(value)]
		case "size":
			size = value
		case "data":
			data = value
		}
		return nil
	})
	if err != nil || !moved {
		return edits, err
	}
	edits = append(edits, edit{own, plain(to.Digest.String())})
	if size == (span{}) {
		return nil, corruptf("size is missing")
	}
	edits = append(edits, edit{size, strconv.AppendInt(nil, to.Size, 10)})
	if data != (span{}) && !data.isNull(s.doc) {
		edits = append(edits, edit{data, plain(base64.StdEncoding.EncodeToString(to.Bytes))})
	}
	return edits, nil
}

// scanManifests returns the object that doc, an index, is, and where the value of its `manifests` is.
func scanManifests(doc []byte) (top object, list span, err error) {
	if top, err = scanObject(doc, span{0, len(doc)}); err != nil {
		return object{}, span{}, err
	}
	manifests, found := top.member("manifests")
	if !found {
		return object{}, span{}, corruptf("manifests is missing")
	}
	return top, manifests.value, nil
}

// descriptorTexts returns the elements of `manifests` as they stand in doc, an index, without the white space between their parts.
func descriptorTexts(doc []byte) ([][]byte, error) {
	_, list, err := scanManifests(doc)
	if err != nil || list.isNull(doc) {
		return nil, err
	}
	var texts [][]byte
	s := scan(doc, list)
	err = s.elements(func() error {
		at, err := s.value()
		if err != nil {
			return err
		}
		var text bytes.Buffer
		if err := json.Compact(&text, at.of(doc)); err != nil {
			return err
		}
		texts = append(texts, text.Bytes())
		return nil
	})
	return texts, err
}

// appendDescriptors returns doc, an index, with the descriptors (each one JSON object) appended to `manifests`, laid out like the one before
// them, and every other byte as it was. A document that is not an object with an array `manifests` of objects is an [ErrCorrupt].
func appendDescriptors(doc []byte, descriptors [][]byte) ([]byte, error) {
	if len(descriptors) == 0 {
		return doc, nil
	}
	for i, d := range descriptors {
		if v := jsontext.Value(d); v.Kind() != jsontext.KindBeginObject || !v.IsValid() {
			return nil, fmt.Errorf("descriptor %d to be appended: not a JSON object", i)
		}
	}
	top, list, err := scanManifests(doc)
	if err != nil {
		return nil, err
	}
	style := spacingOf(doc, top, spacing{colon: ":"})
	if list.isNull(doc) {
		whole := style.spread(nil, enclose('[', descriptors, ']'), style.member)
		return splice(doc, []edit{{list, whole}}), nil
	}
	var last span
	count := 0
	s := scan(doc, list)
	if err := s.elements(func() (err error) {
		count++
		last, err = s.value()
		return err
	}); err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	if count == 0 {
		return splice(doc, []edit{style.fill(doc, list, descriptors)}), nil
	}
	neighbour, err := scanObject(doc, last)
	if err != nil {
		return nil, fmt.Errorf("manifests: element %d: %w", count-1, err)
	}
	inner := spacingOf(doc, neighbour, style)
	separator := spaceBefore(doc, last)
	if count == 1 && lastLine(separator) == "" {
		separator = inner.comma
	}
	var text []byte
	for _, d := range descriptors {
		text = append(append(text, ','), separator...)
		text = inner.spread(text, d, inner.own)
	}
	return splice(doc, []edit{insert(last.end, text)}), nil
}

// editDescriptors returns doc, an index, with each element of `manifests` replaced by what change makes of it, nil for nothing, and every other
// byte as it was. A document that is not an object with an array `manifests` is an [ErrCorrupt].
func editDescriptors(doc []byte, change func(i int, descriptor []byte) ([]byte, error)) ([]byte, error) {
	_, list, err := scanManifests(doc)
	if err != nil {
		return nil, err
	}
	if list.isNull(doc) {
		return doc, nil
	}
	out := []byte{'['}
	kept, at, i := 0, list.start+1, 0
	s := scan(doc, list)
	if err := s.elements(func() error {
		value, err := s.value()
		if err != nil {
			return err
		}
		text, err := change(i, value.of(doc))
		if err != nil {
			return err
		}
		if text != nil {
			space := doc[at:value.start]
			if kept == 0 { // without the comma after one that is gone
				space = bytes.TrimLeft(space, whiteSpace+",")
				space = append([]byte(spaceBefore(doc, value)), space...)
			}
			out = append(append(out, space...), text...)
			kept++
		}
		at = value.end
		i++
		return nil
	}); err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	if kept > 0 {
		out = append(out, doc[at:list.end-1]...)
	}
	return splice(doc, []edit{{list, append(out, ']')}}), nil
}

// setString returns doc, an object, with its member name being the string value, and every other byte as it was.
func setString(doc []byte, name, value string) ([]byte, error) {
	top, err := scanObject(doc, span{0, len(doc)})
	if err != nil {
		return nil, err
	}
	text, err := quote(value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if m, ok := top.member(name); ok {
		if was, err := unquote(m.value.of(doc)); err == nil && was == value {
			return doc, nil
		}
		return splice(doc, []edit{{m.value, text}}), nil
	}
	added := [][]byte{slices.Concat(plain(name), []byte(":"), text)}
	style := spacingOf(doc, top, spacing{colon: ":"})
	if len(top.members) == 0 {
		return splice(doc, []edit{style.fill(doc, top.span, added)}), nil
	}
	return splice(doc, []edit{insert(top.last().value.end, style.further(added))}), nil
}

// A span is a range of bytes in a document.
type span struct{ start, end int }

func (s span) of(doc []byte) []byte   { return doc[s.start:s.end] }
func (s span) isNull(doc []byte) bool { return string(s.of(doc)) == "null" }

// An edit replaces a span by a text.
type edit struct {
	span
	text []byte
}

func insert(at int, text []byte) edit { return edit{span{at, at}, text} }

// splice returns doc with the edits, none of which overlap.
func splice(doc []byte, edits []edit) []byte {
	slices.SortFunc(edits, func(a, b edit) int { return cmp.Compare(a.start, b.start) })
	length := len(doc)
	for _, e := range edits {
		length += len(e.text) - (e.end - e.start)
	}
	out := make([]byte, 0, length)
	at := 0
	for _, e := range edits {
		out = append(append(out, doc[at:e.start]...), e.text...)
		at = e.end
	}
	return append(out, doc[at:]...)
}

// A scanner reads a part of a document, and knows where in the whole it is.
type scanner struct {
	doc   []byte
	start int
	dec   *jsontext.Decoder
}

func scan(doc []byte, at span) scanner {
	return scanner{doc, at.start, jsontext.NewDecoder(bytes.NewBuffer(at.of(doc)))}
}

// value returns where the next value, or member name, is.
func (s scanner) value() (span, error) {
	value, err := s.dec.ReadValue()
	if err != nil {
		return span{}, reader{dec: s.dec}.syntax(err)
	}
	end := s.start + int(s.dec.InputOffset())
	return span{end - len(value), end}, nil
}

func (s scanner) open(kind jsontext.Kind) error {
	token, err := s.dec.ReadToken()
	if err != nil {
		return reader{dec: s.dec}.syntax(err)
	}
	if token.Kind() != kind {
		return corruptf("found %s, want %s", kindName(token.Kind()), kindName(kind))
	}
	return nil
}

// members reads an object; member has to read the value of each. at is where its name is.
func (s scanner) members(member func(name string, at span) error) error {
	if err := s.open(jsontext.KindBeginObject); err != nil {
		return err
	}
	for s.dec.PeekKind() != jsontext.KindEndObject {
		at, err := s.value()
		if err != nil {
			return err
		}
		name, err := unquote(at.of(s.doc))
		if err != nil {
			return err
		}
		if err := member(name, at); err != nil {
			return err
		}
	}
	return s.open(jsontext.KindEndObject)
}

// elements reads an array; element has to read each.
func (s scanner) elements(element func() error) error {
	if err := s.open(jsontext.KindBeginArray); err != nil {
		return err
	}
	for i := 0; s.dec.PeekKind() != jsontext.KindEndArray; i++ {
		if err := element(); err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
	}
	return s.open(jsontext.KindEndArray)
}

// digest is the digest that the string at value spells, or "".
func (s scanner) digest(value span) digest.Digest {
	text, err := unquote(value.of(s.doc))
	if err != nil {
		return ""
	}
	return digest.Digest(text)
}

// An object is where an object of a document and its members are.
type object struct {
	span
	members []member
}

type member struct {
	name       string
	key, value span
}

// scanObject returns the object that at holds, and nothing else but white space.
func scanObject(doc []byte, at span) (object, error) {
	s := scan(doc, at)
	var o object
	if err := s.members(func(name string, key span) error {
		value, err := s.value()
		o.members = append(o.members, member{name, key, value})
		return err
	}); err != nil {
		return object{}, err
	}
	o.end = at.start + int(s.dec.InputOffset())
	o.start = at.start + bytes.IndexByte(at.of(doc), '{')
	if _, err := s.dec.ReadToken(); err != io.EOF {
		return object{}, corruptf("there is something after the end of the document, at byte %d", o.end)
	}
	return o, nil
}

func (o object) member(name string) (member, bool) {
	for _, m := range o.members {
		if m.name == name {
			return m, true
		}
	}
	return member{}, false
}

func (o object) last() member { return o.members[len(o.members)-1] }

const whiteSpace = " \t\r\n" // RFC 8259, section 2

// spaceBefore returns the white space that ends where at begins.
func spaceBefore(doc []byte, at span) string {
	return string(doc[len(bytes.TrimRight(doc[:at.start], whiteSpace)):at.start])
}

// lastLine returns what begins with the last line end in space, "" if it has none.
func lastLine(space string) string {
	i := strings.LastIndexByte(space, '\n')
	if i < 0 {
		return ""
	}
	if i > 0 && space[i-1] == '\r' {
		i--
	}
	return space[i:]
}

// A spacing is the white space of an object. member and own are a line end and the indentation after it; both are "" in an object on one line.
type spacing struct {
	separator string // between a comma and a further member of this object
	colon     string // between a name and its value
	comma     string // after a comma within a line
	member    string // before a member
	own       string // before the object's closing brace
	unit      string // the indentation of member, beyond that of own
}

// spacingOf returns the spacing of o, as far as o shows it. outer is that of the object around it.
func spacingOf(doc []byte, o object, outer spacing) spacing {
	if len(o.members) == 0 {
		return outer
	}
	last := o.last()
	s := spacing{
		separator: spaceBefore(doc, last.key),
		colon:     string(doc[last.key.end:last.value.start]),
	}
	s.member = lastLine(s.separator)
	if s.member == "" {
		if len(o.members) == 1 {
			s.separator = outer.comma
		}
		s.comma = s.separator
		return s
	}
	if _, after, _ := strings.Cut(s.colon, ":"); !strings.Contains(after, "\n") {
		s.comma = after
	}
	newline := s.member[:strings.IndexByte(s.member, '\n')+1]
	s.own = lastLine(string(doc[last.value.end : o.end-1]))
	s.own = newline + s.own[strings.IndexByte(s.own, '\n')+1:]
	if unit, ok := strings.CutPrefix(s.member, s.own); ok {
		s.unit = unit
	}
	return s
}

// spread appends JSON to dst, laid out by s on lines that begin with line, or on one line if that is "".
func (s spacing) spread(dst, json []byte, line string) []byte {
	depth := 0
	newline := func() {
		if line == "" {
			return
		}
		dst = append(dst, line...)
		for range depth {
			dst = append(dst, s.unit...)
		}
	}
	opened := false // an object or array, which may turn out to be empty
	for i := 0; i < len(json); i++ {
		c := json[i]
		if strings.IndexByte(whiteSpace, c) >= 0 {
			continue
		}
		closes := c == '}' || c == ']'
		switch {
		case opened && !closes:
			depth++
			newline()
		case closes && !opened:
			depth--
			newline()
		}
		opened = false
		switch c {
		case '{', '[':
			dst = append(dst, c)
			opened = true
		case ':':
			dst = append(dst, s.colon...)
		case ',':
			dst = append(dst, c)
			if line == "" {
				dst = append(dst, s.comma...)
			}
			newline()
		case '"':
			end := i + 1
			for end < len(json)-1 && json[end] != '"' {
				if json[end] == '\\' {
					end++
				}
				end++
			}
			dst = append(dst, json[i:end+1]...)
			i = end
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

// fill returns the edit that puts items (members, or elements) into the empty object or array at empty. outer is the spacing of the object
// around it. White space that it holds already stays, before its closing brace.
func (s spacing) fill(doc []byte, empty span, items [][]byte) edit {
	inside := span{empty.start + 1, empty.end - 1}
	space := string(inside.of(doc))
	closing, line := "", lastLine(space)
	if space == "" {
		closing, line = s.member, s.member
	}
	first, next := space, s.comma
	if line != "" {
		line += s.unit
		first, next = line, line
	}
	var text []byte
	for i, item := range items {
		if i == 0 {
			text = append(text, first...)
		} else {
			text = append(append(text, ','), next...)
		}
		text = s.spread(text, item, line)
	}
	return insert(inside.start, append(text, closing...))
}

// further returns what comes after the last member of an object, to add members.
func (s spacing) further(members [][]byte) []byte {
	var text []byte
	for _, m := range members {
		text = append(append(text, ','), s.separator...)
		text = s.spread(text, m, s.member)
	}
	return text
}

// enclose returns items between commas, and the whole between open and close.
func enclose(open byte, items [][]byte, close byte) []byte {
	out := append([]byte{open}, bytes.Join(items, []byte{','})...)
	return append(out, close)
}

// plain returns a JSON string of text that needs no escapes.
func plain(text string) []byte { return []byte(`"` + text + `"`) }

func quote(text string) ([]byte, error) { return jsontext.AppendQuote(nil, text) }

func unquote(text []byte) (string, error) {
	b, err := jsontext.AppendUnquote(nil, text)
	return string(b), err
}
