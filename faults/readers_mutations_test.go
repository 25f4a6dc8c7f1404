package faults

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
	"irfs/sign"
)

// A mutation words a layout differently in one place.
type mutation struct {
	kind, name string
	mark       mark
	do         func(w *wording, pick pick) bool // reports whether there was such a place
}

// A mark is what has to become of a layout that only this was done to.
type mark string

const (
	harmless  mark = "harmless"  // it is verified: common tools write it so, or no reader minds
	ambiguous mark = "ambiguous" // it is not verified: readers differ, or DESIGN section 5 says so
	debatable mark = "debatable" // verified or not: readers must agree if it is
)

// A pick chooses one of n.
type pick func(n int) int

// one picks a node, nil if there is none.
func (p pick) one(list []*node) *node {
	if len(list) == 0 {
		return nil
	}
	return list[p(len(list))]
}

func (p pick) of(texts ...string) string { return texts[p(len(texts))] }

// stable is the tag that all is about.
const stable = "stable"

// docs returns the indexes and the signed manifests that the tag leads to.
func (w *wording) docs() (indexes, manifests []*paper) {
	seen := map[*paper]bool{}
	var walk func(p *paper)
	walk = func(p *paper) {
		if p == nil || p.body == nil || seen[p] {
			return
		}
		seen[p] = true
		switch list := p.body.get("manifests"); {
		case list != nil:
			indexes = append(indexes, p)
			for _, d := range list.items {
				walk(d.paper())
			}
		case p.body.get("annotations") != nil && p != w.evil:
			manifests = append(manifests, p)
		}
	}
	for _, d := range w.tagged() {
		walk(d.paper())
	}
	return indexes, manifests
}

// A place is a kind of object in a layout.
type place struct {
	name    string
	members []string                 // that OCI's specification gives it, digests first
	find    func(w *wording) []*node // in what the tag leads to
	evil    func(w *wording) *node   // what the evil image has in such a place
}

var (
	descriptorNames = []string{"digest", "size", "mediaType", "data", "urls", "annotations", "platform", "artifactType"}
	indexNames      = []string{"manifests", "mediaType", "schemaVersion", "artifactType", "subject", "annotations"}
	manifestNames   = []string{"layers", "config", "mediaType", "schemaVersion", "artifactType", "subject", "annotations"}
	platformNames   = []string{"architecture", "os", "os.version", "os.features", "variant"}
)

// descriptorPlaces are where descriptors stand.
var descriptorPlaces = []place{
	{"descriptor in index.json", descriptorNames, func(w *wording) []*node { return w.tagged() }, evilRow},
	{"descriptor in an index", descriptorNames, children, evilRow},
	{"config's descriptor", descriptorNames, func(w *wording) []*node {
		return w.inManifests(func(m *node) []*node { return []*node{m.get("config")} })
	}, func(w *wording) *node { return w.evil.body.get("config") }},
	{"layer's descriptor", descriptorNames, func(w *wording) []*node {
		return w.inManifests(func(m *node) []*node { return m.get("layers").items })
	}, func(w *wording) *node { return w.evil.body.get("layers").items[0] }},
	{"subject", descriptorNames, func(w *wording) []*node {
		return w.inManifests(func(m *node) []*node {
			if m.get("subject") == nil {
				m.set("subject", descriptorOf(w.evil.body.get("mediaType").is(), w.evil))
			}
			return []*node{m.get("subject")}
		})
	}, func(w *wording) *node { return w.evil.body.get("config") }},
}

// places are all.
var places = append([]place{
	{"index.json", indexNames, func(w *wording) []*node { return []*node{w.index.body} }, evilIndex},
	{"index", indexNames, func(w *wording) []*node {
		indexes, _ := w.docs()
		return bodies(indexes)
	}, evilIndex},
	{"manifest", manifestNames, func(w *wording) []*node { return w.inManifests(func(m *node) []*node { return []*node{m} }) }, func(w *wording) *node { return w.evil.body }},
	{"platform in index.json", platformNames, func(w *wording) []*node { return platformsOf(w.tagged()) }, evilPlatform},
	{"platform in an index", platformNames, func(w *wording) []*node { return platformsOf(children(w)) }, evilPlatform},
}, descriptorPlaces...)

// Those of them that mutations name.
var (
	indexJSONPlace, indexPlace, manifestPlace     = places[0], places[1], places[2]
	rowPlace, childPlace, configPlace, layerPlace = descriptorPlaces[0], descriptorPlaces[1], descriptorPlaces[2], descriptorPlaces[3]
)

func (w *wording) rows() []*node { return w.index.body.get("manifests").items }

// tagged returns the descriptors of the tag.
func (w *wording) tagged() (list []*node) {
	for _, d := range w.rows() {
		if tagIn(d) == stable {
			list = append(list, d)
		}
	}
	return list
}

func tagIn(d *node) string {
	if a := d.get("annotations"); a != nil {
		return a.get(v1.AnnotationRefName).is()
	}
	return ""
}

// children returns the descriptors in nested indexes whose images are signed, or that are indexes.
func children(w *wording) (list []*node) {
	indexes, manifests := w.docs()
	for _, p := range indexes {
		for _, d := range p.body.get("manifests").items {
			if slices.Contains(manifests, d.paper()) || slices.Contains(indexes, d.paper()) {
				list = append(list, d)
			}
		}
	}
	return list
}

func bodies(papers []*paper) (list []*node) {
	for _, p := range papers {
		list = append(list, p.body)
	}
	return list
}

func platformsOf(descriptors []*node) (list []*node) {
	for _, d := range descriptors {
		if p := d.get("platform"); p != nil && p.kind == '{' {
			list = append(list, p)
		}
	}
	return list
}

func (w *wording) inManifests(find func(m *node) []*node) (list []*node) {
	_, manifests := w.docs()
	for _, p := range manifests {
		list = append(list, find(p.body)...)
	}
	return list
}

