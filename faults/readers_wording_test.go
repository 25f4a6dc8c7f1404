package faults

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"irfs/layout/sample"
)

// A wording is an image layout as somebody who may write the registry words it: a graph of papers, of which index.json is the
// head. Whatever a mutation changes, the digests and sizes above it are right again when the files are written, unless it
// changed those.
type wording struct {
	index  *paper
	papers map[digest.Digest]*paper    // of the layout that it began as
	evil   *paper                      // the manifest of an image that nobody signed
	signed map[digest.Digest]signedOne // by the digest of the config
}

// A signedOne is what a signature covers: a config, and the tar files that it names.
type signedOne struct {
	config []byte
	diffs  []digest.Digest
	files  map[string]string // of the image, with their content
}

// A paper is index.json or a blob.
type paper struct {
	body       *node            // nil for what is no document: a config, a layer
	data       []byte           // what the blob holds, without a body
	tar        []byte           // of a layer, what it unpacks to
	head, tail string           // before and behind the body
	space      string           // between the tokens of the body
	absent     bool             // its blob is not written
	alphabet   *base64.Encoding // of inline data that stands for it; nil is the standard one
	rendered   []byte           // by render
}

// A node is a JSON value that keeps the order of its members, doubles among them, and the spelling of all.
type node struct {
	kind    byte // '{', '[', or 0 for a scalar
	text    string
	members []pair
	items   []*node

	// A scalar may depend on another paper: its digest, size (by the format in text, if there is one), or data (in base64).
	of   *paper
	what string
}

// A pair is a member of an object. Its name is as it stands between the quotes.
type pair struct {
	name  string
	value *node
}

func scalar(text string) *node { return &node{text: text} }
func stringOf(s string) *node  { return scalar(`"` + s + `"`) }

// object makes an object of names and values in turn. A value is a node, or the text of a scalar.
func object(members ...any) *node {
	n := &node{kind: '{'}
	for i := 0; i < len(members); i += 2 {
		v, ok := members[i+1].(*node)
		if !ok {
			v = scalar(members[i+1].(string))
		}
		n.members = append(n.members, pair{members[i].(string), v})
	}
	return n
}

func array(items ...*node) *node { return &node{kind: '[', items: items} }

func digestOf(p *paper) *node { return &node{of: p, what: "digest"} }
func sizeOf(p *paper) *node   { return &node{of: p, what: "size"} }
func dataOf(p *paper) *node   { return &node{of: p, what: "data"} }

// descriptorOf makes a descriptor of a paper.
func descriptorOf(mediaType string, p *paper) *node {
	return object("mediaType", stringOf(mediaType), "digest", digestOf(p), "size", sizeOf(p))
}

// paperOf makes a paper of a body.
func paperOf(body *node) *paper { return &paper{body: body} }

// clone copies a value. Both depend on the same papers.
func (n *node) clone() *node {
	c := *n
	c.members = slices.Clone(n.members)
	for i := range c.members {
		c.members[i].value = c.members[i].value.clone()
	}
	c.items = slices.Clone(n.items)
	for i := range c.items {
		c.items[i] = c.items[i].clone()
	}
	return &c
}

// get returns the first member of that name, escaped or not, or nil.
func (n *node) get(name string) *node {
	if i := n.find(name); i >= 0 {
		return n.members[i].value
	}
	return nil
}

func (n *node) find(name string) int {
	return slices.IndexFunc(n.members, func(m pair) bool { return unescaped(m.name) == name })
}

// set gives a member a value, at the end if it is new.
func (n *node) set(name string, value *node) {
	if i := n.find(name); i >= 0 {
		n.members[i].value = value
		return
	}
	n.members = append(n.members, pair{name, value})
}

// put inserts a member, before all others or behind them.
func (n *node) put(first bool, name string, value *node) {
	i := len(n.members)
	if first {
		i = 0
	}
	n.members = slices.Insert(n.members, i, pair{name, value})
}

// add is put, where there is no member of that name yet, and reports that.
func (n *node) add(first bool, name string, value *node) bool {
	if n.find(unescaped(name)) >= 0 {
		return false
	}
	n.put(first, name, value)
	return true
}

