package layout

import (
	"bufio"
	"context"
	"io"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/semaphore"
)

// A decompressor looks back into a window of what it made, which is as large as whoever compressed it liked. This file
// keeps the windows of all that a process unpacks at a time under a bound.

// What is more is refused, an [ErrLimit].
const (
	// MaxWindow is how many bytes the window of a compressed archive may have. `xz -9` and `zstd --ultra -21` make it that large;
	// `zstd --long` and `-22` twice so.
	MaxWindow = 64 << 20
	// MaxLayerWindow is how many bytes the window of a layer may have. `zstd --long` makes it that large.
	MaxLayerWindow = 128 << 20
	// MaxWindows is how many bytes the archives in zstd, xz or bzip2 that a process takes in at a time may have for their windows, and
	// besideWindow each: enough for 32 with windows of 8 MiB. More is ErrBusy, for an archive takes as long as its writer likes.
	MaxWindows = 288 << 20
	// MaxLayerWindows is the same for the layers that it checks at a time: enough for two with the largest window. More wait their turn.
	MaxLayerWindows = 258 << 20
)

// besideWindow is more than what a decompressor takes besides its window (measured: zstd 0.7 MB, xz 0.1 MB), and more than what
// checking a layer takes that has none.
const besideWindow = 1 << 20

// windows is the memory for the windows of a registry's archives and layers.
type windows struct{ archives, layers *semaphore.Weighted }

func newWindows() windows {
	return windows{semaphore.NewWeighted(MaxWindows), semaphore.NewWeighted(MaxLayerWindows)}
}

// A room is the part of that memory that one archive or layer has.
type room struct {
	of   *semaphore.Weighted
	get  func(bytes int64) error
	has  int64
	rest func() // see heavy; nil if it has little
}

// ofArchive is the room of an archive: where there is none, it cannot be had.
func (w windows) ofArchive() *room {
	return &room{of: w.archives, get: func(bytes int64) error {
		if !w.archives.TryAcquire(bytes) {
			return kindf(ErrBusy, "archive: the windows of all archives in zstd, xz or bzip2 that are being taken in would be over %d bytes together; try again when others are there, or unpack it first", MaxWindows)
		}
		return nil
	}}
}

// ofLayer is the room of a layer, which waits until there is some, or ctx is done.
func (w windows) ofLayer(ctx context.Context) *room {
	return &room{of: w.layers, get: func(bytes int64) error { return w.layers.Acquire(ctx, bytes) }}
}

// take makes room for a window of that size. What was had for a smaller one is given back first: nobody waits who has what others wait for.
func (r *room) take(window int64) error {
	if r.has >= window+besideWindow {
		return nil
	}
	r.giveBack()
	if err := r.get(window + besideWindow); err != nil {
		return err
	}
	r.has = window + besideWindow
	if window > besideWindow {
		r.rest = heavy.begin()
	}
	return nil
}

func (r *room) giveBack() {
	r.of.Release(r.has)
	r.has = 0
	if r.rest != nil {
		r.rest()
		r.rest = nil
	}
}

// A zstdReader unpacks the frames of a zstd file one after the other (RFC 8878), each by a decoder that has room for its window.
type zstdReader struct {
	in    *bufio.Reader
	room  *room
	limit int64 // of a window, in bytes
	frame zstdFrame
	open  bool
	z     *zstd.Decoder
	of    int64 // the largest window that z was made for
}

func newZstdReader(in *bufio.Reader, room *room, limit int64) *zstdReader {
	return &zstdReader{in: in, room: room, limit: limit, frame: zstdFrame{in: in}}
}

