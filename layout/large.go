package layout

import (
	"context"
	"sync"
	"time"
)

// This file bounds what a registry remembers of large documents. A small app is remembered for ever. One that takes more is forgotten, but for its
// name, when others need the place; and what many or large nested indexes say, which takes several times their bytes, when nobody used the app for some
// time. It is read again when somebody asks.

const (
	someBytes  = 64 << 10  // of an app's index.json and nested indexes: more counts in mostBytes
	largeBytes = 16 << 20  // of its nested indexes: more is forgotten when the app rests
	mostBytes  = 128 << 20 // of all apps together: as much as one may have, MaxIndex + MaxIndexes
	gateBytes  = 1 << 20   // a larger document is read alone
)

// large is what a registry knows of its apps that take much memory.
type large struct {
	gate chan struct{} // held by whoever reads a large document

	restAfter time.Duration // with no use

	mu    sync.Mutex
	apps  map[*App]int64 // bytes
	timer *time.Timer    // of the next look at them; nil for none
}

// restAfter is how long large indexes of an app are remembered after its last use.
const restAfter = 20 * time.Second

func newLarge() *large {
	return &large{gate: make(chan struct{}, 1), restAfter: restAfter, apps: map[*App]int64{}}
}

// enter waits until a document of that size may be read. leave has to be called when it is done.
func (l *large) enter(ctx context.Context, size int64) (leave func(), err error) {
	if l == nil || size < gateBytes {
		return func() {}, nil
	}
	select {
	case l.gate <- struct{}{}:
		end := Heavy()
		return func() {
			<-l.gate
			end()
		}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// keeps notes how much an app takes by now, and makes room for it.
func (l *large) keeps(a *App) {
	if l == nil {
		return
	}
	size, nested := a.size()
	a.used.Store(time.Now().UnixNano())
	l.mu.Lock()
	defer l.mu.Unlock()
	if delete(l.apps, a); size < someBytes {
		return
	}
	l.apps[a] = size
	for {
		var sum int64
		oldest := a
		for app, size := range l.apps {
			if sum += size; oldest == a || app != a && app.used.Load() < oldest.used.Load() {
				oldest = app
			}
		}
		if sum <= mostBytes || oldest == a {
			break
		}
		oldest.forget()
		delete(l.apps, oldest)
	}
	if nested > largeBytes && l.timer == nil {
		l.timer = time.AfterFunc(l.restAfter/4, l.look)
	}
}

// look forgets the large indexes of apps that nobody used for some time. It comes again as long as there are any.
func (l *large) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	left, forgot := false, false
	for app := range l.apps {
		switch _, nested := app.size(); {
		case nested <= largeBytes:
		case time.Since(time.Unix(0, app.used.Load())) < l.restAfter:
			left = true
		default:
			app.forgetIndexes()
			l.apps[app], _ = app.size()
			forgot = true
		}
	}
	if forgot {
		Heavy()() // which gives the memory back to the system
	}
	l.timer = nil
	if left {
		l.timer = time.AfterFunc(l.restAfter/4, l.look)
	}
}

func (l *large) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
}

// size is how many bytes the documents have of which the readings are kept, and those of them that are nested indexes.
func (a *App) size() (all, nested int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	all = a.indexBytes
	if a.snap != nil {
		all += a.snap.Attr.Size
	}
	return all, a.indexBytes
}

// forget drops what was read of the app's index.json and nested indexes.
func (a *App) forget() {
	a.forgetIndexes()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.snap, a.good, a.seen = nil, nil, sighting{}
}

// forgetIndexes drops what was read of the app's nested indexes.
func (a *App) forgetIndexes() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range []*Snapshot{a.snap, a.good} {
		if s != nil {
			s.mu.Lock()
			s.reached, s.words = nil, nil
			s.mu.Unlock()
		}
	}
	a.indexes, a.indexBytes = map[indexKey]*readIndex{}, 0
}
