package sign

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"irfs/layout"
)

// A layer is checked once, however often it is named: by one image, by the images of an index, or by those that many readers ask for
// at the same time.

// A layerKey is what comes of checking a layer depends on, besides the bytes of its blob.
type layerKey struct {
	app       *layout.App
	digest    digest.Digest
	size      int64
	mediaType [sha256.Size]byte // the SHA-256 of it, for it may be long
	diffID    digest.Digest     // "" where it need not unpack to anything
}

// A layerCheck is what came of it.
type layerCheck struct {
	err   error  // ErrCorrupt, or nil
	table string // see layout.CheckLayer
	seen  layout.Seen
	began time.Time
}

// layers are the checks of layers that are under way, and the last ones.
type layers struct {
	flights layout.Flights[layerKey, *layerCheck]

	mu   sync.Mutex
	last map[layerKey]*layerCheck
}

// maxLayers is how many checks are kept; they take some 500 bytes each.
const maxLayers = 1 << 14

func (l *layers) kept(key layerKey) *layerCheck {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last[key]
}

func (l *layers) keep(key layerKey, check *layerCheck) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = map[layerKey]*layerCheck{}
	}
	for some := range l.last {
		if len(l.last) < maxLayers {
			break
		}
		delete(l.last, some)
	}
	l.last[key] = check
}

// check gives what comes of checking a layer, and at what time that was so for certain: a check that began after since, or one of which it was
// seen that nothing changed since it was made.
func (l *layers) check(ctx context.Context, snap *layout.Snapshot, d v1.Descriptor, key layerKey, since time.Time) (_ *layerCheck, at time.Time, _ error) {
	for {
		last := l.kept(key)
		if last != nil && !last.began.Before(since) {
			return last, last.began, nil
		}
		if last != nil && last.seen.Racy() == 0 {
			at := time.Now()
			if _, same, err := snap.Same(ctx, last.seen); err != nil {
				return nil, at, err
			} else if same {
				return last, at, nil
			}
			last = nil
		}
		check, _, err := l.flights.Do(ctx, key, func(ctx context.Context) (*layerCheck, error) {
			check := &layerCheck{began: time.Now()}
			if last != nil { // the same bytes, which have only to be hashed, unpack to the same
				seen, same, err := snap.Same(ctx, last.seen)
				if err != nil {
					return nil, err
				}
				if same {
					check.err, check.table, check.seen = last.err, last.table, seen
					l.keep(key, check)
					return check, nil
				}
			}
			var err error
			if key.diffID == "" {
				err = snap.CheckBlob(ctx, d, &check.seen)
			} else {
				check.table, err = snap.CheckLayer(ctx, d, key.diffID, &check.seen)
			}
			if err != nil && !errors.Is(err, layout.ErrCorrupt) {
				return nil, err
			}
			check.err = err
			l.keep(key, check)
			return check, nil
		})
		if err != nil {
			return nil, at, err
		}
		if !check.began.Before(since) {
			return check, check.began, nil
		}
	}
}

// checkLayers adds what verify-full checks to the verdict. Checks that began after since will do; it returns the time of the oldest
// of them, before which whoever asks later cannot rely on it.
func (v *Verifier) checkLayers(ctx context.Context, app *layout.App, snap *layout.Snapshot, verdict *Verdict, m *layout.Manifest, c *layout.Config, since time.Time) (oldest time.Time, err error) {
	oldest = time.Now()
	if verdict.Status == Corrupt || m.Doc == nil || verdict.Kind != layout.KindImage && verdict.Kind != layout.KindArtifact {
		return oldest, nil
	}
	corrupt := func(check, reason string) {
		verdict.Layers, verdict.lines = LayersCorrupt, []string{verdict.Reason}
		verdict.decide(Corrupt, check, reason)
	}
	brings := "" // a table of contents
	if table := layout.TableOf(m); table != "" {
		brings = fmt.Sprintf("the manifest brings a table of contents (%s)", table)
	}
	checked := map[layerKey]*layerCheck{}
	for i, layer := range m.Doc.Layers {
		key := layerKey{app: app, digest: layer.Digest, size: layer.Size, mediaType: sha256.Sum256([]byte(layer.MediaType))}
		if verdict.Kind == layout.KindImage {
			key.diffID = c.Doc.RootFS.DiffIDs[i]
		}
		check := checked[key]
		if check == nil {
			var at time.Time
			if check, at, err = v.layers.check(ctx, snap, layer, key, since); err != nil {
				return oldest, err
			}
			checked[key] = check
			verdict.seen.Add(check.seen)
			oldest = earlier(oldest, at)
		}
		if check.err != nil {
			corrupt(fmt.Sprintf("layer %d of %d", i+1, len(m.Doc.Layers)), check.err.Error())
			return oldest, nil
		}
		if table := cmp.Or(layout.AnnotatedTable(layer), check.table); table != "" && verdict.Kind == layout.KindImage && brings == "" {
			brings = fmt.Sprintf("layer %d brings a table of contents (%s)", i+1, table)
		}
	}
	if brings != "" && verdict.Status == Verified {
		corrupt("layers", brings+" that is not checked yet")
		return oldest, nil
	}
	verdict.Layers = LayersVerified
	return oldest, nil
}
