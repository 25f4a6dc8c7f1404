package layout

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"
)

func TestSetAnnotations(t *testing.T) {
	crlf := func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
	pretty := "{\n  \"a\": 1,\n  \"annotations\": {\n    \"x\": \"y\"\n  }\n}\n"
	prettyWant := "{\n  \"a\": 1,\n  \"annotations\": {\n    \"x\": \"y\",\n    \"k\": \"v\",\n    \"l\": \"w\"\n  }\n}\n"
	tests := []struct{ name, doc, want string }{
		{"compact", `{"a":1,"annotations":{"x":"y"}}`, `{"a":1,"annotations":{"x":"y","k":"v","l":"w"}}`},
		{"compact, missing", `{"a":1}`, `{"a":1,"annotations":{"k":"v","l":"w"}}`},
		{"compact, null", `{"annotations":null,"a":1}`, `{"annotations":{"k":"v","l":"w"},"a":1}`},
		{"compact, empty", `{"annotations":{},"a":1}`, `{"annotations":{"k":"v","l":"w"},"a":1}`},
		{"not last", `{"annotations":{"x":"y"},"a":1}`, `{"annotations":{"x":"y","k":"v","l":"w"},"a":1}`},

		{"pretty", pretty, prettyWant},
		{"pretty, CRLF", crlf(pretty), crlf(prettyWant)},
		{"pretty, missing", "{\n\t\"a\": 1\n}", "{\n\t\"a\": 1,\n\t\"annotations\": {\n\t\t\"k\": \"v\",\n\t\t\"l\": \"w\"\n\t}\n}"},
		{"pretty, missing, CRLF", crlf("{\n\t\"a\": 1\n}"), crlf("{\n\t\"a\": 1,\n\t\"annotations\": {\n\t\t\"k\": \"v\",\n\t\t\"l\": \"w\"\n\t}\n}")},
		{"pretty, null", "{\n \"annotations\": null\n}\n", "{\n \"annotations\": {\n  \"k\": \"v\",\n  \"l\": \"w\"\n }\n}\n"},
		{"pretty, empty", "{\n \"annotations\": {}\n}\n", "{\n \"annotations\": {\n  \"k\": \"v\",\n  \"l\": \"w\"\n }\n}\n"},
		{"pretty, empty on two lines", "{\n \"annotations\": {\n }\n}\n", "{\n \"annotations\": {\n  \"k\": \"v\",\n  \"l\": \"w\"\n }\n}\n"},
		{"pretty, indented as a whole", "  {\n    \"a\": 1\n  }", "  {\n    \"a\": 1,\n    \"annotations\": {\n      \"k\": \"v\",\n      \"l\": \"w\"\n    }\n  }"},
		{"pretty, annotations on one line", "{\n  \"a\": 1,\n  \"annotations\": {\"x\": \"y\"}\n}", "{\n  \"a\": 1,\n  \"annotations\": {\"x\": \"y\", \"k\": \"v\", \"l\": \"w\"}\n}"},
		{"pretty, empty lines", "{\n\n  \"a\": 1\n\n}", "{\n\n  \"a\": 1,\n\n  \"annotations\": {\n    \"k\": \"v\",\n    \"l\": \"w\"\n  }\n\n}"},

		{"as Python writes", `{"a": 1, "annotations": {"x": "y"}}`, `{"a": 1, "annotations": {"x": "y", "k": "v", "l": "w"}}`},
		{"as Python writes, missing", `{"a": 1, "b": 2}`, `{"a": 1, "b": 2, "annotations": {"k": "v", "l": "w"}}`},
		{"as Python writes, empty", `{"annotations": {}, "b": 2}`, `{"annotations": {"k": "v", "l": "w"}, "b": 2}`},
		{"padded", `{ "a" : 1, "annotations" : { "x" : "y" } }`, `{ "a" : 1, "annotations" : { "x" : "y", "k" : "v", "l" : "w" } }`},
		{"padded, empty", `{ "a" : 1, "annotations" : { } }`, `{ "a" : 1, "annotations" : { "k" : "v", "l" : "w" } }`},

		{"same", `{"annotations":{"l":"w","k":"v"}}`, `{"annotations":{"l":"w","k":"v"}}`},
		{"same, escaped", `{"annotations":{"\u006c":"\u0077","k" : "v"}}`, `{"annotations":{"\u006c":"\u0077","k" : "v"}}`},
		{"other value", `{"annotations":{"k" : "old" ,"x":"k","l":"w"}}`, `{"annotations":{"k" : "v" ,"x":"k","l":"w"}}`},
		{"one other, one new", `{"annotations":{"k":""}}`, `{"annotations":{"k":"v","l":"w"}}`},
		{"names deeper are others", `{"config":{"annotations":{"k":"old"}},"a":{"k":"old"}}`, `{"config":{"annotations":{"k":"old"}},"a":{"k":"old"},"annotations":{"k":"v","l":"w"}}`},
		{"escaped name", `{"annotation\u0073":{"x":"y"}}`, `{"annotation\u0073":{"x":"y","k":"v","l":"w"}}`},
		{"empty document", `{}`, `{"annotations":{"k":"v","l":"w"}}`},
		{"odd number text stays", `{"a":1e999,"annotations":{}}` + "\n\n", `{"a":1e999,"annotations":{"k":"v","l":"w"}}` + "\n\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			doc := []byte(test.doc)
			got, err := setAnnotations(doc, []Annotation{{"k", "v"}, {"l", "w"}})
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != test.want {
				t.Errorf("from %q\ngot  %q\nwant %q", test.doc, got, test.want)
			}
			if string(doc) != test.doc {
				t.Error("the document that was given is changed")
			}
			again, err := setAnnotations(got, []Annotation{{"k", "v"}, {"l", "w"}})
			if err != nil || !bytes.Equal(again, got) {
				t.Errorf("a second time: %q, %v", again, err)
			}
		})
	}
}

