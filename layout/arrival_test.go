package layout_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"irfs/layout"
	"irfs/layout/sample"
)

// noise is bytes that no compression makes smaller, the same each time.
func noise(n int) string {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return string(b)
}

// holey is an archive in which there is a long run of zeros, and another one at its end.
func holey(t testing.TB) []byte {
	l := sample.New()
	l.Tag("holey", l.Image(sample.Linux("amd64"), sample.Plain("noise", noise(100_000), "zeros", strings.Repeat("\x00", 300_000), "end", "x"), sample.Gzip("a", noise(30_000))))
	return append(archive(t, l), make([]byte, 200_000)...)
}

// inOrder gives what becomes of an archive that is read from its start to its end.
func inOrder(t testing.TB, archive []byte) map[string]string {
	t.Helper()
	dir := t.TempDir()
	_, err := importAs(context.Background(), registry(t, dir), "app", archive, layout.OnExistFail)
	must(t, err)
	return tree(t, dir+"/app")
}

// packings are the commands that archives are compressed by; "" for none.
var packings = []string{"", "gzip", "zstd", "xz", "bzip2"}

func packedBy(t testing.TB, command string, data []byte) []byte {
	if command == "" {
		return data
	}
	return packed(t, command, data)
}

// unnamed counts the files below dir that this process has open and that have no name, as a Scratch has.
func unnamed(t testing.TB, dir string) (n int) {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, fd := range open {
		target, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		if strings.HasPrefix(target, dir) && strings.HasSuffix(target, " (deleted)") {
			n++
		}
	}
	return n
}

// Whatever the order in which an archive is written, and whatever of its zeros is not, it becomes the app that it becomes in order.
func TestArrivalInAnyOrder(t *testing.T) {
	ctx := context.Background()
	plain := holey(t)
	wanted := inOrder(t, plain)
	var archives [][]byte
	for _, command := range packings {
		archives = append(archives, packedBy(t, command, plain))
	}
	end := (bytes.LastIndexFunc(plain, func(r rune) bool { return r != 0 })+512)&^511 + 1024 // of the archive itself
	ignore := goleak.IgnoreCurrent()
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		must(r, err)
		reg, err := layout.Open(dir)
		must(r, err)
		defer reg.Close()
		draw := func(of string, max int) int { return rapid.IntRange(0, max).Draw(r, of) }

		kind := draw("packing", len(packings)-1)
		text := archives[kind]
		cuts := append(rapid.SliceOfNDistinct(rapid.IntRange(1, len(text)-1), 0, 12, rapid.ID).Draw(r, "cuts"), 0, len(text))
		slices.Sort(cuts)
		var pieces [][2]int
		for i := range cuts[1:] {
			pieces = append(pieces, [2]int{cuts[i], cuts[i+1]})
		}
		switch draw("order", 3) {
		case 0:
		case 1:
			slices.Reverse(pieces)
		default:
			pieces = rapid.Permutation(pieces).Draw(r, "pieces")
		}

		a := reg.Receive(layout.Intake{Owner: me})
		defer reg.StopReceiving()
		defer a.Abort()
		if rapid.Bool().Draw(r, "size first") {
			must(r, a.Truncate(int64(len(text))))
		}
		write := func(p []byte, off int) {
			if n, err := a.WriteAt(ctx, p, int64(off)); n != len(p) || err != nil {
				r.Fatalf("%d bytes at %d: %d, %v", len(p), off, n, err)
			}
		}
		covered := make([]bool, len(text)) // what was written
		next := 0                          // what was taken in
		for i, piece := range pieces {
			from, to := piece[0], piece[1]
			if len(bytes.Trim(text[from:to], "\x00")) == 0 && rapid.Bool().Draw(r, "leave out") {
				continue
			}
			if from > next && draw("twice", 3) == 0 { // not taken in, so that the last one counts
				write(bytes.Repeat([]byte{'?'}, to-from), from)
			}
			from = max(from-draw("overlap", 3000), next)
			to = min(to+draw("overlap", 3000), len(text))
			write(text[from:to], from)
			for j := from; j < to; j++ {
				covered[j] = true
			}
			for next < len(text) && covered[next] {
				next++
			}
			for j := i + 1; j < len(pieces); j++ {
				pieces[j][0] = max(pieces[j][0], next) // what is left of it
				pieces[j][1] = max(pieces[j][1], pieces[j][0])
			}
			ahead := slices.Contains(covered[next:], true)
			whole, err := a.Complete(ctx, false)
			if err != nil {
				r.Fatal(err)
			}
			switch {
			case kind == 0 && whole != (next >= end && !ahead):
				r.Fatalf("%d bytes of %d: complete is %v", next, end, whole)
			case whole && (next == 0 || ahead):
				r.Fatalf("%d bytes, and more ahead: complete", next)
			}
		}
		must(r, a.Truncate(int64(len(text))))
		if a.Size() != int64(len(text)) {
			r.Errorf("%d bytes", a.Size())
		}
		whole, err := a.Complete(ctx, true)
		must(r, err)
		if !whole {
			r.Fatal("all was written, and it is not complete")
		}
		staged, err := a.Finish(ctx)
		must(r, err)
		_, err = staged.Publish(ctx, "app", layout.OnExistFail)
		staged.Discard()
		must(r, err)
		reg.StopReceiving()
		if n := unnamed(t, dir); n != 0 {
			r.Errorf("%d files are left open", n)
		}
		got, err := sample.Tree(dir)
		must(r, err)
		for name, text := range wanted {
			if got[filepath.Join("app", name)] != text {
				r.Errorf("%s is %.100q, and in order %.100q", name, got[filepath.Join("app", name)], text)
			}
		}
		if len(got) != len(wanted)+1 {
			r.Errorf("%d files and directories", len(got))
		}
		must(r, goleak.Find(ignore))
	})
}

