package layout

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
)

// This file reads tar files. It takes only what every reader of tar understands
// in the same way, GNU tar for one, and refuses anything else.

// What is more is refused, an [ErrLimit].
const (
	maxEntryName  = 1024    // bytes of an entry's name, or of what a link names
	maxEntryNames = 8 << 20 // bytes of all names together
)

// A reading is how far an archive was read.
type reading struct {
	packed atomic.Bool // it is compressed
	atEnd  atomic.Bool // its end was read, and only zeros may follow
}

// read reads the archive to its end.
func (u *unpacking) read(archive io.Reader, far *reading) error {
	source := &readFrom{ctx: u.ctx, r: archive}
	unpacked, close, err := decompress(source, u.reg.windows.ofArchive())
	if err != nil {
		return cmp.Or(source.err, err)
	}
	defer close()
	_, packed := unpacked.(*unpacker)
	far.packed.Store(packed)
	tail := &tail{source: source, r: unpacked}
	entries := tar.NewReader(tail)
	names := nameTree{kinds: map[string]byte{}}
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
		plain, err := checkHeader(h, tail.headers())
		if err != nil {
			return err
		}
		if count > MaxArchiveEntries {
			return limitf("archive: over the limit of %d entries", MaxArchiveEntries)
		}
		padding = -plain.size & 511
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name := path.Clean(h.Name)
		if err := names.add(name, h); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
		case tar.TypeSymlink:
			u.links[name] = h.Linkname
		default:
			if u.bytes += h.Size; u.bytes > MaxArchive {
				return limitf("archive: over the limit of %d bytes for all its files", int64(MaxArchive))
			}
			if err := u.take(name, entries, h.Size); err != nil {
				return tail.failed(err)
			}
			if _, err := io.Copy(io.Discard, entries); err != nil {
				return tail.failed(err)
			}
		}
	}
	return tail.end(padding, far)
}

// A nameTree is the names of an archive, and what is there: a file f, a link l, a
// directory d. Where an entry would have to go through, or upon, another one,
// readers do different things.
type nameTree struct {
	kinds map[string]byte
	bytes int
}

func (t *nameTree) add(name string, h *tar.Header) error {
	if t.bytes += len(name) + len(h.Linkname); t.bytes > maxEntryNames || len(t.kinds) > 2*MaxArchiveEntries {
		return limitf("archive: over the limit of %d bytes for all names of its entries", maxEntryNames)
	}
	for i, c := range name {
		if c != '/' {
			continue
		}
		if kind := t.kinds[name[:i]]; kind != 0 && kind != 'd' {
			return corruptf("archive: %q: %q is in the archive too, and no directory", h.Name, name[:i])
		}
		t.kinds[name[:i]] = 'd'
	}
	kind := map[byte]byte{tar.TypeDir: 'd', tar.TypeSymlink: 'l'}[h.Typeflag]
	if kind == 0 {
		kind = 'f'
	}
	if was := t.kinds[name]; was != 0 && (was != 'd' || kind != 'd') {
		return corruptf("archive: %q: twice in the archive", h.Name)
	}
	t.kinds[name] = kind
	return nil
}

// checkHeader refuses what readers of tar disagree on, and whatever is neither a
// regular file, nor a directory, nor a link to a layer, which is only ever
// looked up (docker.go). raw are the blocks that the entry was read from: its
// header, and the extension headers before it.
func checkHeader(h *tar.Header, raw []byte) (plainHeader, error) {
	refuse := func(why string) (plainHeader, error) {
		return plainHeader{}, corruptf("archive: %.300q: %s", h.Name, why)
	}
	if len(h.Name) > maxEntryName || len(h.Linkname) > maxEntryName {
		return plainHeader{}, limitf("archive: %.300q: its name, or what it links to, is over the limit of %d bytes", h.Name, maxEntryName)
	}
	if !strings.ContainsRune("052g", rune(h.Typeflag)) {
		return refuse("neither a regular file nor a directory")
	}
	p, odd := plainly(raw)
	switch {
	case odd != "":
		return refuse(odd + ", which readers understand differently")
	case h.Typeflag == tar.TypeXGlobalHeader:
		return p, nil
	case !safe(h.Name):
		return refuse("not a path inside the archive")
	case p.name != h.Name || p.size != h.Size || h.Typeflag == tar.TypeSymlink && p.link != h.Linkname:
		return refuse("its name or size depends on who reads it")
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if h.Size != 0 {
			return refuse("a directory with a size, which readers understand differently")
		}
		return p, nil
	case tar.TypeReg:
		if base := path.Base("/" + h.Name); strings.HasSuffix(h.Name, "/") || strings.HasSuffix(h.Name, "/.") || base == "/" || base == "." {
			return refuse("a regular file with the name of a directory")
		}
		return p, nil
	case tar.TypeSymlink:
		if path.Base(h.Name) == "layer.tar" && h.Size == 0 && h.Linkname != "" {
			return p, nil
		}
	}
	return refuse("neither a regular file nor a directory")
}

