package layout

import (
	"context"
	"errors"
	"io"
	"sync"
)

// ErrRewritten: bytes of an archive were written that had been taken in already.
var ErrRewritten = errors.New("rewritten")

// An Arrival is an archive that comes in pieces, as a program writes a file. What
// comes in order is taken in at once, by [Registry.Stage]; what comes ahead
// of its turn lies in a [Scratch] until then. What was never written is zeros.
//
// Writing is for one goroutine at a time.
type Arrival struct {
	reg     *Registry
	cancel  context.CancelFunc
	next    int64 // everything before was handed over
	size    int64
	ahead   *Scratch
	extents extents // what is in ahead, not before next
	reading reading

	mu      sync.Mutex
	cond    sync.Cond
	data    []byte // handed over, and not read yet
	hungry  bool   // everything was read, and more is asked for
	closed  bool   // no more will come
	ended   bool   // Stage is over
	staged  *Staged
	outcome error // why this comes to nothing
}

// maxExtents is how many pieces of an archive may lie apart from each other, ahead of
// their turn; with more it is refused.
const maxExtents = 1 << 16

// Receive begins to take in an archive. Finish or Abort has to be called, and
// [Registry.StopReceiving] in the end.
func (r *Registry) Receive(in Intake) *Arrival {
	r.staging.keep.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	a := &Arrival{reg: r, cancel: cancel}
	a.cond.L = &a.mu
	go func() {
		staged, err := r.stage(ctx, (*feed)(a), in, &a.reading)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.staged, a.ended = staged, true
		if a.outcome == nil {
			a.outcome = err
		}
		a.cond.Broadcast()
	}()
	return a
}

// feed is what Stage reads.
type feed Arrival

func (f *feed) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.data) == 0 {
		if f.closed {
			return 0, io.EOF
		}
		f.hungry = true
		f.cond.Broadcast()
		f.cond.Wait()
	}
	f.hungry = false
	n := copy(p, f.data)
	f.data = f.data[n:]
	return n, nil
}

// give hands p over, and returns when it was taken in: its bytes lie where they
// stay, and any error of theirs is known, but for the last of them, fewer than
// smallFile, which may wait for more. If ctx ends it all ends.
func (a *Arrival) give(ctx context.Context, p []byte) error {
	defer context.AfterFunc(ctx, a.cancel)()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.data = p
	a.cond.Broadcast()
	for !a.ended && (len(a.data) > 0 || !a.hungry) {
		a.cond.Wait()
	}
	a.data = nil
	a.next += int64(len(p))
	if a.ended {
		return a.outcome
	}
	return nil
}

// Err is why the archive cannot be taken in, as far as that is known by now.
func (a *Arrival) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.outcome
}

// fail makes an error final: what was not written must not be taken for zeros.
func (a *Arrival) fail(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.outcome == nil {
		a.outcome = err
	}
	return err
}

// Size is how many bytes the archive has so far.
func (a *Arrival) Size() int64 { return a.size }

// WriteAt writes like io.WriterAt. ErrRewritten if the range was taken in already.
// Every error is final, that of ctx too.
func (a *Arrival) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := a.Err(); err != nil {
		return 0, err
	}
	if off < a.next {
		return 0, a.fail(kindf(ErrRewritten, "archive: bytes from %d on are written a second time, and had been taken in already; write the archive to a file elsewhere, and copy that", off))
	}
	if err := a.write(ctx, p, off); err != nil {
		return 0, a.fail(err)
	}
	a.size = max(a.size, off+int64(len(p)))
	return len(p), nil
}

func (a *Arrival) write(ctx context.Context, p []byte, off int64) error {
	if first, ok := a.extents.first(); off == a.next && (!ok || first.start >= off+int64(len(p))) {
		if err := a.give(ctx, p); err != nil {
			return err
		}
		return a.catchUp(ctx, 0)
	}
	if a.ahead == nil {
		ahead, err := a.reg.NewScratch()
		if err != nil {
			return err
		}
		a.ahead = ahead
	}
	if a.extents.len() >= maxExtents {
		return limitf("archive: it is written in over %d pieces out of order", maxExtents)
	}
	n, err := a.ahead.WriteAt(p, off)
	a.extents.add(extent{off, off + int64(n)})
	if err == nil {
		err = a.catchUp(ctx, 0)
	}
	return err
}

// catchUp hands over what lies in ahead as far as it follows, and up to the
// offset `until` also what was never written.
func (a *Arrival) catchUp(ctx context.Context, until int64) error {
	b := getBuffer()
	defer putBuffer(b)
	for {
		first, ok := a.extents.first()
		ready := ok && first.start <= a.next
		if !ready && a.next >= until {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if !ok && a.reading.atEnd.Load() { // more zeros tell no more
			until = min(until, a.next+landingBuffer)
		}
		end := until
		switch {
		case ready:
			end = first.end
		case ok:
			end = min(end, first.start)
		}
		part := (*b)[:min(end-a.next, landingBuffer)]
		clear(part)
		if ready {
			if _, err := a.ahead.ReadAt(part, a.next); err != nil && err != io.EOF {
				return a.fail(err)
			}
		}
		if err := a.give(ctx, part); err != nil {
			return err
		}
		if ready && a.next >= end {
			a.extents.dropFirst()
		}
	}
}

// Truncate sets the size. ErrRewritten if that takes back what was taken in already.
func (a *Arrival) Truncate(size int64) error {
	if size < a.next {
		return a.fail(kindf(ErrRewritten, "archive: it is cut to %d bytes, and more had been taken in already", size))
	}
	a.extents.cut(size)
	if a.ahead != nil {
		if err := a.ahead.Truncate(size); err != nil {
			return a.fail(err)
		}
	}
	a.size = size
	return nil
}

// Complete says whether the archive has come to its end. With closing, what was
// not written is taken for zeros: nobody will write it any more.
func (a *Arrival) Complete(ctx context.Context, closing bool) (bool, error) {
	if err := a.Err(); err != nil {
		return false, err
	}
	if closing {
		if err := a.catchUp(ctx, a.size); err != nil {
			return false, err
		}
	}
	// Of one that is compressed nobody knows whether its last bytes have come.
	return a.reading.atEnd.Load() && a.extents.len() == 0 && (closing || !a.reading.packed.Load()), a.Err()
}

// Finish ends the archive, which is Complete, and gives what was staged. Once ctx
// is done it stops as soon as it can.
func (a *Arrival) Finish(ctx context.Context) (*Staged, error) {
	stop := context.AfterFunc(ctx, a.cancel)
	defer stop()
	if err := a.Err(); err != nil {
		a.Abort()
		return nil, err
	}
	a.close()
	if a.outcome != nil {
		return nil, a.outcome
	}
	staged := a.staged
	a.staged = nil
	return staged, nil
}

// Abort ends it with nothing. After Finish it does nothing.
func (a *Arrival) Abort() {
	a.cancel()
	a.close()
	if a.staged != nil {
		a.staged.Discard()
		a.staged = nil
	}
}

// close ends what Stage reads, and waits for it.
func (a *Arrival) close() {
	a.mu.Lock()
	a.closed = true
	a.cond.Broadcast()
	for !a.ended {
		a.cond.Wait()
	}
	a.mu.Unlock()
	if a.ahead != nil {
		a.ahead.Close()
		a.ahead = nil
	}
	a.extents = extents{}
}
