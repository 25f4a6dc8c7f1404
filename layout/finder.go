package layout

// A finder looks for digests in bytes that may mean anything. It knows no format, so that wherever a program could
// find a digest, it finds that one as well:
//
//   - hex digits, in either case, with an algorithm before them: sha256:<hex>, the tag sha256-<hex>.sig, blobs/sha256/<hex>, sha256%3A<hex>. Hex
//     digits alone, as in-toto has them, are none: nothing can be fetched by them;
//   - the bytes are read as they are, and once more with the escapes of JSON's strings undone (RFC 8259, section 7);
//   - what is base64 of JSON is read likewise, to any depth: inline `data`, the payload of a DSSE envelope.
//
// It holds nothing of what it reads but the last bytes, at each depth. What is in base64 has a quarter fewer bytes than that, so
// that no file is long enough for more than 150 depths.
type finder struct {
	// found is called with text, in lower case, that ends in that many hex digits (at most longestHex), and no digit comes next.
	found func(text []byte, digits int)

	raw, plain hexRun // of the bytes as they are, and without escapes

	// of an escape: how many bytes of it have come, and the digits of \uXXXX
	escape int
	unit   rune

	// of a run of base64: the last characters, which make no whole byte yet
	base64 bool
	bits   uint32
	chars  int
	inline jsonStart
	inner  *finder // of what is inline, if that is JSON
}

// shortestHex and longestHex are how many hex digits the name of a blob may have: from MD5 to SHA-512.
const shortestHex, longestHex = 32, 128

// A hexRun is the end of a text, and how many hex digits it ends in.
type hexRun struct {
	text   [4 * longestHex]byte // in lower case
	n      int
	digits int // the hex digits at its end
}

func (t *hexRun) add(c byte, found func([]byte, int)) {
	switch {
	case '0' <= c && c <= '9', 'a' <= c && c <= 'f':
		t.digits++
	case 'A' <= c && c <= 'F':
		c |= 0x20
		t.digits++
	default:
		t.end(found)
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
	}
	if t.n == len(t.text) {
		t.n = copy(t.text[:], t.text[2*longestHex:])
	}
	t.text[t.n] = c
	t.n++
}

// end says that the digits, if there are any, have ended.
func (t *hexRun) end(found func([]byte, int)) {
	if t.digits >= shortestHex {
		found(t.text[:t.n], min(t.digits, longestHex))
	}
	t.digits = 0
}

// Write scans p, in which a digest may begin or end that is divided among several. It never fails.
func (f *finder) Write(p []byte) (int, error) {
	for _, c := range p {
		f.add(c)
	}
	return len(p), nil
}

func (f *finder) add(c byte) {
	f.raw.add(c, f.found)
	switch {
	case f.escape == 0 && c == '\\':
		f.escape = 1
	case f.escape == 0:
		f.text(c)
	case f.escape == 1 && c == 'u':
		f.escape, f.unit = 2, 0
	case f.escape == 1:
		f.escape = 0
		f.text(unescaped(c))
	default:
		f.digit(c)
	}
}

// unescaped is what a backslash with c stands for.
func unescaped(c byte) byte {
	switch c {
	case 'b', 'f', 't':
		return ' '
	case 'n', 'r':
		return '\n'
	}
	return c
}

// digit adds a digit of \uXXXX.
func (f *finder) digit(c byte) {
	switch {
	case '0' <= c && c <= '9':
		c -= '0'
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		c = c | 0x20 - 'a' + 10
	default: // no escape after all
		f.escape = 0
		f.text(' ')
		f.text(c)
		return
	}
	f.unit = f.unit<<4 | rune(c)
	if f.escape++; f.escape < 6 {
		return
	}
	f.escape = 0
	if f.unit >= 0x80 {
		f.unit = ' '
	}
	f.text(byte(f.unit))
}

// text takes a byte from which escapes are gone.
func (f *finder) text(c byte) {
	f.plain.add(c, f.found)
	six, ok := base64Value(c)
	switch {
	case ok:
		f.base64 = true
		f.bits = f.bits<<6 | uint32(six)
		if f.chars++; f.chars == 4 {
			f.emit(3)
		}
	case f.base64 && c != '\n' && c != '\r': // which decoders of base64 pass over
		f.endInline()
	}
}

// base64Value is the value of a character in base64, of either alphabet (RFC 4648, sections 4 and 5).
func base64Value(c byte) (byte, bool) {
	switch {
	case 'A' <= c && c <= 'Z':
		return c - 'A', true
	case 'a' <= c && c <= 'z':
		return c - 'a' + 26, true
	case '0' <= c && c <= '9':
		return c - '0' + 52, true
	case c == '+', c == '-':
		return 62, true
	case c == '/', c == '_':
		return 63, true
	}
	return 0, false
}

// emit takes the first n bytes that the last characters make.
func (f *finder) emit(n int) {
	for i := range n {
		c := byte(f.bits >> (16 - 8*i))
		if f.inline.add(c) != isJSON {
			continue
		}
		if f.inner == nil {
			f.inner = &finder{found: f.found}
		}
		f.inner.add(c)
	}
	f.bits, f.chars = 0, 0
}

// endInline ends a run of base64.
func (f *finder) endInline() {
	if f.chars > 1 {
		n := f.chars - 1
		f.bits <<= 6 * (4 - f.chars)
		f.emit(n)
	}
	if f.inline == isJSON {
		f.inner.end()
	}
	f.base64, f.bits, f.chars, f.inline = false, 0, 0, unknown
}

// end says that no more will come.
func (f *finder) end() {
	f.raw.end(f.found)
	f.plain.end(f.found)
	f.escape = 0
	if f.base64 {
		f.endInline()
	}
}

// A jsonStart is what the first bytes say of a document: JSON that can name anything begins with a bracket or a quotation mark, after white space or a
// byte order mark.
type jsonStart int

const (
	unknown jsonStart = iota
	isJSON
	noJSON
)

func (j *jsonStart) add(c byte) jsonStart {
	if *j != unknown {
		return *j
	}
	switch c {
	case '{', '[', '"':
		*j = isJSON
	case ' ', '\t', '\n', '\r', 0xef, 0xbb, 0xbf:
	default:
		*j = noJSON
	}
	return *j
}
