package sign

import (
	"bytes"
	"cmp"
	"encoding/json"
	"strings"
	"unicode"
	"unicode/utf8"

	"irfs/layout"
)

// Text gives the verdict's lines as text, the last one saying whether
// the layers were checked.
func (v *Verdict) Text() string {
	text := strings.Join(v.Checks(), "\n") + "\n"
	if v.Layers == LayersUnchecked && v.Kind != layout.KindAttestation {
		text += "layers: not checked (read verify-full)\n"
	}
	return text
}

// A Report is a verdict for programs: with the word, the reason and the layers of that verdict.
type Report struct {
	App       string   `json:"app"`
	Tags      []string `json:"tags"` // the first maxTags in index.json of at most layout.MaxName bytes, sorted; never nil
	Digest    string   `json:"digest"`
	MediaType string   `json:"mediaType"` // this, Platform and Reason are cut where they are long (layout.Cut)
	Kind      string   `json:"kind"`      // image, index, artifact, attestation
	Platform  string   `json:"platform"`  // os/architecture[/variant], "" for an index
	Status    Status   `json:"status"`
	Reason    string   `json:"reason"` // the sentence that decided
	Layers    string   `json:"layers"` // unchecked, verified, corrupt
	Vendor    string   `json:"vendor"` // fingerprints, "" where there is none
	CA        string   `json:"ca"`
}

// maxTags is how many tags a report lists. An image may have a hundred thousand, and a report is made for each of many images.
const maxTags = 1000

// BrokenApp is the report on an app that has that fault (layout.Snapshot.Fault).
func BrokenApp(name string, fault error) Report {
	return Report{App: name, Tags: []string{}, Status: Corrupt, Reason: layout.Cut(fault.Error(), maxReason), Layers: LayersUnchecked}
}

// Report puts a verdict beside what it is about.
func (v *Verdict) Report(app *layout.App, snap *layout.Snapshot, e layout.Entry) Report {
	r := Report{
		App: app.Name, Tags: snap.SomeTagsOf(e.Digest, maxTags), Digest: string(e.Digest), MediaType: layout.Short(e.MediaType),
		Kind: string(v.Kind), Status: v.Status, Reason: v.Reason, Layers: v.Layers, Vendor: v.Vendor, CA: v.CA,
	}
	if v.Kind == layout.KindImage {
		r.Platform = cmp.Or(v.Platform, unknownPlatform)
	}
	return r
}

// JSON gives the report as one line, as status.json and status-full.json show it.
func (r Report) JSON() []byte { return JSONLine(r) }

// JSONLine gives v, in which there is nothing but strings, as one line of JSON. What ends a line for some programs, or turns its
// direction, is escaped, which encoding/json does for some of it only.
func JSONLine(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	if bytes.ContainsFunc(text, EndsLine) {
		b := make([]byte, 0, 2*len(text))
		for _, c := range string(text) {
			if EndsLine(c) { // they are all below U+10000
				b = append(b, '\\', 'u', hexDigits[c>>12&15], hexDigits[c>>8&15], hexDigits[c>>4&15], hexDigits[c&15])
			} else {
				b = utf8.AppendRune(b, c)
			}
		}
		text = b
	}
	return append(text, '\n')
}

const hexDigits = "0123456789abcdef"

// EndsLine reports whether a character could make a part of a line look like another line, or elsewhere than it is.
func EndsLine(c rune) bool {
	if ' ' <= c && c < 0x7f { // most are
		return false
	}
	return unicode.IsControl(c) || unicode.In(c, unicode.Zl, unicode.Zp, unicode.Bidi_Control)
}
