package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// A progress is a reader that shows, on a terminal, how far it has come: bytes,
// rate, and the time that is left.
type progress struct {
	r           io.Reader
	w           *os.File
	size        int64 // 0 if it is not known
	n           int64
	start, last time.Time
}

// newProgress gives r itself where standard error is no terminal.
func newProgress(r io.Reader, size int64) (_ io.Reader, stop func()) {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return r, func() {}
	}
	now := time.Now()
	p := &progress{r: r, w: os.Stderr, size: size, start: now, last: now}
	return p, func() { fmt.Fprint(p.w, "\r\033[K") }
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.n += int64(n)
	if now := time.Now(); now.Sub(p.last) >= 100*time.Millisecond {
		p.last = now
		fmt.Fprintf(p.w, "\r%s\033[K", p.line(now.Sub(p.start)))
	}
	return n, err
}

func (p *progress) line(took time.Duration) string {
	rate := float64(p.n) / took.Seconds()
	if p.size == 0 {
		return fmt.Sprintf("%s  %s/s", inBytes(float64(p.n)), inBytes(rate))
	}
	const width = 30
	full := int(min(width, width*p.n/p.size))
	left := time.Duration(float64(p.size-p.n) / rate * float64(time.Second)).Round(time.Second)
	return fmt.Sprintf("[%s%s] %s of %s  %s/s  %v left", strings.Repeat("=", full), strings.Repeat(" ", width-full),
		inBytes(float64(p.n)), inBytes(float64(p.size)), inBytes(rate), max(left, 0))
}

// inBytes writes a number of bytes in the units of IEC 80000-13.
func inBytes(n float64) string {
	for _, unit := range []string{"B", "KiB", "MiB"} {
		if n < 1000 {
			return fmt.Sprintf("%.4g %s", n, unit)
		}
		n /= 1024
	}
	return fmt.Sprintf("%.4g GiB", n)
}
