package layout

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync/atomic"
)

// This file reads tar files. It takes only what every reader of tar understands
// in the same way, GNU tar for one, and refuses anything else.

// read reads the archive to its end.
func (u *unpacking) read(archive io.Reader, atEnd *atomic.Bool) error {
	source := &readFrom{ctx: u.ctx, r: archive}
	unpacked, close, err := decompress(source)
	if err != nil {
		return err
	}
	defer close()
	tail := &tail{source: source, r: unpacked}
	entries := tar.NewReader(tail)
	seen := map[string]bool{}
	var padding int64
	for count := 1; ; count++ {
		tail.record(padding)
		h, err := entries.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return tail.failed(err)
		}
		if err := checkHeader(h, tail.headers()); err != nil {
			return err
		}
		name := path.Clean(h.Name)
		switch {
		case count > MaxArchiveEntries:
			return limitf("archive: over the limit of %d entries", MaxArchiveEntries)
		case u.bytes > MaxArchive-h.Size:
			return limitf("archive: over the limit of %d bytes for all its files", int64(MaxArchive))
		case h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeXGlobalHeader:
			padding = 0
			continue
		case seen[name]:
			return corruptf("archive: %q: twice in the archive", h.Name)
		}
		seen[name] = true
		u.bytes += h.Size
		if h.Typeflag == tar.TypeSymlink {
			u.links[name] = h.Linkname
			padding = 0
			continue
		}
		if err := u.take(name, entries, h.Size); err != nil {
			return tail.failed(err)
		}
		if _, err := io.Copy(io.Discard, entries); err != nil {
			return tail.failed(err)
		}
		padding = -h.Size & 511
	}
	return tail.end(padding, atEnd)
}

// checkHeader refuses what readers of tar disagree on, and whatever is neither a
// regular file, nor a directory, nor a link to a layer, which is only ever
// looked up (docker.go). raw are the blocks that the entry was read from: its
// header, and the extension headers before it.
func checkHeader(h *tar.Header, raw []byte) error {
	refuse := func(why string) error { return corruptf("archive: %.300q: %s", h.Name, why) }
	if len(h.Name) > MaxName || len(h.Linkname) > MaxName {
		return limitf("archive: %.300q: its name or link is over the limit of %d bytes", h.Name, MaxName)
	}
	if !fs.ValidPath(path.Clean(h.Name)) || strings.IndexByte(h.Name, 0) >= 0 {
		return refuse("not a path inside the archive")
	}
	for key, value := range h.PAXRecords {
		switch {
		case strings.HasPrefix(key, "GNU.sparse."): // a few bytes can make the holes as large as they like
			return refuse("neither a regular file nor a directory")
		case h.Typeflag == tar.TypeXGlobalHeader && key != "comment":
			return refuse("a global extended header that is more than a comment, which readers understand differently")
		case (key == "path" || key == "size" || key == "linkpath") && value == "":
			return refuse("an extended header takes back its " + key + ", which readers understand differently")
		}
	}
	extensions := ""
	for len(raw) > 512 {
		flag, size := raw[156], octal(raw[124:136])
		if size < 0 || size > int64(len(raw)) {
			return refuse("an extension header whose size readers understand differently")
		}
		extensions += string(flag)
		raw = raw[min(int64(len(raw)), 512+(size+511)&^511):]
	}
	last := string(raw[:min(len(raw), 512)])
	switch {
	case len(last) < 512 || !strings.Contains(" x L K LK KL ", " "+extensions+" ") && extensions != "", h.Typeflag == tar.TypeXGlobalHeader && extensions != "":
		return refuse("extension headers upon each other, which readers understand differently")
	case last[508:512] == "tar\x00":
		return refuse("a header of star's own format, which readers understand differently")
	}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeDir:
		if h.Size != 0 {
			return refuse("a directory with a size, which readers understand differently")
		}
		return nil
	case tar.TypeReg:
		if strings.HasSuffix(h.Name, "/") {
			return refuse("a regular file with the name of a directory")
		}
		return nil
	case tar.TypeSymlink:
		if path.Base(h.Name) == "layer.tar" && h.Size == 0 {
			return nil
		}
	}
	return refuse("neither a regular file nor a directory")
}

// octal reads a number of a tar header as every reader of tar does, or gives -1.
func octal(field []byte) int64 {
	digits := strings.Trim(string(field), " \x00")
	var n int64
	for _, c := range digits {
		if c < '0' || c > '7' || n > 1<<40 {
			return -1
		}
		n = n<<3 + int64(c-'0')
	}
	return n
}

// tail watches what an archive is read from: its headers, and what it ends with.
type tail struct {
	source *readFrom // what it comes from, before it was unpacked
	r      io.Reader
	zeros  int64 // zero bytes read since the last other byte, or since record

	recording bool
	skip      int // bytes of padding before the headers
	head      []byte
}

// maxHeaders is how many bytes of headers one entry may have: archive/tar allows
// 1 MiB for each extension.
const maxHeaders = 4 << 20

func (t *tail) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	rest := bytes.TrimRight(p[:n], "\x00")
	if len(rest) > 0 {
		t.zeros = 0
	}
	t.zeros += int64(n - len(rest))
	if t.recording && len(t.head) < maxHeaders {
		t.head = append(t.head, p[:n]...)
	}
	return n, err
}

// record starts to keep the headers of the next entry, which come after so many
// bytes of padding.
func (t *tail) record(padding int64) {
	t.recording, t.skip, t.head, t.zeros = true, int(padding), t.head[:0], 0
}

// headers gives what was recorded, and stops that.
func (t *tail) headers() []byte {
	t.recording = false
	return t.head[min(t.skip, len(t.head)):]
}

// failed tells what it means that an archive could not be read on.
func (t *tail) failed(err error) error {
	var unpacking *unpackingError
	switch {
	case t.source.err != nil:
		return t.source.err
	case errors.As(err, &unpacking):
		return unpacking.error
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("archive: it ends in the middle of an entry: %w", incomplete{})
	case errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong):
		return corruptf("archive: not a tar archive, or a damaged one: %w", err)
	}
	return err
}

// end checks that the archive had its two blocks of zeros (POSIX.1-2024, pax,
// "ustar Interchange Format"), and reads on to the end of the stream, where
// only zeros may follow.
func (t *tail) end(padding int64, atEnd *atomic.Bool) error {
	t.headers()
	if t.zeros < padding+1024 {
		return fmt.Errorf("archive: its end is missing (two blocks of zeros): %w", incomplete{})
	}
	atEnd.Store(true)
	b := getBuffer()
	defer putBuffer(b)
	for {
		n, err := t.Read(*b)
		if len(bytes.TrimLeft((*b)[:n], "\x00")) > 0 {
			return corruptf("archive: there is data after its end")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return t.failed(err)
		}
	}
}

type incomplete struct{}

func (incomplete) Error() string        { return "it was cut off" }
func (incomplete) Is(target error) bool { return target == ErrIncomplete || target == ErrCorrupt }