func TestSetAnnotationsEscapes(t *testing.T) {
	got, err := setAnnotations([]byte(`{}`), []Annotation{{`"\`, "\x00\n<é>"}})
	if want := `{"annotations":{"\"\\":"\u0000\n<é>"}}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

func TestSetAnnotationsRefuses(t *testing.T) {
	for name, doc := range map[string]string{
		"nothing":               ``,
		"array":                 `[]`,
		"null":                  `null`,
		"cut short":             `{"a":1`,
		"trailing bytes":        `{}{}`,
		"annotations an array":  `{"annotations":[]}`,
		"annotations a string":  `{"annotations":"x"}`,
		"annotation an object":  `{"annotations":{"k":{}}}`,
		"annotation null":       `{"annotations":{"k":null}}`,
		"duplicate annotations": `{"annotations":{},"annotations":{}}`,
	} {
		got, err := setAnnotations([]byte(doc), []Annotation{{"k", "v"}})
		if err == nil {
			t.Errorf("%s: got %s", name, got)
		}
	}
	for name, set := range map[string][]Annotation{
		"set twice":     {{"k", "v"}, {"k", "w"}},
		"invalid key":   {{"\xff", "v"}},
		"invalid value": {{"k", "\xff"}},
	} {
		got, err := setAnnotations([]byte(`{}`), set)
		if err == nil {
			t.Errorf("%s: got %s", name, got)
		}
	}
}

// A pair is a member of an object, in order; its value is compact JSON.
type pair struct{ name, value string }

func compact(pairs []pair) string {
	var members []string
	for _, p := range pairs {
		members = append(members, fmt.Sprintf("%q:%s", p.name, p.value))
	}
	return "{" + strings.Join(members, ",") + "}"
}

// The ways in which encoding/json and Python print a document.
var printers = map[string]func(string) string{
	"compact":   func(doc string) string { return doc },
	"indent 0":  func(doc string) string { return indented(doc, "") },
	"indent 2":  func(doc string) string { return indented(doc, "  ") },
	"indent 4":  func(doc string) string { return indented(doc, "    ") },
	"tab":       func(doc string) string { return indented(doc, "\t") },
	"CRLF":      func(doc string) string { return strings.ReplaceAll(indented(doc, "  "), "\n", "\r\n") },
	"final EOL": func(doc string) string { return indented(doc, "  ") + "\n" },
	"Python":    spaced,
}

func indented(doc, unit string) string {
	var b bytes.Buffer
	if err := stdjson.Indent(&b, []byte(doc), "", unit); err != nil {
		panic(err)
	}
	return b.String()
}

// spaced puts a space after every colon and comma outside of strings.
func spaced(doc string) string {
	var b strings.Builder
	quoted := false
	for i := range len(doc) {
		if doc[i] == '"' && (i == 0 || doc[i-1] != '\\') {
			quoted = !quoted
		}
		b.WriteByte(doc[i])
		if !quoted && (doc[i] == ':' || doc[i] == ',') {
			b.WriteByte(' ')
		}
	}
	return b.String()
}

func drawValue(t *rapid.T, depth int) string {
	kinds := 5
	if depth > 2 {
		kinds = 3
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
	case 0:
		return rapid.SampledFrom([]string{"null", "true", "0", "-1.50e+3", "123456789012345678901234567890"}).Draw(t, "literal")
	case 1, 2:
		return rapid.SampledFrom([]string{`""`, `"a,b:{c}[d]"`, `"\u0061\n\""`, `"é"`}).Draw(t, "string")
	case 3:
		var elements []string
		for range rapid.IntRange(0, 3).Draw(t, "elements") {
			elements = append(elements, drawValue(t, depth+1))
		}
		return "[" + strings.Join(elements, ",") + "]"
	}
	var members []pair
	for i := range rapid.IntRange(0, 3).Draw(t, "members") {
		members = append(members, pair{fmt.Sprint("m", i), drawValue(t, depth+1)})
	}
	return compact(members)
}

func drawAnnotations(t *rapid.T) []pair {
	var annotations []pair
	for _, name := range rapid.Permutation([]string{"x", "com.example.k", "k", "l", "org.opencontainers.image.title"}).Draw(t, "annotations")[:rapid.IntRange(0, 5).Draw(t, "count")] {
		annotations = append(annotations, pair{name, rapid.SampledFrom([]string{`""`, `"v"`, `"w"`, `"a: b, c"`}).Draw(t, name)})
	}
	return annotations
}

// However encoding/json or Python printed a manifest, it comes out as they would print it with the annotations appended.
func TestSetAnnotationsAsPrinted(t *testing.T) {
	for name, printer := range printers {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				set := []Annotation{{"k", "v"}, {"l", "w"}, {"com.samsung.islet.image.signature", "3064"}}
				members := []pair{
					{"schemaVersion", "2"},
					{"config", descriptorOf(v1.MediaTypeImageConfig, hexA, "")},
					{"layers", rapid.SampledFrom([]string{"[]", "[" + descriptorOf("l", hexB, "") + "]"}).Draw(t, "layers")},
					{"x", drawValue(t, 0)},
				}
				annotations := drawAnnotations(t)
				form := rapid.SampledFrom([]string{"missing", "null", "object"}).Draw(t, "form")
				switch form {
				case "null":
					members, annotations = append(members, pair{"annotations", "null"}), nil
				case "object":
					members = append(members, pair{"annotations", compact(annotations)})
				default:
					annotations = nil
				}
				members = rapid.Permutation(members).Draw(t, "order")
				doc := printer(compact(members))

				for _, a := range set {
					value := fmt.Sprintf("%q", a.Value)
					if i := slices.IndexFunc(annotations, func(p pair) bool { return p.name == a.Key }); i >= 0 {
						annotations[i].value = value
					} else {
						annotations = append(annotations, pair{a.Key, value})
					}
				}
				if i := slices.IndexFunc(members, func(p pair) bool { return p.name == "annotations" }); i >= 0 {
					members[i].value = compact(annotations)
				} else {
					members = append(members, pair{"annotations", compact(annotations)})
				}
				want := printer(compact(members))

				got, err := setAnnotations([]byte(doc), set)
				if err != nil || string(got) != want {
					t.Fatalf("%v\nfrom %s\ngot  %s\nwant %s", err, doc, got, want)
				}
				again, err := setAnnotations(got, set)
				if err != nil || !bytes.Equal(again, got) {
					t.Fatalf("a second time: %s, %v", again, err)
				}
				parsed, err := ParseManifest(got, v1.MediaTypeImageManifest)
				if err != nil {
					t.Fatal(err)
				}
				for _, a := range set {
					if parsed.Annotations[a.Key] != a.Value {
						t.Fatalf("annotations are %v", parsed.Annotations)
					}
				}
			})
		})
	}
}