// evilRow is the evil image under the tag.
func evilRow(w *wording) *node {
	d := descriptorOf(w.evil.body.get("mediaType").is(), w.evil)
	d.set("platform", object("os", stringOf("linux"), "architecture", stringOf("amd64")))
	d.set("annotations", object(v1.AnnotationRefName, stringOf(stable)))
	return d
}

func evilIndex(w *wording) *node {
	return object("schemaVersion", "2", "mediaType", stringOf(v1.MediaTypeImageIndex), "manifests", array(evilRow(w)))
}

func evilPlatform(*wording) *node {
	return object("os", stringOf("windows"), "architecture", stringOf("riscv64"), "variant", stringOf("v9"), "os.version", stringOf("10"), "os.features", array(stringOf("win32k")))
}

// evilValue is what the evil image has for a member of such a place, or something that could stand there.
func (p place) evilValue(w *wording, name string) *node {
	e := p.evil(w)
	switch name {
	case "data":
		return dataOf(e.paper())
	case "annotations":
		return object(v1.AnnotationRefName, stringOf("evil"))
	}
	if v := e.get(name); v != nil {
		return v.clone()
	}
	switch name {
	case "urls":
		return array(stringOf("https://evil.example/"))
	case "platform":
		return evilPlatform(w)
	case "subject":
		return descriptorOf(v1.MediaTypeImageManifest, w.evil)
	}
	return stringOf("application/vnd.evil")
}

// spellings are other names that fold to a name (Unicode simple folding, as encoding/json's).
func spellings(name string) []string {
	runes := []rune(name)
	list := []string{string(unicode.ToUpper(runes[0])) + string(runes[1:]), strings.ToUpper(name), strings.ToLower(name), strings.ToLower(name[:1]) + name[1:]}
	list = append(list, strings.Replace(name, "s", "ſ", 1), strings.Replace(name, "S", "ſ", 1), strings.Replace(name, "k", "\u212a", 1))
	// An escape hides nothing.
	list = append(list, fmt.Sprintf(`\u%04x%s`, unicode.ToUpper(runes[0]), string(runes[1:])))
	return slices.DeleteFunc(list, func(s string) bool { return s == name || unescaped(s) == name })
}

func unescaped(s string) string { return stringOf(s).is() }

// mutations are all.
var mutations = slices.Concat(nameMutations(), configMutations(), escapes, doubleMutations(), texts, brokenTexts(), numberMutations(), dataMutations(), descriptorMutations,
	typeMutations, compressionMutations(), layerMutations, platformMutations, nestings)

// at makes a mutation of one object of a place.
func at(p place, kind, name string, m mark, do func(w *wording, n *node, pick pick) bool) mutation {
	return mutation{kind, p.name + ": " + name, m, func(w *wording, pick pick) bool {
		n := pick.one(p.find(w))
		return n != nil && do(w, n, pick)
	}}
}

// nameMutations give an object a member whose name folds to one of the specification's.
func nameMutations() (list []mutation) {
	for _, p := range places {
		for _, name := range p.members {
			list = append(list, at(p, "names", name+" in another spelling", ambiguous, func(w *wording, n *node, pick pick) bool {
				n.put(pick(2) == 0, pick.of(spellings(name)...), p.evilValue(w, name))
				return true
			}))
		}
	}
	for _, p := range descriptorPlaces[:4] {
		list = append(list, at(p, "names", "Digest and Size", ambiguous, func(w *wording, n *node, pick pick) bool {
			n.put(false, "Digest", p.evilValue(w, "digest"))
			n.put(false, "Size", p.evilValue(w, "size"))
			return true
		}))
	}
	for i, names := range [][2]string{{"manifests", "manifeſts"}, {"manifests", "manifeſts"}, {"layers", "layerſ"}, {"os", "oſ"}, {"os.features", "os.featureſ"},
		{"digest", `digeſt`}, {"size", `\u017fize`}, {"digest", `\u0044igest`}, {"digest", "dige\\u017ft"}} {
		p := places[i]
		list = append(list, at(p, "names", names[1]+" for "+names[0], ambiguous, func(w *wording, n *node, pick pick) bool {
			n.put(pick(2) == 0, names[1], p.evilValue(w, names[0]))
			return true
		}))
	}
	return append(list,
		at(manifestPlace, "names", "Config and Layers", ambiguous, func(w *wording, n *node, pick pick) bool {
			n.put(false, "Config", w.evil.body.get("config").clone())
			n.put(false, pick.of("Layers", "layerſ"), w.evil.body.get("layers").clone())
			return true
		}),
		mutation{"names", "the tag of the evil image is in Annotations", ambiguous, func(w *wording, pick pick) bool {
			d := evilRow(w)
			d.members[d.find("annotations")].name = "Annotations"
			w.addRow(pick, d)
			return true
		}},
		mutation{"names", "annotations in any case", harmless, func(w *wording, pick pick) bool {
			a := pick.one(w.tagged()).get("annotations")
			return a.add(pick(2) == 0, pick.of("Digest", "Org.Opencontainers.Image.Ref.Name", "MEDIATYPE", "ſize", "Annotations"), stringOf("evil"))
		}},
		mutation{"names", "a manifest's annotations in any case", harmless, func(w *wording, pick pick) bool {
			m := pick.one(manifestPlace.find(w))
			return m.get("annotations").add(pick(2) == 0, pick.of("Com.samsung.islet.image.signature", "Layers", "config"), stringOf("evil"))
		}},
	)
}

// addRow adds a descriptor to index.json, before all others or behind them.
func (w *wording) addRow(pick pick, d *node) {
	list := w.index.body.get("manifests")
	i := len(list.items) * pick(2)
	list.items = slices.Insert(list.items, i, d)
}