// Whenever it is aborted, nothing is left.
func TestArrivalAborted(t *testing.T) {
	ctx := context.Background()
	plain := holey(t)
	dir := t.TempDir()
	must(t, small().WriteDir(dir+"/other"))
	reg := registry(t, dir)
	before := tree(t, dir)
	ignore := goleak.IgnoreCurrent()
	for _, command := range packings {
		text := packedBy(t, command, plain)
		for i := range 12 {
			for _, backwards := range []bool{false, true} {
				a := reg.Receive(layout.Intake{Owner: me})
				upTo := len(text) * i / 11
				if from := upTo / 2; backwards {
					_, err := a.WriteAt(ctx, text[from:upTo], int64(from))
					must(t, err)
					_, err = a.WriteAt(ctx, text[:from/2], 0)
					must(t, err)
				} else {
					_, err := a.WriteAt(ctx, text[:upTo], 0)
					must(t, err)
				}
				if i == 11 && !backwards {
					_, err := a.Complete(ctx, true)
					must(t, err)
				}
				a.Abort()
				a.Abort()
				if n := unnamed(t, dir); n != 0 {
					t.Errorf("%s: after %d bytes, %d files are left open", command, upTo, n)
				}
				if t.Failed() {
					return
				}
			}
			same(t, dir, before)
		}
	}
	reg.StopReceiving()
	same(t, dir, before)
	must(t, goleak.Find(ignore))
}

// The windows of archives that are taken in at a time are bounded together, by what each really has; when one has ended there is room for the next.
func TestArrivalsWithWindows(t *testing.T) {
	ctx := context.Background()
	plain := holey(t)
	reg := registry(t, t.TempDir())
	begun := func(text []byte) (*layout.Arrival, error) {
		a := reg.Receive(layout.Intake{Owner: me})
		t.Cleanup(a.Abort)
		_, err := a.WriteAt(ctx, text[:len(text)/2], 0)
		return a, err
	}
	for _, row := range []struct {
		command string
		most    int // so many at a time
	}{
		{"zstd --zstd=wlog=23", 32}, {"xz", 32}, {"zstd --long=26", 4}, {"xz -9", 4}, {"bzip2", 64}, {"zstd", 96},
	} {
		t.Run(row.command, func(t *testing.T) {
			text := packed(t, row.command, plain)
			var list []*layout.Arrival
			defer func() {
				for _, a := range list {
					a.Abort()
				}
			}()
			for range row.most {
				a, err := begun(text)
				list = append(list, a)
				must(t, err)
			}
			_, err := begun(text)
			want(t, err, layout.ErrBusy, "the windows of all archives in zstd, xz or bzip2")
			for _, command := range []string{"gzip", ""} { // which need none
				a, err := begun(packedBy(t, command, plain))
				must(t, err)
				a.Abort()
			}
			list[0].Abort()
			list[0], err = begun(text)
			must(t, err)
		})
	}
}

// A later part of an archive may have a larger window than its beginning. That counts too.
func TestArchiveWhoseWindowGrows(t *testing.T) {
	ctx := context.Background()
	plain := holey(t)
	reg := registry(t, t.TempDir())
	small, large := packed(t, "zstd --zstd=wlog=12", plain[:100_000]), packed(t, "zstd --long=26", plain[100_000:])
	var list []*layout.Arrival
	for range 5 {
		a := reg.Receive(layout.Intake{Owner: me})
		t.Cleanup(a.Abort)
		_, err := a.WriteAt(ctx, small, 0)
		must(t, err)
		list = append(list, a)
	}
	for i, a := range list {
		_, err := a.WriteAt(ctx, large, int64(len(small)))
		if i < 4 {
			must(t, err)
		} else {
			want(t, err, layout.ErrBusy, "the windows of all archives")
		}
	}
	_, err := reg.Stage(ctx, bytes.NewReader(append(packed(t, "xz -0", plain[:100_000]), packed(t, "xz -9", plain[100_000:])...)), layout.Intake{Owner: me})
	want(t, err, layout.ErrLimit, "one that grows from block to block")
}

