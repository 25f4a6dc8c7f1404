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
