package fs

import (
	"cmp"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"irfs/layout"
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
	of    map[uint32]*userLog
}

// A userLog is what the log has of one user.
type userLog struct {
	lines []logLine // newest last
	bytes int64     // of their texts
}

type logLine struct {
	number uint64 // how many were added before
	text   string
}

func newEventLog() *eventLog {
	return &eventLog{owner: uint32(os.Geteuid()), of: map[uint32]*userLog{}}
}

func (l *eventLog) add(uid uint32, operation, path, outcome string) {
	text := fmt.Sprintf("%s\t%d\t%s\t%s\t", time.Now().UTC().Format(time.RFC3339), uid, operation, layout.Cut(Line(path), maxLogLine/2))
	text += layout.Cut(Line(outcome), maxLogLine-len(text)-1) + "\n"
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.of[uid]
	if of == nil {
		if !l.reads(uid) {
			l.makeRoom()
		}
		of = &userLog{}
		l.of[uid] = of
	}
	if len(of.lines) == logLines {
		of.bytes -= int64(len(of.lines[0].text))
		of.lines = append(of.lines[:0], of.lines[1:]...)
	}
	of.lines = append(of.lines, logLine{l.added, text})
	of.bytes += int64(len(text))
	l.added++
}

// reads reports whether a user sees all of the log.
func (l *eventLog) reads(uid uint32) bool { return uid == 0 || uid == l.owner }

// makeRoom makes room for one more user. l.mu is held.
func (l *eventLog) makeRoom() {
	users, longest := 0, uint32(0)
	oldest := l.added
	for uid, of := range l.of {
		if l.reads(uid) {
			continue
		}
		users++
		if last := of.lines[len(of.lines)-1].number; last < oldest {
			longest, oldest = uid, last
		}
	}
	if users >= logUsers {
		delete(l.of, longest)
	}
}

// users gives what a user may see: root and the mount's owner see all of the log, and anybody else his own lines. l.mu is held.
func (l *eventLog) users(uid uint32) iter.Seq[*userLog] {
	if l.reads(uid) {
		return maps.Values(l.of)
	}
	return func(yield func(*userLog) bool) {
		if of := l.of[uid]; of != nil {
			yield(of)
		}
	}
}

// open gives the log as it is now, as a user may see it.
func (l *eventLog) open(uid uint32) liveText {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &logReader{log: l, uid: uid, end: l.added}
	for of := range l.users(uid) {
		r.size += of.bytes
	}
	return r
}

// A logReader reads the lines that there were when it was made. It holds none of them, for there may be many readers: a line that goes before it is read is left
// out, so that what is read from the beginning to the end is whole lines in their order.
type logReader struct {
	log  *eventLog
	uid  uint32
	end  uint64 // the number of the first line that came too late
	size int64

	mu   sync.Mutex
	off  int64  // where the last read ended:
	rest string // what is left of the line there,
	next uint64 // and the least number of the one after it
}

// Size is how many bytes there were at first.
func (r *logReader) Size() int64 { return r.size }

func (r *logReader) ReadAt(dest []byte, off int64) (n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	skip := int64(0)
	if off != r.off {
		r.off, r.rest, r.next = 0, "", 0
		skip = off
	}
	lines := r.lines()
	for {
		passed := min(skip, int64(len(r.rest)))
		skip -= passed
		some := copy(dest[n:], r.rest[passed:])
		n += some
		r.off += passed + int64(some)
		r.rest = r.rest[int(passed)+some:]
		if r.rest != "" || n == len(dest) {
			return n, nil
		}
		if len(lines) == 0 {
			return n, io.EOF
		}
		r.rest, r.next = lines[0].text, lines[0].number+1
		lines = lines[1:]
	}
}

// lines gives those that are still there of the ones to be read.
func (r *logReader) lines() (list []logLine) {
	r.log.mu.Lock()
	for of := range r.log.users(r.uid) {
		for _, line := range of.lines {
			if r.next <= line.number && line.number < r.end {
				list = append(list, line)
			}
		}
	}
	r.log.mu.Unlock()
	slices.SortFunc(list, func(a, b logLine) int { return cmp.Compare(a.number, b.number) })
	return list
}