// The objects of an image config, with the members that OCI's specification gives them (config.md).
var configObjects = []struct {
	name    string
	members map[string]string
	find    func(config *node) *node
}{
	{"config", map[string]string{
		"created": `"1999-01-01T00:00:00Z"`, "author": `"evil"`, "architecture": `"evil"`, "os": `"evil"`, "os.version": `"6"`, "os.features": `["evil"]`, "variant": `"evil"`,
		"config": `{"Cmd":["/evil"]}`, "rootfs": `{"type":"layers","diff_ids":["` + aSum + `"]}`, "history": `[{"comment":"evil"}]`,
	}, func(c *node) *node { return c }},
	{"config.config", map[string]string{
		"User": `"evil"`, "ExposedPorts": `{"6/tcp":{}}`, "Env": `["PATH=/evil"]`, "Entrypoint": `["/evil"]`, "Cmd": `["/evil"]`, "Volumes": `{"/evil":{}}`,
		"WorkingDir": `"/evil"`, "Labels": `{"evil":"evil"}`, "StopSignal": `"SIGKILL"`, "ArgsEscaped": `true`,
		"Memory": `1`, "MemorySwap": `1`, "CpuShares": `1`, "Healthcheck": `{"Test":["CMD","/evil"]}`,
	}, func(c *node) *node { return c.get("config") }},
	{"config.rootfs", map[string]string{"type": `"evil"`, "diff_ids": `["` + aSum + `"]`}, func(c *node) *node { return c.get("rootfs") }},
	{"config.history", map[string]string{"created": `"1999-01-01T00:00:00Z"`, "created_by": `"evil"`, "author": `"evil"`, "comment": `"evil"`, "empty_layer": `true`},
		func(c *node) *node {
			c.set("history", array(object("created_by", stringOf("good"))))
			return c.get("history").items[0]
		}},
}

const aSum = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// configMutations change a config and sign it again: a vendor may be brought to sign what others read in another way.
func configMutations() (list []mutation) {
	add := func(name string, m mark, edit func(c *node, pick pick) bool) {
		list = append(list, mutation{"config", name, m, func(w *wording, pick pick) bool { return w.editConfig(pick, edit) }})
	}
	for _, o := range configObjects {
		for _, name := range slices.Sorted(maps.Keys(o.members)) {
			add(o.name+": "+name+" in another spelling", ambiguous, func(c *node, pick pick) bool {
				o.find(c).put(pick(2) == 0, pick.of(spellings(name)...), scalar(o.members[name]))
				return true
			})
		}
		add(o.name+": a member twice", ambiguous, func(c *node, pick pick) bool {
			n := o.find(c)
			name := n.members[pick(len(n.members))].name
			if n.get(name) == nil || o.members[name] == "" {
				return false
			}
			n.put(pick(2) == 0, name, scalar(o.members[name]))
			return true
		})
		add(o.name+": an unknown member", harmless, func(c *node, pick pick) bool {
			return o.find(c).add(pick(2) == 0, pick.of("x", "moby.buildkit.buildinfo.v1", "größe"), scalar(`{"Cmd":1}`))
		})
	}
	add("config.config: WorKingDir, with a Kelvin sign", ambiguous, func(c *node, pick pick) bool {
		c.get("config").put(pick(2) == 0, "Wor\u212aingDir", stringOf("/evil"))
		return true
	})
	add("labels, volumes and ports in any case", harmless, func(c *node, pick pick) bool {
		name := pick.of("Architecture", "cmd", "ROOTFS", "Digest")
		switch of := pick.of("Labels", "Volumes", "ExposedPorts"); of {
		case "Labels":
			c.get("config").set(of, object(name, stringOf("evil")))
		default:
			c.get("config").set(of, object(name, "{}"))
		}
		return true
	})
	return list
}

// editConfig changes a config and signs it again.
func (w *wording) editConfig(pick pick, edit func(c *node, pick pick) bool) bool {
	m := pick.one(manifestPlace.find(w))
	if m == nil {
		return false
	}
	p := m.get("config").paper()
	c := readNode(p.data)
	if !edit(c, pick) {
		return false
	}
	var b bytes.Buffer
	c.write(&b, "")
	w.resign(m, b.Bytes(), nil)
	return true
}

var vendorKey = sync.OnceValue(func() *sign.PrivateKey {
	text, err := os.ReadFile(key("vendor.prv"))
	if err != nil {
		panic(err)
	}
	k, err := sign.ParsePrivateKey(text)
	if err != nil {
		panic(err)
	}
	return k
})

// resign gives a manifest another config, signed by the vendor. tars are those that it names, nil for the same ones.
func (w *wording) resign(m *node, config []byte, tars [][]byte) {
	d := m.get("config")
	old := w.signed[digest.FromBytes(d.paper().data)]
	one := signedOne{config: config, diffs: old.diffs, files: old.files}
	if tars != nil {
		one.diffs, one.files = nil, map[string]string{}
		for _, t := range tars {
			one.diffs = append(one.diffs, digest.FromBytes(t))
			addFiles(one.files, t)
		}
	}
	w.signed[digest.FromBytes(config)] = one
	p := &paper{data: config}
	d.replace(p)
	signature, err := vendorKey().Sign(config)
	if err != nil {
		panic(err)
	}
	m.get("annotations").set(sign.SignatureAnnotation, stringOf(hex.EncodeToString(signature)))
}

// anyObject picks an object that no signature covers.
func anyObject(w *wording, pick pick) *node { return pick.one(places[pick(len(places))].find(w)) }

// anyPaper picks index.json, an index or a manifest.
func anyPaper(w *wording, pick pick) *paper {
	indexes, manifests := w.docs()
	all := slices.Concat([]*paper{w.index}, indexes, manifests)
	return all[pick(len(all))]
}

func inAnyObject(kind, name string, m mark, do func(n *node, pick pick) bool) mutation {
	return mutation{kind, name, m, func(w *wording, pick pick) bool {
		n := anyObject(w, pick)
		return n != nil && len(n.members) > 0 && do(n, pick)
	}}
}

func inAnyPaper(kind, name string, m mark, do func(p *paper, pick pick)) mutation {
	return mutation{kind, name, m, func(w *wording, pick pick) bool {
		do(anyPaper(w, pick), pick)
		return true
	}}
}