// sprinkle puts random white space between the tokens of compact JSON.
func sprinkle(t *rapid.T, doc string) string {
	space := rapid.SampledFrom([]string{"", "", " ", "\n", "\r\n", "\t", "\n  ", " \n\t\r"})
	var b strings.Builder
	quoted := false
	for i := range len(doc) {
		c := doc[i]
		structural := !quoted && strings.IndexByte("{}[]:,", c) >= 0
		if structural {
			b.WriteString(space.Draw(t, "before"))
		}
		b.WriteByte(c)
		if structural {
			b.WriteString(space.Draw(t, "after"))
		}
		if c == '"' && (i == 0 || doc[i-1] != '\\') {
			quoted = !quoted
		}
	}
	return b.String()
}

// Whatever the white space, new annotations are one insertion (null is replaced), and nothing else changes.
func TestSetAnnotationsKeepsTheRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		annotations := rapid.SampledFrom([]string{"", `,"annotations":null`, `,"annotations":{}`, `,"annotations":{"x":"y"}`, `,"annotations":{"x":"y","z":""}`}).Draw(t, "annotations")
		doc := sprinkle(t, manifestOf(annotations+`,"z":[{},1]`))
		before, err := ParseManifest([]byte(doc), v1.MediaTypeImageManifest)
		if err != nil {
			t.Fatal(err)
		}
		got, err := setAnnotations([]byte(doc), []Annotation{{"k", "v"}, {"l", "w"}})
		if err != nil {
			t.Fatal(err)
		}
		replaced := 0
		if strings.HasSuffix(annotations, "null") {
			replaced = len("null")
		}
		if kept := commonEnds(doc, string(got)); kept < len(doc)-replaced {
			t.Fatalf("only %d of %d bytes stayed\nfrom %q\ngot  %q", kept, len(doc), doc, got)
		}
		after, err := ParseManifest(got, v1.MediaTypeImageManifest)
		if err != nil {
			t.Fatalf("%v\nfrom %q\ngot  %q", err, doc, got)
		}
		want := maps.Clone(before.Annotations)
		if want == nil {
			want = make(map[string]string)
		}
		want["k"], want["l"] = "v", "w"
		if !maps.Equal(after.Annotations, want) {
			t.Fatalf("annotations %v, want %v", after.Annotations, want)
		}
	})
}

// commonEnds is the length of the longest common prefix of a and b, and of the longest common suffix of what is behind it.
func commonEnds(a, b string) int {
	n := min(len(a), len(b))
	p := 0
	for p < n && a[p] == b[p] {
		p++
	}
	s := 0
	for s < n-p && a[len(a)-1-s] == b[len(b)-1-s] {
		s++
	}
	return p + s
}

func digestOf(hex string) digest.Digest { return digest.Digest("sha256:" + hex) }

