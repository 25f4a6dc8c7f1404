package layout

import (
	"io"

	"golang.org/x/sys/unix"
)

// A Scratch is a file without a name on the registry's file system, for bytes
// that arrive in any order. It is gone when it is closed, or its process is.
type Scratch struct {
	file *newFile
	work *work // where the file system has no unnamed files
}

// NewScratch makes an empty Scratch.
func (r *Registry) NewScratch() (*Scratch, error) {
	w, err := newWork(r.fd)
	if err != nil {
		return nil, err
	}
	f, err := createIn(r.fd, w)
	if err != nil {
		w.close()
		return nil, err
	}
	if f.name == "" {
		w.close()
		w = nil
	}
	return &Scratch{f, w}, nil
}

// Close frees it.
func (s *Scratch) Close() {
	s.file.close()
	if s.work != nil {
		s.work.close()
	}
}

// ReadAt reads like io.ReaderAt; holes are zeros.
func (s *Scratch) ReadAt(p []byte, off int64) (int, error) {
	n, err := io.ReadFull(&fdReader{fd: s.file.fd, name: "scratch", off: off}, p)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return n, err
}

// WriteAt writes like io.WriterAt.
func (s *Scratch) WriteAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		n, err := unix.Pwrite(s.file.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, pathError("write", "scratch", err)
		}
		done += n
	}
	return len(p), nil
}

// Truncate sets the size.
func (s *Scratch) Truncate(size int64) error {
	return pathError("truncate", "scratch", retry(func() error { return unix.Ftruncate(s.file.fd, size) }))
}
