package layout

import (
	stdjson "encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

var (
	hexA = strings.Repeat("a", 64)
	hexB = strings.Repeat("b", 64)
	hexC = strings.Repeat("c", 64)
)

// descriptorOf is a descriptor of hex, with more members behind its own ones.
func descriptorOf(mediaType, hex, more string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":"sha256:%s","size":7%s}`, mediaType, hex, more)
}

func indexOf(manifests ...string) string {
	return `{"schemaVersion":2,"manifests":[` + strings.Join(manifests, ",") + `]}`
}

func manifestOf(more string) string {
	return `{"schemaVersion":2,"config":` + descriptorOf(v1.MediaTypeImageConfig, hexA, "") +
		`,"layers":[` + descriptorOf(v1.MediaTypeImageLayerGzip, hexB, "") + `]` + more + `}`
}

func TestParseIndex(t *testing.T) {
	const oci = v1.MediaTypeImageIndex
	m := func(more string) string { return indexOf(descriptorOf(v1.MediaTypeImageManifest, hexA, more)) }
	size := func(text string) string { return strings.Replace(m(""), `"size":7`, `"size":`+text, 1) }
	deep := func(levels int) string {
		// The top object is one level.
		return `{"schemaVersion":2,"manifests":[],"x":` + strings.Repeat("[", levels-1) + strings.Repeat("]", levels-1) + `}`
	}
	tests := []struct {
		name      string
		doc       string
		mediaType string
		err       string // what the error contains, "" if there is none
	}{
		{"one manifest", m(""), "", ""},
		{"all members", m(`,"urls":["http://x"],"annotations":{"a":"b"},"data":"eA==","platform":{"architecture":"arm","os":"linux","os.version":"1","os.features":["f"],"variant":"v7","x":1},"artifactType":"t"`), "", ""},
		{"as Go writes nil", `{"schemaVersion":2,"manifests":null,"subject":null,"annotations":null}`, "", ""},
		{"nil in a descriptor", m(`,"urls":null,"annotations":null,"data":null,"platform":null`), "", ""},
		{"white space around", " \r\n\t" + m("") + "\n\n", "", ""},
		{"mediaType absent in a nested one", m(""), oci, ""},
		{"mediaType present", `{"mediaType":"` + oci + `",` + m("")[1:], oci, ""},
		{"mediaType in index.json", `{"mediaType":"` + oci + `",` + m("")[1:], "", ""},
		{"Docker list", `{"mediaType":"` + MediaTypeDockerList + `",` + m("")[1:], MediaTypeDockerList, ""},
		{"unknown member", m(`,"x":[{"digest":1},1e999,123456789012345678901234567890,-0.5E+7]`), "", ""},
		{"size zero", size("0"), "", ""},
		{"largest size", size("9223372036854775807"), "", ""},
		{"depth 64", deep(64), "", ""},
		{"same name in two objects", m(`,"x":{"a":1},"y":{"a":1}`), "", ""},
		{"escaped name", strings.Replace(m(""), `"digest"`, `"dige\u0073t"`, 1), "", ""},
		{"names in maps and in unknown objects are free", m(`,"annotations":{"Digest":"","digest":"","SIZE":""},"x":{"Digest":1,"manifests":2}`), "", ""},
		{"names of other objects", m(`,"Manifests":1,"OS":2,"Layers":3`), "", ""},
		{"names that fold to no other", m(`,"digests":1,"siz":2,"s\u0131ze":3`), "", ""},
		{"surrogate pair", m(`,"annotations":{"a":"\ud83d\ude00"}`), "", ""},

		{"in other case", m(`,"Digest":1`), "", `manifests[0].Digest: some programs take this for the member "digest"`},
		{"with a long s", m(`,"dige\u017ft":1`), "", `some programs take this for the member "digest"`},
		{"up to a NUL", m(`,"digest\u0000x":1`), "", `some programs take this for the member "digest"`},
		{"of the index", `{"schemaVersion":2,"manife\u017ft\u017f":[],"manifests":[]}`, "", `["manifeſtſ"]: some programs take this for the member "manifests"`},
		{"of a platform", m(`,"platform":{"os":"linux","Architecture":"x"}`), "", `manifests[0].platform.Architecture: some programs take this for the member "architecture"`},
		{"of a manifest in an index", `{"schemaVersion":2,"Layers":[],"manifests":[]}`, "", `some programs take this for the member "layers"`},
		{"of a subject", `{"schemaVersion":2,"manifests":[],"subject":{"Data":""}}`, "", `subject.Data: some programs take this for the member "data"`},
		{"subject with other data", `{"schemaVersion":2,"manifests":[],"subject":` + descriptorOf("m", hexA, `,"data":"eA=="`) + `}`, "", "the data inlined in its descriptor is not the blob's"},

		{"empty", "", "", "the document is empty"},
		{"white space only", " \n", "", "the document is empty"},
		{"null", "null", "", "found null, want an object"},
		{"array", "[]", "", "found an array, want an object"},
		{"not JSON", "hello", "", "invalid character 'h'"},
		{"cut short", m("")[:len(m(""))-1], "", "ends too early"},
		{"two documents", m("") + m(""), "", "after the end"},
		{"trailing comma", m("") + ",", "", "after the end"},
		{"trailing NUL", m("") + "\x00", "", "after the end"},
		{"BOM", "\ufeff" + m(""), "", "byte order mark"},
		{"comment", "{/**/" + m("")[1:], "", "invalid character '/'"},
		{"invalid UTF-8", m(`,"annotations":{"a":"` + "\xff" + `"}`), "", "invalid UTF-8"},
		{"invalid UTF-8 in a skipped name", m(`,"` + "\xc0\x80" + `":1`), "", "invalid UTF-8"},
		{"lone surrogate", m(`,"x":"\ud800"`), "", "manifests[0].x: invalid surrogate"},
		{"lone low surrogate", m(`,"x":"\udc00"`), "", "invalid"},
		{"depth 65", deep(65), "", "nested more than 64 deep"},
		{"depth 1000000", deep(1000000), "", "nested more than 64 deep"},

		{"duplicate", `{"schemaVersion":2,"schemaVersion":2,"manifests":[]}`, "", "schemaVersion: there are two"},
		{"duplicate digest", m(`,"digest":"sha256:` + hexA + `"`), "", "manifests[0].digest: there are two"},
		{"duplicate, escaped", m(`,"dige\u0073t":"sha256:` + hexB + `"`), "", "manifests[0].digest: there are two"},
		{"duplicate annotation", m(`,"annotations":{"a":"1","\u0061":"2"}`), "", "manifests[0].annotations.a: there are two"},
		{"duplicate in a skipped value", m(`,"x":[{"y":{"a":1,"a":1}}]`), "", "manifests[0].x[0].y.a: there are two"},

		{"no manifests", `{"schemaVersion":2}`, "", "manifests is missing"},
		{"manifests an object", `{"schemaVersion":2,"manifests":{}}`, "", "manifests: found an object, want an array"},
		{"manifest null", indexOf("null"), "", "manifests[0]: mediaType is missing"},
		{"manifest a string", indexOf(descriptorOf("x", hexA, ""), `"x"`), "", "manifests[1]: found a string, want an object"},
		{"no schemaVersion", `{"manifests":[]}`, "", "schemaVersion is missing"},
		{"schemaVersion 1", `{"schemaVersion":1,"manifests":[]}`, "", "schemaVersion: 1 is not supported"},
		{"schemaVersion 0", `{"schemaVersion":0,"manifests":[]}`, "", "schemaVersion: 0 is not supported"},
		{"schemaVersion 2.0", `{"schemaVersion":2.0,"manifests":[]}`, "", "schemaVersion: 2.0 is not a whole number"},
		{"schemaVersion a string", `{"schemaVersion":"2","manifests":[]}`, "", "schemaVersion: found a string, want a number"},
		{"no mediaType in a descriptor", indexOf(`{"digest":"sha256:` + hexA + `","size":1}`), "", "manifests[0]: mediaType is missing"},
		{"empty mediaType", indexOf(descriptorOf("", hexA, "")), "", "manifests[0]: mediaType is missing"},
		{"no size", strings.Replace(m(""), `,"size":7`, "", 1), "", "manifests[0]: size is missing"},
		{"no digest", indexOf(`{"mediaType":"x","size":1}`), "", "manifests[0]: digest is missing"},

		{"size negative", size("-1"), "", "manifests[0].size: -1 is not a whole number"},
		{"size -0", size("-0"), "", "-0 is not"},
		{"size 1e3", size("1e3"), "", "manifests[0].size: 1e3 is not a whole number"},
		{"size 1.0", size("1.0"), "", "1.0 is not a whole number"},
		{"size 2^63", size("9223372036854775808"), "", "9223372036854775808 is too large"},
		{"size of 1000 digits", size(strings.Repeat("9", 1000)), "", "is too large"},
		{"size 007", size("007"), "", "manifests[0]"},
		{"size a string", size(`"7"`), "", "manifests[0].size: found a string, want a number"},
		{"size null", size(`null`), "", "manifests[0].size: found null, want a number"},

		{"digest malformed", strings.Replace(m(""), hexA, "../../x", 1), "", `manifests[0].digest: "sha256:../../x" is not a digest`},
		{"digest a number", strings.Replace(m(""), `"sha256:`+hexA+`"`, "1", 1), "", "manifests[0].digest: found a number"},
		{"annotation a number", m(`,"annotations":{"a.b":1}`), "", `manifests[0].annotations["a.b"]: found a number, want a string`},
		{"annotation null", m(`,"annotations":{"a":null}`), "", "found null, want a string"},
		{"annotations an array", m(`,"annotations":[]`), "", "manifests[0].annotations: found an array"},
		{"urls a string", m(`,"urls":"x"`), "", "manifests[0].urls: found a string, want an array"},
		{"platform a string", m(`,"platform":"linux"`), "", "manifests[0].platform: found a string"},
		{"os a boolean", m(`,"platform":{"os":true}`), "", "manifests[0].platform.os: found a boolean, want a string"},
		{"data not in base64", m(`,"data":"a"`), "", "manifests[0].data: not in base64"},
		{"data in base64url", m(`,"data":"_-8="`), "", "not in base64"},
		{"data with loose bits", m(`,"data":"eB=="`), "", "not in base64"},
		{"data with a line end", m(`,"data":"eA==\n"`), "", "not in base64"},
		{"subject malformed", `{"schemaVersion":2,"manifests":[],"subject":{}}`, "", "subject: mediaType is missing"},

		{"CVE-2021-41190 layers", `{"schemaVersion":2,"manifests":[],"layers":[]}`, oci, "layers belongs in a manifest"},
		{"CVE-2021-41190 layers null", `{"schemaVersion":2,"manifests":[],"layers":null}`, "", "layers belongs in a manifest"},
		{"CVE-2021-41190 config", `{"schemaVersion":2,"config":{},"manifests":[]}`, oci, "config belongs in a manifest"},
		{"schema 1", `{"schemaVersion":2,"fsLayers":[],"manifests":[]}`, oci, "fsLayers belongs in a manifest"},
		{"other mediaType", `{"mediaType":"` + oci + `",` + m("")[1:], MediaTypeDockerList, "mediaType: "},
		{"mediaType of a manifest", `{"mediaType":"` + v1.MediaTypeImageManifest + `",` + m("")[1:], "", "mediaType: "},
		{"mediaType empty", `{"mediaType":"",` + m("")[1:], oci, "mediaType: "},
		{"mediaType null", `{"mediaType":null,` + m("")[1:], oci, "mediaType: found null"},
		{"asked for a manifest", m(""), v1.MediaTypeImageManifest, "not the media type of an index"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParseIndex([]byte(test.doc), test.mediaType)
			checkParse(t, err, test.err)
		})
	}
}

