package layout

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"irfs/internal/irfstest"
)

// packedBy is what a program makes of a text.
func packedBy(t testing.TB, command, text string) []byte {
	t.Helper()
	words := strings.Fields(command)
	if _, err := exec.LookPath(words[0]); err != nil {
		irfstest.Skip(t, words[0]+" is not installed")
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// gzipped wraps raw deflate in a gzip member with the right checksum, by Go's own decompressor. ok is false if that refuses it.
func gzipped(deflated []byte) (member []byte, text []byte, ok bool) {
	r := bytes.NewReader(deflated) // a ByteReader, of which flate reads no more than it needs
	text, err := io.ReadAll(io.LimitReader(flate.NewReader(r), 1<<20))
	if err != nil || len(text) == 1<<20 || r.Len() > 0 {
		return nil, nil, false
	}
	member = append([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"), deflated...)
	member = binary.LittleEndian.AppendUint32(member, crc32.ChecksumIEEE(text))
	return binary.LittleEndian.AppendUint32(member, uint32(len(text))), text, true
}

// FuzzDecompress: what an archive unpacks to is what gzip, zstd, xz and bzip2 make of it, or is refused with an error of a known kind; in
// little memory, and in the same way when it comes byte by byte. The beginning of an archive becomes a beginning of it, or is refused. With deflated, data becomes
// the inside of a gzip file with the right checksum, which changes would hardly get past.
func FuzzDecompress(f *testing.F) {
	text := strings.Repeat("irfs ", 40) + strings.Repeat("\x00", 600) + "the end"
	for _, command := range []string{"gzip -n", "zstd -q", "zstd -q --no-check", "xz", "xz -C none", "bzip2"} {
		f.Add(packedBy(f, command+" -c", ""), false)
		whole := packedBy(f, command+" -c", text)
		f.Add(whole, false)
		f.Add(append(bytes.Clone(whole), whole...), false)
		f.Add(whole[:len(whole)-1], false)
		f.Add(append(bytes.Clone(whole), "xyz"...), false)
	}
	for _, command := range []string{"zstd -q --long=26", "zstd -q --long=27", "xz --lzma2=dict=64MiB", "xz --lzma2=dict=128MiB"} {
		f.Add(packedBy(f, command+" -c", text), false)
	}
	f.Add([]byte("\x28\xb5\x2f\xfd\x00\x88\x02\x00\x20\x00x\xfb\xff\x0fx"), false) // blocks that repeat a byte, in zstd (RFC 8878, 3.1.1.2)
	f.Add([]byte("\x50\x2a\x4d\x18\x03\x00\x00\x00abc"), false)                    // a frame that is skipped
	f.Add([]byte("plain"), false)
	f.Add([]byte("\x03\x00"), true)
	f.Add([]byte("\x01\x03\x00\xfc\xffabc"), true)
	f.Fuzz(func(t *testing.T, data []byte, deflated bool) {
		if len(data) > 1<<16 {
			return
		}
		var want []byte
		if deflated {
			var ok bool
			if data, want, ok = gzipped(data); !ok {
				return
			}
		}
		const most = 4 << 20 // of what it unpacks to is read
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := unpacked(bytes.NewReader(data), most)
		runtime.ReadMemStats(&after)
		// A window, what was read here, and the tables and buffers of a decompressor.
		if took := after.TotalAlloc - before.TotalAlloc; took > MaxWindow+4*most+40<<20 {
			t.Fatalf("%d bytes that become %d take %d bytes of memory", len(data), len(got), took)
		}
		if again, againErr := unpacked(iotest.OneByteReader(bytes.NewReader(data)), most); (err == nil) != (againErr == nil) || err == nil && !bytes.Equal(again, got) {
			t.Fatalf("%v; and byte by byte: %v\n%q\n%q", err, againErr, got, again)
		}
		name := Compressed(data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrLimit) || !strings.HasPrefix(err.Error(), "archive: ") {
				t.Fatalf("an error of another kind: %v", err)
			}
			if deflated {
				t.Fatalf("compress/flate makes %q of it, and it is refused: %v", want, err)
			}
			return
		}
		if len(got) == most {
			return
		}
		if name == "" {
			want = data
		} else if !deflated {
			if _, err := exec.LookPath(name); err != nil {
				return
			}
			cmd := exec.Command(name, "-dc")
			cmd.Stdin = bytes.NewReader(data)
			if want, err = cmd.Output(); err != nil {
				t.Fatalf("it becomes %q, and %s refuses it: %v", got, name, err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("by %q it becomes %q, and not %q", name, got, want)
		}
		if name == "" || len(data) > 4096 {
			return
		}
		for n := 1; n < len(data); n += 1 + len(data)/4 {
			if part, err := unpacked(bytes.NewReader(data[:len(data)-n]), most); err == nil && Compressed(data[:len(data)-n]) != "" && !bytes.HasPrefix(got, part) {
				t.Fatalf("without its last %d bytes it becomes %q, and with them %q", n, part, got)
			}
		}
	})
}

// unpacked reads at most so many bytes of what an archive unpacks to.
func unpacked(r io.Reader, most int64) ([]byte, error) {
	u, close, err := decompress(r, newWindows().ofArchive())
	if err != nil {
		return nil, err
	}
	defer close()
	return io.ReadAll(io.LimitReader(u, most))
}