// safe says whether a name leads nowhere but into the archive, and no part of it is too long.
func safe(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." || len(part) > MaxName {
			return false
		}
	}
	return fs.ValidPath(path.Clean(name))
}

// A plainHeader is what the headers of an entry say, read in the plainest way.
type plainHeader struct {
	name, link string
	size       int64
}

// plainly reads the headers of an entry. odd says what in them is read differently
// by different readers: GNU tar, BSD tar, those of Python, Rust and Go.
func plainly(raw []byte) (p plainHeader, odd string) {
	extensions := ""
	var records map[string]string
	for {
		if len(raw) < 512 {
			return p, "a header that is not whole"
		}
		block := raw[:512]
		for i, field := range [][2]int{{100, 108}, {108, 116}, {116, 124}, {124, 136}, {136, 148}} { // mode, uid, gid, size, mtime
			if n, ok := number(block[field[0]:field[1]]); !ok || i < 3 && n > math.MaxUint32 {
				return p, "a malformed number in its header"
			}
		}
		p.size, _ = number(block[124:136])
		flag := block[156]
		if !strings.ContainsRune("xgLK", rune(flag)) {
			if len(raw) != 512 {
				return p, "an extension header of another size than it says"
			}
			break
		}
		if extensions += string(rune(flag)); !strings.Contains(" x g L K LK KL ", " "+extensions+" ") {
			return p, "extension headers upon each other"
		}
		if p.size > int64(len(raw)-512) {
			return p, "an extension header of another size than it says"
		}
		data := raw[512 : 512+p.size]
		if end := raw[512+p.size:]; (flag == 'L' || flag == 'K') && bytes.IndexByte(data, 0) < 0 && (p.size%512 == 0 || len(end) == 0 || end[0] != 0) {
			return p, "a long name or link that does not end where its size says"
		}
		raw = raw[min(int64(len(raw)), 512+(p.size+511)&^511):]
		text, _, _ := strings.Cut(string(data), "\x00")
		switch flag {
		case 'L':
			p.name = text
		case 'K':
			p.link = text
		default:
			if records, odd = parseRecords(string(data)); odd != "" {
				return p, odd
			}
		}
		if flag != 'x' && flag != 'g' && text == "" {
			return p, "an extension header that says nothing"
		}
		if flag == 'g' {
			if _, comment := records["comment"]; len(records) > 1 || len(records) == 1 && !comment || len(raw) > 0 {
				return p, "a global extended header that is more than a comment"
			}
			return p, ""
		}
	}
	return p, p.finish(raw, records)
}

// finish takes from the last header what no extension header has given.
func (p *plainHeader) finish(block []byte, records map[string]string) (odd string) {
	text := func(from, to int) string {
		s, _, _ := strings.Cut(string(block[from:to]), "\x00")
		return s
	}
	if string(block[508:512]) == "tar\x00" {
		return "a header of star's own format"
	}
	if p.name == "" {
		p.name = text(0, 100)
		if dir := text(345, 500); dir != "" && string(block[257:263]) == "ustar\x00" {
			p.name = dir + "/" + p.name
		}
	}
	if p.link == "" {
		p.link = text(157, 257)
	}
	if name, ok := records["path"]; ok {
		p.name = name
	}
	if link, ok := records["linkpath"]; ok {
		p.link = link
	}
	if size, ok := records["size"]; ok {
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil {
			return "a malformed extended header"
		}
		p.size = n
	}
	return ""
}

