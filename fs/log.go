package fs

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// What .irfs/log holds: the last logLines lines, each of maxLogLine bytes at most, of each of logUsers users, and of root and the
// mount's owner besides.
const (
	logLines   = 256
	logUsers   = 64
	maxLogLine = 4 << 10
)

// eventLog is what .irfs/log shows: a line for each operation that a user asked
// for, good or bad, newest last: time, uid, operation, path, outcome in words,
// with tabs between them. It is kept by user, so that nobody pushes out another's lines; of very many users the one who did nothing
// for the longest time goes, but never root or the mount's owner.
type eventLog struct {
	owner uint32

	mu    sync.Mutex
	added uint64
	of    map[uint32][]logLine // by user, newest last
}

type logLine struct {
	number uint64 // how many were added before
	text   string
}

func newEventLog() *eventLog {
	return &eventLog{owner: uint32(os.Geteuid()), of: map[uint32][]logLine{}}
}

func (l *eventLog) add(uid uint32, operation, path, outcome string) {
	text := fmt.Sprintf("%s\t%d\t%s\t%s\t", time.Now().UTC().Format(time.RFC3339), uid, operation, cut(Line(path), maxLogLine/2))
	text += cut(Line(outcome), maxLogLine-len(text)-1) + "\n"
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.of[uid]
	if len(lines) == 0 && !l.reads(uid) {
		l.makeRoom()
	}
	if len(lines) == logLines {
		lines = append(lines[:0], lines[1:]...)
	}
	l.of[uid] = append(lines, logLine{l.added, text})
	l.added++
}

// reads reports whether a user sees all of the log.
func (l *eventLog) reads(uid uint32) bool { return uid == 0 || uid == l.owner }

// makeRoom makes room for one more user. l.mu is held.
func (l *eventLog) makeRoom() {
	users, longest := 0, uint32(0)
	oldest := l.added
	for uid, lines := range l.of {
		if l.reads(uid) {
			continue
		}
		users++
		if last := lines[len(lines)-1].number; last < oldest {
			longest, oldest = uid, last
		}
	}
	if users >= logUsers {
		delete(l.of, longest)
	}
}

// cut is text, with its end left out where it is longer than so many bytes.
func cut(text string, most int) string {
	const rest = " ... (cut)"
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most-len(rest)], "") + rest
}

// text is the log as a user may see it: root and the mount's owner see all of it, and
// anybody else his own lines.
func (l *eventLog) text(uid uint32) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.of[uid]
	if l.reads(uid) {
		lines = nil
		for _, some := range l.of {
			lines = append(lines, some...)
		}
		slices.SortFunc(lines, func(a, b logLine) int { return cmp.Compare(a.number, b.number) })
	}
	var b []byte
	for _, line := range lines {
		b = append(b, line.text...)
	}
	return b
}