func checkParse(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), want) {
		t.Fatalf("error %v, want an ErrCorrupt with %q", err, want)
	}
	if len(err.Error()) > 400 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
	if strings.HasPrefix(err.Error(), "corrupt") {
		t.Errorf("error %v names its kind", err)
	}
}

func TestParseIndexReadsAll(t *testing.T) {
	doc := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","artifactType":"at","manifests":[` +
		descriptorOf("m", hexA, `,"urls":["u","v"],"annotations":{"a":"b","":"\n"},"data":"eA==","platform":{"architecture":"arm","os":"linux","os.version":"1","os.features":["f"],"variant":"v7"},"artifactType":"t"`) +
		`],"subject":` + descriptorOf("s", hexB, "") + `,"annotations":{"k":"v"}}`
	got, err := ParseIndex([]byte(doc), "")
	if err != nil {
		t.Fatal(err)
	}
	want := new(v1.Index)
	if err := stdjson.Unmarshal([]byte(doc), want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseManifest(t *testing.T) {
	const oci = v1.MediaTypeImageManifest
	tests := []struct {
		name      string
		doc       string
		mediaType string
		err       string
	}{
		{"OCI", manifestOf(""), oci, ""},
		{"all members", manifestOf(`,"mediaType":"` + oci + `","artifactType":"a","subject":` + descriptorOf("s", hexA, "") + `,"annotations":{"a":"b"},"history":[]`), oci, ""},
		{"Docker", manifestOf(`,"mediaType":"` + MediaTypeDockerManifest + `"`), MediaTypeDockerManifest, ""},
		{"layers null", `{"schemaVersion":2,"layers":null,"config":` + descriptorOf("c", hexA, "") + `}`, oci, ""},
		{"Docker's body under OCI", manifestOf(`,"mediaType":"` + MediaTypeDockerManifest + `"`), oci, "mediaType: "},
		{"asked for an index", manifestOf(""), v1.MediaTypeImageIndex, "not the media type of an image manifest"},
		{"no config", `{"schemaVersion":2,"layers":[]}`, oci, "config is missing"},
		{"config null", `{"schemaVersion":2,"config":null,"layers":[]}`, oci, "config: mediaType is missing"},
		{"config an array", `{"schemaVersion":2,"config":[],"layers":[]}`, oci, "config: found an array"},
		{"no layers", `{"schemaVersion":2,"config":` + descriptorOf("c", hexA, "") + `}`, oci, "layers is missing"},
		{"layers a string", `{"schemaVersion":2,"layers":""}`, oci, "layers: found a string"},
		{"layer malformed", `{"schemaVersion":2,"layers":[{}]}`, oci, "layers[0]: mediaType is missing"},
		{"schemaVersion missing", `{"layers":[]}`, oci, "schemaVersion is missing"},
		{"CVE-2021-41190", manifestOf(`,"manifests":[]`), oci, "manifests belongs in an index"},
		{"CVE-2021-41190 null", manifestOf(`,"manifests":null`), oci, "manifests belongs in an index"},
		{"fsLayers", manifestOf(`,"fsLayers":[]`), oci, "schema 1"},
		{"signatures", manifestOf(`,"signatures":[]`), oci, "schema 1"},
		{"duplicate annotations", manifestOf(`,"annotations":{},"annotations":{}`), oci, "annotations: there are two"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParseManifest([]byte(test.doc), test.mediaType)
			checkParse(t, err, test.err)
		})
	}
}

func TestParseConfig(t *testing.T) {
	doc := `{"created":"not a time","architecture":"arm","os":"linux","os.version":"1","os.features":["f"],"variant":"v7","config":{"Env":[1,{}]},` +
		`"rootfs":{"type":"layers","diff_ids":["sha256:` + hexA + `","sha256:` + hexB + `"],"x":1},"history":5}`
	got, err := ParseConfig([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	want := &v1.Image{
		Platform: v1.Platform{Architecture: "arm", OS: "linux", OSVersion: "1", OSFeatures: []string{"f"}, Variant: "v7"},
	}
	want.RootFS.Type = "layers"
	for _, hex := range []string{hexA, hexB} {
		d, err := ParseDigest("sha256:" + hex)
		if err != nil {
			t.Fatal(err)
		}
		want.RootFS.DiffIDs = append(want.RootFS.DiffIDs, d)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}

	tests := []struct{ name, doc, err string }{
		{"empty", `{}`, ""},
		{"nil", `{"rootfs":{"diff_ids":null},"os.features":null}`, ""},
		{"null", `null`, "found null, want an object"},
		{"number", `1`, "found a number, want an object"},
		{"os a number", `{"os":1}`, "os: found a number"},
		{"os.features a string", `{"os.features":"f"}`, `["os.features"]: found a string`},
		{"rootfs an array", `{"rootfs":[]}`, "rootfs: found an array"},
		{"diff_id malformed", `{"rootfs":{"diff_ids":["x"]}}`, "rootfs.diff_ids[0]: "},
		{"duplicate in a skipped value", `{"config":{"Env":[],"Env":[]}}`, "config.Env: there are two"},
		{"trailing bytes", `{}{}`, "after the end"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParseConfig([]byte(test.doc))
			checkParse(t, err, test.err)
		})
	}
}

func TestLimits(t *testing.T) {
	pad := func(doc string, length int) []byte { return []byte(doc + strings.Repeat(" ", length-len(doc))) }
	parsers := []struct {
		name  string
		doc   string
		limit int
		parse func([]byte) error
	}{
		{"index", indexOf(), MaxIndex, func(doc []byte) error { _, err := ParseIndex(doc, ""); return err }},
		{"manifest", manifestOf(""), MaxManifest, func(doc []byte) error { _, err := ParseManifest(doc, ""); return err }},
		{"config", "{}", MaxConfig, func(doc []byte) error { _, err := ParseConfig(doc); return err }},
	}
	for _, p := range parsers {
		t.Run(p.name, func(t *testing.T) {
			if err := p.parse(pad(p.doc, p.limit)); err != nil {
				t.Errorf("at the limit: %v", err)
			}
			if err := p.parse(pad(p.doc, p.limit+1)); !errors.Is(err, ErrLimit) || !errors.Is(err, ErrCorrupt) {
				t.Errorf("over the limit: %v", err)
			}
		})
	}
}

// A document of the largest size takes little memory, whatever it is made of.
func TestStringsAreLimited(t *testing.T) {
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"%x":""`, i)
		}
		return b.String()[1:]
	}
	list := func(n int) string { return strings.Repeat(`,""`, n)[1:] }
	index := func(more string) string {
		return `{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:` + strings.Repeat("0", 64) + `","size":1` + more + `}]}`
	}
	for _, row := range []struct {
		name, doc string
		over      bool
	}{
		{"as many as may be", index(`,"annotations":{` + many(1000) + `},"urls":[` + list(MaxStrings-1000) + `]`), false},
		{"one more", index(`,"annotations":{` + many(1000) + `},"urls":[` + list(MaxStrings-999) + `]`), true},
		{"annotations", index(`,"annotations":{` + many(MaxStrings+1) + `}`), true},
		{"features of an operating system", index(`,"platform":{"os.features":[` + list(MaxStrings+1) + `]}`), true},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := ParseIndex([]byte(row.doc), "")
			if row.over && (!errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "over the limit of 1048576 annotations and urls")) || !row.over && err != nil {
				t.Errorf("%v", err)
			}
		})
	}
}