func TestMoveDescriptors(t *testing.T) {
	moves := map[digest.Digest]move{
		digestOf(hexA): {digestOf(hexB), 12345, []byte("blob")},
	}
	tests := []struct{ name, doc, want string }{
		{"moved", `{"manifests":[{"digest":"sha256:A","size":7}]}`, `{"manifests":[{"digest":"sha256:B","size":12345}]}`},
		{"other", `{"manifests":[{"digest":"sha256:C","size":7,"data":"eA=="}]}`, `{"manifests":[{"digest":"sha256:C","size":7,"data":"eA=="}]}`},
		{"any order and white space", "{ \"manifests\" :\n[ { \"data\" : \"eA==\" , \"size\"\t: 7 , \"digest\":\r\n\"sha256:A\" } ] }\n", "{ \"manifests\" :\n[ { \"data\" : \"YmxvYg==\" , \"size\"\t: 12345 , \"digest\":\r\n\"sha256:B\" } ] }\n"},
		{"escaped", `{"manifests":[{"dige\u0073t":"sha256\u003aA","siz\u0065":7}]}`, `{"manifests":[{"dige\u0073t":"sha256:B","siz\u0065":12345}]}`},
		{"twice", `{"manifests":[{"digest":"sha256:A","size":7},{"digest":"sha256:C","size":7},{"size":7,"digest":"sha256:A"}]}`, `{"manifests":[{"digest":"sha256:B","size":12345},{"digest":"sha256:C","size":7},{"size":12345,"digest":"sha256:B"}]}`},
		{"data null", `{"manifests":[{"digest":"sha256:A","size":7,"data":null}]}`, `{"manifests":[{"digest":"sha256:B","size":12345,"data":null}]}`},
		{"reference of an attestation", `{"manifests":[{"digest":"sha256:C","size":7,"annotations":{"vnd.docker.reference.digest":"sha256:A"}}]}`, `{"manifests":[{"digest":"sha256:C","size":7,"annotations":{"vnd.docker.reference.digest":"sha256:B"}}]}`},
		{"both", `{"manifests":[{"annotations":{"vnd.docker.reference.digest":"sha256:A"},"digest":"sha256:A","size":7}]}`, `{"manifests":[{"annotations":{"vnd.docker.reference.digest":"sha256:B"},"digest":"sha256:B","size":12345}]}`},
		{"other annotations stay", `{"manifests":[{"digest":"sha256:C","size":7,"annotations":{"digest":"sha256:A","x":"sha256:A"}}]}`, `{"manifests":[{"digest":"sha256:C","size":7,"annotations":{"digest":"sha256:A","x":"sha256:A"}}]}`},
		{"nested members stay", `{"manifests":[{"x":{"digest":"sha256:A","size":7},"y":["sha256:A"],"digest":"sha256:C","size":7}]}`, `{"manifests":[{"x":{"digest":"sha256:A","size":7},"y":["sha256:A"],"digest":"sha256:C","size":7}]}`},
		{"subject stays", `{"subject":{"digest":"sha256:A","size":7},"manifests":[],"x":{"manifests":[{"digest":"sha256:A","size":7}]}}`, `{"subject":{"digest":"sha256:A","size":7},"manifests":[],"x":{"manifests":[{"digest":"sha256:A","size":7}]}}`},
		{"annotations of the index stay", `{"annotations":{"vnd.docker.reference.digest":"sha256:A"},"manifests":[]}`, `{"annotations":{"vnd.docker.reference.digest":"sha256:A"},"manifests":[]}`},
		{"annotations null", `{"manifests":[{"annotations":null,"digest":"sha256:A","size":7}]}`, `{"manifests":[{"annotations":null,"digest":"sha256:B","size":12345}]}`},
		{"manifests null", `{"manifests":null}`, `{"manifests":null}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			full := strings.NewReplacer("A\"", hexA+`"`, "B\"", hexB+`"`, "C\"", hexC+`"`)
			doc := full.Replace(test.doc)
			got, err := moveDescriptors([]byte(doc), moves)
			if want := full.Replace(test.want); err != nil || string(got) != want {
				t.Errorf("%v\nfrom %q\ngot  %q\nwant %q", err, doc, got, want)
			}
		})
	}

	for name, doc := range map[string]string{
		"nothing":             ``,
		"no manifests":        `{}`,
		"manifests an object": `{"manifests":{}}`,
		"manifests a string":  `{"manifests":""}`,
		"element a string":    `{"manifests":["x"]}`,
		"no size":             `{"manifests":[{"digest":"sha256:` + hexA + `"}]}`,
		"cut short":           `{"manifests":[{"digest":"sha256:`,
		"trailing bytes":      `{"manifests":[]}]`,
	} {
		got, err := moveDescriptors([]byte(doc), moves)
		if err == nil {
			t.Errorf("%s: got %s", name, got)
		}
	}
}

