package fs

import (
	"strings"
	"testing"
)

// TestField: a name is one field of one line, whatever is in it; the log escapes its
// outcomes in the same way, but for the percent signs.
func TestField(t *testing.T) {
	for name, want := range map[string]string{
		"plain": "plain", "50%": "50%25", "a\nb": "a%0Ab", "a\tb\x1b[2J\r": "a%09b%1B[2J%0D",
		"\u0085": "%C2%85", "\xff": "%FF", "\uFFFD": "\uFFFD", "ü\x7f": "ü%7F", "": "",
		"a\u2028b\u2029": "a%E2%80%A8b%E2%80%A9", "gnp\u202e": "gnp%E2%80%AE",
	} {
		got := Field(name)
		if got != want {
			t.Errorf("Field(%q) is %q, not %q", name, got, want)
		}
		if back, err := NameOf(got); back != name || err != nil {
			t.Errorf("NameOf(%q) is %q, %v", got, back, err)
		}
	}
	l := newEventLog()
	l.add(7, "sign", "a\nb", "c\td %\x1b")
	line := string(l.text(7))
	if !strings.HasSuffix(line, "\t7\tsign\ta%0Ab\tc%09d %%1B\n") {
		t.Errorf("the log says %q", line)
	}
}