// Every error is final, so that no archive is taken in without what could not be written.
func TestArrivalThatFailed(t *testing.T) {
	ctx := context.Background()
	text := holey(t)
	for _, row := range []struct {
		name string
		do   func(a *layout.Arrival) error
		kind error
	}{
		{"written twice", func(a *layout.Arrival) error {
			_, err := a.WriteAt(ctx, text[:1], 0)
			return err
		}, layout.ErrRewritten},
		{"written twice, the last byte", func(a *layout.Arrival) error {
			_, err := a.WriteAt(ctx, text[49_999:60_000], 49_999)
			return err
		}, layout.ErrRewritten},
		{"cut", func(a *layout.Arrival) error { return a.Truncate(49_999) }, layout.ErrRewritten},
		{"cut to nothing", func(a *layout.Arrival) error { return a.Truncate(0) }, layout.ErrRewritten},
		{"zeros that were not written", func(a *layout.Arrival) error {
			must(t, a.Truncate(int64(len(text))))
			_, err := a.Complete(ctx, true)
			return err
		}, layout.ErrCorrupt},
		{"other bytes", func(a *layout.Arrival) error {
			_, err := a.WriteAt(ctx, bytes.Repeat([]byte{'?'}, len(text)-50_000), 50_000)
			return err
		}, layout.ErrCorrupt},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			reg := registry(t, dir)
			before := tree(t, dir)
			ignore := goleak.IgnoreCurrent()
			a := reg.Receive(layout.Intake{Owner: me})
			_, err := a.WriteAt(ctx, text[:50_000], 0)
			must(t, err)
			want(t, row.do(a), row.kind, "archive: ")
			want(t, a.Err(), row.kind, "archive: ")
			_, err = a.WriteAt(ctx, text[50_000:], 50_000)
			want(t, err, row.kind, "archive: ")
			for _, closing := range []bool{false, true} {
				if whole, err := a.Complete(ctx, closing); whole || !errors.Is(err, row.kind) {
					t.Errorf("complete: %v, %v", whole, err)
				}
			}
			if staged, err := a.Finish(ctx); staged != nil || !errors.Is(err, row.kind) {
				t.Errorf("finish: %v, %v", staged, err)
			}
			reg.StopReceiving()
			same(t, dir, before)
			must(t, goleak.Find(ignore))
		})
	}
}

// Finish before the end commits nothing.
func TestArrivalFinishedEarly(t *testing.T) {
	ctx := context.Background()
	plain := holey(t)
	dir := t.TempDir()
	reg := registry(t, dir)
	before := tree(t, dir)
	for _, command := range packings {
		text := packedBy(t, command, plain)
		for _, upTo := range []int{0, 1, 3, 600, len(text) / 2} {
			a := reg.Receive(layout.Intake{Owner: me})
			_, err := a.WriteAt(ctx, text[:upTo], 0)
			must(t, err)
			if whole, err := a.Complete(ctx, false); whole || err != nil {
				t.Errorf("%s: complete after %d bytes: %v, %v", command, upTo, whole, err)
			}
			staged, err := a.Finish(ctx)
			if staged != nil {
				t.Errorf("%s: after %d bytes something was staged", command, upTo)
			}
			want(t, err, layout.ErrIncomplete, "archive: ")
			same(t, dir, before)
		}
	}
}

// What comes after the archive's end belongs to it until all of it was looked at.
func TestArrivalWithMoreAfterItsEnd(t *testing.T) {
	ctx := context.Background()
	text := holey(t)
	for after, kind := range map[string]error{"\x00": nil, "x": layout.ErrCorrupt} {
		t.Run(fmt.Sprintf("%q", after), func(t *testing.T) {
			dir := t.TempDir()
			reg := registry(t, dir)
			before := tree(t, dir)
			a := reg.Receive(layout.Intake{Owner: me})
			defer a.Abort()
			_, err := a.WriteAt(ctx, text, 0)
			must(t, err)
			if whole, err := a.Complete(ctx, false); !whole || err != nil {
				t.Errorf("at its end: %v, %v", whole, err)
			}
			_, err = a.WriteAt(ctx, []byte(after), int64(len(text))+1e6)
			must(t, err)
			if whole, err := a.Complete(ctx, false); whole || err != nil {
				t.Errorf("with a byte far after its end: %v, %v", whole, err)
			}
			if whole, err := a.Complete(ctx, true); whole != (kind == nil) || !errors.Is(err, kind) {
				t.Errorf("with no more to come: %v, %v", whole, err)
			}
			a.Abort()
			reg.StopReceiving()
			same(t, dir, before)
		})
	}
}