// Of a random index only what names a moved digest changes.
func TestMoveDescriptorsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		moves := make(map[digest.Digest]move)
		for i := range 3 {
			blob := fmt.Sprintf("new %d", i)
			moves[digest.FromString(fmt.Sprint(i))] = move{digest.FromString(blob), int64(100 + i), []byte(blob)}
		}
		from, to := []string{}, []string{}
		for range rapid.IntRange(0, 6).Draw(t, "manifests") {
			own := digest.FromString(fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "own")))
			reference := digest.FromString(fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "reference")))
			members := []pair{
				{"mediaType", `"m"`},
				{"digest", `"@d"`},
				{"size", `@s`},
				{"platform", `{"os":"linux"}`},
				{"x", fmt.Sprintf(`{"digest":%q,"size":7}`, own)},
			}
			if rapid.Bool().Draw(t, "data") {
				members = append(members, pair{"data", `"@b"`})
			}
			if rapid.Bool().Draw(t, "annotated") {
				members = append(members, pair{"annotations", fmt.Sprintf(`{"a":%q,"vnd.docker.reference.digest":"@r","z":""}`, own)})
			}
			template := sprinkle(t, compact(rapid.Permutation(members).Draw(t, "order")))
			fill := func(d digest.Digest, size int64, data string, r digest.Digest) string {
				return strings.NewReplacer("@d", d.String(), "@s", fmt.Sprint(size), "@b", data, "@r", r.String()).Replace(template)
			}
			from = append(from, fill(own, 7, "b2xk", reference))
			newOwn, newSize, newData, newReference := own, int64(7), "b2xk", reference
			if m, ok := moves[own]; ok {
				data, _ := stdjson.Marshal(m.Bytes)
				newOwn, newSize, newData = m.Digest, m.Size, strings.Trim(string(data), `"`)
			}
			if m, ok := moves[reference]; ok {
				newReference = m.Digest
			}
			to = append(to, fill(newOwn, newSize, newData, newReference))
		}
		doc, want := indexOf(from...), indexOf(to...)
		got, err := moveDescriptors([]byte(doc), moves)
		if err != nil || string(got) != want {
			t.Fatalf("%v\nfrom %s\ngot  %s\nwant %s", err, doc, got, want)
		}
		if _, err := ParseIndex(got, ""); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAppendDescriptors(t *testing.T) {
	tests := []struct{ name, doc, want string }{
		{"empty", `{"manifests":[]}`, `{"manifests":[{"d":{"e":[1,{}]}},{"f":"g: h"}]}`},
		{"null", `{"manifests":null,"x":1}`, `{"manifests":[{"d":{"e":[1,{}]}},{"f":"g: h"}],"x":1}`},
		{"pretty, null", "{\n \"manifests\": null\n}", "{\n \"manifests\": [\n  {\n   \"d\": {\n    \"e\": [\n     1,\n     {}\n    ]\n   }\n  },\n  {\n   \"f\": \"g: h\"\n  }\n ]\n}"},
		{"pretty, elements on a line each", "{\n  \"manifests\": [\n    {\"a\": 1, \"b\": 2}\n  ]\n}", "{\n  \"manifests\": [\n    {\"a\": 1, \"b\": 2},\n    {\"d\": {\"e\": [1, {}]}},\n    {\"f\": \"g: h\"}\n  ]\n}"},
		{"pretty, brackets hugging", "{\n  \"manifests\": [{\n    \"a\": 1\n  }]\n}", "{\n  \"manifests\": [{\n    \"a\": 1\n  }, {\n    \"d\": {\n      \"e\": [\n        1,\n        {}\n      ]\n    }\n  }, {\n    \"f\": \"g: h\"\n  }]\n}"},
		{"padded", `{"manifests": [ {"a": 1, "b": 2} ]}`, `{"manifests": [ {"a": 1, "b": 2}, {"d": {"e": [1, {}]}}, {"f": "g: h"} ]}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := appendDescriptors([]byte(test.doc), [][]byte{[]byte(`{"d":{"e":[1,{}]}}`), []byte(`{"f":"g: h"}`)})
			if err != nil || string(got) != test.want {
				t.Errorf("%v\nfrom %s\ngot  %s\nwant %s", err, test.doc, got, test.want)
			}
		})
	}

	for name, doc := range map[string]string{
		"nothing":             ``,
		"no manifests":        `{}`,
		"manifests an object": `{"manifests":{}}`,
		"element a string":    `{"manifests":["x"]}`,
	} {
		got, err := appendDescriptors([]byte(doc), [][]byte{[]byte(`{}`)})
		if err == nil {
			t.Errorf("%s: got %s", name, got)
		}
	}
	for _, d := range []string{``, `null`, `[]`, `{}{}`, `{"a":1,"a":2}`} {
		got, err := appendDescriptors([]byte(`{"manifests":[]}`), [][]byte{[]byte(d)})
		if err == nil {
			t.Errorf("descriptor %s: got %s", d, got)
		}
	}
}

// However encoding/json or Python printed an index, it comes out as they would print it with the descriptors appended.
func TestAppendDescriptorsAsPrinted(t *testing.T) {
	for name, printer := range printers {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				draw := func(label string, least int) (list []string) {
					for i := range rapid.IntRange(least, 3).Draw(t, label) {
						list = append(list, descriptorOf("m", fmt.Sprintf("%064d", i), `,"x":`+drawValue(t, 0)))
					}
					return list
				}
				old, fresh := draw("old", 0), draw("new", 1)
				doc, want := printer(indexOf(old...)), printer(indexOf(slices.Concat(old, fresh)...))
				var descriptors [][]byte
				for _, d := range fresh {
					descriptors = append(descriptors, []byte(d))
				}
				got, err := appendDescriptors([]byte(doc), descriptors)
				if err != nil || string(got) != want {
					t.Fatalf("%v\nfrom %s\ngot  %s\nwant %s", err, doc, got, want)
				}
			})
		})
	}
}

// A spot is where the value of a member, or an element, is, as encoding/json finds it.
type spot struct {
	name string
	span
}

// spots finds the members of an object, or the elements of an array, in a document that is well-formed.
func spots(t *testing.T, doc []byte, in span) (found []spot) {
	t.Helper()
	dec := stdjson.NewDecoder(bytes.NewReader(in.of(doc)))
	open, err := dec.Token()
	for err == nil && dec.More() {
		s := spot{}
		if open == stdjson.Delim('{') {
			var name stdjson.Token
			if name, err = dec.Token(); err != nil {
				break
			}
			s.name = name.(string)
		}
		var value stdjson.RawMessage
		err = dec.Decode(&value)
		end := in.start + int(dec.InputOffset())
		s.span = span{end - len(value), end}
		found = append(found, s)
	}
	if err != nil {
		t.Fatalf("encoding/json: %v\nin %q", err, in.of(doc))
	}
	return found
}

// named gives the member of that name.
func named(found []spot, name string) (spot, bool) {
	i := slices.IndexFunc(found, func(s spot) bool { return s.name == name })
	if i < 0 {
		return spot{}, false
	}
	return found[i], true
}

// keeps fails the test unless got is doc byte for byte, but for the values of annotations that had another one, and one text that is
// put in: behind the last annotation, or in the place of none, or behind the last member.
func keeps(t *testing.T, doc, got []byte, set []Annotation) {
	t.Helper()
	rest := got
	kept := func(text []byte) {
		t.Helper()
		var ok bool
		if rest, ok = bytes.CutPrefix(rest, text); !ok {
			t.Fatalf("%q is not kept\nfrom %q\ngot  %q", text, doc, got)
		}
	}
	top := spots(t, doc, span{0, len(doc)})
	annotations, found := named(top, "annotations")
	var old []spot
	if found && doc[annotations.start] == '{' {
		old = spots(t, doc, annotations.span)
	}
	at, fresh := 0, 0
	for _, a := range set {
		if _, ok := named(old, a.Key); !ok {
			fresh++
		}
	}
	for _, m := range old {
		i := slices.IndexFunc(set, func(a Annotation) bool { return a.Key == m.name })
		var was string
		if err := stdjson.Unmarshal(m.of(doc), &was); err != nil {
			t.Fatal(err)
		}
		if i < 0 || was == set[i].Value {
			continue
		}
		kept(doc[at:m.start])
		var now stdjson.RawMessage
		if err := stdjson.NewDecoder(bytes.NewReader(rest)).Decode(&now); err != nil {
			t.Fatal(err)
		}
		kept(now)
		at = m.end
	}
	if fresh == 0 {
		if kept(doc[at:]); len(rest) > 0 {
			t.Fatalf("%q is added\nfrom %q\ngot  %q", rest, doc, got)
		}
		return
	}
	in := span{0, len(doc)} // what the text takes the place of
	switch {
	case len(old) > 0:
		in.start = old[len(old)-1].end
		in.end = in.start
	case found:
		in = annotations.span
	case len(top) > 0:
		in.start = top[len(top)-1].end
		in.end = in.start
	default:
		in.start, in.end = bytes.IndexByte(doc, '{'), bytes.IndexByte(doc, '}')+1
	}
	kept(doc[at:in.start])
	if !bytes.HasSuffix(rest, doc[in.end:]) {
		t.Fatalf("%q is not kept\nfrom %q\ngot  %q", doc[in.end:], doc, got)
	}
}

// FuzzSetAnnotations: of a manifest nothing but the annotations changes, not a byte; it has them then; and again changes nothing.
func FuzzSetAnnotations(f *testing.F) {
	odd := manifestOf(`,"annotations": {"\u006b" : "old" , "z":"\u0077"}`)
	f.Add([]byte(odd+"\r\n "), "k", "v", "z", "w")
	f.Add([]byte(" "+odd+" "), "k", "v", "new", "w")
	for _, annotations := range []string{"", `,"annotations":null`, `,"annotations":{}`, `,"annotations":{ "k" : "x" }`, `,"annotations":{"x":"y"}`} {
		f.Add([]byte(manifestOf(annotations)), "k", "v", "l", "w")
		f.Add([]byte(indented(manifestOf(annotations), "\t")), "k", "v", "l", "w")
	}
	f.Add([]byte("{ }"), `"`, "\x00", "", "\u2028")
	f.Add([]byte("{\r\n\t\"annotations\":{\n\n}}"), "a", "b", "c", "d")
	f.Fuzz(func(t *testing.T, doc []byte, key1, value1, key2, value2 string) {
		set := []Annotation{{key1, value1}, {key2, value2}}
		before := bytes.Clone(doc)
		got, err := setAnnotations(doc, set)
		if !bytes.Equal(doc, before) {
			t.Fatalf("the document that was given is changed")
		}
		old, strict := ParseManifest(doc, "")
		if err == nil && strict == nil {
			keeps(t, doc, got, set)
		}
		if err != nil {
			if strict == nil && key1 != key2 && validUTF8(key1, value1, key2, value2) {
				t.Fatalf("%v\nfrom %q", err, doc)
			}
			return
		}
		if again, err := setAnnotations(got, set); err != nil || !bytes.Equal(again, got) {
			t.Fatalf("a second time: %v\nfrom  %q\ngot   %q\nagain %q", err, doc, got, again)
		}
		if strict != nil || len(got) > MaxManifest {
			return
		}
		parsed, err := ParseManifest(got, "")
		if err != nil {
			t.Fatalf("%v\nfrom %q\ngot  %q", err, doc, got)
		}
		if old.Annotations == nil {
			old.Annotations = make(map[string]string)
		}
		old.Annotations[key1], old.Annotations[key2] = value1, value2
		a, _ := stdjson.Marshal(old)
		b, _ := stdjson.Marshal(parsed)
		if !bytes.Equal(a, b) {
			t.Fatalf("from %q\ngot  %q\nis   %s\nwant %s", doc, got, b, a)
		}
	})
}

func validUTF8(texts ...string) bool {
	return !slices.ContainsFunc(texts, func(s string) bool { return strings.ToValidUTF8(s, "") != s })
}

// listOf finds the value of `manifests`.
func listOf(t *testing.T, doc []byte) span {
	t.Helper()
	list, ok := named(spots(t, doc, span{0, len(doc)}), "manifests")
	if !ok {
		t.Fatalf("no manifests in %q", doc)
	}
	return list.span
}

// moved is what moveDescriptors has to make of an index, by encoding/json.
func moved(t *testing.T, doc []byte, moves map[digest.Digest]move) []byte {
	t.Helper()
	list := listOf(t, doc)
	if doc[list.start] != '[' {
		return doc
	}
	var edits []edit
	text := func(s span) (text string) {
		stdjson.Unmarshal(s.of(doc), &text)
		return text
	}
	for _, d := range spots(t, doc, list) {
		members := spots(t, doc, d.span)
		if annotations, ok := named(members, "annotations"); ok && doc[annotations.start] == '{' {
			if reference, ok := named(spots(t, doc, annotations.span), "vnd.docker.reference.digest"); ok {
				if to, ok := moves[digest.Digest(text(reference.span))]; ok {
					edits = append(edits, edit{reference.span, fmt.Appendf(nil, "%q", to.Digest)})
				}
			}
		}
		own, _ := named(members, "digest")
		to, ok := moves[digest.Digest(text(own.span))]
		if !ok {
			continue
		}
		size, _ := named(members, "size")
		edits = append(edits, edit{own.span, fmt.Appendf(nil, "%q", to.Digest)}, edit{size.span, fmt.Append(nil, to.Size)})
		if data, ok := named(members, "data"); ok && doc[data.start] == '"' {
			blob, _ := stdjson.Marshal(to.Bytes)
			edits = append(edits, edit{data.span, blob})
		}
	}
	slices.SortFunc(edits, func(a, b edit) int { return b.start - a.start })
	for _, e := range edits { // the last first
		doc = slices.Concat(doc[:e.start], e.text, doc[e.end:])
	}
	return doc
}

// FuzzEditDescriptors: an index from which descriptors are taken, or none, or which has another media type, is otherwise as it was.
func FuzzEditDescriptors(f *testing.F) {
	for _, n := range []int{0, 1, 2, 3} {
		var list []string
		for i := range n {
			list = append(list, descriptorOf("m", fmt.Sprintf("%064x", i), ""))
		}
		for drop := range uint64(1) << n {
			f.Add([]byte(indexOf(list...)), drop, "m")
			f.Add([]byte(indented(indexOf(list...), "\t")), drop, v1.MediaTypeImageIndex)
		}
	}
	f.Add([]byte(`{"manifests":null}`), uint64(0), `"`)
	f.Add([]byte("{ \"manifests\" : [ ] , \"mediaType\" : \"x\" }\n"), uint64(0), "\u2028<")
	f.Fuzz(func(t *testing.T, doc []byte, drop uint64, mediaType string) {
		old, strict := ParseIndex(doc, "")
		before := bytes.Clone(doc)
		dropped := func(i int) bool { return drop>>(i%64)&1 == 1 }
		same, err := editDescriptors(doc, func(_ int, d []byte) ([]byte, error) { return d, nil })
		if strict != nil {
			return
		}
		if err != nil || len(old.Manifests) > 0 && !bytes.Equal(same, doc) {
			t.Fatalf("nothing edited: %v\nfrom %q\ngot  %q", err, doc, same)
		}
		got, err := editDescriptors(doc, func(i int, d []byte) ([]byte, error) {
			if dropped(i) {
				return nil, nil
			}
			return d, nil
		})
		if err != nil || !bytes.Equal(doc, before) {
			t.Fatalf("%v\nfrom %q\nit is %q", err, before, doc)
		}
		list := listOf(t, doc)
		if !bytes.HasPrefix(got, doc[:list.start]) || !bytes.HasSuffix(got, doc[list.end:]) {
			t.Fatalf("from %q\ngot  %q", doc, got)
		}
		var texts []string
		if doc[list.start] == '[' {
			for i, d := range spots(t, doc, list) {
				if !dropped(i) {
					texts = append(texts, string(d.of(doc)))
				}
			}
			var kept []string
			for _, d := range spots(t, got, listOf(t, got)) {
				kept = append(kept, string(d.of(got)))
			}
			if !slices.Equal(kept, texts) {
				t.Fatalf("from %q\ngot  %q\nwant %q", doc, got, texts)
			}
		}
		if _, err := ParseIndex(got, ""); err != nil {
			t.Fatalf("%v\nfrom %q\ngot  %q", err, doc, got)
		}

		compact, err := descriptorTexts(doc)
		if err != nil || len(compact) != len(old.Manifests) {
			t.Fatalf("%d texts of %d: %v\nin %q", len(compact), len(old.Manifests), err, doc)
		}
		twice, err := appendDescriptors(doc, compact)
		if err != nil {
			t.Fatalf("%v\nfrom %q", err, doc)
		}
		if again, err := ParseIndex(twice, ""); err != nil || len(again.Manifests) != 2*len(old.Manifests) {
			t.Fatalf("%v\nfrom %q\ngot  %q", err, doc, twice)
		}

		if !validUTF8(mediaType) {
			return
		}
		set, err := setString(doc, "mediaType", mediaType)
		if err != nil {
			t.Fatalf("%v\nfrom %q", err, doc)
		}
		if again, err := setString(set, "mediaType", mediaType); err != nil || !bytes.Equal(again, set) {
			t.Fatalf("a second time: %v\nfrom  %q\ngot   %q\nagain %q", err, doc, set, again)
		}
		was, had := named(spots(t, doc, span{0, len(doc)}), "mediaType")
		now, ok := named(spots(t, set, span{0, len(set)}), "mediaType")
		var value string
		if stdjson.Unmarshal(now.of(set), &value); !ok || value != mediaType {
			t.Fatalf("it is %q\nfrom %q\ngot  %q", value, doc, set)
		}
		if had && string(set) != string(doc[:was.start])+string(now.of(set))+string(doc[was.end:]) || !had && commonEnds(string(doc), string(set)) < len(doc) {
			t.Fatalf("from %q\ngot  %q", doc, set)
		}
	})
}

// FuzzMoveDescriptors: of an index nothing but what names a moved digest changes, not a byte.
func FuzzMoveDescriptors(f *testing.F) {
	f.Add([]byte(indexOf(descriptorOf("m", hexA, `,"data":"eA==","annotations":{"vnd.docker.reference.digest":"sha256:`+hexA+`"}`), descriptorOf("m", hexC, ""))))
	f.Add([]byte(indented(indexOf(descriptorOf("m", hexC, ""), descriptorOf("m", hexA, `,"x":{"digest":1}`)), " ")))
	f.Add([]byte(`{"manifests":[{"size":null,"digest":"sha256:` + hexA + `"}]}`))
	moves := map[digest.Digest]move{digestOf(hexA): {digestOf(hexB), 4, []byte("blob")}}
	f.Fuzz(func(t *testing.T, doc []byte) {
		before := bytes.Clone(doc)
		got, err := moveDescriptors(doc, moves)
		if !bytes.Equal(doc, before) {
			t.Fatalf("the document that was given is changed")
		}
		old, strict := ParseIndex(doc, "")
		if err != nil {
			if strict == nil {
				t.Fatalf("%v\nfrom %q", err, doc)
			}
			return
		}
		if again, err := moveDescriptors(got, moves); err != nil || !bytes.Equal(again, got) {
			t.Fatalf("a second time: %v\nfrom  %q\ngot   %q\nagain %q", err, doc, got, again)
		}
		appended, err := appendDescriptors(doc, [][]byte{[]byte(descriptorOf("new", hexC, ""))})
		if err != nil && strict == nil {
			t.Fatalf("append: %v\nfrom %q", err, doc)
		}
		if strict != nil {
			return
		}
		if want := moved(t, doc, moves); !bytes.Equal(got, want) {
			t.Fatalf("from %q\ngot  %q\nwant %q", doc, got, want)
		}
		list, err := parseRows(t.Context(), doc)
		if err != nil {
			t.Fatal(err)
		}
		rowByRow, now, err := list.moveRows(doc, moves)
		if err != nil || !bytes.Equal(rowByRow, got) {
			t.Fatalf("row by row: %v\nfrom %q\ngot  %q\nwant %q", err, doc, rowByRow, got)
		}
		if read, err := parseRows(t.Context(), got); now != nil && (err != nil || !reflect.DeepEqual(*now, read)) {
			t.Fatalf("rows: %v\nfrom %q\ngot  %+v\nwant %+v", err, doc, *now, read)
		}
		if before, after := listOf(t, doc), listOf(t, appended); !bytes.HasPrefix(appended, doc[:before.start]) || !bytes.HasSuffix(appended, doc[before.end:]) {
			t.Fatalf("append: from %q\ngot %q", doc, appended)
		} else if n := len(old.Manifests); n > 0 && !bytes.HasPrefix(after.of(appended), doc[before.start:spots(t, doc, before)[n-1].end]) {
			t.Fatalf("append: from %q\ngot %q", doc, appended)
		}
		longer, err := ParseIndex(appended, "")
		if err != nil || len(longer.Manifests) != len(old.Manifests)+1 || longer.Manifests[len(old.Manifests)].Digest != digestOf(hexC) {
			t.Fatalf("append: %v\nfrom %q\ngot  %q", err, doc, appended)
		}
		parsed, err := ParseIndex(got, "")
		if err != nil {
			t.Fatalf("%v\nfrom %q\ngot  %q", err, doc, got)
		}
		for i, d := range old.Manifests {
			if d.Digest == digestOf(hexA) {
				d.Digest, d.Size = digestOf(hexB), 4
				if d.Data != nil {
					d.Data = []byte("blob")
				}
			}
			if d.Annotations[referenceDigest] == "sha256:"+hexA {
				d.Annotations[referenceDigest] = "sha256:" + hexB
			}
			old.Manifests[i] = d
		}
		a, _ := stdjson.Marshal(old)
		b, _ := stdjson.Marshal(parsed)
		if !bytes.Equal(a, b) {
			t.Fatalf("from %q\ngot  %q\nis   %s\nwant %s", doc, got, b, a)
		}
	})
}

func BenchmarkSetAnnotations(b *testing.B) {
	doc := []byte(manifestOfLayers(50))
	b.SetBytes(int64(len(doc)))
	for b.Loop() {
		if _, err := setAnnotations(doc, []Annotation{{"signature", hexA}, {"vendorpub", hexB}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMoveDescriptors(b *testing.B) {
	doc := largeIndex()
	for _, n := range []int{1, 100000} {
		moves := make(map[digest.Digest]move)
		for i := range n {
			moves[digestOf(fmt.Sprintf("%064x", i))] = move{digestOf(fmt.Sprintf("%064x", i+1<<30)), 999, nil}
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(len(doc)))
			for b.Loop() {
				if _, err := moveDescriptors(doc, moves); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendDescriptors(b *testing.B) {
	doc := largeIndex()
	b.SetBytes(int64(len(doc)))
	for b.Loop() {
		if _, err := appendDescriptors(doc, [][]byte{[]byte(descriptorOf("m", hexA, ""))}); err != nil {
			b.Fatal(err)
		}
	}
}