var escapes = []mutation{
	inAnyObject("escapes", "a letter of a name", harmless, func(n *node, pick pick) bool {
		i := pick(len(n.members))
		n.members[i].name = escapeOne(n.members[i].name, pick)
		return true
	}),
	inAnyObject("escapes", "a letter of a string", harmless, func(n *node, pick pick) bool {
		v := n.members[pick(len(n.members))].value
		if v.kind != 0 || !strings.HasPrefix(v.text, `"`) || len(v.text) < 3 {
			return false
		}
		v.text = `"` + escapeOne(v.text[1:len(v.text)-1], pick) + `"`
		return true
	}),
	inAnyObject("escapes", "solidus", harmless, func(n *node, pick pick) bool {
		v := n.get("mediaType")
		if v == nil || strings.Contains(v.text, `\`) {
			return false
		}
		v.text = strings.Replace(v.text, "/", `\/`, 1)
		return true
	}),
	inAnyObject("escapes", "the tag", harmless, func(n *node, pick pick) bool {
		a := n.get("annotations")
		if a == nil || a.get(v1.AnnotationRefName) == nil {
			return false
		}
		a.set(v1.AnnotationRefName, stringOf(escapeOne(stable, pick)))
		return true
	}),
}

func escapeOne(s string, pick pick) string {
	if s == "" || strings.ContainsRune(s, '\\') {
		return s
	}
	i := pick(len(s))
	if s[i] >= 0x80 {
		return s
	}
	return fmt.Sprintf(`%s\u%04x%s`, s[:i], s[i], s[i+1:])
}

// doubleMutations give an object two members of a name.
func doubleMutations() (list []mutation) {
	for _, p := range places {
		for _, name := range p.members {
			list = append(list, at(p, "doubles", name+" twice", ambiguous, func(w *wording, n *node, pick pick) bool {
				if n.get(name) == nil {
					n.put(false, name, p.evilValue(w, name))
				}
				n.put(pick(2) == 0, name, p.evilValue(w, name))
				return true
			}))
		}
	}
	return append(list, at(rowPlace, "doubles", "digest twice, once with an escape", ambiguous, func(w *wording, n *node, pick pick) bool {
		n.put(pick(2) == 0, pick.of(`\u0064igest`, `dige\u0073t`), digestOf(w.evil))
		return true
	}), mutation{"doubles", "the tag twice", ambiguous, func(w *wording, pick pick) bool {
		d := evilRow(w)
		d.get("annotations").put(pick(2) == 0, v1.AnnotationRefName, stringOf("other"))
		w.addRow(pick, d)
		return true
	}})
}

var texts = []mutation{
	inAnyPaper("text", "white space", harmless, func(p *paper, pick pick) { p.space = pick.of(" ", "\n", "\r\n\t", "  ") }),
	inAnyPaper("text", "a newline at the end", harmless, func(p *paper, pick pick) { p.tail += "\n" }),
	inAnyObject("text", "members in another order", harmless, func(n *node, pick pick) bool {
		if pick(2) == 0 {
			slices.Reverse(n.members)
			return true
		}
		i := 1 + pick(len(n.members))
		n.members = slices.Concat(n.members[i:], n.members[:i:i])
		return true
	}),
	inAnyObject("text", "an unknown member", harmless, func(n *node, pick pick) bool {
		name := pick.of("x", "org.example/x", "größe", "digests", "Digests", "")
		return n.add(pick(2) == 0, name, scalar(pick.of("null", "1e400", `{"Digest":"x","digest":1}`, "[[]]", "-0.0", `"\ud83d\ude00"`)))
	}),
	inAnyObject("text", "a member with NUL in its name", debatable, func(n *node, pick pick) bool {
		m := n.members[pick(len(n.members))]
		n.put(pick(2) == 0, m.name+`\u0000x`, stringOf("evil"))
		return true
	}),
	inAnyObject("text", "null for a member", debatable, func(n *node, pick pick) bool {
		n.set(n.members[pick(len(n.members))].name, scalar("null"))
		return true
	}),
}

// brokenTexts are documents that are not JSON, but that some program reads.
func brokenTexts() (list []mutation) {
	each := func(name string, do func(p *paper, s string), of ...string) {
		for _, s := range of {
			list = append(list, inAnyPaper("text", fmt.Sprintf("%s: %q", name, s), ambiguous, func(p *paper, _ pick) { do(p, s) }))
		}
	}
	each("behind the end", func(p *paper, s string) { p.tail += s }, "{}", `{"manifests":[],"layers":[]}`, "x", "\x00", ",", "]", "// x", "\x1a")
	each("before the beginning", func(p *paper, s string) { p.head = s }, "\ufeff", "\x00", "{}", "//\n")
	each("between the words", func(p *paper, s string) { p.space = s }, "\f", "\v", "\u00a0", "/**/")
	each("a string", func(p *paper, s string) { p.body.put(false, "x", scalar(s)) }, "\"\xff\"", "\"\xed\xa0\x80\"", `"\ud800"`, "\"\t\"", `'x'`)
	return list
}

// numberMutations spell a size or a version as only some understand it.
func numberMutations() (list []mutation) {
	for _, p := range descriptorPlaces {
		list = append(list, at(p, "text", "digest and a NUL", ambiguous, func(w *wording, n *node, pick pick) bool {
			n.put(pick(2) == 0, `digest\u0000x`, stringOf(aSum))
			return true
		}))
		list = append(list, at(p, "numbers", "size in another spelling", ambiguous, func(w *wording, n *node, pick pick) bool {
			size := *n.get("size")
			size.text = pick.of("%d.0", "%de0", "0%d", `"%d"`, "+%d", "%d.", "-%d", "%d00e-2", "0x%x")
			n.set("size", &size)
			return true
		}))
		list = append(list, at(p, "numbers", "another size", ambiguous, func(w *wording, n *node, pick pick) bool {
			n.set("size", scalar(pick.of("0", "1", "9223372036854775807")))
			return true
		}))
		list = append(list, at(p, "numbers", "a size that is none", ambiguous, func(w *wording, n *node, pick pick) bool {
			n.set("size", scalar(pick.of("18446744073709551616", "1e3", "-1", "9223372036854775808", "null", "[]")))
			return true
		}))
	}
	for _, text := range []string{"%d.0", "%de0", "0%d", `"%d"`, "%d00e-2"} {
		list = append(list, at(rowPlace, "numbers", "size as "+text, ambiguous, func(w *wording, n *node, pick pick) bool {
			size := *n.get("size")
			size.text = text
			n.set("size", &size)
			return true
		}))
	}
	for _, text := range []string{"2.0", `"2"`, "1", "3", "2e0", "02"} {
		list = append(list, inAnyPaper("numbers", "schemaVersion "+text, ambiguous, func(p *paper, _ pick) { p.body.set("schemaVersion", scalar(text)) }))
	}
	return list
}

// dataMutations put inline data in descriptors.
func dataMutations() (list []mutation) {
	for _, p := range descriptorPlaces {
		add := func(name string, m mark, do func(w *wording, n *node, pick pick) bool) {
			list = append(list, at(p, "data", name, m, do))
		}
		add("its blob", harmless, func(w *wording, n *node, pick pick) bool {
			return n.add(pick(2) == 0, "data", dataOf(n.paper()))
		})
		add("another blob", ambiguous, func(w *wording, n *node, pick pick) bool {
			n.put(pick(2) == 0, "data", p.evilValue(w, "data"))
			return true
		})
		if p.name != "subject" { // that need not be there
			add("instead of its blob", ambiguous, func(w *wording, n *node, pick pick) bool {
				n.put(false, "data", dataOf(n.paper()))
				n.paper().absent = true
				return true
			})
		}
		add("in no base64", ambiguous, func(w *wording, n *node, pick pick) bool {
			n.put(false, "data", scalar(pick.of(`"AAA"`, `"!"`, `"="`, `""`, `[1]`, `"e30\n="`)))
			return true
		})
		add("null", debatable, func(w *wording, n *node, pick pick) bool {
			n.put(false, "data", scalar("null"))
			return true
		})
		add("in URLs' base64", debatable, func(w *wording, n *node, pick pick) bool {
			n.put(false, "data", dataOf(n.paper()))
			n.paper().alphabet = base64.URLEncoding
			return true
		})
	}
	for _, p := range descriptorPlaces[:2] {
		list = append(list, second(p, "data", "another blob", ambiguous, func(w *wording, d *node, pick pick) {
			d.set("data", p.evilValue(w, "data"))
		}))
	}
	return list
}

// second adds a second descriptor of a digest that has one, without a tag, beside it or in index.json.
func second(p place, kind, name string, m mark, change func(w *wording, d *node, pick pick)) mutation {
	return at(p, kind, "a second one with "+name, m, func(w *wording, n *node, pick pick) bool {
		d := n.clone()
		d.remove("annotations")
		change(w, d, pick)
		indexes, _ := w.docs()
		lists := []*node{w.index.body.get("manifests")}
		for _, i := range indexes {
			if l := i.body.get("manifests"); slices.Contains(l.items, n) {
				lists = append(lists, l)
			}
		}
		l := lists[len(lists)-1-pick(len(lists))]
		l.items = slices.Insert(l.items, len(l.items)*pick(2), d)
		return true
	})
}

var descriptorMutations = func() (list []mutation) {
	for _, p := range descriptorPlaces[:2] {
		list = append(list,
			second(p, "descriptors", "nothing else", harmless, func(*wording, *node, pick) {}),
			second(p, "descriptors", "another size", ambiguous, func(w *wording, d *node, pick pick) {
				size := *d.get("size")
				size.text = pick.of("%d0", "1%d")
				d.set("size", &size)
			}),
			second(p, "descriptors", "another media type", ambiguous, func(w *wording, d *node, pick pick) {
				d.set("mediaType", stringOf(otherOf(d.get("mediaType").is(), pick)))
			}),
			second(p, "descriptors", "another platform", debatable, func(w *wording, d *node, pick pick) {
				d.set("platform", object("os", stringOf("linux"), "architecture", stringOf(pick.of("arm64", "riscv64"))))
			}),
			second(p, "descriptors", "another os.version", debatable, func(w *wording, d *node, pick pick) {
				d.set("platform", object("os", stringOf("linux"), "architecture", stringOf("amd64"), "os.version", stringOf("9")))
			}),
		)
	}
	list = append(list, at(manifestPlace, "descriptors", "a subject that is a layer, with another size", ambiguous, func(w *wording, m *node, pick pick) bool {
		d := m.get("layers").items[0].clone()
		size := *d.get("size")
		size.text = "1%d"
		d.set("size", &size)
		m.set("subject", d)
		return true
	}))
	row := func(name string, m mark, change func(d *node, pick pick)) {
		list = append(list, mutation{"descriptors", name, m, func(w *wording, pick pick) bool {
			d := evilRow(w)
			change(d, pick)
			w.addRow(pick, d)
			return true
		}})
	}
	row("the evil image without a tag", harmless, func(d *node, pick pick) { d.remove("annotations") })
	row("the evil image under another tag", harmless, func(d *node, pick pick) {
		d.set("annotations", object(v1.AnnotationRefName, stringOf(pick.of("evil", "Stable", "stable.", `stable\u0000`))))
	})
	row("the evil image under the same tag", debatable, func(d *node, pick pick) {})
	row("the evil image under the same tag, for another platform", debatable, func(d *node, pick pick) {
		d.get("platform").set("architecture", stringOf(pick.of("arm64", "arm")))
	})
	list = append(list, mutation{"descriptors", "rows in another order", harmless, func(w *wording, pick pick) bool {
		slices.Reverse(w.rows())
		return len(w.rows()) > 1
	}}, mutation{"descriptors", "children in another order", harmless, func(w *wording, pick pick) bool {
		indexes, _ := w.docs()
		if len(indexes) == 0 {
			return false
		}
		slices.Reverse(indexes[pick(len(indexes))].body.get("manifests").items)
		return true
	}}, mutation{"descriptors", "layers under Docker's types in another image", harmless, func(w *wording, pick pick) bool {
		m := pick.one(manifestPlace.find(w))
		other := m.clone()
		for _, l := range other.get("layers").items {
			l.set("mediaType", stringOf(layerType(!isDockerType(l.get("mediaType").is()), compressionOf(l.get("mediaType").is()))))
		}
		d := descriptorOf(w.evil.body.get("mediaType").is(), paperOf(other))
		d.set("annotations", object(v1.AnnotationRefName, stringOf("other")))
		w.addRow(pick, d)
		return true
	}})
	return list
}()

// layerType is the media type of a layer, OCI's or Docker's.
func layerType(docker bool, compression string) string {
	t, sep := v1.MediaTypeImageLayer, "+"
	if docker {
		t, sep = "application/vnd.docker.image.rootfs.diff.tar", "."
	}
	if compression == "" {
		return t
	}
	return t + sep + compression
}

func isDockerType(mediaType string) bool { return strings.Contains(mediaType, "docker") }

// compressionOf returns the compression of a layer's media type.
func compressionOf(mediaType string) string {
	for _, c := range []string{"gzip", "zstd"} {
		if strings.HasSuffix(mediaType, "+"+c) || strings.HasSuffix(mediaType, "."+c) {
			return c
		}
	}
	return ""
}

var twinTypes = map[string]string{
	v1.MediaTypeImageManifest: layout.MediaTypeDockerManifest, layout.MediaTypeDockerManifest: v1.MediaTypeImageManifest,
	v1.MediaTypeImageIndex: layout.MediaTypeDockerList, layout.MediaTypeDockerList: v1.MediaTypeImageIndex,
	v1.MediaTypeImageConfig: layout.MediaTypeDockerConfig, layout.MediaTypeDockerConfig: v1.MediaTypeImageConfig,
}

// otherOf is another media type of a manifest or an index.
func otherOf(mediaType string, pick pick) string {
	list := []string{twinTypes[mediaType], v1.MediaTypeImageIndex, layout.MediaTypeDockerList, v1.MediaTypeImageManifest, "text/plain", strings.ToUpper(mediaType), mediaType + ";x=y"}
	list = slices.DeleteFunc(list, func(t string) bool { return t == mediaType || t == "" })
	return pick.of(list...)
}

var typeMutations = []mutation{
	at(rowPlace, "types", "not that of the document", ambiguous, func(w *wording, n *node, pick pick) bool {
		if n.paper().body.get("mediaType") == nil {
			return false
		}
		n.set("mediaType", stringOf(otherOf(n.get("mediaType").is(), pick)))
		return true
	}),
	at(childPlace, "types", "not that of the document", ambiguous, func(w *wording, n *node, pick pick) bool {
		if n.paper().body.get("mediaType") == nil {
			return false
		}
		n.set("mediaType", stringOf(otherOf(n.get("mediaType").is(), pick)))
		return true
	}),
	at(manifestPlace, "types", "a manifest that gives none", harmless, func(w *wording, m *node, pick pick) bool {
		m.remove("mediaType")
		return true
	}),
	at(rowPlace, "types", "Docker's for OCI's, or OCI's for Docker's, in document and descriptor", debatable, func(w *wording, n *node, pick pick) bool {
		t := stringOf(twinTypes[n.get("mediaType").is()])
		n.set("mediaType", t)
		n.paper().body.set("mediaType", t.clone())
		return true
	}),
	at(configPlace, "types", "Docker's for OCI's, or OCI's for Docker's", harmless, func(w *wording, n *node, pick pick) bool {
		n.set("mediaType", stringOf(twinTypes[n.get("mediaType").is()]))
		return true
	}),
	at(configPlace, "types", "one of no image", debatable, func(w *wording, n *node, pick pick) bool {
		n.set("mediaType", stringOf(pick.of("text/plain", "application/vnd.cncf.helm.config.v1+json", v1.MediaTypeEmptyJSON, strings.ToUpper(v1.MediaTypeImageConfig))))
		return true
	}),
	at(layerPlace, "types", "Docker's for OCI's, or OCI's for Docker's", harmless, func(w *wording, n *node, pick pick) bool {
		t := n.get("mediaType").is()
		n.set("mediaType", stringOf(layerType(!isDockerType(t), compressionOf(t))))
		return true
	}),
	at(layerPlace, "types", "one not to be distributed", harmless, func(w *wording, n *node, pick pick) bool {
		t := n.get("mediaType").is()
		if isDockerType(t) {
			if compressionOf(t) != "gzip" {
				return false // Docker knows no such type
			}
			n.set("mediaType", stringOf(strings.Replace(t, "rootfs.diff", "rootfs.foreign.diff", 1)))
		} else {
			n.set("mediaType", stringOf(strings.Replace(t, "layer.v1", "layer.nondistributable.v1", 1)))
		}
		return true
	}),
	at(layerPlace, "types", "one of no layer", debatable, func(w *wording, n *node, pick pick) bool {
		t := n.get("mediaType").is()
		n.set("mediaType", stringOf(pick.of("text/plain", "application/vnd.in-toto+json", strings.ToUpper(t), t+";x=y", "application/gzip")))
		return true
	}),
	at(layerPlace, "types", "encrypted", debatable, func(w *wording, n *node, pick pick) bool {
		n.set("mediaType", stringOf(n.get("mediaType").is()+"+encrypted"))
		return true
	}),
	{"types", "none, in a descriptor", ambiguous, func(w *wording, pick pick) bool {
		n := pick.one(descriptorPlaces[pick(4)].find(w))
		if n == nil {
			return false
		}
		if pick(2) == 0 {
			n.remove("mediaType")
		} else {
			n.set("mediaType", stringOf(""))
		}
		return true
	}},
	at(manifestPlace, "types", "a manifest with manifests", ambiguous, func(w *wording, m *node, pick pick) bool {
		m.put(pick(2) == 0, "manifests", array(evilRow(w)))
		return true
	}),
	at(indexPlace, "types", "an index with a config and layers", ambiguous, func(w *wording, n *node, pick pick) bool {
		n.put(pick(2) == 0, "layers", w.evil.body.get("layers").clone())
		n.put(pick(2) == 0, "config", w.evil.body.get("config").clone())
		return true
	}),
	at(indexJSONPlace, "types", "index.json with layers", ambiguous, func(w *wording, n *node, pick pick) bool {
		n.put(pick(2) == 0, pick.of("layers", "config", "fsLayers"), w.evil.body.get("layers").clone())
		return true
	}),
	{"types", "artifactType", debatable, func(w *wording, pick pick) bool {
		n := pick.one(places[pick(len(places))].find(w))
		if n == nil {
			return false
		}
		n.set("artifactType", stringOf("application/vnd.evil"))
		return true
	}},
	{"types", "an index by the name of a manifest", ambiguous, func(w *wording, pick pick) bool {
		n := pick.one(indexPlace.find(w))
		if n == nil {
			return false
		}
		n.set("mediaType", stringOf(v1.MediaTypeImageManifest))
		return true
	}},
}

const (
	inToto        = "application/vnd.in-toto+json"
	referenceType = "vnd.docker.reference.type"
)

// platformMutations are what decides whether an image counts in an index. The evil one must, whatever it looks like.
var platformMutations = func() (list []mutation) {
	for _, p := range descriptorPlaces[:2] {
		list = append(list,
			at(p, "platforms", "another one", debatable, func(w *wording, n *node, pick pick) bool {
				n.set("platform", object("os", stringOf("linux"), "architecture", stringOf(pick.of("arm64", "riscv64", "amd64", ""))))
				return true
			}),
			at(p, "platforms", "none", debatable, func(w *wording, n *node, pick pick) bool {
				n.remove("platform")
				return true
			}),
			at(p, "platforms", "unknown", debatable, func(w *wording, n *node, pick pick) bool {
				n.set("platform", unknownPlatform())
				if pick(2) == 0 {
					annotate(n, referenceType, "attestation-manifest")
				}
				return true
			}),
		)
	}
	beside := func(name string, m mark, disguise func(w *wording, d, body *node)) {
		list = append(list, mutation{"platforms", "the evil image beside: " + name, m, func(w *wording, pick pick) bool {
			p := paperOf(w.evil.body.clone())
			d := evilRow(w)
			d.remove("annotations")
			d.replace(p)
			disguise(w, d, p.body)
			w.beside(pick, d)
			return true
		}})
	}
	// Under another tag it does not matter to the word of this one, only to that of the registry.
	apart := func(name string, disguise func(d, body *node)) {
		list = append(list, mutation{"platforms", "the evil image under another tag: " + name, debatable, func(w *wording, pick pick) bool {
			p := paperOf(w.evil.body.clone())
			d := evilRow(w)
			d.set("annotations", object(v1.AnnotationRefName, stringOf("evil")))
			d.replace(p)
			disguise(d, p.body)
			w.addRow(pick, d)
			return true
		}})
	}
	layersAs := func(body *node, t string) {
		for _, l := range body.get("layers").items {
			l.set("mediaType", stringOf(t))
		}
	}
	beside("as it is", ambiguous, func(w *wording, d, body *node) {})
	beside("without a platform", ambiguous, func(w *wording, d, body *node) { d.remove("platform") })
	beside("for another platform", ambiguous, func(w *wording, d, body *node) { d.get("platform").set("architecture", stringOf("arm64")) })
	beside("for unknown/unknown", ambiguous, func(w *wording, d, body *node) { d.set("platform", unknownPlatform()) })
	beside("annotated as an attestation", ambiguous, func(w *wording, d, body *node) { annotate(d, referenceType, "attestation-manifest") })
	beside("for unknown/unknown, annotated as an attestation", ambiguous, func(w *wording, d, body *node) {
		d.set("platform", unknownPlatform())
		annotate(d, referenceType, "attestation-manifest")
	})
	beside("annotated as an attestation, with its layers", ambiguous, func(w *wording, d, body *node) {
		annotate(d, referenceType, "attestation-manifest")
		layersAs(body, inToto)
	})
	beside("for unknown/unknown, with an attestation's layers", ambiguous, func(w *wording, d, body *node) {
		d.set("platform", unknownPlatform())
		layersAs(body, inToto)
	})
	beside("with an attestation's layers", ambiguous, func(w *wording, d, body *node) { layersAs(body, inToto) })
	beside("as an attestation but for one layer", ambiguous, func(w *wording, d, body *node) {
		d.set("platform", unknownPlatform())
		annotate(d, referenceType, "attestation-manifest")
		body.get("layers").items[0].set("mediaType", stringOf(inToto))
	})
	beside("with an artifactType", ambiguous, func(w *wording, d, body *node) {
		d.set("artifactType", stringOf("application/vnd.evil"))
		body.set("artifactType", stringOf("application/vnd.evil"))
	})
	beside("with an artifact's config type", ambiguous, func(w *wording, d, body *node) {
		body.get("config").set("mediaType", stringOf("application/vnd.cncf.helm.config.v1+json"))
	})
	beside("with an artifact's layers", ambiguous, func(w *wording, d, body *node) { layersAs(body, "text/plain") })
	beside("with an artifact's layers and config type", ambiguous, func(w *wording, d, body *node) {
		layersAs(body, "text/plain")
		body.get("config").set("mediaType", stringOf("application/vnd.evil+json"))
	})
	beside("as an attestation in every way", ambiguous, func(w *wording, d, body *node) {
		layersAs(body, "application/vnd.in-toto+json")
		d.set("platform", unknownPlatform())
		annotate(d, referenceType, "attestation-manifest")
	})
	beside("with another config, and the artifact's type of it", ambiguous, func(w *wording, d, body *node) {
		body.set("config", descriptorOf(v1.MediaTypeEmptyJSON, &paper{data: []byte("{}")}))
	})
	apart("with an artifactType", func(d, body *node) { body.set("artifactType", stringOf("application/vnd.evil")) })
	apart("with an artifact's config type", func(d, body *node) {
		body.get("config").set("mediaType", stringOf("application/vnd.cncf.helm.config.v1+json"))
	})
	apart("with an artifact's layers", func(d, body *node) { layersAs(body, "text/plain") })
	apart("with an artifact's layers and config type", func(d, body *node) {
		layersAs(body, "text/plain")
		body.get("config").set("mediaType", stringOf("application/vnd.evil+json"))
	})
	apart("under a media type that nobody knows", func(d, body *node) {
		body.remove("mediaType")
		d.set("mediaType", stringOf("application/json"))
	})
	apart("for unknown/unknown, annotated as an attestation", func(d, body *node) {
		d.set("platform", unknownPlatform())
		annotate(d, referenceType, "attestation-manifest")
	})
	return list
}()

func unknownPlatform() *node {
	return object("os", stringOf("unknown"), "architecture", stringOf("unknown"))
}

func annotate(d *node, name, value string) {
	if d.get("annotations") == nil {
		d.set("annotations", object())
	}
	d.get("annotations").set(name, stringOf(value))
}

// beside puts a descriptor beside a signed image in an index; one is made if there is none.
func (w *wording) beside(pick pick, d *node) {
	indexes, _ := w.docs()
	if len(indexes) == 0 {
		w.wrap(pick.one(w.tagged()), v1.MediaTypeImageIndex)
		indexes, _ = w.docs()
	}
	l := indexes[pick(len(indexes))].body.get("manifests")
	l.items = slices.Insert(l.items, len(l.items)*pick(2), d)
}

// wrap puts an index between a descriptor and what it names.
func (w *wording) wrap(n *node, mediaType string) {
	child := n.clone()
	child.remove("annotations")
	p := paperOf(object("schemaVersion", "2", "mediaType", stringOf(mediaType), "manifests", array(child)))
	n.remove("platform")
	n.set("mediaType", stringOf(mediaType))
	n.replace(p)
	n.remove("artifactType")
}

var nestings = []mutation{
	at(rowPlace, "nesting", "an index around it", harmless, func(w *wording, n *node, pick pick) bool {
		w.wrap(n, v1.MediaTypeImageIndex)
		return true
	}),
	at(rowPlace, "nesting", "three indexes around it", harmless, func(w *wording, n *node, pick pick) bool {
		if indexes, _ := w.docs(); len(indexes) > 3 { // 8 are the limit
			return false
		}
		for range 3 {
			w.wrap(n, v1.MediaTypeImageIndex)
		}
		return true
	}),
	at(rowPlace, "nesting", "a Docker manifest list around it", debatable, func(w *wording, n *node, pick pick) bool {
		w.wrap(n, layout.MediaTypeDockerList)
		return true
	}),
	at(childPlace, "nesting", "an index around a child", harmless, func(w *wording, n *node, pick pick) bool {
		w.wrap(n, v1.MediaTypeImageIndex)
		return true
	}),
	{"nesting", "a child that is not there", harmless, func(w *wording, pick pick) bool {
		p := &paper{data: []byte("elsewhere"), absent: true}
		d := descriptorOf(v1.MediaTypeImageManifest, p)
		d.set("platform", object("os", stringOf("linux"), "architecture", stringOf("s390x")))
		w.beside(pick, d)
		return true
	}},
	{"nesting", "the evil image, only as data", ambiguous, func(w *wording, pick pick) bool {
		d := evilRow(w)
		d.remove("annotations")
		d.set("data", dataOf(w.evil))
		d.get("platform").set("architecture", stringOf(pick.of("amd64", "arm64")))
		w.evil.absent = true
		w.beside(pick, d)
		return true
	}},
	{"nesting", "the evil image, only as data of a second descriptor", ambiguous, func(w *wording, pick pick) bool {
		d := evilRow(w)
		d.remove("annotations")
		w.beside(func(int) int { return 0 }, d.clone())
		d.set("data", dataOf(w.evil))
		w.evil.absent = true
		w.beside(func(int) int { return 0 }, d)
		l, _ := w.docs()
		items := l[0].body.get("manifests").items
		items[0], items[1] = items[1], items[0] // the one with the data is the second
		return true
	}},
	{"nesting", "an index of the evil image, only as data", ambiguous, func(w *wording, pick pick) bool {
		d := evilRow(w)
		d.remove("annotations")
		w.wrap(d, v1.MediaTypeImageIndex)
		d.paper().absent = true
		d.set("data", dataOf(d.paper()))
		w.beside(pick, d)
		return true
	}},
	{"nesting", "the evil image as data and as a blob", ambiguous, func(w *wording, pick pick) bool {
		d := evilRow(w)
		d.remove("annotations")
		d.set("data", dataOf(w.evil))
		w.beside(pick, d)
		return true
	}},
	{"nesting", "the evil image as data of a child that is not there", ambiguous, func(w *wording, pick pick) bool {
		d := descriptorOf(v1.MediaTypeImageManifest, &paper{data: []byte("elsewhere"), absent: true})
		d.set("platform", object("os", stringOf("linux"), "architecture", stringOf("arm64")))
		d.set("data", dataOf(w.evil))
		w.beside(pick, d)
		return true
	}},
	{"nesting", "an index of the evil image beside", ambiguous, func(w *wording, pick pick) bool {
		d := evilRow(w)
		w.wrap(d, v1.MediaTypeImageIndex)
		d.remove("annotations")
		w.beside(pick, d)
		return true
	}},
	at(indexPlace, "data", "a subject of an index, with another blob", ambiguous, func(w *wording, n *node, pick pick) bool {
		d := descriptorOf(w.evil.body.get("mediaType").is(), w.evil)
		d.set("data", dataOf(w.evil.body.get("config").paper()))
		n.set("subject", d)
		return true
	}),
	{"nesting", "a subject, the evil image", debatable, func(w *wording, pick pick) bool {
		anyPaper(w, pick).body.set("subject", descriptorOf(w.evil.body.get("mediaType").is(), w.evil))
		return true
	}},
	at(rowPlace, "nesting", "the tag in a second row, the evil image's", debatable, func(w *wording, n *node, pick pick) bool {
		d := evilRow(w)
		n.remove("annotations")
		w.addRow(pick, d)
		return true
	}),
}
