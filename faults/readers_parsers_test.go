package faults

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/base64"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/xi2/xz"

	"irfs/layout/sample"
)

// A taker reads a layout in one of the ways that programs do. It checks nothing.
type taker struct {
	name    string
	doc     func(text []byte, into any) error // reads a document into image-spec's types
	lastRow bool                              // of a tag counts, and not the first
	inline  bool                              // data is read instead of the blob, where there is data
	byBody  bool                              // a document is what its members say, and not its descriptor's media type
	cut     bool                              // of a blob it reads as much as the last descriptor of its digest says
	layer   func(data []byte, mediaType string) ([]byte, error)
}

func allParsers() []taker {
	return []taker{
		{name: "Go", doc: goJSON, layer: unpackByType},
		{name: "Go, layers by their first bytes", doc: goJSON, lastRow: true, layer: func(b []byte, _ string) ([]byte, error) { return unpackByBytes(b, false) }},
		{name: "Go, inline data, layers by their first bytes as Docker does", doc: goJSON, inline: true, layer: func(b []byte, _ string) ([]byte, error) { return unpackByBytes(b, true) }},
		{name: "Go, by the body, every gzip member", doc: goJSON, byBody: true, layer: unpackEveryMember},
		{name: "Go, sizes of the last descriptor", doc: goJSON, cut: true, layer: unpackByType},
		{name: "first double, exact names", doc: firstJSON, layer: unpackByType},
		{name: "last double, exact names, inline data", doc: exactJSON, inline: true, lastRow: true, layer: unpackByType},
		{name: "Python", doc: filtered(pythonJSON), layer: pythonByType},
		{name: "Python, tarfile, by the body", doc: filtered(pythonJSON), byBody: true, inline: true, lastRow: true, layer: pythonByBytes},
		{name: "jq", doc: filtered(jq), layer: unpackByType},
	}
}

// A got is an image as a parser read it.
type got struct {
	config  []byte
	meaning string // of the config, to that parser
	tars    [][]byte
}

// A reading is a taker at work on one layout.
type reading struct {
	taker
	files sample.Files
	sizes map[digest.Digest]int64
	seen  int
}

// images returns the images that a tag leads to, or everything with "": a runtime may ask for each of an index's. What cannot be read
// of it is left out.
func (p taker) images(files sample.Files, tag string) ([]got, error) {
	r := &reading{p, files, map[digest.Digest]int64{}, 0}
	var index v1.Index
	if err := p.doc(files["index.json"], &index); err != nil {
		return nil, err
	}
	if p.cut {
		r.note(index.Manifests)
	}
	if tag == "" {
		return r.children(index.Manifests, 0)
	}
	list := slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Annotations[v1.AnnotationRefName] != tag })
	if len(list) == 0 {
		return nil, errors.New("no such tag")
	}
	if p.lastRow {
		slices.Reverse(list)
	}
	return r.below(list[0], 0)
}

// note keeps the sizes of descriptors, of all of a layout.
func (r *reading) note(list []v1.Descriptor) {
	for _, d := range list {
		r.sizes[d.Digest] = d.Size
		var doc struct {
			Manifests, Layers []v1.Descriptor
			Config, Subject   v1.Descriptor
		}
		text := r.files[sample.Path(d.Digest)]
		if r.seen++; r.seen > 1000 || len(text) == 0 || text[0] != '{' || stdjson.Unmarshal(text, &doc) != nil {
			continue
		}
		r.note(slices.Concat(doc.Manifests, doc.Layers))
		for _, d := range []v1.Descriptor{doc.Config, doc.Subject} {
			if d.Digest != "" {
				r.sizes[d.Digest] = d.Size
			}
		}
	}
}

func (r *reading) blob(d v1.Descriptor) ([]byte, error) {
	if r.inline && d.Data != nil {
		return d.Data, nil
	}
	data, ok := r.files["blobs/"+strings.Replace(string(d.Digest), ":", "/", 1)]
	if !ok {
		return nil, errors.New("no such blob")
	}
	if size := r.sizes[d.Digest]; r.cut && 0 < size && size < int64(len(data)) {
		data = data[:size]
	}
	return data, nil
}

