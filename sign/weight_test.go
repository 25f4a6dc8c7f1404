package sign

import (
	"fmt"
	"strings"
	"testing"

	"irfs/layout"
)

// Verdicts are kept by the bytes that they take, and not by their number alone.
func TestVerdictsAreKeptByTheirBytes(t *testing.T) {
	v := NewVerifier(NewTrust())
	text := strings.Repeat("x", 1<<20) // longer than any is, so that the test is quick
	for name, of := range map[string]func(text string) *Verdict{
		"reason":   func(text string) *Verdict { return &Verdict{Reason: text} },
		"platform": func(text string) *Verdict { return &Verdict{Platform: text} },
		"vendor":   func(text string) *Verdict { return &Verdict{Vendor: text} },
		"ca":       func(text string) *Verdict { return &Verdict{CA: text} },
		"lines":    func(text string) *Verdict { return &Verdict{lines: []string{text[1:], "x"}} },
	} {
		app := new(layout.App)
		for i := range 2 * maxVerdicts / len(text) {
			v.keep(verdictKey{app: app, digest: fmt.Sprint(i)}, of(text))
			kept := 0
			for _, verdict := range v.verdicts {
				kept += len(verdict.Reason) + len(verdict.Platform) + len(verdict.Vendor) + len(verdict.CA)
				for _, line := range verdict.lines {
					kept += len(line)
				}
			}
			if kept > maxVerdicts {
				t.Fatalf("%s: %d verdicts of %d bytes are kept", name, len(v.verdicts), kept)
			}
		}
		if len(v.verdicts) == 0 {
			t.Errorf("%s: none is kept", name)
		}
	}
	before := v.weight
	key := verdictKey{digest: "again"}
	v.keep(key, &Verdict{Reason: text})
	v.keep(key, &Verdict{})
	if took := v.weight - before; took != (&Verdict{}).weight() {
		t.Errorf("a verdict in another's place takes %d bytes", took)
	}
}
