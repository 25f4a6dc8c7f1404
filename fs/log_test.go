package fs

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// outcomes gives the last field of each line of the log that a user sees.
func (l *eventLog) outcomes(uid uint32) (list []string) {
	for line := range strings.Lines(string(l.text(uid))) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		list = append(list, fields[len(fields)-1])
	}
	return list
}

func numbered(who string, from, to int) (list []string) {
	for i := from; i < to; i++ {
		list = append(list, fmt.Sprint(who, i))
	}
	return list
}

// Nobody pushes another user's lines out of the log but by being the 65th user, and those of root and the owner nobody does.
func TestLogByUser(t *testing.T) {
	const owner, quiet = 1000, 2000
	l := newEventLog()
	l.owner = owner
	say := func(uid uint32, lines []string) {
		for _, line := range lines {
			l.add(uid, "sign", "a", line)
		}
	}
	check := func(what string, got, want []string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d lines, %.200q, want %d: %.200q", what, len(got), got, len(want), want)
		}
	}
	say(0, numbered("root", 0, 3))
	say(owner, numbered("owner", 0, 2))
	say(quiet, numbered("quiet", 0, 1))
	say(2001, numbered("loud", 0, 10_000))
	say(owner, numbered("owner", 2, 4))
	loud := numbered("loud", 10_000-logLines, 10_000)
	check("the loud one", l.outcomes(2001), loud)
	check("the quiet one", l.outcomes(quiet), numbered("quiet", 0, 1))
	all := slices.Concat(numbered("root", 0, 3), numbered("owner", 0, 2), numbered("quiet", 0, 1), loud, numbered("owner", 2, 4))
	check("root, in the order of time", l.outcomes(0), all)
	check("the owner", l.outcomes(owner), all)
	check("one who did nothing", l.outcomes(4711), nil)

	say(2001, numbered("loud", 0, 1)) // so that the quiet one did nothing for the longest time
	for uid := range uint32(logUsers - 2) {
		say(3000+uid, numbered("other", 0, 1))
	}
	check("the quiet one among 64", l.outcomes(quiet), numbered("quiet", 0, 1))
	say(4000, numbered("other", 0, 1))
	check("the quiet one after the 65th", l.outcomes(quiet), nil)
	check("the loud one", l.outcomes(2001), slices.Concat(loud[1:], numbered("loud", 0, 1)))
	for uid := range uint32(70_000) {
		say(10_000+uid, numbered("other", 0, 1))
	}
	check("root after very many", l.outcomes(0)[:7], slices.Concat(numbered("root", 0, 3), numbered("owner", 0, 4)))
	if len(l.of) != logUsers+2 {
		t.Errorf("%d users", len(l.of))
	}
}

// A line is never longer than its limit, and has all its fields.
func TestLogLinesAreShort(t *testing.T) {
	l := newEventLog()
	for _, n := range []int{0, 1, 1000, maxLogLine - 60, maxLogLine, 10 * maxLogLine} {
		for _, c := range []string{"a", "\n", "\u00fc", "\xff"} {
			l.add(7, "sign", strings.Repeat(c, n), strings.Repeat(c, n))
			lines := slices.Collect(strings.Lines(string(l.text(7))))
			last := lines[len(lines)-1]
			if len(last) > maxLogLine || strings.Count(last, "\t") != 4 || !strings.HasSuffix(last, "\n") || !utf8.ValidString(last) {
				t.Errorf("%d times %q: %d bytes, %d tabs", n, c, len(last), strings.Count(last, "\t"))
			}
			if isCut := strings.Contains(last, " ... (cut)"); isCut != (len(Line(strings.Repeat(c, n))) > maxLogLine/2) {
				t.Errorf("%d times %q: cut is %v", n, c, isCut)
			}
		}
	}
}