func (r *reading) below(d v1.Descriptor, depth int) ([]got, error) {
	if depth > 20 {
		return nil, errors.New("too deep")
	}
	text, err := r.blob(d)
	if err != nil {
		return nil, err
	}
	var index v1.Index
	isIndex := strings.Contains(d.MediaType, ".index.") || strings.Contains(d.MediaType, ".list.")
	if r.byBody {
		isIndex = r.doc(text, &index) == nil && index.Manifests != nil
	}
	if !isIndex {
		image, err := r.image(text)
		return []got{image}, err
	}
	if err := r.doc(text, &index); err != nil {
		return nil, err
	}
	return r.children(index.Manifests, depth+1)
}

func (r *reading) children(list []v1.Descriptor, depth int) ([]got, error) {
	var all []got
	for _, d := range list {
		// What cannot be read is not run.
		if images, err := r.below(d, depth); err == nil {
			all = append(all, images...)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no image")
	}
	return all, nil
}

func (r *reading) image(text []byte) (g got, err error) {
	var m v1.Manifest
	if err := r.doc(text, &m); err != nil {
		return g, err
	}
	if g.config, err = r.blob(m.Config); err != nil {
		return g, err
	}
	var image v1.Image
	if err := r.doc(g.config, &image); err != nil {
		return g, err
	}
	meaning, err := stdjson.Marshal(image)
	g.meaning = string(meaning)
	if err != nil {
		return g, err
	}
	if len(m.Layers) == 0 || len(image.RootFS.DiffIDs) == 0 {
		return g, errors.New("no layers, or none that a runtime could unpack")
	}
	for _, l := range m.Layers {
		data, err := r.blob(l)
		if err != nil {
			return g, err
		}
		t, err := r.layer(data, l.MediaType)
		if err == nil {
			err = addFiles(map[string]string{}, t)
		}
		if err != nil {
			return g, err
		}
		g.tars = append(g.tars, t)
	}
	return g, nil
}

// addFiles adds the regular files of a tar file.
func addFiles(files map[string]string, text []byte) error {
	r := tar.NewReader(bytes.NewReader(text))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg {
			files[h.Name] = string(data)
		}
	}
}

// goJSON is encoding/json: names fold, the last of two wins, and objects that come twice are merged.
func goJSON(text []byte, into any) error { return stdjson.Unmarshal(text, into) }