// A size that nobody could ever write costs nothing.
func TestArrivalOfAnEnormousSize(t *testing.T) {
	const enormous = 1 << 60
	ctx := context.Background()
	text := holey(t)
	claim := file("blobs/sha256/"+hexOf('d'), "", bytesOf(1<<32)) // 4 GiB of zeros are yet to come
	for _, row := range []struct {
		name    string
		written string
		kind    error // of Complete; nil where the end has come
		finish  error
	}{
		{"nothing", "", nil, layout.ErrCorrupt},
		{"half", string(text[:50_000]), layout.ErrCorrupt, layout.ErrCorrupt},
		{"all", string(text), nil, nil},
		{"half of gzip", string(packed(t, "gzip", text)[:50_000]), layout.ErrCorrupt, layout.ErrCorrupt},
		{"a file that is large by itself", claim, context.Canceled, layout.ErrIncomplete},
	} {
		for _, abort := range []bool{false, true} {
			t.Run(fmt.Sprint(row.name, ", aborted ", abort), func(t *testing.T) {
				dir := t.TempDir()
				reg := registry(t, dir)
				before := tree(t, dir)
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				defer time.AfterFunc(200*time.Millisecond, cancel).Stop()
				start := time.Now()
				a := reg.Receive(layout.Intake{Owner: me})
				defer a.Abort()
				_, err := a.WriteAt(ctx, []byte(row.written), 0)
				must(t, err)
				must(t, a.Truncate(enormous))
				if abort {
					a.Abort()
				} else {
					whole, err := a.Complete(ctx, true)
					if whole != (row.kind == nil) || !errors.Is(err, row.kind) {
						t.Errorf("complete: %v, %v", whole, err)
					}
					staged, err := a.Finish(ctx)
					if !errors.Is(err, row.finish) && !errors.Is(err, context.Canceled) || (staged == nil) != (err != nil) {
						t.Errorf("finish: %v", err)
					}
					if staged != nil {
						staged.Discard()
					}
				}
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("it took %v", took)
				}
				reg.StopReceiving()
				same(t, dir, before)
			})
		}
	}
}

// Bytes that come in order are written once, where they stay, while they come.
func TestArrivalIsOnePass(t *testing.T) {
	ctx := context.Background()
	const piece, lag = 128 << 10, 256 << 10
	l := sample.New()
	l.Tag("x", l.Image(sample.Linux("amd64"), sample.Plain("a", noise(6<<20)), sample.Plain("b", noise(5<<20))))
	text := archive(t, l)
	dir := t.TempDir()
	reg := registry(t, dir)
	a := reg.Receive(layout.Intake{Owner: me})
	defer a.Abort()
	stored := func() (n int) {
		must(t, filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				info, err := e.Info()
				n += int(info.Size())
				return err
			}
			return err
		}))
		return n
	}
	begin := written(t)
	for off := 0; off < len(text); off += piece {
		_, err := a.WriteAt(ctx, text[off:min(off+piece, len(text))], int64(off))
		must(t, err)
		if n := stored(); n < off+piece-lag || n > off+piece {
			t.Fatalf("after %d bytes there are %d in files", off+piece, n)
		}
		if n := unnamed(t, dir); n != 0 {
			t.Fatalf("after %d bytes there is a file without a name", off+piece)
		}
	}
	staged, err := a.Finish(ctx)
	must(t, err)
	staged.Discard()
	if n := written(t) - begin; n > len(text)*105/100 || n < len(text)*95/100 {
		t.Errorf("%d bytes were written for an archive of %d", n, len(text))
	}

	t.Run("but out of order", func(t *testing.T) { // so that the above means something
		a := reg.Receive(layout.Intake{Owner: me})
		defer a.Abort()
		_, err := a.WriteAt(ctx, text[1000:2000], 1000)
		must(t, err)
		if n := unnamed(t, dir); n > 1 || n == 0 && stored() == 0 {
			t.Errorf("%d files without a name", n)
		}
	})
	reg.StopReceiving()
}

// written gives how many bytes this process has written, to whatever file.
func written(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/io")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if number, ok := strings.CutPrefix(line, "wchar: "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(number))
			must(t, err)
			return n
		}
	}
	t.Fatal("no wchar in /proc/self/io")
	return 0
}
