package layout

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// This file bounds what a registry remembers of documents. All readings are counted, by the memory that they take and not by the bytes of their files. An app
// that nobody used for the longest time is forgotten, but for its name, when the others need the place; and what many or large nested indexes say, when nobody
// used the app for some time. It is read again when somebody asks.

const (
	largeBytes = 16 << 20  // of an app's nested indexes: more is forgotten when the app rests
	mostBytes  = 128 << 20 // of memory for the readings of all apps together, but for one that takes more by itself
	gateBytes  = 1 << 20   // a larger document is read alone
)

// large is what a registry knows of the memory that its apps take.
type large struct {
	gate chan struct{} // held by whoever reads a large document

	restAfter time.Duration // with no use
	most      int64         // bytes of memory of all apps together

	mu    sync.Mutex
	apps  map[*App]int64 // bytes of memory, about
	sum   int64          // of them all
	timer *time.Timer    // of the next look at them; nil for none
}

// restAfter is how long large indexes of an app are remembered after its last use.
const restAfter = 20 * time.Second

func newLarge() *large {
	return &large{gate: make(chan struct{}, 1), restAfter: restAfter, most: mostBytes, apps: map[*App]int64{}}
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
	a.used.Store(time.Now().UnixNano())
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.left {
		return
	}
	nested := l.count(a)
	if l.sum > l.most {
		l.makeRoom(a)
	}
	if nested > largeBytes && l.timer == nil {
		l.timer = time.AfterFunc(l.restAfter/4, l.look)
	}
}

// count counts what an app takes by now, and returns the bytes of its nested indexes. l.mu is held.
func (l *large) count(a *App) (nested int64) {
	memory, nested := a.size()
	l.sum += memory - l.apps[a]
	l.apps[a] = memory
	return nested
}

// makeRoom forgets the apps that nobody used for the longest time, and more of them than it must, so that it seldom has to look at them all. l.mu is held.
func (l *large) makeRoom(but *App) {
	type use struct {
		app  *App
		last int64
	}
	list := make([]use, 0, len(l.apps))
	for app := range l.apps {
		if app != but {
			list = append(list, use{app, app.used.Load()})
		}
	}
	slices.SortFunc(list, func(a, b use) int { return cmp.Compare(a.last, b.last) })
	for _, use := range list {
		if l.sum <= l.most/8*7 {
			break
		}
		use.app.forget()
		l.sum -= l.apps[use.app]
		delete(l.apps, use.app)
	}
}

// leaves says that an app is the registry's no longer. Whoever still uses it reads again.
func (l *large) leaves(a *App) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum -= l.apps[a]
	delete(l.apps, a)
	a.left = true
	a.forget()
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
			l.count(app)
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

// size is how much memory the readings take that the app keeps, about, and how many bytes its nested indexes have.
func (a *App) size() (memory, nested int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	memory = a.indexMemory
	if a.snap != nil {
		memory += a.snap.content.bytes
	}
	if a.good != nil && (a.snap == nil || a.good.content != a.snap.content) {
		memory += a.good.content.bytes
	}
	return memory, a.indexBytes
}

// forget drops what was read of the app's index.json and nested indexes.
func (a *App) forget() {
	a.forgetIndexes()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.snap, a.good, a.seen, a.noSubject = nil, nil, sighting{}, nil
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
	a.indexes, a.indexBytes, a.indexMemory = map[indexKey]*readIndex{}, 0, 0
}
