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

// Occupy takes room that the documents of images have, but for so many bytes, until free is called. It waits for what is given back.
func (v *Verifier) Occupy(ctx context.Context, but int64) (free func(), err error) {
	err = v.documents.Acquire(ctx, roomForDocuments-but)
	return func() { v.documents.Release(roomForDocuments - but) }, err
}
