package layout

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"
)

// MaxRatio is how many bytes a byte of a compressed archive may become, on the
// whole and beyond the first GiB: what is more is a decompression bomb, an [ErrLimit].
const MaxRatio = 200

// Compressed names the program that compressed a file which begins so, or "".
func Compressed(head []byte) string {
	switch name := beginsLike(head); name {
	case "bzip2":
		// Letters alone may begin a tar file: those of a name.
		if len(head) < 10 || head[3] < '1' || head[3] > '9' || string(head[4:10]) != "1AY&SY" && string(head[4:10]) != "\x17\x72\x45\x38\x50\x90" {
			return ""
		}
		return name
	case skippableFrame:
		return ""
	default:
		return name
	}
}

// decompress gives what a file unpacks to: itself, if it is not compressed. It
// is told by how it begins. The window is taken from room, which is given back by close, which has to be called.
func decompress(r io.Reader, room *room) (unpacked io.Reader, close func(), err error) {
	packed := &countedReader{r: r}
	begin := bufio.NewReader(packed)
	head, err := begin.Peek(10)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	name := Compressed(head)
	if name == "" {
		return begin, func() {}, nil
	}
	in := bufio.NewReaderSize(begin, 64<<10)
	u := &unpacker{name: name, packed: packed}
	close = room.giveBack
	switch name {
	case "gzip":
		u.r, err = newGunzip(in)
	case "zstd":
		z := newZstdReader(in, room, MaxWindow)
		u.r = z
		close = func() {
			z.drop()
			room.giveBack()
		}
	case "xz":
		var window int64
		if window, err = xzWindow(in); err != nil {
			break
		}
		window = min(window, MaxWindow)
		if err = room.take(window); err == nil {
			u.r, err = xz.NewReader(in, uint32(window))
		}
	case "bzip2":
		const block = 4 * 900_000 // which is its window
		if err = room.take(block); err == nil {
			u.r = bzip2.NewReader(in)
		}
	}
	if err != nil {
		close()
		return nil, nil, u.failed(err)
	}
	return u, close, nil
}

// A gunzip unpacks gzip members one after the other. Unlike a gzip.Reader by
// itself it gives what a member holds before it looks for another one,
// for which it may have to wait.
type gunzip struct {
	in *bufio.Reader
	z  *gzip.Reader
}

func newGunzip(in *bufio.Reader) (*gunzip, error) {
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return &gunzip{in, z}, nil
}

func (g *gunzip) Read(p []byte) (int, error) {
	n, err := g.z.Read(p)
	if n > 0 && err == io.EOF {
		err = nil // that is for the next call
	}
	if err != io.EOF {
		return n, err
	}
	if more, err := anotherMember(g.in); err != nil {
		return 0, err
	} else if !more {
		return 0, io.EOF
	}
	if err := g.z.Reset(g.in); err == io.EOF { // in the header's name or comment, and not the end of all members
		return 0, io.ErrUnexpectedEOF
	} else if err != nil {
		return 0, err
	}
	g.z.Multistream(false)
	return 0, nil
}

// anotherMember reports whether a gzip file goes on behind one of its members. Zeros may be behind the last one, and nothing behind these:
// gzip(1) passes over it, and other programs read on.
func anotherMember(in *bufio.Reader) (bool, error) {
	for padded := false; ; padded = true {
		next, err := in.Peek(1)
		switch {
		case err == io.EOF:
			return false, nil
		case err != nil:
			return false, err
		case next[0] != 0 && padded:
			return false, corruptf("there is something behind the zeros at the end of gzip's data")
		case next[0] != 0:
			return true, nil
		}
		in.Discard(1)
	}
}

type countedReader struct {
	r io.Reader
	n int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// An unpacker reads what a decompressor makes, and tells bombs and its errors.
type unpacker struct {
	name   string
	r      io.Reader
	packed *countedReader
	n      int64
}

func (u *unpacker) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	u.n += int64(n)
	if u.n > 1<<30 && (u.n-1<<30)/MaxRatio > u.packed.n {
		err = &unpackingError{limitf("archive: compressed by %s to less than 1/%d of its size: a decompression bomb", u.name, MaxRatio)}
	} else if err != nil && err != io.EOF {
		err = u.failed(err)
	}
	return n, err
}

// An unpackingError tells a decompressor's error from those of who reads what it makes.
type unpackingError struct{ error }

func (e *unpackingError) Unwrap() error { return e.error }

func (u *unpacker) failed(err error) error {
	switch {
	case errors.Is(err, ErrBusy):
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, xz.ErrBuf):
		err = fmt.Errorf("archive: compressed by %s, and it ends too early: %w", u.name, incomplete{})
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, xz.ErrMemlimit):
		err = limitf("archive: compressed by %s with a window over the limit of %d bytes, or one that grows from block to block; compress it with less, or unpack it first", u.name, MaxWindow)
	case u.n > 0 && (errors.Is(err, gzip.ErrHeader) || errors.Is(err, zstd.ErrMagicMismatch)):
		err = corruptf("archive: there is data after its end, which is not compressed by %s: %w", u.name, err)
	default:
		err = corruptf("archive: cannot be unpacked by %s: %w", u.name, err)
	}
	return &unpackingError{err}
}