// replace makes a descriptor one of another paper.
func (n *node) replace(p *paper) {
	n.set("digest", digestOf(p))
	n.set("size", sizeOf(p))
	n.remove("data")
}

// remove takes the members of that name out.
func (n *node) remove(name string) {
	n.members = slices.DeleteFunc(n.members, func(m pair) bool { return unescaped(m.name) == name })
}

// is returns what a string says.
func (n *node) is() (s string) {
	if n != nil && n.text != "" {
		json.Unmarshal([]byte(n.text), &s)
	}
	return s
}

// paper returns what a descriptor names.
func (n *node) paper() *paper {
	if d := n.get("digest"); d != nil {
		return d.of
	}
	return nil
}

// write writes a value with white space around each token.
func (n *node) write(b *bytes.Buffer, space string) {
	b.WriteString(space)
	switch {
	case n.kind == '{':
		b.WriteString("{")
		for i, m := range n.members {
			if i > 0 {
				b.WriteString(space + ",")
			}
			b.WriteString(space + `"` + m.name + `"` + space + ":")
			m.value.write(b, space)
		}
		b.WriteString(space + "}")
	case n.kind == '[':
		b.WriteString("[")
		for i, v := range n.items {
			if i > 0 {
				b.WriteString(space + ",")
			}
			v.write(b, space)
		}
		b.WriteString(space + "]")
	case n.what == "digest":
		fmt.Fprintf(b, "%q", digest.FromBytes(n.of.render()))
	case n.what == "size":
		format := n.text
		if format == "" {
			format = "%d"
		}
		fmt.Fprintf(b, format, len(n.of.render()))
	case n.what == "data":
		alphabet := n.of.alphabet
		if alphabet == nil {
			alphabet = base64.StdEncoding
		}
		fmt.Fprintf(b, "%q", alphabet.EncodeToString(n.of.render()))
	default:
		b.WriteString(n.text)
	}
}

// render returns the paper's bytes. Nothing below it may change from then on.
func (p *paper) render() []byte {
	if p.rendered == nil {
		if p.body == nil {
			p.rendered = p.data
		} else {
			var b bytes.Buffer
			b.WriteString(p.head)
			p.body.write(&b, p.space)
			b.WriteString(p.tail)
			p.rendered = b.Bytes()
		}
	}
	return p.rendered
}

// readNode reads a document that encoding/json takes.
func readNode(text []byte) *node {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	n, err := nextNode(d)
	if err != nil {
		panic(err)
	}
	return n
}

func nextNode(d *json.Decoder) (*node, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		text, err := json.Marshal(token)
		return scalar(string(text)), err
	}
	n := &node{kind: byte(delim)}
	for d.More() {
		var name string
		if n.kind == '{' {
			token, err := d.Token()
			if err != nil {
				return nil, err
			}
			text, _ := json.Marshal(token)
			name = string(text[1 : len(text)-1])
		}
		v, err := nextNode(d)
		if err != nil {
			return nil, err
		}
		if n.kind == '{' {
			n.members = append(n.members, pair{name, v})
		} else {
			n.items = append(n.items, v)
		}
	}
	_, err = d.Token()
	return n, err
}

// worded returns the layout of files as a wording. evil is the digest of the manifest that nobody signed.
func worded(files sample.Files, evil digest.Digest) *wording {
	w := &wording{papers: map[digest.Digest]*paper{}, signed: map[digest.Digest]signedOne{}}
	w.index = paperOf(readNode(files["index.json"]))
	w.link(files, w.index.body)
	if evil != "" {
		w.evil = w.load(files, evil, isDocument)
	}
	for _, p := range w.papers {
		w.noteSigned(p)
	}
	return w
}

const (
	isDocument = iota
	isConfig
	isLayer
)

// link loads what the descriptors of an index or a manifest name.
func (w *wording) link(files sample.Files, body *node) {
	one := func(d *node, kind int) {
		if d == nil || d.kind != '{' {
			return
		}
		p := w.load(files, digest.Digest(d.get("digest").is()), kind)
		d.set("digest", digestOf(p))
		d.set("size", sizeOf(p))
	}
	all := func(d *node, kind int) {
		if d != nil {
			for _, d := range d.items {
				one(d, kind)
			}
		}
	}
	all(body.get("manifests"), isDocument)
	one(body.get("config"), isConfig)
	all(body.get("layers"), isLayer)
	one(body.get("subject"), isDocument)
}