// exactJSON takes exact names, the last of two, and strings that are not UTF-8.
func exactJSON(text []byte, into any) error {
	return json.Unmarshal(text, into, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

// firstJSON is like exactJSON, but takes the first of two.
func firstJSON(text []byte, into any) error {
	d := jsontext.NewDecoder(bytes.NewReader(text), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	var b bytes.Buffer
	e := jsontext.NewEncoder(&b, jsontext.AllowInvalidUTF8(true))
	if err := copyFirst(d, e); err != nil {
		return err
	}
	return exactJSON(b.Bytes(), into)
}

// copyFirst copies a value without the second of two members of a name.
func copyFirst(d *jsontext.Decoder, e *jsontext.Encoder) error {
	open := d.PeekKind()
	if open != '{' && open != '[' {
		v, err := d.ReadValue()
		if err != nil {
			return err
		}
		return e.WriteValue(v)
	}
	seen := map[string]bool{}
	token, err := d.ReadToken()
	for {
		if err == nil {
			err = e.WriteToken(token)
		}
		if err != nil {
			return err
		}
		for d.PeekKind() != '}' && d.PeekKind() != ']' {
			if open == '{' {
				name, err := d.ReadToken()
				if err != nil {
					return err
				}
				if s := name.String(); seen[s] {
					if err := d.SkipValue(); err != nil {
						return err
					}
					continue
				} else if seen[s] = true; e.WriteToken(jsontext.String(s)) != nil {
					return errors.New("no name")
				}
			}
			if err := copyFirst(d, e); err != nil {
				return err
			}
		}
		if token, err = d.ReadToken(); err != nil {
			return err
		}
		return e.WriteToken(token)
	}
}

// filtered reads what a program made of a document. It remembers that: most documents come many times.
func filtered(program func(text []byte) ([]byte, error)) func(text []byte, into any) error {
	type result struct {
		text []byte
		err  error
	}
	var mu sync.Mutex
	known := map[string]result{}
	return func(text []byte, into any) error {
		mu.Lock()
		r, ok := known[string(text)]
		if !ok {
			r.text, r.err = program(text)
			if len(known) > 1000 {
				clear(known)
			}
			known[string(text)] = r
		}
		mu.Unlock()
		if r.err != nil {
			return r.err
		}
		return exactJSON(r.text, into)
	}
}

// A filter is a program that answers a line with a line.
type filter struct {
	args []string

	mu  sync.Mutex
	in  io.WriteCloser
	out *bufio.Reader
	cmd *exec.Cmd
}

var (
	pythonFilter = filter{args: []string{"python3", "-c", pythonScript}}
	jqFilter     = filter{args: []string{"jq", "--unbuffered", "-c", "try [fromjson] catch null"}}
)

func (f *filter) start() error {
	f.cmd = exec.Command(f.args[0], f.args[1:]...)
	var err1, err2 error
	f.in, err1 = f.cmd.StdinPipe()
	out, err2 := f.cmd.StdoutPipe()
	f.out = bufio.NewReaderSize(out, 1<<20)
	return errors.Join(err1, err2, f.cmd.Start())
}

func (f *filter) stop() {
	f.in.Close()
	f.cmd.Wait()
}

func (f *filter) ask(line string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := io.WriteString(f.in, line+"\n")
	answer, err2 := f.out.ReadString('\n')
	if err := errors.Join(err, err2); err != nil {
		panic(fmt.Sprintf("%s: %v", f.args[0], err))
	}
	return strings.TrimSuffix(answer, "\n")
}

// jq reads a document as jq does. It comes in a string, and goes in an array.
func jq(text []byte) ([]byte, error) {
	line, err := stdjson.Marshal(string(text))
	if err != nil {
		return nil, err
	}
	answer := jqFilter.ask(string(line))
	if answer == "null" {
		return nil, errors.New("jq: no document")
	}
	return []byte(answer[1 : len(answer)-1]), nil
}

// python does one of the things in pythonScript.
func python(what string, data []byte) ([]byte, error) {
	word, text, _ := strings.Cut(pythonFilter.ask(what+" "+base64.StdEncoding.EncodeToString(data)), " ")
	answer, err := base64.StdEncoding.DecodeString(text)
	if err == nil && word != "ok" {
		err = fmt.Errorf("python: %s", answer)
	}
	return answer, err
}

func pythonJSON(text []byte) ([]byte, error) { return python("json", text) }

// pythonByType unpacks gzip by zlib, member by member, and does not mind what is behind them.
func pythonByType(data []byte, mediaType string) ([]byte, error) {
	if compressionOf(mediaType) == "gzip" {
		return python("members", data)
	}
	return unpackByType(data, mediaType)
}

// pythonByBytes unpacks as tarfile does, which tries one format after the other.
func pythonByBytes(data []byte, _ string) ([]byte, error) { return python("tarfile", data) }

const pythonScript = `
import base64, bz2, gzip, io, json, lzma, sys, tarfile, zlib
def members(b):
    t = b''
    while b[:2] == b'\x1f\x8b':
        d = zlib.decompressobj(31)
        t += d.decompress(b) + d.flush()
        if not d.eof: raise EOFError
        b = d.unused_data.lstrip(b'\0')
    return t
def unpacked(b):
    tarfile.open(fileobj=io.BytesIO(b), mode='r:*').close() # tells what it takes
    for f in (lambda b: tarfile.open(fileobj=io.BytesIO(b), mode='r:').close() or b, gzip.decompress, bz2.decompress, lzma.decompress):
        try: return f(b)
        except Exception: pass
    raise ValueError
def number(s):
    return float(s) if abs(float(s)) < 1e300 else s # what json.dumps could not write
does = {'json': lambda b: json.dumps(json.loads(b, parse_float=number)).encode(), 'tarfile': unpacked, 'members': members}
for line in sys.stdin:
    what, b = line.rstrip('\n').split(' ')
    try: print('ok', base64.b64encode(does[what](base64.b64decode(b))).decode(), flush=True)
    except Exception as e: print('no', base64.b64encode(repr(e).encode()).decode(), flush=True)
`

// unpackByType unpacks as the media type says.
func unpackByType(data []byte, mediaType string) ([]byte, error) {
	base := strings.NewReplacer("nondistributable.", "", "foreign.", "").Replace(mediaType)
	c := compressionOf(base)
	if base != layerType(isDockerType(base), c) {
		return nil, errors.New("not a layer's type")
	}
	switch c {
	case "gzip":
		return gunzipAll(data)
	case "zstd":
		return unzstd(data)
	}
	return data, nil
}

func gunzipAll(data []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func unzstd(data []byte) ([]byte, error) {
	z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return io.ReadAll(z)
}

// unpackByBytes unpacks as the first bytes say. Those are of containers/image (pkg/compression); to Docker's and containerd's
// archive packages a skippable frame, too, begins a zstd stream.
func unpackByBytes(data []byte, docker bool) ([]byte, error) {
	has := func(magic string) bool { return bytes.HasPrefix(data, []byte(magic)) }
	switch {
	case has("\x1f\x8b\x08"):
		return gunzipAll(data)
	case has("\x28\xb5\x2f\xfd"), docker && len(data) > 8 && data[0]&0xf0 == 0x50 && string(data[1:4]) == "\x2a\x4d\x18":
		return unzstd(data)
	case has("BZh"):
		return io.ReadAll(bzip2.NewReader(bytes.NewReader(data)))
	case has("\xfd7zXZ\x00"):
		z, err := xz.NewReader(bytes.NewReader(data), 0)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	}
	return data, nil
}

// unpackEveryMember finds each gzip member, as one who looks for a footer or mends a file does; the last with a whole tar counts.
func unpackEveryMember(data []byte, mediaType string) ([]byte, error) {
	if compressionOf(mediaType) != "gzip" {
		return unpackByBytes(data, true)
	}
	var all []byte
	for len(data) > 0 {
		i := bytes.Index(data, []byte("\x1f\x8b\x08"))
		if i < 0 {
			break
		}
		in := bytes.NewReader(data[i:])
		z, err := gzip.NewReader(in)
		if err != nil {
			data = data[i+1:]
			continue
		}
		z.Multistream(false)
		text, err := io.ReadAll(z)
		if err != nil {
			data = data[i+1:]
			continue
		}
		all = append(all, text...)
		data = data[len(data)-in.Len():]
	}
	if all == nil {
		return nil, errors.New("no gzip member")
	}
	return all, nil
}

// disagrees says what is wrong with what a parser got, "" for nothing: one of the signed configs, meaning what it means to an exact
// parser, and the tar files that it names.
func (w *wording) disagrees(images []got) string {
	for _, g := range images {
		one, ok := w.signed[digest.FromBytes(g.config)]
		if !ok {
			return fmt.Sprintf("an image with the config %s, which nobody signed: %.300s", digest.FromBytes(g.config), g.config)
		}
		var exact v1.Image
		if err := exactJSON(one.config, &exact); err != nil {
			return err.Error()
		}
		if text, err := stdjson.Marshal(exact); err != nil || string(text) != g.meaning {
			return fmt.Sprintf("the signed config, but it reads\n  %s\nand not\n  %s", g.meaning, text)
		}
		var diffs []digest.Digest
		files := map[string]string{}
		for _, t := range g.tars {
			diffs = append(diffs, digest.FromBytes(t))
			addFiles(files, t)
		}
		if !slices.Equal(diffs, one.diffs) {
			return fmt.Sprintf("layers that unpack to\n  %s %q\nand not\n  %s %q", diffs, files, one.diffs, one.files)
		}
	}
	return ""
}