// parseRecords reads the records of an extended header (POSIX.1-2024, pax, "pax
// Extended Header"), of which those that archive/tar and GNU tar heed must be well-formed, too.
func parseRecords(text string) (records map[string]string, odd string) {
	records = map[string]string{}
	for text != "" {
		digits, _, _ := strings.Cut(text, " ")
		n, err := strconv.ParseUint(digits, 10, 31)
		if err != nil || int(n) > len(text) || int(n) < len(digits)+4 || text[n-1] != '\n' {
			return nil, "a malformed extended header"
		}
		key, value, ok := strings.Cut(text[len(digits)+1:n-1], "=")
		if text = text[n:]; !ok || key == "" || strings.IndexByte(" \t\n\v\f\r", key[0]) >= 0 {
			return nil, "a malformed extended header"
		}
		form, heeded := recordForms[key]
		switch {
		case strings.HasPrefix(key, "GNU."): // sparse files, whose holes a few bytes can make as large as they like, and parts of files
			return nil, "a sparse file, or another extension of GNU's own"
		case heeded && !form(value):
			return nil, "a malformed extended header"
		}
		records[key] = value
	}
	return records, ""
}

var recordForms = map[string]func(value string) bool{
	"path": isName, "linkpath": isName, "size": isSize, "uid": isID, "gid": isID, "mtime": isTime, "atime": isTime, "ctime": isTime,
}

func isName(value string) bool { return value != "" && !strings.Contains(value, "\x00") }
func isSize(value string) bool { return isNumber(value, 18) }
func isID(value string) bool   { return isNumber(value, 9) }

func isTime(value string) bool {
	seconds, fraction, _ := strings.Cut(strings.TrimPrefix(value, "-"), ".")
	return isNumber(seconds, 18) && strings.Trim(fraction, decimal) == ""
}

const decimal = "0123456789"

// isNumber says whether a value is one to most decimal digits.
func isNumber(value string, most int) bool {
	return value != "" && len(value) <= most && strings.Trim(value, decimal) == ""
}

// number reads a number of a tar header that every reader reads in the same way: in
// octal, after spaces and before a space or NUL, or in base 256; a field of NULs
// is 0. It has to fit 63 bits.
func number(field []byte) (n int64, ok bool) {
	if field[0] == 0x80 {
		for _, c := range field[1:] {
			if n >= 1<<55 {
				return 0, false
			}
			n = n<<8 + int64(c)
		}
		return n, true
	}
	if len(bytes.Trim(field, "\x00")) == 0 {
		return 0, true
	}
	digits := bytes.TrimLeft(field, " ")
	if i := bytes.IndexAny(digits, " \x00"); i >= 0 {
		digits = digits[:i]
	}
	u, err := strconv.ParseUint(string(digits), 8, 63)
	return int64(u), err == nil
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

// maxHeaders is how many bytes of headers of one entry are looked at; with more it
// is refused, for they are not whole then.
const maxHeaders = 256 << 10

func (t *tail) Read(p []byte) (int, error) {
	if t.source.err == nil { // much may be unpacked with nothing being read
		t.source.err = t.source.ctx.Err()
	}
	if t.source.err != nil {
		return 0, t.source.err
	}
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
		return corruptf("archive: not a tar archive (or one in gzip, zstd, xz or bzip2), or a damaged one: %w", err)
	}
	return err
}

// end checks that the archive had its two blocks of zeros (POSIX.1-2024, pax,
// "ustar Interchange Format"), and reads on to the end of the stream, where
// only zeros may follow.
func (t *tail) end(padding int64, far *reading) error {
	t.headers()
	if t.zeros < padding+1024 {
		return fmt.Errorf("archive: its end is missing (two blocks of zeros): %w", incomplete{})
	}
	far.atEnd.Store(true)
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
