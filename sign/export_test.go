package sign

import (
	"context"
	"time"

	"irfs/layout"
)

// VerifySince is the full Verify for one of several images that are asked for together, since a time.
func (v *Verifier) VerifySince(ctx context.Context, app *layout.App, snap *layout.Snapshot, e layout.Entry, since time.Time) (*Verdict, error) {
	return v.image(ctx, app, snap, e, true, since)
}

// Occupy takes room that the documents of images have, but for so many bytes, until free is called.
func (v *Verifier) Occupy(but int64) (free func()) {
	if !v.documents.TryAcquire(roomForDocuments - but) {
		panic("there is not so much room")
	}
	return func() { v.documents.Release(roomForDocuments - but) }
}