func (w *wording) load(files sample.Files, d digest.Digest, kind int) *paper {
	if p := w.papers[d]; p != nil {
		return p
	}
	data, ok := files[sample.Path(d)]
	if !ok {
		panic("no blob " + d)
	}
	p := &paper{data: data}
	w.papers[d] = p
	switch kind {
	case isDocument:
		p.body, p.data = readNode(data), nil
		w.link(files, p.body)
	case isLayer:
		p.tar, _ = unpackByBytes(data, false)
	}
	return p
}

// noteSigned keeps what the signature of a manifest covers, if it has one.
func (w *wording) noteSigned(p *paper) {
	if p.body == nil || p.body.get("annotations") == nil || p.body.get("annotations").get("com.samsung.islet.image.signature") == nil {
		return
	}
	config := p.body.get("config").paper().data
	one := signedOne{config: config, files: map[string]string{}}
	for _, l := range p.body.get("layers").items {
		tar := l.paper().tar
		one.diffs = append(one.diffs, digest.FromBytes(tar))
		if err := addFiles(one.files, tar); err != nil {
			panic(err)
		}
	}
	w.signed[digest.FromBytes(config)] = one
}

// files returns the layout as files. It may be called again after another change.
func (w *wording) files() sample.Files {
	files := sample.Files{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	seen := map[*paper]bool{}
	w.eachPaper(func(p *paper) { p.rendered = nil })
	var add func(p *paper)
	add = func(p *paper) {
		if seen[p] {
			return
		}
		seen[p] = true
		if !p.absent && p != w.index {
			text := p.render()
			files[sample.Path(digest.FromBytes(text))] = text
		}
		for _, below := range p.below() {
			add(below)
		}
	}
	add(w.index)
	add(w.evil)
	files["index.json"] = w.index.render()
	return files
}

// eachPaper visits all papers that index.json and the evil image reach.
func (w *wording) eachPaper(visit func(p *paper)) {
	seen := map[*paper]bool{}
	var walk func(p *paper)
	walk = func(p *paper) {
		if seen[p] {
			return
		}
		seen[p] = true
		visit(p)
		for _, below := range p.below() {
			walk(below)
		}
	}
	walk(w.index)
	walk(w.evil)
}

// below returns the papers that a paper's text depends on.
func (p *paper) below() (all []*paper) {
	var walk func(n *node)
	walk = func(n *node) {
		if n.of != nil {
			all = append(all, n.of)
		}
		for _, m := range n.members {
			walk(m.value)
		}
		for _, v := range n.items {
			walk(v)
		}
	}
	if p.body != nil {
		walk(p.body)
	}
	return all
}

// print writes the documents that index.json reaches, with what is long cut short.
func (w *wording) print(out io.Writer) {
	fmt.Fprintf(out, "evil is %s\n", digest.FromBytes(w.evil.render()))
	for d := range w.signed {
		fmt.Fprintf(out, "signed is the config %s\n", d)
	}
	w.eachPaper(func(p *paper) {
		switch {
		case p == w.index:
			fmt.Fprintf(out, "index.json:\n    %s\n", shortened(p.render()))
		case p.body != nil:
			fmt.Fprintf(out, "%s%s:\n    %s\n", digest.FromBytes(p.render()), absence(p), shortened(p.render()))
		default:
			fmt.Fprintf(out, "%s%s: %.300q\n", digest.FromBytes(p.render()), absence(p), p.render()[:min(len(p.render()), 40)])
		}
	})
}

func absence(p *paper) string {
	if p.absent {
		return " (no blob)"
	}
	return ""
}

// shortened cuts strings in hex and base64 short.
func shortened(text []byte) string {
	words := strings.Split(fmt.Sprintf("%q", text), `\"`)
	for i, s := range words {
		if len(s) > 100 && !strings.ContainsAny(s, " ,:{}") {
			words[i] = s[:12] + "…"
		}
	}
	quoted := strings.Join(words, `"`)
	return quoted[1 : len(quoted)-1]
}
