package layout_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"irfs/layout"
	"irfs/layout/sample"
)

// What is written in any order, over again ahead of its turn, and cut in between, arrives as it would be in a plain file.
func TestArrivalIsAsAPlainFile(t *testing.T) {
	ctx := context.Background()
	reg := registry(t, t.TempDir())
	rapid.Check(t, func(r *rapid.T) {
		a, arrived := reg.ReceiveBytes()
		defer arrived()
		const most = 1000
		var file []byte
		covered := make([]bool, 20*most) // what was written, and not cut off
		next := 0                        // what has been handed over
		resize := func(size int) {
			if size < len(file) {
				file = file[:size]
				clear(covered[size:])
			}
			file = append(file, make([]byte, size-len(file))...)
		}
		for i := range rapid.IntRange(1, 60).Draw(r, "calls") {
			off := rapid.IntRange(next, max(next, most)).Draw(r, "offset")
			if rapid.IntRange(0, 5).Draw(r, "cut") == 0 {
				must(r, a.Truncate(int64(off)))
				resize(off)
				continue
			}
			piece := bytes.Repeat([]byte{byte('a' + i%26)}, rapid.IntRange(0, most/4).Draw(r, "bytes"))
			if n, err := a.WriteAt(ctx, piece, int64(off)); n != len(piece) || err != nil {
				r.Fatalf("%d bytes at %d: %d, %v", len(piece), off, n, err)
			}
			resize(max(len(file), off+len(piece)))
			copy(file[off:], piece)
			for j := range piece {
				covered[off+j] = true
			}
			next += slices.Index(covered[next:], false)
		}
		if _, err := a.Complete(ctx, true); err != nil {
			r.Fatal(err)
		}
		if _, err := a.WriteAt(ctx, []byte("x"), int64(len(file))-1); len(file) > 0 && !errors.Is(err, layout.ErrRewritten) {
			r.Errorf("the last byte was handed over, and is written again: %v", err)
		}
		if got := arrived(); !bytes.Equal(got, file) {
			r.Errorf("%q arrived\nwant    %q", got, file)
		}
	})
}

// An order is one in which the pieces of an archive are written.
type order struct {
	name string
	of   func(n int) []int
}

var orders = []order{
	{"reversed", func(n int) []int {
		list := inTurn(n)
		slices.Reverse(list)
		return list
	}},
	{"every second one first", func(n int) (list []int) {
		for from := range 2 {
			for i := 1 - from; i < n; i += 2 {
				list = append(list, i)
			}
		}
		return list
	}},
	{"random", func(n int) []int { return rand.New(rand.NewPCG(1, 2)).Perm(n) }},
}

func inTurn(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// timeToArrive is how long it takes to take in an archive that is written in so many pieces.
func timeToArrive(t testing.TB, text []byte, pieces []int) time.Duration {
	ctx := context.Background()
	reg := registry(t, t.TempDir())
	defer reg.StopReceiving()
	a := reg.Receive(layout.Intake{Owner: me})
	defer a.Abort()
	n := (len(text) + len(pieces) - 1) / len(pieces)
	start := time.Now()
	for _, i := range pieces {
		from, to := min(i*n, len(text)), min((i+1)*n, len(text))
		if _, err := a.WriteAt(ctx, text[from:to], int64(from)); err != nil {
			t.Fatal(err)
		}
	}
	if whole, err := a.Complete(ctx, true); err != nil || !whole {
		t.Fatalf("complete: %v, %v", whole, err)
	}
	took := time.Since(start)
	staged, err := a.Finish(ctx)
	must(t, err)
	staged.Discard()
	return took
}

func archiveOf(t testing.TB, size int) []byte {
	l := sample.New()
	l.Tag("x", l.Image(sample.Linux("amd64"), sample.Plain("a", noise(size))))
	return archive(t, l)
}

// Many small pieces out of order take not much longer than the same in order: time grows with how many there are, and not with the square of that.
func TestArrivalOutOfOrderIsLinear(t *testing.T) {
	const pieces = 1 << 16
	text := archiveOf(t, 64*pieces)
	for _, order := range orders {
		const enough = 4 // so much longer may it take here, beside other tests; the benchmark says how it is
		var ratio float64
		for range 3 {
			straight := timeToArrive(t, text, inTurn(pieces))
			took := timeToArrive(t, text, order.of(pieces))
			if ratio = float64(took) / float64(straight); ratio < enough {
				break
			}
		}
		if ratio >= enough {
			t.Errorf("%s: %.1f times as long as in order", order.name, ratio)
		}
	}
}

// BenchmarkArrival gives, for each order, how many times as long it takes as in order.
func BenchmarkArrival(b *testing.B) {
	for _, piece := range []int{64, 4 << 10} {
		const pieces = 1 << 16
		text := archiveOf(b, piece*pieces)
		for _, order := range orders {
			b.Run(fmt.Sprintf("%d bytes/%s", piece, order.name), func(b *testing.B) {
				var straight, took time.Duration
				for b.Loop() {
					straight += timeToArrive(b, text, inTurn(pieces))
					took += timeToArrive(b, text, order.of(pieces))
				}
				b.ReportMetric(float64(took)/float64(straight), "x-in-order")
				b.ReportMetric(straight.Seconds()/float64(b.N), "s-in-order")
			})
		}
	}
}