// Read gives zstd.ErrWindowSizeExceeded for a window over the limit, and the error of who has no room.
func (r *zstdReader) Read(p []byte) (int, error) {
	for {
		if !r.open {
			if err := r.next(); err != nil {
				return 0, err
			}
		}
		n, err := r.z.Read(p)
		if err == io.EOF {
			r.open, err = false, nil
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// next begins with the next frame that is no skippable one; io.EOF if there is none.
func (r *zstdReader) next() error {
	for {
		head, err := r.in.Peek(zstd.HeaderMaxSize)
		if err != nil && err != io.EOF || len(head) == 0 {
			return err
		}
		var h zstd.Header
		if err := h.Decode(head); err != nil {
			return err
		}
		if h.Skippable {
			if err := skip(r.in, int64(h.HeaderSize)+int64(h.SkippableSize)); err != nil {
				return err
			}
			continue
		}
		window := h.WindowSize
		if h.SingleSegment {
			window = max(h.FrameContentSize, zstd.MinWindowSize)
		}
		if window > uint64(r.limit) {
			return zstd.ErrWindowSizeExceeded
		}
		r.frame.begin(int64(h.HeaderSize), h.HasCheckSum)
		r.open = true
		if r.z != nil && int64(window) <= r.of {
			return r.z.Reset(&r.frame)
		}
		r.drop() // a decoder that is given a larger window has both for a while
		if err := r.room.take(int64(window)); err != nil {
			return err
		}
		r.of = int64(window)
		r.z, err = zstd.NewReader(&r.frame, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
		return err
	}
}

func (r *zstdReader) drop() {
	if r.z != nil {
		r.z.Close()
		r.z = nil
	}
}

func skip(in *bufio.Reader, bytes int64) error {
	_, err := io.CopyN(io.Discard, in, bytes)
	return cut(err)
}

// A zstdFrame gives the bytes of one frame, whatever comes behind it: a header, blocks each of which says how long it is, and maybe a checksum
// (RFC 8878, section 3.1.1).
type zstdFrame struct {
	in       *bufio.Reader
	left     int64 // bytes of the part that is being read
	then     func() error
	checksum bool
}

func (f *zstdFrame) begin(header int64, checksum bool) {
	f.left, f.then, f.checksum = header, f.block, checksum
}

func (f *zstdFrame) Read(p []byte) (int, error) {
	for f.left == 0 {
		if err := f.then(); err != nil {
			return 0, err
		}
	}
	n, err := f.in.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	return n, cut(err)
}

// block finds out how long the next block is.
func (f *zstdFrame) block() error {
	const header, raw, rle = 3, 0, 1
	head, err := f.in.Peek(header)
	if err != nil {
		return cut(err)
	}
	n := int64(head[0]) | int64(head[1])<<8 | int64(head[2])<<16
	last, kind, size := n&1 != 0, n>>1&3, n>>3
	if kind == rle {
		size = 1
	}
	f.left = header + size
	if last {
		f.then = f.tail
	}
	return nil
}

func (f *zstdFrame) tail() error {
	f.then = func() error { return io.EOF }
	if f.checksum {
		f.left = 4
	}
	return nil
}

// cut is the error of a file that ends in the middle of something.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// xzWindow is how many bytes the decompressor of an xz file may want for its window: what the first block says, and for the blocks
// behind it 8 MiB, as `xz -6` makes it (The .xz File Format 1.1.0, sections 3.1 and 5.3.1). What is malformed gets the least.
func xzWindow(in *bufio.Reader) (int64, error) {
	const least = 8 << 20
	const streamHeader = 12
	head, err := in.Peek(streamHeader + 1)
	if err == nil {
		head, err = in.Peek(streamHeader + 4*(int(head[streamHeader])+1))
	}
	if err != nil && err != io.EOF {
		return 0, err
	}
	block := head[min(len(head), streamHeader):]
	if len(block) < 2 {
		return least, nil
	}
	flags := block[1]
	block = block[2:]
	for _, given := range []byte{flags & 0x40, flags & 0x80} { // two sizes, of up to nine bytes each
		for more := given != 0; more && len(block) > 0; block = block[1:] {
			more = block[0]&0x80 != 0
		}
	}
	for range flags & 3 { // the filters before the last
		if len(block) < 2 || len(block) < 2+int(block[1]) {
			return least, nil
		}
		block = block[2+block[1]:]
	}
	const lzma2, most = 0x21, 39
	if len(block) < 3 || block[0] != lzma2 || block[1] != 1 || block[2] > most {
		return least, nil
	}
	return max(least, int64(2|block[2]&1)<<(block[2]/2+11)), nil
}
