package layout

import (
	"context"
	"io"
	"path"
	"sync"

	"github.com/opencontainers/go-digest"
)

// ReadEntries reads an archive as Stage does, and stops before anything is made of it.
// It gives the regular files by their names, and `-> target` for a link. Left out is what
// Stage passes over (see PassedOver), and a blob that another file has the bytes of.
func (r *Registry) ReadEntries(archive io.Reader) (map[string]string, error) {
	w, name, err := r.staging.enter(r.fd)
	if err != nil {
		return nil, err
	}
	s := &Staged{App: newApp("archive", w.fd, name), reg: r, work: w, owner: Owner{-1, -1}}
	defer s.Discard()
	if err := s.mkdir(w.fd, name); err != nil {
		return nil, err
	}
	dirfd, err := s.App.open()
	if err != nil {
		return nil, err
	}
	defer closeFD(dirfd)
	u := &unpacking{
		Staged: s, ctx: context.Background(), dirfd: dirfd, lander: newLander(), dirs: map[string]bool{},
		documents: map[string]*newFile{}, parts: map[string]part{}, blobs: map[digest.Digest]part{}, links: map[string]string{},
	}
	defer u.lander.close()
	if err := u.mkdirs("blobs"); err != nil {
		return nil, err
	}
	if err := u.read(archive, new(reading)); err != nil {
		return nil, err
	}
	entries := map[string]string{}
	blob := func(name string, d digest.Digest) error {
		data, _, _, err := s.App.readFile(dirfd, BlobPath(d), -1, 1<<30)
		entries[name] = string(data)
		return err
	}
	named := map[digest.Digest]bool{}
	for name, p := range u.parts {
		named[p.digest] = true
		if err := blob(name, p.digest); err != nil {
			return nil, err
		}
	}
	for d := range u.blobs {
		if !named[d] {
			if err := blob(BlobPath(d), d); err != nil {
				return nil, err
			}
		}
	}
	for name, f := range u.documents {
		data, err := u.document(name)
		if err != nil {
			return nil, err
		}
		entries[name] = string(data)
		f.close()
	}
	for name, target := range u.links {
		entries[name] = "-> " + target
	}
	return entries, nil
}

// PassedOver says whether Stage has no use for a file of this name.
func PassedOver(name string) bool {
	_, document := documentLimits[name]
	return !document && path.Dir(name) != "blobs" && passedOver(name)
}

// ReceiveBytes is Receive for what is no archive: bytes gives what was handed over, when the Arrival was Complete with closing.
func (r *Registry) ReceiveBytes() (a *Arrival, bytes func() []byte) {
	a = &Arrival{reg: r, cancel: func() {}}
	a.cond.L = &a.mu
	done := make(chan []byte, 1)
	go func() {
		data, err := io.ReadAll((*feed)(a))
		a.mu.Lock()
		defer a.mu.Unlock()
		a.ended, a.outcome = true, err
		a.cond.Broadcast()
		done <- data
	}()
	return a, sync.OnceValue(func() []byte {
		a.close()
		return <-done
	})
}
