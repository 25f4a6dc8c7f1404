package fs

import (
	"fmt"
	"os"
	"sync"
	"time"
)

// logLines is how many lines .irfs/log holds.
const logLines = 256

// eventLog is what .irfs/log shows: a line for each operation that a user asked
// for, good or bad, newest last: time, uid, operation, path, outcome in words,
// with tabs between them.
type eventLog struct {
	owner uint32

	mu    sync.Mutex
	lines []logLine
}

type logLine struct {
	uid  uint32
	text string
}

func newEventLog() *eventLog { return &eventLog{owner: uint32(os.Geteuid())} }

func (l *eventLog) add(uid uint32, operation, path, outcome string) {
	text := fmt.Sprintf("%s\t%d\t%s\t%s\t%s\n", time.Now().UTC().Format(time.RFC3339), uid, operation, escape(path, false), escape(outcome, false))
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) == logLines {
		l.lines = append(l.lines[:0], l.lines[1:]...)
	}
	l.lines = append(l.lines, logLine{uid, text})
}

// text is the log as a user may see it: the mount's owner sees all of it, and
// anybody else his own lines.
func (l *eventLog) text(uid uint32) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b []byte
	for _, line := range l.lines {
		if uid == 0 || uid == l.owner || uid == line.uid {
			b = append(b, line.text...)
		}
	}
	return b
}