// cpuTime is what this process has had of the processors: other than a clock, it
// does not depend on what else the machine does.
func cpuTime(t *testing.T) time.Duration {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// Documents that would take long, or much memory, if anything were quadratic or recursive.
func TestParseHostileShapes(t *testing.T) {
	var names strings.Builder
	for i := range 300000 {
		fmt.Fprintf(&names, `,"name%d":0`, i)
	}
	for name, doc := range map[string]string{
		"open arrays":       `{"x":` + strings.Repeat("[", MaxIndex-10),
		"open objects":      `{"x":` + strings.Repeat(`{"":`, MaxIndex/4-10),
		"many names":        `{"x":0` + names.String() + `}`,
		"long number":       `{"x":` + strings.Repeat("1", MaxIndex-10) + `}`,
		"long name":         `{"` + strings.Repeat("x", MaxIndex-10) + `":}`,
		"escapes":           `{"` + strings.Repeat(`\u0041`, MaxIndex/6-10) + `":}`,
		"array of nothing":  `{"x":[` + strings.Repeat("0,", MaxIndex/2-10) + `0]}`,
		"empty descriptors": `{"manifests":[` + strings.Repeat("{},", 1000000) + `{}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			start := cpuTime(t)
			_, err := ParseIndex([]byte(doc), "")
			checkParse(t, err, " ")
			if took := cpuTime(t) - start; took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// What is accepted, another strict and case-sensitive reader reads the same way.
func agree[T any](t *testing.T, doc []byte, got *T) {
	t.Helper()
	want := new(T)
	if err := json.Unmarshal(doc, want); err != nil {
		t.Fatalf("accepted, but: %v\n%s", err, doc)
	}
	a, err := stdjson.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	b, err := stdjson.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	nils := strings.NewReplacer(`"manifests":null`, `"manifests":[]`, `"layers":null`, `"layers":[]`)
	if nils.Replace(string(a)) != nils.Replace(string(b)) {
		t.Fatalf("read differently:\n%s\n%s\n%s", a, b, doc)
	}
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(indexOf(descriptorOf(v1.MediaTypeImageManifest, hexA, `,"urls":["u"],"annotations":{"a":"b"},"data":"eA==","platform":{"os.features":["x"]}`))), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":null,"subject":`+descriptorOf("x", hexB, "")+`,"mediaType":"`+v1.MediaTypeImageIndex+`"}`), v1.MediaTypeImageIndex)
	f.Add([]byte(`{"x":[{"a":1e9,"\ud83d\ude00":null}]}`), "")
	f.Fuzz(func(t *testing.T, doc []byte, mediaType string) {
		index, err := ParseIndex(doc, mediaType)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || err.Error() == "" {
				t.Fatalf("%v is no ErrCorrupt", err)
			}
			return
		}
		agree(t, doc, index)
	})
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(manifestOf(`,"annotations":{"a":"b"}`)), v1.MediaTypeImageManifest)
	f.Add([]byte(manifestOf(`,"subject":`+descriptorOf("x", hexC, "")+`,"mediaType":"`+MediaTypeDockerManifest+`"`)), MediaTypeDockerManifest)
	f.Fuzz(func(t *testing.T, doc []byte, mediaType string) {
		manifest, err := ParseManifest(doc, mediaType)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || err.Error() == "" {
				t.Fatalf("%v is no ErrCorrupt", err)
			}
			return
		}
		agree(t, doc, manifest)
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"architecture":"arm64","os":"linux","variant":"v8","os.version":"1","os.features":["a"],"config":{"Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":["sha256:` + hexA + `"]},"history":[{}]}`))
	f.Add([]byte(`{"os":null,"rootfs":{"type":"layers","diff_ids":null}}`))
	f.Add([]byte(`{"OS":"linux","rootfs":{"diff_ids":["sha256:../../x"]}}`))
	f.Add([]byte(`{"os":"linux","os":"linux"}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		config, err := ParseConfig(doc)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || err.Error() == "" {
				t.Fatalf("%v is no ErrCorrupt", err)
			}
			return
		}
		// Another strict and case-sensitive reader, of these members alone: irfs leaves the others unread.
		var want struct {
			Architecture string   `json:"architecture"`
			OS           string   `json:"os"`
			OSVersion    string   `json:"os.version"`
			OSFeatures   []string `json:"os.features"`
			Variant      string   `json:"variant"`
			RootFS       struct {
				Type    string          `json:"type"`
				DiffIDs []digest.Digest `json:"diff_ids"`
			} `json:"rootfs"`
		}
		if err := json.Unmarshal(doc, &want); err != nil {
			t.Fatalf("accepted, but: %v\n%s", err, doc)
		}
		p, r := config.Platform, config.RootFS
		if p.Architecture != want.Architecture || p.OS != want.OS || p.OSVersion != want.OSVersion || p.Variant != want.Variant || !slices.Equal(p.OSFeatures, want.OSFeatures) ||
			r.Type != want.RootFS.Type || !slices.Equal(r.DiffIDs, want.RootFS.DiffIDs) {
			t.Fatalf("read differently:\n%+v\n%+v\n%s", config, want, doc)
		}
		for _, d := range r.DiffIDs {
			if _, err := ParseDigest(string(d)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkParseManifest(b *testing.B) {
	doc := []byte(manifestOfLayers(50))
	b.SetBytes(int64(len(doc)))
	for b.Loop() {
		if _, err := ParseManifest(doc, v1.MediaTypeImageManifest); err != nil {
			b.Fatal(err)
		}
	}
}

// manifestOfLayers is a manifest with so many layers.
func manifestOfLayers(n int) string {
	layers := make([]string, n)
	for i := range layers {
		layers[i] = descriptorOf(v1.MediaTypeImageLayerGzip, fmt.Sprintf("%064x", i), "")
	}
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`,
		v1.MediaTypeImageManifest, descriptorOf(v1.MediaTypeImageConfig, hexA, ""), strings.Join(layers, ","))
}

func BenchmarkParseIndex(b *testing.B) {
	doc := largeIndex()
	b.SetBytes(int64(len(doc)))
	for b.Loop() {
		if _, err := ParseIndex(doc, ""); err != nil {
			b.Fatal(err)
		}
	}
}

// largeIndex is an index.json of 100,000 descriptors and about 26 MB.
func largeIndex() []byte {
	manifests := make([]string, 100000)
	for i := range manifests {
		manifests[i] = descriptorOf(v1.MediaTypeImageManifest, fmt.Sprintf("%064x", i), fmt.Sprintf(`,"annotations":{"org.opencontainers.image.ref.name":"tag-%d"},"platform":{"architecture":"amd64","os":"linux"}`, i))
	}
	return []byte(indexOf(manifests...))
}

func TestMediaTypes(t *testing.T) {
	for mediaType, want := range map[string]string{
		v1.MediaTypeImageIndex:                  "index",
		MediaTypeDockerList:                     "index",
		v1.MediaTypeImageManifest:               "manifest",
		MediaTypeDockerManifest:                 "manifest",
		v1.MediaTypeImageConfig:                 "config",
		MediaTypeDockerConfig:                   "config",
		v1.MediaTypeEmptyJSON:                   "",
		MediaTypeDockerLayer:                    "",
		"":                                      "",
		strings.ToUpper(v1.MediaTypeImageIndex): "",
	} {
		for kind, is := range map[string]func(string) bool{"index": IsIndex, "manifest": IsManifest, "config": IsConfig} {
			if got := is(mediaType); got != (kind == want) {
				t.Errorf("%q is an %s: %v", mediaType, kind, got)
			}
		}
	}
}
