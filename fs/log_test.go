package fs

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// text is the log as a user sees it.
func (l *eventLog) text(uid uint32) []byte {
	r := l.open(uid)
	data, _ := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	return data
}

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

// Whoever has the log open reads the lines of that time, whole and in their order, without those that have gone since; at any offset, in pieces of any size.
func TestLogWhileItChanges(t *testing.T) {
	for _, piece := range []int{1, 7, 50, 4096, 1 << 20} {
		l := newEventLog()
		for i := range 2 * logLines {
			l.add(uint32(1000+i%2), "sign", "a", fmt.Sprint("line ", i))
		}
		r := l.open(0)
		want := l.text(0)
		if int64(len(want)) != r.Size() {
			t.Errorf("the size is %d, and there are %d bytes", r.Size(), len(want))
		}
		var got []byte
		buf := make([]byte, piece)
		for n, err := 0, error(nil); err == nil; {
			n, err = r.ReadAt(buf, int64(len(got)))
			got = append(got, buf[:n]...)
			if len(got) >= 1000 && len(got)-n < 1000 {
				for i := range 100 {
					l.add(1000, "sign", "a", fmt.Sprint("later ", i)) // the first hundred go
				}
			}
		}
		lines := strings.SplitAfter(string(want), "\n")
		var left []string
		for i, line := range lines {
			seen := len(strings.Join(lines[:i], "")) < max(1000, (1000+piece-1)/piece*piece)
			if seen || i%2 == 1 || i >= 200 {
				left = append(left, line)
			}
		}
		if string(got) != strings.Join(left, "") {
			t.Errorf("in pieces of %d bytes: %d bytes are read, want %d", piece, len(got), len(strings.Join(left, "")))
		}
	}
	l := newEventLog()
	for i := range 10 {
		l.add(1000, "sign", "a", fmt.Sprint("line ", i))
	}
	r, whole := l.open(1000), l.text(1000)
	buf := make([]byte, 100)
	for _, off := range []int{300, 0, 17, 117, 17, 100, len(whole) - 1, len(whole), len(whole) + 1} {
		n, _ := r.ReadAt(buf, int64(off))
		if from := min(off, len(whole)); string(buf[:n]) != string(whole[from:min(from+100, len(whole))]) {
			t.Errorf("at %d: %q", off, buf[:n])
		}
	}
}

// Very many who have the log open, each another state of it, take no memory for it.
func TestOpenLogsTakeNoMemory(t *testing.T) {
	l := newEventLog()
	for range logLines {
		l.add(7, "sign", "a", strings.Repeat("x", 2000))
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var open []liveText
	buf := make([]byte, 100)
	for range 1000 {
		l.add(7, "sign", "a", strings.Repeat("x", 2000))
		r := l.open(7)
		r.ReadAt(buf, 0)
		open = append(open, r)
	}
	if took := heap() - before; took > 4<<20 {
		t.Errorf("%d open logs take %d bytes", len(open), took)
	}
	runtime.KeepAlive(open)
	runtime.KeepAlive(l)
}
