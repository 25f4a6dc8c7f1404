package layout_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"irfs/layout"
)

func TestCut(t *testing.T) {
	for _, c := range []string{"x", "é", "\u2028", "\U0001f600"} {
		for n := range 3 * layout.MaxText {
			text := strings.Repeat(c, n)
			got := layout.Short(text)
			begins, isCut := strings.CutSuffix(got, " ... (cut)")
			if isCut != (len(text) > layout.MaxText) || !strings.HasPrefix(text, begins) || !utf8.ValidString(got) ||
				len(got) > layout.MaxText || isCut && len(got) <= layout.MaxText-len(c) {
				t.Fatalf("%d times %q: %q", n, c, got)
			}
		}
	}
}
